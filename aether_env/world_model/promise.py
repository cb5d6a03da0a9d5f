"""What an env may ask of any world, dreamed or simulated: the WorldModel promise and what passes through it.

Everything here is batched over B independent worlds and speaks numpy, so that an env needs neither torch nor MuJoCo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

BRANCHES = 2**32
"""Numbers of noise branches: `WorldModel.branch` takes 0 up to here."""


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

    @classmethod
    def joined(cls, parts: Sequence[Frames]) -> Frames:
        """Return batches one after the other."""
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})


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

    def branch(self, state: RolloutState, rows: Sequence[int], numbers: Sequence[int] | None) -> RolloutState:
        """Return chosen worlds, any of them as often as wanted, each with noise of its own or with shared noise.

        What a dream shows next follows from its noise, and its noise from its episode, its number and its steps. So
        copies of one row with the same number are the same dream: candidate actions are compared under equal luck, as
        the cross-entropy method wants it. Copies with different numbers are different dreams of what comes next:
        several plans. An episode begins with the number 0; a new number takes the place of the old one. The simulator
        has no noise and only picks the rows.

        Args:
            state: Of `start` or `advance`; it is not modified.
            rows: At least one, each in 0..B - 1.
            numbers: One for each row, in 0..BRANCHES - 1; None: every row keeps its own.

        Raises:
            ValueError: A row or a number that there is not.
        """
        ...

    def freeze(self, state: RolloutState) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return all of a state, to be written down: undone by `thaw`, bit for bit.

        Returns:
            Arrays of their own, each with B as its first dimension; and what JSON can hold, the same for all B: which
            world the state is of.
        """
        ...

    def thaw(self, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> RolloutState:
        """Return the state that `freeze` wrote down; it goes on as if there had been no stop.

        Args:
            arrays: Of `freeze`; they are copied.
            about: Of `freeze`.

        Raises:
            ValueError: It is of another world, or not a state that this world could have come to. Says what is wrong.
        """
        ...

    def close(self) -> None:
        """Free what is held."""
        ...


def checked_branch(
    count: int, rows: Sequence[int], numbers: Sequence[int] | None
) -> tuple[list[int], list[int] | None]:
    """Return the rows and numbers of `WorldModel.branch` as lists of int, for a state of `count` worlds.

    Raises:
        ValueError: See `WorldModel.branch`.
    """
    rows = _whole_numbers("rows", rows, count)
    if not rows:
        raise ValueError("rows must name at least one world, got none.")
    if numbers is None:
        return rows, None
    numbers = _whole_numbers("numbers", numbers, BRANCHES)
    if len(numbers) != len(rows):
        raise ValueError(f"numbers must be one for each of {len(rows)} rows, or None, got {len(numbers)}.")
    return rows, numbers


def check_about(about: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Check that a frozen state is of this very world.

    Args:
        about: What was frozen with it.
        own: What this world freezes with its states.

    Raises:
        ValueError: They differ; names the first thing that does.
    """
    if not isinstance(about, Mapping):
        raise ValueError(f"the snapshot must say of which world it is, got {about!r:.80}.")
    unknown = sorted(set(about) - set(own), key=str)
    for name, value in own.items():
        if name not in about or about[name] != value:
            theirs = f"{about[name]!r:.80}" if name in about else "not given"
            raise ValueError(
                f"the snapshot's {name} is {theirs}, but this world's is {value!r}; "
                "restore it in a world made like the one that it was taken from."
            )
    if unknown:
        raise ValueError(f"the snapshot says {unknown[:3]} of its world, which this version does not know.")


def check_arrays(arrays: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Check that a frozen state has all its arrays and no other, and that they are finite.

    Args:
        arrays: By name, each (B, ...).
        wanted: The type and the shape without B of each.

    Raises:
        ValueError: They are not what is wanted; names the first that is not.
    """
    count = None
    for name, (dtype, shape) in wanted.items():
        array = arrays.get(name)
        if not isinstance(array, np.ndarray):
            raise ValueError(f"the snapshot has no array {name!r}: it is of another version or incomplete.")
        count = len(array) if count is None and array.ndim else count
        if array.dtype != np.dtype(dtype) or array.shape != (count, *shape) or not count:
            raise ValueError(
                f"the snapshot's {name} must be {dtype} of shape {(count or 'worlds', *shape)}, "
                f"got {array.dtype} of shape {array.shape}."
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"the snapshot's {name} must be finite, but {int((~np.isfinite(array)).sum())} are not.")
    unknown = sorted(set(arrays) - set(wanted), key=str)
    if unknown:
        raise ValueError(f"the snapshot has the arrays {unknown[:3]}, which a state of this world does not have.")


def check_rules(rules: Mapping[str, np.ndarray]) -> None:
    """Check what must hold between the numbers of a frozen state.

    Args:
        rules: What must hold ("unit must be positive"), and whether it does, anywhere and everywhere.

    Raises:
        ValueError: The first rule that does not hold.
    """
    for rule, holds in rules.items():
        if not np.all(holds):
            raise ValueError(f"the snapshot's {rule}: no world comes to such a state; take a new snapshot.")


def _whole_numbers(name: str, values: Sequence[int], end: int) -> list[int]:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < end:
            raise ValueError(f"{name} must be whole numbers in 0..{end - 1}, got {value!r}.")
    return [int(value) for value in values]
