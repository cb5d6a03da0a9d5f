"""From one number per clip to metrics with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from training.evaluation.scores import FRAMES, LONG_STEPS, Scores

RESAMPLES = 1000
"""Bootstrap samples of an interval."""
PICTURE_SCORES = ("psnr", "ssim", "visible_psnr", "visible_ssim")
ROWS = ("dream", "pipeline", "repeated", "warp", "autoencoder")
_MEANS = (
    "predicted_abs_rel", "predicted_delta125", "pipeline_abs_rel", "metric_abs_rel_1", "metric_abs_rel_4",
    "metric_abs_rel_8", "metric_abs_rel_16", "depth_abs_rel", "depth_delta125", "flat_depth_abs_rel",
)  # fmt: skip
_MEDIANS = {
    "depth_abs_rel_median": "depth_abs_rel",
    "rotation_error_deg_median": "rotation_error_deg",
    "rotation_error_last_deg_median": "rotation_error_deg_last",
    "rotation_standing_deg_median": "rotation_standing_deg",
    "translation_direction_deg_median": "translation_direction_deg",
    "fov_error_deg_median": "fov_error_deg",
}

Statistic = Callable[..., float]


def gap_closed(shown: np.ndarray, floor: np.ndarray, ceiling: np.ndarray) -> float:
    """Return the part of the way from floor to ceiling, from means over clips without the NaN.

    NaN where the ceiling is not above the floor: an autoencoder worse than a repeated picture leaves no gap to close.
    """
    low, high = np.nanmean(floor), np.nanmean(ceiling)
    return float((np.nanmean(shown) - low) / (high - low)) if high > low else float("nan")


def summarise(scores: Scores, seed: int) -> tuple[dict[str, float], dict[str, list[float]], dict[str, int]]:
    """Return metrics, their 95 % bootstrap intervals over clips, and how many clips each was taken over.

    A metric that has no finite value (no clip shows enough, say) is left out; its count tells.

    Args:
        scores: Name -> one number per clip; what was not measured is not there, nor are its metrics.
        seed: Of the bootstrap.
    """
    metrics: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    for name, statistic, arrays in _wanted(scores):
        counted = ~np.any([np.isnan(values) for values in arrays], axis=0)
        counts[name] = int(counted.sum())
        value = statistic(*arrays) if counts[name] else np.nan
        if np.isfinite(value):
            metrics[name] = value
            intervals[name] = bootstrap(statistic, arrays, seed)
    return metrics, intervals, counts


def bootstrap(statistic: Statistic, arrays: list[np.ndarray], seed: int) -> list[float]:
    """Return the 2.5 % and 97.5 % quantiles of a statistic of clips drawn with replacement.

    Args:
        statistic: Of arrays (N,).
        arrays: Each (N,); clips where one of them is NaN take no part.
        seed: Of the draws.
    """
    table = np.stack(arrays)
    table = table[:, ~np.isnan(table).any(axis=0)]
    rng = np.random.default_rng(seed)
    values = [statistic(*table[:, rng.integers(table.shape[1], size=table.shape[1])]) for _ in range(RESAMPLES)]
    return [float(value) for value in np.nanquantile(values, (0.025, 0.975))]


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values))


def _median(values: np.ndarray) -> float:
    return float(np.nanmedian(values))


def _mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.nanmean(a) - np.nanmean(b))


def _ratio_of_means(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.nanmean(a) / np.nanmean(b))


def _wanted(scores: Scores) -> Iterator[tuple[str, Statistic, list[np.ndarray]]]:
    """Yield name, statistic and its arrays for every metric whose scores are there."""
    table: list[tuple[str, Statistic, tuple[str, ...]]] = []
    for frame in FRAMES:
        for row in ROWS:
            table += [(f"{s}_{row}_{frame}", _mean, (f"{s}_{row}_{frame}",)) for s in PICTURE_SCORES]
        table.append((f"visible_share_{frame}", _mean, (f"visible_share_{frame}",)))
        for name, row in (("", "dream"), ("pipeline_", "pipeline"), ("warp_", "warp")):
            rows = tuple(f"visible_psnr_{r}_{frame}" for r in (row, "repeated", "autoencoder"))
            table.append((f"{name}visible_gap_{frame}", gap_closed, rows))
    table.append(("controllability_db", _mean_difference, ("psnr_dream_8", "psnr_other_path")))
    table += [(name, _mean, (name,)) for name in _MEANS]
    table += [(name, _median, (score,)) for name, score in _MEDIANS.items()]
    for step in LONG_STEPS:
        table.append((f"gradient_energy_{step}", _ratio_of_means, (f"energy_dream_{step}", f"energy_truth_{step}")))
        rows = (f"energy_autoencoder_{step}", f"energy_truth_{step}")
        table.append((f"autoencoder_gradient_energy_{step}", _ratio_of_means, rows))
        table.append((f"long_psnr_{step}", _mean, (f"long_psnr_{step}",)))
    for name, statistic, keys in table:
        if all(key in scores for key in keys):
            yield name, statistic, [scores[key] for key in keys]
