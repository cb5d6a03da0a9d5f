"""The fixed test walks of the simulator that every checkpoint is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from aether_env.camera import relative_to
from aether_env.sim import ClipPlans, SimClips, draw_clips, plan_clips, seed_in
from aether_env.world_model.checkpoint import Settings
from aether_env.world_model.promise import Start

BATCH = 8
"""Clips rendered and dreamed together; more are slower on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Walk:
    """B clips, where else their cameras could have gone, and their numbers."""

    clips: SimClips
    """The truth; depth is FAR_DEPTH where it is not valid."""
    other_path: np.ndarray
    """(B, T, 4, 4) float64: the path of the clip after each, around the end."""
    numbers: np.ndarray
    """(B,) int64 places in the set."""

    @property
    def path(self) -> np.ndarray:
        """(B, T, 4, 4) float64, world = first frame."""
        return self.clips.world_from_camera.cpu().numpy()

    @property
    def intrinsics(self) -> np.ndarray:
        """(B, 3, 3) float64 pixels."""
        return self.clips.intrinsics[:, 0].double().cpu().numpy()

    @property
    def rgb(self) -> np.ndarray:
        """(B, T, H, W, 3) uint8."""
        return self.clips.rgb.cpu().numpy()

    @property
    def first_depth(self) -> np.ndarray:
        """(B, H, W) float32 metres of the first frame, FAR_DEPTH for the sky."""
        return self.clips.depth[:, 0].cpu().numpy()

    def starts(self) -> list[Start]:
        """Return the first frames with their depth and intrinsics."""
        return [
            Start(rgb=rgb, depth=depth, intrinsics=k)
            for rgb, depth, k in zip(self.rgb[:, 0], self.first_depth, self.intrinsics, strict=True)
        ]

    def seeds(self, seed: int) -> list[int]:
        """Return the dreams' seeds: they depend on the clip and not on its batch."""
        return [int(number) + (seed << 32) for number in self.numbers]


@dataclass(frozen=True)
class WalkSet:
    """The first `count` seeds of a split, planned at once and drawn in batches.

    Args:
        count: Clips.
        num_frames: Frames of each. Walks are planned as a whole: of another length they go elsewhere.
        settings: Size and speed of the checkpoint's pictures.
        device: Where they are drawn.
        split: "test", or "validation" for choices.
    """

    count: int
    num_frames: int
    settings: Settings
    device: str = "cpu"
    split: str = "test"

    @cached_property
    def plans(self) -> ClipPlans:
        """All clips before they are drawn."""
        seeds = [seed_in(self.split, number) for number in range(self.count)]
        return plan_clips(seeds, num_frames=self.num_frames, fps=self.settings.fps)

    def draw(self, numbers: np.ndarray) -> Walk:
        """Draw some of the clips."""
        height, width = self.settings.height, self.settings.width
        clips = draw_clips(self.plans[numbers], height=height, width=width, device=self.device)
        other = self.plans.scene_from_camera[(numbers + 1) % self.count]
        return Walk(
            clips=clips,
            other_path=relative_to(other, other[:, :1]),
            numbers=numbers,
        )


def as_pictures(rgb: Tensor | np.ndarray, device: torch.device) -> Tensor:
    """Return uint8 (..., H, W, 3) as float (..., 3, H, W) in [0, 1]."""
    return torch.as_tensor(rgb, device=device).movedim(-1, -3).float() / 255
