"""What an env may ask of any world, dreamed or simulated: the WorldModel promise and what passes through it.

Everything here is batched over B independent worlds and speaks numpy, so that an env needs neither torch nor MuJoCo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Frames:
    """What B cameras saw during T frames. World axes are the world's own: the camera at reset (see conventions)."""

    rgb: np.ndarray
    """(B, T, H, W, 3) uint8."""
    depth: np.ndarray
    """(B, T, H, W) float32 z-depth, finite, in (0, FAR_DEPTH]; metres where `metric`, else the world's own unit."""
    world_from_camera: np.ndarray
    """(B, T, 4, 4) float64."""
    intrinsics: np.ndarray
    """(B, T, 3, 3) float64, pixels of (H, W)."""
    metric: np.ndarray
    """(B,) bool: lengths are metres."""

    def __getitem__(self, rows: slice | np.ndarray | list[int]) -> Self:
        """Return the given rows of the batch."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where one world begins: a picture for a dream, a scene for the simulator; what is None is the world's choice."""

    rgb: np.ndarray | None = None
    """(H, W, 3) uint8 of the world's own size."""
    depth: np.ndarray | None = None
    """(H, W) float32 metres; non-finite or <= 0 where unknown."""
    intrinsics: np.ndarray | None = None
    """(3, 3) pixels."""
    scene_seed: int | None = None
    """The simulator's scene; a dream ignores it."""


@runtime_checkable
class RolloutState(Protocol):
    """A batch of worlds frozen between two steps. Immutable: `advance` returns a new one."""

    def __len__(self) -> int:
        """Return the number of worlds."""
        ...

    def __getitem__(self, rows: Any) -> Self:
        """Return the given rows."""
        ...


class WorldModel(Protocol):
    """A world that a camera can move through."""

    height: int
    width: int
    frames_per_step: int
    fps: float
    needs_picture: bool
    """True where `Start.rgb` is needed (a dream), False where the world brings its own scenes."""

    def start(self, starts_B: Sequence[Start], seeds_B: Sequence[int]) -> tuple[RolloutState, Frames]:
        """Begin B worlds; the frames hold the one picture at reset (T = 1)."""
        ...

    def advance(self, state: RolloutState, world_from_camera_BT44: np.ndarray) -> tuple[RolloutState, Frames]:
        """Show what the cameras see along the next `frames_per_step` poses; `state` is not modified.

        Args:
            state: Of `start` or `advance`.
            world_from_camera_BT44: (B, frames_per_step, 4, 4) float64, world = the camera at reset.

        Returns:
            The new state, and the frames (T = frames_per_step) with the poses they were really seen from.
        """
        ...

    def join(self, states: Sequence[RolloutState]) -> RolloutState:
        """Concatenate batches."""
        ...

    def describe(self, state: RolloutState) -> list[dict[str, Any]]:
        """Return B small dicts (numbers only) for `info`: for example `unit`, `scene_seed`."""
        ...

    def close(self) -> None:
        """Free what is held."""
        ...
