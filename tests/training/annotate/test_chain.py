"""The whole chain on a drawn room, whose cameras are known: what comes out is right, or there is a reason."""

from dataclasses import replace

import numpy as np
import pytest

from aether_env.camera import relative_to, rotation_distance
from aether_env.path_metrics import ate
from tests.training.annotate.room import film, walk
from training.annotate import chain
from training.annotate.chain import annotate_piece
from training.annotate.settings import AnnotateSettings
from training.annotate.slicing import SlicingSettings
from training.clips import check_clip

FRAMES = 12
TWIST = (0.03, 0.005, 0.04, 0.002, 0.025, 0.0)


def turned(found, truth):
    return np.rad2deg(rotation_distance(found[:, :3, :3], truth[:, :3, :3])).max()


def reasons(result):
    """Every reason of a piece: of frames, and of refused slices."""
    return {*result.dropped.values(), *(one.reason for one in result.slices if one.clip is None)}


@pytest.fixture(scope="module")
def room():
    poses = walk(FRAMES, TWIST)
    return film(poses), poses


@pytest.fixture(scope="module")
def found(room):
    (footage, _), _ = room
    return annotate_piece(replace(footage, moving=None))


def test_cameras_and_focal_length_of_a_room_are_found_from_its_pictures_and_depth(room, found):
    (footage, intrinsics), poses = room
    assert not found.dropped and len(found.slices) == 1
    clip = check_clip(found.slices[0].clip)
    assert turned(clip.world_from_camera, poses) < 0.05
    way = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum()
    assert ate(clip.world_from_camera, poses) < 0.002 * way
    assert clip.intrinsics[0, 0, 0] == pytest.approx(intrinsics[0, 0], rel=0.005)
    np.testing.assert_array_equal(clip.rgb, footage.rgb)
    np.testing.assert_array_equal(clip.depth, footage.depth)
    assert clip.moving.mean() < 0.005


def test_refinement_comes_closer_than_the_first_cameras(room, found):
    (_, intrinsics), poses = room
    one = found.slices[0]
    assert ate(one.world_from_camera, poses) < 0.5 * ate(one.figures["coarse_path"], poses)
    assert abs(one.figures["focal"] - intrinsics[0, 0]) <= abs(one.figures["coarse_focal"] - intrinsics[0, 0])


def test_what_moves_is_masked_and_does_not_move_the_cameras():
    poses = walk(FRAMES, TWIST)
    ball = np.stack([np.linspace(-0.8, 0.8, FRAMES), np.full(FRAMES, 0.3), np.full(FRAMES, 3.0)], axis=1)
    footage, _ = film(poses, ball=ball)
    found = annotate_piece(replace(footage, moving=None))
    clip = found.slices[0].clip
    assert clip is not None and turned(clip.world_from_camera, poses) < 0.1
    assert clip.moving[footage.moving].mean() > 0.8
    assert clip.moving[~footage.moving].mean() < 0.03


def test_given_masks_and_intrinsics_are_taken_as_they_are(room):
    (footage, intrinsics), _ = room
    marked = np.zeros_like(footage.valid)
    marked[:, :20] = True
    clip = annotate_piece(replace(footage, moving=marked, intrinsics=intrinsics)).slices[0].clip
    np.testing.assert_array_equal(clip.moving, marked)
    np.testing.assert_array_equal(clip.intrinsics, np.repeat(intrinsics[None], FRAMES, axis=0))


def test_the_unit_of_the_depth_becomes_that_of_the_path(room, found):
    (footage, _), _ = room
    larger = annotate_piece(replace(footage, moving=None, depth=footage.depth * 4)).slices[0].clip
    np.testing.assert_allclose(
        larger.world_from_camera[:, :3, 3], 4 * found.slices[0].clip.world_from_camera[:, :3, 3], atol=0.01
    )


def flat_depth(footage):
    return replace(footage, depth=np.full_like(footage.depth, 3.0))


def no_depth(footage):
    return replace(footage, valid=np.zeros_like(footage.valid))


def all_moving(footage):
    return replace(footage, moving=np.ones_like(footage.valid))


def black(footage):
    return replace(footage, rgb=np.zeros_like(footage.rgb))


def one_frame(footage):
    return footage.frames(slice(0, 1))


def shuffled_depth(footage):
    return replace(footage, depth=footage.depth[::-1, ::-1, ::-1].copy())


@pytest.mark.parametrize(
    ("spoil", "wanted"),
    [
        (flat_depth, {"constant depth"}),
        (no_depth, {"no depth"}),
        (all_moving, {"mostly moving"}),
        (black, {"dark"}),
        (one_frame, {"too short"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_can_not_be_annotated_says_why(room, spoil, wanted):
    (footage, _), _ = room
    found = annotate_piece(spoil(replace(footage, moving=None)))
    assert not any(one.clip is not None for one in found.slices)
    assert reasons(found) >= wanted
    told = set(found.dropped) | {int(n) for one in found.slices for n in one.frames}
    assert told == set(spoil(footage).frame.tolist())


def test_depth_of_another_place_gives_no_clip(room):
    (footage, _), _ = room
    found = annotate_piece(shuffled_depth(replace(footage, moving=None)))
    assert not any(one.clip is not None for one in found.slices) and reasons(found)


@pytest.mark.parametrize("twist", [(0.0,) * 6, (0.03, 0.0, 0.04, 0.0, 0.0, 0.0)], ids=["at rest", "straight on"])
def test_without_a_turn_the_focal_length_must_be_given(twist):
    poses = walk(FRAMES, twist)
    footage, intrinsics = film(poses)
    found = annotate_piece(replace(footage, moving=None))
    assert reasons(found) == {"focal unknown"} and not any(one.clip for one in found.slices)
    clip = annotate_piece(replace(footage, moving=None, intrinsics=intrinsics)).slices[0].clip
    assert clip is not None and turned(clip.world_from_camera, poses) < 0.05


def test_a_pure_turn_is_told():
    poses = walk(FRAMES, (0.0, 0.0, 0.0, 0.005, 0.03, 0.0))
    footage, intrinsics = film(poses)
    clip = annotate_piece(replace(footage, moving=None)).slices[0].clip
    assert turned(clip.world_from_camera, poses) < 0.1
    assert np.linalg.norm(clip.world_from_camera[:, :3, 3], axis=1).max() < 0.01
    assert clip.intrinsics[0, 0, 0] == pytest.approx(intrinsics[0, 0], rel=0.01)


def test_clips_end_where_frames_are_missing():
    poses = walk(13, TWIST)
    footage, _ = film(poses)
    footage = replace(footage, moving=None).frames(np.delete(np.arange(13), 6))
    found = annotate_piece(footage, AnnotateSettings(slicing=SlicingSettings(min_frames=6)))
    clips = [one for one in found.slices if one.clip is not None]
    assert [(one.frames[0], one.frames[-1]) for one in clips] == [(0, 5), (7, 12)]
    for one in clips:
        truth = relative_to(poses[one.frames], poses[one.frames[0]])
        assert turned(relative_to(one.clip.world_from_camera, one.clip.world_from_camera[0]), truth) < 0.05


def test_a_slice_whose_focal_length_is_not_like_the_others_is_refused(found):
    one = found.slices[0]
    like, other = ({"focal": 100.0}, {"focal": 112.0})
    slices = [replace(one, figures=figures) for figures in (like, like, other)]
    judged = chain._without_anomalies(slices, AnnotateSettings())
    assert [part.reason for part in judged] == [None, None, "focal anomaly"]
    assert chain._without_anomalies([], AnnotateSettings()) == []
