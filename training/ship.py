"""Turn a finished run into a checkpoint folder as small as it ships: python -m training.ship RUN_DIR OUT

The transformer's matrices become int8 with one scale per row, everything else float16.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    from aether_env.world_model.autoencoder import CausalGroupAutoencoder

MAX_BYTES = 32 << 20
ARCHITECTURE = ("in_channels", "latent_channels", "width", "fine_width", "encoder_blocks")
"""What shapes an encoder."""


def main(
    run_dir: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    colour: Path | None = None,
    step_sigmas: tuple[float, ...] | None = None,
    step_detail: float | None = None,
    clip_sigmas: tuple[float, ...] | None = None,
    reconstruct_sigmas: tuple[float, ...] | None = None,
    reconstruct_views: int | None = None,
    reconstruct_refine: bool | None = None,
    int8: bool = True,
) -> None:
    """Write the shipped form of a run's checkpoint.

    Args:
        run_dir: Folder of a finished transformer run.
        out: Folder to write; replaced if it is there, unless the new one would be too large to ship.
        colour: Checkpoint whose colour autoencoder ships instead of the run's, with the same encoder: of a decoder run.
        step_sigmas: Noise levels of an env step, instead of the run's.
        step_detail: See `Settings`, instead of the run's.
        clip_sigmas: Noise levels of prediction and planning, instead of the run's.
        reconstruct_sigmas: Noise levels of reconstruction, instead of the run's.
        reconstruct_views: How often a video is looked at, 1, 2 or 4 times, instead of the run's.
        reconstruct_refine: Whether what is found of a video is made to fit its pictures, instead of the run's.
        int8: Store matrices as int8.
    """
    from aether_env.world_model.checkpoint import load_checkpoint, save_checkpoint
    from training.trainer import EXPORT

    if not (run_dir / EXPORT).is_dir():
        raise SystemExit(f"{run_dir / EXPORT} is not there: run_dir must be the folder of a finished transformer run.")
    parts = load_checkpoint(run_dir / EXPORT)
    if colour is not None:
        refined = load_checkpoint(colour).vae
        if not same_latents(parts.vae, refined):
            raise SystemExit(
                f"{colour} encodes to other latents than {run_dir} was trained on; refine its own decoder."
            )
        parts.vae = refined
    changes: dict[str, Any] = {
        "step_sigmas": step_sigmas,
        "step_detail": step_detail,
        "clip_sigmas": clip_sigmas,
        "reconstruct_sigmas": reconstruct_sigmas,
        "reconstruct_views": reconstruct_views,
        "reconstruct_refine": reconstruct_refine,
    }
    parts.settings = replace(parts.settings, **{k: v for k, v in changes.items() if v is not None})
    try:
        save_checkpoint(parts, out, transformer_int8=int8, max_bytes=MAX_BYTES)
    except ValueError as error:
        raise SystemExit(str(error)) from error


def same_latents(one: CausalGroupAutoencoder, other: CausalGroupAutoencoder) -> bool:
    """Return whether two autoencoders of one architecture encode alike: the same encoder, mean and deviation."""
    import torch

    if {n: one.config[n] for n in ARCHITECTURE} != {n: other.config[n] for n in ARCHITECTURE}:
        return False
    same = torch.equal(one.mean, other.mean) and torch.equal(one.std, other.std)
    parts = ("frame_in", "frame_in_block", "group_in", "encoder", "to_moments")
    return same and all(
        torch.equal(a, b)
        for name in parts
        for a, b in zip(getattr(one, name).parameters(), getattr(other, name).parameters(), strict=True)
    )


if __name__ == "__main__":
    tyro.cli(main)
