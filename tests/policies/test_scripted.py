import numpy as np
import pytest

from aether_env.camera import rotation_angle
from policies.scripted import arc, demo_walk, forward, look_around, walk_poses


@pytest.mark.parametrize("walk", [forward, look_around, arc, demo_walk])
@pytest.mark.parametrize("num_steps", [0, 1, 5, 24])
def test_walks_are_actions_of_the_env(walk, num_steps):
    actions = walk(num_steps)
    assert actions.shape == (num_steps, 6) and actions.dtype == np.float32
    assert np.abs(actions).max(initial=0) <= 1


def test_forward_goes_straight_ahead_by_its_speed():
    poses = walk_poses(forward(4, speed=0.5))
    np.testing.assert_allclose(poses[-1, :3, 3], [0, 0, 4 * 0.5 * 0.3], atol=1e-12)
    np.testing.assert_allclose(poses[-1, :3, :3], np.eye(3), atol=1e-12)


def test_looking_around_sees_both_sides_and_ends_where_it_began():
    poses = walk_poses(look_around(8, turn=0.5))
    assert np.abs(poses[:, :3, 3]).max() == 0
    np.testing.assert_allclose(poses[-1], np.eye(4), atol=1e-6)
    sideways = poses[:, 0, 2]
    np.testing.assert_allclose([sideways.max(), sideways.min()], np.sin(np.deg2rad(15)) * np.array([1, -1]), atol=1e-6)


def test_an_arc_to_the_right_closes_into_a_circle():
    poses = walk_poses(arc(48, speed=0.5, turn=0.5))
    np.testing.assert_allclose(poses[-1], np.eye(4), atol=1e-5)
    assert poses[24, 0, 3] > 1


def test_the_demo_walk_stays_near_and_moves_in_every_way():
    actions, poses = demo_walk(), walk_poses(demo_walk())
    assert len(actions) == 24 and np.linalg.norm(poses[:, :3, 3], axis=1).max() < 2
    ranges = np.ptp(actions, axis=0)
    assert (ranges[[0, 2, 3, 4]] > 0).all()
    assert np.rad2deg(rotation_angle(poses[:, :3, :3])).max() > 10


@pytest.mark.parametrize("speed", [1.01, -2.0, np.nan])
def test_speeds_beyond_the_limit_are_refused(speed):
    with pytest.raises(ValueError, match="in \\[-1, 1\\]"):
        forward(3, speed)
