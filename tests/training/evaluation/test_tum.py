from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from training.batch_plan import BatchSettings
from training.clip_sources import FolderClips, MixedClips
from training.clips import check_clip
from training.dataset import ClipBatches
from training.evaluation.datasets import DatasetError
from training.evaluation.datasets.tum import CAMERAS, open_recordings, poses_at, regular_pieces

HEIGHT, WIDTH = 480, 640
FRAMES = [i / 30 for i in range(41)]
"""Seconds; the camera's 30 a second."""
START = 1305031000.0  # as in the set: seconds since 1970, which a float32 could not tell apart
PACE, TURN = 0.6, 0.8  # metres and radians a second


def pose_of(seconds: float) -> np.ndarray:
    """The walk: along the world's x, turning about y. Camera to world."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec([0, TURN * seconds, 0]).as_matrix()
    pose[0, 3] = PACE * seconds
    return pose


def walk(times: np.ndarray) -> list[str]:
    """Lines of groundtruth.txt: what the motion capture saw at these seconds."""
    turns = Rotation.from_rotvec([[0, TURN * t, 0] for t in times]).as_quat()
    return [
        f"{START + t:.4f} {PACE * t:.6f} 0 0 {' '.join(f'{q:.6f}' for q in turn)}"
        for t, turn in zip(times, turns, strict=True)
    ]


CAPTURED = np.arange(-5, 150) / 100
"""Seconds; the motion capture's 100 a second, around all frames."""


@cache
def png(kind: str, i: int) -> bytes:
    """Frame i, all colours i, or depth i, all 1 + i / 100 metres."""
    shape, dtype, value = ((HEIGHT, WIDTH, 3), np.uint8, i) if kind == "rgb" else ((HEIGHT, WIDTH), np.uint16, 50 * i)
    picture = np.full(shape, value if kind == "rgb" else 5000 + value, dtype)
    return cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def make_recording(
    root: Path,
    rgb: dict[int, float] | None = None,
    depth: dict[int, float] | None = None,
    poses: list[str] | None = None,
    name: str = "freiburg3_walking_xyz",
) -> Path:
    """Write frames and depth by their numbers and seconds; without any all of them, depth 4 ms late."""
    folder = root / f"rgbd_dataset_{name}"
    rgb = dict(enumerate(FRAMES)) if rgb is None else rgb
    depth = {i: t + 0.004 for i, t in enumerate(FRAMES)} if depth is None else depth
    for kind, times in (("rgb", rgb), ("depth", depth)):
        (folder / kind).mkdir(parents=True)
        for i in times:
            (folder / kind / f"{i:03d}.png").write_bytes(png(kind, i))
        lines = [f"{START + t:.6f} {kind}/{i:03d}.png" for i, t in times.items()]
        (folder / f"{kind}.txt").write_text("\n".join(["# timestamp filename", *lines, ""]))
    lines = walk(CAPTURED) if poses is None else poses
    (folder / "groundtruth.txt").write_text("\n".join(["# timestamp tx ty tz qx qy qz qw", *lines, ""]))
    return folder


def shown(video) -> list[int]:
    return [int(path.stem) for path in video.rgb_paths]


def assert_tells_the_truth(video) -> None:
    """Every frame has the depth that was taken with it and the place where the camera was at its own time."""
    assert [int(path.stem) for path in video.depth_paths] == shown(video)
    times = np.array(shown(video)) / 30
    np.testing.assert_allclose(video.timestamps - START, times, atol=2e-6)
    # A pose of the nearest time would be up to 5 ms off, which is 3 mm.
    np.testing.assert_allclose(video.world_from_camera, [pose_of(t) for t in times], atol=1e-4)


def test_a_recording_gives_its_pictures_metres_path_and_published_intrinsics_at_15_a_second(tmp_path):
    make_recording(tmp_path)
    (video,) = open_recordings(tmp_path)
    assert shown(video) == list(range(0, 41, 2))
    assert_tells_the_truth(video)
    found = video.read(range(3, 5))
    assert found.rgb[:, 7, 9].tolist() == [[6] * 3, [8] * 3]
    np.testing.assert_allclose(found.depth[:, 7, 9], [1.06, 1.08], rtol=1e-6)
    # The published principal point 320.1, 247.6 counts pixel centres at integers.
    np.testing.assert_allclose(found.intrinsics, [[[535.4, 0, 320.6], [0, 539.2, 248.1], [0, 0, 1]]] * 2)


def test_single_missing_frames_are_no_gap_and_a_longer_gap_is_never_spanned(tmp_path):
    times = {i: i / 30 for i in range(90) if i not in (8, 21, *range(40, 45))}
    make_recording(tmp_path, rgb=times, depth=times, poses=walk(np.arange(-5, 310) / 100))
    first, rest = open_recordings(tmp_path)
    assert max(shown(first)) == 39 and min(shown(rest)) == 45 and first.name != rest.name
    for video in (first, rest):
        assert_tells_the_truth(video)
        assert set(np.diff(shown(video))) <= {1, 2, 3}


def test_a_frame_whose_depth_is_more_than_20_ms_off_is_dropped_and_depth_without_frame_is_left(tmp_path):
    depth = {i: t + 0.004 for i, t in enumerate(FRAMES)}
    depth[10] = FRAMES[10] + 0.021  # 12 ms before the eleventh frame, whose own depth is nearer
    depth[100] = -1.0  # and so the first in time
    make_recording(tmp_path, depth=depth)
    (video,) = open_recordings(tmp_path)
    assert 10 not in shown(video) and shown(video)[-1] == 40 and len(video) == 21
    assert_tells_the_truth(video)


def test_frames_while_the_motion_capture_was_lost_are_dropped(tmp_path):
    lost = (CAPTURED > 1.201) & (CAPTURED < 1.339)
    poses = walk(CAPTURED[~lost])
    make_recording(tmp_path, poses=poses[::-1])  # in any order
    (video,) = open_recordings(tmp_path)
    assert shown(video) == list(range(0, 37, 2))  # the next two that are wanted are at 1.27 and 1.33 s
    assert_tells_the_truth(video)


def test_poses_are_interpolated_only_between_two_near_ones():
    stamps, poses = np.array([0.0, 0.01, 0.04, 0.05]), np.stack([pose_of(t) for t in (0.0, 0.01, 0.04, 0.05)])
    times = np.array([-0.001, 0.0, 0.004, 0.01, 0.015, 0.025, 0.039, 0.047, 0.05, 0.051])
    found, known = poses_at(times, stamps, poses, 0.02)
    assert times[known].tolist() == [0.0, 0.004, 0.01, 0.025, 0.047, 0.05]
    np.testing.assert_allclose(found, [pose_of(t) for t in times[known]], atol=1e-4)


@settings(max_examples=200, deadline=None)
@given(missing=st.sets(st.integers(0, 79)), jitter=st.lists(st.floats(-0.004, 0.004), min_size=80, max_size=80))
def test_in_a_piece_frames_follow_at_the_rate_and_no_frame_is_in_two(missing, jitter):
    stamps = START + np.array([i / 30 + jitter[i] for i in range(80) if i not in missing])
    pieces = regular_pieces(stamps, 15.0)
    taken = np.concatenate([*pieces, []])
    assert (np.diff(taken) > 0).all()
    for rows in pieces:
        off = stamps[rows] - stamps[rows[0]] - np.arange(len(rows)) / 15
        assert (np.abs(off) < 1 / 15).all() and (np.diff(stamps[rows]) < 4 / 30).all()
    if all({i + 1, i + 2}.isdisjoint(missing) for i in missing):  # single ones
        assert len(pieces) == 1


def test_frames_of_one_time_and_far_apart_end_pieces_without_asking_for_memory():
    assert [rows.tolist() for rows in regular_pieces(np.array([5.0, 5.0, 5.0]), 15.0)] == [[0], [1], [2]]
    assert [rows.tolist() for rows in regular_pieces(np.array([0.0, 1e12]), 15.0)] == [[0], [1]]
    assert regular_pieces(np.array([]), 15.0) == []


@pytest.mark.parametrize("camera", ["freiburg1", "freiburg2"])
def test_pictures_of_a_bent_lens_come_out_as_a_pinhole_cameras(tmp_path, camera):
    folder = make_recording(tmp_path, name=f"{camera}_desk")
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    place = np.dstack([x / 4, y / 4, 0 * x]).round().astype(np.uint8)  # red tells x, green y
    cv2.imwrite(str(folder / "rgb/000.png"), place[..., ::-1])
    stored = (5000 + 10 * x + 20000 * (x // 8 % 2)).astype(np.uint16)  # steps of four metres: nothing lies between
    cv2.imwrite(str(folder / "depth/000.png"), stored)
    found = open_recordings(tmp_path)[0].read(range(1))
    fx, fy, cx, cy, (k1, k2, p1, p2, k3), *_ = CAMERAS[camera]
    # Brown's formula: where the lens shows the ray of each pixel of the pinhole camera, whose centres are at + 0.5.
    intrinsics = found.intrinsics[0]
    u = (x + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
    v = (y + 0.5 - intrinsics[1, 2]) / intrinsics[1, 1]
    r = u**2 + v**2
    radial = 1 + k1 * r + k2 * r**2 + k3 * r**3
    bent_x = fx * (u * radial + 2 * p1 * u * v + p2 * (r + 2 * u**2)) + cx
    bent_y = fy * (v * radial + p1 * (r + 2 * v**2) + 2 * p2 * u * v) + cy
    assert np.abs(bent_x - x).max() > 5, "it matters"
    assert bent_x.min() >= 0 and bent_x.max() <= WIDTH - 1 and bent_y.min() >= 0 and bent_y.max() <= HEIGHT - 1
    np.testing.assert_allclose(found.rgb[0, ..., 0], bent_x / 4, atol=1.2)
    np.testing.assert_allclose(found.rgb[0, ..., 1], bent_y / 4, atol=1.2)
    seen = np.rint(5000 * found.depth[0])
    assert np.isin(seen, stored).all()
    off = np.abs((seen - 5000) % 20000 / 10 - bent_x)  # the column that was taken, from the one that was looked at
    assert off.max() < 0.6


def test_batches_of_clips_come_from_recordings(tmp_path):
    make_recording(tmp_path)
    source = FolderClips.open("tum", tmp_path)
    assert source.length == 1 and source.spans().tolist() == [[21.0, 15.0]]
    config = BatchSettings(batch_size=2, num_frames=(4, 6), fps=(5.0, 7.5, 15.0, 24.0), sizes=((48, 64),), seed=1)
    for batch, _ in zip(ClipBatches(MixedClips([(source, 1.0)]), config), range(6), strict=False):
        assert batch.fps in (5.0, 7.5, 15.0), "a frame is never shown twice"
        for row in range(2):
            frames = batch.rgb[row, :, 0, 24, 32].numpy().astype(int)
            assert (np.diff(frames) == 30 / batch.fps).all()
            np.testing.assert_allclose(batch.depth[row, :, 24, 32], 1 + frames / 100, rtol=1e-4)
            np.testing.assert_allclose(batch.world_from_camera[row], [pose_of(t) for t in frames / 30], atol=1e-4)
            assert batch.valid[row].all() and batch.names[row].startswith("freiburg3_walking_xyz ")
            # A tenth of the size: a tenth of the focal lengths.
            np.testing.assert_allclose(batch.intrinsics[row, 0].diagonal(), [53.54, 53.92, 1])
    check_clip(source.clip(0, 5, 5.0, 48, 64, np.random.default_rng(0)))


def small(path: Path, depth: bool = False) -> None:
    cv2.imwrite(str(path), np.zeros((240, 320) if depth else (240, 320, 3), np.uint16 if depth else np.uint8))


WRONG = {
    "rgb.txt: No such file": lambda f: (f / "rgb.txt").unlink(),
    "depth.txt: No such file": lambda f: (f / "depth.txt").unlink(),
    "groundtruth.txt: No such file": lambda f: (f / "groundtruth.txt").unlink(),
    "depth.txt: line 1 has 3 words": lambda f: (f / "depth.txt").write_text("1.0 depth/000.png 7\n"),
    "groundtruth.txt: line 1 has 4 numbers": lambda f: (f / "groundtruth.txt").write_text("1.0 0 0 0\n"),
    "groundtruth.txt: pose 1 has a quaternion": lambda f: (f / "groundtruth.txt").write_text("1.0 0 0 0 0 0 0 2\n"),
    "groundtruth.txt: 0 of 41 frames have depth and poses": lambda f: (f / "groundtruth.txt").write_text(
        "1.0 0 0 0 0 0 0 1\n"
    ),
    "groundtruth.txt: 8 of 8 frames .* nowhere 17 in a row": lambda f: (f / "rgb.txt").write_text(
        "".join(f"{START + i / 30} rgb/{i:03d}.png\n" for i in range(8))
    ),
    "rgb/014.png: No such file": lambda f: (f / "rgb/014.png").unlink(),
    "depth/014.png: No such file": lambda f: (f / "depth/014.png").unlink(),
    "depth/014.png: depth must be a 16-bit grey PNG": lambda f: small(f / "depth/014.png"),
    r"depth/014.png: is \(240, 320\) pixels, the video \(480, 640\)": lambda f: small(f / "depth/014.png", depth=True),
    r"rgb/000.png: is \(240, 320\) pixels, the video \(480, 640\)": lambda f: small(f / "rgb/000.png"),
    "rgbd_dataset_helsinki_desk: no camera of TUM": lambda f: f.rename(f.with_name("rgbd_dataset_helsinki_desk")),
    "has no folder rgbd_dataset_NAME": lambda f: f.rename(f.with_name("desk")),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_recording(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("named", WRONG)
def test_what_is_wrong_in_a_recording_is_named(tmp_path, whole, named):
    folder = Path(shutil.copytree(whole, tmp_path / whole.name))
    WRONG[named](folder)
    with pytest.raises(DatasetError, match=named):
        open_recordings(tmp_path)


def test_some_recordings_are_read_when_they_are_named(tmp_path):
    make_recording(tmp_path)
    (tmp_path / "rgbd_dataset_freiburg1_desk").mkdir()
    (video,) = FolderClips.open("tum", tmp_path, only=["freiburg3_walking_xyz"])._videos
    assert video.name.startswith("freiburg3_walking_xyz")
    with pytest.raises(DatasetError, match="freiburg1_desk/rgb.txt"):
        FolderClips.open("tum", tmp_path)
