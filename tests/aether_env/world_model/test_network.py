"""The network's two ways to look at a window: all slots at once, or the shown ones first and by themselves."""

from __future__ import annotations

import pytest
import torch

from aether_env.world_model.conditions import INPUT_CHANNELS, STEP_POSITIONS, TARGET_CHANNELS, rotary_embedding
from aether_env.world_model.network import PROMPT_DIM, CleanPrediction, build_transformer

HEIGHT, WIDTH = 16, 24
TOKENS = (HEIGHT // 8) * (WIDTH // 8)
HISTORY = 4


@pytest.fixture(scope="module")
def network() -> CleanPrediction:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = build_transformer(HEIGHT, WIDTH, num_attention_heads=2, num_layers=3, time_embed_dim=16)
        for parameter in transformer.parameters():  # also those that begin as zero
            torch.nn.init.normal_(parameter, std=0.2)
    return CleanPrediction(transformer.eval(), torch.ones(1, 1, PROMPT_DIM), fps=12.0)


@pytest.fixture
def model_input() -> torch.Tensor:
    shape = (2, HISTORY + 1, INPUT_CHANNELS, HEIGHT // 4, WIDTH // 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def split(network, model_input, sigma):
    past = network.look(model_input[:, :HISTORY], STEP_POSITIONS[:HISTORY])
    return network(model_input[:, HISTORY:], sigma, STEP_POSITIONS[HISTORY:], past)


@torch.no_grad()
def test_looking_back_first_is_attention_with_a_mask_that_hides_the_new_slot_from_the_shown_ones(network, model_input):
    sigma = torch.zeros(2)
    prompt = torch.ones(2, 1, PROMPT_DIM)
    rotary = rotary_embedding(STEP_POSITIONS, HEIGHT // 8, WIDTH // 8, 64)
    shown = 1 + HISTORY * TOKENS
    mask = torch.zeros(2, shown + TOKENS, shown + TOKENS)
    mask[:, :shown, shown:] = -torch.inf
    truth = network.transformer(
        model_input, prompt, sigma, image_rotary_emb=rotary, attention_kwargs={"attention_mask": mask}
    ).sample[:, HISTORY:]
    torch.testing.assert_close(split(network, model_input, sigma), truth, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_shown_slots_matter_and_are_looked_at_without_noise_whatever_the_level(network, model_input):
    sigma = torch.tensor([1.0, 0.3])
    before = split(network, model_input, sigma)
    other = model_input.clone()
    other[:, 0] += 1.0
    assert (split(network, other, sigma) - before).abs().amax() > 1e-3
    past = network.look(model_input[:, :HISTORY], STEP_POSITIONS[:HISTORY])
    again = network(model_input[:, HISTORY:], sigma, STEP_POSITIONS[HISTORY:], past)
    assert torch.equal(again, before)
    assert (split(network, model_input, torch.zeros(2)) - before).abs().amax() > 1e-3


@torch.no_grad()
def test_a_whole_window_is_seen_as_diffusers_sees_it_also_after_looking_back(network, model_input):
    split(network, model_input, torch.ones(2))
    positions = (0.0, 1.0, 2.0, 3.0, 4.0)
    fresh = build_transformer(HEIGHT, WIDTH, num_attention_heads=2, num_layers=3, time_embed_dim=16).eval()
    fresh.load_state_dict(network.transformer.state_dict())
    truth = fresh(
        model_input,
        torch.ones(2, 1, PROMPT_DIM),
        torch.full((2,), 700.0),
        image_rotary_emb=rotary_embedding(positions, HEIGHT // 8, WIDTH // 8, 64),
    ).sample
    got = network(model_input, torch.full((2,), 0.7), positions)
    assert got.shape == (2, HISTORY + 1, TARGET_CHANNELS, HEIGHT // 4, WIDTH // 4)
    torch.testing.assert_close(got, truth, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_two_askers_of_one_transformer_do_not_disturb_each_other(network, model_input):
    sigma = torch.ones(2)
    before = split(network, model_input, sigma)
    other = CleanPrediction(network.transformer, network.prompt_embeds, fps=12.0)
    assert torch.equal(split(other, model_input, sigma), before)
    assert torch.equal(split(network, model_input, sigma), before)


def test_gradients_reach_the_shown_slots_through_what_is_kept_of_them(network, model_input):
    model_input.requires_grad_()
    split(network, model_input, torch.ones(2)).square().sum().backward()
    assert model_input.grad is not None and (model_input.grad.flatten(2).abs().amax(dim=2) > 0).all()
    network.transformer.zero_grad()
