"""From one number per clip to metrics with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from training.evaluation.scores import FRAMES, PATH_ERRORS, PATH_ROWS, Scores

RESAMPLES = 1000
"""Bootstrap samples of an interval."""
PICTURE_SCORES = ("psnr", "ssim", "visible_psnr", "visible_ssim")
ROWS = ("dream", "pipeline", "repeated", "warp", "autoencoder")
_DEPTHS = (
    "predicted", "pipeline", "flat_predicted", "held_predicted", "autoencoder_predicted", "depth", "flat_depth",
    "autoencoder_depth",
)  # fmt: skip
_MEANS = (
    *(f"{name}_{error}" for name in _DEPTHS for error in ("abs_rel", "delta125")),
    "depth_abs_rel_scale_shift", "depth_delta125_scale_shift",
    *(f"{row}{error}" for row in PATH_ROWS for error in PATH_ERRORS),
    "network_depth_abs_rel", "network_depth_delta125", "network_ate",
)  # fmt: skip
_MEDIANS = {
    "depth_abs_rel_median": "depth_abs_rel",
    "rotation_error_deg_median": "rotation_error_deg",
    "rotation_error_last_deg_median": "rotation_error_deg_last",
    "rotation_standing_deg_median": "rotation_standing_deg",
    "translation_direction_deg_median": "translation_direction_deg",
    "straight_translation_direction_deg_median": "straight_translation_direction_deg",
    "step_direction_deg_median": "step_direction_deg",
    "straight_step_direction_deg_median": "straight_step_direction_deg",
    "scale_error_median": "scale_error",
    "scale_error_without_depth_median": "scale_error_without_depth",
    "fov_error_deg_median": "fov_error_deg",
    "fov_error_deg": "fov_error_deg",  # the same under the name that comparisons ask for
    "guessed_fov_error_deg_median": "guessed_fov_error_deg",
    "focal_error_median": "focal_error",
    "guessed_focal_error_median": "guessed_focal_error",
    "network_rotation_error_deg_median": "network_rotation_error_deg",
    "network_translation_direction_deg_median": "network_translation_direction_deg",
    "network_fov_error_deg_median": "network_fov_error_deg",
}

Statistic = Callable[..., Any]
"""Of arrays (..., N) over the last axis, all bootstrap samples at once."""
Row = tuple[str, Statistic, tuple[str, ...]]
"""A metric: its name, what is taken over clips, and the scores that it is taken of."""


def gap_closed(shown: np.ndarray, floor: np.ndarray, ceiling: np.ndarray) -> Any:
    """Return the part of the way from floor to ceiling, from means over clips without the NaN.

    NaN where the ceiling is not above the floor: an autoencoder worse than a repeated picture leaves no gap to close.
    """
    low, high = mean(floor), mean(ceiling)
    gap = np.where(high > low, high - low, np.nan)
    return (mean(shown) - low) / gap


def summarise(
    scores: Scores, seed: int, rows: Sequence[Row] | None = None
) -> tuple[dict[str, float], dict[str, list[float]], dict[str, int]]:
    """Return metrics, their 95 % bootstrap intervals over clips, and how many clips each was taken over.

    A metric that has no finite value (no clip shows enough, say) is left out; its count tells.

    Args:
        scores: Name -> one number per clip; what was not measured is not there, nor are its metrics.
        seed: Of the bootstrap.
        rows: The metrics; None takes those of `METRICS`.
    """
    metrics: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    for name, statistic, keys in METRICS if rows is None else rows:
        if not all(key in scores for key in keys):
            continue
        arrays = [scores[key] for key in keys]
        counted = ~np.any([np.isnan(values) for values in arrays], axis=0)
        counts[name] = int(counted.sum())
        value = float(statistic(*arrays)) if counts[name] else np.nan
        if np.isfinite(value):
            metrics[name] = value
            intervals[name] = bootstrap(statistic, arrays, seed)
    return metrics, intervals, counts


def bootstrap(statistic: Statistic, arrays: list[np.ndarray], seed: int) -> list[float]:
    """Return the 2.5 % and 97.5 % quantiles of a statistic of clips drawn with replacement.

    Args:
        statistic: See `Statistic`.
        arrays: Each (N,); clips where one of them is NaN take no part.
        seed: Of the draws.
    """
    table = np.stack(arrays)
    table = table[:, ~np.isnan(table).any(axis=0)]
    drawn = np.random.default_rng(seed).integers(table.shape[1], size=(RESAMPLES, table.shape[1]))
    return [float(value) for value in np.nanquantile(statistic(*table[:, drawn]), (0.025, 0.975))]


def mean(values: np.ndarray) -> Any:
    """Return the mean without the NaN."""
    return np.nanmean(values, axis=-1)


def median(values: np.ndarray) -> Any:
    """Return the median without the NaN."""
    return np.nanmedian(values, axis=-1)


def mean_difference(a: np.ndarray, b: np.ndarray) -> Any:
    """Return how much larger the mean of a is than that of b."""
    return mean(a) - mean(b)


def ratio_of_means(a: np.ndarray, b: np.ndarray) -> Any:
    """Return the mean of a over the mean of b."""
    return mean(a) / mean(b)


def _metrics() -> Iterator[Row]:
    for frame in FRAMES:
        for row in ROWS:
            yield from ((f"{s}_{row}_{frame}", mean, (f"{s}_{row}_{frame}",)) for s in PICTURE_SCORES)
        yield f"visible_share_{frame}", mean, (f"visible_share_{frame}",)
        for name, row in (("", "dream"), ("pipeline_", "pipeline"), ("warp_", "warp")):
            rows = tuple(f"visible_psnr_{r}_{frame}" for r in (row, "repeated", "autoencoder"))
            yield f"{name}visible_gap_{frame}", gap_closed, rows
    yield "controllability_db", mean_difference, ("psnr_dream_8", "psnr_other_path")
    yield from ((name, mean, (name,)) for name in _MEANS)
    yield from ((name, median, (score,)) for name, score in _MEDIANS.items())


METRICS: tuple[Row, ...] = tuple(_metrics())
"""Of the scores in scores.py."""
