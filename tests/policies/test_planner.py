from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aether_env.camera import intrinsics_from_fov
from aether_env.trajectory import smooth_path
from aether_env.world_model.clip_model import ClipResult
from aether_env.world_model.own_clips import OwnClips
from aether_env.world_model.pipeline import AetherPipeline
from aether_env.world_model.result import VideoResult
from policies.planner import GoalPlanner, Plan

HEIGHT, WIDTH = 16, 24


@pytest.fixture(scope="module")
def planner(tiny_checkpoint) -> GoalPlanner:
    return GoalPlanner(tiny_checkpoint)


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    picture, goal = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    return picture, goal


def assert_same_plan(a: Plan, b: Plan) -> None:
    np.testing.assert_array_equal(a.rgb, b.rgb)
    np.testing.assert_array_equal(a.depth, b.depth)
    np.testing.assert_array_equal(a.path.world_from_camera, b.path.world_from_camera)


def test_a_plan_is_seventeen_frames_with_a_path_from_where_the_camera_is(planner, pair):
    plan = planner.plan(*pair)
    assert plan.rgb.shape == (17, HEIGHT, WIDTH, 3) and plan.rgb.dtype == np.uint8
    assert plan.depth.shape == (17, HEIGHT, WIDTH) and (plan.depth > 0).all()
    assert len(plan.path) == 17 and plan.fps == 12
    np.testing.assert_allclose(plan.path.world_from_camera[0], np.eye(4), atol=1e-9)
    np.testing.assert_array_equal(plan.goal_pose, plan.path.world_from_camera[-1])


def test_a_plan_is_what_the_pipeline_plans_and_can_be_kept_like_any_result(planner, pair, tmp_path, small_videos):
    plan, result = planner.plan(*pair, seed=2), planner.pipeline.plan(*pair, seed=2)
    for field in fields(VideoResult):
        if field.name != "path":
            np.testing.assert_array_equal(getattr(plan, field.name), getattr(result, field.name))
    np.testing.assert_array_equal(plan.path.world_from_camera, result.path.world_from_camera)
    assert [note.what for note in plan.notes] == ["cropped", "resized"]
    assert isinstance(plan, Plan) and isinstance(plan, VideoResult)
    kept = Plan.load(plan.save(tmp_path / "plan"))
    np.testing.assert_allclose(kept.goal_pose, plan.goal_pose, atol=1e-12)


def test_the_goal_pose_is_the_callers_own_copy(planner, pair):
    plan = planner.plan(*pair)
    plan.goal_pose[:] = 0
    np.testing.assert_array_equal(plan.goal_pose, plan.path.world_from_camera[-1])


def test_covariances_are_symmetric_and_positive_semi_definite(planner, pair):
    covariance = planner.plan(*pair).covariance
    assert covariance.shape == (17, 6, 6)
    np.testing.assert_allclose(covariance, covariance.swapaxes(1, 2), atol=1e-12)
    assert np.linalg.eigvalsh(covariance).min() >= -1e-12 and covariance.max() > 0


def test_a_plan_is_metric_exactly_where_depth_is_known(planner, pair):
    blind = planner.plan(*pair)
    assert blind.metric is False and blind.unit == 1
    depth = np.full((48, 64), 3.0, np.float32)
    depth[0] = np.nan
    seeing = planner.plan(*pair, depth=depth)
    assert seeing.metric is True and seeing.unit == pytest.approx(3.0)
    np.testing.assert_allclose(seeing.depth[0, 1:], 3.0)


def test_depth_in_other_units_scales_the_plan_and_nothing_else(planner, pair):
    depth = np.random.default_rng(1).uniform(1, 5, (48, 64)).astype(np.float32)
    one, ten = (planner.plan(*pair, depth=factor * depth) for factor in (1, 10))
    assert ten.unit == pytest.approx(10 * one.unit)
    np.testing.assert_allclose(ten.goal_pose[:3, 3], 10 * one.goal_pose[:3, 3], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(ten.goal_pose[:3, :3], one.goal_pose[:3, :3], atol=1e-3)


def test_the_same_seed_gives_the_same_plan_and_another_seed_another(planner, pair):
    assert_same_plan(planner.plan(*pair, seed=3), planner.plan(*pair, seed=3))
    assert (planner.plan(*pair, seed=3).rgb[1:] != planner.plan(*pair, seed=4).rgb[1:]).any()


def test_planners_of_a_folder_and_of_its_pipeline_agree(planner, pair):
    assert_same_plan(planner.plan(*pair), GoalPlanner(planner.pipeline).plan(*pair))
    with pytest.raises(ValueError, match="sigmas"):
        GoalPlanner(planner.pipeline, sigmas=(1.0,))


def test_files_and_arrays_give_the_same_plan(planner, pair, tmp_path):
    files = [tmp_path / "picture.png", tmp_path / "goal.png"]
    for file, picture in zip(files, pair, strict=True):
        Image.fromarray(picture).save(file)
    assert_same_plan(planner.plan(*files), planner.plan(*pair))


def test_known_intrinsics_come_back_in_pixels_of_the_plan(planner, pair):
    plan = planner.plan(*pair, intrinsics=intrinsics_from_fov(np.deg2rad(60), 48, 64))
    # 48 x 64 is cropped to 43 x 64 rows, which leaves the horizontal field of view as it was.
    expected = np.tan(np.deg2rad(30)) * 2 / WIDTH
    np.testing.assert_allclose(1 / plan.path.intrinsics[:, 0, 0], expected, rtol=1e-6)


def test_inputs_stay_as_they_were(planner, pair):
    depth, matrix = np.full((48, 64), 2.0), intrinsics_from_fov(1.0, 48, 64)
    before = [value.copy() for value in (*pair, depth, matrix)]
    planner.plan(*pair, depth=depth, intrinsics=matrix)
    for value, old in zip((*pair, depth, matrix), before, strict=True):
        np.testing.assert_array_equal(value, old)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"picture": "missing.png"}, "picture: there is no file 'missing.png'"),
        ({"goal": np.zeros((48, 64, 3))}, "goal must be uint8"),
        ({"goal": np.zeros((1, 1, 3), np.uint8)}, "goal must be at least"),
        ({"goal_depth": np.ones((48, 64))}, "goal_depth needs depth"),
        ({"depth": np.ones((4, 6))}, "depth must have the picture's shape"),
        ({"intrinsics": np.eye(4)}, "intrinsics must"),
        ({"fps": 0}, "fps must be 12"),
    ],
)
def test_bad_input_is_named(planner, pair, change, message):
    arguments = {"picture": pair[0], "goal": pair[1]} | change
    with pytest.raises(ValueError, match=message):
        planner.plan(**arguments)


class Shaky(OwnClips):
    """Plans straight ahead, as a shaking hand would draw it."""

    truth = np.tile(np.eye(4), (17, 1, 1))
    truth[:, 2, 3] = 0.05 * np.arange(17)

    def plan(self, *args: Any, **kwargs: Any) -> ClipResult:
        shaken = self.truth.copy()
        shaken[1:, :3, 3] += np.random.default_rng(0).normal(0, 0.02, (16, 3))
        return replace(super().plan(*args, **kwargs), world_from_camera=shaken[None])


def test_the_path_of_a_plan_is_nearer_to_the_truth_than_what_was_dreamed(planner, pair):
    pipeline = AetherPipeline(Shaky(planner.pipeline.model.parts))
    dreamed = pipeline.plan(*pair, smooth=False).path.world_from_camera

    def error(poses: np.ndarray) -> float:
        return float(np.linalg.norm(poses[:, :3, 3] - Shaky.truth[:, :3, 3], axis=1).mean())

    assert error(GoalPlanner(pipeline).plan(*pair).path.world_from_camera) < 0.8 * error(dreamed)
    assert smooth_path(dreamed).position_std == pytest.approx(0.02, rel=0.5)
