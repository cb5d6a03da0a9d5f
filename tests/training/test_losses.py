"""Losses on decoded clips against closed forms, loops and numpy's least squares; what is not valid never counts."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from training.losses import aligned, depth_loss, edge_loss, ms_ssim_loss, pointmap_loss

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli and Bovik 2003


def random(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def coins(*shape, seed=0, share=0.7):
    return random(*shape, seed=100 + seed) < share


def numpy_aligned(prediction, target, weight):
    """Align one item, (N, C) with weights (N,), by numpy's least squares: unknowns are the scale and C shifts."""
    count, channels = prediction.shape
    shifts = np.tile(np.eye(channels), (count, 1))
    rows = np.concatenate([prediction.reshape(-1, 1), shifts], axis=1)
    root = np.sqrt(np.repeat(weight, channels))
    scale, *shift = np.linalg.lstsq(rows * root[:, None], target.ravel() * root, rcond=None)[0]
    return scale * prediction + shift


def looped_depth_loss(prediction, target, valid, norm, gradient_weight, scales):
    """The loss of one clip (T, H, W), pixel by pixel."""
    where = valid.nonzero()
    matched = np.zeros(prediction.shape)
    matched[where] = numpy_aligned(prediction[where][:, None], target[where][:, None], np.ones(len(where[0])))[:, 0]
    error = matched - target
    total = np.mean(np.abs(error[where]) ** norm)
    for k in range(scales):
        r, known = error[:, :: 2**k, :: 2**k], valid[:, :: 2**k, :: 2**k]
        gradient = 0.0
        for t, y, x in zip(*known.nonzero(), strict=True):
            for y2, x2 in ((y, x + 1), (y + 1, x)):
                if y2 < known.shape[1] and x2 < known.shape[2] and known[t, y2, x2]:
                    gradient += abs(r[t, y, x] - r[t, y2, x2])
        total += gradient_weight * gradient / known.sum()
    return total


def test_edge_loss_is_the_mean_error_of_steps_between_pixels():
    ramp = torch.arange(4.0).expand(3, 4)
    assert edge_loss(2 * ramp, ramp) == 1.0
    assert edge_loss(ramp + 5, ramp) == 0.0


@pytest.mark.parametrize("height, width, scales", [(16, 24, 1), (64, 96, 3), (180, 180, 5)])
def test_ms_ssim_loss_of_flat_frames_is_the_formula_of_their_brightness(height, width, scales):
    dark, bright, c1 = 0.3, 0.6, 0.01**2
    levels = torch.tensor([dark, bright]).view(1, 2, 1, 1, 1).expand(-1, -1, 3, height, width)
    luminance = (2 * dark * bright + c1) / (dark**2 + bright**2 + c1)
    exponent = SCALE_WEIGHTS[scales - 1] / sum(SCALE_WEIGHTS[:scales])
    loss = ms_ssim_loss(2 * levels - 1, torch.full_like(levels, 2 * bright - 1))
    assert loss.item() == pytest.approx((1 - luminance**exponent) / 2, abs=1.5e-4)  # one of two frames is right


def test_ms_ssim_loss_of_equal_clips_is_zero():
    clip = 2 * random(2, 2, 3, 32, 32, dtype=torch.float32) - 1
    torch.testing.assert_close(ms_ssim_loss(clip, clip), torch.zeros(2), atol=1e-6, rtol=0)


def test_gradient_of_ms_ssim_loss_is_its_slope():
    target = 2 * random(1, 1, 3, 24, 24, dtype=torch.float32) - 1
    other = 2 * random(1, 1, 3, 24, 24, seed=1, dtype=torch.float32) - 1
    towards = other - target
    part = torch.tensor(0.5, requires_grad=True)
    (slope,) = torch.autograd.grad(ms_ssim_loss(target + part * towards, target).sum(), part)
    step = 0.01
    above, below = (ms_ssim_loss(target + p * towards, target).item() for p in (0.5 + step, 0.5 - step))
    assert slope.item() == pytest.approx((above - below) / (2 * step), rel=0.01)
    assert slope.item() > 0.1


def test_gradient_of_ms_ssim_loss_is_finite_for_negatives_and_flat_frames():
    target = 2 * random(1, 3, 3, 44, 44, dtype=torch.float32) - 1
    for prediction in (-target, torch.zeros_like(target), torch.full_like(target, -1.0)):
        prediction = prediction.clone().requires_grad_()
        loss = ms_ssim_loss(prediction, target).sum()
        loss.backward()
        assert loss.isfinite() and prediction.grad.isfinite().all()


def test_ms_ssim_loss_names_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="B, T, 3, H, W"):
        ms_ssim_loss(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="11"):
        ms_ssim_loss(torch.zeros(1, 1, 3, 8, 8), torch.zeros(1, 1, 3, 8, 8))


@pytest.mark.parametrize("channels", [1, 3])
def test_alignment_is_that_of_weighted_least_squares(channels):
    prediction, weight = random(2, 40, channels), random(2, 40, seed=1)
    target = 3 * prediction + random(2, 40, channels, seed=2)
    expected = [numpy_aligned(*(x[b].numpy() for x in (prediction, target, weight))) for b in range(2)]
    np.testing.assert_allclose(aligned(prediction, target, weight).numpy(), np.stack(expected), atol=1e-10)


def test_a_mirrored_prediction_is_taken_for_a_flat_one():
    target = random(1, 50, 1)
    mean = target.mean().expand_as(target)
    torch.testing.assert_close(aligned(-target, target, torch.ones(1, 50).double()), mean)


def test_a_nearly_flat_prediction_is_not_stretched_without_bound():
    target = random(1, 50, 1)
    flat = 1e-6 * target
    stretched = aligned(flat, target, torch.ones(1, 50).double())
    torch.testing.assert_close(stretched - target.mean(), 100 * (flat - flat.mean()))


@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (0.05, 0.0), (20.0, -3.0), (0.3, 500.0)])
def test_depth_loss_does_not_see_scale_and_shift(scale, shift):
    target, valid = random(2, 3, 8, 12), coins(2, 3, 8, 12)
    prediction = target + 0.3 * random(2, 3, 8, 12, seed=1)
    torch.testing.assert_close(
        depth_loss(scale * target + shift, target, valid), torch.zeros(2).double(), atol=1e-9, rtol=0
    )
    before = depth_loss(prediction, target, valid)
    torch.testing.assert_close(depth_loss(scale * prediction + shift, target, valid), before)
    assert before.min() > 0.01


def test_depth_loss_in_float32_is_close_to_float64_at_a_large_shift():
    target, valid = random(1, 5, 64, 96), coins(1, 5, 64, 96)
    prediction = target + 0.1 * random(1, 5, 64, 96, seed=1) + 20
    single = depth_loss(prediction.float(), target.float(), valid)
    torch.testing.assert_close(single.double(), depth_loss(prediction, target, valid), rtol=1e-4, atol=0)


@pytest.mark.parametrize("norm, gradient_weight, scales", [(1.0, 0.5, 4), (1.5, 2.0, 2), (2.0, 0.0, 1)])
def test_depth_loss_agrees_with_a_plain_loop(norm, gradient_weight, scales):
    settings = dict(norm=norm, gradient_weight=gradient_weight, scales=scales)
    target, valid = random(2, 2, 9, 12), coins(2, 2, 9, 12)
    prediction = 0.2 * target + 0.1 * random(2, 2, 9, 12, seed=1)
    expected = [looped_depth_loss(*(x[b].numpy() for x in (prediction, target, valid)), **settings) for b in range(2)]
    np.testing.assert_allclose(depth_loss(prediction, target, valid, **settings).numpy(), expected, rtol=1e-9)


def scene(seed=0):
    """Points of two clips, (2, 2, 3, 5, 6), their depth and which are valid."""
    direction, depth = random(2, 2, 3, 5, 6, seed=seed) - 0.5, 0.5 + 20 * random(2, 2, 5, 6, seed=seed + 1) ** 3
    direction[:, :, 2] = 1.0
    return depth[:, :, None] * direction, depth, coins(2, 2, 5, 6, seed=seed)


@pytest.mark.parametrize("scale, shift", [(1.0, (0, 0, 0)), (0.05, (1, 2, 3)), (20.0, (-5, 0, 50))])
def test_pointmap_loss_does_not_see_scale_and_shift(scale, shift):
    target, depth, valid = scene()
    moved = partial(torch.add, torch.tensor(shift).double()[:, None, None])
    torch.testing.assert_close(
        pointmap_loss(moved(scale * target), target, depth, valid), torch.zeros(2).double(), atol=1e-9, rtol=0
    )
    prediction = target + random(*target.shape, seed=5)
    before = pointmap_loss(prediction, target, depth, valid)
    torch.testing.assert_close(pointmap_loss(moved(scale * prediction), target, depth, valid), before)
    assert before.min() > 0.01


def test_pointmap_loss_sees_a_scale_that_differs_between_directions():
    target, depth, valid = scene()
    assert pointmap_loss(target * torch.tensor([1.0, 1.0, 2.0])[:, None, None], target, depth, valid).min() > 0.05


def test_pointmap_loss_agrees_with_a_plain_loop():
    target, depth, valid = scene()
    prediction = 0.4 * target + random(*target.shape, seed=5)
    for b, loss in enumerate(pointmap_loss(prediction, target, depth, valid)):
        where = valid[b].numpy().nonzero()
        p, t = (x[b].movedim(1, -1).numpy()[where] for x in (prediction, target))
        z = depth[b].numpy()[where]
        error = np.abs(numpy_aligned(p, t, 1 / z**2) - t).sum(axis=1) / z
        assert loss.item() == pytest.approx(error.mean(), rel=1e-9)


@pytest.mark.parametrize("place", range(0, 30, 7))
def test_errors_count_relative_to_depth(place):
    target, depth = (x[:1, :1].repeat_interleave(2, dim=1) for x in scene()[:2])  # the same points in two frames
    row, column = divmod(place, 6)
    error = torch.zeros_like(target)
    error[0, :, 0, row, column] = 0.001 * depth[0, 0, row, column] * torch.tensor([1.0, -1.0])  # no scale, no shift
    loss = pointmap_loss(target + error, target, depth, depth > 0)
    assert loss.item() == pytest.approx(2 * 0.001 / 60, rel=0.01)


def depth_case(seed):
    target, valid = random(2, 2, 5, 6, seed=seed), coins(2, 2, 5, 6, seed=seed)
    prediction = target + random(2, 2, 5, 6, seed=seed + 50)
    return (prediction, target), valid, lambda p, t, v: depth_loss(p, t, v, norm=1.5)


def points_case(seed):
    target, depth, valid = scene(seed)
    prediction = target + random(*target.shape, seed=seed + 50)
    inputs = (prediction, target, depth)
    return inputs, valid, lambda p, t, z, v: pointmap_loss(p, t, z, v)


CASES = pytest.mark.parametrize("case", [depth_case, points_case])


def filled(tensor, valid, value):
    """Put a value wherever a pixel is not valid."""
    valid = valid[:, :, None] if tensor.ndim > valid.ndim else valid
    return torch.where(valid, tensor, value)


@CASES
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("value", [0.0, -7.0, 1e30, math.inf, math.nan])
def test_what_is_not_valid_never_matters(case, seed, value):
    inputs, valid, loss = case(seed)

    def loss_and_gradient(inputs):
        prediction = inputs[0].clone().requires_grad_()
        result = loss(prediction, *inputs[1:], valid)
        return result.detach(), *torch.autograd.grad(result.sum(), prediction)

    before, after = (loss_and_gradient(x) for x in (inputs, [filled(x, valid, value) for x in inputs]))
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert filled(before[1], ~valid, 0.0).abs().max() == 0  # no gradient where not valid
    assert before[1].abs().max() > 0


@CASES
def test_gradients_are_slopes(case):
    (prediction, *others), valid, loss = case(0)
    assert torch.autograd.gradcheck(lambda p: loss(p, *others, valid), prediction.requires_grad_())


@CASES
def test_clips_of_a_batch_do_not_see_each_other(case):
    inputs, valid, loss = case(0)
    alone = [loss(*(x[b : b + 1] for x in inputs), valid[b : b + 1]) for b in range(2)]
    torch.testing.assert_close(loss(*inputs, valid), torch.cat(alone))


@CASES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flat_empty_and_lonely_pixels_give_finite_losses_and_gradients(case, dtype):
    inputs, valid, loss = case(0)
    prediction, target, *others = (x.to(dtype) for x in inputs)
    lonely = torch.zeros_like(valid)
    lonely[:, 0, 1, 1] = True
    cases = [
        (prediction, target, torch.zeros_like(valid)),
        (prediction, target, lonely),
        (torch.full_like(prediction, 0.7), target, valid),
        (prediction, torch.full_like(target, 0.7), valid),
        (torch.zeros_like(prediction), torch.zeros_like(target), valid),
    ]
    results = []
    for p, t, v in cases:
        p = p.clone().requires_grad_()
        result = loss(p, t, *others, v)
        (gradient,) = torch.autograd.grad(result.sum(), p)
        assert result.isfinite().all() and gradient.isfinite().all()
        results.append(result.detach().abs().max().item())
    empty, alone, flat, flat_target, zeros = results
    assert empty == alone == zeros == 0
    assert flat > 0.01
    assert flat_target == pytest.approx(0, abs=1e-6)


def test_shapes_that_do_not_fit_are_named():
    target, depth, valid = scene()
    with pytest.raises(ValueError, match="prediction, target and valid"):
        depth_loss(depth, depth, valid[:, :1])
    with pytest.raises(ValueError, match=r"\(B, T, 3, h, w\)"):
        pointmap_loss(target, target[:, :, :2], depth, valid)
