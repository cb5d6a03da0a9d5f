"""Episodes of many cameras in one world, batched: what AetherEnv (one) and AetherVectorEnv (many) have in common."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, Literal, NamedTuple, Self

import gymnasium as gym
import numpy as np

from aether_env.camera import (
    check_poses,
    interpolate_pose,
    make_pose,
    matrix_from_quaternion,
    quaternion_from_matrix,
    rotation_angle,
)
from aether_env.conventions import FAR_DEPTH
from aether_env.envs.actions import ActionMode, make_action_mode
from aether_env.envs.collisions import add_view, free_fraction, no_surfaces
from aether_env.envs.goals import GoalTask, make_task
from aether_env.envs.starts import load_start, start_names
from aether_env.envs.tasks import Moment, Opening, Task
from aether_env.envs.worlds import check_settings, make_world
from aether_env.pictures import DEFAULT_HORIZONTAL_FOV, fit_picture, inverse_depth_levels, read_picture
from aether_env.visual import colour_depth
from aether_env.world_model.promise import Frames, RolloutState, Start, WorldModel

Observation = dict[str, np.ndarray] | np.ndarray
ObsMode = Literal["rgbd", "rgbd_uint8"]
DepthFormat = Literal["metres", "inverse_uint8"]
OnCollision = Literal["stop", "end", "pass"]

NUMBERS = ("world_from_camera", "surfaces", "steps", "render_near")
"""The arrays of `Episodes`."""
_PICTURE_OPTIONS = ("image", "depth", "intrinsics")
_SPARE = 0.05
"""Of its radius: how much farther from a surface a camera stops."""
_LOOK_STEPS = 100
"""Env steps to what a task wants to see from elsewhere, at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Episodes:
    """B episodes between two steps; replaced as a whole, and only by a step that succeeded. Nothing writes into it."""

    state: RolloutState
    world_from_camera: np.ndarray
    """(B, 4, 4) float64, rigid however many steps led to it."""
    last: Frames
    """What the cameras see now, T = 1."""
    surfaces: np.ndarray
    """(B, views, points, 3): what they saw lately, see `collisions`."""
    tasks: tuple[Any, ...]
    """B states of the task."""
    scene_seeds: tuple[int | None, ...]
    steps: np.ndarray
    """(B,) int64 since reset."""
    render_near: np.ndarray
    """(B,) depth of the brightest colour in pictures of depth."""

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, rows: Sequence[int]) -> Self:
        chosen = list(rows)
        return replace(
            self,
            state=self.state[chosen],
            tasks=tuple(self.tasks[row] for row in chosen),
            scene_seeds=tuple(self.scene_seeds[row] for row in chosen),
            **{f.name: getattr(self, f.name)[chosen] for f in fields(self) if f.name in ("last", *NUMBERS)},
        )


class Stepped(NamedTuple):
    """What a step of B episodes gave."""

    episodes: Episodes
    frames: Frames
    """All frames of the step."""
    rewards: np.ndarray
    """(B,) float64."""
    terminated: np.ndarray
    """(B,) bool."""
    shared: dict[str, np.ndarray]
    """Infos that every row has, (B, ...)."""
    own: list[dict[str, Any]]
    """B dicts of infos that only some rows may have."""


class EnvCore:
    """One world, one task, one way to steer; knows no episode. Arguments: see `AetherEnv`."""

    def __init__(
        self,
        world: Literal["dream", "sim"] | WorldModel = "dream",
        *,
        model: str | None = None,
        height: int | None = None,
        width: int | None = None,
        fps: float | None = None,
        frames_per_step: int | None = None,
        horizontal_fov: float | None = None,
        max_translation: float = 0.3,
        max_rotation: float = math.radians(15),
        far: float = FAR_DEPTH,
        near: float = 0.25,
        obs_mode: ObsMode = "rgbd",
        depth_format: DepthFormat = "metres",
        frames_in_info: bool = False,
        task: str | Task | None = None,
        action_mode: str | ActionMode | None = None,
        on_collision: OnCollision = "stop",
        camera_radius: float = 0.1,
        split: str | None = None,
        device: str | None = None,
        dtype: Literal["float32", "bfloat16"] | None = None,
        rows_at_once: int | None = None,
        goal_keys: bool = False,
    ) -> None:
        _check_one_of("obs_mode", obs_mode, ("rgbd", "rgbd_uint8"))
        _check_one_of("depth_format", depth_format, ("metres", "inverse_uint8"))
        _check_one_of("on_collision", on_collision, ("stop", "end", "pass"))
        if not isinstance(frames_in_info, bool | np.bool_):
            raise ValueError(f"frames_in_info must be True or False, got {frames_in_info!r}.")
        _check_range("far", far, 0.0, FAR_DEPTH)
        _check_range("near", near, 0.0, FAR_DEPTH)
        if near > far:
            raise ValueError(f"near must be at most far, got near={near!r} and far={far!r}.")
        _check_range("camera_radius", camera_radius, 0.0, 10.0)
        if fps is not None:
            _check_range("fps", fps, 0.0, 1000.0)
        of_world = {
            "model": model, "height": height, "width": width, "fps": fps, "frames_per_step": frames_per_step,
            "split": split, "device": device, "dtype": dtype, "rows_at_once": rows_at_once,
        }  # fmt: skip
        of_world = {name: value for name, value in of_world.items() if value is not None}
        for name in ("height", "width", "frames_per_step", "rows_at_once"):
            number = of_world.get(name, 1)
            if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
                raise ValueError(f"{name} must be a whole number >= 1, got {number!r}.")
        if horizontal_fov is not None:
            _check_range("horizontal_fov", horizontal_fov, 10.0, 150.0)
        limits = {"max_translation": max_translation, "max_rotation": max_rotation}
        self.action_mode = make_action_mode("se3", **limits)  # checks the limits, whatever the mode is
        if action_mode is not None:
            self.action_mode = make_action_mode(action_mode, **limits)
        self.task = make_task("pose" if task is None and goal_keys else task)
        if goal_keys and not isinstance(self.task, GoalTask):
            raise ValueError(f"task must be a GoalTask for a goal env (or 'pose', 'image', 'depth'), got {task!r}.")
        if isinstance(self.task, GoalTask) and goal_keys:
            self.task = self.task.for_relabelling()
        # A mode that is an object brings its own limits.
        self.max_translation = float(getattr(self.action_mode, "max_translation", max_translation))
        self.max_rotation = float(getattr(self.action_mode, "max_rotation", max_rotation))
        self.far, self.near = float(far), float(near)
        self.obs_mode, self.depth_format = obs_mode, depth_format
        self.frames_in_info, self.goal_keys = frames_in_info, goal_keys
        self.on_collision, self.camera_radius = on_collision, float(camera_radius)
        self.horizontal_fov = horizontal_fov

        self.owns_world = isinstance(world, str)
        self._world: WorldModel | None
        if isinstance(world, str):
            self._world = make_world(world, of_world, horizontal_fov)
        elif hasattr(world, "advance") and not isinstance(world, type):
            check_settings(world, of_world)
            self._world = world
        else:
            raise ValueError(
                f"world must be 'dream', 'sim' or an object that keeps the WorldModel promise, got {world!r}."
            )
        self.height, self.width = self._world.height, self._world.width
        self.frames_per_step, self.fps = self._world.frames_per_step, self._world.fps
        self.action_space = self.action_mode.space
        self.observation_space = self._observation_space()

    @property
    def world(self) -> WorldModel:
        """The world.

        Raises:
            gymnasium.error.ClosedEnvironmentError: It was closed.
        """
        if self._world is None:
            raise gym.error.ClosedEnvironmentError("This env is closed; make a new one with gym.make.")
        return self._world

    def close(self) -> None:
        """Free the world, unless it was given; may be called again."""
        if self._world is not None and self.owns_world:
            self._world.close()
        self._world = None

    def begin(
        self, options: Sequence[Mapping[str, Any]], generators: Sequence[np.random.Generator]
    ) -> tuple[Episodes, dict[str, np.ndarray], list[dict[str, Any]]]:
        """Begin B episodes.

        Args:
            options: B times those of `reset`.
            generators: B generators; where this fails they have drawn all the same.

        Returns:
            The episodes, the infos that all rows have, and B dicts of others.

        Raises:
            ValueError: An option is unknown or unusable.
        """
        for given in options:
            self._check_option_keys(given)
        starts = [self._given_start(given) for given in options]
        nonces = []
        for row, generator in enumerate(generators):
            nonces.append(int(generator.integers(2**63 - 1)))
            starts[row] = starts[row] or self._bundled_start(generator)
        chosen = [start for start in starts if start is not None]
        state, frames = self.world.start(chosen, nonces)
        openings = [
            Opening(
                frames=frames[row : row + 1],
                options={key: options[row][key] for key in self.task.options if key in options[row]},
                np_random=generator,
            )
            for row, generator in enumerate(generators)
        ]
        views = self._look(state, [self.task.look_from(opening) for opening in openings])
        tasks, own = [], []
        for opening, seen in zip(openings, views, strict=True):
            task, info = self.task.start(replace(opening, seen=seen))
            tasks.append(task)
            own.append(dict(info))
        episodes = Episodes(
            state=state,
            world_from_camera=_last_poses(frames),
            last=frames,
            surfaces=self._seen(no_surfaces(len(chosen)), frames),
            tasks=tuple(tasks),
            scene_seeds=tuple(start.scene_seed for start in chosen),
            steps=np.zeros(len(chosen), np.int64),
            # Half the depth of what is near at the beginning: one colour scale for the whole episode.
            render_near=0.5 * np.quantile(frames.depth[:, 0].astype(np.float64), 0.1, axis=(1, 2)),
        )
        return episodes, self._shared(episodes), self._with_world(episodes, own)

    def infos(self, episodes: Episodes) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """Return infos that all rows have, and B dicts of others, without the task's."""
        return self._shared(episodes), self._with_world(episodes, [{} for _ in range(len(episodes))])

    def step(self, episodes: Episodes, actions: Sequence[Any]) -> Stepped:
        """Move B cameras by one action each; `episodes` stays as it is.

        Raises:
            ValueError: An action is not usable.
        """
        start = episodes.world_from_camera
        wanted = np.stack(
            [self.action_mode.target(action, pose) for action, pose in zip(actions, start.copy(), strict=True)]
        )
        collided = np.zeros(len(episodes), bool)
        if self.on_collision != "pass":
            radius = np.full(len(episodes), self.camera_radius)
            free = free_fraction(episodes.surfaces, start, wanted, radius)
            collided = free < 1
            # A little before the surface: its points are a sample, and a camera that touches it could not slide along.
            way = np.linalg.norm(wanted[:, :3, 3] - start[:, :3, 3], axis=-1)
            short = _SPARE * self.camera_radius / np.maximum(way, 1e-9)
            free = np.where(collided, np.maximum(free - short, 0.0), free)
            wanted[:, :3, 3] = start[:, :3, 3] + free[:, None] * (wanted[:, :3, 3] - start[:, :3, 3])
        fractions = np.arange(1, self.frames_per_step + 1) / self.frames_per_step
        state, frames = self.world.advance(episodes.state, interpolate_pose(start, wanted, fractions))

        after = _last_poses(frames)
        moved = np.linalg.norm(after[:, :3, 3] - start[:, :3, 3], axis=-1)
        judged = [
            self.task.judge(
                task,
                Moment(frames=frames[row : row + 1], collided=bool(collided[row]), moved=float(moved[row])),
            )
            for row, task in enumerate(episodes.tasks)
        ]
        now = replace(
            episodes,
            state=state,
            world_from_camera=after,
            last=_last(frames),
            surfaces=self._seen(episodes.surfaces, frames),
            tasks=tuple(task for task, _ in judged),
            steps=episodes.steps + 1,
        )
        ended = np.array([bool(judgement.terminated) for _, judgement in judged])
        shared = self._shared(now) | {"collided": collided}
        if self.frames_in_info:
            shared["rgb_frames"] = frames.rgb.copy()
            shared["depth_frames"] = self._metres(frames.depth)
            shared["poses"] = frames.world_from_camera.astype(np.float64)
        return Stepped(
            now,
            frames,
            rewards=np.array([float(judgement.reward) for _, judgement in judged]),
            terminated=ended | (collided & (self.on_collision == "end")),
            shared=shared,
            own=self._with_world(now, [_with_sb3_name(judgement.info) for _, judgement in judged]),
        )

    def join(self, parts: Sequence[Episodes], order: Sequence[int]) -> Episodes:
        """Return the episodes of `parts`, put one after the other, in another order."""
        whole = replace(
            parts[0],
            state=self.world.join([part.state for part in parts]),
            last=Frames.joined([part.last for part in parts]),
            tasks=tuple(task for part in parts for task in part.tasks),
            scene_seeds=tuple(seed for part in parts for seed in part.scene_seeds),
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in NUMBERS},
        )
        return whole[order]

    def observe(self, episodes: Episodes) -> Observation:
        """Return what B cameras see now, in arrays of its own, (B, ...) each."""
        rgb, depth = episodes.last.rgb[:, 0].copy(), self._metres(episodes.last.depth[:, 0])
        if self.obs_mode == "rgbd_uint8":
            return np.concatenate([rgb, inverse_depth_levels(depth, self.near)], axis=-1)
        if self.depth_format == "inverse_uint8":
            depth = inverse_depth_levels(depth, self.near)
        rows = [self._of_task(episodes, row) for row in range(len(episodes))]
        return {"rgb": rgb, "depth": depth} | {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def picture(self, frames: Frames, row: int, t: int, near: float) -> np.ndarray:
        """Return colour beside coloured depth, (H, 2W, 3) uint8."""
        return np.concatenate([frames.rgb[row, t], colour_depth(frames.depth[row, t], near)], axis=1)

    def _look(self, state: RolloutState, poses: Sequence[np.ndarray | None]) -> list[Frames | None]:
        """Return what B worlds show from other poses, all on their way together; None where none is wanted."""
        seen: list[Frames | None] = [None] * len(poses)
        ways = {row: self._way(pose) for row, pose in enumerate(poses) if pose is not None}
        rows, step = list(ways), 0
        going = state[rows] if rows else state
        while rows:
            going, frames = self.world.advance(going, np.stack([ways[row][step] for row in rows]))
            step += 1
            for index, row in enumerate(rows):
                if len(ways[row]) == step:
                    seen[row] = _last(frames[[index]])
            left = [index for index, row in enumerate(rows) if len(ways[row]) > step]
            rows, going = [rows[index] for index in left], going[left] if left else going
        return seen

    def _way(self, world_from_camera_44: np.ndarray) -> np.ndarray:
        """Return the poses (steps, T, 4, 4) of the straight way from the start, in steps that an action could make."""
        there = check_poses("pose", world_from_camera_44)
        way, turn = float(np.linalg.norm(there[:3, 3])), float(rotation_angle(there[:3, :3]))
        limits = (self.max_translation or math.inf, self.max_rotation or math.inf)
        steps = max(1, math.ceil(max(way / limits[0], turn / limits[1])))
        if steps > _LOOK_STEPS:
            raise ValueError(
                f"a pose to look from must be within {_LOOK_STEPS} steps of the start, {way:g} metres (or units) and "
                f"{turn:g} radians are {steps}; raise max_translation and max_rotation, or choose a nearer one."
            )
        frames = steps * self.frames_per_step
        path = interpolate_pose(np.eye(4), there, np.arange(1, frames + 1) / frames)
        return path.reshape(steps, self.frames_per_step, 4, 4)

    def _observation_space(self) -> gym.Space[Any]:
        size = (self.height, self.width)
        of_task = self._of_task_space = self.task.observation_space(self.height, self.width, self.far)
        if self.obs_mode == "rgbd_uint8":
            if of_task or self.goal_keys:
                raise ValueError(f"obs_mode must be 'rgbd' for the task {self.task!r}, whose goal is seen beside it.")
            return gym.spaces.Box(0, 255, (*size, 4), np.uint8)
        depth = (
            gym.spaces.Box(0, 255, (*size, 1), np.uint8)
            if self.depth_format == "inverse_uint8"
            else gym.spaces.Box(0.0, self.far, (*size, 1), np.float32)
        )
        spaces: dict[str, gym.Space[Any]] = {"rgb": gym.spaces.Box(0, 255, (*size, 3), np.uint8), "depth": depth}
        if isinstance(self.task, GoalTask) and self.goal_keys:
            of_task = {"achieved_goal": self.task.goal_space, "desired_goal": self.task.goal_space}
        return gym.spaces.Dict(spaces | of_task)

    def _of_task(self, episodes: Episodes, row: int) -> Mapping[str, np.ndarray]:
        """Return what the task adds to one observation."""
        state, frames = episodes.tasks[row], episodes.last[row : row + 1]
        if isinstance(self.task, GoalTask) and self.goal_keys:
            return {"achieved_goal": self.task.achieved(frames), "desired_goal": self.task.desired(state)}
        seen = dict(self.task.observe(state, frames))
        for key, space in self._of_task_space.items():
            if isinstance(space, gym.spaces.Box):  # a task does not know `far`
                seen[key] = np.clip(seen[key], space.low, space.high)
        return seen

    def _metres(self, depth: np.ndarray) -> np.ndarray:
        """Return depth (..., H, W) as a fresh (..., H, W, 1) float32, at most `far`."""
        return np.minimum(depth, np.float32(self.far)).astype(np.float32)[..., None]

    def _seen(self, surfaces: np.ndarray, frames: Frames) -> np.ndarray:
        if self.on_collision == "pass":
            return surfaces
        poses = frames.world_from_camera[:, -1]
        return add_view(surfaces, frames.depth[:, -1], frames.intrinsics[:, -1], poses)

    def _shared(self, episodes: Episodes) -> dict[str, np.ndarray]:
        return {
            "world_from_camera": episodes.world_from_camera.copy(),
            "intrinsics": episodes.last.intrinsics[:, 0].astype(np.float64),
            "metric": episodes.last.metric.astype(bool),
            "step": episodes.steps.copy(),
        }

    def _with_world(self, episodes: Episodes, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return infos of the rows with what the world and the start tell of them."""
        told = self.world.describe(episodes.state)
        seeds = [{} if seed is None else {"scene_seed": seed} for seed in episodes.scene_seeds]
        return [{**seed, **world, **info} for seed, world, info in zip(seeds, told, own, strict=True)]

    def _check_option_keys(self, options: Mapping[str, Any]) -> None:
        own = (*_PICTURE_OPTIONS, "scene_seed") if self.world.needs_picture else ("scene_seed",)
        valid = sorted({*own, *self.task.options})
        for key in options:
            if key not in valid:
                raise ValueError(f"options has the unknown key {key!r}; this env takes {', '.join(valid)}.")

    def _given_start(self, options: Mapping[str, Any]) -> Start | None:
        """Return the start that the options give, fitted; None where a dream has to choose a picture of its own."""
        scene_seed = options.get("scene_seed")
        if scene_seed is not None:
            whole = isinstance(scene_seed, int | np.integer) and not isinstance(scene_seed, bool)
            # It goes into info, whose batched arrays hold 64 bits.
            if not (whole and 0 <= scene_seed < 2**63):
                raise ValueError(f"options['scene_seed'] must be a whole number in 0..2**63 - 1, got {scene_seed!r}.")
            scene_seed = int(scene_seed)
        if not self.world.needs_picture:
            return Start(scene_seed=scene_seed)
        image, depth, intrinsics = (options.get(key) for key in _PICTURE_OPTIONS)
        if image is None:
            lonely = [key for key in ("depth", "intrinsics", "scene_seed") if options.get(key) is not None]
            if lonely:
                raise ValueError(f"options[{lonely[0]!r}] belongs to a picture; give options['image'] as well.")
            return None
        return self._fit(
            Start(
                rgb=read_picture(image, name="options['image']"),
                depth=depth,
                intrinsics=intrinsics,
                scene_seed=scene_seed,
            )
        )

    def _bundled_start(self, generator: np.random.Generator) -> Start:
        names = start_names()
        if not names:
            raise ValueError(
                "there are no bundled pictures to start from; pass reset(options={'image': path or array})."
            )
        return self._fit(load_start(names[int(generator.integers(len(names)))]))

    def _fit(self, start: Start) -> Start:
        assert start.rgb is not None
        rgb, intrinsics, depth = fit_picture(
            start.rgb,
            self.height,
            self.width,
            start.intrinsics,
            start.depth,
            horizontal_fov=DEFAULT_HORIZONTAL_FOV if self.horizontal_fov is None else self.horizontal_fov,
        )
        return Start(rgb=rgb, depth=depth, intrinsics=intrinsics, scene_seed=start.scene_seed)


def checked_names(owner: type, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of an env, all of which `EnvCore` knows.

    Raises:
        TypeError: It does not know one; in the words of the class that was called.
    """
    for name in settings:
        if name not in _SETTINGS:
            close = difflib.get_close_matches(name, _SETTINGS, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(_SETTINGS)}."
            raise TypeError(f"{owner.__name__} has no argument {name!r}; {hint}")
    return settings


def shown_signature(init: Callable[..., None]) -> inspect.Signature:
    """Return the signature of an env's `__init__` with the settings that it hands on to `EnvCore`, for `help`."""
    own = [p for p in inspect.signature(init).parameters.values() if p.name != "self" and p.kind is not p.VAR_KEYWORD]
    return inspect.Signature([*own, *_SETTINGS.values()])


_SETTINGS = {
    name: parameter
    for name, parameter in inspect.signature(EnvCore).parameters.items()
    if name not in ("world", "goal_keys")
}


def info_of(row: int, shared: Mapping[str, np.ndarray], own: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the info of one row, as a single env gives it."""
    return own[row] | {name: array[row].item() if array.ndim == 1 else array[row] for name, array in shared.items()}


def _last(frames: Frames) -> Frames:
    """Return the last of T frames."""
    return Frames(
        rgb=frames.rgb[:, -1:],
        depth=frames.depth[:, -1:],
        world_from_camera=frames.world_from_camera[:, -1:],
        intrinsics=frames.intrinsics[:, -1:],
        metric=frames.metric,
    )


def _last_poses(frames: Frames) -> np.ndarray:
    """Return the last poses (B, 4, 4), rigid however many steps led to them."""
    poses = frames.world_from_camera[:, -1]
    # A unit quaternion is a rotation exactly: rounding errors of thousands of products do not add up.
    return make_pose(matrix_from_quaternion(quaternion_from_matrix(poses[:, :3, :3])), poses[:, :3, 3])


def _with_sb3_name(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's info; success also by the name under which Stable-Baselines3 counts it."""
    return dict(info) | ({"is_success": info["success"]} if "success" in info else {})


def checked_seed(seed: Any) -> int:
    """Return a seed.

    Raises:
        ValueError: It is no whole number >= 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be a whole number >= 0, got {seed!r}.")
    return int(seed)


def _check_one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not isinstance(value, Real) or not low < value <= high:
        raise ValueError(f"{name} must be in ({low}, {high}], got {value!r}.")
