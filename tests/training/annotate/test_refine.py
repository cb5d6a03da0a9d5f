"""Refinement of cameras in the painted room, whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from aether_env.camera import invert_pose, motion_from_action, rotation_distance
from aether_env.path_metrics import ate
from tests.training.annotate.room import film, walk
from training.annotate.coarse import Cameras
from training.annotate.refine import RefineSettings, refine_cameras
from training.annotate.tracks import Tracks

TWIST = (0.03, -0.01, 0.04, 0.004, 0.015, -0.006)
FRAMES = 8


def coarse(poses, intrinsics, rows=None, *, focal=1.04, degrees=0.7, metres=0.02, seed=0):
    """Cameras that are off by so much in every frame but the first."""
    rng = np.random.default_rng(seed)
    turn, move = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in rng.normal(size=(2, len(poses), 3)))
    guess = poses @ motion_from_action(metres * move, np.deg2rad(degrees) * turn)
    guess[0] = poses[0]
    return Cameras(
        rows=np.arange(len(poses)) if rows is None else rows,
        world_from_camera=guess,
        intrinsics=intrinsics * np.array([[focal, 1, 1], [1, focal, 1], [1, 1, 1]]),
        residual=np.zeros(len(poses)),
        inliers=np.ones(len(poses)),
        keyframe=np.zeros(len(poses), int),
    )


def errors(cameras, poses):
    """Return the largest error of a rotation (degrees) and the path's error (share of its length)."""
    length = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=-1).sum()
    rotation = np.rad2deg(rotation_distance(cameras.world_from_camera, poses).max())
    return rotation, ate(cameras.world_from_camera, poses, with_scale=False) / length


@pytest.fixture(scope="module")
def room():
    poses = walk(FRAMES, TWIST)
    ball = np.array([[0.5 - 0.08 * t, 0.3, 2.4] for t in range(FRAMES)])
    footage, intrinsics = film(poses, ball=ball)
    return poses, footage, intrinsics


def test_cameras_are_refined_to_a_hundredth_of_a_degree_beside_what_moves(room):
    poses, footage, intrinsics = room
    found = refine_cameras(footage, footage.moving, coarse(poses, intrinsics))
    rotation, way = errors(found.cameras, poses)
    assert found.converged and not found.weak.any()
    assert rotation < 0.02 and way < 0.001
    assert found.cameras.intrinsics[0, 0] == pytest.approx(intrinsics[0, 0], rel=1e-3)
    figures = found.figures()
    assert figures["reprojection_after"] < 0.15 < 1 < figures["reprojection_before"]
    assert figures["tracks"] > 100 and figures["mean_length"] > 4 and 0.7 < figures["inliers"] <= 1
    assert found.rotation_std[0] == 0 and (found.rotation_std[1:] < np.deg2rad(0.05)).all()
    assert (found.reprojection < found.coarse / 2)[1:].all()


def test_noisy_depth_in_steps_does_no_great_harm(room):
    poses, footage, intrinsics = room
    rng = np.random.default_rng(0)
    depth = np.maximum(np.round(footage.depth * (1 + 0.01 * rng.normal(size=footage.depth.shape)), 1), 0.1)
    rough = replace(footage, depth=depth.astype(np.float32))
    found = refine_cameras(rough, footage.moving, coarse(poses, intrinsics))
    rotation, way = errors(found.cameras, poses)
    assert found.converged and rotation < 0.15 and way < 0.01


def test_depth_in_large_steps_does_no_great_harm(room):
    poses, footage, intrinsics = room
    depth = (np.floor(footage.depth / 0.1) + 0.5) * 0.1
    found = refine_cameras(
        replace(footage, depth=depth.astype(np.float32)), footage.moving, coarse(poses, intrinsics, focal=1.01)
    )
    rotation, way = errors(found.cameras, poses)
    assert found.converged and rotation < 0.1 and way < 0.005


def test_a_coarse_focal_length_that_is_sure_is_kept(room):
    poses, footage, intrinsics = room
    sure = replace(coarse(poses, intrinsics), focal_std=1e-3)
    found = refine_cameras(footage, footage.moving, sure)
    assert found.cameras.intrinsics[0, 0] == pytest.approx(1.04 * intrinsics[0, 0], rel=0.005)
    assert found.figures()["focal_std"] < 2e-3


def test_a_focal_length_that_came_with_the_video_stays(room):
    poses, footage, intrinsics = room
    found = refine_cameras(replace(footage, intrinsics=intrinsics), footage.moving, coarse(poses, intrinsics, focal=1))
    np.testing.assert_array_equal(found.cameras.intrinsics, intrinsics)
    assert found.cameras.focal_std is None and errors(found.cameras, poses)[0] < 0.02


def test_a_frame_that_shows_nothing_is_weak_and_keeps_its_coarse_motion(room):
    poses, footage, intrinsics = room
    dark = replace(footage, rgb=footage.rgb.copy())
    dark.rgb[3] = 0
    cameras = coarse(poses, intrinsics)
    found = refine_cameras(dark, footage.moving, cameras)
    assert found.weak.tolist() == [row == 3 for row in range(FRAMES)]
    assert np.isinf(found.rotation_std[3]) and np.isnan(found.reprojection[3])
    moved, given = (invert_pose(c.world_from_camera[2]) @ c.world_from_camera[3] for c in (found.cameras, cameras))
    np.testing.assert_allclose(moved, given, atol=1e-9)


def test_only_the_frames_of_the_cameras_are_looked_at(room):
    poses, footage, intrinsics = room
    rows = np.array([1, 2, 3, 5, 6])
    spoilt = replace(footage, rgb=footage.rgb.copy())
    spoilt.rgb[[0, 4, 7]] = 0
    own = invert_pose(poses[1]) @ poses[rows]
    found = refine_cameras(spoilt, footage.moving, coarse(own, intrinsics, rows))
    np.testing.assert_array_equal(found.cameras.rows, rows)
    assert errors(found.cameras, own)[0] < 0.05 and len(found.reprojection) == 5


@pytest.mark.parametrize("hidden", ["all moves", "no depth"])
def test_with_nothing_to_look_at_the_cameras_stay_and_say_so(room, hidden):
    poses, footage, intrinsics = room
    cameras, moving = coarse(poses, intrinsics), np.full(footage.depth.shape, hidden == "all moves")
    blind = replace(footage, valid=footage.valid & (hidden != "no depth"))
    found = refine_cameras(blind, moving, cameras)
    assert not found.converged and found.weak.all() and np.isinf(found.position_std).all()
    np.testing.assert_array_equal(found.cameras.world_from_camera, cameras.world_from_camera)
    assert found.figures()["weak"] == FRAMES


def test_another_tracker_is_asked_for_points_on_static_surfaces_only(room):
    poses, footage, intrinsics = room
    asked = []

    def tracker(rgb, usable):
        asked.append(usable)
        return Tracks(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 2)))

    assert refine_cameras(footage, footage.moving, coarse(poses, intrinsics), tracker=tracker).weak.all()
    assert footage.moving.any() and not (asked[0] & footage.moving).any()


def test_bad_input_is_refused(room):
    poses, footage, intrinsics = room
    with pytest.raises(ValueError, match="moving_THW"):
        refine_cameras(footage, footage.moving[:2], coarse(poses, intrinsics))
    with pytest.raises(ValueError, match="least_points"):
        RefineSettings(least_points=1)
