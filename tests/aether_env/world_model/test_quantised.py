"""The network with int8 products: close to float32, exact in batches, and left alone where it can not be had."""

import copy
import warnings

import numpy as np
import pytest
import torch

from aether_env.world_model.checkpoint import load_checkpoint, save_checkpoint
from aether_env.world_model.conditions import INPUT_CHANNELS, STEP_POSITIONS
from aether_env.world_model.network import CleanPrediction
from aether_env.world_model.promise import Start
from aether_env.world_model.quantised import ENGINE, QuantisedPrediction, is_int8, quantised
from aether_env.world_model.rollout import DreamWorld
from tests.tiny import tiny_components

needs_int8 = pytest.mark.skipif(
    ENGINE not in torch.backends.quantized.supported_engines, reason="this processor has no int8 products"
)


def network(parts):
    return CleanPrediction(parts.transformer, parts.prompt_embeds, 12.0, parts.transformer.config.attention_head_dim)


@pytest.fixture(scope="module")
def mini():
    return load_checkpoint("mini")


def inputs(batch, height=16, width=24, seed=0):
    """Return the network's input for B windows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, len(STEP_POSITIONS), INPUT_CHANNELS, height, width, generator=generator)


@torch.inference_mode()
def answers(predict, model_input, sigma=0.5):
    past = predict.look(model_input[:, :-1], STEP_POSITIONS[:-1])
    levels = torch.full((1,), sigma)
    return past, predict(model_input[:, -1:], levels, STEP_POSITIONS[-1:], past)


@needs_int8
def test_a_dream_of_mini_is_that_of_float32_but_for_rounding(mini):
    """Rounding is far below what the dream itself is wrong by: 40 dB between the two, 20 to 30 dB to the truth."""
    down, across = np.mgrid[:64, :96]
    rgb = np.stack([across * 2.0, down * 3.0, 127 + 90 * np.sign(np.sin(across / 8) * np.sin(down / 8))], axis=-1)
    start = Start(rgb=rgb.astype(np.uint8), depth=2.0 + (64 - down) / 16)
    path = np.tile(np.eye(4), (1, 4, 1, 1))
    dreams = []
    for convert in (quantised, lambda predict: predict):
        world = DreamWorld(mini, sigmas=(1.0, 0.5))
        world._predict = convert(network(mini))
        state, _ = world.start([start], [0])
        for step in range(3):
            path[:, :, 2, 3] = 0.15 * (step + np.arange(1, 5) / 4)
            state, frames = world.advance(state, path)
        dreams.append(frames.rgb.astype(float))
    assert 40 < 10 * np.log10(255**2 / np.square(dreams[0] - dreams[1]).mean()) < 80


@needs_int8
def test_without_rounding_it_is_the_same_network(mini, monkeypatch):
    """All that is rearranged beside the products: norms, gates, RoPE, GELU, the prompt."""
    exact, quick = network(mini), quantised(network(mini))
    for block, source in zip(quick._quick, mini.transformer.transformer_blocks, strict=True):
        attention, feed = source.attn1, source.ff.net
        monkeypatch.setattr(block, "look", lambda x, a=attention: torch.cat([a.to_q(x), a.to_k(x), a.to_v(x)], dim=-1))
        monkeypatch.setattr(block, "answer", attention.to_out[0])
        monkeypatch.setattr(block, "think_of_history", (feed[0].proj, feed[2]))
    (past, answer), (wanted_past, wanted) = (answers(one, inputs(1)) for one in (quick, exact))
    torch.testing.assert_close(answer, wanted, atol=1e-4, rtol=1e-4)
    for pair, wanted_pair in zip(past, wanted_past, strict=True):
        torch.testing.assert_close(pair, tuple(wanted_pair), atol=1e-4, rtol=1e-4)


@needs_int8
def test_a_row_is_the_same_to_the_bit_beside_others_of_any_range(mini):
    quick, rows = quantised(network(mini)), inputs(3)
    rows[1] *= 100  # were the range that of the batch, the other rows would be rounded to nothing
    past, together = answers(quick, rows)
    for row in range(3):
        own, alone = answers(quick, rows[row : row + 1])
        assert torch.equal(alone[0], together[row])
        for pair, own_pair in zip(past, own, strict=True):
            assert all(torch.equal(a[row], b[0]) for a, b in zip(pair, own_pair, strict=True))


@needs_int8
def test_the_number_of_threads_changes_no_bit_of_a_product(mini):
    quick, x = quantised(network(mini)), torch.randn(1, 385, 384, generator=torch.Generator().manual_seed(0))
    threads, seen = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            seen.append(quick._quick[0].look(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*seen)


@needs_int8
def test_products_of_the_largest_numbers_do_not_overflow(mini):
    """Processors without VNNI add pairs of products in 16 bits."""
    quick, block = quantised(network(mini)), mini.transformer.transformer_blocks[0]
    x = torch.sign(block.attn1.to_q.weight[:1])[None]  # every product of the first output is positive
    torch.testing.assert_close(quick._quick[0].look(x)[0, 0, 0], block.attn1.to_q(x)[0, 0, 0], atol=0, rtol=0.01)


@needs_int8
def test_a_checkpoint_with_int8_weights_dreams_so_and_its_world_can_be_copied(tiny_checkpoint):
    world = DreamWorld(load_checkpoint(tiny_checkpoint))
    assert isinstance(world._predict, QuantisedPrediction)
    for one, other in zip(*(answers(w._predict, inputs(1, 4, 6)) for w in (world, copy.deepcopy(world))), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_mini_stores_int8_and_weights_in_training_are_not(mini):
    block, trained = (parts.transformer.transformer_blocks[0].ff.net[2].weight for parts in (mini, tiny_components()))
    assert is_int8(block) and not is_int8(trained)
    assert is_int8(torch.zeros(2, 3))


def test_float_weights_keep_float32(tmp_path):
    save_checkpoint(tiny_components(), tmp_path / "float16", transformer_int8=False)
    world = DreamWorld(load_checkpoint(tmp_path / "float16"))
    assert type(world._predict) is CleanPrediction


def test_a_machine_without_int8_dreams_in_float32(tiny_checkpoint, monkeypatch):
    parts, rng = load_checkpoint(tiny_checkpoint), np.random.default_rng(0)
    start = Start(rgb=rng.integers(0, 255, (16, 24, 3), dtype=np.uint8), depth=rng.uniform(1, 5, (16, 24)))
    path = np.tile(np.eye(4), (1, 4, 1, 1))
    usual = DreamWorld(parts)
    with monkeypatch.context() as patch:
        patch.setattr(type(torch.backends.quantized), "supported_engines", ["qnnpack"])
        fallback = DreamWorld(parts)
    assert type(fallback._predict) is CleanPrediction
    dreams = [world.advance(world.start([start], [0])[0], path)[0].history[:, -1] for world in (usual, fallback)]
    assert (dreams[0] - dreams[1]).norm() < 0.05 * dreams[1].norm()


def test_bfloat16_is_left_as_it_is(tiny_checkpoint):
    assert type(DreamWorld(load_checkpoint(tiny_checkpoint), dtype="bfloat16")._predict) is CleanPrediction


@needs_int8
def test_making_it_leaves_pytorch_and_the_checkpoint_as_they_were(tiny_checkpoint):
    parts = load_checkpoint(tiny_checkpoint)
    before = copy.deepcopy(parts.transformer.state_dict())
    engine = torch.backends.quantized.engine
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick = quantised(network(parts))
    answers(quick, inputs(1, 4, 6))
    assert torch.backends.quantized.engine == engine
    after = parts.transformer.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
