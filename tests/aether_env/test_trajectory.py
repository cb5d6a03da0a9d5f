from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_env.camera import make_pose, motion_from_action, rotation_distance, se3_exp
from aether_env.trajectory import align_sim3, blend_paths, smooth_path, umeyama

CODEC = np.load(Path(__file__).parents[1] / "goldens" / "aetherv1" / "codec.npz")
FRAMES = np.arange(41)


def curved_path():
    """A sine while turning by 400 degrees."""
    turn = np.zeros((41, 3))
    turn[:, 1] = np.deg2rad(400) * FRAMES / 40
    return motion_from_action(np.stack([np.sin(FRAMES / 10), 0 * FRAMES, FRAMES / 20], axis=-1), turn)


def corner_path():
    """Straight ahead, then to the right at once."""
    centre = np.stack([np.maximum(FRAMES - 20, 0), 0 * FRAMES, np.minimum(FRAMES, 20)], axis=-1) * 0.05
    return motion_from_action(centre, np.where(FRAMES[:, None] > 20, [0, np.pi / 2, 0], 0.0))


def with_noise(path, position_std=0.01, rotation_std=0.01, seed=0):
    rng = np.random.default_rng(seed)
    noise = motion_from_action(np.zeros((len(path), 3)), rotation_std * rng.normal(size=(len(path), 3)))
    noisy = path @ noise
    noisy[:, :3, 3] += position_std * rng.normal(size=(len(path), 3))
    return noisy


def errors(path, true):
    return np.linalg.norm(path[:, :3, 3] - true[:, :3, 3], axis=-1), rotation_distance(path, true)


@pytest.mark.parametrize("name", "abc")
def test_the_smoother_beats_the_published_one_on_the_reference_paths(name):
    true, noisy, published = (CODEC[f"{name}_{kind}"] for kind in ("pose", "noisy_pose", "smoothed_pose"))
    ours = smooth_path(noisy).world_from_camera
    for our_error, published_error in zip(errors(ours, true), errors(published, true), strict=True):
        assert our_error.mean() < published_error.mean()


def test_smoothing_takes_two_fifths_of_the_noise_off_a_smooth_path_that_turns_beyond_a_full_circle():
    true = curved_path()
    noisy = with_noise(true)
    smoothed = smooth_path(noisy)
    for after, before in zip(errors(smoothed.world_from_camera, true), errors(noisy, true), strict=True):
        assert after.mean() < 0.6 * before.mean()
    assert smoothed.position_std == pytest.approx(0.01, rel=0.3)
    assert smoothed.rotation_std == pytest.approx(0.01, rel=0.3)


@pytest.mark.parametrize("path", [curved_path(), corner_path(), np.tile(np.eye(4), (5, 1, 1)), curved_path()[:2]])
def test_an_exact_path_stays_where_it_is(path):
    np.testing.assert_allclose(smooth_path(path).world_from_camera, path, atol=1e-9)


def test_a_noisy_corner_is_not_smeared():
    true = corner_path()
    translation, rotation = errors(smooth_path(with_noise(true, 0.005, 0.003)).world_from_camera, true)
    assert translation[18:23].max() < 0.02 and rotation[18:23].max() < 0.02  # steps of 0.05, a turn of 1.57


def test_covariance_tells_the_size_of_the_error():
    true, ratios = curved_path(), []
    for seed in range(8):
        smoothed = smooth_path(with_noise(true, seed=seed), position_std=0.01, rotation_std=0.01)
        translation, rotation = errors(smoothed.world_from_camera, true)
        variance = np.diagonal(smoothed.covariance, axis1=1, axis2=2)
        assert (variance > 0).all() and (variance < 0.011**2).all()
        ratios.append([(translation**2).sum() / variance[:, :3].sum(), (rotation**2).sum() / variance[:, 3:].sum()])
    assert (np.mean(ratios, axis=0) > 0.5).all() and (np.mean(ratios, axis=0) < 2).all()


def test_smoothing_commutes_with_moving_and_scaling_the_world():
    noisy = with_noise(curved_path())
    move = se3_exp(np.array([3.0, -1.0, 2.0, 0.4, 1.0, -0.3]))
    plain = smooth_path(noisy).world_from_camera
    np.testing.assert_allclose(smooth_path(move @ noisy).world_from_camera, move @ plain, atol=1e-6)
    scaled = make_pose(noisy[:, :3, :3], 100 * noisy[:, :3, 3])
    np.testing.assert_allclose(smooth_path(scaled).world_from_camera[:, :3, 3], 100 * plain[:, :3, 3], atol=1e-5)


def test_smoothing_does_not_write_into_its_input():
    noisy = with_noise(curved_path())
    kept = noisy.copy()
    smooth_path(noisy)
    np.testing.assert_array_equal(noisy, kept)


seeds = st.integers(0, 2**31)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, scale=st.floats(0.01, 100.0))
def test_exact_similarities_are_found_and_undone(seed, scale):
    rng = np.random.default_rng(seed)
    path = se3_exp(rng.normal(size=(8, 6)))
    move = se3_exp(rng.normal(size=6))
    reference = move @ make_pose(path[:, :3, :3], scale * path[:, :3, 3])
    for found in (align_sim3(path, reference), umeyama(path[:, :3, 3], reference[:, :3, 3])):
        assert found.scale == pytest.approx(scale, rel=1e-6)
        np.testing.assert_allclose(found.apply_to_poses(path), reference, atol=1e-6 * (1 + scale))


@pytest.mark.parametrize("degrees", [0, 10, 45, 90])
def test_a_straight_path_aligns_although_its_centres_leave_the_roll_open(degrees):
    path = motion_from_action(
        np.linspace([0, 0, 0], [0, 0, 2], 9), np.linspace([0, 0, 0], [0, np.deg2rad(degrees), 0], 9)
    )
    reference = make_pose(path[:, :3, :3], 0.5 * path[:, :3, 3])
    found = align_sim3(path, reference)
    assert found.scale == pytest.approx(0.5)
    np.testing.assert_allclose(found.apply_to_poses(path), reference, atol=1e-9)


def test_a_path_that_stands_still_aligns_with_scale_one():
    path = np.tile(se3_exp(np.arange(6) / 5), (4, 1, 1))
    found = align_sim3(np.tile(np.eye(4), (4, 1, 1)), path)
    assert found.scale == 1.0
    np.testing.assert_allclose(found.apply_to_poses(np.eye(4)), path[0], atol=1e-9)


def test_blending_two_pieces_of_one_path_gives_the_path():
    path = curved_path()
    np.testing.assert_allclose(blend_paths(path[:25], path[17:], 8), path, atol=1e-12)
    assert len(blend_paths(path[:5], path[5:], 0)) == 41


def test_blending_fades_linearly_between_different_paths():
    first = np.tile(np.eye(4), (5, 1, 1))
    second = motion_from_action(np.tile([4.0, 0, 0], (5, 1)), np.tile([0, 0.4, 0], (5, 1)))
    blended = blend_paths(first, second, 3)
    np.testing.assert_allclose(blended[:, 0, 3], [0, 0, 1, 2, 3, 4, 4])
    np.testing.assert_allclose(rotation_distance(blended, first[:1]), [0, 0, 0.1, 0.2, 0.3, 0.4, 0.4], atol=1e-9)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p: smooth_path(p[0]), r"\(T, 4, 4\)"),
        (lambda p: smooth_path(p * np.nan), "finite"),
        (lambda p: smooth_path(p, rate_hz=0.0), "rate_hz"),
        (lambda p: smooth_path(p, position_std=-1.0), "position_std"),
        (lambda p: umeyama(p[:, :3, 3], p[:3, :3, 3]), "source and target"),
        (lambda p: blend_paths(p, p, 99), "overlap"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(curved_path())
