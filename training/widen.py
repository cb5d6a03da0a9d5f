"""Begin from CogVideoX-5b-I2V as the paper does: python -m training.widen BASE OUT

The base model is shown [noisy colour 16 | image 16] and answers for colour; the paper's is shown [noisy colour 16 |
disparity 16 | ray 24 | known colour 16 | known ray 24] and answers for colour, disparity and ray. What is new begins
at zero: the first answer is the base model's for colour, whatever the new channels show, and zero for the rest.

The base model's learned positions (near zero, and for one size and length only) are left out: RoPE remains. So it is
the base model without them whose answer is kept.

Weights keep their type. They are copied tensor by tensor into files of at most about a gigabyte, so that no more than
one file is in memory at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:  # PyTorch waits until after --help
    from torch import Tensor

BASE = {"in_channels": 32, "out_channels": 16, "patch_size": 2, "patch_size_t": None, "ofs_embed_dim": None}
"""What tells CogVideoX-5b-I2V from its relatives."""
INPUT, OUTPUTS = "patch_embed.proj.weight", ("proj_out.weight", "proj_out.bias")
POSITIONS = "patch_embed.pos_embedding"
FILE_NUMBERS = 500_000_000
"""Numbers in one file of weights; a single larger tensor gets its own."""


def main(base: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path]) -> None:
    """Widen CogVideoX-5b-I2V to a checkpoint in AetherV1's format.

    Args:
        base: Folder of CogVideoX-5b-I2V: `transformer/`, `vae/`, `scheduler/`, and `text_encoder/` and `tokenizer/`
            or the empty prompt's embedding.
        out: Where the checkpoint goes; a new folder.
    """
    try:
        widen(base, out)
    except ValueError as error:
        raise SystemExit(f"widen: {error}") from error
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: CogVideoX-5b-I2V in AetherV1's layout, {size / 1e9:.2f} GB; train it")


def widen(base: Path, out: Path) -> None:
    """Write the folder beside `out`, then rename it; what fails leaves nothing behind.

    Args:
        base: As `main`.
        out: As `main`.

    Raises:
        CheckpointError: The base is another model, or a file is missing or damaged.
        ValueError: `out` is there already, or the empty prompt's embedding can not be made.
    """
    from safetensors.torch import save_file

    from aether_env.files import replacing
    from aether_env.world_model.aetherv1 import CONFIG_FILE, SCHEDULER_FILE, check_aetherv1, stored_tensors
    from aether_env.world_model.checkpoint import PROMPT_FILE, read_json
    from aether_env.world_model.import_aetherv1 import empty_prompt_embeds

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out is there already: {out}; remove it or choose another folder.")
    config = _checked_config(base / "transformer" / CONFIG_FILE)
    with_prompt = (base / PROMPT_FILE).exists()
    if not with_prompt:
        if find_spec("transformers") is None:
            raise ValueError("the empty prompt's embedding needs transformers (once): pip install transformers")
        read_json(base / "text_encoder" / CONFIG_FILE)  # before gigabytes are copied
    with replacing(out) as new:
        _write_transformer(base / "transformer", config, new / "transformer")
        autoencoder = base / "vae"
        weights = {stored.file for stored in stored_tensors(autoencoder).values()}
        _copy(weights | set(autoencoder.glob("*.json")), new / "vae")
        _copy({base / "scheduler" / SCHEDULER_FILE}, new / "scheduler")
        check_aetherv1(new, prompt=False)  # before T5's 19 GB are read
        if with_prompt:
            _copy({base / PROMPT_FILE}, new)
        else:
            save_file({"prompt_embeds": empty_prompt_embeds(base)}, new / PROMPT_FILE)
        check_aetherv1(new)


def widened(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor of the base model in the paper's layout.

    Args:
        name: In the transformer's state.
        tensor: As stored.
    """
    from aether_env.world_model.conditions import COLOUR, LATENT_CHANNELS, TARGET_CHANNELS

    if name == INPUT:  # (D, channels, 2, 2)
        wide = tensor.new_zeros(len(tensor), 2 * TARGET_CHANNELS - LATENT_CHANNELS, *tensor.shape[2:])
        wide[:, COLOUR], image = tensor.split(LATENT_CHANNELS, dim=1)
        wide[:, TARGET_CHANNELS : TARGET_CHANNELS + LATENT_CHANNELS] = image
        return wide
    if name in OUTPUTS:
        # diffusers unfolds tokens as (channel, row, column): rows of one channel stand together, colour's come first.
        patch = len(tensor) // LATENT_CHANNELS
        wide = tensor.new_zeros(TARGET_CHANNELS * patch, *tensor.shape[1:])
        wide[: len(tensor)] = tensor
        return wide
    return tensor


def _checked_config(path: Path) -> dict[str, Any]:
    """Return the widened transformer's settings."""
    from aether_env.world_model.checkpoint import CheckpointError, read_json
    from aether_env.world_model.conditions import LATENT_CHANNELS, TARGET_CHANNELS

    config = read_json(path)
    if config.get("_class_name") != "CogVideoXTransformer3DModel":
        found = config.get("_class_name")
        raise CheckpointError(f"{path} names the class {found!r}; expected the CogVideoXTransformer3DModel of a base.")
    for name, wanted in BASE.items():
        if config.get(name, wanted) != wanted:
            raise CheckpointError(
                f"{path}: {name} must be {wanted!r}, got {config[name]!r}; the base must be CogVideoX-5b-I2V."
            )
    channels = {"in_channels": 2 * TARGET_CHANNELS - LATENT_CHANNELS, "out_channels": TARGET_CHANNELS}
    return config | channels | {"use_learned_positional_embeddings": False}


def _write_transformer(base: Path, config: dict[str, Any], out: Path) -> None:
    from safetensors.torch import save_file

    from aether_env.world_model.aetherv1 import CONFIG_FILE, INDEX_FILE
    from aether_env.world_model.checkpoint import WEIGHTS_FILE

    out.mkdir()
    (out / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    groups, size = _groups(base), 0
    places: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        stem, ending = WEIGHTS_FILE.split(".")
        file = WEIGHTS_FILE if len(groups) == 1 else f"{stem}-{number:05d}-of-{len(groups):05d}.{ending}"
        tensors = {name: widened(name, tensor) for name, tensor in _read(group)}
        save_file(tensors, out / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if len(groups) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (out / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _groups(folder: Path) -> list[dict[str, Path]]:
    """Return which tensors go into one file, and where they are now."""
    from aether_env.world_model.aetherv1 import stored_tensors

    stored = {name: place for name, place in stored_tensors(folder).items() if name != POSITIONS}
    _check_projections(folder, {name: place.shape for name, place in stored.items()})
    groups: list[dict[str, Path]] = [{}]
    numbers = 0
    for name, (file, shape) in sorted(stored.items(), key=lambda item: item[1].file):
        if groups[-1] and numbers + prod(shape) > FILE_NUMBERS:
            groups.append({})
            numbers = 0
        groups[-1][name] = file
        numbers += prod(shape)
    return groups


def _check_projections(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    from aether_env.world_model.aetherv1 import PATCH
    from aether_env.world_model.checkpoint import CheckpointError
    from aether_env.world_model.conditions import LATENT_CHANNELS

    outputs = LATENT_CHANNELS * PATCH**2
    for name, dim, wanted in ((INPUT, 1, 2 * LATENT_CHANNELS), *((name, 0, outputs) for name in OUTPUTS)):
        shape = shapes.get(name, ())
        if shape[dim : dim + 1] != (wanted,):
            raise CheckpointError(
                f"the weights in {folder} do not fit its config: {name} is {shape or 'missing'}; fetch the base again."
            )


def _read(group: dict[str, Path]) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for path in sorted(set(group.values())):
        with safe_open(path, framework="pt") as file:
            for name in (name for name, place in group.items() if place == path):
                yield name, file.get_tensor(name)


def _copy(files: set[Path], folder: Path) -> None:
    from aether_env.world_model.checkpoint import CheckpointError

    folder.mkdir(exist_ok=True)
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: {file.parent} is no whole checkpoint.")
        shutil.copyfile(file, folder / file.name)


if __name__ == "__main__":
    tyro.cli(main)
