"""Depth that was rounded to few levels, as 8-bit depth is: how coarse the levels are, and smooth depth between them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from training.annotate.footage import Footage

_EVERY = 4
"""Every so many rows and columns are looked at for levels."""
_LEVELS = (16, 1024)
"""Fewer different depths are those of single things; of more of them the steps do not matter."""
_AROUND = 2
"""Gaps to each side that a gap is compared with: some levels are not in the video."""
_BEND = 0.03
"""Second difference of inverse depth, relative to it, that no smooth surface has besides rounding."""
_REACH = (16, 8, 4, 2, 1, 8, 4, 2, 1, 4, 2, 1)
"""Pixels to both sides that depth is averaged over, one after the other."""


@dataclass(frozen=True, eq=False)
class Rounding:
    """The levels that the depth of a video was rounded to."""

    level: np.ndarray
    """(N,) ascending depths; none where depth is not rounded."""
    gap: np.ndarray
    """(N,) distance between levels thereabouts."""

    def step(self, depth: np.ndarray) -> np.ndarray:
        """Return the distance of the levels about each depth (...), 0 where it is not rounded: float32."""
        if not len(self.level):
            return np.zeros(depth.shape, np.float32)
        return np.interp(depth, self.level, self.gap).astype(np.float32)


def find_rounding(footage: Footage) -> Rounding:
    """Return the levels that a video's depth was rounded to.

    Args:
        footage: The video.
    """
    thin = np.s_[:, ::_EVERY, ::_EVERY]
    level = np.unique(footage.depth[thin][footage.valid[thin]]).astype(np.float64)
    if not _LEVELS[0] <= len(level) <= _LEVELS[1]:
        return Rounding(np.zeros(0), np.zeros(0))
    gap = np.pad(np.diff(level), (_AROUND, _AROUND + 1), mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(gap, 2 * _AROUND + 1)
    return Rounding(level, np.median(around, axis=-1))


def unrounded(footage: Footage) -> Footage:
    """Return the video with depth that is smooth where rounding made steps of a surface.

    Inverse depth, which is linear on planes, is averaged along rows and columns as far as no edge is in between, and
    stays within the half step that rounding can have moved it by. Depth that is not rounded stays as it is.

    Args:
        footage: The video.
    """
    rounding = find_rounding(footage)
    if not len(rounding.level):
        return footage
    depth = [_smoothed(*frame, rounding) for frame in zip(footage.depth, footage.valid, strict=True)]
    return replace(footage, depth=np.stack(depth))


def _smoothed(depth_HW: np.ndarray, valid_HW: np.ndarray, rounding: Rounding) -> np.ndarray:
    """Return the depth of one frame, see `unrounded`."""
    half = rounding.step(depth_HW) / 2
    known = valid_HW & (depth_HW > half)
    depth = np.where(known, depth_HW, np.float32(1))
    half = np.where(known, half, np.float32(0))
    least, most, inverse = 1 / (depth + half), 1 / (depth - half), 1 / depth
    edges = [_edges(inverse, known, 2 * half, axis) for axis in (0, 1)]
    for reach in _REACH:
        means = [_mean(inverse, edges[axis], reach, axis) for axis in (0, 1)]
        inverse = np.clip((means[0] + means[1]) / 2, least, most)
    return np.where(known, 1 / inverse, depth_HW).astype(np.float32)


def _edges(inverse_HW: np.ndarray, known_HW: np.ndarray, step_HW: np.ndarray, axis: int) -> np.ndarray:
    """Return how many edges there are up to each pixel along an axis, (H, W): no surface goes on across one."""
    inverse, known, step = (np.moveaxis(a, axis, -1) for a in (inverse_HW, known_HW, step_HW))
    edge = ~known
    bend = np.abs(np.diff(inverse, n=2, axis=-1))
    middle = inverse[..., 1:-1]
    edge[..., 1:-1] |= bend > _BEND * middle + 2 * step[..., 1:-1] * middle**2
    return np.moveaxis(np.cumsum(edge, axis=-1), -1, axis)


def _mean(inverse_HW: np.ndarray, edges_HW: np.ndarray, reach: int, axis: int) -> np.ndarray:
    """Return the mean of the pixels `reach` before and after each one along an axis, the pixel's own across edges."""
    inverse, edges = (np.moveaxis(a, axis, -1) for a in (inverse_HW, edges_HW))
    mean = inverse.copy()
    before, after = inverse[..., : -2 * reach], inverse[..., 2 * reach :]
    joined = edges[..., 2 * reach :] == edges[..., : -2 * reach]
    mean[..., reach:-reach] = np.where(joined, (before + after) / 2, inverse[..., reach:-reach])
    return np.moveaxis(mean, -1, axis)
