"""RGB-D videos on disk: how they lie there, and what is told about them. `pieces` reads them.

A video is a folder (the names in brackets do as well):

    NAME/rgb.mp4                    or another video file, or
    NAME/rgb/000000.png             numbered pictures (color/, images/, frames/; PNG, JPEG, WebP, BMP)
    NAME/depth/000000.png           grey with 8 or 16 bits, numbered as the pictures are, or
    NAME/depth/000000.npy           (H, W) numbers, or
    NAME/depth.npy                  (T, H, W) numbers, or
    NAME/depth.mkv                  a grey video: 8 bits, or 16 bits where the codec is lossless (FFV1)
    NAME/masks/000000.png           optional: not black where something moves by itself (mask/)
    NAME/video.json                 optional, every key of it too: see `About`

or a video file with its depth beside it: NAME.mp4, NAME_depth.* or NAME_depth/, NAME_masks/, NAME.json. A folder of
such videos, at any depth, is all of them.

Pictures and depth belong together by number. A depth.npy or a depth video has no numbers: it begins with the first
picture, and its frame t is that of the first number + t (of picture t where a depth.npy has as many as there are
pictures). Depth of another size is resized by nearest pixel where the aspect is the same within 1 %.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from aether_env.pictures import checked_intrinsics
from aether_env.videos import MAX_FPS, VIDEO_SUFFIXES

ABOUT = "video.json"
_RGB, _DEPTH, _MASKS = ("rgb", "color", "images", "frames"), ("depth",), ("masks", "mask")
_MAX_JSON_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class About:
    """What video.json may tell, and what holds for videos that do not tell."""

    fps: float | None = None
    """Frames per second; default what the video file says, and 12 for pictures."""
    depth_scale: float | None = None
    """Metres (or units) per stored count; default 1 in .npy and 0.001 in pictures and videos."""
    depth_offset: float = 0.0
    """Metres (or units) of the count 0."""
    depth_inverse: bool = False
    """Scale and offset give 1 / depth (disparity) instead of depth."""
    depth_invalid: tuple[float, ...] = ()
    """Stored counts that mean unknown; 0, NaN and infinite always do."""
    depth_sky: tuple[float, ...] = ()
    """Stored counts that mean the sky."""
    depth_max: float = math.inf
    """Metres (or units) from which on depth is not believed."""
    intrinsics: tuple[float, ...] | None = None
    """fx, fy, cx, cy of all frames in pixels (see conventions); default unknown. In the JSON also a 3x3 matrix."""

    def __post_init__(self) -> None:
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise ValueError(f"fps must be in (0, {MAX_FPS:g}], got {self.fps}.")
        if self.depth_scale is not None and not 0 < self.depth_scale < math.inf:
            raise ValueError(f"depth_scale must be a positive number, got {self.depth_scale}.")
        if not math.isfinite(self.depth_offset):
            raise ValueError(f"depth_offset must be a finite number, got {self.depth_offset}.")
        if not self.depth_max > 0:
            raise ValueError(f"depth_max must be positive, got {self.depth_max}.")
        if self.intrinsics is not None and len(self.intrinsics) != 4:
            raise ValueError(f"intrinsics must be fx, fy, cx, cy, got {self.intrinsics}.")

    def matrix(self, height: int, width: int) -> np.ndarray | None:
        """Return the intrinsics, (3, 3) float64, of pictures of this size; None where unknown.

        Raises:
            ValueError: No intrinsics of such a picture.
        """
        if self.intrinsics is None:
            return None
        fx, fy, cx, cy = self.intrinsics
        return checked_intrinsics([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], height, width)


@dataclass(frozen=True, kw_only=True)
class VideoInput:
    """Where a video lies."""

    name: str
    """Unique among the videos of a run."""
    rgb: Path
    """A video file or a folder of pictures."""
    depth: Path | None
    """A folder, .npy or video file; None: missing."""
    masks: Path | None
    about: Path | None


def find_videos(sources: Sequence[Path]) -> list[VideoInput]:
    """Return the videos of folders and files, by name.

    Args:
        sources: Folders that are a video or hold some, and video files.

    Raises:
        ValueError: There is no such folder or file or no video in it, or two videos have one name.
    """
    found: dict[str, VideoInput] = {}
    for source in sources:
        videos = list(_videos_of(Path(source)))
        if not videos:
            raise ValueError(
                f"sources must hold videos, {source} has none; a video is a folder with rgb and depth, or a file "
                "NAME.mp4 beside NAME_depth."
            )
        for video in videos:
            if (other := found.get(video.name)) is not None and other.rgb.resolve() != video.rgb.resolve():
                raise ValueError(
                    f"sources must hold videos of different names, {other.rgb} and {video.rgb} are both called "
                    f"{video.name}; annotate them into two folders, or rename one."
                )
            found[video.name] = video
    return [found[name] for name in sorted(found)]


def read_about(path: Path | None, default: About) -> About:
    """Return what a video.json tells, and `default` where it is silent.

    Raises:
        ValueError: The file is damaged, or tells something impossible.
    """
    if path is None:
        return default
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"it has more than {_MAX_JSON_BYTES:,} bytes")
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(told, dict):
        raise ValueError(f'{path} must hold an object such as {{"fps": 24}}, got {type(told).__name__}.')
    names = {f.name for f in fields(About)}
    values = {f.name: getattr(default, f.name) for f in fields(About)}
    for name, value in told.items():
        if name in names and value is not None:  # other keys are the user's own
            values[name] = _checked_value(path, name, value)
    try:
        return About(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _checked_value(path: Path, name: str, value: Any) -> Any:
    if name == "depth_inverse":
        if not isinstance(value, bool):
            raise ValueError(f"{path}: depth_inverse must be true or false, got {value!r}.")
        return value
    lists = name in ("depth_invalid", "depth_sky", "intrinsics")
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {name} must be {'numbers' if lists else 'a number'}, got {value!r}.") from error
    if name == "intrinsics" and numbers.shape == (3, 3):
        numbers = numbers[[0, 1, 0, 1], [0, 1, 2, 2]]
    if isinstance(value, bool | str) or numbers.ndim > lists or not lists and numbers.ndim:
        raise ValueError(f"{path}: {name} must be {'numbers' if lists else 'a number'}, got {value!r}.")
    return tuple(np.atleast_1d(numbers).tolist()) if lists else float(numbers)


def _videos_of(source: Path) -> Iterator[VideoInput]:
    if source.is_file():
        if source.suffix.lower() not in VIDEO_SUFFIXES:
            raise ValueError(f"sources must be folders or video files ({', '.join(VIDEO_SUFFIXES)}), got {source}.")
        yield _from_file(source, source.parent)
        return
    if not source.is_dir():
        raise ValueError(f"sources must be folders or video files, there is no {source}.")
    yield from _videos_below(source, source, set())


def _videos_below(folder: Path, root: Path, seen: set[Path]) -> Iterator[VideoInput]:
    if (real := folder.resolve()) in seen:  # a link that leads back up
        return
    seen.add(real)
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if (rgb := _part(entries, _RGB, VIDEO_SUFFIXES)) is not None:
        name = _name_of(folder, root)
        depth = _part(entries, _DEPTH, (".npy", *VIDEO_SUFFIXES))
        about = folder / ABOUT
        masks = _part(entries, _MASKS, ())
        yield VideoInput(name=name, rgb=rgb, depth=depth, masks=masks, about=about if about.is_file() else None)
        return
    for path in entries:
        if path.is_dir():
            yield from _videos_below(path, root, seen)
        elif path.suffix.lower() in VIDEO_SUFFIXES and not path.stem.endswith("_depth"):
            yield _from_file(path, root)


def _from_file(path: Path, root: Path) -> VideoInput:
    beside = sorted(other for other in path.parent.iterdir() if other != path)
    about = path.with_suffix(".json")
    return VideoInput(
        name=_name_of(path.with_suffix(""), root),
        rgb=path,
        depth=_part(beside, (f"{path.stem}_depth",), (".npy", *VIDEO_SUFFIXES)),
        masks=_part(beside, (f"{path.stem}_masks", f"{path.stem}_mask"), ()),
        about=about if about.is_file() else None,
    )


def _part(entries: list[Path], names: tuple[str, ...], suffixes: tuple[str, ...]) -> Path | None:
    """Return the folder, or else the file with one of the suffixes, that has one of the names."""
    for name in names:
        same = [path for path in entries if path.name == name and path.is_dir()]
        same += [path for path in entries if path.stem == name and path.suffix.lower() in suffixes and path.is_file()]
        if same:
            return same[0]
    return None


def _name_of(path: Path, root: Path) -> str:
    """Return a name that is safe in file names, by the way from the given folder to the video."""
    parts = path.relative_to(root).parts or (path.resolve().name,)
    return re.sub(r"[^0-9A-Za-z_.-]+", "_", "-".join(parts)).strip(".")[:120] or "video"
