"""Footage: an RGB-D video whose cameras are not known yet."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from aether_env.camera import check_intrinsics


@dataclass(frozen=True, kw_only=True, eq=False)
class Footage:
    """A piece of an RGB-D video, numpy. Units and pixels: see conventions."""

    rgb: np.ndarray
    """(T, H, W, 3) uint8."""
    depth: np.ndarray
    """(T, H, W) float32 z-depth, in metres or in any one unit of the whole video; 0 where it is not known."""
    valid: np.ndarray
    """(T, H, W) bool: the depth is known, finite, positive, and that of a surface (sky: False)."""
    moving: np.ndarray | None = None
    """(T, H, W) bool: shows something that moves by itself, as given with the video; None: to be found."""
    intrinsics: np.ndarray | None = None
    """(3, 3) float64 of all frames, pixels; None: to be found."""
    frame: np.ndarray
    """(T,) int64: each frame's number in its video, ascending; gaps are frames that could not be read."""
    fps: float
    """Frames per second of the video."""
    name: str
    """Of the video."""

    def __post_init__(self) -> None:
        shape = self.rgb.shape[:3]
        if self.rgb.ndim != 4 or self.rgb.shape[-1] != 3 or self.rgb.dtype != np.uint8 or 0 in shape:
            raise ValueError(f"rgb must be (T, H, W, 3) uint8, got {self.rgb.shape} {self.rgb.dtype}.")
        masks = ("valid",) if self.moving is None else ("valid", "moving")
        for name in ("depth", *masks):
            array, dtype = getattr(self, name), np.float32 if name == "depth" else np.bool_
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"{name} must be {shape} {np.dtype(dtype)} as rgb is, got {array.shape} {array.dtype}."
                )
        if not np.all(np.isfinite(self.depth[self.valid])) or np.any(self.depth[self.valid] <= 0):
            raise ValueError("depth must be a positive number wherever it is valid; mark other pixels as not valid.")
        if self.frame.shape != shape[:1] or np.any(np.diff(self.frame) <= 0):
            raise ValueError(f"frame must be {shape[:1]} ascending numbers, got {self.frame}.")
        if not 0 < self.fps < np.inf:
            raise ValueError(f"fps must be a positive number, got {self.fps}.")
        if self.intrinsics is not None:
            check_intrinsics("intrinsics", self.intrinsics)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.rgb)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rgb.shape[1], self.rgb.shape[2]

    def frames(self, rows: slice | np.ndarray) -> Footage:
        """Return some of the frames, in their order.

        Args:
            rows: Indices into this piece.
        """
        moving = None if self.moving is None else self.moving[rows]
        return replace(
            self,
            rgb=self.rgb[rows],
            depth=self.depth[rows],
            valid=self.valid[rows],
            moving=moving,
            frame=self.frame[rows],
        )
