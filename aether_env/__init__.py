"""Gymnasium environments whose world is dreamed by a generative RGB-D video model.

    import aether_env                     # or gym.make("aether_env:Aether-v0")
    env = gym.make("Aether-v0")           # a dream that starts from one picture
    env = gym.make("AetherSim-v0")        # the same spaces and tasks over a simulator that knows the truth
    envs = gym.make_vec("Aether-v0", 16)  # many at once, one call of the world a step

`AetherGoal-v0` and `AetherSimGoal-v0` are the same for agents that learn from other goals in hindsight (HER).

Importing this package loads neither PyTorch nor MuJoCo: the names below are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium as gym

_MODULE_OF_NAME = {
    "AetherPipeline": "aether_env.world_model.pipeline",
    "ActionMode": "aether_env.envs.actions",
    "AbsoluteAction": "aether_env.envs.actions",
    "AetherEnv": "aether_env.envs.aether",
    "AetherGoalEnv": "aether_env.envs.aether",
    "AetherGoalVectorEnv": "aether_env.envs.vector",
    "AetherVectorEnv": "aether_env.envs.vector",
    "Dense": "aether_env.envs.rewards",
    "DepthGoal": "aether_env.envs.goals",
    "DiscreteAction": "aether_env.envs.actions",
    "Explore": "aether_env.envs.tasks",
    "Frames": "aether_env.world_model.promise",
    "GoalTask": "aether_env.envs.goals",
    "ImageGoal": "aether_env.envs.goals",
    "Judgement": "aether_env.envs.tasks",
    "Moment": "aether_env.envs.tasks",
    "Opening": "aether_env.envs.tasks",
    "PlanarAction": "aether_env.envs.actions",
    "PoseGoal": "aether_env.envs.goals",
    "Potential": "aether_env.envs.rewards",
    "Se3Action": "aether_env.envs.actions",
    "Sparse": "aether_env.envs.rewards",
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
for _name, _world in (("Aether", "dream"), ("AetherSim", "sim")):
    for _goal in ("", "Goal"):
        gym.register(
            id=f"{_name}{_goal}-v0",
            entry_point=f"aether_env.envs.aether:Aether{_goal}Env",
            vector_entry_point=f"aether_env.envs.vector:Aether{_goal}VectorEnv",
            max_episode_steps=200,
            kwargs={"world": _world},
        )
