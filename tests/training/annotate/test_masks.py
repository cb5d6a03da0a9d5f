"""Masks of what moves: against drawn rooms in which a ball flies, rests, or is not there at all."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from tests.training.annotate.room import film, walk
from training.annotate.flow import find_flows
from training.annotate.footage import Footage
from training.annotate.masks import GeometricMasks, GeometricSettings, GivenMasks, clean, smooth_in_time

WALK = (0.03, 0.005, 0.04, 0.004, 0.012, -0.004)


def ball_path(num_frames, speed):
    """Return where a ball is that crosses the view in front of the walker."""
    t = np.arange(num_frames)[:, None]
    return np.array([-0.6, 0.2, 2.2]) + t * np.array(speed)


def unknown(footage):
    """Return the footage without its masks."""
    return Footage(
        rgb=footage.rgb, depth=footage.depth, valid=footage.valid, frame=footage.frame, fps=footage.fps, name="room"
    )


def overlap(found, true):
    return (found & true).sum() / (found | true).sum()


@pytest.fixture(scope="module")
def flying():
    return film(walk(10, WALK), ball=ball_path(10, (0.12, 0.0, 0.03)))


def test_a_flying_ball_is_found_and_nothing_else(flying):
    footage, intrinsics = flying
    found = GeometricMasks()(unknown(footage), intrinsics)
    assert found.shape == footage.depth.shape and found.dtype == np.bool_
    true = footage.moving
    assert (found & true).sum() > 0.9 * true.sum()
    assert overlap(found, true) > 0.7
    near = np.stack([cv2.dilate(mask.astype(np.uint8), np.ones((7, 7))) > 0 for mask in true])
    assert (found & ~near).mean() < 1e-3
    assert all((a & b).sum() > 0.7 * b.sum() for a, b in zip(found, true, strict=True)), "in every frame"


def test_given_flows_are_used_and_change_nothing(flying):
    footage, intrinsics = flying
    short = unknown(footage).frames(slice(0, 5))
    flows = find_flows(short.rgb)
    assert np.array_equal(GeometricMasks()(short, intrinsics, flows), GeometricMasks()(short, intrinsics))


def test_a_world_at_rest_has_no_masks():
    footage, intrinsics = film(walk(8, WALK))
    assert GeometricMasks()(unknown(footage), intrinsics).mean() < 1e-3


def test_a_camera_that_turns_on_the_spot_moves_nothing():
    footage, intrinsics = film(walk(6, (0, 0, 0, 0.01, 0.05, 0.0)))
    assert GeometricMasks()(unknown(footage), intrinsics).mean() < 1e-3


def test_a_camera_that_stands_still_sees_the_ball_too():
    footage, intrinsics = film(walk(8, (0.0,) * 6), ball=ball_path(8, (0.12, 0.0, 0.0)))
    found = GeometricMasks()(unknown(footage), intrinsics)
    assert (found & footage.moving).sum() > 0.9 * footage.moving.sum() and overlap(found, footage.moving) > 0.7


def test_a_ball_is_masked_while_it_flies_and_not_while_it_rests():
    path = ball_path(14, (0.12, 0.0, 0.03))
    path[4:] = path[4]  # it rests from here on
    footage, intrinsics = film(walk(14, WALK), ball=path)
    found = GeometricMasks()(unknown(footage), intrinsics)
    true = footage.moving
    assert (found & true)[:3].sum() > 0.8 * true[:3].sum()
    assert (found & true)[11:].sum() < 0.05 * true[11:].sum()  # half a second later no neighbour sees it fly


def test_depth_with_noise_and_holes_makes_no_masks():
    footage, intrinsics = film(walk(6, WALK))
    rng = np.random.default_rng(0)
    depth = (footage.depth * rng.normal(1, 0.01, footage.depth.shape)).astype(np.float32)
    valid = rng.random(depth.shape) > 0.1
    noisy = Footage(
        rgb=footage.rgb, depth=np.where(valid, depth, 0), valid=valid, frame=footage.frame, fps=12.0, name="noisy"
    )
    assert GeometricMasks()(noisy, intrinsics).mean() < 5e-3


def test_depth_in_coarse_steps_makes_no_masks_and_hides_no_ball(flying):
    picky = GeometricMasks(GeometricSettings(relative_depth=0.01))  # the steps are 2 to 3.5 % of the depth
    rest, intrinsics = film(walk(6, WALK))
    for footage in (rest, flying[0].frames(slice(0, 6))):
        depth = (np.floor(footage.depth / 0.07) + 0.5) * 0.07
        rough = replace(unknown(footage), depth=depth.astype(np.float32))
        found, true = picky(rough, intrinsics), footage.moving
        assert (found & ~true).mean() < (0.03 if true.any() else 1e-3)
        assert (found & true).sum() >= 0.8 * true.sum()


def test_without_depth_or_neighbours_nothing_is_claimed():
    footage, intrinsics = film(walk(3, WALK))
    blind = Footage(
        rgb=footage.rgb, depth=np.zeros_like(footage.depth), valid=np.zeros(footage.depth.shape, bool),
        frame=footage.frame, fps=12.0, name="blind",
    )  # fmt: skip
    assert not GeometricMasks()(blind, intrinsics).any()
    assert not GeometricMasks()(unknown(footage).frames(slice(0, 1)), intrinsics).any()


def test_given_masks_are_those_of_the_video_and_a_copy(flying):
    footage, intrinsics = flying
    masks = GivenMasks()(footage, intrinsics)
    assert np.array_equal(masks, footage.moving) and not np.shares_memory(masks, footage.moving)
    with pytest.raises(ValueError, match="moving must be given with the video room"):
        GivenMasks()(unknown(footage), intrinsics)


def test_votes_follow_the_flow():
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 255, (40, 80, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
    rgb = np.stack([wide[:, 8 - 4 * t : 136 - 4 * t] for t in range(3)])  # moves right by 4 pixels a frame
    votes = np.zeros((3, 80, 128), np.float32)
    votes[0, 30:40, 50:60] = votes[2, 30:40, 58:68] = 1
    smooth = smooth_in_time(votes, find_flows(rgb))
    assert smooth[1, 32:38, 56:62].mean() == pytest.approx(0.5, abs=0.05), "the middle hears of it from both sides"
    assert smooth[0, 32:38, 52:58].mean() == pytest.approx(2 / 3, abs=0.05)


def test_cleaning_fills_holes_drops_specks_and_needs_one_sure_pixel():
    settings = GeometricSettings(least_area=20 / (60 * 80), dilate=1)
    votes = np.zeros((60, 80), np.float32)
    votes[10:30, 10:30] = 0.5
    votes[18:22, 18:22] = 0.0  # a hole of 16 pixels
    votes[12, 12] = 1.0
    votes[40:50, 40:50] = 0.5  # never sure
    votes[55, 70] = 1.0  # a speck
    mask = clean(votes, settings)
    assert mask[9:31, 10:30].all() and not mask[:, 40:].any() and mask.sum() <= 22 * 22


@pytest.mark.parametrize("change", [{"span": 0.0}, {"weak": 1.5}, {"relative_depth": -1.0}, {"gone_spans": (0.1, 0.0)}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        GeometricSettings(**change)
