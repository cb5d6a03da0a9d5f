"""A clip whose truth is known in closed form: a camera moves along a wall, one pixel a frame, below a moving strip."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from aether_env.sim import SimClips
from aether_env.world_model.clip_model import ClipResult
from training.evaluation.walks import Walk

FRAMES, DEPTH, FOCAL = 17, 3.0, 36.0
STRIP = 4
"""Rows at the top that move."""


def wall_walk(height: int = 32, width: int = 48, *, pixels_per_frame: tuple[int, ...] = (1, 1)) -> Walk:
    """Return clips of a random wall at DEPTH, each moving sideways by some whole pixels a frame."""
    rng = np.random.default_rng(0)
    batch, steps = len(pixels_per_frame), np.arange(FRAMES)
    wall = rng.integers(0, 256, (batch, height, width + 2 * FRAMES, 3), dtype=np.uint8)
    rgb = np.stack(
        [
            np.stack([wall[clip, :, speed * t : speed * t + width] for t in steps])
            for clip, speed in enumerate(pixels_per_frame)
        ]
    )
    rgb[:, :, :STRIP] = rng.integers(0, 256, rgb[:, :, :STRIP].shape, dtype=np.uint8)
    shape = rgb.shape[:-1]
    moving = torch.zeros(shape, dtype=torch.bool)
    moving[:, :, :STRIP] = True
    pose = np.tile(np.eye(4), (batch, FRAMES, 1, 1))
    pose[:, :, 0, 3] = np.array(pixels_per_frame)[:, None] * steps * DEPTH / FOCAL
    intrinsics = torch.tensor([[FOCAL, 0, width / 2], [0, FOCAL, height / 2], [0, 0, 1.0]])
    clips = SimClips(
        rgb=torch.as_tensor(rgb),
        depth=torch.full(shape, DEPTH),
        valid=torch.ones(shape, dtype=torch.bool),
        segmentation=torch.zeros(shape, dtype=torch.int16),
        moving=moving,
        world_from_camera=torch.as_tensor(pose),
        intrinsics=intrinsics.expand(batch, FRAMES, 3, 3),
    )
    return Walk(clips=clips, other_path=pose[::-1].copy(), numbers=np.arange(batch))


class PerfectCodec:
    """Loses nothing: latents are the frames."""

    device = torch.device("cpu")

    def encode_colour(self, rgb: torch.Tensor) -> torch.Tensor:
        return rgb

    def decode_colour(self, latents: torch.Tensor) -> torch.Tensor:
        return latents


class ToldPipeline:
    """Answers every task with what it was told, and remembers how it was asked."""

    def __init__(self, rgb: np.ndarray, path: np.ndarray, walk: Walk, *, metric: bool = True):
        self.codec, self.settings = PerfectCodec(), SimpleNamespace(fps=12.0)
        self.asked: list[dict] = []
        batch = len(rgb)
        self.answer = ClipResult(
            rgb=rgb,
            depth=walk.clips.depth.numpy(),
            world_from_camera=path,
            intrinsics=walk.clips.intrinsics.double().numpy(),
            raymap=np.zeros((*rgb.shape[:2], 6, 2, 2), np.float32),
            unit=np.full(batch, DEPTH),
            metric=np.full(batch, metric),
        )

    def plan(self, picture: np.ndarray, goal: np.ndarray, **kwargs) -> ClipResult:
        self.asked.append({"picture": picture, "goal": goal} | kwargs)
        return self.answer

    def predict(self, picture: np.ndarray, **kwargs) -> ClipResult:
        self.asked.append({"picture": picture} | kwargs)
        return self.answer
