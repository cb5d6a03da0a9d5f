"""The public protocol of video depth (MonST3R, CUT3R, AETHER): one alignment a sequence, sequences weighted by pixels.

results = [sequence_depth(1 / disparity, truth, truth > 0, SINTEL) for disparity, truth in sequences]

A table's row is the mean of the results that have valid pixels, weighted by `num_valid`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from aether_env.conventions import FAR_DEPTH
from aether_env.metrics import depth_errors

Alignment = Literal["scale", "scale_shift", "public_scale_shift"]

_ADAM_RATE, _ADAM_STEPS, _ADAM_TOLERANCE = 1e-4, 1000, 1e-6


@dataclass(frozen=True, kw_only=True)
class DepthProtocol:
    """What differs between the public data sets. Depth is in the truth's unit, metres."""

    max_depth: float | None
    """True depth from here on does not count; None counts all."""
    clip_after_alignment: float | None
    """The aligned prediction is cut to at most this; None leaves it."""
    far: float = FAR_DEPTH
    """The prediction is cut to [0, far] in its own unit before anything else."""


SINTEL = DepthProtocol(max_depth=70.0, clip_after_alignment=70.0)
BONN = DepthProtocol(max_depth=70.0, clip_after_alignment=None)
KITTI = DepthProtocol(max_depth=None, clip_after_alignment=None)


@dataclass(frozen=True, kw_only=True)
class SequenceDepth:
    """Errors of one sequence."""

    abs_rel: float
    """Mean of |prediction - target| / target; NaN where nothing is valid."""
    delta125: float
    """Part of the pixels whose ratio is below 1.25; NaN where nothing is valid."""
    num_valid: int
    """Pixels that count."""


@torch.inference_mode()
def sequence_depth(
    prediction: Tensor | np.ndarray,
    target: Tensor | np.ndarray,
    valid: Tensor | np.ndarray,
    protocol: DepthProtocol,
    align: Alignment | None = "scale",
) -> SequenceDepth:
    """Judge the depth of one video as the public evaluation does.

    Args:
        prediction: (T, h, w) depth in any unit; of a disparity video, 1 / disparity (infinite is far). Resized to the
            truth's size by cubic interpolation.
        target: (T, H, W) true depth.
        valid: (T, H, W) bool; only finite, positive targets count.
        protocol: `SINTEL`, `BONN`, `KITTI` or one of your own.
        align: "scale" and "scale_shift" as in `metrics.depth_errors`. "public_scale_shift" is for comparing with
            published tables of scale and shift: Adam on the sum of absolute errors, 1000 steps of 1e-4 from the ratio
            of medians. It cannot move factor or offset by more than about 0.1, so it often ends far from the optimum
            (in either direction of Abs Rel) that "scale_shift" finds. None compares as it is.

    Raises:
        ValueError: Shapes that do not fit, a prediction with NaN, or an unknown alignment.
    """
    p, t = torch.as_tensor(prediction), torch.as_tensor(target)
    usable = torch.as_tensor(valid, device=t.device).bool()
    if p.ndim != 3 or t.ndim != 3 or len(p) != len(t) or usable.shape != t.shape:
        shapes = tuple(p.shape), tuple(t.shape), tuple(usable.shape)
        raise ValueError(f"prediction (T, h, w), target (T, H, W) and valid (T, H, W) do not fit: {shapes}.")
    if p.isnan().any():
        raise ValueError(f"prediction must not be NaN, {int(p.isnan().sum())} pixels are; infinite depth is far.")
    p = p.to(t.device).float().clamp(0.0, protocol.far)
    if p.shape != t.shape:
        p = interpolate(p[:, None], t.shape[1:], mode="bicubic", align_corners=False)[:, 0]
    usable = usable & torch.isfinite(t) & (t > 0)
    if protocol.max_depth is not None:
        usable = usable & (t < protocol.max_depth)
    p, t = p[usable].double(), t[usable].double()
    if align == "public_scale_shift":
        scale, shift = _adam_scale_shift(p, t)
        p, align = scale * p + shift, None
    counts = torch.ones_like(t, dtype=torch.bool)
    errors = depth_errors(p[None], t[None], counts[None], align, clip=protocol.clip_after_alignment)
    return SequenceDepth(abs_rel=errors.abs_rel.item(), delta125=errors.delta125.item(), num_valid=len(t))


def _adam_scale_shift(p: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factor and offset (0-D) at which the public evaluation's descent stops, from pixels (N,)."""
    if len(t) == 0:
        return p.new_ones(()), p.new_zeros(())
    place = torch.stack([t.median() / p.median(), t.new_zeros(())])
    mean, square, before = torch.zeros_like(place), torch.zeros_like(place), float("inf")
    for step in range(1, _ADAM_STEPS + 1):
        residual = place[0] * p + place[1] - t
        sign, error = residual.sign(), residual.abs().sum().item()
        gradient = torch.stack([(sign * p).sum(), sign.sum()])
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        slope = mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        place = place - _ADAM_RATE * slope
        if abs(before - error) < _ADAM_TOLERANCE:
            break
        before = error
    return place[0], place[1]
