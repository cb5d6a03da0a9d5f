"""AetherV1 faster with the same weights and the same rule: the numbers differ by rounding only.

`speed_up` changes a loaded model in place. Compiling pays from the second clip of a size on: each new size (frames,
height, width, items in one batch) is compiled when it is first met, up to PyTorch's limit of eight
(`torch._dynamo.config.recompile_limit`); further ones run uncompiled. docs/aetherv1.md has what was measured.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXSpatialNorm3D
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from aether_env.world_model.aetherv1 import AetherV1


def speed_up(
    model: AetherV1,
    *,
    fold_norms: bool = True,
    compile_blocks: bool = True,
    attention: Literal["auto", "torch", "flash4"] = "auto",
    mode: str = "default",
    backend: str = "inductor",
) -> AetherV1:
    """Make a model that is on its device faster; done once, there is no way back but loading it again.

    The autoencoder is asked untiled for colour and disparity in one batch unless `slicing` or `tiling` say otherwise.

    Args:
        model: Changed in place.
        fold_norms: Let the decoder's norms work out scale and shift per latent cell, not per pixel.
        compile_blocks: Compile the transformer's blocks.
        attention: "flash4" asks FlashAttention 4 (the package flash-attn-4; Hopper or newer, 16-bit weights), a fifth
            quicker than the best of PyTorch's own, which "torch" leaves to PyTorch; "auto" takes it where it is there.
        mode: Of torch.compile; "max-autotune-no-cudagraphs" gains 2 % at most and compiles for a minute.
        backend: Of torch.compile; others than "inductor" are for tests.

    Returns:
        The same model.

    Raises:
        ValueError: FlashAttention 4 is asked for where it cannot run.
    """
    if attention == "flash4" or (attention == "auto" and not _flash4_lacks(model)):
        if lacks := _flash4_lacks(model):
            raise ValueError(f'attention="flash4" needs {lacks}; leave it at "auto".')
        for block in model.transformer.transformer_blocks:
            block.attn1.set_processor(_Attention(_flash4))
    if model.device.type == "cuda":
        for block in model.transformer.transformer_blocks:
            block.ff.net[0] = _GeluProduct(block.ff.net[0].proj)
    if fold_norms:
        _fold_norms(model.vae.decoder)
    model.guidance_in_turn = True  # as quick as both branches in one batch, and one size less to compile
    if compile_blocks:
        blocks = model.transformer.transformer_blocks  # all of one shape: what is compiled for one serves them all
        for block in blocks:
            # Of the class's own forward: `module.compile` compiles one function, with one limit, for all classes.
            block.forward = torch.compile(
                block.forward, dynamic=False, mode=mode if backend == "inductor" else None, backend=backend
            )
        blocks[0].forward = _with_copies(blocks[0].forward)
    return model


def _flash4_lacks(model: AetherV1) -> str | None:
    """Return what is missing for FlashAttention 4, None where it can run."""
    if not importlib.util.find_spec("flash_attn") or not importlib.util.find_spec("flash_attn.cute"):
        return "the package flash-attn-4 (pip install 'aether-env[flash]')"
    if model.device.type != "cuda" or torch.cuda.get_device_capability(model.device)[0] < 9:
        return f"a Hopper GPU or a newer one, not {model.device}"
    if model.transformer.dtype not in (torch.float16, torch.bfloat16):
        return f"weights of 16 bits, not {model.transformer.dtype}"
    return None


@torch.library.custom_op("aether_env::flash4", mutates_args=())
def _flash4(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend (B, S, heads, dim); compiled code calls it without looking inside."""
    flash_attn_func = importlib.import_module("flash_attn.cute").flash_attn_func
    found = flash_attn_func(query, key, value)
    return found[0] if isinstance(found, tuple) else found


@_flash4.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(query)


class _Attention:
    """The blocks' attention over text and video tokens together, by any kernel.

    Args:
        kernel: Attends (B, S, heads, dim) queries, keys and values.
    """

    def __init__(self, kernel: Callable[[Tensor, Tensor, Tensor], Tensor]):
        self.kernel = kernel

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return video tokens (B, S, D) and text tokens (B, L, D)."""
        words = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            project(tokens).unflatten(-1, (attn.heads, -1)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = (
                torch.cat([one[:, :words], apply_rotary_emb(one[:, words:], image_rotary_emb, sequence_dim=1)], dim=1)
                for one in (query, key)
            )
        found = self.kernel(query.contiguous(), key.contiguous(), value.contiguous()).flatten(2)
        text, video = attn.to_out[1](attn.to_out[0](found)).split([words, hidden_states.shape[1]], dim=1)
        return video, text


class _GeluProduct(nn.Module):
    """diffusers' GELU layer, the activation worked out within the matrix product; on a GPU its tanh is the layer's.

    The weights keep their names.
    """

    def __init__(self, proj: nn.Linear):
        super().__init__()
        self.proj = proj

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, S, D') for tokens (B, S, D)."""
        weight, bias = self.proj.weight, self.proj.bias
        found = torch._addmm_activation(bias, tokens.flatten(0, -2), weight.t(), use_gelu=True)
        return found.unflatten(0, tokens.shape[:-1])


class _FoldedNorm(nn.Module):
    """CogVideoXSpatialNorm3D, its 1 x 1 x 1 convolutions before the latents are enlarged by copying, not after.

    Nothing of the picture's size is made but the result. The weights keep their names.
    """

    def __init__(self, norm: CogVideoXSpatialNorm3D):
        super().__init__()
        self.norm_layer, self.conv_y, self.conv_b = norm.norm_layer, norm.conv_y, norm.conv_b

    def forward(
        self, f: Tensor, zq: Tensor, conv_cache: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (B, C, T, H, W) for features of that shape and latents (B, 16, t, h, w); nothing is kept."""
        rows, columns = f.shape[-2] // zq.shape[-2], f.shape[-1] // zq.shape[-1]
        scale, shift = (_longer(part.conv(zq), f.shape[2])[..., None, :, None] for part in (self.conv_y, self.conv_b))
        cells = self.norm_layer(f).unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))
        return torch.addcmul(shift, cells, scale).flatten(-4, -3).flatten(-2), {}


def _longer(latents: Tensor, frames: int) -> Tensor:
    """Repeat latent steps to a number of frames; where that is odd, the first step is one frame."""
    if frames > 1 and frames % 2:
        first, rest = latents[:, :, :1], latents[:, :, 1:]
        return torch.cat([first, rest.repeat_interleave((frames - 1) // rest.shape[2], dim=2)], dim=2)
    return latents.repeat_interleave(frames // latents.shape[2], dim=2)


def _fold_norms(decoder: nn.Module) -> None:
    for parent in list(decoder.modules()):
        for name, child in parent.named_children():
            if isinstance(child, CogVideoXSpatialNorm3D):
                setattr(parent, name, _FoldedNorm(child))


def _with_copies(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Let the first block see whole tensors, not halves of one: halves would be compiled for a second time."""

    def call(hidden_states: Tensor, encoder_hidden_states: Tensor, **others: Any) -> Any:
        halves = (hidden_states, encoder_hidden_states)
        hidden_states, encoder_hidden_states = (half.clone(memory_format=torch.contiguous_format) for half in halves)
        return forward(hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **others)

    return call
