"""AetherEnv: a camera that an agent moves through a world, dreamed or simulated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import gymnasium as gym
import numpy as np

from aether_env.camera import interpolate_pose, make_pose, matrix_from_quaternion, quaternion_from_matrix
from aether_env.conventions import FAR_DEPTH
from aether_env.envs.actions import ActionMode, Se3Action
from aether_env.envs.starts import load_start, start_names
from aether_env.envs.tasks import Explore, Judgement, Task
from aether_env.pictures import DEFAULT_HORIZONTAL_FOV, fit_picture, inverse_depth_levels, read_picture
from aether_env.visual import colour_depth
from aether_env.world_model.promise import Frames, RolloutState, Start, WorldModel

Observation = dict[str, np.ndarray] | np.ndarray
ObsMode = Literal["rgbd", "rgbd_uint8"]
DepthFormat = Literal["metres", "inverse_uint8"]
RenderMode = Literal["rgb_array", "rgb_array_list"]

_PICTURE_OPTIONS = ("image", "depth", "intrinsics")


@dataclass(frozen=True, kw_only=True)
class _Episode:
    """Everything that changes during an episode; replaced as a whole, and only by a step that succeeded."""

    state: RolloutState
    world_from_camera_44: np.ndarray
    task_state: Any
    scene_seed: int | None
    step: int


class AetherEnv(gym.Env[Observation, Any]):
    """Move a camera through a world; see what it sees in colour and depth.

    Action, Box(-1, 1, (6,)): the camera's translation (x right, y down, z forward) and rotation vector during one step,
    in camera axes, times `max_translation` and `max_rotation`. Beyond [-1, 1] it is clipped; NaN and wrong shapes
    raise ValueError. One step is `frames_per_step` frames at `fps`, along poses interpolated between the two ends.

    Observation, the last frame of the step: `{"rgb": (H, W, 3) uint8, "depth": (H, W, 1) float32}`, depth in metres
    up to `far` (`obs_mode` and `depth_format` have forms for convolutional agents).

    info: `world_from_camera` (4, 4) with world = the camera at reset, `intrinsics` (3, 3), `metric` (lengths are
    metres; if False they are the world's own unit), `step`, and where the world knows them `unit` and `scene_seed`.
    With `frames_in_info` every step (reset has only the one in the observation) adds all its frames: `rgb_frames`
    (T, H, W, 3), `depth_frames` (T, H, W, 1) in metres and `poses` (T, 4, 4).

    The task gives the reward and ends the episode; `TimeLimit` truncates the registered ids after 200 steps.

    `reset(options=...)`: a dream takes `image` (path, or uint8 RGB array) with optional `depth` (metres), `intrinsics`
    (pixels of that image) and `scene_seed` (only repeated in info); without it starts from a bundled picture.
    The simulator takes `scene_seed`. The task may add keys.

    Args:
        world: "dream", "sim", or a world of one's own; that one brings its size and speed, and its maker closes it.
        model: Checkpoint of the dream, a bundled name or a folder.
        height: Pixels; None is the checkpoint's, in the simulator 64.
        width: Pixels; None is the checkpoint's, in the simulator 96.
        fps: Frames per second; None is the checkpoint's (a dream has no other), in the simulator 12.
        frames_per_step: Frames that one env step lasts.
        horizontal_fov: Degrees; None is the scene's own in the simulator, 70 for a picture without intrinsics.
        max_translation: Metres per axis and step.
        max_rotation: Radians per axis and step.
        far: Depth of everything farther, metres.
        near: Depth of level 255 where depth is shown in 8 bits, metres.
        obs_mode: "rgbd", or "rgbd_uint8" for one (H, W, 4) uint8 picture with inverse depth as the fourth channel.
        depth_format: Of "rgbd": "metres", or "inverse_uint8" for round(255 * sqrt(near / depth)).
        frames_in_info: Put all frames of a step into info.
        render_mode: "rgb_array" (colour beside coloured depth, (H, 2W, 3)) or "rgb_array_list" (all new frames).
        task: What the episode is for; None explores.
        action_mode: How actions steer; None is `Se3Action(max_translation, max_rotation)`.
        split: Of the simulator's scenes: "train", "validation" or "test".
        device: Where the world computes.

    Raises:
        ValueError: An argument is out of its range.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "rgb_array_list"], "render_fps": 3.0}

    def __init__(
        self,
        world: Literal["dream", "sim"] | WorldModel = "dream",
        *,
        model: str = "mini",
        height: int | None = None,
        width: int | None = None,
        fps: float | None = None,
        frames_per_step: int = 4,
        horizontal_fov: float | None = None,
        max_translation: float = 0.3,
        max_rotation: float = math.radians(15),
        far: float = FAR_DEPTH,
        near: float = 0.25,
        obs_mode: ObsMode = "rgbd",
        depth_format: DepthFormat = "metres",
        frames_in_info: bool = False,
        render_mode: RenderMode | None = None,
        task: Task | None = None,
        action_mode: ActionMode | None = None,
        split: str = "train",
        device: str = "cpu",
    ) -> None:
        _check_one_of("obs_mode", obs_mode, ("rgbd", "rgbd_uint8"))
        _check_one_of("depth_format", depth_format, ("metres", "inverse_uint8"))
        _check_one_of("render_mode", render_mode, (None, "rgb_array", "rgb_array_list"))
        _check_range("far", far, 0.0, FAR_DEPTH)
        _check_range("near", near, 0.0, far)
        if fps is not None:
            _check_range("fps", fps, 0.0, 1000.0)
        for name, number in (("height", height), ("width", width), ("frames_per_step", frames_per_step)):
            if number is None and name != "frames_per_step":
                continue
            if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
                raise ValueError(f"{name} must be a whole number >= 1, got {number!r}.")
        if horizontal_fov is not None:
            _check_range("horizontal_fov", horizontal_fov, 10.0, 150.0)
        self.max_translation = max_translation
        self.max_rotation = max_rotation
        self.action_mode: ActionMode = action_mode or Se3Action(
            max_translation=max_translation, max_rotation=max_rotation
        )
        self.task: Task = task or Explore()
        self.far = float(far)
        self.near = float(near)
        self.obs_mode = obs_mode
        self.depth_format = depth_format
        self.frames_in_info = frames_in_info
        self.horizontal_fov = horizontal_fov
        self.render_mode = render_mode

        self._owns_world = isinstance(world, str)
        self._world: WorldModel | None
        if isinstance(world, str):
            size = {"height": height, "width": width, "fps": fps, "frames_per_step": frames_per_step}
            self._world = _make_world(
                world, model=model, size=size, horizontal_fov=horizontal_fov, split=split, device=device
            )
        elif hasattr(world, "advance"):
            self._world = world
        else:
            raise ValueError(
                f"world must be 'dream', 'sim' or an object that keeps the WorldModel promise, got {world!r}."
            )
        self._height, self._width = self._world.height, self._world.width
        self._frames_per_step = self._world.frames_per_step
        # "rgb_array" is asked once a step, "rgb_array_list" gives every frame.
        pictures_per_step = self._frames_per_step if render_mode == "rgb_array_list" else 1
        self.metadata = {
            **type(self).metadata,
            "render_fps": self._world.fps * pictures_per_step / self._frames_per_step,
        }
        self.action_space = self.action_mode.space
        self.observation_space = self._observation_space()

        self._episode: _Episode | None = None
        self._last_frames: Frames | None = None
        self._unseen_frames: list[Frames] = []
        self._render_near = self.near

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: Makes this and all following episodes repeatable.
            options: See the class.

        Returns:
            The first picture, and info.

        Raises:
            ValueError: An option is unknown or unusable; the env stays where it was.
        """
        world = self._open_world()
        options = options or {}
        self._check_option_keys(options)
        start = self._given_start(options)
        generator, generator_seed = self._np_random, self._np_random_seed
        before: Any = None if generator is None else generator.bit_generator.state
        try:
            super().reset(seed=seed)
            nonce = int(self.np_random.integers(2**63 - 1))
            if start is None:
                start = self._bundled_start()
            state, frames = world.start([start], [nonce])
            given = {key: options[key] for key in self.task.options if key in options}
            task_state, task_info = self.task.start(frames, given, self.np_random)
        except BaseException:
            # What the env draws next does not depend on a reset that failed.
            self._np_random, self._np_random_seed = generator, generator_seed
            if generator is not None:
                generator.bit_generator.state = before
            raise
        episode = _Episode(
            state=state,
            world_from_camera_44=_last_pose(frames),
            task_state=task_state,
            scene_seed=start.scene_seed,
            step=0,
        )
        observation, info = self._observe(frames), self._info(episode, frames) | dict(task_info)

        self._episode = episode
        self._unseen_frames.clear()
        self._remember(frames)
        # Half the depth of what is near at the beginning: one colour scale for the whole episode.
        self._render_near = 0.5 * float(np.quantile(frames.depth[0, -1], 0.1))
        return observation, info

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move the camera by one action.

        Args:
            action: One of `action_space`.

        Returns:
            Observation, reward, terminated, False (a step limit is `TimeLimit`'s), info.

        Raises:
            gymnasium.error.ResetNeeded: There is no episode yet.
            ValueError: The action is not usable; the env stays where it was.
        """
        world, episode = self._open_world(), self._episode
        if episode is None:
            raise gym.error.ResetNeeded("Cannot step before reset: call env.reset() first.")
        target_44 = self.action_mode.target(action, episode.world_from_camera_44)
        fractions_T = np.arange(1, self._frames_per_step + 1) / self._frames_per_step
        path_T44 = interpolate_pose(episode.world_from_camera_44, target_44, fractions_T)

        state, frames = world.advance(episode.state, path_T44[None])
        task_state, judgement = self.task.judge(episode.task_state, frames)
        episode = replace(
            episode,
            state=state,
            world_from_camera_44=_last_pose(frames),
            task_state=task_state,
            step=episode.step + 1,
        )
        observation, info = self._observe(frames), self._step_info(episode, frames, judgement)

        self._episode = episode
        self._remember(frames)
        return observation, float(judgement.reward), bool(judgement.terminated), False, info

    def render(self) -> np.ndarray | list[np.ndarray] | None:  # type: ignore[override]
        """Return colour beside coloured depth, (H, 2W, 3) uint8.

        Returns:
            The last frame; in "rgb_array_list" mode all frames since the last call or reset; None without a mode.
        """
        if self.render_mode is None:
            gym.logger.warn("render() without a render_mode shows nothing; make the env with render_mode='rgb_array'.")
            return None
        if self._last_frames is None:
            raise gym.error.ResetNeeded("Cannot render before reset: call env.reset() first.")
        if self.render_mode == "rgb_array":
            return self._picture(self._last_frames, -1)
        unseen, self._unseen_frames = self._unseen_frames, []
        return [self._picture(frames, t) for frames in unseen for t in range(frames.rgb.shape[1])]

    def close(self) -> None:
        """Free the world; may be called again. A closed env cannot be used any more."""
        if self._world is not None and self._owns_world:
            self._world.close()
        self._world = None
        self._episode = None
        self._last_frames = None
        self._unseen_frames.clear()

    def _open_world(self) -> WorldModel:
        if self._world is None:
            raise gym.error.ClosedEnvironmentError("This env is closed; make a new one with gym.make.")
        return self._world

    def _observation_space(self) -> gym.Space[Any]:
        size = (self._height, self._width)
        if self.obs_mode == "rgbd_uint8":
            return gym.spaces.Box(0, 255, (*size, 4), np.uint8)
        depth = (
            gym.spaces.Box(0, 255, (*size, 1), np.uint8)
            if self.depth_format == "inverse_uint8"
            else gym.spaces.Box(0.0, self.far, (*size, 1), np.float32)
        )
        return gym.spaces.Dict({"rgb": gym.spaces.Box(0, 255, (*size, 3), np.uint8), "depth": depth})

    def _observe(self, frames: Frames) -> Observation:
        """Return the last frame as an observation, in arrays of its own."""
        rgb_HW3 = frames.rgb[0, -1].copy()
        depth_HW1 = self._metres(frames.depth[0, -1])
        if self.obs_mode == "rgbd_uint8":
            return np.concatenate([rgb_HW3, inverse_depth_levels(depth_HW1, self.near)], axis=-1)
        if self.depth_format == "inverse_uint8":
            depth_HW1 = inverse_depth_levels(depth_HW1, self.near)
        return {"rgb": rgb_HW3, "depth": depth_HW1}

    def _metres(self, depth: np.ndarray) -> np.ndarray:
        """Return depth (..., H, W) as a fresh (..., H, W, 1) float32, at most `far`."""
        return np.minimum(depth, np.float32(self.far)).astype(np.float32)[..., None]

    def _info(self, episode: _Episode, frames: Frames) -> dict[str, Any]:
        known = {} if episode.scene_seed is None else {"scene_seed": episode.scene_seed}
        return {
            **known,
            **self._open_world().describe(episode.state)[0],
            "world_from_camera": episode.world_from_camera_44.copy(),
            "intrinsics": frames.intrinsics[0, -1].astype(np.float64),
            "metric": bool(frames.metric[0]),
            "step": episode.step,
        }

    def _step_info(self, episode: _Episode, frames: Frames, judgement: Judgement) -> dict[str, Any]:
        info = self._info(episode, frames)
        if self.frames_in_info:
            info["rgb_frames"] = frames.rgb[0].copy()
            info["depth_frames"] = self._metres(frames.depth[0])
            info["poses"] = frames.world_from_camera[0].astype(np.float64)
        return info | dict(judgement.info)

    def _check_option_keys(self, options: Mapping[str, Any]) -> None:
        own = (*_PICTURE_OPTIONS, "scene_seed") if self._open_world().needs_picture else ("scene_seed",)
        valid = sorted({*own, *self.task.options})
        for key in options:
            if key not in valid:
                raise ValueError(f"options has the unknown key {key!r}; this env takes {', '.join(valid)}.")

    def _given_start(self, options: Mapping[str, Any]) -> Start | None:
        """Return the start that the options give, fitted; None where a dream has to choose a picture of its own."""
        scene_seed = options.get("scene_seed")
        if scene_seed is not None:
            if isinstance(scene_seed, bool) or not isinstance(scene_seed, int | np.integer) or scene_seed < 0:
                raise ValueError(f"options['scene_seed'] must be a whole number >= 0, got {scene_seed!r}.")
            scene_seed = int(scene_seed)
        if not self._open_world().needs_picture:
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

    def _bundled_start(self) -> Start:
        names = start_names()
        if not names:
            raise ValueError(
                "there are no bundled pictures to start from; pass reset(options={'image': path or array})."
            )
        return self._fit(load_start(names[int(self.np_random.integers(len(names)))]))

    def _fit(self, start: Start) -> Start:
        assert start.rgb is not None
        rgb, intrinsics, depth = fit_picture(
            start.rgb,
            self._height,
            self._width,
            start.intrinsics,
            start.depth,
            horizontal_fov=DEFAULT_HORIZONTAL_FOV if self.horizontal_fov is None else self.horizontal_fov,
        )
        return Start(rgb=rgb, depth=depth, intrinsics=intrinsics, scene_seed=start.scene_seed)

    def _remember(self, frames: Frames) -> None:
        self._last_frames = frames
        if self.render_mode == "rgb_array_list":
            self._unseen_frames.append(frames)

    def _picture(self, frames: Frames, t: int) -> np.ndarray:
        return np.concatenate([frames.rgb[0, t], colour_depth(frames.depth[0, t], self._render_near)], axis=1)


def _last_pose(frames: Frames) -> np.ndarray:
    """Return the last pose, rigid however many steps led to it."""
    pose_44 = frames.world_from_camera[0, -1]
    # A unit quaternion is a rotation exactly: rounding errors of thousands of products do not add up.
    return make_pose(matrix_from_quaternion(quaternion_from_matrix(pose_44[:3, :3])), pose_44[:3, 3])


def _make_world(
    world: str, *, model: str, size: dict[str, Any], horizontal_fov: float | None, split: str, device: str
) -> WorldModel:
    # Imported here because a dream needs PyTorch, a simulation MuJoCo, and neither needs the other.
    if world == "dream":
        from aether_env.world_model.rollout import DreamWorld

        # A world takes back its own states only, which the promise does not say in types.
        return cast(WorldModel, DreamWorld.from_checkpoint(model, device=device, **size))
    if world == "sim":
        from aether_env.sim import SimWorld

        fov = None if horizontal_fov is None else math.radians(horizontal_fov)
        size = {name: value for name, value in size.items() if value is not None}
        return SimWorld(**size, horizontal_fov=fov, split=split, device=device)
    raise ValueError(f"world must be 'dream' or 'sim', got {world!r}; the checkpoint's name goes into model=.")


def _check_one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low < value <= high:
        raise ValueError(f"{name} must be in ({low}, {high}], got {value!r}.")
