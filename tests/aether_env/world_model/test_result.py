from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import trimesh
from PIL import Image

from aether_env.camera import CameraPath, intrinsics_from_fov, invert_pose, make_pose, motion_from_action, se3_exp
from aether_env.paths import read_path
from aether_env.videos import Note
from aether_env.world_model import result as result_module
from aether_env.world_model.result import VideoResult, write_tum

HEIGHT, WIDTH, FPS = 16, 24, 12.0
QUARTER = np.pi / 2


def path_through(positions, rotation_vectors=None):
    turns = np.zeros_like(positions) if rotation_vectors is None else rotation_vectors
    intrinsics = intrinsics_from_fov(np.deg2rad(70), HEIGHT, WIDTH)
    return CameraPath(motion_from_action(np.asarray(positions, float), np.asarray(turns, float)), intrinsics)


def straight(num_frames=5, length=2.0):
    return path_through(np.linspace([0, 0, 0], [0, 0, length], num_frames))


def result_of(path, /, **changes):
    """A wall 2 before the camera, with a pillar 1 before it in the middle columns."""
    rng = np.random.default_rng(0)
    depth = np.full((len(path), HEIGHT, WIDTH), 2.0, np.float32)
    depth[:, :, 10:14] = 1.0
    parts = {
        "rgb": rng.integers(0, 256, (len(path), HEIGHT, WIDTH, 3), np.uint8),
        "disparity": (1 / depth).astype(np.float32),
        "depth": depth,
        "path": path,
        "unit": 0.5,
        "metric": True,
        "fps": FPS,
    }
    return VideoResult(**{**parts, **changes})


def full_result():
    rng = np.random.default_rng(1)
    path = CameraPath(
        se3_exp(0.3 * rng.normal(size=(3, 6))),
        intrinsics_from_fov(np.deg2rad([60.0, 61.0, 62.0]), HEIGHT, WIDTH),
    )
    notes = (
        Note(
            what="cropped", text="480 x 640 about the centre", numbers={"from_height": np.int64(480), "from_width": 640}
        ),
        Note(what="padded", text="with the last frame"),
    )
    return result_of(
        path,
        covariance=np.tile(np.diag(rng.uniform(size=6)), (3, 1, 1)),
        raymap=rng.normal(size=(3, 6, 4, 6)).astype(np.float32),
        disparity=rng.uniform(0, 2, (3, HEIGHT, WIDTH)).astype(np.float32),
        depth=rng.uniform(0.5, 4, (3, HEIGHT, WIDTH)).astype(np.float32),
        notes=notes,
    )


# Saving and loading


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "deep" / "video"
    assert full_result().save(str(folder)) == folder.resolve()
    return folder


def test_a_saved_result_loads_as_it_was(saved):
    before, after = full_result(), VideoResult.load(saved)
    for name in ("rgb", "disparity", "depth", "covariance", "raymap"):
        array = getattr(after, name)
        assert array.dtype == getattr(before, name).dtype
        np.testing.assert_array_equal(array, getattr(before, name))
    np.testing.assert_array_equal(after.path.intrinsics, before.path.intrinsics)
    np.testing.assert_allclose(after.path.world_from_camera, before.path.world_from_camera, rtol=0, atol=1e-14)
    assert (after.unit, after.metric, after.fps, after.notes) == (0.5, True, FPS, before.notes)


def test_a_single_frame_without_covariance_raymap_or_scale_loads_as_it_was(tmp_path):
    before = result_of(straight(1), metric=False, unit=1.0)
    after = VideoResult.load(before.save(tmp_path))  # an empty folder may be there already
    np.testing.assert_array_equal(after.rgb, before.rgb)
    assert after.covariance is None and after.raymap is None
    assert not after.metric and len(after) == 1 and after.notes == ()


def test_the_json_lists_every_other_file_and_says_all_numbers(saved):
    about = json.loads((saved / "result.json").read_text())
    on_disk = {file.relative_to(saved).as_posix() for file in saved.rglob("*") if file.is_file()}
    assert set(about["files"]) == on_disk - {"result.json"}
    assert on_disk >= {"rgb.mp4", "depth.mp4", "sheet.png", "cloud.glb", "cloud.ply", "path.tum", "depth.npy"}
    assert (about["frames"], about["height"], about["width"], about["fps"]) == (3, HEIGHT, WIDTH, FPS)
    assert (about["unit"], about["metric"], about["length_unit"]) == (0.5, True, "metre")
    np.testing.assert_array_equal(about["intrinsics"], full_result().path.intrinsics)
    assert about["notes"][0]["numbers"] == {"from_height": 480, "from_width": 640}


def test_sixteen_bit_depth_divided_by_its_scale_is_the_depth(saved):
    scale = json.loads((saved / "result.json").read_text())["depth_png_scale"]
    for t, depth in enumerate(full_result().depth):
        levels = np.asarray(Image.open(saved / "depth" / f"{t:05d}.png"))
        assert levels.dtype == np.uint16
        np.testing.assert_allclose(levels / scale, depth, rtol=0, atol=0.51 / scale)
    assert scale == pytest.approx(65535 / full_result().depth.max())


def test_depth_too_near_for_sixteen_bits_is_not_written_as_unknown(tmp_path):
    depth = np.full((1, HEIGHT, WIDTH), 100.0, np.float32)
    depth[0, 0, 0] = 1e-4
    folder = result_of(straight(1), depth=depth).save(tmp_path / "video")
    assert np.asarray(Image.open(folder / "depth" / "00000.png")).min() == 1


def test_both_videos_have_every_frame_at_the_results_rate(saved):
    for name in ("rgb.mp4", "depth.mp4"):
        assert len(iio.imread(saved / name)) == 3
        assert iio.immeta(saved / name)["fps"] == pytest.approx(FPS)


def test_clouds_hold_the_pillar_and_the_wall_but_nothing_of_the_edge_between_them(tmp_path):
    path = path_through(np.array([[0.0, 0, 0], [0.5, 0, 0]]))
    folder = result_of(path).save(tmp_path / "video")
    scene = trimesh.load(folder / "cloud.glb")
    points = scene.geometry["points"].vertices * [1, -1, -1]  # glTF's y is up, its z backward
    # Of 24 columns the two beside each of the pillar's two sides are edges, in both frames.
    assert len(points) == 2 * HEIGHT * (WIDTH - 4)
    assert sorted(set(points[:, 2].round(6))) == [1.0, 2.0]
    focal = WIDTH / 2 / np.tan(np.deg2rad(35))
    first_pixel = np.array([0.5 - WIDTH / 2, 0.5 - HEIGHT / 2, focal]) * 2 / focal
    np.testing.assert_allclose(points[0], first_pixel, atol=1e-5)
    cameras = scene.geometry["cameras"].vertices * [1, -1, -1]
    for centre in path.world_from_camera[:, :3, 3]:
        assert np.linalg.norm(cameras - centre, axis=-1).min() < 1e-6
    flat = trimesh.load(folder / "cloud.ply")
    np.testing.assert_allclose(flat.vertices[: len(points)], points, atol=1e-5)


def test_clouds_leave_out_the_sky_and_are_thinned_evenly():
    depth = np.full((40, HEIGHT, WIDTH), 2.0, np.float32)
    depth[:, :4] = 100.0
    result = result_of(straight(40), depth=depth)
    points, colours = result.point_cloud()
    assert points[:, 2].max() <= 2.0 + 2.0  # the last camera is at 2, the wall 2 before it
    assert points.shape == colours.shape and len(points) > 1000
    thinned, _ = result.point_cloud(max_points=1000)
    assert 500 < len(thinned) <= 1000
    assert np.ptp(thinned[:, 2]) > 0.9 * np.ptp(points[:, 2])


def test_a_video_that_is_edges_everywhere_is_saved_without_a_cloud(tmp_path):
    depth = np.where(np.indices((1, HEIGHT, WIDTH)).sum(0) % 2, 1.0, 3.0).astype(np.float32)
    depth[:, [0, -1]], depth[:, :, [0, -1]] = 100.0, 100.0
    folder = result_of(straight(1), depth=depth).save(tmp_path / "video")
    assert not list(folder.glob("cloud.*"))
    assert VideoResult.load(folder).depth[0, 5, 5] == depth[0, 5, 5]


def test_saving_again_replaces_the_earlier_result_and_leaves_nothing_of_it(tmp_path):
    full_result().save(tmp_path / "video")
    result_of(straight(1)).save(tmp_path / "video")
    assert len(VideoResult.load(tmp_path / "video")) == 1
    assert not (tmp_path / "video" / "raymap.npy").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["video"]


def put_thesis(folder):
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")


def put_other_json(folder):
    folder.mkdir()
    (folder / "result.json").write_text('{"format": "something else"}')


def put_result_and_thesis(folder):
    result_of(straight(1)).save(folder)
    (folder / "rgb" / "thesis.txt").write_text("years of work")


def put_file(folder):
    folder.write_text("years of work")


@pytest.mark.parametrize("put", [put_thesis, put_other_json, put_result_and_thesis, put_file])
def test_saving_refuses_a_place_that_holds_something_else_and_leaves_it_alone(tmp_path, put):
    put(tmp_path / "video")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="folder|video"):
        result_of(straight(2)).save(tmp_path / "video")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_saving_that_fails_on_the_way_leaves_the_earlier_result_and_no_rest(tmp_path, monkeypatch):
    folder = result_of(straight(1)).save(tmp_path / "video")

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(result_module, "write_points", full_disk)
    for name in ("video", "new"):
        with pytest.raises(OSError, match="No space"):
            result_of(straight(2)).save(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["video"]
    assert len(VideoResult.load(folder)) == 1


def cut_depth(folder):
    data = (folder / "depth.npy").read_bytes()
    (folder / "depth.npy").write_bytes(data[: len(data) // 2])


def edit_json(**changes):
    def edit(folder):
        about = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps({**about, **changes}))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_depth, "depth.npy"),
        (edit_json(height=10**6), "depth.npy must have the shape"),
        (edit_json(version=2), "not of a saved result"),
        (edit_json(intrinsics=[[1.0]]), "intrinsics"),
        (edit_json(notes=[{"who": "?"}]), "result.json"),
        (lambda folder: (folder / "rgb" / "00001.png").unlink(), "00001.png"),
        (lambda folder: (folder / "rgb" / "00001.png").write_bytes(b"no picture"), "00001.png"),
        (lambda folder: (folder / "path.tum").write_text("0 0 0 0 0 0 0 1\n"), "path must have one pose"),
        (lambda folder: (folder / "result.json").unlink(), "not a saved result"),
    ],
)
def test_loading_a_damaged_folder_names_what_is_wrong(tmp_path, damage, message):
    folder = result_of(straight(2)).save(tmp_path / "video")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        VideoResult.load(folder)


# What a result accepts

NAN = np.full((5, HEIGHT, WIDTH), np.nan, np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rgb": np.zeros((5, HEIGHT, WIDTH), np.uint8)}, "rgb must be uint8"),
        ({"rgb": np.zeros((5, HEIGHT, WIDTH, 3))}, "rgb must be uint8"),
        ({"rgb": np.zeros((0, HEIGHT, WIDTH, 3), np.uint8)}, "T >= 1"),
        ({"depth": NAN}, "depth must be finite, but frame 0"),
        ({"depth": NAN[:4]}, "depth must be float32"),
        ({"depth": np.ones((5, HEIGHT, WIDTH))}, "depth must be float32"),
        ({"depth": np.zeros_like(NAN)}, "depth must be positive"),
        ({"disparity": NAN}, "disparity must be finite"),
        ({"disparity": np.full_like(NAN, -0.1)}, "disparity must not be negative"),
        ({"path": straight(4)}, "one pose for each of the 5 frames, got 4"),
        ({"covariance": np.zeros((5, 3, 3))}, "covariance"),
        ({"covariance": np.full((5, 6, 6), np.inf)}, "covariance must be finite"),
        ({"raymap": np.zeros((5, 3, 2, 3), np.float32)}, "raymap"),
        ({"raymap": np.zeros((5, 6, 2), np.float32)}, "raymap"),
        ({"unit": 0.0}, "unit must be positive"),
        ({"fps": float("nan")}, "fps must be positive"),
    ],
)
def test_a_result_that_does_not_hold_together_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        result_of(straight(5), **changes)


def test_infinitely_far_is_disparity_zero():
    assert result_of(straight(1), disparity=np.zeros((1, HEIGHT, WIDTH), np.float32)).disparity.max() == 0


# The way of a robot's hand


def test_a_hand_that_is_the_camera_follows_the_path_frame_by_frame():
    result = full_result()
    times, poses = result.to_poses()
    np.testing.assert_allclose(times, [0, 1 / 12, 2 / 12])
    np.testing.assert_allclose(poses, result.path.world_from_camera, atol=1e-12)


def test_hand_eye_calibration_moves_the_hand_against_the_camera():
    # The camera sits 0.1 m before the hand and looks the same way; it turns left by 90 degrees on the spot. So the
    # hand, 0.1 m behind the camera's back, goes round it from behind to its right (world axes: x right, z forward).
    path = path_through(np.zeros((2, 3)), np.array([[0, 0, 0], [0, -QUARTER, 0]]))
    hand_from_camera = make_pose(np.eye(3), [0, 0, 0.1])
    times, hand = result_of(path).to_poses(hand_from_camera=hand_from_camera, rate_hz=24.0)
    np.testing.assert_allclose(times, [0, 1 / 24, 2 / 24])
    turn = -QUARTER * np.array([0, 0.5, 1])
    circle = -0.1 * np.stack([np.sin(turn), 0 * turn, np.cos(turn)], axis=-1)
    np.testing.assert_allclose(hand[:, :3, 3], circle, atol=1e-12)
    np.testing.assert_allclose(hand[-1, :3, 3], [0.1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(hand @ hand_from_camera, motion_from_action(np.zeros((3, 3)), turn[:, None] * [0, 1, 0]))


def test_poses_in_the_robots_base_start_where_the_robot_stands():
    rng = np.random.default_rng(3)
    base_from_hand, hand_from_camera = se3_exp(rng.normal(size=(2, 6)))
    result = result_of(full_result().path.relative_to_first())
    _, hand = result.to_poses(hand_from_camera=hand_from_camera, base_from_world=base_from_hand @ hand_from_camera)
    np.testing.assert_allclose(hand[0], base_from_hand, atol=1e-12)
    # Whatever the base, the camera in the hand moves as the path says.
    camera = hand @ hand_from_camera
    np.testing.assert_allclose(invert_pose(camera[:1]) @ camera, result.path.world_from_camera, atol=1e-12)


def test_a_straight_line_takes_its_length_over_the_speed_limit():
    # 2 m, with frames unevenly spread: the fastest of the 4 frames' steps (1 m in 1/12 s) decides for all.
    even, uneven = (
        result_of(straight(5, length=2.0)),
        result_of(path_through([[0, 0, z] for z in (0, 1, 1.5, 1.75, 2)])),
    )
    times, poses = even.to_poses(max_speed=0.25, rate_hz=10.0)
    assert times[-1] == pytest.approx(8.0) and len(times) == 81
    np.testing.assert_allclose(np.diff(poses[:, 2, 3]), 0.025, atol=1e-12)
    times, poses = uneven.to_poses(max_speed=0.25, rate_hz=10.0)
    assert times[-1] == pytest.approx(4 * 1 / 0.25)
    assert (np.diff(poses[:, 2, 3]) / np.diff(times)).max() == pytest.approx(0.25)


def test_a_turn_takes_its_angle_over_the_turn_limit():
    path = path_through(np.zeros((5, 3)), np.linspace([0, 0, 0], [0, QUARTER, 0], 5))
    times, _ = result_of(path).to_poses(max_turn=QUARTER / 3, max_speed=1.0, rate_hz=20.0)
    assert times[-1] == pytest.approx(3.0)


def test_the_speed_limit_is_the_hands_not_the_cameras():
    path = path_through(np.zeros((5, 3)), np.linspace([0, 0, 0], [0, QUARTER, 0], 5))
    arm = make_pose(np.eye(3), [0, 0, 0.4])
    times, _ = result_of(path).to_poses(hand_from_camera=arm, max_speed=0.1 * np.pi, rate_hz=50.0)
    assert times[-1] == pytest.approx(QUARTER * 0.4 / (0.1 * np.pi))  # a quarter of a circle of 0.4 m: 2 s


def test_a_path_that_is_slow_enough_keeps_its_time_up_to_one_step():
    times, poses = result_of(straight(17, length=1.0)).to_poses(max_speed=5.0, max_turn=1.0, rate_hz=50.0)
    np.testing.assert_allclose(np.diff(times), 1 / 50)
    assert 16 / 12 <= times[-1] < 16 / 12 + 1 / 50
    np.testing.assert_allclose(poses[-1, :3, 3], [0, 0, 1.0], atol=1e-12)


def test_one_frame_is_one_pose_and_a_slow_rate_still_ends_at_the_goal():
    times, poses = result_of(straight(1)).to_poses(max_speed=1.0)
    assert times.tolist() == [0.0] and poses.shape == (1, 4, 4)
    times, poses = result_of(straight(5)).to_poses(rate_hz=1.0)
    assert times.tolist() == [0.0, 1.0] and poses[-1, 2, 3] == pytest.approx(2.0)


def test_a_result_without_scale_needs_metres_per_unit():
    dream = result_of(straight(5, length=2.0), metric=False, unit=1.0)
    with pytest.raises(ValueError, match="metres_per_unit must be given"):
        dream.to_poses()
    arm = make_pose(np.eye(3), [0, 0, 0.1])
    times, poses = dream.to_poses(hand_from_camera=arm, metres_per_unit=0.5, max_speed=0.25)
    assert times[-1] == pytest.approx(4.0)
    np.testing.assert_allclose(poses[[0, -1], 2, 3], [-0.1, 0.9])  # the path is scaled, the hand is not


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metres_per_unit": 1.0}, "metres_per_unit must be None"),
        ({"hand_from_camera": 2 * np.eye(4)}, "hand_from_camera"),
        ({"hand_from_camera": np.full((4, 4), np.nan)}, "hand_from_camera must be finite"),
        ({"hand_from_camera": np.eye(4)[None]}, "hand_from_camera must be one pose"),
        ({"base_from_world": np.eye(3)}, "base_from_world"),
        ({"rate_hz": 0.0}, "rate_hz must be positive"),
        ({"max_speed": -1.0}, "max_speed must be positive"),
        ({"max_turn": float("nan")}, "max_turn must be positive"),
    ],
)
def test_poses_for_a_robot_refuse_bad_numbers_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        result_of(straight(5)).to_poses(**arguments)


# TUM text


def test_a_tum_file_is_written_as_numbers_in_the_published_order(tmp_path):
    poses = motion_from_action(np.array([[1.0, 2, 3], [4, 5, 6]]), np.array([[0, 0, 0], [0, np.pi, 0]]))
    file = write_tum(tmp_path / "new" / "path.tum", np.array([0.0, 0.5]), poses)
    table = np.loadtxt(file)
    np.testing.assert_allclose(table, [[0, 1, 2, 3, 0, 0, 0, 1], [0.5, 4, 5, 6, 0, 1, 0, 0]], atol=1e-15)
    assert [p.name for p in file.parent.iterdir()] == ["path.tum"]


def test_a_written_trajectory_reads_back(tmp_path):
    poses = se3_exp(np.random.default_rng(5).normal(size=(20, 6)) * 2)
    times = np.arange(20) / 30 + 1.3e9
    read = read_path(write_tum(tmp_path / "path.tum", times, poses))
    np.testing.assert_allclose(read.seconds, times - times[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(read.world_from_camera, poses, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("times", "poses", "message"),
    [
        ([0.0, 0.0], np.tile(np.eye(4), (2, 1, 1)), "increasing"),
        ([0.0, np.nan], np.tile(np.eye(4), (2, 1, 1)), "finite"),
        ([0.0], np.tile(np.eye(4), (2, 1, 1)), "times and poses"),
        ([0.0], 2 * np.eye(4)[None], "world_from_camera"),
    ],
)
def test_no_trajectory_is_written_from_bad_numbers(tmp_path, times, poses, message):
    with pytest.raises(ValueError, match=message):
        write_tum(tmp_path / "path.tum", np.array(times), poses)
    assert not list(tmp_path.iterdir())


def test_a_result_may_lie_on_disk(tmp_path):
    result = full_result()
    mapped = np.lib.format.open_memmap(tmp_path / "rgb.npy", "w+", np.uint8, result.rgb.shape)
    mapped[:] = result.rgb
    on_disk = replace(result, rgb=mapped)
    assert isinstance(on_disk.rgb, np.memmap)
    np.testing.assert_array_equal(VideoResult.load(on_disk.save(tmp_path / "video")).rgb, result.rgb)
    assert Path(tmp_path / "rgb.npy").exists()
