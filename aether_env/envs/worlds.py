"""Worlds by name, with the settings that an env has for them."""

from __future__ import annotations

import math
import os
from typing import Any, Literal, cast

from aether_env.devices import check_device
from aether_env.world_model.promise import WorldModel


def make_world(
    world: str,
    *,
    model: str,
    size: dict[str, Any],
    horizontal_fov: float | None,
    split: str,
    device: str,
    dtype: Literal["float32", "bfloat16"],
) -> WorldModel:
    """Return a new world.

    Args:
        world: "dream" or "sim".
        model: Checkpoint of a dream.
        size: `height`, `width`, `fps` and `frames_per_step`; None is the world's own.
        horizontal_fov: Degrees, of the simulator's cameras; None is each scene's own.
        split: Of the simulator's scenes.
        device: Where it computes.
        dtype: Of a dream's network.

    Raises:
        ValueError: There is no such world, or a setting cannot be used.
    """
    if not isinstance(model, str | os.PathLike):
        raise ValueError(f"model must be a name or a folder, got {model!r}.")
    if not isinstance(split, str):
        raise ValueError(f"split must be 'train', 'validation' or 'test', got {split!r}.")
    # Imported here because a dream needs PyTorch, a simulation MuJoCo, and neither needs the other.
    if world == "dream":
        check_device(device)
        from aether_env.world_model.rollout import DreamWorld

        # A world takes back its own states only, which the promise does not say in types.
        return cast(WorldModel, DreamWorld.from_checkpoint(model, device=device, dtype=dtype, **size))
    if world == "sim":
        check_device(device)
        from aether_env.sim import SimWorld

        fov = None if horizontal_fov is None else math.radians(horizontal_fov)
        size = {name: value for name, value in size.items() if value is not None}
        return SimWorld(**size, horizontal_fov=fov, split=split, device=device)
    raise ValueError(f"world must be 'dream' or 'sim', got {world!r}; the checkpoint's name goes into model=.")
