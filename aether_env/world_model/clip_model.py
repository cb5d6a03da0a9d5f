"""What the pipeline asks of a checkpoint: the three tasks on batches of whole windows, in the checkpoint's own size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ClipResult:
    """B windows of T frames. Poses are relative to the first frame; lengths are metres where `metric`, else units."""

    rgb: np.ndarray
    """(B, T, H, W, 3) uint8; the given pictures where they were given."""
    depth: np.ndarray
    """(B, T, H, W) float32 z-depth."""
    world_from_camera: np.ndarray
    """(B, T, 4, 4) float64, as the raymaps say; smoothing is the caller's."""
    intrinsics: np.ndarray
    """(B, T, 3, 3) float64, pixels."""
    raymap: np.ndarray
    """(B, T, 6, h, w) float32 as the model said it."""
    unit: np.ndarray
    """(B,) float64: metres of one unit, 1 where not metric."""
    metric: np.ndarray
    """(B,) bool: scale was known from depth."""
    model_rgb: Tensor | None = None
    """(B, T, 3, H, W) in [0, 1] as the model said it, also of given pictures, where it tells."""
    model_disparity: Tensor | None = None
    """(B, T, H, W) as the model said it, before it was cut off and scaled, where it tells."""

    def __getitem__(self, rows: Any) -> Self:
        told = {f.name: value[rows] for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return replace(self, **told)


class Piece(NamedTuple):
    """Consecutive frames of B long walks."""

    rgb: np.ndarray
    """(B, t, H, W, 3) uint8."""
    depth: np.ndarray
    """(B, t, H, W) float32."""


class ClipModel(Protocol):
    """A checkpoint as functions of batches. What each item becomes depends on it and its own seed alone.

    Shapes: pictures are (B, H, W, 3), videos (B, T, H, W, 3) with T one of `lengths`, both uint8 or float32 in [0, 1];
    depth is (B, H, W) or (B, T, H, W) metres and NaN where unknown, paths (B, T, 4, 4), intrinsics (B, 3, 3) pixels,
    raymaps (B, T, 6, h, w) with h, w of `raymap_hw`.
    """

    height: int
    """Rows of a picture."""
    width: int
    """Columns of a picture."""
    lengths: tuple[int, ...]
    """Frames that a window may have, rising."""
    rates: tuple[float, ...]
    """Frames per second that it was trained at."""
    raymap_hw: tuple[int, int] | None
    """Cells of a raymap; the tasks then take `raymap` in place of a path. None where they do not."""
    other_rates: bool
    """Whether it can be asked for other frames per second."""
    at_once: int
    """Items that are asked for together, unless told otherwise."""
    limits: str
    """How fast and how far cameras may go: whose limits those of `paths.check_range` are."""
    progress: Callable[[int, int], None] | None
    """Called with (steps done, all steps) where a window takes many."""

    @property
    def components(self) -> dict[str, Any]:
        """The parts, by the names of their folders."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def to(self, device: str | torch.device) -> Self:
        """Move everything to a device."""
        ...

    def save(self, folder: Path) -> None:
        """Write the checkpoint's folder."""
        ...

    def units(self, depth: np.ndarray) -> np.ndarray:
        """Return the metres (B,) of one unit of length, where first frames have the depth (B, H, W)."""
        ...

    def reconstruct(
        self,
        video: np.ndarray,
        *,
        depth: np.ndarray | None = None,
        world_from_camera: np.ndarray | None = None,
        intrinsics: np.ndarray | None = None,
        seeds: Sequence[int] | None = None,
        fps: float | None = None,
    ) -> ClipResult:
        """Find depth and path of a video."""
        ...

    def predict(
        self,
        picture: np.ndarray | None,
        *,
        depth: np.ndarray | None = None,
        world_from_camera: np.ndarray | None = None,
        intrinsics: np.ndarray | None = None,
        seeds: Sequence[int] | None = None,
        fps: float | None = None,
        num_frames: int | None = None,
    ) -> ClipResult:
        """Dream what follows a picture, along a path or freely; without a picture, from the path alone or nothing."""
        ...

    def plan(
        self,
        picture: np.ndarray,
        goal: np.ndarray,
        *,
        depth: np.ndarray | None = None,
        goal_depth: np.ndarray | None = None,
        world_from_camera: np.ndarray | None = None,
        intrinsics: np.ndarray | None = None,
        seeds: Sequence[int] | None = None,
        fps: float | None = None,
        num_frames: int | None = None,
    ) -> ClipResult:
        """Dream the way to a goal picture."""
        ...

    def follow(
        self,
        picture: np.ndarray,
        *,
        world_from_camera: np.ndarray,
        intrinsics: np.ndarray,
        depth: np.ndarray | None = None,
        seeds: Sequence[int] | None = None,
        fps: float | None = None,
    ) -> Iterator[Piece]:
        """Dream along a path (B, T, 4, 4) that is longer than a window; the pieces together have its T frames."""
        ...
