"""The checkpoint folder: diffusers components as safetensors, and `aether.json` with what checkpoints differ in.

```
aether.json            Settings
vae/                   colour autoencoder         config.json, diffusion_pytorch_model.safetensors
disparity_vae/         disparity autoencoder
transformer/
scheduler/             scheduler_config.json
empty_prompt_embeds.safetensors
```
Weights may be stored as int8 with one scale per row (`name` and `name.scale`) or as float16; loading gives float32.
Nothing is unpickled, classes come from a fixed list, sizes are checked before memory is taken.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aether_env.world_model.autoencoder import CausalGroupAutoencoder

SETTINGS_FILE = "aether.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
PROMPT_FILE = "empty_prompt_embeds.safetensors"
CLASSES: dict[str, type] = {
    "CogVideoXTransformer3DModel": CogVideoXTransformer3DModel,
    "CausalGroupAutoencoder": CausalGroupAutoencoder,
    "FlowMatchEulerDiscreteScheduler": FlowMatchEulerDiscreteScheduler,
}
BUNDLED = Path(__file__).parent.parent / "checkpoints"
MAX_HEADER_BYTES = 16 << 20
MAX_JSON_BYTES = 1 << 20


class CheckpointError(ValueError):
    """A checkpoint that can not be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything in which checkpoints of our own layout differ; defaults are those of `mini`."""

    height: int = 64
    """Rows of a picture."""
    width: int = 96
    """Columns of a picture."""
    fps: float = 12.0
    """Frames per second that the model was trained at."""
    origin_gain: float = 10.0
    """s_ray of the raymap's origins."""
    headroom: float = 4.0
    """How many times nearer than the unit things may come before their disparity clips."""
    unit_quantile: float = 0.1
    """Quantile of the first frame's valid depth that is one unit."""
    history_noise: float = 0.05
    """Standard deviation of the noise on shown latents of an env step."""
    step_sigmas: tuple[float, ...] = (1.0, 0.6)
    """Noise levels of an env step."""
    clip_sigmas: tuple[float, ...] = (1.0, 0.6)
    """Noise levels of prediction and planning."""
    reconstruct_sigmas: tuple[float, ...] = (1.0,)
    """Noise levels of reconstruction, and of the depth of a first picture without depth."""

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or value % 8 or not 16 <= value <= 4096:
                raise ValueError(f"{name} must be a multiple of 8 in 16..4096, got {value!r}.")
        for name in ("fps", "origin_gain", "headroom", "unit_quantile"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
                raise ValueError(f"{name} must be a positive number, got {value!r}.")
        if not 0 <= self.history_noise < 1:
            raise ValueError(f"history_noise must be in 0..1, got {self.history_noise!r}.")
        for name in ("step_sigmas", "clip_sigmas", "reconstruct_sigmas"):
            checked_sigmas(name, getattr(self, name))


def checked_sigmas(name: str, sigmas: Sequence[float]) -> list[float]:
    """Return noise levels as a list.

    Raises:
        ValueError: They do not begin at 1 and fall towards 0.
    """
    levels = [float(sigma) for sigma in sigmas]
    falling = all(a > b for a, b in zip(levels, levels[1:], strict=False))
    if not levels or levels[0] != 1 or not falling or levels[-1] <= 0:
        raise ValueError(f"{name} must fall from 1 towards 0, got {levels}; for example 1.0 0.6.")
    return levels


@dataclass
class Components:
    """The parts of a checkpoint."""

    settings: Settings
    vae: CausalGroupAutoencoder
    disparity_vae: CausalGroupAutoencoder
    transformer: CogVideoXTransformer3DModel
    scheduler: FlowMatchEulerDiscreteScheduler
    prompt_embeds: Tensor

    def to(self, device: str | torch.device) -> Components:
        """Move everything to a device, in evaluation mode."""
        for module in (self.vae, self.disparity_vae, self.transformer):
            module.to(device).eval().requires_grad_(False)
        self.prompt_embeds = self.prompt_embeds.to(device)
        return self


def resolve(name: str | Path) -> Path:
    """Return the folder of a checkpoint: a bundled name such as "mini", or a folder.

    Raises:
        CheckpointError: If there is neither.
    """
    for folder in (BUNDLED / str(name), Path(name)):
        if folder.is_dir():
            return folder
    bundled = sorted(p.name for p in BUNDLED.glob("*") if p.is_dir())
    raise CheckpointError(
        f"checkpoint {str(name)!r} is neither a bundled one ({', '.join(bundled) or 'none'}) nor a folder."
    )


def load_checkpoint(name: str | Path, device: str | torch.device = "cpu") -> Components:
    """Load a checkpoint of our own layout.

    Args:
        name: A bundled name or a folder.
        device: Where the weights go.

    Returns:
        The components in float32, in evaluation mode.

    Raises:
        CheckpointError: A file is missing, damaged, of an unknown class, or its weights do not fit its config.
    """
    folder = resolve(name)
    raw = read_json(folder / SETTINGS_FILE)
    known = {f.name for f in fields(Settings)}
    unknown = sorted(set(raw) - known)
    if unknown:
        raise CheckpointError(f"{folder / SETTINGS_FILE} has unknown settings {unknown}; known are {sorted(known)}.")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    try:
        settings = Settings(**values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / SETTINGS_FILE}: {error}") from error
    prompt = read_weights(folder / PROMPT_FILE)
    if set(prompt) != {"prompt_embeds"} or prompt["prompt_embeds"].ndim != 3:
        raise CheckpointError(f"{folder / PROMPT_FILE} must hold one tensor 'prompt_embeds' of three dimensions.")
    scheduler_config = read_json(folder / "scheduler" / "scheduler_config.json")
    _known_class(scheduler_config, folder / "scheduler" / "scheduler_config.json", FlowMatchEulerDiscreteScheduler)
    components = Components(
        settings=settings,
        vae=_load_module(folder / "vae", CausalGroupAutoencoder),
        disparity_vae=_load_module(folder / "disparity_vae", CausalGroupAutoencoder),
        transformer=_load_module(folder / "transformer", CogVideoXTransformer3DModel),
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(scheduler_config),
        prompt_embeds=prompt["prompt_embeds"],
    )
    return components.to(device)


def save_checkpoint(components: Components, folder: Path, *, transformer_int8: bool = True) -> None:
    """Write a checkpoint under a temporary name, then rename it.

    Args:
        components: What to write.
        folder: Where; replaced if it is there.
        transformer_int8: Store the transformer's matrices as int8 with one scale per row; all else is float16.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        _write_json(temporary / SETTINGS_FILE, asdict(components.settings))
        for name in ("vae", "disparity_vae", "transformer"):
            module: Any = getattr(components, name)
            (temporary / name).mkdir()
            config = {"_class_name": type(module).__name__}
            config |= {k: v for k, v in module.config.items() if not k.startswith("_")}
            _write_json(temporary / name / "config.json", config)
            state = {k: v.detach().float().cpu() for k, v in module.state_dict().items()}
            packed = pack_weights(state, int8=transformer_int8 and name == "transformer")
            save_file(packed, temporary / name / WEIGHTS_FILE)
        components.scheduler.save_pretrained(temporary / "scheduler")
        save_file({"prompt_embeds": components.prompt_embeds.cpu().contiguous()}, temporary / PROMPT_FILE)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def pack_weights(state: dict[str, Tensor], *, int8: bool) -> dict[str, Tensor]:
    """Return weights for storage: matrices as int8 with a scale per row where asked, all else float16."""
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if int8 and tensor.ndim == 2:
            scale = (tensor.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
            packed[name] = (tensor / scale).round().to(torch.int8)
            packed[f"{name}.scale"] = scale
        else:
            packed[name] = tensor.to(torch.float16).contiguous()
    return packed


def unpack_weights(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo `pack_weights`, in float32."""
    state: dict[str, Tensor] = {}
    for name, tensor in packed.items():
        if tensor.dtype == torch.int8:
            state[name] = tensor.float() * packed[f"{name}.scale"]
        elif not name.endswith(".scale"):
            state[name] = tensor.float()
    return state


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object.

    Raises:
        CheckpointError: Missing, too large, or no JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_JSON_BYTES} bytes: no settings file.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: {path.parent} is no whole checkpoint.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); fetch the checkpoint again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(value).__name__}.")
    return value


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, after a look at its header.

    Raises:
        CheckpointError: Missing, truncated, or another kind of file (a pickle, say).
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise CheckpointError(f"{path} is missing or unreadable: {path.parent} is no whole checkpoint.") from error
    size = path.stat().st_size
    if head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise CheckpointError(f"{path} is a pickle, which is never opened; convert it to safetensors.")
    if len(head) < 8 or struct.unpack("<Q", head)[0] > min(size - 8, MAX_HEADER_BYTES):
        raise CheckpointError(f"{path} is no safetensors file or is truncated; fetch the checkpoint again.")
    try:
        return load_file(path)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); fetch the checkpoint again.") from error


def _known_class(config: dict[str, Any], path: Path, expected: type) -> None:
    name = config.get("_class_name")
    if CLASSES.get(str(name)) is not expected:
        raise CheckpointError(f"{path} names the class {name!r}; expected {expected.__name__!r}.")


def _load_module(folder: Path, cls: type) -> Any:
    config = read_json(folder / "config.json")
    _known_class(config, folder / "config.json", cls)
    packed = read_weights(folder / WEIGHTS_FILE)
    if any(t.dtype == torch.int8 and f"{n}.scale" not in packed for n, t in packed.items()):
        raise CheckpointError(f"{folder / WEIGHTS_FILE} holds int8 weights without their scales.")
    state = unpack_weights(packed)
    try:
        with torch.device("meta"):
            module: nn.Module = cls.from_config({k: v for k, v in config.items() if k != "_class_name"})  # type: ignore[attr-defined]
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not describe a {cls.__name__}: {error}") from error
    wanted = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in state.items()}
    wrong = [f"{n}: {found.get(n, 'missing')} instead of {s}" for n, s in wanted.items() if found.get(n) != s]
    wrong += [f"{n}: not in the config" for n in found if n not in wanted]
    if wrong:
        raise CheckpointError(f"{folder / WEIGHTS_FILE} does not fit config.json: {'; '.join(wrong[:3])}.")
    module = cls.from_config({k: v for k, v in config.items() if k != "_class_name"})  # type: ignore[attr-defined]
    module.load_state_dict(state)
    return module
