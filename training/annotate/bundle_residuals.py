"""What bundle adjustment makes small: pixels, depths and what is known beforehand, with analytic derivatives.

A pose changes by (w, v): its rotation R becomes R exp(w), w in camera axes, and its centre c becomes c + v, in world
axes. The shared focal length changes by its logarithm, fx and fy together; radial distortion moves a ray (x, y) of
z = 1 to (x, y) (1 + k1 r^2 + k2 r^4). The parameters of the cameras stand in the order: 6 of each frame, then the log
focal length, then k1 and k2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from aether_env.camera import make_pose, motion_from_action, rotation_vector_from_matrix, skew

NEAREST = 1e-3
"""A point nearer than this share of its measured depth (or of the median one), or behind the camera, is not seen."""
_WEISZFELD = 5
"""Rounds towards the geometric median."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cameras:
    """The cameras' state."""

    world_from_camera: np.ndarray  # (T, 4, 4)
    focal: np.ndarray  # (2,) fx, fy pixels
    centre: np.ndarray  # (2,) cx, cy pixels
    distortion: np.ndarray  # (2,) k1, k2

    def moved(self, step: np.ndarray) -> Cameras:
        """Return the cameras changed by a step (6 T + 3,)."""
        pose, rest = step[:-3].reshape(-1, 6), step[-3:]
        turn = motion_from_action(np.zeros_like(pose[:, :3]), pose[:, :3])[:, :3, :3]
        poses = make_pose(self.world_from_camera[:, :3, :3] @ turn, self.world_from_camera[:, :3, 3] + pose[:, 3:])
        return replace(
            self,
            world_from_camera=poses,
            focal=self.focal * np.exp(rest[0]),
            distortion=self.distortion + rest[1:],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Observations:
    """M observations of K points, checked elsewhere."""

    track: np.ndarray  # (M,)
    frame: np.ndarray  # (M,)
    pixel: np.ndarray  # (M, 2)
    depth: np.ndarray  # (M,) NaN where none
    slope: np.ndarray  # (M, 2) relative change of inverse depth a pixel


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear:
    """Residuals of M observations, not yet divided by their sigma, with derivatives by camera, lens and point."""

    residual: np.ndarray  # (M, 3) pixels x and y, then the depth's
    by_pose: np.ndarray  # (M, 3, 6)
    by_lens: np.ndarray  # (M, 3, 3)
    by_point: np.ndarray  # (M, 3, 3)


def residuals(cameras: Cameras, points: np.ndarray, seen: Observations) -> tuple[np.ndarray, np.ndarray]:
    """Return the residuals (M, 3), infinite where a point is not before its camera, and the points there (M, 3).

    The first two are projection minus observation, pixels. The third tells how far the point is off the surface that
    the depth map shows where the point is seen: relative, z rho(u) - 1, with the inverse depth rho continued from the
    observed pixel along its slope. On a plane rho is exactly linear in the pixel, so an error of the observed pixel
    along the surface costs nothing there. NaN where there is no depth.
    """
    pose = cameras.world_from_camera[seen.frame]
    local = np.einsum("mji,mj->mi", pose[:, :3, :3], points[seen.track] - pose[:, :3, 3])
    z = local[:, 2]
    known = seen.depth[np.isfinite(seen.depth)]
    usual = float(np.median(known)) if len(known) else float(np.median(np.abs(z)))
    before = z > NEAREST * np.where(np.isfinite(seen.depth), seen.depth, usual)
    ray = local[:, :2] / np.where(before, z, 1.0)[:, None]
    square = np.square(ray).sum(-1)
    stretch = 1 + cameras.distortion[0] * square + cameras.distortion[1] * square**2
    off = ray * stretch[:, None] * cameras.focal + cameras.centre - seen.pixel
    surface = z / seen.depth * (1 + (seen.slope * off).sum(-1)) - 1
    result = np.concatenate([off, surface[:, None]], axis=-1)
    result[~before] = np.inf
    return result, local


def linearise(cameras: Cameras, points: np.ndarray, seen: Observations) -> Linear:
    """Return the residuals with their derivatives; zero derivatives where they are not finite."""
    residual, local = residuals(cameras, points, seen)
    good = np.isfinite(residual[:, 0])
    local = np.where(good[:, None], local, [0.0, 0.0, 1.0])
    off = np.where(good[:, None], residual[:, :2], 0.0)
    z = local[:, 2, None]
    ray = local[:, :2] / z
    square = np.square(ray).sum(-1)
    k1, k2 = cameras.distortion
    stretch, bend = 1 + k1 * square + k2 * square**2, 2 * k1 + 4 * k2 * square
    # Of the distorted ray by the ray, then of the pixel by the point in camera axes.
    by_ray = stretch[:, None, None] * np.eye(2) + bend[:, None, None] * ray[:, :, None] * ray[:, None, :]
    ray_by_local = np.concatenate([np.tile(np.eye(2), (len(z), 1, 1)), -ray[:, :, None]], axis=-1) / z[..., None]
    pixel_by_local = cameras.focal[:, None] * (by_ray @ ray_by_local)
    distorted = cameras.focal * ray
    pixel_by_lens = np.stack(
        [distorted * stretch[:, None], distorted * square[:, None], distorted * square[:, None] ** 2], axis=-1
    )
    depth = np.where(np.isfinite(seen.depth), seen.depth, np.inf)
    ratio = z[:, 0] / depth
    surface_by_local = ratio[:, None] * np.einsum("mi,mij->mj", seen.slope, pixel_by_local)
    surface_by_local[:, 2] += (1 + (seen.slope * off).sum(-1)) / depth
    surface_by_lens = ratio[:, None] * np.einsum("mi,mij->mj", seen.slope, pixel_by_lens)
    by_local = np.concatenate([pixel_by_local, surface_by_local[:, None]], axis=1)
    by_lens = np.concatenate([pixel_by_lens, surface_by_lens[:, None]], axis=1)
    by_local, by_lens = by_local * good[:, None, None], by_lens * good[:, None, None]
    by_point = by_local @ np.swapaxes(cameras.world_from_camera[seen.frame][:, :3, :3], -1, -2)
    # R exp(w) sees a point p at exp(-w) p, about p + p x w.
    by_pose = np.concatenate([by_local @ skew(local), -by_point], axis=-1)
    return Linear(residual=residual, by_pose=by_pose, by_lens=by_lens, by_point=by_point)


def pose_residuals(cameras: Cameras, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far poses are from known ones (T, 6), rotation vector and centre, with derivatives (T, 6, 6).

    The derivative of the rotation is a series that is right to a relative 1e-3 up to half a radian.
    """
    turn = rotation_vector_from_matrix(np.swapaxes(known[:, :3, :3], -1, -2) @ cameras.world_from_camera[:, :3, :3])
    cross = skew(turn)
    derivative = np.tile(np.eye(6), (len(turn), 1, 1))
    derivative[:, :3, :3] = np.eye(3) + cross / 2 + cross @ cross / 12
    return np.concatenate([turn, cameras.world_from_camera[:, :3, 3] - known[:, :3, 3]], axis=-1), derivative


def first_points(cameras: Cameras, seen: Observations, number: int) -> np.ndarray:
    """Return points (K, 3) to start from: where their depths say, else where their rays come nearest to each other."""
    pose = cameras.world_from_camera[seen.frame]
    ray = np.concatenate([(seen.pixel - cameras.centre) / cameras.focal, np.ones((len(seen.pixel), 1))], axis=-1)
    ray = np.einsum("mij,mj->mi", pose[:, :3, :3], ray)
    known = np.isfinite(seen.depth)
    where = pose[:, :3, 3] + ray * np.where(known, seen.depth, 0.0)[:, None]
    sums = _Sums(seen.track, number)
    points, weight = sums.mean(where, known.astype(float)), known.astype(float)
    for _ in range(_WEISZFELD):  # towards the median, which a few wrong observations do not move
        away = np.linalg.norm(where - points[seen.track], axis=-1) / np.where(known, seen.depth, 1.0)
        weight = known / np.maximum(away, 1e-3)
        points = sums.mean(where, weight)
    blind = sums.of(known.astype(float)) == 0
    if blind.any():
        far = float(np.median(seen.depth[known])) if known.any() else 10 * _extent(cameras)
        points[blind] = _nearest_to_rays(sums, pose[:, :3, 3], ray, far)[blind]
    return points


class _Sums:
    """Sums of observations by point.

    Args:
        track: (M,) each observation's point.
        number: K.
    """

    def __init__(self, track: np.ndarray, number: int):
        self.track, self.number = track, number

    def of(self, values: np.ndarray) -> np.ndarray:
        """Return sums (K, ...) of values (M, ...)."""
        flat = values.reshape(len(values), -1)
        sums = [np.bincount(self.track, column, minlength=self.number) for column in flat.T]
        return np.stack(sums, axis=-1).reshape(self.number, *values.shape[1:])

    def mean(self, values: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Return weighted means (K, n) of values (M, n); 0 without weight."""
        return self.of(values * weight[:, None]) / np.maximum(self.of(weight), 1e-12)[:, None]


def _nearest_to_rays(sums: _Sums, centre: np.ndarray, ray: np.ndarray, far: float) -> np.ndarray:
    """Return points (K, 3) of least squared distance from their rays (M, 3); parallel rays meet `far` away."""
    unit = ray / np.linalg.norm(ray, axis=-1, keepdims=True)
    across = np.eye(3) - unit[:, :, None] * unit[:, None, :]
    number = np.ones(len(ray))
    guess = sums.mean(centre + far * unit, number)
    matrix, target = sums.of(across), sums.of((across @ centre[..., None])[..., 0])
    weak = 1e-9 * np.maximum(sums.of(number), 1.0)[:, None]
    points = np.linalg.solve(matrix + weak[..., None] * np.eye(3), (target + weak * guess)[..., None])[..., 0]
    before = ((points[sums.track] - centre) * unit).sum(-1) > 0
    return np.where((sums.of((~before).astype(float)) > 0)[:, None], guess, points)


def _extent(cameras: Cameras) -> float:
    """Return how far the cameras are apart, 1 where they are not."""
    centre = cameras.world_from_camera[:, :3, 3]
    return float(np.linalg.norm(centre - centre[0], axis=-1).max()) or 1.0
