"""A video with its truth, read when asked for, and the windows that cover it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from training.evaluation.datasets.files import DatasetError, DepthFormat, picture_size, read_rgb
from training.evaluation.datasets.lens import Lens

WINDOW_STEP = 8
"""Frames by which a window is shortened for a video that is shorter than it."""
SHORTEST_WINDOW = 17
"""Frames; shorter videos are refused."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledFrames:
    """Some frames of a video with their truth. None is what the set does not have."""

    rgb: np.ndarray
    """(T, H, W, 3) uint8."""
    depth: np.ndarray | None
    """(T, H, W) float32 z-depth, metres, 0 where unknown."""
    valid: np.ndarray | None
    """(T, H, W) bool: the depth is known, so positive and finite. A set's sky may be valid and very far."""
    world_from_camera: np.ndarray | None
    """(T, 4, 4) float64."""
    intrinsics: np.ndarray | None
    """(T, 3, 3) float64, pixels of (H, W)."""
    timestamps: np.ndarray | None
    """(T,) float64 seconds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledVideo:
    """A video of a test set and where its truth lies. World axes are the set's own; see conventions for the rest.

    Making one reads the headers of all its files and nothing more.
    """

    name: str
    rgb_paths: tuple[Path, ...]
    depth_paths: tuple[Path, ...] | None = None
    depth_format: DepthFormat | None = None
    world_from_camera: np.ndarray | None = None
    """(T, 4, 4) float64."""
    intrinsics: np.ndarray | None = None
    """(T, 3, 3) float64, pixels of (height, width)."""
    timestamps: np.ndarray | None = None
    """(T,) float64 seconds, where the set has them."""
    skipped: int = 0
    """Frames of this part of the recording that were left out for want of truth."""
    lens: Lens | None = None
    """What took the pictures, where they are to be straightened; `intrinsics` are those of the straight ones."""
    height: int = field(init=False)
    width: int = field(init=False)

    def __post_init__(self) -> None:
        """Check that there is one truth a frame and that all pictures are of one size.

        Raises:
            DatasetError: No frames, another number of truths, a broken header, or pictures of several sizes.
        """
        if not self.rgb_paths:
            raise DatasetError(f"{self.name}: no frame has its truth.")
        for what in ("depth_paths", "world_from_camera", "intrinsics", "timestamps"):
            if (values := getattr(self, what)) is not None and len(values) != len(self):
                raise DatasetError(f"{self.rgb_paths[0].parent}: has {len(self)} frames but {len(values)} {what}.")
        size = picture_size(self.rgb_paths[0]) if self.lens is None else (self.lens.height, self.lens.width)
        _check_sizes(self.rgb_paths, picture_size, size)
        if self.depth_paths is not None:
            assert self.depth_format is not None
            _check_sizes(self.depth_paths, self.depth_format.size, size)
        object.__setattr__(self, "height", size[0])
        object.__setattr__(self, "width", size[1])

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.rgb_paths)

    def rgb(self, index: int) -> np.ndarray:
        """Return one frame, (H, W, 3) uint8.

        Raises:
            DatasetError: The file is damaged.
        """
        rgb = read_rgb(self.rgb_paths[index])
        if rgb.shape[:2] != (self.height, self.width):  # turned by an EXIF tag
            raise DatasetError(
                f"{self.rgb_paths[index]}: is {rgb.shape[:2]} when upright, not {self.height, self.width}."
            )
        return rgb if self.lens is None else self.lens.straightened(rgb)

    def depth(self, index: int) -> np.ndarray:
        """Return the depth of one frame, (H, W) float32 metres, 0 where unknown.

        Raises:
            ValueError: The video has no depth.
            DatasetError: The file is damaged.
        """
        if self.depth_paths is None or self.depth_format is None:
            raise ValueError(f"{self.name} has no depth; look at depth_paths before asking.")
        depth = self.depth_format.read(self.depth_paths[index])
        if self.lens is not None:
            depth = self.lens.straightened(depth, nearest=True)
        return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))

    def read(self, frames: range | None = None) -> LabelledFrames:
        """Return frames with their truth.

        Args:
            frames: Which, such as one of `windows`; None is all of them.

        Raises:
            ValueError: Frames that the video does not have.
            DatasetError: A file is damaged.
        """
        frames = range(len(self)) if frames is None else frames
        if not frames or min(frames) < 0 or max(frames) >= len(self):
            raise ValueError(f"frames must be some of 0..{len(self) - 1} of {self.name}, got {frames}.")
        rows = list(frames)
        rgb = np.stack([self.rgb(i) for i in rows])
        depth = None if self.depth_paths is None else np.stack([self.depth(i) for i in rows])
        poses, intrinsics, stamps = (
            None if values is None else values[rows]
            for values in (self.world_from_camera, self.intrinsics, self.timestamps)
        )
        return LabelledFrames(
            rgb=rgb, depth=depth, valid=None if depth is None else depth > 0, world_from_camera=poses,
            intrinsics=intrinsics, timestamps=stamps,
        )  # fmt: skip


def windows(number_of_frames: int, window: int = 41, stride: int = 8) -> list[range]:
    """Return windows that cover every frame of a video, as the public evaluation lays them.

    They begin every `stride` frames (8 for depth, 32 for poses), and the last one is moved back to end with the video.
    For a shorter video the window loses 8 frames at a time, down to 17.

    Args:
        number_of_frames: Of the video.
        window: Frames in a window.
        stride: Frames between the beginnings of neighbours.

    Raises:
        ValueError: The video is shorter than the shortest window, or the stride would leave frames out.
    """
    if not 1 <= stride <= window:
        raise ValueError(f"stride must be in 1..{window} (the window) to leave no frame out, got {stride}.")
    shortest = min(window, SHORTEST_WINDOW)
    while window > number_of_frames:
        window -= WINDOW_STEP
    if window < shortest:
        raise ValueError(f"number_of_frames must be at least {shortest}, the shortest window, got {number_of_frames}.")
    last = number_of_frames - window
    return [range(start, start + window) for start in (*range(0, last, stride), last)]


def _check_sizes(paths: tuple[Path, ...], size_of: Callable[[Path], tuple[int, int]], wanted: tuple[int, int]) -> None:
    for path in paths:
        if (size := size_of(path)) != wanted:
            raise DatasetError(f"{path}: is {size} pixels, the video {wanted} (h, w).")
