"""Scores of single clips: dreams and reconstructions beside the truth.

Every function returns arrays of one number per clip, NaN where a clip has none; `summary` makes metrics of them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from aether_env.camera import horizontal_fov
from aether_env.conventions import FRAMES_PER_LATENT
from aether_env.metrics import depth_errors, pose_errors, psnr, ssim
from aether_env.world_model.latents import Codec, at_rest
from aether_env.world_model.pipeline import AetherPipeline
from aether_env.world_model.promise import Frames
from aether_env.world_model.rollout import DreamWorld
from training.evaluation.baselines import visible_part, warp_first_frame
from training.evaluation.walks import Walk, as_pictures

Scores = dict[str, np.ndarray]

FRAMES = (4, 8, 16)
"""Frames of a clip at which pictures are judged."""
CONTROL_FRAME = 8
"""Frame at which the true path is compared with another one."""
BEST_PSNR = 50.0
"""Decibels at which PSNR is capped: a camera that stands still must not decide the mean."""
LEAST_VISIBLE = 0.05
"""Share of a frame below which its visible part is too small to judge."""
LEAST_MOTION = 0.1
"""Metres that a camera must move for its direction to count."""


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


def picture_scores(name: str, frame: int, shown: Tensor, truth: Tensor, visible: Tensor) -> Scores:
    """Return PSNR and SSIM of pictures (B, 3, H, W) at one frame, whole and in the visible part (B, H, W)."""
    enough = visible.float().mean((1, 2)) >= LEAST_VISIBLE
    scores = {
        "psnr": psnr(shown, truth).clamp_max(BEST_PSNR),
        "ssim": ssim(shown, truth),
        "visible_psnr": torch.where(enough, psnr(shown, truth, visible).clamp_max(BEST_PSNR), torch.nan),
        "visible_ssim": torch.where(enough, ssim(shown, truth, visible), torch.nan),
    }
    return {f"{score}_{name}_{frame}": _numpy(value) for score, value in scores.items()}


def baseline_scores(codec: Codec, walk: Walk) -> Scores:
    """Return the picture scores of the first frame repeated, of it warped, and of the autoencoder."""
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
    return scores


def rollout_scores(world: DreamWorld, walk: Walk, seed: int) -> Scores:
    """Return scores of env steps along the true path, and how much worse another clip's path does."""
    frames = roll_out(world, walk, walk.path, FRAMES[-1] // FRAMES_PER_LATENT, seed)
    scores = _scores_at_frames("dream", frames.rgb, walk)
    aligned = depth_errors(_tensor(frames.depth, walk), walk.clips.depth[:, 1:], walk.clips.valid[:, 1:], "scale")
    scores["predicted_abs_rel"] = _numpy(aligned.abs_rel)
    scores["predicted_delta125"] = _numpy(aligned.delta125)
    astray = roll_out(world, walk, walk.other_path, CONTROL_FRAME // FRAMES_PER_LATENT, seed)
    shown, truth = (_pictures(rgb, walk) for rgb in (astray.rgb[:, -1], walk.clips.rgb[:, CONTROL_FRAME]))
    scores["psnr_other_path"] = _numpy(psnr(shown, truth).clamp_max(BEST_PSNR))
    return scores


def prediction_scores(pipeline: AetherPipeline, walk: Walk, seed: int) -> Scores:
    """Return scores of one pass over the whole clip, given the first frame, its depth and the path."""
    result = pipeline.predict(
        walk.rgb[:, 0], depth=walk.first_depth, world_from_camera=walk.path, intrinsics=walk.intrinsics,
        seeds=walk.seeds(seed),
    )  # fmt: skip
    refuse_nan("predicted depth", result.depth, walk)
    aligned = depth_errors(
        _tensor(result.depth[:, 1:], walk), walk.clips.depth[:, 1:], walk.clips.valid[:, 1:], "scale"
    )
    return _scores_at_frames("pipeline", result.rgb[:, 1:], walk) | {"pipeline_abs_rel": _numpy(aligned.abs_rel)}


def reconstruction_scores(pipeline: AetherPipeline, walk: Walk, seed: int) -> Scores:
    """Return errors of depth, path and field of view found in the pictures alone; angles in degrees."""
    result = pipeline.reconstruct(walk.rgb, seeds=walk.seeds(seed))
    refuse_nan("reconstructed depth", result.depth, walk)
    refuse_nan("reconstructed path", result.world_from_camera, walk)
    depth, valid = walk.clips.depth, walk.clips.valid
    found = depth_errors(_tensor(result.depth, walk), depth, valid, "scale")
    flat = depth_errors(torch.ones_like(depth), depth, valid, "scale")
    rotation, direction = pose_errors(result.world_from_camera, walk.path, min_translation=1e-6)
    standing = np.broadcast_to(np.eye(4), walk.path.shape)
    moved = np.linalg.norm(walk.path[:, -1, :3, 3], axis=-1) > LEAST_MOTION
    width = walk.rgb.shape[-2]
    fov = horizontal_fov(result.intrinsics, width).mean(axis=1) - horizontal_fov(walk.intrinsics, width)
    return {
        "depth_abs_rel": _numpy(found.abs_rel),
        "depth_delta125": _numpy(found.delta125),
        "flat_depth_abs_rel": _numpy(flat.abs_rel),
        "rotation_error_deg": np.rad2deg(rotation[:, 1:].mean(axis=1)),
        "rotation_error_deg_last": np.rad2deg(rotation[:, -1]),
        "rotation_standing_deg": np.rad2deg(pose_errors(standing, walk.path)[0][:, 1:].mean(axis=1)),
        "translation_direction_deg": np.where(moved, np.rad2deg(direction[:, -1]), np.nan),
        "fov_error_deg": np.rad2deg(np.abs(fov)),
    }


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
