"""The true world behind the WorldModel promise: cameras fly through simulated scenes, and physics goes on meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch

from aether_env.camera import check_poses
from aether_env.conventions import FAR_DEPTH
from aether_env.disparity import unit_from_depth
from aether_env.sim.clips import clear_renderers, draw_views, scene_intrinsics
from aether_env.sim.physics import mover_starts, simulate
from aether_env.sim.scenes import NUM_MOVERS, Scenes, sample_scenes
from aether_env.sim.seeds import SPLITS, draw_uniforms, seed_in
from aether_env.sim.solids import Solids
from aether_env.sim.walks import camera_pose
from aether_env.world_model.promise import (
    Frames,
    RolloutState,
    Start,
    check_about,
    check_arrays,
    check_rules,
    checked_branch,
)

_SURFACE = 0.999 * FAR_DEPTH
"""Depth below which a pixel counts for the unit, as in the dream."""

_LAYOUT: dict[str, tuple[str, tuple[int, ...]]] = {
    "scene_seed": ("int64", ()),
    "scene_from_world": ("float64", (4, 4)),
    "mover_pose": ("float64", (NUM_MOVERS, 7)),
    "mover_velocity": ("float64", (NUM_MOVERS, 6)),
    "seconds": ("float64", ()),
    "unit": ("float64", ()),
}
"""The type and the shape, without B, of every array of a frozen state."""


@dataclass(frozen=True, kw_only=True)
class SimState:
    """B simulated worlds between two steps. The arrays are never written to."""

    scenes: Scenes
    """B scenes, with the field of view that the cameras have."""
    scene_from_world: np.ndarray
    """(B, 4, 4): the world is the camera at reset (OpenCV axes)."""
    mover_pose: np.ndarray
    """(B, M, 7) positions and quaternions (w first), scene axes."""
    mover_velocity: np.ndarray
    """(B, M, 6)."""
    seconds: np.ndarray
    """(B,) time since reset."""
    unit: np.ndarray
    """(B,) metres: the near quantile of the depth at reset, see `describe`."""

    def __len__(self) -> int:
        """Return the number of worlds."""
        return len(self.unit)

    def __getitem__(self, rows: Any) -> Self:
        """Return the given rows; one number gives a batch of one."""
        if isinstance(rows, int | np.integer):
            rows = [int(rows)]
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


class SimWorld:
    """Simulated scenes as a world for the envs: exact, metric, the same for the same seed."""

    needs_picture = False

    def __init__(
        self,
        height: int = 64,
        width: int = 96,
        fps: float = 12.0,
        frames_per_step: int = 4,
        horizontal_fov: float | None = None,
        split: str = "train",
        family: str | None = None,
        device: str = "cpu",
        supersample: int = 2,
        shadows: bool = True,
    ) -> None:
        """Describe the cameras and the scenes.

        Args:
            height: Rows of the pictures.
            width: Columns of the pictures.
            fps: Frames per second of physics.
            frames_per_step: Frames that `advance` shows.
            horizontal_fov: Radians; None: each scene's own, 50 to 90 degrees.
            split: Where seeds come from when `Start.scene_seed` is None: "train", "validation" or "test".
            family: "room", "blocks", or None: the seed chooses.
            device: Where pictures are drawn, "cpu" or "cuda:0".
            supersample: Colour samples along each side of a pixel.
            shadows: Whether lights cast shadows.

        Raises:
            ValueError: A bad argument.
        """
        for name, value in (("height", height), ("width", width), ("fps", fps), ("frames_per_step", frames_per_step)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}.")
        if horizontal_fov is not None and not 0.1 <= horizontal_fov <= 2.8:
            raise ValueError(
                f"horizontal_fov must lie in [0.1, 2.8] radians, got {horizontal_fov}; 1.2 is about 70 degrees."
            )
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
        self.height, self.width, self.fps, self.frames_per_step = height, width, float(fps), frames_per_step
        self.horizontal_fov, self.split, self.family, self.device = horizontal_fov, split, family, device
        self.supersample, self.shadows = supersample, shadows

    def start(self, starts_B: Sequence[Start], seeds_B: Sequence[int]) -> tuple[SimState, Frames]:
        """Begin B worlds; the frames hold the one picture at reset (T = 1).

        Args:
            starts_B: `scene_seed` names the scene; None: a scene of the split that follows from the seed beside it.
            seeds_B: B integers >= 0.

        Raises:
            ValueError: Lengths differ, or a start asks for something that the simulator cannot do.
        """
        if len(starts_B) != len(seeds_B) or not len(starts_B):
            raise ValueError(f"starts_B and seeds_B must have one length > 0, got {len(starts_B)} and {len(seeds_B)}.")
        if any(start.rgb is not None or start.depth is not None or start.intrinsics is not None for start in starts_B):
            raise ValueError(
                "start must have no rgb, depth or intrinsics: the simulator brings its own scenes; use scene_seed."
            )
        chosen = [
            self._scene_of(seed) if start.scene_seed is None else int(start.scene_seed)
            for start, seed in zip(starts_B, seeds_B, strict=True)
        ]
        scenes = self._scenes(chosen)
        pose, velocity = mover_starts(scenes)
        count = len(scenes)
        state = SimState(
            scenes=scenes,
            scene_from_world=camera_pose(scenes.start_position, scenes.start_angles),
            mover_pose=pose,
            mover_velocity=velocity,
            seconds=np.zeros(count),
            unit=np.ones(count),
        )
        frames = self._show(state, pose[:, None], np.broadcast_to(np.eye(4), (count, 1, 4, 4)))
        depth = torch.as_tensor(frames.depth[:, 0])
        unit = unit_from_depth(depth, depth < _SURFACE).double().numpy()
        return replace(state, unit=unit), frames

    def advance(self, state: RolloutState, world_from_camera_BT44: np.ndarray) -> tuple[SimState, Frames]:
        """Step physics and show what the cameras see along the next `frames_per_step` poses; `state` is not modified.

        The camera is a ghost: it touches nothing and may enter surfaces; `clearance` tells.

        Args:
            state: Of `start` or `advance`.
            world_from_camera_BT44: (B, frames_per_step, 4, 4), world = the camera at reset.

        Raises:
            ValueError: A state of another world, or poses of a wrong shape, not finite or not rigid.
        """
        state = _own(state)
        path = self._path(world_from_camera_BT44, len(state), self.frames_per_step)
        poses, velocities = simulate(
            state.scenes, state.mover_pose, state.mover_velocity, num_frames=self.frames_per_step, fps=self.fps
        )
        frames = self._show(state, poses, path)
        seconds = state.seconds + self.frames_per_step / self.fps
        return replace(state, mover_pose=poses[:, -1], mover_velocity=velocities[:, -1], seconds=seconds), frames

    def scene_frames(self, scene_seed: int, world_from_camera_T44: np.ndarray) -> Frames:
        """Return the truth along a path from a scene's start (B = 1), for example to put it beside a dream.

        Args:
            scene_seed: The scene.
            world_from_camera_T44: (T, 4, 4) poses at frames 0, 1, ... since the start; world = the camera at reset.

        Raises:
            ValueError: Poses of a wrong shape, not finite or not rigid.
        """
        scenes = self._scenes([scene_seed])
        path = np.asarray(world_from_camera_T44, dtype=np.float64)
        path = self._path(path[None], 1, len(path) if path.ndim == 3 else 0)
        pose, velocity = mover_starts(scenes)
        later, _ = simulate(scenes, pose, velocity, num_frames=path.shape[1] - 1, fps=self.fps)
        state = SimState(
            scenes=scenes,
            scene_from_world=camera_pose(scenes.start_position, scenes.start_angles),
            mover_pose=pose,
            mover_velocity=velocity,
            seconds=np.zeros(1),
            unit=np.ones(1),
        )
        return self._show(state, np.concatenate([pose[:, None], later], axis=1), path)

    def clearance(self, state: RolloutState, world_from_camera_BT44: np.ndarray) -> np.ndarray:
        """Return how far cameras are from the nearest surface now, (B, T) metres, negative inside of a solid.

        Args:
            state: Of `start` or `advance`; movers are where it has them.
            world_from_camera_BT44: (B, T, 4, 4), world = the camera at reset.

        Raises:
            ValueError: A state of another world, or poses of a wrong shape, not finite or not rigid.
        """
        state = _own(state)
        path = np.asarray(world_from_camera_BT44, dtype=np.float64)
        path = self._path(path, len(state), path.shape[1] if path.ndim == 4 else 0)
        points = (state.scene_from_world[:, None] @ path)[..., :3, 3]
        return Solids(state.scenes).clearance(points, state.mover_pose[..., :3])

    def join(self, states: Sequence[RolloutState]) -> SimState:
        """Concatenate batches."""
        batches = [_own(state) for state in states]
        arrays = {
            f.name: np.concatenate([getattr(batch, f.name) for batch in batches])
            for f in fields(SimState)
            if f.name != "scenes"
        }
        return SimState(scenes=Scenes.concatenate([batch.scenes for batch in batches]), **arrays)

    def describe(self, state: RolloutState) -> list[dict[str, Any]]:
        """Return for each world its scene's seed, the seconds since reset, and the unit of length.

        The unit is the 10 % quantile of the valid depth at reset, in metres, by the rule of `unit_from_depth`.
        """
        state = _own(state)
        return [
            {"scene_seed": int(seed), "seconds": float(seconds), "unit": float(unit)}
            for seed, seconds, unit in zip(state.scenes.seeds, state.seconds, state.unit, strict=True)
        ]

    def branch(self, state: RolloutState, rows: Sequence[int], numbers: Sequence[int] | None) -> SimState:
        """Return chosen worlds; physics has no noise, so that all copies of a row stay the same.

        Raises:
            ValueError: A row or a number that there is not, or a state of another world.
        """
        rows, _ = checked_branch(len(state), rows, numbers)
        return _own(state)[rows]

    def freeze(self, state: RolloutState) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return a state as arrays, scenes by their seeds, and which simulator it is of. See `WorldModel.freeze`."""
        state = _own(state)
        arrays = {f.name: getattr(state, f.name).copy() for f in fields(state) if f.name != "scenes"}
        return {"scene_seed": state.scenes.seeds.copy(), **arrays}, self._about()

    def thaw(self, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> SimState:
        """Undo `freeze`: the scenes are made anew from their seeds. See `WorldModel.thaw`."""
        check_about(about, self._about())
        check_arrays(arrays, _LAYOUT)
        check_poses("the snapshot's scene_from_world", arrays["scene_from_world"])
        scenes = self._scenes(arrays["scene_seed"])
        start = camera_pose(scenes.start_position, scenes.start_angles)
        pose, velocity = arrays["mover_pose"], arrays["mover_velocity"]
        at_rest, _ = mover_starts(scenes)
        there = scenes.mover_kind[..., None] >= 0
        check_rules(
            {
                "scene_from_world must be where its scene begins": np.isclose(arrays["scene_from_world"], start),
                "mover_pose must have unit quaternions": np.abs((pose[..., 3:] ** 2).sum(axis=-1) - 1) < 1e-6,
                "mover_pose must leave absent movers alone": there | (pose == at_rest),
                "mover_velocity must leave absent movers alone": there | (velocity == 0),
                "seconds must not be negative": arrays["seconds"] >= 0,
                f"unit must be in (0, {FAR_DEPTH:g}]": (arrays["unit"] > 0) & (arrays["unit"] <= FAR_DEPTH),
            }
        )
        return SimState(scenes=scenes, **{name: np.array(arrays[name]) for name in _LAYOUT if name != "scene_seed"})

    def close(self) -> None:
        """Free the renderers of this process; they come back when they are needed again."""
        clear_renderers()

    def _about(self) -> dict[str, Any]:
        # Plain numbers, because JSON does not know numpy's.
        return {
            "kind": "sim",
            "height": int(self.height),
            "width": int(self.width),
            "fps": self.fps,
            "frames_per_step": int(self.frames_per_step),
            "family": self.family,
            "horizontal_fov": None if self.horizontal_fov is None else float(self.horizontal_fov),
            "supersample": int(self.supersample),
            "shadows": bool(self.shadows),
        }

    def _scene_of(self, seed: int) -> int:
        uniform = draw_uniforms(np.array([int(seed) % 2**60]), 1, stream=7)[0, 0]
        return seed_in(self.split, int(uniform * len(SPLITS[self.split])))

    def _scenes(self, seeds: Sequence[int] | np.ndarray) -> Scenes:
        scenes = sample_scenes(seeds, family=self.family)
        if self.horizontal_fov is None:
            return scenes
        return replace(scenes, horizontal_fov=np.full(len(scenes), float(self.horizontal_fov)))

    def _path(self, world_from_camera_BT44: np.ndarray, count: int, num_frames: int) -> np.ndarray:
        path = np.array(world_from_camera_BT44, dtype=np.float64)
        if path.shape != (count, num_frames, 4, 4) or not num_frames:
            raise ValueError(
                f"world_from_camera must have shape ({count}, {num_frames or 'frames'}, 4, 4), got {path.shape}; "
                "one pose for each world and frame."
            )
        return check_poses("world_from_camera", path)

    def _show(self, state: SimState, mover_pose_BTM7: np.ndarray, world_from_camera_BT44: np.ndarray) -> Frames:
        count, num_frames = world_from_camera_BT44.shape[:2]
        rgb, depth, _ = draw_views(
            state.scenes,
            mover_pose_BTM7,
            state.scene_from_world[:, None] @ world_from_camera_BT44,
            height=self.height,
            width=self.width,
            device=self.device,
            shadows=self.shadows,
            supersample=self.supersample,
        )
        intrinsics = scene_intrinsics(state.scenes, self.height, self.width)
        return Frames(
            rgb=rgb.cpu().numpy(),
            depth=depth.cpu().numpy(),
            world_from_camera=np.array(world_from_camera_BT44),
            intrinsics=np.repeat(intrinsics[:, None], num_frames, axis=1),
            metric=np.ones(count, dtype=bool),
        )


def _own(state: RolloutState) -> SimState:
    if not isinstance(state, SimState):
        raise ValueError(f"state must come from SimWorld.start or advance, got {type(state).__name__}.")
    return state
