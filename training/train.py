"""Train one recipe: python -m training.train --recipe debug_cpu --run-dir runs/debug_cpu

Run again with the same folder it goes on from its newest checkpoint. Under torchrun it uses every process:
torchrun --standalone --nproc-per-node 4 -m training.train --recipe mini --run-dir runs/mini
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro


def main(
    recipe: str,
    run_dir: Path | None = None,
    autoencoder: str | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    warm_start: str | None = None,
) -> None:
    """Train one recipe of training/recipes.py.

    Args:
        recipe: Its name.
        run_dir: Where everything goes; default runs/RECIPE.
        autoencoder: Checkpoint with the autoencoders, instead of the recipe's.
        minutes: Wall-clock budget, instead of the recipe's.
        steps: Steps, instead of the recipe's.
        batch_size: Samples per step and process, instead of the recipe's.
        warm_start: Checkpoint whose transformer the run begins with.
    """
    from training.recipes import RECIPES
    from training.trainer import train

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if recipe not in RECIPES:
        raise SystemExit(f"unknown recipe {recipe!r}; choose one of {', '.join(RECIPES)}.")
    config = RECIPES[recipe]()
    changes: dict[str, Any] = {"minutes": minutes, "steps": steps, "batch_size": batch_size}
    config = replace(config, **{name: value for name, value in changes.items() if value is not None})
    given = {"autoencoder": autoencoder, "warm_start": warm_start}
    origins: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    config = replace(config, transformer=replace(config.transformer, **origins))
    if autoencoder is not None:
        config = replace(config, decoder=replace(config.decoder, autoencoder=autoencoder))
    folder = train(config, run_dir or Path("runs") / recipe)
    logging.info("checkpoint in %s", folder)


if __name__ == "__main__":
    tyro.cli(main)
