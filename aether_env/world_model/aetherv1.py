"""The published AetherV1 checkpoint: its folder, and its rule from pictures and paths to colour, disparity and raymap.

```
transformer/   CogVideoXTransformer3DModel: 56 noisy + 40 condition channels in, 56 out; one file or shards and an index
vae/           AutoencoderKLCogVideoX, for colour and for disparity
scheduler/     scheduler_config.json of CogVideoX; always sampled by CogVideoXDPMScheduler
empty_prompt_embeds.safetensors
```
No aether.json: that marks our own layout. `import_aetherv1` makes such a folder. The one rule of this checkpoint serves
all tasks; what is given decides which one it is. The numbers are those of the public code in float32, for the same
seeds. Shape letters and axes: see conventions.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from diffusers.utils.torch_utils import randn_tensor
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from aether_env.conventions import FRAMES_PER_LATENT
from aether_env.raymap import pack_raymap, unpack_raymap
from aether_env.world_model.checkpoint import (
    BOUNDS,
    FIXED,
    MAX_INNER_DIM,
    MAX_NUMBER,
    PROMPT_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    read_json,
)
from aether_env.world_model.conditions import (
    BASE_FPS,
    COLOUR,
    DISPARITY,
    LATENT_CHANNELS,
    RAY,
    RAY_CHANNELS,
    TARGET_CHANNELS,
    checked_fps,
)

CELL = 8
"""Pixels per latent cell."""
PATCH = 2
"""Latent cells per token, along one axis."""
TRAINED_FRAMES = (17, 25, 33, 41)
TRAINED_FPS = (8, 10, 12, 15, 24)
STEPS = {"reconstruction": 4, "prediction": 50, "planning": 50}
"""Sampling steps of each task, if none are asked for."""
GUIDANCE = {"reconstruction": 1.0, "prediction": 3.0, "planning": 3.0}
"""Guidance of each task, if none is asked for; up to 1 is none."""
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
SCHEDULER_FILE = "scheduler_config.json"
CONFIG_FILE = "config.json"

_BLOCKS = 4  # of the autoencoder: all but the last halve the picture
_BOUNDS: dict[type, dict[str, tuple[int, int]]] = {
    CogVideoXTransformer3DModel: BOUNDS[CogVideoXTransformer3DModel],
    AutoencoderKLCogVideoX: {
        "layers_per_block": (1, 32),
        "norm_num_groups": (1, 1024),
        "sample_height": (16, 8192),
        "sample_width": (16, 8192),
    },
    CogVideoXDPMScheduler: {"num_train_timesteps": (1, 100_000)},
}
_FIXED: dict[type, dict[str, Any]] = {
    CogVideoXTransformer3DModel: {
        name: value for name, value in FIXED[CogVideoXTransformer3DModel].items() if not name.startswith("use_learned")
    }
    | {"in_channels": 2 * TARGET_CHANNELS - LATENT_CHANNELS, "temporal_compression_ratio": FRAMES_PER_LATENT},
    AutoencoderKLCogVideoX: {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": LATENT_CHANNELS,
        "temporal_compression_ratio": FRAMES_PER_LATENT,
        "down_block_types": ["CogVideoXDownBlock3D"] * _BLOCKS,
        "up_block_types": ["CogVideoXUpBlock3D"] * _BLOCKS,
        "act_fn": "silu",
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    CogVideoXDPMScheduler: {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "trained_betas": None,
    },
}
_RANGES = {
    "norm_eps": (1e-12, 1.0),
    "scaling_factor": (1e-3, 1e3),
    "beta_start": (1e-8, 0.999),
    "beta_end": (1e-8, 0.999),
    "snr_shift_scale": (1e-3, 1e3),
}
_NEEDED = ("scaling_factor", "invert_scale_latents")  # diffusers' defaults for these are another model's
_CLASS_NAMES: dict[type, tuple[str, ...]] = {
    # The base model's file names its own sampler; the public code reads the same settings into the other one.
    CogVideoXDPMScheduler: ("CogVideoXDPMScheduler", "CogVideoXDDIMScheduler"),
}
_FLOATS = ("F64", "F32", "BF16", "F16")


@dataclass(frozen=True, kw_only=True)
class AetherV1Clip:
    """What the checkpoint made of B items, T frames each; float32."""

    rgb: Tensor
    """(B, T, 3, H, W) in [0, 1]."""
    disparity: Tensor
    """(B, T, H, W), at least 0, relative to the clip's nearest; above 1 where the network overshoots."""
    raymap: Tensor
    """(B, T, 6, H / 8, W / 8) as `encode_raymap_aetherv1` makes them."""


@dataclass
class AetherV1:
    """The parts of the checkpoint, and the rule by which they are used."""

    transformer: CogVideoXTransformer3DModel
    vae: AutoencoderKLCogVideoX
    scheduler: CogVideoXDPMScheduler
    prompt_embeds: Tensor
    """(1, L, D): T5's answer to the empty prompt."""
    guidance_in_turn: bool = False
    """Ask with and without the pictures one after the other, not in one batch: half the memory, the same numbers."""
    slicing: bool = False
    """Encode and decode one clip at a time; else colour and disparity of all items together. The same numbers."""
    tiling: bool = False
    """Encode and decode in overlapping tiles: less memory, other numbers. The public scripts switch it on."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.prompt_embeds.device

    def to(self, device: str | torch.device) -> Self:
        """Move everything to a device."""
        self.transformer.to(device)
        self.vae.to(device)
        self.prompt_embeds = self.prompt_embeds.to(device)
        return self

    @torch.inference_mode()
    def __call__(
        self,
        generators: Sequence[torch.Generator],
        *,
        image: Tensor | None = None,
        goal: Tensor | None = None,
        video: Tensor | None = None,
        raymap: Tensor | None = None,
        num_frames: int | None = None,
        size: tuple[int, int] | None = None,
        fps: float = BASE_FPS,
        steps: int | None = None,
        guidance: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> AetherV1Clip:
        """Reconstruct a video, predict from an image, plan from an image to a goal; or dream from a path or nothing.

        Each item's numbers depend on its own generator alone. It is asked for, in this order: the posterior of the
        image, of the goal (or of the video), the first noise, and what the scheduler draws at each step.

        Args:
            generators: B generators, on the CPU if the numbers shall be those of a CPU.
            image: (B, 3, H, W) in [0, 1], the first frame.
            goal: (B, 3, H, W) in [0, 1], the last frame.
            video: (B, T, 3, H, W) in [0, 1], all frames; without image and goal.
            raymap: (B, T, 6, H / 8, W / 8) of the wanted or known path, see `encode_raymap_aetherv1`.
            num_frames: T = 8 k + 1, default that of video or raymap, else the largest trained one.
            size: (H, W), multiples of 16; default that of the pictures or the raymap, else the trained one.
            fps: Frames per second.
            steps: Sampling steps, default the task's.
            guidance: Default the task's; above 1 the weight follows `guidance_weight`.
            progress: Called with (steps done, all steps) after each.

        Raises:
            ValueError: An argument has a wrong shape or value, or arguments do not go together.
        """
        generators = list(generators)
        pictures = {"video": video, "image": image, "goal": goal, "raymap": raymap}
        given = {name: tensor for name, tensor in pictures.items() if tensor is not None}
        task = "reconstruction" if "video" in given else "planning" if "goal" in given else "prediction"
        steps = STEPS[task] if steps is None else steps
        guidance = GUIDANCE[task] if guidance is None else guidance
        self._check_sampling(steps, guidance, task)
        num_frames, height, width = self._clip_size(given, num_frames, size)
        _check_given(given, len(generators), num_frames, height, width)

        self.vae.use_slicing, self.vae.use_tiling = self.slicing, self.tiling
        batch, num_latents = len(generators), (num_frames - 1) // FRAMES_PER_LATENT + 1
        grid = (height // CELL, width // CELL)
        colour = torch.zeros(batch, num_latents, LATENT_CHANNELS, *grid, device=self.device)
        if image is not None:
            colour[:, :1] = self._encode(image[:, None], generators)
        if goal is not None:
            colour[:, -1:] = self._encode(goal[:, None], generators)
        if video is not None:
            colour = self._encode(video, generators)
        rays = torch.zeros(batch, num_latents, RAY_CHANNELS, *grid, device=self.device)
        if raymap is not None:
            rays = pack_raymap(raymap.to(rays), packing="strided")
        noise = randn_tensor((batch, num_latents, TARGET_CHANNELS, *grid), generators, self.device, torch.float32)

        if image is None and goal is None:
            guidance = 1.0  # the branch without pictures would be the same
        rotary = self._rotary(num_latents, *grid, fps)
        latents = self._denoise(noise, torch.cat([colour, rays], dim=2), rotary, steps, guidance, generators, progress)
        rgb, disparity = self._decode(torch.cat([latents[:, :, COLOUR], latents[:, :, DISPARITY]])).chunk(2)
        return AetherV1Clip(
            rgb=(rgb * 0.5 + 0.5).clamp(0, 1),
            disparity=(disparity.mean(dim=2) * 0.5 + 0.5).square(),
            raymap=unpack_raymap(latents[:, :, RAY], packing="strided"),
        )

    def _denoise(
        self,
        latents: Tensor,
        condition: Tensor,
        rotary: tuple[Tensor, Tensor],
        steps: int,
        guidance: float,
        generators: list[torch.Generator],
        progress: Callable[[int, int], None] | None,
    ) -> Tensor:
        """Follow the scheduler from noise (B, N, 56, h, w) to latents, given conditions (B, N, 40, h, w)."""
        without = condition.clone()
        without[:, :, COLOUR] = 0  # the path stays in both branches
        self.scheduler.set_timesteps(steps)
        clean, previous = None, None
        for index, timestep in enumerate(self.scheduler.timesteps.tolist()):
            if guidance <= 1:
                velocity = self._velocity(latents, condition, timestep, rotary)
            else:
                free, shown = self._both_velocities(latents, without, condition, timestep, rotary)
                velocity = free + guidance_weight(guidance, steps, timestep) * (shown - free)
            latents, clean = self._step(velocity, clean, timestep, previous, latents, generators)
            previous = timestep
            if progress is not None:
                progress(index + 1, len(self.scheduler.timesteps))
        return latents

    def _step(
        self,
        velocity: Tensor,
        clean_before: Tensor | None,
        timestep: int,
        previous: int | None,
        latents: Tensor,
        generators: list[torch.Generator],
    ) -> tuple[Tensor, Tensor]:
        """Return the next latents and the clean ones, as the scheduler's `step` does.

        That one copies noise to the GPU, and so waits for the network, before it draws its second noise. Here all is
        drawn while the network still works.
        """
        scheduler = self.scheduler
        following = timestep - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        second_order = clean_before is not None and following >= 0
        # The scheduler draws twice for a step of second order, and drops the first.
        for _ in range(2 if second_order else 1):
            noise = randn_tensor(latents.shape, generators, generators[0].device, latents.dtype)
        if noise.device != latents.device:
            # Pinned, the copy does not wait for the network.
            noise = (noise.pin_memory() if latents.is_cuda else noise).to(latents.device, non_blocking=latents.is_cuda)

        alphas = scheduler.alphas_cumprod
        alpha, alpha_before = alphas[timestep], None if previous is None else alphas[previous]
        alpha_after = alphas[following] if following >= 0 else scheduler.final_alpha_cumprod
        clean = alpha**0.5 * latents - (1 - alpha) ** 0.5 * velocity
        h, r, *_ = scheduler.get_variables(alpha, alpha_after, alpha_before)
        keep, add, *mix = scheduler.get_mult(h, r, alpha, alpha_after, alpha_before)
        spread = (1 - alpha_after) ** 0.5 * (1 - (-2 * h).exp()) ** 0.5
        target = mix[0] * clean - mix[1] * clean_before if second_order else clean
        return keep * latents - add * target + spread * noise, clean

    def _both_velocities(
        self, latents: Tensor, without: Tensor, condition: Tensor, timestep: int, rotary: tuple[Tensor, Tensor]
    ) -> Sequence[Tensor]:
        if self.guidance_in_turn:
            return [self._velocity(latents, c, timestep, rotary) for c in (without, condition)]
        twice = torch.cat([latents, latents]), torch.cat([without, condition])
        return self._velocity(*twice, timestep, rotary).chunk(2)

    def _velocity(self, latents: Tensor, condition: Tensor, timestep: int, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Return what the network says, (B, N, 56, h, w) float32."""
        model_input = torch.cat([latents, condition], dim=2).to(self.transformer.dtype)
        batch = len(model_input)
        return self.transformer(
            hidden_states=model_input,
            encoder_hidden_states=self.prompt_embeds.to(model_input).expand(batch, -1, -1),
            timestep=torch.full((batch,), timestep, device=self.device),
            image_rotary_emb=rotary,
            return_dict=False,
        )[0].float()

    def _encode(self, pictures: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Draw condition latents (B, N, 16, h, w) of pictures (B, T, 3, H, W) in [0, 1]."""
        video = (pictures.to(self.device) * 2 - 1).transpose(1, 2).to(self.vae.dtype)
        posterior = self.vae.encode(video).latent_dist
        noise = randn_tensor(posterior.mean.shape, generators, self.device, torch.float32)
        latents = posterior.mean.float() + posterior.std.float() * noise
        scale = self.vae.config.scaling_factor
        # Conditions were divided in training, targets multiplied: a slip that the weights have learned.
        latents = latents / scale if self.vae.config.invert_scale_latents else latents * scale
        return latents.transpose(1, 2)

    def _decode(self, latents: Tensor) -> Tensor:
        """Return pictures (B, T, 3, H, W) in [-1, 1] of target latents (B, N, 16, h, w)."""
        unscaled = (latents / self.vae.config.scaling_factor).transpose(1, 2)
        return self.vae.decode(unscaled.to(self.vae.dtype)).sample.float().transpose(1, 2)

    def _rotary(self, num_latents: int, rows: int, columns: int, fps: float) -> tuple[Tensor, Tensor]:
        config = self.transformer.config
        return rotary_aetherv1(
            num_latents,
            (rows // PATCH, columns // PATCH),
            (config.sample_height // PATCH, config.sample_width // PATCH),
            config.attention_head_dim,
            fps,
            self.device,
        )

    def _check_sampling(self, steps: int, guidance: float, task: str) -> None:
        most = self.scheduler.config.num_train_timesteps
        if not isinstance(steps, int) or not 1 <= steps <= most:
            raise ValueError(f"steps must be an integer in 1..{most}, got {steps!r}.")
        if not 0 <= guidance < math.inf:
            raise ValueError(f"guidance must be at least 0 and finite, got {guidance}; 1 is none.")
        if guidance > 1 and task == "reconstruction":
            raise ValueError(f"guidance must be at most 1 (none) for a known video, got {guidance}.")

    def _clip_size(
        self, given: dict[str, Tensor], num_frames: int | None, size: tuple[int, int] | None
    ) -> tuple[int, int, int]:
        """Return frames, height and width: as asked for, else those of what is given, else the trained ones."""
        for name, tensor in given.items():
            if tensor.ndim != len(_DIMENSIONS[name]) or not tensor.is_floating_point():
                dimensions = ", ".join(_DIMENSIONS[name])
                raise ValueError(f"{name} must be float ({dimensions}), got {tensor.dtype} {tuple(tensor.shape)}.")
        clips = [given[name].shape[1] for name in ("video", "raymap") if name in given]
        frames = num_frames if num_frames is not None else clips[0] if clips else TRAINED_FRAMES[-1]
        if frames < 9 or frames % 8 != 1:
            raise ValueError(f"num_frames must be 8 k + 1 and at least 9 for this autoencoder, got {frames}.")
        trained = self.transformer.config.sample_height * CELL, self.transformer.config.sample_width * CELL
        sizes = [tuple(n * (CELL if name == "raymap" else 1) for n in t.shape[-2:]) for name, t in given.items()]
        height, width = size if size is not None else sizes[0] if sizes else trained
        unit = CELL * PATCH
        if min(height, width) < unit or height % unit or width % unit:
            raise ValueError(f"height and width must be multiples of {unit}, got {height} x {width}; resize or crop.")
        if self.transformer.config.use_learned_positional_embeddings and (height, width) != trained:
            raise ValueError(
                f"height and width must be {trained[0]} x {trained[1]}, the only size of this checkpoint's learned "
                f"positions, got {height} x {width}; resize."
            )
        return frames, height, width


_DIMENSIONS = {"image": "B3HW", "goal": "B3HW", "video": "BT3HW", "raymap": "BT6hw"}


def _check_given(given: dict[str, Tensor], batch: int, num_frames: int, height: int, width: int) -> None:
    if not batch:
        raise ValueError("generators must hold one generator for each item, got none.")
    if "video" in given and ("image" in given or "goal" in given):
        raise ValueError("video shows all frames; give it without image and goal.")
    sizes = {"B": batch, "T": num_frames, "3": 3, "6": 6, "H": height, "W": width}
    sizes |= {"h": height // CELL, "w": width // CELL}
    for name, tensor in given.items():
        shape = tuple(sizes[dimension] for dimension in _DIMENSIONS[name])
        if tensor.shape != shape:
            raise ValueError(f"{name} must have the shape {shape} (generators are B), got {tuple(tensor.shape)}.")
        least, most = tensor.aminmax()
        if name == "raymap" and not (least + most).isfinite():
            raise ValueError("raymap must be finite; check poses and intrinsics.")
        if name != "raymap" and not (least >= -1e-4 and most <= 1 + 1e-4):
            raise ValueError(f"{name} must be in [0, 1], got {least:.4g} to {most:.4g}; divide uint8 by 255.")


def guidance_weight(guidance: float, steps: int, timestep: int) -> float:
    """Return how far to go from the answer without pictures to the one with them, 1 .. 1 + guidance.

    The formula was meant for a step's index; with a timestep in 0..999 the weight jumps up and down. It shipped so.
    """
    return 1 + guidance * (1 - math.cos(math.pi * ((steps - timestep) / steps) ** 5.0)) / 2


def rotary_aetherv1(
    num_latents: int,
    grid: tuple[int, int],
    base: tuple[int, int],
    head_dim: int,
    fps: float = BASE_FPS,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Return (cos, sin) of RoPE: the grid is spread over the trained one, centred; time counts in BASE_FPS.

    Args:
        num_latents: Latent steps.
        grid: Rows and columns of tokens.
        base: Rows and columns of tokens in training.
        head_dim: Of one attention head; a quarter for time, three eighths each for rows and columns.
        fps: Frames per second.
        device: Where the result lives.

    Returns:
        Two tensors (num_latents * rows * columns, head_dim), float32.

    Raises:
        ValueError: fps is outside 1..60.
    """
    scale = min(base[0] / grid[0], base[1] / grid[1])
    axes = [torch.arange(num_latents, dtype=torch.float32) * (BASE_FPS / checked_fps(fps))]
    for cells, base_cells in zip(grid, base, strict=True):
        # round() as diffusers does, halves to even
        span = round(cells * scale)
        start = round((base_cells - span) / 2)
        axes.append(torch.linspace(start, (start + span) * (cells - 1) / cells, cells))
    dims = head_dim // 4, head_dim // 8 * 3, head_dim // 8 * 3
    parts = [
        get_1d_rotary_pos_embed(dim, places.flatten(), use_real=True)
        for places, dim in zip(torch.meshgrid(*axes, indexing="ij"), dims, strict=True)
    ]
    cos, sin = (torch.cat([part[i] for part in parts], dim=-1).to(device) for i in (0, 1))
    return cos, sin


def load_aetherv1(
    folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> AetherV1:
    """Load a checkpoint of the published format; nothing is unpickled, and no weight is in memory twice.

    On the CPU, weights that are stored in `dtype` stay in the file until they are needed (do not change the file).

    Args:
        folder: With the parts that the module names.
        device: Where the weights go.
        dtype: Of transformer and autoencoder; latents stay float32.

    Raises:
        CheckpointError: A file is missing or damaged, of another class, or weights do not fit their config.
        ValueError: dtype is not float32, bfloat16 or float16.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype}.")
    folder = Path(folder)
    parts = check_aetherv1(folder)
    with _opened(folder / PROMPT_FILE) as file:
        prompt = file.get_tensor("prompt_embeds").float().to(device)
    for name, module in parts.items():
        if isinstance(module, nn.Module):
            _fill(module, folder / name, device, dtype)
    return AetherV1(**parts, prompt_embeds=prompt)


def check_aetherv1(folder: Path, *, prompt: bool = True) -> dict[str, Any]:
    """Compare a checkpoint's configs with the headers of its weights, which are not read.

    Args:
        folder: With the parts that the module names.
        prompt: Whether the empty prompt's embedding has to be there.

    Returns:
        "transformer" and "vae", without memory (on the meta device), and "scheduler".

    Raises:
        CheckpointError: As `load_aetherv1`.
    """
    parts = {
        "transformer": _skeleton(folder / "transformer", CogVideoXTransformer3DModel),
        "vae": _skeleton(folder / "vae", AutoencoderKLCogVideoX),
        "scheduler": _build(folder / "scheduler" / SCHEDULER_FILE, CogVideoXDPMScheduler),
    }
    if prompt:
        _check_prompt(folder / PROMPT_FILE, parts["transformer"].config)
    return parts


class Stored(NamedTuple):
    """Where a tensor is stored."""

    file: Path
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Return where a component's tensors are: in one safetensors file, or in the shards that its index lists.

    Raises:
        CheckpointError: A file is missing or damaged, or the index does not fit it.
    """
    index = folder / INDEX_FILE
    if not index.exists():
        return _stored_in(folder / WEIGHTS_FILE)
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(_is_file_name(file) for file in listed.values()):
        raise CheckpointError(f"{index}: weight_map must map tensors to .safetensors files beside it.")
    held = {file: _stored_in(folder / file) for file in sorted(set(listed.values()))}
    for name, file in listed.items():
        if name not in held[file]:
            raise CheckpointError(f"{folder / file} lacks {name}, which {index.name} says it holds.")
    return {name: held[file][name] for name, file in listed.items()}


def _is_file_name(file: Any) -> bool:
    return isinstance(file, str) and Path(file).name == file and file.endswith(".safetensors")


def _opened(path: Path) -> Any:
    """Return a safetensors file, mapped and not read; its header has been compared with its size."""
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: {path.parent} is no whole checkpoint.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no safetensors file or is damaged ({error}); pickles are never opened, fetch it again."
        ) from error


def _stored_in(path: Path) -> dict[str, Stored]:
    with _opened(path) as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        foreign = [f"{name} is {part.get_dtype()}" for name, part in parts.items() if part.get_dtype() not in _FLOATS]
        if foreign:
            raise CheckpointError(f"{path} must hold floating-point numbers; {'; '.join(foreign[:3])}.")
        return {name: Stored(path, tuple(part.get_shape())) for name, part in parts.items()}


def _skeleton(folder: Path, cls: type) -> Any:
    """Return a component on the meta device, when the weights beside it have been found to fit."""
    with torch.device("meta"):
        module = _build(folder / CONFIG_FILE, cls)
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: stored.shape for name, stored in stored_tensors(folder).items()}
    wrong = [f"{n}: {found.get(n, 'missing')} instead of {s}" for n, s in wanted.items() if found.get(n) != s]
    wrong += [f"{n}: not in the config" for n in found if n not in wanted]
    if wrong:
        raise CheckpointError(f"the weights in {folder} do not fit its {CONFIG_FILE}: {'; '.join(wrong[:3])}.")
    return module


def _fill(module: nn.Module, folder: Path, device: str | torch.device, dtype: torch.dtype) -> None:
    """Put a component's weights into its skeleton, one tensor at a time."""
    stored = stored_tensors(folder)
    state: dict[str, Tensor] = {}
    for path in {place.file for place in stored.values()}:
        with _opened(path) as file:
            state |= {n: file.get_tensor(n).to(device, dtype) for n, place in stored.items() if place.file == path}
    module.load_state_dict(state, assign=True)
    module.eval().requires_grad_(False)


def _build(path: Path, cls: Any) -> Any:
    """Return a component of a config, its weights not set."""
    config = _checked_config(path, cls)
    try:
        return cls(**config)
    except Exception as error:  # diffusers fails in its own ways
        raise CheckpointError(f"{path} does not describe a {cls.__name__}: {error}") from error


def _checked_config(path: Path, cls: type) -> dict[str, Any]:
    """Return all settings of a component: the file's, and diffusers' defaults for what an older file lacks."""
    raw = read_json(path)
    names = _CLASS_NAMES.get(cls, (cls.__name__,))
    if raw.get("_class_name") not in names:
        raise CheckpointError(f"{path} names the class {raw.get('_class_name')!r}; expected {' or '.join(names)}.")
    defaults = {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}
    config = {name: raw.get(name, default) for name, default in defaults.items()}

    def require(name: str, fits: bool, wanted: str) -> None:
        if not fits:
            raise CheckpointError(f"{path}: {name} must be {wanted}, got {raw.get(name, 'nothing')!r}.")

    for name, value in _FIXED[cls].items():
        same = _listed(config[name]) == value and isinstance(config[name], bool) == isinstance(value, bool)
        require(name, same, repr(value))
    for name, (fewest, largest) in _BOUNDS[cls].items():
        require(name, _is_integer(config[name], fewest, largest), f"an integer in {fewest}..{largest}")
    for name, value in config.items():
        require(name, name not in _NEEDED or name in raw, "given")
        if isinstance(defaults[name], bool):
            require(name, isinstance(value, bool), "true or false")
        elif isinstance(defaults[name], float):
            least, most = _RANGES.get(name, (0.0, MAX_NUMBER))
            number = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
            require(name, number, f"a number in {least:g}..{most:g}")
        elif isinstance(defaults[name], str):
            require(name, isinstance(value, str), "a string")
    if cls is CogVideoXTransformer3DModel:
        heads, dim = config["num_attention_heads"], config["attention_head_dim"]
        wanted = f"a multiple of 16, at most {MAX_INNER_DIM} times num_attention_heads ({heads})"
        require("attention_head_dim", dim % 16 == 0 and heads * dim <= MAX_INNER_DIM, wanted)
    if cls is AutoencoderKLCogVideoX:
        widths = _listed(config["block_out_channels"])
        whole = isinstance(widths, list) and all(_is_integer(width, 1, 8192) for width in widths)
        require("block_out_channels", whole and len(widths) == _BLOCKS, f"{_BLOCKS} integers in 1..8192")
    return config


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_integer(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _check_prompt(path: Path, config: Any) -> None:
    shapes = {name: stored.shape for name, stored in _stored_in(path).items()}
    shape, dim = shapes.get("prompt_embeds", ()), config.text_embed_dim
    if len(shapes) != 1 or len(shape) != 3 or shape[0] != 1 or shape[1] < 1 or shape[2] != dim:
        raise CheckpointError(f"{path} must hold one tensor, prompt_embeds of shape (1, tokens, {dim}), got {shapes}.")
    tokens = config.max_text_seq_length
    if config.use_learned_positional_embeddings and shape[1] != tokens:
        raise CheckpointError(f"{path}: learned positions need prompt_embeds of {tokens} tokens, got {shape[1]}.")
