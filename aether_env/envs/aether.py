"""AetherEnv: a camera that an agent moves through a world, dreamed or simulated."""

from __future__ import annotations

import inspect
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding

from aether_env.envs.core import (
    EnvCore,
    Episodes,
    Observation,
    checked_names,
    checked_seed,
    info_of,
    shown_signature,
)
from aether_env.envs.goals import GoalTask
from aether_env.envs.keeping import restored, snapshot
from aether_env.envs.worlds import WORLD_SETTINGS
from aether_env.world_model.promise import Frames, WorldModel

if TYPE_CHECKING:
    from aether_env.envs.vector import AetherVectorEnv

RenderMode = Literal["rgb_array", "rgb_array_list"]


class AetherEnv(gym.Env[Observation, Any]):
    """Move a camera through a world; see what it sees in colour and depth.

    Action, Box(-1, 1, (6,)): the camera's translation (x right, y down, z forward) and rotation vector during one step,
    in camera axes, times `max_translation` and `max_rotation`. Beyond [-1, 1] it is clipped; NaN and wrong shapes
    raise ValueError. One step is `frames_per_step` frames at `fps`, along poses interpolated between the two ends.
    Other ways to steer: `action_mode`, docs/actions.md.

    Observation, the last frame of the step: `{"rgb": (H, W, 3) uint8, "depth": (H, W, 1) float32}`, depth in metres
    up to `far` (`obs_mode` and `depth_format` have forms for convolutional agents). A task may add keys.

    info: `world_from_camera` (4, 4) with world = the camera at reset, `intrinsics` (3, 3), `metric` (lengths are
    metres; if False they are the world's own unit), `step`, where the world knows them `unit` and `scene_seed`, and
    after steps `collided`. With `frames_in_info` every step (reset has only the one in the observation) adds all its
    frames: `rgb_frames` (T, H, W, 3), `depth_frames` (T, H, W, 1) in metres and `poses` (T, 4, 4).

    The task gives the reward and ends the episode; `TimeLimit` truncates the registered ids after 200 steps. The
    camera stops `camera_radius` before a surface that it saw during the last steps.

    `reset(options=...)`: a dream takes `image` (path, or uint8 RGB array) with optional `depth` (metres), `intrinsics`
    (pixels of that image) and `scene_seed` (only repeated in info); without it starts from a bundled picture.
    The simulator takes `scene_seed`. The task may add keys.

    Args:
        world: "dream", "sim", or a world of one's own; that one brings its size and speed, and its maker closes it.
        render_mode: "rgb_array" (colour beside coloured depth, (H, 2W, 3)) or "rgb_array_list" (all new frames).
        model: Checkpoint of the dream, a bundled name (default "mini") or a folder.
        height: Pixels; None is the checkpoint's, in the simulator 64.
        width: Pixels; None is the checkpoint's, in the simulator 96.
        fps: Frames per second; None is the checkpoint's (a dream has no other), in the simulator 12.
        frames_per_step: Frames that one env step lasts; a dream knows 4 (default).
        horizontal_fov: Degrees; None is the scene's own in the simulator, 70 for a picture without intrinsics.
        max_translation: Metres per axis and step.
        max_rotation: Radians per axis and step.
        far: Depth of everything farther, metres.
        near: Depth of level 255 where depth is shown in 8 bits, metres.
        obs_mode: "rgbd", or "rgbd_uint8" for one (H, W, 4) uint8 picture with inverse depth as the fourth channel.
        depth_format: Of "rgbd": "metres", or "inverse_uint8" for round(255 * sqrt(near / depth)).
        frames_in_info: Put all frames of a step into info.
        task: What the episode is for: "explore" (default), "pose", "image", "depth" or a `Task`, see docs/goals.md.
        action_mode: How actions steer: "se3" (default), "planar", "discrete", "absolute" or an `ActionMode`.
        on_collision: "stop" the camera, "end" the episode as well, or "pass" through.
        camera_radius: Metres (or units) that the camera keeps from surfaces.
        split: Of the simulator's scenes: "train" (default), "validation" or "test".
        device: Where the world computes, default "cpu".
        dtype: Of a dream's network: "float32" (default), or "bfloat16", which is quicker on GPUs and less exact.
        rows_at_once: Rows of every call of a dream's networks, filled up or parted: on a GPU a row is the same in any
            batch only where this is. Default 16 on a GPU; a CPU needs no such thing.

    Raises:
        ValueError: An argument is out of its range, or this world has no such setting.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "rgb_array_list"], "render_fps": 3.0}
    __signature__: ClassVar[inspect.Signature]
    _goal_keys = False

    def __init__(
        self,
        world: Literal["dream", "sim"] | WorldModel = "dream",
        *,
        render_mode: RenderMode | None = None,
        **settings: Any,
    ) -> None:
        if not isinstance(render_mode, str | None) or render_mode not in (None, "rgb_array", "rgb_array_list"):
            raise ValueError(f"render_mode must be None, 'rgb_array' or 'rgb_array_list'; got {render_mode!r}.")
        self._arguments = {"world": world, "render_mode": render_mode, **checked_names(type(self), settings)}
        self.core = EnvCore(world, goal_keys=self._goal_keys, **settings)
        self.task, self.action_mode = self.core.task, self.core.action_mode
        self.max_translation, self.max_rotation = self.core.max_translation, self.core.max_rotation
        self.render_mode = render_mode
        # "rgb_array" is asked once a step, "rgb_array_list" gives every frame.
        pictures = self.core.frames_per_step if render_mode == "rgb_array_list" else 1
        self.metadata = {
            **type(self).metadata,
            "render_fps": self.core.fps * pictures / self.core.frames_per_step,
        }
        self.action_space = self.core.action_space
        self.observation_space = self.core.observation_space

        self._episode: Episodes | None = None
        self._unseen_frames: list[Frames] = []

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
        _ = self.core.world
        if options is not None and not isinstance(options, dict):
            raise ValueError(f"options must be a dict or None, got {options!r}.")
        # Drawn from a copy: what the env draws next does not depend on a reset that fails.
        generator, number = self._np_random, self._np_random_seed
        if seed is not None or generator is None:
            generator, number = seeding.np_random(None if seed is None else checked_seed(seed))
        generator = deepcopy(generator)
        episode, shared, own = self.core.begin([options or {}], [generator])
        observation, info = self._row(self.core.observe(episode)), info_of(0, shared, own)

        self._np_random, self._np_random_seed = generator, number
        self._episode = episode
        self._unseen_frames = [episode.last] if self.render_mode == "rgb_array_list" else []
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
        stepped = self.core.step(self._running("step"), [action])
        observation, info = self._row(self.core.observe(stepped.episodes)), info_of(0, stepped.shared, stepped.own)

        self._episode = stepped.episodes
        if self.render_mode == "rgb_array_list":
            self._unseen_frames.append(stepped.frames)
        return observation, float(stepped.rewards[0]), bool(stepped.terminated[0]), False, info

    def render(self) -> np.ndarray | list[np.ndarray] | None:  # type: ignore[override]
        """Return colour beside coloured depth, (H, 2W, 3) uint8.

        Returns:
            The last frame; in "rgb_array_list" mode all frames since the last call or reset; None without a mode.
        """
        if self.render_mode is None:
            gym.logger.warn("render() without a render_mode shows nothing; make the env with render_mode='rgb_array'.")
            return None
        episode = self._running("render")
        near = float(episode.render_near[0])
        if self.render_mode == "rgb_array":
            return self.core.picture(episode.last, 0, -1, near)
        unseen, self._unseen_frames = self._unseen_frames, []
        return [self.core.picture(frames, 0, t, near) for frames in unseen for t in range(frames.rgb.shape[1])]

    def snapshot(self) -> bytes:
        """Return everything that the episode is: world, memory, pose, unit, task and random numbers.

        The count of a `TimeLimit` around the env is not in it.

        Raises:
            gymnasium.error.ResetNeeded: There is no episode yet.
            ValueError: The world or the task's state cannot be put into bytes.
        """
        return snapshot(self.core, self._running("snapshot"), 0, self.np_random)

    def restore(self, data: bytes) -> tuple[Observation, dict[str, Any]]:
        """Go back to where a snapshot was taken; what follows is as if it had never been left.

        Args:
            data: Of `snapshot`, also of a row of an `AetherVectorEnv`; of an env with the same checkpoint and task.

        Returns:
            The observation of that moment, and its info (without the task's, which is of steps).

        Raises:
            ValueError: Foreign, damaged or truncated bytes, or those of another world or task; the env stays as it was.
        """
        episode, generator = restored(self.core, data)
        observation = self._row(self.core.observe(episode))
        info = info_of(0, *self.core.infos(episode))
        self._episode, self._np_random, self._np_random_seed = episode, generator, -1
        self._unseen_frames = [episode.last] if self.render_mode == "rgb_array_list" else []
        return observation, info

    def branch(self, n: int, *, reseed: bool = False) -> AetherVectorEnv:
        """Return n copies of this moment that can be stepped together; this env stays where it is.

        Args:
            n: Copies.
            reseed: False: all dream with the same noise, so that they differ by their actions alone. True: each dreams
                its own future; the same n futures whenever asked from this moment. The simulator has but one.

        Returns:
            A vector env over the same world, without limit of steps; finished rows wait for `reset`. Closing it leaves
            the world open.

        Raises:
            gymnasium.error.ResetNeeded: There is no episode yet.
            ValueError: n is no whole number >= 1, or the world cannot branch.
        """
        from aether_env.envs.vector import AetherGoalVectorEnv, AetherVectorEnv

        kind = AetherGoalVectorEnv if self._goal_keys else AetherVectorEnv
        return kind.of_branches(self.core, self._running("branch"), 0, self.np_random, n, reseed=reseed)

    def close(self) -> None:
        """Free the world; may be called again. A closed env cannot be used any more."""
        self.core.close()
        self._episode = None
        self._unseen_frames = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return an env of its own over the same world: weights are not copied, episodes never change."""
        own = {name: value for name, value in self._arguments.items() if name not in WORLD_SETTINGS}
        twin = type(self)(**own | {"world": self.core.world})
        twin._arguments, twin.spec = self._arguments, deepcopy(self.spec, memo)
        twin.action_space = deepcopy(self.action_space, memo)  # it draws random actions
        twin._np_random, twin._np_random_seed = deepcopy(self._np_random, memo), self._np_random_seed
        twin._episode, twin._unseen_frames = self._episode, list(self._unseen_frames)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Return how the env was made and where it is; weights are loaded again.

        Raises:
            ValueError: The world was given as an object, which need not fit into bytes.
        """
        if not isinstance(self._arguments["world"], str):
            raise ValueError("an env can be pickled only where its world is a name; pickle env.snapshot() instead.")
        return {
            "arguments": self._arguments,
            "spec": self.spec,
            "action_space": self.action_space,
            "random": (self._np_random, self._np_random_seed),
            "episode": None if self._episode is None else self.snapshot(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, **state["arguments"])
        self.spec, self.action_space = state["spec"], state["action_space"]
        if state["episode"] is not None:
            self.restore(state["episode"])
        self._np_random, self._np_random_seed = state["random"]

    def _running(self, what: str) -> Episodes:
        """Return the episode.

        Raises:
            gymnasium.error.ClosedEnvironmentError: The env is closed.
            gymnasium.error.ResetNeeded: There is no episode yet.
        """
        _ = self.core.world
        if self._episode is None:
            raise gym.error.ResetNeeded(f"Cannot {what} before reset: call env.reset() first.")
        return self._episode

    @staticmethod
    def _row(observation: Observation) -> Observation:
        if isinstance(observation, dict):
            return {key: array[0] for key, array in observation.items()}
        return observation[0]


AetherEnv.__signature__ = shown_signature(AetherEnv.__init__)


class AetherGoalEnv(AetherEnv):
    """An `AetherEnv` for agents that learn from other goals in hindsight (HER).

    The observation has `achieved_goal` and `desired_goal` beside rgb and depth, flat vectors of the task: "pose"
    (default), "image", "depth" or a `GoalTask`.
    """

    _goal_keys = True

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> Any:
        """Return the rewards (...) for goals (..., d), a function of the two alone; info is not looked at.

        Raises:
            ValueError: The task's reward needs more than the two goals.
        """
        task = self.core.task
        assert isinstance(task, GoalTask)  # checked when the env was made
        return task.compute_reward(achieved_goal, desired_goal)
