"""The optimizers of a run, their schedule, and the averaged weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from training.config import OptimizerConfig


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Return AdamW, and Muon for the matrices of attention and feed-forward where `muon_lr` is not 0."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = config.muon_lr > 0 and parameter.ndim == 2 and (".attn1." in name or ".ff." in name)
        (matrices if inside else rest).append(parameter)
    fused = rest[0].is_cuda
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=fused)
    ]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def rate_factor(progress: float, step: int, config: OptimizerConfig) -> float:
    """Return the share of the peak rate: linear warm-up, constant, linear decay to zero at progress 1."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return warm * min(1.0, max(0.0, 1.0 - progress) / config.decay_share)


class AveragedWeights:
    """Exponential moving average of a model's parameters, with a short memory at the start."""

    def __init__(self, parameters: Iterable[Tensor], decay: float):
        self.decay = decay
        self.average = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, parameters: Iterable[Tensor], step: int) -> None:
        """Take one step of the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [p.detach() for p in parameters], 1.0 - decay)

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[Tensor]) -> None:
        """Write the average into the parameters."""
        for parameter, average in zip(parameters, self.average, strict=True):
            parameter.copy_(average)
