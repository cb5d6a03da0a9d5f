"""The transformer of our own checkpoints: how it is built and how it is asked."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock, CogVideoXTransformer3DModel
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from aether_env.world_model.conditions import INPUT_CHANNELS, TARGET_CHANNELS, WINDOW, rotary_embedding

PROMPT_DIM = 16
"""CogVideoX wants a text sequence; ours is one constant token, which the network learns to use as a register."""

KeysValues = tuple[Tensor, Tensor]
"""Keys and values, (B, heads, tokens, head dim) each."""
Past = list[KeysValues]
"""Of slots that were looked at before, one pair per block."""
Rotary = tuple[Tensor, Tensor]
"""Cosines, and sines with their signs; (tokens, 1, head dim) each."""


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


class Sight(NamedTuple):
    """How a block looks at its tokens."""

    prompt: int
    """How many tokens, the first ones, are the prompt's."""
    level: Tensor
    """(B, E), or (1, E) where all items have one noise level: its embedding."""
    rotary: Rotary
    past: KeysValues | None
    """Keys and values that are seen beside the tokens' own."""
    last_look: bool
    """Nothing but keys and values is wanted; the tokens come back as they were."""


class PastBlock(CogVideoXBlock):
    """A block of CogVideoX with the same weights, that also sees tokens of which only keys and values are left."""

    def forward(self, hidden_states: Tensor, *args: Any, sight: Sight | None = None, **kwargs: Any) -> Any:
        """Return the tokens after this block, and the keys and values of these tokens; without `sight` as diffusers.

        Args:
            hidden_states: (B, prompt + N, D) tokens, the prompt first.
            args: diffusers' own.
            sight: How to look at them.
            kwargs: diffusers' own.
        """
        if sight is None:
            return super().forward(hidden_states, *args, **kwargs)
        tokens, prompt, past = hidden_states, sight.prompt, sight.past
        attention = self.attn1
        shown, gates = _modulated(self.norm1, tokens, prompt, sight.level)
        query, key, value = (
            project(shown).unflatten(2, (attention.heads, -1))
            for project in (attention.to_q, attention.to_k, attention.to_v)
        )
        key = _turned(attention.norm_k(key), prompt, sight.rotary).to(value.dtype)  # norms leave autocast's precision
        kept = key.transpose(1, 2), value.transpose(1, 2)
        if sight.last_look:
            return tokens, kept
        query = _turned(attention.norm_q(query), prompt, sight.rotary).to(value.dtype).transpose(1, 2)
        seen = kept if past is None else [torch.cat(pair, dim=2) for pair in zip(past, kept, strict=True)]
        answer = scaled_dot_product_attention(query, *seen).transpose(1, 2).flatten(2)
        tokens = _added(tokens, prompt, gates, attention.to_out[0](answer))
        shown, gates = _modulated(self.norm2, tokens, prompt, sight.level)
        return _added(tokens, prompt, gates, self.ff(shown)), kept


def _modulated(layer: Any, tokens: Tensor, prompt: int, level: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return tokens normed and shifted as CogVideoXLayerNormZero does, and the gates (tokens', prompt's)."""
    shift, scale, gate, *of_prompt, prompt_gate = layer.linear(layer.silu(level))[:, None].chunk(6, dim=-1)
    parts = [(tokens[:, prompt:], shift, scale)]
    if prompt:
        parts.insert(0, (tokens[:, :prompt], *of_prompt))
    normed = [_shifted(layer.norm, *part) for part in parts]
    return torch.cat(normed, dim=1) if prompt else normed[0], (gate, prompt_gate)


def _shifted(norm: nn.LayerNorm, tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return norm(tokens) * (1 + scale) + shift, in one pass over the tokens where all items share the level."""
    if len(scale) > 1:
        return torch.addcmul(shift, norm(tokens), 1 + scale)
    scale, shift = 1 + scale[0, 0], shift[0, 0]
    return layer_norm(tokens, norm.normalized_shape, norm.weight * scale, norm.bias * scale + shift, norm.eps)


def _added(tokens: Tensor, prompt: int, gates: tuple[Tensor, Tensor], change: Tensor) -> Tensor:
    """Return tokens + gate * change, each part by its own gate."""
    added = torch.addcmul(tokens[:, prompt:], gates[0], change[:, prompt:])
    if not prompt:
        return added
    return torch.cat([torch.addcmul(tokens[:, :prompt], gates[1], change[:, :prompt]), added], dim=1)


def _turned(x: Tensor, prompt: int, rotary: Rotary) -> Tensor:
    """Apply RoPE to (B, tokens, heads, head dim), but for the prompt's tokens."""
    cos, signed_sin = rotary
    turned = x[:, prompt:]
    swapped = turned.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    turned = torch.addcmul(turned * cos, swapped, signed_sin)
    return torch.cat([x[:, :prompt], turned], dim=1) if prompt else turned


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
        self._tables: dict[tuple, Rotary] = {}
        for block in transformer.transformer_blocks:
            if not isinstance(block, PastBlock):  # or else one that FSDP has made its own would be taken from it
                block.__class__ = PastBlock  # its weights stay as they are

    def look(self, model_input: Tensor, positions: tuple[float, ...]) -> Past:
        """Return what the network keeps of slots that are only shown; they see each other, at noise level 0.

        Args:
            model_input: (B, N, INPUT_CHANNELS, h, w).
            positions: N times for RoPE.
        """
        with self._precision(model_input):
            return self._blocks(model_input, torch.zeros(1, device=model_input.device), positions, None, look=True)[2]

    def __call__(
        self, model_input: Tensor, sigma: Tensor, positions: tuple[float, ...], past: Past | None = None
    ) -> Tensor:
        """Return clean latents.

        Args:
            model_input: (B, N, INPUT_CHANNELS, h, w).
            sigma: (B,) noise level in 0..1, or (1,) where all items have one: quicker.
            positions: N times for RoPE.
            past: What `look` kept of the slots before these; it holds the prompt too.

        Returns:
            (B, N, TARGET_CHANNELS, h, w), float32.
        """
        net, (rows, columns) = self.transformer, self._grid(model_input)
        with self._precision(model_input):
            tokens, level, _ = self._blocks(model_input, sigma, positions, past, look=False)
            shift, scale = net.norm_out.linear(net.norm_out.silu(level))[:, None].chunk(2, dim=-1)
            # Token by token: norms before the prompt is dropped or after it are the same.
            tokens = net.proj_out(_shifted(net.norm_out.norm, net.norm_final(tokens), shift, scale))
        cells = tokens.reshape(*model_input.shape[:2], rows, columns, -1, self.patch, self.patch)
        return cells.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).float()

    def _blocks(
        self, model_input: Tensor, sigma: Tensor, positions: tuple[float, ...], past: Past | None, look: bool
    ) -> tuple[Tensor, Tensor, Past]:
        """Return the tokens (B, N * rows * columns, D) after all blocks, the level's embedding, and what is kept."""
        net, rotary = self.transformer, self._rotary(model_input, positions)
        level = net.time_embedding(net.time_proj(sigma * 1000.0).to(model_input.dtype))
        text = self.prompt_embeds.to(model_input).expand(len(model_input), -1, -1)
        text = text[:, :0] if past is not None else text
        tokens, prompt, kept = net.patch_embed(text, model_input), text.shape[1], []
        for index, block in enumerate(net.transformer_blocks):
            last_look = look and index == len(net.transformer_blocks) - 1
            before = None if past is None else past[index]
            tokens, pair = block(tokens, sight=Sight(prompt, level, rotary, before, last_look))
            kept.append(pair)
        return tokens[:, prompt:], level, kept

    def _precision(self, model_input: Tensor) -> torch.autocast:
        return torch.autocast(model_input.device.type, torch.bfloat16, enabled=self.bf16)

    def _grid(self, model_input: Tensor) -> tuple[int, int]:
        """Return rows and columns of tokens."""
        height, width = model_input.shape[-2:]
        return height // self.patch, width // self.patch

    def _rotary(self, model_input: Tensor, positions: tuple[float, ...]) -> Rotary:
        key = (positions, *self._grid(model_input), model_input.device)
        if key not in self._tables:
            device = model_input.device
            cos, sin = rotary_embedding(positions, *self._grid(model_input), self.head_dim, self.fps, device)
            sign = torch.tensor([-1.0, 1.0], device=device).repeat(self.head_dim // 2)
            self._tables[key] = cos[:, None], (sin * sign)[:, None]
        return self._tables[key]
