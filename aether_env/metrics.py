"""How far a dream is from the truth: pictures, depth and poses. Shape letters and units: see conventions.

The public protocol of video depth is in `depth_protocol`, errors of whole paths are in `path_metrics`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad

from aether_env.camera import check_poses, rotation_distance
from aether_env.path_metrics import direction_angle

_LUMA = (0.299, 0.587, 0.114)
_WINDOW, _SIGMA = 11, 1.5
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_SCALE_ROUNDS, _SCALE_SHIFT_ROUNDS = 10, 300
_FLATTEST = 4 / 255


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
    _check_window(prediction, target, mask)
    luminance, contrast = _similarity_maps(prediction.float(), target.float())
    return _masked_mean((luminance * contrast).mean(1), mask)


def ms_ssim(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the multi-scale structural similarity (Wang, Simoncelli and Bovik 2003, eq. 7).

    Each scale halves the picture. As many of the five scales are taken as leave the window its 11 pixels (five from
    176 pixels on the shorter side, three at 64 x 96, one below 22), their weights renormalised to sum 1: values of
    different picture sizes do not compare. At all but the coarsest scale only windows inside the picture count.

    Args:
        prediction: (B, 3, H, W) in [0, 1], H, W >= 11.
        target: (B, 3, H, W) in [0, 1].
        mask: (B, H, W) bool, the windows' centres that count, at coarser scales by their share of counted pixels; None
            counts all.

    Returns:
        (B,) in [0, 1]; NaN where a scale has nothing that counts.

    Raises:
        ValueError: Shapes differ, or a picture is smaller than the window.
    """
    _check_window(prediction, target, mask)
    x, y = prediction.float(), target.float()
    share = None if mask is None else mask.float()
    num_scales = min(len(_SCALE_WEIGHTS), (min(x.shape[-2:]) // _WINDOW).bit_length())
    weights = [weight / sum(_SCALE_WEIGHTS[:num_scales]) for weight in _SCALE_WEIGHTS[:num_scales]]
    rim = slice(_WINDOW // 2, -(_WINDOW // 2))
    result = x.new_ones(len(x))
    for weight in weights[:-1]:
        contrast = _similarity_maps(x, y)[1].mean(1)[:, rim, rim]
        mean = _masked_mean(contrast, None if share is None else share[:, rim, rim])
        result = result * mean.clamp_min(0) ** weight
        x, y = avg_pool2d(x, 2), avg_pool2d(y, 2)
        share = None if share is None else avg_pool2d(share, 2)
    luminance, contrast = _similarity_maps(x, y)
    return result * _masked_mean((luminance * contrast).mean(1), share).clamp_min(0) ** weights[-1]


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


def patch_kernel_distance(
    prediction: Tensor, target: Tensor, *, num_patches: int = 2000, patch_size: int = 8, seed: int = 0
) -> float:
    """Return how differently two sets of pictures look up close: the squared MMD of small patches.

    The kernel and the unbiased estimate are those of KID (Binkowski 2018), (x . y / d + 1)^3, on pixels instead of
    network features. Each patch loses its mean colour and is divided by its own contrast (that of patches flatter than
    4 grey levels by 4), because on bare pixels the kernel sees little but brightness. So this judges texture and
    sharpness, not colour, exposure or content; the two sets need no pairs.

    Args:
        prediction: (N, 3, H, W) in [0, 1].
        target: (M, 3, H', W') in [0, 1].
        num_patches: Drawn from each set, at least 2. Of photographs at 64 x 96, 2,000 leave a standard deviation of
            about 0.001, where a blur of sigma 1 pixel costs 0.03.
        patch_size: Pixels on a side, at least 2.
        seed: Of the draw, the same on every device.

    Returns:
        The distance; about 0, and sometimes below, for sets that look alike.

    Raises:
        ValueError: Wrong shapes, or patches that are too few, too small or larger than a picture.
    """
    if num_patches < 2 or patch_size < 2:
        raise ValueError(f"num_patches and patch_size must be at least 2, got {num_patches} and {patch_size}.")
    generator = torch.Generator().manual_seed(seed)
    x = _draw_patches("prediction", prediction, num_patches, patch_size, generator)
    y = _draw_patches("target", target, num_patches, patch_size, generator)
    of_x, of_y, between = (((a @ b.mT) / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = sum(kernel.sum() - kernel.trace() for kernel in (of_x, of_y)) / (num_patches * (num_patches - 1))
    return float(within - 2 * between.mean())


def depth_errors(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor,
    align: Literal["scale", "scale_shift"] | None = "scale",
    *,
    clip: float | None = None,
) -> DepthErrors:
    """Return errors of depth, aligned once for each sequence.

    Args:
        prediction: (B, ...) depth; one sequence an item.
        target: (B, ...) depth.
        valid: (B, ...) bool; only finite, positive targets and finite predictions count.
        align: "scale": the factor of small absolute error that 10 Weiszfeld rounds from the ratio of means reach, as
            the public evaluation; "scale_shift": factor and offset of least absolute error; None compares as it is.
        clip: The aligned prediction is cut to at most this; None leaves it.

    Returns:
        The errors, NaN where nothing is valid.

    Raises:
        ValueError: Shapes differ, or the alignment is unknown.
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
    p = p.clamp_max(clip) if clip is not None else p
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
    angle = direction_angle(found[..., :3, 3], true[..., :3, 3], min_length=min_translation)
    return rotation_distance(found, true), angle


def _l1_scale(p: Tensor, t: Tensor, usable: Tensor) -> Tensor:
    """Return (B, 1), a factor with a small sum of |factor * p - t|.

    Ten rounds stop some percent short of the least sum, so where they start is part of the public evaluation.
    """
    weight = usable.to(p)
    scale = (t * weight).sum(1, keepdim=True) / (p * weight).sum(1, keepdim=True).clamp_min(1e-12)
    for _ in range(_SCALE_ROUNDS):
        weight = usable / ((scale * p - t).abs() + 1e-8)
        scale = (p * t * weight).sum(1, keepdim=True) / (p * p * weight).sum(1, keepdim=True).clamp_min(1e-12)
    return scale


def _l1_scale_shift(p: Tensor, t: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
    """Return factor and offset, each (B, 1), with the least sum of |factor * p + offset - t| (within about 1e-5)."""
    weight = usable.to(p)
    scale, shift = torch.ones_like(p[:, :1]), torch.zeros_like(p[:, :1])
    error, settled = torch.full_like(scale, torch.inf), torch.zeros_like(scale, dtype=torch.bool)
    for _ in range(_SCALE_SHIFT_ROUNDS):
        total = weight.sum(1, keepdim=True).clamp_min(1e-12)
        mean_p, mean_t = ((a * weight).sum(1, keepdim=True) / total for a in (p, t))
        spread = ((p - mean_p).square() * weight).sum(1, keepdim=True)
        together = ((p - mean_p) * (t - mean_t) * weight).sum(1, keepdim=True)
        better = torch.where(spread > 1e-12 * total, together / spread.clamp_min(1e-300), 0.0)
        scale = torch.where(settled, scale, better)
        shift = torch.where(settled, shift, mean_t - scale * mean_p)
        residual = (scale * p + shift - t).abs()
        before, error = error, (residual * usable).sum(1, keepdim=True)
        settled = settled | (error >= (1 - 1e-7) * before)
        if settled.all():
            break
        weight = usable / (residual + 1e-6)
    return scale, shift


def _draw_patches(name: str, pictures: Tensor, num: int, size: int, generator: torch.Generator) -> Tensor:
    """Return (num, 3 * size^2) float64: patches drawn with replacement, without mean colour and contrast."""
    if pictures.ndim != 4 or pictures.shape[1] != 3 or len(pictures) == 0 or min(pictures.shape[-2:]) < size:
        shape = tuple(pictures.shape)
        raise ValueError(f"{name} must have shape (N, 3, H, W) with N >= 1 and H, W >= {size}, got {shape}.")
    count, _, height, width = pictures.shape
    item, row, column = (
        torch.randint(limit, (num,), generator=generator).to(pictures.device)
        for limit in (count, height - size + 1, width - size + 1)
    )
    patches = pictures.unfold(2, size, 1).unfold(3, size, 1)[item, :, row, column].double()
    patches = patches - patches.mean((-2, -1), keepdim=True)
    contrast = patches.square().mean((1, 2, 3), keepdim=True).sqrt()
    return (patches / contrast.clamp_min(_FLATTEST)).flatten(1)


def _blur(picture: Tensor) -> Tensor:
    """Return (B, 3, H, W), each channel under the gaussian window, mirrored beyond the rim."""
    mirrored = pad(picture, (_WINDOW // 2,) * 4, mode="reflect")
    at = torch.arange(_WINDOW, dtype=picture.dtype, device=picture.device) - _WINDOW // 2
    window = (-(at**2) / (2 * _SIGMA**2)).exp()
    kernel = (window / window.sum()).expand(3, 1, 1, -1)
    return conv2d(conv2d(mirrored, kernel, groups=3), kernel.mT, groups=3)


def _similarity_maps(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return luminance and contrast-structure, each (B, 3, H, W), whose product is the SSIM of the window there."""
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    contrast = (2 * covariance + c2) / (variance_x.clamp_min(0) + variance_y.clamp_min(0) + c2)
    return (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1), contrast


def _masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return (B,) means over all but the first dimension, weighted by a bool or float mask; NaN where it is empty."""
    if mask is None:
        return values.flatten(1).mean(1)
    weight = mask.to(values).flatten(1)
    return torch.where(weight > 0, weight * values.flatten(1), 0.0).sum(1) / weight.sum(1)


def _check_window(prediction: Tensor, target: Tensor, mask: Tensor | None) -> None:
    _check_pictures(prediction, target, mask)
    size = tuple(prediction.shape[-2:])
    if min(size) < _WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {_WINDOW} x {_WINDOW}, got {size[0]} x {size[1]}.")


def _check_pictures(prediction: Tensor, target: Tensor, mask: Tensor | None) -> None:
    shape = prediction.shape
    if prediction.ndim != 4 or shape[1] != 3 or target.shape != shape:
        raise ValueError(
            f"prediction and target must both be (B, 3, H, W), got {tuple(shape)} and {tuple(target.shape)}."
        )
    if mask is not None and mask.shape != (shape[0], *shape[2:]):
        raise ValueError(f"mask must have shape {(shape[0], *shape[2:])}, got {tuple(mask.shape)}.")
