"""Errors of what was known beforehand, and a broken checkpoint that gets no numbers."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from aether_env.world_model.own_clips import CLIP_FRAMES, OwnClips
from aether_env.world_model.rollout import DreamWorld
from tests.tiny import tiny_components
from tests.training.evaluation.wall import DEPTH, FOCAL, PerfectCodec, wall_walk
from training.evaluation import drift, scores
from training.evaluation.walks import Walk, WalkSet

STEP = DEPTH / FOCAL
"""Metres that the wall's camera goes sideways in a frame."""


class DepthCodec(PerfectCodec):
    """Loses nothing of depth either."""

    def unit(self, depth):
        return torch.ones(len(depth))

    def encode_depth(self, depth, unit):
        return depth

    def decode_depth(self, latents, unit):
        return latents


class Reconstructor:
    """Finds what the test says, and the truth where it is told depth, both in a unit of its own."""

    codec = DepthCodec()
    reconstruct_refine = False

    def __init__(self, walk: Walk, *, unit: float = 3.0, told_unit: float = 1.0, turn: float = 0.0, zoom: float = 1.0):
        self.walk, self.unit, self.told_unit = walk, unit, told_unit
        turns = Rotation.from_rotvec(np.arange(17)[:, None] * [0, np.deg2rad(turn), 0]).as_matrix()
        self.path = walk.path.copy()
        self.path[..., :3, :3] = turns
        self.intrinsics = np.tile(walk.intrinsics[:, None] * [[zoom, 1, 1], [1, zoom, 1], [1, 1, 1]], (1, 17, 1, 1))
        self.depth = walk.clips.depth.numpy()
        self.metric = np.ones(len(walk.path), bool)

    def reconstruct(self, video, *, seeds, depth=None):
        if depth is not None:
            np.testing.assert_array_equal(depth, self.walk.first_depth)
        unit = self.unit if depth is None else self.told_unit
        path = self.path.copy()
        path[..., :3, 3] *= unit
        return SimpleNamespace(
            depth=unit * self.depth, world_from_camera=path, intrinsics=self.intrinsics, metric=self.metric
        )


@pytest.fixture(scope="module")
def walk() -> Walk:
    """Half of the wall is twice as far away."""
    wall = wall_walk()
    depth = wall.clips.depth.clone()
    depth[..., 24:] *= 2
    return replace(wall, clips=replace(wall.clips, depth=depth))


def test_the_truth_in_another_unit_has_no_error_but_that_of_its_scale(walk: Walk):
    found = scores.reconstruction_scores(Reconstructor(walk), walk, 0)
    for name in (
        "depth_abs_rel", "depth_abs_rel_scale_shift", "autoencoder_depth_abs_rel", "scale_error", "focal_error", "ate",
        "rpe_translation", "rpe_rotation_deg", "rotation_error_deg", "fov_error_deg", "translation_direction_deg",
        "step_direction_deg",
    ):  # fmt: skip
        assert found[name] == pytest.approx(0, abs=1e-4), name
    assert (found["depth_delta125"] == 1).all() and (found["depth_delta125_scale_shift"] == 1).all()
    assert found["scale_error_without_depth"] == pytest.approx(np.log(3))


def test_an_offset_of_depth_is_forgiven_by_the_second_alignment_alone(walk: Walk):
    pipeline = Reconstructor(walk)
    pipeline.depth = pipeline.depth + 2
    found = scores.reconstruction_scores(pipeline, walk, 0)
    assert found["depth_abs_rel"].min() > 0.05 and found["depth_abs_rel_scale_shift"] == pytest.approx(0, abs=1e-4)


def test_what_refining_gains_stands_beside_the_network_alone(walk: Walk):
    class Refining(Reconstructor):
        reconstruct_refine = True

        def without_refining(self):
            return Reconstructor(self.walk, zoom=1.1)

    found = scores.reconstruction_scores(Refining(walk), walk, 0)
    assert found["fov_error_deg"] == pytest.approx(0, abs=1e-4) and (found["network_fov_error_deg"] > 1).all()
    assert "network_fov_error_deg" not in scores.reconstruction_scores(Reconstructor(walk), walk, 0)


def test_known_errors_of_path_and_camera_are_their_closed_form(walk: Walk):
    found = scores.reconstruction_scores(Reconstructor(walk, told_unit=1.2, turn=2.0, zoom=1.1), walk, 0)
    assert found["scale_error"] == pytest.approx(np.log(1.2))
    assert found["rpe_rotation_deg"] == pytest.approx(2.0)
    # The camera goes right along the world's x, and of every step it thinks from where it looks by then.
    assert found["step_direction_deg"] == pytest.approx(2.0 * np.arange(16).mean())
    assert found["translation_direction_deg"] == pytest.approx(0, abs=1e-6)
    assert found["focal_error"] == pytest.approx(0.1)
    fov, wrong = (2 * np.rad2deg(np.arctan(24 / focal)) for focal in (FOCAL, 1.1 * FOCAL))
    assert found["fov_error_deg"] == pytest.approx(fov - wrong)


def test_floors_are_what_no_network_gets(walk: Walk):
    found = scores.reconstruction_scores(Reconstructor(walk), walk, 0)
    assert found["standing_ate"] == pytest.approx(STEP * np.arange(17).std())
    assert found["standing_rpe_translation"] == pytest.approx(STEP)
    assert found["straight_ate"] == pytest.approx(0, abs=1e-6)  # after alignment a line is any other line
    assert found["straight_step_direction_deg"] == pytest.approx(90)
    assert found["straight_translation_direction_deg"] == pytest.approx(90)
    assert found["guessed_fov_error_deg"] == pytest.approx(70 - 2 * np.rad2deg(np.arctan(24 / FOCAL)))
    # The best constant of one half at 3 m and the other at 6 m: an error of the one or of the other, or of both.
    assert found["flat_depth_abs_rel"].min() >= 0.25 - 1e-4


def test_a_camera_that_hardly_moves_has_no_direction_no_scale_and_no_way_to_be_off_from():
    still = wall_walk(pixels_per_frame=(0, 1))
    found = scores.reconstruction_scores(Reconstructor(still, turn=1.0), still, 0)
    for name in (
        "ate", "rpe_translation", "standing_ate", "step_direction_deg", "straight_step_direction_deg", "scale_error",
        "translation_direction_deg", "straight_translation_direction_deg", "scale_error_without_depth",
    ):  # fmt: skip
        assert np.isnan(found[name]).tolist() == [True, False], name
    assert found["rpe_rotation_deg"] == pytest.approx(1.0)


def test_a_first_frame_without_any_surface_tells_no_scale(walk: Walk):
    pipeline = Reconstructor(walk)
    pipeline.metric = np.array([False, True])
    found = scores.reconstruction_scores(pipeline, walk, 0)
    assert np.isnan(found["scale_error"]).tolist() == [True, False]
    assert not np.isnan(found["scale_error_without_depth"]).any()


def test_depth_that_stays_is_told_by_the_first_frames_and_not_by_flat_depth(walk: Walk):
    found = scores.baseline_scores(DepthCodec(), walk)
    for name in ("held", "autoencoder"):
        assert found[f"{name}_predicted_abs_rel"] == pytest.approx(0, abs=1e-6)
        assert (found[f"{name}_predicted_delta125"] == 1).all()
    assert found["flat_predicted_abs_rel"].min() >= 0.25 - 1e-4


def test_held_before_a_wall_the_sky_is_as_far_as_what_is_beside_it():
    wall = wall_walk()
    valid, depth = wall.clips.valid.clone(), wall.clips.depth.clone()
    valid[:, 0, :, :8], depth[:, 0, :, :8] = False, 100.0
    walk = replace(wall, clips=replace(wall.clips, valid=valid, depth=depth))
    assert scores.baseline_scores(DepthCodec(), walk)["held_predicted_abs_rel"] == pytest.approx(0, abs=1e-5)


@pytest.fixture(scope="module")
def broken():
    parts = tiny_components()
    with torch.no_grad():
        parts.transformer.proj_out.weight.fill_(torch.nan)
    return parts


def test_dreams_that_are_not_numbers_are_refused_by_name_instead_of_scored(broken):
    walks = WalkSet(2, CLIP_FRAMES, broken.settings)
    walk = walks.draw(np.arange(2))
    world, pipeline = DreamWorld(broken), OwnClips(broken)
    with pytest.raises(ValueError, match=r"dreamed depth is NaN or infinite in test clips \[0, 1\]"):
        scores.rollout_scores(world, walk, 0)
    with pytest.raises(ValueError, match="predicted depth is NaN"):
        scores.prediction_scores(pipeline, walk, 0)
    with pytest.raises(ValueError, match="NaN"):
        scores.reconstruction_scores(pipeline, walk, 0)
    with pytest.raises(ValueError, match="depth dreamed at step 1 is NaN"):
        drift.drift_scores(world, walks, np.arange(2), 0, last_step=1)
