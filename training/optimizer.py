"""The optimizers of a run, their schedule, steps that can be left out, and the averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.config import OptimizerConfig
from training.muon import Muon

FIRST_SHARE, LAST_SHARE = 1 / 25, 1 / 250_000
"""Of the peak rate, at the ends of "onecycle": PyTorch's div_factor 25 and final_div_factor 10,000."""


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Return AdamW, and Muon for the matrices of attention and feed-forward where `muon_lr` is not 0.

    Their state is there from the beginning, so that a checkpoint can be read into it.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inside = config.muon_lr > 0 and parameter.ndim == 2 and (".attn1." in name or ".ff." in name)
        (matrices if inside else rest).append(parameter)
    # Fused AdamW is the one that leaves a step out by a flag on the device.
    adamw = torch.optim.AdamW(rest, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)
    optimizers: list[torch.optim.Optimizer] = [adamw]
    begin_adamw(adamw)
    if matrices:
        optimizers.append(Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def begin_adamw(optimizer: torch.optim.Optimizer) -> None:
    """Make the state that AdamW would make at its first step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device if group["fused"] else "cpu"),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def rates_as_tensors(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Hold the rates on the weights' device, where a recorded step reads them."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=group["params"][0].device)
            if isinstance(optimizer, torch.optim.AdamW):
                group["capturable"] = True


def set_rates(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> None:
    """Set all rates to a share of their peaks."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            rate = group["peak_lr"] * factor
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def rate_factor(progress: float, step: int, config: OptimizerConfig) -> float:
    """Return the share of the peak rate.

    Args:
        progress: Share of the run that is done, 0 to 1.
        step: Steps done; the warm-up of "trapezoid" counts them.
        config: `schedule` and its shares.
    """
    if config.schedule == "trapezoid":
        warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
        return warm * min(1.0, max(0.0, 1.0 - progress) / config.decay_share)
    rise = config.rise_share
    if progress < rise:
        return _cosine(FIRST_SHARE, 1.0, progress / rise)
    return _cosine(1.0, LAST_SHARE, min(1.0, (progress - rise) / max(1.0 - rise, 1e-9)))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


class Kept:
    """Copies of tensors, to put back where a flag on the device says so: the host need not know, so it does not wait.

    Args:
        tensors: What a step is going to change in place; all on one device.
    """

    def __init__(self, tensors: Iterable[Tensor]):
        self.tensors = list(tensors)
        self.copies = [tensor.detach().clone() for tensor in self.tensors]

    @torch.no_grad()
    def put_back(self, bad: Tensor) -> None:
        """Undo all changes, bit by bit, if `bad` (0-dim, 0 or 1) is 1."""
        for tensor, copy in zip(self.tensors, self.copies, strict=True):
            tensor.copy_(torch.where(bad > 0, copy, tensor))


def kept_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> Kept:
    """Keep a network's weights and buffers and its optimizer's state, but for step counters that the host holds."""
    states = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    tensors = [*module.state_dict().values(), *states]
    return Kept([tensor for tensor in tensors if tensor.device == tensors[0].device])


def step_unless(bad: Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Let the optimizers step; if `bad` (0-dim float, 0 or 1) is 1, weights and state stay as they are.

    The flag stays on the device; the optimizers take it as `torch.amp.GradScaler` hands it over.
    """
    for optimizer in optimizers:
        flagged: Any = optimizer
        flagged.found_inf = bad
        optimizer.step()
        del flagged.found_inf


class AveragedWeights:
    """Exponential moving average of a model's parameters, with a short memory at the start.

    Args:
        parameters: Of the model.
        decay: Of the average, when it is old.
    """

    def __init__(self, parameters: Iterable[Tensor], decay: float):
        self.decay = decay
        self.average = [p.detach().clone() for p in parameters]
        self.head_start = 0
        """Steps that it was older than the run when the run began."""

    def share(self, step: int) -> float:
        """Return how much of the weights the average takes over after so many steps of the run."""
        age = step + self.head_start
        return 1.0 - min(self.decay, (1 + age) / (10 + age))

    @torch.no_grad()
    def update(self, parameters: Iterable[Tensor], share: float | Tensor, bad: Tensor) -> None:
        """Take over a share of the weights, unless `bad` (0-dim float, 0 or 1) is 1."""
        difference = torch._foreach_sub([p.detach() for p in parameters], self.average)
        torch._foreach_mul_(difference, share * (1.0 - bad))
        torch._foreach_add_(self.average, difference)

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[Tensor]) -> None:
        """Write the average into the parameters."""
        for parameter, average in zip(parameters, self.average, strict=True):
            parameter.copy_(average)

    @torch.no_grad()
    def swap_with(self, parameters: Iterable[Tensor]) -> None:
        """Exchange the average and the parameters; a second call undoes the first, bit by bit."""
        for parameter, average in zip(parameters, self.average, strict=True):
            before = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(before)
