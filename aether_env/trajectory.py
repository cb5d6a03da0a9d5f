"""Smoothing, alignment and blending of camera paths, numpy float64. Poses and axes: see conventions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from filterpy.kalman import KalmanFilter
from scipy.linalg import cho_solve_banded, cholesky_banded
from scipy.spatial.transform import Rotation

from aether_env.camera import check_poses, make_pose, relative_to, rotation_vector_from_matrix

# Autocovariance, at lags 0, 1 and 2, of the second differences of a path made of unit noise of each kind, dt = 1.
_OF_MEASUREMENT = np.array([6.0, -4.0, 1.0])
_OF_JITTER = np.array([2.0, -1.0, 0.0])
_OF_ACCELERATION = np.array([2 / 3, 1 / 6, 0.0])
_RATIOS = np.concatenate([[0.0], 10.0 ** np.arange(-3.0, 8.5, 0.5)])
_AS_GOOD = 0.5
"""Difference of log likelihood that says nothing."""
_ROTATION_ROUNDS = 3
_DIFFUSE = 1e5


@dataclass(frozen=True, kw_only=True, eq=False)
class SmoothedPath:
    """A smoothed path and how sure it is."""

    world_from_camera: np.ndarray
    """(T, 4, 4)."""
    covariance: np.ndarray
    """(T, 6, 6): position in world axes (squared unit), then rotation vector in camera axes (squared radians)."""
    position_std: float
    """Noise of a measured position, in the poses' unit, as given or estimated."""
    rotation_std: float
    """Noise of a measured rotation, radians an axis, as given or estimated."""

    def from_first(self) -> SmoothedPath:
        """Return the path in the world of its first camera: the smoothed path knows best where that one was."""
        first = self.world_from_camera[0]
        turn = np.eye(6)
        turn[:3, :3] = first[:3, :3].T
        poses = relative_to(self.world_from_camera, first)
        return replace(self, world_from_camera=poses, covariance=turn @ self.covariance @ turn.T)


@dataclass(frozen=True, kw_only=True, eq=False)
class Similarity:
    """target = scale * rotation @ source + translation."""

    scale: float
    rotation: np.ndarray
    """(3, 3)."""
    translation: np.ndarray
    """(3,)."""

    def apply_to_points(self, points: np.ndarray) -> np.ndarray:
        """Return points (..., 3) in the target's world."""
        return self.scale * points @ self.rotation.T + self.translation

    def apply_to_poses(self, world_from_camera: np.ndarray) -> np.ndarray:
        """Return poses (..., 4, 4) in the target's world: rigid, with scaled centres."""
        rotation = self.rotation @ world_from_camera[..., :3, :3]
        return make_pose(rotation, self.apply_to_points(world_from_camera[..., :3, 3]))


def smooth_path(
    world_from_camera: np.ndarray,
    *,
    rate_hz: float = 12.0,
    position_std: float | None = None,
    rotation_std: float | None = None,
) -> SmoothedPath:
    """Smooth a path with a constant-velocity Kalman filter and the Rauch-Tung-Striebel smoother.

    Rotations are smoothed on their manifold: the state is the error about the path's own rotations, summed up from its
    increments, so turns may exceed 180 degrees. The strength of acceleration and of jitter (real motion without
    inertia), and the noise where it is not given, are those under which the path is most likely. So a path without
    noise stays where it is, and a rough path is not ironed flat.

    Args:
        world_from_camera: (T, 4, 4).
        rate_hz: Poses per second.
        position_std: Noise of a position, an axis; None estimates it from the path, 0 leaves positions as they are.
        rotation_std: Noise of a rotation, radians an axis; None estimates it, 0 leaves rotations as they are.

    Returns:
        The smoothed path with covariance; one or two poses come back as they are.

    Raises:
        ValueError: Poses that are not rigid, a rate or noise that is not positive.
    """
    poses = check_poses("world_from_camera", world_from_camera)
    if poses.ndim != 3 or len(poses) == 0:
        raise ValueError(f"world_from_camera must have shape (T, 4, 4) with T >= 1, got {poses.shape}.")
    if not 0 < rate_hz < np.inf:
        raise ValueError(f"rate_hz must be positive and finite, got {rate_hz}.")
    for name, std in (("position_std", position_std), ("rotation_std", rotation_std)):
        if std is not None and not 0 <= std < np.inf:
            raise ValueError(f"{name} must be finite and not negative, got {std}; None estimates it.")

    centre, centre_variance, position_std = _smooth_vectors(poses[:, :3, 3], 1 / rate_hz, position_std)
    rotation, rotation_variance, rotation_std = _smooth_rotations(poses[:, :3, :3], 1 / rate_hz, rotation_std)
    covariance = np.zeros((len(poses), 6, 6))
    covariance[:, range(3), range(3)] = centre_variance[:, None]
    covariance[:, range(3, 6), range(3, 6)] = rotation_variance[:, None]
    return SmoothedPath(
        world_from_camera=make_pose(rotation, centre),
        covariance=covariance,
        position_std=position_std,
        rotation_std=rotation_std,
    )


def umeyama(source: np.ndarray, target: np.ndarray, *, with_scale: bool = True) -> Similarity:
    """Return the similarity that takes `source` nearest to `target` (Umeyama 1991, eq. 40-42).

    Args:
        source: (N, 3) points.
        target: (N, 3) points.
        with_scale: False holds the scale at 1.

    Raises:
        ValueError: Shapes differ, no points, or not finite.
    """
    source, target = _check_points(source, target)
    p, q = source - source.mean(0), target - target.mean(0)
    return _similarity(_nearest_rotation(q.T @ p), source, target, with_scale)


def align_sim3(world_from_camera: np.ndarray, reference: np.ndarray, *, with_scale: bool = True) -> Similarity:
    """Return the similarity that takes a path nearest to another path of the same cameras.

    Unlike `umeyama` on the centres, the cameras' rotations have their say too, so straight and standing paths align.

    Args:
        world_from_camera: (T, 4, 4).
        reference: (T, 4, 4).
        with_scale: False holds the scale at 1, as it is where one of the paths stands still.

    Raises:
        ValueError: Poses that are not rigid, or paths of different lengths.
    """
    poses, wanted = check_poses("world_from_camera", world_from_camera), check_poses("reference", reference)
    source, target = _check_points(poses[..., :3, 3], wanted[..., :3, 3])
    turns = (wanted[:, :3, :3] @ np.swapaxes(poses[:, :3, :3], -1, -2)).mean(0)
    p, q = source - source.mean(0), target - target.mean(0)
    size = np.linalg.norm(p) * np.linalg.norm(q)
    centres = q.T @ p / size if size > 0 else np.zeros((3, 3))
    return _similarity(_nearest_rotation(turns + centres), source, target, with_scale)


def blend_paths(first: np.ndarray, second: np.ndarray, overlap: int) -> np.ndarray:
    """Join two paths in one world: linear cross-fade of centres, slerp of rotations over the overlap.

    Args:
        first: (T1, 4, 4).
        second: (T2, 4, 4); its first `overlap` poses are of the same cameras as the last of `first`.
        overlap: Number of shared poses.

    Returns:
        (T1 + T2 - overlap, 4, 4).

    Raises:
        ValueError: Poses that are not rigid, or an overlap longer than a path.
    """
    first, second = check_poses("first", first), check_poses("second", second)
    if not 0 <= overlap <= min(len(first), len(second)):
        raise ValueError(f"overlap must be in 0..{min(len(first), len(second))}, got {overlap}.")
    a, b = first[len(first) - overlap :], second[:overlap]
    weight = (np.arange(overlap) + 1.0)[:, None] / (overlap + 1)
    centre = (1 - weight) * a[:, :3, 3] + weight * b[:, :3, 3]
    turn = rotation_vector_from_matrix(np.swapaxes(a[:, :3, :3], -1, -2) @ b[:, :3, :3])
    mixed = make_pose(a[:, :3, :3] @ _exp(weight * turn), centre)
    return np.concatenate([first[: len(first) - overlap], mixed, second[overlap:]])


def _smooth_vectors(
    measured_T3: np.ndarray, dt: float, noise_std: float | None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return smoothed vectors (T, 3), their variance an axis (T,), and the noise's standard deviation."""
    num_frames = len(measured_T3)
    bend = np.diff(measured_T3, n=2, axis=0)
    # Noise would bend a path everywhere; one that is straight at most frames is exact, corners and all.
    too_short = num_frames < 3
    exact = too_short or np.median(np.abs(bend).max(-1)) <= 1e-9 * np.abs(measured_T3).max()
    if too_short or noise_std == 0 or (noise_std is None and exact):
        noise_std = noise_std or 0.0
        return measured_T3.copy(), np.full(num_frames, noise_std**2), noise_std
    measurement, jitter, acceleration = _most_likely_variances(bend, noise_std)
    smoothed, variance = _kalman_rts(measured_T3, dt, measurement, jitter, acceleration)
    return smoothed, variance, float(np.sqrt(measurement))


def _smooth_rotations(
    measured_T33: np.ndarray, dt: float, noise_std: float | None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return smoothed rotations (T, 3, 3), the variance of an axis (T,), and the noise's standard deviation.

    The error state of frame k is the rotation vector from the reference, in that camera's axes. Added to the sum of the
    reference's increments it obeys the same linear model as a position. The reference is then moved to the estimate.
    """
    reference, variance = measured_T33, np.zeros(len(measured_T33))
    for _ in range(_ROTATION_ROUNDS):
        before = np.swapaxes(reference, -1, -2)
        increments = rotation_vector_from_matrix(before[:-1] @ reference[1:])
        unrolled = np.concatenate([np.zeros((1, 3)), np.cumsum(increments, axis=0)])
        error = rotation_vector_from_matrix(before @ measured_T33)
        smoothed, variance, noise_std = _smooth_vectors(unrolled + error, dt, noise_std)
        reference = reference @ _exp(smoothed - unrolled)
    return reference, variance, float(noise_std or 0.0)


def _most_likely_variances(bend: np.ndarray, noise_std: float | None) -> tuple[float, float, float]:
    """Return the variances of measurement, jitter and acceleration (a frame) that explain second differences best.

    Args:
        bend: (T - 2, 3) second differences, not all zero.
        noise_std: Known standard deviation of the measurement, or None.
    """
    likelihoods, variances = [], []
    for jitter, acceleration in itertools.product(_RATIOS, _RATIOS):
        bands = _OF_MEASUREMENT + jitter * _OF_JITTER + acceleration * _OF_ACCELERATION
        matrix = np.repeat(bands[:, None], len(bend), axis=1)[: len(bend)]
        factor = cholesky_banded(matrix, lower=True)
        energy = (bend * cho_solve_banded((factor, True), bend)).sum()
        scale = energy / bend.size if noise_std is None else noise_std**2
        likelihoods.append(-(energy / scale + bend.size * np.log(scale)) / 2 - 3 * np.log(factor[0]).sum())
        variances.append((scale, scale * jitter, scale * acceleration))
    best = max(likelihoods)
    if noise_std is not None:
        return variances[likelihoods.index(best)]
    # A short path hardly tells noise from real jerks. Of two explanations as good as each other the one with less noise
    # does less harm: at worst nothing is smoothed.
    return min(v for v, likelihood in zip(variances, likelihoods, strict=True) if likelihood >= best - _AS_GOOD)


def _kalman_rts(
    measured_T3: np.ndarray, dt: float, measurement: float, jitter: float, acceleration: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return smoothed vectors (T, 3) and the variance of an axis (T,); the three axes are independent."""
    kalman = KalmanFilter(dim_x=2, dim_z=1)
    kalman.F = np.array([[1.0, dt], [0.0, 1.0]])
    kalman.H = np.array([[1.0, 0.0]])
    kalman.R = np.array([[measurement]])
    kalman.Q = acceleration * np.array([[1 / 3, 1 / (2 * dt)], [1 / (2 * dt), 1 / dt**2]]) + np.diag([jitter, 0.0])
    spread = _DIFFUSE * np.square(np.diff(measured_T3, axis=0)).mean() + measurement
    axes, variance = [], np.zeros(len(measured_T3))
    for measured in measured_T3.T:
        kalman.x = np.array([[measured[0]], [0.0]])
        kalman.P = np.diag([spread, spread / dt**2])
        means, covariances, _, _ = kalman.batch_filter(list(measured))
        states, covariances, _, _ = kalman.rts_smoother(means, covariances)
        axes.append(states[:, 0, 0])
        variance = covariances[:, 0, 0]
    return np.stack(axes, axis=-1), variance


def _similarity(rotation: np.ndarray, source: np.ndarray, target: np.ndarray, with_scale: bool) -> Similarity:
    """Return the similarity with this rotation and the best scale and translation."""
    p, q = (source - source.mean(0)) @ rotation.T, target - target.mean(0)
    energy, agreement = float(np.square(p).sum()), float((p * q).sum())
    # A path that stands still, or runs the other way, says nothing about scale.
    scale = agreement / energy if with_scale and energy > 0 and agreement > 0 else 1.0
    return Similarity(scale=scale, rotation=rotation, translation=target.mean(0) - scale * rotation @ source.mean(0))


def _check_points(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.ndim != 2 or source.shape[-1] != 3 or len(source) == 0 or source.shape != target.shape:
        raise ValueError(f"source and target must both have N >= 1 points of 3, got {source.shape} and {target.shape}.")
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise ValueError("source and target must be finite; leave out points that are NaN or infinite.")
    return source, target


def _exp(rotation_vector: np.ndarray) -> np.ndarray:
    """Return (N, 3, 3) from rotation vectors (N, 3)."""
    return Rotation.from_rotvec(rotation_vector).as_matrix()


def _nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """Return the proper rotation nearest to `matrix` (3, 3)."""
    left, _, right = np.linalg.svd(matrix)
    sign = np.sign(np.linalg.det(left) * np.linalg.det(right))
    return left @ np.diag([1.0, 1.0, sign]) @ right
