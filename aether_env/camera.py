"""Pose algebra and camera paths, numpy float64. Poses, axes, units and pixels: see conventions.

A twist is six numbers: translation (3), then rotation vector (3), both in the axes of the pose that it is applied to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

Axes = Literal["opencv", "opengl", "blender", "ros", "unreal"]
Kind = Literal["camera_to_world", "world_to_camera"]

RIGID_TOLERANCE = 1e-4
"""How far R R^T may be from the identity in a pose that is accepted."""

_OPENGL = np.diag([1.0, -1.0, -1.0])
_ROS = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
_UNREAL = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
OPENCV_FROM_AXES: dict[str, np.ndarray] = {
    "opencv": np.eye(3),
    "opengl": _OPENGL,
    "blender": _OPENGL,
    "ros": _ROS,
    "unreal": _UNREAL,
}
"""Vector in OpenCV axes (right, down, forward) from one in other axes of the same camera.

OpenGL and Blender: right, up, backward. ROS (REP 103 body): forward, left, up. Unreal: forward, right, up, left-handed.
"""


@dataclass(frozen=True, eq=False)
class CameraPath:
    """A camera's poses over time with its intrinsics; checks itself."""

    world_from_camera: np.ndarray
    """(T, 4, 4) float64."""
    intrinsics: np.ndarray
    """(T, 3, 3) float64 pixels; one (3, 3) is given to every frame."""

    def __post_init__(self) -> None:
        """Check and copy both arrays.

        Raises:
            ValueError: Not rigid, not finite, or of a wrong shape.
        """
        poses = np.array(check_poses("world_from_camera", self.world_from_camera))
        if poses.ndim != 3 or len(poses) == 0:
            raise ValueError(f"world_from_camera must have shape (T, 4, 4) with T >= 1, got {poses.shape}.")
        intrinsics = check_intrinsics("intrinsics", self.intrinsics)
        if intrinsics.shape not in ((3, 3), (len(poses), 3, 3)):
            raise ValueError(f"intrinsics must be (3, 3) or ({len(poses)}, 3, 3), got {intrinsics.shape}.")
        object.__setattr__(self, "world_from_camera", poses)
        object.__setattr__(self, "intrinsics", np.array(np.broadcast_to(intrinsics, (len(poses), 3, 3))))

    def __len__(self) -> int:
        """Return the number of poses."""
        return len(self.world_from_camera)

    @property
    def length(self) -> float:
        """Way that the camera's centre travels, in the poses' unit."""
        return float(np.linalg.norm(np.diff(self.world_from_camera[:, :3, 3], axis=0), axis=-1).sum())

    def relative_to_first(self) -> Self:
        """Return the path in the axes of its first camera."""
        return type(self)(relative_to(self.world_from_camera, self.world_from_camera[0]), self.intrinsics)

    def resampled(self, num: int) -> Self:
        """Return `num` poses spread evenly over the path's time, both ends kept.

        Raises:
            ValueError: `num` is less than 1.
        """
        if num < 1:
            raise ValueError(f"num must be at least 1, got {num}.")
        time = np.linspace(0.0, len(self) - 1.0, num)
        before = np.minimum(time.astype(int), max(len(self) - 2, 0))
        after = np.minimum(before + 1, len(self) - 1)
        fraction = time - before
        step = se3_log(invert_pose(self.world_from_camera[before]) @ self.world_from_camera[after])
        poses = self.world_from_camera[before] @ se3_exp(fraction[:, None] * step)
        mix = fraction[:, None, None]
        return type(self)(poses, (1 - mix) * self.intrinsics[before] + mix * self.intrinsics[after])

    def scaled(self, factor: float) -> Self:
        """Return the path with every translation times `factor`.

        Raises:
            ValueError: The factor is not positive and finite.
        """
        return type(self)(scale_poses(self.world_from_camera, factor), self.intrinsics)


def check_poses(name: str, poses: ArrayLike) -> np.ndarray:
    """Return `poses` as float64 after checking that they are rigid.

    Args:
        name: What the error calls them.
        poses: (..., 4, 4).

    Raises:
        ValueError: Wrong shape, not finite, bottom row not 0 0 0 1, not a rotation (within 1e-4), or a mirror.
    """
    array = np.asarray(poses, dtype=np.float64)
    if array.shape[-2:] != (4, 4):
        raise ValueError(f"{name} must have shape (..., 4, 4), got {array.shape}; append the row 0 0 0 1 to 3 x 4.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, but {int((~np.isfinite(array)).sum())} values are NaN or infinite.")
    if not np.allclose(array[..., 3, :], [0.0, 0.0, 0.0, 1.0], atol=RIGID_TOLERANCE):
        raise ValueError(f"{name} must have the bottom row 0 0 0 1; a transposed matrix or a projection was given.")
    rotation = array[..., :3, :3]
    error = np.abs(rotation @ np.swapaxes(rotation, -1, -2) - np.eye(3))
    if error.size and error.max() > RIGID_TOLERANCE:
        raise ValueError(
            f"{name} must be rigid: R R^T differs from the identity by {error.max():.2g} (at most {RIGID_TOLERANCE}); "
            "take scale or shear out of the matrix first."
        )
    if (np.linalg.det(rotation) < 0).any():
        raise ValueError(f"{name} has a mirrored rotation (determinant -1); convert left-handed axes first.")
    return array


def check_intrinsics(name: str, intrinsics: ArrayLike) -> np.ndarray:
    """Return `intrinsics` as float64 after checking them.

    Args:
        name: What the error calls them.
        intrinsics: (..., 3, 3) pixels.

    Raises:
        ValueError: Wrong shape, not finite, focal length not positive, or last row not 0 0 1.
    """
    array = np.asarray(intrinsics, dtype=np.float64)
    if array.shape[-2:] != (3, 3):
        raise ValueError(f"{name} must have shape (..., 3, 3), got {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, but {int((~np.isfinite(array)).sum())} values are NaN or infinite.")
    if (array[..., 0, 0] <= 0).any() or (array[..., 1, 1] <= 0).any():
        raise ValueError(f"{name} must have positive focal lengths (pixels) at [0, 0] and [1, 1].")
    if not np.allclose(array[..., 2, :], [0.0, 0.0, 1.0]) or not np.allclose(array[..., 1, 0], 0.0):
        raise ValueError(f"{name} must be upper triangular with the last row 0 0 1.")
    return array


def make_pose(rotation: ArrayLike, translation: ArrayLike) -> np.ndarray:
    """Return (..., 4, 4) from a rotation (..., 3, 3) and a translation (..., 3)."""
    rotation, translation = np.asarray(rotation, np.float64), np.asarray(translation, np.float64)
    batch = np.broadcast_shapes(rotation.shape[:-2], translation.shape[:-1])
    pose = np.zeros((*batch, 4, 4))
    pose[..., :3, :3], pose[..., :3, 3], pose[..., 3, 3] = rotation, translation, 1.0
    return pose


def invert_pose(pose: np.ndarray) -> np.ndarray:
    """Return the inverse of rigid poses (..., 4, 4)."""
    transposed = np.swapaxes(pose[..., :3, :3], -1, -2)
    return make_pose(transposed, -(transposed @ pose[..., :3, 3, None])[..., 0])


def relative_to(world_from_camera: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the poses (..., 4, 4) in the axes of the camera `reference` (4, 4) (a world_from_camera too)."""
    return invert_pose(reference) @ world_from_camera


def scale_poses(poses: np.ndarray, factor: float) -> np.ndarray:
    """Return poses (..., 4, 4) with every translation times `factor`.

    Raises:
        ValueError: The factor is not positive and finite.
    """
    if not 0 < factor < np.inf:
        raise ValueError(f"factor must be positive and finite, got {factor}.")
    return make_pose(poses[..., :3, :3], poses[..., :3, 3] * factor)


def se3_exp(twist: ArrayLike) -> np.ndarray:
    """Return the rigid motion (..., 4, 4) of moving along the screw `twist` (..., 6) for one unit of time."""
    twist = np.asarray(twist, np.float64)
    rotation_vector = twist[..., 3:]
    translation = (_left_jacobian(rotation_vector) @ twist[..., :3, None])[..., 0]
    return make_pose(_rotation(rotation_vector), translation)


def se3_log(motion: ArrayLike) -> np.ndarray:
    """Return the twist (..., 6) of a rigid motion (..., 4, 4), the rotation taken the short way: undoes `se3_exp`."""
    motion = np.asarray(motion, np.float64)
    rotation_vector = rotation_vector_from_matrix(motion[..., :3, :3])
    translation = np.linalg.solve(_left_jacobian(rotation_vector), motion[..., :3, 3, None])[..., 0]
    return np.concatenate([translation, rotation_vector], axis=-1)


def interpolate_pose(start: np.ndarray, end: np.ndarray, fractions: ArrayLike) -> np.ndarray:
    """Return poses on the screw motion from `start` to `end`.

    Args:
        start: (..., 4, 4) world_from_camera.
        end: (..., 4, 4) world_from_camera.
        fractions: (N,) 0 is the start, 1 the end.

    Returns:
        (..., N, 4, 4).
    """
    twist = se3_log(invert_pose(start) @ end)[..., None, :]
    return start[..., None, :, :] @ se3_exp(np.asarray(fractions, np.float64)[:, None] * twist)


def motion_from_action(translation: ArrayLike, rotation_vector: ArrayLike) -> np.ndarray:
    """Return the motion (..., 4, 4) of a camera: apply it as `world_from_camera @ motion`.

    Args:
        translation: (..., 3) metres along the camera's own axes.
        rotation_vector: (..., 3) radians about the camera's own axes.

    Raises:
        ValueError: Wrong shape or not finite.
    """
    translation, rotation_vector = np.asarray(translation, np.float64), np.asarray(rotation_vector, np.float64)
    for name, value in (("translation", translation), ("rotation_vector", rotation_vector)):
        if value.shape[-1:] != (3,) or not np.isfinite(value).all():
            raise ValueError(f"{name} must be finite with shape (..., 3), got shape {value.shape}: {value}.")
    return make_pose(_rotation(rotation_vector), translation)


def action_from_motion(motion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return translation (..., 3) and rotation vector (..., 3) of a motion (..., 4, 4): undoes `motion_from_action`."""
    return np.array(motion[..., :3, 3]), rotation_vector_from_matrix(motion[..., :3, :3])


def rotation_vector_from_matrix(rotation: np.ndarray) -> np.ndarray:
    """Return the rotation vector (..., 3), radians in [0, pi], of rotations (..., 3, 3)."""
    rotation = np.asarray(rotation, np.float64)
    flat = Rotation.from_matrix(rotation.reshape(-1, 3, 3)).as_rotvec()
    return flat.reshape(*rotation.shape[:-2], 3)


def rotation_angle(rotation: np.ndarray) -> np.ndarray:
    """Return the angle (...) in radians of rotations (..., 3, 3), accurate near 0 and pi."""
    return np.linalg.norm(rotation_vector_from_matrix(rotation), axis=-1)


def rotation_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the angle (...) in radians between rotations or poses (..., 3, 3) or (..., 4, 4)."""
    return rotation_angle(np.swapaxes(a[..., :3, :3], -1, -2) @ b[..., :3, :3])


def quaternion_from_matrix(rotation: np.ndarray) -> np.ndarray:
    """Return unit quaternions (..., 4), scalar first (wxyz) and not negative, of rotations (..., 3, 3)."""
    rotation = np.asarray(rotation, np.float64)
    flat = Rotation.from_matrix(rotation.reshape(-1, 3, 3)).as_quat(canonical=True)[:, [3, 0, 1, 2]]
    return flat.reshape(*rotation.shape[:-2], 4)


def matrix_from_quaternion(wxyz: ArrayLike) -> np.ndarray:
    """Return rotations (..., 3, 3) of quaternions (..., 4), scalar first, any length but zero.

    Raises:
        ValueError: Wrong shape, not finite, or of length zero.
    """
    wxyz = np.asarray(wxyz, np.float64)
    if wxyz.shape[-1:] != (4,) or not np.isfinite(wxyz).all() or (np.linalg.norm(wxyz, axis=-1) == 0).any():
        raise ValueError(f"wxyz must be finite, not zero, with shape (..., 4), got shape {wxyz.shape}.")
    flat = wxyz.reshape(-1, 4)[:, [1, 2, 3, 0]]
    return Rotation.from_quat(flat).as_matrix().reshape(*wxyz.shape[:-1], 3, 3)


def intrinsics_from_fov(horizontal_fov: ArrayLike, height: int, width: int) -> np.ndarray:
    """Return centred intrinsics with square pixels.

    Args:
        horizontal_fov: (...) full angle in radians, in (0, pi).
        height: Picture height in pixels.
        width: Picture width in pixels.

    Returns:
        (..., 3, 3) pixels.

    Raises:
        ValueError: The angle is outside (0, pi), or the picture is empty.
    """
    fov = np.asarray(horizontal_fov, np.float64)
    if not ((fov > 0) & (fov < np.pi)).all():
        raise ValueError(f"horizontal_fov must be in (0, pi) radians, got {fov}; use np.deg2rad for degrees.")
    if min(height, width) < 1:
        raise ValueError(f"the picture must be at least 1 x 1, got {height} x {width}.")
    intrinsics = np.zeros((*fov.shape, 3, 3))
    intrinsics[..., 0, 0] = intrinsics[..., 1, 1] = width / 2 / np.tan(fov / 2)
    intrinsics[..., 0, 2], intrinsics[..., 1, 2], intrinsics[..., 2, 2] = width / 2, height / 2, 1.0
    return intrinsics


def horizontal_fov(intrinsics: np.ndarray, width: int) -> np.ndarray:
    """Return the full horizontal angle (...) in radians that intrinsics (..., 3, 3) see over `width` pixels."""
    focal, centre = intrinsics[..., 0, 0], intrinsics[..., 0, 2]
    return np.arctan(centre / focal) + np.arctan((width - centre) / focal)


def scale_intrinsics(intrinsics: np.ndarray, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> np.ndarray:
    """Return intrinsics (..., 3, 3) of the picture resized from (height, width) `from_hw` to `to_hw`."""
    factor = np.array([to_hw[1] / from_hw[1], to_hw[0] / from_hw[0], 1.0])
    return intrinsics * factor[:, None]


def camera_path_from(
    poses: ArrayLike, intrinsics: ArrayLike, *, axes: Axes = "opencv", kind: Kind = "camera_to_world"
) -> CameraPath:
    """Return a path from poses in another program's axes.

    Camera and world axes are both turned: forward becomes +z and up becomes -y, in the world too. Unreal is left-handed
    and counts in centimetres: mirrored here, scale it with `CameraPath.scaled(0.01)`.

    Args:
        poses: (T, 4, 4).
        intrinsics: (3, 3) or (T, 3, 3) pixels.
        axes: Axes of the poses.
        kind: Whether they take points from the camera to the world or from the world to the camera (extrinsics).

    Raises:
        ValueError: Unknown axes or kind, or poses that are not rigid.
    """
    turn = _turn(axes)
    return CameraPath(turn @ _camera_to_world(poses, kind) @ turn.T, np.asarray(intrinsics, np.float64))


def poses_in_axes(path: CameraPath, *, axes: Axes = "opencv", kind: Kind = "camera_to_world") -> np.ndarray:
    """Return the path's poses (T, 4, 4) in another program's axes: undoes `camera_path_from`.

    Args:
        path: The path.
        axes: Axes wanted.
        kind: Whether the poses shall take points from the camera to the world or from the world to the camera.

    Raises:
        ValueError: Unknown axes or kind.
    """
    turn = _turn(axes)
    return _camera_to_world(turn.T @ path.world_from_camera @ turn, kind)


def _turn(axes: str) -> np.ndarray:
    """Return the 4 x 4 orthogonal matrix to OpenCV axes (a mirror for left-handed ones)."""
    if axes not in OPENCV_FROM_AXES:
        raise ValueError(f"axes must be one of {', '.join(OPENCV_FROM_AXES)}, got {axes!r}.")
    return make_pose(OPENCV_FROM_AXES[axes], np.zeros(3))


def _camera_to_world(poses: ArrayLike, kind: str) -> np.ndarray:
    """Return checked poses, inverted where they are world-to-camera (its own inverse)."""
    if kind not in ("camera_to_world", "world_to_camera"):
        raise ValueError(f'kind must be "camera_to_world" or "world_to_camera", got {kind!r}.')
    checked = check_poses("poses", poses)
    return checked if kind == "camera_to_world" else invert_pose(checked)


def _rotation(rotation_vector: np.ndarray) -> np.ndarray:
    """Return (..., 3, 3) from rotation vectors (..., 3)."""
    matrices = Rotation.from_rotvec(rotation_vector.reshape(-1, 3)).as_matrix()
    return matrices.reshape(*rotation_vector.shape[:-1], 3, 3)


def _left_jacobian(rotation_vector: np.ndarray) -> np.ndarray:
    """Return (..., 3, 3): what turns the translation of a twist into that of its motion.

    Eq. 94 of Eade, Lie Groups for 2D and 3D Transformations; series where the angle is small.
    """
    angle = np.linalg.norm(rotation_vector, axis=-1)[..., None, None]
    small = angle < 1e-3
    safe = np.where(small, 1.0, angle)
    b = np.where(small, 0.5 - angle**2 / 24, (1 - np.cos(safe)) / safe**2)
    c = np.where(small, 1 / 6 - angle**2 / 120, (safe - np.sin(safe)) / safe**3)
    cross = skew(rotation_vector)
    return np.eye(3) + b * cross + c * (cross @ cross)


def skew(vector: np.ndarray) -> np.ndarray:
    """Return (..., 3, 3): `skew(a) @ b` is the cross product a x b."""
    x, y, z = np.moveaxis(vector, -1, 0)
    zero = np.zeros_like(x)
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*vector.shape[:-1], 3, 3)
