"""Videos piece by piece: what can be read becomes `Footage`, every other frame gets a reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aether_env.conventions import FAR_DEPTH
from aether_env.pictures import read_picture
from aether_env.videos import DEFAULT_FPS, PICTURE_SUFFIXES, open_video
from training.annotate.footage import Footage
from training.annotate.frame_files import GreyVideo, map_array, read_grey, read_mask, resize_nearest
from training.annotate.inputs import About, VideoInput, read_about
from training.clips import MAX_CLIP_PIXELS, check_size

_MOST_MISSING = 10_000
"""Of a gap between two numbers, frames that are told one by one."""
_ASPECT_TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """How videos are read."""

    piece_frames: int = 240
    """Frames that are held and annotated together; a longer video is cut."""
    least_frames: int = 2
    """A piece of fewer is too short for cameras."""
    about: About = field(default_factory=About)
    """Of videos whose video.json does not tell."""

    def __post_init__(self) -> None:
        if self.piece_frames < self.least_frames or self.least_frames < 1:
            raise ValueError(
                f"piece_frames must be at least least_frames and that at least 1, got {self.piece_frames} and "
                f"{self.least_frames}."
            )


class Piece(NamedTuple):
    """Some frames of a video."""

    footage: Footage | None
    """Frames that could be read; None where there are too few."""
    dropped: dict[int, str]
    """Number of each other frame up to here -> why it is not there."""


class _Row(NamedTuple):
    """A frame."""

    number: int
    rgb: np.ndarray
    depth: np.ndarray
    valid: np.ndarray
    moving: np.ndarray | None


def read_pieces(video: VideoInput, settings: InputSettings) -> Iterator[Piece]:
    """Yield a video piece by piece; one piece is in memory.

    Args:
        video: Where it lies.
        settings: How it is read.

    Raises:
        ValueError: The video as a whole cannot be used: no depth, none of its frames readable, depth of another aspect,
            or a video.json that makes no sense.
    """
    if video.depth is None:
        raise ValueError(f"depth of {video.rgb} is missing; put it beside as depth/, depth.npy or a depth video.")
    reader = _Reader(video, read_about(video.about, settings.about))
    try:
        yield from reader.pieces(settings)
    finally:
        reader.close()


class _Reader:
    """Frames of one video in their order."""

    def __init__(self, video: VideoInput, about: About):
        assert video.depth is not None
        self.video, self.about = video, about
        self.size: tuple[int, int] | None = None
        self.fps = about.fps or DEFAULT_FPS
        self._numbers: list[int] | None = None  # of pictures; a video file counts while it is read
        if video.rgb.is_dir():
            self._pictures = numbered(video.rgb, PICTURE_SUFFIXES)
            self._numbers = sorted(self._pictures)
        else:
            opened = open_video(video.rgb, name="rgb")
            self.fps = about.fps or opened.source_fps
            self._frames = iter(opened)
        self._masks = {} if video.masks is None else numbered(video.masks, (".png",))
        self._depth_video: GreyVideo | None = None
        self._stored_depth = self._open_depth(video.depth)

    def close(self) -> None:
        """Close files that are open."""
        if self._depth_video is not None:
            self._depth_video.close()

    def pieces(self, settings: InputSettings) -> Iterator[Piece]:
        """Yield the pieces; frames that are missing or cannot be read are told in the piece that comes next."""
        rows: list[_Row] = []
        dropped: dict[int, str] = {}
        readable = 0
        for number, rgb in self._colours():
            row = rgb if isinstance(rgb, str) else self._row(number, rgb)
            if isinstance(row, str):
                dropped[number] = row
                continue
            readable += 1
            rows.append(row)
            assert self.size is not None
            if len(rows) == min(settings.piece_frames, MAX_CLIP_PIXELS // (self.size[0] * self.size[1])):
                yield Piece(self._footage(rows), dropped)
                rows, dropped = [], {}
        if not readable:
            reasons = sorted(set(dropped.values())) or ["no frames"]
            raise ValueError(f"{self.video.name} has no frame that can be used: {', '.join(reasons)}.")
        if len(rows) >= settings.least_frames:
            yield Piece(self._footage(rows), dropped)
        elif rows or dropped:
            yield Piece(None, dropped | {row.number: "too short" for row in rows})

    def _colours(self) -> Iterator[tuple[int, np.ndarray | str]]:
        """Yield number and picture of every frame, or why there is none; gaps between numbers are frames too."""
        if self._numbers is None:
            count = 0
            try:
                for frame in self._frames:
                    yield count, frame.rgb
                    count += 1
            except ValueError:
                yield count, "unreadable"  # the rest of the file is damaged
            return
        before = self._numbers[0] - 1
        for number in self._numbers:
            for missing in range(before + 1, min(number, before + 1 + _MOST_MISSING)):
                yield missing, "missing"
            try:
                yield number, read_picture(self._pictures[number], name="rgb")
            except ValueError:
                yield number, "unreadable"
            before = number

    def _row(self, number: int, rgb: np.ndarray) -> _Row | str:
        """Return a frame, or why there is none."""
        if self.size is None:
            check_size(1, *rgb.shape[:2])
            self.size = rgb.shape[:2]
            self.about.matrix(*self.size)  # intrinsics of another size are refused before anything is done
        if rgb.shape[:2] != self.size:
            return "another size"
        try:
            stored = self._stored_depth(number)
        except LookupError:
            return "no depth"
        except ValueError:
            return "unreadable depth"
        check_aspect(stored.shape, self.size, self.video.name)
        depth, valid = decode_depth(resize_nearest(np.asarray(stored), *self.size), self.about, self._scale)
        if not valid.any():
            return "no depth"
        moving = None
        if self.video.masks is not None:
            if number not in self._masks:
                return "no mask"
            try:
                moving = read_mask(self._masks[number])
            except ValueError:
                return "unreadable mask"
            check_aspect(moving.shape, self.size, f"the mask of {self.video.name}")
            moving = resize_nearest(moving, *self.size)
        return _Row(number, rgb, depth, valid, moving)

    def _open_depth(self, path: Path) -> Callable[[int], np.ndarray]:
        """Return what gives depth as it is stored by a frame's number; it raises LookupError where there is none."""
        self._scale = 1.0
        if path.is_dir():
            files = numbered(path, (".npy", ".png"))
            kinds = {file.suffix.lower() for file in files.values()}
            if len(kinds) > 1:
                raise ValueError(f"depth must be either .npy or .png, {path} has both.")
            self._scale = 1.0 if kinds == {".npy"} else 1e-3

            def of_number(number: int) -> np.ndarray:
                file = files[number]
                return map_array(file, 2) if file.suffix.lower() == ".npy" else read_grey(file)

            return of_number
        first = 0 if self._numbers is None else self._numbers[0]
        if path.suffix.lower() == ".npy":
            array = map_array(path, 3)
            if self._numbers is not None and len(array) == len(self._numbers):
                order = {number: row for row, number in enumerate(self._numbers)}
                return lambda number: array[order[number]]
            return lambda number: array[number - first]
        self._scale, self._depth_video = 1e-3, (video := GreyVideo(path))
        return lambda number: video.frame(number - first)

    def _footage(self, rows: list[_Row]) -> Footage:
        assert self.size is not None
        moving = [row.moving for row in rows if row.moving is not None]
        return Footage(
            rgb=np.stack([row.rgb for row in rows]),
            depth=np.stack([row.depth for row in rows]),
            valid=np.stack([row.valid for row in rows]),
            moving=np.stack(moving) if moving else None,
            intrinsics=self.about.matrix(*self.size),
            frame=np.array([row.number for row in rows], np.int64),
            fps=self.fps,
            name=self.video.name,
        )


def check_aspect(shape: tuple[int, ...], size: tuple[int, int], name: str) -> None:
    """Check that a frame shows the same field as the colours do.

    Raises:
        ValueError: The aspects differ by more than 1 %.
    """
    if abs(shape[0] * size[1] / (shape[1] * size[0]) - 1) > _ASPECT_TOLERANCE:
        raise ValueError(
            f"depth of {name} must have the aspect of its pictures, got {shape[1]} x {shape[0]} beside {size[1]} x "
            f"{size[0]} (w x h); crop it first."
        )


def decode_depth(stored: np.ndarray, about: About, default_scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return depth (H, W) float32, 0 where unknown and `FAR_DEPTH` in the sky, and where it is valid, bool.

    Args:
        stored: (H, W) counts.
        about: What they mean.
        default_scale: Of counts whose scale is not told.
    """
    counts = np.asarray(stored, np.float64)
    sky = np.isin(counts, about.depth_sky)
    known = np.isfinite(counts) & (counts != 0) & ~sky & ~np.isin(counts, about.depth_invalid)
    scale = default_scale if about.depth_scale is None else about.depth_scale
    depth = np.where(known, counts, 1.0) * scale + about.depth_offset
    if about.depth_inverse:
        with np.errstate(divide="ignore"):
            depth = 1.0 / depth
    with np.errstate(over="ignore"):
        depth = depth.astype(np.float32)
    valid = known & np.isfinite(depth) & (depth > 0) & (depth < about.depth_max)
    return np.where(valid, depth, np.where(sky, np.float32(FAR_DEPTH), np.float32(0))), valid


def numbered(folder: Path, suffixes: Iterable[str]) -> dict[int, Path]:
    """Return the files of a folder by the last number in their names.

    Raises:
        ValueError: No such file, two of one number, or a number that none can be.
    """
    suffixes = tuple(suffixes)
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        digits = re.findall(r"\d+", path.stem)
        if path.suffix.lower() not in suffixes or path.name.startswith(".") or not digits:
            continue
        number = int(digits[-1][:19])
        if number >= 2**62:
            raise ValueError(f"{folder} must have frame numbers below 2**62, got {path.name}.")
        if number in found:
            raise ValueError(f"{folder} must have one file a number, {found[number].name} and {path.name} clash.")
        found[number] = path
    if not found:
        raise ValueError(f"{folder} must have numbered files ({', '.join(suffixes)}), it has none.")
    return found
