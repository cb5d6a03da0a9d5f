"""What the network is shown, and the sampling loop: checked against diffusers and closed forms."""

from dataclasses import replace

import pytest
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from aether_env.world_model.conditions import (
    BLOCKS,
    CLIP_POSITIONS,
    GUESSED,
    INPUT_CHANNELS,
    RAY,
    STEP_POSITIONS,
    TARGET_CHANNELS,
    Window,
    channel_mask,
    rotary_embedding,
    trained_fps,
    transformer_input,
)
from aether_env.world_model.denoise import denoise, look_back


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


def guessing_window():
    """Two windows; in the last slot of the second something is guessed, of the first nothing."""
    guessed = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(5)).clamp(min=0.2)
    guessed[0], guessed[1, :2] = 0.0, 0.0
    return replace(window(), guessed=guessed)


@pytest.mark.parametrize("colour", [0.0, 1.0])
@pytest.mark.parametrize("disparity", [0.0, 1.0])
def test_a_guess_is_told_by_half_a_mask_where_nothing_is_known(colour, disparity):
    w = guessing_window()
    w.mask[:, -1] = torch.tensor([colour, disparity, 1.0])
    flags = transformer_input(w, torch.ones_like(w.known))[:, -1, -3:]
    assert GUESSED == 0.5
    for index, known in enumerate((colour, disparity)):
        for row in range(2):
            wanted = torch.ones(4, 6) if known else 0.5 * w.guessed[row]
            assert torch.equal(flags[row, index], wanted)
    assert (flags[:, 2] == 1).all()  # rays are never guessed


def test_known_channels_pass_where_they_are_known_or_the_item_has_a_guess_anywhere():
    w = guessing_window()
    w.mask[:, -1] = torch.tensor([0.0, 1.0, 0.0])
    shown = transformer_input(w, torch.ones_like(w.known))[:, :, TARGET_CHANNELS : 2 * TARGET_CHANNELS]
    colour, disparity, ray = BLOCKS
    assert not shown[0, -1, colour].any() and torch.equal(shown[0, -1, disparity], w.known[0, -1, disparity])
    # Also in cells of which nothing is seen: what was filled in there is no secret, and the flags tell.
    assert torch.equal(shown[1, -1, : RAY.start], w.known[1, -1, : RAY.start])
    assert not shown[:, -1, ray].any()


def test_only_the_last_slot_of_an_item_with_a_guess_is_shown_otherwise_than_without():
    w = guessing_window()
    noisy = torch.randn(w.known.shape, generator=torch.Generator().manual_seed(4))
    with_guess, without = transformer_input(w, noisy), transformer_input(replace(w, guessed=None), noisy)
    assert torch.equal(with_guess[:, :-1], without[:, :-1])
    assert torch.equal(with_guess[0], without[0])
    assert not torch.equal(with_guess[1, -1], without[1, -1])


def test_an_item_without_any_guess_does_not_let_through_what_its_known_channels_hold():
    w = guessing_window()
    w.mask[:, -1] = torch.tensor([0.0, 0.0, 1.0])
    other = w.known.clone()
    other[:, -1, : RAY.start] = 99.0
    noisy = torch.ones_like(w.known)
    before, after = transformer_input(w, noisy), transformer_input(replace(w, known=other), noisy)
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


def test_the_window_and_its_masks_are_left_as_they_were():
    w = guessing_window()
    known, mask, guessed = w.known.clone(), w.mask.clone(), w.guessed.clone()
    transformer_input(w, torch.ones_like(w.known))
    assert torch.equal(w.known, known) and torch.equal(w.mask, mask) and torch.equal(w.guessed, guessed)


@pytest.mark.parametrize(
    ("slots", "kept"),
    [
        (slice(4), False), (slice(0, 4), False), (slice(1, -1), False),
        (slice(4, None), True), (slice(-1, None), True), (slice(2, 5), True), (slice(None), True),
    ],
)  # fmt: skip
def test_the_guess_goes_with_the_last_slot_and_with_no_other(slots, kept):
    w = guessing_window()
    assert w[slots].guessed is (w.guessed if kept else None)
    noisy = torch.ones_like(w.known)
    assert torch.equal(transformer_input(w[slots], noisy[:, slots]), transformer_input(w, noisy)[:, slots])


def test_what_is_looked_back_at_holds_no_guess_and_the_rest_keeps_it():
    w = replace(guessing_window(), history=4)
    asked = []

    class Network:
        def look(self, model_input, positions):
            asked.append(model_input)

    _, rest = look_back(Network(), w)  # type: ignore[arg-type]
    assert rest.guessed is w.guessed and len(rest.positions) == 1
    nothing = torch.zeros_like(w.known)
    assert torch.equal(asked[0], transformer_input(replace(w, guessed=None), nothing)[:, :4])


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
