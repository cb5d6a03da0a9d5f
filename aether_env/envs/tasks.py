"""What an episode is for: a task judges the frames of every step. It knows no world, so it works in all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from aether_env.world_model.promise import Frames


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a task says about one step."""

    reward: float = 0.0
    terminated: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)
    """Numbers and arrays for the step's info."""


class Task(Protocol):
    """A goal, its reward and its end.

    What changes during an episode lives in a state that `start` and `judge` return and that nobody modifies: one task
    serves many envs, and a step that fails leaves no trace.
    """

    @property
    def options(self) -> frozenset[str]:
        """The keys of `reset(options=...)` that this task reads, beside the world's own."""
        ...

    def start(
        self, frames: Frames, options: Mapping[str, Any], np_random: np.random.Generator
    ) -> tuple[Any, Mapping[str, Any]]:
        """Begin an episode.

        Args:
            frames: The first picture, B = T = 1.
            options: Those of `reset` that `options` names.
            np_random: The env's generator, to sample goals from.

        Returns:
            The task's state, and numbers and arrays for the info of reset.

        Raises:
            ValueError: An option is not usable.
        """
        ...

    def judge(self, state: Any, frames: Frames) -> tuple[Any, Judgement]:
        """Judge the frames of one step (B = 1, T = frames per step); `state` is not modified.

        Returns:
            The new state and the judgement.
        """
        ...


class Explore:
    """No goal: reward 0.0, never terminates."""

    options: frozenset[str] = frozenset()

    def start(
        self, frames: Frames, options: Mapping[str, Any], np_random: np.random.Generator
    ) -> tuple[None, Mapping[str, Any]]:
        """Begin; nothing to remember."""
        return None, {}

    def judge(self, state: None, frames: Frames) -> tuple[None, Judgement]:
        """Judge every step the same."""
        return None, Judgement()
