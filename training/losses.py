"""Losses on decoded pictures, depth and points; those of stage 2 (AETHER section 3.3) are one number for each clip."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss, relu

from aether_env.metrics import ms_ssim

MAX_SCALE = 100.0
"""A prediction may be stretched at most so much: one that is flatter still would get gradients without bound."""


def edge_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute error of the differences between neighbouring pixels.

    Args:
        prediction: (..., H, W).
        target: (..., H, W).
    """
    rows = l1_loss(prediction.diff(dim=-2), target.diff(dim=-2))
    return rows + l1_loss(prediction.diff(dim=-1), target.diff(dim=-1))


def reconstruction_loss(prediction: Tensor, target: Tensor, edge_weight: float) -> Tensor:
    """Return L1 + 2 MSE + edge_weight * edge loss of pictures in [-1, 1]."""
    loss = l1_loss(prediction, target) + 2.0 * mse_loss(prediction, target)
    return loss + edge_weight * edge_loss(prediction, target)


def rgb_gradient_energy(picture: Tensor) -> Tensor:
    """Return the mean squared difference of neighbouring pixels of (..., H, W): blur lowers it, noise raises it.

    Every channel counts by itself; `metrics.gradient_energy` is that of luma.
    """
    return (picture.diff(dim=-2) ** 2).mean() + (picture.diff(dim=-1) ** 2).mean()


def critic_loss(real: Tensor, decoded: Tensor) -> Tensor:
    """Return the hinge loss of a discriminator from its logits of true and of decoded pictures."""
    return relu(1.0 - real).mean() + relu(1.0 + decoded).mean()


def ms_ssim_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return 1 - MS-SSIM, the mean over the frames of each clip: 0 where they are equal.

    As many of the five scales count as fit the picture, see `metrics.ms_ssim`: all five from 176 pixels on the shorter
    side, three at 64 x 96, one below 22. A frame that is the negative of its target at some scale has loss 1 and no
    gradient. Sums are float32 whatever the input.

    Args:
        prediction: (B, T, 3, H, W) about [-1, 1], H, W >= 11; not clipped, so what overshoots is pulled back.
        target: (B, T, 3, H, W).

    Returns:
        (B,) float32.

    Raises:
        ValueError: Shapes differ, or a picture is smaller than the window of 11 pixels.
    """
    if prediction.ndim != 5 or prediction.shape != target.shape:
        shapes = tuple(prediction.shape), tuple(target.shape)
        raise ValueError(f"prediction and target must both be (B, T, 3, H, W), got {shapes[0]} and {shapes[1]}.")
    # Contiguous: a GPU then sums its windows in float32, where channels-last ones would go through TF32.
    frames = [((video.flatten(0, 1) + 1) / 2).contiguous() for video in (prediction, target)]
    return 1 - ms_ssim(frames[0], frames[1]).unflatten(0, prediction.shape[:2]).mean(1)


def aligned(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return scale * prediction + shift, nearest to the target in the weighted least-squares sense.

    Minimises sum_i weight_i |scale * prediction_i + shift - target_i|^2 for each item: the closed form of MiDaS
    (Ranftl et al. 2020, eq. 4) in C dimensions, with one scale and C shifts. Gradients flow through both. The scale
    is kept in [0, MAX_SCALE]: a mirrored prediction is no good one, and is treated as a flat one, whose scale is 0.

    Args:
        prediction: (B, N, C).
        target: (B, N, C).
        weight: (B, N), at least 0; what has weight 0 is not read and may be NaN.

    Returns:
        (B, N, C); zeros where an item has no weight at all.
    """
    counts = (weight > 0)[..., None]
    prediction, target = (torch.where(counts, x, 0.0) for x in (prediction, target))
    tiny = torch.finfo(prediction.dtype).tiny
    share = (weight / weight.sum(1, keepdim=True).clamp_min(tiny))[..., None]
    mean_p, mean_t = ((share * x).sum(1, keepdim=True) for x in (prediction, target))
    p, t = prediction - mean_p, target - mean_t
    spread, together = ((share * p * x).sum((1, 2), keepdim=True) for x in (p, t))
    rounding = 8 * torch.finfo(prediction.dtype).eps
    flat = spread <= rounding**2 * mean_p.square().sum(2, keepdim=True) + tiny
    scale = torch.where(flat, 0.0, together / torch.where(flat, 1.0, spread)).clamp(0.0, MAX_SCALE)
    return scale * p + mean_t


def depth_loss(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor,
    *,
    norm: float = 1.0,
    gradient_weight: float = 0.5,
    scales: int = 4,
) -> Tensor:
    """Return the scale-and-shift-invariant loss of MiDaS (Ranftl et al. 2020, eqs. 4 to 7 and 11).

    With R = scale * prediction + shift - target, aligned once for the whole clip: the mean of |R|^norm, plus
    gradient_weight times the sum over scales of the mean of |R's difference to the right| + |to below|, at scale k on
    every 2^k-th row and column.

    Args:
        prediction: (B, T, H, W) disparity, because an unknown offset is one of disparity (not of depth or of roots).
        target: (B, T, H, W) disparity.
        valid: (B, T, H, W) bool, the pixels that count; the others are not read.
        norm: p, in [1, 2].
        gradient_weight: alpha.
        scales: How many; those that leave a single row or column add nothing there.

    Returns:
        (B,); 0 where nothing is valid. A flat target is matched by every prediction; a flat prediction by flat ones.

    Raises:
        ValueError: Shapes differ.
    """
    if prediction.ndim != 4 or not prediction.shape == target.shape == valid.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (prediction, target, valid))
        raise ValueError(f"prediction, target and valid must have one shape (B, T, H, W), got {shapes}.")
    p, t = (x.flatten(1)[..., None] for x in (prediction, target))
    matched = aligned(p, t, valid.flatten(1).to(prediction)).view_as(prediction)
    residual = torch.where(valid, matched - target, 0.0)
    loss = _mean(residual.abs() ** norm, valid)
    for step in (2**k for k in range(scales)):
        r, known = residual[..., ::step, ::step], valid[..., ::step, ::step]
        count = known.flatten(1).sum(1).clamp_min(1)
        right = (r.diff(dim=-1).abs() * (known[..., 1:] & known[..., :-1])).flatten(1).sum(1)
        below = (r.diff(dim=-2).abs() * (known[..., 1:, :] & known[..., :-1, :])).flatten(1).sum(1)
        loss = loss + gradient_weight * (right + below) / count
    return loss


def pointmap_loss(prediction: Tensor, target: Tensor, depth: Tensor, valid: Tensor) -> Tensor:
    """Return the scale-and-shift-invariant error of points, relative to their depth.

    Points are aligned once for the whole clip by one scale and a shift in space. The loss is the mean of
    |scale * prediction + shift - target|_1 / depth (as in MoGe, Wang et al. 2024); the alignment minimises the sum of
    the squares of the same relative errors, so its weights are 1 / depth^2.

    Args:
        prediction: (B, T, 3, h, w) points in one frame of reference, the first camera's.
        target: (B, T, 3, h, w).
        depth: (B, T, h, w) true depth of the points, positive where valid.
        valid: (B, T, h, w) bool, the points that count; the others are not read.

    Returns:
        (B,); 0 where nothing is valid.

    Raises:
        ValueError: Shapes differ.
    """
    batch, frames, *size = depth.shape
    points = (batch, frames, 3, *size)
    if not prediction.shape == target.shape == points or valid.shape != depth.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (prediction, target, depth, valid))
        raise ValueError(f"wanted points (B, T, 3, h, w) twice and (B, T, h, w) of depth and valid, got {shapes}.")
    nearness = torch.where(valid, 1 / torch.where(valid, depth, 1.0), 0.0).flatten(1)
    p, t = (x.movedim(2, -1).flatten(1, -2) for x in (prediction, target))
    error = (aligned(p, t, nearness.square()) - torch.where(valid.flatten(1)[..., None], t, 0.0)).abs().sum(-1)
    return _mean(error * nearness, valid)


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of what is valid in each item, (B,); 0 where nothing is."""
    valid = valid.flatten(1)
    return torch.where(valid, values.flatten(1), 0.0).sum(1) / valid.sum(1).clamp_min(1)
