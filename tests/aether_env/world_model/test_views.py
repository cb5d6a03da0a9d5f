"""Looks at a video, mirrored and backwards: what they show is what such a camera would see, and they can be undone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from aether_env.camera import intrinsics_from_fov, make_pose, relative_to
from aether_env.conventions import FAR_DEPTH
from aether_env.world_model.views import FARTHEST, VIEWS, View, mean_depth, mean_path, relative_scale

HEIGHT, WIDTH, TIMES = 16, 24, 5


def walk(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rotation = Rotation.from_rotvec(rng.normal(scale=0.3, size=(TIMES, 3))).as_matrix()
    poses = make_pose(rotation, rng.normal(size=(TIMES, 3)))[None]
    return relative_to(poses, poses[:, :1])


def project(world_from_camera, intrinsics, points):
    """Return pixels (T, P, 2) of world points (P, 3)."""
    camera = np.linalg.inv(world_from_camera)
    pixel = (points @ camera[:, :3, :3].mT + camera[:, None, :3, 3]) @ intrinsics.mT
    return pixel[..., :2] / pixel[..., 2:]


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_a_view_shown_twice_is_the_video_again(view):
    video = np.random.default_rng(1).integers(0, 255, (2, TIMES, HEIGHT, WIDTH, 3))
    intrinsics = np.random.default_rng(2).uniform(5, 20, (2, TIMES, 3, 3))
    np.testing.assert_array_equal(view.pictures(view.pictures(video)), video)
    np.testing.assert_allclose(view.poses(view.poses(walk())), walk(), atol=1e-12)
    np.testing.assert_allclose(view.intrinsics(view.intrinsics(intrinsics, WIDTH), WIDTH), intrinsics)


def test_a_mirrored_camera_sees_every_point_as_far_from_the_other_edge():
    intrinsics = intrinsics_from_fov(1.2, HEIGHT, WIDTH)
    intrinsics[0, 2] += 3.0  # off-centre
    points = np.random.default_rng(3).uniform(-1, 1, (20, 3)) + [0, 0, 6]
    view = View(mirrored=True)
    pixels = project(walk()[0], intrinsics, points)
    mirrored = project(view.poses(walk())[0], view.intrinsics(intrinsics[None], WIDTH)[0], points * [-1, 1, 1])
    np.testing.assert_allclose(mirrored, [WIDTH, 0] + pixels * [-1, 1], atol=1e-9)


def test_backwards_the_path_begins_where_it_ended():
    back = View(backwards=True).poses(walk())
    np.testing.assert_allclose(back[0, 0], np.eye(4), atol=1e-12)
    np.testing.assert_allclose(back[0, -1], np.linalg.inv(walk()[0, -1]), atol=1e-12)


def test_mean_depth_is_that_of_the_mean_disparity_after_scaling():
    near, far = np.full((1, 1, 2, 2), 2.0, np.float32), np.full((1, 1, 2, 2), 3.0, np.float32)
    mean = mean_depth([near, far], np.array([[1.0], [2.0]]), np.ones(1))
    np.testing.assert_allclose(mean, 2 / (1 / 2 + 1 / 6), rtol=1e-6)
    assert mean.dtype == np.float32


def test_the_sky_is_where_every_look_says_so():
    one, other = (np.full((1, 1, 2, 2), FAR_DEPTH, np.float32) for _ in range(2))
    one[..., 0] = 3.0
    mean = mean_depth([one, other], np.array([[1.0], [0.5]]), np.ones(1))
    np.testing.assert_allclose(mean[..., 0], 3.0, rtol=1e-6)
    np.testing.assert_array_equal(mean[..., 1], FAR_DEPTH)


def test_a_surface_is_found_at_most_so_many_units_away():
    depths = [np.full((2, 1, 2, 2), d, np.float32) for d in (60.0, 70.0)]
    mean = mean_depth(depths, np.ones((2, 2)), np.array([1.0, 2.0]))
    np.testing.assert_allclose(mean[0], FARTHEST)
    np.testing.assert_allclose(mean[1], 2 * FARTHEST)
    assert (mean_depth(depths, np.ones((2, 2)), np.array([1.0, 9.0]))[1] < 70).all()


def test_what_all_looks_say_stays_to_the_last_digit():
    depth = np.random.default_rng(4).uniform(0.3, 90, (1, 2, 4, 4)).astype(np.float32)
    depth[0, 0, 0] = FAR_DEPTH
    np.testing.assert_array_equal(mean_depth([depth] * 4, np.ones((4, 1)), np.ones(1)), depth)


def test_relative_scale_brings_all_looks_to_the_first_ones_median():
    depth = np.random.default_rng(5).uniform(1, 5, (2, 3, 4, 5))
    np.testing.assert_allclose(relative_scale([depth, depth * [[[[4.0]]], [[[0.5]]]]]), [[1, 1], [0.25, 2]])


def test_the_mean_of_turns_to_both_sides_is_straight_ahead_and_positions_are_scaled_first():
    left, right = (np.eye(4)[None, None].repeat(2, axis=1) for _ in range(2))
    for path, angle in ((left, 0.4), (right, -0.4)):
        path[0, 1, :3, :3] = Rotation.from_euler("y", angle).as_matrix()
    left[0, 1, :3, 3], right[0, 1, :3, 3] = [0, 0, 1], [1, 0, 0]
    mean = mean_path([left, right], np.array([[1.0], [3.0]]))
    np.testing.assert_allclose(mean[0, 0], np.eye(4), atol=1e-12)
    np.testing.assert_allclose(mean[0, 1], make_pose(np.eye(3), np.array([1.5, 0, 0.5])), atol=1e-12)
