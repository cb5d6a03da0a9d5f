"""A checkpoint of our own layout that is as small as it can be: random weights, 16 x 24 pictures, one layer."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from aether_env.world_model.autoencoder import CausalGroupAutoencoder
from aether_env.world_model.checkpoint import Components, Settings, save_checkpoint
from aether_env.world_model.network import PROMPT_DIM, build_transformer

HEIGHT, WIDTH = 16, 24


def tiny_components(height: int = HEIGHT, width: int = WIDTH) -> Components:
    """Return the same components every time, for pictures of a size; the global generator stays as it was."""
    sizes = dict(width=16, fine_width=8, encoder_blocks=1, decoder_blocks=1, fine_blocks=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = Components(
            settings=Settings(height=height, width=width, step_sigmas=(1.0, 0.5), clip_sigmas=(1.0, 0.5)),
            vae=CausalGroupAutoencoder(in_channels=3, **sizes),
            disparity_vae=CausalGroupAutoencoder(in_channels=1, **sizes),
            transformer=build_transformer(height, width, num_attention_heads=1, num_layers=1, time_embed_dim=16),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            prompt_embeds=torch.ones(1, 1, PROMPT_DIM),
        )
    return parts.to("cpu")


def write_tiny_checkpoint(folder: Path) -> Path:
    """Write it as users get theirs, and return the folder."""
    save_checkpoint(tiny_components(), folder)
    return folder
