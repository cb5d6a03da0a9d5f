"""Camera paths as users have them: other axes and units, files, a few words; and whether a model can follow them.

Everything becomes camera-to-world poses in OpenCV axes: see conventions. What `scene_scale` is called everywhere is the
factor on a path's lengths (`camera.scale_poses`).
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

from aether_env.camera import (
    Axes,
    CameraPath,
    Kind,
    camera_path_from,
    check_intrinsics,
    check_poses,
    intrinsics_from_fov,
    invert_pose,
    make_pose,
    matrix_from_quaternion,
    rotation_angle,
    scale_poses,
    se3_exp,
    se3_log,
)
from aether_env.pictures import DEFAULT_HORIZONTAL_FOV, MAX_PIXELS, checked_intrinsics, fit_picture

QuaternionOrder = Literal["wxyz", "xyzw"]

MAX_SPEED = 1.5
"""Units a second: walks in training go at most 1.2 metres a second, and their units are hardly below 0.8 metres."""
MAX_TURN_RATE = 78.0
"""Degrees a second: yaw, pitch and roll of 45 each at once."""
MAX_EXTENT = 5.5
"""Units from the first camera: 44 frames at 12 a second and at `MAX_SPEED`, the longest walk in training."""
MIN_EXTENT = 0.02
"""Units; a camera that moves less might as well stand still."""
TYPICAL_SPEED = 0.45
"""Units a second: the fastest step of half of the training clips is slower."""

MAX_FILE_BYTES = 256 * 2**20
"""Larger files of poses are refused before they are read."""
MAX_WALK_FRAMES = 100_000
"""Frames of a walk at most."""
STOP_SECONDS = 0.5
"""How long "stop" lasts without a number."""

_ROUNDED = 1e-2  # how far R R^T may be from the identity in a file: numbers are rounded there
_X, _Y, _Z, _ABOUT_X, _ABOUT_Y, _ABOUT_Z = np.eye(6)
_WORDS = {
    "forward": _Z, "back": -_Z, "backward": -_Z, "right": _X, "left": -_X, "up": -_Y, "down": _Y,
    "turn-right": _ABOUT_Y, "turn-left": -_ABOUT_Y, "look-up": _ABOUT_X, "look-down": -_ABOUT_X,
    "roll-right": _ABOUT_Z, "roll-left": -_ABOUT_Z,
}  # fmt: skip
"""Twist of one metre or one radian."""
_POSE_NAMES = ("world_from_camera", "camera_pose", "camera_poses", "poses", "c2w")
_INTRINSICS_NAMES = ("intrinsics", "intrinsic", "K")


@dataclass(frozen=True, kw_only=True, eq=False)
class GivenPath:
    """A camera path from a file. None is what the file does not tell."""

    world_from_camera: np.ndarray
    """(T, 4, 4) float64, OpenCV axes; lengths as in the file, times `scene_scale`."""
    intrinsics: np.ndarray | None = None
    """(T, 3, 3) float64, pixels."""
    picture_size: tuple[int, int] | None = None
    """Height and width of the pictures that the intrinsics belong to."""
    horizontal_fov: float | None = None
    """Degrees, where that is all that is told of the camera."""
    seconds: np.ndarray | None = None
    """(T,) float64, the first is 0."""

    def __len__(self) -> int:
        """Return the number of poses."""
        return len(self.world_from_camera)

    def resampled(self, num: int) -> Self:
        """Return `num` poses spread evenly over the path, both ends kept; it then has no times any more.

        Raises:
            ValueError: `num` is less than 1.
        """
        if num < 1:
            raise ValueError(f"num must be at least 1, got {num}.")
        return replace(self._at(np.linspace(0.0, len(self) - 1.0, num)), seconds=None)

    def at_fps(self, fps: float) -> Self:
        """Return the poses at every 1 / `fps` seconds of the path's own time.

        Raises:
            ValueError: The path has no times, or the rate is not positive.
        """
        if self.seconds is None:
            raise ValueError("the path has no times; use resampled(num), which spreads it over num frames.")
        if not 0 < fps < np.inf:
            raise ValueError(f"fps must be positive and finite, got {fps}.")
        times = np.arange(math.floor(self.seconds[-1] * fps + 1e-6) + 1) / fps
        return replace(self._at(np.interp(times, self.seconds, np.arange(len(self)))), seconds=times)

    def camera_path(self, height: int, width: int, horizontal_fov: float = DEFAULT_HORIZONTAL_FOV) -> CameraPath:
        """Return the path of a camera with pictures of (height, width), cropped as `pictures.fit_picture` does.

        Args:
            height: Pixels.
            width: Pixels.
            horizontal_fov: Degrees, where the file tells nothing of the camera.

        Raises:
            ValueError: The file tells intrinsics, but not of which size of pictures.
        """
        if self.intrinsics is None:
            degrees = self.horizontal_fov or horizontal_fov
            return CameraPath(self.world_from_camera, intrinsics_from_fov(math.radians(degrees), height, width))
        if self.picture_size is None:
            raise ValueError(
                "picture_size must be known, because intrinsics count in its pixels; "
                "use dataclasses.replace(path, picture_size=(height, width))."
            )
        full_height, full_width = self.picture_size
        probe = np.array([[1.0, 0, full_width / 2], [0, 1.0, full_height / 2], [0, 0, 1]])
        fitted = fit_picture(np.zeros((full_height, full_width, 3), np.uint8), height, width, probe).intrinsics
        return CameraPath(self.world_from_camera, fitted @ np.linalg.inv(probe) @ self.intrinsics)

    def _at(self, places: np.ndarray) -> Self:
        """Return the path at places (N,) between its poses; 0 is the first, T - 1 the last."""
        before = np.clip(places.astype(int), 0, max(len(self) - 2, 0))
        after, fraction = np.minimum(before + 1, len(self) - 1), (places - before)[:, None]
        poses = self.world_from_camera
        between = poses[before] @ se3_exp(fraction * se3_log(invert_pose(poses[before]) @ poses[after]))
        matrices = self.intrinsics
        if matrices is not None:
            matrices = matrices[before] + fraction[..., None] * (matrices[after] - matrices[before])
        return replace(self, world_from_camera=between, intrinsics=matrices)


class PathRange(NamedTuple):
    """How far and how fast a path goes, in the model's units."""

    speed: float
    """Of the fastest step, units a second."""
    turn_rate: float
    """Of the fastest step, degrees a second."""
    extent: float
    """Farthest from the first camera, units."""
    scene_scale: float
    """Factor on the path's lengths that brings it where the model was trained; 1 where it is there."""


def poses_from(
    poses: ArrayLike,
    quaternions: ArrayLike | None = None,
    *,
    order: QuaternionOrder | None = None,
    axes: Axes = "opencv",
    kind: Kind = "camera_to_world",
    scene_scale: float = 1.0,
) -> np.ndarray:
    """Return camera-to-world poses in OpenCV axes, (T, 4, 4) float64, from a user's.

    The axes of the world are turned with those of the camera: see `camera.camera_path_from`.

    Args:
        poses: (T, 4, 4), (T, 3, 4), or flat rows (T, 16), (T, 12); or positions (T, 3) beside `quaternions`.
        quaternions: (T, 4), of any length but zero.
        order: Of the quaternions' numbers: "wxyz" (Blender, MuJoCo) or "xyzw" (ROS, TUM, SciPy). There is no default.
        axes: "opencv", "opengl" and "blender" (the same), "ros" (x forward, y left, z up) or "unreal".
        kind: Whether the poses take points from the camera to the world, or from the world to the camera.
        scene_scale: Factor on all lengths.

    Raises:
        ValueError: Wrong shapes, not finite, not rigid (rounded numbers are made so), an unknown word, or a factor that
            is not positive.
    """
    if quaternions is None:
        matrices = _as_matrices("poses", poses)
    else:
        if order not in ("wxyz", "xyzw"):
            raise ValueError(f'order must say "wxyz" or "xyzw" where quaternions are given, got {order!r}.')
        positions, turns = np.asarray(poses, np.float64), np.asarray(quaternions, np.float64)
        if positions.ndim != 2 or positions.shape[1] != 3 or turns.shape != (len(positions), 4):
            raise ValueError(
                f"poses and quaternions must be positions (T, 3) and (T, 4), got {positions.shape} and {turns.shape}."
            )
        wxyz = turns if order == "wxyz" else turns[:, [3, 0, 1, 2]]
        matrices = check_poses("poses", make_pose(matrix_from_quaternion(wxyz), positions))
    # Poses alone are wanted; a path is a camera's too.
    return scale_poses(camera_path_from(matrices, np.eye(3), axes=axes, kind=kind).world_from_camera, scene_scale)


def read_path(
    path: str | os.PathLike[str],
    *,
    axes: Axes | None = None,
    kind: Kind = "camera_to_world",
    scene_scale: float = 1.0,
) -> GivenPath:
    """Read a camera path.

    - `.txt`, `.tum`: TUM rows "seconds x y z qx qy qz qw", or KITTI rows of 12 numbers; # begins a comment.
    - `.json`: a list of 4 x 4 or 3 x 4 matrices; an object with "world_from_camera" (and "intrinsics" with
      "picture_size", "seconds"); or nerfstudio's or Blender's `transforms.json`, in the order of its file names.
    - `.npy`: an array of matrices. `.npz`: one such array, or the one called "world_from_camera", "camera_pose" or
      "poses"; "intrinsics" with "picture_size" and "seconds" are read too.

    Args:
        path: The file.
        axes: Of the file; None is OpenGL for `transforms.json` and OpenCV for all else.
        kind: Of the file, see `poses_from`.
        scene_scale: Factor on all lengths.

    Raises:
        ValueError: No such file, too large, of another format, or what `poses_from` raises; the file is named.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"there is no file {os.fspath(path)!r} with a camera path.")
    if file.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{file}: has {file.stat().st_size:,} bytes, at most {MAX_FILE_BYTES:,} are read.")
    readers = {".txt": _read_text, ".tum": _read_text, ".json": _read_json, ".npy": _read_npy, ".npz": _read_npz}
    if file.suffix.lower() not in readers:
        raise ValueError(f"{file}: must end in one of {', '.join(readers)}.")
    try:
        told = readers[file.suffix.lower()](file)
        poses = poses_from(
            told.pop("poses"), axes=axes or told.pop("axes", "opencv"), kind=kind, scene_scale=scene_scale
        )
        return _given_path(poses, told)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, zipfile.BadZipFile) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{file}: is no camera path that can be used: {why}") from error


def walk_path(
    text: str,
    *,
    fps: float = 12.0,
    speed: float = 0.6,
    turn_rate: float = 30.0,
    num_frames: int | None = None,
    frames_per_word: int | None = None,
) -> np.ndarray:
    """Return the poses of a walk told in words, such as "forward 1 turn-left 30 up 0.2 look-down 10 stop".

    Words: forward, back (or backward), left, right, up, down and metres (or the world's units); turn-left, turn-right,
    look-up, look-down, roll-left, roll-right and degrees; stop, and seconds or nothing. Each is seen from the camera as
    it then is, like an env's actions: "look-down 30 forward 1" goes down too. Words joined by a + happen together:
    "forward 1 + turn-left 90" is an arc.

    Args:
        text: The words.
        fps: Frames per second.
        speed: Metres (or units) per second.
        turn_rate: Degrees per second.
        num_frames: Frames of the whole walk, which is then as fast as it has to be.
        frames_per_word: Frames that each word takes instead of the time that it needs.

    Returns:
        (T, 4, 4) float64 camera-to-world; the first is the identity.

    Raises:
        ValueError: A word that is not known, a number that is missing or not finite, rates that are not positive, or
            more than `MAX_WALK_FRAMES` frames.
    """
    for name, value in (("fps", fps), ("speed", speed), ("turn_rate", turn_rate)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}.")
    for name, count in (("num_frames", num_frames), ("frames_per_word", frames_per_word)):
        if count is not None and not 1 <= count <= MAX_WALK_FRAMES:
            raise ValueError(f"{name} must be in 1..{MAX_WALK_FRAMES}, got {count}.")
    if num_frames is not None and frames_per_word is not None:
        raise ValueError("num_frames and frames_per_word must not both be given; each sets the length of the walk.")

    parts = _parse_walk(text)
    twist_N6 = np.array([twist for twist, _ in parts])
    needed = [np.linalg.norm(twist_N6[:, :3], axis=1) / speed, np.linalg.norm(twist_N6[:, 3:], axis=1)]
    seconds_N = np.maximum(np.maximum(needed[0], np.rad2deg(needed[1]) / turn_rate), [stop for _, stop in parts])
    frames_N = np.maximum(1.0, seconds_N * fps)
    if num_frames is None:
        frames_N = np.rint(frames_N) if frames_per_word is None else np.full(len(parts), float(frames_per_word))
        if frames_N.sum() >= MAX_WALK_FRAMES:
            raise ValueError(f"the walk takes {frames_N.sum():,.0f} frames, at most {MAX_WALK_FRAMES:,} are allowed.")
    ends_N = np.cumsum(frames_N)
    count = int(ends_N[-1]) + 1 if num_frames is None else num_frames
    time_T = np.linspace(0.0, ends_N[-1], count)

    corners = [np.eye(4)]
    for motion in se3_exp(twist_N6):
        corners.append(corners[-1] @ motion)
    part_T = np.minimum(np.searchsorted(ends_N, time_T), len(parts) - 1)
    share_T = np.clip(1 - (ends_N[part_T] - time_T) / frames_N[part_T], 0.0, 1.0)
    return np.stack(corners)[part_T] @ se3_exp(share_T[:, None] * twist_N6[part_T])


def check_range(
    world_from_camera: np.ndarray,
    unit: float = 1.0,
    fps: float = 12.0,
    *,
    max_speed: float = MAX_SPEED,
    max_turn_rate: float = MAX_TURN_RATE,
    max_extent: float = MAX_EXTENT,
    min_extent: float = MIN_EXTENT,
    whose: str = "what the model was trained on",
) -> PathRange:
    """Warn where a path is outside what the model was trained on, with the numbers and what to do.

    A model sees lengths in its unit: how far away the near things in the first picture are. Defaults are those of the
    simulator's walks (`sim.walks`); AetherV1's are not published.

    Args:
        world_from_camera: (T, 4, 4).
        unit: The model's unit in the path's lengths (`ClipResult.unit`): metres where both are metric.
        fps: Frames per second at which the path is flown.
        max_speed: Units per second.
        max_turn_rate: Degrees per second.
        max_extent: Units from the first camera.
        min_extent: Units; a path that stands still exactly, or only turns, is not warned of.
        whose: What these limits are of, for the warning.

    Returns:
        What was found, and the factor that helps.

    Raises:
        ValueError: Poses that are not rigid, or a unit or rate that is not positive.
    """
    poses = check_poses("world_from_camera", world_from_camera)
    if poses.ndim != 3 or not len(poses):
        raise ValueError(f"world_from_camera must have shape (T, 4, 4) with T >= 1, got {poses.shape}.")
    for name, value in (("unit", unit), ("fps", fps)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}.")
    centres = poses[:, :3, 3] / unit
    speed = float(np.linalg.norm(np.diff(centres, axis=0), axis=1).max(initial=0.0)) * fps
    steps = np.swapaxes(poses[:-1, :3, :3], 1, 2) @ poses[1:, :3, :3]
    turn_rate = float(np.rad2deg(rotation_angle(steps)).max(initial=0.0)) * fps
    extent = float(np.linalg.norm(centres - centres[0], axis=1).max())

    problems, scale, longer = [], 1.0, ""
    if speed > max_speed:
        problems.append(f"it moves at up to {speed:.4g} units a second (at most {max_speed:g})")
        longer = " or more frames"
    if extent > max_extent:
        problems.append(f"it goes {extent:.4g} units away from its start (at most {max_extent:g})")
        longer = ""
    if problems:
        scale = _rounded(min(max_speed / max(speed, 1e-12), max_extent / max(extent, 1e-12)), up=False)
        problems[-1] += f", which scene_scale={scale:g}{longer} would mend"
    elif 1e-6 < extent < min_extent:
        scale = _rounded(min(TYPICAL_SPEED / speed, max_extent / extent), up=True)
        problems.append(
            f"it goes only {extent:.2g} units away from its start, which cannot be seen; if it shall, use "
            f"scene_scale={scale:g}"
        )
    if turn_rate > max_turn_rate:
        problems.append(
            f"it turns at up to {turn_rate:.4g} degrees a second (at most {max_turn_rate:g}), which more "
            "frames would mend"
        )
    if problems:
        warnings.warn(
            f"The camera path is outside {whose}: {'; '.join(problems)}. A unit, how far away "
            f"near things are, is {unit:g} of the path's lengths; {len(poses)} frames at {fps:g} a second.",
            stacklevel=2,
        )
    return PathRange(speed, turn_rate, extent, scale)


def _as_matrices(name: str, poses: ArrayLike) -> np.ndarray:
    """Return rigid (T, 4, 4) float64; rotations that are only rounded become exact."""
    try:
        array = np.asarray(poses, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be matrices of numbers, all of one shape: {error}") from error
    if array.ndim == 2 and array.shape[1] in (12, 16):
        array = array.reshape(len(array), -1, 4)
    if array.shape in ((4, 4), (3, 4)):
        array = array[None]
    if array.ndim != 3 or array.shape[1:] not in ((4, 4), (3, 4)) or not len(array):
        raise ValueError(f"{name} must have shape (T, 4, 4) or (T, 3, 4), got {array.shape}.")
    if array.shape[1] == 3:
        array = np.concatenate([array, np.tile([[[0.0, 0, 0, 1]]], (len(array), 1, 1))], axis=1)
    rotation = array[:, :3, :3]
    if np.isfinite(array).all() and (np.linalg.det(rotation) > 0).all():
        off = np.abs(rotation @ np.swapaxes(rotation, 1, 2) - np.eye(3)).max()
        if 0 < off <= _ROUNDED:
            array = array.copy()
            array[:, :3, :3] = Rotation.from_matrix(rotation).as_matrix()
    return check_poses(name, array)


def _given_path(poses: np.ndarray, told: Mapping[str, Any]) -> GivenPath:
    """Return a path with what a file tells beside the poses, checked."""
    seconds, size, matrices = told.get("seconds"), told.get("picture_size"), told.get("intrinsics")
    if seconds is not None:
        seconds = np.asarray(seconds, np.float64)
        if seconds.shape != (len(poses),) or not np.isfinite(seconds).all() or (np.diff(seconds) <= 0).any():
            raise ValueError(f"seconds must be one for each of the {len(poses)} poses, and increase.")
        seconds = seconds - seconds[0]
    if size is not None:
        height, width = (int(side) for side in size)
        if min(height, width) < 1 or height * width > MAX_PIXELS:
            raise ValueError(f"picture_size must be height and width of at most {MAX_PIXELS:,} pixels, got {size}.")
        size = (height, width)
    if matrices is not None:
        matrices = np.array(np.broadcast_to(check_intrinsics("intrinsics", matrices), (len(poses), 3, 3)))
        if size is not None:
            matrices = np.stack([checked_intrinsics(matrix, *size) for matrix in matrices])
    fov = told.get("horizontal_fov")
    if fov is not None and not 0 < fov < 180:
        raise ValueError(f"the horizontal field of view must be in (0, 180) degrees, got {fov}.")
    return GivenPath(
        world_from_camera=poses, intrinsics=matrices, picture_size=size, horizontal_fov=fov,
        seconds=seconds,
    )  # fmt: skip


def _read_text(file: Path) -> dict[str, Any]:
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if words := line.split("#")[0].replace(",", " ").split():
            rows.append([float(word) for word in words])
            if len(rows[-1]) not in (8, 12) or len(rows[-1]) != len(rows[0]):
                raise ValueError(
                    f"line {number} has {len(rows[-1])} numbers; rows have 8 (TUM) or 12 (KITTI) throughout."
                )
    if not rows:
        raise ValueError("it has no pose.")
    table = np.array(rows)
    if table.shape[1] == 12:
        return {"poses": table}
    length = np.linalg.norm(table[:, 4:], axis=1)
    if (far := np.abs(length - 1)).max() > _ROUNDED:
        raise ValueError(f"pose {far.argmax() + 1} has a quaternion of length {length[far.argmax()]:.3g}, not 1.")
    return {"poses": poses_from(table[:, 1:4], table[:, 4:], order="xyzw"), "seconds": table[:, 0]}


def _read_json(file: Path) -> dict[str, Any]:
    told = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(told, list):
        return {"poses": told}
    if "frames" in told:
        return _read_transforms(told)
    names = ("intrinsics", "picture_size", "seconds")
    return {"poses": told["world_from_camera"]} | {name: told[name] for name in names if name in told}


def _read_transforms(told: dict[str, Any]) -> dict[str, Any]:
    """Return what a `transforms.json` of nerfstudio, Instant-NGP or Blender tells."""
    model = told.get("camera_model", "OPENCV")
    if model not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE"):
        raise ValueError(f"its cameras are {model}; only pinhole cameras can be followed.")
    frames = told["frames"]
    if all("file_path" in frame for frame in frames):  # they are often listed in any order
        frames = sorted(frames, key=lambda frame: _natural(frame["file_path"]))
    found: dict[str, Any] = {"poses": [frame["transform_matrix"] for frame in frames], "axes": "opengl"}
    if "w" in told and "h" in told:
        height, width = found["picture_size"] = (int(told["h"]), int(told["w"]))
        default = {"cx": width / 2, "cy": height / 2}
        if angle := told.get("camera_angle_x"):
            default["fl_x"] = width / 2 / math.tan(angle / 2)
        cameras = [default | told | frame for frame in frames]
        if all("fl_x" in camera for camera in cameras):
            found["intrinsics"] = [
                [[c["fl_x"], 0, c["cx"]], [0, c.get("fl_y", c["fl_x"]), c["cy"]], [0, 0, 1]] for c in cameras
            ]
    elif "camera_angle_x" in told:
        found["horizontal_fov"] = math.degrees(told["camera_angle_x"])
    return found


def _read_npy(file: Path) -> dict[str, Any]:
    return {"poses": np.load(file, mmap_mode="r", allow_pickle=False)}


def _read_npz(file: Path) -> dict[str, Any]:
    with zipfile.ZipFile(file) as archive:
        if (size := sum(member.file_size for member in archive.infolist())) > MAX_FILE_BYTES:
            raise ValueError(f"its arrays have {size:,} bytes, at most {MAX_FILE_BYTES:,} are read.")
    with np.load(file, allow_pickle=False) as arrays:
        matrices = [name for name in arrays.files if arrays[name].shape[-2:] in ((4, 4), (3, 4))]
        named = [name for name in _POSE_NAMES if name in matrices] or matrices
        if not named or (len(matrices) > 1 and named == matrices):
            raise ValueError(
                f"its poses must be called {_POSE_NAMES[0]}; it has {', '.join(arrays.files) or 'nothing'}."
            )
        found = {"poses": arrays[named[0]]}
        found |= {name: arrays[name] for name in ("picture_size", "seconds") if name in arrays}
        if known := [name for name in _INTRINSICS_NAMES if name in arrays]:
            found["intrinsics"] = arrays[known[0]]
    return found


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a key by which frame_10 comes after frame_9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def _parse_walk(text: str) -> list[tuple[np.ndarray, float]]:
    """Return the twist and the least seconds of each part of a walk."""
    words = text.replace(",", " ").replace(";", " ").lower().split()
    parts: list[tuple[np.ndarray, float]] = []
    joins = False
    while words:
        word = words.pop(0)
        if word == "+":
            if joins or not parts or not words:
                raise ValueError('"+" must stand between two words of a walk, such as "forward 1 + turn-left 30".')
            joins = True
            continue
        if word == "stop":
            amount = (
                _number(words.pop(0), word) if words and not words[0][0].isalpha() and words[0] != "+" else STOP_SECONDS
            )
            if amount < 0:
                raise ValueError(f'"stop" must be followed by seconds >= 0 or nothing, got {amount:g}.')
            part = (np.zeros(6), amount)
        elif word in _WORDS:
            if not words:
                raise ValueError(f'"{word}" must be followed by a number, such as "{word} 1".')
            amount = _number(words.pop(0), word)
            part = (_WORDS[word] * (math.radians(amount) if "-" in word else amount), 0.0)
        else:
            raise ValueError(f"a walk has no word {word!r}; it has {', '.join(_WORDS)} and stop.")
        if joins:
            twist, seconds = parts.pop()
            part = (twist + part[0], max(seconds, part[1]))
        parts.append(part)
        joins = False
    if not parts:
        raise ValueError('a walk must have a word, such as "forward 1".')
    return parts


def _number(word: str, after: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f'"{after}" must be followed by a finite number, such as "{after} 1", got {word!r}.')
    return number


def _rounded(number: float, *, up: bool) -> float:
    """Return a positive number with two digits, rounded up or down."""
    digit = 10.0 ** (math.floor(math.log10(number)) - 1)
    return (math.ceil(number / digit) if up else math.floor(number / digit)) * digit
