"""Refined cameras of an RGB-D video: long tracks of static points, then bundle adjustment.

Poses, units and pixels: see conventions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import cv2
import numpy as np

from aether_env.camera import invert_pose, relative_to
from training.annotate.bundle_adjustment import Adjusted, AdjustSettings, adjust, reprojection
from training.annotate.coarse import Cameras
from training.annotate.footage import Footage
from training.annotate.rounding import find_rounding, unrounded
from training.annotate.surfaces import sample, smooth
from training.annotate.tracks import Tracks, TrackSettings, follow
from training.checks import fields_in_range

_SMALL = 120
"""Pixels; in pictures of fewer rows a margin beside the edges of things would leave too little."""
_ROUNDED = 0.1
"""Steps that rounded depth is off by, about, after `unrounded`. Residuals would tell less: on a surface it is off by
the same everywhere, and in frame after frame."""
_LEAST_SEEN = 4
"""Observations that must stay in a frame; one point in three dimensions tells two or three numbers of six."""


class Tracker(Protocol):
    """Who follows points."""

    def __call__(self, rgb: np.ndarray, usable: np.ndarray) -> Tracks:
        """Return tracks; see `training.annotate.tracks.follow`.

        Args:
            rgb: (T, H, W, 3) uint8.
            usable: (T, H, W) bool.
        """


@dataclass(frozen=True, kw_only=True)
class RefineSettings:
    """How cameras are refined."""

    tracks: TrackSettings = TrackSettings(points=300, rejoin=True)
    """How points are followed, where no other tracker is given."""
    adjust: AdjustSettings = AdjustSettings()
    """Of the bundle; a focal length that came with the video is held whatever it says."""
    margin: int = 2
    """Pixels kept away from what moves: its mask may be a little small, and its shadow follows it."""
    clean_rounds: int = 2
    """Times that outliers are taken out, at most."""
    least_points: int = 10
    """Points that a frame must see to have a camera of its own."""
    fewest_smooth: float = 0.4
    """Where less of the static pixels than this is smooth, depth is too rough to tell edges: they are not left out."""

    def __post_init__(self) -> None:
        fields_in_range(self, "margin", "clean_rounds", low=0)
        fields_in_range(self, "least_points", low=3)
        fields_in_range(self, "fewest_smooth", low=0, high=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Refined:
    """Refined cameras of n frames, and how sure they are."""

    cameras: Cameras
    """Of the same rows, in the world of the first; `residual` is the median of each frame's pixels, `inliers` the
    share of its observations that stayed, both 0 where it saw none."""
    converged: bool
    """Whether the adjustment came to rest; False too where there was nothing to adjust."""
    weak: np.ndarray
    """(n,) bool: too few points were seen; such a camera keeps its coarse motion from the nearest one that is not."""
    rotation_std: np.ndarray
    """(n,) radians, 1 sigma, against the first camera; infinite where weak."""
    position_std: np.ndarray
    """(n,) in the depth's unit, likewise."""
    reprojection: np.ndarray
    """(n,) root mean square of each frame's pixels, of observations that stayed; NaN where none."""
    coarse: np.ndarray
    """(n,) the same of the same observations before, points made anew for the coarse cameras."""
    numbers: Mapping[str, Any]
    """tracks, observations, mean_length; reprojection_before and reprojection_after (root mean square, pixels),
    depth_residual (relative, median size), inliers (share), iterations, focal_std (pixels), sigma_pixels."""

    def figures(self) -> dict[str, Any]:
        """Return what a report shows: the numbers, and how many cameras are weak and how sure the others are."""
        sure = ~self.weak
        return {
            **self.numbers,
            "converged": self.converged,
            "weak": int(self.weak.sum()),
            "rotation_std": float(np.median(self.rotation_std[sure])) if sure.any() else float("inf"),
            "position_std": float(np.median(self.position_std[sure])) if sure.any() else float("inf"),
        }


DEFAULT = RefineSettings()


def refine_cameras(
    footage: Footage,
    moving_THW: np.ndarray,
    cameras: Cameras,
    *,
    tracker: Tracker | None = None,
    settings: RefineSettings = DEFAULT,
) -> Refined:
    """Return the cameras that explain long tracks best.

    Args:
        footage: The video.
        moving_THW: bool: pixels that are not looked at.
        cameras: Coarse ones of some of its frames.
        tracker: Who follows points; None is SIFT, KLT and templates.
        settings: How.

    Raises:
        ValueError: `moving_THW` has another shape than the footage.
    """
    if moving_THW.shape != footage.depth.shape or moving_THW.dtype != np.bool_:
        raise ValueError(f"moving_THW must be {footage.depth.shape} bool, got {moving_THW.shape} {moving_THW.dtype}.")
    rounding, footage, rows = find_rounding(footage), unrounded(footage), cameras.rows
    static = footage.valid[rows] & ~_grown(moving_THW[rows], settings.margin)
    usable = _usable(footage.depth[rows], static, settings)
    found = (
        follow(footage.rgb[rows], usable, settings.tracks) if tracker is None else tracker(footage.rgb[rows], usable)
    )
    strong = np.bincount(found.frame, minlength=len(rows)) >= settings.least_points
    tracks = _among(found, strong, settings.tracks.least_length)
    if strong.sum() < 2 or not len(tracks):
        return _unrefined(cameras, found)
    depth, slope = sample(footage.depth[rows[strong]], usable[strong], tracks.frame, tracks.pixel)
    held = replace(settings.adjust, refine_focal=settings.adjust.refine_focal and footage.intrinsics is None)
    known = np.isfinite(depth)
    if len(rounding.level) and known.any() and held.depth_sigma == "estimate":
        held = replace(held, depth_sigma=_ROUNDED * float(np.median(rounding.step(depth[known]) / depth[known])))
    before = replace(cameras, world_from_camera=cameras.world_from_camera[strong])
    tracks, adjusted, start = _adjusted(before, tracks, depth, slope, held, settings)
    return _refined(cameras, strong, found, tracks, adjusted, start)


def _grown(moving_THW: np.ndarray, margin: int) -> np.ndarray:
    """Return the masks with a margin around."""
    kernel = np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
    return np.stack([cv2.dilate(mask.astype(np.uint8), kernel) > 0 for mask in moving_THW])


def _usable(depth_THW: np.ndarray, static_THW: np.ndarray, settings: RefineSettings) -> np.ndarray:
    """Return where points may lie: static, with a depth that does not jump, (T, H, W) bool."""
    flat = smooth(depth_THW, static_THW, margin=int(depth_THW.shape[1] >= _SMALL))
    return flat if flat.sum() >= settings.fewest_smooth * static_THW.sum() else static_THW


def _among(tracks: Tracks, strong: np.ndarray, least_length: int) -> Tracks:
    """Return the tracks in those of the frames that are strong (n,), numbered without the others."""
    kept, _ = tracks.only(strong[tracks.frame], least_length)
    return replace(kept, frame=(np.cumsum(strong) - 1)[kept.frame])


def _adjusted(
    cameras: Cameras,
    tracks: Tracks,
    depth: np.ndarray,
    slope: np.ndarray,
    how: AdjustSettings,
    settings: RefineSettings,
) -> tuple[Tracks, Adjusted, np.ndarray]:
    """Return the observations that stay, the adjusted bundle, and their pixels (M,) under the first cameras."""
    coarse = reprojection(cameras.world_from_camera, cameras.intrinsics, tracks, depth)
    poses, intrinsics = cameras.world_from_camera, cameras.intrinsics
    prior = (float(intrinsics[0, 0]), cameras.focal_std) if cameras.focal_std and how.refine_focal else None
    for clean in range(settings.clean_rounds + 1):
        slope_or_flat = np.where(np.isfinite(slope), slope, 0.0)
        adjusted = adjust(poses, intrinsics, tracks, depth, slope=slope_or_flat, focal_prior=prior, settings=how)
        kept, stays = tracks.only(adjusted.inlier, settings.tracks.least_length)
        if clean == settings.clean_rounds or stays.all() or not len(kept):
            break
        tracks, depth, slope, coarse = kept, depth[stays], slope[stays], coarse[stays]
        poses, intrinsics = adjusted.world_from_camera, adjusted.intrinsics
    return tracks, adjusted, coarse


def _refined(
    cameras: Cameras, strong: np.ndarray, found: Tracks, tracks: Tracks, adjusted: Adjusted, coarse: np.ndarray
) -> Refined:
    number, place = len(strong), np.flatnonzero(strong)
    frame = place[tracks.frame]
    rotation_std, position_std = np.full((2, number), np.inf)
    rotation_std[place], position_std[place] = adjusted.rotation_std, adjusted.position_std
    seen = np.bincount(frame, minlength=number)
    weak = ~(np.isfinite(rotation_std) & np.isfinite(position_std)) | (seen < _LEAST_SEEN)
    rotation_std[weak] = position_std[weak] = np.inf
    poses = cameras.world_from_camera.copy()
    poses[place] = adjusted.world_from_camera
    good = np.flatnonzero(~weak)
    for row in np.flatnonzero(weak) if len(good) else []:
        near = good[np.abs(good - row).argmin()]
        poses[row] = poses[near] @ invert_pose(cameras.world_from_camera[near]) @ cameras.world_from_camera[row]
    pixels = adjusted.residual_pixels
    rows = [pixels[frame == row] for row in range(number)]
    all_seen = np.bincount(found.frame, minlength=number)
    new = replace(
        cameras,
        world_from_camera=relative_to(poses, poses[0]),
        intrinsics=adjusted.intrinsics,
        residual=np.array([np.median(row) if len(row) else 0.0 for row in rows]),
        inliers=seen / np.maximum(all_seen, 1),
        focal_std=adjusted.focal_std or None,
    )
    depth = np.abs(adjusted.residual_depth[np.isfinite(adjusted.residual_depth)])
    numbers = {
        "tracks": tracks.count,
        "observations": len(tracks),
        "mean_length": len(tracks) / tracks.count,
        "reprojection_before": _rms(coarse),
        "reprojection_after": _rms(pixels),
        "depth_residual": float(np.median(depth)) if len(depth) else float("nan"),
        "inliers": len(tracks) / len(found),
        "iterations": adjusted.iterations,
        "focal_std": adjusted.focal_std,
        "sigma_pixels": adjusted.sigma_pixels,
    }
    return Refined(
        cameras=new,
        converged=adjusted.converged,
        weak=weak,
        rotation_std=rotation_std,
        position_std=position_std,
        reprojection=np.array([_rms(row) for row in rows]),
        coarse=np.array([_rms(coarse[frame == row]) for row in range(number)]),
        numbers=numbers,
    )


def _unrefined(cameras: Cameras, found: Tracks) -> Refined:
    """Return the cameras as they are, which says so."""
    number = len(cameras.rows)
    nothing, unsure = np.full(number, np.nan), np.full(number, np.inf)
    return Refined(
        cameras=cameras,
        converged=False,
        weak=np.ones(number, bool),
        rotation_std=unsure,
        position_std=unsure.copy(),
        reprojection=nothing,
        coarse=nothing.copy(),
        numbers={"tracks": found.count, "observations": len(found), "iterations": 0},
    )


def _rms(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.sqrt(np.square(finite).mean())) if len(finite) else float("nan")
