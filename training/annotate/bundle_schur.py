"""Normal equations of a bundle with the points eliminated (Schur complement), numpy and scipy.

Camera parameters stand in the order of `bundle_residuals`: 6 of each of T frames, then 3 of the lens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.sparse import csr_array

from training.annotate.bundle_residuals import Linear, Observations

_TOGETHER = 128
"""Tracks that enter the cameras' system at a time; neighbours in time, so that their frames are few."""
_SINGULAR = 1e-11
"""Eigenvalue of the cameras' system, scaled to a unit diagonal, that stands for a direction nobody measured."""
_LEAST_DAMPING = 1e-10
"""Times a point's mean curvature: keeps points that were seen once solvable without telling the cameras anything."""


class Layout:
    """Which observation belongs to which frame and point; made once, for many equations.

    Args:
        seen: M observations.
        num_frames: T.
        num_points: K.
    """

    def __init__(self, seen: Observations, num_frames: int, num_points: int):
        self.track, self.frame, self.num_frames, self.num_points = seen.track, seen.frame, num_frames, num_points
        ones, rows = np.ones(len(seen.track)), np.arange(len(seen.track))
        self._to_frame = csr_array((ones, (seen.frame, rows)), shape=(num_frames, len(rows)))
        self._to_point = csr_array((ones, (seen.track, rows)), shape=(num_points, len(rows)))
        # Points in the order of their middle frame: those of a group share their frames.
        count = np.maximum(np.bincount(seen.track, minlength=num_points), 1)
        middle = np.bincount(seen.track, seen.frame, minlength=num_points) / count
        points = np.argsort(middle, kind="stable")
        place = np.empty(num_points, np.int64)
        place[points] = np.arange(num_points)
        order = np.argsort(place[seen.track], kind="stable")
        ends = np.searchsorted(place[seen.track][order], np.arange(_TOGETHER, num_points, _TOGETHER))
        self.groups = [
            (points[start * _TOGETHER :][:_TOGETHER], rows, place[seen.track[rows]] - start * _TOGETHER)
            for start, rows in enumerate(np.split(order, ends))
            if len(rows)
        ]

    def by_frame(self, values: np.ndarray) -> np.ndarray:
        """Return sums (T, ...) of values (M, ...) of each frame."""
        return (self._to_frame @ values.reshape(len(values), -1)).reshape(self.num_frames, *values.shape[1:])

    def by_point(self, values: np.ndarray) -> np.ndarray:
        """Return sums (K, ...) of values (M, ...) of each point."""
        return (self._to_point @ values.reshape(len(values), -1)).reshape(self.num_points, *values.shape[1:])


@dataclass(frozen=True, eq=False)
class NormalEquations:
    """H step = -g of a bundle, in blocks. Only `add` changes them."""

    layout: Layout
    of_cameras: np.ndarray  # (C, C), C = 6 T + 3
    slope_cameras: np.ndarray  # (C,)
    of_points: np.ndarray  # (K, 3, 3)
    slope_points: np.ndarray  # (K, 3)
    between: np.ndarray  # (M, 6, 3) each observation's pose and point
    lens_between: np.ndarray  # (K, 3, 3) lens and point

    @classmethod
    def of(cls, linear: Linear, root_weight: np.ndarray, layout: Layout) -> NormalEquations:
        """Return the equations of observations whose residuals (M, 3) count with the roots of their weights (M, 3)."""
        residual = np.where(root_weight > 0, linear.residual, 0.0) * root_weight
        pose, lens, point = (
            derivative * root_weight[..., None] for derivative in (linear.by_pose, linear.by_lens, linear.by_point)
        )
        pose_T, lens_T, point_T = (np.swapaxes(derivative, 1, 2) for derivative in (pose, lens, point))
        size = 6 * layout.num_frames
        cameras = np.zeros((size + 3, size + 3))
        blocks = cameras[:size, :size].reshape(layout.num_frames, 6, layout.num_frames, 6)
        frames = np.arange(layout.num_frames)
        blocks[frames, :, frames] = layout.by_frame(pose_T @ pose)
        cameras[:size, size:] = layout.by_frame(pose_T @ lens).reshape(size, 3)
        cameras[size:, :size] = cameras[:size, size:].T
        cameras[size:, size:] = (lens_T @ lens).sum(0)
        slope = layout.by_frame((pose_T @ residual[..., None])[..., 0]).ravel()
        return cls(
            layout,
            cameras,
            np.concatenate([slope, (lens_T @ residual[..., None])[..., 0].sum(0)]),
            layout.by_point(point_T @ point),
            layout.by_point((point_T @ residual[..., None])[..., 0]),
            pose_T @ point,
            layout.by_point(lens_T @ point),
        )

    def add(self, residual: np.ndarray, derivative: np.ndarray, rows: slice | np.ndarray) -> None:
        """Add residuals (n,) of cameras alone, divided by their sigma, with derivatives (n, r) by parameters `rows`."""
        index = np.arange(len(self.slope_cameras))[rows]
        self.of_cameras[np.ix_(index, index)] += derivative.T @ derivative
        self.slope_cameras[index] += derivative.T @ residual

    def reduced(self, damping: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the cameras' own system (C, C), its slope (C,), and the points' whitening (K, 3, 3).

        Args:
            damping: Levenberg-Marquardt's, on the diagonals (Marquardt's scaling).
        """
        points = self.of_points.copy()
        diagonal = np.einsum("kii->ki", points)
        least = _LEAST_DAMPING * diagonal.mean(-1, keepdims=True) + 1e-300
        diagonal += damping * diagonal + least
        # With points = c c^T, between points^-1 between^T is the square of between c^-T.
        white = np.linalg.inv(np.linalg.cholesky(points))
        slope_points = (white @ self.slope_points[..., None])[..., 0]
        system, slope = self.of_cameras.copy(), self.slope_cameras.copy()
        system[np.diag_indices_from(system)] *= 1 + damping
        size = 6 * self.layout.num_frames
        white_T = np.swapaxes(white, 1, 2)
        between = self.between @ white_T[self.layout.track]
        lens_between = self.lens_between @ white_T
        for tracks, rows, column in self.layout.groups:
            frame = self.layout.frame[rows]
            first, last = frame.min(), frame.max() + 1
            blocks = np.zeros((last - first, 6, len(tracks), 3))
            blocks[frame - first, :, column] = between[rows]
            dense = blocks.reshape(-1, 3 * len(tracks))
            lens = lens_between[tracks].transpose(1, 0, 2).reshape(3, -1)
            a, b, flat = 6 * first, 6 * last, slope_points[tracks].ravel()
            across = dense @ lens.T
            system[a:b, a:b] -= dense @ dense.T
            system[a:b, size:] -= across
            system[size:, a:b] -= across.T
            system[size:, size:] -= lens @ lens.T
            slope[a:b] -= dense @ flat
            slope[size:] -= lens @ flat
        return system, slope, white

    def step(self, damping: float, free: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the steps of the cameras (C,) and points (K, 3); None where the damped system is singular.

        Args:
            damping: As in `reduced`.
            free: (C,) bool: which camera parameters move.
        """
        system, slope, white = self.reduced(damping)
        camera = np.zeros(len(slope))
        free = free & (np.diag(self.of_cameras) > 0)  # a frame that sees nothing stays where it is
        if free.any():
            system = system[np.ix_(free, free)]
            scale = 1 / np.sqrt(np.maximum(np.diag(system), 1e-300))
            try:
                factor = cho_factor(system * scale * scale[:, None], lower=True, check_finite=False)
            except LinAlgError:
                return None
            camera[free] = -scale * cho_solve(factor, scale * slope[free], check_finite=False)
        size = 6 * self.layout.num_frames
        moved = (np.swapaxes(self.between, 1, 2) @ camera[:size].reshape(-1, 6)[self.layout.frame][..., None])[..., 0]
        pulled = self.layout.by_point(moved) + camera[size:] @ self.lens_between + self.slope_points
        point = -(np.swapaxes(white, 1, 2) @ (white @ pulled[..., None]))[..., 0]
        return (camera, point) if np.isfinite(camera).all() and np.isfinite(point).all() else None

    def variances(self, free: np.ndarray) -> np.ndarray:
        """Return the variance (C,) of each camera parameter: 0 where it is held, infinite where nobody measured it."""
        system, _, _ = self.reduced(0.0)
        system = system[np.ix_(free, free)]
        result = np.zeros(len(free))
        scale = 1 / np.sqrt(np.maximum(np.diag(self.of_cameras)[free], 1e-300))
        value, vector = np.linalg.eigh(system * scale * scale[:, None])
        lost = value < _SINGULAR
        variance = np.square(vector[:, ~lost]) @ (1 / value[~lost])
        variance[(np.square(vector[:, lost]).sum(-1) > 1e-6)] = np.inf
        result[free] = variance * np.square(scale)
        return result
