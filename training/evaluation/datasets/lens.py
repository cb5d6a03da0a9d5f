"""Pictures of a lens that bends straight lines, made into those of a pinhole camera."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import cv2
import numpy as np


class Lens(NamedTuple):
    """A calibrated camera as OpenCV and the sets publish it: pixel centres at integers, unlike ours."""

    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...]
    """k1, k2, p1, p2, k3; none for pictures that are a pinhole camera's already."""
    height: int
    width: int

    @property
    def intrinsics(self) -> np.ndarray:
        """Return the intrinsics of the straightened picture, (3, 3), in our pixels (see conventions)."""
        moved = _pinhole(self)
        moved[:2, 2] += 0.5
        return moved

    def straightened(self, picture: np.ndarray, *, nearest: bool = False) -> np.ndarray:
        """Return a picture (H, W) or (H, W, 3) of the lens as a pinhole camera sees it, of the same size.

        It is magnified a little, so that every pixel was seen.

        Args:
            picture: Of the lens.
            nearest: Take the nearest pixel, as depth needs; otherwise blend four.
        """
        if not self.distortion:
            return picture
        return cv2.remap(picture, *_sources(self), cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR)


def _matrix(lens: Lens) -> np.ndarray:
    return np.array([[lens.fx, 0, lens.cx], [0, lens.fy, lens.cy], [0, 0, 1.0]])


def _pinhole(lens: Lens) -> np.ndarray:
    """Return the (3, 3) intrinsics, pixel centres at integers, whose picture is the largest without unseen pixels."""
    if not lens.distortion:
        return _matrix(lens)
    size = (lens.width, lens.height)
    return cv2.getOptimalNewCameraMatrix(_matrix(lens), np.array(lens.distortion), size, alpha=0)[0]


@cache
def _sources(lens: Lens) -> tuple[np.ndarray, np.ndarray]:
    """Return where in the lens's picture each straight pixel lies, x and y, each (H, W)."""
    size = (lens.width, lens.height)
    bent = np.array(lens.distortion)
    x_HW, y_HW = cv2.initUndistortRectifyMap(_matrix(lens), bent, None, _pinhole(lens), size, cv2.CV_32FC1)
    return x_HW, y_HW
