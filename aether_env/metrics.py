"""How far a dream is from the truth: pictures, depth and poses. Shape letters and units: see conventions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from aether_env.camera import check_poses, rotation_distance

_LUMA = (0.299, 0.587, 0.114)
_WINDOW, _SIGMA = 11, 1.5
_SCALE_ROUNDS, _SCALE_SHIFT_ROUNDS = 10, 50


@dataclass(frozen=True, kw_only=True, eq=False)
class DepthErrors:
    """Errors of B aligned depth sequences."""

    abs_rel: Tensor
    """(B,) mean of |prediction - target| / target."""
    delta125: Tensor
    """(B,) part of the pixels whose ratio is below 1.25."""


def psnr(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the peak signal-to-noise ratio in dB.

    Args:
        prediction: (B, 3, H, W) in [0, 1].
        target: (B, 3, H, W) in [0, 1].
        mask: (B, H, W) bool, the pixels that count; None counts all.

    Returns:
        (B,), at most 120 (equal pictures); NaN where the mask is empty.

    Raises:
        ValueError: Shapes differ.
    """
    _check_pictures(prediction, target, mask)
    error = (prediction.float() - target.float()).square().mean(1)
    return -10 * _masked_mean(error, mask).clamp_min(1e-12).log10()


def ssim(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the structural similarity (Wang 2004: gaussian window of 11 pixels, sigma 1.5).

    Args:
        prediction: (B, 3, H, W) in [0, 1], H, W >= 11.
        target: (B, 3, H, W) in [0, 1].
        mask: (B, H, W) bool, the windows' centres that count; None counts all. Pictures are mirrored beyond their rim.

    Returns:
        (B,); NaN where the mask is empty.

    Raises:
        ValueError: Shapes differ, or a picture is smaller than the window.
    """
    _check_pictures(prediction, target, mask)
    if min(prediction.shape[-2:]) < _WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {_WINDOW} x {_WINDOW}, got {tuple(prediction.shape[-2:])}.")
    x, y = prediction.float(), target.float()
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    alike = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    index = alike / ((mean_x**2 + mean_y**2 + c1) * (variance_x.clamp_min(0) + variance_y.clamp_min(0) + c2))
    return _masked_mean(index.mean(1), mask)


def gradient_energy(rgb: Tensor) -> Tensor:
    """Return how sharp pictures are: the mean squared finite difference of luma, right and down.

    Args:
        rgb: (B, 3, H, W) in [0, 1], H, W >= 2.

    Returns:
        (B,).

    Raises:
        ValueError: Wrong shape.
    """
    if rgb.ndim != 4 or rgb.shape[1] != 3 or min(rgb.shape[-2:]) < 2:
        raise ValueError(f"rgb must have shape (B, 3, H, W) with H, W >= 2, got {tuple(rgb.shape)}.")
    luma = sum(weight * rgb[:, channel].float() for channel, weight in enumerate(_LUMA))
    assert isinstance(luma, Tensor)
    return luma.diff(dim=-1).square().mean((-2, -1)) + luma.diff(dim=-2).square().mean((-2, -1))


def depth_errors(
    prediction: Tensor, target: Tensor, valid: Tensor, align: Literal["scale", "scale_shift"] | None = "scale"
) -> DepthErrors:
    """Return errors of depth, aligned once for each sequence.

    Args:
        prediction: (B, ...) depth; one sequence an item.
        target: (B, ...) depth.
        valid: (B, ...) bool; only finite, positive targets and finite predictions count.
        align: "scale": the factor of least absolute error by 10 Weiszfeld rounds from least squares, as the paper's
            evaluation; "scale_shift": factor and offset of least absolute error; None compares as it is.

    Returns:
        The errors, NaN where nothing is valid.

    Raises:
        ValueError: Shapes differ or the alignment is unknown.
    """
    if prediction.shape != target.shape or valid.shape != target.shape or target.ndim < 2:
        shapes = tuple(prediction.shape), tuple(target.shape), tuple(valid.shape)
        raise ValueError(f"prediction, target and valid must have one shape (B, ...), got {shapes}.")
    usable = (valid.bool() & torch.isfinite(target) & (target > 0) & torch.isfinite(prediction)).flatten(1)
    # float64: sums over a long video in float32 lose the digits that Abs Rel is reported with.
    p = torch.where(usable, prediction.flatten(1), 1.0).double()
    t = torch.where(usable, target.flatten(1), 1.0).double()
    if align == "scale":
        p = _l1_scale(p, t, usable) * p
    elif align == "scale_shift":
        scale, shift = _l1_scale_shift(p, t, usable)
        p = scale * p + shift
    elif align is not None:
        raise ValueError(f'align must be "scale", "scale_shift" or None, got {align!r}.')
    ratio = p.clamp_min(1e-6) / t
    within = torch.maximum(ratio, 1 / ratio) < 1.25
    return DepthErrors(abs_rel=_masked_mean((p - t).abs() / t, usable), delta125=_masked_mean(within.double(), usable))


def pose_errors(
    world_from_camera: np.ndarray, target: np.ndarray, *, min_translation: float = 1e-6
) -> tuple[np.ndarray, np.ndarray]:
    """Return angles between poses and true ones, both relative to the same camera.

    Args:
        world_from_camera: (..., 4, 4).
        target: (..., 4, 4).
        min_translation: Shorter translations have no direction.

    Returns:
        Rotation error (...) and error of the translation's direction (...), radians; the latter is NaN where the true
        translation is shorter than `min_translation` and pi / 2 where only the found one is.

    Raises:
        ValueError: Poses that are not rigid or shapes that differ.
    """
    found, true = check_poses("world_from_camera", world_from_camera), check_poses("target", target)
    if found.shape != true.shape:
        raise ValueError(f"world_from_camera and target must have one shape, got {found.shape} and {true.shape}.")
    a, b = found[..., :3, 3], true[..., :3, 3]
    sine = np.linalg.norm(np.cross(a, b), axis=-1)
    angle = np.arctan2(sine, (a * b).sum(-1))
    angle = np.where(np.linalg.norm(a, axis=-1) < min_translation, np.pi / 2, angle)
    angle = np.where(np.linalg.norm(b, axis=-1) < min_translation, np.nan, angle)
    return rotation_distance(found, true), angle


def _l1_scale(p: Tensor, t: Tensor, usable: Tensor) -> Tensor:
    """Return (B, 1), the factor with the least sum of |factor * p - t|."""
    weight = usable.to(p)
    scale = (p * t * weight).sum(1, keepdim=True) / (p * p * weight).sum(1, keepdim=True).clamp_min(1e-12)
    for _ in range(_SCALE_ROUNDS):
        weight = usable / ((scale * p - t).abs() + 1e-8)
        scale = (p * t * weight).sum(1, keepdim=True) / (p * p * weight).sum(1, keepdim=True).clamp_min(1e-12)
    return scale


def _l1_scale_shift(p: Tensor, t: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
    """Return factor and offset, each (B, 1), with the least sum of |factor * p + offset - t|."""
    weight = usable.to(p)
    scale, shift = torch.ones_like(p[:, :1]), torch.zeros_like(p[:, :1])
    for _ in range(1 + _SCALE_SHIFT_ROUNDS):
        total = weight.sum(1, keepdim=True).clamp_min(1e-12)
        mean_p, mean_t = ((a * weight).sum(1, keepdim=True) / total for a in (p, t))
        spread = ((p - mean_p).square() * weight).sum(1, keepdim=True)
        together = ((p - mean_p) * (t - mean_t) * weight).sum(1, keepdim=True)
        scale = torch.where(spread > 1e-12 * total, together / spread.clamp_min(1e-300), 0.0)
        shift = mean_t - scale * mean_p
        weight = usable / ((scale * p + shift - t).abs() + 1e-6)
    return scale, shift


def _blur(picture: Tensor) -> Tensor:
    """Return (B, 3, H, W), each channel under the gaussian window, mirrored beyond the rim."""
    mirrored = pad(picture, (_WINDOW // 2,) * 4, mode="reflect")
    at = torch.arange(_WINDOW, dtype=picture.dtype, device=picture.device) - _WINDOW // 2
    window = (-(at**2) / (2 * _SIGMA**2)).exp()
    kernel = (window / window.sum()).expand(3, 1, 1, -1)
    return conv2d(conv2d(mirrored, kernel, groups=3), kernel.mT, groups=3)


def _masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return (B,) means over all but the first dimension, NaN where the mask is empty."""
    if mask is None:
        return values.flatten(1).mean(1)
    mask = mask.bool().flatten(1)
    return torch.where(mask, values.flatten(1), 0.0).sum(1) / mask.sum(1)


def _check_pictures(prediction: Tensor, target: Tensor, mask: Tensor | None) -> None:
    shape = prediction.shape
    if prediction.ndim != 4 or shape[1] != 3 or target.shape != shape:
        raise ValueError(
            f"prediction and target must both be (B, 3, H, W), got {tuple(shape)} and {tuple(target.shape)}."
        )
    if mask is not None and mask.shape != (shape[0], *shape[2:]):
        raise ValueError(f"mask must have shape {(shape[0], *shape[2:])}, got {tuple(mask.shape)}.")
