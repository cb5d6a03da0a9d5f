"""The pipeline on pictures, videos and paths as users have them. Weights are random: what is given must come back."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from aether_env.camera import (
    CameraPath,
    intrinsics_from_fov,
    invert_pose,
    poses_in_axes,
    relative_to,
    scale_poses,
    se3_exp,
)
from aether_env.conventions import FAR_DEPTH
from aether_env.paths import GivenPath, read_path, walk_path
from aether_env.pictures import fit_picture
from aether_env.trajectory import smooth_path
from aether_env.world_model import pipeline as pipeline_module
from aether_env.world_model.checkpoint import CheckpointError
from aether_env.world_model.pipeline import AetherPipeline
from aether_env.world_model.result import VideoResult, write_tum

pytestmark = pytest.mark.usefixtures("small_videos")

TINY_AETHERV1 = Path(__file__).parents[2] / "goldens" / "aetherv1" / "tiny_checkpoint"
ARRAYS = ("rgb", "depth", "disparity")


@pytest.fixture(scope="module")
def own(tiny_checkpoint) -> AetherPipeline:
    """16 x 24 pictures, windows of 17 frames."""
    return AetherPipeline.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def aetherv1() -> AetherPipeline:
    """16 x 32 pictures, windows of 17, 25, 33 or 41 frames."""
    return AetherPipeline.from_pretrained(TINY_AETHERV1, size=(16, 32), steps=1, guidance=1.0)


@pytest.fixture(params=["own", "aetherv1"])
def pipeline(request) -> AetherPipeline:
    return request.getfixturevalue(request.param)


def pictures(pipeline: AetherPipeline, num: int, seed: int = 0) -> np.ndarray:
    """Return noise in the size of a checkpoint."""
    size = (num, pipeline.model.height, pipeline.model.width, 3)
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def surfaces(pipeline: AetherPipeline, num: int, seed: int = 0) -> np.ndarray:
    """Return depth of 1 to 5 metres in the size of a checkpoint."""
    size = (num, pipeline.model.height, pipeline.model.width)
    return np.random.default_rng(seed).uniform(1, 5, size).astype(np.float32)


def camera(pipeline: AetherPipeline) -> np.ndarray:
    return intrinsics_from_fov(1.2, pipeline.model.height, pipeline.model.width)


def curve(num: int, step: float = 0.02) -> np.ndarray:
    """Return poses of a camera on an arc that begins anywhere but in the world's origin."""
    twist = np.array([0.3, -0.1, 1.0, 0.1, 0.8, -0.2]) * step
    somewhere = se3_exp([1.0, 2.0, -3.0, 0.4, -0.3, 0.2])
    return somewhere @ se3_exp(np.arange(num)[:, None] * twist)


def kinds(result: VideoResult) -> list[str]:
    return [note.what for note in result.notes]


def note(result: VideoResult, what: str) -> dict[str, float]:
    """Return the numbers of the one note of a kind."""
    (found,) = [note for note in result.notes if note.what == what]
    return found.numbers


def assert_same(found: VideoResult, expected: VideoResult, tolerance: float = 0.0) -> None:
    """Colours to one level where there is a tolerance, which is relative for depth."""
    assert found.rgb.shape == expected.rgb.shape
    assert np.abs(found.rgb.astype(int) - expected.rgb).max() <= (tolerance > 0)
    np.testing.assert_allclose(found.depth, expected.depth, rtol=tolerance)
    np.testing.assert_allclose(found.disparity, expected.disparity, rtol=tolerance)
    # Poses come from raymaps of random weights, whose rays may be nearly parallel.
    loose = 100 * tolerance
    np.testing.assert_allclose(found.path.world_from_camera, expected.path.world_from_camera, rtol=loose, atol=loose)
    np.testing.assert_allclose(found.path.intrinsics, expected.path.intrinsics, rtol=loose)
    assert (found.metric, found.fps) == (expected.metric, expected.fps)
    assert found.unit == pytest.approx(expected.unit, rel=tolerance)


def write_video(path: Path, frames: np.ndarray, fps: float) -> Path:
    """Write frames without loss."""
    writer = imageio_ffmpeg.write_frames(
        str(path), frames.shape[2:0:-1], fps=fps, codec="ffv1", pix_fmt_out="bgr0", macro_block_size=1,
        ffmpeg_log_level="error",
    )  # fmt: skip
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    return path


def untouchable(pipeline: AetherPipeline) -> AetherPipeline:
    """Return the pipeline with a model that must not be asked for anything that takes time."""
    return AetherPipeline(_Untouchable(pipeline.model))


class _Untouchable:
    def __init__(self, model: Any):
        self._model = model

    def __getattr__(self, name: str) -> Any:
        if name in ("reconstruct", "predict", "plan", "follow"):
            return lambda *_, **__: pytest.fail(f"the model was asked to {name}")
        return getattr(self._model, name)


# --- reconstruct


@pytest.mark.parametrize(
    ("name", "num", "expected"),
    [
        ("own", 1, {"padded": {"frames": 1, "length": 17, "repeated": 16}}),
        ("own", 10, {"padded": {"frames": 10, "length": 17, "repeated": 7}}),
        ("own", 17, {}),
        ("own", 41, {"windowed": {"frames": 41, "length": 17, "windows": 4, "stride": 8}}),
        ("aetherv1", 18, {"padded": {"frames": 18, "length": 25, "repeated": 7}}),
        ("aetherv1", 41, {}),
        ("aetherv1", 42, {"windowed": {"frames": 42, "length": 41, "windows": 2, "stride": 20}}),
    ],
)
def test_a_video_of_any_length_comes_back_with_depth_and_path_of_each_frame(request, name, num, expected):
    pipeline = request.getfixturevalue(name)
    video = pictures(pipeline, num)
    result = pipeline.reconstruct(video, source_fps=12)
    np.testing.assert_array_equal(result.rgb, video)
    assert len(result) == num and result.fps == 12
    np.testing.assert_allclose(result.path.world_from_camera[0], np.eye(4), atol=1e-9)
    np.testing.assert_allclose(result.disparity, np.where(result.depth < 99.9, 1 / result.depth, 0), rtol=1e-6)
    assert result.covariance is not None and result.metric is False and result.unit == 1
    assert {n.what: n.numbers for n in result.notes} == expected


@pytest.mark.parametrize("num", [17, 10])
def test_one_window_is_what_the_model_says_of_the_fitted_pictures(own, num):
    video = np.random.default_rng(0).integers(0, 256, (num, 50, 60, 3), dtype=np.uint8)
    fitted = np.stack([fit_picture(frame, 16, 24).rgb for frame in video])
    fitted = np.concatenate([fitted, np.repeat(fitted[-1:], 17 - num, axis=0)])
    expected = own.model.reconstruct(fitted[None])[0]
    result = own.reconstruct(video, smooth=False)
    np.testing.assert_array_equal(result.rgb, fitted[:num])
    np.testing.assert_array_equal(result.depth, expected.depth[:num])
    np.testing.assert_array_equal(result.raymap, expected.raymap[:num])
    np.testing.assert_allclose(result.path.world_from_camera, expected.world_from_camera[:num], atol=1e-9)
    np.testing.assert_allclose(result.path.intrinsics[0], np.median(expected.intrinsics[:num], axis=0), rtol=1e-9)
    assert result.covariance is None


def test_a_joined_video_has_no_raymap_because_each_window_has_its_own(own):
    assert own.reconstruct(pictures(own, 18)).raymap is None


def test_files_folders_and_lists_give_what_the_array_gives(own, tmp_path):
    video = pictures(own, 19)
    expected = own.reconstruct(video, source_fps=12, smooth=False)
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, frame in enumerate(video):
        Image.fromarray(frame).save(folder / f"{index}.png")  # 10.png comes after 9.png
    lossless = write_video(tmp_path / "walk.mkv", video, 12)
    for source in (folder, str(folder), [Image.fromarray(frame) for frame in video], (video / 255).astype(np.float32)):
        assert_same(own.reconstruct(source, source_fps=12, smooth=False), expected)
    assert_same(own.reconstruct(lossless, smooth=False), expected)


@pytest.mark.parametrize("kind", ["array", "file"])
def test_of_thirty_frames_a_second_the_nearest_to_each_twelfth_are_taken(own, tmp_path, kind):
    video = pictures(own, 41)
    if kind == "file":
        result = own.reconstruct(write_video(tmp_path / "fast.mkv", video, 30), smooth=False)
    else:
        result = own.reconstruct(video, source_fps=30, smooth=False)
    # 2.5 frames of the source for one. Of two that are equally near, the array's earlier one is taken; the file's times
    # are rounded to milliseconds.
    wanted = np.array([0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 30, 32, 35, 37, 40])
    later = wanted + (np.arange(17) % 2 if kind == "file" else 0)
    same = (result.rgb == video[wanted]).all(axis=(1, 2, 3)) | (result.rgb == video[later]).all(axis=(1, 2, 3))
    assert same.all()
    assert result.fps == 12 and kinds(result) == ["fps"] and note(result, "fps") == {"from": 30, "to": 12}


def test_a_path_and_depth_of_a_fast_video_are_taken_at_the_frames_that_are_looked_at(own):
    poses, depth = curve(41), surfaces(own, 41)
    result = own.reconstruct(pictures(own, 41), source_fps=30, path=poses, depth=depth, intrinsics=camera(own))
    wanted = [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 30, 32, 35, 37, 40]
    np.testing.assert_allclose(result.path.world_from_camera, relative_to(poses[wanted], poses[0]), atol=1e-9)
    np.testing.assert_allclose(result.depth, depth[wanted], rtol=1e-6)


@pytest.mark.parametrize(("source", "told"), [(30, 24), (9, 10), (12, 12), (5, 8)])
def test_a_checkpoint_of_several_rates_looks_at_the_one_nearest_to_the_video(aetherv1, source, told):
    video = pictures(aetherv1, 9)
    result = aetherv1.reconstruct(video, source_fps=source, smooth=False)
    assert ("fps" in kinds(result)) == (source != told)
    assert result.fps == min(source, told)
    if source < told:  # repeated frames would be a camera that stops and goes on
        np.testing.assert_array_equal(result.rgb, video)
        assert note(result, "fps") == {"from": source, "to": told}


def test_a_slow_video_keeps_its_frames_and_its_time(own):
    video = pictures(own, 17)
    slow, usual = (own.reconstruct(video, source_fps=fps, smooth=False) for fps in (10, 12))
    np.testing.assert_array_equal(slow.depth, usual.depth)
    assert (slow.fps, usual.fps) == (10, 12)


@pytest.mark.parametrize(
    ("size", "given", "expected"),
    [
        ((16, 24), {"source_fps": 12}, []),
        ((16, 24), {}, ["assumed_fps"]),
        ((32, 48), {"source_fps": 12}, ["resized"]),
        ((16, 32), {"source_fps": 12}, ["cropped"]),
        ((32, 32), {"source_fps": 12}, ["cropped", "resized"]),
        ((16, 24), {"source_fps": 12, "path": curve(17)}, ["assumed_fov"]),
        ((16, 24), {"source_fps": 12, "path": curve(17), "intrinsics": intrinsics_from_fov(1.0, 16, 24)}, []),
        ((16, 24), {"source_fps": 24}, ["fps", "padded"]),
    ],
)
def test_notes_tell_what_was_done_and_nothing_else(own, size, given, expected):
    video = np.random.default_rng(0).integers(0, 256, (17, *size, 3), dtype=np.uint8)
    assert kinds(own.reconstruct(video, **given, smooth=False)) == expected


def test_cropping_and_resizing_are_told_in_pixels(own):
    result = own.reconstruct(np.zeros((1, 40, 48, 3), np.uint8))
    assert note(result, "cropped") == {
        "top": 4, "left": 0, "height": 32, "width": 48, "of_height": 40, "of_width": 48
    }  # fmt: skip
    assert note(result, "resized") == {"from_height": 32, "from_width": 48, "height": 16, "width": 24}


def test_windows_are_the_same_however_many_are_looked_at_together(pipeline):
    video = pictures(pipeline, 2 * pipeline.model.lengths[-1])
    one, four = (pipeline.reconstruct(video, batch_size=size, smooth=False) for size in (1, 4))
    assert_same(four, one, tolerance=1e-4)


def test_the_seed_of_a_checkpoint_that_looks_more_than_once_decides(aetherv1):
    video = pictures(aetherv1, 9)
    first, again, other = (aetherv1.reconstruct(video, seed=seed, smooth=False) for seed in (3, 3, 4))
    assert_same(again, first)
    assert np.abs(first.depth / other.depth - 1).max() > 1e-3


def test_a_result_in_a_folder_is_the_same_and_is_read_back(own, tmp_path):
    video, out = pictures(own, 41), tmp_path / "result"
    expected = own.reconstruct(video)
    kept = own.reconstruct(video, out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    for result in (kept, VideoResult.load(out)):
        assert_same(result, expected, tolerance=1e-12)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
        assert result.notes == expected.notes
    again = own.reconstruct(video[:3], out=out)  # an earlier result is replaced
    assert len(VideoResult.load(out)) == len(again) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    np.testing.assert_array_equal(kept.rgb, video)  # and stays readable while it is held


@pytest.mark.parametrize("with_earlier", [False, True])
def test_a_video_that_breaks_off_leaves_nothing_behind_and_an_earlier_result_as_it_was(own, tmp_path, with_earlier):
    video = list(pictures(own, 60))
    if with_earlier:
        own.reconstruct(video[:2], out=tmp_path / "result")
    video[-1] = video[-1].repeat(2, axis=0)
    with pytest.raises(ValueError, match="video frame 59 must be 16 x 24 like the first"):
        own.reconstruct(video, out=tmp_path / "result", batch_size=1)
    assert [path.name for path in tmp_path.iterdir()] == ["result"] * with_earlier
    if with_earlier:
        assert len(VideoResult.load(tmp_path / "result")) == 2


def test_a_folder_that_a_result_cannot_replace_is_refused_before_the_model_is_asked(pipeline, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    picture, path = pictures(pipeline, 1)[0], curve(50)
    for call in (
        lambda p: p.reconstruct([picture], out=tmp_path),
        lambda p: p.predict(picture, path=path, out=tmp_path),
        lambda p: p.plan(picture, picture, out=tmp_path),
    ):
        with pytest.raises(ValueError, match="is not a saved result; choose a new folder"):
            call(untouchable(pipeline))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_known_path_comes_back_relative_to_its_first_pose(pipeline):
    num = pipeline.model.lengths[-1] + 9  # two windows
    poses = curve(num)
    result = pipeline.reconstruct(pictures(pipeline, num), path=poses, intrinsics=camera(pipeline))
    np.testing.assert_allclose(result.path.world_from_camera, relative_to(poses, poses[0]), atol=1e-9)
    np.testing.assert_allclose(result.path.intrinsics, np.tile(camera(pipeline), (num, 1, 1)), rtol=1e-9)
    assert result.covariance is None and not result.metric


def test_depth_that_is_known_of_all_frames_comes_back_over_windows_too(own):
    depth = surfaces(own, 41)
    depth[::3, :5] = np.nan
    depth[20, :, 7] = 0  # unknown as well
    result = own.reconstruct(pictures(own, 41), depth=depth, smooth=False)
    known = depth > 0
    np.testing.assert_allclose(result.depth[known], depth[known], rtol=1e-6)
    assert result.metric and (result.depth > 0).all()
    assert result.unit == pytest.approx(float(own.model.units(depth[:1])[0]))


def test_frames_of_which_no_depth_is_known_do_not_spoil_the_others(own):
    depth = surfaces(own, 41)
    depth[24:26] = np.nan  # a window begins with frame 24, and has no metres of its own then
    result = own.reconstruct(pictures(own, 41), depth=depth, smooth=False)
    np.testing.assert_allclose(result.depth[:24], depth[:24], rtol=1e-6)
    assert result.metric and np.isfinite(result.depth).all()


def test_published_windows_have_the_first_frames_depth_in_the_middle(aetherv1):
    depth = surfaces(aetherv1, 50)
    result = aetherv1.reconstruct(pictures(aetherv1, 50), depth=depth, smooth=False)
    assert result.metric and np.median(depth[0] / result.depth[0]) == pytest.approx(1, rel=1e-5)


def test_a_result_is_metric_exactly_where_depth_is_given(pipeline):
    video = pictures(pipeline, 2)
    blind, seeing = (pipeline.reconstruct(video, depth=d, smooth=False) for d in (None, surfaces(pipeline, 1)[0]))
    assert (blind.metric, blind.unit) == (False, 1.0)
    assert seeing.metric and seeing.unit != 1


@pytest.mark.parametrize(
    ("what", "message"), [("path", "path must have a pose.*it has 20"), ("depth", "depth must be there.*there are 20")]
)
def test_too_few_poses_or_depths_are_refused_with_their_number(own, what, message):
    given = {"path": curve(20)} if what == "path" else {"depth": surfaces(own, 20)}
    with pytest.raises(ValueError, match=message):
        own.reconstruct(pictures(own, 21), **given)


def test_known_intrinsics_come_back_in_pixels_of_the_result(own):
    matrix = intrinsics_from_fov(np.deg2rad(60), 48, 64)
    result = own.reconstruct(np.zeros((3, 48, 64, 3), np.uint8), intrinsics=matrix)
    # 48 x 64 is cropped to 43 rows, which leaves the angle from left to right as it was.
    np.testing.assert_allclose(result.path.intrinsics[:, 0, 0], 12 / np.tan(np.deg2rad(30)), rtol=1e-9)


def test_the_camera_in_a_paths_file_is_taken_as_the_videos(own, tmp_path):
    poses, matrix = curve(4), intrinsics_from_fov(np.deg2rad(60), 48, 72)
    np.savez(tmp_path / "path.npz", world_from_camera=poses, intrinsics=matrix, picture_size=(48, 72))
    np.savez(tmp_path / "no_size.npz", world_from_camera=poses, intrinsics=matrix)  # then of the video's own
    video = np.zeros((4, 48, 72, 3), np.uint8)
    for name in ("path.npz", "no_size.npz"):
        result = own.reconstruct(video, path=tmp_path / name, source_fps=12)
        np.testing.assert_allclose(result.path.intrinsics[:, 0, 0], 12 / np.tan(np.deg2rad(30)), rtol=1e-9)
        assert kinds(result) == ["resized", "padded"]
    with pytest.raises(ValueError, match="intrinsics must be given or be in the path's file, not both"):
        own.reconstruct(video, path=tmp_path / "path.npz", intrinsics=matrix)


# --- predict


def test_one_picture_gives_one_result_and_a_list_or_array_a_list(pipeline):
    batch = pictures(pipeline, 2)
    single = pipeline.predict(batch[1], num_frames=9, smooth=False)
    for many in (list(batch), batch, tuple(batch)):
        results = pipeline.predict(many, num_frames=9, smooth=False)
        assert isinstance(results, list) and len(results) == 2
        np.testing.assert_array_equal(results[0].rgb[0], batch[0])
        assert_same(results[1], single, tolerance=1e-4)
    assert len(pipeline.predict(batch[:1], num_frames=9, smooth=False)) == 1


def test_an_item_is_the_same_alone_and_beside_neighbours_of_other_kinds(pipeline):
    batch = pictures(pipeline, 5)
    given: dict[str, list[Any]] = {
        "path": [None, curve(17), curve(12), curve(pipeline.model.lengths[-1] + 3), curve(17, step=0.04)],
        "depth": [None, None, surfaces(pipeline, 1)[0], None, None],
        "intrinsics": [camera(pipeline), None, camera(pipeline), None, None],
        "seed": [0, 1, 2, 3, 4],
    }
    together = pipeline.predict(batch, **given, smooth=False)
    for index, found in enumerate(together):
        alone = pipeline.predict(batch[index], **{name: values[index] for name, values in given.items()}, smooth=False)
        assert_same(found, alone, tolerance=1e-4)
        assert found.notes == alone.notes
    longest = pipeline.model.lengths[-1]
    assert [len(found) for found in together] == [longest, 17, 12, longest + 3, 17]


def test_what_is_given_once_holds_for_all_items(own):
    batch = pictures(own, 2)
    once = own.predict(batch, path=curve(17), depth=surfaces(own, 1)[0], intrinsics=camera(own), seed=7)
    each = own.predict(
        batch, path=np.stack([curve(17)] * 2), depth=np.stack([surfaces(own, 1)[0]] * 2),
        intrinsics=np.stack([camera(own)] * 2), seed=np.array([7, 7]),
    )  # fmt: skip
    for a, b in zip(once, each, strict=True):
        assert_same(a, b)


def test_the_seed_and_the_picture_decide_the_dream(pipeline):
    one, other = pictures(pipeline, 2)
    first, again = (pipeline.predict(one, seed=3, num_frames=9, smooth=False) for _ in range(2))
    assert_same(again, first)
    for changed in (pipeline.predict(p, seed=s, num_frames=9, smooth=False) for p, s in ((one, 4), (other, 3))):
        assert np.abs(changed.depth / first.depth - 1).max() > 1e-3


def test_a_path_comes_back_relative_to_its_first_pose_and_is_not_smoothed(pipeline):
    poses = curve(17)
    result = pipeline.predict(pictures(pipeline, 1)[0], path=poses, intrinsics=camera(pipeline))
    np.testing.assert_allclose(result.path.world_from_camera, relative_to(poses, poses[0]), atol=1e-9)
    np.testing.assert_allclose(result.path.intrinsics[5], camera(pipeline), rtol=1e-9)
    assert result.covariance is None and kinds(result) == []


def test_depth_makes_a_dream_metric_and_comes_back(own):
    depth = surfaces(own, 1)[0]
    depth[:3] = np.nan
    result = own.predict(pictures(own, 1)[0], depth=depth, smooth=False)
    np.testing.assert_allclose(result.depth[0, 3:], depth[3:], rtol=1e-6)
    assert result.metric and result.unit == pytest.approx(np.nanquantile(depth, 0.1), rel=0.01)


def test_depth_in_other_units_scales_the_dream_and_nothing_else(pipeline):
    picture, depth = pictures(pipeline, 1)[0], surfaces(pipeline, 1)[0]
    one, ten = (pipeline.predict(picture, depth=factor * depth, num_frames=9, smooth=False) for factor in (1, 10))
    assert ten.unit == pytest.approx(10 * one.unit, rel=1e-4)
    near = ten.depth < 99
    np.testing.assert_allclose(ten.depth[near], 10 * one.depth[near], rtol=1e-3)
    np.testing.assert_allclose(
        ten.path.world_from_camera[:, :3, 3], 10 * one.path.world_from_camera[:, :3, 3], rtol=1e-2, atol=1e-3
    )
    np.testing.assert_array_equal(ten.rgb, one.rgb)


def test_paths_from_files_are_followed_like_arrays(own, tmp_path):
    picture, poses = pictures(own, 1)[0], relative_to(curve(17), curve(1)[0])
    expected = own.predict(picture, path=poses)
    tum = write_tum(tmp_path / "path.tum", 5 + np.arange(17) / 12, poses)
    np.save(tmp_path / "path.npy", poses)
    for path in (tum, str(tmp_path / "path.npy"), read_path(tum), GivenPath(world_from_camera=poses)):
        result = own.predict(picture, path=path)
        assert_same(result, expected, tolerance=1e-5)
        assert kinds(result) == ["assumed_fov"]


def test_a_file_with_times_is_followed_at_its_own_speed(own, tmp_path):
    poses = curve(31)
    tum = write_tum(tmp_path / "path.tum", np.arange(31) / 24, poses)  # 1.25 seconds, 16 frames at 12 a second
    result = own.predict(pictures(own, 1)[0], path=tum)
    assert len(result) == 16
    np.testing.assert_allclose(result.path.world_from_camera, relative_to(poses[::2], poses[0]), atol=1e-6)


def test_a_nerfstudio_file_tells_the_camera_too(own, tmp_path):
    path = CameraPath(relative_to(curve(17), curve(1)[0]), intrinsics_from_fov(np.deg2rad(60), 480, 720))
    matrix, frames = path.intrinsics[0], poses_in_axes(path, axes="opengl")
    told = {"w": 720, "h": 480, "fl_x": matrix[0, 0], "fl_y": matrix[1, 1], "cx": 360, "cy": 240}
    told["frames"] = [{"file_path": f"{i}.png", "transform_matrix": pose.tolist()} for i, pose in enumerate(frames)]
    (tmp_path / "transforms.json").write_text(json.dumps(told))
    picture = pictures(own, 1)[0]
    result = own.predict(picture, path=tmp_path / "transforms.json")
    fitted = intrinsics_from_fov(np.deg2rad(60), 16, 24)
    assert_same(result, own.predict(picture, path=path.world_from_camera, intrinsics=fitted), tolerance=1e-5)
    np.testing.assert_allclose(result.path.intrinsics[3], fitted, rtol=1e-6)
    assert kinds(result) == []
    with pytest.raises(ValueError, match="intrinsics must be given with the image or in the path's file, not both"):
        own.predict(picture, path=tmp_path / "transforms.json", intrinsics=fitted)


def test_a_walk_in_words_is_followed_to_its_end(pipeline):
    walk = walk_path("forward 1 turn-left 45", fps=pipeline.fps)
    result = pipeline.predict(pictures(pipeline, 1)[0], path=walk)
    assert len(result) == len(walk) == 39
    # Half of a right angle to the left, one unit ahead.
    np.testing.assert_allclose(result.path.world_from_camera[-1, :3, 3], [0, 0, 1], atol=1e-9)
    np.testing.assert_allclose(result.path.world_from_camera[-1, :3, 2], [-(0.5**0.5), 0, 0.5**0.5], atol=1e-9)


@pytest.mark.parametrize("frames_more", [1, 7])
def test_a_path_longer_than_a_window_is_dreamed_to_its_end_and_said(pipeline, frames_more, tmp_path):
    longest = pipeline.model.lengths[-1]
    picture, poses = pictures(pipeline, 1)[0], curve(longest + frames_more)
    result = pipeline.predict(picture, path=poses)
    assert len(result) == longest + frames_more
    np.testing.assert_array_equal(result.rgb[0], picture)
    np.testing.assert_allclose(result.path.world_from_camera, relative_to(poses, poses[0]), atol=1e-9)
    assert note(result, "windowed") == {"frames": longest + frames_more, "length": longest}
    assert "padded" not in kinds(result) and not result.metric and result.unit == 1
    kept = pipeline.predict(picture, path=poses, out=tmp_path / "dream")
    assert_same(kept, result)
    assert_same(VideoResult.load(tmp_path / "dream"), result, tolerance=1e-12)
    assert [path.name for path in tmp_path.iterdir()] == ["dream"]


def test_a_long_dream_is_metric_where_depth_is_given(pipeline):
    depth = surfaces(pipeline, 1)[0]
    result = pipeline.predict(pictures(pipeline, 1)[0], path=curve(pipeline.model.lengths[-1] + 1), depth=depth)
    assert result.metric and np.median(depth / result.depth[0]) == pytest.approx(1, rel=1e-5)
    assert result.unit == pytest.approx(float(pipeline.model.units(depth[None])[0]))


def test_a_short_path_is_dreamed_as_if_the_camera_stood_still_at_its_end(pipeline):
    picture, poses = pictures(pipeline, 1)[0], curve(10)
    result = pipeline.predict(picture, path=poses)
    whole = pipeline.predict(picture, path=np.concatenate([poses, np.repeat(poses[-1:], 7, axis=0)]))
    assert len(result) == 10 and note(result, "padded") == {"frames": 10, "length": 17}
    np.testing.assert_array_equal(result.rgb, whole.rgb[:10])
    np.testing.assert_array_equal(result.depth, whole.depth[:10])
    assert "padded" not in kinds(whole)


@pytest.mark.parametrize("num", [9, 17, 60])
def test_a_path_is_spread_over_the_frames_that_are_wanted(pipeline, num):
    poses = curve(30)
    result = pipeline.predict(pictures(pipeline, 1)[0], path=poses, num_frames=num)
    expected = CameraPath(poses, camera(pipeline)).resampled(num).relative_to_first()
    np.testing.assert_allclose(result.path.world_from_camera, expected.world_from_camera, atol=1e-9)


def test_num_frames_without_a_path_cuts_what_is_dreamed(own, aetherv1):
    for pipeline, length in ((own, 17), (aetherv1, 25)):
        result = pipeline.predict(pictures(pipeline, 1)[0], num_frames=length - 5, smooth=False)
        assert len(result) == length - 5 and note(result, "padded") == {"frames": length - 5, "length": length}
        assert result.raymap is not None and len(result.raymap) == length - 5


def test_scene_scale_multiplies_the_way_and_nothing_else(pipeline):
    picture, poses = pictures(pipeline, 1)[0], curve(17)
    scaled = pipeline.predict(picture, path=poses, scene_scale=2.5)
    assert_same(scaled, pipeline.predict(picture, path=scale_poses(poses, 2.5)), tolerance=1e-9)
    np.testing.assert_allclose(scaled.path.world_from_camera, scale_poses(relative_to(poses, poses[0]), 2.5), atol=1e-9)


def test_a_path_that_goes_too_far_is_warned_of_with_numbers_and_the_way_out(own):
    picture, far = pictures(own, 1)[0], walk_path("forward 10", num_frames=17)
    with pytest.warns(UserWarning, match=r"7\.5 units a second.*10 units away.*scene_scale=0\.\d+ would mend"):
        own.predict(picture, path=far)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own.predict(picture, path=far, scene_scale=0.1)
        # Ten metres are not far where the nearest things are as far away.
        own.predict(picture, path=far, depth=np.full((16, 24), 10.0))


def test_without_a_picture_the_path_alone_or_nothing_decides(pipeline):
    for path in (curve(17), None):
        first, again, other = (
            pipeline.predict(path=path, num_frames=17, seed=seed, smooth=False) for seed in (1, 1, 2)
        )
        assert_same(again, first)
        assert len(first) == 17 and np.abs(first.depth / other.depth - 1).max() > 1e-3
        if path is not None:
            np.testing.assert_allclose(first.path.world_from_camera, relative_to(path, path[0]), atol=1e-9)
            assert np.abs(first.depth / pipeline.predict(num_frames=17, seed=1, smooth=False).depth - 1).max() > 1e-3


def test_a_dream_can_be_looked_at_again(pipeline):
    picture, options = pictures(pipeline, 1)[0], {"path": curve(17), "seed": 2}
    dream = pipeline.predict(picture, **options)
    seen = pipeline.predict(picture, **options, post_reconstruction=True)
    expected = pipeline.reconstruct(dream.rgb, intrinsics=dream.path.intrinsics[0])
    np.testing.assert_array_equal(seen.rgb, dream.rgb)
    assert_same(seen, expected)
    assert np.abs(seen.path.world_from_camera - dream.path.world_from_camera).max() > 1e-3
    assert kinds(seen) == [*kinds(dream), "post_reconstruction"]
    assert seen.covariance is not None
    plain = pipeline.predict(picture, **options, post_reconstruction=True, smooth=False)
    assert plain.covariance is None


def test_a_metric_dream_stays_metric_when_it_is_looked_at_again(pipeline):
    depth = surfaces(pipeline, 1)[0]
    seen = pipeline.predict(pictures(pipeline, 1)[0], depth=depth, num_frames=17, post_reconstruction=True)
    assert seen.metric and np.median(depth / seen.depth[0]) == pytest.approx(1, rel=1e-4)


def test_a_dreamed_path_is_smoothed_with_covariance_unless_that_is_not_wanted(own):
    picture = pictures(own, 1)[0]
    raw, smooth = own.predict(picture, smooth=False), own.predict(picture)
    expected = smooth_path(raw.path.world_from_camera, rate_hz=12.0)
    first = expected.world_from_camera[0]
    np.testing.assert_allclose(
        smooth.path.world_from_camera, invert_pose(first) @ expected.world_from_camera, atol=1e-9
    )
    np.testing.assert_allclose(  # turned with the world: sizes stay
        np.linalg.eigvalsh(smooth.covariance), np.linalg.eigvalsh(expected.covariance), rtol=1e-6, atol=1e-12
    )
    assert raw.covariance is None


def test_pictures_may_be_arrays_of_any_kind_pil_pictures_or_files(pipeline, tmp_path):
    picture = pictures(pipeline, 1)[0]
    Image.fromarray(picture).save(tmp_path / "picture.png")
    expected = pipeline.predict(picture, num_frames=9, smooth=False)
    opaque = np.concatenate([picture, np.full_like(picture[..., :1], 255)], axis=-1)
    for same in (
        (picture / 255).astype(np.float32), picture / 255, opaque, Image.fromarray(picture), tmp_path / "picture.png",
        str(tmp_path / "picture.png"),
    ):  # fmt: skip
        assert_same(pipeline.predict(same, num_frames=9, smooth=False), expected)


def test_pictures_are_fitted_and_that_is_said(own):
    picture = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    matrix, depth = intrinsics_from_fov(np.deg2rad(60), 40, 48), np.random.default_rng(1).uniform(1, 5, (40, 48))
    result = own.predict(picture, depth=depth, intrinsics=matrix, smooth=False)
    fitted = fit_picture(picture, 16, 24, matrix, depth)
    np.testing.assert_array_equal(result.rgb[0], fitted.rgb)
    np.testing.assert_array_equal(result.depth[0], fitted.depth)
    np.testing.assert_allclose(result.path.intrinsics[4], fitted.intrinsics, rtol=1e-9)
    assert kinds(result) == ["cropped", "resized"]


def test_what_is_given_stays_as_it_was(own):
    given = {"path": curve(20), "depth": surfaces(own, 1)[0], "intrinsics": camera(own)}
    batch = pictures(own, 2)
    before = [array.copy() for array in (batch, *given.values())]
    own.predict(batch, **given, scene_scale=2.0)
    own.plan(batch[0], batch[1], **given | {"path": curve(9)}, goal_depth=given["depth"])
    own.reconstruct(batch, **given | {"path": curve(2)})
    for array, old in zip((batch, *given.values()), before, strict=True):
        np.testing.assert_array_equal(array, old)


# --- plan


def test_a_plan_begins_with_the_picture_and_depends_on_goal_and_seed(pipeline):
    here, there, elsewhere = pictures(pipeline, 3)
    plan = pipeline.plan(here, there, num_frames=17, seed=1)
    np.testing.assert_array_equal(plan.rgb[0], here)
    np.testing.assert_allclose(plan.path.world_from_camera[0], np.eye(4), atol=1e-9)
    assert plan.covariance is not None and plan.notes == ()
    for goal, seed in ((elsewhere, 1), (there, 2)):
        changed = pipeline.plan(here, goal, num_frames=17, seed=seed, smooth=False)
        assert np.abs(changed.depth / plan.depth - 1).max() > 1e-3


def test_goals_are_one_for_all_or_one_for_each(pipeline):
    here, goals = pictures(pipeline, 2), pictures(pipeline, 2, seed=1)
    options = {"num_frames": 17, "smooth": False}
    each = pipeline.plan(here, goals, seed=[4, 5], **options)
    assert_same(each[1], pipeline.plan(here[1], goals[1], seed=5, **options), tolerance=1e-4)
    all_one = pipeline.plan(list(here), goals[0], **options)
    assert_same(all_one[1], pipeline.plan(here[1], goals[0], **options), tolerance=1e-4)


def test_a_plan_along_a_path_keeps_to_it_and_ends_with_it(pipeline):
    here, there = pictures(pipeline, 2)
    poses = curve(12)
    plan = pipeline.plan(here, there, path=poses, intrinsics=camera(pipeline))
    assert len(plan) == 12 and note(plan, "padded") == {"frames": 12, "length": 17}
    np.testing.assert_allclose(plan.path.world_from_camera, relative_to(poses, poses[0]), atol=1e-9)


@pytest.mark.parametrize(("name", "asked", "made"), [("aetherv1", 20, 25), ("aetherv1", 33, 33), ("own", 10, 17)])
def test_a_plan_without_a_path_has_the_next_length_that_the_model_knows_and_says_so(request, name, asked, made):
    pipeline = request.getfixturevalue(name)
    plan = pipeline.plan(*pictures(pipeline, 2), num_frames=asked, smooth=False)
    assert len(plan) == made
    assert [n.numbers for n in plan.notes] == ([] if asked == made else [{"frames": asked, "length": made}])
    assert all(f"a plan of {made} was made" in n.text for n in plan.notes)


def test_a_large_batch_is_dreamed_in_parts(own, monkeypatch):
    images = pictures(own, 3)
    together = own.predict(images, seed=[0, 1, 2])
    monkeypatch.setattr(own.model, "at_once", 2)
    asked, predict = [], own.model.predict
    monkeypatch.setattr(own.model, "predict", lambda p, **given: asked.append(len(p)) or predict(p, **given))
    for part, whole in zip(own.predict(images, seed=[0, 1, 2]), together, strict=True):
        np.testing.assert_allclose(part.depth, whole.depth, rtol=1e-4)
    assert asked == [2, 1]


def test_a_picture_of_nothing_but_sky_gives_no_metres(pipeline):
    depth = np.full((pipeline.model.height, pipeline.model.width), FAR_DEPTH)
    for frames in (17, pipeline.model.lengths[-1] + 1):
        result = pipeline.predict(pictures(pipeline, 1)[0], path=curve(frames), depth=depth)
        assert not result.metric and result.unit == 1


def test_a_fast_checkpoint_gives_the_same_dream(aetherv1, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda forward, **options: forward)  # compiled: test_aetherv1_speed.py
    fast = AetherPipeline.from_pretrained(TINY_AETHERV1, size=(16, 32), steps=1, guidance=1.0, fast=True)
    picture = pictures(aetherv1, 1)[0]
    found, expected = (p.predict(picture, num_frames=17, smooth=False) for p in (fast, aetherv1))
    np.testing.assert_allclose(found.depth, expected.depth, rtol=1e-3)
    np.testing.assert_allclose(found.raymap, expected.raymap, atol=1e-4)


def test_depth_of_the_goal_matters_where_the_model_takes_it(own):
    here, there = pictures(own, 2)
    depth, near, far = surfaces(own, 1)[0], np.full((16, 24), 2.0), np.full((16, 24), 8.0)
    one, other = (own.plan(here, there, depth=depth, goal_depth=goal, smooth=False) for goal in (near, far))
    assert np.abs(one.depth / other.depth - 1).max() > 1e-3


def test_a_metric_plan_becomes_poses_of_a_hand(pipeline):
    plan = pipeline.plan(*pictures(pipeline, 2), depth=surfaces(pipeline, 1)[0], num_frames=17, smooth=False)
    times, poses = plan.to_poses(rate_hz=12, base_from_world=curve(1)[0])
    np.testing.assert_allclose(times, np.arange(17) / 12, atol=1e-9)
    np.testing.assert_allclose(poses, curve(1)[0] @ plan.path.world_from_camera, atol=1e-6)
    blind = pipeline.plan(*pictures(pipeline, 2), num_frames=17, smooth=False)
    with pytest.raises(ValueError, match="metres_per_unit must be given"):
        blind.to_poses()


# --- checkpoints


@pytest.mark.parametrize("name", ["own", "aetherv1"])
def test_a_saved_checkpoint_dreams_the_same(request, name, tmp_path):
    pipeline = request.getfixturevalue(name)
    pipeline.save_pretrained(tmp_path / "saved")
    settings = {} if name == "own" else {"size": (16, 32), "steps": 1, "guidance": 1.0}
    loaded = AetherPipeline.from_pretrained(tmp_path / "saved", **settings)
    picture = pictures(pipeline, 1)[0]
    options = {"seed": 3, "num_frames": 17, "smooth": False}
    assert_same(loaded.predict(picture, **options), pipeline.predict(picture, **options), tolerance=1e-4)
    assert set(loaded.components) == set(pipeline.components)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_checkpoint_is_saved_over_itself(tmp_path):
    shutil.copytree(TINY_AETHERV1, tmp_path / "copy", copy_function=shutil.copyfile)
    loaded = AetherPipeline.from_pretrained(tmp_path / "copy", size=(16, 32), steps=1)
    before = loaded.predict(num_frames=9, smooth=False)
    loaded.save_pretrained(tmp_path / "copy")
    again = AetherPipeline.from_pretrained(tmp_path / "copy", size=(16, 32), steps=1)
    assert_same(again.predict(num_frames=9, smooth=False), before)
    assert_same(loaded.predict(num_frames=9, smooth=False), before)


def test_settings_reach_the_model_and_strange_ones_are_named(tiny_checkpoint):
    assert AetherPipeline.from_pretrained(tiny_checkpoint, sigmas=(1.0, 0.3)).model.sigmas == [1.0, 0.3]
    assert AetherPipeline.from_pretrained(TINY_AETHERV1, steps=7).model.steps == 7
    for folder, setting, known in (
        (TINY_AETHERV1, "sigmas", "size, steps, guidance"), (tiny_checkpoint, "steps", "sigmas")
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{setting} is no setting of .*; it has {known}"):
            AetherPipeline.from_pretrained(folder, **{setting: (1.0,)})


def test_the_type_of_weights_is_a_choice_for_the_published_checkpoint_alone(tiny_checkpoint):
    half = AetherPipeline.from_pretrained(TINY_AETHERV1, dtype=torch.bfloat16)
    assert half.components["transformer"].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype must be float32 for .*tiny, a checkpoint of our own layout"):
        AetherPipeline.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16)
    AetherPipeline.from_pretrained(tiny_checkpoint, dtype=torch.float32)


def test_a_lone_published_transformer_tells_how_to_make_a_whole_folder(tmp_path):
    shutil.copytree(TINY_AETHERV1 / "transformer", tmp_path / "transformer")
    with pytest.raises(CheckpointError, match="neither aether.json nor vae, scheduler.*`aether import-aetherv1`"):
        AetherPipeline.from_pretrained(tmp_path)


def test_a_damaged_published_folder_is_not_said_to_be_incomplete(tmp_path):
    shutil.copytree(TINY_AETHERV1, tmp_path / "copy", copy_function=shutil.copyfile)
    (tmp_path / "copy" / "vae" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="vae.config.json") as caught:
        AetherPipeline.from_pretrained(tmp_path / "copy")
    assert "import-aetherv1" not in str(caught.value)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_named_before_anything_is_loaded(device, monkeypatch):
    monkeypatch.setattr(pipeline_module, "resolve", lambda *_, **__: pytest.fail("the checkpoint was looked for"))
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used here: "):
        AetherPipeline.from_pretrained("mini", device)


# --- parity mode: what the public code gives

CASES = sorted((TINY_AETHERV1.parent / "cases").glob("*.npz"))


def read_case(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any], AetherPipeline]:
    """Return a case's arrays, its settings, and a pipeline of its size, steps and guidance."""
    with np.load(path) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays.pop("meta")))
    settings = {"steps": meta["num_inference_steps"], "guidance": meta["guidance_scale"]}
    size = (meta["height"], meta["width"])
    return arrays, meta, AetherPipeline.from_pretrained(TINY_AETHERV1, size=size, **settings)


def ask(pipeline: AetherPipeline, case: dict[str, np.ndarray], meta: dict[str, Any], **options: Any) -> VideoResult:
    options = {"fps": meta["fps"], "seed": meta["seed"], "resampling": "public"} | options
    if meta["task"] == "reconstruction":
        return pipeline.reconstruct(case["video"], source_fps=meta["fps"], **options)
    if meta["task"] == "planning":
        return pipeline.plan(case["image"], case["goal"], num_frames=meta["num_frames"], **options)
    return pipeline.predict(case["image"], num_frames=meta["num_frames"], **options)


def assert_public(found: VideoResult, case: dict[str, np.ndarray]) -> None:
    assert found.model_rgb is not None and found.model_disparity is not None and found.raymap is not None
    np.testing.assert_allclose(found.model_rgb, case["out_rgb"], atol=1e-3)
    np.testing.assert_allclose(found.model_disparity, case["out_disparity"], atol=1e-3)
    np.testing.assert_allclose(found.raymap, case["out_raymap"], atol=1e-3)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_public_codes_cases_come_out_of_the_three_tasks(path, tmp_path):
    case, meta, pipeline = read_case(path)
    found = ask(pipeline, case, meta, raymap=case.get("raymap"))
    assert_public(found, case)
    assert_public(VideoResult.load(found.save(tmp_path / "kept")), case)
    if "raymap" in case:  # the same way told as poses, in units of the nearest depth
        way = GivenPath(
            world_from_camera=scale_poses(case["camera_pose"], float(case["dmax"])),
            intrinsics=case["intrinsic"],
            picture_size=(meta["height"], meta["width"]),
        )
        assert_public(ask(pipeline, case, meta, path=way), case)


def test_a_batch_in_parity_mode_gives_each_item_its_case():
    case, meta, pipeline = read_case(TINY_AETHERV1.parent / "cases" / "prediction_17_raymap.npz")
    images = [case["image"][:, ::-1], case["image"]]
    found = pipeline.predict(
        images, raymap=case["raymap"], seed=[5, meta["seed"]], fps=meta["fps"], resampling="public"
    )
    assert_public(found[1], case)
    assert np.abs(found[0].model_rgb - case["out_rgb"]).max() > 0.1


def test_what_the_model_said_is_kept_in_parity_mode_alone(pipeline):
    assert pipeline.predict(pictures(pipeline, 1)[0]).model_rgb is None
    result = pipeline.reconstruct(pictures(pipeline, 42), resampling="public")
    assert result.model_rgb is None and result.raymap is None  # each window said its own


def test_a_raymap_alone_and_with_a_video_decides_what_is_found(aetherv1):
    raymap = np.random.default_rng(0).normal(0, 0.3, (17, 6, 2, 4)).astype(np.float32)
    alone = [aetherv1.predict(raymap=some, resampling="public").model_rgb for some in (raymap, -raymap)]
    assert alone[0].shape == (17, 16, 32, 3) and np.abs(alone[0] - alone[1]).max() > 1e-3
    video = pictures(aetherv1, 17)
    found = [aetherv1.reconstruct(video, raymap=some).raymap for some in (None, raymap, -raymap)]
    assert min(np.abs(found[0] - found[1]).max(), np.abs(found[1] - found[2]).max()) > 1e-3


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        (
            "predict",
            {"raymap": np.zeros((17, 6, 2, 5))},
            r"raymap must be \(T, 6, 2, 4\), T one of 17, 25, 33, 41, got",
        ),
        ("predict", {"raymap": np.zeros((18, 6, 2, 4))}, r"raymap must be \(T, .* got \(18, 6, 2, 4\)"),
        ("predict", {"raymap": np.full((17, 6, 2, 4), np.nan)}, "raymap must be finite"),
        ("predict", {"raymap": np.zeros((17, 6, 2, 4)), "num_frames": 25}, "raymap must be given alone"),
        ("plan", {"raymap": np.zeros((17, 6, 2, 4)), "path": curve(17)}, "raymap must be given alone"),
        ("predict", {"image": [np.zeros((16, 32, 3))] * 2, "raymap": np.zeros((3, 17, 6, 2, 4))}, "raymap must be one"),
        ("reconstruct", {"raymap": np.zeros((17, 6, 2, 4))}, "video have its 17 frames, got 1"),
        ("reconstruct", {"raymap": np.zeros((17, 6, 2, 4)), "path": curve(1)}, "without a path"),
    ],
)
def test_a_raymap_that_does_not_fit_is_named_before_the_model_is_asked(aetherv1, task, given, message):
    with pytest.raises(ValueError, match=message):
        getattr(untouchable(aetherv1), task)(**ENOUGH[task] | given)


def test_a_checkpoint_of_our_own_layout_takes_no_raymap(own):
    with pytest.raises(ValueError, match="raymap must be left out for a checkpoint of our own layout"):
        untouchable(own).predict(ONE, raymap=np.zeros((17, 6, 2, 3)))


# --- mistakes

ONE = np.zeros((16, 24, 3), np.uint8)
DEPTH = np.ones((16, 24))
NOTHING: dict[str, Any] = {"image": None}
TWO: dict[str, Any] = {"image": [ONE, ONE]}
ENOUGH: dict[str, dict[str, Any]] = {
    "reconstruct": {"video": [ONE]}, "predict": {"image": ONE}, "plan": {"image": ONE, "goal": ONE}
}  # fmt: skip


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("reconstruct", {"seed": -1}, "seed must be a whole number"),
        ("reconstruct", {"batch_size": 0}, "batch_size must be a whole number >= 1, got 0"),
        ("reconstruct", {"batch_size": 1.5}, "batch_size must be .* got 1.5"),
        ("reconstruct", {"stride": 0}, r"stride must be .* in 1\.\.16, got 0"),
        ("reconstruct", {"stride": 17}, r"stride must be .* in 1\.\.16, got 17"),
        ("reconstruct", {"stride": 2.5}, "stride must be .* got 2.5"),
        ("reconstruct", {"video": np.zeros((0, 16, 24, 3), np.uint8)}, "video has no frames"),
        ("reconstruct", {"video": "missing.mp4"}, "video: there is no file or folder 'missing.mp4'"),
        ("reconstruct", {"fps": 30}, "fps must be 12, .* got 30"),
        ("reconstruct", {"source_fps": -1}, "source_fps must be"),
        ("reconstruct", {"depth": np.ones((8, 8))}, "depth must have"),
        ("reconstruct", {"depth": np.ones((1, 8, 8))}, "depth must have"),
        ("reconstruct", {"depth": np.ones((1, 16, 24), int)}, "depth must be floating-point"),
        ("reconstruct", {"depth": np.ones(3)}, r"depth must be \(H, W\)"),
        ("reconstruct", {"depth": DEPTH * np.nan}, "depth must be finite"),
        ("reconstruct", {"path": np.full((1, 4, 4), np.nan)}, "path must be finite"),
        ("reconstruct", {"path": np.eye(4)}, r"path must be .*\(T, 4, 4\)"),
        ("reconstruct", {"video": [ONE] * 3, "path": curve(2)}, "path must have a pose .* it has 2"),
        ("reconstruct", {"intrinsics": np.eye(4)}, "intrinsics must"),
        ("reconstruct", {"resampling": "best"}, "resampling must be"),
        ("predict", {"seed": 1.5}, "seed must be a whole number .* got 1.5"),
        ("predict", {"seed": True}, "seed must be a whole number .* got True"),
        ("predict", {"seed": 2**63}, "seed must be a whole number"),
        ("predict", {"seed": [1]}, r"seed must be a whole number .* got \[1\]"),
        ("predict", {"image": []}, "image must be at least one picture"),
        ("predict", TWO | {"out": "here"}, "out must be left out for a batch"),
        ("predict", TWO | {"seed": [1]}, "seed must be one .* 2 images, got 1"),
        ("predict", TWO | {"path": [curve(3)] * 3}, "path must be one .* got 3"),
        ("predict", TWO | {"depth": [DEPTH]}, "depth must be one .* got 1"),
        ("predict", TWO | {"intrinsics": np.eye(3)[None]}, "intrinsics must be one .* got 1"),
        ("predict", {"depth": np.ones((8, 8))}, "depth must have"),
        ("predict", NOTHING | {"intrinsics": np.eye(3)}, "image must be given where intrinsics is"),
        ("predict", NOTHING | {"depth": DEPTH}, "image must be given where depth is"),
        ("predict", {"intrinsics": np.diag([9.0, 9, 1])}, "intrinsics must be in pixels"),
        ("predict", {"path": np.full((3, 4, 4), np.nan)}, "path must be finite"),
        ("predict", {"path": np.diag([-1.0, 1, 1, 1])[None]}, "path has a mirrored rotation"),
        ("predict", {"path": CameraPath(curve(2), np.eye(3))}, "path must be poses"),
        ("predict", {"path": "way.json"}, "there is no file 'way.json'"),
        ("predict", {"num_frames": 0}, "num_frames must be a whole number >= 1, got 0"),
        ("predict", {"num_frames": 0, "path": curve(3)}, "num_frames must be a whole number >= 1, got 0"),
        ("predict", {"num_frames": 9.5}, "num_frames must be .* got 9.5"),
        ("predict", {"num_frames": 18}, "num_frames .* at most 17 .* got 18"),
        ("predict", NOTHING | {"path": curve(18)}, "num_frames .* at most 17 .* got 18"),
        ("predict", {"scene_scale": -1}, "scene_scale must be positive"),
        ("predict", {"scene_scale": np.nan, "path": curve(3)}, "scene_scale must be positive"),
        ("predict", {"fps": 0}, "fps must be .* got 0"),
        ("predict", {"image": ONE + 2.0}, r"image frame 0 must be floats in \[0, 1\]"),
        ("predict", {"image": "missing.png"}, "image: there is no file 'missing.png'"),
        ("predict", {"image": 7}, "image frame 0 must be uint8"),
        ("predict", {"image": [ONE, ONE[:2]]}, "image frame 0 must be at least 16 x 16"),
        ("plan", {"goal": None}, "image and goal must be pictures"),
        ("plan", {"image": None}, "image must be given where goal is"),
        ("plan", {"goal": [ONE, ONE]}, "goal frame 0 must have shape"),
        ("plan", TWO | {"goal": [ONE]}, "goal must be one for all .* got 1"),
        ("plan", {"num_frames": 18}, "num_frames .* at most 17 for a plan"),
        ("plan", {"path": curve(18)}, "num_frames .* at most 17 for a plan"),
        ("plan", {"goal_depth": DEPTH}, "goal_depth needs depth"),
        ("plan", {"depth": DEPTH, "goal_depth": np.ones((8, 8))}, "goal_depth must have"),
    ],
)
def test_a_mistake_is_named_before_the_model_is_asked(own, task, given, message):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        warnings.simplefilter("error")
        getattr(untouchable(own), task)(**ENOUGH[task] | given)


def test_a_rate_that_the_published_checkpoint_cannot_have_is_refused_before_it_is_asked(aetherv1):
    for call in (
        lambda p: p.predict(ONE, fps=61),
        lambda p: p.predict(ONE, path=curve(3), fps=-1),
        lambda p: p.reconstruct([ONE], fps=100),
    ):
        with pytest.raises(ValueError, match=r"fps must be in 1\.\.60"):
            call(untouchable(aetherv1))


def test_the_published_checkpoint_takes_no_depth_of_the_goal(aetherv1):
    picture, depth = pictures(aetherv1, 1)[0], surfaces(aetherv1, 1)[0]
    with pytest.raises(ValueError, match="goal_depth must be left out"):
        aetherv1.plan(picture, picture, depth=depth, goal_depth=depth)


def test_a_damaged_video_is_named_before_the_model_is_asked(own, tmp_path):
    whole = write_video(tmp_path / "whole.mkv", pictures(own, 15), 12).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none.mp4").write_bytes(b"no video at all")
    for name in ("cut.mkv", "none.mp4"):
        with pytest.raises(ValueError, match=f"video .*{name}.* (cut off|damaged)"):
            untouchable(own).reconstruct(tmp_path / name, out=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.mkv", "none.mp4", "whole.mkv"]


def test_all_items_of_a_batch_are_checked_before_the_first_is_dreamed(own):
    with pytest.raises(ValueError, match="seed must be a whole number"):
        untouchable(own).predict([ONE, ONE], path=[None, curve(3)], seed=[1, -1])
