"""A room with painted walls, drawn exactly: footage whose cameras are known, for the tests of the annotation."""

import numpy as np

from aether_env.camera import intrinsics_from_fov, se3_exp
from training.annotate.footage import Footage

HEIGHT, WIDTH = 120, 160
HALF = np.array([1.9, 1.1, 3.2])
"""Half the room's size, metres; the walk begins in its middle."""


def walk(num_frames: int, twist: tuple[float, ...]) -> np.ndarray:
    """Return poses (T, 4, 4) that move by the same twist from each frame to the next; the first is the identity."""
    return np.stack([se3_exp(t * np.array(twist)) for t in range(num_frames)])


def film(
    poses: np.ndarray,
    *,
    fov_deg: float = 70.0,
    ball: np.ndarray | None = None,
    plane: float | None = None,
    scale: int = 1,
) -> tuple[Footage, np.ndarray]:
    """Return the footage of cameras in the room, and its intrinsics.

    Args:
        poses: (T, 4, 4) world_from_camera.
        fov_deg: Horizontal field of view.
        ball: (T, 3) where a ball of 0.6 m is; `Footage.moving` shows it. None: no ball.
        plane: Show nothing but a wall across the view at this z, metres.
        scale: Times the size.
    """
    height, width = scale * HEIGHT, scale * WIDTH
    intrinsics = intrinsics_from_fov(np.deg2rad(fov_deg), height, width)
    y, x = np.mgrid[:height, :width] + 0.5
    ray = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(intrinsics).T
    frames = [_frame(pose, ray, plane, None if ball is None else ball[t]) for t, pose in enumerate(poses)]
    rgb, depth, moving = (np.stack(arrays) for arrays in zip(*frames, strict=True))
    footage = Footage(
        rgb=rgb,
        depth=depth,
        valid=np.ones(depth.shape, bool),
        moving=moving,
        frame=np.arange(len(poses)),
        fps=12.0,
        name="room",
    )
    return footage, intrinsics


def _frame(
    pose: np.ndarray, ray_HW3: np.ndarray, plane: float | None, ball: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    direction, origin = ray_HW3 @ pose[:3, :3].T, pose[:3, 3]
    with np.errstate(divide="ignore"):
        if plane is not None:
            depth, wall = (plane - origin[2]) / direction[..., 2], np.zeros(ray_HW3.shape[:2], int)
        else:
            hits = (np.sign(direction) * HALF - origin) / direction  # from within, the nearest far side is what is seen
            wall = hits.argmin(-1)
            depth = np.take_along_axis(hits, wall[..., None], -1)[..., 0]
    point = origin + depth[..., None] * direction
    paint = _paint(point, wall)
    moving = np.zeros(depth.shape, bool)
    if ball is not None:
        offset = origin - ball
        a, b = (direction**2).sum(-1), direction @ offset
        inside = b**2 - a * (offset @ offset - 0.6**2)
        near = (-b - np.sqrt(np.maximum(inside, 0))) / a
        moving = (inside > 0) & (near > 0) & (near < depth)
        depth = np.where(moving, near, depth)
        spot = origin + depth[..., None] * direction - ball
        paint = np.where(moving[..., None], _paint(2 * spot, wall), paint)
    return paint, depth.astype(np.float32), moving


def _paint(point_HW3: np.ndarray, wall_HW: np.ndarray) -> np.ndarray:
    """Return colours (H, W, 3): smooth noise fixed to the surfaces, which has details at every size."""
    generator = np.random.default_rng(0)
    total = np.zeros(wall_HW.shape)
    for size in (0.1, 0.25, 0.6):
        table = generator.uniform(-1, 1, (32, 32, 32))
        total += np.sqrt(size) * _smooth(table, point_HW3 / size + 7.3 * wall_HW[..., None])
    grey = np.clip(128 + 110 * total, 0, 255)
    return np.stack([grey, 0.8 * grey + 20, 255 - grey], axis=-1).astype(np.uint8)


def _smooth(table: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return a periodic table read between its entries, (H, W)."""
    low = np.floor(place).astype(int)
    share = place - low
    share = share * share * (3 - 2 * share)
    total = np.zeros(place.shape[:-1])
    for corner in np.ndindex(2, 2, 2):
        weight = np.where(corner, share, 1 - share).prod(-1)
        total += weight * table[tuple(np.moveaxis((low + corner) % 32, -1, 0))]
    return total
