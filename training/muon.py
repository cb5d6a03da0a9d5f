"""Muon, all matrices of one shape at a time: as torch.optim.Muon, with a fraction of its calls."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz iteration (Jordan et al. 2024, "Muon")."""
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, for weights that are matrices (Jordan et al. 2024).

    The same steps as torch.optim.Muon's, which takes a hundred small calls for every matrix. Like PyTorch's fused AdamW
    it takes its rate as a tensor and heeds a flag `found_inf` on the device, so that a CUDA graph can hold it.

    Args:
        params: Matrices.
        lr: Rate, a number or 0-dim; times sqrt(rows / columns) where there are more rows than columns.
        weight_decay: Decoupled weight decay.
        momentum: Nesterov's.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 0.02, weight_decay: float = 0.1, momentum: float = 0.95
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"params must be matrices, got one of shape {tuple(parameter.shape)}.")
                self.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step, unless `found_inf` (0-dim, 0 or 1), where it is set, is 1.

        Args:
            closure: Not supported.
        """
        if closure is not None:
            raise ValueError("closure must be None: the gradients are there already.")
        bad = getattr(self, "found_inf", None)
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for alike in shapes.values():
                self._step(alike, group, bad)

    def _step(self, parameters: list[nn.Parameter], group: dict[str, Any], bad: Tensor | None) -> None:
        """Step matrices of one shape."""
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        gradient, before = torch.stack([_gradient(p) for p in parameters]), torch.stack(buffers)
        momentum, rate, decay = group["momentum"], group["lr"], group["lr"] * group["weight_decay"]
        after = torch.lerp(before, gradient, 1 - momentum)
        if bad is not None:
            after = torch.where(bad > 0, before, after)
            gradient = torch.where(bad > 0, 0.0, gradient)
            rate, decay = rate * (1 - bad), decay * (1 - bad)
        torch._foreach_copy_(buffers, list(after.unbind()))
        rows, columns = parameters[0].shape
        update = orthogonal(torch.lerp(gradient, after, momentum)) * (rate * math.sqrt(max(1.0, rows / columns)))
        weights: list[Tensor] = list(parameters)
        torch._foreach_mul_(weights, 1 - decay)
        torch._foreach_sub_(weights, list(update.to(after.dtype).unbind()))


def orthogonal(matrices: Tensor) -> Tensor:
    """Return matrices (N, rows, columns), bfloat16, with the singular vectors of those given and values about 1."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
