"""Gymnasium environments whose world is dreamed by a generative RGB-D video model.

    import aether_env                     # or gym.make("aether_env:Aether-v0")
    env = gym.make("Aether-v0")           # a dream that starts from one picture
    env = gym.make("AetherSim-v0")        # the same spaces and tasks over a simulator that knows the truth

Importing this package loads neither PyTorch nor MuJoCo: the names below are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium as gym

_MODULE_OF_NAME = {
    "AetherPipeline": "aether_env.world_model.pipeline",
    "ActionMode": "aether_env.envs.actions",
    "AetherEnv": "aether_env.envs.aether",
    "Explore": "aether_env.envs.tasks",
    "Frames": "aether_env.world_model.promise",
    "Judgement": "aether_env.envs.tasks",
    "Se3Action": "aether_env.envs.actions",
    "Start": "aether_env.world_model.promise",
    "Task": "aether_env.envs.tasks",
    "WorldModel": "aether_env.world_model.promise",
}
"""The public names, and where each one lives."""

__all__ = list(_MODULE_OF_NAME)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}.")
    return getattr(importlib.import_module(_MODULE_OF_NAME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


# Explore never terminates: 200 steps are an episode unless gym.make(..., max_episode_steps=n) says otherwise.
for _id, _world in (("Aether-v0", "dream"), ("AetherSim-v0", "sim")):
    gym.register(
        id=_id,
        entry_point="aether_env.envs.aether:AetherEnv",
        max_episode_steps=200,
        kwargs={"world": _world},
    )
