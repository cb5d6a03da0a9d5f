from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from aether_env.camera import check_poses
from training.evaluation.datasets import SEQUENCES, DatasetError, LabelledVideo, open_dataset, windows

HEIGHT, WIDTH = 18, 24
QUARTER_TURN = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # about z: x goes to y
QUARTER_QUATERNION = "0 0 0.7071 0.7071"  # as rounded in the TUM files, qx qy qz qw


def write_rgb(path: Path, seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """Write noise and return it; a JPEG is one flat colour, for it does not keep noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    shape = (*size, 3)
    rgb = np.broadcast_to(rng.integers(256, size=3), shape) if path.suffix == ".jpg" else rng.integers(256, size=shape)
    rgb = rgb.astype(np.uint8)
    assert cv2.imwrite(str(path), rgb[..., ::-1])
    return rgb


def write_depth(path: Path, stored: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), stored)


def grey(value: int, dtype: type = np.uint16) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), value, dtype)


def write_dpt(path: Path, depth: np.ndarray, tag: float = 202021.25) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = depth.shape
    path.write_bytes(struct.pack("<fii", tag, width, height) + depth.astype("<f4").tobytes())


def write_cam(path: Path, rotation: np.ndarray, translation: list[float], tag: float = 202021.25) -> None:
    """`rotation` and `translation` take world points to the camera, as in Sintel's devkit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    k = np.array([[1120.0, 0, 511.5], [0, 1120, 217.5], [0, 0, 1]])
    outer = np.column_stack([rotation, translation])
    path.write_bytes(struct.pack("<f", tag) + k.astype("<f8").tobytes() + outer.astype("<f8").tobytes())


def write_text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def matrix(pose: np.ndarray) -> list[str]:
    return [" ".join(map(str, row)) for row in pose]


def at(x: float) -> np.ndarray:
    pose = np.eye(4)
    pose[0, 3] = x
    return pose


def make_sintel(root: Path, scene: str = "alley_2", frames: int = 3) -> list[np.ndarray]:
    """A camera turned a quarter about its axis that walks along the world's y, before a slope of depth."""
    rgb = []
    for i in range(frames):
        stem = f"{scene}/frame_{i + 1:04d}"
        rgb.append(write_rgb(root / f"training/final/{stem}.png", seed=i))
        write_dpt(root / f"training/depth/{stem}.dpt", slope(i))
        # Centre c = (0, i, 0): the camera sees world points at R (p - c), so t = -R c = (i, 0, 0).
        write_cam(root / f"training/camdata_left/{stem}.cam", QUARTER_TURN, [i, 0, 0])
    return rgb


def slope(first: float) -> np.ndarray:
    return (first + 1 + np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) / 7).astype(np.float32)


def make_bonn(folder: Path, rgb: list[float], depth: list[float], names: tuple[str, str] = ("rgb", "depth")) -> None:
    for i, stamp in enumerate(rgb):
        write_rgb(folder / names[0] / f"{stamp:.5f}.png", seed=i)
    for i, stamp in enumerate(depth):
        write_depth(folder / names[1] / f"{stamp:.5f}.png", grey(5000 * (i % 13 + 1)))


DRIVE = "2011_09_26_drive_0002_sync"
SELECTION = "depth_selection/val_selection_cropped"


def make_kitti(frames: Path, depth: Path, with_frame: range, with_depth: range) -> None:
    for i in with_frame:
        write_rgb(frames / f"{i:010d}.png", seed=i)
    for i in with_depth:
        write_depth(depth / f"{i:010d}.png", grey(256 * (i + 1)))


def make_raw_kitti(root: Path, with_frame: range, with_depth: range) -> None:
    make_kitti(
        root / f"2011_09_26/{DRIVE}/image_02/data",
        root / f"val/{DRIVE}/proj_depth/groundtruth/image_02",
        with_frame,
        with_depth,
    )


def make_tum(root: Path, rgb: list[float], poses: list[str], scene: str = "freiburg3_walking_xyz") -> Path:
    folder = root / f"rgbd_dataset_{scene}"
    for i, stamp in enumerate(rgb):
        write_rgb(folder / f"rgb/{stamp:.6f}.png", seed=i)
    write_text(folder / "rgb.txt", "# color images", *(f"{stamp:.6f} rgb/{stamp:.6f}.png" for stamp in rgb))
    write_text(folder / "groundtruth.txt", "# timestamp tx ty tz qx qy qz qw", *poses)
    return folder


def tum(root: Path) -> LabelledVideo:
    return open_dataset("tum", root, only=["freiburg3_walking_xyz"])[0]


def make_scannet(root: Path, poses: list[np.ndarray], scene: str = "scene0707_00") -> Path:
    for i, pose in enumerate(poses):
        write_rgb(root / scene / f"color/{i}.jpg", seed=i)
        write_text(root / scene / f"pose/{i}.txt", *matrix(pose))
    return root / scene


def scannet(root: Path) -> LabelledVideo:
    return open_dataset("scannet", root, only=["scene0707_00"])[0]


LOST = np.full((4, 4), -np.inf)


# --- Sintel ---


def test_sintel_gives_its_pictures_metres_and_cameras_in_order(tmp_path):
    rgb = make_sintel(tmp_path)
    (video,) = open_dataset("sintel", tmp_path, only=["alley_2"])
    found = video.read()
    assert video.name == "alley_2" and len(video) == 3 and (video.height, video.width) == (HEIGHT, WIDTH)
    assert np.array_equal(found.rgb, rgb)
    assert np.array_equal(found.depth, [slope(0), slope(1), slope(2)]) and found.depth.dtype == np.float32
    assert found.valid.all() and found.timestamps is None and video.skipped == 0


def test_sintel_poses_come_out_as_camera_to_world(tmp_path):
    make_sintel(tmp_path)
    (video,) = open_dataset("sintel", tmp_path, only=["alley_2"])
    assert np.allclose(video.world_from_camera[:, :3, 3], [[0, 0, 0], [0, 1, 0], [0, 2, 0]])
    assert np.allclose(video.world_from_camera[:, :3, :3], QUARTER_TURN.T)


def test_sintel_principal_point_is_the_middle_of_its_picture_of_1024_by_436(tmp_path):
    make_sintel(tmp_path)
    (video,) = open_dataset("sintel", tmp_path, only=["alley_2"])
    assert np.allclose(video.intrinsics, [[1120, 0, 1024 / 2], [0, 1120, 436 / 2], [0, 0, 1]])


def test_depth_that_is_no_depth_is_zero_and_not_valid(tmp_path):
    make_sintel(tmp_path)
    depth = slope(0)
    depth[0, :4] = [np.nan, np.inf, 0, -2]
    write_dpt(tmp_path / "training/depth/alley_2/frame_0001.dpt", depth)
    found = open_dataset("sintel", tmp_path, only=["alley_2"])[0].read(range(1))
    assert found.depth[0, 0, :4].tolist() == [0, 0, 0, 0] and not found.valid[0, 0, :4].any()
    assert found.valid.sum() == HEIGHT * WIDTH - 4


def test_sintel_poses_are_judged_on_the_usual_14_scenes(tmp_path):
    for scene in SEQUENCES["sintel_pose"]:
        make_sintel(tmp_path, scene, frames=1)
    make_sintel(tmp_path, "alley_1", frames=1)
    videos = open_dataset("sintel_pose", tmp_path)
    assert len(videos) == 14 and "alley_1" not in [video.name for video in videos]
    with pytest.raises(DatasetError, match="8 of 23 sequences of sintel are missing.*only="):
        open_dataset("sintel", tmp_path)


def cut(path: Path, to: int = -4) -> None:
    path.write_bytes(path.read_bytes()[:to])


SINTEL_DAMAGE = {
    "frame_0002.dpt: does not begin with": lambda t: write_dpt(t / "depth/alley_2/frame_0002.dpt", slope(0), tag=1.0),
    "frame_0002.dpt: has 1736 bytes": lambda t: cut(t / "depth/alley_2/frame_0002.dpt"),
    "frame_0002.dpt: ends after 7": lambda t: cut(t / "depth/alley_2/frame_0002.dpt", 7),
    "frame_0002.dpt: its header says 2000000000 x 2000000000": lambda t: (
        t / "depth/alley_2/frame_0002.dpt"
    ).write_bytes(struct.pack("<fii", 202021.25, 2 * 10**9, 2 * 10**9)),
    "frame_0002.dpt: its header says -24": lambda t: (t / "depth/alley_2/frame_0002.dpt").write_bytes(
        struct.pack("<fii", 202021.25, -24, -18)
    ),
    "frame_0002.dpt: is .17, 24.": lambda t: write_dpt(t / "depth/alley_2/frame_0002.dpt", slope(0)[:17]),
    "frame_0002.png: has no truth": lambda t: (t / "depth/alley_2/frame_0002.dpt").unlink(),
    "frame_0002.dpt: has no frame": lambda t: (
        (t / "final/alley_2/frame_0002.png").unlink(),
        (t / "camdata_left/alley_2/frame_0002.cam").unlink(),
    ),
    "frame_0002.cam: has 168 bytes": lambda t: cut(t / "camdata_left/alley_2/frame_0002.cam"),
    "frame_0002.cam: does not begin": lambda t: write_cam(
        t / "camdata_left/alley_2/frame_0002.cam", np.eye(3), [0, 0, 0], tag=0
    ),
    "frame_0002.cam: pose 1 is not rigid": lambda t: write_cam(
        t / "camdata_left/alley_2/frame_0002.cam", 1.1 * np.eye(3), [0, 0, 0]
    ),
    "frame_0002.cam: pose 1 is not rigid.*mirrored": lambda t: write_cam(
        t / "camdata_left/alley_2/frame_0002.cam", np.diag([1, 1, -1]), [0, 0, 0]
    ),
    "frame_0002.cam: 1 numbers are NaN": lambda t: write_cam(
        t / "camdata_left/alley_2/frame_0002.cam", np.eye(3), [0, np.nan, 0]
    ),
    "frame_0002.png: is .18, 25.": lambda t: write_rgb(t / "final/alley_2/frame_0002.png", size=(18, 25)),
    "frame_0002.png: is no PNG": lambda t: (t / "final/alley_2/frame_0002.png").write_bytes(b"GIF89a" * 9),
    "frame_0002.png: is no PNG or JPEG file, or ends": lambda t: cut(t / "final/alley_2/frame_0002.png", 20),
    "alley_2: has no .*png": lambda t: [path.unlink() for path in (t / "final/alley_2").iterdir()],
    "depth.alley_2: No such file": lambda t: (t / "depth").rename(t / "elsewhere"),
}


@pytest.mark.parametrize("named", SINTEL_DAMAGE)
def test_what_is_broken_in_sintel_is_named_before_anything_is_decoded(tmp_path, monkeypatch, named):
    make_sintel(tmp_path)
    SINTEL_DAMAGE[named](tmp_path / "training")
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(DatasetError, match=named):
        open_dataset("sintel", tmp_path, only=["alley_2"])


def test_a_picture_that_ends_early_is_an_error_and_no_picture(tmp_path):
    make_sintel(tmp_path)
    cut(tmp_path / "training/final/alley_2/frame_0002.png", 400)
    (video,) = open_dataset("sintel", tmp_path, only=["alley_2"])
    with pytest.raises(DatasetError, match="frame_0002.png"):
        video.read()


# --- Bonn ---


def test_bonn_takes_the_31st_to_140th_picture_and_5000_is_a_metre(tmp_path):
    stamps = [1548266469.5 + 0.04 * i for i in range(145)]
    make_bonn(tmp_path / "rgbd_bonn_dataset/rgbd_bonn_balloon2", stamps, [stamp + 0.003 for stamp in stamps])
    (video,) = open_dataset("bonn", tmp_path, only=["balloon2"])
    assert len(video) == 110 and video.skipped == 0 and video.world_from_camera is None
    assert np.allclose(video.timestamps, stamps[30:140], atol=1e-5)
    assert all(
        abs(float(c.stem) - float(d.stem)) < 0.004 for c, d in zip(video.rgb_paths, video.depth_paths, strict=True)
    )
    assert video.depth(0).max() == video.depth(0).min() == 30 % 13 + 1


def test_bonn_pairs_by_time_and_counts_frames_without_depth(tmp_path):
    # Depth of the second frame is 25 ms late and out, the fourth frame's nearest depth belongs to the third.
    make_bonn(
        tmp_path / "rgbd_bonn_crowd2",
        [10.00, 10.10, 10.20, 10.21, 10.30],
        [9.99, 10.125, 10.203, 10.319],
        ("rgb_110", "depth_110"),
    )
    (video,) = open_dataset("bonn", tmp_path, only=["crowd2"])
    found = video.read()
    assert found.timestamps.tolist() == [10.00, 10.20, 10.30] and video.skipped == 2
    assert found.depth[:, 0, 0].tolist() == [1.0, 3.0, 4.0]
    assert np.array_equal(found.rgb[1], write_rgb(tmp_path / "again.png", seed=2))


def test_bonn_depth_of_zero_is_unknown(tmp_path):
    make_bonn(tmp_path / "rgbd_bonn_crowd2", [1.0], [1.0], ("rgb_110", "depth_110"))
    stored = grey(2500)
    stored[3, 5] = 0
    write_depth(tmp_path / "rgbd_bonn_crowd2/depth_110/1.00000.png", stored)
    found = open_dataset("bonn", tmp_path, only=["crowd2"])[0].read()
    assert found.depth[0, 3, 5] == 0 and not found.valid[0, 3, 5]
    assert found.depth[0, 4, 5] == 0.5 and found.valid.sum() == HEIGHT * WIDTH - 1


def test_bonn_without_any_depth_at_the_frames_times_is_an_error(tmp_path):
    make_bonn(tmp_path / "rgbd_bonn_crowd2", [1.0, 2.0], [1.5, 2.5], ("rgb_110", "depth_110"))
    with pytest.raises(DatasetError, match="crowd2.*no frame has depth within 0.02 s"):
        open_dataset("bonn", tmp_path, only=["crowd2"])


def test_a_bonn_recording_that_ends_before_the_judged_part_is_an_error(tmp_path):
    make_bonn(tmp_path / "rgbd_bonn_crowd2", [float(i) for i in range(30)], [1.0])
    with pytest.raises(DatasetError, match="crowd2/rgb: has 30 pictures"):
        open_dataset("bonn", tmp_path, only=["crowd2"])


def test_a_file_that_is_not_named_by_its_time_is_named(tmp_path):
    make_bonn(tmp_path / "rgbd_bonn_crowd2", [1.0], [1.0], ("rgb_110", "depth_110"))
    write_rgb(tmp_path / "rgbd_bonn_crowd2/rgb_110/cover.png")
    with pytest.raises(DatasetError, match="cover.png"):
        open_dataset("bonn", tmp_path, only=["crowd2"])


# --- KITTI ---


def test_kitti_as_gathered_by_the_public_scripts_counts_256_a_metre(tmp_path):
    folder = tmp_path / SELECTION
    make_kitti(
        folder / f"image_gathered/{DRIVE}_02",
        folder / f"groundtruth_depth_gathered/{DRIVE}_02",
        range(5, 12),
        range(5, 12),
    )
    (video,) = open_dataset("kitti", tmp_path, only=[DRIVE])
    assert video.name == DRIVE and video.read().depth[:, 0, 0].tolist() == [6, 7, 8, 9, 10, 11, 12]
    assert video.world_from_camera is None and video.intrinsics is None


def test_kitti_as_published_takes_the_first_110_frames_with_depth(tmp_path):
    make_raw_kitti(tmp_path, range(130), range(5, 125))  # as there: no depth for the first and last five frames
    (video,) = open_dataset("kitti", tmp_path, only=[DRIVE])
    assert [int(path.stem) for path in video.rgb_paths] == list(range(5, 115))
    assert video.read(range(1)).depth.max() == 6
    assert np.array_equal(video.rgb(0), write_rgb(tmp_path / "again.png", seed=5))


def test_kitti_depth_without_its_picture_is_named(tmp_path):
    make_raw_kitti(tmp_path, range(2), range(4))
    with pytest.raises(DatasetError, match="data/0000000002.png: No such file"):
        open_dataset("kitti", tmp_path, only=[DRIVE])


@pytest.mark.parametrize("stored", [grey(200, np.uint8), np.dstack([grey(900)] * 3)], ids=["8 bits", "colour"])
def test_depth_must_be_16_bit_grey(tmp_path, stored):
    make_raw_kitti(tmp_path, range(4), range(4))
    write_depth(tmp_path / f"val/{DRIVE}/proj_depth/groundtruth/image_02/0000000003.png", stored)
    with pytest.raises(DatasetError, match="0000000003.png: depth must be a 16-bit grey PNG"):
        open_dataset("kitti", tmp_path, only=[DRIVE])


@pytest.mark.parametrize("damage", ["short", "flipped"])
def test_a_depth_png_that_is_damaged_is_an_error_and_no_depth(tmp_path, damage):
    make_raw_kitti(tmp_path, range(2), range(2))
    path = tmp_path / f"val/{DRIVE}/proj_depth/groundtruth/image_02/0000000001.png"
    write_depth(path, np.random.default_rng(0).integers(1, 2**16, (HEIGHT, WIDTH)).astype(np.uint16))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data if damage == "flipped" else data[: len(data) // 2])
    (video,) = open_dataset("kitti", tmp_path, only=[DRIVE])
    with pytest.raises(DatasetError, match="0000000001.png: the PNG is damaged"):
        video.read()


def test_a_header_that_asks_for_gigabytes_is_refused_unread(tmp_path):
    make_raw_kitti(tmp_path, range(1), range(1))
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 10**6, 10**6, 16, 0, 0, 0, 0)
    (tmp_path / f"val/{DRIVE}/proj_depth/groundtruth/image_02/0000000000.png").write_bytes(header)
    with pytest.raises(DatasetError, match="0000000000.png: its header says 1000000 x 1000000"):
        open_dataset("kitti", tmp_path, only=[DRIVE])


# --- TUM ---


def test_tum_poses_are_camera_to_world_with_the_scalar_last(tmp_path):
    make_tum(tmp_path, [1.0], [f"1.001 1.5 -2 0.25 {QUARTER_QUATERNION}"])
    video = tum(tmp_path)
    check_poses("poses", video.world_from_camera)
    assert np.allclose(video.world_from_camera[0, :3, :3], QUARTER_TURN)
    assert video.world_from_camera[0, :3, 3].tolist() == [1.5, -2, 0.25]
    assert video.depth_paths is None and video.read().depth is None


def test_tum_takes_every_third_associated_frame_and_at_most_90(tmp_path):
    rgb = [100 + 0.04 * i for i in range(280)]
    poses = [f"{100 + 0.01 * i:.4f} {i} 0 0 0 0 0 1" for i in range(40, 1120)]  # poses begin at the 11th frame
    make_tum(tmp_path, rgb, poses)
    video = tum(tmp_path)
    assert len(video) == 90 and video.skipped == 0
    assert np.allclose(video.timestamps, 100 + 0.04 * np.arange(10, 280, 3))
    assert np.allclose(video.world_from_camera[:, 0, 3], 4 * np.arange(10, 280, 3))


def test_tum_frames_without_a_pose_within_20_ms_are_left_out_and_counted(tmp_path):
    poses = [f"{stamp} {i} 0 0 0 0 0 1" for i, stamp in enumerate([1.0, 1.2 + 0.021, 1.3, 1.4 - 0.019, 1.5])]
    make_tum(tmp_path, [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], poses)
    video = tum(tmp_path)  # associated: 1.0, 1.3, 1.4, 1.5; of these every third
    assert video.timestamps.tolist() == [1.0, 1.5] and video.world_from_camera[:, 0, 3].tolist() == [0, 4]
    assert video.skipped == 2


def test_tum_lists_may_be_out_of_order_and_the_frames_come_by_time(tmp_path):
    folder = make_tum(tmp_path, [1.0, 1.1, 1.2, 1.3], [f"{stamp} {stamp} 0 0 0 0 0 1" for stamp in (1.3, 1.1, 1.0)])
    lines = (folder / "rgb.txt").read_text().splitlines()
    write_text(folder / "rgb.txt", *reversed(lines))
    assert tum(tmp_path).world_from_camera[:, 0, 3].tolist() == [1.0]
    write_text(folder / "groundtruth.txt", *(f"{s} {s} 0 0 0 0 0 1" for s in (1.3, 1.2, 1.1, 1.0)))
    assert tum(tmp_path).world_from_camera[:, 0, 3].tolist() == [1.0, 1.3] and tum(tmp_path).skipped == 0


def test_tum_as_prepared_by_the_public_scripts_is_taken_as_it_is(tmp_path):
    folder = make_tum(tmp_path, [1.0], ["1.0 9 9 9 0 0 0 1"])
    for i in range(4):
        write_rgb(folder / f"rgb_90/{2 + i / 10:.6f}.png", seed=i)
    write_text(folder / "groundtruth_90.txt", *(f"{2.001 + i / 10:.6f} {i} 0 0 0.0 0.0 0.0 1.0" for i in range(4)))
    video = tum(tmp_path)
    assert video.world_from_camera[:, 0, 3].tolist() == [0, 1, 2, 3] and video.skipped == 0
    write_text(folder / "groundtruth_90.txt", *(f"{2.001 + i / 10:.6f} {i} 0 0 0.0 0.0 0.0 1.0" for i in range(3)))
    with pytest.raises(DatasetError, match="groundtruth_90.txt: 3 of 3 poses.*one of 4 frames"):
        tum(tmp_path)


@pytest.mark.parametrize(
    "file, lines, named",
    [
        ("groundtruth.txt", ["1 0 0 0 0 0 1"], "groundtruth.txt: line 1 has 7 numbers instead of 8"),
        ("groundtruth.txt", ["1 0 0 nan 0 0 0 1"], "groundtruth.txt: 1 numbers are NaN"),
        ("groundtruth.txt", ["1 0 0 0 0 0 0 1", "2 0 0 0 0 0 0 0.5"], "groundtruth.txt: pose 2 has a quaternion of"),
        ("groundtruth.txt", ["1 0 0 0 0 0 zero 1"], "groundtruth.txt: could not convert"),
        ("groundtruth.txt", ["# nothing yet"], "groundtruth.txt: is empty"),
        ("groundtruth.txt", ["7 0 0 0 0 0 0 1"], "groundtruth.txt: 0 of 1 poses are within 0.02 s"),
        ("rgb.txt", ["nan rgb/1.000000.png"], "rgb.txt: 1 numbers are NaN"),
        ("rgb.txt", ["1.0"], "rgb.txt: line 1 has 1 words"),
        ("rgb.txt", ["1.0 rgb/gone.png"], "rgb/gone.png: No such file"),
    ],
)
def test_what_is_broken_in_tum_is_named(tmp_path, file, lines, named):
    folder = make_tum(tmp_path, [1.0], ["1.0 0 0 0 0 0 0 1"])
    write_text(folder / file, *lines)
    with pytest.raises(DatasetError, match=named):
        tum(tmp_path)


# --- ScanNet ---


def test_scannet_takes_every_third_frame_in_the_order_of_its_numbers(tmp_path):
    make_scannet(tmp_path, [at(i) for i in range(275)])
    video = scannet(tmp_path)
    assert [int(path.stem) for path in video.rgb_paths] == list(range(0, 270, 3))
    assert video.world_from_camera[:, 0, 3].tolist() == list(range(0, 270, 3))
    assert video.skipped == 0 and video.intrinsics is None and video.depth_paths is None


def test_scannet_frames_with_a_lost_camera_are_left_out_and_counted(tmp_path):
    poses = [at(i) for i in range(10)]
    poses[3] = LOST
    poses[4] = LOST  # not one of every third: not counted
    make_scannet(tmp_path, poses)
    video = scannet(tmp_path)
    assert video.world_from_camera[:, 0, 3].tolist() == [0, 6, 9] and video.skipped == 1
    flat = write_rgb(tmp_path / "again.jpg", seed=6)
    assert np.abs(video.read().rgb[1].astype(int) - flat).max() <= 2


def test_scannet_as_prepared_by_the_public_scripts_is_taken_as_it_is(tmp_path):
    folder = make_scannet(tmp_path, [at(9)])
    for i in range(4):
        write_rgb(folder / f"color_90/frame_{i:04d}.jpg", seed=i)
    rows = [" ".join(map(str, (LOST if i == 1 else at(i)).ravel())) for i in range(4)]
    write_text(folder / "pose_90.txt", *rows)
    video = scannet(tmp_path)
    assert video.world_from_camera[:, 0, 3].tolist() == [0, 2, 3] and video.skipped == 1
    assert [path.name for path in video.rgb_paths] == ["frame_0000.jpg", "frame_0002.jpg", "frame_0003.jpg"]
    write_text(folder / "pose_90.txt", *rows[:3])
    with pytest.raises(DatasetError, match="pose_90.txt: has 3 poses for 4 frames"):
        scannet(tmp_path)


def test_scannet_intrinsics_are_moved_to_our_pixel_centres(tmp_path):
    folder = make_scannet(tmp_path, [at(i) for i in range(4)])
    write_text(
        folder / "intrinsic/intrinsic_color.txt", "577.8 0 319.5 0", "0 577.8 239.5 0", "0 0 1 0", "0 0 0 1"
    )  # 640 x 480
    assert np.allclose(scannet(tmp_path).intrinsics, [[577.8, 0, 320], [0, 577.8, 240], [0, 0, 1]])


def test_a_rounded_scannet_rotation_becomes_an_exact_one(tmp_path):
    angle = 0.3
    rotation = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    pose = at(1)
    pose[:3, :3] = rotation.round(3)
    make_scannet(tmp_path, [pose])
    found = scannet(tmp_path).world_from_camera[0, :3, :3]
    assert np.abs(found @ found.T - np.eye(3)).max() < 1e-12 < np.abs(pose[:3, :3] @ pose[:3, :3].T - np.eye(3)).max()
    assert np.allclose(found, rotation, atol=1e-3)


@pytest.mark.parametrize(
    "lines, named",
    [
        (matrix(np.full((4, 4), np.nan)), "pose/3.txt: 16 numbers are NaN"),
        (matrix(np.eye(4))[:3], "pose/3.txt: has 3 rows instead of 4"),
        (matrix(np.eye(4)[:, :3]), "pose/3.txt: line 1 has 3 numbers instead of 4"),
        (matrix(np.diag([2.0, 2, 2, 1])), "pose/3.txt: pose 1 is not rigid"),
        (matrix(at(3).T), "pose/3.txt: pose 1 is not rigid.*the row 0 0 0 1 by 3"),
    ],
    ids=["nan", "short", "narrow", "scaled", "transposed"],
)
def test_what_is_broken_in_a_scannet_pose_is_named(tmp_path, lines, named):
    folder = make_scannet(tmp_path, [at(i) for i in range(4)])
    write_text(folder / "pose/3.txt", *lines)
    with pytest.raises(DatasetError, match=named):
        scannet(tmp_path)


def test_a_scannet_frame_without_pose_and_a_scene_without_any_are_named(tmp_path):
    folder = make_scannet(tmp_path, [LOST] * 4)
    with pytest.raises(DatasetError, match="scene0707_00/pose: every pose is infinite"):
        scannet(tmp_path)
    (folder / "pose/3.txt").unlink()
    with pytest.raises(DatasetError, match="pose/3.txt: No such file"):
        scannet(tmp_path)


def test_a_jpeg_of_another_size_or_cut_short_is_named(tmp_path):
    folder = make_scannet(tmp_path, [at(i) for i in range(7)])
    cut(folder / "color/3.jpg", -200)
    video = scannet(tmp_path)
    with pytest.raises(DatasetError, match=r"color/3\.jpg"):
        video.read()
    write_rgb(folder / "color/6.jpg", size=(20, 30))
    with pytest.raises(DatasetError, match=r"color/6.jpg: is \(20, 30\) pixels, .* \(18, 24\)"):
        scannet(tmp_path)
    cut(folder / "color/6.jpg", 30)
    with pytest.raises(DatasetError, match="color/6.jpg: is a JPEG that ends inside its header"):
        scannet(tmp_path)


# --- Asking ---


def test_the_sequences_are_those_of_the_public_evaluation():
    counts = {name: len(set(sequences)) for name, sequences in SEQUENCES.items()}
    assert counts == {"sintel": 23, "sintel_pose": 14, "bonn": 5, "kitti": 13, "tum": 8, "scannet": 100}
    assert set(SEQUENCES["sintel_pose"]) < set(SEQUENCES["sintel"])


def test_a_missing_root_an_empty_one_and_half_a_set_are_errors(tmp_path):
    with pytest.raises(DatasetError, match="nowhere: there is no such folder"):
        open_dataset("bonn", tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="5 of 5 sequences of bonn are missing.*rgbd_bonn_balloon2/rgb"):
        open_dataset("bonn", tmp_path)
    make_bonn(tmp_path / "rgbd_bonn_crowd2", [1.0], [1.0], ("rgb_110", "depth_110"))
    with pytest.raises(DatasetError, match="4 of 5 sequences of bonn are missing"):
        open_dataset("bonn", tmp_path)


def test_an_unknown_set_and_no_sequence_are_errors(tmp_path):
    with pytest.raises(ValueError, match="name must be one of sintel, .*, got 'nyu'"):
        open_dataset("nyu", tmp_path)
    for only in ([], "crowd2"):
        with pytest.raises(ValueError, match="only must be a list"):
            open_dataset("bonn", tmp_path, only=only)


def test_part_of_a_video_is_read_with_its_own_truth(tmp_path):
    rgb = make_sintel(tmp_path)
    (video,) = open_dataset("sintel", tmp_path, only=["alley_2"])
    part = video.read(range(1, 3))
    assert np.array_equal(part.rgb, rgb[1:]) and np.array_equal(part.depth, [slope(1), slope(2)])
    assert np.allclose(part.world_from_camera[:, 1, 3], [1, 2]) and part.intrinsics.shape == (2, 3, 3)


@pytest.mark.parametrize("frames", [range(0), range(-1, 2), range(2, 4)])
def test_frames_that_the_video_does_not_have_are_an_error(tmp_path, frames):
    make_sintel(tmp_path)
    (video,) = open_dataset("sintel", tmp_path, only=["alley_2"])
    with pytest.raises(ValueError, match="some of 0..2 of alley_2"):
        video.read(frames)


def test_depth_of_a_set_without_depth_is_an_error(tmp_path):
    make_tum(tmp_path, [1.0], ["1.0 0 0 0 0 0 0 1"])
    with pytest.raises(ValueError, match="freiburg3_walking_xyz has no depth"):
        tum(tmp_path).depth(0)


# --- Windows ---


@pytest.mark.parametrize(
    "number, stride, length, starts",
    [
        (110, 8, 41, [0, 8, 16, 24, 32, 40, 48, 56, 64, 69]),
        (90, 32, 41, [0, 32, 49]),
        (49, 8, 41, [0, 8]),
        (42, 8, 41, [0, 1]),
        (41, 8, 41, [0]),
        (40, 8, 33, [0, 7]),  # shortened by 8 to fit
        (20, 32, 17, [0, 3]),
        (17, 8, 17, [0]),
    ],
)
def test_windows_begin_where_the_public_evaluation_begins_them(number, stride, length, starts):
    assert windows(number, stride=stride) == [range(start, start + length) for start in starts]


@pytest.mark.parametrize("stride", [1, 8, 32, 41])
def test_windows_cover_every_frame_and_none_outside(stride):
    for number in range(17, 130):
        assert sorted({frame for window in windows(number, stride=stride) for frame in window}) == list(range(number))


def test_a_video_shorter_than_every_window_or_a_stride_with_gaps_is_an_error():
    with pytest.raises(ValueError, match="number_of_frames must be at least 17.*got 16"):
        windows(16)
    for stride in (0, 42):
        with pytest.raises(ValueError, match=f"stride must be in 1..41.*got {stride}"):
            windows(100, stride=stride)
