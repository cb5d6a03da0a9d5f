"""Single frames of depth and masks from files of any origin: headers are believed only after they were checked.

Everything here raises `ValueError` for what cannot be read, whatever the file holds; nothing is unpickled, and sizes
are compared with the limits and with the length of the file before memory is taken.
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from aether_env.pictures import MAX_PIXELS, MIN_SIDE

_GREY_MODES = ("1", "L", "I;16", "I;16B", "I")
MAX_VALUES = 2**40
"""Of an array in a file; it is mapped, not loaded, so this only keeps sizes countable."""
_GREY_TOLERANCE = 6


def read_grey(path: Path) -> np.ndarray:
    """Return a grey picture with 8 or 16 bits as it is stored, (H, W) uint8 or uint16.

    Raises:
        ValueError: No grey PNG, too small or too large, or damaged.
    """
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            check_frame_size(picture.height, picture.width)
            if picture.mode not in _GREY_MODES:
                raise ValueError(f"it must be grey with 8 or 16 bits, got mode {picture.mode}")
            stored = np.array(picture)
    # The last one is what Pillow raises for some broken chunks; all of them mean the same to a reader.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, OverflowError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if stored.dtype == np.bool_:
        return stored.astype(np.uint8)
    if stored.dtype == np.int32:  # older Pillows' for 16 bits
        return stored.astype(np.uint16)
    return stored


def read_mask(path: Path) -> np.ndarray:
    """Return where a PNG of any kind is not black, (H, W) bool; what is transparent is black.

    Raises:
        ValueError: No PNG, too small or too large, or damaged.
    """
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            check_frame_size(picture.height, picture.width)
            if picture.mode in (*_GREY_MODES, "P"):  # numbers of a palette are labels: 0 is the background
                return np.array(picture) != 0
            stored = np.array(picture.convert("RGBA"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, OverflowError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return stored[..., :3].any(-1) & (stored[..., 3] > 0)


def map_array(path: Path, dimensions: int) -> np.ndarray:
    """Return an array of numbers in an .npy file without reading it.

    Args:
        path: The file.
        dimensions: Of the array; the last two are height and width, one of length 1 behind them is left out.

    Raises:
        ValueError: No .npy file, cut off, pickled objects, no real numbers, or of another or a hostile shape.
    """
    try:
        mapped: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, OverflowError, EOFError, TypeError, MemoryError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if mapped.ndim == dimensions + 1 and mapped.shape[-1] == 1:
        mapped = mapped[..., 0]
    if mapped.ndim != dimensions or mapped.dtype.kind not in "fui" or 0 in mapped.shape:
        raise ValueError(f"{path} must hold {dimensions}-dimensional numbers, got {mapped.dtype} {mapped.shape}.")
    check_frame_size(*mapped.shape[-2:], what=str(path))
    if math.prod(mapped.shape) > MAX_VALUES:
        raise ValueError(f"{path} must hold at most {MAX_VALUES:,} numbers, got the shape {mapped.shape}.")
    return mapped


def check_frame_size(height: int, width: int, *, what: str = "it") -> None:
    """Check that a frame may be decoded.

    Raises:
        ValueError: Too small or too large.
    """
    if min(height, width) < MIN_SIDE or height * width > MAX_PIXELS:
        raise ValueError(
            f"{what} must have at least {MIN_SIDE} pixels a side and at most {MAX_PIXELS:,}, got {width} x {height} "
            "(w x h)"
        )


def resize_nearest(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a frame (h, w) in another size by nearest pixel, so that no depth is made up between two surfaces."""
    if frame.shape == (height, width):
        return frame
    row_H = ((np.arange(height) + 0.5) * frame.shape[0] / height).astype(int)
    column_W = ((np.arange(width) + 0.5) * frame.shape[1] / width).astype(int)
    return frame[np.ix_(row_H, column_W)]


class GreyVideo:
    """A video of grey frames with 8 bits, or 16 in a lossless format such as FFV1 in .mkv; read from its beginning on.

    Args:
        path: The file.

    Raises:
        ValueError: No video that can be read, or one with colours.
    """

    def __init__(self, path: Path):
        self._path = path
        # As stored: OpenCV would turn 16 bits into 8. Others are decoded to colours all the same, because codecs may
        # store grey in another range than 0 to 255.
        self._capture = self._open([cv2.CAP_PROP_CONVERT_RGB, 0])
        decoded, frame = self._capture.read()
        if not decoded or frame.dtype != np.uint16:
            self._capture.release()
            self._capture = self._open([])
            decoded, frame = self._capture.read()
        if not decoded:
            raise ValueError(f"{path} holds no frame that can be decoded; it is damaged or empty")
        # Lossy codecs let grey vary by a few levels between the channels; more than that is a picture.
        if frame.ndim == 3 and np.ptp(frame.astype(np.int16), axis=-1).max() > _GREY_TOLERANCE:
            raise ValueError(f"{path} must be grey, its first frame has colours")
        self._number, self._current = 0, frame

    def frame(self, number: int) -> np.ndarray:
        """Return a frame, (H, W) uint8 or uint16; numbers must not go down.

        Raises:
            LookupError: The video ends before it.
        """
        assert number >= self._number
        while self._number < number:
            decoded, frame = self._capture.read()
            if not decoded:
                raise LookupError(f"{self._path} ends before frame {number}")
            self._number, self._current = self._number + 1, frame
        return self._current if self._current.ndim == 2 else self._current[..., 1]

    def close(self) -> None:
        """Close the file."""
        self._capture.release()

    def _open(self, options: list[int]) -> cv2.VideoCapture:
        # The full path: a name such as "http:x.mp4" shall not be taken for an address.
        capture = cv2.VideoCapture(str(self._path.resolve()), cv2.CAP_FFMPEG, options)
        if not capture.isOpened():
            raise ValueError(
                f"{self._path} is not a readable video: it is empty, cut off, damaged or of another format"
            )
        size = [int(capture.get(prop)) for prop in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)]
        check_frame_size(*size, what=str(self._path))
        return capture
