"""Batches of clips as a function of their number, so that a run can stop anywhere and go on with the same batches.

What a batch is made of follows from the seed, its number and how many clips of each source went before. From that a
batch draws, the same on every process: its size bucket, then its number of frames with its frame rate, then the sources
of its clips. The clips of all processes are dealt out in one row, of which each process takes its own part:

*   Frames and rate are a pair that some clip of the bucket is long and fast enough for; all such pairs come equally
    often, and those that no clip suits never. A batch draws from the sources that have such a clip, by their weights.
    So a source whose clips suit a part of the pairs comes less often than its weight says: in that part of the batches.
*   Every source deals its clips in epochs, each clip once an epoch. An epoch shuffles the source's shards, and then the
    clips of every few shards among each other, anew each time.
*   A clip belongs to the size bucket nearest to its aspect, and is cropped and resized to it. Each bucket of a source
    has its own epochs.
*   The counts are in units of clips and not of batches: a run that goes on with another number of processes goes on in
    the epoch where it was, without leaving out or repeating a clip.
*   A clip that is damaged, too short or too slow for the batch is replaced by a random one of its source and bucket
    that is long and fast enough, and counted in `skipped`. It has had its turn; only so can a clip come twice in an
    epoch, or not at all.
"""

from __future__ import annotations

import logging
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.batch_plan import BatchPlan, BatchSettings, Planner, Position, generator
from training.clip_sources import ClipSource, FolderClips, MixedClips, ShardClips, SimulatorClips
from training.clips import Clip, ClipError

__all__ = [
    "BatchSettings", "ClipBatch", "ClipBatches", "ClipSource", "FolderClips", "MixedClips", "ShardClips",
    "SimulatorClips",
]  # fmt: skip

logger = logging.getLogger(__name__)
ATTEMPTS = 100
"""Clips tried in place of one that cannot be used; then the settings do not suit the source."""


@dataclass(frozen=True)
class ClipBatch:
    """B clips of T frames, on the CPU."""

    rgb: Tensor
    """(B, T, 3, H, W) uint8."""
    depth: Tensor
    """(B, T, H, W) float32 metres."""
    valid: Tensor
    """(B, T, H, W) bool."""
    moving: Tensor
    """(B, T, H, W) bool."""
    world_from_camera: Tensor
    """(B, T, 4, 4) float64."""
    intrinsics: Tensor
    """(B, T, 3, 3) float64, pixels of the pictures as they are here."""
    fps: float
    """Frames per second, one for the batch."""
    names: tuple[str, ...]
    """Of the clips."""

    def pin_memory(self) -> ClipBatch:
        """Return the batch in memory that a GPU copies from without waiting."""
        pinned: dict[str, Any] = {k: v.pin_memory() for k, v in vars(self).items() if torch.is_tensor(v)}
        return replace(self, **pinned)


Loaded = tuple[ClipBatch, dict[str, int], list[str]]
"""A batch, how many clips were replaced for which reason, and which are damaged."""


class Loader(Dataset[Loaded]):
    """Reads what was planned.

    Args:
        planner: Whose sources are read.
    """

    def __init__(self, planner: Planner):
        self.mixed, self.buckets, self.seed = planner.mixed, planner.buckets, planner.settings.seed

    def __getitem__(self, plan: BatchPlan) -> Loaded:
        """Return a batch; pure in its plan."""
        skipped: Counter[str] = Counter()
        bad: list[str] = []
        clips: dict[int, Clip] = {}
        for source in sorted({deal.source for deal in plan.deals}):
            places = [place for place, deal in enumerate(plan.deals) if deal.source == source]
            deals = [plan.deals[place] for place in places]
            generators = [generator(self.seed, "clip", source, plan.bucket, deal.count) for deal in deals]
            found = self.mixed.sources[source].clips([deal.index for deal in deals], plan.wanted, generators)
            for place, clip, own in zip(places, found, generators, strict=True):
                clips[place] = self._usable(clip, source, plan, own, skipped, bad)
        return as_batch([clips[place] for place in range(len(plan.deals))], plan.wanted.fps), dict(skipped), bad

    def _usable(
        self,
        clip: Clip | ClipError,
        source: int,
        plan: BatchPlan,
        own: np.random.Generator,
        skipped: Counter[str],
        bad: list[str],
    ) -> Clip:
        """Return the clip, or one in its place."""
        buckets, origin = self.buckets[source], self.mixed.sources[source]
        last = clip
        for _ in range(ATTEMPTS):
            if isinstance(last, Clip):
                return last
            skipped[last.reason] += 1
            bad += [str(last)] if last.reason == "damaged" else []
            if buckets is None:
                raise last
            fits = origin.fits(plan.wanted.num_frames, plan.wanted.fps)
            members = np.flatnonzero((buckets == plan.bucket) & (True if fits is None else fits))
            last = origin.clips([int(members[own.integers(len(members))])], plan.wanted, [own])[0]
        raise ClipError(
            f"{origin.name}: {ATTEMPTS} clips in a row cannot be used for {plan.wanted} ({dict(skipped)}; the last: "
            f"{last}); mend the source or leave it out.",
            "unusable",
        )


class ClipBatches:
    """The batches of one process, in order and for ever; see the module's docstring.

    Args:
        mixed: The sources.
        settings: Of the batches.
        rank: Number of this process among all processes of all nodes.
        world_size: How many there are.

    Raises:
        ValueError: The rank is not one of the processes', or no clip suits the settings.
    """

    def __init__(self, mixed: MixedClips, settings: BatchSettings, *, rank: int = 0, world_size: int = 1):
        self.planner = Planner(mixed, settings, rank, world_size)
        self.position = self.planner.start()
        self.skipped: Counter[str] = Counter()
        """How many clips had to be replaced by this object, by reason; no part of its state."""
        self.bad: list[str] = []
        """Every damaged shard and clip that was met, and why; those that are known when sources are opened first."""
        self._warn(mixed.problems)
        self._loaded: Iterator[Loaded] | None = None

    def __iter__(self) -> ClipBatches:
        return self

    def __next__(self) -> ClipBatch:
        """Return the next batch.

        Raises:
            ValueError: Clip after clip of a source is damaged.
        """
        if self._loaded is None:
            self._loaded = self._load()
        try:
            batch, skipped, bad = next(self._loaded)
        except BaseException:
            self.close()  # or else the batch would be missing when the caller goes on
            raise
        _, self.position = self.planner.plan(self.position)
        self.skipped.update(skipped)
        self._warn(bad)
        return batch

    def seek(self, step: int) -> None:
        """Go to a batch by its number; going on from the one before costs nothing."""
        if step == self.position.step:
            return
        self.close()
        if step < self.position.step:
            self.position = self.planner.start()
        while self.position.step < step:
            _, self.position = self.planner.plan(self.position)

    def state_dict(self) -> dict[str, Any]:
        """Return where the batches are, to be kept as JSON. It is the same on all processes."""
        return {
            "seed": self.planner.settings.seed,
            "step": self.position.step,
            "drawn": [list(counts) for counts in self.position.drawn],
            "lengths": self._lengths(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, also on another number of processes.

        Raises:
            ValueError: The state is of other clips, buckets or of another seed.
        """
        if state["seed"] != self.planner.settings.seed or state["lengths"] != self._lengths():
            raise ValueError(
                f"state must be of the same seed and clips: it has seed {state['seed']} and {state['lengths']} clips, "
                f"here are seed {self.planner.settings.seed} and {self._lengths()}; give the missing shards back, or "
                "leave this state out to begin the data anew."
            )
        drawn = tuple(tuple(int(count) for count in counts) for counts in state["drawn"])
        if [len(counts) for counts in drawn] != [len(counts) for counts in self.position.drawn]:
            raise ValueError(f"state must be of the same size buckets, here are {self.planner.settings.sizes}.")
        self.close()
        self.position = Position(int(state["step"]), drawn)

    def tell(self) -> None:
        """Say in the log how much was damaged and replaced; each damaged shard and clip is named when it is met."""
        if self.bad or self.skipped:
            logger.warning("damaged: %d; clips replaced by others: %s", len(self.bad), dict(self.skipped))

    def close(self) -> None:
        """End the loading ahead; the next batch begins it again."""
        self._loaded = None

    def _warn(self, problems: Iterable[str]) -> None:
        known = set(self.bad)
        for problem in dict.fromkeys(problems):
            if problem not in known:
                self.bad.append(problem)
                logger.warning("left out: %s", problem)

    def _lengths(self) -> list[int | None]:
        return [source.length for source in self.planner.mixed.sources]

    def _load(self) -> Iterator[Loaded]:
        settings = self.planner.settings
        # Spawned and not forked: a fork after MuJoCo, CUDA or threads began is not safe.
        workers: dict[str, Any] = {"multiprocessing_context": "spawn", "prefetch_factor": settings.ahead}
        return iter(
            DataLoader(
                Loader(self.planner),
                sampler=self._plans(self.position),
                batch_size=None,
                num_workers=settings.workers,
                collate_fn=same,
                worker_init_fn=ignore_interrupts,
                pin_memory=settings.pin,
                generator=torch.Generator(),  # or else it draws from the global one
                **(workers if settings.workers else {}),
            )
        )

    def _plans(self, at: Position) -> Iterator[BatchPlan]:
        while True:
            plan, at = self.planner.plan(at)
            yield plan


def as_batch(clips: list[Clip], fps: float) -> ClipBatch:
    """Return clips of one size and length as a batch."""

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(clip, name) for clip in clips]))

    rgb = torch.from_numpy(np.ascontiguousarray(np.stack([np.moveaxis(clip.rgb, -1, 1) for clip in clips])))
    names = ("depth", "valid", "moving", "world_from_camera", "intrinsics")
    return ClipBatch(rgb=rgb, fps=fps, names=tuple(clip.name for clip in clips), **{n: stack(n) for n in names})


def ignore_interrupts(worker: int) -> None:
    """Let Ctrl-C be the run's to answer: it reaches workers too, which would be missed when the run saves and ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def same(loaded: Any) -> Any:
    """Return it as it is: batches are made by the loader, DataLoader has nothing to collate."""
    return loaded
