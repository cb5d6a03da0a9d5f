"""Which frames of a video can be used, and the slices that they make: runs of frames that a camera can be followed in.

Every frame is measured in its static regions, and every pair of neighbours by the flow between them. A frame that is no
good is dropped, and two neighbours that do not belong together part slices. What is dropped has a reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import cv2
import numpy as np

from training.annotate.flow import Flows, at_targets, disagreement, find_flows, stays_inside
from training.annotate.footage import Footage
from training.checks import fields_in_range

_SIFT_CONTRAST = 0.01
"""Of a point; pictures of games are flatter than the photographs for which 0.04 is usual."""
_MOST_POINTS = 1000
"""No more are counted."""


@dataclass(frozen=True, kw_only=True)
class SlicingSettings:
    """When a frame is good enough, and how long slices are."""

    min_frames: int = 12
    """Of a slice; what is shorter is dropped."""
    max_frames: int = 240
    """Of a slice; longer ones are parted into equal ones."""
    features: int = 25
    """SIFT points in the static regions at least."""
    texture: float = 1.0
    """Grey levels per pixel: mean gradient in the static regions at least."""
    brightness: float = 8.0
    """Mean grey level at least."""
    sharpness: float = 0.2
    """Fine detail (variance of the Laplacian over gradient energy), relative to the sharp ones of the frames around."""
    sharp_span: float = 1.0
    """Seconds before and after that sharpness is compared with."""
    moving: float = 0.6
    """Share of the picture that moves at most."""
    valid: float = 0.1
    """Share of the picture with depth, in the static regions, at least."""
    depth_spread: float = 2e-3
    """Standard deviation of depth over its mean at least: no real view is flatter."""
    flow: float = 0.2
    """Median flow to the next frame over the picture's width at most."""
    disagree_pixels: float = 0.01
    """Forward and backward flow disagree from here on, over the picture's width."""
    disagree: float = 0.5
    """Share of the static regions in which they do, at most."""
    unlike: float = 0.4
    """What flow leaves of the difference of two frames, over their contrast; above is a cut if flow disagrees too."""

    def __post_init__(self) -> None:
        fields_in_range(self, "min_frames", low=1)
        fields_in_range(self, "features", "texture", "brightness", "sharpness", "depth_spread", low=0)
        fields_in_range(self, "sharp_span", "flow", "disagree_pixels", "unlike", low=0, ends="()")
        fields_in_range(self, "moving", "valid", "disagree", low=0, high=1)
        if self.max_frames < 2 * self.min_frames:
            raise ValueError(
                f"max_frames must be at least twice min_frames ({self.min_frames}), so that a slice can be parted, got "
                f"{self.max_frames}."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Measures:
    """What was measured; "static" is what has not been found to move."""

    features: np.ndarray
    """(T,) SIFT points in static regions."""
    texture: np.ndarray
    """(T,) mean gradient there, grey levels per pixel."""
    brightness: np.ndarray
    """(T,) mean grey level."""
    sharpness: np.ndarray
    """(T,) fine detail relative to the sharp ones of the frames around."""
    moving: np.ndarray
    """(T,) share of the picture that moves."""
    valid: np.ndarray
    """(T,) share of the picture that is static and has depth."""
    depth_spread: np.ndarray
    """(T,) standard deviation of depth over its mean."""
    flow: np.ndarray
    """(T - 1,) median flow to the next frame over the picture's width."""
    disagree: np.ndarray
    """(T - 1,) share of the static regions where forward and backward flow disagree."""
    unlike: np.ndarray
    """(T - 1,) difference that flow leaves, over the contrast."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Slices:
    """Which frames are used, and why the others are not."""

    slices: list[range]
    """Rows of the footage."""
    reasons: list[str | None]
    """For each row why it was dropped; None where it was not."""
    parted: dict[int, str] = field(default_factory=dict)
    """Row -> why it does not go on from the row before: "cut", "jump", "flow disagrees", "unreadable", "too long"."""
    measures: Measures | None = None
    """What this was decided by."""


def cut(
    footage: Footage,
    moving_THW: np.ndarray,
    settings: SlicingSettings = SlicingSettings(),
    flows: Flows | None = None,
) -> Slices:
    """Return the slices of a video.

    Args:
        footage: The video.
        moving_THW: (T, H, W) bool: what moves.
        settings: What is good enough.
        flows: Of the video, if they are known already.

    Raises:
        ValueError: Masks of another shape than the video's.
    """
    if moving_THW.shape != footage.depth.shape:
        raise ValueError(f"moving_THW must be {footage.depth.shape} as the video is, got {moving_THW.shape}.")
    measures = measure(footage, moving_THW, settings, find_flows(footage.rgb) if flows is None else flows)
    parted = _partings(footage, measures, settings)
    reasons = _frame_reasons(measures, settings)
    for row in range(1, len(footage) - 1):  # what fits to neither side is the culprit
        if reasons[row] is None and row in parted and row + 1 in parted:
            reasons[row] = parted[row]
    slices = []
    for run in _runs(reasons, parted):
        if len(run) < settings.min_frames:
            reasons[run.start : run.stop] = ["too short"] * len(run)
            continue
        parts = _equal_parts(run, settings.max_frames)
        parted |= {part.start: "too long" for part in parts[1:]}
        slices += parts
    return Slices(slices=slices, reasons=reasons, parted=parted, measures=measures)


def measure(footage: Footage, moving_THW: np.ndarray, settings: SlicingSettings, flows: Flows) -> Measures:
    """Return what is measured of a video; see `cut` for the arguments."""
    frames = [
        _measure_frame(rgb, depth, valid, ~moving)
        for rgb, depth, valid, moving in zip(footage.rgb, footage.depth, footage.valid, moving_THW, strict=True)
    ]
    pairs = [_measure_pair(footage.rgb, row, ~moving_THW[row], flows, settings) for row in range(len(footage) - 1)]
    frame = np.array(frames, np.float64).reshape(-1, 7).T
    pair = np.array(pairs, np.float64).reshape(-1, 3).T
    sharpness = _relative(frame[3], max(1, round(settings.sharp_span * footage.fps)))
    arrays = (*frame[:3], sharpness, *frame[4:], *pair)
    return Measures(**{one.name: array for one, array in zip(fields(Measures), arrays, strict=True)})


def _measure_frame(
    rgb_HW3: np.ndarray, depth_HW: np.ndarray, valid_HW: np.ndarray, static_HW: np.ndarray
) -> tuple[float, ...]:
    """Return features, texture, brightness, detail, moving, valid and depth spread of a frame."""
    grey = cv2.cvtColor(rgb_HW3, cv2.COLOR_RGB2GRAY)
    share, known = float(static_HW.mean()), static_HW & valid_HW
    depth = depth_HW[known].astype(np.float64)
    spread = float(depth.std() / depth.mean()) if known.any() else 0.0
    if not static_HW.any():
        return 0.0, 0.0, float(grey.mean()), 0.0, 1.0, 0.0, 0.0
    sift = cv2.SIFT.create(nfeatures=_MOST_POINTS, contrastThreshold=_SIFT_CONTRAST)
    points = len(sift.detect(grey, static_HW.astype(np.uint8)))
    dx, dy = (cv2.Sobel(grey, cv2.CV_32F, *order, ksize=3, scale=1 / 8)[static_HW] for order in ((1, 0), (0, 1)))
    energy = float((dx**2 + dy**2).mean())
    fine = float(cv2.Laplacian(grey, cv2.CV_32F)[static_HW].var())
    texture = float(np.sqrt(dx**2 + dy**2).mean())
    # Contrast cancels out; what is flat has no detail, and is not called blurred either.
    return points, texture, float(grey.mean()), fine / energy if energy > 0 else 0.0, 1 - share, known.mean(), spread


def _measure_pair(
    rgb_THW3: np.ndarray, row: int, static_HW: np.ndarray, flows: Flows, settings: SlicingSettings
) -> tuple[float, float, float]:
    """Return flow, disagreement and unlikeness of a frame and the next one."""
    forward, width = flows.forward[row], static_HW.shape[1]
    speed = float(np.median(np.linalg.norm(forward, axis=-1))) / width
    seen = static_HW & stays_inside(forward)
    if not seen.any():
        return speed, 1.0, 1.0
    off = disagreement(forward, flows.backward[row])[seen]
    here, there = (cv2.cvtColor(rgb_THW3[r], cv2.COLOR_RGB2GRAY).astype(np.float32) for r in (row, row + 1))
    left = np.abs(here - at_targets(there, forward))[seen].mean()
    contrast = (here[seen].std() + there.std()) / 2
    return speed, float((off > settings.disagree_pixels * width).mean()), float(left / max(contrast, 1.0))


def _relative(detail_T: np.ndarray, reach: int) -> np.ndarray:
    """Return each number over the upper quartile of those around it, (T,): a run of blurred frames is told too."""
    around = [detail_T[max(0, row - reach) : row + reach + 1] for row in range(len(detail_T))]
    upper = np.array([np.quantile(some, 0.75) for some in around])
    return np.divide(detail_T, upper, out=np.ones_like(detail_T), where=upper > 0)


def _frame_reasons(measures: Measures, settings: SlicingSettings) -> list[str | None]:
    """Return why each frame is no good by itself; None where it is good."""
    wrong = {  # the first that holds is told: an all black frame also has no texture
        "dark": measures.brightness < settings.brightness,
        "mostly moving": measures.moving > settings.moving,
        "no depth": measures.valid < settings.valid,
        "constant depth": measures.depth_spread < settings.depth_spread,
        "little texture": measures.texture < settings.texture,
        "blurred": measures.sharpness < settings.sharpness,
        "few features": measures.features < settings.features,
    }
    return [next((reason for reason, is_T in wrong.items() if is_T[row]), None) for row in range(len(measures.moving))]


def _partings(footage: Footage, measures: Measures, settings: SlicingSettings) -> dict[int, str]:
    """Return the rows that do not go on from the row before, and why."""
    lost = measures.disagree > settings.disagree
    wrong = {
        "unreadable": np.diff(footage.frame) > 1,
        "cut": lost & (measures.unlike > settings.unlike),
        "jump": measures.flow > settings.flow,
        "flow disagrees": lost,
    }
    told = {row: [reason for reason, is_T in wrong.items() if is_T[row]] for row in range(len(footage) - 1)}
    return {row + 1: reasons[0] for row, reasons in told.items() if reasons}


def _runs(reasons: list[str | None], parted: dict[int, str]) -> list[range]:
    """Return the longest runs of good frames that nothing parts."""
    runs: list[range] = []
    for row, reason in enumerate(reasons):
        if reason is not None:
            continue
        if runs and runs[-1].stop == row and row not in parted:
            runs[-1] = range(runs[-1].start, row + 1)
        else:
            runs.append(range(row, row + 1))
    return runs


def _equal_parts(run: range, most: int) -> list[range]:
    """Return a run in as few parts of about equal length as are short enough."""
    ends = np.linspace(run.start, run.stop, -(-len(run) // most) + 1).round().astype(int).tolist()
    return [range(start, stop) for start, stop in zip(ends[:-1], ends[1:], strict=True)]
