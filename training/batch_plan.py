"""What is in each batch: dealt from the seed and the batch's number, without reading a clip. See `dataset`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from hashlib import blake2b
from itertools import product

import numpy as np

from aether_env.sim.seeds import draw_uniforms
from training.clip_sources import ClipSource, MixedClips, Wanted

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """What batches are like."""

    batch_size: int = 1
    """Clips per batch and process."""
    num_frames: tuple[int, ...] = (17, 25, 33, 41)
    """Numbers of frames; each batch has one of them."""
    fps: tuple[float, ...] = (8.0, 10.0, 12.0, 15.0, 24.0)
    """Frames per second; each batch has one of them. All pairs with `num_frames` that clips suit are equally often."""
    sizes: tuple[tuple[int, int], ...] = ((480, 720),)
    """Heights and widths of the buckets."""
    seed: int = 0
    """Of every draw."""
    shuffle_shards: int = 16
    """Shards whose clips are shuffled among each other."""
    workers: int = 0
    """Processes that load; 0 loads when a batch is asked for."""
    ahead: int = 2
    """Batches that each of them loads ahead."""
    pin: bool = False
    """Give batches in pinned memory."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "shuffle_shards", "ahead"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}.")
        if not self.num_frames or min(self.num_frames) < 1:
            raise ValueError(f"num_frames must name numbers of at least 1, got {self.num_frames}.")
        if not self.fps or not 0 < min(self.fps) <= max(self.fps) <= 240:
            raise ValueError(f"fps must name rates in (0, 240], got {self.fps}.")
        if not self.sizes or min(min(size) for size in self.sizes) < 1:
            raise ValueError(f"sizes must name heights and widths of at least 1, got {self.sizes}.")

    @property
    def pairs(self) -> list[tuple[int, float]]:
        """Every number of frames with every rate."""
        return list(product(self.num_frames, self.fps))


@dataclass(frozen=True)
class Position:
    """Where in the stream of batches a run is."""

    step: int
    """Number of the next batch."""
    drawn: tuple[tuple[int, ...], ...]
    """How many clips each bucket of each source has dealt, on all processes together."""


@dataclass(frozen=True)
class Deal:
    """One clip of a batch."""

    source: int
    """Its source's number."""
    index: int
    """Its number in the source."""
    count: int
    """Clips that this bucket of the source dealt before."""


@dataclass(frozen=True)
class BatchPlan:
    """What one process loads for one batch."""

    bucket: int
    wanted: Wanted
    deals: tuple[Deal, ...]


class Planner:
    """Says what is in each batch, without reading a clip.

    Args:
        mixed: The sources.
        settings: Of the batches.
        rank: Number of this process.
        world_size: How many processes there are.

    Raises:
        ValueError: The rank is not one of the processes', or no clip suits the settings.
    """

    def __init__(self, mixed: MixedClips, settings: BatchSettings, rank: int = 0, world_size: int = 1):
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..{world_size - 1}, got {rank}.")
        self.mixed, self.settings, self.rank, self.world_size = mixed, settings, rank, world_size
        self.buckets = [bucket_of(source, settings.sizes) for source in mixed.sources]
        count = len(settings.sizes)
        shares = [
            np.full(count, 1 / count) if b is None else np.bincount(b, minlength=count) / len(b) for b in self.buckets
        ]
        self.gives = np.stack([given_pairs(*each, settings) for each in zip(mixed.sources, self.buckets, strict=True)])
        """(sources, buckets, pairs): where there is a clip that is long and fast enough."""
        self.weights = mixed.weights[:, None] * np.stack(shares) * self.gives.any(2)
        """(sources, buckets): how often each bucket of each source is drawn from, where the pair lets it."""
        self._check_gives()
        self._orders: dict[tuple[int, int], tuple[int, np.ndarray]] = {}

    def start(self) -> Position:
        """Return where a run begins."""
        return Position(0, tuple((0,) * len(self.settings.sizes) for _ in self.mixed.sources))

    def plan(self, at: Position) -> tuple[BatchPlan, Position]:
        """Return what this process loads next, and where the run is then."""
        settings, own = self.settings, self.settings.batch_size
        draws = uniforms(2, settings.seed, "batch", at.step)
        bucket = pick(self.weights.sum(0), draws[:1])[0]
        pair = pick(np.any(self.gives[:, bucket], axis=0), draws[1:])[0]
        (num_frames, fps), (height, width) = settings.pairs[pair], settings.sizes[bucket]
        wanted = Wanted(num_frames=num_frames, fps=fps, height=height, width=width)
        weights = self.weights[:, bucket] * self.gives[:, bucket, pair]
        row = pick(weights, uniforms(own * self.world_size, settings.seed, "sources", at.step))
        drawn = [list(counts) for counts in at.drawn]
        deals = []
        for place, source in enumerate(row):
            if place // own == self.rank:
                count = drawn[source][bucket]
                deals.append(Deal(source, self.index(source, bucket, count), count))
            drawn[source][bucket] += 1
        return BatchPlan(bucket, wanted, tuple(deals)), Position(at.step + 1, tuple(map(tuple, drawn)))

    def index(self, source: int, bucket: int, count: int) -> int:
        """Return the clip that a bucket of a source deals after `count` others."""
        buckets = self.buckets[source]
        if buckets is None:  # endless: each bucket has its own numbers
            return count * len(self.settings.sizes) + bucket
        epoch, place = divmod(count, int((buckets == bucket).sum()))
        if self._orders.get((source, bucket), (-1,))[0] != epoch:
            key = (self.settings.seed, "epoch", source, bucket, epoch)
            order = epoch_order(self.mixed.sources[source].groups(), self.settings.shuffle_shards, *key)
            self._orders[source, bucket] = epoch, order[buckets[order] == bucket]
        return int(self._orders[source, bucket][1][place])

    def _check_gives(self) -> None:
        useless = [s for s, gives in zip(self.mixed.sources, self.gives, strict=True) if not gives.any()]
        held = "; ".join(f"{source.name} has {longest(source)}" for source in useless)
        if len(useless) == len(self.mixed.sources):
            pairs = ", ".join(f"{num_frames} at {fps:g}" for num_frames, fps in self.settings.pairs)
            raise ValueError(
                f"num_frames and fps must suit some clip, none can give {pairs} frames per second ({held}); give "
                "longer or faster clips, or other num_frames and fps."
            )
        if useless:
            logger.warning("never drawn from, too short or too slow for all num_frames and fps: %s", held)


def bucket_of(source: ClipSource, sizes: tuple[tuple[int, int], ...]) -> np.ndarray | None:
    """Return the number of the bucket of every clip, (N,): the one nearest in aspect. None for endless sources."""
    found = source.sizes()
    if source.length is None:
        return None
    if found is None:
        return np.arange(source.length) % len(sizes)
    aspect_N, aspect_B = (np.log(np.divide(*np.asarray(s, np.float64).T)) for s in (found, sizes))
    return np.abs(aspect_N[:, None] - aspect_B).argmin(1)


def given_pairs(source: ClipSource, buckets: np.ndarray | None, settings: BatchSettings) -> np.ndarray:
    """Return in which buckets a source has a clip for which pair of frames and rate, (buckets, pairs) bool."""
    gives = np.ones((len(settings.sizes), len(settings.pairs)), bool)
    if buckets is None:
        return gives
    for column, pair in enumerate(settings.pairs):
        fits = source.fits(*pair)
        clips = buckets if fits is None else buckets[fits]
        gives[:, column] = np.bincount(clips, minlength=len(settings.sizes)) > 0
    return gives


def longest(source: ClipSource) -> str:
    """Return of a source with `spans`, in words, how long and how fast its clips are at most."""
    spans = source.spans()
    assert spans is not None, "a source without spans suits every setting"
    frames, fps = spans.max(0)
    return f"at most {frames:.0f} frames and {fps:g} a second"


def epoch_order(groups: list[int], together: int, *key: int | str) -> np.ndarray:
    """Return the order in which an epoch deals clips: shards shuffled, then the clips of every few of them.

    Args:
        groups: How many clips are in each shard.
        together: Shards whose clips are shuffled among each other.
        key: Of the random numbers.
    """
    first = np.concatenate([[0], np.cumsum(groups)])
    shards = np.argsort(uniforms(len(groups), *key, "shards"), kind="stable")
    blocks = []
    for start in range(0, len(shards), together):
        block = np.concatenate([np.arange(first[s], first[s + 1]) for s in shards[start : start + together]])
        blocks.append(block[np.argsort(uniforms(len(block), *key, "clips", start), kind="stable")])
    return np.concatenate(blocks)


def pick(weights: np.ndarray, draws: np.ndarray) -> list[int]:
    """Return indices as likely as their weights, one for each uniform number in [0, 1)."""
    edges = np.cumsum(weights)
    return np.searchsorted(edges / edges[-1], draws, side="right").tolist()


def uniforms(count: int, *key: int | str) -> np.ndarray:
    """Return numbers in [0, 1), (count,), that follow from the key alone, on every machine and version of numpy."""
    return draw_uniforms(np.array([_number(key) >> 3]), count, stream=0)[0]


def generator(*key: int | str) -> np.random.Generator:
    """Return a generator that follows from the key alone."""
    return np.random.Generator(np.random.Philox(_number(key)))


def _number(key: tuple[int | str, ...]) -> int:
    """Return 64 bits that follow from a key."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little")
