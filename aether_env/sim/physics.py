"""How movers move: C MuJoCo on models without pictures, so that every host sees the same motion."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from functools import cache, lru_cache

import mujoco
import numpy as np
from mujoco import rollout

from aether_env.sim.scenes import BOX, FIRST_MOVER, MOVER_KINDS, NUM_MOVERS, PLANE, SHAPES, SPHERE, Scenes

_STEPS_PER_SECOND = 96
_STATICS = np.flatnonzero(np.arange(len(SHAPES)) < FIRST_MOVER)
_MODELS_PER_CALL = 128
_STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS


def mover_starts(scenes: Scenes) -> tuple[np.ndarray, np.ndarray]:
    """Return the movers at time 0.

    Returns:
        Positions and orientations (N, M, 7), quaternions w first; velocities (N, M, 6), angular ones in the mover's
        own axes. Rows of absent movers hold a mover at rest at the origin.
    """
    rows, kind = np.arange(len(scenes))[:, None], scenes.mover_kind
    shape = FIRST_MOVER + 3 * np.arange(NUM_MOVERS) + np.maximum(kind, 0)
    position, rotation = scenes.position[rows, shape], scenes.rotation[rows, shape]
    yaw = np.arctan2(rotation[..., 1, 0], rotation[..., 0, 0])
    zero = np.zeros_like(yaw)
    pose = np.concatenate([position, np.stack([np.cos(yaw / 2), zero, zero, np.sin(yaw / 2)], axis=-1)], axis=-1)
    there = (kind >= 0)[..., None]
    at_rest = np.array([0.0, 0, 0, 1, 0, 0, 0])
    return np.where(there, pose, at_rest), np.where(there, scenes.mover_velocity, 0.0)


def simulate(
    scenes: Scenes,
    pose_NM7: np.ndarray,
    velocity_NM6: np.ndarray,
    *,
    num_frames: int,
    fps: float,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Step the movers through the next frames.

    The result depends on pose and velocity alone: stepping on from a frame goes on as if there had been no stop.

    Args:
        scenes: N scenes.
        pose_NM7: Positions and orientations now, see `mover_starts`.
        velocity_NM6: Velocities now.
        num_frames: Frames to step.
        fps: Frames per second.
        threads: CPU threads; None: all cores, at most 16.

    Returns:
        Poses (N, num_frames, M, 7) and velocities (N, num_frames, M, 6) at those frames.
    """
    poses = np.repeat(pose_NM7[:, None], num_frames, axis=1)
    velocities = np.repeat(velocity_NM6[:, None], num_frames, axis=1)
    if num_frames == 0:
        return poses, velocities
    there = scenes.mover_kind >= 0
    for count in range(1, NUM_MOVERS + 1):
        rows = np.flatnonzero(there.sum(axis=1) == count)
        for start in range(0, len(rows), _MODELS_PER_CALL):
            chunk = rows[start : start + _MODELS_PER_CALL]
            movers = np.argsort(~there[chunk], axis=1, kind="stable")[:, :count]
            pick = chunk[:, None], movers
            pose, velocity = _rollout(
                scenes[chunk], movers, pose_NM7[pick], velocity_NM6[pick], num_frames, fps, threads
            )
            for k in range(count):
                poses[chunk, :, movers[:, k]] = pose[:, :, k]
                velocities[chunk, :, movers[:, k]] = velocity[:, :, k]
    return poses, velocities


def quaternion_matrix(quaternion: np.ndarray) -> np.ndarray:
    """Return rotation matrices (..., 3, 3) of unit quaternions (..., 4), w first."""
    w, x, y, z = np.moveaxis(quaternion, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _rollout(
    scenes: Scenes,
    movers: np.ndarray,
    pose: np.ndarray,
    velocity: np.ndarray,
    num_frames: int,
    fps: float,
    threads: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Step scenes that all have the same number of movers K; poses (N, T, K, 7), velocities (N, T, K, 6)."""
    n, count = movers.shape
    substeps = max(1, round(_STEPS_PER_SECOND / fps))
    models = [_model(count, index) for index in range(n)]
    fill = _filler(scenes, movers, 1.0 / (fps * substeps))
    for index, model in enumerate(models):
        fill(index, model)
    size = mujoco.mj_stateSize(models[0], _STATE)
    state = np.zeros((n, size))  # time, then positions, then velocities
    state[:, 1 : 1 + 7 * count] = pose.reshape(n, -1)
    state[:, 1 + 7 * count : 1 + 13 * count] = velocity.reshape(n, -1)
    pool, data = _pool(threads or min(os.cpu_count() or 1, 16), count)
    states, _ = pool.rollout(models, data, state, nstep=num_frames * substeps)
    states = states[:, substeps - 1 :: substeps]
    poses = states[..., 1 : 1 + 7 * count].reshape(n, num_frames, count, 7)
    return poses, states[..., 1 + 7 * count : 1 + 13 * count].reshape(n, num_frames, count, 6)


@lru_cache(maxsize=8)
def _pool(threads: int, count: int) -> tuple[rollout.Rollout, list[mujoco.MjData]]:
    return rollout.Rollout(nthread=threads), [mujoco.MjData(_model(count, 0)) for _ in range(threads)]


@cache
def _model(count: int, index: int) -> mujoco.MjModel:
    """Return a model of our own to fill in, with `count` movers."""
    if index > 0:
        return copy.copy(_model(count, 0))
    spec = mujoco.MjSpec()
    # Without warm start a state of positions and velocities is complete; world bounds are edited, so no tree over them.
    spec.option.disableflags = int(mujoco.mjtDisableBit.mjDSBL_WARMSTART | mujoco.mjtDisableBit.mjDSBL_MIDPHASE)
    spec.option.iterations, spec.option.ls_iterations = 8, 10
    for kind in SHAPES[_STATICS]:
        spec.worldbody.add_geom(
            type=mujoco.mjtGeom(int(kind)), size=[0.1, 0.1, 0.1], pos=[0, 0, -50], contype=0, conaffinity=0
        )
    for number in range(count):
        body = spec.worldbody.add_body(pos=[2.0 * number, 0, 5])
        body.explicitinertial, body.mass, body.inertia = True, 1.0, [0.01, 0.01, 0.01]
        body.ipos, body.iquat = [0.0, 0, 0], [1.0, 0, 0, 0]
        body.add_freejoint()
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_SPHERE,
            size=[0.1, 0.1, 0.1],
            contype=2,
            conaffinity=3,
            friction=[0.5, 0.005, 0.0001],
        )
    model = spec.compile()
    model.body_contype[0] = 1  # the compiler saw no static shape that collides
    model.geom_sameframe[: len(_STATICS)] = 0  # nor one that is turned
    model.dof_damping[:] = np.tile([0.04, 0.04, 0.04, 0.0005, 0.0005, 0.0005], count)
    return model


def _filler(scenes: Scenes, movers: np.ndarray, timestep: float) -> Callable[[int, mujoco.MjModel], None]:
    """Return what writes scene `index` into a model; everything that can be is worked out for all scenes at once."""
    n, count = movers.shape
    rows = np.arange(n)[:, None]
    kind = scenes.mover_kind[rows, movers]
    types = np.asarray(MOVER_KINDS)[kind]
    size = np.concatenate([scenes.size[:, _STATICS], scenes.size[rows, FIRST_MOVER + 3 * movers + kind]], axis=1)
    geom_type = np.concatenate([np.broadcast_to(SHAPES[_STATICS], (n, len(_STATICS))), types], axis=1).astype(np.int32)
    visible = scenes.visible[:, _STATICS]
    position = np.concatenate(
        [np.where(visible[..., None], scenes.position[:, _STATICS], [0, 0, -50.0]), np.zeros((n, count, 3))], axis=1
    )
    quaternion = np.concatenate(
        [_quaternion(scenes.rotation[:, _STATICS]), np.tile([1.0, 0, 0, 0], (n, count, 1))], axis=1
    )
    plane, ball, box = (geom_type[..., None] == k for k in (PLANE, SPHERE, BOX))
    half = np.where(
        box,
        size,
        np.where(ball, size[..., :1], np.stack([size[..., 0], size[..., 0], size[..., 0] + size[..., 1]], axis=-1)),
    )
    half[geom_type == 5, 2] = size[geom_type == 5, 1]
    bound = np.where(plane[..., 0], 0.0, np.where(ball[..., 0], size[..., 0], np.linalg.norm(half, axis=-1)))
    box_bounds = np.where(plane, 1e6, half)
    contype = np.concatenate([visible.astype(np.int32), np.full((n, count), 2, dtype=np.int32)], axis=1)
    # Moments of inertia of mass 1: ball, box, cylinder.
    a, b, c = np.moveaxis(size[:, len(_STATICS) :], -1, 0)
    inertias = np.stack(
        [
            np.stack([0.4 * a * a] * 3, axis=-1),
            np.stack([b * b + c * c, a * a + c * c, a * a + b * b], axis=-1) / 3,
            np.stack([a * a / 4 + b * b / 3, a * a / 4 + b * b / 3, a * a / 2], axis=-1),
        ]
    )
    inertia = inertias[kind, rows, np.arange(count)]
    turn = (1 / inertia).mean(axis=-1)
    weight = np.stack([np.ones_like(turn), turn], axis=-1)
    damping = 1.0 - 0.85 * scenes.mover_bounce[rows, movers] * (kind == 0)

    def fill(index: int, model: mujoco.MjModel) -> None:
        model.opt.timestep = timestep
        model.geom_type[:] = geom_type[index]
        model.geom_size[:] = size[index]
        model.geom_pos[:] = position[index]
        model.geom_quat[:] = quaternion[index]
        model.geom_rbound[:] = bound[index]
        model.geom_aabb.reshape(-1, 6)[:, 3:] = box_bounds[index]
        model.geom_contype[:] = contype[index]
        model.geom_solref[len(_STATICS) :, 0] = 0.025 / damping[index]  # less damping at the same stiffness
        model.geom_solref[len(_STATICS) :, 1] = damping[index]
        model.geom_solmix[len(_STATICS) :] = 1e3  # a mover's own bounce counts, not the floor's
        model.body_inertia[1:] = inertia[index]
        model.body_invweight0[1:] = weight[index]
        model.dof_invweight0.reshape(count, 2, 3)[:] = weight[index][..., None]

    return fill


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    """Return unit quaternions (..., 4), w first, of rotation matrices (..., 3, 3)."""
    flat = rotation.reshape(-1, 3, 3)
    # Shepperd: the largest of four forms, so that no division is by a small number.
    m00, m11, m22 = flat[:, 0, 0], flat[:, 1, 1], flat[:, 2, 2]
    squares = np.stack([1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22], axis=-1)
    d21, d02, d10 = (flat[:, 2, 1] - flat[:, 1, 2], flat[:, 0, 2] - flat[:, 2, 0], flat[:, 1, 0] - flat[:, 0, 1])
    s10, s20, s21 = (flat[:, 1, 0] + flat[:, 0, 1], flat[:, 2, 0] + flat[:, 0, 2], flat[:, 2, 1] + flat[:, 1, 2])
    forms = np.stack(
        [
            np.stack([squares[:, 0], d21, d02, d10], axis=-1),
            np.stack([d21, squares[:, 1], s10, s20], axis=-1),
            np.stack([d02, s10, squares[:, 2], s21], axis=-1),
            np.stack([d10, s20, s21, squares[:, 3]], axis=-1),
        ]
    )
    best = forms[squares.argmax(axis=-1), np.arange(len(flat))]
    return (best / np.linalg.norm(best, axis=-1, keepdims=True)).reshape(*rotation.shape[:-2], 4)
