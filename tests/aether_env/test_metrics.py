from __future__ import annotations

import numpy as np
import pytest
import torch

from aether_env.camera import motion_from_action
from aether_env.metrics import depth_errors, gradient_energy, pose_errors, psnr, ssim


def pictures(seed=0, shape=(3, 3, 24, 32)):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=generator)
    return (target + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1), target


def test_psnr_of_a_known_error_is_its_closed_form():
    target = torch.full((2, 3, 4, 4), 0.5)
    torch.testing.assert_close(psnr(target + 0.1, target), torch.full((2,), 20.0))
    assert psnr(target, target).tolist() == pytest.approx([120, 120])


def test_ssim_agrees_with_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.image")
    prediction, target = pictures()
    expected = functional.structural_similarity_index_measure(prediction, target, data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim(prediction, target), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(ssim(target, target), torch.ones(3))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_a_mask_restricts_the_metric_to_its_pixels(metric):
    prediction, target = pictures()
    whole = torch.ones(3, 24, 32, dtype=torch.bool)
    torch.testing.assert_close(metric(prediction, target, whole), metric(prediction, target))
    left = whole.clone()
    left[..., 16:] = False
    elsewhere = prediction.clone()
    elsewhere[..., 21:] = 0.0
    torch.testing.assert_close(metric(elsewhere, target, left), metric(prediction, target, left))
    assert metric(elsewhere, target).mean() < metric(prediction, target).mean()
    assert metric(prediction, target, ~whole).isnan().all()


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_a_batch_is_its_items(metric):
    prediction, target = pictures()
    items = torch.cat([metric(prediction[i : i + 1], target[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(metric(prediction, target), items)


def test_gradient_energy_of_a_ramp_is_its_squared_slope_and_falls_with_blur():
    ramp = (torch.arange(8.0) * 0.1).expand(1, 3, 6, 8)
    torch.testing.assert_close(gradient_energy(ramp), torch.tensor([0.01]))
    _, sharp = pictures()
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, stride=1)
    assert (gradient_energy(blurred) < 0.5 * gradient_energy(sharp)).all()


def test_depth_errors_without_alignment_are_their_closed_form():
    target = torch.full((1, 2, 4, 4), 2.0)
    prediction = target.clone()
    prediction[:, 0] = 3.0
    prediction[0, 1, 0, 0] = 99.0
    valid = torch.ones_like(target, dtype=torch.bool)
    valid[0, 1, 0, 0] = False
    errors = depth_errors(prediction, target, valid, align=None)
    assert errors.abs_rel.tolist() == pytest.approx([16 * 0.5 / 31])
    assert errors.delta125.tolist() == pytest.approx([15 / 31])


@pytest.mark.parametrize("align, offset", [("scale", 0.0), ("scale_shift", 0.7)])
def test_alignment_undoes_scale_and_shift_although_a_tenth_of_the_pixels_is_wild(align, offset):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand((2, 3, 8, 12), generator=generator) * 5 + 1
    prediction = (target - offset) * torch.tensor([0.2, 7.0])[:, None, None, None]
    wild = torch.rand(target.shape, generator=generator) < 0.1
    prediction = torch.where(wild, prediction * 3 + 1, prediction)
    kept = prediction.clone()
    errors = depth_errors(prediction, target, torch.ones_like(wild), align=align)
    share = wild.flatten(1).double().mean(1)
    torch.testing.assert_close(errors.delta125, 1 - share, atol=0.03, rtol=0)
    right = depth_errors(prediction, torch.where(wild, torch.inf, target), torch.ones_like(wild), align=align)
    assert (right.abs_rel < 1e-4).all()
    assert torch.equal(prediction, kept)


def test_pose_errors_are_the_angles_between_rotations_and_directions():
    true = motion_from_action([[1.0, 0, 0], [0, 0, 0], [0, 0, 1]], np.zeros((3, 3)))
    found = motion_from_action([[0, 2.0, 0], [1, 0, 0], [0, 0, 0]], [[0, 0.2, 0], [0, 0, 0], [0, 0, 0]])
    rotation, direction = pose_errors(found, true)
    np.testing.assert_allclose(rotation, [0.2, 0, 0], atol=1e-12)
    np.testing.assert_allclose(direction, [np.pi / 2, np.nan, np.pi / 2])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p, t: psnr(p[0], t[0]), "prediction and target"),
        (lambda p, t: ssim(p[..., :8], t[..., :8]), "at least 11"),
        (lambda p, t: ssim(p, t, torch.ones(3, 4, 4)), "mask must have shape"),
        (lambda p, t: gradient_energy(p[:, :1]), "rgb must have shape"),
        (lambda p, t: depth_errors(p, t, t[:1] > 0), "one shape"),
        (lambda p, t: depth_errors(p, t, t > 0, align="median"), "align"),
        (lambda p, t: pose_errors(np.eye(4), np.eye(4)[None]), "one shape"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(*pictures())
