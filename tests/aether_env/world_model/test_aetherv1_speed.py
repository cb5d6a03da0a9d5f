"""A sped-up AetherV1 gives the plain one's numbers."""

from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXSpatialNorm3D
from torch._dynamo.utils import counters

from aether_env.world_model.aetherv1 import load_aetherv1
from aether_env.world_model.aetherv1_speed import _Attention, _FoldedNorm, speed_up

TINY = Path(__file__).parents[2] / "goldens" / "aetherv1" / "tiny_checkpoint"


def seeded(seed: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed)]


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def assert_same_clips(found, expected):
    for name in ("rgb", "disparity", "raymap"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"compile_blocks": False},
        {"backend": "aot_eager"},
    ],
    ids=["folded norms", "compiled"],
)
def test_a_sped_up_model_gives_the_same_numbers(options):
    plain, fast = load_aetherv1(TINY), speed_up(load_aetherv1(TINY), **options)
    torch._dynamo.reset()
    counters.clear()
    for inputs in ({"video": pictures(1, 17, 3, 32, 48), "steps": 2}, {"image": pictures(1, 3, 32, 48), "steps": 2}):
        assert_same_clips(fast(seeded(1), num_frames=17, **inputs), plain(seeded(1), num_frames=17, **inputs))
    if options.get("compile_blocks", True):
        assert (
            counters["stats"]["unique_graphs"] == 1
        )  # serves all blocks; both branches of guidance, one after the other
        assert not counters["graph_break"]


@pytest.mark.parametrize("compiled", [False, True])
def test_attention_by_another_kernel_gives_the_same_numbers(compiled):
    def kernel(*of_heads: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(*(one.transpose(1, 2) for one in of_heads)).transpose(
            1, 2
        )

    plain, fast = load_aetherv1(TINY), load_aetherv1(TINY)
    for block in fast.transformer.transformer_blocks:
        block.attn1.set_processor(_Attention(kernel))
    speed_up(fast, compile_blocks=compiled, backend="aot_eager")
    inputs = {"image": pictures(1, 3, 32, 48), "steps": 2, "num_frames": 17}
    assert_same_clips(fast(seeded(1), **inputs), plain(seeded(1), **inputs))


def test_flash_attention_is_taken_where_it_can_run_and_refused_by_name_elsewhere():
    model = load_aetherv1(TINY)
    with pytest.raises(ValueError, match='attention="flash4" needs '):
        speed_up(model, attention="flash4")
    speed_up(model, compile_blocks=False)  # "auto" leaves it


@pytest.mark.parametrize("frames", [1, 2, 5, 9])
def test_a_folded_norm_is_the_norm(frames):
    generator = torch.Generator().manual_seed(0)
    norm = CogVideoXSpatialNorm3D(8, 16, groups=4)
    torch.nn.init.normal_(norm.norm_layer.weight, generator=generator)
    steps = {1: 1, 2: 2, 5: 3, 9: 3}[frames]
    features = torch.randn((2, 8, frames, 8, 12), generator=generator)
    latents = torch.randn((2, 16, steps, 2, 3), generator=generator)
    folded = _FoldedNorm(norm)
    torch.testing.assert_close(folded(features, latents)[0], norm(features, latents)[0], atol=1e-5, rtol=1e-5)
    assert list(folded.state_dict()) == list(norm.state_dict())
