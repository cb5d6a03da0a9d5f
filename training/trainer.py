"""The training loops: the autoencoders, the transformer on their latents, and a sharper decoder for colour."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from tqdm import tqdm

from aether_env.world_model.autoencoder import CausalGroupAutoencoder
from aether_env.world_model.checkpoint import Components, Settings, load_checkpoint, save_checkpoint
from aether_env.world_model.network import PROMPT_DIM, CleanPrediction, build_transformer
from training.checkpointing import load_run, newest_run, rng_for, save_run
from training.config import TrainConfig
from training.discriminator import Critic, PatchDiscriminator
from training.losses import reconstruction_loss, rgb_gradient_energy
from training.objective import Sampler, Walkers, stage1_loss
from training.optimizer import AveragedWeights, build_optimizers, rate_factor
from training.parallelize import (
    Processes,
    average_gradients,
    average_number,
    average_tensor,
    join_processes,
    leave_processes,
)
from training.simulate import ChunkSource, LatentBank, chunk_seeds, picture_batches

logger = logging.getLogger(__name__)
EXPORT = "checkpoint"
DECODER_PARTS = ("from_latents", "decoder", "group_out", "fine", "frame_out")
"""Of a CausalGroupAutoencoder: what lies behind the latents."""
CLOCK_EVERY = 10
"""Steps between looks at the clock: the processes have to agree on it, which makes them wait."""


class Run:
    """What the stages share: processes, optimizers, averaged weights, log, checkpoints, resume."""

    def __init__(self, config: TrainConfig, run_dir: Path, model: nn.Module, processes: Processes):
        self.config, self.run_dir, self.processes = config, run_dir, processes
        self.model = model.to(processes.device)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizers = build_optimizers(self.model, config.optimizer)
        self.average = AveragedWeights(self.parameters, config.optimizer.ema)
        self.step = 0
        self.extra: dict[str, Any] = {}
        self.began = time.monotonic()
        self._clock_share = 0.0
        run_dir.mkdir(parents=True, exist_ok=True)
        newest = newest_run(run_dir)
        if newest is not None:
            self.step, state = load_run(newest, processes.device)
            self._load(state)
            logger.info("resumed %s at step %d", newest, self.step)
        self._trim_log()

    def generator(self, salt: int = 0) -> torch.Generator:
        """Return the generator of this step."""
        return rng_for(self.config.seed + salt, self.step, self.processes.rank, self.processes.device)

    @property
    def progress(self) -> float:
        """Share of the run that is done: by steps, or by the clock where `minutes` is set."""
        if self.config.minutes is not None and self.step % CLOCK_EVERY == 0:
            share = (time.monotonic() - self.began) / (60 * self.config.minutes)
            self._clock_share = average_number(share, self.processes)
        return max(self.step / self.config.steps, self._clock_share)

    def descend(self, loss: Tensor, progress: float) -> Tensor:
        """Take one optimizer step; returns the gradient's norm."""
        loss.backward()
        average_gradients(self.parameters, self.processes)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.clip_norm)
        factor = rate_factor(progress, self.step, self.config.optimizer)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update(self.parameters, self.step)
        return norm

    def loop(self, advance: Callable[[float], dict[str, Tensor]], extra: Callable[[], dict[str, Any]]) -> None:
        """Call `advance(progress)` until the run is done; log and save on the way.

        Args:
            advance: Takes one step and returns what to log.
            extra: What `save` keeps beside model and optimizers.
        """
        bar = tqdm(
            total=self.config.steps, initial=self.step, disable=self.processes.rank > 0, mininterval=5.0, unit="step"
        )
        last_log, last_time = self.step, time.monotonic()
        while (progress := self.progress) < 1.0:
            record = advance(progress)
            self.step += 1
            bar.update()
            if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                values = {k: float(average_tensor(v.detach(), self.processes)) for k, v in record.items()}
                now = time.monotonic()
                rate = (self.step - last_log) * self.config.batch_size * self.processes.world_size / (now - last_time)
                last_log, last_time = self.step, now
                self._log(
                    {"step": self.step, **values, "samples_per_s": round(rate, 1), "progress": round(progress, 5)}
                )
                if not all(torch.isfinite(torch.tensor(v)) for v in values.values()):
                    raise FloatingPointError(
                        f"the loss is not finite at step {self.step}: {values}; lower the rate or resume."
                    )
            if self.step % self.config.save_every == 0:
                self.save(extra())
        bar.close()
        self.save(extra())

    def save(self, extra: dict[str, Any]) -> None:
        """Write a checkpoint to resume from (first process)."""
        if self.processes.rank > 0:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average.average,
            "seconds": time.monotonic() - self.began,
            "extra": extra,
        }
        save_run(self.run_dir, self.step, state)

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.average.average = state["average"]
        self.extra = state["extra"]
        self.began = time.monotonic() - state["seconds"]

    def _log(self, record: dict[str, Any]) -> None:
        if self.processes.rank == 0:
            with (self.run_dir / "log.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")

    def _trim_log(self) -> None:
        """Drop lines of steps that were lost, and a torn last line."""
        path = self.run_dir / "log.jsonl"
        if self.processes.rank > 0 or not path.exists():
            return
        kept = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= self.step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        temporary.rename(path)


def train(config: TrainConfig, run_dir: Path) -> Path:
    """Run a training to its end, from its newest checkpoint if there is one.

    Args:
        config: The run.
        run_dir: Everything it leaves: config.json, log.jsonl, step_*/, checkpoint/.

    Returns:
        The folder of the exported checkpoint.
    """
    processes = join_processes(config.device)
    try:
        if processes.rank == 0:
            run_dir.mkdir(parents=True, exist_ok=True)
            _write_config(run_dir, config)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        stages = {"autoencoder": train_autoencoder, "decoder": train_decoder, "transformer": train_transformer}
        return stages[config.stage](config, run_dir, processes)
    finally:
        leave_processes(processes)


def _write_config(run_dir: Path, config: TrainConfig) -> None:
    """Write config.json, or refuse a folder that holds another run; how long and how often may change."""
    path, free = run_dir / "config.json", ("steps", "minutes", "save_every", "log_every")
    described = json.loads(json.dumps(dataclasses.asdict(config)))
    if path.exists() and newest_run(run_dir) is not None:
        before = json.loads(path.read_text())
        changed = [k for k in described if k not in free and described[k] != before.get(k)]
        if changed:
            raise ValueError(f"{run_dir} holds a run with another {', '.join(changed)}; choose another folder.")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(described, indent=2))
    temporary.rename(path)


def _seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module with weights that depend on the seed alone, and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def train_autoencoder(config: TrainConfig, run_dir: Path, processes: Processes) -> Path:
    """Train the colour and the disparity autoencoder."""
    parts: dict[str, Any] = {"colour": config.autoencoder.colour, "disparity": config.autoencoder.disparity}
    model: Any = _seeded(config.seed, lambda: nn.ModuleDict({n: CausalGroupAutoencoder(**a) for n, a in parts.items()}))
    model.to(memory_format=torch.channels_last)
    run = Run(config, run_dir, model, processes)
    device = processes.device
    modules: dict[str, Any] = dict(model.items())
    compiled = torch.compile if config.compile else (lambda function: function)
    moments = {name: compiled(module.moments) for name, module in modules.items()}
    frames = {name: compiled(module.frames) for name, module in modules.items()}
    source = _source(config, processes)
    batches = _pictures(run, source)

    def advance(progress: float) -> dict[str, Tensor]:
        generator = run.generator()
        record: dict[str, Tensor] = {}
        total = torch.zeros((), device=device)
        for name, video in zip(("colour", "disparity"), next(batches), strict=True):
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
        run.descend(total, progress)
        return {"loss": total.detach(), **record}

    try:
        run.loop(advance, dict)
        last = next(batches)
    finally:
        source.close()
    run.average.copy_to(run.parameters)
    statistics = measure_latents(modules, last, processes)
    for name, module in modules.items():
        module.register_to_config(latents_mean=statistics[name][0], latents_std=statistics[name][1])
        module.mean.copy_(torch.tensor(statistics[name][0]))
        module.std.copy_(torch.tensor(statistics[name][1]))
    if processes.rank == 0:
        export(run_dir / EXPORT, config, modules["colour"], modules["disparity"], None)
    return run_dir / EXPORT


@torch.no_grad()
def measure_latents(
    modules: dict[str, Any], batch: tuple[Tensor, Tensor], processes: Processes
) -> dict[str, tuple[list[float], list[float]]]:
    """Return mean and standard deviation of each latent channel over a batch, per autoencoder."""
    statistics = {}
    for name, video in zip(("colour", "disparity"), batch, strict=True):
        z = modules[name].encode(video).latent_dist.mode().float()
        mean = average_tensor(z.mean(dim=(0, 2, 3, 4)), processes)
        square = average_tensor((z**2).mean(dim=(0, 2, 3, 4)), processes)
        statistics[name] = (mean.tolist(), (square - mean**2).clamp(min=1e-8).sqrt().tolist())
    return statistics


def train_decoder(config: TrainConfig, run_dir: Path, processes: Processes) -> Path:
    """Train the colour decoder against a discriminator, so that pictures get the sharpness of the truth."""
    device, stage = processes.device, config.decoder
    parts = load_checkpoint(stage.autoencoder, device)
    colour: Any = parts.vae.to(memory_format=torch.channels_last)
    decoder = nn.ModuleDict({name: getattr(colour, name) for name in DECODER_PARTS}).requires_grad_()
    run = Run(config, run_dir, decoder, processes)
    network = _seeded(config.seed, lambda: PatchDiscriminator(stage.critic_widths))
    critic = Critic(network, stage, processes, config.compile)
    if run.extra:
        critic.load_state_dict(run.extra["critic"])
    compiled: Any = torch.compile if config.compile else (lambda function: function)
    moments, frames = compiled(colour.moments), compiled(colour.frames)
    source = _source(config, processes)
    batches = _pictures(run, source)

    def advance(progress: float) -> dict[str, Tensor]:
        video, _ = next(batches)
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=config.bf16):
            with torch.no_grad():
                z = DiagonalGaussianDistribution(moments(video)).mode().float()
                z = disturbed(z, colour.std, stage.latent_noise, run.generator())
            decoded = frames(z, torch.cat([torch.zeros_like(z[:, :, :1]), z[:, :, :-1]], dim=2))
        decoded = decoded.float()
        record = critic.learn(video, decoded, rate_factor(progress, run.step, config.optimizer))
        loss = reconstruction_loss(decoded, video, config.autoencoder.edge_weight)
        if progress >= stage.adversarial_start:
            loss = loss + stage.adversarial_weight * critic.dislike(decoded)
        with torch.no_grad():
            mse = ((decoded.clamp(-1, 1) - video) ** 2).mean()
            sharpness = rgb_gradient_energy(decoded) / rgb_gradient_energy(video)
        norm = run.descend(loss, progress)
        psnr = 10 * torch.log10(4.0 / mse)
        return {"loss": loss.detach(), "psnr": psnr, "sharpness": sharpness, "grad_norm": norm, **record}

    try:
        run.loop(advance, lambda: {"critic": critic.state_dict()})
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
    """Train the transformer (stage 1)."""
    device, data, stage = processes.device, config.data, config.transformer
    assert stage.autoencoder is not None
    autoencoders = load_checkpoint(stage.autoencoder, device)
    transformer: Any = _seeded(config.seed, lambda: build_transformer(data.height, data.width, **stage.architecture))
    if stage.warm_start is not None:
        transformer.load_state_dict(load_checkpoint(stage.warm_start).transformer.state_dict())
    run = Run(config, run_dir, transformer, processes)
    if config.compile:
        torch._dynamo.config.recompile_limit = 64  # clips, steps, walks and resets, looked back from or at: each is one
        for block in transformer.transformer_blocks:
            block.compile(dynamic=False)
    source = _source(config, processes)
    bank = LatentBank(
        data, autoencoders.vae, autoencoders.disparity_vae, device, source, max(run.step - 1, 0) // data.renew_every
    )
    predict_clean = CleanPrediction(
        transformer, torch.ones(1, 1, PROMPT_DIM, device=device), data.fps, bf16=config.bf16
    )
    sampler = Sampler(bank, stage)
    sizes = {name: round(config.batch_size * getattr(stage, f"{name}_share")) for name in ("step", "walker", "reset")}
    clips = config.batch_size - sum(sizes.values())
    if min(clips, *sizes.values()) < 1:
        raise ValueError(f"batch_size {config.batch_size} leaves no sample for some kind of window; use at least 32.")
    walkers = Walkers(sampler, sizes["walker"], run.generator(salt=7))
    if run.extra and processes.rank == 0:  # the walks of the other processes begin anew
        walkers.load_state_dict(run.extra["walkers"])
    scheduler = FlowMatchEulerDiscreteScheduler()

    def advance(progress: float) -> dict[str, Tensor]:
        generator = run.generator()
        if run.step // data.renew_every > bank.renewals:
            new = bank.renew()
            walkers.begin((walkers.rows >= new.start) & (walkers.rows < new.stop), generator)
        rows = torch.randint(len(bank), (sizes["step"],), generator=generator, device=device)
        step = torch.randint(1, data.latent_steps, (sizes["step"],), generator=generator, device=device)
        step = step.maximum(sampler.first_step(rows))
        walk = walkers.batch(generator)
        batches = {
            "clip": sampler.clips(clips, generator),
            "step": joined([sampler.steps(rows, step, generator), walk, sampler.resets(sizes["reset"], generator)]),
        }
        record: dict[str, Tensor] = {}
        total = torch.zeros((), device=device)
        for name, batch in batches.items():
            loss, parts = stage1_loss(predict_clean, batch, stage, generator)
            total = total + loss * (len(batch.target) / config.batch_size)
            record |= {f"{name}_{part}": value for part, value in parts.items()}
        record |= {"loss": total.detach(), "grad_norm": run.descend(total, progress)}
        dream = progress >= stage.walker_start
        walkers.advance(walk, predict_clean, scheduler, stage.walker_sigmas, stage.walker_detail, generator, dream)
        return record

    try:
        run.loop(advance, lambda: {"walkers": walkers.state_dict()})
    finally:
        source.close()
    run.average.copy_to(run.parameters)
    if processes.rank == 0:
        export(run_dir / EXPORT, config, autoencoders.vae, autoencoders.disparity_vae, transformer)
    return run_dir / EXPORT


def _source(config: TrainConfig, processes: Processes) -> ChunkSource:
    def seeds_of(number: int) -> range:
        return chunk_seeds(config.data, number, processes.rank, processes.world_size, config.seed)

    return ChunkSource(config.data, processes.device, seeds_of, config.data.workers)


def _pictures(run: Run, source: ChunkSource) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the batches of colour and disparity that come after the run's step."""
    config, processes = run.config, run.processes
    return picture_batches(
        config.data,
        processes.device,
        source,
        config.batch_size,
        config.autoencoder.still_share,
        lambda step: rng_for(config.seed + 1, step, processes.rank, processes.device),
        run.step,
    )


def joined(batches: list[Any]) -> Any:
    """Concatenate batches of one kind of window."""
    first = batches[0]
    window = dataclasses.replace(
        first.window,
        **{n: torch.cat([getattr(b.window, n) for b in batches]) for n in ("known", "mask", "dreamed")},
    )
    return dataclasses.replace(first, window=window, target=torch.cat([b.target for b in batches]))


def export(folder: Path, config: TrainConfig, colour: Any, disparity: Any, transformer: Any | None) -> None:
    """Write a checkpoint in the form that users load; without a transformer, with a fresh one in its place."""
    data = config.data
    if transformer is None:
        transformer = _seeded(
            config.seed, lambda: build_transformer(data.height, data.width, **config.transformer.architecture)
        )
    settings = Settings(
        height=data.height,
        width=data.width,
        fps=data.fps,
        history_noise=config.transformer.history_noise,
        step_sigmas=config.transformer.walker_sigmas,
        step_detail=config.transformer.walker_detail,
    )
    parts = Components(
        settings, colour, disparity, transformer, FlowMatchEulerDiscreteScheduler(), torch.ones(1, 1, PROMPT_DIM)
    )
    save_checkpoint(parts, folder, transformer_int8=False)
