"""Which pixels show something that moves by itself: as given with the video, or found from flow and depth.

`GeometricMasks` needs no weights. Of each frame it looks at frames a little earlier and later. The camera's own motion
between the two explains how a world at rest looks from there; what moves does not fit, in one of two ways:

- It has gone: a point would be in plain view, but one looks through its place at something farther.
- It is elsewhere: the other picture, drawn as this camera would see it in a world at rest, still differs, and a flow
  explains the difference.

A point that is hidden from the other camera, or outside its view, tells nothing. The votes of all neighbours are
averaged, also along the flow, and cleaned. What rests is not masked while it rests, even if it moved before: for
cameras it is as good as any other thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from aether_env.camera import invert_pose
from training.annotate.ego import relative_motion
from training.annotate.flow import (
    DISFlow,
    FlowEstimator,
    Flows,
    at_targets,
    disagreement,
    find_flows,
    static_flow,
    stays_inside,
)
from training.annotate.footage import Footage
from training.annotate.rounding import Rounding, find_rounding, unrounded
from training.checks import fields_in_range

_GRID = 7
"""Every so many pixels a point is taken for the camera's motion."""
_PATCH = 7
"""Pixels of the side of the patches that are compared."""
_MEAN = np.full((1, 3), 1 / 3)
"""Of the colours, as a matrix."""


class Masker(Protocol):
    """Finds what moves by itself."""

    def __call__(self, footage: Footage, intrinsics_33: np.ndarray, flows: Flows | None = None) -> np.ndarray:
        """Return where something moves, (T, H, W) bool.

        Args:
            footage: The video.
            intrinsics_33: (3, 3) pixels, of all frames.
            flows: Of the video, if they are known already.
        """
        ...


class GivenMasks:
    """Takes the masks that came with the video."""

    def __call__(self, footage: Footage, intrinsics_33: np.ndarray, flows: Flows | None = None) -> np.ndarray:
        """Return them; see `Masker`.

        Raises:
            ValueError: None came with it.
        """
        if footage.moving is None:
            raise ValueError(f"moving must be given with the video {footage.name}; let geometric masks find it.")
        return footage.moving.copy()


@dataclass(frozen=True, kw_only=True)
class GeometricSettings:
    """When `GeometricMasks` believes that something moves."""

    span: float = 0.25
    """Seconds to the neighbours in which flow is looked for, before and after each frame; at least one frame."""
    gone_spans: tuple[float, ...] = (0.12, 0.5)
    """Seconds to more neighbours, in which only depth is looked at. Long spans see slow things."""
    pixels: float = 1.0
    """Of flow that the camera's motion does not explain; errors of flow beside borders reach half a pixel."""
    relative_flow: float = 0.03
    """Added to `pixels` for each pixel of the static flow: errors of the camera's motion grow with it."""
    relative_depth: float = 0.05
    """A point is hidden, or looked through, where depth differs by more, relative."""
    better: float = 0.6
    """A flow is believed where it leaves at most so much of the difference of the pictures."""
    like: float = 0.5
    """Pictures are alike where they differ by less than so much of their contrast; else neither a motion nor a rest is
    believed: texture finer than the pixels changes from frame to frame."""
    gone_votes: float = 2.0
    """Votes of a neighbour that looks through the place of a point. Depth tells it, so it is surer than flow."""
    weak: float = 0.3
    """Share of votes of a moving pixel that is beside surer ones."""
    strong: float = 0.6
    """Share of votes of which each moving region must have one pixel."""
    least_area: float = 4e-4
    """Of the picture; smaller regions are noise, and smaller holes are filled."""
    dilate: int = 2
    """Pixels by which regions grow, so that their borders are covered."""

    def __post_init__(self) -> None:
        fields_in_range(self, "span", "gone_spans", "pixels", "relative_depth", "better", low=0, ends="()")
        fields_in_range(self, "relative_flow", "least_area", "dilate", low=0)
        fields_in_range(self, "weak", "strong", low=0, high=1, ends="(]")


class GeometricMasks:
    """Finds what moves from flow and depth; see the module.

    Args:
        settings: What is believed.
        estimator: Of the flow; None is DIS.
    """

    def __init__(self, settings: GeometricSettings = GeometricSettings(), estimator: FlowEstimator | None = None):
        self.settings = settings
        self._estimator = DISFlow() if estimator is None else estimator

    def __call__(self, footage: Footage, intrinsics_33: np.ndarray, flows: Flows | None = None) -> np.ndarray:
        """Return where something moves; see `Masker`. Where the camera's motion cannot be told, nothing does."""
        flows = find_flows(footage.rgb, self._estimator) if flows is None else flows
        votes = self._votes(footage, intrinsics_33, flows)
        votes = smooth_in_time(votes, flows)
        return np.stack([clean(frame, self.settings) for frame in votes])

    def _votes(self, footage: Footage, intrinsics_33: np.ndarray, flows: Flows) -> np.ndarray:
        """Return the share of votes that each pixel moves, (T, H, W) float32; 0 where no neighbour can tell."""
        rounding, footage = find_rounding(footage), unrounded(footage)
        steps = [
            camera_motion(footage, intrinsics_33, row, row + 1, flows.forward[row], footage.valid[row])
            for row in range(len(footage) - 1)
        ]
        gone, cast = np.zeros((2, *footage.depth.shape), np.float32)
        heading = np.zeros((*footage.depth.shape, 2), np.float32)
        for a, b, looks_at_flow in self._neighbours(len(footage), footage.fps):
            b_from_a = chained(steps, a, b)
            if b_from_a is None:
                continue
            expected = expect(footage, intrinsics_33, a, b, b_from_a, self.settings.relative_depth, rounding)
            if looks_at_flow:
                view = self._view(footage, intrinsics_33, a, b, expected, rounding)
                if view is None:
                    continue
                expected = view.expected
                heading[a] += np.sign(b - a) * view.heading
                cast[a] += view.rests | view.heading.any(-1)
            gone[a] += self.settings.gone_votes * expected.gone
        # Wrong flows point anywhere, and so cancel out; what moves goes on in its direction.
        moves = gone + np.linalg.norm(heading, axis=-1)
        return moves / np.maximum(gone + cast, 2)  # one flow alone is not enough

    def _neighbours(self, num_frames: int, fps: float) -> Iterator[tuple[int, int, bool]]:
        """Yield the pairs of frames that are compared, and whether flow is looked at."""
        stride = max(1, round(self.settings.span * fps))
        more = {max(1, round(span * fps)) for span in self.settings.gone_spans} - {stride}
        for a in range(num_frames):
            for step in (stride, *sorted(more)):
                yield from ((a, b, step == stride) for b in (a - step, a + step) if 0 <= b < num_frames)

    def _view(
        self, footage: Footage, intrinsics_33: np.ndarray, a: int, b: int, expected: Expected, rounding: Rounding
    ) -> _View | None:
        """Return what frame `b` says about frame `a`; None if their motion turns out not to be known.

        Args:
            footage: The video.
            intrinsics_33: (3, 3) pixels.
            a: Row of the frame.
            b: Row of its neighbour.
            expected: By what is known of the camera's motion so far.
            rounding: Of the video's depth.
        """
        settings = self.settings
        # Where b shows something else, this frame's own colours are put instead: no flow is to be found there.
        drawn = np.where(expected.open[..., None], at_targets(footage.rgb[b], expected.flow), footage.rgb[a])
        rest = self._estimator(footage.rgb[a], drawn)
        flow, believed = expected.flow + rest, expected.open & footage.valid[a]
        motion = camera_motion(footage, intrinsics_33, a, b, flow, believed)
        if motion is None:
            return None
        again = expect(footage, intrinsics_33, a, b, motion, settings.relative_depth, rounding)
        believed &= again.open
        off = flow - again.flow
        distance = np.linalg.norm(off, axis=-1)
        limit = settings.pixels + settings.relative_flow * np.linalg.norm(again.flow, axis=-1) + again.unsure
        before, after = _unlike(footage.rgb[a], drawn), _unlike(footage.rgb[a], at_targets(drawn, rest))
        like = settings.like * _contrast(footage.rgb[a])
        elsewhere = believed & (distance > limit) & (after < settings.better * before) & (after < like)
        heading = np.where(elsewhere[..., None], off / np.maximum(distance, 1e-6)[..., None], np.float32(0))
        return _View(expected=again, heading=heading, rests=believed & ~elsewhere & (before < like))


@dataclass(frozen=True, kw_only=True, eq=False)
class Expected:
    """How frame a looks from frame b if the world is at rest."""

    flow: np.ndarray
    """(H, W, 2) float32 pixels from a to b; 0 where it leaves the picture."""
    open: np.ndarray
    """(H, W) bool: inside b's picture, not hidden, not gone."""
    gone: np.ndarray
    """(H, W) bool: b looks through the place of the point."""
    unsure: np.ndarray | float
    """(H, W) pixels that the flow may be off by because depth was rounded."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _View:
    """What the flow to one frame says about another one; where it says nothing, it cannot tell."""

    expected: Expected
    """By the camera's motion between the very two."""
    heading: np.ndarray
    """(H, W, 2): direction, of length 1, from its place to where the point is seen; 0 where it is not elsewhere."""
    rests: np.ndarray
    """(H, W) bool: the point is seen in its place."""


def expect(
    footage: Footage,
    intrinsics_33: np.ndarray,
    a: int,
    b: int,
    b_from_a_44: np.ndarray,
    tolerance: float,
    rounding: Rounding,
) -> Expected:
    """Return how a frame looks from another one if the world is at rest.

    Args:
        footage: The video.
        intrinsics_33: (3, 3) pixels.
        a: Row of the frame.
        b: Row of the other one.
        b_from_a_44: (4, 4), the camera's motion.
        tolerance: Relative depth by which nearer things hide, and farther ones are seen through.
        rounding: Of the depth: both depths may be off by half a step besides.
    """
    # What has no depth, as the sky, turns with the camera as very far things do.
    far = np.float32(1e3 * footage.depth.max(initial=1e-6, where=footage.valid))
    depth_a, depth_b = (np.where(footage.valid[row], footage.depth[row], far) for row in (a, b))
    flow, depth = static_flow(depth_a, intrinsics_33, b_from_a_44)
    inside = stays_inside(flow) & (depth > 0)
    flow = np.where(inside[..., None], flow, np.float32(0))
    # The nearest and the farthest thing about the pixel: beside borders, a pixel more or less means nothing.
    around = np.ones((3, 3), np.uint8)
    nearest = at_targets(cv2.erode(depth_b, around), flow, nearest=True)
    farthest = at_targets(cv2.dilate(depth_b, around), flow, nearest=True)
    step = np.where(footage.valid[a], rounding.step(depth_a), np.float32(0))
    allowed = depth * np.float32(tolerance) + step
    gone = inside & footage.valid[a] & (nearest > depth + allowed) & (nearest < far)
    hidden = farthest < depth - allowed
    unsure: np.ndarray | float = 0.0
    if step.any():
        farther, _ = static_flow(depth_a + step / 2, intrinsics_33, b_from_a_44)
        unsure = np.where(inside, np.linalg.norm(farther - flow, axis=-1), np.float32(0))
    return Expected(flow=flow, open=inside & ~hidden & ~gone, gone=gone, unsure=unsure)


def camera_motion(
    footage: Footage, intrinsics_33: np.ndarray, a: int, b: int, flow_HW2: np.ndarray, believed_HW: np.ndarray
) -> np.ndarray | None:
    """Return the camera's motion b_from_a (4, 4) by flow and depth; None where it cannot be told.

    Args:
        footage: The video.
        intrinsics_33: (3, 3) pixels.
        a: Row of a frame.
        b: Row of the other one.
        flow_HW2: (H, W, 2) pixels from a to b.
        believed_HW: (H, W) bool: where it is looked at.
    """
    grid = np.zeros(footage.size, bool)
    grid[_GRID // 2 :: _GRID, _GRID // 2 :: _GRID] = True
    y, x = np.nonzero(grid & believed_HW & stays_inside(flow_HW2))
    pixel_a = np.stack([x, y], axis=1) + 0.5
    pixel_b = pixel_a + flow_HW2[y, x]
    column, row = np.clip(np.floor(pixel_b).astype(int), 0, np.array(footage.size[::-1]) - 1).T
    depth_b = np.where(footage.valid[b, row, column], footage.depth[b, row, column], np.nan)
    motion = relative_motion(pixel_a, footage.depth[a, y, x], pixel_b, intrinsics_33, depth_b_N=depth_b, seed=a)
    return None if motion is None else motion.b_from_a


def chained(steps: list[np.ndarray | None], a: int, b: int) -> np.ndarray | None:
    """Return b_from_a (4, 4) by motions from each frame to the next; None where one on the way is not known."""
    if a > b:
        back = chained(steps, b, a)
        return None if back is None else invert_pose(back)
    whole = np.eye(4)
    for step in steps[a:b]:
        if step is None:
            return None
        whole = step @ whole
    return whole


def _unlike(a_HW3: np.ndarray, b_HW3: np.ndarray) -> np.ndarray:
    """Return the mean difference of two pictures about each pixel, (H, W) float32 grey levels."""
    # Summed by its channels, which is many times faster than over an axis of length 3.
    return cv2.blur(cv2.transform(cv2.absdiff(a_HW3, b_HW3).astype(np.float32), _MEAN), (_PATCH, _PATCH))


def _contrast(rgb_HW3: np.ndarray) -> np.ndarray:
    """Return the standard deviation of a picture about each pixel, (H, W) float32 grey levels."""
    rgb = rgb_HW3.astype(np.float32)
    mean, square = cv2.blur(rgb, (_PATCH, _PATCH)), cv2.blur(rgb * rgb, (_PATCH, _PATCH))
    return cv2.transform(np.sqrt(np.maximum(square - mean * mean, 0)), _MEAN)


def smooth_in_time(votes_THW: np.ndarray, flows: Flows, most_off: float = 1.5) -> np.ndarray:
    """Return votes averaged with those of the same point in the frames before and after.

    Args:
        votes_THW: (T, H, W) float32.
        flows: Of the video.
        most_off: Pixels of disagreement from which on a flow is not followed.
    """
    total, weight = votes_THW.copy(), np.ones_like(votes_THW)
    for row in range(len(votes_THW) - 1):
        ways = ((row, row + 1, flows.forward, flows.backward), (row + 1, row, flows.backward, flows.forward))
        for here, there, to, back in ways:
            steady = disagreement(to[row], back[row]) < most_off
            total[here] += np.where(steady, at_targets(votes_THW[there], to[row]), 0) / 2
            weight[here] += steady / np.float32(2)
    return total / weight


def clean(votes_HW: np.ndarray, settings: GeometricSettings) -> np.ndarray:
    """Return the moving regions of one frame, (H, W) bool: without specks and holes, a little grown.

    Args:
        votes_HW: (H, W) share of votes.
        settings: See there.
    """
    area = max(1, round(settings.least_area * votes_HW.size))
    weak = cv2.morphologyEx((votes_HW > settings.weak).astype(np.uint8), cv2.MORPH_CLOSE, _disc(2))
    count, label, stats, _ = cv2.connectedComponentsWithStats(weak, connectivity=4)
    sure = np.bincount(label[votes_HW > settings.strong], minlength=count)
    keep = (sure > 0) & (stats[:, cv2.CC_STAT_AREA] >= area)
    keep[0] = False
    moving = keep[label]
    count, label, stats, _ = cv2.connectedComponentsWithStats((~moving).astype(np.uint8), connectivity=4)
    hole = stats[:, cv2.CC_STAT_AREA] < area
    hole[0] = False  # what is no hole: the moving regions themselves
    return cv2.dilate((moving | hole[label]).astype(np.uint8), _disc(settings.dilate)) > 0


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
