"""The runs that are worth a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from training.config import (
    AutoencoderConfig,
    DataConfig,
    DecoderConfig,
    OptimizerConfig,
    TrainConfig,
    TransformerConfig,
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
        batch_size=4,
        steps=6,
        save_every=3,
        log_every=1,
    )


def debug_cpu_decoder() -> TrainConfig:
    """Return a run of seconds that exercises everything in the decoder stage."""
    return replace(
        debug_cpu_autoencoder(),
        stage="decoder",
        decoder=DecoderConfig(
            autoencoder="runs/debug_cpu_autoencoder/checkpoint", adversarial_start=0.4, critic_widths=(8, 8)
        ),
    )


def debug_cpu() -> TrainConfig:
    """Return a run of seconds that exercises everything in the transformer stage."""
    return replace(
        debug_cpu_autoencoder(),
        stage="transformer",
        transformer=TransformerConfig(
            architecture={"num_attention_heads": 1, "num_layers": 1, "time_embed_dim": 16},
            autoencoder="runs/debug_cpu_autoencoder/checkpoint",
        ),
        batch_size=32,
    )


def mini_autoencoder() -> TrainConfig:
    """Return the autoencoders of `mini`; docs/training-log.md says for how long they were trained."""
    return TrainConfig(
        stage="autoencoder",
        data=DataConfig(chunk_clips=1024, chunks=8, renew_every=60, workers=8),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=200, ema=0.999, decay_share=0.5),
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
        batch_size=96,
        steps=100_000,
        minutes=4.0,
        save_every=10_000,
        device="cuda",
        compile=True,
        bf16=True,
    )


def mini() -> TrainConfig:
    """Return the transformer of `mini`, with what has changed since the run in docs/training-log.md."""
    return TrainConfig(
        data=DataConfig(chunk_clips=1024, chunks=32, renew_every=300, workers=10),
        transformer=TransformerConfig(autoencoder="runs/mini_autoencoder/checkpoint"),
        batch_size=256,
        steps=100_000,
        minutes=12.0,
        save_every=2_000,
        device="cuda",
        compile=True,
        bf16=True,
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (debug_cpu_autoencoder, debug_cpu_decoder, debug_cpu, mini_autoencoder, mini_decoder, mini)
}
