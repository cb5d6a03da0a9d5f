"""Turn a finished run into a checkpoint folder as small as it ships: python -m training.ship RUN_DIR OUT

The transformer's matrices become int8 with one scale per row, everything else float16.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro

MAX_BYTES = 32 << 20


def main(
    run_dir: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    step_sigmas: tuple[float, ...] | None = None,
    clip_sigmas: tuple[float, ...] | None = None,
    reconstruct_sigmas: tuple[float, ...] | None = None,
    int8: bool = True,
) -> None:
    """Write the shipped form of a run's checkpoint.

    Args:
        run_dir: Folder of a finished transformer run.
        out: Folder to write; replaced if it is there, unless the new one would be too large to ship.
        step_sigmas: Noise levels of an env step, instead of the run's.
        clip_sigmas: Noise levels of prediction and planning, instead of the run's.
        reconstruct_sigmas: Noise levels of reconstruction, instead of the run's.
        int8: Store matrices as int8.
    """
    from aether_env.world_model.checkpoint import load_checkpoint, save_checkpoint
    from training.trainer import EXPORT

    parts = load_checkpoint(run_dir / EXPORT)
    changes: dict[str, Any] = {
        "step_sigmas": step_sigmas,
        "clip_sigmas": clip_sigmas,
        "reconstruct_sigmas": reconstruct_sigmas,
    }
    parts.settings = replace(parts.settings, **{k: v for k, v in changes.items() if v is not None})
    try:
        save_checkpoint(parts, out, transformer_int8=int8, max_bytes=MAX_BYTES)
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    tyro.cli(main)
