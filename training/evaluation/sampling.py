"""Compare settings of an env step on validation walks: python -m training.evaluation.sampling RUN/checkpoint

What a checkpoint is used with is chosen here, so that the test walks stay unseen by every choice.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    from aether_env.world_model.checkpoint import Components

STEPS = (1, 5, 10, 16)
"""Env steps that are judged."""
SHOWN = (
    "gradient_energy_{}", "long_psnr_{}", "long_visible_psnr_{}", "long_st_lpips_{}", "metric_abs_rel_{}",
)  # fmt: skip
"""Metrics of the table."""


def main(
    checkpoint: tyro.conf.Positional[str] = "mini",
    walks: int = 32,
    batch: int = 16,
    device: str = "cpu",
    sigmas: tuple[str, ...] = ("1,0.67,0.33", "1,0.5", "1"),
    details: tuple[float, ...] = (0.0, 0.5, 0.9),
    guess: tuple[bool, ...] = (),
    out: Path | None = None,
) -> None:
    """Print a table with a row for each combination.

    Args:
        checkpoint: A bundled name or a folder.
        walks: Validation walks.
        batch: Walks dreamed together.
        device: Where to render and dream.
        sigmas: Noise levels of a step, each "1,0.5".
        details: Values of `step_detail`.
        guess: Values of `step_guess`; none takes the checkpoint's.
        out: JSON file for all metrics.
    """
    from aether_env.world_model.checkpoint import load_checkpoint

    parts = load_checkpoint(checkpoint, device)
    rows = []
    for levels in sigmas:
        for detail in details:
            for shown in guess or (parts.settings.step_guess,):
                step_sigmas = tuple(float(level) for level in levels.split(","))
                settings = {"step_sigmas": step_sigmas, "step_detail": detail, "step_guess": shown}
                rows.append(settings | {"metrics": judged(parts, settings, walks, batch, device)})
                print(_line(rows[-1]), flush=True)
                if out is not None:
                    out.write_text(json.dumps(rows, indent=1))


def judged(parts: Components, settings: dict[str, Any], count: int, batch: int, device: str) -> dict[str, float]:
    """Return the metrics of drift on validation walks.

    Args:
        parts: Of the checkpoint.
        settings: What is changed in its settings.
        count: Walks.
        batch: Walks dreamed together.
        device: Where they are drawn.
    """
    import numpy as np

    from aether_env.world_model.rollout import DreamWorld
    from training.evaluation.drift import METRICS, drift_scores, long_walks
    from training.evaluation.perceptual import perceptual_distance
    from training.evaluation.summary import summarise

    world = DreamWorld(replace(parts, settings=replace(parts.settings, **settings)))
    walks = replace(long_walks(count, parts.settings, device), split="validation")
    perceptual = perceptual_distance(device)
    scores: list[dict[str, Any]] = []
    for first in range(0, count, batch):
        numbers = np.arange(first, min(first + batch, count))
        scores.append(drift_scores(world, walks, numbers, 0, last_step=STEPS[-1], perceptual=perceptual))
    joined = {name: np.concatenate([part[name] for part in scores]) for name in scores[0]}
    return summarise(joined, 0, METRICS)[0]


def _line(row: dict[str, Any]) -> str:
    levels = " ".join(f"{level:g}" for level in row["step_sigmas"])
    cells = []
    for name in SHOWN:
        values = [row["metrics"].get(name.format(step)) for step in STEPS]
        cells.append(" / ".join("-" if value is None else f"{value:.3g}" for value in values))
    return f"| {levels} | {row['step_detail']:g} | {row['step_guess']} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    tyro.cli(main)
