import math

import numpy as np
import pytest

from aether_env.camera import make_pose
from aether_env.envs.actions import Se3Action

MODE = Se3Action(max_translation=0.3, max_rotation=math.radians(15))
AXES = {"right": 0, "down": 1, "forward": 2}


def test_a_translation_goes_along_the_cameras_own_axes():
    # A camera that was turned right by 90 degrees looks along the world's x.
    turned = make_pose([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], [1, 2, 3])
    np.testing.assert_allclose(MODE.target([0, 0, 1, 0, 0, 0], turned)[:3, 3], [1.3, 2, 3], atol=1e-12)


def test_a_rotation_about_down_turns_the_camera_to_its_right():
    forward = MODE.target([0, 0, 0, 0, 1, 0], np.eye(4))[:3, 2]
    np.testing.assert_allclose(forward, [math.sin(math.radians(15)), 0, math.cos(math.radians(15))], atol=1e-12)


def test_a_rotation_about_right_turns_the_camera_up():
    assert MODE.target([0, 0, 0, 1, 0, 0], np.eye(4))[1, 2] == pytest.approx(-math.sin(math.radians(15)))


def test_numbers_beyond_one_count_as_one():
    np.testing.assert_array_equal(
        MODE.target([0, 0, 5, 0, -9, 0], np.eye(4)), MODE.target([0, 0, 1, 0, -1, 0], np.eye(4))
    )


def test_neither_action_nor_pose_is_modified():
    action, pose = np.full(6, 2.0), np.eye(4)
    MODE.target(action, pose)
    assert (action == 2).all() and (pose == np.eye(4)).all()


@pytest.mark.parametrize(
    "action", [np.zeros(5), np.zeros((1, 6)), 0.0, np.full(6, np.nan), [0, 0, np.inf, 0, 0, 0], "left", None, [[], [1]]]
)
def test_what_is_no_action_is_refused(action):
    with pytest.raises(ValueError, match="action must"):
        MODE.target(action, np.eye(4))


@pytest.mark.parametrize("limits", [{"max_translation": -1}, {"max_translation": math.nan}, {"max_rotation": 15}])
def test_limits_out_of_range_are_refused(limits):
    with pytest.raises(ValueError, match=next(iter(limits))):
        Se3Action(**limits)
