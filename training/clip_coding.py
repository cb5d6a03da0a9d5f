"""A clip as bytes: four members, whose layout is told in `shards`. Sizes are checked before memory is taken."""

from __future__ import annotations

import io
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from aether_env.conventions import FAR_DEPTH
from training.clips import Clip, check_clip, check_size, shows_sky

Codec = Literal["png", "jpeg"]
"""How colours are kept."""

FORMAT, VERSION = "aether-clip", 1
RGB_ENDING: dict[str, str] = {"png": "rgb.pngs", "jpeg": "rgb.mjpeg"}
ENDINGS = ("depth.pngs", "json", *RGB_ENDING.values(), "safetensors")
"""Of the members that a clip may have."""
MAX_ABOUT = 2**22
"""Bytes of a clip's JSON."""

_SKY = 65535
"""Code of the sky."""
_LEVELS = _SKY - 2
_ARRAYS_HEADER = 4096


class ShardError(ValueError):
    """Bytes that are no clip or no shard of clips; the message says why."""


@dataclass(frozen=True)
class Member:
    """A file that is read in parts."""

    size: int
    """Bytes."""
    read: Callable[[int, int], bytes]
    """(first byte, count) -> that part."""


def encode_clip(clip: Clip, rgb: Codec = "png", quality: int = 95) -> dict[str, bytes]:
    """Return the members of a clip by their endings.

    Args:
        clip: Is checked.
        rgb: "png" keeps every bit, "jpeg" is several times smaller.
        quality: Of JPEG, 1 to 100.

    Raises:
        ValueError: The clip is none (see `check_clip`), or a bad argument.
    """
    check_clip(clip)
    if rgb not in RGB_ENDING or not 1 <= quality <= 100:
        raise ValueError(f"rgb must be 'png' or 'jpeg' and quality 1 to 100, got {rgb!r} and {quality}.")
    near, far = _depth_range(clip)
    suffix, options = (".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality]) if rgb == "jpeg" else (".png", [])
    colours = [_encode_picture(suffix, frame[..., ::-1], options) for frame in clip.rgb]
    codes = (_depth_code(depth, valid, near, far) for depth, valid in zip(clip.depth, clip.valid, strict=True))
    depths = [_encode_picture(".png", code, []) for code in codes]
    arrays = save_arrays(
        {
            "moving": np.packbits(clip.moving.reshape(len(clip), -1), axis=1),
            "world_from_camera": np.ascontiguousarray(clip.world_from_camera),
            "intrinsics": np.ascontiguousarray(clip.intrinsics),
        }
    )
    about: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "name": clip.name,
        "fps": float(clip.fps),
        "frames": len(clip),
        "height": clip.size[0],
        "width": clip.size[1],
        "depth_range": [near, far],
        "codec": rgb,
        "rgb": _sums(colours),
        "depth": _sums(depths),
        "arrays": _sums([arrays]),
    }
    about["crc32"] = _sum_of(about)
    return {
        "depth.pngs": b"".join(depths),
        "json": json.dumps(about).encode(),
        RGB_ENDING[rgb]: b"".join(colours),
        "safetensors": arrays,
    }


def read_about(members: Mapping[str, Member]) -> dict[str, Any]:
    """Return the JSON of a clip after checking it against the limits and against the sizes of the other members.

    Raises:
        ShardError: It is missing, damaged or lies.
    """
    if "json" not in members:
        raise ShardError("it has no JSON")
    if (size := members["json"].size) > MAX_ABOUT:
        raise ShardError(f"its JSON has {size} bytes, at most {MAX_ABOUT} are read")
    try:
        about = json.loads(members["json"].read(0, size))
        if about["format"] != FORMAT or about["version"] != VERSION:
            raise ShardError(f"it is {about['format']!r} {about['version']!r}, not {FORMAT!r} {VERSION}")
        if about.pop("crc32") != _sum_of(about):
            raise ShardError("its JSON is damaged: the checksum differs")
        _check_about(about, {ending: member.size for ending, member in members.items()})
    except ShardError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise ShardError(f"its JSON is not that of a clip: {type(error).__name__}: {error}") from error
    return about


def decode_clip(members: Mapping[str, Member], rows: np.ndarray | None = None) -> Clip:
    """Return a clip.

    Args:
        members: By their endings.
        rows: Which frames, in which order; None is all of them. `fps` is then still that of the whole clip.

    Raises:
        ValueError: It is damaged, or does not have these frames.
    """
    about = read_about(members)
    frames, size = about["frames"], (about["height"], about["width"])
    rows = np.arange(frames) if rows is None else np.asarray(rows)
    if not len(rows) or rows.min() < 0 or rows.max() >= frames:
        raise ShardError(f"frames must be some of 0..{frames - 1}, got {rows}")
    check_size(len(rows), *size)
    rgb = np.empty((len(rows), *size, 3), np.uint8)
    code = np.empty((len(rows), *size), np.uint16)
    for place, data in enumerate(_parts(members, RGB_ENDING[about["codec"]], about["rgb"], rows)):
        rgb[place] = _decode_picture(data, about["codec"].upper(), "RGB", size)[..., ::-1]
    for place, data in enumerate(_parts(members, "depth.pngs", about["depth"], rows)):
        code[place] = _decode_picture(data, "PNG", "I;16", size)
    arrays = _read_arrays(members, about)
    moving = np.unpackbits(arrays["moving"][rows], axis=1, count=size[0] * size[1])
    return check_clip(
        Clip(
            rgb=rgb,
            depth=_depth_table(*about["depth_range"])[code],
            valid=(code > 0) & (code < _SKY),
            moving=moving.reshape(code.shape).astype(bool),
            world_from_camera=arrays["world_from_camera"][rows],
            intrinsics=arrays["intrinsics"][rows],
            fps=about["fps"],
            name=about["name"],
        )
    )


def _check_about(about: dict[str, Any], sizes: dict[str, int]) -> None:
    frames, height, width = (_whole(about[name]) for name in ("frames", "height", "width"))
    check_size(frames, height, width)
    (near, far), fps = about["depth_range"], about["fps"]
    if not all(isinstance(number, float) and 0 < number < math.inf for number in (near, far, fps)) or near > far:
        raise ShardError(f"its depth_range {near!r}, {far!r} or fps {fps!r} is impossible")
    packed = frames * (-(-height * width // 8) + 8 * (16 + 9))
    if not packed <= sizes["safetensors"] <= packed + _ARRAYS_HEADER:
        raise ShardError(f"its arrays have {sizes['safetensors']} bytes, {packed} and a header are needed")
    parts = {"rgb": (RGB_ENDING[about["codec"]], frames), "depth": ("depth.pngs", frames), "arrays": ("safetensors", 1)}
    for part, (ending, count) in parts.items():
        lengths = [_whole(number) for number in about[part]["bytes"]]
        sums = [_whole(number) for number in about[part]["crc32"]]
        if len(lengths) != count or len(sums) != count or sum(lengths) != sizes[ending]:
            raise ShardError(f"its {ending} has {sizes[ending]} bytes, its JSON tells of {len(lengths)} other parts")


def _parts(
    members: Mapping[str, Member], ending: str, sums: dict[str, list[int]], rows: np.ndarray | list[int]
) -> Iterator[bytes]:
    """Yield the parts `rows` of a member, checked."""
    starts = np.concatenate([[0], np.cumsum(sums["bytes"], dtype=np.int64)])
    for row in rows:
        data = members[ending].read(int(starts[row]), sums["bytes"][row])
        if zlib.crc32(data) != sums["crc32"][row]:
            raise ShardError(f"part {row} of its {ending} is damaged: the checksum differs")
        yield data


def _read_arrays(members: Mapping[str, Member], about: dict[str, Any]) -> dict[str, np.ndarray]:
    frames, pixels = about["frames"], about["height"] * about["width"]
    wanted = {
        "moving": (np.dtype(np.uint8), (frames, -(-pixels // 8))),
        "world_from_camera": (np.dtype(np.float64), (frames, 4, 4)),
        "intrinsics": (np.dtype(np.float64), (frames, 3, 3)),
    }
    try:
        arrays = load_arrays(next(_parts(members, "safetensors", about["arrays"], [0])))
    except (SafetensorError, KeyError) as error:
        raise ShardError(f"its arrays are damaged: {error}") from error
    if {name: (array.dtype, array.shape) for name, array in arrays.items()} != wanted:
        raise ShardError("its arrays are not those of a clip")
    return arrays


def _encode_picture(suffix: str, picture: np.ndarray, options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, picture, options)
    assert done
    return data.tobytes()


def _decode_picture(data: bytes, kind: str, mode: str, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels in OpenCV's order of colours, after the header said that they are what is wanted."""
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as header:
            found = (header.mode, header.height, header.width)
        if found != (mode, *size):
            raise ShardError(f"a picture is {found}, not {(mode, *size)} (mode, h, w)")
        flags = cv2.IMREAD_UNCHANGED if kind == "PNG" else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except (OSError, SyntaxError, Image.DecompressionBombError, cv2.error) as error:
        raise ShardError(f"a picture is damaged: {error}") from error
    wanted = (size, np.uint16) if mode == "I;16" else ((*size, 3), np.uint8)
    if picture is None or (picture.shape, picture.dtype) != wanted:
        raise ShardError("a picture is damaged")
    return picture


def _depth_range(clip: Clip) -> tuple[float, float]:
    """Return the nearest and the farthest valid depth, metres."""
    surface = clip.depth[clip.valid]
    return (float(surface.min()), float(surface.max())) if len(surface) else (1.0, 1.0)


def _depth_code(depth: np.ndarray, valid: np.ndarray, near: float, far: float) -> np.ndarray:
    """Return depth (H, W) as uint16: 0 where unknown, `_SKY` where it is the sky."""
    span = math.log(far / near) or 1.0
    share = np.log(np.where(valid, depth, near).astype(np.float64) / near) / span
    other = np.where(shows_sky(depth, valid), _SKY, 0)
    return np.where(valid, 1 + np.rint(_LEVELS * share), other).astype(np.uint16)


def _depth_table(near: float, far: float) -> np.ndarray:
    """Return the depth (65536,) float32 of every code; 0 of "unknown", FAR_DEPTH of the sky."""
    depth = near * np.exp(np.arange(_LEVELS + 1) * (math.log(far / near) / _LEVELS))
    return np.concatenate([[0.0], depth, [FAR_DEPTH]]).astype(np.float32)


def _sums(parts: list[bytes]) -> dict[str, list[int]]:
    return {"bytes": [len(part) for part in parts], "crc32": [zlib.crc32(part) for part in parts]}


def _sum_of(about: dict[str, Any]) -> int:
    """Return the CRC-32 of a JSON object, the same however it is laid out."""
    return zlib.crc32(json.dumps(about, sort_keys=True, separators=(",", ":")).encode())


def _whole(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ShardError(f"{number!r} is no whole number >= 0")
    return number
