"""Measure a checkpoint on fixed test walks of the simulator: python -m training.evaluation.quick --clips 256

The protocol `quick` of `aether evaluate`, under a name of its own because the README's table is made with it.
"""

from __future__ import annotations

from pathlib import Path

import tyro

from training.evaluation import evaluate


def main(
    checkpoint: str = "mini",
    clips: int = 256,
    seed: int = 0,
    device: str = "cpu",
    out: Path | None = Path("docs/results/quick.json"),
    step_sigmas: tuple[float, ...] | None = None,
    clip_sigmas: tuple[float, ...] | None = None,
    only: tuple[evaluate.Section, ...] | None = None,
    sheets: Path | None = None,
) -> None:
    """Measure a checkpoint; print tables, and leave them and the JSON where --out says.

    Args:
        checkpoint: A bundled name or a folder.
        clips: How many test clips.
        seed: Of the dreams' noise, the random actions and the bootstrap; the clips are always the same.
        device: Where to render and dream; the speed is always the CPU's.
        out: JSON file; the tables go beside it as .md. None writes nothing.
        step_sigmas: Noise levels of an env step instead of the checkpoint's.
        clip_sigmas: Noise levels of prediction, planning and reconstruction instead of the checkpoint's.
        only: What to measure.
        sheets: Folder for contact sheets of the best, median and worst clip.
    """
    evaluate.main(
        checkpoint, clips=clips, seed=seed, device=device, out=out, step_sigmas=step_sigmas, clip_sigmas=clip_sigmas,
        only=only, sheets=sheets,
    )  # fmt: skip


if __name__ == "__main__":
    tyro.cli(main)
