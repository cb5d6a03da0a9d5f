"""A clip: one video with everything that training needs, in the size and at the frame rate that training asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from aether_env.camera import check_intrinsics, check_poses
from aether_env.conventions import FAR_DEPTH
from aether_env.pictures import fit_picture

if TYPE_CHECKING:
    from aether_env.sim import SimClips

MAX_FRAME_PIXELS = 2**24
"""Pixels of a frame; larger ones are refused."""
MAX_CLIP_PIXELS = 2**28
"""Pixels of all frames together, about 2.4 GB with depth and masks."""
MAX_FPS = 1000.0
"""Frames per second; more is a mistake."""
MAX_NAME = 200
"""Letters of a name."""


class ClipError(ValueError):
    """A clip that cannot be had as it was asked for.

    Args:
        message: Which clip, and why.
        reason: The same in one or two words, to count by: "too short", "too slow" or "damaged".
    """

    def __init__(self, message: str, reason: str):
        super().__init__(message, reason)
        self.message, self.reason = message, reason

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """One video with all that training needs, numpy. Poses, units and pixels: see conventions."""

    rgb: np.ndarray
    """(T, H, W, 3) uint8."""
    depth: np.ndarray
    """(T, H, W) float32 z-depth, metres; where not valid, FAR_DEPTH or more is the sky and anything else unknown."""
    valid: np.ndarray
    """(T, H, W) bool: the depth is known and that of a surface (sky: False)."""
    moving: np.ndarray
    """(T, H, W) bool: the pixel shows something that moves by itself; all False where that is unknown."""
    world_from_camera: np.ndarray
    """(T, 4, 4) float64."""
    intrinsics: np.ndarray
    """(T, 3, 3) float64, pixels of (H, W)."""
    fps: float
    """Frames per second."""
    name: str
    """Of the clip, unique in its set."""

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.rgb)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rgb.shape[1], self.rgb.shape[2]

    def frames(self, rows: np.ndarray | list[int], fps: float) -> Clip:
        """Return the frames `rows` (indices, in that order) as a clip of `fps` frames per second."""
        names = ("rgb", "depth", "valid", "moving", "world_from_camera", "intrinsics")
        return replace(self, fps=fps, **{name: getattr(self, name)[rows] for name in names})

    def window(self, num_frames: int, fps: float, start: int = 0) -> Clip:
        """Return `num_frames` frames at `fps` frames per second, the first one being frame `start`.

        Raises:
            ClipError: The clip is slower than `fps`, or too short.
        """
        rows = start + nearest_frames(num_frames, fps, self.fps, name=self.name)
        check_length(rows[-1] + 1, len(self), num_frames, fps, self.name)
        return self.frames(rows, fps)

    def fitted(self, height: int, width: int) -> Clip:
        """Return the clip in another size, as `fit_picture` does it: cropped about the centre, colours by area.

        Depth and masks are those of the nearest pixel; the intrinsics follow.

        Args:
            height: Pixels wanted.
            width: Pixels wanted.
        """
        if self.size == (height, width):
            return self
        # fit_picture chooses nearest pixels of "depth": given their numbers, it tells which ones it takes.
        numbers = np.arange(1, self.rgb[0, ..., 0].size + 1, dtype=np.float32).reshape(self.size)
        fitted = [
            fit_picture(rgb, height, width, intrinsics, numbers)
            for rgb, intrinsics in zip(self.rgb, self.intrinsics, strict=True)
        ]
        assert fitted[0].depth is not None
        pixel_HW = fitted[0].depth.astype(np.int64) - 1
        taken = {name: getattr(self, name).reshape(len(self), -1)[:, pixel_HW] for name in ("depth", "valid", "moving")}
        rgb, intrinsics = np.stack([f.rgb for f in fitted]), np.stack([f.intrinsics for f in fitted])
        return replace(self, rgb=rgb, intrinsics=intrinsics, **taken)


def check_clip(clip: Clip) -> Clip:
    """Return the clip after checking it.

    Raises:
        ValueError: A field of another shape or type, depth that is valid but not a positive number, poses that are not
            rigid, intrinsics that are none, an impossible frame rate, or no name; it names the field.
    """
    if not isinstance(clip.name, str) or not 0 < len(clip.name) <= MAX_NAME or not clip.name.isprintable():
        raise ValueError(f"name must be 1 to {MAX_NAME} printable letters, got {clip.name!r}.")
    if not 0 < clip.fps <= MAX_FPS:
        raise ValueError(f"fps must be in (0, {MAX_FPS:.0f}], got {clip.fps}, in clip {clip.name}.")
    shape = np.shape(clip.rgb)
    if len(shape) != 4 or shape[-1] != 3 or min(shape) < 1:
        raise ValueError(f"rgb must have shape (T, H, W, 3), got {shape}, in clip {clip.name}.")
    check_size(*shape[:3])
    wanted = {
        "rgb": (np.uint8, shape),
        "depth": (np.float32, shape[:3]),
        "valid": (np.bool_, shape[:3]),
        "moving": (np.bool_, shape[:3]),
        "world_from_camera": (np.float64, (shape[0], 4, 4)),
        "intrinsics": (np.float64, (shape[0], 3, 3)),
    }
    for field, (dtype, wanted_shape) in wanted.items():
        value = getattr(clip, field)
        if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != wanted_shape:
            found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
            name = np.dtype(dtype).name
            raise ValueError(f"{field} must be {name} {wanted_shape}, got {found}, in clip {clip.name}.")
    surface = clip.depth[clip.valid]
    if not (np.isfinite(surface) & (surface > 0)).all():
        raise ValueError(
            f"depth must be positive and finite where valid, in clip {clip.name}; set valid to False there."
        )
    check_poses(f"world_from_camera of clip {clip.name}", clip.world_from_camera)
    check_intrinsics(f"intrinsics of clip {clip.name}", clip.intrinsics)
    centre_T2 = clip.intrinsics[:, :2, 2]
    if not ((centre_T2 > 0) & (centre_T2 < (shape[2], shape[1]))).all():
        raise ValueError(f"intrinsics must have their principal point inside the picture, in clip {clip.name}.")
    return clip


def check_size(num_frames: int, height: int, width: int) -> None:
    """Check that a clip is not too large to be held.

    Raises:
        ValueError: It is, or a number is not positive.
    """
    if min(num_frames, height, width) < 1:
        raise ValueError(f"a clip must have frames with pixels, got {num_frames} frames of {height} x {width}.")
    if height * width > MAX_FRAME_PIXELS or num_frames * height * width > MAX_CLIP_PIXELS:
        raise ValueError(
            f"a clip must have at most {MAX_FRAME_PIXELS:,} pixels a frame and {MAX_CLIP_PIXELS:,} in all, got "
            f"{num_frames} frames of {height} x {width}; cut it into shorter clips or make it smaller."
        )


def nearest_frames(num_frames: int, fps: float, own_fps: float, *, name: str = "clip") -> np.ndarray:
    """Return which frames of a video are nearest in time to those of a slower one that begins with it.

    No frame is ever shown twice, so none is made up; each is at most half a frame of the video (1 / (2 own_fps)
    seconds) off its time.

    Args:
        num_frames: Frames wanted.
        fps: Frames per second wanted.
        own_fps: Frames per second of the video.
        name: Of the video, for errors.

    Returns:
        (num_frames,) int64, increasing, the first one 0.

    Raises:
        ValueError: An argument is not positive.
        ClipError: The video is slower than `fps`.
    """
    if num_frames < 1 or not fps > 0 or not own_fps > 0:
        raise ValueError(f"num_frames, fps and own_fps must be positive, got {num_frames}, {fps} and {own_fps}.")
    # Half-way cases go up, always: rint would go to even numbers and show a frame twice.
    rows = np.floor(np.arange(num_frames) * (own_fps / fps) + 0.5).astype(np.int64)
    if (np.diff(rows) < 1).any():
        raise ClipError(
            f"{name} has {own_fps:g} frames per second, {num_frames} at {fps:g} were asked for.", "too slow"
        )
    return rows


def shows_sky(depth: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return where depth is that of the sky, bool in the shape of both; rounding in files is forgiven."""
    return ~valid & (depth >= 0.999 * FAR_DEPTH)


def check_length(needed: int, length: int, num_frames: int, fps: float, name: str) -> None:
    """Check that a video of `length` frames has the `needed` ones.

    Raises:
        ClipError: It is too short.
    """
    if needed > length:
        raise ClipError(
            f"{name} has {length} frames, {num_frames} at {fps:g} frames per second need {needed}.", "too short"
        )


def random_window(
    length: int, own_fps: float, num_frames: int, fps: float, generator: np.random.Generator, *, name: str = "clip"
) -> np.ndarray:
    """Return the frames of a random window of a video, every start being equally likely.

    Args:
        length: Frames of the video.
        own_fps: Its frames per second.
        num_frames: Frames wanted.
        fps: Frames per second wanted.
        generator: Draws one number.
        name: Of the video, for errors.

    Returns:
        (num_frames,) int64, increasing.

    Raises:
        ClipError: The video is slower than `fps`, or too short.
    """
    rows = nearest_frames(num_frames, fps, own_fps, name=name)
    check_length(int(rows[-1]) + 1, length, num_frames, fps, name)
    return rows + int(generator.integers(length - rows[-1]))


def clips_from_simulator(clips: SimClips, fps: float, names: list[str]) -> list[Clip]:
    """Return rendered clips one by one, with the simulator's exact masks.

    Args:
        clips: N clips, on any device.
        fps: That they were rendered at.
        names: N names.
    """
    fields = ("rgb", "depth", "valid", "moving", "world_from_camera", "intrinsics")
    arrays = {field: getattr(clips, field).cpu().numpy() for field in fields}
    arrays["intrinsics"] = arrays["intrinsics"].astype(np.float64)
    return [
        Clip(fps=fps, name=name, **{field: array[row] for field, array in arrays.items()})
        for row, name in enumerate(names)
    ]
