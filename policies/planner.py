"""Plan a camera's way from a picture to a goal picture by dreaming it (the planning task of AETHER, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aether_env.camera import CameraPath, relative_to
from aether_env.pictures import FittedPicture, fit_picture, read_picture
from aether_env.trajectory import smooth_path

if TYPE_CHECKING:
    from aether_env.world_model.pipeline import AetherPipeline, ClipResult


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A dreamed way to a goal: 17 frames and the camera path along them.

    The world is the first camera. Lengths are metres where `metric`, else the dream's own unit.
    """

    rgb: np.ndarray
    """(17, H, W, 3) uint8; the first is the picture that was given, fitted to the model's size."""
    depth: np.ndarray
    """(17, H, W) float32 z-depth."""
    path: CameraPath
    """Smoothed; its first pose is the identity, its intrinsics are those of one camera."""
    covariance: np.ndarray
    """(17, 6, 6) of each smoothed pose: position in world axes (squared length), then rotation vector in camera axes
    (squared radians)."""
    raw_path: CameraPath
    """As the dreamed raymaps say, frame by frame."""
    unit: float
    """Metres of one unit of the model, from the depth that was given; 1 where not metric."""
    metric: bool
    """Lengths are metres."""
    fps: float
    """Frames per second of the plan."""

    @property
    def goal_pose(self) -> np.ndarray:
        """Where the goal picture was taken, seen from the first camera: (4, 4) world_from_camera."""
        return self.path.world_from_camera[-1].copy()


class GoalPlanner:
    """Dreams the way from a picture to a goal picture.

    Args:
        model: Checkpoint, a bundled name or a folder; or a pipeline that is loaded already.
        device: Where the checkpoint is loaded; a pipeline stays where it is.
        sigmas: Noise levels at which the network is asked, falling from 1; None takes the checkpoint's. Only with a
            name or folder: a pipeline has its own.

    Raises:
        ValueError: The checkpoint cannot be used.
    """

    def __init__(
        self, model: str | Path | AetherPipeline = "mini", *, device: str = "cpu", sigmas: Sequence[float] | None = None
    ):
        # Imported here: the command line and scripted walks need no PyTorch.
        from aether_env.world_model.pipeline import AetherPipeline

        if isinstance(model, AetherPipeline):
            if sigmas is not None:
                raise ValueError("sigmas belong to a pipeline when it is made; give them to AetherPipeline instead.")
            self.pipeline = model
        else:
            self.pipeline = AetherPipeline.from_pretrained(model, device, sigmas=sigmas)

    def plan(
        self,
        picture: Any,
        goal: Any,
        *,
        depth: np.ndarray | None = None,
        intrinsics: np.ndarray | None = None,
        goal_depth: np.ndarray | None = None,
        seed: int = 0,
        fps: float | None = None,
    ) -> Plan:
        """Dream one way to a goal.

        Args:
            picture: What the camera sees: a path, or uint8 RGB of any size (cropped to the model's aspect).
            goal: What it shall see: a path, or uint8 RGB of any size, of the same camera.
            depth: (H, W) metres of `picture`, NaN where unknown; makes the plan metric.
            intrinsics: (3, 3) pixels of `picture`, where known; else the model dreams them.
            goal_depth: (H, W) metres of `goal`; only with `depth`.
            seed: Of the dream: the same seed gives the same plan, another seed another way.
            fps: Frames per second of the plan; None takes the checkpoint's.

        Returns:
            The plan.

        Raises:
            ValueError: A picture that cannot be read, depth or intrinsics that are not of its picture, or
                `goal_depth` without `depth`.
        """
        if goal_depth is not None and depth is None:
            raise ValueError("goal_depth needs depth: the unit of length comes from the first picture.")
        start = self._fit("picture", picture, intrinsics, depth)
        end = self._fit("goal", goal, None, goal_depth)
        known_intrinsics = None if intrinsics is None else start.intrinsics
        result = self.pipeline.plan(
            start.rgb[None],
            end.rgb[None],
            depth=None if start.depth is None else start.depth[None],
            goal_depth=None if end.depth is None else end.depth[None],
            intrinsics=None if known_intrinsics is None else known_intrinsics[None],
            seeds=[seed],
            fps=fps,
        )
        return smoothed_plan(result[0], fps or self.pipeline.settings.fps, known_intrinsics)

    def _fit(self, name: str, picture: Any, intrinsics: np.ndarray | None, depth: np.ndarray | None) -> FittedPicture:
        settings = self.pipeline.settings
        return fit_picture(read_picture(picture, name=name), settings.height, settings.width, intrinsics, depth)


def smoothed_plan(result: ClipResult, fps: float, intrinsics: np.ndarray | None = None) -> Plan:
    """Return one dreamed window as a plan with a smoothed path.

    Args:
        result: One row of a batch, without its batch axis.
        fps: Frames per second of the window.
        intrinsics: (3, 3) of the camera where they are known; else the median of what was dreamed.
    """
    smoothed = smooth_path(result.world_from_camera, rate_hz=fps)
    # The world is the first camera, and the smoothed path knows best where that one was.
    first = smoothed.world_from_camera[0]
    turn = np.eye(6)
    turn[:3, :3] = first[:3, :3].T
    matrix = np.median(result.intrinsics, axis=0) if intrinsics is None else intrinsics
    return Plan(
        rgb=result.rgb,
        depth=result.depth,
        path=CameraPath(relative_to(smoothed.world_from_camera, first), matrix),
        covariance=turn @ smoothed.covariance @ turn.T,
        raw_path=CameraPath(result.world_from_camera, result.intrinsics),
        unit=float(result.unit),
        metric=bool(result.metric),
        fps=float(fps),
    )
