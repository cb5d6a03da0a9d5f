"""Points found again in other frames, and their depth. Pixels: see conventions."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from aether_env.conventions import FAR_DEPTH
from aether_env.pointcloud import depth_edges
from training.annotate.flow import FlowEstimator, disagreement
from training.annotate.footage import Footage
from training.annotate.two_view import Pair, make_pair
from training.checks import fields_in_range, in_range


@dataclass(frozen=True, kw_only=True)
class MatchSettings:
    """How SIFT points are found and matched."""

    most_features: int = 1000
    """SIFT points of a frame, the strongest ones."""
    least_contrast: float = 0.01
    """Of a SIFT point; pictures of games are flatter than the photographs for which 0.04 is usual."""
    ratio: float = 0.8
    """A match is that much nearer than the next best one (Lowe's test)."""
    margin: int = 2
    """Pixels about depth edges, moving and invalid pixels in which no point is taken."""

    flow_stride: int = 8
    """Where SIFT finds too little, flow is read at every so many pixels."""
    least_texture: float = 1.0
    """Flow is read where grey levels change by that much a pixel in every direction."""
    flow_pixels: float = 1.0
    """Flow there and back may miss its start by that much."""

    def __post_init__(self) -> None:
        fields_in_range(self, "most_features", "flow_stride", low=1)
        fields_in_range(self, "flow_pixels", low=0, ends="()")
        fields_in_range(self, "least_contrast", "least_texture", low=0)
        in_range("ratio", self.ratio, 0, 1, ends="(]")
        in_range("margin", self.margin, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """The points of one frame."""

    pixel: np.ndarray
    """(N, 2) float64."""
    depth: np.ndarray
    """(N,) float64, positive."""
    descriptor: np.ndarray
    """(N, 128) float32: RootSIFT."""


class Seen:
    """The points of a video's frames, found when they are asked for and kept.

    Args:
        footage: The video.
        moving: (T, H, W) bool: where no points are wanted; None: nowhere.
        settings: How they are found.
    """

    def __init__(self, footage: Footage, moving: np.ndarray | None, settings: MatchSettings):
        self.footage, self.moving, self.settings = footage, moving, settings
        self._good: dict[int, np.ndarray] = {}
        self._features: dict[int, Features] = {}

    def good(self, row: int) -> np.ndarray:
        """Return where a frame's points may lie, see `steady`."""
        if row not in self._good:
            self._good[row] = steady(self.footage, self.moving, row, self.settings.margin)
        return self._good[row]

    def features(self, row: int) -> Features:
        """Return a frame's SIFT points."""
        if row not in self._features:
            frame = self.footage.rgb[row], self.footage.depth[row], self.good(row)
            self._features[row] = find_features(*frame, self.settings)
        return self._features[row]

    def pair(self, a: int, b: int) -> Pair:
        """Return the SIFT points that two frames share."""
        return match(self.features(a), self.features(b), self.settings)

    def forget(self, row: int) -> None:
        """Drop a frame's SIFT points, which are large."""
        self._features.pop(row, None)

    def flow_pair(self, a: int, b: int, flow: FlowEstimator) -> Pair:
        """Return points on a grid of frame a, followed to frame b; those that flow does not bring back are left out."""
        rgb, depth, stride = self.footage.rgb, self.footage.depth, self.settings.flow_stride
        forward, backward = flow(rgb[a], rgb[b]), flow(rgb[b], rgb[a])
        taken = np.zeros(self.footage.size, bool)
        taken[stride // 2 :: stride, stride // 2 :: stride] = True
        taken &= self.good(a) & (disagreement(forward, backward) < self.settings.flow_pixels)
        # Flow that is made up (on dark or plain pictures it is smooth, and comes back home) must not pass for rest.
        textured_a, textured_b = (texture(rgb[row]) > self.settings.least_texture for row in (a, b))
        y, x = np.nonzero(taken & textured_a)
        pixel_a = np.stack([x, y], axis=1) + 0.5
        pixel_b = pixel_a + forward[y, x]
        column, row = np.floor(pixel_b).astype(int).T
        kept = textured_b[np.clip(row, 0, textured_b.shape[0] - 1), np.clip(column, 0, textured_b.shape[1] - 1)]
        pixel_a, pixel_b, depth_a = pixel_a[kept], pixel_b[kept], depth[a, y, x][kept]
        return make_pair(pixel_a, depth_a, pixel_b, depth_at(depth[b], self.good(b), pixel_b))[0]


def steady(footage: Footage, moving: np.ndarray | None, row: int, margin: int) -> np.ndarray:
    """Return where depth is known, static and smooth, (H, W) bool.

    Args:
        footage: The video.
        moving: (T, H, W) bool, or None.
        row: Of the frame.
        margin: Pixels to keep from all that is not.
    """
    valid = footage.valid[row]
    farthest = footage.depth[row].max(where=valid, initial=0)
    depth = np.where(valid, footage.depth[row], FAR_DEPTH + farthest)
    # A median keeps edges and takes noise away, which would look like edges everywhere.
    good = valid & ~depth_edges(cv2.medianBlur(depth.astype(np.float32), 5))
    if moving is not None:
        good &= ~moving[row]
    return cv2.erode(good.astype(np.uint8), np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)) > 0


def texture(rgb_HW3: np.ndarray, window: int = 9) -> np.ndarray:
    """Return how clearly a place can be found again, (H, W) grey levels a pixel: root of the smaller eigenvalue.

    Args:
        rgb_HW3: uint8.
        window: Pixels about each one that count: their structure tensor (Shi and Tomasi 1994).
    """
    grey = cv2.cvtColor(rgb_HW3, cv2.COLOR_RGB2GRAY).astype(np.float32)
    down, right = np.gradient(grey)
    xx, xy, yy = (cv2.boxFilter(product, -1, (window, window)) for product in (right**2, right * down, down**2))
    smaller = (xx + yy) / 2 - np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    return np.sqrt(np.maximum(smaller, 0))


def depth_at(depth_HW: np.ndarray, good_HW: np.ndarray, pixel_N2: np.ndarray) -> np.ndarray:
    """Return z-depth between pixel centres, (N,); NaN outside the picture and where one of the four is not good.

    Disparity, not depth, is interpolated: it is linear on planes.

    Args:
        depth_HW: z-depth.
        good_HW: Where it may be read, see `steady`: never across an edge.
        pixel_N2: x, y.
    """
    height, width = depth_HW.shape
    place = np.nan_to_num(pixel_N2 - 0.5, nan=-9.0)
    x, y = np.clip(np.floor(place).astype(int), 0, [width - 2, height - 2]).T
    fraction = place - np.stack([x, y], axis=1)
    total, known = np.zeros(len(pixel_N2)), ((fraction >= -0.5) & (fraction <= 1.5)).all(-1)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        share_x, share_y = np.where([dx, dy], fraction, 1 - fraction).T
        known &= good_HW[y + dy, x + dx]
        total += share_x * share_y / np.maximum(depth_HW[y + dy, x + dx], 1e-9)
    return np.where(known & (total > 0), 1 / np.where(total > 0, total, 1), np.nan)


def find_features(rgb_HW3: np.ndarray, depth_HW: np.ndarray, good_HW: np.ndarray, settings: MatchSettings) -> Features:
    """Return the SIFT points of a frame.

    Args:
        rgb_HW3: uint8.
        depth_HW: z-depth.
        good_HW: bool: where points may lie, see `steady`.
        settings: How they are found.
    """
    sift = cv2.SIFT.create(nfeatures=settings.most_features, contrastThreshold=settings.least_contrast)
    grey = cv2.cvtColor(rgb_HW3, cv2.COLOR_RGB2GRAY)
    points, descriptor = sift.detectAndCompute(grey, good_HW.astype(np.uint8))
    if descriptor is None:
        return Features(pixel=np.zeros((0, 2)), depth=np.zeros(0), descriptor=np.zeros((0, 128), np.float32))
    pixel = np.array([point.pt for point in points], np.float64) + 0.5  # cv2 counts pixel centres from 0
    depth = depth_at(depth_HW, good_HW, pixel)
    # RootSIFT (Arandjelovic and Zisserman 2012).
    root = np.sqrt(descriptor / np.maximum(descriptor.sum(-1, keepdims=True), 1e-9))
    known = ~np.isnan(depth)
    return Features(pixel=pixel[known], depth=depth[known], descriptor=root[known].astype(np.float32))


def match(a: Features, b: Features, settings: MatchSettings) -> Pair:
    """Return the points that two frames share: nearest to each other, and clearly nearer than to any other."""
    if min(len(a.depth), len(b.depth)) < 2:
        nothing = np.zeros(0, int)
        return _pair(a, nothing, b, nothing)
    likeness = a.descriptor @ b.descriptor.T  # rows have length 1, so |a - b|^2 = 2 - 2 a.b
    best = likeness.argmax(1)
    mutual = likeness.argmax(0)[best] == np.arange(len(best))
    distance = np.sqrt(np.maximum(2 - 2 * np.partition(likeness, -2, axis=1)[:, -2:], 0))
    rows = np.flatnonzero(mutual & (distance[:, 1] < settings.ratio * distance[:, 0]))
    return _pair(a, rows, b, best[rows])


def _pair(a: Features, rows_a: np.ndarray, b: Features, rows_b: np.ndarray) -> Pair:
    return make_pair(a.pixel[rows_a], a.depth[rows_a], b.pixel[rows_b], b.depth[rows_b])[0]
