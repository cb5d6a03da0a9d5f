"""The transformer of our own checkpoints: how it is built and how it is asked."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from torch import Tensor

from aether_env.world_model.conditions import INPUT_CHANNELS, TARGET_CHANNELS, WINDOW, rotary_embedding

PROMPT_DIM = 16
"""CogVideoX wants a text sequence; ours is one constant token, which the network learns to use as a register."""


def build_transformer(height: int, width: int, cell: int = 4, **architecture: Any) -> CogVideoXTransformer3DModel:
    """Build a small CogVideoX transformer for our layout, with random weights.

    Args:
        height: Of the picture, in pixels.
        width: Of the picture.
        cell: Pixels per latent cell.
        architecture: Arguments of CogVideoXTransformer3DModel: `num_attention_heads`, `num_layers` ...

    Returns:
        The transformer in float32 on the CPU.
    """
    return CogVideoXTransformer3DModel(
        in_channels=INPUT_CHANNELS,
        out_channels=TARGET_CHANNELS,
        attention_head_dim=64,
        text_embed_dim=PROMPT_DIM,
        max_text_seq_length=1,
        sample_height=height // cell,
        sample_width=width // cell,
        sample_frames=4 * (WINDOW - 1) + 1,
        use_rotary_positional_embeddings=True,
        **architecture,
    )


class CleanPrediction:
    """Ask the transformer for clean latents. Keeps the rotary tables of the windows that it has seen.

    Args:
        transformer: Of `build_transformer` or a checkpoint.
        prompt_embeds: (1, L, D), the constant prompt.
        fps: Frames per second of the windows.
        head_dim: Of one attention head.
        patch: Latent cells per token, along one axis.
        bf16: Run the network, and nothing around it, in bfloat16.
    """

    def __init__(
        self,
        transformer: torch.nn.Module,
        prompt_embeds: Tensor,
        fps: float,
        head_dim: int = 64,
        patch: int = 2,
        bf16: bool = False,
    ):
        self.transformer = transformer
        self.prompt_embeds = prompt_embeds
        self.fps = fps
        self.head_dim = head_dim
        self.patch = patch
        self.bf16 = bf16
        self._tables: dict[tuple, tuple[Tensor, Tensor]] = {}

    def __call__(self, model_input: Tensor, sigma: Tensor, positions: tuple[float, ...]) -> Tensor:
        """Return clean latents.

        Args:
            model_input: (B, N, INPUT_CHANNELS, h, w).
            sigma: (B,) noise level in 0..1.
            positions: N times for RoPE.

        Returns:
            (B, N, TARGET_CHANNELS, h, w), float32.
        """
        height, width = (size // self.patch for size in model_input.shape[-2:])
        key = (positions, height, width, model_input.device)
        if key not in self._tables:
            self._tables[key] = rotary_embedding(positions, height, width, self.head_dim, self.fps, model_input.device)
        prompt = self.prompt_embeds.to(model_input).expand(len(model_input), -1, -1)
        with torch.autocast(model_input.device.type, torch.bfloat16, enabled=self.bf16):
            clean = self.transformer(
                model_input, prompt, sigma * 1000.0, image_rotary_emb=self._tables[key], return_dict=False
            )[0]
        return clean.float()
