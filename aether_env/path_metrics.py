"""How far a camera path is from the true one, numpy float64. Poses, axes and units: see conventions.

Errors of whole paths follow the field's tables: root mean squares after an alignment of the centres (Umeyama 1991),
angles in degrees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aether_env.camera import check_intrinsics, check_poses, horizontal_fov, invert_pose, rotation_angle
from aether_env.trajectory import umeyama

LEAST_POSES = 3
"""Fewer poses are aligned without an error, whatever they are."""
LEAST_STEP = 1e-6
"""Shorter motions have no direction."""


@dataclass(frozen=True, kw_only=True)
class RelativeErrors:
    """Errors of a path's motions from each pose to the next."""

    translation: float
    """Root mean square, in the true path's unit."""
    rotation_deg: float
    """Root mean square of the angle."""


def ate(world_from_camera: np.ndarray, target: np.ndarray, *, with_scale: bool = True) -> float:
    """Return the absolute trajectory error: the RMS distance of the aligned centres, in the true path's unit.

    Alignment never mirrors. What a path leaves open costs nothing: the turn about a straight path, every turn of one
    that stands still. The scale is 1 where one of the paths stands still.

    Args:
        world_from_camera: (T, 4, 4), T >= 3.
        target: (T, 4, 4), the truth.
        with_scale: Align by a similarity, Sim(3); False holds the scale at 1, SE(3).

    Raises:
        ValueError: Poses that are not rigid, paths of different lengths, or fewer than 3 poses.
    """
    found, true = _check_paths(world_from_camera, target, LEAST_POSES)
    centre = umeyama(found[:, :3, 3], true[:, :3, 3], with_scale=with_scale).apply_to_points(found[:, :3, 3])
    return _rms(np.linalg.norm(centre - true[:, :3, 3], axis=-1))


def rpe(world_from_camera: np.ndarray, target: np.ndarray, *, with_scale: bool = True) -> RelativeErrors:
    """Return the relative pose error over one frame, all pairs, of the aligned path.

    Only the scale of the alignment matters: motions from pose to pose do not know the world's axes.

    Args:
        world_from_camera: (T, 4, 4), T >= 3.
        target: (T, 4, 4), the truth.
        with_scale: As in `ate`.

    Raises:
        ValueError: As in `ate`.
    """
    found, true = _check_paths(world_from_camera, target, LEAST_POSES)
    aligned = umeyama(found[:, :3, 3], true[:, :3, 3], with_scale=with_scale).apply_to_poses(found)
    error = invert_pose(_steps(true)) @ _steps(aligned)
    return RelativeErrors(
        translation=_rms(np.linalg.norm(error[:, :3, 3], axis=-1)),
        rotation_deg=_rms(np.rad2deg(rotation_angle(error[:, :3, :3]))),
    )


def direction_error(world_from_camera: np.ndarray, target: np.ndarray, *, min_step: float = LEAST_STEP) -> float:
    """Return the mean angle in degrees between the directions of motions from each pose to the next.

    A direction is one of the camera's own axes, so neither scale nor alignment matters.

    Args:
        world_from_camera: (T, 4, 4), T >= 2.
        target: (T, 4, 4), the truth.
        min_step: Pairs of frames count where the true camera moves at least this far.

    Returns:
        The angle, 90 for a pair where only the found path stands still; NaN where no pair counts.

    Raises:
        ValueError: Poses that are not rigid, paths of different lengths, or fewer than 2 poses.
    """
    found, true = _check_paths(world_from_camera, target, 2)
    angle = direction_angle(_steps(found)[:, :3, 3], _steps(true)[:, :3, 3], min_length=min_step)
    counts = ~np.isnan(angle)
    return float(np.rad2deg(angle[counts].mean())) if counts.any() else float("nan")


def scale_error(world_from_camera: np.ndarray, target: np.ndarray) -> float:
    """Return |log(length of the path / length of the true path)|, without any alignment: 0.1 is about 10 %.

    Args:
        world_from_camera: (T, 4, 4), T >= 2.
        target: (T, 4, 4), the truth, in the same unit.

    Returns:
        The error; NaN where the true path stands still, infinite where only the found one does.

    Raises:
        ValueError: Poses that are not rigid, paths of different lengths, or fewer than 2 poses.
    """
    found, true = (_length(path) for path in _check_paths(world_from_camera, target, 2))
    if true == 0:
        return float("nan")
    return abs(float(np.log(found / true))) if found > 0 else float("inf")


def focal_error(intrinsics: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the relative error (...) of the focal lengths, |f / true f - 1|, mean of the horizontal and vertical one.

    Args:
        intrinsics: (..., 3, 3) pixels.
        target: (..., 3, 3) pixels of the same picture; both are broadcast.

    Raises:
        ValueError: These are not intrinsics.
    """
    found, true = check_intrinsics("intrinsics", intrinsics), check_intrinsics("target", target)
    return np.abs(found[..., [0, 1], [0, 1]] / true[..., [0, 1], [0, 1]] - 1).mean(-1)


def fov_error(intrinsics: np.ndarray, target: np.ndarray, width: int) -> np.ndarray:
    """Return the error (...) of the horizontal field of view (the full angle), degrees.

    Args:
        intrinsics: (..., 3, 3) pixels.
        target: (..., 3, 3) pixels of the same picture; both are broadcast.
        width: Of the picture, pixels.

    Raises:
        ValueError: These are not intrinsics.
    """
    found, true = check_intrinsics("intrinsics", intrinsics), check_intrinsics("target", target)
    return np.rad2deg(np.abs(horizontal_fov(found, width) - horizontal_fov(true, width)))


def direction_angle(found: np.ndarray, true: np.ndarray, *, min_length: float = LEAST_STEP) -> np.ndarray:
    """Return the angle (...) in radians between vectors, exact for small angles too.

    Args:
        found: (..., 3).
        true: (..., 3).
        min_length: Shorter vectors have no direction.

    Returns:
        The angle, NaN where the true vector is too short and pi / 2 where only the found one is.
    """
    sine = np.linalg.norm(np.cross(found, true), axis=-1)
    angle = np.arctan2(sine, (found * true).sum(-1))
    angle = np.where(np.linalg.norm(found, axis=-1) < min_length, np.pi / 2, angle)
    return np.where(np.linalg.norm(true, axis=-1) < min_length, np.nan, angle)


def _steps(world_from_camera: np.ndarray) -> np.ndarray:
    """Return the motions (T - 1, 4, 4) from each pose to the next, in the axes of the former."""
    return invert_pose(world_from_camera[:-1]) @ world_from_camera[1:]


def _length(world_from_camera: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(world_from_camera[:, :3, 3], axis=0), axis=-1).sum())


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean()))


def _check_paths(world_from_camera: np.ndarray, target: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    found, true = check_poses("world_from_camera", world_from_camera), check_poses("target", target)
    if found.ndim != 3 or found.shape != true.shape:
        raise ValueError(
            f"world_from_camera and target must both have shape (T, 4, 4), got {found.shape} and {true.shape}."
        )
    if len(found) < least:
        raise ValueError(f"world_from_camera must have at least {least} poses to be judged, got {len(found)}.")
    return found, true
