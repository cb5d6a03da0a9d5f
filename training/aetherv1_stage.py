"""The stage "aetherv1": the paper's model, from clips of any source to a checkpoint that `load_aetherv1` loads."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from aether_env.conventions import FRAMES_PER_LATENT
from aether_env.raymap import ORIGIN_GAIN
from aether_env.world_model.aetherv1 import CELL, AetherV1, check_aetherv1, load_aetherv1
from aether_env.world_model.aetherv1_clips import AetherV1Clips
from training.aetherv1_objective import AetherV1Objective, Answer, Sample
from training.checkpointing import rng_for
from training.config import AetherV1StageConfig, TrainConfig
from training.data_config import SHARDS, check_sources, read_source
from training.dataset import (
    BatchSettings,
    ClipBatch,
    ClipBatches,
    ClipSource,
    FolderClips,
    MixedClips,
    ShardClips,
    SimulatorClips,
)
from training.decoded import Decoded, disparity_from_video, level_weight, rays_from_raymap, stage2_loss
from training.evaluation.datasets import DatasetName
from training.folder import EXPORT
from training.parallelize import Processes, shard_model
from training.run import Run
from training.sheets import SampleSheet, Sheet
from training.warm import find_warm
from training.watch import count_flops

logger = logging.getLogger(__name__)


def train_aetherv1(config: TrainConfig, run_dir: Path, processes: Processes) -> Path:
    """Train the transformer of a checkpoint in the published format: stage 1, and with `stage2` stage 2.

    Returns:
        The folder of the exported checkpoint, with averaged weights; bfloat16 if the run computed in it.
    """
    stage, parallel, device = config.aetherv1, config.parallel, processes.device
    assert stage.checkpoint is not None  # `TrainConfig` has looked
    # Before gigabytes are loaded: there may be nothing to learn from.
    mixed, settings = open_sources(stage.sources, config.seed), batch_settings(config, device)
    batches = ClipBatches(mixed, settings, rank=processes.rank, world_size=processes.world_size)
    parts = load_aetherv1(stage.checkpoint)  # on the CPU: a whole copy may not fit on a GPU, its shard does
    precision = torch.bfloat16 if config.bf16 else torch.float32
    parts.vae.to(device, precision)
    parts.prompt_embeds = parts.prompt_embeds.to(device)
    transformer = parts.transformer.requires_grad_(True).train()
    watched = device.startswith("cuda") or config.watch.peak_tflops is not None
    flops = flops_per_clip(stage, transformer) if watched else None
    if config.compile:  # each shape of clips is two graphs, the first block's and the others'; torch stops at 8
        limit = 4 * len(stage.num_frames) * len(stage.sizes)
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    shard_model(transformer, processes, parallel.shards, config.bf16, parallel.activation_checkpointing, config.compile)
    run = Run(config, run_dir, transformer, processes, flops)
    objective = AetherV1Objective(parts, stage.objective, bf16=config.bf16)
    if run.extra:
        batches.load_state_dict(run.extra["batches"])

    def advance(progress: float) -> dict[str, Tensor]:
        with run.watch.waiting():
            batch = next(batches)
        # One generator a clip, by its number among those of all processes: batches may be dealt out otherwise.
        first = processes.rank * config.batch_size
        generators = [rng_for(config.seed, run.step, first + i, device) for i in range(config.batch_size)]
        sample = objective.compose(batch, generators)
        answer = objective.ask(sample, generators)
        loss, record = objective.loss(answer)
        if stage.stage2:
            decoded, decoded_record = decoded_loss(objective, batch, sample, answer, stage, generators[0])
            loss, record = loss + decoded, record | decoded_record
        return {"loss": loss.detach(), "grad_norm": run.descend(loss, progress), **record}

    try:
        sheet = _sheet(config, parts, precision, device)
        run.loop(advance, extra=lambda: {"batches": batches.state_dict()}, sheet=sheet)
    finally:
        batches.close()
        batches.tell()
    weights = run.averaged_weights()
    if processes.rank == 0:
        export(run_dir / EXPORT, parts, weights, precision)
    return run_dir / EXPORT


def decoded_loss(
    objective: AetherV1Objective,
    batch: ClipBatch,
    sample: Sample,
    answer: Answer,
    stage: AetherV1StageConfig,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return stage 2's loss of the items with the least noise among this process's, see `decoded.stage2_loss`.

    Of their pictures a part is decoded, the same of prediction and truth.

    Args:
        objective: Decodes.
        batch: The clips, for where depth is known.
        sample: What the transformer was shown.
        answer: What it said.
        stage: With the settings `decoded` and `decoded_size`.
        generator: Draws where the part lies.
    """
    config = stage.decoded
    weight = level_weight(answer.levels.share, config.level_power)
    weight, chosen = weight.topk(max(1, round(config.share * len(weight))))
    rows, columns = draw_part(sample.target.shape[-2:], stage.decoded_size, generator)
    with torch.no_grad():
        truth = decode(objective, sample.target[chosen][..., rows, columns])
    high, wide = (slice(CELL * part.start, CELL * part.stop) for part in (rows, columns))
    valid = batch.valid[..., high, wide].to(weight.device)[chosen]
    prediction = decode(objective, answer.clean[chosen][..., rows, columns])
    return stage2_loss(prediction, truth, weight, config, valid)


def draw_part(cells: Sequence[int], size: tuple[int, int], generator: torch.Generator) -> list[slice]:
    """Return which rows and columns of latents (h, w) hold a part of `size` pixels, at most all, anywhere alike."""
    parts = []
    for whole, pixels in zip(cells, size, strict=True):
        count = min(whole, pixels // CELL)
        first = int(torch.randint(whole - count + 1, (), generator=generator, device=generator.device))
        parts.append(slice(first, first + count))
    return parts


def decode(objective: AetherV1Objective, clean: Tensor) -> Decoded:
    """Return what latents (B, N, 56, h, w) of the paper's layout decode to; gradients flow into them.

    Either video is decoded again in the backward pass, so that what one of them keeps is all there is at a time.
    """
    again = partial(checkpoint, use_reentrant=False)
    disparity = disparity_from_video(again(objective.decode_disparity, clean), headroom=1.0)
    rays = rays_from_raymap(objective.decode_raymap(clean), ORIGIN_GAIN)
    return Decoded(again(objective.decode_colour, clean), disparity, *rays)


def check_aetherv1_stage(config: TrainConfig) -> None:
    """Refuse what cannot work, before anything is loaded.

    Raises:
        ValueError: A folder of clips or weights is missing, or is none.
    """
    stage = config.aetherv1
    check_sources(stage.sources)
    check_aetherv1(Path(str(stage.checkpoint)))
    if config.warm_start is not None and find_warm(config.warm_start) is None:
        raise ValueError(
            f"warm_start must be a run or its folder warm/ in this stage, got {config.warm_start}; a checkpoint goes "
            "into aetherv1.checkpoint."
        )
    if stage.objective.prediction == "flow":
        logger.warning("aetherv1.objective.prediction='flow': AetherV1's own sampler cannot use what comes out.")


def batch_settings(config: TrainConfig, device: str) -> BatchSettings:
    """Return what the batches of a run are like."""
    stage = config.aetherv1
    return BatchSettings(
        batch_size=config.batch_size,
        num_frames=stage.num_frames,
        fps=stage.fps,
        sizes=stage.sizes,
        seed=config.seed,
        shuffle_shards=stage.shuffle_shards,
        workers=stage.workers,
        pin=device.startswith("cuda"),
    )


def open_sources(sources: Sequence[str], seed: int, **rendering: Any) -> MixedClips:
    """Return where clips come from, see `data_config.read_source`.

    Args:
        sources: In words.
        seed: Of the simulator's scenes.
        rendering: How the simulator draws, see `SimulatorClips`.

    Raises:
        ValueError: There is nothing that can be read in one of them.
    """
    opened: list[tuple[ClipSource, float]] = []
    for kind, folder, weight in map(read_source, sources):
        if folder is None:
            opened.append((SimulatorClips(seed, **rendering), weight))
        else:
            of_set = cast(DatasetName, kind)
            opened.append((ShardClips(folder) if kind == SHARDS else FolderClips.open(of_set, folder), weight))
    return MixedClips(opened)


def flops_per_clip(stage: AetherV1StageConfig, transformer: Any) -> float:
    """Return the transformer's operations for a clip, forward and backward: the mean over lengths and sizes."""
    with torch.device("meta"):
        empty: Any = type(transformer).from_config(transformer.config)
    counted = [_flops(empty, frames, *size) for frames in stage.num_frames for size in stage.sizes]
    return sum(counted) / len(counted)


def _flops(empty: Any, frames: int, height: int, width: int) -> int:
    config = empty.config
    slots = (frames - 1) // FRAMES_PER_LATENT + 1
    shape = (1, slots, config.in_channels, height // CELL, width // CELL)
    with torch.device("meta"):
        shown, prompt = torch.empty(shape), torch.empty(1, config.max_text_seq_length, config.text_embed_dim)
        time = torch.zeros(1, dtype=torch.long)
        return count_flops(lambda: empty(hidden_states=shown, encoder_hidden_states=prompt, timestep=time))


def export(folder: Path, parts: AetherV1, weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Write a checkpoint in the published format.

    Args:
        folder: Replaced as a whole.
        parts: Autoencoder, scheduler, prompt, and the transformer's config.
        weights: Of the transformer, whole, on the CPU.
        dtype: In which the transformer is stored.
    """
    AetherV1Clips(_with_weights(parts, weights, dtype, "cpu")).save(folder)


def _sheet(config: TrainConfig, parts: AetherV1, dtype: torch.dtype, device: str) -> Sheet:
    """Return what draws a sheet of the smallest and shortest clips, with a transformer that is gone afterwards."""
    stage, size = config.aetherv1, min(config.aetherv1.sizes, key=math.prod)
    clips = SampleSheet(
        config.watch.sheet_clips,
        device,
        num_frames=min(stage.num_frames),
        fps=min(stage.fps),
        height=size[0],
        width=size[1],
    )

    def draw(weights: dict[str, Tensor]) -> np.ndarray:
        # Slow and small: it has to fit beside what a run keeps.
        own = replace(_with_weights(parts, weights, dtype, device), guidance_in_turn=True, slicing=True)
        return clips.predicted(AetherV1Clips(own, size=size, steps=config.watch.sheet_steps))

    return draw


def _with_weights(parts: AetherV1, weights: dict[str, Tensor], dtype: torch.dtype, device: str) -> AetherV1:
    """Return the parts with a whole transformer of its own, of these weights in the given type, on a device."""
    with torch.device("meta"):
        transformer: Any = type(parts.transformer).from_config(parts.transformer.config)
    transformer.load_state_dict({name: weight.to(device, dtype) for name, weight in weights.items()}, assign=True)
    return replace(parts, transformer=transformer.eval(), prompt_embeds=parts.prompt_embeds.to(device))
