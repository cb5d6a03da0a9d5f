"""Dreaming step by step: the world model behind Aether-v0.

A step looks at a window of five latent steps (memory, three steps of history, the new one), dreams the new one and
decodes its four frames. The shown steps do not see the new one, so they pass the network once, whatever the number of
noise levels. A checkpoint may also be shown a guess at the new step, see reproject.py: frames that were seen, moved to
the wanted poses. Otherwise nothing goes through pixels. All state is in `DreamState`. See DESIGN decision 5.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from aether_env.camera import check_intrinsics, check_poses, intrinsics_from_fov
from aether_env.conventions import FAR_DEPTH, FRAMES_PER_LATENT
from aether_env.disparity import fill_depth
from aether_env.world_model.checkpoint import Components, checked_sigmas, load_checkpoint
from aether_env.world_model.conditions import (
    COLOUR,
    DISPARITY,
    HISTORY,
    RAY,
    STEP_POSITIONS,
    TARGET_CHANNELS,
    WINDOW,
    Window,
    trained_fps,
)
from aether_env.world_model.denoise import denoise, step_detail
from aether_env.world_model.latents import Codec, at_rest, shows_surface
from aether_env.world_model.noise import HISTORY_NOISE, RESET_NOISE, SAMPLE_NOISE, normal_noise
from aether_env.world_model.promise import (
    BRANCHES,
    Frames,
    Start,
    check_about,
    check_arrays,
    check_rules,
    checked_branch,
)
from aether_env.world_model.quantised import quantised
from aether_env.world_model.reproject import Guess, Views, guess_latents, reproject

MEMORY = 19
"""Latent steps that are remembered beyond the history; the first picture is never forgotten."""
VIEWS = 8
"""Frames that are kept for guesses at the next ones."""
NEWEST, FIRST, KEPT = 0, 1, 2
"""Their places: the newest, the first picture, and from KEPT on a ring of older ones."""
VIEW_EVERY = 4
"""Steps between the frames of the ring, which reaches 24 steps back."""
POINTS = (6, 8)
"""Grid of points by which a remembered view is compared with the wanted one."""
GPU_ROWS = 16
"""Rows of a call on a GPU: of a small network it takes about as long for sixteen as for one."""
MIN_OVERLAP = 0.15
"""A memory of which less than this share would be seen again is not shown."""
DEFAULT_FOV = np.deg2rad(70.0)


@dataclass(frozen=True, kw_only=True)
class DreamState:
    """B dreams between two steps. Poses are of the env's world: the camera at reset."""

    history: Tensor
    """(B, HISTORY, 32, h, w) float32: normalised colour and disparity latents, the newest last."""
    history_pose: Tensor
    """(B, HISTORY, 4, 4, 4) float64: poses of the four frames of each."""
    history_filled: Tensor
    """(B, HISTORY) bool."""
    memory: Tensor
    """(B, MEMORY, 32, h, w) float16."""
    memory_pose: Tensor
    """(B, MEMORY, 4, 4, 4) float64."""
    memory_points: Tensor
    """(B, MEMORY, P, 3) float32: where the last frame of each looked, world axes, metres or units."""
    history_points: Tensor
    """(B, HISTORY, P, 3) float32."""
    memory_count: Tensor
    """(B,) int64: how many latent steps were ever remembered."""
    view_rgb: Tensor
    """(B, VIEWS, H, W, 3) uint8: the newest frame, the first one, and the last of every VIEW_EVERY-th step."""
    view_depth: Tensor
    """(B, VIEWS, H, W) float16, metres or units."""
    view_pose: Tensor
    """(B, VIEWS, 4, 4) float64."""
    view_points: Tensor
    """(B, VIEWS, P, 3) float32, as `memory_points`."""
    intrinsics: Tensor
    """(B, 3, 3) float64."""
    unit: Tensor
    """(B,) float64: metres of one unit; 1 where not metric."""
    metric: Tensor
    """(B,) bool."""
    nonce: Tensor
    """(B,) int64: of the episode."""
    branch: Tensor
    """(B,) int64."""
    step: Tensor
    """(B,) int64: env steps since reset."""

    def __len__(self) -> int:
        return len(self.step)

    def __getitem__(self, rows: Any) -> Self:
        if isinstance(rows, int | np.integer):
            rows = [int(rows)]
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """Keep convolutions in float32: PyTorch lets them round to TF32 on GPUs, and batches of other sizes differently."""
    usual = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = usual


def _row_by_row(convert: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return what a batch is coded to, on a CPU row by row: there convolutions of large batches round differently."""
    if inputs[0].is_cuda:
        return convert(*inputs)
    return torch.cat([convert(*(one[row : row + 1] for one in inputs)) for row in range(len(inputs[0]))])


class DreamWorld:
    """The WorldModel promise kept by a checkpoint.

    Args:
        components: Of a checkpoint.
        height: Must be the checkpoint's; None takes it.
        width: As height.
        fps: Frames per second; must be the checkpoint's.
        frames_per_step: Must be 4.
        sigmas: Noise levels of a step; None takes the checkpoint's. More levels cost more time.
        dtype: Of the network: "float32", on a CPU with int8 inside where that loses nothing, see quantised.py; or
            "bfloat16" (autocast), quicker on GPUs.
        rows_at_once: Rows of every call of the networks: a smaller batch is filled up, a larger one parted. On a GPU
            rounding depends on the size of a call, so that a row is the same in any batch only where it does not
            vary. None is `GPU_ROWS` on a GPU, and on a CPU, whose rounding does not depend on it, the whole batch.
    """

    needs_picture = True

    def __init__(
        self,
        components: Components,
        *,
        height: int | None = None,
        width: int | None = None,
        fps: float | None = None,
        frames_per_step: int = FRAMES_PER_LATENT,
        sigmas: Sequence[float] | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        rows_at_once: int | None = None,
    ):
        settings = components.settings
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be 'float32' or 'bfloat16', got {dtype!r}.")
        if rows_at_once is not None and (isinstance(rows_at_once, bool) or not rows_at_once >= 1):
            raise ValueError(f"rows_at_once must be a whole number >= 1, got {rows_at_once!r}.")
        for name, value in (("height", height), ("width", width)):
            if value is not None and value != getattr(settings, name):
                raise ValueError(f"{name} must be {getattr(settings, name)} for this checkpoint, got {value}.")
        if frames_per_step != FRAMES_PER_LATENT:
            raise ValueError(f"frames_per_step must be {FRAMES_PER_LATENT} for this checkpoint, got {frames_per_step}.")
        self.height, self.width = settings.height, settings.width
        self.frames_per_step = frames_per_step
        self.fps = trained_fps(fps, settings.fps)
        self.settings = settings
        self.dtype = dtype
        self.codec = Codec(components)
        on_gpu = self.codec.device.type == "cuda"
        self.rows_at_once = GPU_ROWS if rows_at_once is None and on_gpu else rows_at_once
        self.sigmas = checked_sigmas("sigmas", settings.step_sigmas if sigmas is None else sigmas)
        self._predict = quantised(self.codec.predict_clean(self.fps, bf16=dtype == "bfloat16"))
        self._scheduler = components.scheduler

    @classmethod
    def from_checkpoint(cls, model: str | Path = "mini", device: str = "cpu", **kwargs: Any) -> Self:
        """Load a checkpoint by name or folder; `kwargs` as in the class."""
        return cls(load_checkpoint(model, device), **kwargs)

    @torch.inference_mode()
    @_exact_convolutions()
    def start(self, starts_B: Sequence[Start], seeds_B: Sequence[int]) -> tuple[DreamState, Frames]:
        """Begin B dreams from pictures, with or without depth. See `WorldModel.start`."""
        if not starts_B or len(seeds_B) != len(starts_B):
            raise ValueError(
                f"seeds_B must be one integer for each of at least one start, got {len(seeds_B)}, {len(starts_B)}."
            )
        self._check_pictures(starts_B)
        return self._in_calls(
            len(starts_B), lambda rows: self._start([starts_B[row] for row in rows], [seeds_B[row] for row in rows])
        )

    def _start(self, starts_B: Sequence[Start], seeds_B: Sequence[int]) -> tuple[DreamState, Frames]:
        device, batch = self.codec.device, len(starts_B)
        rgb, depth, intrinsics, metric = self._pictures(starts_B)
        unit = torch.where(metric, self.codec.unit(depth.float()).double(), 1.0)
        nonce = torch.tensor([int(s) & (2**63 - 1) for s in seeds_B], dtype=torch.int64, device=device)
        zero = torch.zeros_like(nonce)
        height, width = self.codec.latent_size
        latents = torch.zeros(batch, 32, height, width, device=device)
        latents[:, COLOUR] = _row_by_row(self.codec.encode_colour, at_rest(rgb))[:, 0]
        latents[:, DISPARITY] = _row_by_row(self.codec.encode_depth, at_rest(depth), unit.float())[:, 0]
        if not bool(metric.all()):
            dreamt = self._dream_disparity(latents[:, COLOUR], intrinsics, unit, nonce)
            latents[:, DISPARITY] = torch.where(metric[:, None, None, None], latents[:, DISPARITY], dreamt)
        seen = self.codec.decode_depth(latents[:, None, DISPARITY], unit.float())[:, 0]
        depth = torch.where(metric[:, None, None], fill_depth(depth).clamp(max=FAR_DEPTH), seen)

        pose = torch.eye(4, dtype=torch.float64, device=device).expand(batch, FRAMES_PER_LATENT, 4, 4)
        points = self._points(depth, intrinsics, pose[:, -1])
        filled = torch.tensor([False, False, True], device=device).expand(batch, HISTORY)
        state = DreamState(
            history=torch.stack([torch.zeros_like(latents)] * 2 + [latents], dim=1),
            history_pose=pose[:, None].expand(-1, HISTORY, -1, -1, -1).clone(),
            history_filled=filled.clone(),
            history_points=points[:, None].expand(-1, HISTORY, -1, -1).clone(),
            memory=torch.zeros(batch, MEMORY, 32, height, width, dtype=torch.float16, device=device),
            memory_pose=pose[:, None].expand(-1, MEMORY, -1, -1, -1).clone(),
            memory_points=torch.zeros(batch, MEMORY, *points.shape[1:], device=device),
            memory_count=zero,
            view_rgb=rgb[:, None].expand(-1, VIEWS, -1, -1, -1).clone(),
            view_depth=depth[:, None].expand(-1, VIEWS, -1, -1).half(),
            view_pose=pose[:, -1:].expand(-1, VIEWS, -1, -1).clone(),
            view_points=points[:, None].expand(-1, VIEWS, -1, -1).clone(),
            intrinsics=intrinsics,
            unit=unit,
            metric=metric,
            nonce=nonce,
            branch=zero,
            step=zero,
        )
        return state, self._frames(rgb[:, None], depth[:, None], pose[:, -1:], state)

    @torch.inference_mode()
    @_exact_convolutions()
    def advance(self, state: DreamState, world_from_camera_BT44: np.ndarray) -> tuple[DreamState, Frames]:
        """Dream the next four frames. See `WorldModel.advance`."""
        poses = check_poses("world_from_camera_BT44", world_from_camera_BT44)
        if poses.shape != (len(state), FRAMES_PER_LATENT, 4, 4):
            raise ValueError(
                f"world_from_camera_BT44 must be {(len(state), FRAMES_PER_LATENT, 4, 4)}, got {poses.shape}."
            )
        wanted = torch.as_tensor(poses, dtype=torch.float64, device=self.codec.device)
        return self._in_calls(len(state), lambda rows: self._advance(state[rows], wanted[rows]))

    def _advance(self, state: DreamState, wanted: Tensor) -> tuple[DreamState, Frames]:
        window = self._window(state, wanted)
        shape = (1, *window.known.shape[2:])
        noise = normal_noise(state.nonce, state.branch, state.step, SAMPLE_NOISE, shape)
        detail = step_detail(self.settings.step_detail, state.step)
        new = denoise(self._predict, self._scheduler, window, noise, self.sigmas, detail)[:, -1, : RAY.start]

        last = state.history[:, -1]
        rgb = _row_by_row(self.codec.decode_colour, new[:, None, COLOUR], last[:, COLOUR])
        depth = _row_by_row(self.codec.decode_depth, new[:, None, DISPARITY], state.unit.float(), last[:, DISPARITY])
        points = self._points(depth[:, -1], state.intrinsics, wanted[:, -1])
        state = self._remember(state, new, wanted, points)
        state = self._keep_view(state, rgb[:, -1], depth[:, -1], wanted[:, -1], points)
        return state, self._frames(rgb, depth, wanted, state)

    def _in_calls(
        self, count: int, dream: Callable[[list[int]], tuple[DreamState, Frames]]
    ) -> tuple[DreamState, Frames]:
        """Return what is dreamed of `count` rows in calls of `rows_at_once`; the last row fills the last call up."""
        size = self.rows_at_once or count
        if size == count:
            return dream(list(range(count)))
        parts = []
        for first in range(0, count, size):
            state, frames = dream([min(row, count - 1) for row in range(first, first + size)])
            own = slice(0, min(size, count - first))
            parts.append((state[own], frames[own]))
        return self.join([state for state, _ in parts]), Frames.joined([frames for _, frames in parts])

    def join(self, states: Sequence[DreamState]) -> DreamState:
        """Concatenate batches."""
        return replace(
            states[0], **{f.name: torch.cat([getattr(s, f.name) for s in states]) for f in fields(DreamState)}
        )

    def describe(self, state: DreamState) -> list[dict[str, Any]]:
        """Return the unit of each dream, in metres (or 1 where it has no scale)."""
        return [{"unit": float(unit)} for unit in state.unit]

    def branch(self, state: DreamState, rows: Sequence[int], numbers: Sequence[int] | None) -> DreamState:
        """Return chosen dreams, with the noise of the given numbers. See `WorldModel.branch`."""
        rows, numbers = checked_branch(len(state), rows, numbers)
        chosen = state[rows]
        return chosen if numbers is None else replace(chosen, branch=torch.tensor(numbers, device=state.branch.device))

    def freeze(self, state: DreamState) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return all of a state as arrays, and which checkpoint dreams it. See `WorldModel.freeze`."""
        return {f.name: getattr(state, f.name).cpu().numpy().copy() for f in fields(state)}, self._about()

    def thaw(self, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> DreamState:
        """Undo `freeze`. See `WorldModel.thaw`."""
        check_about(about, self._about())
        check_arrays(arrays, self._layout())
        for name in ("history_pose", "memory_pose", "view_pose"):
            check_poses(f"the snapshot's {name}", arrays[name])
        check_intrinsics("the snapshot's intrinsics", arrays["intrinsics"])
        step, unit, branch = arrays["step"], arrays["unit"], arrays["branch"]
        filled = np.arange(HISTORY) >= HISTORY - 1 - step[:, None]
        check_rules(
            {
                f"step must be in 0..{BRANCHES - 1}": (step >= 0) & (step < BRANCHES),
                f"branch must be in 0..{BRANCHES - 1}": (branch >= 0) & (branch < BRANCHES),
                "nonce must not be negative": arrays["nonce"] >= 0,
                f"unit must be in (0, {FAR_DEPTH:g}]": (unit > 0) & (unit <= FAR_DEPTH),
                "unit must be 1 where lengths are not metric": arrays["metric"] | (unit == 1),
                "history_filled must follow from step": arrays["history_filled"] == filled,
                "memory_count must follow from step": arrays["memory_count"] == np.maximum(step + 1 - HISTORY, 0),
            }
        )
        device = self.codec.device
        return DreamState(**{name: torch.tensor(np.ascontiguousarray(a), device=device) for name, a in arrays.items()})

    def close(self) -> None:
        """Nothing is held beyond the weights, which go with the object."""

    def _about(self) -> dict[str, Any]:
        return {
            "kind": "dream",
            "height": self.height,
            "width": self.width,
            "fps": self.fps,
            "frames_per_step": int(self.frames_per_step),
            "sigmas": list(self.sigmas),
            "dtype": self.dtype,
            "checkpoint": self._fingerprint,
        }

    @cached_property
    def _fingerprint(self) -> str:
        """sha256 of all that dreams follow from, as it was when first asked for: weights are not for changing."""
        parts = self.codec.parts
        digest = hashlib.sha256(json.dumps(asdict(self.settings), sort_keys=True).encode())
        tensors = [("prompt_embeds", parts.prompt_embeds)]
        # Together with their shapes they tell all that may differ in the configs; a state_dict lacks the latents' mean.
        for module in (parts.vae, parts.disparity_vae, parts.transformer):
            tensors += sorted([*module.named_parameters(), *module.named_buffers()])
        for name, tensor in tensors:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return the type and the shape, without B, of every array of a state."""
        latent = (DISPARITY.stop, *self.codec.latent_size)
        poses, points, size = (FRAMES_PER_LATENT, 4, 4), (POINTS[0] * POINTS[1], 3), (self.height, self.width)
        return {
            "history": ("float32", (HISTORY, *latent)),
            "history_pose": ("float64", (HISTORY, *poses)),
            "history_filled": ("bool", (HISTORY,)),
            "memory": ("float16", (MEMORY, *latent)),
            "memory_pose": ("float64", (MEMORY, *poses)),
            "memory_points": ("float32", (MEMORY, *points)),
            "history_points": ("float32", (HISTORY, *points)),
            "memory_count": ("int64", ()),
            "view_rgb": ("uint8", (VIEWS, *size, 3)),
            "view_depth": ("float16", (VIEWS, *size)),
            "view_pose": ("float64", (VIEWS, 4, 4)),
            "view_points": ("float32", (VIEWS, *points)),
            "intrinsics": ("float64", (3, 3)),
            "unit": ("float64", ()),
            "metric": ("bool", ()),
            "nonce": ("int64", ()),
            "branch": ("int64", ()),
            "step": ("int64", ()),
        }

    def _check_pictures(self, starts: Sequence[Start]) -> None:
        size = (self.height, self.width)
        for index, start in enumerate(starts):
            if start.rgb is None:
                raise ValueError(f"starts_B[{index}].rgb is None: a dream begins from a picture.")
            if start.rgb.shape != (*size, 3) or start.rgb.dtype != np.uint8:
                raise ValueError(
                    f"starts_B[{index}].rgb must be uint8 {(*size, 3)}, "
                    f"got {start.rgb.dtype} {start.rgb.shape}; pictures.fit_picture resizes."
                )
            if start.depth is not None and start.depth.shape != size:
                raise ValueError(f"starts_B[{index}].depth must be {size}, got {start.depth.shape}.")
            if start.intrinsics is not None:
                check_intrinsics(f"starts_B[{index}].intrinsics", start.intrinsics)

    def _pictures(self, starts: Sequence[Start]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return rgb (B, H, W, 3), depth (B, H, W; 0 where unknown), intrinsics (B, 3, 3) and metric (B,)."""
        nothing = np.zeros((self.height, self.width))
        default = intrinsics_from_fov(DEFAULT_FOV, self.height, self.width)
        depth = [nothing if start.depth is None else np.asarray(start.depth, np.float64) for start in starts]
        intrinsics = [default if start.intrinsics is None else np.asarray(start.intrinsics) for start in starts]
        device = self.codec.device
        known = np.nan_to_num(np.stack(depth), nan=0.0, posinf=0.0, neginf=0.0)
        depth_t = torch.as_tensor(known, dtype=torch.float32, device=device)
        return (
            torch.as_tensor(np.stack([start.rgb for start in starts if start.rgb is not None]), device=device),
            depth_t,
            torch.as_tensor(np.stack(intrinsics), dtype=torch.float64, device=device),
            shows_surface(depth_t).flatten(1).any(dim=1),
        )

    def _dream_disparity(self, colour: Tensor, intrinsics: Tensor, unit: Tensor, nonce: Tensor) -> Tensor:
        """Dream the disparity latents (B, 16, h, w) of pictures without depth."""
        batch, device = len(colour), colour.device
        known = torch.zeros(batch, WINDOW, TARGET_CHANNELS, *colour.shape[-2:], device=device)
        known[:, -1, COLOUR] = colour
        rest = torch.eye(4, device=device).expand(batch, 1, FRAMES_PER_LATENT, 4, 4)
        known[:, -1:, RAY] = self.codec.rays(rest, intrinsics.float(), unit.float())
        mask = torch.zeros(batch, WINDOW, 3, device=device)
        mask[:, -1, 0] = mask[:, -1, 2] = 1.0
        dreamed = torch.zeros(batch, WINDOW, device=device)
        dreamed[:, -1] = 1.0
        zero = torch.zeros_like(nonce)
        noise = normal_noise(nonce, zero, zero, RESET_NOISE, (1, *known.shape[2:]))
        window = Window(known, mask, dreamed, STEP_POSITIONS, history=WINDOW - 1)
        latents = denoise(self._predict, self._scheduler, window, noise, list(self.settings.reconstruct_sigmas))
        return latents[:, -1, DISPARITY]

    def _window(self, state: DreamState, wanted: Tensor) -> Window:
        """Lay out memory, history and the wanted poses; the window's world is the last history frame."""
        batch, device = len(state), wanted.device
        remembered = torch.arange(MEMORY, device=device) < state.memory_count[:, None]
        overlap = self._overlap(state.memory_points, remembered, state.intrinsics, wanted[:, -1])
        best = overlap.argmax(dim=1)
        row = torch.arange(batch, device=device)
        has_memory = overlap[row, best] >= MIN_OVERLAP
        poses = torch.cat([state.memory_pose[row, best][:, None], state.history_pose, wanted[:, None]], dim=1)
        # float64 until the poses are relative: far from reset float32 would lose the motion.
        camera = torch.linalg.inv(state.history_pose[:, -1, -1])[:, None, None] @ poses
        known = torch.zeros(batch, WINDOW, TARGET_CHANNELS, *self.codec.latent_size, device=device)
        known[:, 0, : RAY.start] = state.memory[row, best].float()
        known[:, 1:-1, : RAY.start] = state.history
        noise = normal_noise(
            state.nonce, state.branch, state.step, HISTORY_NOISE, tuple(known[0, :-1, : RAY.start].shape)
        )
        known[:, :-1, : RAY.start] += self.settings.history_noise * noise
        known[:, :, RAY] = self.codec.rays(camera.float(), state.intrinsics.float(), state.unit.float())
        mask = torch.zeros(batch, WINDOW, 3, device=device)
        mask[:, 0] = has_memory[:, None].float()
        mask[:, 1:-1] = state.history_filled[..., None].float()
        mask[:, -1, 2] = 1.0
        dreamed = torch.zeros(batch, WINDOW, device=device)
        dreamed[:, -1] = 1.0
        guessed = None
        if self.settings.step_guess:
            guess = reproject(self._views(state, wanted), state.intrinsics, wanted)
            known[:, -1, : RAY.start], guessed = self._guess_latents(guess, state.unit.float())
        return Window(known, mask, dreamed, STEP_POSITIONS, history=WINDOW - 1, guessed=guessed)

    def _views(self, state: DreamState, wanted: Tensor) -> Views:
        """Return the frames that a guess is made of: what was given first, then old before new.

        A surface is shown as it was first seen, however often it was dreamed since: dreams of dreams fade and creep.
        """
        row = torch.arange(len(state), device=wanted.device)
        kept = torch.arange(VIEWS - KEPT, device=wanted.device) < (state.step // VIEW_EVERY)[:, None]
        overlap = self._overlap(state.view_points[:, KEPT:], kept, state.intrinsics, wanted[:, -1])
        best = overlap.argmax(dim=1)
        chosen = torch.stack([torch.full_like(best, FIRST), KEPT + best, torch.full_like(best, NEWEST)], dim=1)
        there = torch.stack(
            [state.step > 0, overlap[row, best] >= MIN_OVERLAP, torch.ones_like(best, dtype=torch.bool)], dim=1
        )
        rgb, depth, pose = (
            array[row[:, None], chosen] for array in (state.view_rgb, state.view_depth, state.view_pose)
        )
        return Views(rgb, depth, pose, there)

    def _guess_latents(self, guess: Guess, unit: Tensor) -> tuple[Tensor, Tensor]:
        """As `guess_latents`, row by row on a CPU."""
        rows = [slice(None)] if unit.is_cuda else [slice(row, row + 1) for row in range(len(unit))]
        parts = [guess_latents(self.codec, Guess(*(part[some] for part in guess)), unit[some]) for some in rows]
        latents, share = (torch.cat(pair) for pair in zip(*parts, strict=True))
        return latents, share

    def _overlap(self, points: Tensor, kept: Tensor, intrinsics: Tensor, wanted: Tensor) -> Tensor:
        """Return the share of points (B, N, P, 3) that the wanted cameras (B, 4, 4) would see; 0 where not kept.

        Args:
            points: World axes.
            kept: (B, N) bool.
            intrinsics: (B, 3, 3).
            wanted: Poses.

        Returns:
            (B, N).
        """
        camera = torch.linalg.inv(wanted)
        points = points.double() @ camera[:, None, :3, :3].mT + camera[:, None, None, :3, 3]
        pixel = points @ intrinsics[:, None].mT
        z = pixel[..., 2].clamp(min=1e-6)
        u, v = pixel[..., 0] / z, pixel[..., 1] / z
        inside = (points[..., 2] > 1e-3) & (u > 0) & (u < self.width) & (v > 0) & (v < self.height)
        return inside.double().mean(dim=-1) * kept

    def _points(self, depth: Tensor, intrinsics: Tensor, world_from_camera: Tensor) -> Tensor:
        """Return a few points (B, P, 3) of depth (B, H, W), world axes."""
        rows = (torch.arange(POINTS[0], device=depth.device) + 0.5) * self.height / POINTS[0]
        columns = (torch.arange(POINTS[1], device=depth.device) + 0.5) * self.width / POINTS[1]
        v, u = torch.meshgrid(rows, columns, indexing="ij")
        pixel = torch.stack([u, v, torch.ones_like(u)], dim=-1).flatten(0, 1).double()
        z = depth[:, rows.long()][:, :, columns.long()].flatten(1).double()
        camera = (pixel @ torch.linalg.inv(intrinsics).mT) * z[..., None]
        world = camera @ world_from_camera[:, :3, :3].mT + world_from_camera[:, None, :3, 3]
        return world.float()

    def _remember(self, state: DreamState, new: Tensor, pose: Tensor, points: Tensor) -> DreamState:
        """Shift the history; what leaves it goes into memory, over the oldest but the first."""
        row = torch.arange(len(state), device=new.device)
        leaves = state.history_filled[:, 0]
        count = state.memory_count
        place = torch.where(count < MEMORY, count, 1 + (count - MEMORY) % (MEMORY - 1))

        def put(memory: Tensor, value: Tensor) -> Tensor:
            kept = leaves.view(-1, *[1] * (value.ndim - 1))
            memory = memory.clone()
            memory[row, place] = torch.where(kept, value.to(memory.dtype), memory[row, place])
            return memory

        def shift(history: Tensor, value: Tensor) -> Tensor:
            return torch.cat([history[:, 1:], value[:, None].to(history.dtype)], dim=1)

        return replace(
            state,
            memory=put(state.memory, state.history[:, 0]),
            memory_pose=put(state.memory_pose, state.history_pose[:, 0]),
            memory_points=put(state.memory_points, state.history_points[:, 0]),
            memory_count=count + leaves.long(),
            history=shift(state.history, new),
            history_pose=shift(state.history_pose, pose),
            history_points=shift(state.history_points, points),
            history_filled=shift(state.history_filled, torch.ones_like(leaves)),
            step=state.step + 1,
        )

    def _keep_view(self, state: DreamState, rgb: Tensor, depth: Tensor, pose: Tensor, points: Tensor) -> DreamState:
        """Keep the last frame of a step as the newest view, and if it is its turn, over the oldest but the first.

        Args:
            state: After the step.
            rgb: (B, H, W, 3).
            depth: (B, H, W).
            pose: (B, 4, 4).
            points: (B, P, 3).
        """
        row = torch.arange(len(state), device=rgb.device)
        turn, rest = state.step // VIEW_EVERY, state.step % VIEW_EVERY
        place = torch.where(rest == 0, KEPT + (turn - 1) % (VIEWS - KEPT), NEWEST)
        views = {}
        for name, value in {"rgb": rgb, "depth": depth, "pose": pose, "points": points}.items():
            view = getattr(state, f"view_{name}").clone()
            view[:, NEWEST] = value.to(view.dtype)
            view[row, place] = value.to(view.dtype)
            views[f"view_{name}"] = view
        return replace(state, **views)

    def _frames(self, rgb: Tensor, depth: Tensor, pose: Tensor, state: DreamState) -> Frames:
        times = rgb.shape[1]
        return Frames(
            rgb=rgb.cpu().numpy(),
            depth=depth.float().cpu().numpy(),
            world_from_camera=pose.cpu().numpy().copy(),
            intrinsics=state.intrinsics[:, None].expand(-1, times, -1, -1).cpu().numpy().copy(),
            metric=state.metric.cpu().numpy().copy(),
        )
