"""The one file that knows how many processes there are. The network does not know."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

logger = logging.getLogger(__name__)

# Keys and values that a block keeps are views; nobody writes into them.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


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
    """Replace every gradient by its mean over the processes, in one exchange; FSDP has seen to sharded ones."""
    gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    if processes.world_size == 1 or not gradients:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= processes.world_size
    parts = [part.view_as(g) for part, g in zip(flat.split([g.numel() for g in gradients]), gradients, strict=True)]
    torch._foreach_copy_(gradients, parts)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients down to a norm of `max_norm`, where it is larger.

    Args:
        parameters: All of a model's, either all sharded or none.
        max_norm: Largest norm over all gradients.

    Returns:
        The norm before, the same number on every process: of the whole gradients, not of this process's shards.
    """
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def average_tensor(value: Tensor, processes: Processes) -> Tensor:
    """Return the mean of a tensor over the processes."""
    if processes.world_size == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / processes.world_size


def check_shards(shards: int, world_size: int, muon_lr: float = 0.0) -> None:
    """Refuse what cannot be sharded; costs nothing, so that a run can ask before it builds anything.

    Args:
        shards: Processes that share one copy of the weights; 1 gives every process its own.
        world_size: All processes.
        muon_lr: Of the optimizer's config.

    Raises:
        ValueError: `shards` does not divide `world_size`, or Muon is to step sharded matrices.
    """
    if shards < 1 or world_size % shards:
        possible = [n for n in range(1, world_size + 1) if world_size % n == 0]
        raise ValueError(f"shards must divide the {world_size} processes, got {shards}; use one of {possible}.")
    if shards > 1 and muon_lr > 0:
        raise ValueError(
            f"shards={shards} does not go with muon_lr={muon_lr}: Muon needs whole matrices; use muon_lr=0 or shards=1."
        )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    if local and local % shards:
        logger.warning("shards=%d does not divide the %d processes of a node: shards cross the network", shards, local)


def shard_model(
    model: nn.Module,
    processes: Processes,
    shards: int = 1,
    bf16: bool = False,
    activation_checkpointing: bool = False,
    compile: bool = False,
) -> nn.Module:
    """Spread a transformer over processes (FSDP2) and prepare its blocks. Autoencoders stay whole on every process.

    `shards` neighbours share one copy of weights, gradients and optimizer state; the groups of neighbours are replicas
    of each other (a hybrid mesh: `shards` = GPUs of a node keeps the large exchanges inside the node). The weights stay
    gathered between forward and backward, as in ZeRO-2: memory for them, in exchange for half of the gathering.

    Order: `CleanPrediction(model, ...)` first, which changes the blocks' class, as FSDP2 does once more; then this;
    then the optimizers and averages, because the parameters are other objects afterwards. Every process must bring the
    same weights. They may still be on the CPU: block after block goes to the device and only its shard stays there.

    A call of `model` gathers what it needs. Code that calls parts of it, as `CleanPrediction` does, must run inside of
    `within_shards`.

    Args:
        model: Has `transformer_blocks`; changed in place.
        processes: All processes.
        shards: Processes per copy of the weights; 1 leaves the model whole on each, `average_gradients` does the rest.
        bf16: Gather the weights and compute in bfloat16; they are kept, and gradients are summed, in float32. Nothing
            is cast on the way in (rotary tables and noise levels keep their precision): call it under autocast.
        activation_checkpointing: Keep only what goes into a block; compute the rest again in backward.
        compile: Compile each block.

    Returns:
        The model.

    Raises:
        ValueError: See `check_shards`; or the model has no blocks.
    """
    check_shards(shards, processes.world_size)
    blocks: Any = getattr(model, "transformer_blocks", None)
    if blocks is None:
        if shards == 1 and not (activation_checkpointing or compile):
            return model
        raise ValueError(f"only transformers can be sharded, got {type(model).__name__}; set shards to 1.")
    for block in blocks:
        if activation_checkpointing:
            block.forward = MethodType(_checkpointed, block)
        if compile:
            block.forward = torch.compile(block.forward, dynamic=False)
    if shards == 1:
        return model
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    mesh = _mesh(processes, shards)
    for module in (*blocks, model):
        fully_shard(module, mesh=mesh, reshard_after_forward=False, mp_policy=policy)
    model.within = MethodType(_within, model)  # type: ignore[assignment]
    register_fsdp_forward_method(model, "within")
    return model


def _mesh(processes: Processes, shards: int) -> DeviceMesh:
    """Return the mesh (replicate, shard): neighbours in rank are neighbours in a group of shards."""
    kind, replicas = processes.device.split(":")[0], processes.world_size // shards
    if replicas == 1:
        return init_device_mesh(kind, (shards,), mesh_dim_names=("shard",))
    return init_device_mesh(kind, (replicas, shards), mesh_dim_names=("replicate", "shard"))


def _checkpointed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Stand in for a block's forward. Found by class when called: `CleanPrediction` may change it. No dropout here."""
    return checkpoint(type(block).forward, block, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _within(model: nn.Module, function: Callable, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def within_shards(model: nn.Module, function: Callable) -> Callable:
    """Return `function` so that the model's weights are gathered while it runs; itself where nothing is sharded.

    Args:
        model: Of `shard_model`.
        function: Calls parts of the model. Tensors with gradients are in its result or in tuples and dicts of it.
    """
    return functools.partial(model.within, function) if isinstance(model, FSDPModule) else function  # type: ignore


def reshard(model: nn.Module) -> None:
    """Drop the gathered weights: needed where a sharded model's parameters are written by hand between two calls."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's whole state on the CPU, for an export; every process must call it, only the first gets it."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))  # type: ignore
