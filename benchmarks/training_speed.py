"""How fast the paper's transformer is trained and what it needs: whole optimizer steps with random weights and clips.

    python benchmarks/training_speed.py --size 1b --out speed.json          # a minute on one GPU, most of it compiles
    torchrun --standalone --nproc-per-node 2 benchmarks/training_speed.py --size 1b --shards 2
    python benchmarks/training_speed.py --size 5b --pretend 8 --activation-checkpointing     # memory of one of eight
    python benchmarks/training_speed.py                                     # toy size without a GPU

A step is what `training.run.Run` and the stage "aetherv1" do: mix, ask, backward, exchange, clip, AdamW, average.
"encode_ms" is what a clip of the batch costs before that, in the autoencoder and on the way to the GPU. MFU counts the
transformer's own operations, forward and backward and none of them twice, against the device's measured matrix peak.
Medians of `steps` steps after `WARM_UP` others.

With `--pretend N` the exchange with N - 1 other processes is left out: what it says of time is not true, what it says
of memory is, as every process of N holds the same share.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import tyro
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler

from aether_env.world_model.aetherv1 import AetherV1
from aether_env.world_model.aetherv1_clips import AetherV1Clips
from aether_env.world_model.conditions import LATENT_CHANNELS, TARGET_CHANNELS
from training.aetherv1_objective import AetherV1Objective
from training.aetherv1_stage import flops_per_clip
from training.checkpointing import rng_for
from training.config import AetherV1StageConfig, OptimizerConfig, ParallelConfig, TrainConfig
from training.dataset import ClipBatch
from training.optimizer import AveragedWeights, build_optimizers, step_unless
from training.parallelize import Processes, average_gradients, clip_gradients, join_processes, shard_model
from training.watch import peak_flops

WARM_UP = 3
SIZES: dict[str, dict[str, int]] = {
    "5b": {"num_attention_heads": 48, "num_layers": 42},
    "1b": {"num_attention_heads": 30, "num_layers": 24},
    "tiny": {"num_attention_heads": 2, "num_layers": 2},
}
"""Heads of 64 and layers; "5b" is AetherV1's own."""
logger = logging.getLogger(__name__)


def build_transformer(size: str, height: int, width: int) -> CogVideoXTransformer3DModel:
    """Return a transformer of the published layout, its weights without memory yet."""
    prompt = {"text_embed_dim": 24, "max_text_seq_length": 10} if size == "tiny" else {"text_embed_dim": 4096}
    with torch.device("meta"):
        return CogVideoXTransformer3DModel(
            in_channels=2 * TARGET_CHANNELS - LATENT_CHANNELS,
            out_channels=TARGET_CHANNELS,
            attention_head_dim=64,
            use_rotary_positional_embeddings=True,
            sample_height=height // 8,
            sample_width=width // 8,
            **SIZES[size],  # type: ignore[arg-type]
            **prompt,  # type: ignore[arg-type]
        )


def build_autoencoder(size: str) -> AutoencoderKLCogVideoX:
    """Return CogVideoX's autoencoder with random weights; a toy for "tiny"."""
    toy: dict[str, Any] = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}
    full: dict[str, Any] = {"block_out_channels": (128, 256, 256, 512), "layers_per_block": 3, "norm_num_groups": 32}
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        latent_channels=LATENT_CHANNELS,
        invert_scale_latents=True,
        scaling_factor=0.7,
        **(toy if size == "tiny" else full),
    )


def random_clips(count: int, frames: int, height: int, width: int) -> ClipBatch:
    """Return clips of noise, one camera that stands still."""
    generator = torch.Generator().manual_seed(0)
    intrinsics = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]], dtype=torch.float64)
    shape = (count, frames, height, width)
    return ClipBatch(
        rgb=torch.randint(256, (count, frames, 3, height, width), generator=generator).to(torch.uint8),
        depth=1 + torch.rand(shape, generator=generator),
        valid=torch.ones(shape, dtype=torch.bool),
        moving=torch.zeros(shape, dtype=torch.bool),
        world_from_camera=torch.eye(4, dtype=torch.float64).expand(count, frames, 4, 4).clone(),
        intrinsics=intrinsics.expand(count, frames, 3, 3).clone(),
        fps=12.0,
        names=("noise",) * count,
    )


def filled(transformer: Any, size: str, device: str, precision: torch.dtype) -> AetherV1:
    """Return all parts of the published format, with random weights: also the transformer's, which has no memory yet.

    Args:
        transformer: Of `build_transformer`, sharded or not.
        size: Of the autoencoder.
        device: Where everything lives.
        precision: Of the autoencoder.
    """
    transformer.to_empty(device=device)
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []), torch.no_grad():
        torch.manual_seed(0)
        for weight in transformer.parameters():
            weight.normal_(std=0.02)
    text = transformer.config
    prompt = torch.zeros(1, text.max_text_seq_length, text.text_embed_dim, device=device)
    scheduler = CogVideoXDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
        rescale_betas_zero_snr=True, snr_shift_scale=1.0, timestep_spacing="trailing",
    )  # fmt: skip
    vae = build_autoencoder(size).to(device, precision)
    return AetherV1(transformer=transformer, vae=vae, scheduler=scheduler, prompt_embeds=prompt)


def measure(config: TrainConfig, processes: Processes, size: str, clips: ClipBatch, steps: int) -> dict[str, Any]:
    """Return what optimizer steps on these clips take."""
    device, gpu = processes.device, processes.device.startswith("cuda")
    frames, height, width = clips.rgb.shape[1], *clips.rgb.shape[-2:]
    transformer = build_transformer(size, height, width)
    parameters = sum(p.numel() for p in transformer.parameters())
    stage = AetherV1StageConfig(num_frames=(frames,), sizes=((height, width),))
    flops = flops_per_clip(stage, transformer)
    parallel = config.parallel
    shard_model(transformer, processes, parallel.shards, config.bf16, parallel.activation_checkpointing, config.compile)
    parts = filled(transformer, size, device, torch.bfloat16 if config.bf16 else torch.float32)
    objective = AetherV1Objective(parts, stage.objective, bf16=config.bf16)
    weights = list(transformer.parameters())
    optimizers, average = build_optimizers(transformer, config.optimizer), AveragedWeights(weights, 0.9999)
    bad = torch.zeros((), device=device)
    encode, times, losses = [], [], []
    for step in range(WARM_UP + steps):
        if gpu and step == WARM_UP:
            torch.cuda.reset_peak_memory_stats()
        generators = [rng_for(0, step, index, device) for index in range(len(clips.rgb))]
        began = now(gpu)
        sample = objective.compose(clips, generators)
        encoded = now(gpu)
        loss, _ = objective.loss(objective.ask(sample, generators))
        loss.backward()
        average_gradients(weights, processes)
        clip_gradients(weights, config.optimizer.clip_norm)
        step_unless(bad, optimizers)
        average.update(weights, average.share(step), bad)
        for weight in weights:
            weight.grad = None
        encode.append(encoded - began)
        times.append(now(gpu) - encoded)
        losses.append(float(loss.detach()))
        logger.info("step %d: %.3f s, encoding %.3f s, loss %.4f", step, times[-1], encode[-1], losses[-1])
    seconds, peak = statistics.median(times[WARM_UP:]), peak_flops(config, device)
    count = len(clips.rgb)
    return {
        "size": size, "parameters": parameters, "clip": [frames, height, width], "batch_size": count,
        "processes": processes.world_size, "shards": parallel.shards, "bf16": config.bf16, "compile": config.compile,
        "activation_checkpointing": parallel.activation_checkpointing, "steps": steps,
        "step_ms": 1000 * seconds, "encode_ms": 1000 * statistics.median(encode[WARM_UP:]) / count,
        "clips_per_s": count * processes.world_size / seconds,
        "tflop_per_clip": flops / 1e12, "peak_tflops": None if peak is None else peak / 1e12,
        "mfu": None if peak is None else count * flops / seconds / peak,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
        "finite": all(map(torch.isfinite, torch.tensor(losses))),
    }  # fmt: skip


def now(gpu: bool) -> float:
    """Return the time when the device is done."""
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


def main(
    size: Literal["5b", "1b", "tiny"] | None = None,
    frames: int = 41,
    height: int = 480,
    width: int = 720,
    batch_size: int = 1,
    shards: int = 1,
    activation_checkpointing: bool = False,
    compile: bool = True,
    pretend: int = 0,
    steps: int = 10,
    device: Literal["cuda", "cpu"] | None = None,
    out: Path | None = None,
    save: Path | None = None,
) -> None:
    """Print one row as JSON; append it to a file.

    Args:
        size: Of the transformer, see `SIZES`; None is "1b" on a GPU and "tiny" on a CPU.
        frames: Of a clip.
        height: Pixels; "tiny" takes 32.
        width: Pixels; "tiny" takes 48.
        batch_size: Clips per process.
        shards: Processes that share one copy of the weights.
        activation_checkpointing: Compute the blocks' activations twice.
        compile: The blocks.
        pretend: Be one of so many processes that share the weights, without the others.
        steps: Timed ones.
        device: "cpu" is for trying it out; None is a GPU where there is one.
        out: JSON file, one row a line.
        save: Measure nothing; write the random weights to this folder in the published format, to try the stage
            "aetherv1" with.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    size = size or ("1b" if device == "cuda" else "tiny")
    if size == "tiny":
        height, width = 32, 48
    if save is not None:
        where = "cuda:0" if device == "cuda" else "cpu"
        parts = filled(build_transformer(size, height, width), size, where, torch.bfloat16)
        parts.transformer.to(torch.bfloat16)
        AetherV1Clips(parts).save(save)
        return
    if pretend:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=pretend)
        processes, shards = Processes(0, pretend, "cuda:0" if device == "cuda" else "cpu"), pretend
    else:
        processes = join_processes(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    config = TrainConfig(
        stage="autoencoder",  # of which nothing is used: the parts that are have their settings below
        batch_size=batch_size,
        device=device,
        bf16=device == "cuda",
        compile=compile and device == "cuda",
        optimizer=OptimizerConfig(lr=1e-5, muon_lr=0.0),
        parallel=ParallelConfig(shards=shards, activation_checkpointing=activation_checkpointing),
    )
    row = measure(config, processes, size, random_clips(batch_size, frames, height, width), steps)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    row = {"device": name, "torch": torch.__version__, "pretend": bool(pretend)} | row
    if pretend:
        row |= dict.fromkeys(("step_ms", "clips_per_s", "mfu"))
    if processes.rank == 0:
        print(json.dumps(row), flush=True)
        if out is not None:
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    tyro.cli(main)
