"""How far found cameras can be trusted: measured on the pictures and the depth themselves, without the truth.

Pairs of frames, near and far in time, must agree in two ways: depth that is carried from one to the other must be the
depth there (a wrong scale, shift or focal length), and points found again must be where they are carried to (a wrong
rotation above all, which flat surfaces do not show in their depth). Poses, units and pixels: see conventions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from aether_env.camera import invert_pose, rotation_angle
from training.annotate.coarse import Cameras, what_is_missing
from training.annotate.ego import focal_step, pair_motion
from training.annotate.flow import DISFlow, FlowEstimator
from training.annotate.footage import Footage
from training.annotate.matching import MatchSettings, Seen, depth_at
from training.annotate.rounding import Rounding, find_rounding, unrounded
from training.annotate.two_view import EgoSettings, Pair
from training.checks import fields_in_range

JUMP_TURN = np.deg2rad(8.0)
"""Change of the turn between two frames, beyond what is usual in the video, that is a jump."""
JUMP_WAY = 0.05
"""Change of the step between two frames, beyond what is usual, as a share of the median depth, that is a jump."""
USUAL = 8.0
"""Times the median change is usual."""


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """What is measured, and what is refused."""

    steps: tuple[int, ...] = (1, 4, 12, 36)
    """Frames between the two of a pair."""
    most_pairs: int = 8
    """Pairs for each of the steps, spread evenly."""
    stride: int = 4
    """Depth is compared at every so many pixels."""
    depth_tolerance: float = 0.03
    """Depth agrees within this share of itself, three times its noise, and two of the steps that it is rounded to."""
    occlusion: float = 0.1
    """Where something is nearer than expected by more than this share, it may hide the point: not compared."""
    least_points: int = 20
    """Pairs that share fewer points are not judged."""
    few_matches: int = 80
    """Where fewer SIFT points are found again, flow is looked at too."""
    least_consistent: float = 0.8
    """Share of the depth that must agree, in the worst tenth of the pairs."""
    most_reprojection: float = 1.0
    """Median reprojection error allowed in the worst tenth of the pairs, pixels of a picture 320 wide."""
    most_focal_std: float = 0.03
    """Relative standard deviation of the focal length allowed."""
    most_focal_pull: float = 0.03
    """Relative change of the focal length that the pairs may ask for, where they ask clearly."""
    most_focal_anomaly: float = 0.05
    """Relative difference allowed between a focal length and the median of the video's."""
    least_kept: float = 0.0
    """Share of the wanted frames that must have cameras."""
    least_score: float = 0.4
    """Score that is needed."""
    ego: EgoSettings = EgoSettings(inlier_pixels=3.0)
    """Which matches are points, and have a say on the focal length."""
    matching: MatchSettings = MatchSettings()
    """How points are matched."""

    def __post_init__(self) -> None:
        fields_in_range(self, "steps", "most_pairs", "stride", "least_points", low=1)
        fields_in_range(self, "depth_tolerance", "occlusion", "most_reprojection", low=0, ends="()")
        fields_in_range(self, "most_focal_std", "most_focal_pull", "most_focal_anomaly", low=0, ends="()")
        fields_in_range(self, "least_consistent", "least_kept", "least_score", low=0, high=1)
        fields_in_range(self, "few_matches", low=0)


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How good cameras are. Score: see `judge`."""

    score: float
    """In [0, 1]."""
    consistent: float
    """Share of the depth that agrees, in the worst tenth of the pairs; NaN where no pair could be judged."""
    depth_error: float
    """Median relative difference of depth, over all pairs."""
    reprojection: float
    """Median reprojection error in the worst tenth of the pairs, pixels; NaN where no pair could be judged."""
    focal_std: float
    """Relative standard deviation of the focal length; 0 where it was given."""
    focal_pull: float
    """Relative change of the focal length with which the pairs would agree better, less twice its own standard
    deviation; 0 where they would not."""
    jumps: int
    """Places where the path jumps and the pictures do not."""
    kept: float
    """Share of the wanted frames that have cameras."""
    pairs: int
    """Pairs that were judged."""
    reasons: tuple[str, ...] = ()
    """Why these cameras are refused; empty: they are not."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _PairQuality:
    consistent: float
    depth_error: float
    reprojection: float
    matches: Pair
    b_from_a: np.ndarray


def judge(
    footage: Footage,
    moving_THW: np.ndarray,
    cameras: Cameras,
    *,
    wanted: int | None = None,
    flow: FlowEstimator | None = None,
    settings: QualitySettings | None = None,
) -> Quality:
    """Return how far cameras can be trusted.

    score = consistent * kept / (1 + jumps) / (1 + (reprojection / limit)^2)
            / (1 + (focal_std / limit)^2) / (1 + (focal_pull / limit)^2)

    The limits are those of the settings, so that an error at its limit halves the score. It is 0 where no pair could
    be judged.

    Args:
        footage: The video.
        moving_THW: bool: pixels that are not looked at.
        cameras: Of some of its frames.
        wanted: Frames that cameras were asked for; None: those that have them.
        flow: Used where SIFT finds too few points; None is DIS.
        settings: What is measured and refused; None is the default.

    Returns:
        The figures, with reasons to refuse: one of `what_is_missing`, "not judged" (no pair of frames shares enough
        points), "inconsistent" (depth), "reprojection", "focal unsure", "focal wrong", "jump", "few kept", "low score".
    """
    settings, flow = settings or QualitySettings(), flow or DISFlow()
    rounding, seen = find_rounding(footage), Seen(unrounded(footage), moving_THW, settings.matching)
    found = [_judge_pair(seen, cameras, pair, flow, rounding, settings) for pair in _pairs(len(cameras), settings)]
    judged = [pair for pair in found if pair is not None]
    focal_std = 0.0 if cameras.focal_std is None else cameras.focal_std / cameras.intrinsics[0, 0]
    missing = what_is_missing(footage, moving_THW, cameras.rows)
    quality = Quality(
        score=0.0,
        consistent=float(np.quantile([p.consistent for p in judged], 0.1)) if judged else np.nan,
        depth_error=float(np.median([p.depth_error for p in judged])) if judged else np.nan,
        reprojection=float(np.quantile([p.reprojection for p in judged], 0.9)) if judged else np.nan,
        focal_std=float(focal_std),
        focal_pull=_focal_pull(judged, cameras.intrinsics, settings),
        jumps=_jumps(seen, cameras, flow, rounding, settings),
        kept=len(cameras) / (wanted or len(cameras)),
        pairs=len(judged),
    )
    quality = replace(quality, score=_score(quality, footage.size[1], settings))
    return replace(quality, reasons=((missing,) if missing else ()) + _reasons(quality, footage.size[1], settings))


def focal_anomalies(focals: Sequence[float], *, most: float = QualitySettings.most_focal_anomaly) -> np.ndarray:
    """Return which of the focal lengths of one video's pieces (n,) are not like the others.

    One camera took them all. Where two pieces differ, and there is no third, neither can be trusted.

    Args:
        focals: Pixels.
        most: Relative difference from the median that is allowed.
    """
    focal = np.asarray(focals, np.float64)
    if len(focal) < 2:
        return np.zeros(len(focal), bool)
    middle = np.median(focal)
    if len(focal) == 2:  # half the difference is all that a median of two shows
        most = most / 2
    return np.abs(focal / middle - 1) > most


def _pairs(n: int, settings: QualitySettings) -> list[tuple[int, int]]:
    """Return pairs of frames, as indices into the cameras."""
    pairs = []
    for step in settings.steps:
        starts = np.unique(np.linspace(0, n - 1 - step, settings.most_pairs).round().astype(int)) if n > step else ()
        pairs += [(int(start), int(start) + step) for start in starts]
    return pairs


def _judge_pair(
    seen: Seen,
    cameras: Cameras,
    pair: tuple[int, int],
    flow: FlowEstimator,
    rounding: Rounding,
    settings: QualitySettings,
) -> _PairQuality | None:
    """Return how well two frames agree; None where they share too few points."""
    a, b = (int(cameras.rows[i]) for i in pair)
    poses, footage = cameras.world_from_camera, seen.footage
    b_from_a = invert_pose(poses[pair[1]]) @ poses[pair[0]]
    grid = np.zeros(footage.size, bool)
    grid[settings.stride // 2 :: settings.stride, settings.stride // 2 :: settings.stride] = True
    y, x = np.nonzero(grid & seen.good(a))
    pixel, depth = _carried(np.stack([x, y], axis=1) + 0.5, footage.depth[a, y, x], b_from_a, cameras.intrinsics)
    there = depth_at(footage.depth[b], seen.good(b), pixel)
    difference = there / depth - 1
    compared = ~np.isnan(difference) & (depth > 0) & (difference > -settings.occlusion)
    matches = seen.pair(a, b)
    if len(matches) < settings.few_matches:
        matches = matches.joined(seen.flow_pair(a, b, flow))
    # Wrong matches are left out by a motion of the pair's own: what agrees on it is a point, wherever the cameras are.
    own = pair_motion(matches, cameras.intrinsics, settings=settings.ego)
    if own is None or min(compared.sum(), own.agrees.sum()) < settings.least_points:
        return None
    matches = matches[own.agrees]
    error = np.abs(difference[compared])
    allowed = settings.depth_tolerance + 3 * _noise(footage.depth[b], seen.good(b))
    agrees = error * depth[compared] < allowed * depth[compared] + 2 * rounding.step(there[compared])
    return _PairQuality(
        consistent=float(agrees.mean()),
        depth_error=float(np.median(error)),
        reprojection=_reprojection(matches, b_from_a, cameras.intrinsics, rounding),
        matches=matches,
        b_from_a=b_from_a,
    )


def _reprojection(matches: Pair, b_from_a: np.ndarray, intrinsics: np.ndarray, rounding: Rounding) -> float:
    """Return the median distance of points from where they are carried to, pixels.

    Where depth was rounded that is a short line: half a step nearer to half a step farther.
    """
    half = rounding.step(matches.depth_a) / 2
    nearer, depth = _carried(matches.pixel_a, matches.depth_a - half, b_from_a, intrinsics)
    farther, _ = _carried(matches.pixel_a, matches.depth_a + half, b_from_a, intrinsics)
    line, off = farther - nearer, matches.pixel_b - nearer
    share = np.clip((line * off).sum(-1) / np.maximum(np.square(line).sum(-1), 1e-12), 0, 1)
    error = np.where(depth > 0, np.linalg.norm(off - share[:, None] * line, axis=-1), np.inf)
    return float(np.minimum(np.median(error), 1e3))


def _focal_pull(judged: Sequence[_PairQuality], intrinsics: np.ndarray, settings: QualitySettings) -> float:
    """Return `Quality.focal_pull`: a wrong focal length hides in motions that were told with it."""
    pairs, motions = [pair.matches for pair in judged], [pair.b_from_a for pair in judged]
    step = focal_step(pairs, motions, intrinsics, settings.ego) if judged else None
    return 0.0 if step is None else float(max(abs(step.change) - 2 * step.std, 0.0))


def _carried(
    pixel_N2: np.ndarray, depth_N: np.ndarray, b_from_a: np.ndarray, intrinsics: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return where pixels of a are in b, (N, 2), and their depth there (N,)."""
    ray = np.c_[pixel_N2, np.ones(len(pixel_N2))] @ np.linalg.inv(intrinsics).T
    point = (ray * depth_N[:, None]) @ b_from_a[:3, :3].T + b_from_a[:3, 3]
    return (point @ intrinsics.T)[:, :2] / np.maximum(point[:, 2:], 1e-6), point[:, 2]


def _noise(depth_HW: np.ndarray, good_HW: np.ndarray) -> float:
    """Return the relative noise of single pixels' depth; that of surfaces that are not flat is far less."""
    if not good_HW.any():
        return 0.0
    smooth = cv2.medianBlur(np.nan_to_num(depth_HW), 5)[good_HW]
    return float(1.4826 * np.median(np.abs(depth_HW[good_HW] - smooth) / smooth))


def _jumps(seen: Seen, cameras: Cameras, flow: FlowEstimator, rounding: Rounding, settings: QualitySettings) -> int:
    """Return at how many frames the path jumps and the pictures do not: sudden steps that they show are none."""
    jumps = 0
    for frame in _sudden(seen.footage, cameras):
        steps = [_judge_pair(seen, cameras, (a, a + 1), flow, rounding, settings) for a in (frame - 1, frame)]
        jumps += not all(step is not None and _shown(step, seen.footage.size[1], settings) for step in steps)
    return jumps


def _shown(step: _PairQuality, width: int, settings: QualitySettings) -> bool:
    """Return whether two frames agree with the cameras' step between them."""
    near = step.reprojection * 320 / width <= settings.most_reprojection
    return near and step.consistent >= settings.least_consistent


def _sudden(footage: Footage, cameras: Cameras) -> list[int]:
    """Return where the camera's step is nothing like the one before, in length, direction or turn: indices (n,)."""
    step = invert_pose(cameras.world_from_camera[:-1]) @ cameras.world_from_camera[1:]
    frames = np.diff(footage.frame[cameras.rows]).astype(np.float64)
    depth = footage.depth[cameras.rows][footage.valid[cameras.rows]]
    if len(step) < 2 or not len(depth):
        return []
    way = np.diff(step[:, :3, 3] / frames[:, None], axis=0)
    way = np.linalg.norm(way, axis=-1) / np.median(depth)
    turn = np.abs(np.diff(rotation_angle(step[:, :3, :3]) / frames))
    sudden = (way > JUMP_WAY + USUAL * np.median(way)) | (turn > JUMP_TURN + USUAL * np.median(turn))
    return (np.flatnonzero(sudden) + 1).tolist()


def _score(quality: Quality, width: int, settings: QualitySettings) -> float:
    """Return the score, see `judge`."""
    if not quality.pairs:
        return 0.0
    reprojection = quality.reprojection * 320 / width / settings.most_reprojection
    parts = quality.consistent * min(quality.kept, 1.0) / (1 + quality.jumps)
    unsure, pull = quality.focal_std / settings.most_focal_std, quality.focal_pull / settings.most_focal_pull
    return float(parts / (1 + reprojection**2) / (1 + unsure**2) / (1 + pull**2))


def _reasons(quality: Quality, width: int, settings: QualitySettings) -> tuple[str, ...]:
    """Return why cameras are refused, see `judge`."""
    if not quality.pairs:
        return ("not judged",)
    tests = {
        "inconsistent": quality.consistent < settings.least_consistent,
        "reprojection": quality.reprojection * 320 / width > settings.most_reprojection,
        "focal unsure": quality.focal_std > settings.most_focal_std,
        "focal wrong": quality.focal_pull > settings.most_focal_pull,
        "jump": quality.jumps > 0,
        "few kept": quality.kept < settings.least_kept,
        "low score": quality.score < settings.least_score,
    }
    return tuple(reason for reason, holds in tests.items() if holds)
