import random

import cv2
import numpy as np
import pytest

from aether_env.camera import intrinsics_from_fov, invert_pose, rotation_angle, se3_exp, se3_log
from tests.training.annotate.room import film, walk
from training.annotate.ego import FocalSettings, estimate_focal, focal_of_pairs, relative_motion
from training.annotate.flow import DISFlow
from training.annotate.matching import MatchSettings, Seen
from training.annotate.two_view import EgoSettings, Pair

SIZE = (240, 320)
INTRINSICS = intrinsics_from_fov(np.deg2rad(70.0), *SIZE)
TWIST = (0.2, 0.1, -0.3, 0.05, 0.2, 0.03)


def views(twist, *, seed=0, noise=0.2, wrong=0.0, plane=False, count=500) -> Pair:
    """Points seen before and after a motion; a share of them moves otherwise, all together."""
    generator = np.random.default_rng(seed)
    pixel_a = generator.uniform([0, 0], SIZE[::-1], (count, 2))
    ray = np.c_[pixel_a, np.ones(count)] @ np.linalg.inv(INTRINSICS).T
    depth_a = 4 / (1 + ray @ [0.2, 0.1, 0]) if plane else generator.uniform(1, 6, count)
    motion = se3_exp(np.array(twist))
    point = (ray * depth_a[:, None]) @ motion[:3, :3].T + motion[:3, 3]
    point[: int(wrong * count)] += [0.5, 0.2, 0.1]
    pixel_b = (point @ INTRINSICS.T)[:, :2] / point[:, 2:] + generator.normal(0, noise, (count, 2))
    seen = point[:, 2] > 0.1
    return Pair(pixel_a=pixel_a[seen], depth_a=depth_a[seen], pixel_b=pixel_b[seen], depth_b=point[seen, 2])


def motion_of(pair: Pair, *, with_depth=True, seed=0):
    depth_b = pair.depth_b if with_depth else None
    return relative_motion(pair.pixel_a, pair.depth_a, pair.pixel_b, INTRINSICS, depth_b_N=depth_b, seed=seed)


def error_of(motion, twist) -> tuple[float, float]:
    """Metres and degrees."""
    error = invert_pose(se3_exp(np.array(twist))) @ motion.b_from_a
    return float(np.linalg.norm(error[:3, 3])), float(np.rad2deg(rotation_angle(error[:3, :3])))


@pytest.mark.parametrize("with_depth", [True, False])
@pytest.mark.parametrize("plane", [True, False])
@pytest.mark.parametrize("twist", [TWIST, (0, 0, 0, 0, 0.6, 0), (0.4, 0, 0.5, 0, 0, 0), (0, 0, 0, 0, 0, 0)])
def test_motion_is_that_of_the_majority(twist, plane, with_depth):
    pair = views(twist, wrong=0.4, plane=plane)
    motion = motion_of(pair, with_depth=with_depth)
    metres, degrees = error_of(motion, twist)
    assert metres < 0.01 and degrees < 0.1
    assert not motion.agrees[:100].any() and motion.agrees[250:].mean() > 0.98
    assert motion.residual < 0.4


def test_motion_does_not_follow_points_without_depth_or_that_are_not_seen():
    pair = views(TWIST)
    depth_a, pixel_b, depth_b = pair.depth_a.copy(), pair.pixel_b.copy(), pair.depth_b.copy()
    depth_a[:50], depth_a[50:100], pixel_b[100:150], depth_b[150:300] = np.nan, 0, np.nan, 0
    motion = relative_motion(pair.pixel_a, depth_a, pixel_b, INTRINSICS, depth_b_N=depth_b)
    assert max(error_of(motion, TWIST)) < 0.05
    assert not motion.agrees[:150].any() and motion.agrees[150:].mean() > 0.95


def test_covariance_tells_how_large_errors_are():
    squares = []
    for seed in range(30):
        motion = motion_of(views(TWIST, seed=seed, noise=0.5))
        error = se3_log(motion.b_from_a @ invert_pose(se3_exp(np.array(TWIST))))
        squares.append(error @ np.linalg.solve(motion.covariance, error))
    assert 3 < np.mean(squares) < 12  # chi-square of six degrees of freedom has mean 6


def test_nothing_is_told_where_points_agree_on_nothing():
    pair = views(TWIST)
    mixed = np.random.default_rng(1).permutation(len(pair))
    assert relative_motion(pair.pixel_a, pair.depth_a, pair.pixel_b[mixed], INTRINSICS) is None


def test_nothing_is_told_from_too_few_points_or_from_points_in_one_spot():
    pair = views(TWIST)
    assert motion_of(pair[np.arange(8)]) is None
    assert motion_of(pair[np.zeros(0, int)]) is None
    near = np.linalg.norm(pair.pixel_a - [160, 120], axis=-1) < 25
    spot = Pair(
        pixel_a=160 + (pair.pixel_a[near] - 160) / 100,
        depth_a=np.full(near.sum(), 3.0),
        pixel_b=160 + (pair.pixel_a[near] - 160) / 100,
        depth_b=np.full(near.sum(), 3.0),
    )
    assert near.sum() >= EgoSettings().least_points
    assert motion_of(spot) is None


def test_motion_depends_on_its_own_seed_only():
    pair = views(TWIST, wrong=0.4)
    first = motion_of(pair, seed=3).b_from_a
    np.random.seed(1), random.seed(1), cv2.setRNGSeed(77)
    state = np.random.get_state()[1].copy()
    np.testing.assert_array_equal(motion_of(pair, seed=3).b_from_a, first)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_arrays_of_different_lengths_are_refused():
    pair = views(TWIST)
    with pytest.raises(ValueError, match="depth_a_N must have shape"):
        relative_motion(pair.pixel_a, pair.depth_a[1:], pair.pixel_b, INTRINSICS)


@pytest.mark.parametrize("plane", [True, False])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_focal_length_is_told_by_turns_whatever_a_minority_does(plane, shift):
    turns = [(shift, 0, shift, 0.02, 0.15, 0), (0, shift, 0, 0.1, 0.03, 0), (shift, 0, 0, 0, -0.12, 0.05)]
    pairs = [views(turn, seed=i, wrong=0.3, plane=plane) for i, turn in enumerate(turns)]
    focal = focal_of_pairs(pairs, SIZE)
    assert abs(focal.value / INTRINSICS[0, 0] - 1) < 0.005
    assert focal.std / focal.value < 0.01 and focal.pairs == 3


@pytest.mark.parametrize("twist", [(0, 0, 0, 0, 0, 0), (0.3, 0.1, 0.4, 0, 0, 0), (0.2, 0, 0.3, 0, 0, 0.2)])
def test_focal_length_is_not_told_by_rest_shifts_and_rolls(twist):
    # Stretching space across the view turns such motions into motions of the same kind: every focal length fits.
    assert focal_of_pairs([views(twist, seed=seed) for seed in range(4)], SIZE) is None
    assert focal_of_pairs([], SIZE) is None


def test_focal_length_outside_of_what_is_looked_at_is_not_made_up():
    pairs = [views((0, 0, 0.2, 0.05, 0.15, 0), seed=seed) for seed in range(3)]  # 70 degrees
    assert focal_of_pairs(pairs, SIZE, settings=FocalSettings(narrowest_deg=25, widest_deg=50)) is None


def test_spread_of_the_focal_length_covers_its_error():
    turns = [(0.2, 0, 0.2, 0.01, 0.05, 0), (0, 0.1, 0.2, 0.04, 0.02, 0), (0.2, 0, 0, 0, -0.05, 0.05)]
    errors, near = [], FocalSettings(narrowest_deg=60, widest_deg=80, tried=2)
    for seed in range(0, 30, 3):
        pairs = [views(turn, seed=seed + i, noise=0.5, count=200) for i, turn in enumerate(turns)]
        focal = focal_of_pairs(pairs, SIZE, settings=near)
        errors.append(abs(focal.value - INTRINSICS[0, 0]) / focal.std)
    assert max(errors) < 2.5


def test_focal_length_of_a_film_is_found_though_a_ball_flies_through_it():
    poses = walk(9, (0.03, 0.0, 0.04, 0.005, 0.035, 0.0))
    ball = np.stack([np.linspace(-1.2, 1.2, 9), np.full(9, 0.1), np.full(9, 2.0)], axis=1)
    footage, intrinsics = film(poses, ball=ball)
    assert footage.moving.mean() > 0.03
    nothing_known = footage.moving & False
    focal = estimate_focal(footage, DISFlow(), moving=nothing_known)
    assert abs(focal.value / intrinsics[0, 0] - 1) < 0.02


def test_focal_length_is_found_by_flow_where_sift_finds_nothing():
    footage, intrinsics = film(walk(6, (0.0, 0.0, 0.03, 0.01, 0.04, 0.0)))
    blurred = np.stack([cv2.GaussianBlur(rgb, (0, 0), 4) for rgb in footage.rgb])
    footage.rgb[:] = blurred
    seen = Seen(footage, None, MatchSettings())
    assert max(len(seen.pair(row, row + 1)) for row in range(5)) < FocalSettings().least_matches
    focal = estimate_focal(footage, DISFlow())
    assert abs(focal.value / intrinsics[0, 0] - 1) < 0.03


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="narrowest_deg must be below"):
        FocalSettings(narrowest_deg=100, widest_deg=90)
    with pytest.raises(ValueError, match="inlier_pixels"):
        EgoSettings(inlier_pixels=0)
