"""The file formats of the test sets: headers are checked before memory is taken, and every error names its file."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from aether_env.camera import check_intrinsics, invert_pose, make_pose
from aether_env.pictures import MAX_PIXELS, MIN_SIDE, read_picture

ROTATION_TOLERANCE = 1e-2
"""How far R R^T may be from the identity: files are rounded, and the nearest rotation is taken."""

_SINTEL_TAG = struct.pack("<f", 202021.25)
_DPT_HEADER = 12
_CAM_BYTES = 4 + 9 * 8 + 12 * 8
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8"
_JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class DatasetError(ValueError):
    """A file or folder of a test set that cannot be used; the message names it and says why."""


class DepthFormat(NamedTuple):
    """How the depth files of a set are read."""

    size: Callable[[Path], tuple[int, int]]
    """Height and width by the header alone."""
    read: Callable[[Path], np.ndarray]
    """(H, W) float32 metres, as stored where unknown."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn errors of reading `path` into a DatasetError that names it."""
    try:
        yield
    except DatasetError:
        raise
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def files_in(folder: Path, suffix: str) -> tuple[Path, ...]:
    """Return the files of a folder with this suffix, by name; numbers by value.

    Raises:
        DatasetError: No such folder, or no such file in it.
    """
    with naming(folder):
        paths = [path for path in folder.iterdir() if path.suffix == suffix]
    if not paths:
        raise DatasetError(f"{folder}: has no *{suffix} file.")
    return tuple(sorted(paths, key=lambda path: (int(path.stem) if path.stem.isdecimal() else 0, path.stem)))


def same_names(frames: tuple[Path, ...], folder: Path, suffix: str) -> tuple[Path, ...]:
    """Return the files of `folder` that are called like the frames, in their order.

    Raises:
        DatasetError: A frame has no such file, or a file no frame.
    """
    paths = {path.stem: path for path in files_in(folder, suffix)}
    for frame in frames:
        if frame.stem not in paths:
            raise DatasetError(f"{frame}: has no truth, {folder / (frame.stem + suffix)} is missing.")
    if extra := sorted(paths.keys() - {frame.stem for frame in frames}):
        raise DatasetError(f"{paths[extra[0]]}: has no frame in {frames[0].parent}.")
    return tuple(paths[frame.stem] for frame in frames)


def picture_size(path: Path) -> tuple[int, int]:
    """Return height and width of a PNG or JPEG by its header.

    Raises:
        DatasetError: Cannot be read, is neither, or is too small or too large.
    """
    with naming(path), path.open("rb") as file:
        if file.read(2) == _JPEG_SIGNATURE:
            return _check_size(path, *_jpeg_size(path, file))
    return _png_header(path)[:2]


def read_rgb(path: Path) -> np.ndarray:
    """Return a picture, (H, W, 3) uint8.

    Raises:
        DatasetError: Cannot be read or is damaged.
    """
    try:
        return read_picture(path, name="frame")
    except ValueError as error:
        raise DatasetError(str(error)) from error


def read_camera(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return world_from_camera (4, 4) and intrinsics (3, 3) of a Sintel .cam file.

    Raises:
        DatasetError: Cannot be read, another tag or length, not a camera.
    """
    data = _read_exactly(path, _CAM_BYTES)
    _check_tag(path, data)
    numbers = np.frombuffer(data, "<f8", offset=4)
    camera_from_world = rigid(path, np.vstack([numbers[9:].reshape(3, 4), [0, 0, 0, 1]])[None])[0]
    return invert_pose(camera_from_world), to_our_pixels(path, numbers[:9].reshape(3, 3))


def read_numbers(path: Path, columns: int) -> np.ndarray:
    """Return the table (N, columns) float64 of a text file; # begins a comment, commas count as spaces.

    Raises:
        DatasetError: Cannot be read, is empty, or a row has another count or a word that is not a number.
    """
    rows = []
    for number, words in _rows(path):
        with naming(path):
            if len(words) != columns:
                raise ValueError(f"line {number} has {len(words)} numbers instead of {columns}.")
            rows.append([float(word) for word in words])
    return np.array(rows)


def read_stamped_names(path: Path) -> tuple[np.ndarray, list[str]]:
    """Return timestamps (N,) in seconds, increasing, and file names of a list such as rgb.txt.

    Raises:
        DatasetError: Cannot be read, is empty, or a row is not a timestamp and a name.
    """
    stamps, names = [], []
    for number, words in _rows(path):
        with naming(path):
            if len(words) != 2:
                raise ValueError(f"line {number} has {len(words)} words instead of a timestamp and a file name.")
            stamps.append(float(words[0]))
            names.append(words[1])
    order = np.argsort(_check_finite(path, np.array(stamps)), kind="stable")
    return np.array(stamps)[order], [names[i] for i in order]


def read_stamped_poses(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return timestamps (N,) in seconds and world_from_camera (N, 4, 4) of a TUM trajectory.

    Raises:
        DatasetError: Cannot be read, is empty, not 8 finite numbers a row, or a quaternion not of length 1.
    """
    table = _check_finite(path, read_numbers(path, 8))
    length = np.linalg.norm(table[:, 4:], axis=1)
    if (far := np.abs(length - 1)).max() > ROTATION_TOLERANCE:
        raise DatasetError(f"{path}: pose {far.argmax() + 1} has a quaternion of length {length[far.argmax()]:.3g}.")
    return table[:, 0], make_pose(Rotation.from_quat(table[:, 4:]).as_matrix(), table[:, 1:4])


def stamps_of(paths: tuple[Path, ...]) -> np.ndarray:
    """Return the timestamps (N,) in seconds that the files are named by.

    Raises:
        DatasetError: A name is not a number.
    """
    stamps = []
    for path in paths:
        with naming(path):
            stamps.append(float(path.stem))
    return np.array(stamps)


def associate(first: np.ndarray, second: np.ndarray, tolerance: float) -> np.ndarray:
    """Return the pairs of timestamps that are less than `tolerance` apart, nearest first taken, each used once.

    Args:
        first: (N,) seconds.
        second: (M,) seconds.
        tolerance: Seconds.

    Returns:
        (P, 2) indices, by the time of `first`.
    """
    order = np.argsort(second, kind="stable")
    begin, end = (np.searchsorted(second[order], first + sign * tolerance) for sign in (-1, 1))
    near = [(abs(first[i] - second[j]), i, j) for i in range(len(first)) for j in order[begin[i] : end[i]]]
    partner: dict[int, int] = {}
    taken: set[int] = set()
    for apart, i, j in sorted(near):
        if apart < tolerance and i not in partner and j not in taken:
            partner[i] = j
            taken.add(j)
    return np.array(sorted(partner.items(), key=lambda pair: first[pair[0]]), int).reshape(-1, 2)


def rigid(path: Path, poses: np.ndarray) -> np.ndarray:
    """Return poses (N, 4, 4) with the rotations nearest to those stored.

    Raises:
        DatasetError: Not finite, another bottom row, or a rotation that is scaled, sheared or mirrored.
    """
    _check_finite(path, poses)
    rotation = poses[:, :3, :3]
    error = np.abs(rotation @ np.swapaxes(rotation, 1, 2) - np.eye(3)).max((1, 2))
    bottom = np.abs(poses[:, 3] - [0, 0, 0, 1]).max(1)
    mirrored = np.linalg.det(rotation) < 0
    if len(wrong := np.flatnonzero((error > ROTATION_TOLERANCE) | (bottom > ROTATION_TOLERANCE) | mirrored)):
        i = wrong[0]
        raise DatasetError(
            f"{path}: pose {i + 1} is not rigid: R R^T is off by {error[i]:.2g}, the row 0 0 0 1 by {bottom[i]:.2g}"
            f"{', and R is mirrored' if mirrored[i] else ''}."
        )
    return make_pose(Rotation.from_matrix(rotation).as_matrix(), poses[:, :3, 3])


def to_our_pixels(path: Path, intrinsics: np.ndarray) -> np.ndarray:
    """Return intrinsics (3, 3) whose pixel centres are at integer + 0.5 from those with centres at integers.

    Raises:
        DatasetError: Not intrinsics.
    """
    with naming(path):
        moved = check_intrinsics("intrinsics", intrinsics).copy()
    moved[:2, 2] += 0.5
    return moved


def depth_png(per_metre: float) -> DepthFormat:
    """Return the format of 16-bit grey PNG files that store metres times `per_metre`, 0 where unknown."""
    return DepthFormat(_depth_png_size, partial(_read_depth_png, per_metre=per_metre))


def _depth_png_size(path: Path) -> tuple[int, int]:
    height, width, bits, colour = _png_header(path)
    if (bits, colour) != (16, 0):
        raise DatasetError(f"{path}: depth must be a 16-bit grey PNG, this has {bits} bits and colour type {colour}.")
    return height, width


def _read_depth_png(path: Path, per_metre: float) -> np.ndarray:
    size = _depth_png_size(path)
    with naming(path):
        stored = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if stored is None or stored.dtype != np.uint16 or stored.shape != size:
        raise DatasetError(f"{path}: the PNG is damaged.")
    return stored.astype(np.float32) / np.float32(per_metre)


def _dpt_size(path: Path) -> tuple[int, int]:
    with naming(path), path.open("rb") as file:
        header, length = file.read(_DPT_HEADER), path.stat().st_size
    if len(header) < _DPT_HEADER:
        raise DatasetError(f"{path}: ends after {len(header)} bytes, inside the header.")
    _check_tag(path, header)
    width, height = struct.unpack("<ii", header[4:])
    _check_size(path, height, width)
    if length != _DPT_HEADER + 4 * width * height:
        wanted = _DPT_HEADER + 4 * width * height
        raise DatasetError(f"{path}: has {length} bytes, {width} x {height} pixels need {wanted}.")
    return height, width


def _read_dpt(path: Path) -> np.ndarray:
    height, width = _dpt_size(path)
    data = _read_exactly(path, _DPT_HEADER + 4 * width * height)
    return np.frombuffer(data, "<f4", offset=_DPT_HEADER).reshape(height, width).astype(np.float32)


DPT = DepthFormat(_dpt_size, _read_dpt)
"""Sintel's .dpt: the tag 202021.25, width, height, then float32 metres."""


def _read_exactly(path: Path, length: int) -> bytes:
    with naming(path):
        if (found := path.stat().st_size) != length:
            raise ValueError(f"has {found} bytes instead of {length}.")
        return path.read_bytes()


def _check_tag(path: Path, data: bytes) -> None:
    if data[:4] != _SINTEL_TAG:
        raise DatasetError(f"{path}: does not begin with Sintel's tag 202021.25.")


def _png_header(path: Path) -> tuple[int, int, int, int]:
    """Return height, width, bits a channel and colour type."""
    with naming(path), path.open("rb") as file:
        header = file.read(26)
    if len(header) < 26 or header[:8] != _PNG_SIGNATURE or header[12:16] != b"IHDR":
        raise DatasetError(f"{path}: is no PNG or JPEG file, or ends inside its header.")
    width, height, bits, colour = struct.unpack(">IIBB", header[16:])
    return *_check_size(path, height, width), bits, colour


def _jpeg_size(path: Path, file: BinaryIO) -> tuple[int, int]:
    """Return height and width from the first frame header after the signature."""
    while len(marker := file.read(4)) == 4 and marker[0] == 0xFF:
        length = int.from_bytes(marker[2:], "big")
        if marker[1] in _JPEG_FRAMES and len(frame := file.read(5)) == 5:
            height, width = struct.unpack(">xHH", frame)
            return height, width
        file.seek(max(length, 2) - 2, 1)
    raise DatasetError(f"{path}: is a JPEG that ends inside its header.")


def _check_size(path: Path, height: int, width: int) -> tuple[int, int]:
    if min(height, width) < MIN_SIDE or height * width > MAX_PIXELS:
        allowed = f"at least {MIN_SIDE} a side and at most {MAX_PIXELS:,} pixels"
        raise DatasetError(f"{path}: its header says {width} x {height} (w x h), but {allowed} are read.")
    return height, width


def _check_finite(path: Path, numbers: np.ndarray) -> np.ndarray:
    if not np.isfinite(numbers).all():
        raise DatasetError(f"{path}: {int((~np.isfinite(numbers)).sum())} numbers are NaN or infinite.")
    return numbers


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return line numbers and words of a text file."""
    with naming(path):
        lines = path.read_text(encoding="utf-8").replace(",", " ").splitlines()
    rows = [(i, words) for i, line in enumerate(lines, 1) if (words := line.partition("#")[0].split())]
    if not rows:
        raise DatasetError(f"{path}: is empty.")
    return rows
