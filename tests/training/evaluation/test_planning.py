from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from aether_env.camera import make_pose, se3_exp
from aether_env.world_model.own_clips import OwnClips
from tests.tiny import HEIGHT, WIDTH, tiny_components
from tests.training.evaluation.wall import FRAMES, ToldPipeline, wall_walk
from training.evaluation.planning import METRICS, PICTURES, planning_scores
from training.evaluation.scores import Scores
from training.evaluation.summary import summarise
from training.evaluation.walks import Walk

STILL = np.broadcast_to(np.eye(4), (2, FRAMES, 4, 4))


def along(centre: np.ndarray, degrees: float = 0.0) -> np.ndarray:
    """Return one path (17, 4, 4) through the centres (17, 3), turning to the right evenly."""
    angle = np.deg2rad(degrees) * np.arange(FRAMES) / (FRAMES - 1)
    turn = se3_exp(np.stack([0 * angle] * 4 + [angle, 0 * angle], axis=-1))[:, :3, :3]
    return make_pose(turn, centre)


def corner(degrees: float = 0.0) -> np.ndarray:
    """Return a path one metre ahead and then one to the right."""
    t = np.arange(FRAMES) / 8
    return along(np.stack([np.clip(t - 1, 0, 1), 0 * t, np.clip(t, 0, 1)], axis=-1), degrees)


def with_paths(walk: Walk, *paths: np.ndarray) -> Walk:
    return replace(walk, clips=replace(walk.clips, world_from_camera=torch.as_tensor(np.stack(paths))))


@pytest.fixture(scope="module")
def walk() -> Walk:
    return wall_walk()


@pytest.fixture(scope="module")
def perfect(walk: Walk) -> Scores:
    return planning_scores(ToldPipeline(walk.rgb, walk.path, walk), walk, seed=0)


@pytest.fixture(scope="module")
def idle(walk: Walk) -> Scores:
    """Scores of a planner that stays where it is."""
    return planning_scores(ToldPipeline(np.repeat(walk.rgb[:, :1], FRAMES, axis=1), STILL, walk), walk, seed=0)


def test_the_truth_itself_is_a_perfect_plan(perfect: Scores):
    for name in ("end_error", "path_error", "end_rotation_deg", "end_direction_deg"):
        np.testing.assert_allclose(perfect[f"plan_{name}"], 0, atol=1e-4)
        np.testing.assert_allclose(perfect[f"plan_raw_{name}"], 0, atol=1e-9)
    for frame in (4, 8, 12):
        for row in ("plan", "navigation", "navigation_path_only", "plan_autoencoder"):
            assert (perfect[f"{row}_psnr_{frame}"] == 50).all()
            np.testing.assert_allclose(perfect[f"{row}_ms_ssim_{frame}"], 1, atol=1e-5)


def test_a_planner_that_stays_where_it_is_scores_the_floor(idle: Scores):
    for name in ("end_error", "path_error", "end_rotation_deg"):
        np.testing.assert_allclose(idle[f"plan_{name}"], idle[f"plan_still_{name}"], atol=1e-12)
    for name in ("psnr_4", "ssim_8", "ms_ssim_12", "kernel_distance"):
        np.testing.assert_array_equal(idle[f"plan_{name}"], idle[f"plan_repeated_{name}"])
    assert (idle["plan_psnr_8"] < 15).all()


def test_errors_of_a_corner_are_those_of_its_geometry(walk: Walk):
    # Two metres of path end at (1, 0, 1), 30 degrees to the right; the second clip plans half of each.
    turned = with_paths(walk, corner(30.0), corner(30.0))
    planned = np.stack([corner(30.0), along(corner()[:, :3, 3] / 2, 15.0)])
    scores = planning_scores(ToldPipeline(walk.rgb, planned, walk), turned, seed=0)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(scores["plan_raw_end_error"], [0, half / 2], atol=1e-9)
    np.testing.assert_allclose(scores["plan_end_error"], [0, half / 2], atol=0.02)  # smoothing rounds corners
    np.testing.assert_allclose(scores["plan_end_rotation_deg"], [0, 15], atol=0.5)
    np.testing.assert_allclose(scores["plan_still_end_error"], half)
    np.testing.assert_allclose(scores["plan_still_end_rotation_deg"], 30)
    np.testing.assert_allclose(scores["plan_ahead_end_error"], half)  # (0, 0, 2) is as far from (1, 0, 1) as 0 is
    np.testing.assert_allclose(scores["plan_ahead_end_direction_deg"], 45)
    np.testing.assert_allclose(scores["plan_straight_end_error"], 0, atol=1e-9)


def test_the_straight_line_errs_on_the_way_and_not_at_the_goal(walk: Walk):
    scores = planning_scores(ToldPipeline(walk.rgb, STILL, walk), with_paths(walk, corner(), corner()), seed=0)
    # Beside the corner (0, 0, t) the line is at (t / 2, 0, t / 2), sqrt(1/2) t away; and the same back again.
    away = np.sqrt(0.5) * (np.arange(1, 9).sum() + np.arange(8).sum()) / 8 / 16
    np.testing.assert_allclose(scores["plan_straight_path_error"], away / 2, atol=1e-9)


def test_a_path_that_hardly_moves_has_no_share_and_is_counted():
    one_still = wall_walk(pixels_per_frame=(1, 0))
    scores = planning_scores(ToldPipeline(one_still.rgb, one_still.path, one_still), one_still, seed=0)
    assert np.isnan(scores["plan_end_error"]).tolist() == [False, True]
    assert np.isnan(scores["plan_end_direction_deg"]).tolist() == [False, True]
    assert not np.isnan(scores["plan_end_rotation_deg"]).any()
    wanted = ("plan_end_error", "plan_end_rotation_deg", "plan_short_path")
    metrics, _, counts = summarise(scores, seed=0, rows=[row for row in METRICS if row[0] in wanted])
    assert metrics["plan_end_error"] == pytest.approx(0, abs=1e-4)
    assert counts["plan_end_error"] == 1 and counts["plan_end_rotation_deg"] == 2
    assert metrics["plan_short_path"] == 0.5


def test_a_plan_without_scale_has_no_share_but_an_angle(walk: Walk):
    scores = planning_scores(ToldPipeline(walk.rgb, walk.path, walk, metric=False), walk, seed=0)
    assert np.isnan(scores["plan_end_error"]).all() and np.isfinite(scores["plan_end_rotation_deg"]).all()


def test_the_cross_fade_is_half_and_half_in_the_middle(walk: Walk, perfect: Scores):
    truth = walk.rgb[:, 8] / 255
    error = np.square((walk.rgb[:, 0] / 255 + walk.rgb[:, 16] / 255) / 2 - truth).mean((1, 2, 3))
    np.testing.assert_allclose(perfect["plan_crossfade_psnr_8"], -10 * np.log10(error), rtol=1e-5)


def test_each_task_is_asked_with_what_it_may_know(walk: Walk):
    pipeline = ToldPipeline(walk.rgb, walk.path, walk)
    planning_scores(pipeline, walk, seed=3)
    plan, navigation, path_only = pipeline.asked
    assert "world_from_camera" not in plan and "goal" not in path_only
    np.testing.assert_array_equal(plan["goal"], walk.rgb[:, -1])
    for asked in pipeline.asked:
        np.testing.assert_array_equal(asked["picture"], walk.rgb[:, 0])
        np.testing.assert_array_equal(asked["depth"], walk.first_depth)
        assert asked["seeds"] == walk.seeds(3)
    for asked in (navigation, path_only):
        np.testing.assert_array_equal(asked["world_from_camera"], walk.path)


def test_every_metric_has_a_name_of_its_own_and_its_scores(perfect: Scores):
    names = [name for name, _, _ in METRICS]
    assert len(names) == len(set(names))
    promised = {"plan_end_error", "plan_end_rotation_deg", "plan_still_end_error", "plan_psnr_8", "navigation_psnr_8"}
    promised |= {f"{row}_{score}_12" for row in PICTURES for score in ("psnr", "ssim", "ms_ssim")}
    assert promised <= set(names)
    for name, _, keys in METRICS:
        assert set(keys) <= set(perfect) or "lpips" in name


def test_a_real_pipeline_is_repeatable_and_a_clip_scores_alone_as_in_a_batch():
    pipeline, both = OwnClips(tiny_components()), wall_walk(HEIGHT, WIDTH)
    clips = {name: value[1:] for name, value in vars(both.clips).items()}
    alone = Walk(clips=replace(both.clips, **clips), other_path=both.other_path[1:], numbers=both.numbers[1:])
    scores = planning_scores(pipeline, both, seed=1)
    for name, again in planning_scores(pipeline, both, seed=1).items():
        np.testing.assert_array_equal(again, scores[name])
    for name, of_one in planning_scores(pipeline, alone, seed=1).items():
        np.testing.assert_allclose(of_one, scores[name][1:], rtol=0.02, atol=0.02)
