"""Between pictures and the latents that the transformer sees, for checkpoints of our own layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aether_env.conventions import FAR_DEPTH, FRAMES_PER_LATENT
from aether_env.disparity import decode_disparity, encode_disparity, fill_depth, unit_from_depth
from aether_env.world_model.checkpoint import Components
from aether_env.world_model.conditions import slot_raymaps
from aether_env.world_model.network import CleanPrediction

CELL = 4
"""Pixels per latent cell."""


@dataclass
class Codec:
    """The checkpoint's autoencoders, unit rule and raymaps as functions of batched tensors."""

    parts: Components

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.parts.prompt_embeds.device

    @property
    def latent_size(self) -> tuple[int, int]:
        """Rows and columns of a latent step."""
        return self.parts.settings.height // CELL, self.parts.settings.width // CELL

    def predict_clean(self, fps: float, *, bf16: bool = False) -> CleanPrediction:
        """Return the transformer as a function, for pictures `fps` frames per second apart."""
        net = self.parts.transformer
        return CleanPrediction(net, self.parts.prompt_embeds, fps, net.config.attention_head_dim, bf16=bf16)

    def unit(self, depth: Tensor) -> Tensor:
        """Return the length unit (B,) of first frames' depth (B, H, W), metres, not finite or <= 0 where unknown."""
        return unit_from_depth(depth, shows_surface(depth), self.parts.settings.unit_quantile)

    def encode_colour(self, rgb: Tensor) -> Tensor:
        """Encode (B, T, H, W, 3) uint8 to normalised latents (B, T / 4, 16, h, w)."""
        return self.encode_video(rgb.movedim(-1, 1).float() / 127.5 - 1.0)

    def encode_video(self, video: Tensor) -> Tensor:
        """Encode colour (B, 3, T, H, W) in [-1, 1] to normalised latents (B, T / 4, 16, h, w)."""
        vae = self.parts.vae
        return vae.normalise(vae.encode(video).latent_dist.mode()).transpose(1, 2)

    def encode_depth(self, depth: Tensor, unit: Tensor) -> Tensor:
        """Encode depth (B, T, H, W), not finite or <= 0 where unknown, to normalised latents (B, T / 4, 16, h, w).

        Unknown depth is filled from around it: the network has seen complete depth only, with the sky at disparity 0.
        """
        filled = fill_depth(depth.flatten(0, 1)).view(depth.shape)
        stored = encode_disparity(filled, shows_surface(filled), unit, self.parts.settings.headroom)
        return self.encode_stored(stored[:, None] * 2.0 - 1.0)

    def encode_stored(self, video: Tensor) -> Tensor:
        """Encode stored disparity (B, 1, T, H, W), as the network sees it in [-1, 1], to latents as `encode_depth`."""
        vae = self.parts.disparity_vae
        return vae.normalise(vae.encode(video).latent_dist.mode()).transpose(1, 2)

    def decode_colour(self, latents: Tensor, previous: Tensor | None = None) -> Tensor:
        """Decode normalised latents (B, N, 16, h, w) to (B, 4 N, H, W, 3) uint8; `previous` came before them."""
        vae = self.parts.vae
        before = None if previous is None else vae.denormalise(previous)
        video = vae.decode(vae.denormalise(latents.transpose(1, 2)), previous=before).sample
        return ((video.clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8).movedim(1, -1)

    def decode_depth(self, latents: Tensor, unit: Tensor, previous: Tensor | None = None) -> Tensor:
        """Decode normalised latents (B, N, 16, h, w) to depth (B, 4 N, H, W) in metres, or units where unit is 1."""
        vae = self.parts.disparity_vae
        before = None if previous is None else vae.denormalise(previous)
        video = vae.decode(vae.denormalise(latents.transpose(1, 2)), previous=before).sample
        stored = (video.mean(dim=1) + 1.0) / 2.0
        return decode_disparity(stored, unit, self.parts.settings.headroom)

    def rays(self, world_from_camera: Tensor, intrinsics: Tensor, unit: Tensor) -> Tensor:
        """Return ray channels (B, N, 24, h, w) of slots with poses (B, N, 4, 4, 4), in the window's world."""
        settings = self.parts.settings
        return slot_raymaps(
            world_from_camera, intrinsics, unit, settings.height, settings.width, CELL, settings.origin_gain
        )


def known_depth(depth: Tensor) -> Tensor:
    """Return where depth is known, be it a surface or the sky."""
    return torch.isfinite(depth) & (depth > 0)


def shows_surface(depth: Tensor) -> Tensor:
    """Return where depth is known to be that of a surface: the sky has FAR_DEPTH, but for rounding in files."""
    return known_depth(depth) & (depth < 0.999 * FAR_DEPTH)


def at_rest(picture: Tensor) -> Tensor:
    """Repeat pictures (B, ...) as the four equal frames (B, 4, ...) of a camera at rest."""
    return picture[:, None].expand(-1, FRAMES_PER_LATENT, *picture.shape[1:])
