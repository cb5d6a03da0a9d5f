"""Episodes kept as bytes and gone on with, or gone on with many times over."""

from __future__ import annotations

import math
import re
from dataclasses import fields, is_dataclass, replace

import numpy as np

from aether_env.camera import check_intrinsics, check_poses
from aether_env.conventions import FAR_DEPTH
from aether_env.envs.collisions import no_surfaces
from aether_env.envs.core import NUMBERS, EnvCore, Episodes
from aether_env.envs.snapshots import flatten, generator_state, pack, restored_generator, unflatten, unpack
from aether_env.envs.tasks import Task
from aether_env.world_model.promise import Frames


def snapshot(core: EnvCore, episodes: Episodes, row: int, generator: np.random.Generator) -> bytes:
    """Return one episode and its generator as bytes: `restored` goes on as if it had never stopped.

    Raises:
        ValueError: The world or the task's state cannot be put into bytes.
    """
    one = episodes[[row]]
    world = core.world
    if not hasattr(world, "freeze"):
        raise ValueError(f"snapshot needs a world with freeze and thaw, which {type(world).__name__} has not.")
    of_world, about_world = world.freeze(one.state)
    of_task, about_task = flatten(one.tasks[0], "task")
    arrays = {f"world.{name}": array for name, array in of_world.items()}
    arrays |= of_task | {f"last.{f.name}": getattr(one.last, f.name) for f in fields(Frames)}
    arrays |= {name: getattr(one, name) for name in NUMBERS}
    about = {
        "world": about_world,
        "task": {"name": _name_of(core.task), "state": about_task},
        "on_collision": core.on_collision,
        "scene_seed": one.scene_seeds[0],
        "rng": generator_state(generator),
    }
    return pack(arrays, about)


def restored(core: EnvCore, data: bytes) -> tuple[Episodes, np.random.Generator]:
    """Return what `snapshot` kept.

    Raises:
        ValueError: Foreign, damaged or truncated bytes, or those of another world, task or size.
    """
    arrays, about = unpack(data)
    world = core.world
    if not hasattr(world, "thaw"):
        raise ValueError(f"restore needs a world with freeze and thaw, which {type(world).__name__} has not.")
    try:
        of_world = {name[6:]: array for name, array in arrays.items() if name.startswith("world.")}
        of_task = {name: array for name, array in arrays.items() if name.startswith("task.")}
        if about["task"]["name"] != _name_of(core.task):
            raise ValueError(f"it is of the task {about['task']['name']}, this env has {_name_of(core.task)}.")
        if about["on_collision"] != core.on_collision:
            raise ValueError(f"it is of on_collision={about['on_collision']!r}, not {core.on_collision!r}.")
        state = world.thaw(of_world, about["world"])
        task = unflatten(of_task, about["task"]["state"])
        last = Frames(**{f.name: arrays[f"last.{f.name}"] for f in fields(Frames)})
        seed = about["scene_seed"]
        episodes = Episodes(
            state=state,
            world_from_camera=check_poses("world_from_camera", arrays["world_from_camera"]),
            last=last,
            surfaces=arrays["surfaces"],
            tasks=(task,),
            scene_seeds=(None if seed is None else int(seed),),
            steps=arrays["steps"],
            render_near=arrays["render_near"],
        )
        generator = restored_generator(about["rng"])
        _check_restored(core, episodes)
        core.observe(episodes)  # a task's state of another form shows here
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"snapshot lacks something or holds it in another form: {error!r}.") from error
    except ValueError as error:
        raise ValueError(f"snapshot does not fit this env: {error}") from error
    return episodes, generator


def branches(
    core: EnvCore, episodes: Episodes, row: int, generator: np.random.Generator, count: int, *, reseed: bool
) -> tuple[Episodes, list[np.random.Generator]]:
    """Return one episode `count` times, and a generator for each; see `AetherEnv.branch`.

    Raises:
        ValueError: `count` is no whole number >= 1, or the world cannot branch.
    """
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ValueError(f"n must be a whole number >= 1, got {count!r}.")
    world = core.world
    if not hasattr(world, "branch"):
        raise ValueError(f"branch needs a world with branch, which {type(world).__name__} has not.")
    rows = [row] * int(count)
    many = episodes[rows]
    copies = [restored_generator(generator_state(generator)) for _ in rows]
    if not reseed:
        return many, copies
    # Drawn from a copy: looking at branches changes nothing for the env itself.
    base = int(copies[0].integers(2**32))
    seeds = [np.random.SeedSequence([base, int(episodes.steps[row]), index]) for index in range(len(rows))]
    numbers = [int(seed.generate_state(1)[0]) for seed in seeds]
    many = replace(many, state=world.branch(many.state, range(len(rows)), numbers))
    return many, [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]


def _check_restored(core: EnvCore, episodes: Episodes) -> None:
    """Check what no world has checked.

    Raises:
        ValueError: A shape, type or number that no episode of this env has.
    """
    if len(episodes.state) != 1:
        raise ValueError(f"it must hold one episode, got {len(episodes.state)}.")
    size = (1, 1, core.height, core.width)
    wanted: dict[str, tuple[np.ndarray, tuple[int, ...], type]] = {
        "last.rgb": (episodes.last.rgb, (*size, 3), np.uint8),
        "last.depth": (episodes.last.depth, size, np.float32),
        "last.world_from_camera": (episodes.last.world_from_camera, (1, 1, 4, 4), np.float64),
        "last.intrinsics": (episodes.last.intrinsics, (1, 1, 3, 3), np.float64),
        "last.metric": (episodes.last.metric, (1,), np.bool_),
        "world_from_camera": (episodes.world_from_camera, (1, 4, 4), np.float64),
        "surfaces": (episodes.surfaces, no_surfaces(1).shape, np.float32),
        "steps": (episodes.steps, (1,), np.int64),
        "render_near": (episodes.render_near, (1,), np.float64),
    }
    for name, (array, shape, dtype) in wanted.items():
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{name} must be {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}.")
    check_poses("last.world_from_camera", episodes.last.world_from_camera)
    check_intrinsics("last.intrinsics", episodes.last.intrinsics)
    depth = episodes.last.depth
    if not (np.isfinite(depth).all() and depth.min() > 0 and depth.max() <= FAR_DEPTH):
        raise ValueError(f"last.depth must lie in (0, {FAR_DEPTH}].")
    if np.isnan(episodes.surfaces).any() or episodes.steps[0] < 0 or not 0 < episodes.render_near[0] < math.inf:
        raise ValueError("surfaces, steps and render_near must be numbers of an episode.")


def _name_of(task: Task) -> str:
    """Return what a task is; of a dataclass, whose form tells them, with its settings."""
    if is_dataclass(task):
        return re.sub(r" at 0x[0-9a-f]+", "", repr(task))  # an object's place in memory is no setting
    return f"{type(task).__module__}.{type(task).__qualname__}"
