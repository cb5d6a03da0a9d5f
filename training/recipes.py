"""The runs that are worth a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from training.config import (
    FRESH,
    AetherV1StageConfig,
    AutoencoderConfig,
    DataConfig,
    DecoderConfig,
    OptimizerConfig,
    ParallelConfig,
    TrainConfig,
    TransformerConfig,
    WatchConfig,
)


def debug_cpu_autoencoder() -> TrainConfig:
    """Return a run of seconds that exercises everything in the autoencoder stage."""
    tiny = {"width": 16, "fine_width": 8, "encoder_blocks": 1, "decoder_blocks": 1, "fine_blocks": 1}
    return TrainConfig(
        stage="autoencoder",
        data=DataConfig(
            height=16,
            width=24,
            latent_steps=6,
            clip_starts=(0, 4),
            chunk_clips=4,
            chunks=2,
            renew_every=4,
            supersample=1,
        ),
        autoencoder=AutoencoderConfig(colour={"in_channels": 3, **tiny}, disparity={"in_channels": 1, **tiny}),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=2),
        watch=WatchConfig(sheet_every=6, sheet_clips=1),
        batch_size=4,
        steps=6,
        save_every=3,
        log_every=1,
        threads=1,
    )


def debug_cpu_decoder() -> TrainConfig:
    """Return a run of seconds that exercises everything in the decoder stage; after `debug_cpu`."""
    return replace(
        debug_cpu_autoencoder(),
        stage="decoder",
        decoder=DecoderConfig(autoencoder="runs/debug_cpu/checkpoint", adversarial_start=0.4, critic_widths=(8, 8)),
    )


def debug_cpu() -> TrainConfig:
    """Return a run of seconds that exercises everything in the transformer stage, on autoencoders with random weights.

    Its checkpoint dreams, but of nothing.
    """
    autoencoder = debug_cpu_autoencoder()
    return replace(
        autoencoder,
        stage="transformer",
        data=replace(autoencoder.data, renew_every=10),
        transformer=TransformerConfig(
            architecture={"num_attention_heads": 1, "num_layers": 1, "time_embed_dim": 16},
            autoencoder=FRESH,
            walker_every=2,
            step_guess=True,
        ),
        watch=WatchConfig(sheet_every=24, sheet_clips=1),
        batch_size=32,
        steps=24,
        save_every=4,
    )


def mini_autoencoder() -> TrainConfig:
    """Return the autoencoders of `mini`; docs/training-log.md says for how long they were trained."""
    return TrainConfig(
        stage="autoencoder",
        data=DataConfig(chunk_clips=1024, chunks=8, renew_every=60, workers=8),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=200, ema=0.999, decay_share=0.5),
        watch=WatchConfig(sheet_every=2_000),
        batch_size=96,
        steps=100_000,
        minutes=5.0,
        save_every=10_000,
        device="cuda",
        compile=True,
        bf16=True,
    )


def mini_decoder() -> TrainConfig:
    """Return the sharper colour decoder of `mini`."""
    return TrainConfig(
        stage="decoder",
        data=DataConfig(chunk_clips=1024, chunks=8, renew_every=60, workers=8),
        optimizer=OptimizerConfig(lr=2e-4, warmup_steps=100, ema=0.999),
        watch=WatchConfig(sheet_every=2_000),
        batch_size=96,
        steps=100_000,
        minutes=4.0,
        save_every=10_000,
        device="cuda",
        compile=True,
        bf16=True,
    )


def mini_1gpu() -> TrainConfig:
    """Return the transformer of `mini`, with what has changed since the run in docs/training-log.md."""
    return TrainConfig(
        data=DataConfig(chunk_clips=1024, chunks=32, renew_every=300, workers=10),
        transformer=TransformerConfig(
            autoencoder="runs/mini_autoencoder/checkpoint",
            walker_every=2,
            walker_sigmas=(1.0, 0.5),
            walker_detail=1.3,
            step_guess=True,
        ),
        watch=WatchConfig(sheet_every=1_000),
        batch_size=256,
        steps=100_000,
        minutes=12.0,
        save_every=2_000,
        device="cuda",
        compile=True,
        cuda_graphs=True,
        bf16=True,
    )


def mini_4gpu() -> TrainConfig:
    """Return the transformer of `mini` on four GPUs of one host: four times the samples at each step."""
    one = mini_1gpu()
    # Half of the bank in each process: together they hold twice as many clips. The rate rises with the square root.
    return replace(
        one,
        data=replace(one.data, chunks=16, workers=8),
        optimizer=replace(one.optimizer, lr=2 * one.optimizer.lr, warmup_steps=200),
    )


def mini_finetune() -> TrainConfig:
    """Return a run that goes on from the `mini` in the package, gently: for clips of one's own (--data.sources)."""
    one = mini_1gpu()
    return replace(
        one,
        transformer=replace(one.transformer, autoencoder="mini", walker_start=0.0),
        optimizer=OptimizerConfig(lr=1e-4, muon_lr=0.0, schedule="onecycle"),
        warm_start="mini",
        batch_size=128,
    )


def mini_stage2() -> TrainConfig:
    """Return stage 2 of `mini`: decoded losses, at a lower rate and for a quarter of the time of `mini_1gpu`."""
    one = mini_1gpu()
    return replace(
        one,
        transformer=replace(one.transformer, autoencoder="mini", walker_start=0.0, stage2=True),
        optimizer=replace(one.optimizer, lr=2e-4, muon_lr=0.007, decay_share=1.0),
        warm_start="mini",
        minutes=3.0,
        cuda_graphs=False,
    )


def aetherv1_paper() -> TrainConfig:
    """Return stage 1 of the paper: 80 GPUs in nodes of 8, 4 clips each, CogVideoX-5b-I2V widened.

    The paper gives GPUs, clips, optimizer, schedule, masks, lengths and rates; it gives neither the rate of learning
    nor the number of steps, which are ours. Weights are sharded within a node and replicated across nodes.
    """
    return TrainConfig(
        stage="aetherv1",
        aetherv1=AetherV1StageConfig(
            checkpoint="checkpoints/cogvideox_widened", sources=("shards=data/clips",), workers=8
        ),
        optimizer=OptimizerConfig(lr=2e-5, muon_lr=0.0, schedule="onecycle", weight_decay=1e-4, ema=0.9999),
        parallel=ParallelConfig(shards=8, activation_checkpointing=True),
        watch=WatchConfig(sheet_every=500),
        batch_size=4,
        steps=20_000,
        save_every=500,
        log_every=10,
        warm="never",
        device="cuda",
        compile=True,
        bf16=True,
    )


def aetherv1_paper_stage2() -> TrainConfig:
    """Return stage 2 of the paper: decoded losses for a quarter of stage 1's steps, from what stage 1 exported."""
    one = aetherv1_paper()
    stage = replace(one.aetherv1, checkpoint="runs/aetherv1_paper/checkpoint", stage2=True)
    return replace(one, aetherv1=stage, steps=one.steps // 4)


def aetherv1_8gpu() -> TrainConfig:
    """Return the paper's stage 1 on one node of eight GPUs: a tenth of the clips, and half of the rate."""
    one = aetherv1_paper()
    return replace(one, optimizer=replace(one.optimizer, lr=1e-5))


def finetune() -> TrainConfig:
    """Return a run that goes on from the published AetherV1 with clips of one's own, on one node of eight GPUs."""
    one = aetherv1_8gpu()
    return replace(
        one,
        aetherv1=replace(one.aetherv1, checkpoint="checkpoints/aetherv1"),
        optimizer=replace(one.optimizer, lr=5e-6),
        batch_size=1,
        steps=2_000,
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        debug_cpu,
        debug_cpu_autoencoder,
        debug_cpu_decoder,
        mini_autoencoder,
        mini_decoder,
        mini_1gpu,
        mini_4gpu,
        mini_finetune,
        mini_stage2,
        aetherv1_8gpu,
        aetherv1_paper,
        aetherv1_paper_stage2,
        finetune,
    )
}
