import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_env.camera import intrinsics_from_fov, make_pose, matrix_from_quaternion
from aether_env.conventions import FAR_DEPTH
from aether_env.envs.collisions import GRID, VIEWS, add_view, free_fraction, no_surfaces
from aether_env.pointcloud import unproject_depth
from aether_env.sim import SimWorld
from aether_env.world_model.promise import Start

FOV = math.radians(70)
RADIUS = 0.15
SIZE = (64, 96)
BACK = make_pose(np.diag([-1.0, 1.0, -1.0]), [0, 0, 0])


def at(x=0.0, y=0.0, z=0.0, facing=None):
    """A camera's pose, (1, 4, 4)."""
    return make_pose(np.eye(3) if facing is None else facing[:3, :3], [x, y, z])[None]


def rays(pose_44, height, width):
    """The rays of the pixels' centres in world axes, (H, W, 3), of length 1 along the camera's z."""
    v, u = np.mgrid[:height, :width] + 0.5
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1)
    return pixels @ np.linalg.inv(intrinsics_from_fov(FOV, height, width)).T @ pose_44[:3, :3].T


def wall_depth(pose_44, normal, offset, height, width):
    """The depth of the plane normal . p = offset, (H, W)."""
    toward = rays(pose_44, height, width) @ normal
    depth = (offset - pose_44[:3, 3] @ normal) / np.where(toward == 0, 1e-12, toward)
    return np.where((depth > 0) & (depth < FAR_DEPTH), depth, FAR_DEPTH)


def ball_depth(pose_44, centre, radius, height, width):
    """The depth of a ball before the sky, (H, W): the nearer root of |depth * ray - offset| = radius."""
    ray = rays(pose_44, height, width)
    offset = np.asarray(centre) - pose_44[:3, 3]
    a, b, c = (ray * ray).sum(-1), ray @ offset, offset @ offset - radius**2
    return np.where(b * b > a * c, (b - np.sqrt(np.maximum(b * b - a * c, 0))) / a, FAR_DEPTH)


def see(depth_HW, pose=None, surfaces=None):
    """What is known after one view, (1, VIEWS, P, 3)."""
    k = intrinsics_from_fov(FOV, *depth_HW.shape)[None]
    before = no_surfaces(1) if surfaces is None else surfaces
    return add_view(before, depth_HW[None].astype(np.float32), k, at() if pose is None else pose)


def wall_ahead(distance, height=SIZE[0], width=SIZE[1]):
    return wall_depth(np.eye(4), np.array([0, 0, 1.0]), distance, height, width)


def free(surfaces, start, end, radius=RADIUS):
    return float(free_fraction(surfaces, start, end, np.array([radius]))[0])


def cell_diagonal(distance, height, width):
    """How far a spot of a wall, seen head-on, can be from the point that its cell keeps, metres."""
    pixel = 2 * math.tan(FOV / 2) / width * distance
    return pixel * math.hypot(*(math.ceil(n / min(n, cells)) for n, cells in zip((height, width), GRID, strict=True)))


def only(*points):
    """Surfaces that consist of the given points."""
    surfaces = no_surfaces(1)
    surfaces.reshape(-1, 3)[: len(points)] = points
    return surfaces


@pytest.mark.parametrize("distance", [0.3, 0.7, 1.5])
@pytest.mark.parametrize("height, width", [(64, 96), (50, 71), (24, 36), (480, 720), (16, 24)])
def test_a_ball_that_goes_straight_at_a_wall_stops_before_it(height, width, distance):
    stop = 2.0 * free(see(wall_ahead(distance, height, width)), at(), at(z=2.0))
    # All points lie on the wall, so nothing stops the ball before it is a radius away. Its foot falls into a cell whose
    # point is at most the cell's diagonal beside it; a point so far aside is touched sqrt(r^2 - diagonal^2) before.
    late = RADIUS - math.sqrt(RADIUS**2 - cell_diagonal(distance, height, width) ** 2)
    assert distance - RADIUS - 1e-6 <= stop <= distance - RADIUS + late + 1e-6


@pytest.mark.parametrize("degrees", [-60, -30, 20, 50])
def test_a_slanted_wall_stops_the_ball_no_sooner_than_where_it_is(degrees):
    turn = math.radians(degrees)
    normal = np.array([math.sin(turn), 0, math.cos(turn)])
    surfaces = see(wall_depth(np.eye(4), normal, 1.0 * normal[2], *SIZE))
    stop = 2.0 * free(surfaces, at(), at(z=2.0))
    # The wall is met at 1 m; the ball touches it this much before, and its centre never comes there.
    assert 1.0 - RADIUS / normal[2] - 1e-6 <= stop < 1.0 - RADIUS / 2


def test_along_a_wall_the_way_is_free():
    surfaces = see(wall_ahead(RADIUS + 1e-3))
    for x, y in ((0.3, 0), (-0.3, 0), (0, 0.3), (0.2, -0.2)):
        assert free(surfaces, at(), at(x=x, y=y)) == 1.0


def test_a_ball_that_was_stopped_at_one_point_may_slide_beside_it():
    rng = np.random.default_rng(0)
    for _ in range(50):
        turn = matrix_from_quaternion(rng.normal(size=4))
        forward, right = turn[:, 2], turn[:, 0]
        surfaces = only(1.0 * forward)
        stop = free(surfaces, at(), at(*forward))
        here = stop * forward
        assert stop == pytest.approx(1 - RADIUS, abs=1e-6)
        assert free(surfaces, at(*here), at(*(here + 0.3 * right))) == 1.0
        assert free(surfaces, at(*here), at(*forward)) == pytest.approx(0, abs=1e-12)


def test_backwards_is_free_until_a_view_looked_there():
    behind = wall_depth(BACK, np.array([0, 0, 1.0]), -0.8, *SIZE)
    ahead = see(wall_ahead(0.8))
    both = see(behind, at(facing=BACK), ahead)
    assert free(ahead, at(), at(z=-2.0)) == 1.0
    late = RADIUS - math.sqrt(RADIUS**2 - cell_diagonal(0.8, *SIZE) ** 2)
    assert 0.65 - 1e-6 <= 2.0 * free(both, at(), at(z=-2.0)) <= 0.65 + late + 1e-6
    assert free(both, at(), at(z=2.0)) == free(ahead, at(), at(z=2.0)) < 1


def test_a_ball_ahead_stops_the_camera_and_one_beside_does_not():
    distance, size = 1.2, 0.4
    surfaces = see(ball_depth(np.eye(4), [0, 0, distance], size, *SIZE))
    stop = 2.0 * free(surfaces, at(), at(z=2.0))
    # The point is at most the diagonal beside the axis, there on the obstacle's round and touched by the camera's.
    aside = cell_diagonal(distance, *SIZE)
    late = size - math.sqrt(size**2 - aside**2) + RADIUS - math.sqrt(RADIUS**2 - aside**2)
    assert distance - size - RADIUS - 1e-6 <= stop <= distance - size - RADIUS + late + 1e-6
    gap = size + RADIUS
    assert free(surfaces, at(x=gap + 1e-4), at(x=gap + 1e-4, z=2.0)) == 1.0
    grazing = 2.0 * free(surfaces, at(x=0.3), at(x=0.3, z=2.0))
    assert distance - math.sqrt(gap**2 - 0.3**2) - 1e-6 <= grazing < distance - math.sqrt(size**2 - 0.3**2)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 30), length=st.floats(1e-3, 30), away=st.floats(0, 50))
def test_the_fraction_is_where_a_march_along_the_way_first_finds_contact(seed, count, length, away):
    rng = np.random.default_rng(seed)
    radius = length * rng.uniform(0.02, 0.5)
    start = rng.normal(size=3) * away
    direction = rng.normal(size=3)
    end = start + length * direction / np.linalg.norm(direction)
    surfaces = no_surfaces(1)
    points = (start + rng.normal(size=(count, 3)) * length).astype(np.float32)
    points = points[np.linalg.norm(points - start, axis=-1) > radius]
    surfaces.reshape(-1, 3)[rng.permutation(VIEWS * GRID[0] * GRID[1])[: len(points)]] = points
    fraction = free(surfaces, at(*start), at(*end), radius)

    def nearest(s):
        centres = start + np.asarray(s)[:, None] * (end - start)
        away = [np.linalg.norm(centres - point, axis=-1) for point in points.astype(np.float64)]
        return np.min([*away, np.full(len(centres), np.inf)], axis=0)

    march = np.linspace(0, 1, 20_000)
    inside = nearest(march) < radius
    first = march[inside.argmax()] if inside.any() else 1.0
    assert fraction <= first
    if fraction < 1:
        # Not too soon either: there it touches, and a graze shorter than a stride is what the march may miss.
        assert nearest([fraction])[0] == pytest.approx(radius, abs=1e-9 * length)
        assert first - fraction <= 1 / 19_999 or nearest(fraction + np.linspace(0, 1e-4, 200)).min() > 0.999 * radius


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), depth=st.floats(0.01, 0.99), degrees=st.floats(0, 180))
def test_a_ball_in_touch_may_go_away_or_along_but_not_nearer(seed, depth, degrees):
    turn = matrix_from_quaternion(np.random.default_rng(seed).normal(size=4))
    surfaces = only(depth * RADIUS * turn[:, 2])
    way = 0.3 * turn @ [math.sin(math.radians(degrees)), 0, math.cos(math.radians(degrees))]
    if degrees < 89.9:
        assert free(surfaces, at(), at(*way)) == 0.0
    elif degrees == 90 or degrees > 90.1:
        assert free(surfaces, at(), at(*way)) == 1.0


def test_right_angles_go_along():
    for turn in matrix_from_quaternion(np.random.default_rng(0).normal(size=(50, 4))):
        assert free(only(0.1 * turn[:, 2]), at(), at(*(0.3 * turn[:, 0]))) == 1.0


def test_a_point_in_touch_behind_does_not_hide_one_ahead():
    surfaces = only([0, 0, -0.1], [0, 0, 0.5])
    assert free(surfaces, at(), at(z=1.0)) == pytest.approx(0.35, abs=1e-7)


def test_without_motion_or_surfaces_all_is_free():
    assert free(only([0, 0, 0.01]), at(), at()) == 1.0
    assert free(only([0, 0, 0.01]), at(), at(facing=BACK)) == 1.0
    assert free(no_surfaces(1), at(), at(z=100.0)) == 1.0


def test_the_largest_and_the_smallest_motions_are_measured():
    point = only([0, 0, 0.5])
    assert free(point, at(), at(z=1e9)) == pytest.approx(0.35e-9, rel=1e-6)
    assert free(point, at(z=0.35 - 1e-9), at(z=0.35 + 1e-9)) == pytest.approx(0.5, abs=1e-6)
    assert free(only([0, 0, 0.1]), at(), at(z=1e-200)) == 0.0
    assert free(only([0, 0, 0.1]), at(), at(z=-1e-200)) == 1.0


def test_rows_are_the_same_to_the_last_bit_with_and_without_neighbours():
    rng = np.random.default_rng(5)
    batch = 12

    def cameras():
        return make_pose(matrix_from_quaternion(rng.normal(size=(batch, 4))), rng.normal(size=(batch, 3)))

    k = np.repeat(intrinsics_from_fov(FOV, 20, 41)[None], batch, axis=0)
    k[:, 0, 1:] += rng.uniform(-3, 3, (batch, 2))
    views = [(rng.uniform(0.1, 4, (batch, 20, 41)).astype(np.float32), cameras()) for _ in range(3)]
    together, alone = no_surfaces(batch), [no_surfaces(1) for _ in range(batch)]
    for depth, pose in views:
        together = add_view(together, depth, k, pose)
        alone = [add_view(alone[i], depth[[i]], k[[i]], pose[[i]]) for i in range(batch)]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    start, end, radius = cameras(), cameras(), rng.uniform(0.05, 0.3, batch)
    fractions = free_fraction(together, start, end, radius)
    assert len(set(fractions)) >= 5  # there is something to mix up
    for i in range(batch):
        assert free_fraction(alone[i], start[[i]], end[[i]], radius[[i]])[0] == fractions[i]
    order = rng.permutation(batch)
    np.testing.assert_array_equal(
        free_fraction(together[order], start[order], end[order], radius[order]), fractions[order]
    )


def test_a_turned_and_moved_world_gives_the_same_fractions():
    rng = np.random.default_rng(2)
    depth = np.minimum(wall_ahead(1.5), ball_depth(np.eye(4), [0.2, 0, 1.0], 0.3, *SIZE))
    ends = [at(z=1.4), at(x=0.3, z=1.4), at(x=-0.4, y=0.2, z=1.5), at(y=-0.4, z=1.2), at(x=0.9)]
    expected = [free(see(depth), at(), end) for end in ends]
    assert min(expected) < 0.5 and max(expected) == 1.0
    for _ in range(20):
        world = make_pose(matrix_from_quaternion(rng.normal(size=4)), rng.normal(size=3) * 10)
        moved = see(depth, world @ at())
        # Points 30 metres away are kept to 2e-6 metres.
        np.testing.assert_allclose(
            [free(moved, world @ at(), world @ end) for end in ends], expected, atol=1e-4, rtol=0
        )


def test_a_view_is_forgotten_after_as_many_more_as_are_kept():
    surfaces = see(wall_ahead(1.0))
    sky = np.full(SIZE, FAR_DEPTH)
    stops = []
    for _ in range(VIEWS):
        stops.append(free(surfaces, at(), at(z=2.0)))
        surfaces = see(sky, surfaces=surfaces)
    assert len(set(stops)) == 1 and stops[0] < 0.5
    assert free(surfaces, at(), at(z=2.0)) == 1.0 and np.isinf(surfaces).all()


def test_sky_is_no_surface():
    for depth, sky in ((FAR_DEPTH, True), (0.999 * FAR_DEPTH, True), (0.9989 * FAR_DEPTH, False)):
        surfaces = see(np.full((24, 36), depth))
        assert np.isinf(surfaces[0, -1]).all() == sky
        assert (free(surfaces, at(), at(z=2 * FAR_DEPTH), radius=5.0) == 1.0) == sky


@pytest.mark.parametrize("height, width", [(1, 1), (8, 8), (24, 36), (25, 37), (47, 100), (30, 20)])
def test_every_pixel_that_sticks_out_is_kept_as_the_point_that_it_sees(height, width):
    rng = np.random.default_rng(0)
    spots = rng.permutation(height * width)[:100]
    # No two pixels have one depth, so that a point's depth names its pixel.
    depth = np.linspace(2, 3, height * width, dtype=np.float32)[rng.permutation(height * width)]
    depth = np.repeat(depth[None], len(spots), axis=0)
    depth[np.arange(len(spots)), spots] = 1.0
    depth = depth.reshape(-1, height, width)
    k = intrinsics_from_fov(FOV, height, width)
    k[0, 1:] = 2.0, 0.4 * width
    k, still = np.repeat(k[None], len(spots), axis=0), np.repeat(at(), len(spots), axis=0)
    truth = unproject_depth(depth, k, still).reshape(len(spots), -1, 3)
    last = add_view(no_surfaces(len(spots)), depth, k, still)[:, -1]
    for points, true, spot in zip(last, truth, spots, strict=True):
        points = points[np.isfinite(points).all(axis=-1)]
        pixels = np.argsort(true[:, 2])[np.searchsorted(np.sort(true[:, 2]), points[:, 2])]
        np.testing.assert_allclose(points, true[pixels], rtol=1e-6, atol=1e-6)
        assert spot in pixels and len(set(pixels)) == len(pixels) == min(height, GRID[0]) * min(width, GRID[1])
    pose = make_pose(matrix_from_quaternion([0.9, 0.1, -0.3, 0.2]), [1.0, 2.0, 3.0])
    moved = add_view(no_surfaces(len(spots)), depth, k, pose @ still)[:, -1]
    seen = np.isfinite(last).all(axis=-1)
    np.testing.assert_allclose(moved[seen], last[seen] @ pose[:3, :3].T + pose[:3, 3], atol=1e-5)


def test_what_was_given_is_not_modified_and_what_is_returned_is_new():
    surfaces = see(wall_ahead(1.0))
    given = [surfaces, wall_ahead(2.0)[None].astype(np.float32), intrinsics_from_fov(FOV, *SIZE)[None], at()]
    copies = [array.copy() for array in given]
    new = add_view(*given)
    assert new.dtype == np.float32 and new.shape == (1, VIEWS, GRID[0] * GRID[1], 3)
    assert not np.shares_memory(new, surfaces)
    for array, copy in zip(given, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_straight_ahead_in_simulated_rooms_the_camera_keeps_clear_of_what_is_in_the_way():
    world = SimWorld(height=16, width=24, family="room", supersample=1, shadows=False)
    state, frames = world.start([Start(scene_seed=seed) for seed in range(64)], [0] * 64)
    line = np.concatenate([at(z=z) for z in np.linspace(0, 2, 41)])
    unguarded = world.clearance(state, np.repeat(line[None], 64, axis=0)).min(axis=1)
    still = (state.scenes.mover_kind < 0).all(axis=1)
    rows = np.flatnonzero((unguarded < RADIUS / 2) & still)
    assert len(rows) >= 4 and unguarded[rows].min() < 0
    state, frames, step = state[rows], frames[rows], 0.2
    surfaces, pose, lowest = no_surfaces(len(rows)), frames.world_from_camera[:, -1], np.full(len(rows), np.inf)
    for _ in range(10):
        surfaces = add_view(surfaces, frames.depth[:, -1], frames.intrinsics[:, -1], pose)
        fraction = free_fraction(surfaces, pose, pose @ at(z=step), np.full(len(rows), RADIUS))
        way = [[at(z=part * step * f)[0] for part in (0.25, 0.5, 0.75, 1.0)] for f in fraction]
        path = pose[:, None] @ np.array(way)
        lowest = np.minimum(lowest, world.clearance(state, path).min(axis=1))
        state, frames = world.advance(state, path)
        pose = path[:, -1]
    # The last view before a contact is at most 0.35 m away. There a cell of these few pixels is 0.03 m wide and has a
    # diagonal of 0.04 m: a head-on wall is touched 6 mm late, slanted ones and edges somewhat more.
    assert lowest.min() > RADIUS - 0.01
    assert lowest.max() < RADIUS + 0.01  # stopped there, not far before
