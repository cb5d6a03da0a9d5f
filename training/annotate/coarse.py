"""Coarse cameras of an RGB-D video: keyframes, and each other frame's motion from one of them.

Poses, units and pixels: see conventions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from aether_env.camera import check_intrinsics, invert_pose, relative_to
from training.annotate.ego import FocalSettings, Motion, estimate_focal, pair_motion
from training.annotate.flow import DISFlow, FlowEstimator
from training.annotate.footage import Footage
from training.annotate.matching import MatchSettings, Seen
from training.annotate.two_view import EgoSettings, Pair
from training.checks import fields_in_range

HOP_STD = 5e-4
"""What every motion is uncertain by at least, see `ego.Motion.std`: its points may all err together."""

LEAST_STATIC = 0.02
"""Share of the pixels that must show something static whose depth is known."""
LEAST_RELIEF = 1e-3
"""Relative difference between near and far depth, over all frames, below which depth says nothing."""


@dataclass(frozen=True, kw_only=True)
class CoarseSettings:
    """How cameras are followed from frame to frame."""

    keep_share: float = 0.4
    """A keyframe is used as long as that share agrees of the points that agreed in the first frame after it."""
    few_points: int = 80
    """Where fewer points agree, other keyframes are tried, and flow is looked at too."""
    seen_share: float = 0.6
    """An earlier keyframe is tried again where that share of its points should be in view."""
    most_lost: int = 2
    """Frames without a camera that are passed over; after more of them a new part begins."""
    least_frames: int = 3
    """Shorter parts are dropped."""
    ego: EgoSettings = EgoSettings()
    """When a motion is believed."""
    matching: MatchSettings = MatchSettings()
    """How points are matched."""
    focal: FocalSettings = FocalSettings()
    """How a focal length is looked for that is not given."""

    def __post_init__(self) -> None:
        fields_in_range(self, "keep_share", "seen_share", low=0, high=1)
        fields_in_range(self, "few_points", "most_lost", low=0)
        fields_in_range(self, "least_frames", low=2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Cameras:
    """Cameras of n frames that hold together. World = camera of the first of them."""

    rows: np.ndarray
    """(n,) int64, ascending: indices into the footage."""
    world_from_camera: np.ndarray
    """(n, 4, 4) float64, in the depth's unit."""
    intrinsics: np.ndarray
    """(3, 3) pixels."""
    residual: np.ndarray
    """(n,) median reprojection error of the points that agree, pixels; 0 for the first one."""
    inliers: np.ndarray
    """(n,) share of the points that agree; 1 for the first one."""
    keyframe: np.ndarray
    """(n,) int64: the row that each camera was told from; its own for the first one."""
    focal_std: float | None = None
    """Of the focal length, pixels; None where it was given."""

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.rows)


@dataclass(eq=False)
class _Part:
    """A part that is still growing."""

    rows: list[int]
    poses: list[np.ndarray]
    residual: list[float] = field(default_factory=lambda: [0.0])
    inliers: list[float] = field(default_factory=lambda: [1.0])
    keyframe: list[int] = field(default_factory=list)
    variances: list[float] = field(default_factory=lambda: [0.0])
    keys: dict[int, int] = field(default_factory=dict)
    """Row of each keyframe -> points that agreed in the first frame after it; 0: no frame yet."""
    waiting: list[int] = field(default_factory=list)
    """Rows that could not be told since the last one that could."""

    def pose(self, row: int) -> np.ndarray:
        """Return the pose of one of the rows."""
        return self.poses[self.rows.index(row)]

    def variance(self, row: int) -> float:
        """Return the squared standard deviation of one of the rows, summed over the motions that led to it."""
        return self.variances[self.rows.index(row)]

    def add(self, row: int, key: int, motion: Motion) -> None:
        """Add a row whose motion from a keyframe is known."""
        self.keys[key] = self.keys.get(key) or int(motion.agrees.sum())
        self.poses.append(self.pose(key) @ invert_pose(motion.b_from_a))
        self.variances.append(self.variance(key) + motion.std**2 + HOP_STD**2)
        self.rows.append(row)
        self.residual.append(motion.residual)
        self.inliers.append(motion.inliers)
        self.keyframe.append(key)
        self.waiting.clear()


def coarse_cameras(
    footage: Footage,
    moving_THW: np.ndarray,
    rows: Sequence[int],
    intrinsics_33: np.ndarray | None,
    *,
    flow: FlowEstimator | None = None,
    seed: int = 0,
    settings: CoarseSettings | None = None,
) -> tuple[list[Cameras], dict[int, str]]:
    """Return the cameras of some frames, as parts that hold together, and why the other frames have none.

    Every frame is matched to a keyframe, so errors grow with the number of keyframes, not of frames. When too few
    points are left of it, an earlier keyframe that is in view again takes its place, else the last frame before.

    Args:
        footage: The video.
        moving_THW: bool: pixels that are not looked at.
        rows: Ascending indices of the frames that are wanted.
        intrinsics_33: Of all frames; None takes the footage's own, or estimates a focal length.
        flow: Used where SIFT finds too few points; None is DIS.
        seed: Of the RANSACs.
        settings: How they are followed; None is the default.

    Returns:
        The parts, and for every row in none of them the reason: one of `what_is_missing`; "focal unknown"; "gap":
        frames are missing in the video just before it, and the camera has moved too far meanwhile; "lost": too little
        was found again.

    Raises:
        ValueError: Rows that are not ascending indices of the footage, or a mask of another shape.
    """
    settings, flow = settings or CoarseSettings(), flow or DISFlow()
    order = np.asarray(rows, np.int64)
    if not len(order) or order[0] < 0 or order[-1] >= len(footage) or np.any(np.diff(order) <= 0):
        raise ValueError(f"rows must be ascending indices of {len(footage)} frames, got {list(rows)}.")
    if moving_THW.shape != footage.valid.shape or moving_THW.dtype != np.bool_:
        raise ValueError(
            f"moving_THW must be {footage.valid.shape} bool as the footage is, got {moving_THW.shape} "
            f"{moving_THW.dtype}."
        )
    missing = what_is_missing(footage, moving_THW, order)
    if missing is not None:
        return [], dict.fromkeys(order.tolist(), missing)
    focal_std = None
    intrinsics = footage.intrinsics if intrinsics_33 is None else check_intrinsics("intrinsics_33", intrinsics_33)
    if intrinsics is None:
        focal = estimate_focal(
            footage.frames(order), flow, moving=moving_THW[order], seed=seed, settings=settings.focal
        )
        if focal is None:
            return [], dict.fromkeys(order.tolist(), "focal unknown")
        intrinsics, focal_std = focal.intrinsics(*footage.size), focal.std
    tracker = _Tracker(Seen(footage, moving_THW, settings.matching), intrinsics, flow, seed, settings)
    parts, lost = tracker.follow(order.tolist())
    return [_finished(part, intrinsics, focal_std) for part in parts], lost


def what_is_missing(footage: Footage, moving_THW: np.ndarray, rows: np.ndarray) -> str | None:
    """Return why no camera can be told from these frames, whatever they show; None where nothing is in the way.

    Args:
        footage: The video.
        moving_THW: bool.
        rows: Indices of the frames.

    Returns:
        "no depth", "mostly moving" (of what has depth), or "constant depth": there is no space in which to move.
    """
    valid, moving = footage.valid[rows], moving_THW[rows]
    if valid.mean() < LEAST_STATIC:
        return "no depth"
    if (valid & ~moving).mean() < LEAST_STATIC:
        return "mostly moving"
    near, far = np.quantile(footage.depth[rows][valid & ~moving], [0.02, 0.98])
    return "constant depth" if far < (1 + LEAST_RELIEF) * near else None


class _Tracker:
    """Follows the camera; see `coarse_cameras`."""

    def __init__(self, seen: Seen, intrinsics: np.ndarray, flow: FlowEstimator, seed: int, settings: CoarseSettings):
        self.seen, self.intrinsics, self.flow, self.seed, self.settings = seen, intrinsics, flow, seed, settings

    def follow(self, rows: list[int]) -> tuple[list[_Part], dict[int, str]]:
        """Return the parts that are long enough, and why rows are in none of them."""
        frame, queue = self.seen.footage.frame, list(rows)
        parts: list[_Part] = []
        part, missed = None, {}
        while queue:
            row = queue.pop(0)
            if part is None:
                part = _Part(rows=[row], poses=[np.eye(4)], keyframe=[row], keys={row: 0})
                parts.append(part)
            elif not self._track(part, row):
                missed[row] = "gap" if row and frame[row] - frame[row - 1] > 1 else "lost"
                part.waiting.append(row)
                if len(part.waiting) > self.settings.most_lost or not queue:
                    queue, part = part.waiting + queue, None  # what cannot be reached from here begins anew
        parts = [part for part in parts if len(part.rows) >= self.settings.least_frames]
        found = {row for part in parts for row in part.rows}
        return parts, {row: missed.get(row, "lost") for row in rows if row not in found}

    def _track(self, part: _Part, row: int) -> bool:
        """Add a row to a part; return whether that was possible."""
        key, last = part.keyframe[-1], part.rows[-1]
        motion = self._motion(self.seen.pair(key, row))
        enough = max(self.settings.few_points, self.settings.keep_share * part.keys.get(key, 0))
        if motion is None or motion.agrees.sum() < enough:
            found = [(other, found) for other in self._keys(part) if (found := self._careful_motion(other, row))]
            if not found:
                return False
            key, motion = min(found, key=lambda told: part.variance(told[0]) + told[1].std ** 2)
        part.add(row, key, motion)
        if last not in part.keys:
            self.seen.forget(last)
        return True

    def _motion(self, pair: Pair) -> Motion | None:
        return pair_motion(pair, self.intrinsics, seed=self.seed, settings=self.settings.ego)

    def _careful_motion(self, a: int, b: int) -> Motion | None:
        """Return the motion from SIFT points, and from flow too where they are few."""
        pair = self.seen.pair(a, b)
        if len(pair) < 2 * self.settings.few_points:
            pair = pair.joined(self.seen.flow_pair(a, b, self.flow))
        return self._motion(pair)

    def _keys(self, part: _Part) -> Iterator[int]:
        """Yield the rows that a new one may be told from: the keyframe, an earlier one, the last row."""
        yield part.keyframe[-1]
        yield from self._in_view(part)
        if part.rows[-1] != part.keyframe[-1]:
            yield part.rows[-1]

    def _in_view(self, part: _Part) -> list[int]:
        """Return the earlier keyframe of whose points most are in view of the last camera, if that is enough."""
        height, width = self.seen.footage.size
        shares = {}
        for key in part.keys.keys() - {part.keyframe[-1], part.rows[-1]}:
            features = self.seen.features(key)
            ray = np.c_[features.pixel, np.ones(len(features.pixel))] @ np.linalg.inv(self.intrinsics).T
            motion = relative_to(part.pose(key), part.poses[-1])
            point = (ray * features.depth[:, None]) @ motion[:3, :3].T + motion[:3, 3]
            pixel = (point @ self.intrinsics.T)[:, :2] / np.maximum(point[:, 2:], 1e-6)
            seen = (point[:, 2] > 0) & (pixel > 0).all(-1) & (pixel < [width, height]).all(-1)
            shares[key] = float(seen.mean()) if len(seen) else 0.0
        best = max(sorted(shares), key=lambda key: shares[key], default=None)
        return [best] if best is not None and shares[best] >= self.settings.seen_share else []


def _finished(part: _Part, intrinsics: np.ndarray, focal_std: float | None) -> Cameras:
    return Cameras(
        rows=np.array(part.rows, np.int64),
        world_from_camera=np.stack(part.poses),
        intrinsics=intrinsics,
        residual=np.array(part.residual),
        inliers=np.array(part.inliers),
        keyframe=np.array(part.keyframe, np.int64),
        focal_std=focal_std,
    )
