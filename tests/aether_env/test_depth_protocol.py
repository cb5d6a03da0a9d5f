from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from aether_env.depth_protocol import (
    BONN,
    KITTI,
    SINTEL,
    DepthProtocol,
    sequence_depth,
)


def video(small=(30, 44), num=3, size=(30, 44)):
    """A smooth true depth (T, H, W) up to 90 m with holes, and a disparity video of it, in its own unit."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 1, (num, 4, 5)).astype(np.float32)
    depth = np.stack([cv2.resize(c, size[::-1], interpolation=cv2.INTER_LINEAR) for c in coarse])
    depth = 3 + 87 * depth**2
    disparity = np.stack([cv2.resize(20 / d, small[::-1], interpolation=cv2.INTER_AREA) for d in depth])
    disparity *= np.exp(0.15 * rng.normal(size=disparity.shape))
    disparity[:, 0, 0] = 0.0
    depth[:, -3:] = 0.0
    return disparity, depth


def public_evaluation(disparity, truth, max_depth, post_clip, align):
    """Return Abs Rel, delta and the number of pixels as the public scripts compute them, step by step."""
    with np.errstate(divide="ignore"):
        depth = np.clip(1.0 / disparity, 0, 1e2)
    size = truth.shape[2], truth.shape[1]
    depth = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in depth])
    mask = truth > 0 if max_depth is None else (truth > 0) & (truth < max_depth)
    p, t = (torch.from_numpy(a[mask]).double() for a in (depth, truth))
    if align == "scale":
        s = t.mean() / p.mean()
        for _ in range(10):
            weight = 1 / ((s * p - t).abs() + 1e-8)
            s = (weight * p * t).sum() / (weight * p * p).sum()
        p = s * p
    elif align == "public_scale_shift":
        s = (t.median() / p.median()).reshape(1).requires_grad_()
        b = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        optimizer, before = torch.optim.Adam([s, b], lr=1e-4), None
        for _ in range(1000):
            optimizer.zero_grad()
            loss = (s * p + b - t).abs().sum()
            loss.backward()
            optimizer.step()
            if before is not None and abs(before - loss.item()) < 1e-6:
                break
            before = loss.item()
        p = (s * p + b).detach()
    if post_clip is not None:
        p = p.clamp(max=post_clip)
    ratio = torch.maximum(p / t, t / p.clamp_min(1e-5))
    return ((p - t).abs() / t).mean().item(), (ratio < 1.25).double().mean().item(), int(mask.sum())


@pytest.mark.parametrize("align", ["scale", "public_scale_shift", None])
@pytest.mark.parametrize("protocol, max_depth, clip", [(SINTEL, 70, 70), (BONN, 70, None), (KITTI, None, None)])
def test_a_sequence_is_judged_as_by_the_public_evaluation(protocol, max_depth, clip, align):
    disparity, truth = video()
    abs_rel, delta125, num_valid = public_evaluation(disparity, truth, max_depth, clip, align)
    with np.errstate(divide="ignore"):
        found = sequence_depth(1 / disparity, truth, truth > 0, protocol, align)
    assert found.num_valid == num_valid
    assert (found.abs_rel, found.delta125) == pytest.approx((abs_rel, delta125), rel=1e-5)


@pytest.mark.parametrize("small", [(12, 18), (60, 70)])
def test_a_prediction_of_another_size_is_resized_as_opencv_does_it(small):
    disparity, truth = video(small)
    abs_rel, delta125, num_valid = public_evaluation(disparity, truth, 70, 70, "public_scale_shift")
    with np.errstate(divide="ignore"):
        found = sequence_depth(1 / disparity, truth, truth > 0, SINTEL, "public_scale_shift")
    assert (found.abs_rel, found.delta125) == pytest.approx((abs_rel, delta125), rel=1e-4)
    assert found.num_valid == num_valid


def test_arrays_and_tensors_give_the_same():
    disparity, truth = video()
    depth = 1 / np.maximum(disparity, 1e-3)
    of_arrays = sequence_depth(depth, truth, truth > 0, SINTEL)
    assert sequence_depth(*(torch.from_numpy(a) for a in (depth, truth, truth > 0)), SINTEL) == of_arrays


def test_the_three_data_sets_differ_where_depth_reaches_beyond_70():
    disparity, truth = video()
    depth = 1 / np.maximum(disparity, 1e-3)
    sintel, bonn, kitti = (sequence_depth(depth, truth, truth > 0, p) for p in (SINTEL, BONN, KITTI))
    assert sintel.num_valid == bonn.num_valid == ((truth > 0) & (truth < 70)).sum() < kitti.num_valid
    assert sintel.abs_rel < bonn.abs_rel


def test_exact_scale_and_shift_undo_a_large_offset_and_the_public_descent_does_not():
    _, truth = video()
    depth = (truth - 2.0) * 0.5
    keep_all = DepthProtocol(max_depth=None, clip_after_alignment=None)
    exact = sequence_depth(depth, truth, truth > 0, keep_all, "scale_shift")
    public = sequence_depth(depth, truth, truth > 0, keep_all, "public_scale_shift")
    assert exact.abs_rel < 1e-5 and exact.delta125 == 1
    assert public.abs_rel > 0.03


def test_both_scale_and_shift_agree_where_the_public_descent_converges():
    _, truth = video()
    truth = truth / 30
    depth = (truth - 0.01) / 1.01
    results = [sequence_depth(depth, truth, truth > 0, KITTI, align) for align in ("scale_shift", "public_scale_shift")]
    assert results[0].abs_rel == pytest.approx(results[1].abs_rel, abs=2e-3)


def test_a_sequence_without_truth_has_no_errors_and_no_pixels():
    for align in ("scale", "scale_shift", "public_scale_shift", None):
        found = sequence_depth(np.ones((1, 4, 4)), np.zeros((1, 4, 4)), np.ones((1, 4, 4)), SINTEL, align)
        assert found.num_valid == 0 and np.isnan(found.abs_rel) and np.isnan(found.delta125)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda d: sequence_depth(d[:1], d, d > 0, SINTEL), "do not fit"),
        (lambda d: sequence_depth(d, d, d[:, :1] > 0, SINTEL), "do not fit"),
        (lambda d: sequence_depth(d * np.nan, d, d > 0, SINTEL), "NaN"),
        (lambda d: sequence_depth(d, d, d > 0, SINTEL, "median"), "align"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(video()[1])
