"""What an agent may do: action modes turn an action into the camera pose wanted at the end of a step.

World axes are those of the camera at reset (see conventions): its y axis is "vertical", its x-z plane "level".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Protocol

import gymnasium as gym
import numpy as np

from aether_env.camera import (
    OPENCV_FROM_AXES,
    Axes,
    make_pose,
    matrix_from_quaternion,
    motion_from_action,
    rotation_vector_from_matrix,
)
from aether_env.conventions import FAR_DEPTH

MAX_BOUND = 1e6
"""Largest `AbsoluteAction.bound`: float32 actions that far out are already 6 cm apart."""

_STEPS = {
    "stop": (0, 0, 0, 0),
    "forward": (0, 1, 0, 0),
    "back": (0, -1, 0, 0),
    "left": (-1, 0, 0, 0),
    "right": (1, 0, 0, 0),
    "turn left": (0, 0, -1, 0),
    "turn right": (0, 0, 1, 0),
    "look up": (0, 0, 0, 1),
    "look down": (0, 0, 0, -1),
}
"""Of the discrete actions, in their order: signs of right, forward, turn right, look up."""


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
class _Limits:
    """How far one env step goes at most."""

    max_translation: float = 0.3
    """Metres (or the world's units) per env step; of each axis where several move at once."""
    max_rotation: float = math.radians(15)
    """Radians per env step; of each axis where several turn at once."""

    def __post_init__(self) -> None:
        if not (isinstance(self.max_translation, Real) and 0 <= self.max_translation <= FAR_DEPTH):
            raise ValueError(
                f"max_translation must be metres in [0, {FAR_DEPTH}], got {self.max_translation!r}; the default is 0.3."
            )
        # Three axes at full scale turn by sqrt(3) * max_rotation, which has to stay below half a turn.
        _check_angle("max_rotation", self.max_rotation)


@dataclass(frozen=True, kw_only=True)
class Se3Action(_Limits):
    """Six numbers in [-1, 1]: camera translation (x right, y down, z forward), then rotation vector, in camera axes.

    Both are seen from the camera at the beginning of the step: the camera ends `translation * max_translation` away
    and turned by `rotation * max_rotation`. Numbers beyond [-1, 1] are clipped.
    """

    axes: Axes = "opencv"
    """Camera axes that the numbers are given in; with "ros": x forward, y left, z up. See `camera.OPENCV_FROM_AXES`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_axes(self.axes)

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
        return world_from_camera_44 @ _in_opencv_axes(motion_44, self.axes)


@dataclass(frozen=True, kw_only=True)
class PlanarAction(_Limits):
    """Three numbers in [-1, 1]: forward, strafe (+ is right) and yaw (+ turns right), on level ground.

    Height, pitch and roll stay as they are; forward is the level part of the direction of view. As in `Se3Action`,
    forward and strafe are seen from the camera before it turns. Numbers beyond [-1, 1] are clipped.
    """

    @property
    def space(self) -> gym.spaces.Box:
        """Box(-1, 1, (3,), float32)."""
        return gym.spaces.Box(-1.0, 1.0, (3,), np.float32)

    def target(self, action: Any, world_from_camera_44: np.ndarray) -> np.ndarray:
        """Return the (4, 4) pose after the motion; see `ActionMode.target`.

        Raises:
            ValueError: The action has another shape than (3,), or holds NaN or infinity.
        """
        forward, strafe, yaw = checked_vector(action, 3)
        return _walked(
            world_from_camera_44,
            right=strafe * self.max_translation,
            forward=forward * self.max_translation,
            turn=yaw * self.max_rotation,
        )


@dataclass(frozen=True, kw_only=True)
class DiscreteAction(_Limits):
    """One of nine (`names`): stop; forward, back, left, right; turn left, turn right; look up, look down.

    Moves are level and `max_translation` long wherever the camera looks; turns are about the vertical and, like looks,
    `max_rotation` wide. A camera that began level never rolls.
    """

    names: ClassVar[tuple[str, ...]] = tuple(_STEPS)
    """What the numbers 0..8 mean."""

    max_pitch: float = math.radians(60)
    """Radians above or below level where looking up or down stops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_angle("max_pitch", self.max_pitch)

    @property
    def space(self) -> gym.spaces.Discrete:
        """Discrete(9)."""
        return gym.spaces.Discrete(len(self.names))

    def target(self, action: Any, world_from_camera_44: np.ndarray) -> np.ndarray:
        """Return the (4, 4) pose after the motion; see `ActionMode.target`.

        Raises:
            ValueError: The action is not a whole number in 0..8 (or an integer array of one element).
        """
        right, forward, turn, look = _STEPS[self.names[_checked_index(action, len(self.names))]]
        pose_44 = _walked(
            world_from_camera_44,
            right=right * self.max_translation,
            forward=forward * self.max_translation,
            turn=turn * self.max_rotation,
        )
        # About the camera's own x axis, so that it is the angle that a look changes, whatever the roll.
        pitch = math.atan2(-pose_44[1, 2], pose_44[1, 1])
        # A camera that another mode left beyond the limit stays there instead of being thrown back.
        tilt = look * min(max(self.max_pitch - look * pitch, 0.0), self.max_rotation)
        return pose_44 @ motion_from_action([0.0, 0.0, 0.0], [tilt, 0.0, 0.0])


@dataclass(frozen=True, kw_only=True)
class AbsoluteAction(_Limits):
    """Seven numbers: the position in the world and the quaternion (w, x, y, z) that the camera shall go to.

    One step goes as far as the limits allow: along the straight line at most `max_translation`, by the shortest turn at
    most `max_rotation`, in all and not per axis; the same action again goes on. Positions are clipped to `bound`. Of
    the quaternion only the direction counts: it is normalised, and q and -q are the same.
    """

    bound: float = 10.0
    """Metres (or the world's units) per axis that positions may be from the camera at reset."""
    axes: Axes = "opencv"
    """Axes of world and camera that the pose is given in, as in `camera.camera_path_from`; lengths are not rescaled."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.bound, Real) and 0 < self.bound <= MAX_BOUND):
            raise ValueError(f"bound must be metres in (0, {MAX_BOUND:g}], got {self.bound!r}; the default is 10.")
        _check_axes(self.axes)

    @property
    def space(self) -> gym.spaces.Box:
        """Box((7,), float32): three numbers within +-bound, four within +-1."""
        high_7 = np.array([self.bound] * 3 + [1.0] * 4, np.float32)
        return gym.spaces.Box(-high_7, high_7, dtype=np.float32)

    def target(self, action: Any, world_from_camera_44: np.ndarray) -> np.ndarray:
        """Return the (4, 4) pose on the way to that of the action; see `ActionMode.target`.

        Raises:
            ValueError: The action has another shape than (7,), holds NaN or infinity, or its quaternion is zero.
        """
        goal_44 = _in_opencv_axes(self._goal(action), self.axes)
        rotation_33, centre_3 = world_from_camera_44[:3, :3], world_from_camera_44[:3, 3]
        way_3 = _shortened(goal_44[:3, 3] - centre_3, self.max_translation)
        turn_3 = _shortened(rotation_vector_from_matrix(rotation_33.T @ goal_44[:3, :3]), self.max_rotation)
        return make_pose(rotation_33 @ motion_from_action([0.0, 0.0, 0.0], turn_3)[:3, :3], centre_3 + way_3)

    def _goal(self, action: Any) -> np.ndarray:
        """Return the pose (4, 4) that the action names, in the user's axes."""
        action_7 = _finite_vector(action, 7)
        largest = np.abs(action_7[3:]).max()
        if largest < 1e-6:
            raise ValueError(
                f"action must end in a quaternion (w, x, y, z) that is not zero, got {action_7[3:].tolist()}; "
                "1, 0, 0, 0 looks where the camera looked at reset."
            )
        # Scaled into the box, not clipped: clipping would turn a long quaternion to another direction.
        quaternion_4 = action_7[3:] / largest
        return make_pose(matrix_from_quaternion(quaternion_4), np.clip(action_7[:3], -self.bound, self.bound))


_MODES: dict[str, type[Se3Action | PlanarAction | DiscreteAction | AbsoluteAction]] = {
    "se3": Se3Action,
    "planar": PlanarAction,
    "discrete": DiscreteAction,
    "absolute": AbsoluteAction,
}


def make_action_mode(mode: str | ActionMode, *, max_translation: float, max_rotation: float) -> ActionMode:
    """Return an action mode from its name.

    Args:
        mode: "se3", "planar", "discrete", "absolute", or an object with `space` and `target`, which is returned as it
            is and has limits of its own.
        max_translation: Metres (or the world's units) per env step, for a name.
        max_rotation: Radians per env step, for a name.

    Raises:
        ValueError: Another name, an object that is no action mode, or limits out of range.
    """
    if isinstance(mode, str) and mode in _MODES:
        return _MODES[mode](max_translation=max_translation, max_rotation=max_rotation)
    # A class has both attributes as well, but cannot act before it is made.
    if isinstance(mode, str | type) or not (hasattr(mode, "space") and hasattr(mode, "target")):
        names = ", ".join(map(repr, _MODES))
        raise ValueError(f"action_mode must be one of {names} or an object with space and target, got {mode!r}.")
    return mode


def checked_vector(action: Any, length: int) -> np.ndarray:
    """Return the action as (length,) float64, clipped to [-1, 1].

    Raises:
        ValueError: It is not a vector of `length` finite numbers.
    """
    return np.clip(_finite_vector(action, length), -1.0, 1.0)


def _finite_vector(action: Any, length: int) -> np.ndarray:
    """Return the action as a new (length,) float64, not clipped; ValueError if it is no such vector."""
    try:
        array = np.asarray(action)
        # NumPy would read numbers out of strings, and drop the imaginary part of complex ones.
        if array.dtype.kind not in "biufO":
            raise TypeError(f"{array.dtype} is no type of numbers")
        vector = array.astype(np.float64)
    # RuntimeError: a PyTorch tensor that needs a gradient.
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"action must be {length} numbers (see env.action_space), got {action!r}.") from error
    if vector.shape != (length,):
        raise ValueError(f"action must have shape ({length},), got {vector.shape}; see env.action_space.")
    if not np.isfinite(vector).all():
        raise ValueError(f"action must be finite numbers (see env.action_space), got {vector.tolist()}.")
    return vector


def _checked_index(action: Any, count: int) -> int:
    """Return the action as an int in 0..count - 1; ValueError if it is none."""
    try:
        array = np.asarray(action)
    except (TypeError, ValueError, RuntimeError):
        array = np.empty(0)
    # Stable-Baselines3 gives arrays of one element where it has one env. A bool is of another kind.
    if array.dtype.kind not in "iu" or array.size != 1 or not 0 <= array.item() < count:
        raise ValueError(f"action must be a whole number in 0..{count - 1} (see env.action_space), got {action!r}.")
    return int(array.item())


def _check_angle(name: str, angle: float) -> None:
    """Raise ValueError unless `angle` is at most a quarter turn."""
    if not (isinstance(angle, Real) and 0 <= angle <= math.pi / 2):
        raise ValueError(f"{name} must be radians in [0, pi / 2], got {angle!r}; use math.radians for degrees.")


def _check_axes(axes: str) -> None:
    """Raise ValueError unless `axes` is a name that `camera` knows."""
    if not isinstance(axes, str) or axes not in OPENCV_FROM_AXES:
        raise ValueError(f"axes must be one of {', '.join(OPENCV_FROM_AXES)}, got {axes!r}.")


def _in_opencv_axes(pose_44: np.ndarray, axes: Axes) -> np.ndarray:
    """Return a pose or motion (4, 4) that is given in other axes.

    Turning the matrix as a whole also gives the rotation of left-handed axes its right sense, which turning its
    rotation vector would not.
    """
    turn_44 = make_pose(OPENCV_FROM_AXES[axes], np.zeros(3))
    return turn_44 @ pose_44 @ turn_44.T


def _walked(world_from_camera_44: np.ndarray, *, right: float, forward: float, turn: float) -> np.ndarray:
    """Return the pose (4, 4) after a level move (metres), then a turn to the right (radians) about the vertical."""
    rotation_33, centre_3 = world_from_camera_44[:3, :3], world_from_camera_44[:3, 3]
    way_3 = _about_vertical(_heading(rotation_33)) @ np.array([right, 0.0, forward])
    return make_pose(_about_vertical(turn) @ rotation_33, centre_3 + way_3)


def _heading(rotation_33: np.ndarray) -> float:
    """Return how far right of the camera at reset a camera looks, radians."""
    right_3, forward_3 = rotation_33[:, 0], rotation_33[:, 2]
    if math.hypot(forward_3[0], forward_3[2]) < 1e-6:
        # Straight up or down has no level part. The picture's right side is level then, and forward is left of it.
        return math.atan2(-right_3[2], right_3[0])
    return math.atan2(forward_3[0], forward_3[2])


def _about_vertical(angle: float) -> np.ndarray:
    """Return the rotation (3, 3) to the right about the world's y axis, which points down."""
    return motion_from_action([0.0, 0.0, 0.0], [0.0, angle, 0.0])[:3, :3]


def _shortened(vector: np.ndarray, limit: float) -> np.ndarray:
    """Return the vector, at most `limit` long."""
    length = float(np.linalg.norm(vector))
    return vector if length <= limit else vector * (limit / length)
