"""Frames turned into what people look at: coloured depth, captions, contact sheets, paths from above, PNG and MP4.

Pictures are uint8 RGB, (..., H, W, 3). Files appear under their names only when they are complete.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import imageio_ffmpeg
import numpy as np
from PIL import Image

from aether_env.camera import check_poses

WATCHABLE_HEIGHT = 240
"""Rows to which small frames are enlarged, at least, before they become a video."""

_BACKGROUND = 24
_PATH_COLOURS = ((64, 160, 255), (255, 150, 60), (120, 220, 120), (230, 110, 200))
"""Blue, orange, green, pink."""


def colour_depth(depth: np.ndarray, near: float | None = None, far: float | None = None) -> np.ndarray:
    """Return depth as colours: red at `near` and nearer, over yellow and green to dark blue at `far` and farther.

    The colour follows the square root of inverse depth, as the model's own disparity does. Pass the same `near` for
    all frames of a video, else colours flicker.

    Args:
        depth: (..., H, W) z-depth; black where it is not finite or not positive.
        near: Depth of the first colour; None takes a 2 % quantile of the known depth.
        far: Depth of the last colour; None is infinity.

    Returns:
        (..., H, W, 3) uint8.

    Raises:
        ValueError: Depth without rows and columns, or not 0 < near < far.
    """
    depth = np.asarray(depth, np.float64)
    if depth.ndim < 2:
        raise ValueError(f"depth must have shape (..., H, W), got {depth.shape}; take [..., 0] of (H, W, 1).")
    known = np.isfinite(depth) & (depth > 0)
    far = math.inf if far is None else far
    if near is None:
        near = min(float(np.quantile(depth[known], 0.02)), 0.5 * far) if known.any() else 0.5 * min(far, 1.0)
    if not 0 < near < far or not math.isfinite(near):
        raise ValueError(f"near and far must be 0 < near < far, got {near} and {far}.")
    inverse = 1.0 / np.where(known, depth, near)
    level = np.sqrt(np.clip((inverse - 1 / far) / (1 / near - 1 / far), 0.0, 1.0))
    bytes_1N = np.rint(255 * level).astype(np.uint8).reshape(1, -1)
    colours = cv2.applyColorMap(bytes_1N, cv2.COLORMAP_TURBO)[..., ::-1].reshape(*depth.shape, 3)
    return np.where(known[..., None], colours, 0).astype(np.uint8)


def side_by_side(*pictures: np.ndarray, gap: int = 0) -> np.ndarray:
    """Return pictures, or videos of them, next to each other.

    Args:
        pictures: Each (..., H, W, 3) uint8; widths may differ.
        gap: Dark columns between them.

    Raises:
        ValueError: No pictures, or pictures of different heights or lengths.
    """
    return _joined(pictures, gap, axis=-2)


def one_above_other(*pictures: np.ndarray, gap: int = 0) -> np.ndarray:
    """Return pictures, or videos of them, below each other: `side_by_side` turned; heights may differ."""
    return _joined(pictures, gap, axis=-3)


def enlarge(picture: np.ndarray, factor: int) -> np.ndarray:
    """Return (..., H * factor, W * factor, 3): every pixel becomes a square.

    Raises:
        ValueError: Not a picture, or a factor below 1.
    """
    picture = _check("picture", picture)
    if factor < 1:
        raise ValueError(f"factor must be a whole number >= 1, got {factor}.")
    return picture.repeat(int(factor), axis=-3).repeat(int(factor), axis=-2)


def with_caption(picture: np.ndarray, text: str, *, size: int = 14) -> np.ndarray:
    """Return a picture, or a video, with a line of text on a dark bar above it.

    Args:
        picture: (..., H, W, 3) uint8.
        text: One line of ASCII; drawn narrower where it does not fit.
        size: Rows of the bar.
    """
    picture = _check("picture", picture)
    bar = np.full((size, picture.shape[-2], 3), _BACKGROUND, np.uint8)
    scale = size / 34
    (text_width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    scale *= min(1.0, (picture.shape[-2] - 4) / max(text_width, 1))
    cv2.putText(bar, text, (2, round(0.72 * size)), cv2.FONT_HERSHEY_SIMPLEX, scale, (235,) * 3, 1, cv2.LINE_AA)
    return np.concatenate([np.broadcast_to(bar, (*picture.shape[:-3], *bar.shape)), picture], axis=-3)


def contact_sheet(
    frames: Sequence[np.ndarray] | np.ndarray, columns: int, captions: Sequence[str] | None = None, *, gap: int = 2
) -> np.ndarray:
    """Return frames as a table, row by row.

    Args:
        frames: Pictures (H, W, 3) of one size.
        columns: Pictures in a row; a last row that is not full is filled up with dark.
        captions: One line for each frame.
        gap: Dark pixels between frames.

    Raises:
        ValueError: No frames, sizes that differ, no columns, or captions that are not one for each frame.
    """
    if columns < 1:
        raise ValueError(f"columns must be a whole number >= 1, got {columns}.")
    if captions is not None and len(captions) != len(frames):
        raise ValueError(f"captions must be one for each of the {len(frames)} frames, got {len(captions)}.")
    cells = [_check(f"frames[{i}]", frame) for i, frame in enumerate(frames)]
    if len({cell.shape for cell in cells}) != 1 or cells[0].ndim != 3:
        raise ValueError(f"frames must be pictures (H, W, 3) of one size, got {sorted({c.shape for c in cells})}.")
    if captions is not None:
        cells = [with_caption(cell, caption) for cell, caption in zip(cells, captions, strict=True)]
    cells += [np.full_like(cells[0], _BACKGROUND)] * (-len(cells) % columns)
    rows = [side_by_side(*cells[i : i + columns], gap=gap) for i in range(0, len(cells), columns)]
    return one_above_other(*rows, gap=gap)


def paths_from_above(paths: dict[str, np.ndarray], height: int, width: int) -> np.ndarray:
    """Return a drawing of camera paths seen from above: +z of the world is up, +x is right.

    Args:
        paths: Name -> (T, 4, 4) world_from_camera, all of one world. A dot is the start, a line the view at the end.
        height: Pixels of the drawing.
        width: Pixels.

    Raises:
        ValueError: No path, or poses that are not rigid.
    """
    if not paths:
        raise ValueError("paths holds no path; give at least one.")
    poses = {name: check_poses(f"paths[{name!r}]", path).reshape(-1, 4, 4) for name, path in paths.items()}
    ground = np.concatenate([pose[:, [0, 2], 3] for pose in poses.values()])
    middle = (ground.min(axis=0) + ground.max(axis=0)) / 2
    extent = max(float(np.ptp(ground, axis=0).max()), 1e-6)
    pixels_per_unit = 0.7 * min(height, width) / extent

    def pixel(point_2: np.ndarray) -> tuple[int, int]:
        x, z = (point_2 - middle) * pixels_per_unit
        return round(width / 2 + x), round(height / 2 - z)

    drawing = np.full((height, width, 3), _BACKGROUND, np.uint8)
    for row, (name, pose_T44) in enumerate(poses.items()):
        colour = _PATH_COLOURS[row % len(_PATH_COLOURS)]
        points = np.array([pixel(centre) for centre in pose_T44[:, [0, 2], 3]], np.int32)
        cv2.polylines(drawing, [points], False, colour, 2, cv2.LINE_AA)
        cv2.circle(drawing, points[0].tolist(), 4, colour, -1, cv2.LINE_AA)
        view_end = pose_T44[-1, [0, 2], 3] + 0.15 * extent * pose_T44[-1, [0, 2], 2]
        cv2.arrowedLine(drawing, points[-1].tolist(), pixel(view_end), colour, 1, cv2.LINE_AA, tipLength=0.3)
        cv2.putText(drawing, name, (6, 16 + 16 * row), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
    return drawing


def write_png(path: str | os.PathLike[str], picture: np.ndarray) -> Path:
    """Write one picture (H, W, 3) as PNG; missing folders are made.

    Raises:
        ValueError: The name does not end in .png, or it is not one uint8 RGB picture.
    """
    target = _checked_path(path, ".png")
    picture = _check("picture", picture)
    if picture.ndim != 3:
        raise ValueError(f"picture must be one picture (H, W, 3), got {picture.shape}; contact_sheet joins several.")
    partial = _partial(target)
    try:
        Image.fromarray(picture).save(partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def write_video(
    path: str | os.PathLike[str], frames: Iterable[np.ndarray], fps: float, *, scale: int | None = None
) -> Path:
    """Write frames as an MP4 file that every player shows (H.264, yuv420p, even sides); missing folders are made.

    Args:
        path: Ends in .mp4.
        frames: Pictures (H, W, 3) uint8 of one size, taken one at a time: a generator may bring more than fits memory.
        fps: Frames per second.
        scale: Whole factor by which frames are enlarged; None takes the least that gives `WATCHABLE_HEIGHT` rows.

    Returns:
        The path written.

    Raises:
        ValueError: Another ending, no frames, frames that are not pictures of one size, or fps not positive.
    """
    target = _checked_path(path, ".mp4")
    if not 0 < fps < math.inf:
        raise ValueError(f"fps must be positive and finite, got {fps}.")
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise ValueError("frames holds no frame; nothing to write.")
    first = _check("frames[0]", first)
    if first.ndim != 3:
        raise ValueError(f"frames must be pictures (H, W, 3), got {first.shape} for the first.")
    factor = max(1, math.ceil(WATCHABLE_HEIGHT / first.shape[0])) if scale is None else scale
    partial = _partial(target)
    try:
        _encode(partial, _video_frames(first, iterator, factor), fps)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _encode(path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    """Send frames of one size to ffmpeg."""
    first = next(frames)
    writer: Any = imageio_ffmpeg.write_frames(
        str(path), first.shape[1::-1], fps=fps, codec="libx264", pix_fmt_out="yuv420p", quality=None,
        macro_block_size=2, ffmpeg_log_level="error", output_params=["-crf", "16", "-movflags", "+faststart"],
    )  # fmt: skip
    try:
        writer.send(None)
        writer.send(first)
        for frame in frames:
            writer.send(frame)
    finally:
        writer.close()


def _video_frames(first: np.ndarray, rest: Iterator[np.ndarray], factor: int) -> Iterator[np.ndarray]:
    """Yield the frames enlarged, with even sides."""
    index, frame = 0, first
    while True:
        frame = _check(f"frames[{index}]", frame)
        if frame.shape != first.shape:
            raise ValueError(f"frames must have one size, got {first.shape} and {frame.shape} (frame {index}).")
        large = enlarge(frame, factor)
        odd = [(0, large.shape[0] % 2), (0, large.shape[1] % 2), (0, 0)]
        yield np.ascontiguousarray(np.pad(large, odd, mode="edge"))
        following = next(rest, None)
        if following is None:
            return
        index, frame = index + 1, following


def _joined(pictures: Sequence[np.ndarray], gap: int, axis: int) -> np.ndarray:
    if not pictures:
        raise ValueError("pictures is empty; give at least one.")
    parts = [_check(f"pictures[{i}]", picture) for i, picture in enumerate(pictures)]
    fixed = {tuple(np.delete(part.shape, part.ndim + axis)) for part in parts}
    if len(fixed) != 1:
        raise ValueError(f"pictures must agree in all but the side along which they are joined, got "
                         f"{[part.shape for part in parts]}.")  # fmt: skip
    if gap:
        shape = list(parts[0].shape)
        shape[axis] = gap
        line = np.full(shape, _BACKGROUND, np.uint8)
        parts = [piece for part in parts for piece in (part, line)][:-1]
    return np.concatenate(parts, axis=axis)


def _check(name: str, picture: np.ndarray) -> np.ndarray:
    picture = np.asarray(picture)
    if picture.ndim < 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise ValueError(f"{name} must be uint8 RGB (..., H, W, 3), got {picture.dtype} {picture.shape}.")
    return picture


def _checked_path(path: str | os.PathLike[str], suffix: str) -> Path:
    target = Path(path)
    if target.suffix.lower() != suffix:
        raise ValueError(f"path must end in {suffix}, got {target.name!r}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _partial(path: Path) -> Path:
    """Return a name beside `path` that keeps its ending, by which encoders know the format."""
    return path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
