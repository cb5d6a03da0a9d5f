"""What a depth video says about surfaces at single pixels: where they are smooth, how far and how steep they are."""

from __future__ import annotations

import cv2
import numpy as np

_JUMP = 0.03
"""Second difference of inverse depth, relative to it, that no smooth surface has from pixel to pixel."""
_ROUGH = 0.03
"""Relative misfit of a plane, root mean square, above which there is no surface to speak of."""
_REACH = 2
"""Pixels to each side that a plane is fitted to."""


def smooth(depth: np.ndarray, valid: np.ndarray, margin: int = 1) -> np.ndarray:
    """Return where the depth is known and does not jump nearby, (T, H, W) bool.

    Inverse depth is linear in the pixel on every plane, however steep it is seen; only edges bend it.

    Args:
        depth: (T, H, W) z-depth.
        valid: (T, H, W) bool.
        margin: Pixels to keep away from the two pixels between which the depth jumps.

    Raises:
        ValueError: Wrong shapes.
    """
    _check(depth, valid)
    inverse_THW = np.divide(1.0, depth, out=np.zeros(depth.shape, np.float32), where=valid)
    bend = np.zeros_like(inverse_THW)
    bend[:, :, 1:-1] = np.abs(np.diff(inverse_THW, n=2, axis=2))
    bend[:, 1:-1] = np.maximum(bend[:, 1:-1], np.abs(np.diff(inverse_THW, n=2, axis=1)))
    jumps = (bend > _JUMP * inverse_THW).astype(np.uint8)
    kernel = np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
    return valid & np.stack([cv2.dilate(jump, kernel) == 0 for jump in jumps])


def sample(depth: np.ndarray, valid: np.ndarray, frame: np.ndarray, pixel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return depth and slope at single pixels, of the plane that fits the depths around best.

    Args:
        depth: (T, H, W) z-depth.
        valid: (T, H, W) bool.
        frame: (M,) which frame.
        pixel: (M, 2) x, y; see conventions.

    Returns:
        Depth (M,), and the relative change of inverse depth for a pixel to the right and down, (M, 2). NaN where less
        than three pixels around that are not on one line are known, or no plane fits.

    Raises:
        ValueError: Wrong shapes, or a pixel outside of the picture.
    """
    _check(depth, valid)
    x, y = np.floor(pixel.T).astype(np.int64)
    height, width = depth.shape[1:]
    if len(x) and (min(x.min(), y.min()) < 0 or x.max() >= width or y.max() >= height):
        raise ValueError(f"pixel must lie in the picture of {height} x {width}; some are outside.")
    axis = np.arange(-_REACH, _REACH + 1)
    down, right = (a.ravel() for a in np.meshgrid(axis, axis, indexing="ij"))
    columns, rows = x[:, None] + right, y[:, None] + down
    inside = (columns >= 0) & (rows >= 0) & (columns < width) & (rows < height)
    columns, rows = np.clip(columns, 0, width - 1), np.clip(rows, 0, height - 1)
    known = inside & valid[frame[:, None], rows, columns]
    inverse = np.where(known, 1 / np.where(known, depth[frame[:, None], rows, columns], 1.0), 0.0).astype(np.float64)
    off = np.stack([columns + 0.5 - pixel[:, :1], rows + 0.5 - pixel[:, 1:]], axis=-1)
    weight = known * np.exp(-np.square(off).sum(-1) / 2)
    terms = np.concatenate([np.ones((*known.shape, 1)), off], axis=-1)
    normal = np.einsum("mp,mpi,mpj->mij", weight, terms, terms)
    good = known[:, len(right) // 2] & (np.linalg.det(normal) > 1e-4)
    target = np.einsum("mp,mpi,mp->mi", weight, terms, inverse)
    plane = np.full((len(x), 3), np.nan)
    plane[good] = np.linalg.solve(normal[good], target[good][..., None])[..., 0]
    misfit = np.square(np.einsum("mpi,mi->mp", terms, plane) - inverse) * weight
    rough = np.sqrt(misfit.sum(-1) / np.maximum(weight.sum(-1), 1e-12))
    plane[~(good & (plane[:, 0] > 0) & (rough <= _ROUGH * plane[:, 0]))] = np.nan
    return 1 / plane[:, 0], plane[:, 1:] / plane[:, :1]


def _check(depth: np.ndarray, valid: np.ndarray) -> None:
    if depth.ndim != 3 or valid.shape != depth.shape or valid.dtype != np.bool_:
        raise ValueError(
            f"depth must be (T, H, W) and valid a bool of that shape, got {depth.shape}, {valid.shape} {valid.dtype}."
        )
