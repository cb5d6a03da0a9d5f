from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from aether_env.camera import OPENCV_FROM_AXES
from aether_env.envs.actions import Se3Action
from aether_env.sim import plan_clips, walks
from aether_env.sim.walks import MAX_SPEED, plan_walks

FRAMES_PER_STEP = 4
LIMITS = Se3Action()


@pytest.fixture(scope="module")
def plans():
    return plan_clips(range(256), num_frames=45)


def yaw_pitch_roll(scene_from_camera):
    """Return the cameras' angles, (N, T, 3) degrees, by scipy's conventions: left, up and clockwise are positive."""
    scene_from_body = scene_from_camera[..., :3, :3] @ OPENCV_FROM_AXES["ros"]
    angles = Rotation.from_matrix(scene_from_body.reshape(-1, 3, 3)).as_euler("ZYX") * [1, -1, 1]
    return np.rad2deg(np.unwrap(angles.reshape(*scene_from_camera.shape[:2], 3), axis=1))


def over_a_step(values):
    return values[:, FRAMES_PER_STEP:] - values[:, :-FRAMES_PER_STEP]


def test_walks_turn_as_fast_as_the_env_allows_and_no_faster(plans):
    fastest = np.abs(over_a_step(yaw_pitch_roll(plans.scene_from_camera))).max(axis=(0, 1))
    limit = np.rad2deg(LIMITS.max_rotation)
    assert (fastest >= 0.9 * limit).all() and (fastest <= 1.001 * limit).all(), fastest


def test_walks_rise_sink_and_strafe_as_fast_as_the_env_allows(plans):
    limit = LIMITS.max_translation
    moved = over_a_step(plans.scene_from_camera[..., :3, 3])
    assert 0.9 * limit <= np.abs(moved[..., 2]).max() <= 1.001 * limit
    assert moved[..., 2].max() > 0.8 * limit and moved[..., 2].min() < -0.8 * limit
    seen = np.einsum("ntij,nti->ntj", plans.scene_from_camera[:, :-FRAMES_PER_STEP, :3, :3], moved)
    assert seen[..., 0].max() > 0.9 * limit and seen[..., 0].min() < -0.9 * limit
    # A hurrying walker is a little faster than an action, but keeps its own limit.
    assert limit < seen[..., 2].max() and np.linalg.norm(seen, axis=-1).max() <= 1.01 * MAX_SPEED * FRAMES_PER_STEP / 12


def test_every_axis_of_an_action_is_used_far_but_most_views_are_nearly_level(plans):
    angles = yaw_pitch_roll(plans.scene_from_camera)
    steps = np.abs(over_a_step(angles))
    assert (np.mean(steps > 0.5 * np.rad2deg(LIMITS.max_rotation), axis=(0, 1)) > 0.03).all()
    pitch, roll = np.abs(angles[..., 1]), np.abs(angles[..., 2])
    assert np.median(pitch) < 12 and np.median(roll) < 2
    assert 35 < pitch.max() <= 45.001 and 25 < roll.max() <= 30.001
    assert np.mean(pitch < 25) > 0.9 and np.mean(roll < 12) > 0.8


@pytest.mark.parametrize("kind", ["forward", "arc", "turn", "strafe", "back"])
def test_a_tilted_walker_comes_back_to_level(plans, monkeypatch, kind):
    pitch, roll = np.abs(last_tilt_after_40_and_25_degrees(plans, monkeypatch, kind)).T
    assert np.median(pitch) < 16 and pitch.max() < 30, "nodding goes on"
    assert roll.max() < 0.2


def test_a_tilted_camera_that_stands_still_stays_tilted(plans, monkeypatch):
    tilt = last_tilt_after_40_and_25_degrees(plans, monkeypatch, "still")
    np.testing.assert_allclose(tilt, np.tile([40, 25], (len(tilt), 1)), atol=1e-6)


def last_tilt_after_40_and_25_degrees(plans, monkeypatch, kind):
    """Return pitch and roll (N, 2) degrees at the end of six seconds of one kind of walk that began tilted."""
    monkeypatch.setattr(walks, "_SHARES", dict.fromkeys(walks._SHARES, 0) | {kind: 1})
    monkeypatch.setattr(walks, "_RETURN_SHARE", 0.0)
    few = plans[:32]
    tilted = replace(few.scenes, start_angles=few.scenes.start_angles * [1, 0, 0] + np.deg2rad([0, 40, 25]))
    movers = np.repeat(few.mover_pose[:, :1, :, :3], 73, axis=1)
    return yaw_pitch_roll(plan_walks(tilted, movers, num_frames=73, fps=12.0))[:, -1, 1:]


def test_a_walk_is_the_same_alone_and_in_any_batch(plans):
    for row in (7, 130, 222):
        alone = plan_walks(plans.scenes[[row]], plans.mover_pose[[row], ..., :3], num_frames=45, fps=12.0)
        np.testing.assert_array_equal(alone[0], plans.scene_from_camera[row])
