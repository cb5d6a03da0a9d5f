"""What a task gives back for one video, how it is kept in a folder, and its path as poses of a robot's hand.

Poses, axes, units and pixels: see conventions. A folder that `VideoResult.save` wrote holds

    rgb.mp4, depth.mp4          to be watched; depth is coloured, red is near
    sheet.png                   six moments, colour above depth
    rgb/00000.png ...           the frames, lossless
    depth/00000.png ...         16 bits: depth * `depth_png_scale` of result.json, 0 is never written
    depth.npy, disparity.npy    (T, H, W) float32
    covariance.npy, raymap.npy, model_rgb.npy, model_disparity.npy  where the result has them
    path.tum                    timestamp tx ty tz qx qy qz qw a line, world_from_camera
    cloud.glb, cloud.ply        points without depth edges and sky, with the cameras
    result.json                 all numbers, the notes and the list of files
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image

from aether_env import visual
from aether_env.camera import (
    CameraPath,
    check_poses,
    invert_pose,
    quaternion_from_matrix,
    se3_log,
)
from aether_env.files import replacing
from aether_env.paths import read_path
from aether_env.pointcloud import depth_edges, unproject_depth, write_points
from aether_env.videos import Note

MAX_POINTS = 120_000
"""Points that a saved cloud has at most."""
MAX_CLOUD_FRAMES = 32
"""Frames, evenly spread over the video, whose points and cameras a cloud shows at most."""


_JSON = "result.json"
_FORMAT = {"format": "aether-video-result", "version": 1}
_OPTIONAL = ("covariance", "raymap", "model_rgb", "model_disparity")
_SHEET_COLUMNS = 6
# Sky, at the far end of what the model can say, has no place among the points; nor has anything as far as it.
_FAR_IN_MEDIANS = 6.0


class HandPoses(NamedTuple):
    """Where a robot's hand shall be, and when."""

    times: np.ndarray
    """(N,) seconds, from 0 in steps of 1 / rate_hz."""
    world_from_hand: np.ndarray
    """(N, 4, 4) metres; base_from_hand where `base_from_world` was given."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoResult:
    """One video of T frames with its depth and camera path; checks itself. Lengths are metres where `metric`.

    Arrays are kept as they are given, not copied, so that they may lie on disk (`np.memmap`).

    Raises:
        ValueError: A wrong shape or type, NaN or infinity, depth that is not positive, or a path of another length.
    """

    rgb: np.ndarray
    """(T, H, W, 3) uint8."""
    disparity: np.ndarray
    """(T, H, W) float32, 1 / depth; 0 is infinitely far."""
    depth: np.ndarray
    """(T, H, W) float32 z-depth, metres where `metric`, else units."""
    path: CameraPath
    """T poses and intrinsics, pixels of (H, W)."""
    covariance: np.ndarray | None = None
    """(T, 6, 6) of each pose, where the path was smoothed: position in world axes, then rotation vector in camera axes
    (`trajectory.SmoothedPath`)."""
    raymap: np.ndarray | None = None
    """(T, 6, h, w) float32 as the model said it, where it did."""
    model_rgb: np.ndarray | None = None
    """(T, H, W, 3) float32 in [0, 1] as the model said it, before rounding, of given frames too; in parity mode only
    (`resampling="public"` with the published checkpoint)."""
    model_disparity: np.ndarray | None = None
    """(T, H, W) float32 as the model said it, relative to the clip's nearest, not cut off; with `model_rgb`."""
    unit: float
    """Metres of one unit of the model; 1 where not metric."""
    metric: bool
    """Lengths are metres: the scale was known from depth."""
    fps: float
    """Frames per second."""
    notes: tuple[Note, ...] = ()
    """What was resized, cropped, padded, windowed or assumed."""

    def __post_init__(self) -> None:
        rgb = np.asanyarray(self.rgb)
        if rgb.ndim != 4 or rgb.shape[-1] != 3 or rgb.dtype != np.uint8 or not rgb.size:
            raise ValueError(f"rgb must be uint8 (T, H, W, 3) with T >= 1, got {rgb.dtype} {rgb.shape}.")
        num_frames, size = len(rgb), rgb.shape[:3]
        _check_floats("disparity", self.disparity, size)
        _check_floats("depth", self.depth, size)
        if any(frame.min() <= 0 for frame in self.depth):
            raise ValueError("depth must be positive; give what is unknown or sky the largest depth instead of 0.")
        if any(frame.min() < 0 for frame in self.disparity):
            raise ValueError("disparity must not be negative; clip it at 0, which is infinitely far.")
        if len(self.path) != num_frames:
            raise ValueError(f"path must have one pose for each of the {num_frames} frames, got {len(self.path)}.")
        if self.covariance is not None:
            _check_floats("covariance", self.covariance, (num_frames, 6, 6))
        if self.raymap is not None:
            cells = np.shape(self.raymap)[2:]
            _check_floats("raymap", self.raymap, (num_frames, 6, *(cells if len(cells) == 2 else ("h", "w"))))
        if self.model_rgb is not None:
            _check_floats("model_rgb", self.model_rgb, rgb.shape)
        if self.model_disparity is not None:
            _check_floats("model_disparity", self.model_disparity, size)
        _check_positive(unit=self.unit, fps=self.fps)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.rgb)

    def to_poses(
        self,
        *,
        hand_from_camera: np.ndarray | None = None,
        base_from_world: np.ndarray | None = None,
        rate_hz: float | None = None,
        max_speed: float | None = None,
        max_turn: float | None = None,
        metres_per_unit: float | None = None,
    ) -> HandPoses:
        """Return the way of a robot's hand that carries the camera along the path.

        Between frames the hand follows the screw motion from one pose to the next. Where it would be too fast
        anywhere, the whole way is slowed down by one factor; then the end is put off to the next whole step of
        1 / rate_hz, so that times are even and the last pose is that of the last frame.

        Args:
            hand_from_camera: (4, 4) metres, where the camera is in the hand (hand-eye calibration); None: the same.
            base_from_world: (4, 4) metres, where the path's world is in the robot's base. As the world is the first
                camera, that is base_from_hand (as the robot stands) @ hand_from_camera. None leaves the world as it is.
            rate_hz: Poses per second; None takes `fps`.
            max_speed: Metres per second of the hand's origin at most; None: any.
            max_turn: Radians per second of the hand at most; None: any.
            metres_per_unit: The scale of a result that is not metric.

        Returns:
            Times and poses, at least one; unpacks into the two.

        Raises:
            ValueError: A result that is not metric without `metres_per_unit` (or the other way round), a pose that is
                not rigid, or a number that is not positive.
        """
        rate_hz = self.fps if rate_hz is None else rate_hz
        _check_positive(rate_hz=rate_hz, max_speed=max_speed, max_turn=max_turn, metres_per_unit=metres_per_unit)
        if not self.metric and metres_per_unit is None:
            raise ValueError(
                "metres_per_unit must be given: the result is not metric, so its path has no length in metres; measure "
                "one distance in the scene, or give the task depth of the first picture."
            )
        if self.metric and metres_per_unit is not None:
            raise ValueError(f"metres_per_unit must be None, got {metres_per_unit}: the result is in metres already.")
        camera_from_hand = invert_pose(_one_pose("hand_from_camera", hand_from_camera))
        path = self.path if metres_per_unit is None else self.path.scaled(metres_per_unit)

        hand = path.world_from_camera @ camera_from_hand
        # In a screw motion both speeds are constant, so these are the largest, exactly.
        step = se3_log(invert_pose(hand[:-1]) @ hand[1:]).reshape(-1, 2, 3)
        way, turn = np.linalg.norm(step, axis=-1).max(axis=0, initial=0.0).tolist()
        seconds_per_frame = max(1 / self.fps, way / (max_speed or math.inf), turn / (max_turn or math.inf))
        periods = math.ceil((len(self) - 1) * seconds_per_frame * rate_hz - 1e-9)  # the rounding of a whole number
        if len(self) > 1:
            periods = max(periods, 1)
        # Any frame fixed to the camera goes along the same screw, so the camera's path can be resampled for the hand.
        sampled = path.resampled(periods + 1).world_from_camera @ camera_from_hand
        return HandPoses(np.arange(periods + 1) / rate_hz, _one_pose("base_from_world", base_from_world) @ sampled)

    def point_cloud(self, max_points: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
        """Return what the frames show as points: no depth edges, which hang in the air, and no sky.

        Args:
            max_points: Taken evenly where there are more.

        Returns:
            Points (N, 3) in the path's world and length, and their colours (N, 3) uint8; N may be 0.

        Raises:
            ValueError: `max_points` is less than 1.
        """
        if max_points < 1:
            raise ValueError(f"max_points must be at least 1, got {max_points}.")
        rows = self._moments(min(MAX_CLOUD_FRAMES, max_points))
        far = _FAR_IN_MEDIANS * np.median(self.depth[rows])
        points, colours = [], []
        for t in rows:  # a frame at a time: all points of many large frames would take gigabytes
            rgb, depth = self.rgb[t], self.depth[t]
            solid = ~depth_edges(depth) & (depth < far)
            thin = slice(None, None, max(1, math.ceil(solid.sum() / (max_points // len(rows)))))
            place = unproject_depth(depth, self.path.intrinsics[t], self.path.world_from_camera[t])
            points.append(place[solid][thin])
            colours.append(rgb[solid][thin])
        return np.concatenate(points), np.concatenate(colours)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write everything into a folder, see the module; it appears under its name only when it is complete.

        Args:
            folder: New or empty, or an earlier result, which is replaced.

        Returns:
            The folder.

        Raises:
            ValueError: `folder` holds something else.
        """
        target = Path(folder).resolve()
        check_replaceable(target)
        with replacing(target) as new:
            self._write(new)
        return target

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote; arrays are those that were saved, poses to the last digits of their quaternions.

        Raises:
            ValueError: Not such a folder, or a file is missing, damaged or does not fit the others.
        """
        root = Path(folder)
        about = _read_json(root)
        try:
            size = (int(about["frames"]), int(about["height"]), int(about["width"]))
            depth = _read_array(root / "depth.npy", size)
            rgb = np.empty((*depth.shape, 3), np.uint8)
            for t in range(len(rgb)):
                rgb[t] = _read_png(root / "rgb" / f"{t:05d}.png", size[1:])
            return cls(
                rgb=rgb,
                depth=depth,
                disparity=_read_array(root / "disparity.npy", size),
                path=CameraPath(read_path(root / "path.tum").world_from_camera, about["intrinsics"]),
                **{
                    name: _read_array(root / f"{name}.npy") if f"{name}.npy" in about["files"] else None
                    for name in _OPTIONAL
                },
                unit=float(about["unit"]),
                metric=bool(about["metric"]),
                fps=float(about["fps"]),
                notes=tuple(Note(**note) for note in about["notes"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{root / _JSON} lacks {error} or holds it in another form; save the result anew."
            ) from error

    def _write(self, folder: Path) -> None:
        (folder / "depth").mkdir()
        near = float(np.quantile(self.depth[self._moments(MAX_CLOUD_FRAMES)], 0.02))
        visual.write_video(folder / "rgb.mp4", self.rgb, self.fps)
        visual.write_video(folder / "depth.mp4", (visual.colour_depth(frame, near) for frame in self.depth), self.fps)
        visual.write_png(folder / "sheet.png", self._sheet(near))
        scale = 65535 / max(float(frame.max()) for frame in self.depth)
        for t in range(len(self)):
            visual.write_png(folder / "rgb" / f"{t:05d}.png", self.rgb[t])
            # Zero means unknown to those who read such files; here everything is known.
            levels = np.rint(self.depth[t].astype(np.float64) * scale).clip(1, 65535).astype(np.uint16)
            Image.fromarray(levels).save(folder / "depth" / f"{t:05d}.png")
        for name in ("depth", "disparity", *_OPTIONAL):
            if (array := getattr(self, name)) is not None:
                np.save(folder / f"{name}.npy", array, allow_pickle=False)
        write_tum(folder / "path.tum", np.arange(len(self)) / self.fps, self.path.world_from_camera)
        self._write_clouds(folder)
        same = bool((self.path.intrinsics == self.path.intrinsics[0]).all())
        about = _FORMAT | {
            "frames": len(self),
            "height": self.rgb.shape[1],
            "width": self.rgb.shape[2],
            "fps": float(self.fps),
            "seconds": (len(self) - 1) / float(self.fps),
            "metric": bool(self.metric),
            "length_unit": "metre" if self.metric else "unit",
            "unit": float(self.unit),
            "path_length": self.path.length,
            "intrinsics": (self.path.intrinsics[0] if same else self.path.intrinsics).tolist(),
            "depth_png_scale": scale,
            "notes": [asdict(note) for note in self.notes],
            "files": _files_in(folder),
        }
        text = json.dumps(about, indent=1, allow_nan=False, default=lambda number: number.item())  # numpy's, in notes
        (folder / _JSON).write_text(text + "\n")

    def _write_clouds(self, folder: Path) -> None:
        points, colours = self.point_cloud()
        if len(points) == 0:  # edges everywhere: there is nothing solid to show
            return
        rows = self._moments(MAX_CLOUD_FRAMES)
        for name in ("cloud.glb", "cloud.ply"):
            write_points(
                folder / name,
                points,
                colours,
                world_from_camera=self.path.world_from_camera[rows],
                intrinsics=self.path.intrinsics[rows],
                image_hw=self.rgb.shape[1:3],
                frustum_depth=0.1 * float(np.median(self.depth[0])),
            )

    def _sheet(self, near: float) -> np.ndarray:
        rows = self._moments(_SHEET_COLUMNS)
        factor = max(1, 160 // self.rgb.shape[1])
        frames = np.concatenate([self.rgb[rows], visual.colour_depth(self.depth[rows], near)])
        captions = [f"{what}{t}, {t / self.fps:.2f} s" for what in ("frame ", "depth ") for t in rows]
        return visual.contact_sheet(visual.enlarge(frames, factor), columns=len(rows), captions=captions)

    def _moments(self, most: int) -> np.ndarray:
        """Return the indices of at most `most` frames, evenly spread, both ends kept."""
        return np.linspace(0, len(self) - 1, min(most, len(self))).round().astype(int)


def write_tum(path: str | os.PathLike[str], times: np.ndarray, world_from_camera: np.ndarray) -> Path:
    """Write a trajectory as TUM text: timestamp tx ty tz qx qy qz qw, one pose a line; missing folders are made.

    Args:
        path: Appears only when it is complete.
        times: (N,) seconds, increasing.
        world_from_camera: (N, 4, 4), or poses of anything else.

    Raises:
        ValueError: Times that do not increase or are not as many as the poses, or poses that are not rigid.
    """
    target = Path(path)
    poses = check_poses("world_from_camera", world_from_camera)
    times = np.asarray(times, np.float64)
    if poses.ndim != 3 or len(poses) == 0 or times.shape != poses.shape[:1]:
        raise ValueError(f"times and poses must be (N,) and (N, 4, 4) with N >= 1, got {times.shape}, {poses.shape}.")
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise ValueError("times must be finite and increasing.")
    xyzw = quaternion_from_matrix(poses[:, :3, :3])[:, [1, 2, 3, 0]]
    lines = ["# timestamp tx ty tz qx qy qz qw"]
    # repr is the shortest text that reads back as the same number.
    lines += [" ".join(map(repr, row)) for row in np.column_stack([times, poses[:, :3, 3], xyzw]).tolist()]
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        partial.write_text("\n".join(lines) + "\n")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _check_floats(name: str, array: np.ndarray, shape: tuple[int | str, ...]) -> None:
    """Check a float array, a frame at a time: it may be larger than memory."""
    dtypes = (np.float32, np.float64) if name == "covariance" else (np.float32,)
    if getattr(array, "dtype", None) not in dtypes or array.shape != shape:
        raise ValueError(
            f"{name} must be {' or '.join(dtype.__name__ for dtype in dtypes)} {shape}, got "
            f"{getattr(array, 'dtype', type(array).__name__)} {np.shape(array)}."
        )
    for t, frame in enumerate(array):
        if not np.isfinite(frame).all():
            raise ValueError(f"{name} must be finite, but frame {t} has NaN or infinite values; fill them first.")


def _check_positive(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and not 0 < number < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {number}.")


def _one_pose(name: str, pose: np.ndarray | None) -> np.ndarray:
    if pose is None:
        return np.eye(4)
    checked = check_poses(name, pose)
    if checked.shape != (4, 4):
        raise ValueError(f"{name} must be one pose (4, 4), got {checked.shape}.")
    return checked


def _files_in(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())


def check_replaceable(folder: Path) -> None:
    """Refuse a folder that holds anything which `save` did not write.

    Raises:
        ValueError: It does, or it is a file.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"folder must be a folder or new, got the file {folder}.")
    found = _files_in(folder)
    if not found and not any(folder.iterdir()):
        return
    try:
        known = _read_json(folder)["files"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{folder} is there already and is not a saved result; choose a new folder.") from error
    if foreign := sorted(set(found) - {_JSON, *known}):
        raise ValueError(f"{folder} is a saved result with other files in it ({foreign[0]}); choose a new folder.")


def _read_json(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / _JSON).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is not a saved result: {_JSON}: {error}") from error
    if not isinstance(about, dict) or {key: about.get(key) for key in _FORMAT} != _FORMAT:
        raise ValueError(f"{folder / _JSON} is not of a saved result: it must hold {_FORMAT}.")
    return about


def _read_array(path: Path, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return a float array; shape and the file's size are checked before memory is taken."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if shape is not None and mapped.shape != shape:
        raise ValueError(f"{path} must have the shape {shape} that {_JSON} says, got {mapped.shape}.")
    return np.array(mapped)


def _read_png(path: Path, size: tuple[int, ...]) -> np.ndarray:
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.mode != "RGB" or picture.size != size[::-1]:
                raise ValueError(f"it must be RGB of {size[0]} x {size[1]}, got {picture.mode} {picture.size[::-1]}.")
            return np.array(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
