"""The published checkpoint in our conventions: the public code's numbers, and metres where depth is given."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aether_env.camera import intrinsics_from_fov, relative_to, scale_poses, se3_exp
from aether_env.conventions import FAR_DEPTH
from aether_env.raymap import encode_raymap_aetherv1
from aether_env.world_model.aetherv1 import AetherV1, AetherV1Clip, load_aetherv1
from aether_env.world_model.aetherv1_clips import AetherV1Clips
from aether_env.world_model.clip_model import ClipModel, ClipResult
from aether_env.world_model.own_clips import OwnClips
from training.evaluation.parity import TOLERANCE, read_case

GOLDENS = Path(__file__).parents[2] / "goldens" / "aetherv1"
CASES = sorted((GOLDENS / "cases").glob("*.npz"))
HEIGHT, WIDTH = 16, 32
SIZE = (HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def parts() -> AetherV1:
    return load_aetherv1(GOLDENS / "tiny_checkpoint")


@pytest.fixture(scope="module")
def clips(parts) -> AetherV1Clips:
    return AetherV1Clips(parts, size=SIZE, steps=1, guidance=1.0)


class Spy:
    """The parts of a checkpoint; keeps what each call was given."""

    def __init__(self, parts: AetherV1):
        self.parts, self.calls = parts, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.parts, name)

    def __call__(self, generators: list[torch.Generator], **given: Any) -> AetherV1Clip:
        self.calls.append(given | {"seeds": [generator.initial_seed() for generator in generators]})
        return self.parts(generators, **given)


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, *SIZE, 3), dtype=np.uint8)


def surfaces(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(2, 9, (batch, *SIZE)).astype(np.float32)


def camera(batch: int) -> np.ndarray:
    return np.tile(intrinsics_from_fov(1.2, *SIZE), (batch, 1, 1))


def curve(batch: int, frames: int) -> np.ndarray:
    """Return paths (B, T, 4, 4), each faster than the one before, that begin away from the origin."""
    twist = np.arange(frames)[:, None] * np.array([0.01, -0.005, 0.04, 0.002, 0.02, -0.004])
    return np.stack([se3_exp([1.0, 2, 3, 0.3, 0.2, 0.1]) @ se3_exp((1 + row) * twist) for row in range(batch)])


def assert_same(found: ClipResult, expected: ClipResult, tolerance: float = 1e-4) -> None:
    assert np.abs(found.rgb.astype(int) - expected.rgb).max() <= 1
    np.testing.assert_allclose(found.depth, expected.depth, rtol=10 * tolerance)
    np.testing.assert_allclose(found.raymap, expected.raymap, atol=tolerance)
    np.testing.assert_allclose(found.unit, expected.unit, rtol=10 * tolerance)
    np.testing.assert_array_equal(found.metric, expected.metric)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_public_codes_cases_come_out_in_our_conventions(parts, path):
    case, meta = read_case(path)
    given = {name: case[name][None] for name in ("image", "goal", "video") if name in case}
    clips = AetherV1Clips(
        parts, size=(meta["height"], meta["width"]), steps=meta["num_inference_steps"], guidance=meta["guidance_scale"]
    )
    options: dict[str, Any] = {"seeds": [meta["seed"]], "fps": meta["fps"]}
    if "camera_pose" in case:
        options |= {"world_from_camera": case["camera_pose"][None], "intrinsics": case["intrinsic"][:1]}
        options["depth"] = np.full((1, meta["height"], meta["width"]), 1 / case["dmax"])
    if meta["task"] == "reconstruction":
        result = clips.reconstruct(given["video"], **options)
    elif meta["task"] == "planning":
        result = clips.plan(given["image"], given["goal"], num_frames=meta["num_frames"], **options)
    else:
        result = clips.predict(given["image"], num_frames=meta["num_frames"], **options)

    np.testing.assert_allclose(result.raymap[0], case["out_raymap"], atol=TOLERANCE)
    if "video" not in given:
        assert np.abs(result.rgb[0, 1:] - 255 * case["out_rgb"][1:]).max() <= 0.5 + 255 * TOLERANCE
    depth = 1 / case["out_disparity"].clip(1e-3, 1)
    told = depth[0] < 999  # what is cut off at 1000 tells nothing
    scale = np.median(options["depth"][0][told] / depth[0][told]) if "depth" in options else 1.0
    disparity = 1 / np.minimum(scale * depth, FAR_DEPTH)
    np.testing.assert_allclose(1 / result.depth[0], disparity, rtol=TOLERANCE, atol=TOLERANCE)


def test_pictures_that_were_given_come_back(clips):
    video, goal = pictures(2, 9), pictures(2, seed=1)
    np.testing.assert_array_equal(clips.reconstruct(video).rgb, video)
    np.testing.assert_array_equal(clips.predict(video[:, 0], num_frames=9).rgb[:, 0], video[:, 0])
    np.testing.assert_array_equal(clips.plan(video[:, 0], goal, num_frames=9).rgb[:, 0], video[:, 0])


class Painter:
    """Answers with a scene of which it knows the truth, counted in the clip's nearest depth as the checkpoint does."""

    def __init__(self, parts: AetherV1, depth: np.ndarray, poses: np.ndarray):
        self.parts, self.depth = parts, torch.from_numpy(depth)
        poses_t, matrix = torch.from_numpy(poses), torch.from_numpy(camera(len(poses)))
        matrix = matrix[:, None].expand(-1, poses.shape[1], -1, -1)
        self.nearest = self.depth.flatten(1).min(dim=1).values.double()
        self.raymap = encode_raymap_aetherv1(poses_t, matrix, *SIZE, dmax=1 / self.nearest).float()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.parts, name)

    def __call__(self, *_: Any, **__: Any) -> AetherV1Clip:
        disparity = self.nearest[:, None, None, None] / self.depth
        rgb = torch.zeros(*disparity.shape[:2], 3, *SIZE)
        return AetherV1Clip(rgb=rgb, disparity=disparity.float(), raymap=self.raymap)


def test_depth_of_the_first_picture_brings_a_dream_back_to_metres(parts):
    poses = relative_to(curve(2, 9), curve(2, 1))
    depth = np.stack([surfaces(9), 3 * surfaces(9, seed=1)])
    clips = AetherV1Clips(Painter(parts, depth, poses), size=SIZE)
    blind, seeing = (clips.predict(pictures(2), depth=known, num_frames=9) for known in (None, depth[:, 0]))
    np.testing.assert_allclose(seeing.depth, depth, rtol=1e-5)
    nearest = depth.min(axis=(1, 2, 3))
    np.testing.assert_allclose(seeing.unit, nearest, rtol=1e-5)
    np.testing.assert_allclose(blind.depth * nearest[:, None, None, None], depth, rtol=1e-5)
    assert seeing.metric.all() and not blind.metric.any() and (blind.unit == 1).all()
    # The checkpoint's rays are half a pixel beside ours, which turns the found camera by half a pixel's angle.
    way, found = poses[:, -1, :3, 3], seeing.world_from_camera[:, -1, :3, 3]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(way, axis=1), rtol=1e-3)
    half_pixel = 0.5 * 2**0.5 / camera(1)[0, 0, 0]
    assert (np.linalg.norm(found - way, axis=1) <= 1.1 * half_pixel * np.linalg.norm(way, axis=1)).all()
    np.testing.assert_allclose(blind.world_from_camera[:, -1, :3, 3] * nearest[:, None], found, rtol=1e-5)


def test_the_first_frame_has_the_median_of_the_depth_that_was_given_wherever_it_was(clips):
    depth = surfaces(2)
    depth[0, :9] = np.nan
    depth[1, :, 5:] = 0
    for result in (
        clips.predict(pictures(2), depth=depth, num_frames=9),
        clips.plan(pictures(2), pictures(2), depth=depth, num_frames=9),
        clips.reconstruct(pictures(2, 9), depth=depth),
        clips.reconstruct(pictures(2, 9), depth=np.repeat(depth[:, None], 9, axis=1)),
    ):
        assert result.metric.all()
        for row in range(2):
            known = depth[row] > 0
            assert np.median(depth[row][known] / result.depth[row, 0][known]) == pytest.approx(1, rel=1e-4)


def test_a_first_picture_of_the_sky_alone_tells_no_metres(clips):
    depth = np.stack([np.full(SIZE, FAR_DEPTH), np.full(SIZE, 4.0)])
    result = clips.predict(pictures(2), depth=depth, num_frames=9)
    assert result.metric.tolist() == [False, True] and result.unit[0] == 1


def test_the_unit_of_a_path_is_the_nearest_depth_but_for_one_pixel_in_a_hundred(clips):
    depth = np.full((2, 10, 20), 5.0)
    depth[0, 0, 0] = 0.01  # a fault
    depth[1, 0] = 2.0
    depth[1, 1] = np.nan
    np.testing.assert_allclose(clips.units(depth), [5.0, 2.0])
    np.testing.assert_array_equal(clips.units(np.full((1, 3, 3), np.nan)), [1.0])


def test_a_path_is_shown_to_the_model_in_the_nearest_depth(parts):
    spy, poses, depth = Spy(parts), curve(2, 9), surfaces(2)
    clips = AetherV1Clips(spy, size=SIZE, steps=1, guidance=1.0)
    known = {"world_from_camera": poses, "intrinsics": camera(2)}
    results = [
        clips.predict(pictures(2), depth=depth, **known),
        clips.reconstruct(pictures(2, 9), depth=depth, **known),
        clips.plan(pictures(2), pictures(2), depth=depth, **known),
        clips.predict(pictures(2), **known),
        clips.predict(None, **known),
    ]
    nearest = np.quantile(depth.reshape(2, -1), 0.01, axis=1)
    matrix = torch.from_numpy(camera(2))[:, None].expand(-1, 9, -1, -1)
    relative = torch.from_numpy(relative_to(poses, poses[:, :1]))
    for call, result, unit in zip(spy.calls, results, [nearest] * 3 + [np.ones(2)] * 2, strict=True):
        expected = encode_raymap_aetherv1(relative, matrix, *SIZE, dmax=torch.from_numpy(1 / unit))
        torch.testing.assert_close(call["raymap"], expected.float())
        np.testing.assert_allclose(result.world_from_camera, relative, atol=1e-9)
        np.testing.assert_allclose(result.intrinsics, matrix)
        assert call["num_frames"] is None and call["size"] == SIZE


def test_intrinsics_without_a_path_have_no_place_and_are_left_to_the_caller(parts):
    spy = Spy(parts)
    AetherV1Clips(spy, size=SIZE, steps=1).predict(pictures(1), intrinsics=camera(1), num_frames=9)
    assert spy.calls[0]["raymap"] is None


def test_items_of_a_batch_do_not_depend_on_each_other(clips):
    given = {"depth": surfaces(2), "world_from_camera": curve(2, 9), "intrinsics": camera(2)}
    calls = {
        "reconstruct": {"video": pictures(2, 9)},
        "predict": {"picture": pictures(2)},
        "plan": {"picture": pictures(2), "goal": pictures(2, seed=1)},
    }
    for task, shown in calls.items():
        both = getattr(clips, task)(**shown, **given, seeds=[4, 5])
        second = {name: array[1:] for name, array in (shown | given).items()}
        assert_same(both[1:], getattr(clips, task)(**second, seeds=[5]))


def test_the_seed_is_that_of_the_generator_on_the_cpu(parts):
    spy = Spy(parts)
    clips = AetherV1Clips(spy, size=SIZE, steps=1, guidance=1.0)
    clips.predict(pictures(2), seeds=[7, 8], num_frames=9)
    clips.predict(pictures(2), num_frames=9)
    assert [call["seeds"] for call in spy.calls] == [[7, 8], [0, 0]]


def test_a_video_is_reconstructed_without_the_guidance_of_the_other_tasks(parts):
    spy = Spy(parts)
    clips = AetherV1Clips(spy, size=SIZE, steps=2, guidance=2.0)
    clips.reconstruct(pictures(1, 9))
    clips.predict(pictures(1), num_frames=9)
    assert [(call["guidance"], call["steps"]) for call in spy.calls] == [(None, 2), (2.0, 2)]


def test_without_a_wish_a_dream_has_the_largest_number_of_frames_and_the_trained_size(parts):
    clips = AetherV1Clips(parts, steps=1, guidance=1.0)
    assert (clips.height, clips.width) == clips.size == (64, 96)
    assert clips.lengths == (17, 25, 33, 41) and clips.rates == (8.0, 10.0, 12.0, 15.0, 24.0)
    small = AetherV1Clips(parts, size=SIZE, steps=1, guidance=1.0)
    assert small.predict(pictures(1)).rgb.shape == (1, 41, *SIZE, 3)


def test_progress_is_told_step_by_step(parts):
    told: list[tuple[int, int]] = []
    clips = AetherV1Clips(parts, size=SIZE, steps=3, progress=lambda done, all_: told.append((done, all_)))
    clips.predict(pictures(1), num_frames=9)
    assert told == [(1, 3), (2, 3), (3, 3)]


# --- follow


@pytest.mark.parametrize("frames", [1, 2, 17, 18, 41, 42, 81, 82])
def test_the_pieces_of_a_long_walk_have_its_frames_and_begin_with_the_picture(clips, frames):
    picture = pictures(1)
    pieces = list(clips.follow(picture, world_from_camera=curve(1, frames), intrinsics=camera(1)))
    assert sum(piece.rgb.shape[1] for piece in pieces) == sum(piece.depth.shape[1] for piece in pieces) == frames
    assert [piece.rgb.shape[1] for piece in pieces[:-1]] == [41, 40][: len(pieces) - 1]
    np.testing.assert_array_equal(pieces[0].rgb[0, 0], picture[0])


def test_each_window_of_a_walk_goes_on_from_the_last_picture_depth_and_pose(parts):
    spy, poses = Spy(parts), curve(1, 50)
    clips = AetherV1Clips(spy, size=SIZE, steps=1, guidance=1.0)
    depth = surfaces(1)
    first, second = clips.follow(
        pictures(1), world_from_camera=poses, intrinsics=camera(1), depth=depth, seeds=[3], fps=10
    )
    begun, gone_on = spy.calls
    last = torch.from_numpy(first.rgb[:, -1]).movedim(-1, -3) / 255
    torch.testing.assert_close(gone_on["image"], last)
    rest = np.concatenate([poses[:, 40:], np.repeat(poses[:, -1:], 7, axis=1)], axis=1)  # 10 frames fill 17
    expected = clips.predict(
        first.rgb[:, -1], depth=first.depth[:, -1], world_from_camera=rest, intrinsics=camera(1),
        seeds=gone_on["seeds"], fps=10,
    )  # fmt: skip
    np.testing.assert_array_equal(second.rgb, expected.rgb[:, 1:10])
    np.testing.assert_array_equal(second.depth, expected.depth[:, 1:10])
    assert begun["seeds"] == [3] != gone_on["seeds"] and begun["fps"] == gone_on["fps"] == 10
    # The unit is kept: where both windows show the same picture, they agree in the middle.
    assert np.median(expected.depth[:, 0] / first.depth[:, -1]) == pytest.approx(1, rel=1e-4)


def test_walks_of_a_batch_do_not_depend_on_each_other(clips):
    given = {"world_from_camera": curve(2, 44), "intrinsics": camera(2), "depth": surfaces(2)}
    both = list(clips.follow(pictures(2), **given, seeds=[1, 2]))
    second = {name: array[1:] for name, array in given.items()}
    for piece, alone in zip(both, clips.follow(pictures(2)[1:], **second, seeds=[2]), strict=True):
        assert np.abs(piece.rgb[1:].astype(int) - alone.rgb).max() <= 1
        np.testing.assert_allclose(piece.depth[1:], alone.depth, rtol=1e-3)


# --- the promise, the folder, mistakes


@pytest.mark.parametrize("kept_by", [AetherV1Clips, OwnClips])
def test_both_layouts_keep_the_promise_word_for_word(kept_by):
    for name, promised in inspect.getmembers(ClipModel, inspect.isfunction):
        if not name.startswith("_"):
            wanted, found = (inspect.signature(method).parameters for method in (promised, getattr(kept_by, name)))
            extra = ["raymap"] * (kept_by is AetherV1Clips and name != "follow" and "seeds" in found)
            assert [*wanted, *extra] == list(found), name
            assert [p.default for p in wanted.values()] == [found[parameter].default for parameter in wanted], name


def test_what_is_saved_has_the_published_format_and_the_same_weights(clips, parts, tmp_path):
    clips.save(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "empty_prompt_embeds.safetensors", "scheduler", "transformer", "vae"
    ]  # fmt: skip
    loaded = load_aetherv1(tmp_path / "saved")
    for name in ("transformer", "vae"):
        for key, tensor in getattr(parts, name).state_dict().items():
            torch.testing.assert_close(getattr(loaded, name).state_dict()[key], tensor, atol=0, rtol=0)
    torch.testing.assert_close(loaded.prompt_embeds, parts.prompt_embeds, atol=0, rtol=0)
    settings = dict(parts.scheduler.config)
    assert {name: settings[name] for name in loaded.scheduler.config} == dict(loaded.scheduler.config)


def test_scaled_depth_and_path_are_the_same_to_the_model(parts):
    spy = Spy(parts)
    clips = AetherV1Clips(spy, size=SIZE, steps=1, guidance=1.0)
    for factor in (1.0, 1000.0):  # metres and millimetres, so to say
        path = np.stack([scale_poses(path, factor) for path in curve(2, 9)])
        clips.predict(pictures(2), depth=factor * surfaces(2) / 100, world_from_camera=path, intrinsics=camera(2))
    torch.testing.assert_close(spy.calls[0]["raymap"], spy.calls[1]["raymap"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.reconstruct(pictures(1, 10)), "8 k \\+ 1"),
        (lambda c: c.reconstruct(pictures(1)), "video must be uint8 or float32"),
        (lambda c: c.predict(pictures(1) / 255), "image must be uint8 or float32"),
        (lambda c: c.predict(pictures(1)[:, :8]), r"image must be uint8 or float32 \(B, 16, 32, 3\)"),
        (lambda c: c.predict(pictures(2), seeds=[1]), "seeds must be 2 integers, got 1"),
        (lambda c: c.predict(pictures(1), depth=surfaces(2)), "depth must be"),
        (lambda c: c.predict(pictures(1), num_frames=10), "num_frames must be 8 k"),
        (lambda c: c.predict(pictures(1), world_from_camera=curve(1, 9)), "world_from_camera needs intrinsics"),
        (lambda c: c.predict(pictures(1), world_from_camera=curve(2, 9), intrinsics=camera(2)), "must be \\(1, T"),
        (lambda c: c.predict(pictures(1), world_from_camera=2 * curve(1, 9), intrinsics=camera(1)), "world_from_cam"),
        (lambda c: c.predict(pictures(1), fps=0), "fps"),
        (lambda c: c.plan(pictures(2), pictures(1)), "goal has 1 items, picture has 2"),
        (lambda c: c.plan(pictures(1), pictures(1), depth=surfaces(1), goal_depth=surfaces(1)), "goal_depth must be"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(clips, call, message):
    with pytest.raises(ValueError, match=message):
        call(clips)
