"""Scripted walks: sequences of actions for an env's six numbers in [-1, 1] (see `Se3Action`).

Columns: translation x right, y down, z forward; then rotation about x (+ looks up), y (+ turns right), z. 1 is the
env's limit per step.
"""

from __future__ import annotations

import numpy as np

from aether_env.envs.actions import ActionMode, Se3Action

RIGHT, DOWN, FORWARD, LOOK_UP, TURN_RIGHT, ROLL = range(6)
"""Columns of an action."""


def forward(num_steps: int, speed: float = 0.5) -> np.ndarray:
    """Return actions (num_steps, 6) that go straight ahead, or back where `speed` is negative."""
    return _steady(num_steps, {FORWARD: speed})


def look_around(num_steps: int, turn: float = 0.5) -> np.ndarray:
    """Return actions (num_steps, 6) that turn on the spot: a quarter of them right, half left, then back."""
    phase = (np.arange(num_steps) + 0.5) / max(num_steps, 1)
    actions = _steady(num_steps, {TURN_RIGHT: turn})
    actions[(phase > 0.25) & (phase < 0.75)] *= -1
    return actions


def arc(num_steps: int, speed: float = 0.5, turn: float = 0.2) -> np.ndarray:
    """Return actions (num_steps, 6) that walk along a circle, to the right where `turn` is positive."""
    return _steady(num_steps, {FORWARD: speed, TURN_RIGHT: turn})


def demo_walk(num_steps: int = 24) -> np.ndarray:
    """Return actions (num_steps, 6): ahead, gentle turns both ways, a few steps aside, a look up and down.

    Parts keep their shares of the walk whatever its length; in all the camera moves less than two metres from its start
    at the env's default limits.
    """
    parts = (
        (2, {FORWARD: 0.6}),
        (4, {FORWARD: 0.4, TURN_RIGHT: 0.35}),
        (5, {RIGHT: -0.4, FORWARD: 0.2, TURN_RIGHT: -0.35}),
        (2, {LOOK_UP: 0.4}),
        (4, {FORWARD: 0.3, LOOK_UP: -0.3}),
        (5, {RIGHT: 0.5, TURN_RIGHT: -0.2, LOOK_UP: 0.1}),
        (2, {FORWARD: -0.5, TURN_RIGHT: 0.5}),
    )
    ends = np.rint(np.cumsum([share for share, _ in parts]) * num_steps / sum(share for share, _ in parts)).astype(int)
    lengths = np.diff(ends, prepend=0)
    return np.concatenate([_steady(length, motion) for length, (_, motion) in zip(lengths, parts, strict=True)])


def walk_poses(actions: np.ndarray, action_mode: ActionMode | None = None) -> np.ndarray:
    """Return the poses (num_steps + 1, 4, 4) that actions lead to; the first is the identity.

    Args:
        actions: (num_steps, ...) of the action mode.
        action_mode: None is the env's default, `Se3Action()`.
    """
    mode = action_mode or Se3Action()
    poses = [np.eye(4)]
    for action in actions:
        poses.append(mode.target(action, poses[-1]))
    return np.stack(poses)


def _steady(num_steps: int, motion: dict[int, float]) -> np.ndarray:
    """Return the same action `num_steps` times, (num_steps, 6) float32."""
    if num_steps < 0:
        raise ValueError(f"num_steps must be >= 0, got {num_steps}.")
    action = np.zeros(6, np.float32)
    for column, value in motion.items():
        if not -1 <= value <= 1:
            raise ValueError(f"speeds and turns must be in [-1, 1], the share of the env's limit, got {value}.")
        action[column] = value
    return np.tile(action, (num_steps, 1))
