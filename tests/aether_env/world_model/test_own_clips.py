"""The three tasks: what is given comes back, items are independent, errors are named. The weights are random."""

from dataclasses import replace

import numpy as np
import pytest

from aether_env.camera import intrinsics_from_fov, scale_poses
from aether_env.world_model import own_clips
from aether_env.world_model.own_clips import CLIP_FRAMES, OwnClips
from aether_env.world_model.promise import Start
from aether_env.world_model.refine import Refined
from aether_env.world_model.rollout import DreamWorld
from aether_env.world_model.views import View

HEIGHT, WIDTH = 16, 24


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return OwnClips.from_checkpoint(tiny_checkpoint)


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (*shape, HEIGHT, WIDTH, 3), dtype=np.uint8)


def camera(batch):
    return np.tile(intrinsics_from_fov(1.2, HEIGHT, WIDTH), (batch, 1, 1))


def sideways(batch, metres=0.5):
    path = np.tile(np.eye(4), (batch, CLIP_FRAMES, 1, 1))
    path[..., 0, 3] = metres * np.linspace(0, 1, CLIP_FRAMES)
    return path


def test_a_known_path_comes_back_exactly(pipeline):
    result = pipeline.predict(
        pictures(2), world_from_camera=sideways(2), intrinsics=camera(2), depth=np.full((2, HEIGHT, WIDTH), 3.0)
    )
    np.testing.assert_allclose(result.world_from_camera, sideways(2), atol=1e-4)
    np.testing.assert_allclose(result.intrinsics[:, 0], camera(2), atol=1e-3)
    assert result.metric.all() and np.allclose(result.unit, 3.0)


def test_a_path_counts_from_its_own_first_pose(pipeline):
    moved = sideways(1).copy()
    moved[..., 2, 3] += 7
    a, b = (pipeline.predict(pictures(1), world_from_camera=p, intrinsics=camera(1)) for p in (sideways(1), moved))
    np.testing.assert_array_equal(a.rgb, b.rgb)


def test_given_pictures_come_back_as_they_are(pipeline):
    video = pictures(1, CLIP_FRAMES)
    np.testing.assert_array_equal(pipeline.reconstruct(video).rgb, video)
    np.testing.assert_array_equal(pipeline.predict(video[:, 0]).rgb[:, 0], video[:, 0])


@pytest.mark.parametrize(("count", "view"), [(2, View(mirrored=True)), (4, View(backwards=True))], ids=str)
def test_what_was_looked_at_from_all_sides_is_found_alike_from_each(tiny_checkpoint, count, view):
    looker = OwnClips.from_checkpoint(tiny_checkpoint, reconstruct_views=count)
    video = pictures(2, CLIP_FRAMES)
    result, turned = (looker.reconstruct(v) for v in (video, view.pictures(video)))
    scale = np.median(result.depth, axis=(1, 2, 3)) / np.median(turned.depth, axis=(1, 2, 3))
    scale = scale[:, None, None]
    np.testing.assert_allclose(view.pictures(turned.depth) * scale[..., None], result.depth, rtol=1e-3)
    if not view.backwards:  # the mean of paths that differ this much depends on the frame that they begin from
        path = view.poses(turned.world_from_camera)
        np.testing.assert_allclose(path[..., :3, :3], result.world_from_camera[..., :3, :3], atol=1e-3)
    np.testing.assert_allclose(view.intrinsics(turned.intrinsics, WIDTH), result.intrinsics, rtol=1e-3)
    np.testing.assert_array_equal(result.rgb, video)
    once = OwnClips.from_checkpoint(tiny_checkpoint).reconstruct(video)
    assert np.abs(once.depth / result.depth - 1).max() > 0.01


def test_looking_twice_keeps_known_depth_and_path(tiny_checkpoint):
    looker = OwnClips.from_checkpoint(tiny_checkpoint, reconstruct_views=4)
    depth = np.random.default_rng(1).uniform(1, 5, (2, HEIGHT, WIDTH)).astype(np.float32)
    given = {"depth": depth, "world_from_camera": sideways(2), "intrinsics": camera(2)}
    result = looker.reconstruct(pictures(2, CLIP_FRAMES), **given)
    np.testing.assert_array_equal(result.depth[:, 0], depth)
    np.testing.assert_array_equal(result.world_from_camera, sideways(2))
    np.testing.assert_array_equal(result.intrinsics[:, 3], camera(2))
    assert result.metric.all()


@pytest.mark.parametrize("known", [False, True], ids=["nothing known", "depth, path and intrinsics known"])
def test_what_is_found_is_refined_and_what_is_known_is_held(tiny_checkpoint, monkeypatch, known):
    def refined(rgb, depth, world_from_camera, intrinsics, *, hold_depth, hold_path, hold_focal, device):
        assert rgb.dtype == np.uint8 and intrinsics.shape == (3, 3)
        assert (hold_path, hold_focal) == (known, known)
        assert hold_depth.tolist() == [known] + [False] * (CLIP_FRAMES - 1)
        depth = np.where(hold_depth[:, None, None], depth, 2 * depth)
        path = world_from_camera if hold_path else scale_poses(world_from_camera, 2.0)
        return Refined(depth, path, intrinsics if hold_focal else intrinsics + np.diag([1.0, 1.0, 0.0]), (2.0, 1.0))

    monkeypatch.setattr(own_clips, "refine", refined)
    looker = OwnClips.from_checkpoint(tiny_checkpoint, reconstruct_refine=True)
    depth = np.random.default_rng(1).uniform(1, 5, (2, HEIGHT, WIDTH)).astype(np.float32)
    given = {"depth": depth, "world_from_camera": sideways(2), "intrinsics": camera(2)} if known else {}
    video = pictures(2, CLIP_FRAMES)
    found, plain = looker.reconstruct(video, **given), looker.without_refining().reconstruct(video, **given)
    np.testing.assert_array_equal(found.depth[:, 1:], 2 * plain.depth[:, 1:])
    np.testing.assert_array_equal(found.depth[:, 0], depth if known else 2 * plain.depth[:, 0])
    if known:
        np.testing.assert_array_equal(found.world_from_camera, sideways(2))
        np.testing.assert_array_equal(found.intrinsics[:, 3], camera(2))
    else:
        np.testing.assert_allclose(found.world_from_camera[..., :3, 3], 2 * plain.world_from_camera[..., :3, 3])
        np.testing.assert_allclose(found.intrinsics[:, 3, 0, 0], plain.intrinsics[..., 0, 0].mean(1) + 1)
    np.testing.assert_array_equal(found.rgb, video)


@pytest.mark.parametrize("views", [0, 3, True, 8])
def test_impossible_numbers_of_looks_are_refused(tiny_checkpoint, views):
    with pytest.raises(ValueError, match="reconstruct_views must be 1"):
        OwnClips.from_checkpoint(tiny_checkpoint, reconstruct_views=views)


def test_items_of_a_batch_do_not_depend_on_each_other(pipeline):
    both = pipeline.plan(pictures(2), pictures(2, seed=1), seeds=[4, 5])
    alone = pipeline.plan(pictures(2)[1:], pictures(2, seed=1)[1:], seeds=[5])
    assert np.abs(both.rgb[1].astype(int) - alone.rgb[0]).max() <= 1
    np.testing.assert_allclose(both.world_from_camera[1], alone.world_from_camera[0], atol=1e-3)


def test_one_noise_level_reconstructs_alike_whatever_the_seed_and_two_do_not(pipeline):
    video = pictures(1, 17)
    once, again = (pipeline.reconstruct(video, seeds=[seed]).depth for seed in (4, 5))
    np.testing.assert_array_equal(once, again)
    several = replace(pipeline.settings, reconstruct_sigmas=(1.0, 0.5))
    other = OwnClips(replace(pipeline.parts, settings=several))
    once, again = (other.reconstruct(video, seeds=[seed]).depth for seed in (4, 5))
    assert np.abs(once / again - 1).max() > 1e-3


def test_the_goal_and_the_seed_matter(pipeline):
    base = pipeline.plan(pictures(1), pictures(1, seed=1), seeds=[4])
    for other in (
        pipeline.plan(pictures(1), pictures(1, seed=2), seeds=[4]),
        pipeline.plan(pictures(1), pictures(1, seed=1), seeds=[5]),
    ):
        assert np.abs(base.world_from_camera - other.world_from_camera).max() > 1e-4


def test_paths_begin_at_the_identity_and_are_rigid(pipeline):
    poses = pipeline.reconstruct(pictures(2, CLIP_FRAMES)).world_from_camera
    np.testing.assert_allclose(poses[:, 0], np.tile(np.eye(4), (2, 1, 1)), atol=1e-9)
    rotation = poses[..., :3, :3]
    np.testing.assert_allclose(
        rotation @ rotation.swapaxes(-1, -2), np.broadcast_to(np.eye(3), rotation.shape), atol=1e-5
    )


def test_depth_of_every_frame_is_given_back(pipeline):
    depth = np.random.default_rng(0).uniform(1, 5, (1, CLIP_FRAMES, HEIGHT, WIDTH)).astype(np.float32)
    depth[:, 3, :4] = np.nan
    result = pipeline.reconstruct(pictures(1, CLIP_FRAMES), depth=depth)
    known = np.isfinite(depth)
    np.testing.assert_allclose(result.depth[known], depth[known], rtol=1e-6)
    assert np.isfinite(result.depth).all()


def test_where_the_first_frame_tells_no_unit_metres_of_later_frames_are_left_out(pipeline):
    depth = np.full((2, CLIP_FRAMES, HEIGHT, WIDTH), 77.0, np.float32)
    depth[0, 0] = np.nan
    result, blind = (pipeline.reconstruct(pictures(2, CLIP_FRAMES), depth=d) for d in (depth, None))
    assert result.metric.tolist() == [False, True] and result.unit[0] == 1
    np.testing.assert_allclose(result.depth[0], blind.depth[0], rtol=1e-4)
    np.testing.assert_allclose(result.depth[1], 77.0, rtol=1e-6)


def test_without_a_picture_each_seed_dreams_its_own(pipeline):
    both = pipeline.predict(None, seeds=[1, 2])
    assert both.rgb.shape == (2, CLIP_FRAMES, HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(pipeline.predict(None, seeds=[2]).depth[0], both.depth[1], rtol=1e-4)
    assert np.abs(both.depth[0] / both.depth[1] - 1).max() > 1e-3


def test_the_unit_is_a_near_quantile_of_the_first_depth(pipeline):
    depth = np.random.default_rng(0).uniform(1, 5, (2, HEIGHT, WIDTH)).astype(np.float32)
    depth[0, :8] = np.nan
    depth[1, 3] = 100.0  # the sky
    expected = [np.quantile(depth[0, 8:], 0.1), np.quantile(np.delete(depth[1], 3, axis=0), 0.1)]
    np.testing.assert_allclose(pipeline.units(depth), expected, rtol=0.03)
    np.testing.assert_array_equal(pipeline.units(np.full((1, HEIGHT, WIDTH), np.nan)), [1.0])


def long_walk(batch, frames):
    path = np.tile(np.eye(4), (batch, frames, 1, 1))
    path[..., 2, 3] = 3 + 0.05 * np.arange(frames)
    return path


@pytest.mark.parametrize("frames", [1, 4, 5, 23])
def test_a_long_walk_is_what_the_environments_world_dreams_step_by_step(pipeline, frames):
    picture, matrix, depth = pictures(1), camera(1), np.full((1, HEIGHT, WIDTH), 3.0, np.float32)
    pieces = pipeline.follow(picture, world_from_camera=long_walk(1, frames), intrinsics=matrix, depth=depth, seeds=[5])
    rgb, found = (np.concatenate(parts, axis=1) for parts in zip(*pieces, strict=True))

    world = DreamWorld(pipeline.parts)
    state, first = world.start([Start(rgb=picture[0], depth=depth[0], intrinsics=matrix[0])], [5])
    shown = [first]
    relative = long_walk(1, 40)
    relative[..., 2, 3] -= 3
    for begin in range(1, 24, 4):
        state, frames_of_step = world.advance(state, relative[:, begin : begin + 4])
        shown.append(frames_of_step)
    expected = {name: np.concatenate([getattr(step, name) for step in shown], axis=1) for name in ("rgb", "depth")}
    whole = frames - (frames - 1) % 4  # of a step that is cut off the path stands still at its end
    np.testing.assert_array_equal(rgb[:, :whole], expected["rgb"][:, :whole])
    np.testing.assert_array_equal(found[:, :whole], expected["depth"][:, :whole])
    assert rgb.shape[1] == found.shape[1] == frames


def test_walks_of_a_batch_do_not_depend_on_each_other(pipeline):
    given = {"world_from_camera": long_walk(2, 10), "intrinsics": camera(2)}
    both = list(pipeline.follow(pictures(2), **given, seeds=[1, 2]))
    second = {name: array[1:] for name, array in given.items()}
    for piece, alone in zip(both, pipeline.follow(pictures(2)[1:], **second, seeds=[2]), strict=True):
        assert np.abs(piece.rgb[1:].astype(int) - alone.rgb).max() <= 1
        np.testing.assert_allclose(piece.depth[1:], alone.depth, rtol=1e-3)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda p: p.reconstruct(pictures(1, 16)), "video"),
        (lambda p: p.predict(pictures(1).astype(np.float32)), "picture"),
        (lambda p: p.predict(pictures(0)), "picture"),
        (lambda p: p.predict(pictures(1), world_from_camera=sideways(1)), "intrinsics"),
        (
            lambda p: p.predict(pictures(1), world_from_camera=2 * sideways(1), intrinsics=camera(1)),
            "world_from_camera",
        ),
        (lambda p: p.predict(pictures(1), world_from_camera=sideways(2), intrinsics=camera(1)), "world_from_camera"),
        (lambda p: p.predict(pictures(1), intrinsics=camera(1) * np.nan), "intrinsics"),
        (lambda p: p.predict(pictures(1), depth=np.ones((1, 3, 3))), "depth"),
        (lambda p: p.predict(pictures(2), seeds=[1]), "seeds"),
        (lambda p: p.predict(None, depth=np.ones((1, HEIGHT, WIDTH))), "depth"),
        (lambda p: p.predict(pictures(1), num_frames=25), "num_frames"),
        (lambda p: p.plan(pictures(1), pictures(1), num_frames=16), "num_frames"),
        (lambda p: p.predict(pictures(1), fps=24), "fps"),
        (lambda p: list(p.follow(pictures(1), world_from_camera=sideways(2), intrinsics=camera(1))), "world_from_cam"),
        (lambda p: list(p.follow(pictures(1), world_from_camera=sideways(1), intrinsics=camera(1)[0])), "intrinsics"),
        (lambda p: p.plan(pictures(2), pictures(1)), "goal"),
        (lambda p: p.plan(pictures(1), pictures(1), goal_depth=np.ones((1, HEIGHT, WIDTH))), "goal_depth"),
    ],
)
def test_bad_arguments_are_named(pipeline, call, name):
    with pytest.raises(ValueError, match=name):
        call(pipeline)
