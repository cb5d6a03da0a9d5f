"""What annotating a piece of a video gives: clips, and for every frame and slice why it is no clip."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from training.annotate.footage import Footage
from training.clips import Clip

PICTURES_PER_PIECE = 3
"""Small pictures with what moves in red, for the report."""
_PICTURE_WIDTH = 240


@dataclass(frozen=True, kw_only=True, eq=False)
class SliceResult:
    """A run of frames that was annotated together."""

    frames: np.ndarray
    """(n,) int64 numbers in the video."""
    clip: Clip | None
    """None: refused."""
    reason: str | None = None
    """Why it was refused; one or two words to count by."""
    quality: float = 0.0
    """Score in [0, 1]."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Numbers and (n,) arrays by name. The report draws "reprojection" (n,) pixels after refinement, "coarse" (n,) the
    same before it, "consistency" (n,) share of the depth that agrees, "focal" and "focal_std" pixels."""
    world_from_camera: np.ndarray | None = None
    """(n, 4, 4) where there is a path, of refused slices too."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PieceResult:
    """What annotating a piece gave."""

    slices: tuple[SliceResult, ...]
    dropped: Mapping[int, str] = field(default_factory=dict)
    """Number of each frame that is in no slice -> why."""
    moving: np.ndarray | None = None
    """(T, H, W) bool of the footage's frames, where masks were found."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Numbers of the whole piece by name."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Time that each stage took."""


def summary(footage: Footage, result: PieceResult) -> dict[str, Any]:
    """Return a piece's result without its clips, for a JSON."""
    shares = None if result.moving is None else result.moving.mean((1, 2))
    return {
        "frames": footage.frame.tolist(),
        "dropped": {str(number): reason for number, reason in result.dropped.items()},
        "moving_share": plain(shares),
        "figures": plain(result.figures),
        "seconds": plain(result.seconds),
        "slices": [_slice_summary(one) for one in result.slices],
        "pictures": _pictures(footage, result.moving),
    }


def plain(value: Any) -> Any:
    """Return a value as a JSON takes it: lists for arrays, five digits, None for what is no finite number."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, str) else str(value)


def _slice_summary(one: SliceResult) -> dict[str, Any]:
    poses = one.world_from_camera
    return {
        "frames": one.frames.tolist(),
        "kept": one.clip is not None,
        "clip": None if one.clip is None else one.clip.name,
        "reason": one.reason,
        "quality": plain(one.quality),
        "figures": plain(one.figures),
        "positions": None if poses is None else plain(poses[:, :3, 3]),
        "forward": None if poses is None else plain(poses[:, :3, 2]),
    }


def _pictures(footage: Footage, moving: np.ndarray | None) -> list[dict[str, Any]]:
    """Return a few frames as small JPEGs, what moves in red."""
    rows = np.unique(np.linspace(0, len(footage) - 1, PICTURES_PER_PIECE + 2).round().astype(int)[1:-1])
    height = max(1, round(_PICTURE_WIDTH * footage.size[0] / footage.size[1]))
    found = []
    for row in rows:
        rgb = footage.rgb[row].astype(np.float32)
        if moving is not None:
            rgb[moving[row]] = 0.5 * rgb[moving[row]] + (127, 0, 0)
        small = cv2.resize(rgb, (_PICTURE_WIDTH, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
        written, data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 75])
        assert written
        found.append({"frame": int(footage.frame[row]), "jpeg": base64.b64encode(data.tobytes()).decode()})
    return found
