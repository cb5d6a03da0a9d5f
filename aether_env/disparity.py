"""Depth and the model's picture of it: sqrt(min(unit / (headroom * depth), 1)), 0 where unknown or far away.

Ours: the unit is a near quantile of frame 0's depth and things may come `headroom` times nearer before they clip.
AETHER's is the case unit = nearest depth of the clip, headroom = 1. Units and shape letters: see conventions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from aether_env.conventions import FAR_DEPTH
from aether_env.raymap import expand_unit

HEADROOM = 4.0
"""How many times nearer than the unit a thing may come before its disparity clips."""

AETHERV1_MIN_DISPARITY = 1e-3
"""Least disparity, relative to the nearest, that the published code turns into depth."""


def unit_from_depth(depth: Tensor, valid: Tensor, quantile: float = 0.1) -> Tensor:
    """Return the unit of length of each picture: a near quantile of its valid depth.

    Args:
        depth: (..., H, W) metres.
        valid: (..., H, W) bool; depth that is not finite and positive never counts.
        quantile: 0 is the nearest pixel, 1 the farthest; the pixel at or below it is taken, none is interpolated.

    Returns:
        (...) float32, 1.0 where nothing is valid.

    Raises:
        ValueError: Shapes differ or the quantile is outside [0, 1].
    """
    _check_same_shape("valid", valid, depth)
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile must be in [0, 1], got {quantile}.")
    usable = _usable(depth, valid).flatten(-2)
    ordered = torch.where(usable, depth.float().flatten(-2), torch.inf).sort(dim=-1).values
    count = usable.sum(-1, keepdim=True)
    index = ((count - 1).clamp_min(0) * quantile).floor().long()
    unit = ordered.gather(-1, index).squeeze(-1)
    return torch.where(count.squeeze(-1) > 0, unit, 1.0)


def encode_disparity(depth: Tensor, valid: Tensor, unit: Tensor | float, headroom: float = HEADROOM) -> Tensor:
    """Return the stored value of each pixel, in [0, 1].

    Args:
        depth: (..., H, W) metres.
        valid: (..., H, W) bool; depth that is not finite and positive never counts.
        unit: Unit of length, a number or broadcast over the leading dimensions.
        headroom: See the module.

    Returns:
        (..., H, W), 0 where not valid.

    Raises:
        ValueError: Shapes differ, or unit or headroom is not positive.
    """
    _check_same_shape("valid", valid, depth)
    _check_headroom(headroom)
    usable = _usable(depth, valid)
    ratio = expand_unit(unit, depth) / (headroom * torch.where(usable, depth, 1.0))
    return torch.where(usable, ratio.clamp_max(1.0).sqrt(), 0.0)


def decode_disparity(
    stored: Tensor, unit: Tensor | float, headroom: float = HEADROOM, far: float = FAR_DEPTH
) -> Tensor:
    """Return depth from stored values: undoes `encode_disparity` up to clipping.

    Args:
        stored: (..., H, W); values outside [0, 1] are clipped first.
        unit: Unit of length, a number or broadcast over the leading dimensions.
        headroom: The one it was encoded with.
        far: Largest depth returned.

    Returns:
        (..., H, W) depth in (0, far].

    Raises:
        ValueError: Unit, headroom or far is not positive.
    """
    _check_headroom(headroom)
    if not far > 0:
        raise ValueError(f"far must be positive, got {far}.")
    unit = expand_unit(unit, stored)
    # Comparing disparities rather than depths keeps 1 / 0 out of the gradient.
    least = unit / (headroom * far)
    return (unit / (headroom * torch.maximum(stored.clamp(0.0, 1.0).square(), least))).clamp_max(far)


def decode_disparity_aetherv1(stored: Tensor, unit: Tensor | float = 1.0) -> Tensor:
    """Return depth as the published code does: unit / clip(stored^2, 1e-3, 1).

    Args:
        stored: (..., H, W) rooted disparity relative to the clip's nearest depth.
        unit: The clip's nearest depth, a number or broadcast over the leading dimensions.

    Returns:
        (..., H, W) depth between 1 and 1000 units.
    """
    return expand_unit(unit, stored) / stored.square().clamp(AETHERV1_MIN_DISPARITY, 1.0)


def fill_depth(depth: Tensor) -> Tensor:
    """Fill the holes of depth pictures from around them, in inverse depth.

    Args:
        depth: (B, H, W); not finite or <= 0 where unknown.

    Returns:
        (B, H, W): the depth where it is known; 0 where a picture knows nothing at all.
    """
    known = torch.isfinite(depth) & (depth > 0)
    inverse = push_pull(torch.where(known, depth, 1.0).reciprocal()[:, None], known)[:, 0]
    return torch.where(known, depth, torch.where(inverse > 0, inverse.clamp_min(1e-12).reciprocal(), 0.0))


def push_pull(picture: Tensor, known: Tensor) -> Tensor:
    """Fill holes from ever coarser averages of what is known (Gortler et al. 1996, section 3.4).

    Args:
        picture: (B, C, H, W); what is not known is not read.
        known: (B, H, W) bool.

    Returns:
        (B, C, H, W): the picture where known; zeros where a picture has nothing known at all.
    """
    weight = known[:, None].to(picture)
    return _push_pull(torch.where(known[:, None], picture, 0.0), weight)


def relative_scale(
    prediction: Tensor, target: Tensor, valid: Tensor, method: Literal["least_squares", "mean_ratio"] = "least_squares"
) -> Tensor:
    """Return the factor that brings `prediction` to the scale of `target` where two pieces overlap.

    Args:
        prediction: (..., T, H, W) disparity (or depth).
        target: (..., T, H, W) the same of the other piece.
        valid: (..., T, H, W) bool.
        method: "least_squares": sum(p * t) / sum(p * p), the public code's; "mean_ratio": mean of t / p, the paper's.

    Returns:
        (...), 1.0 where nothing is valid.

    Raises:
        ValueError: Shapes differ or the method is unknown.
    """
    _check_same_shape("target", target, prediction)
    _check_same_shape("valid", valid, prediction)
    usable = valid & torch.isfinite(target) & _usable(prediction, valid)
    p, t = torch.where(usable, prediction, 1.0), torch.where(usable, target, 0.0)
    axes = (-3, -2, -1)
    if method == "least_squares":
        above, below = (p * t * usable).sum(axes), (p.square() * usable).sum(axes)
    elif method == "mean_ratio":
        above, below = (t / p).sum(axes), usable.sum(axes).to(p)
    else:
        raise ValueError(f'method must be "least_squares" or "mean_ratio", got {method!r}.')
    return torch.where(below > 0, above / torch.where(below > 0, below, 1.0), 1.0)


def _usable(depth: Tensor, valid: Tensor) -> Tensor:
    return valid.bool() & torch.isfinite(depth) & (depth > 0)


def _check_same_shape(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.shape != like.shape or like.ndim < 2:
        raise ValueError(f"{name} must have the shape {tuple(like.shape)} (..., H, W), got {tuple(tensor.shape)}.")


def _check_headroom(headroom: float) -> None:
    if not headroom > 0:
        raise ValueError(f"headroom must be positive, got {headroom}.")


def _push_pull(picture: Tensor, weight: Tensor) -> Tensor:
    """Return the picture where its weight (B, 1, H, W) is 1, mixed with coarser levels where it is less."""
    height, width = picture.shape[-2:]
    if height * width == 1:
        return picture
    rim = (0, width % 2, 0, height % 2)
    total = avg_pool2d(pad(weight, rim), 2) * 4
    coarse = avg_pool2d(pad(picture * weight, rim), 2) * 4 / total.clamp_min(1e-12)
    coarse = _push_pull(coarse, total.clamp_max(1.0))
    fine = interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)[..., :height, :width]
    return weight * picture + (1 - weight) * fine
