"""Direct bundle adjustment beside a room whose cameras and depth are known in closed form."""

import numpy as np
import pytest
import torch

from aether_env.camera import intrinsics_from_fov, rotation_distance, se3_exp
from aether_env.conventions import FAR_DEPTH
from aether_env.metrics import depth_errors
from aether_env.path_metrics import ate
from aether_env.world_model import refine as module
from aether_env.world_model.promise import Start
from aether_env.world_model.refine import refine
from tests.rooms import BoxRoom

FRAMES, HEIGHT, WIDTH = 13, 48, 64
TWIST = np.array([0.04, 0.01, 0.05, 0.004, 0.012, -0.003])


def film():
    """Pictures, depth, poses (T, 4, 4) and intrinsics of a walk in the room."""
    room = BoxRoom(HEIGHT, WIDTH, frames_per_step=FRAMES)
    intrinsics = intrinsics_from_fov(np.deg2rad(70.0), HEIGHT, WIDTH)
    state, _ = room.start([Start(intrinsics=intrinsics)], [3])
    poses = np.stack([se3_exp(t * TWIST) for t in range(FRAMES)])
    _, frames = room.advance(state, poses[None])
    return frames.rgb[0], frames.depth[0], poses, intrinsics


def disturbed(depth, poses, intrinsics, rng, size=1.0):
    """What a network might have said: smooth errors of depth, every pose and the focal length off."""
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    slope = rng.normal(0, 0.1 * size, (FRAMES, 2, 1, 1))
    depth = depth * np.exp(slope[:, 0] * x + slope[:, 1] * y)
    noise = rng.normal(0, 1, (FRAMES, 6)) * np.repeat([0.03 * size, 0.012 * size], 3)
    poses = np.stack([pose @ se3_exp(n) for pose, n in zip(poses, noise, strict=True)])
    intrinsics = intrinsics * np.array([[1 + 0.06 * size], [1 + 0.06 * size], [1.0]])
    intrinsics[:2, 2] = [WIDTH / 2, HEIGHT / 2]
    return depth.astype(np.float32), np.linalg.inv(poses[0]) @ poses, intrinsics


def abs_rel(depth, truth):
    errors = depth_errors(*(torch.as_tensor(d)[None] for d in (depth, truth)), torch.ones(1, *truth.shape).bool())
    return float(errors.abs_rel)


@pytest.fixture(scope="module")
def case():
    truth = film()
    return truth, disturbed(*truth[1:], np.random.default_rng(0))


def test_poses_depth_and_focal_length_come_much_closer_to_the_truth(case):
    (rgb, depth, poses, k), found = case
    refined = refine(rgb, *found)

    def turned(world_from_camera):
        return np.rad2deg(np.median(rotation_distance(world_from_camera[:, :3, :3], poses[:, :3, :3])))

    assert turned(refined.world_from_camera) < 0.2 * turned(found[1])
    assert ate(refined.world_from_camera, poses) < 0.2 * ate(found[1], poses)
    assert abs(refined.intrinsics[0, 0] / k[0, 0] - 1) < 0.02
    assert abs_rel(refined.depth, depth) < 0.4 * abs_rel(found[0], depth)
    assert refined.cost[1] < 0.5 * refined.cost[0]


def test_the_truth_stays_where_it_is(case):
    (rgb, depth, poses, k), _ = case
    refined = refine(rgb, depth, poses, k)
    assert np.rad2deg(rotation_distance(refined.world_from_camera[:, :3, :3], poses[:, :3, :3])).max() < 0.1
    assert abs_rel(refined.depth, depth) < 0.01
    assert abs(refined.intrinsics[0, 0] / k[0, 0] - 1) < 0.01


def test_what_is_known_comes_back_as_it_was_given(case):
    (rgb, depth, poses, k), (found_depth, found_poses, found_k) = case
    first = np.arange(FRAMES) == 0
    some = refine(rgb, np.where(first[:, None, None], depth, found_depth), found_poses, found_k, hold_depth=first)
    np.testing.assert_array_equal(some.depth[0], depth[0])
    assert np.abs(some.depth[1:] / found_depth[1:] - 1).max() > 0.02
    path = refine(rgb, found_depth, poses, k, hold_path=True, hold_focal=True)
    np.testing.assert_allclose(path.world_from_camera, poses, atol=1e-12)
    np.testing.assert_array_equal(path.intrinsics, k)
    nothing = refine(
        rgb, depth, poses, k, hold_depth=np.ones(FRAMES, bool), hold_path=True, hold_focal=True
    )  # fmt: skip
    np.testing.assert_array_equal(nothing.depth, depth)


def test_a_known_first_depth_fixes_the_length_of_the_way(case):
    (rgb, depth, poses, _), (found_depth, found_poses, found_k) = case
    first = np.arange(FRAMES) == 0
    far = found_poses.copy()
    far[:, :3, 3] *= 1.2
    given = np.where(first[:, None, None], depth, 1.2 * found_depth)
    refined = refine(rgb, given, far, found_k, hold_depth=first)
    way = np.linalg.norm(refined.world_from_camera[-1, :3, 3]) / np.linalg.norm(poses[-1, :3, 3])
    assert abs(way - 1) < 0.05


def test_the_unit_of_length_does_not_matter_and_stays(case):
    (rgb, *_), (depth, poses, k) = case
    far = poses.copy()
    far[:, :3, 3] *= 7
    one, other = refine(rgb, depth, poses, k), refine(rgb, 7 * depth, far, k)
    np.testing.assert_allclose(other.depth, 7 * one.depth, rtol=1e-3)
    np.testing.assert_allclose(other.world_from_camera[:, :3, 3], 7 * one.world_from_camera[:, :3, 3], atol=5e-3)
    assert np.median(one.depth[0]) == pytest.approx(np.median(depth[0]), rel=0.01)


def test_sky_stays_sky(case):
    (rgb, *_), (depth, poses, k) = case
    depth = depth.copy()
    depth[:, :10] = FAR_DEPTH
    assert (refine(rgb, depth, poses, k).depth[:, :10] == FAR_DEPTH).all()


@pytest.mark.parametrize("frames", [1, 2, FRAMES])
def test_pictures_without_anything_to_follow_change_nothing(case, frames):
    (rgb, *_), (depth, poses, k) = case
    grey = np.full_like(rgb[:frames], 90)
    refined = refine(grey, depth[:frames], poses[:frames], k)
    np.testing.assert_array_equal(refined.world_from_camera, poses[:frames])
    np.testing.assert_array_equal(refined.depth, depth[:frames])
    np.testing.assert_array_equal(refined.intrinsics, k)


def test_large_pictures_are_compared_small_and_answered_in_their_own_size(case):
    (rgb, _, poses, k), (depth, found, found_k) = case

    def enlarged(pictures):
        return np.repeat(np.repeat(pictures, 4, axis=1), 4, axis=2)

    refined = refine(enlarged(rgb), enlarged(depth), found, found_k * np.array([[4.0], [4.0], [1.0]]))
    assert ate(refined.world_from_camera, poses) < 0.3 * ate(found, poses)
    assert refined.depth.shape == (FRAMES, 4 * HEIGHT, 4 * WIDTH)
    assert refined.intrinsics[0, 0] == pytest.approx(4 * k[0, 0], rel=0.03)


def test_the_slope_is_that_of_the_cost(case):
    (rgb, *truth), _ = case
    problem = module._Problem(rgb, *disturbed(*truth, np.random.default_rng(0), size=0.2), "cpu")
    level, state = problem.level(4), problem.start
    seen = problem._seen(level, state, slopes=False).inside.sum()
    _, slope = problem.normal_equations(level, state)
    nodes, rng = FRAMES * module.GRID[0] * module.GRID[1], np.random.default_rng(1)
    focal = slope.numel() - 1
    for first, last, size in ((0, nodes, 0.02), (nodes + 6, focal, 2e-3), (focal, focal + 1, 2e-3)):
        numeric, analytic = [], []
        for which in rng.integers(first, last, 12):
            step = torch.zeros_like(slope)
            step[which] = size
            ahead, back = (problem.cost(level, problem._moved(state, sign * step)) for sign in (1, -1))
            numeric.append(float((ahead - back) / (2 * size) * seen))
            analytic.append(2 * float(slope[which]))
        # Not equal: points come into view, and bilinear interpolation has kinks that central differences do not follow.
        cosine = np.dot(numeric, analytic) / np.linalg.norm(numeric) / np.linalg.norm(analytic)
        assert cosine > 0.98
        assert np.linalg.norm(analytic) == pytest.approx(np.linalg.norm(numeric), rel=0.2)
