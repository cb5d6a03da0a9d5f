"""Depth that was rounded to levels, against the exact depth of a drawn room."""

from dataclasses import replace

import numpy as np
import pytest

from tests.training.annotate.room import film, walk
from training.annotate.rounding import find_rounding, unrounded

STEP = 0.08


@pytest.fixture(scope="module")
def room():
    return film(walk(3, (0.03, 0.005, 0.04, 0.004, 0.03, -0.004)))[0]


def in_steps(footage, step):
    return replace(footage, depth=((np.floor(footage.depth / step) + 0.5) * step).astype(np.float32))


def test_the_step_is_found(room):
    assert find_rounding(in_steps(room, STEP)).step(np.array([2.0, 3.0])) == pytest.approx(STEP, rel=1e-3)


def test_steps_that_grow_with_distance_are_found_where_they_are(room):
    inverse = 0.004
    depth = 1 / ((np.floor(1 / room.depth / inverse) + 0.5) * inverse)
    step = find_rounding(replace(room, depth=depth.astype(np.float32))).step(np.array([2.6, 3.1]))
    assert step == pytest.approx(inverse * np.array([2.6, 3.1]) ** 2, rel=0.1)


def test_depth_between_the_levels_is_found_again(room):
    rough = in_steps(room, STEP)
    smooth = unrounded(rough)
    before, after = (np.median(np.abs(one.depth / room.depth - 1)[room.valid]) for one in (rough, smooth))
    assert after < before / 2
    assert (np.abs(smooth.depth - rough.depth) <= STEP / 2 + 1e-4).all(), "no farther away than rounding takes it"


def test_exact_depth_stays_as_it_is(room):
    assert not len(find_rounding(room).level) and not find_rounding(room).step(room.depth).any()
    assert unrounded(room) is room


def test_few_depths_are_things_and_no_levels(room):
    flat = replace(room, depth=np.where(room.depth > np.median(room.depth), 5.0, 2.0).astype(np.float32))
    assert unrounded(flat) is flat


def test_what_has_no_depth_stays_without(room):
    rough = in_steps(room, STEP)
    valid = rough.valid.copy()
    valid[:, 20:40] = False
    holes = replace(rough, valid=valid, depth=np.where(valid, rough.depth, np.nan))
    smooth = unrounded(holes)
    assert np.isnan(smooth.depth[:, 20:40]).all() and np.isfinite(smooth.depth[valid]).all()
