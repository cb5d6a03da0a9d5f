from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from aether_env.camera import (
    CameraPath,
    action_from_motion,
    camera_path_from,
    check_poses,
    horizontal_fov,
    interpolate_pose,
    intrinsics_from_fov,
    invert_pose,
    matrix_from_quaternion,
    motion_from_action,
    poses_in_axes,
    quaternion_from_matrix,
    relative_to,
    rotation_angle,
    rotation_distance,
    scale_intrinsics,
    se3_exp,
    se3_log,
    skew,
)

INTRINSICS = intrinsics_from_fov(np.deg2rad(70), 64, 96)
numbers = st.floats(-1.5, 1.5)
twists = st.lists(numbers, min_size=6, max_size=6).map(np.array)


def random_path(seed=0, num_frames=6):
    return CameraPath(se3_exp(np.random.default_rng(seed).normal(size=(num_frames, 6))), INTRINSICS)


@settings(deadline=None)
@given(twists)
def test_exponential_is_the_matrix_exponential_and_the_logarithm_undoes_it(twist):
    generator = np.zeros((4, 4))
    generator[:3, :3], generator[:3, 3] = skew(twist[3:]), twist[:3]
    np.testing.assert_allclose(se3_exp(twist), expm(generator), atol=1e-12)
    np.testing.assert_allclose(se3_log(se3_exp(twist)), twist, atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, 1e-3, 1.0, np.pi - 1e-6, np.pi])
def test_logarithm_is_accurate_from_no_turn_to_half_a_turn(angle):
    twist = np.array([1.0, -2.0, 3.0, *(angle * np.array([0.6, 0.0, 0.8]))])
    np.testing.assert_allclose(se3_exp(se3_log(se3_exp(twist))), se3_exp(twist), atol=1e-9)


def test_functions_on_a_batch_are_the_functions_on_its_items():
    twist = np.random.default_rng(0).normal(size=(2, 3, 6))
    poses = se3_exp(twist)
    for i in np.ndindex(2, 3):
        np.testing.assert_allclose(poses[i], se3_exp(twist[i]), atol=1e-14)
        np.testing.assert_allclose(se3_log(poses)[i], se3_log(poses[i]), atol=1e-14)
        np.testing.assert_allclose(invert_pose(poses)[i] @ poses[i], np.eye(4), atol=1e-12)
        np.testing.assert_allclose(rotation_angle(poses[..., :3, :3])[i], rotation_angle(poses[i][:3, :3]))


@settings(deadline=None)
@given(twists, twists)
def test_interpolation_keeps_the_ends_and_moves_at_constant_speed_along_a_screw(a, b):
    start, end = se3_exp(a), se3_exp(b)
    poses = interpolate_pose(start, end, [0.0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(poses[[0, -1]], [start, end], atol=1e-9)
    steps = invert_pose(poses[:-1]) @ poses[1:]
    np.testing.assert_allclose(steps, np.broadcast_to(steps[0], steps.shape), atol=1e-8)


def test_an_action_moves_the_camera_along_and_about_its_own_axes():
    turned = np.eye(4)
    turned[:3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]  # looks along the world's +x
    forward = turned @ motion_from_action([0, 0, 0.5], [0, 0, 0])
    np.testing.assert_allclose(forward[:3, 3], [0.5, 0, 0])
    right = np.eye(4) @ motion_from_action([0, 0, 0], [0, np.pi / 2, 0])
    np.testing.assert_allclose(right[:3, 2], [1, 0, 0], atol=1e-12)
    translation, rotation_vector = action_from_motion(motion_from_action([1, 2, 3], [0.1, 0.2, 0.3]))
    np.testing.assert_allclose([*translation, *rotation_vector], [1, 2, 3, 0.1, 0.2, 0.3])


def test_relative_to_the_first_camera_starts_at_the_identity_and_keeps_all_distances():
    path = random_path()
    relative = path.relative_to_first()
    np.testing.assert_allclose(relative.world_from_camera[0], np.eye(4), atol=1e-12)
    assert relative.length == pytest.approx(path.length)
    back = path.world_from_camera[0] @ relative.world_from_camera
    np.testing.assert_allclose(back, path.world_from_camera, atol=1e-12)
    np.testing.assert_allclose(relative_to(path.world_from_camera, np.eye(4)), path.world_from_camera)


def test_resampling_keeps_the_poses_it_hits_and_scaling_scales_the_length():
    path = random_path(num_frames=4)
    np.testing.assert_allclose(path.resampled(7).world_from_camera[::2], path.world_from_camera, atol=1e-9)
    assert len(path.resampled(1)) == 1
    assert len(random_path(num_frames=1).resampled(5)) == 5
    assert path.scaled(0.01).length == pytest.approx(path.length * 0.01)


def test_a_path_checks_itself_copies_its_arrays_and_shares_one_camera():
    poses = np.tile(np.eye(4), (3, 1, 1))
    path = CameraPath(poses, INTRINSICS)
    poses[0, 0, 3] = 5.0
    assert path.world_from_camera[0, 0, 3] == 0.0
    assert path.intrinsics.shape == (3, 3, 3) and len(path) == 3
    with pytest.raises(ValueError, match="intrinsics must be"):
        CameraPath(poses, np.tile(INTRINSICS, (2, 1, 1)))


@pytest.mark.parametrize("axes", ["opencv", "opengl", "blender", "ros", "unreal"])
@pytest.mark.parametrize("kind", ["camera_to_world", "world_to_camera"])
def test_adapters_undo_each_other(axes, kind):
    path = random_path(1)
    poses = poses_in_axes(path, axes=axes, kind=kind)
    assert np.linalg.det(poses[:, :3, :3]) == pytest.approx(1)
    back = camera_path_from(poses, INTRINSICS, axes=axes, kind=kind)
    np.testing.assert_allclose(back.world_from_camera, path.world_from_camera, atol=1e-12)


@pytest.mark.parametrize(
    "axes, forward, right, up",
    [
        ("opencv", [0, 0, 1], [1, 0, 0], [0, -1, 0]),
        ("opengl", [0, 0, -1], [1, 0, 0], [0, 1, 0]),
        ("ros", [1, 0, 0], [0, -1, 0], [0, 0, 1]),
        ("unreal", [1, 0, 0], [0, 1, 0], [0, 0, 1]),
    ],
)
def test_a_step_in_other_axes_is_the_same_step_in_ours(axes, forward, right, up):
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[1:, :3, 3] = forward, right, up
    centres = camera_path_from(poses, INTRINSICS, axes=axes).world_from_camera[1:, :3, 3]
    np.testing.assert_allclose(centres, [[0, 0, 1], [1, 0, 0], [0, -1, 0]], atol=1e-12)


def test_turning_right_in_unreal_is_turning_right_here():
    angle = np.deg2rad(30)  # a yaw in left-handed axes: x forward turns towards y right
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    forward = camera_path_from(pose[None], INTRINSICS, axes="unreal").world_from_camera[0, :3, 2]
    np.testing.assert_allclose(forward, [np.sin(angle), 0, np.cos(angle)], atol=1e-12)


def test_field_of_view_and_intrinsics_undo_each_other():
    assert horizontal_fov(INTRINSICS, 96) == pytest.approx(np.deg2rad(70))
    assert intrinsics_from_fov(np.pi / 2, 64, 96)[0, 0] == pytest.approx(48)
    doubled = scale_intrinsics(INTRINSICS, (64, 96), (128, 192))
    np.testing.assert_allclose(doubled, intrinsics_from_fov(np.deg2rad(70), 128, 192))


def test_quaternions_are_scalar_first_and_undo_matrices():
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        matrix_from_quaternion([half, 0, 0, half]), [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-12
    )
    rotation = random_path().world_from_camera[:, :3, :3]
    np.testing.assert_allclose(matrix_from_quaternion(quaternion_from_matrix(rotation)), rotation, atol=1e-12)


def test_rotation_distance_is_the_angle_between():
    a = motion_from_action([0, 0, 0], [0.3, 0, 0])
    b = motion_from_action([1, 2, 3], [-0.5, 0, 0])
    assert rotation_distance(a, b) == pytest.approx(0.8)


def mirrored():
    pose = np.eye(4)
    pose[0, 0] = -1
    return pose


@pytest.mark.parametrize(
    "poses, message",
    [
        (np.eye(3), "must have shape"),
        (np.full((4, 4), np.nan), "must be finite"),
        (np.eye(4) * 2, "bottom row"),
        (np.diag([2.0, 2.0, 2.0, 1.0]), "must be rigid"),
        (mirrored(), "mirrored"),
        (np.array([[1, 0.01, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "must be rigid"),
    ],
)
def test_poses_that_are_not_rigid_are_refused_by_name(poses, message):
    with pytest.raises(ValueError, match=f"goal.*{message}"):
        check_poses("goal", poses)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p: p.resampled(0), "num"),
        (lambda p: p.scaled(0.0), "factor"),
        (lambda p: camera_path_from(p.world_from_camera, INTRINSICS, axes="maya"), "axes must be one of"),
        (lambda p: camera_path_from(p.world_from_camera, INTRINSICS, kind="w2c"), "kind must be"),
        (lambda p: intrinsics_from_fov(70.0, 64, 96), "deg2rad"),
        (lambda p: motion_from_action([np.nan, 0, 0], [0, 0, 0]), "translation must be finite"),
        (lambda p: matrix_from_quaternion([0, 0, 0, 0]), "not zero"),
        (lambda p: CameraPath(np.eye(4), INTRINSICS), r"\(T, 4, 4\)"),
        (lambda p: CameraPath(p.world_from_camera, np.zeros((3, 3))), "positive focal lengths"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_path())
