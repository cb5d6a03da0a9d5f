"""The one file that knows how many processes there are. The network does not know."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """This process among the others."""

    rank: int
    world_size: int
    device: str


def join_processes(device: str) -> Processes:
    """Join the other processes that torchrun started; alone without torchrun.

    Args:
        device: "cpu" or "cuda"; under torchrun each process takes the GPU of its local rank.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Processes(rank=int(os.environ.get("RANK", "0")), world_size=world_size, device=device)


def leave_processes(processes: Processes) -> None:
    """Undo `join_processes`."""
    if processes.world_size > 1:
        dist.destroy_process_group()


def average_gradients(parameters: Iterable[nn.Parameter], processes: Processes) -> None:
    """Replace every gradient by its mean over the processes, in one exchange."""
    if processes.world_size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= processes.world_size
    parts = [part.view_as(g) for part, g in zip(flat.split([g.numel() for g in gradients]), gradients, strict=True)]
    torch._foreach_copy_(gradients, parts)


def average_number(value: float, processes: Processes) -> float:
    """Return the mean of a number over the processes."""
    if processes.world_size == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=processes.device)
    dist.all_reduce(tensor)
    return float(tensor) / processes.world_size


def average_tensor(value: Tensor, processes: Processes) -> Tensor:
    """Return the mean of a tensor over the processes."""
    if processes.world_size == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / processes.world_size
