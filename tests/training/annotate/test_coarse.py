from dataclasses import replace

import numpy as np
import pytest

from aether_env.camera import invert_pose, rotation_distance
from aether_env.path_metrics import ate, focal_error
from tests.training.annotate.room import film, walk
from training.annotate.coarse import CoarseSettings, coarse_cameras
from training.annotate.footage import Footage

ARC = (0.05, 0.01, 0.07, 0.01, 0.04, 0.005)


@pytest.fixture(scope="module")
def arc() -> tuple[Footage, np.ndarray]:
    return film(walk(12, ARC))


@pytest.fixture(scope="module")
def turn() -> tuple[Footage, np.ndarray]:
    """About ten degrees a frame."""
    return film(walk(14, (0.0, 0.0, 0.02, 0.0, 0.18, 0.0)))


def found(footage: Footage, intrinsics, *, rows=None, moving=None, settings=None):
    moving = footage.moving if moving is None else moving
    rows = range(len(footage)) if rows is None else rows
    return coarse_cameras(footage, moving, rows, intrinsics, settings=settings)


def replayed(footage: Footage, rows) -> Footage:
    """Return footage that shows frames again, as frames of their own."""
    arrays = {name: getattr(footage, name)[rows] for name in ("rgb", "depth", "valid", "moving")}
    return replace(footage, **arrays, frame=np.arange(len(rows)))


def assert_near(cameras, poses: np.ndarray, *, metres: float = 0.01, degrees: float = 0.2) -> None:
    """Compare with true poses of all frames; the world is the first camera of the part."""
    true = invert_pose(poses[cameras.rows[0]]) @ poses[cameras.rows]
    np.testing.assert_allclose(cameras.world_from_camera[0], np.eye(4), atol=1e-12)
    assert np.rad2deg(rotation_distance(cameras.world_from_camera, true)).max() < degrees
    assert np.linalg.norm((cameras.world_from_camera - true)[:, :3, 3], axis=-1).max() < metres


def test_cameras_are_found_with_intrinsics_that_are_given(arc):
    footage, intrinsics = arc
    (cameras,), lost = found(footage, intrinsics)
    assert cameras.rows.tolist() == list(range(12)) and not lost
    assert_near(cameras, walk(12, ARC))
    assert cameras.focal_std is None
    assert cameras.residual[1:].min() > 0 and cameras.residual.max() < 0.5 and cameras.inliers.min() > 0.5
    own = replace(footage, intrinsics=intrinsics)
    (again,), _ = found(own, None)
    np.testing.assert_array_equal(again.world_from_camera, cameras.world_from_camera)


def test_cameras_and_focal_length_are_found_together(arc):
    footage, intrinsics = arc
    (cameras,), lost = found(footage, None)
    assert focal_error(cameras.intrinsics, intrinsics) < 0.02 and not lost
    assert 0 < cameras.focal_std / intrinsics[0, 0] < 0.02
    poses = walk(12, ARC)
    length = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=-1).sum()
    assert ate(cameras.world_from_camera, poses, with_scale=False) < 0.01 * length


@pytest.mark.parametrize("kind", ["rounded", "noisy"])
def test_depth_may_be_rounded_to_eight_bits_or_noisy(arc, kind):
    footage, intrinsics = arc
    generator = np.random.default_rng(0)
    noise = 1 + 0.02 * generator.standard_normal(footage.depth.shape)
    depth = np.round(footage.depth * 25) / 25 if kind == "rounded" else footage.depth * noise
    (cameras,), lost = found(replace(footage, depth=depth.astype(np.float32)), None)
    assert not lost and focal_error(cameras.intrinsics, intrinsics) < 0.02
    assert_near(cameras, walk(12, ARC), metres=0.03, degrees=0.6)


def test_a_ball_that_goes_with_the_camera_is_not_followed_where_it_is_masked():
    poses = walk(8, (0.05, 0.0, 0.0, 0.0, 0.0, 0.0))
    ball = poses[:, :3, 3] + [0.1, 0.0, 1.1]
    footage, intrinsics = film(poses, ball=ball)
    assert footage.moving.mean() > 0.2
    (cameras,), lost = found(footage, intrinsics)
    assert_near(cameras, poses)
    # The mask has its say: where only the ball is left to look at, the camera seems to rest.
    (fooled,), _ = found(footage, intrinsics, moving=~footage.moving)
    assert np.linalg.norm(fooled.world_from_camera[-1, :3, 3]) < 0.1 < np.linalg.norm(poses[-1, :3, 3])


def test_a_keyframe_serves_until_little_is_left_of_it_and_again_when_it_is_back(turn):
    footage, intrinsics = turn
    (cameras,), lost = found(replayed(footage, np.r_[0:14, 12:-1:-1]), intrinsics)
    assert not lost and len(cameras) == 27
    poses = walk(14, (0.0, 0.0, 0.02, 0.0, 0.18, 0.0))[np.r_[0:14, 12:-1:-1]]
    assert_near(cameras, poses, metres=0.03, degrees=0.6)
    assert 3 <= len(set(cameras.keyframe[:14].tolist())) <= 8
    assert cameras.keyframe[-1] < 14  # the way back uses keyframes of the way there
    assert cameras.keyframe[1] == 0 and cameras.keyframe[13] > 3


def test_a_short_gap_is_bridged_and_a_long_one_begins_a_new_part(turn):
    footage, intrinsics = turn
    poses = walk(14, (0.0, 0.0, 0.02, 0.0, 0.18, 0.0))
    (cameras,), lost = found(footage.frames(np.r_[0:5, 6:12]), intrinsics)
    assert len(cameras) == 11 and not lost
    rows = np.r_[0:4, 10:14]
    (before, after), lost = found(footage.frames(rows), intrinsics)
    assert before.rows.tolist() == [0, 1, 2, 3] and after.rows.tolist() == [4, 5, 6, 7] and not lost
    assert_near(before, poses[rows])
    assert_near(after, poses[rows])


def test_frames_that_no_part_reaches_have_a_reason(turn):
    footage, intrinsics = turn
    rows = np.r_[0:4, 10:12]
    (part,), lost = found(footage.frames(rows), intrinsics)  # two frames after the gap are too few for a part
    assert part.rows.tolist() == [0, 1, 2, 3]
    assert lost == {4: "gap", 5: "lost"}


def test_dark_frames_are_lost_and_the_walk_goes_on(arc):
    footage, intrinsics = arc
    rgb = footage.rgb.copy()
    rgb[5:7] = 0
    (cameras,), lost = found(replace(footage, rgb=rgb), intrinsics)
    assert cameras.rows.tolist() == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]
    assert lost == {5: "lost", 6: "lost"}
    assert_near(cameras, walk(12, ARC))


def test_what_lies_where_depth_is_not_valid_is_never_read(arc):
    footage, intrinsics = arc
    valid = footage.valid.copy()
    valid[:, :30] = False
    expected, _ = found(replace(footage, valid=valid), intrinsics)
    (cameras,), lost = found(replace(footage, valid=valid, depth=np.where(valid, footage.depth, np.nan)), intrinsics)
    assert not lost
    np.testing.assert_array_equal(cameras.world_from_camera, expected[0].world_from_camera)


def test_only_the_wanted_rows_are_looked_at(arc):
    footage, intrinsics = arc
    (cameras,), lost = found(footage, intrinsics, rows=range(4, 9))
    assert cameras.rows.tolist() == [4, 5, 6, 7, 8] and not lost
    assert_near(cameras, walk(12, ARC))


def test_a_shift_does_not_tell_the_focal_length_and_that_is_said():
    footage, intrinsics = film(walk(5, (0.06, 0.0, 0.05, 0.0, 0.0, 0.0)))
    assert found(footage, None) == ([], dict.fromkeys(range(5), "focal unknown"))
    (cameras,), _ = found(footage, intrinsics)
    assert_near(cameras, walk(5, (0.06, 0.0, 0.05, 0.0, 0.0, 0.0)))


def test_rest_with_unknown_focal_length_is_told_and_with_a_known_one_is_rest(arc):
    footage, intrinsics = arc
    still = replayed(footage, np.zeros(4, int))
    assert found(still, None) == ([], dict.fromkeys(range(4), "focal unknown"))
    (cameras,), _ = found(still, intrinsics)
    np.testing.assert_allclose(cameras.world_from_camera, np.broadcast_to(np.eye(4), (4, 4, 4)), atol=1e-6)


def test_what_cannot_be_told_is_told_with_its_reason(arc):
    footage, intrinsics = arc
    every = dict.fromkeys(range(12), "")
    flat = replace(footage, depth=np.full_like(footage.depth, 2.0))
    blind = replace(footage, valid=footage.valid & False, depth=footage.depth * 0)
    for case, moving, reason in (
        (flat, footage.moving, "constant depth"),
        (blind, footage.moving, "no depth"),
        (footage, footage.valid, "mostly moving"),
    ):
        for given in (None, intrinsics):
            assert found(case, given, moving=moving) == ([], {row: reason for row in every})


def test_one_frame_is_no_part(arc):
    footage, intrinsics = arc
    assert found(footage, intrinsics, rows=[3]) == ([], {3: "lost"})


def test_the_same_is_found_every_time(arc):
    footage, intrinsics = arc
    first, again = (found(footage, intrinsics)[0][0] for _ in range(2))
    np.testing.assert_array_equal(first.world_from_camera, again.world_from_camera)


@pytest.mark.parametrize("rows", [[], [2, 1], [0, 0], [-1, 2], [3, 12]])
def test_rows_that_are_not_of_the_footage_are_refused(arc, rows):
    with pytest.raises(ValueError, match="rows must be ascending indices of 12 frames"):
        found(*arc, rows=rows)


def test_a_mask_of_another_size_and_senseless_settings_are_refused(arc):
    footage, intrinsics = arc
    with pytest.raises(ValueError, match="moving_THW must be"):
        found(footage, intrinsics, moving=footage.moving[:3])
    with pytest.raises(ValueError, match="keep_share"):
        CoarseSettings(keep_share=1.5)
