"""The paper's layout: from clips to the training loss of the published transformer (AETHER sections 1 to 4 and 7).

Targets [colour | disparity | ray] and conditions [colour | ray] are those that `AetherV1` makes when it is asked, and
the answer is read as it reads it; so what is trained here is a checkpoint for it. What the paper leaves open:

- The weight of timesteps. CogVideoX trains x0 with the weight 1 / (1 - abar); as the error of x0 is
  sqrt(1 - abar) times that of v, this is the plain squared error of v, and so is ours.
- Where the whole video is known, condition and target are one draw from its posterior: 1 / 0.7 and 0.7 times it.
- Pixels without known depth, and sky, are far: disparity 0.
- The weight of the blocks: every channel counts alike; `block_weights` changes that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from aether_env.camera import relative_to
from aether_env.conventions import FRAMES_PER_LATENT
from aether_env.disparity import encode_disparity
from aether_env.raymap import encode_raymap_aetherv1, pack_raymap, unpack_raymap
from aether_env.world_model.aetherv1 import CELL, PATCH, AetherV1, rotary_aetherv1
from aether_env.world_model.conditions import BLOCKS, COLOUR, DISPARITY, RAY, TARGET_CHANNELS
from training.aetherv1_config import AetherV1Config

if TYPE_CHECKING:
    from training.dataset import ClipBatch

GOAL, OBSERVATION, VIDEO, NOTHING = range(4)
"""Which pictures are known: the first and the last, the first, all, none."""
PARTS = ("colour", "disparity", "ray")


@dataclass(frozen=True)
class Sample:
    """B clips as the transformer meets them; h, w = H / 8, W / 8, N = (T - 1) / 4 + 1."""

    target: Tensor
    """(B, N, 56, h, w) float32: z0."""
    condition: Tensor
    """(B, N, 40, h, w) float32."""
    rotary: tuple[Tensor, Tensor]
    """Of `rotary_aetherv1`, at the clips' fps."""
    nearest: Tensor
    """(B,) metres: the clip's nearest depth, the unit of its disparity and its path."""


@dataclass(frozen=True)
class Levels:
    """How much noise B items get: noisy = signal * z0 + noise * eps."""

    timestep: Tensor
    """(B,) what the transformer is told."""
    signal: Tensor
    """(B, 1, 1, 1, 1)."""
    noise: Tensor
    """(B, 1, 1, 1, 1)."""
    straight: bool
    """Flow matching; else v-prediction."""

    @property
    def share(self) -> Tensor:
        """Noise's share (B,) in (0, 1], 1 is pure noise: the flow level of the same ratio of signal to noise."""
        return (self.noise / (self.signal + self.noise)).flatten()

    def mixed(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Return the noisy latents of clean ones and standard normal noise, all (B, N, 56, h, w)."""
        return self.signal * clean + self.noise * noise

    def velocity(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Return what the network should answer."""
        return noise - clean if self.straight else self.signal * noise - self.noise * clean

    def clean(self, noisy: Tensor, velocity: Tensor) -> Tensor:
        """Return the clean latents that an answer amounts to."""
        return (noisy if self.straight else self.signal * noisy) - self.noise * velocity


@dataclass(frozen=True)
class Answer:
    """What the network was asked and what it said; all latents (B, N, 56, h, w) float32."""

    noisy: Tensor
    velocity: Tensor
    """The network's."""
    wanted: Tensor
    """The true one."""
    levels: Levels

    @property
    def clean(self) -> Tensor:
        """The network's estimate of the clean latents."""
        return self.levels.clean(self.noisy, self.velocity)


class AetherV1Objective:
    """The objective over a checkpoint's parts; the transformer is asked where it is, sharded or not.

    Every draw comes from one generator for each item, in the order: pictures known, path known, posteriors of the
    video, the disparity video, the first and the last picture, noise level, noise. So items do not depend on their
    batch, nor on how many processes share it.

    Args:
        parts: Of `load_aetherv1`; the autoencoder is frozen, what of the transformer learns is the caller's choice.
        config: The settings.
        bf16: Run the transformer, and nothing around it, in bfloat16.
    """

    def __init__(self, parts: AetherV1, config: AetherV1Config, *, bf16: bool = False):
        self.parts, self.config, self.bf16 = parts, config, bf16
        parts.vae.requires_grad_(False).eval()
        kept = parts.scheduler.alphas_cumprod.double()
        self._signal, self._noise = (power.sqrt().float().to(parts.device) for power in (kept, 1 - kept))
        self._tables: dict[tuple, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def compose(self, batch: ClipBatch, generators: Sequence[torch.Generator]) -> Sample:
        """Encode clips, and draw what of them is known.

        Args:
            batch: B clips of T frames, T = 8 k + 1 and at least 9.
            generators: B, on the CPU if the numbers shall be those of a CPU.

        Raises:
            ValueError: The clips have a shape that the autoencoder or the transformer cannot take.
        """
        generators, device = _checked(batch, generators), self.parts.device
        known, with_path = draw_conditions(self.config, generators, device)
        depth, valid = (tensor.to(device, non_blocking=True) for tensor in (batch.depth, batch.valid))
        nearest = nearest_depth(depth, valid)
        rgb = batch.rgb.to(device, non_blocking=True).float() / 255
        stored = encode_disparity(depth, valid, nearest, headroom=1.0)[:, :, None].expand_as(rgb)
        colour, disparity, first, last = (
            self._posterior(pictures, generators) for pictures in (rgb, stored, rgb[:, :1], rgb[:, -1:])
        )
        ray = pack_raymap(_rays(batch, nearest), packing="strided")
        scale = self.parts.vae.config.scaling_factor
        target = torch.cat([colour * scale, disparity * scale, ray], dim=2)
        shown = known_colour(known, colour, first, last)
        shown = shown / scale if self.parts.vae.config.invert_scale_latents else shown * scale
        condition = torch.cat([shown, ray * with_path[:, None, None, None, None]], dim=2)
        return Sample(target, condition, self._rotary(target, batch.fps), nearest)

    def ask(self, sample: Sample, generators: Sequence[torch.Generator]) -> Answer:
        """Ask the transformer for the velocity of clips with noise.

        Args:
            sample: Of `compose`.
            generators: The same ones.
        """
        target, generators = sample.target, list(generators)
        levels = self.levels(generators)
        noise = randn_tensor(target.shape, generators, target.device, torch.float32)
        noisy = levels.mixed(target, noise)
        transformer = self.parts.transformer
        model_input = torch.cat([noisy, sample.condition], dim=2).to(transformer.dtype)
        with torch.autocast(target.device.type, torch.bfloat16, enabled=self.bf16):
            velocity = transformer(
                hidden_states=model_input,
                encoder_hidden_states=self.parts.prompt_embeds.to(model_input).expand(len(model_input), -1, -1),
                timestep=levels.timestep,
                image_rotary_emb=sample.rotary,
                return_dict=False,
            )[0]
        return Answer(noisy, velocity.float(), levels.velocity(target, noise), levels)

    def loss(self, answer: Answer) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean squared error of the velocity, weighted by block, and its parts for the log.

        Args:
            answer: Of `ask`.

        Returns:
            The loss, and the unweighted errors "colour", "disparity" and "ray", without gradient.
        """
        error = (answer.velocity - answer.wanted).square()
        parts = {name: error[:, :, block].mean() for name, block in zip(PARTS, BLOCKS, strict=True)}
        shares = [(block.stop - block.start) / TARGET_CHANNELS for block in BLOCKS]
        weights = [weight * share for weight, share in zip(self.config.block_weights, shares, strict=True)]
        loss = torch.stack([weight * part for weight, part in zip(weights, parts.values(), strict=True)]).sum()
        return loss, {name: part.detach() for name, part in parts.items()}

    def levels(self, generators: Sequence[torch.Generator]) -> Levels:
        """Draw a noise level for each generator."""
        device, config = self.parts.device, self.config
        if config.prediction == "flow":
            logit = torch.cat([torch.randn(1, generator=g, device=g.device) for g in generators]).to(device)
            level = torch.sigmoid(config.flow_mean + config.flow_std * logit)
            last = self.parts.scheduler.config.num_train_timesteps
            wide = level[:, None, None, None, None]
            return Levels(last * level, 1 - wide, wide, straight=True)
        steps = len(self._signal)
        timestep = torch.cat([torch.randint(steps, (1,), generator=g, device=g.device) for g in generators]).to(device)
        return self.levels_at(timestep)

    def levels_at(self, timestep: Tensor) -> Levels:
        """Return the levels of the checkpoint's scheduler at timesteps (B,), integers from 0."""
        wide = (slice(None), None, None, None, None)
        return Levels(timestep, self._signal[timestep][wide], self._noise[timestep][wide], straight=False)

    def decode_colour(self, clean: Tensor) -> Tensor:
        """Return pictures (B, T, 3, H, W) of latents (B, N, 56, h, w), about [-1, 1], not cut off."""
        return self._decode(clean[:, :, COLOUR])

    def decode_disparity(self, clean: Tensor) -> Tensor:
        """Return stored disparity (B, T, H, W) of latents (B, N, 56, h, w), about [-1, 1], not cut off.

        (x / 2 + 1 / 2)^2 is disparity relative to the clip's nearest.
        """
        return self._decode(clean[:, :, DISPARITY]).mean(dim=2)

    def decode_raymap(self, clean: Tensor) -> Tensor:
        """Return raymaps (B, T, 6, h, w) of latents (B, N, 56, h, w), as `encode_raymap_aetherv1` makes them."""
        return unpack_raymap(clean[:, :, RAY], packing="strided")

    def _posterior(self, pictures: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Draw unscaled latents (B, N, 16, h, w) of pictures (B, T, 3, H, W) in [0, 1]."""
        vae = self._autoencoder()
        posterior = vae.encode((pictures * 2 - 1).transpose(1, 2).to(vae.dtype)).latent_dist
        noise = randn_tensor(posterior.mean.shape, generators, self.parts.device, torch.float32)
        return (posterior.mean.float() + posterior.std.float() * noise).transpose(1, 2)

    def _decode(self, latents: Tensor) -> Tensor:
        """Return pictures (B, T, 3, H, W) in [-1, 1] of target latents (B, N, 16, h, w)."""
        vae = self._autoencoder()
        unscaled = (latents / vae.config.scaling_factor).transpose(1, 2)
        return vae.decode(unscaled.to(vae.dtype)).sample.float().transpose(1, 2)

    def _autoencoder(self) -> Any:
        vae = self.parts.vae
        vae.use_slicing, vae.use_tiling = self.config.slicing, False  # sampling in between may have changed them
        return vae

    def _rotary(self, target: Tensor, fps: float) -> tuple[Tensor, Tensor]:
        steps, (rows, columns) = target.shape[1], target.shape[-2:]
        key, config = (steps, rows, columns, fps), self.parts.transformer.config
        if key not in self._tables:
            base = config.sample_height // PATCH, config.sample_width // PATCH
            grid = rows // PATCH, columns // PATCH
            self._tables[key] = rotary_aetherv1(steps, grid, base, config.attention_head_dim, fps, target.device)
        return self._tables[key]


def draw_conditions(
    config: AetherV1Config, generators: Sequence[torch.Generator], device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Draw which pictures are known (B,), as GOAL .. NOTHING, and whether the path is (B,), bool."""
    draws = torch.stack([torch.rand(2, generator=g, device=g.device) for g in generators], dim=1).to(device)
    bounds = torch.tensor(config.mask_shares, device=device).cumsum(0)[:3]
    # Below a bound, not at it: a share of 0 is never drawn.
    return torch.bucketize(draws[0], bounds, right=True), draws[1] < config.path_share


def known_colour(known: Tensor, video: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Return the latents (B, N, 16, h, w) of the pictures that are known, zeros elsewhere.

    Args:
        known: (B,) GOAL .. NOTHING.
        video: (B, N, 16, h, w) of all frames.
        first: (B, 1, 16, h, w) of the first picture, encoded alone.
        last: (B, 1, 16, h, w) of the last picture, encoded alone.
    """
    known = known[:, None, None, None, None]
    middle = torch.zeros_like(video[:, 1:-1])
    begin, end = first * (known <= OBSERVATION), last * (known == GOAL)
    return torch.where(known == VIDEO, video, torch.cat([begin, middle, end], dim=1))


def nearest_depth(depth: Tensor, valid: Tensor) -> Tensor:
    """Return the least valid depth (B,) of clips (B, T, H, W); 1 where nothing is valid."""
    usable = valid & depth.isfinite() & (depth > 0)
    nearest = torch.where(usable, depth, torch.inf).flatten(1).amin(dim=1)
    return torch.where(nearest.isfinite(), nearest, 1.0)


def _rays(batch: ClipBatch, nearest: Tensor) -> Tensor:
    """Return the raymaps (B, T, 6, h, w) of clips, in units of their nearest depth (B,)."""
    height, width = batch.rgb.shape[-2:]
    poses = batch.world_from_camera.double().numpy()
    relative = torch.from_numpy(relative_to(poses, poses[:, :1])).to(nearest.device)
    intrinsics = batch.intrinsics.to(relative)
    return encode_raymap_aetherv1(relative, intrinsics, height, width, dmax=1 / nearest.double()).float()


def _checked(batch: ClipBatch, generators: Sequence[torch.Generator]) -> list[torch.Generator]:
    items, frames, _, height, width = batch.rgb.shape
    if len(generators) != items:
        raise ValueError(f"generators must be one for each of {items} clips, got {len(generators)}.")
    if frames < 2 * FRAMES_PER_LATENT + 1 or frames % 8 != 1:
        raise ValueError(f"rgb must have 8 k + 1 frames, at least 9, for this autoencoder, got {frames}.")
    unit = CELL * PATCH
    if height % unit or width % unit:
        raise ValueError(f"rgb must have sides that are multiples of {unit}, got {height} x {width}; resize or crop.")
    return list(generators)
