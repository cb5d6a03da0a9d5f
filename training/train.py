"""Train one recipe: python -m training.train --recipe debug_cpu --run-dir runs/debug_cpu

Run again with the same folder it goes on from its newest checkpoint. Under torchrun it uses every process:
torchrun --standalone --nproc-per-node 4 -m training.train --recipe mini_4gpu --run-dir runs/mini
Every setting of the recipe is an option (--optimizer.lr 1e-4 --data.chunks 8); `--recipe NAME --help` lists them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from training.config import SMALL_STAGES, TrainConfig
from training.recipes import RECIPES

BAD_SETTINGS_CODE = 2
WRONG_WEIGHTS = "Error(s) in loading state_dict"
"""So PyTorch begins where weights are of another architecture; then it lists them all."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train one recipe of training/recipes.py; run again it goes on. Every setting of the recipe is an option."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    """The recipe with what is changed."""
    recipe: str = "debug_cpu"
    """Its name; what else it may be is said if there is none of that name."""
    run_dir: Path | None = None
    """Where everything goes; default runs/RECIPE."""
    autoencoder: str | None = None
    """Checkpoint with the autoencoders, of both the transformer and the decoder stage."""


def parse(arguments: Sequence[str]) -> Command:
    """Read the command line: first which recipe, then what is changed of it.

    Raises:
        ValueError: No such recipe, or a setting that is impossible.
        SystemExit: After --help.
    """
    recipe = "debug_cpu" if {"-h", "--help"} & set(arguments) else None
    for option, value in zip(arguments, [*arguments[1:], ""], strict=False):
        recipe = value if option == "--recipe" else option[9:] if option.startswith("--recipe=") else recipe
    if recipe not in RECIPES:
        missing = "--recipe is missing" if recipe is None else f"unknown recipe {recipe!r}"
        raise ValueError(f"{missing}; choose one of {', '.join(RECIPES)}.")
    default = Command(config=RECIPES[recipe](), recipe=recipe)
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            command = tyro.cli(Command, args=arguments, default=default, prog="python -m training.train")
    except SystemExit as error:
        if not error.code:
            raise
        said = _first_sentence(told.getvalue())
        hint = f"; --recipe {recipe} --help lists them." if said.startswith("Unrecognized") else ""
        raise ValueError(said + hint) from error
    if command.autoencoder is None:
        return command
    config = command.config
    transformer = replace(config.transformer, autoencoder=command.autoencoder)
    decoder = replace(config.decoder, autoencoder=command.autoencoder)
    return replace(command, config=replace(config, transformer=transformer, decoder=decoder))


def _first_sentence(box: str) -> str:
    """Return what tyro says first in its box, in one line."""
    lines = [re.sub(r"[│╭╮╰╯]", "", line).strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    said = []
    for line in lines[1:]:
        if not line or set(line) <= {"─"}:
            break
        said.append(line)
    return re.sub(r"^(Error parsing )?(config[.:] ?)?", "", " ".join(said))


def check_command(config: TrainConfig) -> None:
    """Refuse what depends on the processes and on the disk; costs nothing.

    Raises:
        ValueError: All processes would share one GPU, or a stage without a transformer begins with a checkpoint.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and config.device not in ("cpu", "cuda"):
        raise ValueError(
            f"device must be 'cuda' for {processes} processes, got {config.device!r}: each takes a GPU of its own; "
            "CUDA_VISIBLE_DEVICES says which."
        )
    if config.warm_start is None or config.stage not in SMALL_STAGES:
        return
    from training.warm import find_warm

    if find_warm(config.warm_start) is None:
        way = "; a checkpoint goes into decoder.autoencoder." if config.stage == "decoder" else "."
        raise ValueError(
            f"warm_start must be a run or its folder warm/ in the stage {config.stage!r}, got {config.warm_start!r}"
            f"{way}"
        )


def _refused(error: Exception) -> SystemExit:
    """Say in one line what cannot work; returns what ends the process."""
    said = " ".join(str(error).split())
    if said.startswith(WRONG_WEIGHTS):
        said = f"weights do not fit the model: {textwrap.shorten(said, 240, placeholder=' ...')}"
    print(f"error: {said}", file=sys.stderr)
    return SystemExit(BAD_SETTINGS_CODE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exit codes: 2 impossible settings, 3 too many bad steps, 130 and 143 stopped by a signal."""
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
        run_dir = command.run_dir or Path("runs") / command.recipe
        from training.run import RunStopped  # after --help: PyTorch takes seconds
        from training.trainer import check_run, train

        check_command(command.config)
        check_run(command.config, run_dir)
    except ValueError as error:
        raise _refused(error) from error
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        folder = train(command.config, run_dir)
    except RunStopped as stop:
        logging.error("%s", stop)
        raise SystemExit(stop.code) from stop
    except ValueError as error:  # what shows only when things are opened: torn shards, a damaged warm folder
        raise _refused(error) from error
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:  # the folder of the run
        raise _refused(error) from error
    except RuntimeError as error:
        if not str(error).startswith(WRONG_WEIGHTS):
            raise
        raise _refused(error) from error
    logging.info("checkpoint in %s", folder)


if __name__ == "__main__":
    main()
