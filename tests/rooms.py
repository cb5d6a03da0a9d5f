"""An honest double of a world: a camera in an analytic box room, ray-cast in numpy in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from aether_env.camera import check_intrinsics
from aether_env.world_model.promise import Frames, Start, check_about, check_arrays, check_rules, checked_branch

HALF_SIZE = np.array([4.0, 2.5, 6.0])
"""Metres from the room's centre, where the camera starts, to its walls."""


@dataclass(frozen=True)
class RoomState:
    """What tells B rooms apart."""

    seed_B: np.ndarray
    intrinsics_B33: np.ndarray
    metric_B: np.ndarray
    scene_seed_B: np.ndarray
    branch_B: np.ndarray

    def __len__(self) -> int:
        return len(self.seed_B)

    def __getitem__(self, rows: Any) -> RoomState:
        return RoomState(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


_LAYOUT = {
    "seed_B": ("int64", ()),
    "intrinsics_B33": ("float64", (3, 3)),
    "metric_B": ("bool", ()),
    "scene_seed_B": ("int64", ()),
    "branch_B": ("int64", ()),
}


class BoxRoom:
    """Keeps the WorldModel promise. The camera may look around and move; it cannot leave the room.

    The colours of the walls are its noise: they follow from the seed of the start and the number of the branch.
    """

    def __init__(
        self,
        height: int = 48,
        width: int = 64,
        *,
        fps: float = 12.0,
        frames_per_step: int = 4,
        needs_picture: bool = False,
    ) -> None:
        self.height, self.width, self.fps, self.frames_per_step = height, width, fps, frames_per_step
        self.needs_picture = needs_picture
        self.closed = 0
        self.starts: list[Start] = []

    def start(self, starts_B: Sequence[Start], seeds_B: Sequence[int]) -> tuple[RoomState, Frames]:
        assert len(starts_B) == len(seeds_B)
        self.starts.extend(starts_B)
        focal = self.width / 2
        own_33 = np.array([[focal, 0, self.width / 2], [0, focal, self.height / 2], [0, 0, 1.0]])
        scene_B = [
            seed % 1000 if start.scene_seed is None else start.scene_seed
            for start, seed in zip(starts_B, seeds_B, strict=True)
        ]
        state = RoomState(
            np.array(seeds_B, np.int64),
            np.stack([own_33 if start.intrinsics is None else start.intrinsics for start in starts_B]),
            np.array([not self.needs_picture or start.depth is not None for start in starts_B]),
            np.array(scene_B, np.int64),
            np.zeros(len(starts_B), np.int64),
        )
        frames = self._look(state, np.broadcast_to(np.eye(4), (len(state), 1, 4, 4)).copy())
        if self.needs_picture:
            for row, start in enumerate(starts_B):
                assert start.rgb is not None and start.rgb.shape == (self.height, self.width, 3)
                frames.rgb[row, 0] = start.rgb
        return state, frames

    def advance(self, state: RoomState, world_from_camera_BT44: np.ndarray) -> tuple[RoomState, Frames]:
        assert world_from_camera_BT44.shape == (len(state), self.frames_per_step, 4, 4)
        return state, self._look(state, world_from_camera_BT44.copy())

    def join(self, states: Sequence[RoomState]) -> RoomState:
        return RoomState(
            **{f.name: np.concatenate([getattr(state, f.name) for state in states]) for f in fields(RoomState)}
        )

    def describe(self, state: RoomState) -> list[dict[str, Any]]:
        if self.needs_picture:
            return [{"unit": 1.0} for _ in range(len(state))]
        return [{"unit": 1.0, "scene_seed": int(seed)} for seed in state.scene_seed_B]

    def branch(self, state: RoomState, rows: Sequence[int], numbers: Sequence[int] | None) -> RoomState:
        rows, numbers = checked_branch(len(state), rows, numbers)
        chosen = state[rows]
        return chosen if numbers is None else replace(chosen, branch_B=np.array(numbers, np.int64))

    def freeze(self, state: RoomState) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return {f.name: getattr(state, f.name).copy() for f in fields(state)}, self._about()

    def thaw(self, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> RoomState:
        check_about(about, self._about())
        check_arrays(arrays, _LAYOUT)
        check_intrinsics("the snapshot's intrinsics_B33", arrays["intrinsics_B33"])
        names = ("seed_B", "scene_seed_B", "branch_B")
        check_rules({f"{name} must not be negative": arrays[name] >= 0 for name in names})
        return RoomState(**{name: array.copy() for name, array in arrays.items()})

    def close(self) -> None:
        self.closed += 1

    def _about(self) -> dict[str, Any]:
        names = ("height", "width", "fps", "frames_per_step", "needs_picture")
        return {"kind": "room"} | {name: getattr(self, name) for name in names}

    def _look(self, state: RoomState, world_from_camera_BT44: np.ndarray) -> Frames:
        centre_BT3 = world_from_camera_BT44[..., :3, 3]
        centre_BT3[...] = np.clip(centre_BT3, -0.9 * HALF_SIZE, 0.9 * HALF_SIZE)
        y_HW, x_HW = np.mgrid[: self.height, : self.width] + 0.5
        pixel_HW3 = np.stack([x_HW, y_HW, np.ones_like(x_HW)], axis=-1)
        ray_BTHW3 = np.einsum(
            "btij,bjk,hwk->bthwi", world_from_camera_BT44[..., :3, :3], np.linalg.inv(state.intrinsics_B33), pixel_HW3
        )
        # A ray's camera z is 1, so the way to the first wall is the z-depth.
        with np.errstate(divide="ignore"):
            depth_BTHW3 = (np.sign(ray_BTHW3) * HALF_SIZE - centre_BT3[:, :, None, None]) / ray_BTHW3
        depth_BTHW = np.min(np.where(ray_BTHW3 == 0, np.inf, depth_BTHW3), axis=-1)
        point_BTHW3 = centre_BT3[:, :, None, None] + ray_BTHW3 * depth_BTHW[..., None]
        phase_B3 = (state.seed_B % 1001 + state.branch_B % 1001)[:, None] % np.array([7, 11, 13])
        wave = np.sin(3.0 * point_BTHW3 + phase_B3[:, None, None, None])
        return Frames(
            rgb=(127.5 + 100 * wave).astype(np.uint8),
            depth=depth_BTHW.astype(np.float32),
            world_from_camera=world_from_camera_BT44,
            intrinsics=np.repeat(state.intrinsics_B33[:, None], world_from_camera_BT44.shape[1], axis=1),
            metric=state.metric_B.copy(),
        )
