"""Make one folder of the published AetherV1 and the parts of its base model.

The published transformer comes alone; all else is that of CogVideoX-5b-I2V. Its text encoder is asked once, for the
empty prompt, and not needed again. Both are folders that have been downloaded before.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aether_env.files import replacing

if TYPE_CHECKING:  # PyTorch waits until after --help
    from torch import Tensor

PROMPT_TOKENS = 226
"""Tokens to which CogVideoX pads every prompt."""


def main(transformer: Path, base: Path, out: Path) -> None:
    """Make one folder of the published AetherV1.

    Args:
        transformer: Folder of the published transformer, or the folder that holds its `transformer/`.
        base: Folder of CogVideoX-5b-I2V: `vae/`, `scheduler/`, `text_encoder/`, `tokenizer/`.
        out: Where the checkpoint goes; a new folder. Weights are hard-linked where the disk allows it, else copied.
    """
    import_aetherv1(transformer, base, out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: AetherV1, {size / 1e9:.2f} GB; aether_env.world_model.aetherv1.load_aetherv1 loads it")


def import_aetherv1(transformer: Path, base: Path, out: Path) -> None:
    """Write the folder beside `out`, then rename it; what fails leaves nothing behind.

    Args:
        transformer: As `main`.
        base: As `main`.
        out: As `main`.

    Raises:
        CheckpointError: A file is missing or damaged, or weights do not fit their config.
        ValueError: `out` is there already, or `transformers` is not installed.
    """
    from safetensors.torch import save_file

    from aether_env.world_model.aetherv1 import CONFIG_FILE, INDEX_FILE, SCHEDULER_FILE, check_aetherv1, stored_tensors
    from aether_env.world_model.checkpoint import PROMPT_FILE

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out is there already: {out}; remove it or choose another folder.")
    if find_spec("transformers") is None:
        raise ValueError("the empty prompt's embedding needs transformers (once): pip install transformers")
    inner = transformer / "transformer"
    parts = {"transformer": inner if inner.is_dir() else transformer, "vae": base / "vae"}
    with replacing(out) as new:
        for name, folder in parts.items():
            files = {stored.file for stored in stored_tensors(folder).values()} | {folder / CONFIG_FILE}
            files |= {index for index in [folder / INDEX_FILE] if index.exists()}
            _link(files, new / name)
        _link({base / "scheduler" / SCHEDULER_FILE}, new / "scheduler")
        check_aetherv1(new, prompt=False)  # before T5's 19 GB are read
        save_file({"prompt_embeds": empty_prompt_embeds(base)}, new / PROMPT_FILE)
        check_aetherv1(new)


def empty_prompt_embeds(base: Path) -> Tensor:
    """Return T5's answer (1, PROMPT_TOKENS, D) to the empty prompt, in float32.

    Args:
        base: Folder with `text_encoder/` and `tokenizer/`.

    Raises:
        CheckpointError: The text encoder is missing, damaged or no T5.
    """
    import torch
    from transformers import T5EncoderModel

    from aether_env.world_model.checkpoint import CheckpointError, read_json

    folder = base / "text_encoder"
    config = read_json(folder / "config.json")
    if config.get("model_type") != "t5":
        raise CheckpointError(f"{folder / 'config.json'} describes a {config.get('model_type')!r}; expected a t5.")
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:
        loaded: Any = T5EncoderModel.from_pretrained(folder, **options)
    except Exception as error:  # transformers fails in its own ways
        raise CheckpointError(f"{folder} holds no whole T5 as safetensors: {error}") from error
    encoder, loading = loaded
    if missing := sorted(loading["missing_keys"]):  # transformers makes up what is missing
        raise CheckpointError(f"the weights in {folder} lack {'; '.join(missing[:3])}.")
    tokens = torch.tensor([_empty_prompt(base / "tokenizer", encoder.config)])
    with torch.inference_mode():
        # No mask, as in CogVideoX: the padding is looked at too.
        return encoder.float().eval()(tokens)[0].contiguous()


def _empty_prompt(folder: Path, config: Any) -> list[int]:
    """Return the tokens of the empty prompt."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception:  # sentencepiece is not installed, say; what it would answer to this one prompt is known
        return [config.eos_token_id] + [config.pad_token_id] * (PROMPT_TOKENS - 1)
    return tokenizer("", padding="max_length", max_length=PROMPT_TOKENS).input_ids


def _link(files: set[Path], folder: Path) -> None:
    """Hard-link files into a new folder, or copy them where that is not possible."""
    from aether_env.world_model.checkpoint import CheckpointError

    folder.mkdir(parents=True)
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: {file.parent} is no whole checkpoint.")
        try:
            os.link(file.resolve(), folder / file.name)  # resolved: download caches hold links
        except OSError:
            shutil.copyfile(file, folder / file.name)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
