"""Seeds of the true world: which belong to which split, and the random numbers that a seed stands for.

A seed is an integer that names one scene with its moving objects and its camera walk. The splits are disjoint ranges,
so that a test seed is never trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SPLITS = {
    "train": range(0, 2**40),
    "validation": range(2**40, 2**40 + 2**20),
    "test": range(2**41, 2**41 + 2**20),
}
"""The seeds of each split."""

SEED_LIMIT = 2**61
"""Seeds lie below: 64 bits hold a seed and three bits for the stream."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def split_of(seed: int) -> str:
    """Return the name of the split that a seed belongs to.

    Raises:
        ValueError: The seed lies in no split.
    """
    for split, seeds in SPLITS.items():
        if int(seed) in seeds:
            return split
    ranges = ", ".join(f"{split} [{seeds.start}, {seeds.stop})" for split, seeds in SPLITS.items())
    raise ValueError(f"seed must lie in one of {ranges}, got {seed}; seed_in(split, index) gives one.")


def seed_in(split: str, index: int) -> int:
    """Return the seed number `index` of a split.

    Raises:
        ValueError: No such split, or the index lies outside of it.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    seeds = SPLITS[split]
    if not 0 <= index < len(seeds):
        raise ValueError(f"index must lie in [0, {len(seeds)}) for split {split!r}, got {index}.")
    return seeds[index]


def as_seeds(seeds: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return seeds as (N,) int64.

    Raises:
        ValueError: Not a non-empty list of integers in [0, 2**61).
    """
    seeds_N = np.asarray(seeds)
    if seeds_N.ndim != 1 or not len(seeds_N) or seeds_N.dtype.kind not in "iu":
        raise ValueError(f"seeds must be a non-empty list of integers in [0, 2**61), got {seeds!r}.")
    if int(seeds_N.min()) < 0 or int(seeds_N.max()) >= SEED_LIMIT:
        raise ValueError(f"seeds must lie in [0, 2**61), got {seeds!r}; larger ones would name the same scenes again.")
    return seeds_N.astype(np.int64)


def draw_uniforms(seeds_N: np.ndarray, count: int, *, stream: int) -> np.ndarray:
    """Return uniform numbers in [0, 1) that depend on seed and stream alone, (N, count) float64.

    SplitMix64 (Steele, Lea, Flood 2014), written as a counter so that all seeds are drawn in one go: a row is the
    same whatever else is in the batch, and on every version of numpy.

    Args:
        seeds_N: (N,) integers in [0, 2**61).
        count: Numbers per seed.
        stream: 0 to 7, separates uses of the same seed.
    """
    with np.errstate(over="ignore"):
        state_N1 = _mix(seeds_N.astype(np.uint64)[:, None] * np.uint64(8) + np.uint64(stream))
        bits = _mix(state_N1 + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Dice:
    """Uniform numbers of N seeds, handed out column by column."""

    def __init__(self, seeds_N: np.ndarray, count: int, *, stream: int) -> None:
        """Draw `count` numbers per seed at once (see `draw_uniforms`)."""
        self._uniforms = draw_uniforms(seeds_N, count, stream=stream)
        self._used = 0

    def take(self, *shape: int) -> np.ndarray:
        """Return the next numbers, (N, *shape) in [0, 1)."""
        count = int(np.prod(shape))
        block = self._uniforms[:, self._used : self._used + count]
        assert block.shape[1] == count, "ask for more numbers when the dice are made"
        self._used += count
        return block.reshape(len(block), *shape)

    def between(self, low: float | np.ndarray, high: float | np.ndarray, *shape: int) -> np.ndarray:
        """Return numbers uniform between `low` and `high` (broadcast against (N, *shape))."""
        return low + (np.asarray(high) - low) * self.take(*shape)

    def choose(self, options: np.ndarray | Sequence[int], *shape: int) -> np.ndarray:
        """Return entries of `options`, each equally likely, (N, *shape)."""
        options = np.asarray(options)
        return options[(self.take(*shape) * len(options)).astype(np.int64)]


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
