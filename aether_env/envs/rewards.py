"""What a step towards a goal is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np


class Reward(Protocol):
    """What a step is worth, from how far the goal is: any object of this form is a reward."""

    @property
    def pure(self) -> bool:
        """Whether `gaps` alone decide, so that relabelled steps can be rewarded."""
        ...

    def __call__(self, gaps: np.ndarray, before: np.ndarray | None = None) -> Any:
        """Return rewards (...).

        Args:
            gaps: (..., k) float64 >= 0 after the step, each counted in its tolerance: the goal is where all are <= 1.
            before: (..., k) before the step; None where relabelled steps are rewarded, which know none.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Sparse:
    """0.0 at the goal, -1.0 elsewhere."""

    pure: ClassVar[bool] = True

    def __call__(self, gaps: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
        """Return rewards (...); see `Reward`."""
        return np.where(at_goal(gaps), 0.0, -1.0)


@dataclass(frozen=True, kw_only=True)
class Dense:
    """-scale * the mean gap."""

    scale: float = 0.1
    pure: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_setting("scale", self.scale, 0 < self.scale < math.inf, "finite and > 0")

    def __call__(self, gaps: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
        """Return rewards (...); see `Reward`."""
        return -self.scale * gaps.mean(axis=-1)


@dataclass(frozen=True, kw_only=True)
class Potential:
    """gamma * phi(after) - phi(before), and a bonus at the goal; phi = -scale * the mean gap, and 0 at the goal.

    With the agent's own discount `gamma` this changes how fast it learns, not what is best (Ng, Harada and Russell
    1999); an episode ends at the goal, and what comes after an end is worth 0.
    """

    gamma: float = 0.99
    scale: float = 0.1
    bonus: float = 1.0
    pure: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_setting("gamma", self.gamma, 0 < self.gamma <= 1, "in (0, 1]: the agent's discount")
        check_setting("scale", self.scale, 0 < self.scale < math.inf, "finite and > 0")
        check_setting("bonus", self.bonus, 0 <= self.bonus < math.inf, "finite and >= 0")

    def __call__(self, gaps: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
        """Return rewards (...); see `Reward`."""
        assert before is not None
        return self.gamma * self.phi(gaps) - self.phi(before) + np.where(at_goal(gaps), self.bonus, 0.0)

    def phi(self, gaps: np.ndarray) -> np.ndarray:
        """Return the potential (...) of gaps (..., k)."""
        return np.where(at_goal(gaps), 0.0, -self.scale * gaps.mean(axis=-1))


def at_goal(gaps: np.ndarray) -> np.ndarray:
    """Return where (...) all gaps (..., k) are within their tolerance."""
    return np.all(gaps <= 1.0, axis=-1)


def check_setting(name: str, value: Any, fine: bool, rule: str) -> None:
    """Check a setting.

    Raises:
        ValueError: It is not fine; the message says the rule.
    """
    if not fine:
        raise ValueError(f"{name} must be {rule}, got {value!r}.")
