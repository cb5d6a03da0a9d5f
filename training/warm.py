"""The folder warm/ of a run: raw and averaged weights in bfloat16, in small pieces, to begin another run with.

It is for a run that goes on elsewhere, where the optimizers' state, six times as large, cannot travel.

```
warm.json              the step, and per set of weights ("raw", "ema") and tensor: its shape and its pieces
raw-00000.safetensors  at most 16 MiB each; a large tensor is spread over several
ema-00000.safetensors
```
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from aether_env.files import replacing
from training.optimizer import AveragedWeights

WARM = "warm"
INDEX = "warm.json"
MAX_FILE_BYTES = 16 << 20
SETS = ("raw", "ema")
_HEADER_BYTES = 1 << 20  # safetensors' own, of a piece: about a hundred bytes for each tensor
_BYTES = 2  # of a bfloat16


def write_warm(folder: Path, step: int, raw: dict[str, Tensor], ema: dict[str, Tensor]) -> None:
    """Write the folder; one that was there stays until the new one is whole.

    Args:
        folder: Where.
        step: Steps that the run has done.
        raw: The weights, by name.
        ema: The averaged weights, by the same names.
    """
    for torn in folder.parent.glob(f".{folder.name}.*"):  # left by a kill while it was written
        shutil.rmtree(torn)
    with replacing(folder) as new:
        index = {
            "step": step,
            "weights": {name: _write_set(new, name, {"raw": raw, "ema": ema}[name]) for name in SETS},
        }
        (new / INDEX).write_text(json.dumps(index))


def _write_set(folder: Path, name: str, weights: dict[str, Tensor]) -> dict[str, Any]:
    """Write one set of weights in pieces; returns its part of the index."""
    room = (MAX_FILE_BYTES - _HEADER_BYTES) // _BYTES
    index: dict[str, Any] = {}
    piece: dict[str, Tensor] = {}
    free, number = room, 0

    def close() -> None:
        nonlocal piece, free, number
        if piece:
            save_file(piece, folder / f"{name}-{number:05d}.safetensors")
            piece, free, number = {}, room, number + 1

    for key, tensor in weights.items():
        flat = tensor.detach().to("cpu", torch.bfloat16).flatten()
        places: list[list[str]] = []
        for part in flat.split(room):
            if part.numel() > free:
                close()
            place = f"{key}#{len(places)}"
            piece[place] = part.clone()
            free -= part.numel()
            places.append([f"{name}-{number:05d}.safetensors", place])
        index[key] = {"shape": list(tensor.shape), "pieces": places}
    close()
    return index


def find_warm(origin: str) -> Path | None:
    """Return the warm folder that a `warm_start` means: itself, or that of a run; None if it means a checkpoint."""
    for folder in (Path(origin), Path(origin) / WARM):
        if (folder / INDEX).is_file():
            return folder
    return None


def read_warm(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Tensor]]:
    """Read what `write_warm` wrote.

    Returns:
        The step, the raw weights and the averaged weights, in bfloat16 on the CPU.

    Raises:
        ValueError: A file is missing or damaged.
    """
    try:
        index = json.loads((folder / INDEX).read_text())
        files: dict[str, dict[str, Tensor]] = {}
        raw, ema = ({k: _joined(folder, v, files) for k, v in index["weights"][name].items()} for name in SETS)
        return int(index["step"]), raw, ema
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} is not a whole warm folder ({error}); copy it again.") from error


def _joined(folder: Path, entry: dict[str, Any], files: dict[str, dict[str, Tensor]]) -> Tensor:
    """Put one tensor together; `files` keeps the file that was read last."""
    parts = []
    for name, place in entry["pieces"]:
        if name not in files:
            if Path(name).name != name:
                raise ValueError(f"{name!r} is not a file's name")
            files.clear()
            files[name] = load_file(folder / name)
        parts.append(files[name][place])
    flat = torch.cat(parts)
    if flat.numel() != math.prod(entry["shape"]):
        raise ValueError(f"{entry['pieces'][0]} has {flat.numel()} numbers for the shape {entry['shape']}")
    return flat.view(entry["shape"])


def begin_with(folder: Path, model: nn.Module, average: AveragedWeights, parameters: list[nn.Parameter]) -> None:
    """Begin with both sets of weights of a warm folder.

    Args:
        folder: See `find_warm`.
        model: Gets the raw weights, sharded or not.
        average: Gets the averaged ones, and goes on as old as it was.
        parameters: Of the model.

    Raises:
        ValueError: The folder is damaged, or of a model with other weights.
    """
    step, raw, ema = read_warm(folder)
    wanted = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    other = [name for name in wanted.keys() | raw.keys() if name not in raw or raw[name].shape != wanted.get(name)]
    if other:
        raise ValueError(f"{folder} is of another model: {len(other)} weights differ, such as {sorted(other)[0]}.")
    options = StateDictOptions(full_state_dict=True, strict=False)
    set_model_state_dict(model, _as_float(raw), options=options)
    average.swap_with(parameters)
    set_model_state_dict(model, _as_float(ema), options=options)
    average.swap_with(parameters)
    average.head_start = step


def _as_float(weights: dict[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.float() for name, tensor in weights.items()}
