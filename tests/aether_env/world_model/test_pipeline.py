"""The three tasks: what is given comes back, items are independent, errors are named. The weights are random."""

from dataclasses import replace

import numpy as np
import pytest

from aether_env.camera import intrinsics_from_fov
from aether_env.world_model.pipeline import CLIP_FRAMES, AetherPipeline
from aether_env.world_model.views import View

HEIGHT, WIDTH = 16, 24


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return AetherPipeline.from_pretrained(tiny_checkpoint)


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
    looker = AetherPipeline.from_pretrained(tiny_checkpoint, reconstruct_views=count)
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
    once = AetherPipeline.from_pretrained(tiny_checkpoint).reconstruct(video)
    assert np.abs(once.depth / result.depth - 1).max() > 0.01


def test_looking_twice_keeps_known_depth_and_path(tiny_checkpoint):
    looker = AetherPipeline.from_pretrained(tiny_checkpoint, reconstruct_views=4)
    depth = np.random.default_rng(1).uniform(1, 5, (2, HEIGHT, WIDTH)).astype(np.float32)
    given = {"depth": depth, "world_from_camera": sideways(2), "intrinsics": camera(2)}
    result = looker.reconstruct(pictures(2, CLIP_FRAMES), **given)
    np.testing.assert_array_equal(result.depth[:, 0], depth)
    np.testing.assert_array_equal(result.world_from_camera, sideways(2))
    np.testing.assert_array_equal(result.intrinsics[:, 3], camera(2))
    assert result.metric.all()


@pytest.mark.parametrize("views", [0, 3, True, 8])
def test_impossible_numbers_of_looks_are_refused(tiny_checkpoint, views):
    with pytest.raises(ValueError, match="reconstruct_views must be 1"):
        AetherPipeline.from_pretrained(tiny_checkpoint, reconstruct_views=views)


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
    other = AetherPipeline(replace(pipeline.components, settings=several))
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
        (lambda p: p.plan(pictures(2), pictures(1)), "goal"),
        (lambda p: p.plan(pictures(1), pictures(1), goal_depth=np.ones((1, HEIGHT, WIDTH))), "goal_depth"),
    ],
)
def test_bad_arguments_are_named(pipeline, call, name):
    with pytest.raises(ValueError, match=name):
        call(pipeline)
