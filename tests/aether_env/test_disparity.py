from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_env.conventions import FAR_DEPTH
from aether_env.disparity import (
    decode_disparity,
    decode_disparity_aetherv1,
    encode_disparity,
    relative_scale,
    unit_from_depth,
)

CODEC = np.load(Path(__file__).parents[1] / "goldens" / "aetherv1" / "codec.npz")


def random_depth(seed, shape=(3, 2, 8, 12)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 20 + 0.5


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), unit=st.floats(0.1, 2.0), headroom=st.floats(1.0, 8.0))
def test_decode_undoes_encode_where_nothing_clips(seed, unit, headroom):
    depth = random_depth(seed).clamp_min(unit / headroom)
    stored = encode_disparity(depth, torch.ones_like(depth, dtype=torch.bool), unit, headroom)
    assert stored.min() >= 0 and stored.max() <= 1
    decoded = decode_disparity(stored, unit, headroom)
    torch.testing.assert_close(decoded, depth)
    again = encode_disparity(decoded, torch.ones_like(depth, dtype=torch.bool), unit, headroom)
    torch.testing.assert_close(again, stored)


def test_the_unit_itself_is_stored_as_one_half_and_nearer_things_clip_at_a_quarter_of_it():
    depth = torch.tensor([[2.0, 0.5, 0.1, 8.0]])
    stored = encode_disparity(depth, torch.ones(1, 4, dtype=torch.bool), 2.0)
    torch.testing.assert_close(stored, torch.tensor([[0.5, 1.0, 1.0, 0.25]]))


def test_unknown_depth_is_stored_as_zero_and_comes_back_far():
    depth = torch.tensor([[1.0, 0.0, float("nan"), float("inf"), -1.0, 3.0]])
    valid = torch.tensor([[True, True, True, True, True, False]])
    stored = encode_disparity(depth, valid, 1.0)
    assert stored.tolist() == [[0.5, 0, 0, 0, 0, 0]]
    assert decode_disparity(stored, 1.0).tolist() == [[1.0, *[FAR_DEPTH] * 5]]


def test_decoded_depth_is_positive_and_at_most_far_for_any_network_output():
    stored = torch.linspace(-2, 3, 50)[None]
    depth = decode_disparity(stored, torch.tensor(0.7), far=10.0)
    assert (depth > 0).all() and (depth <= 10.0).all()


def test_the_unit_is_the_near_quantile_of_valid_depth_of_each_picture():
    depth = torch.arange(1.0, 101.0).reshape(1, 10, 10)[:, torch.randperm(10)].repeat(3, 1, 1)
    valid = torch.ones(3, 10, 10, dtype=torch.bool)
    valid[1] = depth[1] > 50
    valid[2] = False
    assert unit_from_depth(depth, valid).tolist() == [10.0, 55.0, 1.0]
    assert unit_from_depth(depth, valid, 0.0).tolist() == [1.0, 51.0, 1.0]
    assert unit_from_depth(depth, valid, 1.0).tolist() == [100.0, 100.0, 1.0]


def test_the_unit_ignores_depth_that_is_not_finite_and_positive():
    depth = torch.tensor([[[0.0, -1.0, float("nan"), float("inf"), 2.0, 3.0]]])
    assert unit_from_depth(depth, torch.ones_like(depth, dtype=torch.bool)).tolist() == [2.0]


def test_a_batch_is_its_items_and_inputs_stay_as_they_are():
    depth = random_depth(0)
    valid = depth > 3
    kept = depth.clone(), valid.clone()
    unit = unit_from_depth(depth, valid)[:, 0]
    stored = encode_disparity(depth, valid, unit)
    decoded = decode_disparity(stored, unit)
    for i in range(3):
        assert torch.equal(stored[i], encode_disparity(depth[i], valid[i], unit[i]))
        assert torch.equal(decoded[i], decode_disparity(stored[i], unit[i]))
    assert torch.equal(depth, kept[0]) and torch.equal(valid, kept[1])


def test_aether_is_the_case_of_the_nearest_depth_without_headroom():
    depth, dmax = torch.from_numpy(CODEC["depth"]), float(CODEC["dmax"])
    valid = torch.ones_like(depth, dtype=torch.bool)
    assert unit_from_depth(depth.flatten(0, 1), valid.flatten(0, 1), 0.0).item() == pytest.approx(1 / dmax)
    stored = encode_disparity(depth, valid, 1 / dmax, headroom=1.0)
    np.testing.assert_allclose(stored, CODEC["sqrt_disparity"], atol=1e-6)
    np.testing.assert_allclose(decode_disparity_aetherv1(stored, 1 / dmax), depth, rtol=1e-5)


def test_aether_clips_disparity_at_a_thousandth():
    depth = decode_disparity_aetherv1(torch.tensor([[0.0, 1.0, 3.0, 0.5]]))
    torch.testing.assert_close(depth, torch.tensor([[1000.0, 1.0, 1.0, 4.0]]))


@pytest.mark.parametrize("method", ["least_squares", "mean_ratio"])
def test_relative_scale_finds_the_factor_and_ignores_what_is_not_valid(method):
    prediction = random_depth(1)
    factor = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)
    target = prediction * factor[:, None, None, None]
    valid = prediction > 2
    target = torch.where(valid, target, float("nan"))
    torch.testing.assert_close(relative_scale(prediction, target, valid, method), factor)
    assert relative_scale(prediction, target, torch.zeros_like(valid), method).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda d, v: unit_from_depth(d, v[:1]), "valid must have the shape"),
        (lambda d, v: unit_from_depth(d, v, 1.5), "quantile"),
        (lambda d, v: encode_disparity(d, v, -1.0), "unit must be positive"),
        (lambda d, v: encode_disparity(d, v, 1.0, 0.0), "headroom"),
        (lambda d, v: decode_disparity(d, 1.0, far=0.0), "far"),
        (lambda d, v: relative_scale(d, d, v, "median"), "method"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    depth = random_depth(2)
    with pytest.raises(ValueError, match=message):
        call(depth, depth > 0)
