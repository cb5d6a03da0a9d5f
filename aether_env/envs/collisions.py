"""Collisions from depth: how far a ball around the camera can go before it touches a surface that was seen lately.

What was not seen is free; what has moved away stays in the way until its views are forgotten. A row of a batch comes
out the same to the last bit whatever its neighbours are.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from aether_env.conventions import FAR_DEPTH

GRID = (24, 36)
"""Rows and columns of the cells that a picture is cut into; of each cell one point is kept."""

VIEWS = 8
"""Views that are kept; an older one is forgotten."""

_SURFACE = 0.999 * FAR_DEPTH
"""Depth from which on a pixel is sky, as elsewhere."""

_BESIDE = 1e-6
"""A point less than this ahead is beside the ball, so that rounding does not decide whether a ball may slide along."""


def no_surfaces(batch: int) -> np.ndarray:
    """Return the surfaces of `batch` envs that have seen nothing yet, (B, VIEWS, P, 3) float32, all inf; P cells."""
    return np.full((batch, VIEWS, GRID[0] * GRID[1], 3), np.inf, np.float32)


def add_view(
    surfaces: np.ndarray, depth_BHW: np.ndarray, intrinsics_B33: np.ndarray, world_from_camera_B44: np.ndarray
) -> np.ndarray:
    """Return the surfaces with the oldest view dropped and this one as the last.

    A cell's point is its pixel of least depth (the first of equals): nothing nearer gets lost, and the point lies where
    a surface was seen. That depth on the ray through the cell's middle would hang in the air in front of a slanted wall
    or beside a thin thing. A picture with fewer rows or columns than `GRID` has one cell for each.

    Args:
        surfaces: (B, VIEWS, P, 3) of `no_surfaces` or `add_view`; not modified.
        depth_BHW: (B, H, W) z-depth, finite and > 0, metres (or the world's units).
        intrinsics_B33: (B, 3, 3) pixels of (H, W).
        world_from_camera_B44: (B, 4, 4), where the depth was seen from.

    Returns:
        (B, VIEWS, P, 3) float32 points, world axes; inf where a cell shows only sky, and beyond the last cell.
    """
    batch, height, width = depth_BHW.shape
    pixels_CN = _cell_pixels(height, width)
    depth_BCN = depth_BHW.reshape(batch, -1).take(pixels_CN, axis=1)
    nearest_BC = depth_BCN.argmin(axis=-1)
    z = np.take_along_axis(depth_BCN, nearest_BC[..., None], axis=-1)[..., 0].astype(np.float64)
    row, column = np.divmod(pixels_CN[np.arange(len(pixels_CN)), nearest_BC], width)

    k = np.asarray(intrinsics_B33, np.float64)[..., None]
    y = (row + 0.5 - k[:, 1, 2]) / k[:, 1, 1]
    x = (column + 0.5 - k[:, 0, 2] - k[:, 0, 1] * y) / k[:, 0, 0]
    pose = np.asarray(world_from_camera_B44, np.float64)[..., None]
    new = np.empty_like(surfaces)
    new[:, :-1] = surfaces[:, 1:]
    new[:, -1, len(pixels_CN) :] = np.inf
    for axis in range(3):
        # Written out, for a matrix product may round otherwise in another batch.
        point = (pose[:, axis, 0] * x + pose[:, axis, 1] * y + pose[:, axis, 2]) * z + pose[:, axis, 3]
        new[:, -1, : len(pixels_CN), axis] = np.where(z < _SURFACE, point, np.inf)
    return new


def free_fraction(surfaces: np.ndarray, from_B44: np.ndarray, to_B44: np.ndarray, radius_B: np.ndarray) -> np.ndarray:
    """Return how much of the straight way the ball can go before it touches a point.

    A ball that touches a point already (it is nearer than the radius) may move away from it or along it, not nearer.

    Args:
        surfaces: (B, VIEWS, P, 3) of `add_view`, world axes.
        from_B44: (B, 4, 4) world_from_camera where the way begins; only its centre counts.
        to_B44: (B, 4, 4) world_from_camera where the way ends.
        radius_B: (B,) of the ball, metres (or the world's units).

    Returns:
        (B,) float64 in [0, 1]; 1 where nothing is in the way and where there is no motion.
    """
    start_B3 = np.asarray(from_B44, np.float64)[:, :3, 3]
    way_B3 = np.asarray(to_B44, np.float64)[:, :3, 3] - start_B3
    # Row after row: what one row needs fits into the processor's cache, which makes it faster than the whole batch.
    rows = zip(surfaces.reshape(len(surfaces), -1, 3), start_B3, way_B3, radius_B, strict=True)
    return np.array([_free_fraction(*row) for row in rows], np.float64)


def _free_fraction(points_P3: np.ndarray, start_3: np.ndarray, way_3: np.ndarray, radius: float) -> float:
    length = math.hypot(*way_3)
    if length == 0:
        return 1.0
    direction = way_3 / length
    x, y, z = (points_P3[:, axis] - start_3[axis] for axis in range(3))
    near = np.flatnonzero(x * x + y * y + z * z < (length + radius) ** 2)  # few; inf never is
    x, y, z = x[near], y[near], z[near]
    # A ball whose centre keeps to this line touches the points that lie less than the radius beside it, first when the
    # point is `half` (half the chord that the line cuts out of the ball) ahead.
    ahead = x * direction[0] + y * direction[1] + z * direction[2]
    beside = (x - ahead * direction[0]) ** 2 + (y - ahead * direction[1]) ** 2 + (z - ahead * direction[2]) ** 2
    hit = (ahead > _BESIDE) & (beside < radius * radius)
    half = np.sqrt(radius * radius - beside[hit])
    return max((ahead[hit] - half).min(initial=length), 0.0) / length


@lru_cache(maxsize=16)
def _cell_pixels(height: int, width: int) -> np.ndarray:
    """Return the pixels of each cell, (C, N) indices into the flat picture; where a cell has fewer, its last repeat."""

    def spans(pixels: int, cells: int) -> np.ndarray:
        edges = np.arange(cells + 1) * pixels // cells
        return np.minimum(edges[:-1, None] + np.arange(np.diff(edges).max()), edges[1:, None] - 1)

    rows, columns = spans(height, min(height, GRID[0])), spans(width, min(width, GRID[1]))
    pixels = (rows[:, None, :, None] * width + columns[None, :, None, :]).reshape(len(rows) * len(columns), -1)
    pixels.flags.writeable = False
    return pixels
