import numpy as np
import pytest
import torch

from aether_env.conventions import FAR_DEPTH
from aether_env.sim import clips as clips_module
from aether_env.sim import draw_clips, plan_clips, render_clips
from aether_env.sim.clips import draw_views, scene_intrinsics
from aether_env.sim.scenes import (
    FIRST_MOVER,
    FIRST_WALL,
    FLOOR,
    NUM_PLANES,
    SHAPES,
    SPHERE,
    sample_scenes,
)
from aether_env.sim.walks import camera_pose

SIZE = {"height": 24, "width": 36, "supersample": 1}
SEEDS = [3, 11, 14, 2**41 + 5]


@pytest.fixture(scope="module")
def plans():
    return plan_clips(SEEDS, num_frames=9)


@pytest.fixture(scope="module")
def clips(plans):
    return draw_clips(plans, **SIZE)


def test_shapes_types_and_ranges_are_as_promised(clips):
    shape = (len(SEEDS), 9, 24, 36)
    assert clips.rgb.shape == (*shape, 3) and clips.rgb.dtype == torch.uint8
    assert clips.depth.shape == shape and clips.depth.dtype == torch.float32
    assert clips.segmentation.shape == shape and clips.segmentation.dtype == torch.int16
    assert clips.valid.shape == clips.moving.shape == shape
    assert clips.world_from_camera.shape == (len(SEEDS), 9, 4, 4) and clips.world_from_camera.dtype == torch.float64
    assert clips.intrinsics.shape == (len(SEEDS), 9, 3, 3)
    assert torch.isfinite(clips.depth).all() and clips.depth.min() > 0 and clips.depth.max() <= FAR_DEPTH
    assert (clips.depth[~clips.valid] == FAR_DEPTH).all()
    assert torch.equal(clips.world_from_camera[:, 0], torch.eye(4, dtype=torch.float64).expand(len(SEEDS), 4, 4))


def test_a_clip_is_the_same_alone_in_a_batch_and_in_small_portions(clips):
    for row, seed in enumerate(SEEDS):
        alone = render_clips([seed], num_frames=9, **SIZE)
        for name in ("rgb", "depth", "segmentation", "moving", "world_from_camera", "intrinsics"):
            assert torch.equal(getattr(alone, name)[0], getattr(clips, name)[row]), (seed, name)
    portions = render_clips(SEEDS, num_frames=9, batch_views=10, **SIZE)
    assert torch.equal(portions.rgb, clips.rgb) and torch.equal(portions.depth, clips.depth)


def test_a_shorter_clip_is_the_beginning_of_a_longer_one_up_to_the_walk():
    short, long = (plan_clips(SEEDS, num_frames=t) for t in (5, 9))
    np.testing.assert_array_equal(short.mover_pose, long.mover_pose[:, :5])
    np.testing.assert_array_equal(short.scene_from_camera[:, 0], long.scene_from_camera[:, 0])


def test_depth_of_planes_and_balls_agrees_with_the_closed_form(plans):
    scenes = sample_scenes(range(40, 60))
    num = len(scenes)
    poses = camera_pose(scenes.start_position, scenes.start_angles)
    movers = plan_clips(range(40, 60), num_frames=1).mover_pose
    _, depth, segmentation = draw_views(scenes, movers, poses[:, None], **SIZE)
    depth, segmentation = depth[:, 0].numpy(), segmentation[:, 0].numpy()
    intrinsics = scene_intrinsics(scenes, 24, 36)
    y, x = np.mgrid[:24, :36] + 0.5
    checked = {"plane": 0, "ball": 0}
    for n in range(num):
        ray = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(intrinsics[n]).T  # camera z = 1
        direction, origin = ray @ poses[n, :3, :3].T, poses[n, :3, 3]
        for shape in np.unique(segmentation[n][segmentation[n] >= 0]):
            here = (segmentation[n] == shape) & (depth[n] < FAR_DEPTH)
            centre = scenes.position[n, shape]
            if shape in (FLOOR, *range(FIRST_WALL, NUM_PLANES)):
                normal = scenes.rotation[n, shape, :, 2]
                truth = ((centre - origin) @ normal) / (direction @ normal)
                checked["plane"] += here.sum()
            elif SHAPES[shape] == SPHERE and shape < FIRST_MOVER:
                a, b = (direction**2).sum(-1), direction @ (origin - centre)
                c = ((origin - centre) ** 2).sum() - scenes.size[n, shape, 0] ** 2
                truth = (-b - np.sqrt(np.maximum(b * b - a * c, 0))) / a
                checked["ball"] += here.sum()
            else:
                continue
            np.testing.assert_allclose(depth[n][here], truth[here], rtol=2e-3, err_msg=f"scene {n} shape {shape}")
    assert checked["plane"] > 3000 and checked["ball"] > 50


def test_static_pixels_land_on_the_same_depth_in_a_later_frame(clips):
    first, later = 0, 8
    good, total = 0, 0
    for n in range(len(SEEDS)):
        height, width = clips.depth.shape[-2:]
        intrinsics = clips.intrinsics[n, 0].double().numpy()
        y, x = np.mgrid[:height, :width] + 0.5
        ray = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(intrinsics).T
        points = ray * clips.depth[n, first].double().numpy()[..., None]
        pose = clips.world_from_camera[n, later].numpy()
        seen = (points - pose[:3, 3]) @ pose[:3, :3]
        pixel = seen @ intrinsics.T
        column, row = (np.floor(pixel[..., k] / np.maximum(pixel[..., 2], 1e-9)).astype(int) for k in (0, 1))
        static = (clips.valid[n, first] & ~clips.moving[n, first]).numpy() & (seen[..., 2] > 0.1)
        static &= (column >= 0) & (column < width) & (row >= 0) & (row < height)
        there = clips.depth[n, later].numpy()[row[static], column[static]]
        good += (np.abs(there - seen[static][:, 2]) < 0.05 * seen[static][:, 2]).sum()
        total += static.sum()
    assert total > 1500
    assert good / total > 0.85  # the rest is hidden in one of the frames, or on an edge


def test_movers_move_and_the_rest_stands_still():
    plans = plan_clips(range(30), num_frames=9)
    there = plans.scenes.mover_kind >= 0
    shift = np.linalg.norm(plans.mover_pose[:, -1, :, :3] - plans.mover_pose[:, 0, :, :3], axis=-1)
    assert there.any() and (shift[there] > 0.02).mean() > 0.9
    assert (shift[~there] == 0).all()
    moving = clips_module.moving_shapes(plans)
    assert not moving[:, :FIRST_MOVER].any()
    assert moving.any(axis=1).sum() >= 0.9 * there.any(axis=1).sum()


def test_pictures_are_neither_black_nor_washed_out_and_open_in_front():
    clips = render_clips(range(24), num_frames=1, **SIZE)
    mean = clips.rgb.float().mean(dim=(1, 2, 3, 4))
    assert mean.min() > 35 and mean.max() < 225
    assert clips.rgb.float().std(dim=(2, 3)).mean(dim=(1, 2)).min() > 8
    assert clips.depth.flatten(1).median(dim=1).values.min() > 0.8


def test_supersampling_changes_the_colours_and_leaves_depth_alone(plans, clips):
    smooth = draw_clips(plans, height=24, width=36, supersample=2)
    assert torch.equal(smooth.depth, clips.depth)
    difference = (smooth.rgb.float() - clips.rgb.float()).abs().mean()
    assert 0.2 < difference < 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_what_a_cpu_draws(plans, clips):
    drawn = draw_clips(plans, device="cuda", **SIZE)
    alike = torch.isclose(drawn.depth.cpu(), clips.depth, rtol=1e-3)
    assert alike.float().mean() > 0.995  # edges may round differently
    assert (drawn.rgb.cpu().float() - clips.rgb.float()).abs().mean() < 2
    assert (drawn.segmentation.cpu() == clips.segmentation).float().mean() > 0.995


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"num_frames": 0}, "num_frames"),
        ({"fps": 0.0}, "fps"),
        ({"family": "cave"}, "family"),
        ({"height": 0}, "height"),
        ({"seeds": [-1]}, "seeds"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [0.5]}, "seeds"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        render_clips(**({"seeds": [1], "num_frames": 1} | arguments))
