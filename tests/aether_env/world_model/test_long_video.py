"""Windows of a long video, by a model that sees the truth but each time in another world and scale."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from aether_env.camera import intrinsics_from_fov, make_pose, relative_to, scale_poses, se3_exp
from aether_env.trajectory import align_sim3
from aether_env.world_model.clip_model import ClipResult
from aether_env.world_model.pipeline import AetherPipeline
from aether_env.world_model.result import VideoResult

HALF_SIZE = np.array([2.0, 1.5, 3.0])
"""Metres from a room's centre to its walls."""


def walk_through_a_room(num: int) -> np.ndarray:
    time = np.arange(num) / 12
    turn = np.stack([0.1 * np.sin(time), 0.4 * time, 0 * time], axis=-1)
    centre = np.stack([np.sin(0.7 * time), 0.5 * np.sin(time), 1.5 * np.sin(0.5 * time)], axis=-1)
    rotation = se3_exp(np.concatenate([0 * turn, turn], axis=-1))[:, :3, :3]
    return make_pose(rotation, centre)


def depth_of_room(poses: np.ndarray, intrinsics: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return z-depth (T, H, W) of the walls: rays have z = 1 in the camera, so the way along them is the depth."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    pixel = np.stack([columns, rows, np.ones_like(rows)], axis=-1)
    ray = np.einsum("tij,jk,hwk->thwi", poses[:, :3, :3], np.linalg.inv(intrinsics), pixel)
    way = (np.sign(ray) * HALF_SIZE - poses[:, None, None, :3, 3]) / ray
    return way.min(axis=-1).astype(np.float32)


class Seer:
    """Keeps the ClipModel promise for one room: the number of a frame is in its first pixel.

    It finds the truth, in a world and (unless depth or path tell it) a scale that its seed alone decides.
    """

    height, width, lengths, rates, other_rates = 16, 24, (9, 17), (12.0,), False
    at_once, limits, progress = 4, "any", None

    def __init__(self, num: int):
        self.poses = walk_through_a_room(num)
        self.intrinsics = intrinsics_from_fov(1.2, self.height, self.width)
        self.depth = depth_of_room(self.poses, self.intrinsics, self.height, self.width)
        self.asked: list[dict[str, Any]] = []

    def video(self) -> np.ndarray:
        frames = np.zeros((len(self.poses), self.height, self.width, 3), np.uint8)
        frames[:, 0, 0, 0], frames[:, 0, 0, 1] = np.divmod(np.arange(len(frames)), 256)
        return frames

    def units(self, depth: np.ndarray) -> np.ndarray:
        return np.nanmin(depth, axis=(1, 2))

    def reconstruct(
        self,
        video: np.ndarray,
        *,
        depth: np.ndarray | None = None,
        world_from_camera: np.ndarray | None = None,
        intrinsics: np.ndarray | None = None,
        seeds: Sequence[int] | None = None,
        fps: float | None = None,
    ) -> ClipResult:
        assert seeds is not None and video.dtype == np.uint8 and fps == 12
        self.asked.append({"batch": len(video), "depth": depth, "path": world_from_camera, "seeds": seeds})
        numbers = video[:, :, 0, 0, 0].astype(int) * 256 + video[:, :, 0, 0, 1]
        scale, world = np.ones(len(video)), np.tile(np.eye(4), (len(video), 1, 1))
        metric = np.zeros(len(video), bool)
        for row, seed in enumerate(seeds):
            rng = np.random.default_rng(seed)
            scale[row], world[row] = np.exp(rng.uniform(-1, 1)), se3_exp(rng.normal(size=6))
            first = np.nan if depth is None else depth[row] if depth.ndim == 3 else depth[row, 0]
            metric[row] = np.isfinite(first).any()
            if metric[row]:
                scale[row] = 1
            elif world_from_camera is not None:  # the path's own scale
                true, shown = (np.ptp(p[row, :, :3, 3], axis=0).max() for p in (self.poses[numbers], world_from_camera))
                scale[row] = shown / true
        own = np.stack([w @ scale_poses(p, s) for w, p, s in zip(world, self.poses[numbers], scale, strict=True)])
        return ClipResult(
            rgb=video,
            depth=self.depth[numbers] * scale[:, None, None, None].astype(np.float32),
            world_from_camera=own,
            intrinsics=np.tile(self.intrinsics, (*numbers.shape, 1, 1)),
            raymap=np.zeros((*numbers.shape, 6, 2, 3), np.float32),
            unit=np.where(metric, self.depth[numbers[:, 0]].min(axis=(1, 2)), 1.0),
            metric=metric,
        )


@pytest.mark.parametrize("given", [{}, {"batch_size": 1}, {"batch_size": 3, "stride": 16}, {"stride": 5}], ids=str)
@pytest.mark.parametrize("num", [17, 18, 100])
def test_windows_of_any_world_and_scale_join_to_the_truth_but_for_one_similarity(num, given):
    seer = Seer(num)
    result = AetherPipeline(seer).reconstruct(seer.video(), smooth=False, **given)
    similarity = align_sim3(result.path.world_from_camera, seer.poses)
    found = similarity.apply_to_poses(result.path.world_from_camera)
    np.testing.assert_allclose(found, seer.poses, atol=2e-5)
    np.testing.assert_allclose(similarity.scale * result.depth, seer.depth, rtol=1e-4)
    np.testing.assert_allclose(result.path.intrinsics, np.tile(seer.intrinsics, (num, 1, 1)), rtol=1e-9)
    assert np.abs(np.log(similarity.scale)) > 0.01  # the seer did not see the true scale
    assert max(call["batch"] for call in seer.asked) <= given.get("batch_size", 4)
    seeds = [seed for call in seer.asked for seed in call["seeds"]]
    assert len(set(seeds)) == len(seeds) and seeds[0] == 0


def test_smoothing_keeps_a_joined_path_that_is_smooth_already():
    seer = Seer(60)
    result = AetherPipeline(seer).reconstruct(seer.video())
    similarity = align_sim3(result.path.world_from_camera, seer.poses)
    error = similarity.apply_to_poses(result.path.world_from_camera) - seer.poses
    assert np.abs(error).max() < 5e-3 and result.covariance is not None and result.covariance.shape == (60, 6, 6)


def test_depth_of_the_first_frame_makes_the_whole_video_metric():
    seer = Seer(60)
    result = AetherPipeline(seer).reconstruct(seer.video(), depth=seer.depth[0], smooth=False)
    np.testing.assert_allclose(result.path.world_from_camera, relative_to(seer.poses, seer.poses[0]), atol=2e-5)
    np.testing.assert_allclose(result.depth, seer.depth, rtol=1e-4)
    assert result.metric and [call["depth"] is None for call in seer.asked] == [False, True, True]


def test_depth_that_some_windows_lack_is_joined_in_metres_all_the_same():
    seer = Seer(60)
    depth = seer.depth.copy()
    depth[8:20] = np.nan  # the second window, from frame 8, begins with none
    result = AetherPipeline(seer).reconstruct(seer.video(), depth=depth, smooth=False)
    np.testing.assert_allclose(result.depth, seer.depth, rtol=1e-4)
    np.testing.assert_allclose(result.path.world_from_camera, relative_to(seer.poses, seer.poses[0]), atol=2e-5)


def test_a_known_path_is_shown_to_windows_without_depth_in_the_unit_of_the_first_one():
    seer = Seer(60)
    result = AetherPipeline(seer).reconstruct(seer.video(), path=seer.poses, depth=seer.depth[0])
    np.testing.assert_allclose(result.depth, seer.depth, rtol=1e-4)
    np.testing.assert_allclose(result.path.world_from_camera, relative_to(seer.poses, seer.poses[0]), atol=1e-9)
    first, second, _ = seer.asked
    np.testing.assert_array_equal(first["path"][0], seer.poses[:17])
    unit = seer.depth[0].min()
    np.testing.assert_allclose(second["path"][0, :, :3, 3] * unit, seer.poses[8:25, :3, 3], rtol=1e-5)
    assert result.metric and result.unit == pytest.approx(unit)


def test_with_a_known_path_depth_is_in_its_unit_throughout():
    seer = Seer(60)
    path = scale_poses(seer.poses, 3.0)
    result = AetherPipeline(seer).reconstruct(seer.video(), path=path)
    np.testing.assert_allclose(result.depth, 3 * seer.depth, rtol=1e-4)
    np.testing.assert_allclose(result.path.world_from_camera, relative_to(path, path[0]), atol=1e-9)


class LargeSeer(Seer):
    height, width = 48, 72


def test_memory_does_not_grow_with_a_video_whose_result_goes_to_a_folder(tmp_path, monkeypatch):
    shown: list[int] = []
    monkeypatch.setattr(VideoResult, "save", lambda result, _: shown.append(sum(len(frame) for frame in result.depth)))

    def peak(num: int) -> int:
        seer = LargeSeer(num)
        video = seer.video()
        tracemalloc.start()
        AetherPipeline(seer).reconstruct(video, out=tmp_path / "result", smooth=False)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert shown.pop() == num * seer.height
        return most

    peak(18)  # what is loaded once
    short, long = peak(100), peak(340)
    more = 240 * LargeSeer.height * LargeSeer.width * (3 + 4 + 4)  # colour, depth and disparity
    assert long - short < 0.2 * more, (short, long, more)
