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
import re
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

from aether_env.files import replacing
from aether_env.world_model.autoencoder import CausalGroupAutoencoder
from aether_env.world_model.conditions import INPUT_CHANNELS, LATENT_CHANNELS, TARGET_CHANNELS, checked_fps

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
PICKLE_STARTS = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of torch's zip files and of bare pickles."""
MAX_NUMBER = 1e38
MIN_STD = 1e-6
"""Least standard deviation of a latent channel: latents are divided by it."""
MAX_INNER_DIM = 8192
"""Largest width of a transformer, heads times their dimension."""
BOUNDS: dict[type, dict[str, tuple[int, int]]] = {
    CausalGroupAutoencoder: {
        "width": (8, 4096),
        "fine_width": (8, 4096),
        "encoder_blocks": (0, 64),
        "decoder_blocks": (0, 64),
        "fine_blocks": (0, 64),
    },
    CogVideoXTransformer3DModel: {
        "num_layers": (1, 128),
        "num_attention_heads": (1, 256),
        "attention_head_dim": (16, 512),
        "time_embed_dim": (1, 4096),
        "text_embed_dim": (1, 8192),
        "max_text_seq_length": (1, 4096),
        "sample_height": (1, 4096),
        "sample_width": (1, 4096),
        "sample_frames": (1, 4096),
        "temporal_compression_ratio": (1, 64),
    },
}
"""Least and largest integers of a component's config, so that a damaged one takes neither memory nor time."""
FIXED: dict[type, dict[str, Any]] = {
    CausalGroupAutoencoder: {"latent_channels": LATENT_CHANNELS},
    CogVideoXTransformer3DModel: {
        "in_channels": INPUT_CHANNELS,
        "out_channels": TARGET_CHANNELS,
        "patch_size": 2,
        "patch_size_t": None,
        "ofs_embed_dim": None,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "norm_eps": 1e-5,
        "norm_elementwise_affine": True,
        "activation_fn": "gelu-approximate",
        "timestep_activation_fn": "silu",
        "use_rotary_positional_embeddings": True,
        "use_learned_positional_embeddings": False,
    },
}
"""What every checkpoint of our own layout has in common."""


class CheckpointError(ValueError):
    """A checkpoint that can not be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything in which checkpoints of our own layout differ."""

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
    step_sigmas: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    """Noise levels of an env step."""
    step_detail: float = 0.0
    """How much farther an env step goes from the first towards the last answer of its network, see `step_detail`
    in denoise.py: so far from the fourth step on."""
    step_guess: bool = False
    """Show an env step what the frames so far look like from the wanted poses, see reproject.py."""
    clip_sigmas: tuple[float, ...] = (1.0, 0.6)
    """Noise levels of prediction and planning."""
    reconstruct_sigmas: tuple[float, ...] = (1.0,)
    """Noise levels of reconstruction, and of the depth of a first picture without depth."""
    reconstruct_views: int = 1
    """How often a video is looked at, see `OwnClips.reconstruct`."""
    reconstruct_refine: bool = False
    """Make what was found of a video fit its pictures, see refine.py."""

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or value % 8 or not 16 <= value <= 4096:
                raise ValueError(f"{name} must be a multiple of 8 in 16..4096, got {value!r}.")
        for name in ("fps", "origin_gain", "headroom", "unit_quantile"):
            value = getattr(self, name)
            if not _is_number(value) or value <= 0:
                raise ValueError(f"{name} must be a positive number, got {value!r}.")
        checked_fps(self.fps)
        if self.unit_quantile >= 1:
            raise ValueError(f"unit_quantile must be between 0 and 1, got {self.unit_quantile!r}.")
        if not _is_number(self.history_noise) or not 0 <= self.history_noise < 1:
            raise ValueError(f"history_noise must be at least 0 and below 1, got {self.history_noise!r}.")
        if not _is_number(self.step_detail) or not 0 <= self.step_detail <= 2:
            raise ValueError(f"step_detail must be in 0..2, got {self.step_detail!r}.")
        for name in ("step_guess", "reconstruct_refine"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}.")
        for name in ("step_sigmas", "clip_sigmas", "reconstruct_sigmas"):
            levels = getattr(self, name)
            if not isinstance(levels, tuple | list) or not all(_is_number(level) for level in levels):
                raise ValueError(f"{name} must be a list of numbers, got {levels!r}; for example 1.0 0.6.")
            checked_sigmas(name, levels)
        checked_views("reconstruct_views", self.reconstruct_views)


def _is_number(value: Any) -> bool:
    """Return whether it is a number that float32 can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


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


def checked_views(name: str, views: int) -> int:
    """Return how often a video is looked at.

    Raises:
        ValueError: It is not 1, 2 or 4.
    """
    if isinstance(views, bool) or views not in (1, 2, 4):
        raise ValueError(
            f"{name} must be 1 (as it is), 2 (mirrored as well) or 4 (both backwards as well), got {views!r}."
        )
    return views


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


def resolve(name: str | Path, *, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint: a bundled name such as "mini", a folder, or a hub id such as "owner/model".

    Of a hub's repository only JSON and safetensors files are fetched, into the hub's own cache.

    Args:
        name: Which one; a folder goes before a hub id.
        revision: Branch, tag or commit of a hub id.

    Raises:
        CheckpointError: There is none, or it can not be fetched.
    """
    # Only a plain name means a bundled checkpoint; "./mini" is a folder.
    places = [BUNDLED / name] if isinstance(name, str) and re.fullmatch(r"\w[\w-]*", name) else []
    for folder in (*places, *([Path(name)] if str(name) else [])):
        if folder.is_dir():
            if revision is not None:
                raise CheckpointError(f"revision must be left out for the folder {folder}; it belongs to a hub id.")
            return folder
    if isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _fetched(name, revision)
    bundled = sorted(p.name for p in BUNDLED.glob("*") if p.is_dir())
    raise CheckpointError(
        f"checkpoint {str(name)!r} is neither a bundled one ({', '.join(bundled) or 'none'}) nor a folder nor a hub "
        'id ("owner/model").'
    )


def _fetched(hub_id: str, revision: str | None) -> Path:
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                hub_id, revision=revision, allow_patterns=["*.json", "*.safetensors"], library_name="aether-env"
            )
        )
    except Exception as error:  # the hub, and what it travels by, fail in their own ways
        raise CheckpointError(
            f"checkpoint {hub_id!r} is no folder here, and could not be fetched from the hub: {error}"
        ) from error


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
    if set(prompt) != {"prompt_embeds"}:
        raise CheckpointError(f"{folder / PROMPT_FILE} must hold one tensor 'prompt_embeds', got {sorted(prompt)[:3]}.")
    components = Components(
        settings=settings,
        vae=_load_module(folder / "vae", CausalGroupAutoencoder, in_channels=3),
        disparity_vae=_load_module(folder / "disparity_vae", CausalGroupAutoencoder, in_channels=1),
        transformer=_load_module(folder / "transformer", CogVideoXTransformer3DModel),
        scheduler=_load_scheduler(folder / "scheduler" / "scheduler_config.json"),
        prompt_embeds=prompt["prompt_embeds"].float(),
    )
    shape, dim = tuple(components.prompt_embeds.shape), components.transformer.config.text_embed_dim
    if len(shape) != 3 or shape[0] != 1 or shape[1] < 1 or shape[2] != dim:
        raise CheckpointError(
            f"{folder / PROMPT_FILE}: prompt_embeds must have the shape (1, tokens, {dim}), where {dim} is the "
            f"transformer's text_embed_dim, got {shape}."
        )
    return components.to(device)


def save_checkpoint(
    components: Components, folder: Path, *, transformer_int8: bool = True, max_bytes: int | None = None
) -> None:
    """Write a checkpoint beside `folder`, then rename it; whatever fails, a checkpoint that was there stays.

    Args:
        components: What to write.
        folder: Where; replaced if it is there.
        transformer_int8: Store the transformer's matrices as int8 with one scale per row; all else is float16.
        max_bytes: Largest size of all files together; None: any.

    Raises:
        ValueError: `folder` is a file, or the checkpoint would be larger than `max_bytes`.
    """
    with replacing(folder) as new:
        _write(components, new, transformer_int8)
        size = sum(file.stat().st_size for file in new.rglob("*") if file.is_file())
        if max_bytes is not None and size > max_bytes:
            raise ValueError(f"{folder} would take {size} bytes, more than the {max_bytes} allowed.")


def _write(components: Components, folder: Path, transformer_int8: bool) -> None:
    _write_json(folder / SETTINGS_FILE, asdict(components.settings))
    for name in ("vae", "disparity_vae", "transformer"):
        module: Any = getattr(components, name)
        (folder / name).mkdir()
        config = {"_class_name": type(module).__name__}
        config |= {k: v for k, v in module.config.items() if not k.startswith("_")}
        _write_json(folder / name / "config.json", config)
        state = {k: v.detach().float().cpu() for k, v in module.state_dict().items()}
        packed = pack_weights(state, int8=transformer_int8 and name == "transformer")
        save_file(packed, folder / name / WEIGHTS_FILE)
    components.scheduler.save_pretrained(folder / "scheduler")
    save_file({"prompt_embeds": components.prompt_embeds.cpu().contiguous()}, folder / PROMPT_FILE)


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
    if path.is_file() and path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_JSON_BYTES} bytes: no settings file.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: {path.parent} is no whole checkpoint.") from error
    except (OSError, ValueError, RecursionError) as error:
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
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} is missing or unreadable: {path.parent} is no whole checkpoint.") from error
    size = path.stat().st_size
    # The length of a sane header may begin with the bytes of a pickle, so what is no safetensors file is told first.
    sane = len(head) == 9 and struct.unpack("<Q", head[:8])[0] <= min(size - 8, MAX_HEADER_BYTES) and head[8:] == b"{"
    if not sane and head[:2] in PICKLE_STARTS:
        raise CheckpointError(f"{path} is a pickle, which is never opened; convert it to safetensors.")
    if not sane:
        raise CheckpointError(f"{path} is no safetensors file or is truncated; fetch the checkpoint again.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); fetch the checkpoint again.") from error


def _known_class(config: dict[str, Any], path: Path, expected: type) -> None:
    name = config.get("_class_name")
    if CLASSES.get(str(name)) is not expected:
        raise CheckpointError(f"{path} names the class {name!r}; expected {expected.__name__!r}.")


def _load_scheduler(path: Path) -> FlowMatchEulerDiscreteScheduler:
    config = read_json(path)
    _known_class(config, path, FlowMatchEulerDiscreteScheduler)
    # The sampler goes along plain levels, so that a scheduler of any other kind would be ignored or lead astray.
    scheduler = FlowMatchEulerDiscreteScheduler()
    for name, value in config.items():
        if not name.startswith("_") and (name not in scheduler.config or value != scheduler.config[name]):
            wanted = repr(scheduler.config[name]) if name in scheduler.config else "absent"
            raise CheckpointError(f"{path}: {name} must be {wanted}, got {value!r}.")
    return scheduler


def _load_module(folder: Path, cls: type, **fixed: Any) -> Any:
    path = folder / "config.json"
    config = read_json(path)
    _known_class(config, path, cls)
    _check_config(config, path, cls, FIXED[cls] | fixed)
    with torch.device("meta"):
        wanted = {name: tuple(t.shape) for name, t in _build(cls, config, path).state_dict().items()}
    packed = read_weights(folder / WEIGHTS_FILE)
    _check_packed(packed, folder / WEIGHTS_FILE)
    state = unpack_weights(packed)
    found = {name: tuple(t.shape) for name, t in state.items()}
    wrong = [f"{n}: {found.get(n, 'missing')} instead of {s}" for n, s in wanted.items() if found.get(n) != s]
    wrong += [f"{n}: not in the config" for n in found if n not in wanted]
    if wrong:
        raise CheckpointError(f"{folder / WEIGHTS_FILE} does not fit config.json: {'; '.join(wrong[:3])}.")
    module = _build(cls, config, path)
    module.load_state_dict(state)
    return module


def _build(cls: Any, config: dict[str, Any], path: Path) -> nn.Module:
    try:
        return cls.from_config({k: v for k, v in config.items() if k != "_class_name"})
    except Exception as error:  # diffusers fails in its own ways, UnboundLocalError among them
        raise CheckpointError(f"{path} does not describe a {cls.__name__}: {error}") from error


def _check_config(config: dict[str, Any], path: Path, cls: type, fixed: dict[str, Any]) -> None:
    for name, (least, most) in BOUNDS[cls].items():
        value = config.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise CheckpointError(f"{path}: {name} must be an integer in {least}..{most}, got {value!r}.")
    for name, wanted in fixed.items():
        value = config.get(name)
        if value != wanted or type(value) is not type(wanted):
            raise CheckpointError(f"{path}: {name} must be {wanted!r}, got {value!r}.")
    if cls is CogVideoXTransformer3DModel:
        heads, dim = config["num_attention_heads"], config["attention_head_dim"]
        if dim % 16 or heads * dim > MAX_INNER_DIM:
            raise CheckpointError(
                f"{path}: attention_head_dim must be a multiple of 16 and at most {MAX_INNER_DIM} times "
                f"num_attention_heads, got {dim} and {heads}."
            )
        return
    for name in ("latents_mean", "latents_std"):
        value = config.get(name)
        if value is None:  # not measured yet
            continue
        if not isinstance(value, list) or len(value) != LATENT_CHANNELS or not all(_is_number(v) for v in value):
            raise CheckpointError(f"{path}: {name} must be {LATENT_CHANNELS} finite numbers, got {value!r}.")
        if name == "latents_std" and min(value) < MIN_STD:
            raise CheckpointError(f"{path}: latents_std must be at least {MIN_STD}, got {min(value)}.")


def _check_packed(packed: dict[str, Tensor], path: Path) -> None:
    for name, tensor in packed.items():
        if tensor.dtype != torch.int8:
            continue
        scale = packed.get(f"{name}.scale")
        if tensor.ndim != 2 or scale is None:
            raise CheckpointError(f"{path}: {name} of shape {tuple(tensor.shape)} is int8 without scales of its rows.")
        if not scale.is_floating_point() or scale.shape != (len(tensor), 1) or not scale.isfinite().all():
            raise CheckpointError(
                f"{path}: {name}.scale must be finite floats of shape ({len(tensor)}, 1), "
                f"got {scale.dtype} of shape {tuple(scale.shape)}."
            )
