"""What the transformer is shown: a window of latent steps, each with its noisy latents, its conditions and its masks.

Channels of one latent step (AETHER section 3.2, with the disparity condition and the masks of our own checkpoints):
noisy [colour | disparity | ray], known [colour | disparity | ray], masks [colour, disparity, ray].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor

from aether_env.conventions import FRAMES_PER_LATENT
from aether_env.raymap import encode_raymap, pack_raymap

LATENT_CHANNELS = 16
RAY_CHANNELS = 6 * FRAMES_PER_LATENT
COLOUR = slice(0, LATENT_CHANNELS)
DISPARITY = slice(LATENT_CHANNELS, 2 * LATENT_CHANNELS)
RAY = slice(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS + RAY_CHANNELS)
TARGET_CHANNELS = 2 * LATENT_CHANNELS + RAY_CHANNELS
INPUT_CHANNELS = 2 * TARGET_CHANNELS + 3
BLOCKS = (COLOUR, DISPARITY, RAY)

WINDOW = 5
"""Latent steps of a window."""
HISTORY = 3
"""Latent steps of history in an env step's window; before them is a place for memory, after them the new one."""
CLIP_POSITIONS = (0.0, 1.0, 2.0, 3.0, 4.0)
"""RoPE times of a clip: the resting first frame and four groups."""
STEP_POSITIONS = (-8.0, 1.0, 2.0, 3.0, 4.0)
"""RoPE times of an env step: memory (a place of its own), three steps of history, the new one."""
BASE_FPS = 12.0
GUESSED = 0.5
"""Mask of what is guessed, in the place of 1 for what is known."""


def checked_fps(fps: float) -> float:
    """Return frames per second.

    Raises:
        ValueError: They are outside 1..60.
    """
    if not 1 <= fps <= 60:
        raise ValueError(f"fps must be in 1..60, got {fps}.")
    return float(fps)


def trained_fps(fps: float | None, trained: float) -> float:
    """Return the frames per second that a checkpoint was trained at; `fps` may ask for no other.

    Raises:
        ValueError: The checkpoint was trained at another speed: its dreams would fall apart without a word.
    """
    if fps is not None and fps != trained:
        raise ValueError(f"fps must be {trained:g}, the speed this checkpoint was trained at, got {fps}; resample.")
    return float(trained)


@dataclass(frozen=True)
class Window:
    """The conditions of B windows of N latent steps.

    A slot is *dreamed* (it starts as noise and is read afterwards) or only *shown*; a slot that is neither dreamed nor
    has a mask set is empty.
    """

    known: Tensor
    """(B, N, TARGET_CHANNELS, h, w): normalised latents and raymaps; anything where not known."""
    mask: Tensor
    """(B, N, 3): 1 where colour, disparity, ray are known, else 0."""
    dreamed: Tensor
    """(B, N): 1 where the slot is to be dreamed, else 0."""
    positions: tuple[float, ...]
    """N times for RoPE, in latent steps at BASE_FPS."""
    history: int = 0
    """So many slots at the beginning are only shown and look at themselves alone, not at the slots after them."""
    guessed: Tensor | None = None
    """(B, h, w) in 0..1, of the last slot: what share of a cell `known` holds a guess of, in colour and disparity
    that the masks do not call known; an item without any guess is 0 all over."""

    def __getitem__(self, slots: slice) -> Window:
        """Return some of the slots, as a window without history."""
        count = len(self.positions)
        return Window(
            self.known[:, slots],
            self.mask[:, slots],
            self.dreamed[:, slots],
            self.positions[slots],
            history=0,
            guessed=self.guessed if slots.indices(count)[1] == count else None,
        )


def channel_mask(mask: Tensor) -> Tensor:
    """Spread (B, N, 3) over channels: (B, N, TARGET_CHANNELS, 1, 1)."""
    sizes = (LATENT_CHANNELS, LATENT_CHANNELS, RAY_CHANNELS)
    parts = [mask[..., i : i + 1].expand(*mask.shape[:-1], size) for i, size in enumerate(sizes)]
    return torch.cat(parts, dim=-1)[..., None, None]


def transformer_input(window: Window, noisy: Tensor) -> Tensor:
    """Return (B, N, INPUT_CHANNELS, h, w) for noisy latents (B, N, TARGET_CHANNELS, h, w)."""
    height, width = noisy.shape[-2:]
    noisy = noisy * window.dreamed[..., None, None, None].to(noisy.dtype)
    shown = channel_mask(window.mask).to(noisy.dtype)
    flags = window.mask[..., None, None].to(noisy.dtype).expand(-1, -1, -1, height, width)
    if window.guessed is not None:
        guessed = window.guessed[:, None].to(noisy.dtype)
        has_guess = (guessed.amax(dim=(2, 3), keepdim=True) > 0).to(noisy.dtype)
        flags = flags.clone()
        shown[:, -1, : RAY.start] = torch.maximum(shown[:, -1, : RAY.start], has_guess)
        flags[:, -1, :2] = torch.maximum(flags[:, -1, :2], GUESSED * guessed)
    known = window.known.to(noisy.dtype) * shown
    return torch.cat([noisy, known, flags], dim=2)


def rotary_embedding(
    positions: Sequence[float],
    height: int,
    width: int,
    head_dim: int,
    fps: float = BASE_FPS,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Return (cos, sin) of N * height * width tokens, as CogVideoX's transformer wants them.

    Args:
        positions: Times in latent steps; those of step 0 and later are scaled by BASE_FPS / fps (AETHER section 3.2).
        height: Rows of tokens.
        width: Columns of tokens.
        head_dim: Of one attention head; a quarter for time, three eighths each for rows and columns.
        fps: Frames per second of the window.
        device: Where the result lives.

    Returns:
        Two tensors (N * height * width, head_dim), float32.
    """
    time = torch.tensor([p * BASE_FPS / fps if p >= 0 else p for p in positions], dtype=torch.float32)
    parts = []
    grids = torch.meshgrid(
        time, torch.arange(height, dtype=torch.float32), torch.arange(width, dtype=torch.float32), indexing="ij"
    )
    for grid, dim in zip(grids, (head_dim // 4, head_dim // 8 * 3, head_dim // 8 * 3), strict=True):
        parts.append(get_1d_rotary_pos_embed(dim, grid.flatten(), use_real=True))
    cos, sin = (torch.cat([part[i] for part in parts], dim=-1).to(device) for i in (0, 1))
    return cos, sin


def slot_raymaps(
    world_from_camera: Tensor, intrinsics: Tensor, unit: Tensor, height: int, width: int, cell: int, origin_gain: float
) -> Tensor:
    """Return the ray channels of N slots of four frames each.

    Args:
        world_from_camera: (B, N, 4, 4, 4) poses of each slot's four frames, in the window's world.
        intrinsics: (B, 3, 3) pixels.
        unit: (B,) length unit.
        height: Of the picture.
        width: Of the picture.
        cell: Pixels per latent cell.
        origin_gain: s_ray.

    Returns:
        (B, N, RAY_CHANNELS, height / cell, width / cell).
    """
    poses = world_from_camera.flatten(1, 2)
    raymap = encode_raymap(
        poses,
        intrinsics[:, None].expand(-1, poses.shape[1], -1, -1),
        height,
        width,
        grid_height=height // cell,
        grid_width=width // cell,
        unit=unit,
        origin_gain=origin_gain,
    )
    return pack_raymap(raymap, packing="consecutive")
