"""Several looks at one video: as it is, mirrored, and both of them backwards. Their mean is better than each.

The network errs differently on each of them; docs/training-log.md says what the mean gains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from aether_env.camera import relative_to
from aether_env.conventions import FAR_DEPTH
from aether_env.raymap import nearest_rotation

MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])
"""Mirrors left and right: a pose P seen in a mirror is MIRROR @ P @ MIRROR."""
FARTHEST = 25.0
"""Units beyond which a found depth says no more than that it is far: disparity is too small there to be told apart."""


class View(NamedTuple):
    """How a video is shown."""

    mirrored: bool = False
    backwards: bool = False

    def pictures(self, pictures: np.ndarray) -> np.ndarray:
        """Show (B, T, H, W, ...), or undo it."""
        return pictures[:, :: -1 if self.backwards else 1, :, :: -1 if self.mirrored else 1]

    def depth(self, depth: np.ndarray) -> np.ndarray:
        """Show depth (B, H, W) of the first frame or (B, T, H, W) of all, of a view that is not backwards."""
        return depth[..., :: -1 if self.mirrored else 1]

    def poses(self, world_from_camera: np.ndarray) -> np.ndarray:
        """Show (B, T, 4, 4), or undo it; the result is relative to its own first frame."""
        poses = MIRROR @ world_from_camera @ MIRROR if self.mirrored else world_from_camera
        poses = poses[:, ::-1] if self.backwards else poses
        return relative_to(poses, poses[:, :1])

    def intrinsics(self, intrinsics: np.ndarray, width: int) -> np.ndarray:
        """Show (B, 3, 3) or (B, T, 3, 3) of pictures `width` wide, or undo it."""
        shown = np.array(intrinsics, dtype=np.float64)
        if self.mirrored:
            shown[..., 0, 2] = width - shown[..., 0, 2]
        return shown[:, ::-1] if self.backwards and shown.ndim == 4 else shown


VIEWS = (View(), View(mirrored=True), View(backwards=True), View(mirrored=True, backwards=True))
"""In the order in which they are added."""


def relative_scale(depths: Sequence[np.ndarray]) -> np.ndarray:
    """Return what each look's lengths must be multiplied with to be the first one's.

    Args:
        depths: V arrays (B, T, H, W) of one video, undone.

    Returns:
        (V, B): the ratio of median depths.
    """
    middle = np.stack([np.median(depth.reshape(len(depth), -1), axis=1) for depth in depths])
    return middle[0] / middle


def mean_depth(depths: Sequence[np.ndarray], scale: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Return the depth (B, T, H, W) of the mean disparity; where all looks agree it is theirs to the last digit.

    The sky is where every look says so; elsewhere those decide that see a surface.

    Args:
        depths: V arrays (B, T, H, W).
        scale: (V, B) factors of their lengths.
        unit: (B,) one unit of length; a surface is at most FARTHEST of them away.
    """
    stack = np.stack(depths)
    surface = stack < 0.999 * FAR_DEPTH
    lookers = surface.sum(axis=0)
    disparity = np.where(surface, 1.0 / (stack * scale[:, :, None, None, None]), 0.0).sum(axis=0)
    farthest = np.minimum(FARTHEST * unit, FAR_DEPTH)[:, None, None, None]
    seen = np.minimum(lookers / np.maximum(disparity, 1.0 / FAR_DEPTH), farthest)
    mean = np.where(lookers > 0, seen, FAR_DEPTH)
    return np.where((stack == stack[0]).all(axis=0), stack[0], mean).astype(np.float32)


def mean_path(paths: Sequence[np.ndarray], scale: np.ndarray) -> np.ndarray:
    """Return poses with the mean position and the mean rotation (the nearest to all, in the chordal sense).

    Args:
        paths: V arrays (B, T, 4, 4), relative to the first frame.
        scale: (V, B) factors of their lengths.
    """
    stack = np.stack(paths)
    mean = stack[0].copy()
    mean[..., :3, 3] = (stack[..., :3, 3] * scale[:, :, None, None]).mean(axis=0)
    # The nearest rotation to the mean matrix is the chordal mean (Hartley et al. 2013, "Rotation averaging", 5.3).
    mean[..., :3, :3] = nearest_rotation(torch.as_tensor(stack[..., :3, :3].mean(axis=0))).numpy()
    return mean
