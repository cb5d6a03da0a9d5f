from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from aether_env.camera import make_pose, motion_from_action
from aether_env.trajectory import Similarity
from training.evaluation.joining import join_disparity, join_paths

STARTS = (0, 4, 5)
LENGTH = 7
SCALES = (2.0, 0.5, 9.0)


def walk(num: int = 12) -> np.ndarray:
    rng = np.random.default_rng(0)
    motions = motion_from_action(rng.normal(size=(num, 3)) * 0.3, rng.normal(size=(num, 3)) * 0.4)
    poses = [np.eye(4)]
    for motion in motions[1:]:
        poses.append(poses[-1] @ motion)
    return np.stack(poses)


def disparity_video(num: int = 12) -> np.ndarray:
    return np.random.default_rng(1).uniform(0.01, 1, (num, 3, 4))


def cut(video: np.ndarray) -> list[np.ndarray]:
    return [video[start : start + LENGTH] for start in STARTS]


def test_disparity_in_a_unit_of_each_windows_own_becomes_one_video_in_the_first_ones():
    true = disparity_video()
    windows = [scale * window for scale, window in zip(SCALES, cut(true), strict=True)]
    np.testing.assert_allclose(join_disparity(windows, STARTS), SCALES[0] * true, rtol=1e-12)


@pytest.mark.parametrize("turn", [0, 10, 45, 90])
def test_paths_in_a_world_and_a_unit_of_each_windows_own_become_one_path_in_the_first_ones(turn):
    true = walk()
    windows = [true[:LENGTH]]
    for scale, window in zip(SCALES[1:], cut(true)[1:], strict=True):
        rotation = Rotation.from_euler("y", turn, degrees=True).as_matrix()
        own = Similarity(scale=scale, rotation=rotation, translation=np.array([3.0, -1.0, 2.0]))
        windows.append(own.apply_to_poses(window))
    np.testing.assert_allclose(join_paths(windows, STARTS), true, atol=1e-9)


def test_windows_that_disagree_are_faded_linearly_into_each_other():
    # Two equal pixels, one of which the second window sees twice as near: least squares brings 1, 2 to 0.6, 1.2.
    first, second = np.ones((5, 1, 2)), np.tile([1.0, 2.0], (5, 1, 1))
    joined = join_disparity([first, second], (0, 2))
    weight = np.array([0, 0, 0.25, 0.5, 0.75, 1, 1])
    np.testing.assert_allclose(joined[:, 0], np.stack([1 - 0.4 * weight, 1 + 0.2 * weight], axis=-1))


def test_paths_that_disagree_are_faded_in_place_and_turn():
    still = np.tile(np.eye(4), (5, 1, 1))
    # Turned by 40 degrees to and fro: no alignment can remove it, and none is better than none.
    angle = np.deg2rad([40, -40, 0, 0, 0])
    turned = make_pose(Rotation.from_rotvec(angle[:, None] * [0, 1, 0]).as_matrix(), np.zeros((5, 3)))
    joined = join_paths([still, turned], (0, 3))
    found = Rotation.from_matrix(joined[:, :3, :3]).as_rotvec(degrees=True)[:, 1]
    np.testing.assert_allclose(found, [0, 0, 0, 40 / 3, -40 * 2 / 3, 0, 0, 0], atol=1e-9)


def test_infinitely_far_stays_so_and_does_not_disturb_the_scale():
    true = disparity_video()
    true[:, 0] = 0.0
    joined = join_disparity([s * w for s, w in zip(SCALES, cut(true), strict=True)], STARTS)
    np.testing.assert_allclose(joined, SCALES[0] * true, rtol=1e-12)


def test_what_was_given_is_left_as_it_was():
    windows, paths = cut(disparity_video()), cut(walk())
    copies = [window.copy() for window in (*windows, *paths)]
    join_disparity(windows, STARTS), join_paths(paths, STARTS)
    assert all(np.array_equal(a, b) for a, b in zip(copies, (*windows, *paths), strict=True))


@pytest.mark.parametrize("join, video", [(join_disparity, disparity_video()), (join_paths, walk())])
@pytest.mark.parametrize(
    "starts, named",
    [
        ((), "one a window"),
        ((0, 1), "one a window"),
        ((1, 2, 3), "begin at frame 0, got 1"),
        ((0, 7, 8), "window 1 .* begin at frame 0 to 6"),
        ((0, 4, 3), "window 2 .* begin at frame 4 to 10"),
    ],
)
def test_windows_that_do_not_cover_a_video_are_refused(join, video, starts, named):
    with pytest.raises(ValueError, match=named):
        join(cut(video), starts)
