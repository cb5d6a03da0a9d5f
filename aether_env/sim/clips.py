"""Clips of the true world: what cameras see on random walks through random scenes, with the exact truth beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from aether_env.conventions import FAR_DEPTH
from aether_env.sim.physics import mover_starts, quaternion_matrix, simulate
from aether_env.sim.scenes import FIRST_MOVER, NUM_SHAPES, Scenes, sample_scenes
from aether_env.sim.walks import plan_walks

if TYPE_CHECKING:
    from aether_env.sim.renderer import Renderer

_MOVES = 1e-3
_renderers: dict[tuple[int, int, str, int, bool], Renderer] = {}


@dataclass(frozen=True, kw_only=True)
class ClipPlans:
    """What happens in N clips of T frames, before it is drawn. Plain numpy: may be made in other processes."""

    scenes: Scenes
    """N scenes."""
    scene_from_camera: np.ndarray
    """(N, T, 4, 4) float64, OpenCV camera axes, scene's own world axes."""
    mover_pose: np.ndarray
    """(N, T, M, 7) positions and quaternions (w first), scene axes."""

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.scenes)

    def __getitem__(self, rows: slice | np.ndarray | list[int]) -> ClipPlans:
        """Return the given clips."""
        return ClipPlans(
            scenes=self.scenes[rows], scene_from_camera=self.scene_from_camera[rows], mover_pose=self.mover_pose[rows]
        )


@dataclass(frozen=True, kw_only=True)
class SimClips:
    """N clips of T frames, tensors on one device."""

    rgb: torch.Tensor
    """(N, T, H, W, 3) uint8."""
    depth: torch.Tensor
    """(N, T, H, W) float32 z-depth in metres at the pixel centres; FAR_DEPTH for the sky and all that is farther."""
    valid: torch.Tensor
    """(N, T, H, W) bool: a surface nearer than FAR_DEPTH was hit."""
    segmentation: torch.Tensor
    """(N, T, H, W) int16 number of the shape in the scene, -1 for the sky."""
    moving: torch.Tensor
    """(N, T, H, W) bool: the pixel shows something that moves during the clip."""
    world_from_camera: torch.Tensor
    """(N, T, 4, 4) float64; the world is the camera of the clip's first frame."""
    intrinsics: torch.Tensor
    """(N, T, 3, 3) float32, pixels."""


def plan_clips(
    seeds: Sequence[int] | np.ndarray,
    *,
    num_frames: int,
    fps: float = 12.0,
    family: str | None = None,
    threads: int | None = None,
) -> ClipPlans:
    """Return scenes, motion and camera walks of clips, without drawing them.

    Args:
        seeds: N integers >= 0, see `seeds`.
        num_frames: Frames per clip.
        fps: Frames per second.
        family: "room", "blocks", or None: the seed chooses.
        threads: CPU threads of the physics; None: all cores, at most 16.

    Raises:
        ValueError: Bad seeds, family, num_frames or fps.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}.")
    if not 0 < fps <= 240:
        raise ValueError(f"fps must lie in (0, 240], got {fps}.")
    scenes = sample_scenes(seeds, family=family)
    pose, velocity = mover_starts(scenes)
    later, _ = simulate(scenes, pose, velocity, num_frames=num_frames - 1, fps=fps, threads=threads)
    mover_pose = np.concatenate([pose[:, None], later], axis=1)
    walk = plan_walks(scenes, mover_pose[..., :3], num_frames=num_frames, fps=fps)
    return ClipPlans(scenes=scenes, scene_from_camera=walk, mover_pose=mover_pose)


def render_clips(
    seeds: Sequence[int] | np.ndarray,
    *,
    num_frames: int,
    fps: float = 12.0,
    height: int = 64,
    width: int = 96,
    device: str | torch.device = "cpu",
    family: str | None = None,
    batch_views: int = 4096,
    shadows: bool = True,
    supersample: int = 2,
) -> SimClips:
    """Return the clips that seeds stand for; a clip is the same alone and in any batch.

    Args:
        seeds: N integers >= 0, see `seeds`.
        num_frames: T.
        fps: Frames per second.
        height: H, rows.
        width: W, columns.
        device: Where to draw and where the tensors lie.
        family: "room", "blocks", or None: the seed chooses.
        batch_views: Pictures drawn at once; memory grows with it.
        shadows: Whether lights cast shadows.
        supersample: Colour samples along each side of a pixel; depth and segmentation are those of the pixel's centre.

    Raises:
        ValueError: A bad argument.
    """
    plans = plan_clips(seeds, num_frames=num_frames, fps=fps, family=family)
    return draw_clips(
        plans,
        height=height,
        width=width,
        device=device,
        batch_views=batch_views,
        shadows=shadows,
        supersample=supersample,
    )


def draw_clips(
    plans: ClipPlans,
    *,
    height: int = 64,
    width: int = 96,
    device: str | torch.device = "cpu",
    batch_views: int = 4096,
    shadows: bool = True,
    supersample: int = 2,
) -> SimClips:
    """Draw planned clips; the arguments are those of `render_clips`."""
    rgb, depth, segmentation = draw_views(
        plans.scenes,
        plans.mover_pose,
        plans.scene_from_camera,
        height=height,
        width=width,
        device=device,
        batch_views=batch_views,
        shadows=shadows,
        supersample=supersample,
    )
    device, num_frames = rgb.device, rgb.shape[1]
    world_from_scene = np.linalg.inv(plans.scene_from_camera[:, :1])
    world_from_camera = world_from_scene @ plans.scene_from_camera
    world_from_camera[:, 0] = np.eye(4)
    moves = torch.as_tensor(moving_shapes(plans), device=device)
    index = segmentation.long().clamp(min=0).flatten(1)
    return SimClips(
        rgb=rgb,
        depth=depth,
        valid=(segmentation >= 0) & (depth < FAR_DEPTH),
        segmentation=segmentation,
        moving=moves.gather(1, index).reshape(segmentation.shape) & (segmentation >= 0),
        world_from_camera=torch.as_tensor(world_from_camera, device=device),
        intrinsics=torch.as_tensor(scene_intrinsics(plans.scenes, height, width), dtype=torch.float32, device=device)[
            :, None
        ]
        .expand(-1, num_frames, 3, 3)
        .contiguous(),
    )


def draw_views(
    scenes: Scenes,
    mover_pose: np.ndarray,
    scene_from_camera: np.ndarray,
    *,
    height: int,
    width: int,
    device: str | torch.device = "cpu",
    batch_views: int = 4096,
    shadows: bool = True,
    supersample: int = 2,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw N scenes at T moments each.

    Args:
        scenes: N scenes.
        mover_pose: (N, T, M, 7) positions and quaternions (w first), scene axes.
        scene_from_camera: (N, T, 4, 4), OpenCV camera axes.
        height: H.
        width: W.
        device: Where to draw and where the tensors lie.
        batch_views: Pictures drawn at once.
        shadows: Whether lights cast shadows.
        supersample: Colour samples along each side of a pixel.

    Returns:
        Colours (N, T, H, W, 3) uint8; depth (N, T, H, W) float32 metres; number of the shape, -1 for the sky, int16.

    Raises:
        ValueError: A size that is not positive.
    """
    for name, value in (
        ("height", height),
        ("width", width),
        ("batch_views", batch_views),
        ("supersample", supersample),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    device = torch.device(device)
    num_clips, num_frames = scene_from_camera.shape[:2]
    shape = (num_clips, num_frames, height, width)
    rgb = torch.empty((*shape, 3), dtype=torch.uint8, device=device)
    depth = torch.empty(shape, dtype=torch.float32, device=device)
    segmentation = torch.empty(shape, dtype=torch.int16, device=device)
    per_call = max(1, batch_views // num_frames)
    capacity = min(per_call, num_clips) * num_frames
    renderer = get_renderer(height, width, device, capacity=capacity, shadows=shadows, supersample=supersample)
    poses, cameras = torch.as_tensor(mover_pose, device=device), torch.as_tensor(scene_from_camera, device=device)
    for start in range(0, num_clips, per_call):
        rows = slice(start, min(start + per_call, num_clips))
        renderer.draw(
            scenes[rows], poses[rows], cameras[rows], rgb=rgb[rows], depth=depth[rows], segmentation=segmentation[rows]
        )
    return rgb, depth, segmentation


def scene_intrinsics(scenes: Scenes, height: int, width: int) -> np.ndarray:
    """Return the intrinsics of the scenes' cameras, (N, 3, 3) float64 pixels; pixels are square."""
    intrinsics = np.zeros((len(scenes), 3, 3))
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = width / 2 / np.tan(scenes.horizontal_fov / 2)
    intrinsics[:, 0, 2], intrinsics[:, 1, 2], intrinsics[:, 2, 2] = width / 2, height / 2, 1.0
    return intrinsics


def moving_shapes(plans: ClipPlans) -> np.ndarray:
    """Return which shapes move during each clip, (N, G) bool."""
    position, rotation = plans.mover_pose[..., :3], quaternion_matrix(plans.mover_pose[..., 3:])
    shift = np.abs(position - position[:, :1]).max(axis=(1, 3), initial=0.0)
    turn = np.abs(rotation - rotation[:, :1]).max(axis=(1, 3, 4), initial=0.0)
    moves = np.zeros((len(plans), NUM_SHAPES), dtype=bool)
    moves[:, FIRST_MOVER:] = np.repeat((shift > _MOVES) | (turn > _MOVES), 3, axis=1)
    return moves & plans.scenes.visible


def get_renderer(
    height: int, width: int, device: str | torch.device, *, capacity: int, shadows: bool = True, supersample: int = 2
) -> Renderer:
    """Return a renderer of this process that can draw `capacity` views at once; kept for the next call."""
    from aether_env.sim.renderer import Renderer

    key = (height, width, str(device), supersample, shadows)
    if key not in _renderers or _renderers[key].capacity < capacity:
        _renderers.pop(key, None)
        _renderers[key] = Renderer(
            height=height, width=width, device=device, supersample=supersample, shadows=shadows, capacity=capacity
        )
    return _renderers[key]


def clear_renderers() -> None:
    """Free the renderers that `render_clips` keeps from call to call."""
    _renderers.clear()
