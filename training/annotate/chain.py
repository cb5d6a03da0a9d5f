"""A piece of a video on its way through the annotation: masks, slices, first cameras, refined cameras, judgement.

The paper's pipeline (section 3.1) with parts that need no weights. Every frame ends in a clip, or has a reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic
from typing import Any

import numpy as np

from aether_env.camera import intrinsics_from_fov, relative_to
from training.annotate.coarse import Cameras, coarse_cameras
from training.annotate.ego import Focal, estimate_focal
from training.annotate.flow import DISFlow, Flows, find_flows
from training.annotate.footage import Footage
from training.annotate.grounded import GroundedMasks
from training.annotate.learned_tracks import make_tracker
from training.annotate.masks import GeometricMasks, GivenMasks, Masker
from training.annotate.quality import Quality, focal_anomalies, judge
from training.annotate.refine import Refined, Tracker, refine_cameras
from training.annotate.results import PieceResult, SliceResult
from training.annotate.settings import AnnotateSettings
from training.annotate.slicing import cut
from training.clips import Clip, check_clip

UNKNOWN_FOV = np.deg2rad(70.0)
"""Field of view with which masks are looked for where the focal length cannot be told."""
MUCH_MOVES = 0.01
"""Share of moving pixels from which on the focal length is estimated again without them."""


def annotate_piece(footage: Footage, settings: AnnotateSettings | None = None) -> PieceResult:
    """Return the clips of a piece, and why its other frames are in none.

    Args:
        footage: The piece.
        settings: Of all stages; None is the default.

    Returns:
        Slices that were kept or refused, and the reasons of all other frames.
    """
    settings, clock = settings or AnnotateSettings(), _Clock()
    if len(footage) < settings.slicing.min_frames:
        return PieceResult(slices=(), dropped=dict.fromkeys(footage.frame.tolist(), "too short"))
    flow = DISFlow()
    with clock.stage("flow"):
        flows = find_flows(footage.rgb, flow)
    with clock.stage("focal"):
        focal = _focal(footage, settings, None)
    with clock.stage("masks"):
        moving = _masks(footage, _intrinsics(footage, focal), flows, settings)
    if focal is not None and footage.moving is None and moving.mean() > MUCH_MOVES:
        with clock.stage("focal"):
            focal = _focal(footage, settings, moving) or focal
    with clock.stage("slicing"):
        found = cut(footage, moving, settings.slicing, flows)
    dropped = {int(footage.frame[row]): why for row, why in enumerate(found.reasons) if why is not None}
    slices: list[SliceResult] = []
    for rows in found.slices:
        with clock.stage("coarse"):
            known = None if focal is None and footage.intrinsics is None else _intrinsics(footage, focal)
            parts, lost = coarse_cameras(
                footage, moving, rows, known, flow=flow, seed=settings.seed, settings=settings.coarse
            )
        dropped |= {int(footage.frame[row]): why for row, why in lost.items()}
        for part in parts:
            if focal is not None:
                part = replace(part, focal_std=focal.std)
            made, weak = _cameras_to_slices(footage, moving, part, settings, clock)
            slices += made
            dropped |= weak
    slices = _without_anomalies(slices, settings)
    figures: dict[str, Any] = {} if focal is None else {"focal": focal.value, "focal_std": focal.std}
    return PieceResult(
        slices=tuple(slices), dropped=dropped, moving=moving, figures=figures, seconds=dict(clock.seconds)
    )


def _focal(footage: Footage, settings: AnnotateSettings, moving: np.ndarray | None) -> Focal | None:
    """Return the focal length of the piece; None where it is given, or cannot be told."""
    if footage.intrinsics is not None:
        return None
    return estimate_focal(footage, DISFlow(), moving=moving, seed=settings.seed, settings=settings.coarse.focal)


def _intrinsics(footage: Footage, focal: Focal | None) -> np.ndarray:
    if footage.intrinsics is not None:
        return footage.intrinsics
    return intrinsics_from_fov(UNKNOWN_FOV, *footage.size) if focal is None else focal.intrinsics(*footage.size)


def _masks(footage: Footage, intrinsics: np.ndarray, flows: Flows, settings: AnnotateSettings) -> np.ndarray:
    """Return what moves, (T, H, W) bool."""
    if settings.masker == "none":
        return np.zeros(footage.valid.shape, dtype=bool)
    return _masker(footage, settings)(footage, intrinsics, flows)


def _masker(footage: Footage, settings: AnnotateSettings) -> Masker:
    if settings.masker == "auto" and footage.moving is not None:
        return GivenMasks()
    if settings.masker == "grounded":
        assert settings.detector is not None and settings.segmenter is not None  # as the settings have checked
        return GroundedMasks(settings.detector, settings.segmenter, settings.grounded)
    return GeometricMasks(settings.masks)


def _cameras_to_slices(
    footage: Footage, moving: np.ndarray, coarse: Cameras, settings: AnnotateSettings, clock: _Clock
) -> tuple[list[SliceResult], dict[int, str]]:
    """Return the clips of frames that hold together, and why some of these frames have no camera.

    They are refined and judged as one, and parted where frames are missing.
    """
    refined: Refined | None = None
    cameras = coarse
    if settings.refine:
        with clock.stage("refine"):
            tracker = None if settings.tracker == "sift" else _tracker(settings)
            refined = refine_cameras(footage, moving, coarse, tracker=tracker, settings=settings.refinement)
        cameras = refined.cameras
    weak = np.zeros(len(cameras), dtype=bool) if refined is None or not refined.converged else refined.weak
    dropped = dict.fromkeys(footage.frame[cameras.rows[weak]].tolist(), "few points")
    if weak.all():
        return [], dropped
    coarse, cameras = _without(coarse, weak), _without(cameras, weak)
    with clock.stage("quality"):
        quality = judge(footage, moving, cameras, settings=settings.quality)
    reasons = quality.reasons if refined is None or refined.converged else (*quality.reasons, "not converged")
    made = []
    for part in _unbroken(footage.frame[cameras.rows]):
        rows, frames = cameras.rows[part], footage.frame[cameras.rows[part]]
        figures = _figures(quality, coarse, cameras, refined, part)
        reason = reasons[0] if reasons else "too short" if len(rows) < settings.slicing.min_frames else None
        clip = _clip(footage, moving, cameras, part) if reason is None else None
        path = cameras.world_from_camera[part]
        made.append(
            SliceResult(
                frames=frames, clip=clip, reason=reason, quality=quality.score, figures=figures, world_from_camera=path
            )
        )
    return made, dropped


def _without(cameras: Cameras, left_out: np.ndarray) -> Cameras:
    """Return cameras without some (n,) bool of them, in the world of the first that stays."""
    keep = ~left_out
    names = ("rows", "world_from_camera", "residual", "inliers", "keyframe")
    kept = replace(cameras, **{name: getattr(cameras, name)[keep] for name in names})
    return replace(kept, world_from_camera=relative_to(kept.world_from_camera, kept.world_from_camera[0]))


def _without_anomalies(slices: list[SliceResult], settings: AnnotateSettings) -> list[SliceResult]:
    """Return the slices of one camera, of which those are refused whose focal length is not like the others'."""
    kept = [number for number, one in enumerate(slices) if one.clip is not None]
    focals = [float(slices[number].figures["focal"]) for number in kept]
    for number in np.array(kept, np.int64)[focal_anomalies(focals, most=settings.quality.most_focal_anomaly)].tolist():
        slices[number] = replace(slices[number], clip=None, reason="focal anomaly")
    return slices


def _tracker(settings: AnnotateSettings) -> Tracker:
    assert settings.tracker != "sift" and settings.tracker_weights is not None  # as the settings have checked
    return make_tracker(settings.tracker, settings.tracker_weights, settings.refinement.tracks)


def _unbroken(frames: np.ndarray) -> list[slice]:
    """Return the runs of consecutive numbers."""
    ends = np.flatnonzero(np.diff(frames) != 1) + 1
    return [slice(int(a), int(b)) for a, b in zip([0, *ends], [*ends, len(frames)], strict=True)]


def _clip(footage: Footage, moving: np.ndarray, cameras: Cameras, part: slice) -> Clip:
    rows = cameras.rows[part]
    return check_clip(
        Clip(
            rgb=footage.rgb[rows],
            depth=footage.depth[rows],
            valid=footage.valid[rows],
            moving=moving[rows],
            world_from_camera=cameras.world_from_camera[part],
            intrinsics=np.repeat(cameras.intrinsics[None], len(rows), axis=0),
            fps=footage.fps,
            name=footage.name,
        )
    )


def _figures(
    quality: Quality, coarse: Cameras, cameras: Cameras, refined: Refined | None, part: slice
) -> dict[str, Any]:
    """Return what the report and the evaluation ask for."""
    figures: dict[str, Any] = {
        "reprojection": cameras.residual[part],
        "coarse": coarse.residual[part],
        "coarse_path": coarse.world_from_camera[part],
        "coarse_focal": coarse.intrinsics[0, 0],
        "consistency": quality.consistent,
        "depth_error": quality.depth_error,
        "focal": cameras.intrinsics[0, 0],
        "focal_std": cameras.focal_std,
        "focal_pull": quality.focal_pull,
        "jumps": quality.jumps,
        "reasons": list(quality.reasons),
    }
    return figures if refined is None else figures | refined.figures()


class _Clock:
    """Seconds that stages take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of what is done inside to a stage's."""
        start = monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + monotonic() - start
