import dataclasses
import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from aether_env import paths
from aether_env.camera import CameraPath, invert_pose, make_pose, motion_from_action, poses_in_axes, scale_poses
from aether_env.envs.actions import Se3Action
from aether_env.paths import check_range, poses_from, read_path, walk_path
from aether_env.sim import plan_clips, walks
from policies import scripted

EYE = np.eye(3)


def path_of(num: int = 6, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return make_pose(Rotation.random(num, rng=rng).as_matrix(), rng.normal(size=(num, 3)))


def still(num: int) -> np.ndarray:
    return np.tile(np.eye(4), (num, 1, 1))


def forward(num: int, step: float) -> np.ndarray:
    poses = still(num)
    poses[:, 2, 3] = step * np.arange(num)
    return poses


@pytest.mark.parametrize(
    "axes, ahead, upward, left_about",
    [
        ("opencv", [0, 0, 1], [0, -1, 0], [0, -1, 0]),
        ("opengl", [0, 0, -1], [0, 1, 0], [0, 1, 0]),
        ("blender", [0, 0, -1], [0, 1, 0], [0, 1, 0]),
        ("ros", [1, 0, 0], [0, 0, 1], [0, 0, 1]),
    ],
)
def test_forward_up_and_turning_left_are_so_in_everyone_s_axes(axes, ahead, upward, left_about):
    turn = Rotation.from_rotvec(np.deg2rad(30) * np.array(left_about, float)).as_matrix()
    theirs = np.stack([np.eye(4), make_pose(EYE, ahead), make_pose(EYE, upward), make_pose(turn, [0, 0, 0])])
    ours = poses_from(theirs, axes=axes)
    expected = np.stack([np.eye(4), *(walk_path(words)[-1] for words in ("forward 1", "up 1", "turn-left 30"))])
    np.testing.assert_allclose(ours, expected, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 1000),
    st.sampled_from(["opencv", "opengl", "blender", "ros", "unreal"]),
    st.sampled_from(["camera_to_world", "world_to_camera"]),
    st.sampled_from(["4x4", "3x4", "16", "12", "wxyz", "xyzw"]),
    st.floats(0.01, 100),
)
def test_every_way_of_writing_a_path_reads_back(seed, axes, kind, layout, scale):
    ours = path_of(5, seed)
    theirs = poses_in_axes(CameraPath(scale_poses(ours, 1 / scale), EYE), axes=axes, kind=kind)
    given_args: tuple = (theirs,)
    order = None
    if layout in ("wxyz", "xyzw"):
        xyzw = Rotation.from_matrix(theirs[:, :3, :3]).as_quat() * 3  # of any length
        order, given_args = layout, (theirs[:, :3, 3], xyzw if layout == "xyzw" else xyzw[:, [3, 0, 1, 2]])
    elif layout != "4x4":
        rows = theirs if layout == "16" else theirs[:, :3]
        given_args = (rows.reshape(5, -1) if layout in ("12", "16") else rows,)
    found = poses_from(*given_args, order=order, axes=axes, kind=kind, scene_scale=scale)
    np.testing.assert_allclose(found, ours, atol=1e-9)


def test_rotations_that_are_only_rounded_become_exact():
    true = path_of()
    found = poses_from(np.round(true, 3))
    np.testing.assert_allclose(found[:, :3, :3] @ found[:, :3, :3].swapaxes(1, 2), np.tile(EYE, (6, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(found, true, atol=1.5e-3)


@pytest.mark.parametrize(
    "args, kwargs, message",
    [
        ((2 * path_of(),), {}, "rigid|bottom row"),
        ((path_of() * np.diag([1.0, 1.0, -1.0, 1.0]).diagonal(),), {}, "mirrored"),
        ((np.full((2, 4, 4), np.nan),), {}, "finite"),
        ((np.zeros((0, 4, 4)),), {}, "shape"),
        ((np.zeros((3, 5)),), {}, "shape"),
        (([[1, 2], [3]],), {}, "one shape"),
        (("far",), {}, "numbers"),
        ((np.zeros((3, 3)), np.ones((3, 4))), {}, "order"),
        ((np.zeros((3, 3)), np.ones((2, 4))), {"order": "wxyz"}, "positions"),
        ((np.zeros((3, 3)), np.zeros((3, 4))), {"order": "wxyz"}, "zero"),
        ((path_of(),), {"axes": "colmap"}, "axes"),
        ((path_of(),), {"kind": "extrinsics"}, "kind"),
        ((path_of(),), {"scene_scale": 0}, "positive"),
    ],
)
def test_what_is_no_path_is_refused(args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        poses_from(*args, **kwargs)


def test_a_tum_file_is_read(tmp_path):
    file = tmp_path / "path.txt"
    half = np.sqrt(0.5)
    file.write_text(f"# seconds x y z qx qy qz qw\n100.0 0 0 0 0 0 0 1\n\n100.5 1 2 3 0 {half} 0 {half}\n")
    path = read_path(file, scene_scale=2)
    assert path.seconds is not None and path.seconds.tolist() == [0.0, 0.5]
    turned = [[0, 0, 1, 2], [0, 1, 0, 4], [-1, 0, 0, 6], [0, 0, 0, 1]]  # a quarter to the right, about y
    np.testing.assert_allclose(path.world_from_camera, [np.eye(4), turned], atol=1e-9)


def test_lists_and_arrays_of_matrices_are_read(tmp_path):
    poses = path_of()
    seconds, matrix = np.arange(6) / 12 + 3.0, np.array([[30.0, 0, 24], [0, 30, 16], [0, 0, 1]])
    beside = {"intrinsics": matrix, "picture_size": np.array([32, 48]), "seconds": seconds}
    (tmp_path / "list.json").write_text(json.dumps(poses.tolist()))
    (tmp_path / "rows.json").write_text(json.dumps(poses[:, :3].tolist()))
    told = {"world_from_camera": poses} | beside
    (tmp_path / "named.json").write_text(json.dumps({name: np.asarray(v).tolist() for name, v in told.items()}))
    (tmp_path / "kitti.txt").write_text("\n".join(" ".join(map(repr, row.ravel().tolist())) for row in poses[:, :3]))
    np.save(tmp_path / "poses.npy", poses)
    np.savez(tmp_path / "only.npz", anything=poses, other=np.zeros(3))
    np.savez(tmp_path / "named.npz", **told, noisy_pose=path_of(6, 1))
    for name in ("list.json", "rows.json", "named.json", "kitti.txt", "poses.npy", "only.npz", "named.npz"):
        path = read_path(tmp_path / name)
        np.testing.assert_allclose(path.world_from_camera, poses, atol=1e-12)
        if name.startswith("named"):
            assert path.seconds is not None and path.intrinsics is not None
            np.testing.assert_allclose(path.seconds, np.arange(6) / 12)
            np.testing.assert_allclose(path.intrinsics, np.tile(matrix, (6, 1, 1)))
            assert path.picture_size == (32, 48)
    back = read_path(tmp_path / "poses.npy", axes="ros", kind="world_to_camera").world_from_camera
    np.testing.assert_allclose(poses_in_axes(CameraPath(back, EYE), axes="ros"), invert_pose(poses), atol=1e-9)


def test_transforms_json_is_read_in_the_order_of_its_files(tmp_path):
    ours = path_of(12)
    theirs = poses_in_axes(CameraPath(ours, EYE), axes="opengl")
    frames = [{"file_path": f"images/frame_{n}.png", "transform_matrix": theirs[n].tolist()} for n in range(12)]
    frames[3]["fl_x"] = frames[3]["fl_y"] = 77.0
    camera = {"w": 200, "h": 100, "fl_x": 150.0, "fl_y": 160.0, "cx": 98.0, "cy": 51.0, "camera_model": "OPENCV"}
    file = tmp_path / "transforms.json"
    file.write_text(json.dumps(camera | {"frames": frames[::-1]}))
    path = read_path(file)
    np.testing.assert_allclose(path.world_from_camera, ours, atol=1e-9)
    assert path.intrinsics is not None and path.picture_size == (100, 200)
    np.testing.assert_allclose(path.intrinsics[0], [[150, 0, 98], [0, 160, 51], [0, 0, 1]])
    assert path.intrinsics[3, 0, 0] == 77.0
    # The middle 100 x 100 is kept and halved.
    fitted = path.camera_path(50, 50)
    np.testing.assert_allclose(fitted.intrinsics[0], [[75, 0, 24], [0, 80, 25.5], [0, 0, 1]])


def test_blender_s_angle_is_a_full_horizontal_one(tmp_path):
    frames = [{"file_path": "r_0", "transform_matrix": np.eye(4).tolist()}]
    file = tmp_path / "transforms.json"
    file.write_text(json.dumps({"camera_angle_x": np.pi / 2, "frames": frames}))
    assert read_path(file).camera_path(32, 48).intrinsics[0, 0, 0] == pytest.approx(24)
    file.write_text(json.dumps({"camera_angle_x": np.pi / 2, "w": 800, "h": 800, "frames": frames}))
    assert read_path(file).camera_path(400, 400).intrinsics[0, 0, 0] == pytest.approx(200)


def test_a_file_without_a_camera_takes_the_assumed_one(tmp_path):
    np.save(tmp_path / "poses.npy", path_of())
    assert read_path(tmp_path / "poses.npy").camera_path(32, 48, 90).intrinsics[0, 0, 0] == pytest.approx(24)


def test_intrinsics_of_an_unknown_size_are_not_guessed_at(tmp_path):
    np.savez(
        tmp_path / "path.npz",
        camera_pose=path_of(),
        intrinsic=np.tile([[30.0, 0, 24], [0, 30, 16], [0, 0, 1]], (6, 1, 1)),
    )
    path = read_path(tmp_path / "path.npz")
    with pytest.raises(ValueError, match="picture_size"):
        path.camera_path(32, 48)
    told = dataclasses.replace(path, picture_size=(32, 48))
    np.testing.assert_allclose(told.camera_path(64, 96).intrinsics[0], [[60, 0, 48], [0, 60, 32], [0, 0, 1]])


@pytest.mark.parametrize(
    "name, content",
    [
        ("missing.json", None),
        ("path.csv", "0 0 0"),
        ("empty.txt", ""),
        ("short.txt", "0 0 0 0\n"),
        ("uneven.txt", "0 0 0 0 0 0 0 1\n1 0 0 0 0 0 0\n"),
        ("word.txt", "0 0 zero 0 0 0 0 1\n"),
        ("order.txt", "1 0 0 0 0 0 0 1\n0 0 0 0 0 0 0 1\n"),
        ("nan.txt", "0 nan 0 0 0 0 0 1\n"),
        ("long.txt", "0 0 0 0 0 0 0 2\n"),
        ("bytes.txt", b"\xff\xfe\x00"),
        ("half.json", "[[[1, 0"),
        ("empty.json", "[]"),
        ("number.json", "3"),
        ("other.json", '{"poses_of": []}'),
        ("none.json", '{"frames": []}'),
        ("lacking.json", '{"frames": [{"file_path": "a"}]}'),
        ("fisheye.json", '{"camera_model": "OPENCV_FISHEYE", "frames": []}'),
        ("huge.json", json.dumps({"world_from_camera": [np.eye(4).tolist()], "picture_size": [10**9, 10**9]})),
        ("text.npy", "not an array"),
        ("text.npz", "not an archive"),
    ],
)
def test_a_file_that_holds_no_path_is_refused_by_name(tmp_path, name, content):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=name):
        read_path(file)


def test_arrays_that_could_be_several_paths_or_hold_objects_are_refused(tmp_path):
    np.savez(tmp_path / "two.npz", one=path_of(), two=path_of())
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name in ("two.npz", "objects.npy"):
        with pytest.raises(ValueError, match=name):
            read_path(tmp_path / name)


def test_a_large_file_is_refused_unread(tmp_path, monkeypatch):
    np.save(tmp_path / "poses.npy", path_of())
    np.savez_compressed(tmp_path / "bomb.npz", poses=np.zeros((100_000, 4, 4)))
    monkeypatch.setattr(paths, "MAX_FILE_BYTES", 100_000)
    assert len(read_path(tmp_path / "poses.npy")) == 6
    with pytest.raises(ValueError, match="12,800,.* bytes"):
        read_path(tmp_path / "bomb.npz")
    monkeypatch.setattr(paths, "MAX_FILE_BYTES", 100)
    with pytest.raises(ValueError, match="at most 100 are read"):
        read_path(tmp_path / "poses.npy")


def test_a_path_is_brought_to_a_number_of_frames_or_to_a_rate():
    # One metre ahead in the first second, two in the half after it, then a quarter turn on the spot in one more.
    words = [
        np.eye(4),
        walk_path("forward 1")[-1],
        walk_path("forward 3")[-1],
        walk_path("forward 3 turn-right 90")[-1],
    ]
    path = paths.GivenPath(world_from_camera=np.stack(words), seconds=np.array([0.0, 1.0, 1.5, 2.5]))
    timed = path.at_fps(4)
    np.testing.assert_allclose(timed.seconds, np.arange(11) / 4)
    np.testing.assert_allclose(timed.world_from_camera[:, 2, 3], [0, 0.25, 0.5, 0.75, 1, 2, 3, 3, 3, 3, 3], atol=1e-9)
    angle = Rotation.from_matrix(timed.world_from_camera[:, :3, :3]).as_rotvec(degrees=True)[:, 1]
    np.testing.assert_allclose(angle, [0, 0, 0, 0, 0, 0, 0, 22.5, 45, 67.5, 90], atol=1e-9)
    even = path.resampled(7)
    np.testing.assert_allclose(even.world_from_camera[:, 2, 3], [0, 0.5, 1, 2, 3, 3, 3], atol=1e-9)
    np.testing.assert_allclose(even.world_from_camera, path.camera_path(8, 8).resampled(7).world_from_camera, atol=1e-9)
    assert even.seconds is None
    np.testing.assert_allclose(path.resampled(4).world_from_camera, path.world_from_camera, atol=1e-12)
    for wrong in (lambda: even.at_fps(4), lambda: path.at_fps(0), lambda: path.resampled(0)):
        with pytest.raises(ValueError):
            wrong()


@pytest.mark.parametrize(
    "word, column, sign",
    [
        ("right", scripted.RIGHT, 1),
        ("left", scripted.RIGHT, -1),
        ("down", scripted.DOWN, 1),
        ("up", scripted.DOWN, -1),
        ("forward", scripted.FORWARD, 1),
        ("back", scripted.FORWARD, -1),
        ("look-up", scripted.LOOK_UP, 1),
        ("look-down", scripted.LOOK_UP, -1),
        ("turn-right", scripted.TURN_RIGHT, 1),
        ("turn-left", scripted.TURN_RIGHT, -1),
        ("roll-right", scripted.ROLL, 1),
        ("roll-left", scripted.ROLL, -1),
    ],
)
def test_a_word_is_the_env_s_action_of_that_name(word, column, sign):
    mode = Se3Action(max_translation=20.0, max_rotation=np.deg2rad(20.0))
    action = np.zeros(6)
    action[column] = sign
    end = walk_path(f"{word} 20", frames_per_word=3)[-1]
    np.testing.assert_allclose(end, mode.target(action, np.eye(4)), atol=1e-12)


def test_words_follow_each_other_from_where_the_camera_then_is():
    poses = walk_path("Forward 1, turn-left 90; forward 2 turn-right 180 back 0.5", frames_per_word=2)
    np.testing.assert_allclose(
        poses[::2, :3, 3], [[0, 0, 0], [0, 0, 1], [0, 0, 1], [-2, 0, 1], [-2, 0, 1], [-2.5, 0, 1]], atol=1e-9
    )
    np.testing.assert_allclose(poses[1, :3, 3], [0, 0, 0.5])
    np.testing.assert_allclose(poses[-1, :3, 2], [1, 0, 0], atol=1e-9)


def test_words_joined_by_a_plus_are_one_curve():
    poses = walk_path("forward 3.14159265358979 + turn-right 180", frames_per_word=4)
    # Half a circle of radius 1 about (1, 0, 0).
    angle = np.pi * np.arange(5) / 4
    np.testing.assert_allclose(
        poses[:, :3, 3], np.stack([1 - np.cos(angle), 0 * angle, np.sin(angle)], axis=-1), atol=1e-9
    )


def test_a_walk_takes_the_time_that_its_speeds_need():
    poses = walk_path("forward 1 turn-left 45 stop stop 1 forward 0.5 + look-up 90", fps=10, speed=0.5, turn_rate=30)
    # 2 s, 1.5 s, 0.5 s, 1 s, and 3 s for the turn that takes longer than its metres.
    assert len(poses) == 1 + 20 + 15 + 5 + 10 + 30
    np.testing.assert_allclose(np.diff(poses[:21, 2, 3]), 0.05)
    np.testing.assert_array_equal(poses[35:51], np.tile(poses[35], (16, 1, 1)))


@pytest.mark.parametrize("num", [1, 2, 17, 41])
def test_a_walk_fills_the_frames_it_is_given(num):
    words = "forward 1 turn-left 30 up 0.2 look-down 10 stop"
    poses = walk_path(words, num_frames=num)
    assert len(poses) == num
    np.testing.assert_allclose(poses[0], np.eye(4), atol=1e-12)
    if num > 1:
        np.testing.assert_allclose(poses[-1], walk_path(words)[-1], atol=1e-12)
    motion = motion_from_action([0, 0, 0], [0, np.deg2rad(-30), 0])
    expected = make_pose(EYE, [0, 0, 1]) @ motion @ make_pose(EYE, [0, -0.2, 0])
    end = expected @ motion_from_action([0, 0, 0], [np.deg2rad(-10), 0, 0])
    np.testing.assert_allclose(walk_path(words)[-1], end, atol=1e-12)


@pytest.mark.parametrize(
    "text, kwargs, message",
    [
        ("", {}, "must have a word"),
        ("foward 1", {}, "no word 'foward'.*forward"),
        ("1 forward", {}, "no word '1'"),
        ("forward", {}, "followed by a number"),
        ("forward turn-left 30", {}, "finite number"),
        ("forward inf", {}, "finite number"),
        ("forward 1m", {}, "finite number"),
        ("+ forward 1", {}, "between two words"),
        ("forward 1 +", {}, "between two words"),
        ("stop -1", {}, "seconds"),
        ("forward 1e9", {}, "at most 100,000"),
        ("forward 1", {"speed": 0}, "speed"),
        ("forward 1", {"fps": np.nan}, "fps"),
        ("forward 1", {"turn_rate": -1}, "turn_rate"),
        ("forward 1", {"num_frames": 0}, "num_frames"),
        ("forward 1", {"num_frames": 5, "frames_per_word": 2}, "not both"),
    ],
)
def test_a_walk_that_cannot_be_understood_is_refused(text, kwargs, message):
    with pytest.raises(ValueError, match=message):
        walk_path(text, **kwargs)


def test_the_limits_are_those_of_the_simulator_s_walks():
    # A unit, the near decile of a first picture's depth, is hardly ever below 0.8 metres in training.
    assert pytest.approx(walks.MAX_SPEED / 0.8) == paths.MAX_SPEED
    assert pytest.approx(np.rad2deg(walks.MAX_TURN) * np.sqrt(3), rel=1e-3) == paths.MAX_TURN_RATE
    assert pytest.approx(44 / 12 * paths.MAX_SPEED) == paths.MAX_EXTENT


def test_walks_of_the_simulator_pass_in_silence():
    walks_NT44 = plan_clips(range(24), num_frames=45).scene_from_camera
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for walk in walks_NT44:
            for frames in (walk[:17], walk):
                # Some walks hardly move in 17 frames.
                assert check_range(frames, unit=0.8, min_extent=0.0).scene_scale == 1.0


@pytest.mark.parametrize("factor", [1000.0, 100.0, 3.0])
def test_a_path_in_other_lengths_warns_with_the_numbers_and_what_helps(factor):
    path = walk_path("forward 1 turn-left 30")
    with pytest.warns(UserWarning, match="scene_scale=") as caught:
        found = check_range(scale_poses(path, factor))
    # 0.6 metres a second, where training knows 1.5.
    assert found.speed == pytest.approx(0.6 * factor) and found.extent == pytest.approx(factor)
    message = str(caught[0].message)
    assert f"{0.6 * factor:g} units a second (at most 1.5)" in message
    assert f"scene_scale={found.scene_scale:g}" in message and caught[0].filename == __file__
    assert 0 < found.scene_scale <= min(2.5 / factor, 5.5 / factor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_range(scale_poses(path, factor * found.scene_scale)).scene_scale == 1.0
        # The same path is fine where near things are as far away as it is long.
        check_range(scale_poses(path, factor), unit=factor)


def test_a_camera_whose_motion_cannot_be_seen_warns():
    path = scale_poses(walk_path("forward 1"), 1e-3)
    with pytest.warns(UserWarning, match="cannot be seen.*scene_scale"):
        found = check_range(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_range(scale_poses(path, found.scene_scale))
        check_range(still(17))
        check_range(still(1))
        check_range(walk_path("turn-left 60"))


def test_a_turn_that_is_too_fast_warns_and_names_no_scale():
    with pytest.warns(UserWarning, match=r"120 degrees a second \(at most 78\), which more frames") as caught:
        found = check_range(walk_path("turn-left 60", turn_rate=120))
    assert found.scene_scale == 1.0 and found.turn_rate == pytest.approx(120)
    assert "scene_scale" not in str(caught[0].message)


def test_limits_of_another_model_may_be_given():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_range(forward(5, 100.0), max_speed=1201.0, max_extent=401.0)
    with pytest.warns(UserWarning, match="at most 0.1"):
        check_range(forward(5, 0.01), max_speed=0.1)


@pytest.mark.parametrize(
    "poses, kwargs, message",
    [
        (np.eye(4), {}, "shape"),
        (2 * still(3), {}, "rigid|bottom"),
        (still(3), {"unit": 0}, "unit"),
        (still(3), {"fps": np.inf}, "fps"),
    ],
)
def test_the_range_of_what_is_no_path_is_refused(poses, kwargs, message):
    with pytest.raises(ValueError, match=message):
        check_range(poses, **kwargs)
