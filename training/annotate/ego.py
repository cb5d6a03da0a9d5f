"""How the camera moved between two frames, and which focal length the frames share. Poses, pixels: see conventions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from aether_env.camera import check_intrinsics, intrinsics_from_fov, se3_exp
from training.annotate.flow import FlowEstimator
from training.annotate.footage import Footage
from training.annotate.matching import MatchSettings, Seen
from training.annotate.two_view import (
    EgoSettings,
    Pair,
    agreement,
    make_pair,
    normal_equations,
    refined_motion,
    sampled_motion,
)
from training.checks import fields_in_range

TRIED_POINTS = 200
"""Points of a pair, about, that focal lengths are tried on."""
FOCAL_DOUBT = 2.5
"""What the standard deviation of a focal length is multiplied by: errors of neighbouring points and pairs are alike,
which no residual shows. Measured: the errors of 12 simulator videos are that much larger than it says."""


@dataclass(frozen=True, kw_only=True)
class FocalSettings:
    """How a focal length is looked for."""

    narrowest_deg: float = 25.0
    """Smallest horizontal field of view that is looked at, degrees."""
    widest_deg: float = 120.0
    """Largest horizontal field of view that is looked at, degrees."""
    tried: int = 10
    """Focal lengths that are tried between those, before the best one is refined."""
    anchors: int = 16
    """Frames, evenly spread, from which a pair of frames begins."""
    least_matches: int = 40
    """A pair is as far apart in time as leaves that many matches."""
    most_std: float = 0.05
    """Relative standard deviation above which the focal length is not observable."""
    ego: EgoSettings = EgoSettings(inlier_pixels=3.0)
    """How the pairs' motions are told."""
    matching: MatchSettings = MatchSettings()
    """How points are matched."""

    def __post_init__(self) -> None:
        fields_in_range(self, "narrowest_deg", "widest_deg", low=0, high=180, ends="()")
        fields_in_range(self, "tried", "anchors", low=2)
        fields_in_range(self, "least_matches", low=1)
        fields_in_range(self, "most_std", low=0, ends="()")
        if self.narrowest_deg >= self.widest_deg:
            raise ValueError(f"narrowest_deg must be below widest_deg, got {self.narrowest_deg} and {self.widest_deg}.")


@dataclass(frozen=True, kw_only=True)
class Focal:
    """A focal length and how sure it is."""

    value: float
    """Pixels, horizontal and vertical."""
    std: float
    """Standard deviation, pixels: the larger one of what the noise and what the pairs' spread leave open."""
    pairs: int
    """Pairs of frames that it was told from."""
    residual: float
    """Median reprojection error of the points that agree, pixels."""

    def intrinsics(self, height: int, width: int) -> np.ndarray:
        """Return centred intrinsics (3, 3)."""
        return _centred(self.value, (height, width))


@dataclass(frozen=True, kw_only=True, eq=False)
class FocalStep:
    """One step towards the focal length that explains pairs of frames best."""

    change: float
    """Of the log of the focal length: 0.01 is 1 %."""
    std: float
    """Its standard deviation."""
    motions: list[np.ndarray]
    """b_from_a (4, 4) of each pair after the step."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Motion:
    """How the camera moved from frame a to frame b."""

    b_from_a: np.ndarray
    """(4, 4): p_b = b_from_a @ p_a, in the depth's unit."""
    inliers: float
    """Share of the points that agree."""
    residual: float
    """Median reprojection error of those, pixels."""
    agrees: np.ndarray
    """(N,) bool: which points agree."""
    covariance: np.ndarray
    """(6, 6) of the twist (translation, rotation vector; axes of b) that leads from the truth to this motion."""
    std: float
    """Standard deviation of the motion: of the rotation in radians and of the translation as a share of the median
    depth, together."""


def relative_motion(
    pixel_a_N2: np.ndarray,
    depth_a_N: np.ndarray,
    pixel_b_N2: np.ndarray,
    intrinsics_33: np.ndarray,
    *,
    depth_b_N: np.ndarray | None = None,
    seed: int = 0,
    settings: EgoSettings | None = None,
) -> Motion | None:
    """Return how the camera moved, whatever a minority (less than 1 - `least_share`) of the points does.

    Args:
        pixel_a_N2: Pixels in frame a.
        depth_a_N: Their z-depth; points without (NaN, 0) are left out.
        pixel_b_N2: The same points in frame b; NaN where not seen.
        intrinsics_33: Of both frames.
        depth_b_N: z-depth at `pixel_b_N2`; NaN or 0 where not known.
        seed: Of the RANSAC.
        settings: What is believed; None is the default.

    Returns:
        The motion; None where it cannot be told: too few points, or they agree on none, or they are so close together
        that many motions would do.

    Raises:
        ValueError: Arrays of different lengths, or these are not intrinsics.
    """
    intrinsics = check_intrinsics("intrinsics_33", intrinsics_33)
    pair, known = make_pair(pixel_a_N2, depth_a_N, pixel_b_N2, depth_b_N)
    motion = pair_motion(pair, intrinsics, seed=seed, settings=settings)
    if motion is None:
        return None
    known[known] = motion.agrees
    return replace(motion, agrees=known)


def pair_motion(
    pair: Pair, intrinsics: np.ndarray, *, seed: int = 0, settings: EgoSettings | None = None
) -> Motion | None:
    """Return how the camera moved, see `relative_motion`, from points that are all known in frame a."""
    settings = settings or EgoSettings()
    start = sampled_motion(pair, intrinsics, seed, settings)
    if start is None:
        return None
    motion, covariance = refined_motion(pair, start, intrinsics, settings)
    agrees, error = agreement(pair, motion, intrinsics, settings)
    std = np.sqrt(np.diag(covariance)) / np.repeat([np.median(pair.depth_a), 1.0], 3)
    enough = max(settings.least_points, settings.least_share * len(pair))
    if agrees.sum() < enough or not np.linalg.norm(std) <= settings.most_std:
        return None
    return Motion(
        b_from_a=motion,
        inliers=float(agrees.mean()),
        residual=float(np.median(error[agrees])),
        agrees=agrees,
        covariance=covariance,
        std=float(np.linalg.norm(std)),
    )


def estimate_focal(
    footage: Footage,
    flow: FlowEstimator,
    *,
    moving: np.ndarray | None = None,
    seed: int = 0,
    settings: FocalSettings | None = None,
) -> Focal | None:
    """Return the focal length that all frames share, whatever moves by itself in a minority of the points.

    z-depth and a focal length f make points (x z / f, y z / f, z). A wrong f stretches space across the view, and a
    stretched world moves as rigidly as the true one when the camera only shifts or rolls. So only pan and tilt tell
    the focal length; with exact depth a few degrees are enough, on planes and without any shift too.

    Args:
        footage: The video; only its steady pixels are used, see `steady`.
        flow: Used where SIFT finds too few points.
        moving: (T, H, W) bool; None takes the footage's own.
        seed: Of the RANSACs.
        settings: How it is looked for; None is the default.

    Returns:
        The focal length; None where the frames do not tell it.
    """
    settings = settings or FocalSettings()
    moving = footage.moving if moving is None else moving
    return focal_of_pairs(_focal_pairs(footage, flow, moving, settings), footage.size, seed=seed, settings=settings)


def focal_of_pairs(
    pairs: Sequence[Pair], size: tuple[int, int], *, seed: int = 0, settings: FocalSettings | None = None
) -> Focal | None:
    """Return the focal length that pairs of frames share, see `estimate_focal`.

    Args:
        pairs: Any number.
        size: Height and width of the pictures.
        seed: Of the RANSACs.
        settings: How it is looked for; None is the default.
    """
    settings = settings or FocalSettings()
    fovs = np.deg2rad([settings.narrowest_deg, settings.widest_deg])
    ends = intrinsics_from_fov(fovs, *size)[:, 0, 0]
    thin = [pair[np.arange(0, len(pair), len(pair) // TRIED_POINTS + 1)] for pair in pairs]
    best: tuple[float, float, dict[int, np.ndarray]] = (np.inf, np.nan, {})
    for value in np.geomspace(ends[0], ends[1], settings.tried):
        cost, motions = _try_focal(thin, value, size, seed, settings.ego)
        best = min(best, (cost, value, motions), key=lambda tried: tried[0])
    _, value, motions = best
    for _ in range(3):  # pairs that the refined focal length does not explain are left out
        found = _refine_focal([pairs[i] for i in motions], list(motions.values()), value, size, settings)
        if found is None:
            return None
        value, std, refined = found
        intrinsics = _centred(value, size)
        kept, errors = {}, []
        for i, motion in zip(motions, refined, strict=True):
            agrees, error = agreement(pairs[i], motion, intrinsics, settings.ego)
            if agrees.sum() >= max(settings.ego.least_points, settings.ego.least_share * len(agrees)):
                kept[i] = motion
                errors.append(error[agrees])
        if len(kept) == len(motions):
            break
        motions = kept
    if not motions or not std / value <= settings.most_std or not ends.min() < value < ends.max():
        return None
    return Focal(value=value, std=std, pairs=len(motions), residual=float(np.median(np.concatenate(errors))))


def _try_focal(
    pairs: Sequence[Pair], value: float, size: tuple[int, int], seed: int, settings: EgoSettings
) -> tuple[float, dict[int, np.ndarray]]:
    """Return how badly a focal length explains the pairs, and the motions of those that it does explain."""
    intrinsics, costs, motions = _centred(value, size), [], {}
    for i, pair in enumerate(pairs):
        start = sampled_motion(pair, intrinsics, seed, settings)
        if start is None:
            costs.append(1.0)
            continue
        motions[i], _ = refined_motion(pair, start, intrinsics, settings, rounds=4)
        costs.append(normal_equations(pair, motions[i], intrinsics, settings).cost)
    return float(np.mean(costs)) if costs else np.inf, motions


def _refine_focal(
    pairs: list[Pair], motions: list[np.ndarray], value: float, size: tuple[int, int], settings: FocalSettings
) -> tuple[float, float, list[np.ndarray]] | None:
    """Return the focal length, its standard deviation, and the motions, after Gauss-Newton steps of all together."""
    std = np.inf
    for _ in range(30):
        step = focal_step(pairs, motions, _centred(value, size), settings.ego)
        if step is None:
            return None
        motions, std, change = step.motions, step.std, float(np.clip(step.change, -0.2, 0.2))
        value *= np.exp(change)
        if abs(change) < 1e-6:
            break
    return float(value), float(value * std), motions


def focal_step(
    pairs: Sequence[Pair], motions: Sequence[np.ndarray], intrinsics: np.ndarray, settings: EgoSettings
) -> FocalStep | None:
    """Return how the focal length should change, the motions being free to change with it.

    Each pair's motion is eliminated (Schur complement): what is left is one number a pair, its slope and curvature.

    Args:
        pairs: Of frames.
        motions: b_from_a (4, 4) of each.
        intrinsics: Where the step begins, (3, 3).
        settings: Which points agree.

    Returns:
        The step; None where no pair says anything.
    """
    slope, curve, solved = np.zeros(len(pairs)), np.zeros(len(pairs)), np.zeros((len(pairs), 6, 2))
    for i, (pair, motion) in enumerate(zip(pairs, motions, strict=True)):
        step = normal_equations(pair, motion, intrinsics, settings)
        if np.linalg.cond(step.hessian[:6, :6]) < 1e12:
            solved[i] = np.linalg.solve(step.hessian[:6, :6], np.c_[step.hessian[:6, 6], step.gradient[:6]])
            slope[i] = step.gradient[6] - step.hessian[6, :6] @ solved[i, :, 1]
            curve[i] = step.hessian[6, 6] - step.hessian[6, :6] @ solved[i, :, 0]
    total = curve.sum()
    if not total > 0:
        return None
    change = float(-slope.sum() / total)
    twist = -solved[:, :, 1] - solved[:, :, 0] * np.clip(change, -0.2, 0.2)
    # What is left of each pair's slope after the step: the sandwich estimate. Matches err together within a pair,
    # which the noise of single points cannot show.
    spread = float(np.linalg.norm(slope + curve * change)) / total
    return FocalStep(
        change=change,
        std=FOCAL_DOUBT * max(total**-0.5, spread),
        motions=[se3_exp(turn) @ motion for turn, motion in zip(twist, motions, strict=True)],
    )


def _focal_pairs(
    footage: Footage, flow: FlowEstimator, moving: np.ndarray | None, settings: FocalSettings
) -> list[Pair]:
    """Return pairs of frames, each as far apart as it can still be matched."""
    seen = Seen(footage, moving, settings.matching)
    stride = max(1, len(footage) // settings.anchors)
    pairs = []
    for a in range(0, len(footage) - 1, stride):
        for away in dict.fromkeys(
            [8 * stride, 4 * stride, 2 * stride, stride, (stride + 1) // 2, (stride + 3) // 4, 1]
        ):
            b = a + away
            if b < len(footage) and len(pair := seen.pair(a, b)) >= settings.least_matches:
                pairs.append(pair)
                break
        else:
            pairs.append(seen.flow_pair(a, a + 1, flow))
    return pairs


def _centred(value: float, size: tuple[int, int]) -> np.ndarray:
    return np.array([[value, 0, size[1] / 2], [0, value, size[0] / 2], [0, 0, 1.0]])
