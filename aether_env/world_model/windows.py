"""Videos longer than one window: how they are cut, and how what is found in the windows is joined.

Each window is brought to the unit and the world of all that came before it, by the frames that they share, and faded in
over them. Everything works on streams as well: a joiner is given windows in order and gives back the frames that no
later window can change, so that memory does not grow with the video. Poses, axes and units: see conventions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch

from aether_env.camera import check_poses, scale_poses
from aether_env.conventions import FAR_DEPTH
from aether_env.disparity import relative_scale
from aether_env.trajectory import align_sim3, blend_paths
from aether_env.videos import Note

Frame = TypeVar("Frame")


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a video is cut into windows of one length."""

    num_frames: int
    """Of the video."""
    length: int
    """Frames of each window."""
    stride: int
    """Frames between the beginnings of neighbours; the last window begins where it ends with the video."""
    starts: tuple[int, ...]
    """Frame at which each begins."""

    @property
    def padded(self) -> int:
        """How often the last frame is repeated to fill the only window of a short video."""
        return max(0, self.length - self.num_frames)

    @property
    def windows(self) -> list[range]:
        """The frames of each window, without repeated ones."""
        return [range(start, min(start + self.length, self.num_frames)) for start in self.starts]

    def notes(self) -> tuple[Note, ...]:
        """Return what a user should know; nothing where the video is one whole window."""
        numbers: dict[str, float] = {"frames": self.num_frames, "length": self.length}
        if self.padded:
            text = (
                f"{self.num_frames} frames are fewer than the {self.length} of a window: the last one is repeated "
                f"{self.padded} times, and what is found for these is dropped."
            )
            return (Note("padded", text, numbers | {"repeated": self.padded}),)
        if len(self.starts) == 1:
            return ()
        text = (
            f"{self.num_frames} frames are looked at in {len(self.starts)} windows of {self.length}, one every "
            f"{self.stride}, which are joined by what they share."
        )
        return (Note("windowed", text, numbers | {"windows": len(self.starts), "stride": self.stride}),)


class FrameWindow(NamedTuple, Generic[Frame]):
    """A window of a stream of frames."""

    start: int
    """Frame of the video at which it begins."""
    frames: list[Frame]
    """As many as a window has."""
    padded: int
    """How many at the end repeat the video's last frame."""


def cut(num_frames: int, lengths: int | Sequence[int], stride: int) -> Cut:
    """Return how a video is cut.

    A video longer than the longest window is covered by windows of that length, one every `stride` frames, the last one
    moved back to end with the video. A shorter one is one window of the next length, filled with its last frame.

    Args:
        num_frames: Of the video.
        lengths: Frames that a window may have.
        stride: Frames between the beginnings of neighbours, less than the longest window: they must share frames.

    Raises:
        ValueError: No frames, no length, or a stride that leaves no shared frame.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}.")
    length = _length_for(num_frames, _checked_lengths(lengths, stride))
    last = max(0, num_frames - length)
    return Cut(num_frames=num_frames, length=length, stride=stride, starts=(*range(0, last, stride), last))


def windows_of(frames: Iterable[Frame], lengths: int | Sequence[int], stride: int) -> Iterator[FrameWindow[Frame]]:
    """Yield the windows that `cut` tells, of a video whose length need not be known; one window is held.

    Args:
        frames: Anything, such as pictures or the frames of an `OpenVideo`.
        lengths: As in `cut`.
        stride: As in `cut`.

    Raises:
        ValueError: As `cut`.
    """
    ordered = _checked_lengths(lengths, stride)
    longest = ordered[-1]
    held: list[Frame] = []
    start, shown_to = 0, 0
    for frame in frames:
        if len(held) == longest:
            held = held[1:]
            start += 1
        held.append(frame)
        if len(held) == longest and start % stride == 0:
            yield FrameWindow(start, list(held), 0)
            shown_to = start + longest
    if not held:
        raise ValueError("frames holds no frame; a video has at least one.")
    if start + len(held) > shown_to:
        padded = max(0, _length_for(len(held), ordered) - len(held))
        yield FrameWindow(start, held + [held[-1]] * padded, padded)


class _Joiner(ABC):
    """Joins windows that are given in order, and holds only what a later one may still change."""

    def __init__(self) -> None:
        self._tail: np.ndarray | None = None
        self._begin = 0
        self._number = 0

    def finish(self) -> np.ndarray:
        """Return the frames that are left; the joiner is then as new.

        Raises:
            ValueError: No window was given.
        """
        if self._tail is None:
            raise ValueError("there must be a window before finish; add them first.")
        left = self._tail
        self._tail, self._begin, self._number = None, 0, 0
        return left

    def _add(self, window: np.ndarray, start: int) -> np.ndarray:
        """Return the frames before `start`, which are done."""
        if not np.isfinite(window).all():
            raise ValueError(f"window {self._number} must be finite, but has NaN or infinite values.")
        if self._tail is None:
            if start != 0:
                raise ValueError(f"starts must begin at frame 0, got {start}.")
            if not len(window):
                raise ValueError("window 0 has no frames.")
            self._tail = window.copy()
            done = window[:0]
        else:
            end = self._begin + len(self._tail)
            if not self._begin <= start < end or start + len(window) < end:
                raise ValueError(
                    f"window {self._number} of {len(window)} frames must begin at frame {self._begin} to {end - 1}, so "
                    f"that it shares frames with those before it, and reach frame {end} or farther; it begins at "
                    f"{start}."
                )
            done, shared = np.split(self._tail, [start - self._begin])
            self._tail = self._joined(shared, window)
        self._begin, self._number = start, self._number + 1
        return done

    @abstractmethod
    def _joined(self, shared: np.ndarray, window: np.ndarray) -> np.ndarray:
        """Return the window in the unit and world of what came before, faded in over the frames that are shared."""


class FadeJoiner(_Joiner):
    """Joins numbers that mean the same in every window, such as intrinsics: by a linear cross-fade."""

    def add(self, window: np.ndarray, start: int) -> np.ndarray:
        """Give the next window.

        Args:
            window: (t, ...).
            start: Frame of the video at which it begins: 0 first, then in order and without gaps.

        Returns:
            (s, ...) float64: the frames of the video that are done, which follow those returned before.

        Raises:
            ValueError: Not finite, or it does not follow the windows before.
        """
        return self._add(np.asarray(window, dtype=np.float64), start)

    def _joined(self, shared: np.ndarray, window: np.ndarray) -> np.ndarray:
        return _faded(shared, window)


class DisparityJoiner(_Joiner):
    """Joins disparity, each window in a unit of its own, in the unit of the first."""

    scale = 1.0
    """What the last window was multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self._given: float | None = None

    def add(self, disparity: np.ndarray, start: int, *, scale: float | None = None) -> np.ndarray:
        """Give the next window.

        Args:
            disparity: (t, H, W); 0 is infinitely far.
            start: Frame of the video at which it begins: 0 first, then in order and without gaps.
            scale: What it is multiplied with; None finds it by least squares over the shared frames.

        Returns:
            (s, H, W) float64: the frames of the video that are done, which follow those returned before.

        Raises:
            ValueError: Not finite, or it does not follow the windows before.
        """
        self.scale, self._given = 1.0, scale
        return self._add(np.asarray(disparity, dtype=np.float64), start)

    def _joined(self, shared: np.ndarray, window: np.ndarray) -> np.ndarray:
        self.scale = scale_between(window[: len(shared)], shared) if self._given is None else self._given
        return _faded(shared, window * self.scale)


class DepthJoiner:
    """Joins depth, each window in a unit of its own, in the unit of the first; fades are linear in disparity.

    Args:
        far: Depth of what is infinitely far, and the largest that is returned.
    """

    def __init__(self, far: float = FAR_DEPTH):
        self.far = far
        self._disparity = DisparityJoiner()

    @property
    def scale(self) -> float:
        """What the lengths of the last window were multiplied with."""
        return 1 / self._disparity.scale

    def add(self, depth: np.ndarray, start: int, *, scale: float | None = None) -> np.ndarray:
        """Give the next window: as `DisparityJoiner.add`, with (t, H, W) positive depth, and `scale` of lengths.

        Returns:
            (s, H, W) float32 depth of the frames that are done.
        """
        depth = np.asarray(depth, dtype=np.float64)
        if not (depth > 0).all():
            raise ValueError("depth must be positive and not NaN; put FAR_DEPTH where it is unknown.")
        # The sky stays the sky, whatever the unit.
        disparity = np.where(depth < 0.999 * self.far, 1 / depth, 0.0)
        return self._depth(self._disparity.add(disparity, start, scale=None if scale is None else 1 / scale))

    def finish(self) -> np.ndarray:
        """Return the depth of the frames that are left, (s, H, W) float32; the joiner is then as new."""
        return self._depth(self._disparity.finish())

    def _depth(self, disparity: np.ndarray) -> np.ndarray:
        return (1 / np.maximum(disparity, 1 / self.far)).astype(np.float32)


class PathJoiner(_Joiner):
    """Joins camera paths, each window in a world and a unit of its own, in those of the first.

    Each window is moved by the similarity that takes its shared poses nearest to the ones before (Umeyama's, on
    camera-to-world poses). Centres are faded linearly, rotations by slerp.
    """

    scale = 1.0
    """What the lengths of the last window were multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self._given: float | None = None

    def add(self, world_from_camera: np.ndarray, start: int, *, scale: float | None = None) -> np.ndarray:
        """Give the next window.

        Args:
            world_from_camera: (t, 4, 4).
            start: Frame of the video at which it begins: 0 first, then in order and without gaps.
            scale: What its lengths are multiplied with; None finds it by the shared poses, 1 where these stand still.
                `DepthJoiner.scale` is better where there is depth: over a few frames a camera hardly moves.

        Returns:
            (s, 4, 4) float64: the poses of the video that are done, which follow those returned before.

        Raises:
            ValueError: Poses that are not rigid, or the window does not follow those before.
        """
        self.scale, self._given = 1.0, scale
        return self._add(check_poses(f"window {self._number}", world_from_camera), start)

    def _joined(self, shared: np.ndarray, window: np.ndarray) -> np.ndarray:
        overlap = len(shared)
        if self._given is not None:
            window = scale_poses(window, self._given)
        similarity = align_sim3(window[:overlap], shared, with_scale=self._given is None)
        self.scale = similarity.scale if self._given is None else self._given
        return blend_paths(shared, similarity.apply_to_poses(window), overlap)


def join_disparity(windows: Sequence[np.ndarray], starts: Sequence[int]) -> np.ndarray:
    """Return the disparity of the whole video, in the first window's unit.

    Args:
        windows: Disparity of each window, (t, H, W), in a unit of its own; 0 is infinitely far.
        starts: Frame of the video at which each begins: 0 first, then in order and without gaps.

    Returns:
        (T, H, W) float64.

    Raises:
        ValueError: The windows do not cover a video, or neighbours share no frame.
    """
    joiner = DisparityJoiner()
    done = [joiner.add(window, start) for window, start in _pairs(windows, starts)]
    return np.concatenate([*done, joiner.finish()])


def join_paths(windows: Sequence[np.ndarray], starts: Sequence[int]) -> np.ndarray:
    """Return the camera path of the whole video, (T, 4, 4) float64, in the first window's world and unit.

    Args:
        windows: Poses of each window, (t, 4, 4), in a world of its own.
        starts: As in `join_disparity`.

    Raises:
        ValueError: As `join_disparity`; or poses are not rigid.
    """
    joiner = PathJoiner()
    done = [joiner.add(window, start) for window, start in _pairs(windows, starts)]
    return np.concatenate([*done, joiner.finish()])


def later_seed(seed: int, frame: int) -> int:
    """Return the seed of the window that begins at a later frame: other noise than the first one's."""
    return int(np.random.SeedSequence([seed, frame]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def scale_between(disparity: np.ndarray, target: np.ndarray) -> float:
    """Return the factor that takes disparity (t, H, W) nearest to another's of the same frames (least squares).

    What either of them takes for infinitely far says nothing; 1 where nothing is left.
    """
    found, wanted = torch.from_numpy(disparity), torch.from_numpy(target)
    return float(relative_scale(found, wanted, wanted > 0))


def _pairs(windows: Sequence[np.ndarray], starts: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
    if not len(windows) or len(windows) != len(starts):
        raise ValueError(f"starts must be one a window and there must be a window, got {len(starts)}, {len(windows)}.")
    return zip(windows, starts, strict=True)


def _faded(shared: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Return the window, faded in linearly over the frames that are shared."""
    overlap = len(shared)
    weight = (np.arange(overlap) + 1.0).reshape(-1, *[1] * (window.ndim - 1)) / (overlap + 1)
    return np.concatenate([(1 - weight) * shared + weight * window[:overlap], window[overlap:]])


def _checked_lengths(lengths: int | Sequence[int], stride: int) -> list[int]:
    """Return the lengths in order."""
    ordered = sorted([lengths] if isinstance(lengths, int) else lengths)
    if not ordered or ordered[0] < 1:
        raise ValueError(f"lengths must be one or more whole numbers >= 1, got {lengths}.")
    if not 1 <= stride < max(ordered[-1], 2):
        raise ValueError(f"stride must be in 1..{max(ordered[-1] - 1, 1)}, so that windows share frames, got {stride}.")
    return ordered


def _length_for(num_frames: int, ordered: list[int]) -> int:
    """Return the shortest length that holds the video, or the longest."""
    return next((length for length in ordered if length >= num_frames), ordered[-1])
