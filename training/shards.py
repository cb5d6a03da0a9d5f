"""Clips on disk: plain tar files of the WebDataset kind, nothing in them pickled or compressed as a whole.

A clip is four members of one key, in this order:

    KEY.depth.pngs     T grey 16-bit PNG pictures one after another. 0: unknown, 65535: sky, else the logarithm of
                       the depth between the clip's nearest and farthest. Depth is off by at most the share
                       ln(far / near) / 131064 of itself: 6e-5 between 0.05 and 100 metres.
    KEY.json           name, fps, sizes, depth range, and the length and CRC-32 of every picture and of the arrays
    KEY.rgb.pngs       T colour pictures one after another: PNG (lossless), or
    KEY.rgb.mjpeg      JPEG, which players show as a video
    KEY.safetensors    moving (T, ceil(H W / 8)) uint8, eight pixels a byte; world_from_camera and intrinsics, float64

Single pictures are read without the others, so a window of a long clip costs no more than a short clip. Sizes are
compared with the JSON and with the limits in `clips` before memory is taken, and every byte that is used is checked.
A shard is written under a name that no reader looks for and renamed when it is whole.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from training.clip_coding import ENDINGS, Codec, Member, ShardError, decode_clip, encode_clip, read_about
from training.clips import Clip, ClipError

_BLOCK = 512
_MEMBERS = 4
_NAME = re.compile(rf"([0-9A-Za-z_-]{{1,80}})\.({'|'.join(map(re.escape, ENDINGS))})")
_ROWS = np.dtype([("offset", "<i8"), ("frames", "<i4"), ("height", "<i4"), ("width", "<i4"), ("fps", "<f8")])


@dataclass(frozen=True, eq=False)
class Shard:
    """Where the clips of a tar file are."""

    path: Path
    rows: np.ndarray
    """(N,) of offset (bytes), frames, height, width and fps: one row per clip whose headers and JSON are whole."""
    problems: tuple[str, ...]
    """What could not be read and why; each begins with the path."""

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.rows)


class Validation(NamedTuple):
    """What a validator found."""

    shards: int
    clips: int
    """Clips that are whole."""
    problems: list[str]
    """Every bad shard and clip, and why."""


def shard_path(folder: Path, number: int) -> Path:
    """Return where the shard of this number lies."""
    return folder / f"clips-{number:06d}.tar"


def write_shards(
    folder: Path, clips: Iterable[Clip], *, clips_per_shard: int = 64, rgb: Codec = "png", quality: int = 95
) -> list[Path]:
    """Write clips into shards `clips-000000.tar`, `clips-000001.tar` and so on, and return these.

    Args:
        folder: Made if it is not there; shards of these names are replaced.
        clips: Taken one at a time.
        clips_per_shard: Clips in each but the last.
        rgb: "png" keeps every bit, "jpeg" is several times smaller.
        quality: Of JPEG, 1 to 100.

    Raises:
        ValueError: A clip that is none (see `check_clip`), or a bad argument.
    """
    if clips_per_shard < 1:
        raise ValueError(f"clips_per_shard must be at least 1, got {clips_per_shard}.")
    stream = iter(clips)
    paths: list[Path] = []
    while (first := next(stream, None)) is not None:
        path = shard_path(folder, len(paths))
        group = chain([first], islice(stream, clips_per_shard - 1))
        write_shard(path, group, first_number=len(paths) * clips_per_shard, rgb=rgb, quality=quality)
        paths.append(path)
    return paths


def write_shard(
    path: Path, clips: Iterable[Clip], *, first_number: int = 0, rgb: Codec = "png", quality: int = 95
) -> None:
    """Write one shard; `path` appears when it is whole, and stays as it was if anything fails.

    Args:
        path: Ends in .tar.
        clips: Taken one at a time.
        first_number: Of the first clip's key in the set.
        rgb: "png" keeps every bit, "jpeg" is several times smaller.
        quality: Of JPEG, 1 to 100.

    Raises:
        ValueError: A clip that is none (see `check_clip`), or a bad argument.
    """
    if path.suffix != ".tar":
        raise ValueError(f"path must end in .tar, got {path}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            # As webdataset.TarWriter writes it; that package loads PyTorch and is not always installed.
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for number, clip in enumerate(clips, first_number):
                    for ending, data in encode_clip(clip, rgb, quality).items():
                        info = tarfile.TarInfo(f"{number:08d}.{ending}")
                        info.size, info.mode = len(data), 0o444
                        tar.addfile(info, io.BytesIO(data))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def open_shards(folder: Path, *, threads: int = 8) -> list[Shard]:
    """Return the shards of a folder, by name, after reading their headers and JSON and nothing more.

    Args:
        folder: Holds *.tar files, or is one.
        threads: Shards read at once.

    Raises:
        ValueError: There is no shard.
    """
    paths = sorted(folder.glob("*.tar")) if folder.is_dir() else [folder]
    if not paths or not paths[0].exists():
        raise ValueError(f"folder must hold *.tar files or be one, got {folder}; training.record writes some.")
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(scan_shard, paths))


def scan_shard(path: Path) -> Shard:
    """Find the clips of a shard. Damage is told in `problems`; whole clips before it are found all the same."""
    rows: list[tuple[int, int, int, int, float]] = []
    problems: list[str] = []
    seen: set[str] = set()
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise ShardError("is no regular file")
        with path.open("rb") as file:
            offset, length = 0, os.fstat(file.fileno()).st_size
            while (found := _clip_at(file, offset, length)) is not None:
                if found.key in seen:
                    raise ShardError(f"byte {offset}: the key {found.key} comes twice")
                seen.add(found.key)
                try:
                    about = read_about(found.members)
                    rows.append((offset, about["frames"], about["height"], about["width"], about["fps"]))
                except ShardError as error:
                    problems.append(f"{path}: clip {found.key}: {error}")
                offset = found.end
    except (OSError, ShardError) as error:
        problems.append(f"{path}: {error}")
    return Shard(path, np.array(rows, _ROWS), tuple(problems))


def read_clip(path: Path, offset: int, rows: np.ndarray | None = None) -> Clip:
    """Return a clip of a shard.

    Args:
        path: The shard.
        offset: Of the clip, see `Shard.rows`.
        rows: Which frames, in which order; None is all of them. `fps` is then still that of the whole clip.

    Raises:
        ClipError: The clip is damaged.
    """
    try:
        with path.open("rb") as file:
            found = _clip_at(file, offset, os.fstat(file.fileno()).st_size)
            if found is None:
                raise ShardError("there is no clip")
            return decode_clip(found.members, rows)
    except (OSError, ValueError) as error:
        raise ClipError(f"{path}: clip at byte {offset}: {error}", "damaged") from error


def validate_shards(folder: Path) -> Validation:
    """Read everything that a folder of shards holds, and tell what is damaged.

    Raises:
        ValueError: There is no shard.
    """
    problems: list[str] = []
    names: dict[str, Path] = {}
    whole, shards = 0, open_shards(folder)
    for shard in shards:
        problems += shard.problems
        for offset in shard.rows["offset"]:
            try:
                clip = read_clip(shard.path, int(offset))
            except ClipError as error:
                problems.append(str(error))
                continue
            whole += 1
            if clip.name in names:
                problems.append(f"{shard.path}: the name {clip.name} is also that of a clip in {names[clip.name]}")
            names[clip.name] = shard.path
    return Validation(len(shards), whole, problems)


class _Found(NamedTuple):
    """A clip in a tar file."""

    key: str
    members: dict[str, Member]
    end: int
    """The byte after it."""


def _clip_at(file: BinaryIO, offset: int, length: int) -> _Found | None:
    """Return the clip that begins at a byte of a tar file of this length, None at its end mark."""
    key, start = None, offset
    members: dict[str, Member] = {}
    kinds: set[str] = set()
    while len(members) < _MEMBERS:
        header = _header(file, offset, length)
        if header is None:
            if key is None:
                return None
            raise ShardError(f"byte {start}: the clip {key} lacks members, it has {', '.join(members)}")
        member_key, ending, size = header
        kind = ending.partition(".")[0]
        if member_key != (key or member_key) or kind in kinds:
            raise ShardError(f"byte {offset}: {member_key}.{ending} comes before the clip {key} is whole")
        key, offset = member_key, offset + _BLOCK
        kinds.add(kind)
        members[ending] = Member(size, _reader(file, offset))
        offset += -(-size // _BLOCK) * _BLOCK
    assert key is not None
    return _Found(key, members, offset)


def _reader(file: BinaryIO, first: int) -> Callable[[int, int], bytes]:
    def read(start: int, size: int) -> bytes:
        file.seek(first + start)
        return file.read(size)

    return read


def _header(file: BinaryIO, offset: int, length: int) -> tuple[str, str, int] | None:
    """Return key, ending and size of the member whose header is at a byte, None at the end mark."""
    file.seek(offset)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        raise ShardError(f"byte {offset}: the file is cut off")
    if not any(block):
        if any(rest := file.read(_BLOCK)) or len(rest) < _BLOCK:
            raise ShardError(f"byte {offset}: half an end mark, the file is cut off or damaged")
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.TarError, ValueError) as error:
        raise ShardError(f"byte {offset}: no tar header ({error})") from error
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise ShardError(f"byte {offset}: {info.name!r} is no plain file")
    if (name := _NAME.fullmatch(info.name)) is None:
        raise ShardError(f"byte {offset}: {info.name!r} is no name of a clip's member")
    if not 0 <= info.size <= length - offset - _BLOCK:
        raise ShardError(f"byte {offset}: {info.name} should have {info.size} bytes, the file is cut off before")
    return name[1], name[2], info.size
