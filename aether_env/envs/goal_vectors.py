"""Poses as vectors that a network can say, and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from aether_env.camera import make_pose
from aether_env.conventions import FAR_DEPTH


def vector_from_pose(pose: np.ndarray) -> np.ndarray:
    """Return poses (..., 4, 4) as (..., 9) float32: position within +-100, then the rotation's first two columns."""
    columns = np.swapaxes(pose[..., :3, :2], -1, -2).reshape(*pose.shape[:-2], 6)
    position = np.clip(pose[..., :3, 3], -FAR_DEPTH, FAR_DEPTH)
    return np.concatenate([position, np.clip(columns, -1.0, 1.0)], axis=-1).astype(np.float32)


def pose_from_vector(vector: ArrayLike) -> np.ndarray:
    """Return the rigid poses (..., 4, 4) nearest to vectors (..., 9), by Gram and Schmidt: undoes `vector_from_pose`.

    Any finite vector gives a pose: positions are clipped to +-100, columns that say nothing get a direction.
    """
    vector = np.asarray(vector, np.float64)
    x = _unit(vector[..., 3:6], np.array([1.0, 0.0, 0.0]))
    # The axis least along x is never parallel to it.
    axis = np.eye(3)[np.abs(x).argmin(axis=-1)]
    y = _unit(_across(_unit(vector[..., 6:], axis), x), _unit(_across(axis, x), axis))
    rotation = np.stack([x, y, np.cross(x, y)], axis=-1)
    return make_pose(rotation, np.clip(vector[..., :3], -FAR_DEPTH, FAR_DEPTH))


def _unit(vector: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """Return vectors (..., 3) at length 1, `otherwise` where no number of theirs is beyond 1e-6."""
    # The largest number first: squares of large ones would overflow.
    largest = np.abs(vector).max(axis=-1, keepdims=True)
    scaled = vector / np.maximum(largest, 1e-6)
    length = np.linalg.norm(scaled, axis=-1, keepdims=True)
    return np.where(largest > 1e-6, scaled / np.maximum(length, 1.0), otherwise)


def _across(vector: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Return the part of vectors (..., 3) that is perpendicular to unit vectors (..., 3)."""
    return vector - (vector * unit).sum(axis=-1, keepdims=True) * unit
