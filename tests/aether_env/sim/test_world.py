import numpy as np
import pytest

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
