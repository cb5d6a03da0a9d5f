"""Slices: good rooms are kept whole, and what is wrong with a frame is told."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from aether_env.camera import se3_exp
from tests.training.annotate.room import film, walk
from training.annotate.flow import find_flows
from training.annotate.slicing import SlicingSettings, cut

WALK = (0.03, 0.005, 0.04, 0.004, 0.012, -0.004)
SETTINGS = SlicingSettings(min_frames=4)
LENGTH = 14


@pytest.fixture(scope="module")
def room():
    return film(walk(LENGTH, WALK))[0]


def nothing(footage):
    return np.zeros(footage.depth.shape, bool)


def with_frames(footage, rows, **changes):
    """Return the footage with frames changed: each change takes an array of a frame and returns another."""
    arrays = {}
    for name, change in changes.items():
        array = getattr(footage, name).copy()
        array[rows] = [change(one) for one in array[rows]]
        arrays[name] = array
    return replace(footage, **arrays)


def test_a_good_video_is_one_slice_and_is_measured(room):
    found = cut(room, nothing(room), SETTINGS)
    assert found.slices == [range(LENGTH)] and found.reasons == [None] * LENGTH and found.parted == {}
    measures = found.measures
    assert len(measures.features) == LENGTH and len(measures.flow) == LENGTH - 1
    assert (measures.valid == 1).all() and (measures.moving == 0).all() and (measures.disagree < 0.2).all()
    grey = [cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).mean() for rgb in room.rgb]
    np.testing.assert_allclose(measures.brightness, grey)
    np.testing.assert_allclose(measures.depth_spread, room.depth.std((1, 2)) / room.depth.mean((1, 2)), rtol=1e-5)


def flat(rgb):
    return np.full_like(rgb, 120)


def bars(rgb):
    """Return edges without a single point."""
    x = np.arange(rgb.shape[1]) // 20 % 2 * 100 + 50
    return np.broadcast_to(x[None, :, None], rgb.shape).astype(np.uint8)


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("dark", {"rgb": np.zeros_like}),
        ("little texture", {"rgb": flat}),
        ("few features", {"rgb": bars}),
        ("blurred", {"rgb": lambda rgb: cv2.GaussianBlur(rgb, (0, 0), 2)}),
        ("constant depth", {"depth": np.ones_like}),
        ("no depth", {"valid": np.zeros_like}),
    ],
)
def test_frames_that_are_no_good_are_dropped_with_their_reason(room, reason, changes):
    bad = with_frames(room, slice(6, 9), **changes)
    found = cut(bad, nothing(bad), SETTINGS)
    assert found.reasons == [None] * 6 + [reason] * 3 + [None] * 5
    assert found.slices == [range(6), range(9, LENGTH)]


def test_what_mostly_moves_is_dropped(room):
    moving = nothing(room)
    moving[10:] = True
    moving[3, :30] = True  # a quarter of the picture does no harm
    found = cut(room, moving, SETTINGS)
    assert found.reasons == [None] * 10 + ["mostly moving"] * 4


def test_points_are_counted_in_static_regions_only(room):
    moving = nothing(room)
    moving[:, :, 80:] = True
    whole, half = (cut(room, mask, SETTINGS).measures for mask in (nothing(room), moving))
    assert (half.features < 0.8 * whole.features).all()
    np.testing.assert_allclose(half.moving, 0.5)


def joined(a, b):
    arrays = {name: np.concatenate([getattr(one, name) for one in (a, b)]) for name in ("rgb", "depth", "valid")}
    return replace(a, moving=None, frame=np.arange(len(a) + len(b)), **arrays)


def test_a_cut_parts_slices_and_drops_nothing(room):
    turned = [se3_exp(np.array([0, 0, 0, 0, 2.6, 0])) @ pose for pose in walk(6, WALK)]
    other = film(np.stack(turned))[0]
    both = joined(room.frames(slice(0, 6)), other)
    found = cut(both, nothing(both), SETTINGS)
    assert found.slices == [range(6), range(6, 12)] and found.reasons == [None] * 12
    assert found.parted == {6: "cut"}


def test_a_jump_parts_slices(room):
    poses = walk(12, WALK)
    poses[6:] = se3_exp(np.array([0, 0, 0, 0.0, 0.5, 0])) @ poses[6:]  # half of the view further
    jumped = film(poses)[0]
    found = cut(jumped, nothing(jumped), SETTINGS)
    assert found.slices == [range(6), range(6, 12)] and list(found.parted) == [6]


def test_a_frame_that_fits_to_neither_side_is_the_culprit(room):
    strange = room.rgb.copy()
    strange[5] = np.random.default_rng(0).permuted(strange[5].reshape(-1, 3), axis=0).reshape(strange[5].shape)
    strange[5] = cv2.GaussianBlur(strange[5], (0, 0), 1)
    bad = replace(room, rgb=strange)
    found = cut(bad, nothing(bad), replace(SETTINGS, sharpness=0.0))
    assert found.reasons[5] in ("cut", "flow disagrees") and found.slices == [range(5), range(6, LENGTH)]


def test_missing_frames_part_slices(room):
    frame = np.arange(LENGTH)
    frame[7:] += 3
    found = cut(replace(room, frame=frame), nothing(room), SETTINGS)
    assert found.parted == {7: "unreadable"} and found.slices == [range(7), range(7, LENGTH)]


def test_slices_that_are_too_short_say_so(room):
    bad = with_frames(room, slice(3, 4), rgb=np.zeros_like)
    found = cut(bad, nothing(bad), SETTINGS)
    assert found.reasons == ["too short"] * 3 + ["dark"] + [None] * 10 and found.slices == [range(4, LENGTH)]


def test_long_slices_are_parted_evenly(room):
    found = cut(room, nothing(room), SlicingSettings(min_frames=3, max_frames=6))
    assert [len(part) for part in found.slices] == [5, 4, 5]
    assert [part.start for part in found.slices[1:]] == [row for row, why in found.parted.items() if why == "too long"]
    assert sorted(row for part in found.slices for row in part) == list(range(LENGTH))


def test_given_flows_are_used(room):
    calm = find_flows(room.rgb)
    wild = replace(calm, forward=calm.forward + 20)
    assert cut(room, nothing(room), SETTINGS, calm).slices == [range(LENGTH)]
    assert cut(room, nothing(room), SETTINGS, wild).slices == []


def test_a_video_of_one_frame_is_too_short_and_an_all_moving_one_has_no_slice(room):
    one = room.frames(slice(0, 1))
    assert cut(one, nothing(one), SETTINGS).reasons == ["too short"]
    assert set(cut(room, ~nothing(room), SETTINGS).reasons) == {"mostly moving"}


def test_masks_of_another_shape_are_refused(room):
    with pytest.raises(ValueError, match="moving_THW must be"):
        cut(room, nothing(room)[1:], SETTINGS)


@pytest.mark.parametrize("change", [{"max_frames": 20}, {"min_frames": 0}, {"moving": 1.5}, {"flow": 0.0}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        SlicingSettings(**change)
