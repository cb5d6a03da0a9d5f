"""Recorded videos are what `annotate` reads, and the truth beside them is true: the pictures themselves say so."""

import json

import cv2
import numpy as np
import pytest

from aether_env.camera import invert_pose
from aether_env.conventions import FAR_DEPTH
from training.annotate.inputs import find_videos
from training.annotate.pieces import InputSettings, read_pieces
from training.annotate.recorders import Known, record_known, simulated


def read(out, name):
    (video,) = [video for video in find_videos([out / "videos"]) if video.name == name]
    ((footage, dropped),) = read_pieces(video, InputSettings())
    assert not dropped
    with np.load(out / "truth" / f"{name}.npz") as truth:
        return footage, dict(truth)


def agreement(footage, truth, a, b, intrinsics=None, poses=None):
    """Share of the static depth of frame a that is found in frame b where the truth says, and how far colours are off.

    Occluded points and such as leave the picture do not count; depth agrees within 6 % and colours are grey levels.
    """
    matrix = truth["intrinsics"] if intrinsics is None else intrinsics
    poses = truth["world_from_camera"] if poses is None else poses
    height, width = footage.size
    y, x = 2 * np.stack(np.nonzero((footage.valid[a] & ~truth["moving"][a])[::2, ::2]))
    ray_N3 = np.stack([x + 0.5, y + 0.5, np.ones(len(x))], -1) @ np.linalg.inv(matrix).T
    point_N4 = np.concatenate([ray_N3 * footage.depth[a][y, x][:, None], np.ones((len(x), 1))], 1)
    seen_N3 = (point_N4 @ (invert_pose(poses[b]) @ poses[a]).T)[:, :3]
    pixel_N3 = seen_N3 @ matrix.T
    target_N2 = (pixel_N3[:, :2] / pixel_N3[:, 2:] - 0.5).astype(np.float32)
    column, row = np.rint(target_N2).astype(int).T
    inside = (seen_N3[:, 2] > 0.1) & (column >= 0) & (row >= 0) & (column < width) & (row < height)
    there, expected = footage.depth[b][row[inside], column[inside]], seen_N3[inside, 2]
    compared = footage.valid[b][row[inside], column[inside]] & ~truth["moving"][b][row[inside], column[inside]]
    compared &= there > 0.8 * expected  # nearer: hidden
    same = np.abs(there / expected - 1)[compared] < 0.06
    colour_N3 = cv2.remap(footage.rgb[b].astype(np.float32), target_N2[inside][None], None, cv2.INTER_LINEAR)[0]
    off_N = np.abs(colour_N3 - footage.rgb[a][y, x][inside]).mean(-1)[compared]
    assert compared.sum() > 300
    return same.mean(), np.minimum(off_N, 40)[same].mean()


def test_the_simulator_is_recorded_exactly_with_its_truth_out_of_sight(tmp_path):
    known = Known(world="simulator", videos=2, frames=3, fps=6, height=48, width=64)
    assert record_known(tmp_path, known, progress=False) == 2
    video = simulated(known, 1)
    footage, truth = read(tmp_path, "simulator-0-0001")
    np.testing.assert_array_equal(footage.rgb, video.rgb)
    np.testing.assert_array_equal(footage.depth, video.stored)
    np.testing.assert_array_equal(footage.valid, video.stored < FAR_DEPTH)
    np.testing.assert_array_equal(truth["world_from_camera"], video.world_from_camera)
    np.testing.assert_array_equal(truth["moving"], video.moving)
    assert footage.fps == truth["fps"] == 6 and footage.moving is None and footage.intrinsics is None
    share, _ = agreement(footage, truth, 0, 2)
    assert share > 0.95
    seen = {path.name for path in (tmp_path / "videos" / "simulator-0-0001").rglob("*")}
    assert seen == {"rgb", "depth", "video.json"} | {f"{t:06d}.{end}" for t in range(3) for end in ("png", "npy")}
    assert json.loads((tmp_path / "videos" / "simulator-0-0001" / "video.json").read_text()).keys() == {
        "fps", "depth_scale", "depth_sky",
    }  # fmt: skip


def test_recording_goes_on_where_it_stopped_and_16_bits_are_millimetres(tmp_path):
    known = Known(world="simulator", videos=1, frames=2, height=24, width=32, depth="png16", masks=True)
    assert record_known(tmp_path, known, progress=False) == 1
    footage, truth = read(tmp_path, "simulator-0-0000")
    exact = simulated(Known(world="simulator", videos=1, frames=2, height=24, width=32), 0).stored
    np.testing.assert_allclose(footage.depth[footage.valid], exact[footage.valid], atol=6e-4)
    assert (exact[~footage.valid] > 65.5).all() and footage.valid.mean() > 0.3
    np.testing.assert_array_equal(footage.moving, truth["moving"])
    assert record_known(tmp_path, known, progress=False) == 0


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    pytest.importorskip("vizdoom")
    out = tmp_path_factory.mktemp("doom")
    record_known(out, Known(world="vizdoom", videos=2, frames=16, fps=12), progress=False)
    return out


@pytest.mark.parametrize("name", ["vizdoom-0-0000", "vizdoom-0-0001"])
def test_a_walk_through_doom_agrees_with_its_truth_and_with_no_other(walks, name):
    footage, truth = read(walks, name)
    assert footage.size == (240, 320) and footage.fps == truth["fps"] == pytest.approx(35 / 3)
    way = np.linalg.norm(np.diff(truth["world_from_camera"][:, :3, 3], axis=0), axis=1)
    assert 0.5 < way.sum() < 15 and way.max() < 1
    share, off = agreement(footage, truth, 0, 6)
    assert share > 0.93
    wider = truth["intrinsics"] * [[0.95, 1, 1], [1, 0.95, 1], [1, 1, 1]]
    late = np.roll(truth["world_from_camera"], 1, axis=0)
    stretched = truth["world_from_camera"] * np.where(np.arange(4) == 3, [[1.2], [1.2], [1.2], [1]], 1)
    assert agreement(footage, truth, 0, 6, intrinsics=wider)[1] > 1.1 * off
    assert agreement(footage, truth, 0, 6, poses=late)[1] > 1.5 * off
    assert agreement(footage, truth, 0, 6, poses=stretched)[1] > 1.2 * off


def test_only_odd_walks_have_monsters(walks):
    moving = [read(walks, f"vizdoom-0-000{number}")[1]["moving"] for number in (0, 1)]
    assert not moving[0].any()
    assert moving[1].any((1, 2)).mean() > 0.5 and 0.001 < moving[1].mean() < 0.4


def test_the_same_seed_is_the_same_walk_and_another_is_not(walks, tmp_path):
    for seed in (0, 1):
        record_known(tmp_path, Known(world="vizdoom", videos=1, frames=6, seed=seed), progress=False)
    first, _ = read(walks, "vizdoom-0-0000")
    again, _ = read(tmp_path, "vizdoom-0-0000")
    other, _ = read(tmp_path, "vizdoom-1-0000")
    np.testing.assert_array_equal(again.rgb, first.rgb[:6])
    assert (other.rgb[-1] != again.rgb[-1]).any()
