"""A light causal video autoencoder with the interface of diffusers' AutoencoderKLCogVideoX.

Four frames become one latent step. A latent step depends on its own four frames only, and its decoding on itself and
the step before, so every prefix of the latents decodes to the same prefix of the frames, with one step as state.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from aether_env.conventions import FRAMES_PER_LATENT


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity; starts as the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        assert self.conv2.bias is not None
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus the correction, same shape."""
        return x + self.conv2(nn.functional.silu(self.conv1(nn.functional.silu(self.norm(x)))))


class CausalGroupAutoencoder(ModelMixin, ConfigMixin):
    """Encode groups of four frames to latents at a quarter of the height and width, and back.

    Args:
        in_channels: 3 for colour, 1 for disparity.
        latent_channels: Channels of one latent step.
        width: Channels at a quarter of the size.
        fine_width: Channels at half of the size, per frame.
        encoder_blocks: Residual blocks of the encoder at a quarter of the size.
        decoder_blocks: Residual blocks of the decoder at a quarter of the size.
        fine_blocks: Residual blocks of the decoder at half of the size, per frame.
        latents_mean: Per channel, measured after training; latents leave `encode` as they are, see `normalise`.
        latents_std: Per channel.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 16,
        width: int = 192,
        fine_width: int = 48,
        encoder_blocks: int = 3,
        decoder_blocks: int = 4,
        fine_blocks: int = 2,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
    ):
        super().__init__()
        frames = FRAMES_PER_LATENT
        self.frame_in = nn.Conv2d(in_channels * 4, fine_width, 3, padding=1)
        self.frame_in_block = ResidualBlock(fine_width)
        self.group_in = nn.Conv2d(fine_width * 4 * frames, width, 1)
        self.encoder = nn.Sequential(*(ResidualBlock(width) for _ in range(encoder_blocks)))
        self.to_moments = nn.Conv2d(width, 2 * latent_channels, 1)
        self.from_latents = nn.Conv2d(2 * latent_channels, width, 3, padding=1)
        self.decoder = nn.Sequential(*(ResidualBlock(width) for _ in range(decoder_blocks)))
        self.group_out = nn.Conv2d(width, fine_width * 4 * frames, 1)
        self.fine = nn.Sequential(*(ResidualBlock(fine_width) for _ in range(fine_blocks)))
        self.frame_out = nn.Conv2d(fine_width, in_channels * 4, 3, padding=1)
        self.register_buffer("mean", torch.tensor(latents_mean or [0.0] * latent_channels), persistent=False)
        self.register_buffer("std", torch.tensor(latents_std or [1.0] * latent_channels), persistent=False)

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Encode frames.

        Args:
            x: (B, C, 4 N, H, W) in [-1, 1]; H and W divisible by 4.
            return_dict: As in diffusers.

        Returns:
            The posterior `latent_dist` of (B, latent channels, N, H / 4, W / 4).

        Raises:
            ValueError: If the number of frames, H or W is not divisible by 4.
        """
        frames, height, width = x.shape[-3:]
        if frames % FRAMES_PER_LATENT or height % 4 or width % 4:
            raise ValueError(
                f"x must have frames, height and width divisible by 4, got {frames} x {height} x {width}; "
                "repeat the last frame or resize."
            )
        posterior = DiagonalGaussianDistribution(self.moments(x))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def moments(self, x: Tensor) -> Tensor:
        """Return mean and log-variance (B, 2 latent channels, N, H / 4, W / 4) of frames (B, C, 4 N, H, W)."""
        batch, channels, frames, height, width = x.shape
        steps = frames // FRAMES_PER_LATENT
        frame = x.transpose(1, 2).reshape(batch * frames, channels, height, width)
        frame = self.frame_in_block(self.frame_in(pixel_unshuffle(frame, 2)))
        group = pixel_unshuffle(frame, 2).reshape(batch * steps, -1, height // 4, width // 4)
        moments = self.to_moments(self.encoder(self.group_in(group)))
        return moments.reshape(batch, steps, -1, height // 4, width // 4).transpose(1, 2)

    def decode(self, z: Tensor, return_dict: bool = True, previous: Tensor | None = None) -> Any:
        """Decode latents.

        Args:
            z: (B, latent channels, N, h, w).
            return_dict: As in diffusers.
            previous: (B, latent channels, h, w), the latent step before z[:, :, 0]; None at the start of a video.

        Returns:
            `sample` (B, C, 4 N, 4 h, 4 w), about [-1, 1], not clipped.
        """
        first = torch.zeros_like(z[:, :, :1]) if previous is None else previous[:, :, None]
        video = self.frames(z, torch.cat([first, z[:, :, :-1]], dim=2))
        return DecoderOutput(sample=video) if return_dict else (video,)

    def frames(self, z: Tensor, previous: Tensor) -> Tensor:
        """Return frames (B, C, 4 N, 4 h, 4 w) of latents and, for each, the step before it (zeros at the start)."""
        batch, channels, steps, height, width = z.shape
        pair = torch.cat([previous, z], dim=1).transpose(1, 2).reshape(batch * steps, 2 * channels, height, width)
        group = self.group_out(self.decoder(self.from_latents(pair)))
        frame = group.reshape(batch * steps * FRAMES_PER_LATENT, -1, height, width)
        frame = pixel_shuffle(self.frame_out(self.fine(pixel_shuffle(frame, 2))), 2)
        return frame.reshape(batch, steps * FRAMES_PER_LATENT, -1, 4 * height, 4 * width).transpose(1, 2)

    def normalise(self, z: Tensor) -> Tensor:
        """Return latents (B, C, ...) with zero mean and unit variance per channel."""
        shape = (1, -1) + (1,) * (z.ndim - 2)
        return (z - self.mean.view(shape)) / self.std.view(shape)

    def denormalise(self, z: Tensor) -> Tensor:
        """Undo `normalise`."""
        shape = (1, -1) + (1,) * (z.ndim - 2)
        return z * self.std.view(shape) + self.mean.view(shape)
