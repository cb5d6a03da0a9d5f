from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from aether_env.sim import SimState, SimWorld
from aether_env.world_model.checkpoint import Settings
from aether_env.world_model.promise import Frames, Start
from aether_env.world_model.rollout import DreamWorld
from tests.tiny import HEIGHT, WIDTH, tiny_components
from training.evaluation.drift import METRICS, STEPS, drift_scores, long_walks, return_scores
from training.evaluation.scores import autoencode, roll_out, visible_in
from training.evaluation.summary import summarise
from training.evaluation.walks import Walk, WalkSet

SIZE = Settings(height=32, width=48)
BOTH = np.array([0, 1])
DISTANCE = ("st_lpips", lambda shown, truth: (shown - truth).abs().mean((1, 2, 3)))
Change = Callable[[Frames, int], Frames]


class PerfectCodec:
    """Latents are the frames themselves."""

    def unit(self, depth):
        return torch.ones(len(depth))

    def encode_colour(self, frames):
        return frames.unflatten(1, (-1, 4))

    def decode_colour(self, latents, previous):
        return latents.flatten(1, 2)

    def encode_depth(self, depth, unit):
        return depth.unflatten(1, (-1, 4))

    def decode_depth(self, latents, unit, previous):
        return latents.flatten(1, 2)


@dataclass(frozen=True)
class RememberingState:
    sim: SimState
    step: int
    memory_count: torch.Tensor


class TrueWorld:
    """The simulator as a dream: a test's change may spoil what it shows."""

    codec = PerfectCodec()

    def __init__(self, walks: WalkSet, change: Change | None = None, forgets: bool = False):
        self.sim = SimWorld(walks.settings.height, walks.settings.width, fps=walks.settings.fps, split="test")
        self.scene_seeds = walks.plans.scenes.seeds
        self.change, self.forgets = change, forgets
        self.advanced = 0

    def start(self, starts: Sequence[Start], seeds: Sequence[int]) -> tuple[RememberingState, Frames]:
        scenes = [Start(scene_seed=int(self.scene_seeds[seed % 2**32])) for seed in seeds]
        sim, frames = self.sim.start(scenes, seeds)
        np.testing.assert_array_equal(frames.rgb[:, 0], np.stack([start.rgb for start in starts]))
        return RememberingState(sim, 0, torch.zeros(len(starts), dtype=torch.int64)), frames

    def advance(self, state: RememberingState, poses: np.ndarray) -> tuple[RememberingState, Frames]:
        self.advanced += 1
        sim, frames = self.sim.advance(state.sim, poses)
        step = state.step + 1
        frames = frames if self.change is None else self.change(frames, step)
        if self.forgets and not state.memory_count.any() and step > 1:
            frames = replace(frames, rgb=np.zeros_like(frames.rgb))
        return RememberingState(sim, step, state.memory_count + 1), frames


@pytest.fixture(scope="module")
def walks() -> WalkSet:
    return WalkSet(2, 65, SIZE)


@pytest.fixture(scope="module")
def whole(walks: WalkSet) -> Walk:
    return walks.draw(BOTH)


def drift(walks: WalkSet, change: Change | None = None, **kwargs: Any) -> dict[str, np.ndarray]:
    kwargs = {"last_step": 5, "perceptual": DISTANCE} | kwargs
    return drift_scores(TrueWorld(walks, change), walks, BOTH, 0, **kwargs)


def of_frames(values: torch.Tensor, step: int) -> np.ndarray:
    return values[:, 4 * step - 3 : 4 * step + 1].numpy()


def test_the_simulator_itself_as_a_dream_does_not_drift(walks):
    scores = drift(walks, last_step=16)
    for step in (1, 5, 10, 16):
        for name, best in (("psnr", 50), ("ssim", 1), ("ms_ssim", 1), ("st_lpips", 0), ("static_psnr", 50)):
            assert scores[f"long_{name}_{step}"] == pytest.approx(best, abs=1e-5)
            assert scores[f"autoencoder_long_{name}_{step}"] == pytest.approx(best, abs=1e-5)
        assert np.abs(scores[f"long_kernel_distance_{step}"]).max() < 0.01
        np.testing.assert_array_equal(scores[f"energy_dream_{step}"], scores[f"energy_truth_{step}"])
        np.testing.assert_array_equal(scores[f"contrast_dream_{step}"], scores[f"contrast_truth_{step}"])
        assert scores[f"metric_abs_rel_{step}"] == pytest.approx(0, abs=1e-6)
        assert scores[f"depth_scale_{step}"] == pytest.approx(1)
        assert scores[f"depth_scale_error_{step}"] == pytest.approx(0, abs=1e-6)
    assert scores["repeated_long_psnr_16"].max() < 40 and scores["flat_metric_abs_rel_16"].min() > 0.05


def test_a_dream_that_repeats_its_first_frame_scores_the_floor(walks, whole):
    first = whole.rgb[:, :1]
    scores = drift(walks, lambda frames, _: replace(frames, rgb=first.repeat(4, axis=1)))
    floors = [name for name in scores if name.startswith("repeated_")]
    assert len(floors) == 2 * 9
    for name in floors:
        np.testing.assert_array_equal(scores[name.removeprefix("repeated_")], scores[name])
    np.testing.assert_array_equal(scores["energy_dream_5"], scores["energy_repeated_5"])


def test_half_the_contrast_is_a_ratio_of_a_half_and_a_quarter_of_the_gradient_energy(walks):
    def fade(frames, _):
        return replace(frames, rgb=(64 + frames.rgb // 2).astype(np.uint8))

    rows = [row for row in METRICS if "gradient_energy" in row[0] or "contrast" in row[0]]
    metrics, _, counts = summarise(drift(walks, fade), 0, rows)
    assert metrics["contrast_5"] == pytest.approx(0.5, abs=0.01)
    assert metrics["gradient_energy_5"] == pytest.approx(0.25, abs=0.02)
    assert metrics["autoencoder_gradient_energy_5"] == metrics["autoencoder_contrast_5"] == 1
    assert counts["gradient_energy_5"] == 2


def test_depth_twice_as_large_is_told_as_its_scale_and_as_its_unaligned_error(walks):
    scores = drift(walks, lambda frames, step: replace(frames, depth=frames.depth * (2.0 if step == 5 else 0.5)))
    assert scores["depth_scale_1"] == pytest.approx(0.5) and scores["depth_scale_5"] == pytest.approx(2)
    assert scores["depth_scale_error_1"] == pytest.approx(np.log(2))
    assert scores["depth_scale_error_5"] == pytest.approx(np.log(2))
    assert scores["metric_abs_rel_1"] == pytest.approx(0.5) and scores["metric_abs_rel_5"] == pytest.approx(1)


def spoiled(mask: np.ndarray) -> Change:
    """Invert the colours of pixels of the frames of a walk, (B, T, H, W)."""

    def change(frames, step):
        there = of_frames(torch.as_tensor(mask), step)[..., None]
        return replace(frames, rgb=np.where(there, 255 - frames.rgb, frames.rgb))

    return change


def test_what_is_wrong_in_holes_alone_leaves_the_visible_part_perfect(walks, whole):
    visible = torch.stack([visible_in(whole, frame) for frame in range(65)], dim=1)
    scores = drift(walks, spoiled((~visible & ~whole.clips.moving).numpy()), last_step=16)
    assert (scores["long_visible_psnr_16"] == 50).all()
    assert scores["long_holes_psnr_16"].max() < 20
    assert (scores["long_holes_psnr_16"] < scores["long_static_psnr_16"]).all()
    assert scores["long_visible_share_16"] == pytest.approx(of_frames(visible, 16).mean((1, 2, 3)))


def test_what_is_wrong_on_movers_alone_leaves_static_pixels_perfect(walks, whole):
    moving = whole.clips.moving
    scores = drift(walks, spoiled(moving.numpy()), last_step=10)
    share = of_frames(moving, 10).mean((2, 3))
    assert share[0].max() >= 0.005 and not share[1].any()
    assert scores["long_moving_psnr_10"][0] < 20 and np.isnan(scores["long_moving_psnr_10"][1])
    assert (scores["long_static_psnr_10"] == 50).all() and (scores["long_psnr_10"] < [50, 51]).all()


def test_a_clip_scores_the_same_alone_and_in_a_batch(walks):
    together, alone = (
        drift(walks, last_step=1),
        drift_scores(TrueWorld(walks), walks, BOTH[1:], 0, last_step=1, perceptual=DISTANCE),
    )
    for name, value in alone.items():
        np.testing.assert_allclose(together[name][1:], value, rtol=1e-6, atol=1e-7, err_msg=name)


def test_a_step_of_a_long_walk_is_the_same_however_many_follow():
    walks = long_walks(2, SIZE)
    few, more = drift(walks, last_step=1), drift(walks, last_step=5)
    for name, value in few.items():
        np.testing.assert_array_equal(more[name], value, err_msg=name)
    # Planned for fewer frames the same clips would go elsewhere, so that this length is all there may be.
    shorter = WalkSet(2, 4 * 5 + 1, SIZE).plans.scene_from_camera
    assert walks.num_frames == 4 * STEPS[-1] + 1
    assert np.abs(walks.plans.scene_from_camera[:, : 4 * 5 + 1] - shorter).max() > 0.01


def test_nothing_is_dreamed_or_scored_beyond_the_last_step(walks):
    world = TrueWorld(walks)
    scores = drift_scores(world, walks, BOTH, 0, last_step=7)
    assert world.advanced == 5
    assert {int(name.rsplit("_", 1)[1]) for name in scores} == {1, 5}
    assert not any("lpips" in name for name in scores)


def test_a_real_dream_and_its_autoencoder_score_as_when_every_frame_is_drawn():
    walks = WalkSet(2, 17 + 4, Settings(height=HEIGHT, width=WIDTH))
    world, walk = DreamWorld(tiny_components()), walks.draw(BOTH)
    scores = drift_scores(world, walks, BOTH, 3, last_step=5)
    frames = roll_out(world, walk, walk.path, 5, 3)
    for step in (1, 5):
        truth = of_frames(walk.clips.rgb, step).astype(np.float64)
        of_step = slice(4 * step - 4, 4 * step)
        decoded = autoencode(world.codec, walk.clips.rgb)[:, 1:][:, of_step].numpy()
        for row, shown in (("", frames.rgb[:, of_step]), ("autoencoder_", decoded)):
            error = ((shown - truth) / 255) ** 2
            expected = (-10 * np.log10(error.mean((2, 3, 4)))).mean(1)
            np.testing.assert_allclose(scores[f"{row}long_psnr_{step}"], expected, atol=1e-3)
        depth, true = frames.depth[:, of_step], of_frames(walk.clips.depth, step)
        relative = np.where(of_frames(walk.clips.valid, step), np.abs(depth - true) / true, np.nan)
        np.testing.assert_allclose(scores[f"metric_abs_rel_{step}"], np.nanmean(relative, axis=(1, 2, 3)), rtol=1e-4)


def test_the_simulator_comes_back_to_where_it_began(walks):
    scores = return_scores(TrueWorld(walks), walks, BOTH, 0, steps=(2, 4), perceptual=DISTANCE)
    for steps in (2, 4):
        # Nothing moves in the second clip. In the first something goes on, and its shadow with it.
        assert scores[f"return_psnr_{steps}"][1] == 50
        assert scores[f"return_static_psnr_{steps}"][0] > scores[f"return_psnr_{steps}"][0] + 3
        for name in ("psnr", "ssim", "st_lpips", "static_psnr"):
            returned = scores[f"return_{name}_{steps}"]
            np.testing.assert_array_equal(returned, scores[f"truth_return_{name}_{steps}"])
            np.testing.assert_array_equal(returned, scores[f"autoencoder_return_{name}_{steps}"])
            np.testing.assert_array_equal(returned, scores[f"return_{name}_without_memory_{steps}"])
        assert scores[f"return_same_pose_psnr_{steps}"][1] == 50
        assert scores[f"other_clip_return_psnr_{steps}"].max() < 15
    assert scores["turning_point_return_psnr_4"].max() < 30


def test_a_dream_that_stays_at_the_turning_point_scores_the_floor_of_not_coming_back(walks, whole):
    turn = whole.rgb[:, 8:9]
    world = TrueWorld(walks, lambda frames, _: replace(frames, rgb=turn.repeat(4, axis=1)))
    scores = return_scores(world, walks, BOTH, 0, steps=(2,))
    np.testing.assert_array_equal(scores["return_psnr_2"], scores["turning_point_return_psnr_2"])
    assert (scores["return_same_pose_psnr_2"] == 50).all()


def test_without_memory_means_that_nothing_is_ever_remembered(walks, whole):
    scores = return_scores(TrueWorld(walks, forgets=True), walks, BOTH, 0, steps=(2,))
    np.testing.assert_array_equal(scores["return_psnr_2"], scores["truth_return_psnr_2"])
    against_black = -10 * np.log10(((whole.rgb[:, 0] / 255.0) ** 2).mean((1, 2, 3)))
    np.testing.assert_allclose(scores["return_psnr_without_memory_2"], against_black, rtol=1e-5)
    assert (scores["return_psnr_without_memory_2"] < scores["return_psnr_2"] - 10).all()


def test_every_score_is_part_of_a_metric_and_promised_names_are_there(walks):
    scores = drift(walks, last_step=16)
    scores |= return_scores(TrueWorld(walks), walks, BOTH, 0, steps=(4,), perceptual=DISTANCE)
    used = {key for _, _, keys in METRICS for key in keys}
    assert set(scores) <= used
    promised = {
        "gradient_energy_16", "autoencoder_gradient_energy_16", "long_psnr_16", "metric_abs_rel_1", "metric_abs_rel_10",
        "return_psnr_4", "return_psnr_without_memory_4", "return_memory_gain_db_4", "depth_scale_10", "contrast_5",
    }  # fmt: skip
    metrics, intervals, _ = summarise(scores, 0, [row for row in METRICS if row[0] in promised])
    assert set(metrics) == set(intervals) == promised
    names = [name for name, _, _ in METRICS]
    assert len(set(names)) == len(names)
    assert {f"gradient_energy_{step}" for step in STEPS} <= set(names)


def test_what_cannot_be_measured_is_refused(walks):
    with pytest.raises(ValueError, match="last_step must be at least 1, got 0"):
        drift(walks, last_step=0)
    with pytest.raises(ValueError, match="walks must have at least 101 frames for these steps, got 65"):
        drift(walks, last_step=25)
    with pytest.raises(ValueError, match="walks must have at least 129 frames for these steps, got 65"):
        return_scores(TrueWorld(walks), walks, BOTH, 0)
    with pytest.raises(ValueError, match=r"steps must be numbers of env steps, each at least 1, got \(0,\)"):
        return_scores(TrueWorld(walks), walks, BOTH, 0, steps=(0,))
    alone = WalkSet(1, 65, SIZE)
    with pytest.raises(ValueError, match="walks must have at least 2 clips, got 1"):
        return_scores(TrueWorld(alone), alone, BOTH[:1], 0, steps=(2,))
