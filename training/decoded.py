"""Stage 2: losses on what the clean latents decode to: pictures, depth and points in space (AETHER section 3.3).

`decoded_loss` is for windows of our own layout; `stage2_loss` takes decoded tensors of any layout. Disparity is
unit / depth here, in the unit of the raymap's origins, so that depth times ray plus origin is a point in units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, relu

from aether_env.conventions import FRAMES_PER_LATENT
from aether_env.raymap import signed_expm1, unpack_raymap
from aether_env.world_model.checkpoint import Components
from aether_env.world_model.conditions import COLOUR, DISPARITY, RAY
from training.config import DecodedConfig
from training.losses import depth_loss, ms_ssim_loss, pointmap_loss
from training.objective import Batch

# A wild raymap must not overflow: log origins of 10 are camera centres 2,000 units away.
_MAX_LOG_ORIGIN = 10.0


@dataclass(frozen=True)
class Decoded:
    """B clips of T frames as decoders give them, differentiable."""

    rgb: Tensor
    """(B, T, 3, H, W) about [-1, 1], not clipped."""
    disparity: Tensor
    """(B, T, H, W) unit / depth, 0 for the sky."""
    direction: Tensor
    """(B, T, 3, h, w) rays in the axes of the first camera, camera z = 1; H and W are multiples of h and w."""
    origin: Tensor
    """(B, T, 3, h, w) camera centres in units, in the first camera's frame."""


def disparity_from_video(video: Tensor, headroom: float) -> Tensor:
    """Return unit / depth, any shape, of stored disparity in [-1, 1]; 0 (infinitely far) below -1.

    Above 1 it goes on rising: decoded values that clip would get no gradient. AETHER's headroom is 1.
    """
    return headroom * relu((video + 1) / 2).square()


def rays_from_raymap(raymap: Tensor, origin_gain: float) -> tuple[Tensor, Tensor]:
    """Return directions and origins in units, (B, T, 3, h, w) each, of raymaps (B, T, 6, h, w), cell by cell."""
    log_origin = raymap[:, :, 3:].clamp(-_MAX_LOG_ORIGIN, _MAX_LOG_ORIGIN)
    return raymap[:, :, :3], signed_expm1(log_origin) / origin_gain


def level_weight(level: Tensor, power: float) -> Tensor:
    """Return how much items of noise levels (B,) count: (1 - level)^power.

    Args:
        level: The noise's part in the mix (1 - level) * clean + level * noise; of AetherV1 `Levels.share`.
        power: `DecodedConfig.level_power`.
    """
    return (1 - level).clamp(0, 1) ** power


def decode_window(parts: Components, latents: Tensor, *, bf16: bool = False) -> Decoded:
    """Decode windows of clips of our own layout. Gradients flow into the latents.

    Args:
        parts: Autoencoders and settings; the autoencoders are frozen.
        latents: (B, N, TARGET_CHANNELS, h, w) normalised; the first slot is a picture at rest.
        bf16: Decode in bfloat16.

    Returns:
        T = 4 N - 3 frames, float32: of the four equal frames of the picture at rest the last, as `OwnClips` reads it.

    Raises:
        ValueError: Weights of a decoder would get gradients.
    """
    settings, frames = parts.settings, FRAMES_PER_LATENT * latents.shape[1] - (FRAMES_PER_LATENT - 1)
    latents = latents.float()
    with torch.autocast(latents.device.type, torch.bfloat16, enabled=bf16):
        rgb = _decode(parts.vae, latents[:, :, COLOUR])[:, -frames:]
        stored = _decode(parts.disparity_vae, latents[:, :, DISPARITY])[:, -frames:]
    raymap = unpack_raymap(latents[:, :, RAY], "consecutive", frames)
    disparity = disparity_from_video(stored.float().mean(2), settings.headroom)
    return Decoded(rgb.float(), disparity, *rays_from_raymap(raymap, settings.origin_gain))


def _decode(vae: Any, latents: Tensor) -> Tensor:
    """Decode normalised latents (B, N, 16, h, w) to (B, 4 N, C, H, W)."""
    if any(p.requires_grad for p in vae.parameters()):
        raise ValueError("the autoencoders' weights must be frozen in stage 2; call Components.to(device) first.")
    return vae.decode(vae.denormalise(latents.transpose(1, 2))).sample.transpose(1, 2)


def decoded_loss(
    parts: Components, batch: Batch, clean: Tensor, level: Tensor, config: DecodedConfig, *, bf16: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss on decoded clips of our own layout.

    The truth is the true latents, decoded: so the autoencoder's own error, which no latents could undo, does not
    count. All pixels count in disparity, where sky and unknown depth are 0 as they are in use. The share of the items
    with the largest weights is decoded, always the same number of them; no draw is made.

    Args:
        parts: Frozen autoencoders and settings.
        batch: Clip windows, all of whose slots are dreamed.
        clean: (B, N, TARGET_CHANNELS, h, w) the network's clean latents.
        level: (B,) noise levels at which they were found.
        config: Weights.
        bf16: Decode in bfloat16; the losses are float32 anyway.

    Returns:
        The loss, and its parts for the log, see `stage2_loss`.

    Raises:
        ValueError: The windows are not of clips, or weights of a decoder would get gradients.
    """
    if batch.window.history or clean.shape != batch.target.shape:
        raise ValueError(
            f"decoded losses are for clip windows with clean latents {tuple(batch.target.shape)}, got "
            f"{tuple(clean.shape)} and {batch.window.history} slots of history; leave windows of env steps out."
        )
    weight = level_weight(level, config.level_power)
    weight, chosen = weight.topk(max(1, round(config.share * len(weight))))
    with torch.no_grad():
        truth = decode_window(parts, batch.target[chosen], bf16=bf16)
    return stage2_loss(decode_window(parts, clean[chosen], bf16=bf16), truth, weight, config)


def stage2_loss(
    prediction: Decoded, truth: Decoded, weight: Tensor, config: DecodedConfig, valid: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted losses of colour, disparity and points of decoded clips of any layout.

    For AetherV1: disparity from the decoder's three channels by `disparity_from_video(mean, 1.0)`, rays by
    `rays_from_raymap(unpack_raymap(latents, "strided", T), s_ray)`.

    Args:
        prediction: What the network's clean latents decode to.
        truth: What they should; without gradient.
        weight: (B,) of each item, from `level_weight`.
        config: Weights.
        valid: (B, T, H, W) bool, where depth is known; None: everywhere.

    Returns:
        The loss, a mean over the B items of weight times loss; and the unweighted means colour, depth and points.

    Raises:
        ValueError: Shapes do not fit.
    """
    valid = torch.ones_like(truth.disparity, dtype=torch.bool) if valid is None else valid
    # Under autocast the variances of MS-SSIM, differences of squares, would be taken in half precision.
    with torch.autocast(weight.device.type, enabled=False):
        losses = {
            "colour": (config.colour_weight, ms_ssim_loss(prediction.rgb, truth.rgb)),
            "depth": (
                config.depth_weight,
                depth_loss(
                    prediction.disparity,
                    truth.disparity,
                    valid,
                    norm=config.norm,
                    gradient_weight=config.gradient_weight,
                    scales=config.gradient_scales,
                ),
            ),
            "points": (config.points_weight, _points_loss(prediction, truth, valid, config.far)),
        }
        loss = sum((share * (weight * per_item).mean() for share, per_item in losses.values()), weight.new_zeros(()))
    return loss, {f"decoded_{name}": per_item.detach().mean() for name, (_, per_item) in losses.items()}


def cell_depth(disparity: Tensor, counts: Tensor, rows: int, columns: int, far: float) -> Tensor:
    """Return the depth (B, T, rows, columns) of cells of pixels: that of the mean disparity, which is exact for planes.

    Args:
        disparity: (B, T, H, W).
        counts: (B, T, H, W) bool, the pixels that count; cells without any get `far`.
        rows: A divisor of H.
        columns: A divisor of W.
        far: Largest depth returned.
    """
    size = (rows, columns)
    share = adaptive_avg_pool2d(counts.to(disparity), size)
    mean = adaptive_avg_pool2d(torch.where(counts, disparity, 0.0), size) / share.clamp_min(1e-6)
    return 1 / mean.clamp_min(1 / far)


def points(clip: Decoded, depth: Tensor) -> Tensor:
    """Return points (B, T, 3, h, w) in units, in the first camera's frame: at depths (B, T, h, w) on the rays."""
    return depth[:, :, None] * clip.direction + clip.origin


def _points_loss(prediction: Decoded, truth: Decoded, valid: Tensor, far: float) -> Tensor:
    """Return the loss (B,) of points, one for each ray, of pixels nearer than `far`; gradients to the rays only."""
    near = valid & (torch.where(valid, truth.disparity, 0.0) > 1 / far)
    rows, columns = truth.direction.shape[-2:]
    if near.shape[-2] % rows or near.shape[-1] % columns:
        raise ValueError(f"pictures {tuple(near.shape[-2:])} must be multiples of the raymaps {(rows, columns)}.")
    depth, true_depth = (cell_depth(c.disparity.detach(), near, rows, columns, far) for c in (prediction, truth))
    known = adaptive_avg_pool2d(near.to(depth), (rows, columns)) > 0
    return pointmap_loss(points(prediction, depth), points(truth, true_depth), true_depth, known)
