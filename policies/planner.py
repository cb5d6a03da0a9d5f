"""Plan a camera's way from a picture to a goal picture by dreaming it (the planning task of AETHER, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aether_env.pictures import read_picture
from aether_env.world_model.result import VideoResult

if TYPE_CHECKING:
    from aether_env.world_model.pipeline import AetherPipeline


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan(VideoResult):
    """A dreamed way to a goal: frames, depth, and the smoothed camera path along them, from the first camera."""

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
                raise ValueError("sigmas belong to a pipeline when it is made; give them to from_pretrained instead.")
            self.pipeline = model
        else:
            settings: dict[str, Any] = {} if sigmas is None else {"sigmas": sigmas}
            self.pipeline = AetherPipeline.from_pretrained(model, device, **settings)

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
        result = self.pipeline.plan(
            read_picture(picture, name="picture"),
            read_picture(goal, name="goal"),
            depth=depth,
            goal_depth=goal_depth,
            intrinsics=intrinsics,
            seed=seed,
            fps=fps,
        )
        return Plan(**{field.name: getattr(result, field.name) for field in fields(result)})
