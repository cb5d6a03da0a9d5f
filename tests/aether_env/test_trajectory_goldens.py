"""Smoothing against the true poses: the reference paths, and a right-angled corner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aether_env.camera import motion_from_action, rotation_distance
from aether_env.trajectory import smooth_path

CODEC = np.load(Path(__file__).parents[1] / "goldens" / "aetherv1" / "codec.npz")
NOISE = {"position_std": 0.02, "rotation_std": 0.01}
"""Of the noisy reference paths, in units and radians an axis."""


def errors(path, true):
    """Distances and angles (T,)."""
    return np.stack([np.linalg.norm(path[:, :3, 3] - true[:, :3, 3], axis=-1), rotation_distance(path, true)])


def corner(seed, position_std=0.005, rotation_std=0.003):
    """Straight ahead in steps of 0.05, at frame 20 by 90 degrees to the right at once: true and noisy."""
    frame, rng = np.arange(41), np.random.default_rng(seed)
    centre = 0.05 * np.stack([np.maximum(frame - 20, 0), 0 * frame, np.minimum(frame, 20)], axis=-1)
    true = motion_from_action(centre, np.where(frame[:, None] > 20, [0, np.pi / 2, 0], 0.0))
    noisy = true @ motion_from_action(np.zeros((41, 3)), rotation_std * rng.normal(size=(41, 3)))
    noisy[:, :3, 3] += position_std * rng.normal(size=(41, 3))
    return true, noisy


@pytest.mark.parametrize("name", "abc")
def test_with_known_noise_a_reference_path_is_nearer_to_the_truth_than_measured_and_than_the_published(name):
    true, noisy, published = (CODEC[f"{name}_{kind}"] for kind in ("pose", "noisy_pose", "smoothed_pose"))
    ours = errors(smooth_path(noisy, **NOISE).world_from_camera, true).mean(-1)
    assert (ours < errors(noisy, true).mean(-1)).all()
    assert (ours < errors(published, true).mean(-1)).all()


@pytest.mark.parametrize("name", "abc")
def test_with_estimated_noise_a_reference_path_is_no_worse_than_measured_and_nearer_than_the_published(name):
    true, noisy, published = (CODEC[f"{name}_{kind}"] for kind in ("pose", "noisy_pose", "smoothed_pose"))
    ours = errors(smooth_path(noisy).world_from_camera, true).mean(-1)
    assert (ours < 1.01 * errors(noisy, true).mean(-1)).all()
    assert (ours < errors(published, true).mean(-1)).all()


def test_over_many_noises_a_right_angled_corner_stays_where_it_is_and_as_sudden():
    near, centres, turns = slice(18, 23), [], []
    for seed in range(8):
        true, noisy = corner(seed)
        path = smooth_path(noisy).world_from_camera
        centres.append(path[near, :3, 3])
        turns.append(rotation_distance(path[20], path[21]))
    # The mean over noises is what smoothing itself does: a Gaussian of two frames cuts the corner by a whole step.
    cut = np.linalg.norm(np.mean(centres, axis=0) - true[near, :3, 3], axis=-1)
    assert cut.max() < 0.5 * 0.05
    np.testing.assert_allclose(np.rad2deg(turns), 90, atol=5)
