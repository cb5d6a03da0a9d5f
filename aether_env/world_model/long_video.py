"""A video on its way through a model, window by window: what is known of it, what was found, and its frames.

Nothing here holds more than a few windows, where the frames go to disk.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from aether_env.camera import CameraPath, check_poses
from aether_env.conventions import FAR_DEPTH
from aether_env.paths import GivenPath, read_path
from aether_env.pictures import as_uint8, checked_depth, fit_picture
from aether_env.videos import OpenVideo, VideoFrame
from aether_env.world_model.clip_model import ClipResult
from aether_env.world_model.windows import DepthJoiner, FadeJoiner, FrameWindow, PathJoiner

PathLike = np.ndarray | GivenPath | str | os.PathLike[str]
"""A camera path: camera-to-world poses (T, 4, 4) in OpenCV axes, or a file of `paths.read_path`."""


class VideoTruth:
    """What is known of a video beside its pictures, by frames of its source."""

    def __init__(self, opened: OpenVideo, path: GivenPath | None, depth: Any):
        self.opened = opened
        self.poses = None if path is None else path.world_from_camera
        array = None if depth is None else np.asanyarray(depth)  # may lie on disk
        if array is not None and array.ndim not in (2, 3):
            raise ValueError(f"depth must be (H, W) of the first frame or (T, H, W) of all, got {array.shape}.")
        self.first_depth = None if array is None or array.ndim == 3 else fitted_depth("depth", array, opened)
        self.depths = array if array is not None and array.ndim == 3 else None
        if self.depths is not None and self.depths.shape[1:] != opened.source_size:
            raise ValueError(f"depth must have the video's size {opened.source_size}, got {self.depths.shape[1:]}.")

    def depth_of(self, group: Sequence[FrameWindow[VideoFrame]]) -> np.ndarray | None:
        """Return the depth that is known of windows, as a ClipModel takes it."""
        if self.first_depth is not None:
            return self.first_depth[None] if group[0].start == 0 else None
        if self.depths is None:
            return None
        depths = [[self._depth(self.depths, frame.source_frame) for frame in window.frames] for window in group]
        return np.array(depths, np.float32)

    def poses_of(self, frames: Sequence[VideoFrame]) -> np.ndarray | None:
        """Return the poses (T, 4, 4) that are known of frames."""
        if self.poses is None:
            return None
        numbers = [frame.source_frame for frame in frames]
        if max(numbers) >= len(self.poses):
            raise ValueError(f"path must have a pose for each frame of the source; it has {len(self.poses)}.")
        return self.poses[numbers]

    def _depth(self, depths: np.ndarray, number: int) -> np.ndarray:
        if number >= len(depths):
            raise ValueError(f"depth must be there for each frame of the source; there are {len(depths)}.")
        depth = depths[number]
        if not (np.isfinite(depth) & (depth > 0)).any():
            return np.full((self.opened.height, self.opened.width), np.nan, np.float32)
        fitted = fitted_depth("depth", depth, self.opened)
        assert fitted is not None
        return fitted


class FrameStore:
    """Collects frames: in memory, or in files beside `out`, which are gone when it is left.

    Args:
        out: Where the result will be; None collects in memory.
    """

    def __init__(self, out: str | os.PathLike[str] | None):
        self._parts: dict[str, list[np.ndarray]] = {"rgb": [], "depth": [], "disparity": []}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._out = None if out is None else Path(out).resolve()

    def __enter__(self) -> Self:
        if self._out is not None:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(prefix=f".{self._out.name}.", dir=self._out.parent)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()  # arrays that are mapped stay readable for as long as they are held

    def add(self, rgb: np.ndarray, depth: np.ndarray) -> None:
        """Add frames (t, H, W, 3) and (t, H, W), or either alone with t = 0 of the other."""
        for name, frames in (("rgb", rgb), ("depth", depth), ("disparity", disparity_of(depth))):
            if self._folder is None or not self._parts[name]:
                self._parts[name].append(frames)  # the first one tells shape and type
            if self._folder is not None:
                with open(Path(self._folder.name) / name, "ab") as file:
                    file.write(np.ascontiguousarray(frames).data)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return "rgb", "depth" and "disparity", all frames of each."""
        if self._folder is None:
            return {name: np.concatenate(parts) for name, parts in self._parts.items()}
        first = {name: parts[0] for name, parts in self._parts.items()}
        root = Path(self._folder.name)
        return {
            name: np.memmap(root / name, frames.dtype, mode="r").reshape(-1, *frames.shape[1:])
            for name, frames in first.items()
        }


class JoinedWindows:
    """The windows of one video, joined as they come.

    Args:
        frames: Where pictures and depth go.
    """

    def __init__(self, frames: FrameStore):
        self.frames = frames
        self._depth, self._path, self._camera = DepthJoiner(), PathJoiner(), FadeJoiner()
        self._paths: list[np.ndarray] = []
        self._cameras: list[np.ndarray] = []
        self.source_frames: list[VideoFrame] = []
        self.first: ClipResult | None = None
        self.windows = 0

    def add(self, window: FrameWindow[VideoFrame], found: ClipResult) -> None:
        """Add the next window."""
        start, count = window.start, len(window.frames) - window.padded
        new = window.frames[len(self.source_frames) - start : count]
        self.source_frames += [frame._replace(rgb=np.empty(0, np.uint8)) for frame in new]
        self.first = self.first or found
        in_metres = self.first.metric and found.metric
        depth = self._depth.add(found.depth[:count], start, scale=1.0 if in_metres else None)
        self.frames.add(np.stack([as_uint8(frame.rgb) for frame in new]), depth)
        self._paths.append(self._path.add(found.world_from_camera[:count], start, scale=self._depth.scale))
        steady = np.median(found.intrinsics[:count], axis=0)  # a window is of one camera
        self._cameras.append(self._camera.add(np.repeat(steady[None], count, axis=0), start))
        self.windows += 1

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the whole path (T, 4, 4) and its intrinsics (T, 3, 3)."""
        left = self._depth.finish()
        self.frames.add(np.empty((0, *left.shape[1:], 3), np.uint8), left)
        paths, cameras = [*self._paths, self._path.finish()], [*self._cameras, self._camera.finish()]
        return np.concatenate(paths), np.concatenate(cameras)


def batches(
    windows: Iterable[FrameWindow[VideoFrame]], size: int, first_alone: bool
) -> Iterator[list[FrameWindow[VideoFrame]]]:
    """Yield windows in groups of `size`; the last may be smaller."""
    group: list[FrameWindow[VideoFrame]] = []
    for window in windows:
        group.append(window)
        if len(group) == size or (first_alone and window.start == 0):
            yield group
            group = []
    if group:
        yield group


def disparity_of(depth: np.ndarray) -> np.ndarray:
    """Return 1 / depth, float32; 0 where depth is the largest there is, the sky's."""
    return np.where(depth < 0.999 * FAR_DEPTH, 1 / depth, 0.0).astype(np.float32)


def shows_surface(depth: np.ndarray) -> bool:
    """Return whether depth is known somewhere, and is not all sky."""
    return bool((np.isfinite(depth) & (depth > 0) & (depth < 0.999 * FAR_DEPTH)).any())


def fitted_depth(name: str, depth: Any, opened: OpenVideo) -> np.ndarray | None:
    """Return the depth of one frame in the wanted size; `name` is how the caller's argument is called in errors."""
    if depth is None:
        return None
    height, width = opened.source_size
    try:
        checked = checked_depth(depth, height, width)
    except ValueError as error:
        raise ValueError(name + str(error).removeprefix("depth")) from error
    return fit_picture(np.zeros((height, width, 3), np.uint8), opened.height, opened.width, depth=checked).depth


def given_path(path: PathLike) -> GivenPath:
    """Return a path with what is told beside its poses.

    Raises:
        ValueError: It is no camera path.
    """
    if isinstance(path, str | os.PathLike):
        path = read_path(path)
    if isinstance(path, CameraPath):
        raise ValueError("path must be poses (T, 4, 4) or of paths.read_path; of a CameraPath give world_from_camera.")
    poses = check_poses("path", path.world_from_camera if isinstance(path, GivenPath) else path)
    if poses.ndim != 3 or not len(poses):
        raise ValueError(f"path must be camera-to-world poses (T, 4, 4) with T >= 1, got {poses.shape}.")
    return path if isinstance(path, GivenPath) else GivenPath(world_from_camera=poses)


def intrinsics_of(path: GivenPath, height: int, width: int) -> np.ndarray | None:
    """Return what a path tells of its camera, (T, 3, 3) for pictures of (height, width)."""
    if path.intrinsics is None and path.horizontal_fov is None:
        return None
    return path.camera_path(height, width).intrinsics
