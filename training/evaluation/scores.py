"""Scores of single clips: dreams and reconstructions beside the truth.

Every function returns arrays of one number per clip, NaN where a clip has none; `summary` makes metrics of them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from aether_env.camera import intrinsics_from_fov, make_pose
from aether_env.conventions import FRAMES_PER_LATENT
from aether_env.disparity import fill_depth
from aether_env.metrics import depth_errors, pose_errors, psnr, ssim
from aether_env.path_metrics import ate, direction_error, focal_error, fov_error, rpe, scale_error
from aether_env.world_model.clip_model import ClipResult
from aether_env.world_model.latents import Codec, at_rest
from aether_env.world_model.own_clips import OwnClips
from aether_env.world_model.promise import Frames
from aether_env.world_model.rollout import DEFAULT_FOV, DreamWorld
from training.evaluation.baselines import visible_part, warp_first_frame
from training.evaluation.walks import Walk, as_pictures

Scores = dict[str, np.ndarray]

FRAMES = (4, 8, 16)
"""Frames of a clip at which pictures are judged."""
CONTROL_FRAME = 8
"""Frame at which the true path is compared with another one."""
BEST_PSNR = 50.0
"""Decibels at which PSNR is capped: a camera that stands still must not decide the mean."""
LEAST_SHARE = {"visible": 0.05, "holes": 0.01, "static": 0.05, "moving": 0.005}
"""Shares of a frame below which its parts (see `parts_in`) are too small to judge; the simulator's movers are small."""
LEAST_MOTION = 0.1
"""Metres that a camera must move for its direction and its way to count."""
NETWORK_ERRORS = (
    "depth_abs_rel", "depth_delta125", "rotation_error_deg", "translation_direction_deg", "fov_error_deg", "ate",
)  # fmt: skip
"""What `reconstruction_scores` says of the network alone."""
PATH_ROWS = ("", "standing_", "straight_")
"""Paths that `path_scores` judges."""
PATH_ERRORS = ("ate", "rpe_translation", "rpe_rotation_deg")
"""What it says of each."""


def roll_out(world: DreamWorld, walk: Walk, path: np.ndarray, steps: int, seed: int) -> Frames:
    """Dream env steps along a path, from the first frame with its true depth and intrinsics.

    Args:
        world: The dream.
        walk: B clips.
        path: (B, T, 4, 4), T > 4 * steps; the first pose is the start's.
        steps: Env steps.
        seed: See `Walk.seeds`.

    Returns:
        The 4 * steps frames after the first.
    """
    state, _ = world.start(walk.starts(), walk.seeds(seed))
    parts: list[Frames] = []
    for step in range(steps):
        state, frames = world.advance(state, path[:, FRAMES_PER_LATENT * step + 1 :][:, :FRAMES_PER_LATENT])
        parts.append(frames)
    depth = np.concatenate([p.depth for p in parts], axis=1)
    refuse_nan("dreamed depth", depth, walk)
    return Frames(
        rgb=np.concatenate([p.rgb for p in parts], axis=1),
        depth=depth,
        world_from_camera=np.concatenate([p.world_from_camera for p in parts], axis=1),
        intrinsics=np.concatenate([p.intrinsics for p in parts], axis=1),
        metric=parts[0].metric,
    )


def refuse_nan(name: str, values: np.ndarray, walk: Walk) -> None:
    """Refuse results (B, ...) that are not finite: metrics would leave such pixels out and look better for it.

    Raises:
        ValueError: Names the clips.
    """
    broken = walk.numbers[~np.isfinite(values).reshape(len(values), -1).all(axis=1)]
    if len(broken):
        raise ValueError(f"{name} is NaN or infinite in test clips {broken.tolist()}: the checkpoint is broken.")


@torch.inference_mode()
def autoencode(codec: Codec, rgb: Tensor) -> Tensor:
    """Return what the colour autoencoder makes of a clip (B, T, H, W, 3) uint8, T = 4 k + 1."""
    latents = codec.encode_colour(torch.cat([at_rest(rgb[:, 0]), rgb[:, 1:]], dim=1))
    return codec.decode_colour(latents)[:, FRAMES_PER_LATENT - 1 :]


@torch.inference_mode()
def autoencode_depth(codec: Codec, depth: Tensor) -> Tensor:
    """Return what the disparity autoencoder makes of depth (B, T, H, W) in metres, T = 4 k + 1."""
    unit = codec.unit(depth[:, 0])
    latents = codec.encode_depth(torch.cat([at_rest(depth[:, 0]), depth[:, 1:]], dim=1), unit)
    return codec.decode_depth(latents, unit)[:, FRAMES_PER_LATENT - 1 :]


def warp_walk(walk: Walk, frame: int) -> Tensor:
    """Return the first frames of clips warped to the truth at another frame, float (B, 3, H, W) in [0, 1]."""
    clips = walk.clips
    first, pose = as_pictures(clips.rgb[:, 0], clips.rgb.device), clips.world_from_camera
    return warp_first_frame(
        first, clips.depth[:, 0], clips.valid[:, 0], clips.intrinsics[:, 0], pose[:, 0], pose[:, frame]
    )


def visible_in(walk: Walk, frame: int) -> Tensor:
    """Return the part (B, H, W) of a frame that the first frame has seen."""
    clips, pose = walk.clips, walk.clips.world_from_camera
    return visible_part(
        clips.depth[:, frame], clips.valid[:, frame], clips.moving[:, frame], clips.intrinsics[:, 0], pose[:, frame],
        clips.depth[:, 0], clips.valid[:, 0], pose[:, 0],
    )  # fmt: skip


def parts_in(walk: Walk, frame: int) -> dict[str, Tensor]:
    """Return the parts of a frame, each (B, H, W) bool: what the first frame has seen and what rests there (visible).

    The others are what rests but was not seen (holes), all that rests (static), and what moves during the clip.
    """
    visible, moving = visible_in(walk, frame), walk.clips.moving[:, frame]
    return {"visible": visible, "holes": ~visible & ~moving, "static": ~moving, "moving": moving}


def where_enough(part: str, mask: Tensor, values: Tensor) -> Tensor:
    """Return scores (B,) of a part (B, H, W) of frames, NaN where it is less than its `LEAST_SHARE`."""
    return torch.where(mask.float().mean((1, 2)) >= LEAST_SHARE[part], values, torch.nan)


def picture_scores(name: str, frame: int, shown: Tensor, truth: Tensor, visible: Tensor) -> Scores:
    """Return PSNR and SSIM of pictures (B, 3, H, W) at one frame, whole and in the visible part (B, H, W)."""
    scores = {
        "psnr": psnr(shown, truth).clamp_max(BEST_PSNR),
        "ssim": ssim(shown, truth),
        "visible_psnr": where_enough("visible", visible, psnr(shown, truth, visible).clamp_max(BEST_PSNR)),
        "visible_ssim": where_enough("visible", visible, ssim(shown, truth, visible)),
    }
    return {f"{score}_{name}_{frame}": _numpy(value) for score, value in scores.items()}


def baseline_scores(codec: Codec, walk: Walk) -> Scores:
    """Return the picture scores of the first frame repeated, of it warped, and of the autoencoder.

    And the scores of depth beside which dreamed depth stands: flat, the first frame's held, and the autoencoder's.
    """
    device = walk.clips.rgb.device
    decoded = autoencode(codec, walk.clips.rgb)
    scores: Scores = {}
    for frame in FRAMES:
        truth, visible = as_pictures(walk.clips.rgb[:, frame], device), visible_in(walk, frame)
        rows = {
            "repeated": as_pictures(walk.clips.rgb[:, 0], device),
            "warp": warp_walk(walk, frame),
            "autoencoder": as_pictures(decoded[:, frame], device),
        }
        for name, shown in rows.items():
            scores |= picture_scores(name, frame, shown, truth, visible)
        scores[f"visible_share_{frame}"] = _numpy(visible.float().mean((1, 2)))
    depth, valid = walk.clips.depth, walk.clips.valid
    # The sky is filled in: held before what is near it would cost more than any guess.
    held = fill_depth(torch.where(valid[:, 0], depth[:, 0], 0.0))[:, None].expand_as(depth)
    depths = {"flat": torch.ones_like(depth), "held": held, "autoencoder": autoencode_depth(codec, depth)}
    for name, found in depths.items():
        scores |= _later_depth_scores(f"{name}_predicted", found[:, 1:], walk)
    return scores


def rollout_scores(world: DreamWorld, walk: Walk, seed: int) -> Scores:
    """Return scores of env steps along the true path, and how much worse another clip's path does."""
    frames = roll_out(world, walk, walk.path, FRAMES[-1] // FRAMES_PER_LATENT, seed)
    scores = _scores_at_frames("dream", frames.rgb, walk)
    scores |= _later_depth_scores("predicted", _tensor(frames.depth, walk), walk)
    astray = roll_out(world, walk, walk.other_path, CONTROL_FRAME // FRAMES_PER_LATENT, seed)
    shown, truth = (_pictures(rgb, walk) for rgb in (astray.rgb[:, -1], walk.clips.rgb[:, CONTROL_FRAME]))
    scores["psnr_other_path"] = _numpy(psnr(shown, truth).clamp_max(BEST_PSNR))
    return scores


def prediction_scores(pipeline: OwnClips, walk: Walk, seed: int) -> Scores:
    """Return scores of one pass over the whole clip, given the first frame, its depth and the path."""
    result = pipeline.predict(
        walk.rgb[:, 0], depth=walk.first_depth, world_from_camera=walk.path, intrinsics=walk.intrinsics,
        seeds=walk.seeds(seed),
    )  # fmt: skip
    refuse_nan("predicted depth", result.depth, walk)
    pictures = _scores_at_frames("pipeline", result.rgb[:, 1:], walk)
    return pictures | _later_depth_scores("pipeline", _tensor(result.depth[:, 1:], walk), walk)


def reconstruction_scores(pipeline: OwnClips, walk: Walk, seed: int) -> Scores:
    """Return errors of depth, path and intrinsics found in the pictures alone, and of the scale given true depth.

    Returns:
        `depth_abs_rel` and `depth_delta125` after alignment by a factor, after that by factor and offset with
        `_scale_shift`; beside them flat depth (`flat_depth_...`, an offset does not help it) and what the autoencoder
        makes of the truth (`autoencoder_depth_...`). Errors of the path: see `_path_and_camera_scores`.
        Where the pipeline refines (see refine.py), `NETWORK_ERRORS` of the network alone too, named `network_...`.
        `scale_error`, that of the path's length (see `path_metrics`) where the first frame's true depth is given, and
        `scale_error_without_depth`, where lengths are units: NaN where the camera hardly moves.
    """
    seeds = walk.seeds(seed)
    result = pipeline.reconstruct(walk.rgb, seeds=seeds)
    told = pipeline.reconstruct(walk.rgb, depth=walk.first_depth, seeds=seeds)
    refuse_nan("reconstructed depth", result.depth, walk)
    for found in (result, told):
        refuse_nan("reconstructed path", found.world_from_camera, walk)
    depth, valid = walk.clips.depth, walk.clips.valid
    shown = _tensor(result.depth, walk)
    scores = _depth_scores("depth", shown, depth, valid) | _depth_scores("depth", shown, depth, valid, "scale_shift")
    scores |= _depth_scores("flat_depth", torch.ones_like(depth), depth, valid)
    scores |= _depth_scores("autoencoder_depth", autoencode_depth(pipeline.codec, depth), depth, valid)
    goes = _way(walk) > LEAST_MOTION
    for name, found, known in (("", told, told.metric), ("_without_depth", result, np.ones_like(goes))):
        errors = [scale_error(path, true) for path, true in zip(found.world_from_camera, walk.path, strict=True)]
        scores[f"scale_error{name}"] = np.where(goes & known, errors, np.nan)
    if pipeline.reconstruct_refine:
        network = pipeline.without_refining().reconstruct(walk.rgb, seeds=seeds)
        errors_of = _path_and_camera_scores(network, walk)
        errors_of |= _depth_scores("depth", _tensor(network.depth, walk), depth, valid)
        scores |= {f"network_{name}": errors_of[name] for name in NETWORK_ERRORS}
    return scores | _path_and_camera_scores(result, walk)


def _path_and_camera_scores(result: ClipResult, walk: Walk) -> Scores:
    """Return errors of paths and intrinsics; angles in degrees, lengths in metres after alignment by Sim(3).

    Returns:
        `rotation_error_deg` (mean over frames), of the last frame (`..._last`) and of no motion; the last frame's
        `translation_direction_deg`, `step_direction_deg` of motions from frame to frame and those of a flight straight
        ahead; `PATH_ERRORS` of `PATH_ROWS`; `fov_error_deg`, `focal_error` (a share) and those of the constant guess
        `DEFAULT_FOV`. What a camera that moves less than `LEAST_MOTION` cannot tell is NaN.
    """
    found, true = result.world_from_camera, walk.path
    standing, straight = _floor_paths(true.shape[1])
    rotation, direction = pose_errors(found, true)
    goes, arrives = _way(walk) > LEAST_MOTION, np.linalg.norm(true[:, -1, :3, 3], axis=-1) > LEAST_MOTION
    ahead = pose_errors(np.broadcast_to(straight[-1], true[:, -1].shape), true[:, -1])[1]
    scores = {
        "rotation_error_deg": np.rad2deg(rotation[:, 1:].mean(axis=1)),
        "rotation_error_deg_last": np.rad2deg(rotation[:, -1]),
        "rotation_standing_deg": np.rad2deg(
            pose_errors(np.broadcast_to(standing, true.shape), true)[0][:, 1:].mean(axis=1)
        ),
        "translation_direction_deg": np.where(arrives, np.rad2deg(direction[:, -1]), np.nan),
        "straight_translation_direction_deg": np.where(arrives, np.rad2deg(ahead), np.nan),
    }
    least_step = LEAST_MOTION / (true.shape[1] - 1)
    for name, paths in (("", found), ("straight_", np.broadcast_to(straight, true.shape))):
        steps = [direction_error(path, way, min_step=least_step) for path, way in zip(paths, true, strict=True)]
        scores[f"{name}step_direction_deg"] = np.where(goes, steps, np.nan)
    errors = [path_scores(path, way) for path, way in zip(found, true, strict=True)]
    for key in errors[0]:
        values = np.array([of_clip[key] for of_clip in errors])
        scores[key] = values if key.endswith("_deg") else np.where(goes, values, np.nan)
    return scores | camera_scores(result.intrinsics, walk.intrinsics[:, None], walk.rgb.shape[2:4])


def path_scores(world_from_camera: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Return `PATH_ERRORS` of a path (T, 4, 4) after Sim(3), and of a camera that stands still or flies straight on.

    Lengths are in the unit of the target (T, 4, 4), angles in degrees.
    """
    scores: dict[str, float] = {}
    for row, path in zip(PATH_ROWS, (world_from_camera, *_floor_paths(len(target))), strict=True):
        relative = rpe(path, target)
        errors = (ate(path, target), relative.translation, relative.rotation_deg)
        scores |= {f"{row}{error}": value for error, value in zip(PATH_ERRORS, errors, strict=True)}
    return scores


def camera_scores(intrinsics: np.ndarray, target: np.ndarray, size: tuple[int, int]) -> Scores:
    """Return errors of intrinsics, mean over a video, and those of the constant guess `DEFAULT_FOV` (`guessed_...`).

    Args:
        intrinsics: (..., T, 3, 3) pixels.
        target: (..., T or 1, 3, 3) pixels of the same pictures.
        size: Their height and width.

    Returns:
        `fov_error_deg` and `focal_error` (a share), each (...).
    """
    guess = np.broadcast_to(intrinsics_from_fov(DEFAULT_FOV, *size), intrinsics.shape)
    scores: Scores = {}
    for name, found in (("", intrinsics), ("guessed_", guess)):
        scores[f"{name}fov_error_deg"] = fov_error(found, target, size[1]).mean(axis=-1)
        scores[f"{name}focal_error"] = focal_error(found, target).mean(axis=-1)
    return scores


def _floor_paths(num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a camera that stands still and one that flies straight on, each (T, 4, 4)."""
    still = np.tile(np.eye(4), (num_frames, 1, 1))
    return still, make_pose(still[:, :3, :3], np.arange(num_frames)[:, None] * [0.0, 0.0, 1.0])


def _way(walk: Walk) -> np.ndarray:
    """Return how far the true cameras go in all, (B,) metres."""
    return np.linalg.norm(np.diff(walk.path[..., :3, 3], axis=1), axis=-1).sum(axis=1)


def _depth_scores(
    name: str, depth: Tensor, truth: Tensor, valid: Tensor, align: Literal["scale", "scale_shift"] = "scale"
) -> Scores:
    """Return `NAME_abs_rel` and `NAME_delta125` of depth (B, T, H, W); names end in the alignment if not "scale"."""
    errors, suffix = depth_errors(depth, truth, valid, align), "" if align == "scale" else f"_{align}"
    return {f"{name}_abs_rel{suffix}": _numpy(errors.abs_rel), f"{name}_delta125{suffix}": _numpy(errors.delta125)}


def _later_depth_scores(name: str, depth: Tensor, walk: Walk) -> Scores:
    """Return the scores of depth (B, T - 1, H, W) of all frames but the first, which is given."""
    return _depth_scores(name, depth, walk.clips.depth[:, 1:], walk.clips.valid[:, 1:])


def _scores_at_frames(name: str, rgb_after_first: np.ndarray, walk: Walk) -> Scores:
    scores: Scores = {}
    for frame in FRAMES:
        shown, truth = (_pictures(rgb, walk) for rgb in (rgb_after_first[:, frame - 1], walk.clips.rgb[:, frame]))
        scores |= picture_scores(name, frame, shown, truth, visible_in(walk, frame))
    return scores


def _pictures(rgb: Tensor | np.ndarray, walk: Walk) -> Tensor:
    return as_pictures(rgb, walk.clips.rgb.device)


def _tensor(depth: np.ndarray, walk: Walk) -> Tensor:
    return torch.as_tensor(depth, device=walk.clips.depth.device)


def _numpy(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
