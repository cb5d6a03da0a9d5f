"""AetherV1 faster with the same weights and the same rule: the numbers differ by rounding only.

`speed_up` changes a loaded model in place. Compiling pays from the second clip of a size on: each new size (frames,
height, width, items in one batch) is compiled when it is first met, up to PyTorch's limit of eight
(`torch._dynamo.config.recompile_limit`); further ones run uncompiled. docs/aetherv1.md has what was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXSpatialNorm3D
from torch import Tensor, nn

from aether_env.world_model.aetherv1 import AetherV1


def speed_up(
    model: AetherV1,
    *,
    fold_norms: bool = True,
    compile_blocks: bool = True,
    mode: str = "default",
    backend: str = "inductor",
) -> AetherV1:
    """Make a model that is on its device faster; done once, there is no way back but loading it again.

    The autoencoder is asked untiled for colour and disparity in one batch unless `slicing` or `tiling` say otherwise.

    Attention is left to PyTorch, which takes cuDNN's kernel on Hopper, the fastest of its own.

    Args:
        model: Changed in place.
        fold_norms: Let the decoder's norms work out scale and shift per latent cell, not per pixel.
        compile_blocks: Compile the transformer's blocks.
        mode: Of torch.compile; "max-autotune-no-cudagraphs" gains 2 % at most and compiles for a minute.
        backend: Of torch.compile; others than "inductor" are for tests.

    Returns:
        The same model.
    """
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
