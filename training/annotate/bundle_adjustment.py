"""Bundle adjustment of RGB-D video: poses, one focal length, radial distortion and points, by Levenberg-Marquardt.

What is made small is the distance of each projected point from its observation in pixels and, where the depth is
measured, that of the point from the surface in the depth map (`bundle_residuals`), both under the Cauchy loss and
divided by their noise, which is estimated from the residuals in rounds.

On the paper's forward-backward 3-D residual: it takes the point that frame i sees, by its depth, into frame j and
compares it with what j's depth says, and the other way round, for all pairs. The points here are free, and for any
vectors the least sum of squares about one free point is the mean of those of all pairs, sum_i |x_i - x|^2 =
1/n sum_(i<j) |x_i - x_j|^2: the depth residuals of one track are all its pairs at once, each with its own noise and at
the cost of n instead of n^2. With `slope` they also compare surfaces, not only points: a point made from frame i must
lie on the surface of frame j where it is projected to.

The points are eliminated (Schur complement); the cameras' dense system is solved by Cholesky.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from aether_env.camera import check_intrinsics, check_poses, make_pose
from training.annotate.bundle_residuals import Cameras, Observations, first_points, linearise, pose_residuals, residuals
from training.annotate.bundle_schur import Layout, NormalEquations
from training.annotate.tracks import Tracks

_CAUCHY = 2.385
"""Sigmas where the loss bends: 95 % as efficient as least squares on normal noise."""
_LEAST_PIXELS, _LEAST_DEPTH = 0.05, 3e-5
"""Smallest sigmas that are believed: pixels, and relative depth (float32 and 16-bit files are no better)."""
_BINS, _IN_A_BIN = 8, 40
"""Groups of near and far observations whose depth noise is estimated apart, and how many each has at least."""
_SETTLED = 0.05
"""Relative change of the noise below which another round would find the same."""
_GAUGE = 1e-3
"""Relative sigma that holds the length of the path where no depth does."""
_INLIER = 4.0
"""Sigmas within which an observation is an inlier."""
_BEHIND = 1e3
"""Pixels, and relative depth, that an observation behind its camera counts as: no step shall bring one there."""
_EASY, _HARD = 1e-4, 1e9
"""Damping at the start of a round, and the one at which no step helps."""


@dataclass(frozen=True, kw_only=True)
class AdjustSettings:
    """How a bundle is adjusted."""

    sigma_pixels: float | None = None
    """Noise of an observed pixel, an axis; None estimates it."""
    depth_sigma: float | Literal["estimate"] | None = "estimate"
    """Relative noise of depth; "estimate" finds it, for near and far depths apart; None leaves depth out."""
    refine_focal: bool = True
    """Whether the focal length is free."""
    distortion: int = 0
    """Radial coefficients that are free: 0, 1 (k1) or 2 (k1 and k2)."""
    rounds: int = 6
    """Times that noise is estimated and the bundle adjusted, at most."""
    max_iterations: int = 40
    """Steps of a round, at most."""
    tolerance: float = 1e-6
    """Relative decrease of the cost that ends a round."""

    def __post_init__(self) -> None:
        for name, value in (("sigma_pixels", self.sigma_pixels), ("depth_sigma", self.depth_sigma)):
            if value is not None and value != "estimate" and not 0 < float(value) < np.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}.")
        if self.distortion not in (0, 1, 2):
            raise ValueError(f"distortion must be 0, 1 or 2 coefficients, got {self.distortion}.")
        if self.rounds < 1 or self.max_iterations < 1 or not 0 < self.tolerance < 1:
            raise ValueError(
                "rounds and max_iterations must be at least 1 and tolerance in (0, 1), got "
                f"{self.rounds}, {self.max_iterations} and {self.tolerance}."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Adjusted:
    """An adjusted bundle and how sure it is. What nobody measured has an infinite standard deviation."""

    world_from_camera: np.ndarray
    """(T, 4, 4); frame 0 is where it was given."""
    intrinsics: np.ndarray
    """(3, 3) pixels."""
    distortion: np.ndarray
    """(2,) k1 and k2."""
    points: np.ndarray
    """(K, 3) in the world."""
    residual_pixels: np.ndarray
    """(M,) distance of each observation from its point's projection; infinite behind the camera."""
    residual_depth: np.ndarray
    """(M,) relative distance from the measured surface, with its sign; NaN where there is no depth."""
    sigma_pixels: float
    """Noise of a pixel, an axis, as given or estimated."""
    sigma_depth: np.ndarray
    """(M,) relative noise of each depth, as given or estimated; NaN where there is none."""
    inlier: np.ndarray
    """(M,) bool: within 4 sigmas of pixel and depth."""
    converged: bool
    """Whether the last round came to rest."""
    iterations: int
    """Of all rounds."""
    cost: list[float]
    """Of the last round: before it, then after each step."""
    focal_std: float
    """Of fx, pixels, 1 sigma; 0 where it was held."""
    rotation_std: np.ndarray
    """(T,) radians, 1 sigma, root of the sum over the axes; of frame 0: 0."""
    position_std: np.ndarray
    """(T,) in the poses' unit, likewise. Without depth the length of the path is taken as known."""

    @property
    def inlier_share(self) -> float:
        """Share of the observations that are inliers."""
        return float(self.inlier.mean())


DEFAULT = AdjustSettings()


def adjust(
    world_from_camera: ArrayLike,
    intrinsics: ArrayLike,
    tracks: Tracks,
    depth: ArrayLike | None = None,
    *,
    slope: ArrayLike | None = None,
    focal_prior: tuple[float, float] | None = None,
    pose_sigma: ArrayLike | None = None,
    settings: AdjustSettings = DEFAULT,
) -> Adjusted:
    """Return the cameras and points that explain the tracks best.

    Frame 0 is held. The scale is that of the depth; without any depth the path keeps its length.

    Args:
        world_from_camera: (T, 4, 4) first guess.
        intrinsics: (3, 3) pixels, first guess; the principal point and fx / fy are held.
        tracks: M observations.
        depth: (M,) measured z-depth of each observation, NaN where none, in the poses' unit.
        slope: (M, 2) relative change of the measured inverse depth for a pixel to the right and down; None is 0.
        focal_prior: What is known about fx: value and sigma, pixels.
        pose_sigma: Sigma of the first guess, rotation (radians, an axis) and position, (2,) or (T, 2), where it is to
            be respected; infinite where not.
        settings: How.

    Raises:
        ValueError: Wrong shapes or values, frames that do not exist, or no observations.
    """
    cameras, seen = _checked(world_from_camera, intrinsics, tracks, depth, slope)
    if settings.depth_sigma is None:
        seen = replace(seen, depth=np.full(len(seen.depth), np.nan))
    priors = _Priors(cameras, seen, _checked_focal(focal_prior), _checked_sigma(pose_sigma, cameras), settings)
    problem = _Problem(seen, Layout(seen, len(cameras.world_from_camera), tracks.count), priors, settings)
    state = _State(cameras, first_points(cameras, seen, tracks.count))
    noise, iterations, converged, cost = problem.noise(state), 0, False, [np.inf]
    for _ in range(settings.rounds):
        state, cost, converged = problem.minimise(state, noise)
        iterations += len(cost) - 1
        before, noise = noise, problem.noise(state)
        if noise.close_to(before):
            break
    return problem.result(state, noise, converged, iterations, cost)


def reprojection(
    world_from_camera: ArrayLike, intrinsics: ArrayLike, tracks: Tracks, depth: ArrayLike | None = None
) -> np.ndarray:
    """Return how far each observation is from its point's projection, (M,) pixels, cameras as they are.

    Each point is the median of where its depths say, else where its rays come nearest to each other.

    Args:
        world_from_camera: (T, 4, 4).
        intrinsics: (3, 3) pixels.
        tracks: M observations.
        depth: (M,) measured z-depth, NaN where none.

    Raises:
        ValueError: As in `adjust`.
    """
    cameras, seen = _checked(world_from_camera, intrinsics, tracks, depth, None)
    residual, _ = residuals(cameras, first_points(cameras, seen, tracks.count), seen)
    return np.linalg.norm(residual[:, :2], axis=-1)


@dataclass(frozen=True, eq=False)
class _State:
    cameras: Cameras
    points: np.ndarray  # (K, 3)


@dataclass(frozen=True, eq=False)
class _Noise:
    pixels: float
    depth: np.ndarray  # (M,) relative; NaN where there is none

    def close_to(self, other: _Noise) -> bool:
        """Return whether another round would find the same."""
        pixels = abs(np.log(self.pixels / other.pixels))
        depth = np.abs(np.log(self.depth / other.depth))
        return bool(pixels < _SETTLED and not (depth > _SETTLED).any())


class _Priors:
    """What is known about the cameras without looking.

    Args:
        cameras: First guess.
        seen: Observations.
        focal: Value and sigma of fx, or None.
        pose_sigma: (T, 2) sigma of the first guess, or None.
        settings: Of the adjustment.
    """

    def __init__(
        self,
        cameras: Cameras,
        seen: Observations,
        focal: tuple[float, float] | None,
        pose_sigma: np.ndarray | None,
        settings: AdjustSettings,
    ):
        self.focal, self.first = focal, cameras.world_from_camera
        self.pose_weight = None if pose_sigma is None else np.repeat(1 / pose_sigma, 3, axis=1)
        self.free = np.ones(6 * len(self.first) + 3, bool)
        self.free[:6] = False
        self.free[-3:] = settings.refine_focal, settings.distortion > 0, settings.distortion > 1
        way = self.first[:, :3, 3] - self.first[0, :3, 3]
        self.square = float(np.square(way).sum())
        scaled = np.isfinite(seen.depth).any() or (pose_sigma is not None and np.isfinite(pose_sigma[:, 1]).any())
        self.way = None if scaled or self.square == 0 else way
        self.has_unit = scaled or self.square > 0

    def residuals(self, cameras: Cameras) -> list[tuple[np.ndarray, np.ndarray, slice]]:
        """Return residuals (n,) in sigmas, derivatives (n, r), and the parameters they are of."""
        found: list[tuple[np.ndarray, np.ndarray, slice]] = []
        if self.focal is not None:
            value, sigma = self.focal
            off = np.array([(cameras.focal[0] - value) / sigma])
            found.append((off, np.array([[cameras.focal[0] / sigma]]), slice(-3, -2)))
        if self.way is not None:
            now = cameras.world_from_camera[:, :3, 3] - self.first[0, :3, 3]
            off = np.array([((now * self.way).sum() / self.square - 1) / _GAUGE])
            along = np.concatenate([np.zeros_like(self.way), self.way], axis=1).reshape(1, -1)
            found.append((off, along / (self.square * _GAUGE), slice(0, -3)))
        if self.pose_weight is not None:
            off, derivative = pose_residuals(cameras, self.first)
            weighted = zip(self.pose_weight * off, self.pose_weight[..., None] * derivative, strict=True)
            found += [(r, d, slice(6 * t, 6 * t + 6)) for t, (r, d) in enumerate(weighted)]
        return found


@dataclass(frozen=True, eq=False)
class _Problem:
    seen: Observations
    layout: Layout
    priors: _Priors
    settings: AdjustSettings

    def noise(self, state: _State) -> _Noise:
        """Return the noise of pixels and depths, from the residuals where it is not given."""
        residual, _ = residuals(state.cameras, state.points, self.seen)
        good = np.isfinite(residual[:, 0])
        pixels = self.settings.sigma_pixels
        if pixels is None:
            # Points and cameras take up some of the noise.
            unknown = 3 * self.layout.num_points + 6 * self.layout.num_frames
            measured = 2 * good.sum() + np.isfinite(residual[:, 2]).sum()
            taken = np.sqrt(measured / max(measured - unknown, 0.1 * measured, 1))
            pixels = max(_LEAST_PIXELS, taken * _spread(residual[good, :2])) if good.any() else 1.0
        sigma = self.settings.depth_sigma
        if sigma == "estimate" or sigma is None:  # where depth is left out there is none to estimate from
            return _Noise(pixels, _spread_by(self.seen.depth, residual[:, 2]))
        return _Noise(pixels, np.where(np.isfinite(self.seen.depth), sigma, np.nan))

    def minimise(self, state: _State, noise: _Noise) -> tuple[_State, list[float], bool]:
        """Return the state of least cost, the costs on the way, and whether it came to rest."""
        damping, costs = _EASY, [self.cost(state, noise)]
        for _ in range(self.settings.max_iterations):
            equations, new = self.equations(state, noise), None
            while damping < _HARD and new is None:
                step = equations.step(damping, self.priors.free)
                if step is not None:
                    tried = _State(state.cameras.moved(step[0]), state.points + step[1])
                    cost = self.cost(tried, noise)
                    new = tried if cost <= costs[-1] else None
                damping *= 10 if new is None else 0.1
            if new is None:  # nothing nearby is better, or nothing can be solved
                return state, costs, step is not None
            state = new
            costs.append(cost)
            if costs[-2] - cost <= self.settings.tolerance * cost:
                return state, costs, True
        return state, costs, False

    def cost(self, state: _State, noise: _Noise) -> float:
        """Return half the sum of the squares, those of observations under the Cauchy loss."""
        pixel, depth = self._squares(residuals(state.cameras, state.points, self.seen)[0], noise)
        robust = _CAUCHY**2 * (np.log1p(pixel / _CAUCHY**2).sum() + np.log1p(depth / _CAUCHY**2).sum())
        return float(robust + sum(np.square(r).sum() for r, _, _ in self.priors.residuals(state.cameras))) / 2

    def equations(self, state: _State, noise: _Noise) -> NormalEquations:
        """Return the normal equations, observations weighted as the loss does (iteratively reweighted)."""
        linear = linearise(state.cameras, state.points, self.seen)
        pixel, depth = self._squares(linear.residual, noise)
        weight = np.stack([1 / (1 + pixel / _CAUCHY**2)] * 2 + [1 / (1 + depth / _CAUCHY**2)], axis=-1)
        sigma = np.stack([np.full(len(depth), noise.pixels)] * 2 + [noise.depth], axis=-1)
        known = np.isfinite(linear.residual) & np.isfinite(sigma)
        root = np.where(known, np.sqrt(weight) / sigma, 0.0)
        result = NormalEquations.of(linear, root, self.layout)
        for prior in self.priors.residuals(state.cameras):
            result.add(*prior)
        return result

    def result(self, state: _State, noise: _Noise, converged: bool, iterations: int, cost: list[float]) -> Adjusted:
        residual, _ = residuals(state.cameras, state.points, self.seen)
        pixel, depth = self._squares(residual, noise)
        free = self.priors.free
        variance = self.equations(state, noise).variances(free)
        pose = np.sqrt(variance[:-3].reshape(-1, 2, 3).sum(-1))
        if not self.priors.has_unit:  # a camera that only turns, and no depth
            pose[1:, 1] = np.inf
        cameras, points = self._scaled(state)
        intrinsics = np.eye(3)
        intrinsics[[0, 1], [0, 1]], intrinsics[:2, 2] = cameras.focal, cameras.centre
        return Adjusted(
            world_from_camera=cameras.world_from_camera,
            intrinsics=intrinsics,
            distortion=cameras.distortion,
            points=points,
            residual_pixels=np.linalg.norm(residual[:, :2], axis=-1),
            residual_depth=np.where(np.isfinite(self.seen.depth), residual[:, 2], np.nan),
            sigma_pixels=noise.pixels,
            sigma_depth=noise.depth,
            inlier=(pixel <= 2 * _INLIER**2) & (depth <= _INLIER**2),
            converged=converged,
            iterations=iterations,
            cost=cost,
            focal_std=float(cameras.focal[0] * np.sqrt(variance[-3])),
            rotation_std=pose[:, 0],
            position_std=pose[:, 1],
        )

    def _squares(self, residual: np.ndarray, noise: _Noise) -> tuple[np.ndarray, np.ndarray]:
        """Return squared residuals (M,) in sigmas, of pixels and of depth: huge behind the camera, 0 where unknown."""
        good = np.isfinite(residual[:, 0])
        pixel = np.where(good, np.square(np.where(good[:, None], residual[:, :2], 0.0)).sum(-1), _BEHIND)
        depth = np.where(np.isfinite(residual[:, 2]), residual[:, 2], _BEHIND)
        known = np.isfinite(noise.depth)
        square = np.zeros(len(depth))
        square[known] = np.square(depth[known] / noise.depth[known])
        return pixel / noise.pixels**2, square

    def _scaled(self, state: _State) -> tuple[Cameras, np.ndarray]:
        """Return the state, its path as long as the first guess where nothing else tells the scale."""
        poses, first = state.cameras.world_from_camera, self.priors.first
        length, wanted = _length(poses), _length(first)
        if self.priors.way is None or length == 0:
            return state.cameras, state.points
        origin, factor = poses[0, :3, 3], wanted / length
        centre = origin + factor * (poses[:, :3, 3] - origin)
        cameras = replace(state.cameras, world_from_camera=make_pose(poses[:, :3, :3], centre))
        return cameras, origin + factor * (state.points - origin)


def _length(poses: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=-1).sum())


def _spread(values: np.ndarray) -> float:
    """Return the standard deviation of what is normal among zero-mean values (any shape).

    Where the camera stands still the median of errors is about 0, and would tell nothing of the rest: the larger of
    what two quantiles say.
    """
    half, most = np.quantile(np.abs(values), [0.5, 0.7])
    return float(max(half / 0.6745, most / 1.0364))


def _spread_by(depth: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Return the noise (M,) of relative residuals (M,), told apart by depth (M,); NaN where there is none.

    A depth map in steps is bad near by, one from stereo is bad far away: neither form is assumed.
    """
    result = np.full(len(depth), np.nan)
    rows = np.flatnonzero(np.isfinite(depth))
    usable = rows[np.isfinite(residual[rows])]
    if not len(usable):
        return result
    groups = np.array_split(
        usable[np.argsort(depth[usable], kind="stable")], np.clip(len(usable) // _IN_A_BIN, 1, _BINS)
    )
    noise = [np.log(max(_LEAST_DEPTH, _spread(residual[group]))) for group in groups]
    result[rows] = np.exp(np.interp(depth[rows], [np.median(depth[group]) for group in groups], noise))
    return result


def _checked(
    world_from_camera: ArrayLike,
    intrinsics: ArrayLike,
    tracks: Tracks,
    depth: ArrayLike | None,
    slope: ArrayLike | None,
) -> tuple[Cameras, Observations]:
    """Return the first guess and the observations after checking them."""
    poses, matrix = check_poses("world_from_camera", world_from_camera), check_intrinsics("intrinsics", intrinsics)
    if poses.ndim != 3 or not len(poses) or matrix.ndim != 2:
        raise ValueError(
            f"world_from_camera must be (T, 4, 4) with T >= 1 and intrinsics (3, 3), got {poses.shape}, {matrix.shape}."
        )
    if not len(tracks):
        raise ValueError("tracks must have observations, got none; nothing can be adjusted.")
    if tracks.frame.max() >= len(poses):
        raise ValueError(
            f"tracks must be of the {len(poses)} frames of world_from_camera, got frame {tracks.frame.max()}."
        )
    count = len(tracks)
    measured = np.full(count, np.nan) if depth is None else np.array(depth, np.float64)
    slopes = np.zeros((count, 2)) if slope is None else np.array(slope, np.float64)
    if measured.shape != (count,) or (measured <= 0).any() or np.isinf(measured).any():
        raise ValueError(
            f"depth must be ({count},) as tracks is, positive and finite or NaN, got shape {measured.shape}, "
            f"{np.sum(measured <= 0)} not positive."
        )
    if slopes.shape != (count, 2) or not np.isfinite(slopes[np.isfinite(measured)]).all():
        raise ValueError(f"slope must be ({count}, 2) and finite where depth is, got {slopes.shape}.")
    cameras = Cameras(
        world_from_camera=poses,
        focal=matrix[[0, 1], [0, 1]],
        centre=matrix[:2, 2],
        distortion=np.zeros(2),
    )
    slopes[~np.isfinite(measured)] = 0.0
    seen = Observations(track=tracks.track, frame=tracks.frame, pixel=tracks.pixel, depth=measured, slope=slopes)
    return cameras, seen


def _checked_focal(prior: tuple[float, float] | None) -> tuple[float, float] | None:
    if prior is not None and not (np.isfinite(prior).all() and min(prior) > 0):
        raise ValueError(f"focal_prior must be a positive value and sigma in pixels, got {prior}; None knows nothing.")
    return prior


def _checked_sigma(pose_sigma: ArrayLike | None, cameras: Cameras) -> np.ndarray | None:
    if pose_sigma is None:
        return None
    sigma, shape = np.asarray(pose_sigma, np.float64), (len(cameras.world_from_camera), 2)
    if sigma.shape not in ((2,), shape) or not (sigma > 0).all():
        raise ValueError(f"pose_sigma must be (2,) or {shape} and positive (rotation, position), got {pose_sigma}.")
    return np.broadcast_to(sigma, shape)
