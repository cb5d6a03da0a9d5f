"""What an episode is for: a task judges the frames of every step. It knows no world, so it works in all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from aether_env.world_model.promise import Frames


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What a task is told when an episode begins."""

    frames: Frames
    """The first picture, B = T = 1; its camera is the world (see conventions)."""
    options: Mapping[str, Any]
    """Those of `reset(options=...)` that the task names."""
    np_random: np.random.Generator
    """The env's generator, to sample goals from."""
    seen: Frames | None = None
    """What the world shows from where the task wanted to look (`Task.look_from`), B = T = 1."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What a task is told after a step."""

    frames: Frames
    """The frames of the step, B = 1, T = frames per step."""
    collided: bool
    """The camera was stopped by a surface."""
    moved: float
    """How far the camera's centre went in this step, metres (or the world's units)."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a task says about one step."""

    reward: float = 0.0
    terminated: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)
    """Numbers and fresh arrays for the step's info; what is not known is left out."""


class Task:
    """A goal, its reward and its end. A task of one's own overrides what it needs, often only `judge`.

    A task holds settings only, so that one serves many envs. What changes during an episode is a state that `start` and
    `judge` return and that nobody modifies, so that a step which fails leaves no trace. It is made of None, numbers,
    strings, numpy arrays, and dicts, lists and tuples of these, so that it fits into a snapshot.
    """

    options: frozenset[str] = frozenset()
    """The keys of `reset(options=...)` that this task reads, beside the world's own."""

    def observation_space(self, height: int, width: int, far: float) -> dict[str, gym.Space[Any]]:
        """Return the spaces of what the task adds to the observation.

        Args:
            height: Pixels of the frames.
            width: Pixels of the frames.
            far: Depth at which observations end, metres.
        """
        return {}

    def look_from(self, opening: Opening) -> np.ndarray | None:
        """Return a pose (4, 4) from which the task wants to see the world before it starts; None: from nowhere.

        The camera goes there the straight way from the start, in steps no longer than an action's, together with those
        of the other rows of a batch; the episode does not notice. `opening.seen` is what it saw.

        Raises:
            ValueError: An option is not usable.
        """
        return None

    def start(self, opening: Opening) -> tuple[Any, Mapping[str, Any]]:
        """Begin an episode.

        Returns:
            The task's state, and numbers and fresh arrays for the info of reset.

        Raises:
            ValueError: An option is not usable.
        """
        return None, {}

    def observe(self, state: Any, frames: Frames) -> dict[str, np.ndarray]:
        """Return a fresh array for each key of `observation_space`, for the last frame of `frames` (B = 1).

        The env clips numbers into their Box: a task does not know `far`.
        """
        return {}

    def judge(self, state: Any, moment: Moment) -> tuple[Any, Judgement]:
        """Judge one step; `state` is not modified.

        Returns:
            The new state and the judgement.
        """
        return state, Judgement()


class Explore(Task):
    """No goal: reward 0.0, never terminates."""
