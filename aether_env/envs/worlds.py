"""Worlds by name, with the settings that an env has for them."""

from __future__ import annotations

import math
import os
from typing import Any, cast

from aether_env.devices import check_device
from aether_env.world_model.promise import WorldModel

_SIZE = ("height", "width", "fps", "frames_per_step", "device")
SETTINGS: dict[str, tuple[str, ...]] = {
    "dream": (*_SIZE, "model", "dtype", "rows_at_once"),
    "sim": (*_SIZE, "split"),
}
"""The settings that worlds of a name have."""
WORLD_SETTINGS = frozenset(name for names in SETTINGS.values() for name in names)


def make_world(world: str, settings: dict[str, Any], horizontal_fov: float | None) -> WorldModel:
    """Return a new world.

    Args:
        world: "dream" or "sim".
        settings: Those of `AetherEnv` that were given; others are the world's own.
        horizontal_fov: Degrees, of the simulator's cameras; None is each scene's own.

    Raises:
        ValueError: There is no such world, or it does not have a setting, or a setting cannot be used.
    """
    if world not in SETTINGS:
        raise ValueError(f"world must be 'dream' or 'sim', got {world!r}; the checkpoint's name goes into model=.")
    check_settings(world, settings)
    given = dict(settings)
    check_device(given.get("device", "cpu"))
    # Imported here because a dream needs PyTorch, a simulation MuJoCo, and neither needs the other.
    if world == "dream":
        model = given.pop("model", "mini")
        if not isinstance(model, str | os.PathLike):
            raise ValueError(f"model must be a name or a folder, got {model!r}.")
        from aether_env.world_model.rollout import DreamWorld

        # A world takes back its own states only, which the promise does not say in types.
        return cast(WorldModel, DreamWorld.from_checkpoint(os.fspath(model), **given))
    if not isinstance(given.get("split", "train"), str):
        raise ValueError(f"split must be 'train', 'validation' or 'test', got {given['split']!r}.")
    from aether_env.sim import SimWorld

    return SimWorld(**given, horizontal_fov=None if horizontal_fov is None else math.radians(horizontal_fov))


def check_settings(world: str | object, settings: dict[str, Any]) -> None:
    """Check that a world has the settings that were given.

    Raises:
        ValueError: It has not: nothing is silently ignored.
    """
    own = SETTINGS.get(world, ()) if isinstance(world, str) else ()
    whose = f"world={world!r}, which has none" if isinstance(world, str) else "a world of one's own"
    for name, value in settings.items():
        if name not in own:
            raise ValueError(f"{name} must be left out for {whose}, got {value!r}.")
