"""Camera walks that drive like agents: forward, arcs, turns, strafing, looking up and down, backing, standing still.

A share of them ("free") acts at random, as fast as the env's default actions allow at 12 frames per second.
"""

from __future__ import annotations

import numpy as np

from aether_env.sim.scenes import Scenes
from aether_env.sim.seeds import Dice
from aether_env.sim.solids import Solids

CLEARANCE = 0.25
"""Metres that a walk keeps from every surface, unless a mover comes nearer by itself."""

MAX_SPEED = 1.2
"""Metres per second."""

MAX_TURN = np.deg2rad(45.0)
"""Radians per second of yaw, of pitch and of roll each."""

_SHARES = {"forward": 23, "arc": 20, "turn": 13, "strafe": 9, "look": 8, "back": 7, "still": 4, "free": 16}
_FREE_SPEED = 0.9  # metres per second and axis
_MAX_TILT = np.deg2rad([45.0, 30.0])  # pitch, roll
_EASY_TILT = np.deg2rad([12.0, 0.0])  # walkers come back to this much: scenes start with up to 12 degrees of pitch
_RIGHTING_SECONDS = 1.0
_RETURN_SHARE = 0.1
_SMOOTHING_SECONDS = 0.2
_LOOK_AHEAD_SECONDS = 0.4


def plan_walks(scenes: Scenes, mover_position_NTM3: np.ndarray, *, num_frames: int, fps: float) -> np.ndarray:
    """Return the cameras' poses, (N, T, 4, 4) float64 scene from camera (OpenCV axes); frame 0 is the scenes' start.

    Args:
        scenes: N scenes.
        mover_position_NTM3: Where the movers will be at each frame.
        num_frames: T.
        fps: Frames per second.
    """
    n, dt = len(scenes), 1.0 / fps
    dice = Dice(scenes.seeds, 8 + 16 * (num_frames // 4 + 2), stream=1)
    wishes = _wishes(dice, num_frames, dt)
    returns = dice.take() < _RETURN_SHARE
    turn_away = np.where(dice.take() < 0.5, 1.0, -1.0) * np.deg2rad(40.0)
    middle = num_frames // 2
    ceiling = np.where(scenes.family == 0, scenes.position[:, 3, 2] - CLEARANCE, np.inf)
    highest = np.minimum(ceiling, 2.0)

    solids = Solids(scenes)
    positions, angles = np.zeros((n, num_frames, 3)), np.zeros((n, num_frames, 3))
    positions[:, 0], angles[:, 0] = scenes.start_position, scenes.start_angles
    for t in range(1, num_frames):
        here, facing, wish = positions[:, t - 1], angles[:, t - 1], wishes[:, t]
        cos, sin = np.cos(facing[:, 0]), np.sin(facing[:, 0])
        velocity = np.stack(
            [cos * wish[:, 0] - sin * wish[:, 1], sin * wish[:, 0] + cos * wish[:, 1], wish[:, 2]], axis=-1
        )
        too_far = facing[:, 1:] - np.clip(facing[:, 1:], -_EASY_TILT, _EASY_TILT)
        rates = wish[:, 3:6].copy()
        rates[:, 1:] -= wish[:, 6:] * too_far / _RIGHTING_SECONDS
        if t > middle:  # walk back along the same places, looking the same way
            back = returns[:, None]
            home = 2 * middle - t
            velocity = np.where(back, _at_most((positions[:, home] - here) / dt, MAX_SPEED), velocity)
            rates = np.where(back, (angles[:, home] - facing) / dt, rates)
        there = here + velocity * dt
        there[:, 2] = np.clip(there[:, 2], 0.4, np.maximum(highest, here[:, 2]))
        ahead = here + velocity * _LOOK_AHEAD_SECONDS
        room = solids.clearance(np.stack([there, ahead], axis=1), mover_position_NTM3[:, t])
        blocked = (room[:, 1] < CLEARANCE) & ~(returns & (t > middle))
        rates[:, 0] = np.where(blocked, rates[:, 0] * 0.3 + turn_away, rates[:, 0])
        slow = np.where(blocked, 0.4, 1.0)[:, None]
        positions[:, t] = here + (there - here) * slow
        hit = np.flatnonzero((room[:, 0] < CLEARANCE) | blocked)
        if len(hit):
            positions[hit, t] = _way_out(solids[hit], here[hit], positions[hit, t], mover_position_NTM3[hit, t], dt)
        angles[:, t] = facing + np.clip(rates, -MAX_TURN, MAX_TURN) * dt
        angles[:, t, 1:] = np.clip(angles[:, t, 1:], -_MAX_TILT, _MAX_TILT)
    return camera_pose(positions, angles)


def camera_pose(position: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Return scene from camera (OpenCV axes), (..., 4, 4), of positions (..., 3) and yaw, pitch, roll (..., 3)."""
    yaw, pitch, roll = np.moveaxis(np.asarray(angles, dtype=np.float64), -1, 0)
    forward = np.stack([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], axis=-1)
    level = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros_like(yaw)], axis=-1)
    below = np.cross(forward, level)
    cos, sin = np.cos(roll)[..., None], np.sin(roll)[..., None]
    pose = np.zeros((*yaw.shape, 4, 4))
    pose[..., :3, 0] = cos * level + sin * below
    pose[..., :3, 1] = cos * below - sin * level
    pose[..., :3, 2] = forward
    pose[..., :3, 3] = position
    pose[..., 3, 3] = 1.0
    return pose


def _wishes(dice: Dice, num_frames: int, dt: float) -> np.ndarray:
    """Return wishes, (N, T, 7): forward, left, up in m/s; yaw, pitch, roll in rad/s; coming back to level, 0 to 1."""
    segments = num_frames // 4 + 2
    u = dice.take(segments, 14)
    sign = np.where(u[..., :7] < 0.5, -1.0, 1.0)
    size = np.abs(2 * u[..., :7] - 1)
    kinds = np.searchsorted(np.cumsum(list(_SHARES.values())) / sum(_SHARES.values()), u[..., 7], side="right")
    degrees = np.pi / 180

    def some(share: float, column: int) -> np.ndarray:
        return (u[..., column] < share).astype(np.float64)

    bob = some(0.2, 8) * sign[..., 2] * size[..., 2] * 0.25
    nod = some(0.35, 9) * sign[..., 4] * size[..., 4] * 12 * degrees
    drift = some(0.35, 10) * sign[..., 3] * size[..., 3] * 12 * degrees
    zero, one = np.zeros_like(bob), np.ones_like(bob)
    ahead = 0.5 + 0.7 * u[..., 11]
    turning = sign[..., 3] * (15 + 30 * size[..., 3]) * degrees
    # Like an agent that acts at random: each of the six numbers is anything that the env allows.
    free = 2 * u[..., :6] - 1
    fly, spin = _at_most(free[..., :3] * _FREE_SPEED, MAX_SPEED), free[..., 3:] * MAX_TURN
    by_kind = [
        (ahead, zero, bob, drift, nod, zero, one),
        (0.4 + 0.7 * u[..., 11], zero, bob, sign[..., 3] * (10 + 30 * size[..., 3]) * degrees, nod, zero, one),
        (zero, zero, zero, turning, nod, zero, one),
        (0.3 * u[..., 11], sign[..., 1] * (0.3 + 0.6 * size[..., 1]), bob, drift, nod, zero, one),
        (some(0.4, 12) * ahead * 0.6, zero, zero, drift, sign[..., 4] * (5 + 15 * size[..., 4]) * degrees, zero, one),
        (-(0.2 + 0.5 * u[..., 11]), zero, bob, drift, nod, zero, one),
        (zero, zero, zero, zero, zero, zero, zero),
        (*np.moveaxis(fly, -1, 0), *np.moveaxis(spin, -1, 0), zero),
    ]
    table = np.stack([np.stack(row, axis=-1) for row in by_kind])  # (kind, N, segment, 7)
    n = len(u)
    target = table[kinds, np.arange(n)[:, None], np.arange(segments)]
    lengths = 4 + np.floor(u[..., 13] * 9).astype(np.int64)
    ends = np.cumsum(lengths, axis=1)
    segment = (np.arange(num_frames)[None, :, None] >= ends[:, None]).sum(axis=-1).clip(max=segments - 1)
    wishes = np.take_along_axis(target, segment[..., None], axis=1)
    moving = np.where(dice.take() < 0.75, 1.0, 0.0)[:, None]
    follow = 1 - np.exp(-dt / _SMOOTHING_SECONDS)
    wishes[:, 0] *= moving
    for t in range(1, num_frames):
        wishes[:, t] = wishes[:, t - 1] + follow * (wishes[:, t] - wishes[:, t - 1])
    return wishes


def _way_out(solids: Solids, here: np.ndarray, wished: np.ndarray, mover_position: np.ndarray, dt: float) -> np.ndarray:
    """Return the best next position near a surface: as wished, slower, standing, or stepping away, (n, 3)."""
    flee_xy = here[:, None, :2] - mover_position[..., :2]
    nearest = np.argmin(np.linalg.norm(flee_xy, axis=-1) - solids.mover_radius, axis=1)
    away = flee_xy[np.arange(len(here)), nearest]
    away = away / np.maximum(np.linalg.norm(away, axis=-1, keepdims=True), 1e-6)
    across = np.stack([-away[:, 1], away[:, 0]], axis=-1)
    flat = np.zeros((len(here), 1))
    dodges = [
        np.concatenate([direction * MAX_SPEED * dt, flat], axis=-1)
        for direction in (away, away + across, away - across)
    ]
    options = np.stack(
        [wished, here + 0.4 * (wished - here), here, *[here + _at_most(d, MAX_SPEED * dt) for d in dodges]], axis=1
    )
    room = solids.clearance(options, mover_position)
    good = room >= CLEARANCE
    # The first option that keeps clear, else the one that is clearest; standing still beats a needless dodge.
    choice = np.where(good.any(axis=1), good.argmax(axis=1), room.argmax(axis=1))
    return options[np.arange(len(options)), choice]


def _at_most(vector: np.ndarray, length: float) -> np.ndarray:
    """Return vectors (..., 3) shortened to at most `length`."""
    return vector * np.minimum(1.0, length / np.maximum(np.linalg.norm(vector, axis=-1, keepdims=True), 1e-9))
