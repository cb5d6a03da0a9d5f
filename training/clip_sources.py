"""Where clips come from: the promise of a source, and who keeps it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aether_env.conventions import FAR_DEPTH
from aether_env.sim.seeds import seed_in
from training.clips import Clip, ClipError, check_clip, clips_from_simulator, nearest_frames, random_window
from training.data_config import NO_CAMERAS
from training.evaluation.datasets import DatasetError, DatasetName, LabelledVideo, open_dataset
from training.evaluation.datasets.tum import TUM_FPS, open_recordings
from training.shards import open_shards, read_clip

SET_FPS: dict[str, float] = {"sintel": 24.0, "sintel_pose": 24.0, "scannet": 10.0, "tum": TUM_FPS}
"""Frames per second of the test sets that tell cameras, as they are read: every third frame of ScanNet."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What all clips of a batch shall be like."""

    num_frames: int
    fps: float
    height: int
    width: int


class ClipSource(ABC):
    """Clips by number. `clip` is pure: the same arguments give the same clip, in any process and at any time."""

    name: str
    """Of the source, for errors."""
    length: int | None
    """How many clips; None is endless."""
    problems: tuple[str, ...] = ()
    """What is damaged and was left out when the source was opened, and why."""

    @abstractmethod
    def clip(
        self, index: int, num_frames: int, fps: float, height: int, width: int, generator: np.random.Generator
    ) -> Clip:
        """Return a window of clip number `index`.

        Args:
            index: In [0, length).
            num_frames: T.
            fps: Frames per second.
            height: Pixels.
            width: Pixels.
            generator: Chooses the window.

        Raises:
            ClipError: The clip is damaged, too short, or slower than `fps`: frames are never made up.
        """

    def clips(
        self, indices: Sequence[int], wanted: Wanted, generators: Sequence[np.random.Generator]
    ) -> list[Clip | ClipError]:
        """Return `clip` of each index, or why there is none; faster together for some sources."""
        found: list[Clip | ClipError] = []
        for index, generator in zip(indices, generators, strict=True):
            try:
                clip = self.clip(index, wanted.num_frames, wanted.fps, wanted.height, wanted.width, generator)
                found.append(clip)
            except ClipError as error:
                found.append(error)
        return found

    def sizes(self) -> np.ndarray | None:
        """Return height and width of every clip as it is stored, (length, 2); None where any size is as good."""
        return None

    def spans(self) -> np.ndarray | None:
        """Return frames and frames per second of every clip, (length, 2) float64; None where any can be had."""
        return None

    def fits(self, num_frames: int, fps: float) -> np.ndarray | None:
        """Return which clips are long and fast enough for a window, (length,) bool; None where all are."""
        if (spans := self.spans()) is None:
            return None
        rates, which = np.unique(spans[:, 1], return_inverse=True)
        return spans[:, 0] >= np.array([frames_needed(num_frames, fps, float(rate)) for rate in rates])[which]

    def groups(self) -> list[int]:
        """Return how many clips lie together, one number for each place; they sum to `length`."""
        return [1] * (self.length or 0)


class SimulatorClips(ClipSource):
    """Clips rendered when they are asked for. Endless, of training seeds only.

    Args:
        seed: Runs of different seeds see different scenes.
        device: Where they are drawn.
        supersample: Rays per pixel and axis.
        family: One scene family only; None mixes all.
    """

    name, length = "simulator", None

    def __init__(self, seed: int = 0, *, device: str = "cpu", supersample: int = 2, family: str | None = None):
        self.seed, self.device, self.supersample, self.family = seed, device, supersample, family
        scene_seed("train", seed, 0)

    def clip(
        self, index: int, num_frames: int, fps: float, height: int, width: int, generator: np.random.Generator
    ) -> Clip:
        """Return a clip; a walk begins with its first frame, so nothing is drawn."""
        wanted = Wanted(num_frames=num_frames, fps=fps, height=height, width=width)
        return self.render([index], wanted)[0]

    def clips(
        self, indices: Sequence[int], wanted: Wanted, generators: Sequence[np.random.Generator]
    ) -> list[Clip | ClipError]:
        """Return the clips, rendered together."""
        return list(self.render(indices, wanted))

    def render(self, indices: Sequence[int], wanted: Wanted) -> list[Clip]:
        """Return clips; a clip is the same alone and together with others."""
        seeds = [scene_seed("train", self.seed, index) for index in indices]
        return render_seeds(seeds, wanted, device=self.device, supersample=self.supersample, family=self.family)


class ShardClips(ClipSource):
    """Clips in shards, recorded or annotated. A random window of a clip is read, and nothing else of it.

    Args:
        folder: Of *.tar files.
    """

    def __init__(self, folder: Path):
        self.name = str(folder)
        shards = open_shards(Path(folder))
        self.problems = tuple(problem for shard in shards for problem in shard.problems)
        self._paths = [shard.path for shard in shards]
        self._counts = [len(shard) for shard in shards]
        self._ends = np.cumsum(self._counts)
        self._rows = np.concatenate([shard.rows for shard in shards])
        self.length = len(self._rows)
        if not self.length:
            raise ValueError(f"folder must hold clips, {folder} has none that can be read: {'; '.join(self.problems)}")

    def clip(
        self, index: int, num_frames: int, fps: float, height: int, width: int, generator: np.random.Generator
    ) -> Clip:
        """Return a random window of a clip."""
        row, path = self._rows[index], self._paths[int(np.searchsorted(self._ends, index, side="right"))]
        name = f"{path}: clip at byte {row['offset']}"
        frames = random_window(int(row["frames"]), float(row["fps"]), num_frames, fps, generator, name=name)
        return replace(read_clip(path, int(row["offset"]), frames), fps=fps).fitted(height, width)

    def sizes(self) -> np.ndarray:
        """Return height and width of every clip, (length, 2)."""
        return np.stack([self._rows["height"], self._rows["width"]], axis=1)

    def spans(self) -> np.ndarray:
        """Return frames and frames per second of every clip, (length, 2)."""
        return np.stack([self._rows["frames"], self._rows["fps"]], axis=1)

    def groups(self) -> list[int]:
        """Return the number of clips in each shard."""
        return self._counts


class FolderClips(ClipSource):
    """Videos in the layouts of the paper's test sets. One without depth has no valid pixel.

    Args:
        videos: With poses and intrinsics; annotate others first.
        fps: Their frames per second.
        name: For errors.

    Raises:
        ValueError: A video lacks poses or intrinsics.
    """

    def __init__(self, videos: Sequence[LabelledVideo], fps: float, name: str = "videos"):
        if not videos or not fps > 0:
            raise ValueError(f"videos and fps must be given, got {len(videos)} videos and fps={fps}.")
        for video in videos:
            for what in ("world_from_camera", "intrinsics"):
                if getattr(video, what) is None:
                    raise ValueError(
                        f"videos must have {what}, {video.name} of {name} has none; annotate the set and "
                        "give the shards instead."
                    )
        self.name, self.fps, self.length = name, fps, len(videos)
        self._videos = list(videos)

    @classmethod
    def open(
        cls, name: DatasetName, root: Path, *, only: Sequence[str] | None = None, fps: float | None = None
    ) -> FolderClips:
        """Return the videos of a folder in the layout of a set.

        Args:
            name: Of the set.
            root: Its folder.
            only: Which sequences; None is those of the public evaluation, but of TUM all that the folder has.
            fps: Frames per second as they are read; None is `SET_FPS`.

        Raises:
            ValueError: A file is missing or damaged, or the set has no poses or intrinsics.
        """
        if name not in SET_FPS:
            why = NO_CAMERAS.get(name, "no such set is known")
            raise ValueError(
                f"name must be that of a set whose layout tells poses and intrinsics ({', '.join(SET_FPS)}), got "
                f"{name!r}: {why}; annotate its videos and give the shards instead."
            )
        videos = open_recordings(Path(root), only) if name == "tum" else open_dataset(name, root, only)
        return cls(videos, SET_FPS[name] if fps is None else fps, f"{name} in {root}")

    def clip(
        self, index: int, num_frames: int, fps: float, height: int, width: int, generator: np.random.Generator
    ) -> Clip:
        """Return a random window of a video."""
        video = self._videos[index]
        frames = random_window(len(video), self.fps, num_frames, fps, generator, name=video.name)
        assert video.world_from_camera is not None and video.intrinsics is not None
        try:
            rgb = np.stack([video.rgb(int(i)) for i in frames])
            depth = np.zeros(rgb.shape[:3], np.float32)
            if video.depth_paths is not None:
                depth = np.stack([video.depth(int(i)) for i in frames]).astype(np.float32)
            clip = Clip(
                rgb=rgb,
                depth=depth,
                valid=(depth > 0) & (depth < FAR_DEPTH),  # these sets' skies are very far
                moving=np.zeros(depth.shape, bool),
                world_from_camera=video.world_from_camera[frames],
                intrinsics=video.intrinsics[frames],
                fps=fps,
                name=video.name,
            )
            return check_clip(clip).fitted(height, width)
        except DatasetError as error:
            raise ClipError(str(error), "damaged") from error
        except ValueError as error:
            raise ClipError(f"{video.name}: {error}", "damaged") from error

    def sizes(self) -> np.ndarray:
        """Return height and width of every video, (length, 2)."""
        return np.array([(video.height, video.width) for video in self._videos])

    def spans(self) -> np.ndarray:
        """Return frames and frames per second of every video, (length, 2)."""
        return np.array([(len(video), self.fps) for video in self._videos], np.float64)


class MixedClips:
    """Sources and how often each is drawn from.

    Args:
        sources: Each with its weight; weights are relative to their sum.

    Raises:
        ValueError: No source, or a weight that is not positive.
    """

    def __init__(self, sources: Sequence[tuple[ClipSource, float]]):
        weights = np.array([weight for _, weight in sources], np.float64)
        if not len(weights) or not (np.isfinite(weights) & (weights > 0)).all():
            raise ValueError(f"sources must be some, with positive weights, got weights {weights.tolist()}.")
        self.sources = [source for source, _ in sources]
        self.weights = weights / weights.sum()

    @property
    def problems(self) -> tuple[str, ...]:
        """What is damaged and was left out when the sources were opened."""
        return tuple(problem for source in self.sources for problem in source.problems)


def frames_needed(num_frames: int, fps: float, own_fps: float) -> float:
    """Return how many frames a clip of `own_fps` must have for a window; infinitely many if it is too slow."""
    try:
        return float(nearest_frames(num_frames, fps, own_fps)[-1] + 1)
    except ClipError:
        return np.inf


def scene_seed(split: str, seed: int, index: int) -> int:
    """Return the simulator's seed of clip number `index` of a run or recording.

    Raises:
        ValueError: The split does not reach that far.
    """
    if seed < 0 or not 0 <= index < 2**32:
        raise ValueError(f"seed must be at least 0 and index in [0, 2**32), got {seed} and {index}.")
    return seed_in(split, (seed << 32) + index)


def render_seeds(
    seeds: Sequence[int], wanted: Wanted, *, device: str = "cpu", supersample: int = 2, family: str | None = None
) -> list[Clip]:
    """Return the simulator's clips of these seeds."""
    from aether_env.sim import render_clips  # loads MuJoCo and Warp, which a reader of shards does not need

    clips = render_clips(
        seeds,
        num_frames=wanted.num_frames,
        fps=wanted.fps,
        height=wanted.height,
        width=wanted.width,
        device=device,
        supersample=supersample,
        family=family,
    )
    return clips_from_simulator(clips, wanted.fps, [f"sim-{seed}" for seed in seeds])
