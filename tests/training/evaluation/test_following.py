from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from aether_env.camera import invert_pose, motion_from_action, rotation_distance, se3_log
from aether_env.conventions import FRAMES_PER_LATENT
from aether_env.envs.actions import Se3Action
from aether_env.sim import ClipPlans, plan_clips, seed_in
from aether_env.sim.clips import draw_views
from aether_env.sim.solids import Solids
from aether_env.sim.walks import CLEARANCE
from aether_env.world_model.promise import Frames
from training.evaluation import following
from training.evaluation.following import STEPS, TrueScene, commanded_clips, following_scores, random_path, random_walk
from training.evaluation.scores import Scores
from training.evaluation.summary import summarise

HEIGHT, WIDTH, CLIPS = 32, 48, 2
SHIFT = motion_from_action([0.06, 0.0, 0.08], np.deg2rad([0.0, 3.0, 0.0]))  # 0.1 metres, 3 degrees
NUMBERS = np.arange(CLIPS)


class Wanderer:
    """The true scene as a dream, but always seen from `SHIFT` beside the commanded pose."""

    height, width = HEIGHT, WIDTH
    # The pictures themselves as latents: an autoencoder that loses nothing.
    codec = SimpleNamespace(
        device=torch.device("cpu"), encode_colour=lambda rgb: rgb, decode_colour=lambda latents: latents
    )

    def __init__(self, plans: ClipPlans) -> None:
        self.plans = plans

    def start(self, starts: list[Any], seeds: list[int]) -> tuple[int, None]:
        return 0, None

    def advance(self, state: int, path: np.ndarray) -> tuple[int, Frames]:
        pose, later = path @ SHIFT, slice(state + 1, state + 1 + FRAMES_PER_LATENT)
        rgb, depth, _ = draw_views(
            self.plans.scenes, self.plans.mover_pose[:, later], self.plans.scene_from_camera[:, :1] @ pose,
            height=HEIGHT, width=WIDTH,
        )  # fmt: skip
        intrinsics, metric = np.tile(np.eye(3), (*path.shape[:2], 1, 1)), np.ones(len(path), bool)
        frames = Frames(
            rgb=rgb.numpy(), depth=depth.numpy(), world_from_camera=path, intrinsics=intrinsics, metric=metric
        )
        return state + FRAMES_PER_LATENT, frames


@pytest.fixture(scope="module")
def plans() -> ClipPlans:
    return plan_clips([seed_in("test", number) for number in range(CLIPS)], num_frames=STEPS * FRAMES_PER_LATENT + 1)


@pytest.fixture(scope="module")
def scene(plans: ClipPlans) -> TrueScene:
    walk = random_walk(plans, NUMBERS, height=HEIGHT, width=WIDTH, device="cpu")
    return TrueScene(commanded_clips(plans, walk.path), walk)


@pytest.fixture(scope="module")
def shifted(plans: ClipPlans) -> Scores:
    return following_scores(cast(Any, Wanderer(plans)), plans, NUMBERS, seed=0)


def errors(scene: TrueScene, rgb: torch.Tensor, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return degrees and metres between where pictures are found and where they should be."""
    found = scene.find(rgb)
    metres = np.linalg.norm(found[..., :3, 3] - target[..., :3, 3], axis=-1)
    return np.rad2deg(rotation_distance(found, target)), metres


def test_a_dream_beside_the_commanded_pose_is_off_by_just_that_much_and_the_true_frames_are_not(shifted: Scores):
    metrics, _, counts = summarise(shifted, 0, following.METRICS)
    assert metrics["action_rotation_error_deg_1"] == pytest.approx(3.0, abs=0.2)
    assert metrics["action_translation_error_1"] == pytest.approx(0.1, abs=0.02)
    # Farther from the first frame less of it is left to look for, in pictures as small as these.
    assert metrics["action_rotation_error_deg"] == pytest.approx(3.0, abs=0.5)
    assert metrics["action_translation_error"] == pytest.approx(0.1, abs=0.04)
    assert metrics["action_rotation_floor_deg"] < 0.3
    assert metrics["action_translation_floor"] < 0.02
    assert counts["action_rotation_error_deg_4"] == CLIPS


def test_every_metric_has_its_score_and_a_lossless_autoencoder_scores_the_floor(shifted: Scores):
    assert {key for _, _, keys in following.METRICS for key in keys} == set(shifted)
    assert np.array_equal(shifted["action_rotation_autoencoder_deg_2"], shifted["action_rotation_floor_deg_2"])


def test_no_motion_costs_the_command_and_after_one_step_all_of_its_way(plans: ClipPlans, shifted: Scores):
    way = np.linalg.norm(random_path(plans)[:, FRAMES_PER_LATENT, :3, 3], axis=-1)
    assert shifted["action_translation_standing_1"] == pytest.approx(way)
    # The camera goes along an arc, which is a little longer than its chord.
    assert shifted["action_translation_standing_share_1"] == pytest.approx(np.ones(CLIPS), abs=0.01)


def test_a_dream_that_lags_one_step_behind_is_found_where_it_was_a_step_ago(scene: TrueScene):
    frames = scene.frames - FRAMES_PER_LATENT
    degrees, metres = errors(scene, scene.walk.clips.rgb[:, frames], scene.walk.path[:, frames])
    assert np.median(degrees) < 0.3 and np.median(metres) < 0.02
    step = rotation_distance(scene.walk.path[:, frames], scene.walk.path[:, scene.frames])
    assert np.rad2deg(step).min() > 1  # so that it cannot be mistaken for one that follows


def test_a_first_frame_repeated_is_found_at_the_beginning(scene: TrueScene):
    degrees, metres = errors(scene, scene.walk.clips.rgb[:, 0 * scene.frames], np.eye(4))
    assert np.median(degrees) < 0.3 and np.median(metres) < 0.02


def test_a_picture_that_tells_nothing_does_not_seem_to_follow(scene: TrueScene):
    degrees, metres = errors(
        scene, torch.full_like(scene.walk.clips.rgb[:, scene.frames], 128), scene.walk.path[:, scene.frames]
    )
    assert np.median(degrees) > 1 and np.median(metres) > 0.03


def test_little_of_the_first_frame_in_view_is_no_number(plans: ClipPlans, monkeypatch: pytest.MonkeyPatch):
    turn = motion_from_action(np.zeros(3), [0.0, np.pi, 0.0])
    away = np.concatenate([np.tile(np.eye(4), (CLIPS, 1, 1, 1)), np.tile(turn, (CLIPS, 4 * STEPS, 1, 1))], axis=1)
    monkeypatch.setattr(following, "random_path", lambda plans: away)
    monkeypatch.setattr(TrueScene, "find", lambda self, rgb: self.walk.path[:, self.frames])
    scores = following_scores(cast(Any, Wanderer(plans)), plans, NUMBERS, seed=0)
    assert np.all(scores["action_visible_share_1"] < 0.05)
    assert np.isnan(scores["action_rotation_error_deg"]).all() and np.isnan(scores["action_translation_floor_1"]).all()


def test_commands_are_within_half_of_the_envs_limits_keep_clear_and_depend_on_the_scene_only():
    plans = plan_clips([seed_in("test", number) for number in range(40)], num_frames=4 * STEPS + 1)
    path, limits = random_path(plans), Se3Action()
    assert np.array_equal(random_path(plans[[7]])[0], path[7])
    step = invert_pose(path[:, :-1:4]) @ path[:, 4::4]
    assert np.abs(step[..., :3, 3]).max() <= 0.5 * limits.max_translation + 1e-9
    assert np.abs(se3_log(step)[..., 3:]).max() <= 0.5 * limits.max_rotation + 1e-9
    still = np.linalg.norm(step[..., :3, 3], axis=-1) < 1e-9
    assert still.mean() < 0.05
    points = (plans.scene_from_camera[:, :1] @ path)[..., :3, 3]
    room = [Solids(plans.scenes).clearance(points[:, [t]], plans.mover_pose[:, t, :, :3]) for t in range(4, 17, 4)]
    assert np.all((np.stack(room, axis=1)[..., 0] >= CLEARANCE) | still)


def test_clips_too_short_to_follow_are_refused(plans: ClipPlans):
    short = ClipPlans(
        scenes=plans.scenes, scene_from_camera=plans.scene_from_camera[:, :9], mover_pose=plans.mover_pose[:, :9]
    )
    with pytest.raises(ValueError, match="at least 17 frames, got 9"):
        random_walk(short, NUMBERS, height=HEIGHT, width=WIDTH, device="cpu")
