"""Long tracks of points through a video: SIFT points and corners, KLT, and a template that keeps them from drifting.

A point is carried from frame to frame by pyramidal KLT, checked forward and backward. Each step is then aligned with
the picture of the point where it was first seen (an affine patch, inverse compositional: Baker and Matthews 2004), so
that errors do not add up; a point that no longer looks like that is lost. New points are looked for where few are left,
and on request a SIFT point that looks like a lost one, and is confirmed by its patch, goes on with its track.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from training.annotate.patches import Points, align, inside, whole

_PYRAMID_TOP = 20
"""Pixels that the smallest picture of the pyramid has at least along its shorter side."""
_PIXELS_A_POINT = 40.0
"""Small pictures get no more points than one for this many pixels."""
_NEW_EVERY, _FEW = 3, 0.85
"""New points are looked for every so many frames, and when less than this share of the points is left."""
_SPREAD = 0.6
"""Least distance between points when they are chosen, times what an even spread would give."""
_BLUR = 0.7
"""Sigma in pixels: hides aliasing and the interpolation's own blur, which pull points to the pixel grid."""
_FARTHEST = 1.5
"""Pixels that alignment may move a point from where KLT found it."""
_MOST_STRETCH = 2.5
"""A patch seen larger or smaller by more than this, along any direction, is another picture."""
_VAGUE = 0.15
"""Pixels; a patch is too flat where that noise would move it by more (one sigma, the worse direction)."""
_RATIO = 0.8
"""Lowe's ratio test of SIFT matches."""
_DORMANT = 2000
"""Lost points that may be found again; the oldest are forgotten."""


@dataclass(frozen=True, eq=False)
class Tracks:
    """M observations of K points. Pixels: see conventions."""

    track: np.ndarray
    """(M,) int64 in 0..K-1, ascending."""
    frame: np.ndarray
    """(M,) int64, index of the frame, ascending within a track."""
    pixel: np.ndarray
    """(M, 2) float64 x, y."""

    def __post_init__(self) -> None:
        """Check the arrays.

        Raises:
            ValueError: Shapes differ, a pixel is not finite, or the order is another one.
        """
        count = len(self.track)
        for name, shape in (("track", (count,)), ("frame", (count,)), ("pixel", (count, 2))):
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {np.shape(getattr(self, name))}.")
        if not np.isfinite(self.pixel).all():
            raise ValueError("pixel must be finite; leave out observations that are not.")
        if count and (min(self.track.min(), self.frame.min()) < 0 or not self._in_order()):
            raise ValueError("track must ascend from 0 or more, and frame within each track, no frame twice.")

    def __len__(self) -> int:
        """Return M, the number of observations."""
        return len(self.track)

    @property
    def count(self) -> int:
        """K: one more than the highest number of a track."""
        return int(self.track[-1]) + 1 if len(self.track) else 0

    @property
    def lengths(self) -> np.ndarray:
        """Observations of each track, (K,) int64."""
        return np.bincount(self.track, minlength=self.count)

    def only(self, keep: np.ndarray, least_length: int = 1) -> tuple[Tracks, np.ndarray]:
        """Return the observations that are kept, of tracks that stay long enough, numbered anew without gaps.

        Args:
            keep: (M,) bool.
            least_length: Shorter tracks are left out as a whole.

        Returns:
            The tracks, and which observations they hold, (M,) bool.
        """
        lengths = np.bincount(self.track[keep], minlength=self.count)
        keep = keep & (lengths[self.track] >= least_length)
        _, track = np.unique(self.track[keep], return_inverse=True)
        return Tracks(track.astype(np.int64), self.frame[keep], self.pixel[keep]), keep

    def _in_order(self) -> bool:
        step = np.diff(self.track)
        return bool((step >= 0).all() and (np.diff(self.frame)[step == 0] > 0).all())


@dataclass(frozen=True, kw_only=True)
class TrackSettings:
    """How points are followed. Pixels are those of the video."""

    points: int = 500
    """Points aimed at in each frame; small pictures get fewer, one for each 40 pixels at most."""
    window: int | None = None
    """Side of a point's patch, pixels, odd; None follows from the size of the picture."""
    likeness: float = 0.9
    """Least correlation of a patch with the one it was first seen as, in (0, 1)."""
    forward_backward: float = 1.0
    """Pixels that KLT may miss a point by when it goes back to the frame before."""
    least_length: int = 3
    """Frames; shorter tracks are left out."""
    rejoin: bool = False
    """Whether SIFT looks for lost points again."""

    def __post_init__(self) -> None:
        if self.points < 1 or self.least_length < 1:
            raise ValueError(
                f"points and least_length must be at least 1, got points={self.points}, "
                f"least_length={self.least_length}."
            )
        if self.window is not None and (self.window < 5 or self.window % 2 == 0):
            raise ValueError(f"window must be odd and at least 5, got {self.window}; None chooses one.")
        if not 0 < self.likeness < 1 or not 0 < self.forward_backward < np.inf:
            raise ValueError(
                f"likeness must be in (0, 1) and forward_backward positive, got likeness={self.likeness}, "
                f"forward_backward={self.forward_backward}."
            )


DEFAULT = TrackSettings()


def follow(
    rgb: np.ndarray,
    usable: np.ndarray,
    settings: TrackSettings = DEFAULT,
    *,
    detect: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Tracks:
    """Return the tracks of points through a video.

    Patches hold only what can be reached from their point on usable pixels. Where depth is known, leave its jumps out
    (`surfaces.smooth`): a patch across the edge of a thing shows two surfaces, and follows neither.

    Args:
        rgb: (T, H, W, 3) uint8.
        usable: (T, H, W) bool: where a point may lie, for example static and with a depth; no observation lies outside.
        settings: How.
        detect: Finds points that are tried before SIFT's: (H, W, 3) uint8 to pixels (N, 2), the best first.

    Returns:
        The tracks; none where nothing can be followed.

    Raises:
        ValueError: Wrong shapes or types, or pictures smaller than three patches.
    """
    if rgb.ndim != 4 or rgb.shape[-1] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise ValueError(f"rgb must be (T, H, W, 3) uint8, got {rgb.shape} {rgb.dtype}.")
    if usable.shape != rgb.shape[:3] or usable.dtype != np.bool_:
        raise ValueError(f"usable must be {rgb.shape[:3]} bool as rgb is, got {usable.shape} {usable.dtype}.")
    # A fourteenth of the picture: 17 of 240 rows. Small pictures show too little in fewer than 11 pixels.
    window = settings.window or int(np.clip(min(rgb.shape[1:3]) / 28, 5, 12)) * 2 + 1
    if min(rgb.shape[1:3]) < 3 * window:
        raise ValueError(f"rgb must be at least {3 * window} pixels high and wide, got {rgb.shape[1:3]}.")
    follower = _Follower(rgb.shape[1:3], window, settings, detect)
    for rgb_HW3, usable_HW in zip(rgb, usable, strict=True):
        follower.advance(rgb_HW3, usable_HW)
    return follower.tracks()


class _Follower:
    """Carries points from frame to frame and writes down where they are. Pixels here are OpenCV's: centres at integers.

    Args:
        size: Height and width, pixels.
        window: Side of a patch, pixels.
        settings: How.
        detect: See `follow`.
    """

    def __init__(
        self,
        size: tuple[int, ...],
        window: int,
        settings: TrackSettings,
        detect: Callable[[np.ndarray], np.ndarray] | None,
    ):
        self.settings, self.window, self.detect = settings, window, detect
        aim = min(settings.points, size[0] * size[1] / _PIXELS_A_POINT)
        self.distance = _SPREAD * float(np.sqrt(size[0] * size[1] / aim))
        self.levels = max(0, int(np.log2(min(size) / _PYRAMID_TOP)))
        self.sift = cv2.SIFT.create(contrastThreshold=0.01)
        self.frame, self.born, self.count = -1, 0, 0
        self.before: np.ndarray | None = None
        self.seen = Points.cut(np.zeros(size, np.float32), np.zeros(size, bool), np.zeros((0, 2)), window)
        self.lost = self.seen
        self.found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def advance(self, rgb: np.ndarray, usable: np.ndarray) -> None:
        """Follow the points into the next frame and look for new ones.

        Args:
            rgb: (H, W, 3) uint8.
            usable: (H, W) bool.
        """
        self.frame += 1
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        picture = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), _BLUR)
        if self.before is not None and len(self.seen):
            keep = self._carry(self.before, grey, picture, usable)
            lost = self.seen.take(~keep & self.seen.descriptor.any(-1))
            self.lost = self.lost.join(lost).take(slice(-_DORMANT, None))
            self.seen = self.seen.take(keep)
        # Detection costs more than following, so it waits until points are missing or the view has moved on.
        if len(self.seen) <= _FEW * self.born or self.frame % _NEW_EVERY == 0:
            self._look(rgb, grey, picture, usable)
            self.born = len(self.seen)
        self.before = grey
        self.found.append((self.seen.track.copy(), np.full(len(self.seen), self.frame), self.seen.pixel + 0.5))

    def tracks(self) -> Tracks:
        """Return what was written down, without short tracks."""
        track, frame, pixel = (np.concatenate(part) for part in zip(*self.found, strict=True))
        order = np.lexsort([frame, track])
        tracks = Tracks(track[order], frame[order], pixel[order])
        return tracks.only(np.ones(len(tracks), bool), self.settings.least_length)[0]

    def _carry(self, before: np.ndarray, grey: np.ndarray, picture: np.ndarray, usable: np.ndarray) -> np.ndarray:
        """Move the points into this frame and return which of them are still seen, (N,) bool."""
        side, start = (self.window + 2, self.window + 2), self.seen.pixel.astype(np.float32)
        there, went, _ = cv2.calcOpticalFlowPyrLK(before, grey, start, None, winSize=side, maxLevel=self.levels)
        back, came, _ = cv2.calcOpticalFlowPyrLK(grey, before, there, None, winSize=side, maxLevel=self.levels)
        keep = (went[:, 0] == 1) & (came[:, 0] == 1) & inside(there, usable)
        keep &= np.linalg.norm(back - start, axis=-1) <= self.settings.forward_backward
        rows = np.flatnonzero(keep)
        keep[rows] = self._place(rows, there[rows], picture, usable)
        return keep

    def _place(self, rows: np.ndarray, guess: np.ndarray, picture: np.ndarray, usable: np.ndarray) -> np.ndarray:
        """Align some of the points, from `guess` (n, 2) on, and return which of them look as they did, (n,) bool."""
        self.seen.pixel[rows] = guess
        aligned, likeness = align(picture, self.seen.take(rows), self.window)
        self.seen.pixel[rows], self.seen.affine[rows] = aligned.pixel, aligned.affine
        stretch = np.linalg.svd(aligned.affine, compute_uv=False)
        good = (likeness >= self.settings.likeness) & inside(aligned.pixel, usable)
        good &= (stretch <= _MOST_STRETCH).all(-1) & (stretch >= 1 / _MOST_STRETCH).all(-1)
        return good & (np.linalg.norm(aligned.pixel - guess, axis=-1) <= _FARTHEST)

    def _look(self, rgb: np.ndarray, grey: np.ndarray, picture: np.ndarray, usable: np.ndarray) -> None:
        """Find again what was lost, and find new points where few are."""
        mask = usable.astype(np.uint8)
        keypoints, descriptor = self.sift.detectAndCompute(grey, mask)
        order = np.argsort([-k.response for k in keypoints])
        at = np.array([keypoints[i].pt for i in order]).reshape(-1, 2)
        shape = np.array([(keypoints[i].size, np.deg2rad(keypoints[i].angle)) for i in order]).reshape(-1, 2)
        descriptor = np.zeros((0, 128), np.float32) if descriptor is None else descriptor[order]
        if self.settings.rejoin and len(at) and len(self.lost):
            self._rejoin(at, shape, descriptor, picture, usable)
        corners = cv2.goodFeaturesToTrack(grey, 4 * self.settings.points, 0.002, self.distance, mask=mask, blockSize=5)
        given = np.zeros((0, 2)) if self.detect is None else self.detect(rgb) - 0.5
        pixel = np.concatenate([given, at, *([] if corners is None else [corners[:, 0]])])
        rows = self._spread(pixel, usable)
        new = Points.cut(picture, usable, pixel[rows], self.window)
        of_sift = (rows >= len(given)) & (rows < len(given) + len(at))
        from_sift = rows[of_sift] - len(given)
        new.descriptor[of_sift], new.shape[of_sift] = descriptor[from_sift], shape[from_sift]
        self.seen = self.seen.join(self._numbered(new.take(new.vagueness <= _VAGUE)))

    def _numbered(self, new: Points) -> Points:
        new.track[:] = self.count + np.arange(len(new))
        self.count += len(new)
        return new

    def _rejoin(
        self, at: np.ndarray, shape: np.ndarray, descriptor: np.ndarray, picture: np.ndarray, usable: np.ndarray
    ) -> None:
        """Go on with lost points that are seen again at some of the SIFT points."""
        pairs = cv2.BFMatcher().knnMatch(self.lost.descriptor, descriptor, 2)
        best = {m.queryIdx: m for m, *others in pairs if others and m.distance < _RATIO * others[0].distance}
        if not best:
            return
        lost, there = np.array([(m.queryIdx, m.trainIdx) for m in best.values()]).T
        found = self.lost.take(lost)
        found.pixel[:] = at[there]
        grown, turned = shape[there, 0] / found.shape[:, 0], shape[there, 1] - found.shape[:, 1]
        c, s = grown * np.cos(turned), grown * np.sin(turned)
        found.affine[:] = np.stack([c, -s, s, c], axis=-1).reshape(-1, 2, 2)
        others, self.seen = self.seen, found
        good = self._place(np.arange(len(found)), at[there], picture, usable)
        self.seen = others.join(found.take(good))
        self.lost = self.lost.take(np.setdiff1d(np.arange(len(self.lost)), lost[good]))

    def _spread(self, pixel: np.ndarray, usable: np.ndarray) -> np.ndarray:
        """Return which of the candidates (n, 2), the better first, keep their distance from the points and others."""
        height, width = usable.shape
        rim, radius = self.window // 2, max(1, round(self.distance))
        free = np.zeros((height, width), np.uint8)
        free[rim:-rim, rim:-rim] = usable[rim:-rim, rim:-rim]
        for x, y in whole(self.seen.pixel).tolist():
            cv2.circle(free, (x, y), radius, [0], -1)
        chosen = []
        for row, (x, y) in enumerate(np.clip(whole(pixel), 0, [width - 1, height - 1]).tolist()):
            if free[y, x]:
                cv2.circle(free, (x, y), radius, [0], -1)
                chosen.append(row)
        return np.array(chosen, np.int64)
