"""Planning from a picture to a goal picture, and navigation along a path that is given with the goal.

The goal is the last frame of a clip; the first frame's depth and intrinsics are given. Plans are judged as the
planner gives them, smoothed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from aether_env.camera import interpolate_pose
from aether_env.metrics import pose_errors
from aether_env.trajectory import smooth_path
from aether_env.world_model.clip_model import ClipResult
from aether_env.world_model.own_clips import OwnClips
from training.evaluation.scores import LEAST_MOTION, Scores, autoencode, warp_walk
from training.evaluation.summary import Row, mean, median
from training.evaluation.video import SIMILARITIES, kernel_distances, similarities
from training.evaluation.walks import Walk, as_pictures

FRAMES = (4, 8, 12)
"""Frames of a clip at which pictures are judged: between the two that are given."""
LEAST_PATH = 0.2
"""Metres of path below which an error is no share of it."""
PATHS = ("plan", "plan_raw", "plan_still", "plan_ahead", "plan_straight")
"""Paths that are judged: `planning_scores` tells which."""
PICTURES = (
    "plan", "navigation", "navigation_path_only", "plan_repeated", "plan_crossfade", "plan_warp", "plan_autoencoder",
)  # fmt: skip
"""Pictures that are judged: `planning_scores` tells which."""


def planning_scores(pipeline: OwnClips, walk: Walk, seed: int) -> Scores:
    """Return scores of plans to the clips' last frames, and of navigation along their paths.

    Of `PATHS`: the smoothed plan, the plan as dreamed, no motion; and two that know more than a planner: straight
    ahead for the true path's length, and the straight screw motion to the true goal.
    Of `PICTURES`: the plan; the dream given the path too, and given the path but no goal; the first frame repeated,
    the cross-fade of the first and the goal frame, the first frame warped by true depth and poses, the autoencoder.

    Args:
        pipeline: What plans.
        walk: B clips of 17 frames.
        seed: See `Walk.seeds`.

    Returns:
        Per clip: `end_error` and `path_error` (the end's and all frames' mean distance from the truth, as shares of the
        true path's length; NaN for paths shorter than LEAST_PATH and first frames that show no surface),
        `end_rotation_deg`, `end_direction_deg` (NaN where the goal is nearer than LEAST_MOTION), each after the path's
        name; `similarities` and `kernel_distance` after the picture's name; `plan_short_path`, 1 where LEAST_PATH is
        not reached.
    """
    first, goal, seeds = walk.rgb[:, 0], walk.rgb[:, -1], walk.seeds(seed)
    depth, intrinsics = walk.first_depth, walk.intrinsics
    plan = pipeline.plan(first, goal, depth=depth, intrinsics=intrinsics, seeds=seeds)
    navigation = pipeline.plan(
        first, goal, depth=depth, world_from_camera=walk.path, intrinsics=intrinsics, seeds=seeds
    )
    path_only = pipeline.predict(first, depth=depth, world_from_camera=walk.path, intrinsics=intrinsics, seeds=seeds)
    dreams = {"plan": plan, "navigation": navigation, "navigation_path_only": path_only}
    return _path_scores(plan, walk, pipeline.settings.fps) | _picture_scores(pipeline, dreams, walk)


def _path_scores(plan: ClipResult, walk: Walk, fps: float) -> Scores:
    true = walk.path
    centre = true[..., :3, 3]
    travelled = np.linalg.norm(np.diff(centre, axis=1), axis=-1).cumsum(axis=1)
    length = travelled[:, -1]
    ahead = np.tile(np.eye(4), (*true.shape[:2], 1, 1))
    ahead[:, 1:, 2, 3] = travelled
    fractions = np.linspace(0, 1, true.shape[1])
    smoothed = [smooth_path(path, rate_hz=fps).from_first().world_from_camera for path in plan.world_from_camera]
    straight = [interpolate_pose(pose[0], pose[-1], fractions) for pose in true]
    still = np.broadcast_to(np.eye(4), true.shape)
    paths = (np.stack(smoothed), plan.world_from_camera, still, ahead, np.stack(straight))

    in_shares = plan.metric & (length >= LEAST_PATH)
    has_direction = np.linalg.norm(centre[:, -1], axis=-1) >= LEAST_MOTION
    scores: Scores = {"plan_short_path": (length < LEAST_PATH).astype(float)}
    for name, path in zip(PATHS, paths, strict=True):
        off = np.linalg.norm(path[..., :3, 3] - centre, axis=-1)
        rotation, direction = pose_errors(path[:, -1], true[:, -1])
        for score, metres in (("end_error", off[:, -1]), ("path_error", off[:, 1:].mean(axis=1))):
            scores[f"{name}_{score}"] = np.where(in_shares, metres / np.maximum(length, LEAST_PATH), np.nan)
        scores[f"{name}_end_rotation_deg"] = np.rad2deg(rotation)
        scores[f"{name}_end_direction_deg"] = np.where(has_direction, np.rad2deg(direction), np.nan)
    return scores


def _picture_scores(pipeline: OwnClips, dreams: dict[str, ClipResult], walk: Walk) -> Scores:
    clips = walk.clips
    decoded = autoencode(pipeline.codec, clips.rgb)
    truth = _at_frames(clips.rgb, walk)
    first, goal = (as_pictures(clips.rgb[:, t], clips.rgb.device)[:, None] for t in (0, -1))
    share = torch.tensor(FRAMES, device=first.device)[:, None, None, None] / (clips.rgb.shape[1] - 1)
    rows = {name: _at_frames(dream.rgb, walk) for name, dream in dreams.items()} | {
        "plan_repeated": first.expand_as(truth),
        "plan_crossfade": (1 - share) * first + share * goal,
        "plan_warp": torch.stack([warp_walk(walk, frame) for frame in FRAMES], dim=1),
        "plan_autoencoder": _at_frames(decoded, walk),
    }
    scores: Scores = {}
    for name, shown in rows.items():
        scores[f"{name}_kernel_distance"] = kernel_distances(shown, truth)
        for place, frame in enumerate(FRAMES):
            for score, value in similarities(shown[:, place], truth[:, place]).items():
                scores[f"{name}_{score}_{frame}"] = value.double().cpu().numpy()
    return scores


def _at_frames(rgb: np.ndarray | Tensor, walk: Walk) -> Tensor:
    """Return clips (B, T, H, W, 3) uint8 at `FRAMES`: float (B, F, 3, H, W) in [0, 1]."""
    return as_pictures(rgb[:, list(FRAMES)], walk.clips.rgb.device)


def _metrics() -> Iterator[Row]:
    keys = [f"{name}_{score}" for name in PATHS[:4] for score in ("end_error", "end_direction_deg")]
    keys += [f"{name}_end_rotation_deg" for name in PATHS[:3]]  # the others look ahead, or where the truth looks
    keys += [f"{name}_path_error" for name in PATHS]
    for key in keys:
        # A camera that stands still has no direction: 90 degrees by convention, which says nothing.
        if key != "plan_still_end_direction_deg":
            yield key, median, (key,)
    yield "plan_short_path", mean, ("plan_short_path",)
    for name in PICTURES:
        key = f"{name}_kernel_distance"
        yield key, mean, (key,)
        for key in (f"{name}_{score}_{frame}" for score in SIMILARITIES for frame in FRAMES):
            yield key, mean, (key,)


METRICS: tuple[Row, ...] = tuple(_metrics())
