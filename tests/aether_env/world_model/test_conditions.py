"""What the network is shown, and the sampling loop: checked against diffusers and closed forms."""

import pytest
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from aether_env.world_model.conditions import (
    BLOCKS,
    CLIP_POSITIONS,
    INPUT_CHANNELS,
    STEP_POSITIONS,
    TARGET_CHANNELS,
    Window,
    channel_mask,
    rotary_embedding,
    trained_fps,
    transformer_input,
)
from aether_env.world_model.denoise import denoise


def window(batch=2, height=4, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    known = torch.randn(batch, 5, TARGET_CHANNELS, height, width, generator=generator)
    mask = (torch.rand(batch, 5, 3, generator=generator) < 0.5).float()
    dreamed = torch.tensor([[0.0, 0, 0, 0, 1], [1, 1, 1, 1, 1]])[:batch]
    return Window(known, mask, dreamed, CLIP_POSITIONS)


def test_rotary_tables_of_a_clip_are_those_of_diffusers():
    cos, sin = rotary_embedding(CLIP_POSITIONS, 8, 12, 64)
    wanted = get_3d_rotary_pos_embed(
        64, ((0, 0), (8, 12)), (8, 12), 5, grid_type="slice", max_size=(8, 12), device=torch.device("cpu")
    )
    torch.testing.assert_close(cos, wanted[0])
    torch.testing.assert_close(sin, wanted[1])


def test_time_is_scaled_by_fps_but_the_place_of_memory_is_not():
    tokens = 2 * 3
    base, slow = (rotary_embedding(STEP_POSITIONS, 2, 3, 64, fps)[0].view(5, tokens, 64) for fps in (12.0, 6.0))
    torch.testing.assert_close(base[0], slow[0])
    torch.testing.assert_close(base[2], slow[1])  # step 2 at 12 fps lies where step 1 lies at 6
    assert not torch.allclose(base[1], slow[1])


def test_what_is_not_known_is_not_shown_and_what_is_not_dreamed_has_no_noise():
    w = window()
    noisy = torch.ones_like(w.known)
    shown = transformer_input(w, noisy)
    assert shown.shape == (2, 5, INPUT_CHANNELS, 4, 6)
    noise, known, flags = shown.split([TARGET_CHANNELS, TARGET_CHANNELS, 3], dim=2)
    assert torch.equal(noise, w.dreamed[..., None, None, None].expand_as(noise))
    for index, block in enumerate(BLOCKS):
        part = w.mask[:, :, index, None, None, None]
        assert torch.equal(known[:, :, block], w.known[:, :, block] * part)
        assert torch.equal(flags[:, :, index], part[:, :, 0].expand(-1, -1, 4, 6))
    hidden = Window(torch.where(channel_mask(w.mask) > 0, w.known, 99.0), w.mask, w.dreamed, w.positions)
    assert torch.equal(transformer_input(hidden, noisy), shown)


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 0.6], [1.0, 0.85, 0.65, 0.35]])
def test_a_network_that_knows_the_answer_is_believed(sigmas):
    w = window()
    answer = torch.randn(w.known.shape, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(w.known.shape, generator=torch.Generator().manual_seed(2))
    result = denoise(lambda x, s, p, past: answer, FlowMatchEulerDiscreteScheduler(), w, noise, sigmas)  # type: ignore
    torch.testing.assert_close(result, answer, atol=1e-5, rtol=0)


def test_the_network_is_asked_on_the_straight_path_between_noise_and_its_answer():
    w = window()
    noise = torch.randn(w.known.shape, generator=torch.Generator().manual_seed(2))
    asked = []

    def predict(model_input, sigma, positions, past):
        asked.append((float(sigma[0]), model_input[1, :, :TARGET_CHANNELS]))
        return torch.full_like(noise, 2.0)

    denoise(predict, FlowMatchEulerDiscreteScheduler(), w, noise, [1.0, 0.6])  # type: ignore
    assert [round(s, 6) for s, _ in asked] == [1.0, 0.6]
    torch.testing.assert_close(asked[0][1], noise[1])
    torch.testing.assert_close(asked[1][1], 0.6 * noise[1] + 0.4 * 2.0)


def test_detail_carries_the_result_on_from_the_first_answer_past_the_last():
    w = window()
    noise = torch.randn(w.known.shape, generator=torch.Generator().manual_seed(2))
    answers = iter((1.0, 2.0, 4.0))

    def predict(model_input, sigma, positions, past):
        return torch.full_like(noise, next(answers))

    result = denoise(predict, FlowMatchEulerDiscreteScheduler(), w, noise, [1.0, 0.6, 0.3], 0.5)  # type: ignore
    torch.testing.assert_close(result, torch.full_like(noise, 4.0 + 0.5 * (4.0 - 1.0)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("fps", [0.0, -1.0, 24.0, float("nan")])
def test_a_speed_that_was_not_trained_is_named(fps):
    with pytest.raises(ValueError, match="fps must be 12"):
        trained_fps(fps, trained=12.0)
