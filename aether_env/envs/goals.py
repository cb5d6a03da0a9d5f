"""Tasks that end at a goal, given at reset or sampled from the world: a pose, a picture, or a depth picture.

A goal is also a small vector, and how far apart two vectors are is a pure function of them (`gaps`). So agents that
learn from goals they did not mean to reach (HER) compute the very rewards that the env gave.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import cv2
import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike

from aether_env.camera import check_poses, make_pose, motion_from_action, relative_to, rotation_distance
from aether_env.conventions import FAR_DEPTH
from aether_env.envs.collisions import add_view, free_fraction, no_surfaces
from aether_env.envs.goal_vectors import pose_from_vector, vector_from_pose
from aether_env.envs.rewards import Reward, Sparse, at_goal, check_setting
from aether_env.envs.tasks import Explore, Judgement, Moment, Opening, Task
from aether_env.pictures import checked_depth, fit_picture, read_picture
from aether_env.world_model.promise import Frames

GRID = (8, 12)
"""Rows and columns of cells that the vector of a picture goal averages over."""

ROOM = 0.3
"""Metres (or units) that sampled goals and the straight way to them keep from surfaces in view."""

_TRIES = 32
"""Poses that are drawn before the best is taken."""


@dataclass(frozen=True, kw_only=True)
class GoalTask(Task, ABC):
    """Reach a goal; an episode ends there and, as far as the task decides, nowhere else.

    Where no goal is given, a pose is sampled (`sample_pose`). Lengths are metres, or units of a world without scale.

    info of reset: `gap` (the largest), and where the goal's pose is known `goal_pose` (4, 4), `distance` and `angle`.
    info of a step: `success`, `gap`, and where the pose is known `distance`, `angle` and `spl`: success weighted by
    path length (Anderson et al. 2018), 0.0 until success, then straight / max(travelled, straight). The straight way is
    the distance between start and goal, furniture or not: nobody knows the shortest free way through a dream.
    """

    reward: Reward = Sparse()
    """What a step is worth."""
    collision_penalty: float = 0.0
    """Taken off the reward of a step in which a surface stopped the camera."""
    max_distance: float = 0.3
    """Tolerance of poses: metres."""
    max_angle: float = math.radians(15)
    """Tolerance of poses: radians."""
    distance: tuple[float, float] = (0.5, 1.5)
    """How far sampled goals are from the start: between these metres."""
    angle: float = math.radians(30)
    """How far sampled goals are turned about the vertical, at most: radians to either side."""

    options = frozenset({"goal_pose"})

    def __post_init__(self) -> None:
        if not callable(self.reward) or not isinstance(getattr(self.reward, "pure", None), bool):
            raise ValueError(f"reward must be callable with an attribute `pure` of True or False, got {self.reward!r}.")
        check_setting(
            "collision_penalty", self.collision_penalty, 0 <= self.collision_penalty < math.inf, "finite and >= 0"
        )
        check_setting("max_distance", self.max_distance, 0 < self.max_distance < math.inf, "finite metres > 0")
        check_setting(
            "max_angle", self.max_angle, 0 < self.max_angle <= math.pi, "radians in (0, pi]; use math.radians"
        )
        ordered = np.shape(self.distance) == (2,) and 0 <= self.distance[0] <= self.distance[1] <= FAR_DEPTH
        check_setting("distance", self.distance, ordered, f"(least, most) metres in [0, {FAR_DEPTH}]")
        check_setting("angle", self.angle, 0 <= self.angle <= math.pi, "radians in [0, pi]; use math.radians")

    @property
    @abstractmethod
    def goal_space(self) -> gym.spaces.Box:
        """Box (d,) float32 with finite bounds: where goal vectors lie."""

    @abstractmethod
    def achieved(self, frames: Frames) -> np.ndarray:
        """Return the vector (d,) float32 of the goal that the last frame would reach (B = 1)."""

    @abstractmethod
    def gaps(self, achieved: ArrayLike, desired: ArrayLike) -> np.ndarray:
        """Return how far vectors (..., d) are apart, (..., k) float64, each gap counted in its tolerance."""

    @abstractmethod
    def find_goal(self, opening: Opening) -> dict[str, Any]:
        """Return the beginning of the state: `goal` (d,) float32, `pose` (4, 4) or None, and what `observe` shows.

        Raises:
            ValueError: An option is not usable.
        """

    def desired(self, state: Mapping[str, Any]) -> np.ndarray:
        """Return the goal's vector (d,) float32."""
        return state["goal"].copy()

    def compute_reward(self, achieved: ArrayLike, desired: ArrayLike) -> np.ndarray:
        """Return the rewards (...) of having come to `achieved` (..., d) with the goal `desired` (..., d).

        Collisions have no part in it.

        Raises:
            ValueError: The reward needs more than the two goals.
        """
        self._check_pure()
        return np.asarray(self.reward(self.gaps(achieved, desired)))

    def for_relabelling(self) -> Self:
        """Return the task as a goal env needs it: success and reward are pure functions of the two goal vectors.

        Raises:
            ValueError: The reward needs more than the two goals, or collisions have a part in it.
        """
        self._check_pure()
        if self.collision_penalty:
            raise ValueError(
                f"collision_penalty must be 0 in a goal env, got {self.collision_penalty}: relabelled steps do not "
                "know of collisions; on_collision='stop' keeps the camera from walls all the same."
            )
        return self

    def start(self, opening: Opening) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode; see `Task.start`."""
        goal = self.find_goal(opening)
        camera_44 = opening.frames.world_from_camera[0, -1]
        gaps = self._judged_gaps(goal, opening.frames)
        info: dict[str, Any] = {"gap": float(gaps.max())}
        straight = 0.0
        if goal["pose"] is not None:
            info |= {"goal_pose": goal["pose"].copy()} | _apart(camera_44, goal["pose"])
            straight = info["distance"]
        return goal | {"gaps": gaps, "travelled": 0.0, "straight": straight}, info

    def judge(self, state: dict[str, Any], moment: Moment) -> tuple[dict[str, Any], Judgement]:
        """Judge one step; see `Task.judge`."""
        gaps = self._judged_gaps(state, moment.frames)
        success = bool(at_goal(gaps))
        travelled = state["travelled"] + float(moment.moved)
        reward = float(self.reward(gaps, state["gaps"]))
        if moment.collided:
            reward -= self.collision_penalty
        info: dict[str, Any] = {"success": success, "gap": float(gaps.max())}
        if state["pose"] is not None:
            info |= _apart(moment.frames.world_from_camera[0, -1], state["pose"])
            info["spl"] = _path_share(state["straight"], travelled) if success else 0.0
        now = state | {"gaps": gaps, "travelled": travelled}
        return now, Judgement(reward=reward, terminated=success, info=info)

    def _judged_gaps(self, state: Mapping[str, Any], frames: Frames) -> np.ndarray:
        return self.gaps(self.achieved(frames), state["goal"])

    def _check_pure(self) -> None:
        if not self.reward.pure:
            raise ValueError(
                f"reward must depend on the two goals alone to be computed again, {self.reward!r} does not; "
                "use Sparse() or Dense()."
            )


@dataclass(frozen=True, kw_only=True)
class PoseGoal(GoalTask):
    """Bring the camera to a pose, within `max_distance` and `max_angle`.

    `reset(options={"goal_pose": (4, 4)})`, camera-to-world, world = the camera at reset; else one is sampled.
    Goal vector: position (3), then the first two columns of the rotation (6). Gaps: distance and angle.
    Observation `goal` (9,): the goal's pose in the axes of the camera now, in the same form.
    """

    @property
    def goal_space(self) -> gym.spaces.Box:
        """Box (9,) float32: positions within 100 metres (or units), columns of a rotation within 1."""
        bounds = np.array([FAR_DEPTH] * 3 + [1.0] * 6, np.float32)
        return gym.spaces.Box(-bounds, bounds, dtype=np.float32)

    def observation_space(self, height: int, width: int, far: float) -> dict[str, gym.Space[Any]]:
        """Return the space of `goal`."""
        return {"goal": self.goal_space}

    def observe(self, state: Mapping[str, Any], frames: Frames) -> dict[str, np.ndarray]:
        """Return `goal`, (9,) float32: where the goal is from here."""
        return {"goal": vector_from_pose(relative_to(state["pose"], frames.world_from_camera[0, -1]))}

    def achieved(self, frames: Frames) -> np.ndarray:
        """Return the vector (9,) float32 of the camera's last pose (B = 1)."""
        return vector_from_pose(frames.world_from_camera[0, -1])

    def gaps(self, achieved: ArrayLike, desired: ArrayLike) -> np.ndarray:
        """Return distance / max_distance and angle / max_angle, (..., 2), of vectors (..., 9)."""
        return _pose_gaps(pose_from_vector(achieved), pose_from_vector(desired), self.max_distance, self.max_angle)

    def find_goal(self, opening: Opening) -> dict[str, Any]:
        """Return the beginning of the state; see `GoalTask.find_goal`."""
        pose_44 = _given_pose(opening.options)
        if pose_44 is None:
            pose_44 = sample_pose(opening, self.distance, self.angle)
        return {"goal": vector_from_pose(pose_44), "pose": pose_44}


@dataclass(frozen=True, kw_only=True)
class _ViewGoal(GoalTask):
    """See what was seen from the goal; what is seen is the subclass's.

    The goal's pose is known where it was sampled or given; success is then by pose, else by the views' vectors.

    The default tolerances come from 100 simulated scenes: the median RMS between the goal's view and others, and how
    many of the episodes would begin at the goal:

                0.1 m, 5 deg   0.2 m, 10 deg   0.3 m, 15 deg   the start's   another scene's   tolerance   at the goal
        colour  0.084          0.130           0.152           0.147         0.246             0.08        6 %
        depth   0.025          0.049           0.060           0.067         0.118             0.03        7 %

    They are tighter than the pose's: 0.3 m and 15 degrees away a view differs as much as the start's does.
    """

    tolerance: float
    """Tolerance of vectors: root mean square of their differences."""
    success_by: Literal["auto", "pose", "vector"] = "auto"
    """What gaps, success and reward are counted in; "auto" is the pose where it is known, else the vector."""

    _key: ClassVar[str]
    """Of the observation."""
    _option: ClassVar[str]
    """Of reset, that gives the goal's view."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting("tolerance", self.tolerance, 0 < self.tolerance < math.inf, "finite and > 0")
        choices = ("auto", "pose", "vector")
        check_setting("success_by", self.success_by, self.success_by in choices, "'auto', 'pose' or 'vector'")

    def achieved(self, frames: Frames) -> np.ndarray:
        """Return the vector (d,) float32 of the last frame (B = 1)."""
        return self._vector(self._view(frames))

    def observe(self, state: Mapping[str, Any], frames: Frames) -> dict[str, np.ndarray]:
        """Return the goal as it was seen; it stays the same all the episode."""
        return {self._key: state["view"].copy()}

    def for_relabelling(self) -> Self:
        """Return the task judged by vectors alone; see `GoalTask.for_relabelling`.

        Raises:
            ValueError: The reward needs more than the two goals, collisions have a part in it, or `success_by="pose"`.
        """
        if self.success_by == "pose":
            raise ValueError("success_by must be 'auto' or 'vector' in a goal env, got 'pose'; PoseGoal goes by poses.")
        return replace(super().for_relabelling(), success_by="vector")

    def look_from(self, opening: Opening) -> np.ndarray | None:
        """Return the goal's pose where its view is not given; see `Task.look_from`."""
        if opening.options.get(self._option) is not None:
            return None
        pose_44 = _given_pose(opening.options)
        return sample_pose(opening, self.distance, self.angle) if pose_44 is None else pose_44

    @abstractmethod
    def _view(self, frames: Frames) -> np.ndarray:
        """Return the last frame (H, W, C) as a goal of this kind sees it."""

    @abstractmethod
    def _given_view(self, opening: Opening) -> np.ndarray | None:
        """Return the view (H, W, C) that the options give."""

    @abstractmethod
    def _vector(self, view: np.ndarray) -> np.ndarray:
        """Return the vector (d,) float32 of a view (H, W, C)."""

    def find_goal(self, opening: Opening) -> dict[str, Any]:
        """Return the beginning of the state; see `GoalTask.find_goal`."""
        pose_44, view = _given_pose(opening.options), self._given_view(opening)
        if view is None:
            assert opening.seen is not None  # `look_from` asked for it
            # A world may stop the camera on the way: the goal is where its view was seen from.
            pose_44, view = opening.seen.world_from_camera[0, -1].copy(), self._view(opening.seen)
        if pose_44 is None and self.success_by == "pose":
            raise ValueError("options['goal_pose'] must be given beside the goal's view where success_by='pose'.")
        return {"goal": self._vector(view), "pose": pose_44, "view": view}

    def _judged_gaps(self, state: Mapping[str, Any], frames: Frames) -> np.ndarray:
        if state["pose"] is None or self.success_by == "vector":
            return super()._judged_gaps(state, frames)
        return _pose_gaps(frames.world_from_camera[0, -1], state["pose"], self.max_distance, self.max_angle)


@dataclass(frozen=True, kw_only=True)
class ImageGoal(_ViewGoal):
    """See what a picture shows.

    `reset(options={"goal_image": path or uint8 array})`, cropped and resized to the frames, if known with `goal_pose`
    beside it; `goal_pose` alone is the view from there; without either a pose is sampled.
    Goal vector (288,) in [0, 1]: mean colours of 8 x 12 cells. Gap: the RMS of the difference over `tolerance`.
    Observation `goal_rgb` (H, W, 3) uint8.
    """

    tolerance: float = 0.08
    """Tolerance of vectors: root mean square of their differences, of colours in [0, 1]."""

    options = frozenset({"goal_pose", "goal_image"})
    _key, _option = "goal_rgb", "goal_image"

    @property
    def goal_space(self) -> gym.spaces.Box:
        """Box (288,) float32 in [0, 1]."""
        return gym.spaces.Box(0.0, 1.0, (math.prod(GRID) * 3,), np.float32)

    def observation_space(self, height: int, width: int, far: float) -> dict[str, gym.Space[Any]]:
        """Return the space of `goal_rgb`."""
        return {self._key: gym.spaces.Box(0, 255, (height, width, 3), np.uint8)}

    def gaps(self, achieved: ArrayLike, desired: ArrayLike) -> np.ndarray:
        """Return the RMS of the difference over the tolerance, (..., 1), of vectors (..., 288)."""
        difference = np.asarray(achieved, np.float64) - np.asarray(desired, np.float64)
        return np.sqrt((difference**2).mean(axis=-1, keepdims=True)) / self.tolerance

    def _view(self, frames: Frames) -> np.ndarray:
        return frames.rgb[0, -1].copy()

    def _given_view(self, opening: Opening) -> np.ndarray | None:
        image = opening.options.get(self._option)
        if image is None:
            return None
        height, width = opening.frames.rgb.shape[2:4]
        return fit_picture(read_picture(image, name="options['goal_image']"), height, width).rgb

    def _vector(self, view: np.ndarray) -> np.ndarray:
        return np.clip(_cells(view.astype(np.float32) / 255), 0.0, 1.0).ravel()


@dataclass(frozen=True, kw_only=True)
class DepthGoal(_ViewGoal):
    """See depth as a depth picture shows it.

    `reset(options={"goal_depth": (H, W) floating-point metres})`, NaN or <= 0 where unknown, cropped and resized to the
    frames by nearest pixel, if known with `goal_pose` beside it; `goal_pose` alone is the view from there; without
    either a pose is sampled. In a world without scale the numbers are its units.
    Goal vector (96,) in [0, 1]: means of sqrt(near / depth), at most 1, over the known pixels of 8 x 12 cells; 0 where
    less than half of a cell is known, which no depth has. Gap: the RMS of the difference in cells known in both, over
    `tolerance`. A goal with less than half of its cells known is refused.
    Observation `goal_depth` (H, W, 1) float32, 0 where unknown.
    """

    tolerance: float = 0.03
    """Tolerance of vectors: root mean square of their differences."""
    near: float = 0.25
    """Depth that counts 1 in the vector, and everything nearer: metres."""

    options = frozenset({"goal_pose", "goal_depth"})
    _key, _option = "goal_depth", "goal_depth"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting("near", self.near, 0 < self.near <= FAR_DEPTH, f"metres in (0, {FAR_DEPTH}]")

    @property
    def goal_space(self) -> gym.spaces.Box:
        """Box (96,) float32 in [0, 1]."""
        return gym.spaces.Box(0.0, 1.0, (math.prod(GRID),), np.float32)

    def observation_space(self, height: int, width: int, far: float) -> dict[str, gym.Space[Any]]:
        """Return the space of `goal_depth`."""
        return {self._key: gym.spaces.Box(0.0, far, (height, width, 1), np.float32)}

    def gaps(self, achieved: ArrayLike, desired: ArrayLike) -> np.ndarray:
        """Return the RMS of the difference over the tolerance, (..., 1), of vectors (..., 96).

        Vectors without a known cell in common are as far apart as can be: their RMS counts as 1.
        """
        achieved, desired = np.asarray(achieved, np.float64), np.asarray(desired, np.float64)
        known = (achieved > 0) & (desired > 0)
        squares = np.where(known, (achieved - desired) ** 2, 0.0).sum(axis=-1, keepdims=True)
        count = known.sum(axis=-1, keepdims=True)
        return np.sqrt(np.where(count > 0, squares / np.maximum(count, 1), 1.0)) / self.tolerance

    def _view(self, frames: Frames) -> np.ndarray:
        return frames.depth[0, -1, ..., None].astype(np.float32)

    def _given_view(self, opening: Opening) -> np.ndarray | None:
        given = opening.options.get(self._option)
        if given is None:
            return None
        try:
            depth = np.asarray(given)
            if depth.ndim < 2:
                raise ValueError(f"depth must have shape (H, W), got {depth.shape}.")
            depth = checked_depth(depth, *depth.shape[:2])
            # Fitted as the depth of a picture is; there is no picture.
            height, width = opening.frames.depth.shape[-2:]
            fitted = fit_picture(np.zeros((*depth.shape, 3), np.uint8), height, width, depth=depth).depth
        except ValueError as error:
            raise ValueError(f"options['goal_depth'] is not usable: {error}") from error
        assert fitted is not None
        known = np.isfinite(fitted) & (fitted > 0)
        view = np.where(known, np.minimum(fitted, FAR_DEPTH), 0.0).astype(np.float32)[..., None]
        share = float((self._vector(view) > 0).mean())
        if share < 0.5:
            raise ValueError(
                f"options['goal_depth'] must be known in half of the {GRID[0]} x {GRID[1]} cells of the picture, got "
                f"{share:.0%}; fill its holes or give options['goal_pose'] alone."
            )
        return view

    def _vector(self, view: np.ndarray) -> np.ndarray:
        depth_HW = view[..., 0]
        known_HW = depth_HW > 0
        level_HW = np.where(known_HW, np.sqrt(np.minimum(self.near / np.maximum(depth_HW, 1e-6), 1.0)), 0.0)
        share, level = _cells(known_HW.astype(np.float32)), _cells(level_HW.astype(np.float32))
        return np.where(share >= 0.5, np.clip(level / np.maximum(share, 0.5), 0.0, 1.0), 0.0).astype(np.float32).ravel()


def make_task(task: str | Task | None) -> Task:
    """Return a task as it is, or with its default settings by name; None explores.

    Args:
        task: A task, "explore", "pose", "image", "depth" or None.

    Raises:
        ValueError: There is no task of that name, or it is no task.
    """
    named: dict[str, type[Task]] = {"explore": Explore, "pose": PoseGoal, "image": ImageGoal, "depth": DepthGoal}
    if isinstance(task, Task):
        return task
    name = "explore" if task is None else task
    if not isinstance(name, str) or name not in named:
        raise ValueError(f"task must be one of {', '.join(map(repr, named))} or an object of a Task, got {task!r}.")
    return named[name]()


def sample_pose(
    opening: Opening, distance: tuple[float, float] = (0.5, 1.5), angle: float = math.radians(30)
) -> np.ndarray:
    """Return a pose in view of the first frame that the camera can go to straight, as far as that frame tells.

    Of some poses drawn the first is taken that keeps `ROOM` from every surface in view all the way. Where none does (a
    tight place) it is the one that gets farthest, put where it gets to: nearer than wanted, at the worst at the start.

    Args:
        opening: What is seen, and what draws.
        distance: (least, most) wanted metres (or units) between start and goal.
        angle: Largest turn about the world's y axis (the camera's down at the start), radians, to either side.

    Returns:
        (4, 4) float64 world_from_camera.
    """
    frames, np_random = opening.frames, opening.np_random
    height, width = frames.depth.shape[-2:]
    intrinsics_33, start_44 = frames.intrinsics[0, -1], frames.world_from_camera[0, -1]

    # The middle half of the picture, along both sides.
    pixel_N2 = np_random.uniform(0.25, 0.75, (_TRIES, 2)) * (width, height)
    ray_N3 = np.concatenate([pixel_N2, np.ones((_TRIES, 1))], axis=-1) @ np.linalg.inv(intrinsics_33).T
    ray_N3 /= np.linalg.norm(ray_N3, axis=-1, keepdims=True)
    wanted_N = np_random.uniform(*distance, _TRIES)
    end_N44 = start_44 @ make_pose(np.eye(3), ray_N3 * wanted_N[:, None])
    turn_44 = motion_from_action(np.zeros(3), [0.0, np_random.uniform(-angle, angle), 0.0])

    seen = add_view(no_surfaces(1), frames.depth[:, -1], frames.intrinsics[:, -1], start_44[None])[:, -1:]
    free_N = free_fraction(
        np.broadcast_to(seen, (_TRIES, *seen.shape[1:])),
        np.broadcast_to(start_44, end_N44.shape),
        end_N44,
        np.full(_TRIES, ROOM),
    )
    best = int(np.where(free_N == 1, np.inf, free_N * wanted_N).argmax())
    centre_3 = start_44[:3, 3] + free_N[best] * (end_N44[best, :3, 3] - start_44[:3, 3])
    return make_pose(turn_44[:3, :3] @ start_44[:3, :3], centre_3)


def _pose_gaps(one: np.ndarray, other: np.ndarray, max_distance: float, max_angle: float) -> np.ndarray:
    """Return distance and angle between poses (..., 4, 4), each over its tolerance, (..., 2)."""
    distance = np.linalg.norm(one[..., :3, 3] - other[..., :3, 3], axis=-1)
    # Half a turn is the most there is, whatever rounding says: max_angle = pi means any direction.
    angle = np.minimum(rotation_distance(one, other), np.pi)
    return np.stack([distance / max_distance, angle / max_angle], axis=-1)


def _apart(one_44: np.ndarray, other_44: np.ndarray) -> dict[str, float]:
    distance, angle = _pose_gaps(one_44, other_44, 1.0, 1.0)
    return {"distance": float(distance), "angle": float(angle)}


def _path_share(straight: float, travelled: float) -> float:
    """Return straight / max(travelled, straight), and 1.0 for not moving where there is no way to go."""
    longest = max(travelled, straight)
    return straight / longest if longest > 0 else 1.0


def _cells(picture: np.ndarray) -> np.ndarray:
    """Return the means of a float32 picture (H, W) or (H, W, C) over `GRID` cells."""
    return cv2.resize(picture, GRID[::-1], interpolation=cv2.INTER_AREA)


def _given_pose(options: Mapping[str, Any]) -> np.ndarray | None:
    given = options.get("goal_pose")
    if given is None:
        return None
    name = "options['goal_pose']"
    try:
        array = np.array(given, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a 4x4 matrix of numbers, got {given!r}.") from error
    pose_44 = check_poses(name, array)
    if pose_44.shape != (4, 4):
        raise ValueError(f"{name} must be one pose of shape (4, 4), got {pose_44.shape}.")
    if np.abs(pose_44[:3, 3]).max() > FAR_DEPTH:
        raise ValueError(f"{name} must lie within {FAR_DEPTH} along each axis, got the position {pose_44[:3, 3]}.")
    return pose_44
