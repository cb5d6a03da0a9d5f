"""Videos from files, folders and arrays: checked, brought to a wanted rate and size, and what was done is said.

A video is opened by its header alone and then read frame by frame, so that its length does not matter. Files are
decoded by OpenCV, upright and by the times that they store for each frame.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import cv2
import numpy as np
from PIL import Image, ImageOps

from aether_env.camera import check_intrinsics, intrinsics_from_fov, scale_intrinsics
from aether_env.pictures import (
    DEFAULT_HORIZONTAL_FOV,
    MAX_PIXELS,
    MIN_SIDE,
    checked_intrinsics,
    fit_picture,
    read_picture,
)

Resampling = Literal["area", "public"]

VIDEO_SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
DEFAULT_FPS = 12.0
"""Frames per second that are assumed where neither the video nor its reader tells."""
MAX_FPS = 240.0
"""A header that tells more is not believed."""
MAX_BYTES = 2 * 2**30
"""Frames that `read` holds at most; longer videos are iterated over."""

_LEAST_SHARE = 0.95
"""Share of the promised seconds that a file must hold: headers of some formats are estimates."""


@dataclass(frozen=True)
class Note:
    """Something that was done to what a user gave, so that nothing happens to it in silence."""

    what: str
    """One word: "fps", "assumed_fps", "squared", "cropped", "resized", "assumed_fov", "windowed" or "padded"."""
    text: str
    """A sentence for people."""
    numbers: dict[str, float] = field(default_factory=dict)
    """The same for programs, for example {"from_height": 480, "height": 64}."""

    def __str__(self) -> str:
        return f"{self.what}: {self.text}"


class VideoFrame(NamedTuple):
    """One frame in the wanted size."""

    rgb: np.ndarray
    """(height, width, 3): uint8, or float32 in [0, 1] where floats were given."""
    intrinsics: np.ndarray
    """(3, 3) float64, pixels of (height, width)."""
    source_frame: int
    """Which frame of the source it is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Video:
    """A whole video in memory, in the wanted size and at the wanted rate."""

    rgb: np.ndarray
    """(T, height, width, 3): uint8, or float32 in [0, 1] where floats were given."""
    fps: float
    """Frames per second."""
    intrinsics: np.ndarray
    """(T, 3, 3) float64, pixels of (height, width)."""
    intrinsics_known: bool
    """False where they are assumed."""
    source_frames: np.ndarray
    """(T,) int64: which frame of the source each is; picks the poses that belong to them."""
    source_size: tuple[int, int]
    """Height and width of the source."""
    source_fps: float
    """Frames per second of the source, its mean where the rate varies."""
    notes: tuple[Note, ...]
    """What was done."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenVideo:
    """A video that is read while it is iterated over, any number of times, two frames in memory: see `open_video`."""

    height: int
    """Pixels of the frames that it gives."""
    width: int
    """Pixels."""
    fps: float
    """Frames per second that it gives."""
    intrinsics_known: bool
    """False where they are assumed."""
    source_size: tuple[int, int]
    """Height and width of the source."""
    source_fps: float
    """Frames per second of the source, its mean where the rate varies."""
    notes: tuple[Note, ...]
    """What is done to the frames."""
    resampling: Resampling
    """How frames are resized."""
    source: Source
    """Where the frames come from."""
    source_intrinsics: np.ndarray | None
    """(3, 3) or (T, 3, 3), pixels of the source."""
    every_frame: bool
    """Each frame of the source comes once; otherwise the one that is nearest to each wanted time."""

    @property
    def expected_frames(self) -> int | None:
        """Frames that the source promises: exact for arrays and pictures, nearly so for most files."""
        if self.source.seconds is None:
            return None
        return _last_number(self.source.seconds - 1 / self.source_fps, self.fps) + 1

    def __iter__(self) -> Iterator[VideoFrame]:
        """Yield the frames in order.

        Raises:
            ValueError: A frame is damaged or of another size than the first, the file ends before its header says, or
                there are not as many intrinsics as frames.
        """
        number, fitted = -1, None
        for index, rgb in self._chosen():
            if fitted is None or index != number:
                number, fitted = index, self._fit(rgb, index)
            yield VideoFrame(*fitted, index)

    def read(self) -> Video:
        """Return the whole video.

        Raises:
            ValueError: As iterating; or the frames would fill more than `MAX_BYTES`.
        """
        limit = max(1, MAX_BYTES // (self.height * self.width * 3 * self.source.bytes_per_value))
        if (self.expected_frames or 0) > limit:
            raise ValueError(self._too_long(f"{self.expected_frames:,}", limit))
        frames: list[VideoFrame] = []
        for frame in self:
            if len(frames) == limit:
                raise ValueError(self._too_long(f"more than {limit:,}", limit))
            frames.append(frame)
        return Video(
            rgb=np.stack([frame.rgb for frame in frames]),
            fps=self.fps,
            intrinsics=np.stack([frame.intrinsics for frame in frames]),
            intrinsics_known=self.intrinsics_known,
            source_frames=np.array([frame.source_frame for frame in frames], np.int64),
            source_size=self.source_size,
            source_fps=self.source_fps,
            notes=self.notes,
        )

    def _chosen(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield number and picture of the source's frame at each wanted time."""
        wanted = 0
        before: tuple[int, float, np.ndarray] | None = None
        for index, (seconds, rgb) in enumerate(self._source_frames()):
            if self.every_frame:
                yield index, rgb
                continue
            if before is not None:
                # A microsecond: of two frames equally near the earlier one is taken, however their times are rounded.
                middle = (before[1] + seconds) / 2 + 1e-6
                while wanted / self.fps <= middle:
                    yield before[0], before[2]
                    wanted += 1
            before = (index, seconds, rgb)
        while before is not None and wanted <= _last_number(before[1], self.fps):
            yield before[0], before[2]
            wanted += 1

    def _source_frames(self) -> Iterator[tuple[float, np.ndarray]]:
        """Yield the source's frames, which must be as many as the intrinsics where there is one for each."""
        matrices, count = self.source_intrinsics, 0
        known = None if matrices is None or matrices.ndim == 2 else len(matrices)
        for frame in self.source.frames():
            count += 1
            if known is not None and count > known:
                raise ValueError(f"intrinsics must be one for each frame; there are {known}, and more frames.")
            yield frame
        if known is not None and count < known:
            raise ValueError(f"intrinsics must be one for each frame; there are {known} for {count} frames.")

    def _fit(self, rgb: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a picture of the source in the wanted size, and its intrinsics."""
        intrinsics = self.source_intrinsics
        if intrinsics is not None and intrinsics.ndim == 3:
            intrinsics = intrinsics[index]
        if self.resampling == "public":
            return _fit_publicly(rgb, self.height, self.width, intrinsics)
        fitted = fit_picture(rgb, self.height, self.width, intrinsics)
        return fitted.rgb, fitted.intrinsics

    def _too_long(self, frames: str, limit: int) -> str:
        return (
            f"{self.source.name} has {frames} frames of {self.height} x {self.width}, and at most {limit:,} are held "
            "in memory; iterate over open_video(...) and cut it with world_model.windows.windows_of."
        )


def open_video(
    source: Any,
    height: int | None = None,
    width: int | None = None,
    *,
    fps: float | None = None,
    source_fps: float | None = None,
    intrinsics: np.ndarray | None = None,
    resampling: Resampling = "area",
    name: str = "video",
) -> OpenVideo:
    """Open a video; frames are read when it is iterated over.

    Args:
        source: A video file; a folder of numbered pictures; a picture file (one frame); an array (T, H, W, 3) or
            (H, W, 3), uint8 or float in [0, 1]; or a list of pictures (arrays, PIL pictures, paths).
        height: Pixels wanted: the centre of the wanted aspect is kept and resized. None keeps the size as it is.
        width: Pixels wanted; as `height`.
        fps: Frames per second wanted: each wanted time shows the frame nearest to it. None keeps every frame.
        source_fps: Frames per second of a source that does not tell: pictures and arrays. None takes `fps`, or 12.
        intrinsics: (3, 3) or one a frame of the source (T, 3, 3), pixels of the source; None where unknown.
        resampling: "area" is `pictures.fit_picture`. "public" crops and resizes as AETHER's code does with arrays: by
            nearest neighbour, for the same numbers.
        name: How the caller's argument is called in errors.

    Raises:
        ValueError: No such file, not a video, no frames, not finite or outside [0, 1], too small or too large, sizes
            that differ; or a size, rate or intrinsics that make no sense. Frames of files are checked when read.
    """
    for rate_name, rate in (("fps", fps), ("source_fps", source_fps)):
        if rate is not None and not 0 < rate <= MAX_FPS:
            raise ValueError(f"{rate_name} must be frames per second in (0, {MAX_FPS:g}], got {rate}.")
    if (height is None) != (width is None):
        raise ValueError(f"height and width must be given together, got {height} and {width}.")
    if height is not None and width is not None and min(height, width) < 1:
        raise ValueError(f"height and width must be at least 1, got {height} x {width}.")
    if resampling not in ("area", "public"):
        raise ValueError(f'resampling must be "area" or "public", got {resampling!r}.')

    opened = _open_source(source, source_fps or fps or DEFAULT_FPS, name)
    if opened.tells_fps and source_fps is not None:
        raise ValueError(f"source_fps must be left out for {opened.name}: a video file tells the times of its frames.")
    size = (opened.height, opened.width)
    height, width = (height, width) if height is not None and width is not None else size
    if intrinsics is not None:
        intrinsics = _checked_matrices(intrinsics, size)

    notes = list(opened.notes)
    if not opened.tells_fps and source_fps is None:
        text = f"The frame rate is unknown and taken as {opened.fps:g} frames a second; source_fps tells it."
        notes.append(Note("assumed_fps", text, {"fps": opened.fps}))
    if fps is not None and abs(fps - opened.fps) > 1e-3 * fps:
        happens = "left out" if fps < opened.fps else "repeated"
        text = (
            f"{opened.fps:g} frames a second became {fps:g}: every wanted time shows the frame nearest to it, so some "
            f"are {happens}."
        )
        notes.append(Note("fps", text, {"from": opened.fps, "to": fps}))
    notes += _fitting_notes(size, (height, width), resampling)
    if intrinsics is None:
        fov = DEFAULT_HORIZONTAL_FOV
        text = f"The camera is unknown and assumed to span {fov:g} degrees from left to right of what is kept."
        notes.append(Note("assumed_fov", text, {"degrees": fov}))
    return OpenVideo(
        height=height, width=width, fps=fps or opened.fps, intrinsics_known=intrinsics is not None, source_size=size,
        source_fps=opened.fps, notes=tuple(notes), resampling=resampling, source=opened,
        source_intrinsics=intrinsics, every_frame=fps is None,
    )  # fmt: skip


def read_video(source: Any, height: int | None = None, width: int | None = None, **kwargs: Any) -> Video:
    """Return a whole video: `open_video(...).read()` with the same arguments and errors."""
    return open_video(source, height, width, **kwargs).read()


class Source(Protocol):
    """Where frames come from, in their own size and rate."""

    name: str
    """For errors."""
    height: int
    width: int
    fps: float
    """Frames per second, the mean of a rate that varies."""
    tells_fps: bool
    """False where `fps` is assumed."""
    seconds: float | None
    """How long it is, where it tells."""
    bytes_per_value: int
    """1 of uint8, 4 of float32."""
    notes: tuple[Note, ...]
    """What is done to the frames before they come out."""

    def frames(self) -> Iterator[tuple[float, np.ndarray]]:
        """Yield seconds since the first frame, increasing, and (height, width, 3) RGB; at least one."""
        ...


class _Pictures:
    """A sequence of pictures: an array, or a list of arrays, PIL pictures and paths."""

    tells_fps = False
    notes: tuple[Note, ...] = ()

    def __init__(self, pictures: Sequence[Any] | np.ndarray, fps: float, name: str):
        if not len(pictures):
            raise ValueError(f"{name} has no frames; give at least one.")
        self.pictures, self.fps, self.name = pictures, fps, name
        first = self._picture(0)
        self.height, self.width = first.shape[:2]
        self.seconds: float | None = len(pictures) / fps
        self.bytes_per_value = first.itemsize

    def frames(self) -> Iterator[tuple[float, np.ndarray]]:
        for index in range(len(self.pictures)):
            rgb = self._picture(index)
            _check_same_size(rgb, self.height, self.width, f"{self.name} frame {index}")
            if rgb.itemsize != self.bytes_per_value:
                raise ValueError(f"{self.name} must be all uint8 or all floats, but frame {index} is unlike frame 0.")
            yield index / self.fps, rgb

    def _picture(self, index: int) -> np.ndarray:
        """Return (H, W, 3), uint8 or float32."""
        picture, name = self.pictures[index], f"{self.name} frame {index}"
        if isinstance(picture, Image.Image):
            if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
                raise ValueError(f"{name} must have 8 bits per channel, got mode {picture.mode}; convert it.")
            _check_size(picture.width, picture.height, name)
            return read_picture(np.asarray(ImageOps.exif_transpose(picture).convert("RGBA")), name=name)
        if isinstance(picture, str | os.PathLike):
            return read_picture(picture, name=name)
        array = np.asarray(picture)
        return (
            _float_picture(array, name) if np.issubdtype(array.dtype, np.floating) else read_picture(array, name=name)
        )


class _File:
    """A video file."""

    bytes_per_value = 1

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, f"{name} {os.fspath(path)!r}"
        if path.suffix.lower() == ".gif":
            _check_gif_ends(path, self.name)
        capture = self._open()
        try:
            coded_height, coded_width = (
                int(capture.get(prop)) for prop in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)
            )
            _check_size(coded_width, coded_height, self.name)
            promised, fps = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
            self.seconds: float | None = promised / fps if promised > 0 and 0 < fps < math.inf else None
            # Some containers tell the tick of their clock instead of a rate.
            self.fps = fps if 0 < fps <= MAX_FPS else _measured_fps(capture)
            self.tells_fps = True
            above, below = capture.get(cv2.CAP_PROP_SAR_NUM), capture.get(cv2.CAP_PROP_SAR_DEN)
        finally:
            capture.release()
        aspect = above / below if above > 0 and below > 0 else 1.0
        self.height, self.width = coded_height, round(coded_width * aspect)
        self.notes: tuple[Note, ...] = ()
        if self.width != coded_width:
            _check_size(self.width, self.height, self.name)
            text = f"Pixels are {aspect:g} times as wide as high: {coded_width} columns became {self.width}."
            self.notes = (Note("squared", text, {"aspect": aspect, "from": coded_width, "to": self.width}),)

    def frames(self) -> Iterator[tuple[float, np.ndarray]]:
        capture, number, first, seconds = self._open(), 0, 0.0, 0.0
        try:
            while capture.grab():
                stamp = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                first = first if number else stamp
                # Raw streams store no times, and some encoders wrong ones.
                in_order = number == 0 or stamp - first > seconds
                seconds = stamp - first if in_order else seconds + 1 / self.fps
                decoded, bgr = capture.retrieve()
                if not decoded or bgr is None:
                    break
                yield seconds, self._rgb(bgr, number)
                number += 1
        finally:
            capture.release()
        if number == 0:
            raise ValueError(f"{self.name} holds no frame that can be decoded; it is damaged or empty.")
        held = seconds + 1 / self.fps
        if self.seconds is not None and held < _LEAST_SHARE * self.seconds - 2 / self.fps:
            raise ValueError(
                f"{self.name} is cut off or damaged: its header promises {self.seconds:.2f} seconds, and {number} "
                f"frames ({held:.2f} seconds) can be read; `ffmpeg -i FILE -c copy NEW` saves what there is."
            )

    def _open(self) -> cv2.VideoCapture:
        # The full path: a name such as "http:x.mp4" shall not be taken for an address.
        capture = cv2.VideoCapture(str(self.path.resolve()), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            capture.release()
            raise ValueError(
                f"{self.name} is not a readable video: it is empty, cut off, damaged or of another format."
            )
        return capture

    def _rgb(self, bgr: np.ndarray, number: int) -> np.ndarray:
        rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        if self.notes and rgb.shape[0] == self.height:
            shrinks = self.width < rgb.shape[1]
            way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            rgb = cv2.resize(rgb, (self.width, self.height), interpolation=way)
        _check_same_size(rgb, self.height, self.width, f"{self.name} frame {number}")
        return rgb


def _open_source(source: Any, assumed_fps: float, name: str) -> Source:
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if os.fspath(source) and path.is_dir():  # an empty name is not the folder that one happens to be in
            return _Pictures(_numbered_pictures(path, name), assumed_fps, name)
        if not path.is_file():
            raise ValueError(f"{name}: there is no file or folder {os.fspath(source)!r}.")
        if path.suffix.lower() in PICTURE_SUFFIXES:
            return _Pictures([path], assumed_fps, name)
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            known = ", ".join((*VIDEO_SUFFIXES, *PICTURE_SUFFIXES))
            raise ValueError(f"{name} {os.fspath(source)!r} must end in one of {known}, or be a folder of pictures.")
        return _File(path, name)
    if isinstance(source, Image.Image):
        return _Pictures([source], assumed_fps, name)
    if isinstance(source, list | tuple):
        return _Pictures(source, assumed_fps, name)
    return _Pictures(_checked_array(source, name), assumed_fps, name)


def _checked_array(source: Any, name: str) -> np.ndarray:
    """Return (T, H, W, C) without a copy; values are checked when frames are read."""
    array = np.asarray(source)
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"{name} must be a path, a list of pictures, or an array of uint8 or of floats in [0, 1], got "
            f"{array.dtype} {array.shape}."
        )
    if array.ndim == 3 and array.shape[2] in (3, 4):
        array = array[None]
    if array.ndim != 4 or array.shape[3] not in (1, 3, 4):
        channels_first = array.ndim == 4 and array.shape[1] in (1, 3, 4)
        way_out = "move the channels last" if channels_first else "give one video at a time"
        raise ValueError(f"{name} must have shape (T, H, W, 3), got {array.shape}; {way_out}.")
    return array


def _float_picture(array: np.ndarray, name: str) -> np.ndarray:
    """Return (H, W, 3) float32, a copy."""
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"{name} must have shape (H, W, 3), got {array.shape}.")
    _check_size(array.shape[1], array.shape[0], name)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, but {int((~np.isfinite(array)).sum())} values are NaN or infinite.")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        way_out = "divide by 255" if low >= 0 else "add 1 and divide by 2 where it is in [-1, 1]"
        raise ValueError(f"{name} must be floats in [0, 1], got {low:g} to {high:g}; {way_out}.")
    return array.astype(np.float32)


def _numbered_pictures(folder: Path, name: str) -> list[Path]:
    """Return the pictures of a folder in the order of their numbers."""
    paths = [
        path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
    ]
    if not paths:
        raise ValueError(f"{name}: the folder {os.fspath(folder)!r} has no {', '.join(PICTURE_SUFFIXES)} picture.")

    def number(path: Path) -> list[tuple[float, str]]:
        if re.fullmatch(r"\d+(\.\d+)?", path.stem):  # a count, or a time in seconds
            return [(float(path.stem), path.name)]
        parts = re.split(r"(\d+)", path.name)
        return [(float(part), part) if part.isdecimal() else (-1.0, part) for part in parts]

    return sorted(paths, key=number)


def _measured_fps(capture: cv2.VideoCapture, frames: int = 60) -> float:
    """Return the rate by the times of the first frames."""
    stamps: list[float] = []
    while len(stamps) < frames and capture.grab():
        stamps.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    steps = np.diff(stamps)
    steps = steps[steps > 1 / MAX_FPS]
    return float(1 / np.median(steps)) if len(steps) else DEFAULT_FPS


def _check_gif_ends(path: Path, what: str) -> None:
    """A GIF tells no length; its last byte is 0x3B."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1))
        last = file.read(1)
    if last != b";":
        raise ValueError(f"{what} is cut off or damaged: a GIF ends with the byte 0x3B, this one with {last!r}.")


def _last_number(seconds: float, fps: float) -> int:
    """Return the number of the last wanted frame: a quarter of a frame later than the last there is, at most."""
    return max(0, math.floor(seconds * fps + 0.25))


def _fit_publicly(
    rgb: np.ndarray, height: int, width: int, intrinsics: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture cropped and resized as the public code does it, and its intrinsics."""
    top, left, crop_height, crop_width = _public_crop(rgb.shape[0], rgb.shape[1], height, width)
    # Single precision, as torch's interpolate(mode="nearest") counts.
    row_H = np.floor(np.arange(height, dtype=np.float32) * np.float32(crop_height / height)).astype(int)
    column_W = np.floor(np.arange(width, dtype=np.float32) * np.float32(crop_width / width)).astype(int)
    row_H, column_W = np.minimum(row_H, crop_height - 1), np.minimum(column_W, crop_width - 1)
    fitted = rgb[np.ix_(top + row_H, left + column_W)]
    if intrinsics is None:
        return fitted, intrinsics_from_fov(math.radians(DEFAULT_HORIZONTAL_FOV), height, width)
    cropped = intrinsics - [[0, 0, left], [0, 0, top], [0, 0, 0]]
    return fitted, scale_intrinsics(cropped, (crop_height, crop_width), (height, width))


def _public_crop(full_height: int, full_width: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the public code's crop, with its roundings."""
    if height / width > full_height / full_width:
        kept = full_height / height * width
        return 0, int((full_width - kept) / 2), full_height, max(1, int(kept))
    kept = full_width / width * height
    return int((full_height - kept) / 2), 0, max(1, int(kept)), full_width


def _fitting_notes(size: tuple[int, int], wanted: tuple[int, int], resampling: Resampling) -> list[Note]:
    """Return what fitting does to pictures of `size`."""
    if resampling == "public":
        top, left, kept_height, kept_width = _public_crop(*size, *wanted)
    else:
        # Unit focal lengths come back as the factors of the resizing, the principal point tells where the crop began.
        probe = np.array([[1.0, 0, size[1] / 2], [0, 1.0, size[0] / 2], [0, 0, 1]])
        fitted = fit_picture(np.zeros((*size, 3), np.uint8), *wanted, probe).intrinsics
        kept_height, kept_width = round(wanted[0] / fitted[1, 1]), round(wanted[1] / fitted[0, 0])
        top, left = (round(size[axis] / 2 - fitted[1 - axis, 2] / fitted[1 - axis, 1 - axis]) for axis in (0, 1))
    notes: list[Note] = []
    if (kept_height, kept_width) != size:
        text = f"The middle {kept_height} x {kept_width} of {size[0]} x {size[1]} pixels (height x width) is kept."
        numbers: dict[str, float] = {"top": top, "left": left, "height": kept_height, "width": kept_width}
        numbers |= {"of_height": size[0], "of_width": size[1]}
        notes.append(Note("cropped", text, numbers))
    if (kept_height, kept_width) != wanted:
        shrinks = kept_height >= wanted[0] and kept_width >= wanted[1]
        way = "nearest neighbour" if resampling == "public" else "area averaging" if shrinks else "linear interpolation"
        text = f"{kept_height} x {kept_width} became {wanted[0]} x {wanted[1]} pixels by {way}."
        numbers = {"from_height": kept_height, "from_width": kept_width, "height": wanted[0], "width": wanted[1]}
        notes.append(Note("resized", text, numbers))
    return notes


def _checked_matrices(intrinsics: Any, size: tuple[int, int]) -> np.ndarray:
    """Return (3, 3) or (T, 3, 3) float64 of pictures of `size`."""
    if np.ndim(intrinsics) != 3:
        return checked_intrinsics(intrinsics, *size)
    return np.stack([checked_intrinsics(matrix, *size) for matrix in check_intrinsics("intrinsics", intrinsics)])


def _check_same_size(rgb: np.ndarray, height: int, width: int, what: str) -> None:
    if rgb.shape[:2] != (height, width):
        raise ValueError(f"{what} must be {height} x {width} like the first, got {rgb.shape[0]} x {rgb.shape[1]}.")


def _check_size(width: int, height: int, what: str) -> None:
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{what} must be at least {MIN_SIDE} x {MIN_SIDE} pixels, got {width} x {height} (w x h).")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{what} must have at most {MAX_PIXELS:,} pixels a frame, got {width} x {height} (w x h); make it smaller."
        )
