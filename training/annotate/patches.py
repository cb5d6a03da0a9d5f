"""Small pictures about points, by which the points are known again and placed to a fraction of a pixel.

Pixels here are OpenCV's: centres at integers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import cv2
import numpy as np

_ROUNDS, _SETTLED = 10, 0.01
"""Most rounds of an alignment, and the pixels below which a round's step ends it."""
_NOISE = 1.0
"""Grey levels by which patches of the same thing differ, about."""
_UNLIKE = 0.1
"""What they differ by besides, as a share of their contrast: interpolation, aliasing, a turn of the surface."""


@dataclass(frozen=True, eq=False)
class Points:
    """N points with the patches that they are known by."""

    track: np.ndarray  # (N,) int64
    pixel: np.ndarray  # (N, 2) where they are now
    affine: np.ndarray  # (N, 2, 2) patch as seen now from the patch as seen first
    weight: np.ndarray  # (N, P) float32, of the patch's pixels; sums to 1
    patch: np.ndarray  # (N, P) float32, times the weights' roots, without mean, of length 1
    steepest: np.ndarray  # (N, 6, P) its change with a small affine motion
    inverse: np.ndarray  # (N, 6, 6) of its normal equations
    vagueness: np.ndarray  # (N,) pixels by which noise moves it
    descriptor: np.ndarray  # (N, 128) SIFT; zeros of a corner
    shape: np.ndarray  # (N, 2) size and angle of the SIFT point

    @classmethod
    def cut(cls, picture: np.ndarray, usable: np.ndarray, pixel: np.ndarray, window: int) -> Points:
        """Return new points with their patches, which hold what can be reached from the point on usable pixels."""
        number = len(pixel)
        pixel = np.asarray(pixel, np.float64)
        affine = np.tile(np.eye(2), (number, 1, 1))
        bare = _sample(picture, pixel, affine, window)
        right, down = (
            _sample(cv2.Scharr(picture, cv2.CV_32F, dx, 1 - dx, scale=1 / 32), pixel, affine, window) for dx in (1, 0)
        )
        offset_2P = _offsets(window)
        weight = _reached(usable, pixel, window) * np.exp(-np.square(offset_2P).sum(0) / (2 * (window / 3) ** 2))
        weight = (weight / weight.sum(-1, keepdims=True)).astype(np.float32)
        root = np.sqrt(weight)
        patch, length = _normalised(bare, weight)
        gradient = np.stack([right, down], axis=1)
        moves = [gradient, gradient * offset_2P[0], gradient * offset_2P[1]]
        steepest = np.concatenate(moves, axis=1) * root[:, None]
        steepest /= np.maximum(length, 1e-6)[:, None, None]
        # Only what neither brightness nor contrast can explain tells where the patch is.
        for flat in (root, patch):
            steepest -= np.einsum("nkp,np->nk", steepest, flat)[..., None] * flat[:, None]
        normal = steepest @ np.swapaxes(steepest, 1, 2)
        normal += (1e-3 * np.trace(normal, axis1=1, axis2=2)[:, None, None] / 6 + 1e-9) * np.eye(6)
        inverse = np.linalg.inv(normal)
        noise = np.square(_NOISE / np.maximum(length, 1e-6)) + _UNLIKE**2
        worst = np.linalg.eigvalsh(inverse[:, :2, :2])[:, -1] if number else np.zeros(0)
        vagueness = np.sqrt(worst * noise * np.square(weight).sum(-1))
        descriptor, shape = np.zeros((number, 128), np.float32), np.zeros((number, 2))
        return cls(
            np.zeros(number, np.int64), pixel, affine, weight, patch, steepest, inverse, vagueness, descriptor, shape
        )

    def __len__(self) -> int:
        return len(self.track)

    def take(self, rows: np.ndarray | slice) -> Points:
        """Return a copy of some of the points."""
        return Points(*(np.array(getattr(self, f.name)[rows]) for f in fields(self)))

    def join(self, other: Points) -> Points:
        """Return these points and others."""
        return Points(*(np.concatenate([getattr(p, f.name) for p in (self, other)]) for f in fields(self)))


def align(picture: np.ndarray, points: Points, window: int) -> tuple[Points, np.ndarray]:
    """Return the points where their patches fit best (inverse compositional), and how well, (N,) correlation."""
    points = points.take(slice(None))
    open_rows = np.arange(len(points))
    for _ in range(_ROUNDS):
        if not len(open_rows):
            break
        pixel, affine = points.pixel[open_rows], points.affine[open_rows]
        seen, _ = _normalised(_sample(picture, pixel, affine, window), points.weight[open_rows])
        slope = np.einsum("nkp,np->nk", points.steepest[open_rows], seen - points.patch[open_rows])
        step = (points.inverse[open_rows] @ slope[..., None])[..., 0]
        # The step would move the first patch; undone, it moves the one seen now. Columns of offsets: x, then y.
        affine = affine @ np.linalg.inv(np.eye(2) + np.stack([step[:, 2:4], step[:, 4:6]], axis=-1))
        move = -(affine @ step[:, :2, None])[..., 0]
        points.affine[open_rows], points.pixel[open_rows] = affine, pixel + move
        open_rows = open_rows[np.linalg.norm(move, axis=-1) > _SETTLED]
    seen, _ = _normalised(_sample(picture, points.pixel, points.affine, window), points.weight)
    return points, (seen * points.patch).sum(-1)


def _sample(picture: np.ndarray, pixel: np.ndarray, affine: np.ndarray, window: int) -> np.ndarray:
    """Return patches (N, P) float32 of a picture, seen through affine windows (N, 2, 2) about pixels (N, 2)."""
    if not len(pixel):
        return np.zeros((0, window * window), np.float32)
    at_N2P = (affine @ _offsets(window) + pixel[..., None]).astype(np.float32)
    return cv2.remap(picture, at_N2P[:, 0], at_N2P[:, 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def _offsets(window: int) -> np.ndarray:
    """Return where a patch's pixels are from its centre, (2, P) float64 x, y."""
    axis = np.arange(window) - window // 2
    return np.stack(np.meshgrid(axis, axis, indexing="xy")).reshape(2, -1).astype(np.float64)


def _reached(usable: np.ndarray, pixel: np.ndarray, window: int) -> np.ndarray:
    """Return which pixels of patches can be reached from their middle on usable ones, (N, P) bool.

    So the patch of a point beside a gap in `usable`, as where depth jumps, shows one surface only.
    """
    half = window // 2
    padded = np.pad(usable, half)
    column, row = whole(pixel).T
    axis = np.arange(window)
    free = padded[row[:, None, None] + axis[:, None], column[:, None, None] + axis]
    reached = np.zeros_like(free)
    reached[:, half, half] = True
    for _ in range(2 * half):
        grown = np.pad(reached, ((0, 0), (1, 1), (1, 1)))
        sides = grown[:, 1:-1, :-2] | grown[:, 1:-1, 2:] | grown[:, :-2, 1:-1] | grown[:, 2:, 1:-1]
        reached |= sides & free
    return reached.reshape(len(pixel), window * window)


def _normalised(bare: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return patches (N, P) without brightness and contrast, times the weights' roots, and their contrast (N,)."""
    centred = (bare - (bare * weight).sum(-1, keepdims=True)) * np.sqrt(weight)
    length = np.linalg.norm(centred, axis=-1)
    return centred / np.maximum(length, 1e-6)[:, None], length


def whole(pixel: np.ndarray) -> np.ndarray:
    """Return column and row (N, 2) of the pixels that points (N, 2) lie in."""
    return np.floor(pixel + 0.5).astype(np.int64)


def inside(pixel: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Return which points (N, 2) lie in the picture where it is usable, (N,) bool."""
    top = np.array([usable.shape[1] - 1, usable.shape[0] - 1])
    place = whole(np.clip(pixel, -1, top + 1))
    column, row = np.clip(place, 0, top).T
    return ((place >= 0) & (place <= top)).all(-1) & usable[row, column]
