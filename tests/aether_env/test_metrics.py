from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch.nn.functional import avg_pool2d, interpolate

from aether_env.camera import motion_from_action
from aether_env.metrics import depth_errors, gradient_energy, ms_ssim, patch_kernel_distance, pose_errors, psnr, ssim


def pictures(seed=0, shape=(3, 3, 24, 32)):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=generator)
    return (target + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1), target


def textures(num, seed):
    """(num, 3, 64, 96) pictures that look alike up close: noise of many sizes, as in nature stronger where coarser."""
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.rand(num, 3, 64 // k, 96 // k, generator=generator) * (k + 1) / 24 for k in (1, 2, 4, 8)]
    return torch.stack([interpolate(layer, (64, 96), mode="bicubic") for layer in layers]).sum(0).clamp(0, 1)


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


@pytest.mark.parametrize("height, width, num_scales", [(176, 190, 5), (64, 96, 3), (24, 32, 2)])
def test_ms_ssim_agrees_with_torchmetrics_at_as_many_scales_as_fit(height, width, num_scales):
    functional = pytest.importorskip("torchmetrics.functional.image")
    prediction, target = pictures(shape=(2, 3, height, width))
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:num_scales]
    expected = functional.multiscale_structural_similarity_index_measure(
        prediction,
        target,
        data_range=1.0,
        reduction="none",
        normalize="relu",
        betas=tuple((weights / weights.sum()).tolist()),
    )
    torch.testing.assert_close(ms_ssim(prediction, target), expected, atol=1e-4, rtol=0)


def test_ms_ssim_is_one_for_equal_pictures_and_falls_with_noise():
    _, target = pictures(shape=(2, 3, 64, 96))
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    values = torch.stack([ms_ssim(target + size * noise, target) for size in (0.0, 0.05, 0.1, 0.3)])
    torch.testing.assert_close(values[0], torch.ones(2))
    assert (values.diff(dim=0) < 0).all()
    assert (ms_ssim(1 - target, target) == 0).all()


def test_ms_ssim_forgives_fine_noise_more_than_ssim_does():
    target = textures(2, seed=0)
    prediction = target + 0.05 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    assert (ms_ssim(prediction, target) > ssim(prediction, target) + 0.02).all()


@pytest.mark.parametrize("height", [11, 21])
def test_ms_ssim_of_a_picture_with_room_for_one_scale_is_its_ssim(height):
    prediction, target = pictures(shape=(2, 3, height, 40))
    torch.testing.assert_close(ms_ssim(prediction, target), ssim(prediction, target))


def test_a_mask_restricts_ms_ssim_to_its_windows_at_every_scale():
    prediction, target = pictures(shape=(2, 3, 64, 96))
    left = torch.zeros(2, 64, 96, dtype=torch.bool)
    left[..., :40] = True
    torch.testing.assert_close(ms_ssim(prediction, target, left | True), ms_ssim(prediction, target))
    elsewhere = prediction.clone()
    elsewhere[..., 40 + 4 * 6 :] = 0.0
    torch.testing.assert_close(ms_ssim(elsewhere, target, left), ms_ssim(prediction, target, left))
    assert (ms_ssim(elsewhere, target) < ms_ssim(elsewhere, target, left)).all()
    assert ms_ssim(prediction, target, left & False).isnan().all()


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


@pytest.mark.parametrize("metric", [psnr, ssim, ms_ssim])
def test_a_batch_is_its_items(metric):
    prediction, target = pictures()
    items = torch.cat([metric(prediction[i : i + 1], target[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(metric(prediction, target), items)


def test_gradient_energy_of_a_ramp_is_its_squared_slope_and_falls_with_blur():
    ramp = (torch.arange(8.0) * 0.1).expand(1, 3, 6, 8)
    torch.testing.assert_close(gradient_energy(ramp), torch.tensor([0.01]))
    _, sharp = pictures()
    blurred = avg_pool2d(sharp, 3, stride=1)
    assert (gradient_energy(blurred) < 0.5 * gradient_energy(sharp)).all()


def test_patches_of_two_halves_of_a_set_are_near_and_grow_apart_with_blur():
    first, second = textures(80, seed=0).split(40)
    blurred = [patch_kernel_distance(avg_pool2d(first, size, stride=1), second) for size in (3, 5)]
    assert abs(patch_kernel_distance(first, second)) < 0.3 * blurred[0]
    assert 0 < blurred[0] < 0.7 * blurred[1]


def test_patch_distance_is_blind_to_exposure_and_to_the_order_of_the_pictures():
    first, second = textures(80, seed=2).split(40)
    blurred = patch_kernel_distance(avg_pool2d(first, 3, stride=1), second)
    assert abs(patch_kernel_distance(first * 0.5, second)) < 0.3 * blurred
    assert abs(patch_kernel_distance(first.flip(0), second)) < 0.3 * blurred


def test_patch_distance_is_the_unbiased_mmd_of_the_kernel():
    # A picture is one patch: each set holds one kind. Equal patches have x . y / d = 1, crossed stripes 0.
    x = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).expand(1, 3, 2, 2)
    y = x.mT
    assert patch_kernel_distance(x, y, num_patches=5, patch_size=2) == pytest.approx(2**3 + 2**3 - 2 * 1**3)
    assert patch_kernel_distance(x, 0.5 * x, num_patches=5, patch_size=2) == pytest.approx(0)


def test_patch_distance_is_fixed_by_its_seed():
    first, second = textures(8, seed=2).split(4)
    values = [patch_kernel_distance(first, second, num_patches=200, seed=seed) for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


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


def least_absolute_fit(prediction, target):
    """Return factor, offset and the least sum of absolute errors, by linear programming."""
    num = len(prediction)
    fit = np.stack([prediction, np.ones(num)], axis=1)
    solution = linprog(
        np.concatenate([[0, 0], np.ones(num)]),
        A_ub=np.block([[fit, -np.eye(num)], [-fit, -np.eye(num)]]),
        b_ub=np.concatenate([target, -target]),
        bounds=[(None, None)] * 2 + [(0, None)] * num,
    )
    return *solution.x[:2], solution.fun


@pytest.mark.parametrize("shift, scale, noise", [(0.0, 1.0, 0.1), (0.7, 0.2, 0.1), (2.0, 7.0, 0.3)])
def test_scale_and_shift_are_those_of_least_absolute_error(shift, scale, noise):
    rng = np.random.default_rng(0)
    target = rng.uniform(1, 8, 200)
    prediction = (target - shift) * scale * np.exp(noise * rng.normal(size=200))
    wild = rng.random(200) < 0.1
    prediction[wild] = prediction[wild] * 3 + 1
    best_scale, best_shift, _ = least_absolute_fit(prediction, target)
    aligned = best_scale * prediction + best_shift
    errors = depth_errors(*(torch.tensor(a)[None] for a in (prediction, target, target > 0)), align="scale_shift")
    assert errors.abs_rel.item() == pytest.approx(np.mean(np.abs(aligned - target) / target), rel=2e-3)
    near = np.maximum(aligned / target, target / aligned) < 1.25
    assert errors.delta125.item() == pytest.approx(near.mean(), abs=0.011)


def test_alignment_of_a_sequence_does_not_depend_on_its_neighbours():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand((3, 50), generator=generator) * 5 + 1
    prediction = target * torch.tensor([[1.0], [0.1], [30.0]]) + torch.rand((3, 50), generator=generator)
    for align in ("scale", "scale_shift"):
        together = depth_errors(prediction, target, target > 0, align).abs_rel
        alone = [
            depth_errors(prediction[i : i + 1], target[i : i + 1], target[:1] > 0, align).abs_rel for i in range(3)
        ]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=0)


def test_alignment_by_scale_is_ten_reweighted_rounds_from_the_ratio_of_means():
    rng = np.random.default_rng(0)
    target = rng.uniform(1, 8, 500)
    prediction = target * np.exp(0.3 * rng.normal(size=500)) + 1
    scale = target.mean() / prediction.mean()
    for _ in range(10):
        weight = 1 / (np.abs(scale * prediction - target) + 1e-8)
        scale = (weight * prediction * target).sum() / (weight * prediction**2).sum()
    errors = depth_errors(*(torch.tensor(a)[None] for a in (prediction, target, target > 0)), align="scale")
    assert errors.abs_rel.item() == pytest.approx(np.mean(np.abs(scale * prediction - target) / target), rel=1e-9)


def test_clipping_comes_after_the_alignment():
    target = torch.tensor([[1.0, 2.0, 3.0, 60.0]])
    errors = depth_errors(target * 100, target, target > 0, "scale", clip=30.0)
    assert errors.abs_rel.item() == pytest.approx(0.5 / 4, rel=1e-4)
    assert errors.delta125.item() == pytest.approx(3 / 4)


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
        (lambda p, t: ms_ssim(p[..., :10], t[..., :10]), "at least 11"),
        (lambda p, t: ms_ssim(p, t, torch.ones(3, 4, 4)), "mask must have shape"),
        (lambda p, t: patch_kernel_distance(p, t[:0]), "target must have shape"),
        (lambda p, t: patch_kernel_distance(p, t, patch_size=25), "H, W >= 25"),
        (lambda p, t: patch_kernel_distance(p, t, num_patches=1), "num_patches"),
        (lambda p, t: gradient_energy(p[:, :1]), "rgb must have shape"),
        (lambda p, t: depth_errors(p, t, t[:1] > 0), "one shape"),
        (lambda p, t: depth_errors(p, t, t > 0, align="median"), "align"),
        (lambda p, t: pose_errors(np.eye(4), np.eye(4)[None]), "one shape"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(*pictures())
