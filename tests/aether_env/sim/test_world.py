from dataclasses import fields

import numpy as np
import pytest

from aether_env.envs.snapshots import pack, unpack
from aether_env.sim import SimWorld, render_clips, split_of
from aether_env.world_model.promise import RolloutState, Start

SIZE = {"height": 24, "width": 36, "supersample": 1}


@pytest.fixture(scope="module")
def world():
    return SimWorld(**SIZE)


def forward(num_frames, *, first=1, step=0.02):
    path = np.tile(np.eye(4), (num_frames, 1, 1))
    path[:, 2, 3] = step * (first + np.arange(num_frames))
    return path


def test_the_start_is_frame_zero_of_the_clip_with_the_same_seed(world):
    state, frames = world.start([Start(scene_seed=14), Start(scene_seed=3)], [0, 0])
    clips = render_clips([14, 3], num_frames=3, **SIZE)
    np.testing.assert_array_equal(frames.rgb, clips.rgb[:, :1].numpy())
    np.testing.assert_array_equal(frames.depth, clips.depth[:, :1].numpy())
    np.testing.assert_allclose(frames.intrinsics, clips.intrinsics[:, :1].numpy(), rtol=1e-6)
    assert isinstance(state, RolloutState) and len(state) == 2
    assert frames.metric.all() and frames.world_from_camera.dtype == np.float64


def test_driving_along_a_clips_walk_shows_the_clip(world):
    clips = render_clips([14, 11], num_frames=5, **SIZE)
    state, _ = world.start([Start(scene_seed=14), Start(scene_seed=11)], [0, 0])
    _, frames = world.advance(state, clips.world_from_camera[:, 1:].numpy())
    assert (np.abs(frames.rgb.astype(int) - clips.rgb[:, 1:].numpy()).mean(axis=(2, 3, 4)) < 1.0).all()
    alike = np.isclose(frames.depth, clips.depth[:, 1:].numpy(), rtol=1e-3)
    assert alike.mean() > 0.995  # a pose in other axes rounds differently, which shows on edges
    truth = world.scene_frames(14, clips.world_from_camera[0].numpy())
    np.testing.assert_array_equal(truth.rgb[0, 1:], frames.rgb[0])


def test_advancing_leaves_the_state_alone_and_repeats_exactly(world):
    state, _ = world.start([Start(scene_seed=14)] * 2, [0, 1])
    path = np.stack([forward(4)] * 2)
    before = state.mover_pose.copy()
    one_state, one = world.advance(state, path)
    _, two = world.advance(state, path)
    np.testing.assert_array_equal(one.rgb, two.rgb)
    np.testing.assert_array_equal(one.depth, two.depth)
    np.testing.assert_array_equal(state.mover_pose, before)
    assert one_state.seconds[0] == pytest.approx(4 / 12)


def test_rows_and_joined_batches_go_on_as_before(world):
    state, _ = world.start([Start(scene_seed=s) for s in (14, 3, 11)], [0, 0, 0])
    state, _ = world.advance(state, np.stack([forward(4)] * 3))
    path = np.stack([forward(4, first=5)] * 3)
    _, whole = world.advance(state, path)
    _, parts = world.advance(world.join([state[2], state[:2]]), path)
    np.testing.assert_array_equal(parts.rgb, whole.rgb[[2, 0, 1]])
    assert [row["scene_seed"] for row in world.describe(state[[1, 0]])] == [3, 14]


def test_the_same_seed_chooses_the_same_scene_of_the_split():
    world = SimWorld(split="test", **SIZE)
    state, frames = world.start([Start(), Start(), Start()], [5, 5, 6])
    seeds = [row["scene_seed"] for row in world.describe(state)]
    assert seeds[0] == seeds[1] != seeds[2]
    assert all(split_of(seed) == "test" for seed in seeds)
    np.testing.assert_array_equal(frames.rgb[0], frames.rgb[1])


def test_the_unit_is_the_near_quantile_of_the_valid_depth_at_reset(world):
    state, frames = world.start([Start(scene_seed=14)], [0])
    depth = np.sort(frames.depth[0, 0][frames.depth[0, 0] < 99.9])
    # One pixel's depth, none interpolated: what a dream that begins with this picture takes as its unit.
    assert world.describe(state)[0]["unit"] == depth[int((len(depth) - 1) * 0.1)]


def test_the_field_of_view_can_be_chosen():
    world = SimWorld(horizontal_fov=np.pi / 2, **SIZE)
    _, frames = world.start([Start(scene_seed=14)], [0])
    assert frames.intrinsics[0, 0, 0, 0] == pytest.approx(18.0)


def test_clearance_falls_to_nothing_where_the_picture_says_there_is_a_wall():
    world = SimWorld(family="room", **SIZE)
    state, frames = world.start([Start(scene_seed=14)], [0])
    ahead = float(frames.depth[0, 0, 12, 18])
    path = forward(50, first=0, step=ahead / 40)[None]
    room = world.clearance(state, path)[0]
    assert room[0] > 0.3 and room[41:].min() < 0.05 and (room[:40] > -0.01).all()


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"split": "holdout"}, "split"),
        ({"family": "cave"}, "family"),
        ({"horizontal_fov": 70.0}, "horizontal_fov"),
        ({"height": 0}, "height"),
    ],
)
def test_bad_settings_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        SimWorld(**arguments).start([Start()], [0])


def test_bad_starts_and_paths_are_named(world):
    with pytest.raises(ValueError, match="scene_seed"):
        world.start([Start(rgb=np.zeros((24, 36, 3), np.uint8))], [0])
    state, _ = world.start([Start(scene_seed=3)], [0])
    with pytest.raises(ValueError, match="world_from_camera"):
        world.advance(state, np.eye(4))
    with pytest.raises(ValueError, match="finite"):
        world.advance(state, forward(4)[None] * np.nan)


@pytest.mark.parametrize("damage, named", [("scale", "rigid"), ("bottom", "bottom row"), ("mirror", "mirrored")])
def test_poses_that_are_not_rigid_are_refused_everywhere(world, damage, named):
    state, _ = world.start([Start(scene_seed=3)], [0])
    path = forward(4)
    if damage == "scale":
        path[2, :3, :3] *= 3.0
    elif damage == "bottom":
        path[2, 3] = [0.0, 0.0, 1.0, 1.0]
    else:
        path[2, 0, 0] = -1.0
    for ask in (
        lambda: world.advance(state, path[None]),
        lambda: world.clearance(state, path[None]),
        lambda: world.scene_frames(3, path),
    ):
        with pytest.raises(ValueError, match=f"world_from_camera.*{named}"):
            ask()


def through_bytes(world, state):
    arrays, about = world.freeze(state)
    return unpack(pack(arrays, {"world": about}))[0], about


def assert_same_states(a, b):
    for f in fields(a):
        if f.name == "scenes":
            for part in fields(a.scenes):
                np.testing.assert_array_equal(getattr(a.scenes, part.name), getattr(b.scenes, part.name), strict=True)
        else:
            np.testing.assert_array_equal(getattr(a, f.name), getattr(b, f.name), strict=True)


@pytest.fixture(scope="module")
def quick():
    return SimWorld(height=16, width=24, supersample=1, frames_per_step=2)


@pytest.mark.parametrize("seeds, steps", [([14], 0), ([3], 4), ([14, 3, 11], 2)])
def test_going_on_from_a_snapshot_is_the_same_as_never_having_stopped(quick, seeds, steps):
    state, _ = quick.start([Start(scene_seed=seed) for seed in seeds], [0] * len(seeds))
    for step in range(steps):
        state, _ = quick.advance(state, np.stack([forward(2, first=1 + 2 * step)] * len(seeds)))
    thawed = SimWorld(height=16, width=24, supersample=1, frames_per_step=2).thaw(*through_bytes(quick, state))
    assert_same_states(thawed, state)
    path = np.stack([forward(2, first=1 + 2 * steps)] * len(seeds))
    state, frames = quick.advance(state, path)
    thawed, again = quick.advance(thawed, path)
    assert_same_states(thawed, state)
    for f in fields(frames):
        np.testing.assert_array_equal(getattr(again, f.name), getattr(frames, f.name), strict=True)


def test_a_snapshot_takes_its_movers_along(quick):
    moved, _ = quick.start([Start(scene_seed=14)], [0])
    start = moved.mover_pose.copy()
    for step in range(3):
        moved, _ = quick.advance(moved, forward(2, first=1 + 2 * step)[None])
    assert np.abs(quick.thaw(*quick.freeze(moved)).mover_pose - start).max() > 0.01


def test_frozen_arrays_and_states_do_not_share_memory(quick):
    state, _ = quick.start([Start(scene_seed=14)], [0])
    arrays, about = quick.freeze(state)
    thawed = quick.thaw(arrays, about)
    for array in arrays.values():
        array[...] = 0
    assert_same_states(thawed, state)
    assert_same_states(thawed, quick.start([Start(scene_seed=14)], [0])[0])


def test_snapshots_are_restored_at_the_chosen_field_of_view_and_family():
    settings = dict(horizontal_fov=np.float64(1.2), family="blocks", height=np.int64(16), width=24, supersample=1)
    world = SimWorld(**settings)
    state, _ = world.start([Start(scene_seed=14)], [0])
    assert_same_states(world.thaw(*through_bytes(world, state)), state)
    arrays, about = world.freeze(state)
    with pytest.raises(ValueError, match="family is 'blocks', but this world's is None"):
        SimWorld(**settings | {"family": None}).thaw(arrays, about)
    with pytest.raises(ValueError, match="horizontal_fov is 1.2, but this world's is None"):
        SimWorld(**settings | {"horizontal_fov": None}).thaw(arrays, about)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"kind": "dream"}, "kind is 'dream', but this world's is 'sim'"),
        ({"height": 64}, "height is 64, but this world's is 16"),
        ({"width": 64}, "width"),
        ({"fps": 10.0}, "fps"),
        ({"frames_per_step": 1}, "frames_per_step"),
        ({"supersample": 2}, "supersample"),
        ({"shadows": False}, "shadows"),
        ({"more": 1}, "'more'"),
    ],
)
def test_a_snapshot_of_another_world_is_refused_by_what_differs(quick, change, named):
    arrays, about = quick.freeze(quick.start([Start(scene_seed=14)], [0])[0])
    with pytest.raises(ValueError, match=named):
        quick.thaw(arrays, about | change)


def test_each_array_that_is_missing_or_of_another_kind_is_named(quick):
    arrays, about = quick.freeze(quick.start([Start(scene_seed=14), Start(scene_seed=3)], [0, 0])[0])
    assert set(arrays) == {"scene_seed", "scene_from_world", "mover_pose", "mover_velocity", "seconds", "unit"}
    for name, array in arrays.items():
        others = [array[:1], array[:0], array[..., None], array.astype("float32"), array.tolist()]
        if array.dtype.kind == "f":
            others.append(np.full_like(array, np.nan))
        for other in others:
            with pytest.raises(ValueError, match="snapshot"):
                quick.thaw(arrays | {name: other}, about)
        with pytest.raises(ValueError, match=f"no array '{name}'"):
            quick.thaw({key: value for key, value in arrays.items() if key != name}, about)
    with pytest.raises(ValueError, match="'another'"):
        quick.thaw(arrays | {"another": arrays["unit"]}, about)
    quick.thaw(arrays, about)


@pytest.mark.parametrize(
    "name, place, value, named",
    [
        ("scene_seed", 0, -1, "seeds must lie in"),
        ("scene_seed", 0, 2**61, "seeds must lie in"),
        ("scene_seed", 0, 15, "scene_from_world must be where its scene begins"),
        ("scene_from_world", (0, 0, 3), 50.0, "scene_from_world must be where its scene begins"),
        ("scene_from_world", (0, 0, 0), 50.0, "scene_from_world must be rigid"),
        ("mover_pose", (0, "there", 3), 2.0, "mover_pose must have unit quaternions"),
        ("mover_pose", (0, "absent", 0), 0.1, "mover_pose must leave absent movers alone"),
        ("mover_velocity", (0, "absent", 0), 0.1, "mover_velocity must leave absent movers alone"),
        ("seconds", 0, -0.5, "seconds"),
        ("unit", 0, 0.0, "unit"),
        ("unit", 0, 1e9, "unit"),
    ],
)
def test_a_state_that_no_scene_comes_to_is_refused(quick, name, place, value, named):
    # A scene with some of its movers absent.
    state, _ = quick.start([Start(scene_seed=14)], [0])
    kinds = state.scenes.mover_kind[0]
    movers = {"there": int(np.argmax(kinds >= 0)), "absent": int(np.argmax(kinds < 0))}
    assert kinds[movers["there"]] >= 0 > kinds[movers["absent"]]
    arrays, about = quick.freeze(state)
    if isinstance(place, tuple):
        place = tuple(movers.get(part, part) for part in place)
    arrays[name][place] = value
    with pytest.raises(ValueError, match=named):
        quick.thaw(arrays, about)


def test_branches_are_copies_of_their_rows(quick):
    state, _ = quick.start([Start(scene_seed=14), Start(scene_seed=3)], [0, 0])
    branches = quick.branch(state, [1, 0, 1], [7, 0, 8])
    assert_same_states(branches, state[[1, 0, 1]])
    assert_same_states(quick.branch(state, [1, 0, 1], None), branches)
    for rows, numbers, named in (([2], None, "rows"), ([], None, "rows"), ([0], [], "numbers"), ([0], [-1], "numbers")):
        with pytest.raises(ValueError, match=named):
            quick.branch(state, rows, numbers)
