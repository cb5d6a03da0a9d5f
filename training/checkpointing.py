"""Saving a run so that it goes on exactly where it was, and finding the newest whole checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

PREFIX = "step_"


def flatten(tree: Any, path: str = "") -> tuple[dict[str, Tensor], Any]:
    """Split nested dicts and lists into named tensors and the JSON that remains."""
    if isinstance(tree, Tensor):
        return {path: tree.detach().contiguous()}, {"tensor": path}
    if isinstance(tree, dict):
        tensors: dict[str, Tensor] = {}
        rest: list = []
        for key, value in tree.items():
            part, skeleton = flatten(value, f"{path}/{key}")
            tensors |= part
            rest.append([key, skeleton])
        return tensors, {"dict": rest}
    if isinstance(tree, list | tuple):
        tensors, items = {}, []
        for index, value in enumerate(tree):
            part, skeleton = flatten(value, f"{path}/{index}")
            tensors |= part
            items.append(skeleton)
        return tensors, {"list": items}
    return {}, {"value": tree}


def unflatten(tensors: dict[str, Tensor], skeleton: Any) -> Any:
    """Undo `flatten`."""
    if "tensor" in skeleton:
        return tensors[skeleton["tensor"]]
    if "dict" in skeleton:
        return {key: unflatten(tensors, value) for key, value in skeleton["dict"]}
    if "list" in skeleton:
        return [unflatten(tensors, value) for value in skeleton["list"]]
    return skeleton["value"]


def save_run(run_dir: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write one checkpoint under a temporary name, then rename it; keep the newest `keep`.

    One process at a time saves to a run's folder: what an earlier save left half written is removed.

    Args:
        run_dir: Folder of the run.
        step: Steps done.
        state: Nested dicts and lists of tensors and plain values.
        keep: Whole checkpoints that stay.
    """
    tensors, skeleton = flatten(state)
    # safetensors refuses shared memory; optimizers may hold one step counter for many parameters.
    tensors = {name: t.clone() for name, t in tensors.items()}
    folder = run_dir / f"{PREFIX}{step:08d}"
    for torn in run_dir.glob(f".{PREFIX}*"):  # left by a kill during a save
        shutil.rmtree(torn)
    temporary = run_dir / f".{folder.name}.{os.getpid()}"
    temporary.mkdir(parents=True)
    save_file(tensors, temporary / "state.safetensors")
    (temporary / "state.json").write_text(json.dumps({"step": step, "state": skeleton}))
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
    for old in sorted(run_dir.glob(f"{PREFIX}*"))[:-keep]:
        shutil.rmtree(old)
    return folder


def newest_run(run_dir: Path) -> Path | None:
    """Return the newest whole checkpoint, or None."""
    found = sorted(run_dir.glob(f"{PREFIX}*"))
    return found[-1] if found else None


def load_run(folder: Path, device: str) -> tuple[int, dict[str, Any]]:
    """Read what `save_run` wrote: the number of steps done and the state."""
    try:
        meta = json.loads((folder / "state.json").read_text())
        tensors = load_file(folder / "state.safetensors", device=device)
        return int(meta["step"]), unflatten(tensors, meta["state"])
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"{folder} is not a whole checkpoint of a run ({error}); delete it to go on from an older one."
        ) from error


def rng_for(seed: int, step: int, rank: int, device: str) -> torch.Generator:
    """Return the generator of one step: every draw is a function of (seed, step, rank)."""
    mixed = (seed * 1_000_003 + step) * 1_009 + rank
    return torch.Generator(device).manual_seed(mixed % (1 << 62))
