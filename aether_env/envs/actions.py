"""What an agent may do: action modes turn an action into the camera pose wanted at the end of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from aether_env.camera import motion_from_action


class ActionMode(Protocol):
    """A way to steer the camera. The env interpolates the poses in between."""

    @property
    def space(self) -> gym.Space[Any]:
        """The action space of one env."""
        ...

    def target(self, action: Any, world_from_camera_44: np.ndarray) -> np.ndarray:
        """Return the pose wanted at the end of the step.

        Args:
            action: What the agent gave, unchecked.
            world_from_camera_44: (4, 4) float64, where the camera is; not modified.

        Returns:
            (4, 4) float64 camera-to-world pose (see conventions).

        Raises:
            ValueError: The action is not one of `space`.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Se3Action:
    """Six numbers in [-1, 1]: camera translation (x right, y down, z forward), then rotation vector, in camera axes.

    Both are seen from the camera at the beginning of the step: the camera ends `translation * max_translation` away
    and turned by `rotation * max_rotation`. Numbers beyond [-1, 1] are clipped.
    """

    max_translation: float = 0.3
    """Metres (or the world's units) per axis and env step."""
    max_rotation: float = math.radians(15)
    """Radians per axis and env step."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_translation < math.inf:
            raise ValueError(
                f"max_translation must be finite metres >= 0, got {self.max_translation}; the default is 0.3."
            )
        # Three axes at full scale turn by sqrt(3) * max_rotation, which has to stay below half a turn.
        if not 0 <= self.max_rotation <= math.pi / 2:
            raise ValueError(
                f"max_rotation must be radians in [0, pi / 2], got {self.max_rotation}; use math.radians for degrees."
            )

    @property
    def space(self) -> gym.spaces.Box:
        """Box(-1, 1, (6,), float32)."""
        return gym.spaces.Box(-1.0, 1.0, (6,), np.float32)

    def target(self, action: Any, world_from_camera_44: np.ndarray) -> np.ndarray:
        """Return the (4, 4) pose after the motion; see `ActionMode.target`.

        Raises:
            ValueError: The action has another shape than (6,), or holds NaN or infinity.
        """
        action_6 = checked_vector(action, 6)
        motion_44 = motion_from_action(action_6[:3] * self.max_translation, action_6[3:] * self.max_rotation)
        return world_from_camera_44 @ motion_44


def checked_vector(action: Any, length: int) -> np.ndarray:
    """Return the action as (length,) float64, clipped to [-1, 1].

    Raises:
        ValueError: It is not a vector of `length` finite numbers.
    """
    try:
        vector = np.asarray(action, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"action must be {length} numbers in [-1, 1], got {action!r}.") from error
    if vector.shape != (length,):
        raise ValueError(f"action must have shape ({length},), got {vector.shape}; see env.action_space.")
    if not np.isfinite(vector).all():
        raise ValueError(f"action must be finite numbers in [-1, 1], got {vector.tolist()}.")
    return np.clip(vector, -1.0, 1.0)
