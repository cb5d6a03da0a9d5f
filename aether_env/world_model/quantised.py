"""The network of an env step on a CPU: most products of matrices in int8, and few passes over memory beside them.

Only weights that a checkpoint stores as int8 are used so: they lose nothing. What they are multiplied with is rounded
to 128 levels between the least and the largest number of one row of the batch: a row passes the network by itself, so
that a dream does not depend on its neighbours. Sums of integers are exact, whatever the number of threads.

The history, two thirds of the work, hardly feels it. The feed-forward layers of the slot that is dreamed would, so
theirs stay float32: a step goes beyond its last answer (`step_detail`), errors and all.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from aether_env.world_model.network import CleanPrediction, KeysValues, Past

ENGINE = "fbgemm"
"""PyTorch's int8 products on x86 processors with AVX2."""
_INT8 = 127
"""Largest number of a stored weight."""
_GELU = 1.5957691216057308, 0.07135481282553116
"""GELU by tanh is x * sigmoid(a x + b x^3)."""


def quantised(predict: CleanPrediction) -> CleanPrediction:
    """Return the network with int8 products, or as it is where the machine or its weights do not allow them."""
    on_cpu = predict.prompt_embeds.device.type == "cpu" and not predict.bf16
    # quantize_per_channel is deprecated in PyTorch 2.13: a later one may be without it.
    has_int8 = ENGINE in torch.backends.quantized.supported_engines and hasattr(torch, "quantize_per_channel")
    if not on_cpu or not has_int8:
        return predict
    layers = [layer for block in predict.transformer.transformer_blocks for layer in _layers(block)]
    return QuantisedPrediction(predict) if all(is_int8(layer.weight) for layer in layers) else predict


def is_int8(weight: Tensor) -> bool:
    """Return whether rows are int8 times a number each, as `checkpoint.pack_weights` stores them."""
    numbers = weight / _row_scale(weight)[:, None]
    return bool((numbers - numbers.round()).abs().max() < 1e-3)


class QuantisedPrediction(CleanPrediction):
    """As CleanPrediction, without gradients. It keeps what it makes of the weights, which are not for changing.

    Args:
        predict: On a CPU, its blocks' large matrices of `is_int8`.
    """

    def __init__(self, predict: CleanPrediction):
        super().__init__(predict.transformer, predict.prompt_embeds, predict.fps, predict.head_dim, predict.patch)
        self._quick = [_Block(block) for block in predict.transformer.transformer_blocks]
        self._levels: dict[float, tuple[Tensor, list[list[_Change]]]] = {}
        self._turns: dict[tuple, Tensor] = {}

    def look(self, model_input: Tensor, positions: tuple[float, ...]) -> Past:
        """As CleanPrediction."""
        rows = [super(QuantisedPrediction, self).look(row[None], positions) for row in model_input]
        if len(rows) == 1:
            return rows[0]
        return [
            (torch.cat([k for k, _ in pairs]), torch.cat([v for _, v in pairs])) for pairs in zip(*rows, strict=True)
        ]

    def __call__(
        self, model_input: Tensor, sigma: Tensor, positions: tuple[float, ...], past: Past | None = None
    ) -> Tensor:
        """As CleanPrediction."""
        rows = []
        for row in range(len(model_input)):
            of_row = slice(row, row + 1)
            own = None if past is None else [(keys[of_row], values[of_row]) for keys, values in past]
            level = sigma if len(sigma) == 1 else sigma[of_row]
            rows.append(super().__call__(model_input[of_row], level, positions, own))
        return torch.cat(rows)

    def _blocks(
        self, model_input: Tensor, sigma: Tensor, positions: tuple[float, ...], past: Past | None, look: bool
    ) -> tuple[Tensor, Tensor, Past]:
        text = self.prompt_embeds if past is None else self.prompt_embeds[:, :0]
        tokens, prompt, kept = self.transformer.patch_embed(text, model_input), text.shape[1], []
        level, changes = self._level(float(sigma))
        turn = self._turn(model_input, positions, prompt)
        for index, block in enumerate(self._quick):
            before = None if past is None else past[index]
            last_look = look and index == len(self._quick) - 1
            kept.append(block(tokens, prompt, changes[index], turn, before, last_look))
        return tokens[:, prompt:], level, kept

    def _level(self, sigma: float) -> tuple[Tensor, list[list[_Change]]]:
        """Return a noise level's embedding and what it makes of each block."""
        if sigma not in self._levels:
            net = self.transformer
            level = net.time_embedding(net.time_proj(torch.tensor([sigma * 1000.0])))
            self._levels[sigma] = level, [block.changes(level) for block in self._quick]
        return self._levels[sigma]

    def _turn(self, model_input: Tensor, positions: tuple[float, ...], prompt: int) -> Tensor:
        """Return RoPE as complex numbers (prompt + N, 1, head dim / 2); 1 for the prompt."""
        key = (positions, *model_input.shape[-2:], prompt)
        if key not in self._turns:
            cos, signed_sin = self._rotary(model_input, positions)
            turn = torch.complex(cos[..., ::2], signed_sin[..., 1::2])
            self._turns[key] = torch.cat([torch.ones_like(turn[:1]).expand(prompt, -1, -1), turn])
        return self._turns[key]


class _Change(NamedTuple):
    """What a noise level makes of a norm, for the tokens proper and for the prompt's."""

    norm: tuple[Tensor, Tensor]
    """Weight and bias, (D,) each."""
    gate: Tensor
    """(D,), of what is added after it."""
    prompt_norm: tuple[Tensor, Tensor]
    prompt_gate: Tensor


class _Linear:
    """Linear layers with one input, as one product; their outputs come one after the other."""

    def __init__(self, *layers: nn.Linear):
        weight = torch.cat([layer.weight.detach() for layer in layers])
        bias = torch.cat([_zeros(layer) if layer.bias is None else layer.bias.detach() for layer in layers])
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        usual, torch.backends.quantized.engine = torch.backends.quantized.engine, ENGINE
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*quantize_per_channel.*deprecated")
                numbers = torch.quantize_per_channel(weight, _row_scale(weight), zeros, 0, torch.qint8)
            self._packed = torch.ops.quantized.linear_prepack(numbers, bias)
        finally:
            torch.backends.quantized.engine = usual

    def __call__(self, x: Tensor) -> Tensor:
        # Reduced to seven bits: sums of two products of eight overflow in processors without VNNI.
        return torch.ops.quantized.linear_dynamic(x, self._packed, reduce_range=True)


class _Block:
    """As PastBlock, of a single row."""

    def __init__(self, block: Any):
        query, key, value, answer, widen, narrow = _layers(block)
        self.norms, self.attention = (block.norm1, block.norm2), block.attn1
        self.look, self.answer = _Linear(query, key, value), _Linear(answer)
        self.think_of_history, self.think = (_Linear(widen), _Linear(narrow)), (widen, narrow)

    def changes(self, level: Tensor) -> list[_Change]:
        """Return what an embedded noise level (1, E) makes of both norms."""
        changes = []
        for layer in self.norms:
            weight, bias = layer.norm.weight, layer.norm.bias
            shift, scale, gate, *of_prompt = layer.linear(layer.silu(level))[0].chunk(6)
            prompt_shift, prompt_scale, prompt_gate = of_prompt
            norms = [(weight * (1 + s), bias * (1 + s) + b) for s, b in ((scale, shift), (prompt_scale, prompt_shift))]
            changes.append(_Change(norms[0], gate, norms[1], prompt_gate))
        return changes

    def __call__(
        self,
        tokens: Tensor,
        prompt: int,
        changes: list[_Change],
        turn: Tensor,
        past: KeysValues | None,
        last_look: bool,
    ) -> KeysValues:
        """Change tokens (1, prompt + N, D) in place; return their keys and values."""
        to_look, to_think = changes
        attention = self.attention
        looks = self.look(self._normed(0, tokens, prompt, to_look)).unflatten(2, (3 * attention.heads, -1))
        query, key, value = looks.chunk(3, dim=2)
        kept = _turned(attention.norm_k(key), turn).transpose(1, 2), value.transpose(1, 2)
        if last_look:
            return kept
        query = _turned(attention.norm_q(query), turn).transpose(1, 2)
        seen = kept if past is None else [torch.cat(pair, dim=2) for pair in zip(past, kept, strict=True)]
        answer = scaled_dot_product_attention(query, *seen).transpose(1, 2).flatten(2)
        _add(tokens, prompt, to_look, self.answer(answer))
        widen, narrow = self.think_of_history if past is None else self.think
        wide = widen(self._normed(1, tokens, prompt, to_think))
        wide *= wide.square().mul_(_GELU[1]).add_(_GELU[0]).mul_(wide).sigmoid_()
        _add(tokens, prompt, to_think, narrow(wide))
        return kept

    def _normed(self, which: int, tokens: Tensor, prompt: int, change: _Change) -> Tensor:
        norm = self.norms[which].norm
        normed = layer_norm(tokens, norm.normalized_shape, *change.norm, norm.eps)
        if prompt:
            normed[:, :prompt] = layer_norm(tokens[:, :prompt], norm.normalized_shape, *change.prompt_norm, norm.eps)
        return normed


def _add(tokens: Tensor, prompt: int, change: _Change, what: Tensor) -> None:
    tokens[:, prompt:].addcmul_(change.gate, what[:, prompt:])
    tokens[:, :prompt].addcmul_(change.prompt_gate, what[:, :prompt])


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """Apply RoPE to (1, tokens, heads, head dim)."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)


def _layers(block: Any) -> list[nn.Linear]:
    """Return the large layers of a block: for queries, keys, values, the answer, and the feed-forward part."""
    attention, feed = block.attn1, block.ff.net
    return [attention.to_q, attention.to_k, attention.to_v, attention.to_out[0], feed[0].proj, feed[2]]


def _row_scale(weight: Tensor) -> Tensor:
    return (weight.detach().abs().amax(dim=1) / _INT8).clamp_min(1e-12)


def _zeros(layer: nn.Linear) -> Tensor:
    return torch.zeros(layer.out_features)
