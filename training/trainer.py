"""The training loops: the autoencoders, the transformer on their latents, and a sharper decoder for colour."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from aether_env.devices import check_device
from aether_env.world_model.autoencoder import CausalGroupAutoencoder
from aether_env.world_model.checkpoint import Components, Settings, load_checkpoint, resolve, save_checkpoint
from aether_env.world_model.conditions import (
    CLIP_POSITIONS,
    STEP_POSITIONS,
    TARGET_CHANNELS,
    WINDOW,
    Window,
    transformer_input,
)
from aether_env.world_model.denoise import look_back
from aether_env.world_model.latents import CELL, Codec
from aether_env.world_model.network import PROMPT_DIM, CleanPrediction, build_transformer
from aether_env.world_model.own_clips import OwnClips
from training.aetherv1_stage import check_aetherv1_stage, open_sources, train_aetherv1
from training.checkpointing import newest_run, rng_for
from training.config import FRESH, TrainConfig
from training.data_config import check_sources
from training.decoded import decoded_loss
from training.discriminator import Critic, PatchDiscriminator
from training.folder import EXPORT, check_folder, check_unclaimed, claimed, write_config
from training.losses import reconstruction_loss, rgb_gradient_energy
from training.objective import Batch, Sampler, Walkers, stage1_loss
from training.optimizer import begin_adamw, kept_state, rate_factor
from training.parallelize import (
    Processes,
    average_tensor,
    check_shards,
    join_processes,
    leave_processes,
    shard_model,
    within_shards,
)
from training.run import Run
from training.sheets import SampleSheet, Sheet, decoded_sheet
from training.simulate import ChunkSource, LatentBank, MixedSource, chunk_seeds, picture_batches
from training.warm import find_warm
from training.watch import count_flops

DECODER_PARTS = ("from_latents", "decoder", "group_out", "fine", "frame_out")
"""Of a CausalGroupAutoencoder: what lies behind the latents."""


def train(config: TrainConfig, run_dir: Path) -> Path:
    """Run a training to its end, from its newest checkpoint if there is one.

    Args:
        config: The run.
        run_dir: Everything it leaves, see `training.run`.

    Returns:
        The folder of the exported checkpoint.

    Raises:
        ValueError: See `check_run`; or another process trains in the folder.
        RunStopped: By a signal or too many bad steps.
    """
    check_run(config, run_dir)
    processes, threads = join_processes(config.device), torch.get_num_threads()
    try:
        torch.set_num_threads(config.threads or threads)
        with claimed(run_dir) if processes.rank == 0 else contextlib.nullcontext():
            if processes.rank == 0:
                write_config(config, run_dir, processes.world_size)
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
            return STAGES[config.stage](config, run_dir, processes)
    finally:
        torch.set_num_threads(threads)
        leave_processes(processes)


def check_run(config: TrainConfig, run_dir: Path) -> None:
    """Refuse what cannot work here, before anything is built.

    Raises:
        ValueError: The folder holds another run, or one that is going on; the device is not there, the processes cannot
            be divided so, or a checkpoint is missing.
    """
    world_size, shards = int(os.environ.get("WORLD_SIZE", "1")), config.parallel.shards
    check_folder(config, run_dir, world_size)
    if os.environ.get("RANK", "0") == "0":  # the others may come when the first process has already claimed it
        check_unclaimed(run_dir)
    check_device(config.device)
    check_shards(shards, world_size, config.optimizer.muon_lr)
    if shards > 1 and config.stage in ("autoencoder", "decoder"):
        raise ValueError(f"parallel.shards must be 1 in the stage {config.stage!r}, got {shards}.")
    check_sources(config.data.sources)
    if newest_run(run_dir) is not None:  # what the run began with may be gone
        config = dataclasses.replace(config, warm_start=None)
    if config.stage == "aetherv1":
        check_aetherv1_stage(config)
        return
    if config.stage == "transformer" and config.transformer.autoencoder not in (None, FRESH):
        resolve(str(config.transformer.autoencoder))
    if config.stage == "decoder":
        resolve(config.decoder.autoencoder)
    if config.warm_start is not None and find_warm(config.warm_start) is None:
        resolve(config.warm_start)


def _seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module with weights that depend on the seed alone, and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _fresh_pair(config: TrainConfig) -> Any:
    """Return the two autoencoders with random weights."""
    parts: dict[str, Any] = {"colour": config.autoencoder.colour, "disparity": config.autoencoder.disparity}
    return _seeded(config.seed, lambda: nn.ModuleDict({n: CausalGroupAutoencoder(**a) for n, a in parts.items()}))


def train_autoencoder(config: TrainConfig, run_dir: Path, processes: Processes) -> Path:
    """Train the colour and the disparity autoencoder."""
    model = _fresh_pair(config)
    model.to(memory_format=torch.channels_last)
    run = Run(config, run_dir, model, processes)
    device = processes.device
    modules: dict[str, Any] = dict(model.items())
    compiled = torch.compile if config.compile else (lambda function: function)
    moments = {name: compiled(module.moments) for name, module in modules.items()}
    frames = {name: compiled(module.frames) for name, module in modules.items()}
    source = _source(config, processes)
    batches = _pictures(config, processes, source, run.step)

    def advance(progress: float) -> dict[str, Tensor]:
        generator = run.generator()
        record: dict[str, Tensor] = {}
        total = torch.zeros((), device=device)
        with run.watch.waiting():
            videos = next(batches)
        for name, video in zip(("colour", "disparity"), videos, strict=True):
            with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=config.bf16):
                posterior = DiagonalGaussianDistribution(moments[name](video))
                z = posterior.sample(generator)
                decoded = frames[name](z, torch.cat([torch.zeros_like(z[:, :, :1]), z[:, :, :-1]], dim=2))
            loss = reconstruction_loss(decoded.float(), video, config.autoencoder.edge_weight)
            kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1.0 - posterior.logvar.float()).mean()
            total = total + loss + config.autoencoder.kl_weight * kl
            with torch.no_grad():
                mse = ((decoded.float().clamp(-1, 1) - video) ** 2).mean()
            record |= {f"{name}_psnr": 10 * torch.log10(4.0 / mse), f"{name}_kl": kl.detach()}
        return {"loss": total.detach(), "grad_norm": run.descend(total, progress), **record}

    try:
        run.loop(advance, sheet=decoded_sheet(config, device, model, **modules))
        last = next(batches)
    finally:
        source.close()
    run.average.copy_to(run.parameters)
    normalise(modules, last, processes)
    if processes.rank == 0:
        export(run_dir / EXPORT, config, modules["colour"], modules["disparity"], None)
    return run_dir / EXPORT


@torch.no_grad()
def normalise(modules: dict[str, Any], batch: tuple[Tensor, Tensor], processes: Processes) -> None:
    """Note each latent channel's mean and standard deviation over a batch in the autoencoders, which divide by them."""
    for name, video in zip(("colour", "disparity"), batch, strict=True):
        module = modules[name]
        z = module.encode(video).latent_dist.mode().float()
        mean = average_tensor(z.mean(dim=(0, 2, 3, 4)), processes)
        square = average_tensor((z**2).mean(dim=(0, 2, 3, 4)), processes)
        std = (square - mean**2).clamp(min=1e-8).sqrt()
        module.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
        module.mean.copy_(mean)
        module.std.copy_(std)


def train_decoder(config: TrainConfig, run_dir: Path, processes: Processes) -> Path:
    """Train the colour decoder against a discriminator, so that pictures get the sharpness of the truth."""
    device, stage = processes.device, config.decoder
    parts = load_checkpoint(stage.autoencoder, device)
    colour: Any = parts.vae.to(memory_format=torch.channels_last)
    decoder = nn.ModuleDict({name: getattr(colour, name) for name in DECODER_PARTS}).requires_grad_()
    run = Run(config, run_dir, decoder, processes)
    network = _seeded(config.seed, lambda: PatchDiscriminator(stage.critic_widths))
    critic = Critic(network, stage, processes, config.compile)
    begin_adamw(critic.optimizer)
    if run.extra:
        critic.load_state_dict(run.extra["critic"])
    compiled: Any = torch.compile if config.compile else (lambda function: function)
    moments, frames = compiled(colour.moments), compiled(colour.frames)
    source = _source(config, processes)
    batches = _pictures(config, processes, source, run.step)

    def advance(progress: float) -> dict[str, Tensor]:
        with run.watch.waiting():
            video, _ = next(batches)
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=config.bf16):
            with torch.no_grad():
                z = DiagonalGaussianDistribution(moments(video)).mode().float()
                z = disturbed(z, colour.std, stage.latent_noise, run.generator())
            decoded = frames(z, torch.cat([torch.zeros_like(z[:, :, :1]), z[:, :, :-1]], dim=2))
        decoded = decoded.float()
        before = kept_state(critic.network, critic.optimizer)
        record = critic.learn(video, decoded, rate_factor(progress, run.step, config.optimizer))
        loss = reconstruction_loss(decoded, video, config.autoencoder.edge_weight)
        if progress >= stage.adversarial_start:
            loss = loss + stage.adversarial_weight * critic.dislike(decoded)
        with torch.no_grad():
            mse = ((decoded.clamp(-1, 1) - video) ** 2).mean()
            sharpness = rgb_gradient_energy(decoded) / rgb_gradient_energy(video)
        norm = run.descend(loss, progress, record["critic_loss"], record["critic_grad_norm"])
        before.put_back(run.bad)
        psnr = 10 * torch.log10(4.0 / mse)
        return {"loss": loss.detach(), "psnr": psnr, "sharpness": sharpness, "grad_norm": norm, **record}

    sheet = decoded_sheet(config, device, decoder, colour)
    try:
        run.loop(advance, lambda: {"critic": critic.state_dict()}, sheet=sheet)
    finally:
        source.close()
    run.average.copy_to(run.parameters)
    if processes.rank == 0:
        save_checkpoint(parts, run_dir / EXPORT, transformer_int8=False)
    return run_dir / EXPORT


def disturbed(z: Tensor, std: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Return latents (B, C, N, h, w) with noise of up to `most` standard deviations `std` (C,), each sample its own."""
    amount = most * torch.rand(len(z), 1, 1, 1, 1, generator=generator, device=z.device)
    noise = torch.randn(z.shape, generator=generator, device=z.device)
    return z + amount * std.view(1, -1, 1, 1, 1) * noise


def train_transformer(config: TrainConfig, run_dir: Path, processes: Processes) -> Path:
    """Train the transformer: stage 1, and with `stage2` stage 2."""
    device, data, stage, parallel = processes.device, config.data, config.transformer, config.parallel
    transformer: Any = _seeded(config.seed, lambda: build_transformer(data.height, data.width, **stage.architecture))
    if config.warm_start is not None and newest_run(run_dir) is None and find_warm(config.warm_start) is None:
        transformer.load_state_dict(load_checkpoint(config.warm_start).transformer.state_dict())
    watched = device.startswith("cuda") or config.watch.peak_tflops is not None
    flops = flops_per_window(config, transformer) if watched else None
    prompt = torch.ones(1, 1, PROMPT_DIM, device=device)
    predict_clean = CleanPrediction(transformer, prompt, data.fps, bf16=config.bf16)
    if config.compile:
        torch._dynamo.config.recompile_limit = 64  # clips, steps, walks and resets, looked back from or at: each is one
    shard_model(transformer, processes, parallel.shards, config.bf16, parallel.activation_checkpointing, config.compile)
    run = Run(config, run_dir, transformer, processes, flops, recorded=config.cuda_graphs)
    source = _source(config, processes)
    colour, disparity = _autoencoders(config, processes, source)
    with run.watch.waiting():
        renewals = max(run.step - 1, 0) // data.renew_every
        bank = LatentBank(data, colour, disparity, device, source, renewals, views=stage.step_guess)
    scheduler = FlowMatchEulerDiscreteScheduler()
    decoders = Components(_settings(config), colour, disparity, transformer, scheduler, prompt)
    sampler, sizes = Sampler(bank, stage, Codec(decoders), config.bf16), stage.windows(config.batch_size)
    walkers = Walkers(sampler, sizes["walker"], run.generator(salt=7))
    if run.own:  # with another number of processes the walks begin anew
        walkers.load_state_dict(run.own["walkers"])

    def losses(batches: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        record: dict[str, Tensor] = {}
        total = torch.zeros((), device=device)
        for name, batch in batches.items():
            loss, parts, answer = stage1_loss(predict_clean, batch, stage, generator)
            if name == "clip" and stage.stage2:
                decoded, more = decoded_loss(decoders, batch, *answer, stage.decoded, bf16=config.bf16)
                loss, parts = loss + decoded, parts | more
            total = total + loss * (len(batch.target) / config.batch_size)
            record |= {f"{name}_{part}": value for part, value in parts.items()}
        return total, record

    ask, dream = within_shards(transformer, losses), within_shards(transformer, walkers.advance)
    generator = run.generator()
    walking: dict[str, Batch] = {}
    """What the walkers are asked in a step and dream after it; a part that is recorded takes no arguments."""

    def gradients() -> tuple[Tensor, dict[str, Tensor]]:
        run.drop_gradients()
        rows = torch.randint(len(bank), (sizes["step"],), generator=generator, device=device)
        step = torch.randint(1, data.latent_steps, (sizes["step"],), generator=generator, device=device)
        step = step.maximum(sampler.first_step(rows))
        walking["batch"] = walk = walkers.batch(generator)
        batches = {
            "clip": sampler.clips(sizes["clip"], generator),
            "step": joined([sampler.steps(rows, step, generator), walk, sampler.resets(sizes["reset"], generator)]),
        }
        total, record = ask(batches, generator)
        total.backward()
        return total.detach(), record

    def walk_on(started: bool) -> None:
        sigmas, detail = stage.walker_sigmas, stage.walker_detail
        dream(walking["batch"], predict_clean, scheduler, sigmas, detail, generator, started)

    learn, update = run.part(gradients), run.part(run.update)
    walk_on_from = {started: run.part(functools.partial(walk_on, started)) for started in (False, True)}

    def advance(progress: float) -> dict[str, Tensor]:
        run.generator()
        if run.step // data.renew_every > bank.renewals:
            with run.watch.waiting():
                new = bank.renew()
            walkers.begin((walkers.rows >= new.start) & (walkers.rows < new.stop), generator)
        total, record = learn()
        run.exchange(total)
        run.set_pace(progress)
        record = {"loss": total, "grad_norm": update(), **record}
        if (run.step + 1) % stage.walker_every == 0:
            walk_on_from[progress >= stage.walker_start]()
        return record

    try:
        run.loop(
            advance, own=lambda: {"walkers": walkers.state_dict()}, sheet=_sheet(config, colour, disparity, device)
        )
    finally:
        source.close()
    weights = run.averaged_weights()
    if processes.rank == 0:
        export(run_dir / EXPORT, config, colour, disparity, weights)
    return run_dir / EXPORT


STAGES: dict[str, Callable[[TrainConfig, Path, Processes], Path]] = {
    "autoencoder": train_autoencoder,
    "decoder": train_decoder,
    "transformer": train_transformer,
    "aetherv1": train_aetherv1,
}
"""By `TrainConfig.stage`."""


def _autoencoders(config: TrainConfig, processes: Processes, source: ChunkSource | MixedSource) -> tuple[Any, Any]:
    """Return the autoencoders of colour and disparity whose latents the transformer learns."""
    if config.transformer.autoencoder != FRESH:
        assert config.transformer.autoencoder is not None
        parts = load_checkpoint(config.transformer.autoencoder, processes.device)
        return parts.vae, parts.disparity_vae
    pair = _fresh_pair(config).to(processes.device).eval().requires_grad_(False)
    # Of step 0 also where a run goes on: its latents must stay what they were.
    normalise(dict(pair.items()), next(_pictures(config, processes, source, 0)), processes)
    return pair["colour"], pair["disparity"]


def flops_per_window(config: TrainConfig, transformer: Any) -> float:
    """Return the transformer's operations, forward and backward, for a window: the mean over the kinds of a batch."""
    stage, height, width = config.transformer, config.data.height // CELL, config.data.width // CELL
    predict = CleanPrediction(transformer, torch.ones(1, 1, PROMPT_DIM), config.data.fps)
    known, mask, dreamed = (
        torch.zeros(1, WINDOW, TARGET_CHANNELS, height, width),
        torch.zeros(1, WINDOW, 3),
        torch.ones(1, WINDOW),
    )

    def forward(positions: tuple[float, ...], history: int) -> None:
        past, window = look_back(predict, Window(known, mask, dreamed, positions, history))
        predict(transformer_input(window, known[:, history:]), torch.ones(1), window.positions, past)

    clip = count_flops(lambda: forward(CLIP_POSITIONS, 0))
    step = count_flops(lambda: forward(STEP_POSITIONS, WINDOW - 1))
    share = stage.windows(config.batch_size)["clip"] / config.batch_size
    return share * clip + (1 - share) * step


def _sheet(config: TrainConfig, colour: Any, disparity: Any, device: str) -> Sheet:
    """Return what draws a sheet of samples of the transformer with given weights."""
    sheet = SampleSheet.of_our_layout(config, device)
    # A copy of its own: the one in training may be compiled and spread over processes.
    return lambda weights: sheet.predicted(OwnClips(_components(config, colour, disparity, weights, device)))


def _source(config: TrainConfig, processes: Processes) -> ChunkSource | MixedSource:
    if config.data.sources:
        data, device = config.data, processes.device
        mixed = open_sources(data.sources, config.seed, device=device, supersample=data.supersample, family=data.family)
        rank, world_size = processes.rank, processes.world_size
        return MixedSource(config.data, mixed, processes.device, rank, world_size, config.seed)

    def seeds_of(number: int) -> range:
        return chunk_seeds(config.data, number, processes.rank, processes.world_size, config.seed)

    return ChunkSource(config.data, processes.device, seeds_of, config.data.workers)


def _pictures(
    config: TrainConfig, processes: Processes, source: ChunkSource | MixedSource, step: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the batches of colour and disparity that come after a step."""
    return picture_batches(
        config.data,
        processes.device,
        source,
        config.batch_size,
        config.autoencoder.still_share,
        lambda at: rng_for(config.seed + 1, at, processes.rank, processes.device),
        step,
    )


def joined(batches: list[Any]) -> Any:
    """Concatenate batches of one kind of window."""
    first = batches[0]
    window = dataclasses.replace(
        first.window,
        **{n: torch.cat([getattr(b.window, n) for b in batches]) for n in ("known", "mask", "dreamed")},
    )
    if any(b.window.guessed is not None for b in batches):
        size = first.target.shape[-2:]
        none = (b.window.dreamed.new_zeros(len(b.target), *size) for b in batches)
        guessed = [n if b.window.guessed is None else b.window.guessed for b, n in zip(batches, none, strict=True)]
        window = dataclasses.replace(window, guessed=torch.cat(guessed))
    return dataclasses.replace(first, window=window, target=torch.cat([b.target for b in batches]))


def export(folder: Path, config: TrainConfig, colour: Any, disparity: Any, weights: dict[str, Tensor] | None) -> None:
    """Write a checkpoint in the form that users load; without a transformer's weights, with a fresh one."""
    save_checkpoint(_components(config, colour, disparity, weights, "cpu"), folder, transformer_int8=False)


def _components(
    config: TrainConfig, colour: Any, disparity: Any, weights: dict[str, Tensor] | None, device: str
) -> Components:
    """Return a checkpoint's parts: the autoencoders as they are, and a transformer of its own on the device."""
    data, stage = config.data, config.transformer
    transformer = _seeded(config.seed, lambda: build_transformer(data.height, data.width, **stage.architecture))
    if weights is not None:
        transformer.load_state_dict(weights)
    prompt = torch.ones(1, 1, PROMPT_DIM, device=device)
    network: Any = transformer.to(device).eval()
    return Components(_settings(config), colour, disparity, network, FlowMatchEulerDiscreteScheduler(), prompt)


def _settings(config: TrainConfig) -> Settings:
    data, stage = config.data, config.transformer
    return Settings(
        height=data.height,
        width=data.width,
        fps=data.fps,
        history_noise=stage.history_noise,
        step_sigmas=stage.walker_sigmas,
        step_detail=stage.walker_detail,
        step_guess=stage.step_guess,
    )
