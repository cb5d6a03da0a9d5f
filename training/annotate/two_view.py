"""Two views of the same points: how the camera moved between them, and what that says about the focal length.

Points of the first frame are known in space, so a motion is found by three of them (P3P in a RANSAC whose random
numbers are its own) and refined on all that agree: reprojection in pixels, and the depth in the second frame where
that is known too. Poses and pixels: see conventions.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from aether_env.camera import make_pose, se3_exp, skew
from training.checks import fields_in_range

LEAST_PIXELS, LEAST_DEPTH = 0.05, 1e-3
"""Noise that is assumed at least: of a pixel, and of depth (relative)."""
MOST_SAMPLED = 1000
"""Points that the RANSAC looks at; the refinement uses all."""


@dataclass(frozen=True, kw_only=True)
class EgoSettings:
    """When a motion between two frames is believed."""

    inlier_pixels: float = 2.0
    """A point agrees with a motion up to this reprojection error, pixels."""
    inlier_depth: float = 0.05
    """And, where both depths are known, up to this relative difference of depth."""
    least_points: int = 12
    """Fewer agreeing points tell no motion."""
    least_share: float = 0.3
    """Share of the points that must agree."""
    most_std: float = 0.02
    """Standard deviation of the motion at most, see `ego.Motion.std`."""

    def __post_init__(self) -> None:
        fields_in_range(self, "inlier_pixels", "inlier_depth", "most_std", low=0, ends="()")
        fields_in_range(self, "least_points", low=4)
        fields_in_range(self, "least_share", low=0, high=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Points seen in two frames."""

    pixel_a: np.ndarray
    """(N, 2) float64."""
    depth_a: np.ndarray
    """(N,) float64, positive."""
    pixel_b: np.ndarray
    """(N, 2) float64."""
    depth_b: np.ndarray
    """(N,) float64; NaN where it is not known."""

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.depth_a)

    def __getitem__(self, rows: np.ndarray) -> Pair:
        """Return some of the points."""
        return Pair(
            pixel_a=self.pixel_a[rows],
            depth_a=self.depth_a[rows],
            pixel_b=self.pixel_b[rows],
            depth_b=self.depth_b[rows],
        )

    def joined(self, other: Pair) -> Pair:
        """Return the points of both."""
        return Pair(
            pixel_a=np.concatenate([self.pixel_a, other.pixel_a]),
            depth_a=np.concatenate([self.depth_a, other.depth_a]),
            pixel_b=np.concatenate([self.pixel_b, other.pixel_b]),
            depth_b=np.concatenate([self.depth_b, other.depth_b]),
        )

    def points(self, intrinsics: np.ndarray) -> np.ndarray:
        """Return the points (N, 3) in camera a."""
        ray = np.concatenate([self.pixel_a, np.ones((len(self), 1))], axis=1) @ np.linalg.inv(intrinsics).T
        return ray * self.depth_a[:, None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """Normal equations of one pair at a motion and intrinsics: the twist (6) of the motion, then log of the focal."""

    hessian: np.ndarray
    """(7, 7)."""
    gradient: np.ndarray
    """(7,)."""
    cost: float
    """Mean of the robust costs of all points, each at most 1."""


def make_pair(
    pixel_a_N2: np.ndarray, depth_a_N: np.ndarray, pixel_b_N2: np.ndarray, depth_b_N: np.ndarray | None
) -> tuple[Pair, np.ndarray]:
    """Return the points whose depth in a is known and that are seen in b, and which ones they are, (N,) bool.

    Raises:
        ValueError: Arrays of different lengths.
    """
    pixel_a, pixel_b = np.asarray(pixel_a_N2, np.float64), np.asarray(pixel_b_N2, np.float64)
    depth_a = np.asarray(depth_a_N, np.float64)
    depth_b = np.full(depth_a.shape, np.nan) if depth_b_N is None else np.array(depth_b_N, np.float64)
    n = len(pixel_a)
    for name, array, shape in (
        ("pixel_a_N2", pixel_a, (n, 2)),
        ("depth_a_N", depth_a, (n,)),
        ("pixel_b_N2", pixel_b, (n, 2)),
        ("depth_b_N", depth_b, (n,)),
    ):
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape} as there are {n} points, got {array.shape}.")
    depth_b[~(np.isfinite(depth_b) & (depth_b > 0))] = np.nan
    known = np.isfinite(pixel_a).all(-1) & np.isfinite(pixel_b).all(-1) & np.isfinite(depth_a) & (depth_a > 0)
    return Pair(pixel_a=pixel_a, depth_a=depth_a, pixel_b=pixel_b, depth_b=depth_b)[known], known


def sampled_motion(pair: Pair, intrinsics: np.ndarray, seed: int, settings: EgoSettings) -> np.ndarray | None:
    """Return the motion (4, 4) on which most points agree, found by RANSAC; None where there is none."""
    if len(pair) < settings.least_points:
        return None
    if len(pair) > MOST_SAMPLED:
        pair = pair[np.random.default_rng(seed).choice(len(pair), MOST_SAMPLED, replace=False)]
    params = cv2.UsacParams()  # unlike cv2's other RANSACs, it draws from a generator of its own
    params.randomGeneratorState = seed % 2**31
    params.isParallel = False
    params.threshold = settings.inlier_pixels
    params.maxIterations, params.confidence = 300, 0.999
    params.score, params.loMethod = cv2.SCORE_METHOD_MSAC, cv2.LOCAL_OPTIM_INNER_LO
    try:
        found, _, rotation_vector, translation, inliers = cv2.solvePnPRansac(
            pair.points(intrinsics), pair.pixel_b, intrinsics, None, params=params
        )
    except cv2.error:  # raised where no sample of three points has a solution
        return None
    if not found or inliers is None or not np.isfinite(rotation_vector).all() or not np.isfinite(translation).all():
        return None
    return make_pose(cv2.Rodrigues(rotation_vector)[0], translation[:, 0])


def refined_motion(
    pair: Pair, motion: np.ndarray, intrinsics: np.ndarray, settings: EgoSettings, rounds: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Return the motion (4, 4) after robust Gauss-Newton steps, and its covariance (6, 6), infinite if undetermined."""
    for _ in range(rounds):
        step = normal_equations(pair, motion, intrinsics, settings)
        hessian = step.hessian[:6, :6]
        if np.linalg.cond(hessian) > 1e12:
            return motion, np.full((6, 6), np.inf)
        twist = -np.linalg.solve(hessian, step.gradient[:6])
        motion = se3_exp(twist) @ motion
        if np.abs(twist[3:]).max() < 1e-7:
            break
    return motion, np.linalg.inv(hessian)


def normal_equations(pair: Pair, motion: np.ndarray, intrinsics: np.ndarray, settings: EgoSettings) -> Step:
    """Return the robust least-squares step at a motion and intrinsics.

    Costs are Cauchy's, about a noise that is measured in the residuals themselves; points that do not agree at all
    (three times the settings' limits) have no say.
    """
    error_N3, jacobian_N37 = _residuals(pair, motion, intrinsics)
    limit = np.array([settings.inlier_pixels, settings.inlier_pixels, settings.inlier_depth])
    gated_N = (np.abs(error_N3) < 3 * limit).all(-1)
    hessian, gradient = np.zeros((7, 7)), np.zeros(7)
    has_depth_N = ~np.isnan(pair.depth_b)
    for columns, rows, floor in (([0, 1], gated_N, LEAST_PIXELS), ([2], gated_N & has_depth_N, LEAST_DEPTH)):
        if not rows.any():
            continue
        error, jacobian = error_N3[rows][:, columns], jacobian_N37[rows][:, columns]
        noise = max(float(1.4826 * np.median(np.abs(error))), floor)
        weight = 1 / (noise**2 * (1 + np.square(error / (2.4 * noise)).sum(-1)))  # 95 % efficient under Gauss
        hessian += np.einsum("nri,n,nrj->ij", jacobian, weight, jacobian)
        gradient += np.einsum("nri,n,nr->i", jacobian, weight, error)
    cost = float(np.minimum(np.square(error_N3 / limit).sum(-1), 1).mean())
    return Step(hessian=hessian, gradient=gradient, cost=cost)


def agreement(
    pair: Pair, motion: np.ndarray, intrinsics: np.ndarray, settings: EgoSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Return which points (N,) agree with a motion, and their reprojection errors (N,), pixels."""
    error_N3, _ = _residuals(pair, motion, intrinsics)
    pixels = np.linalg.norm(error_N3[:, :2], axis=-1)
    return (pixels < settings.inlier_pixels) & (np.abs(error_N3[:, 2]) < settings.inlier_depth), pixels


def _residuals(pair: Pair, motion: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return residuals (N, 3) and their derivatives (N, 3, 7) by the twist (left) and the log of the focal length.

    The residuals are two pixels and the log of depth over measured depth (0 where that is not known).
    """
    focal = np.array([intrinsics[0, 0], intrinsics[1, 1]])
    points = pair.points(intrinsics)
    there = points @ motion[:3, :3].T + motion[:3, 3]
    depth = np.where(there[:, 2] > 1e-6, there[:, 2], np.nan)
    slope = there[:, :2] / depth[:, None]
    error = np.zeros((len(pair), 3))
    error[:, :2] = slope * focal + intrinsics[:2, 2] - pair.pixel_b
    error[:, 2] = np.where(np.isnan(pair.depth_b), 0, np.log(depth / pair.depth_b))

    by_point = np.zeros((len(pair), 3, 3))
    by_point[:, [0, 1], [0, 1]] = focal / depth[:, None]
    by_point[:, :2, 2] = -slope * focal / depth[:, None]
    by_point[:, 2, 2] = np.where(np.isnan(pair.depth_b), 0, 1 / depth)
    jacobian = np.zeros((len(pair), 3, 7))
    jacobian[..., :3] = by_point
    jacobian[..., 3:6] = -by_point @ skew(there)
    # A longer focal narrows the rays of a, and magnifies the picture of b.
    narrowed = -points * [1, 1, 0] @ motion[:3, :3].T
    jacobian[..., 6] = (by_point @ narrowed[..., None])[..., 0]
    jacobian[:, :2, 6] += slope * focal
    behind = np.isnan(depth)
    error[behind], jacobian[behind] = np.inf, 0
    return error, jacobian
