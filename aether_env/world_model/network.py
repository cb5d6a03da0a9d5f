"""The transformer of our own checkpoints: how it is built and how it is asked."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from aether_env.world_model.conditions import INPUT_CHANNELS, TARGET_CHANNELS, WINDOW, rotary_embedding

PROMPT_DIM = 16
"""CogVideoX wants a text sequence; ours is one constant token, which the network learns to use as a register."""

Past = list[tuple[Tensor, Tensor]]
"""Keys and values (B, heads, tokens, head dim) of slots that were looked at before, one pair per block."""


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


class PastAttention(CogVideoXAttnProcessor2_0):
    """CogVideoX's attention, over the keys and values of `past` too. Leaves its own in `kept` where `keep` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.keep = False
        self.past: tuple[Tensor, Tensor] | None = None
        self.kept: tuple[Tensor, Tensor] | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return hidden states and prompt after attention; without `past` as diffusers' own."""
        if not self.keep and self.past is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        prompt = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            project(tokens).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = (
                torch.cat([x[:, :, :prompt], apply_rotary_emb(x[:, :, prompt:], image_rotary_emb)], dim=2)
                for x in (query, key)
            )
        query, key = query.to(value.dtype), key.to(value.dtype)  # norms leave autocast's precision
        if self.keep:
            self.kept = (key, value)
        if self.past is not None:
            key, value = (torch.cat(pair, dim=2) for pair in zip(self.past, (key, value), strict=True))
        answer = scaled_dot_product_attention(query, key, value)
        answer = attn.to_out[1](attn.to_out[0](answer.transpose(1, 2).flatten(2)))
        return answer[:, prompt:], answer[:, :prompt]


class CleanPrediction:
    """Ask the transformer for clean latents. Keeps the rotary tables of the windows that it has seen.

    In an env step the shown slots are looked at once, by themselves (`look`), however often the new slot is asked for.

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
        transformer: CogVideoXTransformer3DModel,
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
        if not all(isinstance(p, PastAttention) for p in transformer.attn_processors.values()):
            transformer.set_attn_processor({name: PastAttention() for name in transformer.attn_processors})
        # Shared with every other CleanPrediction of this transformer.
        self._attention = list(transformer.attn_processors.values())

    def look(self, model_input: Tensor, positions: tuple[float, ...]) -> Past:
        """Return what the network keeps of slots that are only shown; they see each other, at noise level 0.

        Args:
            model_input: (B, N, INPUT_CHANNELS, h, w).
            positions: N times for RoPE.
        """
        for attention in self._attention:
            attention.keep = True
        try:
            prompt = self.prompt_embeds.to(model_input).expand(len(model_input), -1, -1)
            self._run(model_input, prompt, torch.zeros(len(model_input), device=model_input.device), positions)
            return [attention.kept for attention in self._attention]
        finally:
            for attention in self._attention:
                attention.keep, attention.kept = False, None

    def __call__(
        self, model_input: Tensor, sigma: Tensor, positions: tuple[float, ...], past: Past | None = None
    ) -> Tensor:
        """Return clean latents.

        Args:
            model_input: (B, N, INPUT_CHANNELS, h, w).
            sigma: (B,) noise level in 0..1.
            positions: N times for RoPE.
            past: What `look` kept of the slots before these; it holds the prompt too.

        Returns:
            (B, N, TARGET_CHANNELS, h, w), float32.
        """
        prompt = self.prompt_embeds.to(model_input).expand(len(model_input), -1, -1)
        if past is None:
            return self._run(model_input, prompt, sigma, positions)
        for attention, pair in zip(self._attention, past, strict=True):
            attention.past = pair
        try:
            return self._run(model_input, prompt[:, :0], sigma, positions)
        finally:
            for attention in self._attention:
                attention.past = None

    def _run(self, model_input: Tensor, prompt: Tensor, sigma: Tensor, positions: tuple[float, ...]) -> Tensor:
        height, width = (size // self.patch for size in model_input.shape[-2:])
        key = (positions, height, width, model_input.device)
        if key not in self._tables:
            self._tables[key] = rotary_embedding(positions, height, width, self.head_dim, self.fps, model_input.device)
        with torch.autocast(model_input.device.type, torch.bfloat16, enabled=self.bf16):
            clean = self.transformer(
                model_input, prompt, sigma * 1000.0, image_rotary_emb=self._tables[key], return_dict=False
            )[0]
        return clean.float()
