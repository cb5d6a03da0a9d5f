"""Measure a checkpoint on fixed test walks of the simulator: python -m training.evaluation.quick --clips 256

Prints Markdown tables and leaves them, and the same numbers as JSON, where `--out` says. Everything but what stands
under `speed` (and cpu_steps_per_second) is the same for the same call on the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

Result = TypeVar("Result")

Section = Literal["rollout", "prediction", "reconstruction", "long", "endurance", "speed"]
SECTIONS: tuple[Section, ...] = ("rollout", "prediction", "reconstruction", "long", "endurance", "speed")
LONG_CLIPS = 32
"""Most clips of the long walks."""


def evaluate(
    checkpoint: str | Path = "mini",
    *,
    clips: int = 256,
    seed: int = 0,
    device: str = "cpu",
    step_sigmas: tuple[float, ...] | None = None,
    clip_sigmas: tuple[float, ...] | None = None,
    only: tuple[Section, ...] = SECTIONS,
    sheets: Path | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint of our own layout.

    Args:
        checkpoint: A bundled name or a folder.
        clips: How many test clips; the first ones of the test seeds.
        seed: Of the dreams' noise, the random actions and the bootstrap.
        device: Where to render and dream; the speed is always the CPU's.
        step_sigmas: Noise levels of an env step, None for the checkpoint's.
        clip_sigmas: Noise levels of prediction and reconstruction, None for the checkpoint's.
        only: What to measure.
        sheets: Folder for contact sheets of the best, median and worst clip; needs "rollout".

    Returns:
        metrics, intervals, counts (clips that a metric was taken over), commit, checkpoint, checkpoint_sha256, device,
        seeds, settings, speed.

    Raises:
        ValueError: Fewer than two clips (another clip's path is needed), an unknown section, sheets without rollout.
        CheckpointError: The checkpoint cannot be used.
    """
    import numpy as np
    from tqdm import tqdm

    from aether_env.sim import seed_in
    from aether_env.world_model.checkpoint import load_checkpoint, resolve
    from aether_env.world_model.pipeline import CLIP_FRAMES, AetherPipeline
    from aether_env.world_model.rollout import DreamWorld
    from training.evaluation import report, scores
    from training.evaluation.running import measure_speed, stays_finite
    from training.evaluation.summary import summarise
    from training.evaluation.walks import BATCH, Walk, WalkSet

    if clips < 2:
        raise ValueError(f"clips must be at least 2, got {clips}: each is also dreamed along another clip's path.")
    if not only or not set(only) <= set(SECTIONS):
        raise ValueError(f"only must be some of {', '.join(SECTIONS)}, got {only}.")
    if sheets is not None and "rollout" not in only:
        raise ValueError("sheets are chosen by the rollout's PSNR; measure 'rollout' as well.")
    folder = resolve(checkpoint)
    components = load_checkpoint(folder, device)
    world = DreamWorld(components, sigmas=step_sigmas)
    pipeline = AetherPipeline(components, sigmas=clip_sigmas)
    sections: dict[str, Callable[[Walk, int], scores.Scores]] = {
        "rollout": partial(scores.rollout_scores, world),
        "prediction": partial(scores.prediction_scores, pipeline),
        "reconstruction": partial(scores.reconstruction_scores, pipeline),
    }
    results: dict[str, Any] = {
        "metrics": {}, "intervals": {}, "counts": {},
        "commit": report.commit(), "checkpoint": str(checkpoint), "checkpoint_sha256": report.checkpoint_sha256(folder),
        "device": device,
        "seeds": {"split": "test", "first": seed_in("test", 0), "count": clips, "noise": seed},
        "settings": {
            "height": world.height, "width": world.width, "fps": world.fps, "step_sigmas": list(world.sigmas),
            "clip_sigmas": list(pipeline.sigmas), "sections": list(only),
        },
        "speed": {"checkpoint_mib": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**20},
    }  # fmt: skip
    walks = WalkSet(clips, CLIP_FRAMES, components.settings, device)
    clock = Clock()
    parts: list[scores.Scores] = []
    wanted = {name: measure for name, measure in sections.items() if name in only}
    if wanted:
        clock.time("rendering", lambda: walks.plans)
    for first in tqdm(range(0, clips, BATCH) if wanted else (), desc="clips", unit="batch"):
        walk = clock.time("rendering", partial(walks.draw, np.arange(first, min(first + BATCH, clips))))
        part: scores.Scores = {}
        if {"rollout", "prediction"} & set(only):
            part |= clock.time("baselines", partial(scores.baseline_scores, world.codec, walk))
        for name, measure in wanted.items():
            part |= clock.time(name, partial(measure, walk, seed))
        parts.append(part)
    found = _joined(parts)
    metrics, intervals, counts = summarise(found, seed)
    if "long" in only:
        long_walks = WalkSet(min(clips, LONG_CLIPS), 4 * scores.LONG_STEPS[-1] + 1, components.settings, device)
        bar = tqdm(long_walks.batches(), desc="long walks", unit="batch", total=-(-long_walks.count // BATCH))
        long = clock.time("long", lambda: _joined([scores.long_scores(world, walk, seed) for walk in bar]))
        of_long = summarise(long, seed)
        metrics, intervals, counts = metrics | of_long[0], intervals | of_long[1], counts | of_long[2]
    if "endurance" in only:
        few = walks.draw(np.arange(2 if clips >= BATCH else 1))  # a small run is for a quick look
        metrics["nan_free_200"] = float(clock.time("endurance", partial(stays_finite, world, few, seed)))
    if "speed" in only:
        results["speed"] |= measure_speed(folder, walks.draw(np.arange(1)), step_sigmas, seed)
        metrics["cpu_steps_per_second"] = 1 / results["speed"]["cpu_step_seconds_median"]
    results["speed"] |= {f"evaluation_seconds_{name}": value for name, value in clock.seconds.items()}
    if sheets is not None:
        order = np.argsort(-found[f"psnr_dream_{scores.FRAMES[-1]}"], kind="stable")
        for title, number in (("best", order[0]), ("median", order[len(order) // 2]), ("worst", order[-1])):
            report.write_sheet(sheets / f"{title}.png", world, walks.draw(np.array([number])), seed)
    return results | {"metrics": metrics, "intervals": intervals, "counts": counts}


def main(
    checkpoint: str = "mini",
    clips: int = 256,
    seed: int = 0,
    device: str = "cpu",
    out: Path | None = Path("docs/results/quick.json"),
    step_sigmas: tuple[float, ...] | None = None,
    clip_sigmas: tuple[float, ...] | None = None,
    only: tuple[Section, ...] = SECTIONS,
    sheets: Path | None = None,
) -> None:
    """Measure a checkpoint on fixed test walks of the simulator.

    Args:
        checkpoint: A bundled name or a folder.
        clips: How many test clips.
        seed: Of the dreams' noise, the random actions and the bootstrap; the clips are always the same.
        device: Where to render and dream; the speed is always the CPU's.
        out: JSON file; the tables go beside it as .md. None writes nothing.
        step_sigmas: Noise levels of an env step instead of the checkpoint's.
        clip_sigmas: Noise levels of prediction and reconstruction instead of the checkpoint's.
        only: What to measure.
        sheets: Folder for contact sheets of the best, median and worst clip.
    """
    from training.evaluation import report

    results = evaluate(
        checkpoint, clips=clips, seed=seed, device=device, step_sigmas=step_sigmas, clip_sigmas=clip_sigmas, only=only,
        sheets=sheets,
    )  # fmt: skip
    table = report.markdown(results)
    print(table)
    if out is not None:
        report.write_json(out, results)
        out.with_suffix(".md").write_text(table, encoding="utf-8")


class Clock:
    """Adds up the seconds that named pieces of work take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, work: Callable[[], Result]) -> Result:
        """Return what the work returns."""
        began = time.perf_counter()
        result = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        return result


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Join scores of batches, clip after clip."""
    import numpy as np

    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}


if __name__ == "__main__":
    tyro.cli(main)
