"""Pictures from files and arrays: read and checked, fitted to the size of a world, and depth made visible."""

from __future__ import annotations

import math
import os
import warnings
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from aether_env.camera import check_intrinsics, intrinsics_from_fov, scale_intrinsics

MIN_SIDE = 16
"""Pixels; a smaller picture shows no scene."""
MAX_PIXELS = 50_000_000
"""Larger pictures are refused before they are decoded."""
DEFAULT_HORIZONTAL_FOV = 70.0
"""Degrees; what a picture of unknown camera is taken to span."""

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


class FittedPicture(NamedTuple):
    """A picture in a world's size."""

    rgb: np.ndarray
    """(height, width, 3) uint8."""
    intrinsics: np.ndarray
    """(3, 3) float64, pixels of (height, width)."""
    depth: np.ndarray | None
    """(height, width) float32 metres, as given where unknown."""


def read_picture(source: Any, *, name: str = "image") -> np.ndarray:
    """Return a picture as (H, W, 3) uint8 RGB, a fresh array.

    Args:
        source: A path of a PNG, JPEG, WebP or BMP file (turned upright by its EXIF tag), or an array: uint8 (H, W, 3),
            (H, W, 4) or grey (H, W), (H, W, 1). What is transparent is laid on white.
        name: How the caller's argument is called in errors.

    Raises:
        ValueError: No such file, not a picture, damaged, not 8 bits, too small or too large.
    """
    if isinstance(source, str | os.PathLike):
        return _read_file(os.fspath(source), name)
    return _read_array(source, name)


def fit_picture(
    rgb: np.ndarray,
    height: int,
    width: int,
    intrinsics: np.ndarray | None = None,
    depth: np.ndarray | None = None,
    *,
    horizontal_fov: float = DEFAULT_HORIZONTAL_FOV,
) -> FittedPicture:
    """Crop a picture to the centre with the aspect of (height, width) and resize it by area averaging.

    Args:
        rgb: (H, W, 3) uint8.
        height: Pixels wanted.
        width: Pixels wanted.
        intrinsics: (3, 3), pixels of (H, W); None where the camera is unknown.
        depth: (H, W) or (H, W, 1) floating-point metres; NaN, infinite or <= 0 where unknown. Fitted by nearest pixel.
        horizontal_fov: Degrees that the fitted picture is taken to span where `intrinsics` is None.

    Returns:
        The fitted picture, its intrinsics and its depth.

    Raises:
        ValueError: Intrinsics or depth are not of the picture.
    """
    full_height, full_width = rgb.shape[:2]
    crop_height = max(1, min(full_height, round(full_width * height / width)))
    crop_width = max(1, min(full_width, round(full_height * width / height)))
    top, left = (full_height - crop_height) // 2, (full_width - crop_width) // 2
    crop = (slice(top, top + crop_height), slice(left, left + crop_width))

    shrinks = crop_height >= height and crop_width >= width
    fitted = cv2.resize(
        np.ascontiguousarray(rgb[crop]), (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )

    if intrinsics is None:
        fitted_intrinsics = intrinsics_from_fov(math.radians(horizontal_fov), height, width)
    else:
        cropped_intrinsics = checked_intrinsics(intrinsics, full_height, full_width).copy()
        cropped_intrinsics[:2, 2] -= left, top
        fitted_intrinsics = scale_intrinsics(cropped_intrinsics, (crop_height, crop_width), (height, width))

    fitted_depth = None
    if depth is not None:
        row_H = ((np.arange(height) + 0.5) * crop_height / height).astype(int)
        column_W = ((np.arange(width) + 0.5) * crop_width / width).astype(int)
        fitted_depth = checked_depth(depth, full_height, full_width)[crop][np.ix_(row_H, column_W)]
    return FittedPicture(fitted, fitted_intrinsics, fitted_depth)


def checked_intrinsics(intrinsics: Any, height: int, width: int) -> np.ndarray:
    """Return intrinsics as (3, 3) float64.

    Raises:
        ValueError: They are no pinhole camera of a (height, width) picture.
    """
    try:
        numbers = np.asarray(intrinsics, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"intrinsics must be a 3x3 matrix of numbers, got {intrinsics!r}.") from error
    matrix = check_intrinsics("intrinsics", numbers)
    if matrix.shape != (3, 3):
        raise ValueError(f"intrinsics must be one 3x3 matrix, got shape {matrix.shape}.")
    if not (0 < matrix[0, 2] < width and 0 < matrix[1, 2] < height):
        raise ValueError(
            f"intrinsics must be in pixels of the picture ({height} x {width}); their principal point "
            f"({matrix[0, 2]}, {matrix[1, 2]}) lies outside. Multiply normalised intrinsics by the picture's size."
        )
    return matrix


def checked_depth(depth: Any, height: int, width: int) -> np.ndarray:
    """Return depth as (height, width) float32 metres.

    Raises:
        ValueError: It is not floating point, not of the picture's size, or nowhere known.
    """
    array = np.asarray(depth)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"depth must be floating-point metres, got {array.dtype}; divide millimetres by 1000 first.")
    if array.shape == (height, width, 1):
        array = array[..., 0]
    if array.shape != (height, width):
        raise ValueError(
            f"depth must have the picture's shape ({height}, {width}), got {array.shape}; resize it by nearest."
        )
    if not (np.isfinite(array) & (array > 0)).any():
        raise ValueError("depth must be finite and positive somewhere, got none; leave it out where it is unknown.")
    return array.astype(np.float32)


def as_uint8(rgb: np.ndarray) -> np.ndarray:
    """Return pictures of uint8, or of floats in [0, 1], as uint8."""
    return rgb if rgb.dtype == np.uint8 else np.rint(rgb * 255).astype(np.uint8)


def inverse_depth_levels(depth: np.ndarray, near: float) -> np.ndarray:
    """Return round(255 * sqrt(near / depth)), uint8, same shape; nearer than `near` is 255.

    Args:
        depth: Positive and finite, in the unit of `near`.
        near: Depth of level 255.
    """
    return np.rint(255.0 * np.sqrt(np.minimum(near / np.maximum(depth, 1e-6), 1.0))).astype(np.uint8)


def _read_file(path: str, name: str) -> np.ndarray:
    if not os.path.isfile(path):
        raise ValueError(f"{name}: there is no file {path!r}.")
    try:
        with warnings.catch_warnings():
            # Our own, lower limit is checked below, on the header alone.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as picture:
                _check_size(picture.width, picture.height, f"{name} {path!r}")
                if picture.mode not in _EIGHT_BIT_MODES:
                    raise ValueError(
                        f"{name} {path!r} must have 8 bits per channel, got mode {picture.mode}; convert it."
                    )
                return _flatten(ImageOps.exif_transpose(picture))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} {path!r} must have at most {MAX_PIXELS:,} pixels: {error}") from error
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{name} {path!r} is not a readable PNG, JPEG, WebP or BMP picture: {error}") from error


def _read_array(source: Any, name: str) -> np.ndarray:
    array = np.asarray(source)
    if array.dtype != np.uint8:
        raise ValueError(
            f"{name} must be uint8 RGB or a path, got {array.dtype} of shape {array.shape}; "
            "turn floats in [0, 1] into uint8 with (255 * picture).round().astype(np.uint8)."
        )
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        raise ValueError(f"{name} must have shape (H, W, 3), got {array.shape}.")
    _check_size(array.shape[1], array.shape[0], name)
    if array.ndim == 3 and array.shape[2] == 3:
        return array.copy()
    return _flatten(Image.fromarray(array.squeeze(2) if array.shape[2:] == (1,) else array))


def _check_size(width: int, height: int, what: str) -> None:
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{what} must be at least {MIN_SIDE} x {MIN_SIDE} pixels, got {width} x {height} (w x h).")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{what} must have at most {MAX_PIXELS:,} pixels, got {width} x {height} (w x h); make it smaller first."
        )


def _flatten(picture: Image.Image) -> np.ndarray:
    """Return (H, W, 3) uint8, transparent parts on white."""
    if "A" in picture.getbands() or "transparency" in picture.info:
        opaque = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    return np.array(picture.convert("RGB"))
