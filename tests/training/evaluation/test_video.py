from __future__ import annotations

import numpy as np
import pytest

from tests.training.evaluation.wall import STRIP, PerfectCodec, wall_walk
from training.evaluation import video
from training.evaluation.perceptual import perceptual_distance
from training.evaluation.scores import Scores
from training.evaluation.summary import summarise
from training.evaluation.video import METRICS, video_floor_scores, video_scores
from training.evaluation.walks import Walk

ALIKE = 0.003
"""More than the kernel distance of a clip from itself; its patches are drawn twice."""


@pytest.fixture(scope="module")
def walk() -> Walk:
    return wall_walk()


@pytest.fixture(scope="module")
def floors(walk: Walk) -> Scores:
    return video_floor_scores(PerfectCodec(), walk)


def metric(scores: Scores, name: str) -> float:
    return summarise(scores, seed=0, rows=[row for row in METRICS if row[0] == name])[0][name]


def softened(rgb: np.ndarray) -> np.ndarray:
    """Return each pixel averaged with the one to its right."""
    return ((rgb.astype(float) + np.roll(rgb, -1, axis=-2)) / 2).round().astype(np.uint8)


def test_the_truth_scores_perfectly(walk: Walk, floors: Scores):
    scores = floors | video_scores("dream", walk.rgb, walk)
    for frame in (4, 8, 16):
        assert metric(scores, f"gradient_ratio_dream_{frame}") == 1
        for score in ("ms_ssim", "visible_ms_ssim", "holes_ssim", "static_ssim", "moving_ssim"):
            np.testing.assert_allclose(scores[f"{score}_dream_{frame}"], 1, atol=1e-5)
        for part in ("holes", "static", "moving"):
            assert (scores[f"{part}_psnr_dream_{frame}"] == 50).all()
        assert (np.abs(scores[f"kernel_distance_dream_{frame}"]) < ALIKE).all()


def test_every_metric_has_a_name_of_its_own_and_its_scores(walk: Walk, floors: Scores):
    names = [name for name, _, _ in METRICS]
    assert len(names) == len(set(names))
    scores = floors | video_scores("dream", walk.rgb, walk)
    for name, _, keys in METRICS:
        assert set(keys) <= set(scores) or "lpips" in name


def test_a_dream_that_repeats_the_first_frame_scores_that_floor(walk: Walk, floors: Scores):
    repeated = np.repeat(walk.rgb[:, :1], 17, axis=1)
    for name, values in video_scores("dream", repeated, walk).items():
        np.testing.assert_array_equal(values, floors[name.replace("_dream_", "_repeated_")])


def test_parts_are_as_large_as_the_motion_makes_them(floors: Scores):
    rows = (32 - STRIP) / 32
    for frame in (4, 8, 16):  # one pixel a frame comes in from the right
        np.testing.assert_allclose(floors[f"holes_share_{frame}"], rows * frame / 48)
        np.testing.assert_allclose(floors[f"static_share_{frame}"], rows)
        np.testing.assert_allclose(floors[f"moving_share_{frame}"], STRIP / 32)


def test_an_error_counts_in_its_own_part_alone(walk: Walk):
    wrong = walk.rgb.copy()
    holes = wrong[:, 8, STRIP:, -8:]
    holes[...] = np.where(holes < 128, holes + 51, holes - 51)  # a fifth of the range
    scores = video_scores("dream", wrong, walk)
    of_holes = -20 * np.log10(0.2)
    np.testing.assert_allclose(scores["holes_psnr_dream_8"], of_holes, rtol=1e-5)
    np.testing.assert_allclose(scores["static_psnr_dream_8"], of_holes + 10 * np.log10(48 / 8), rtol=1e-5)
    assert (scores["moving_psnr_dream_8"] == 50).all() and (scores["holes_psnr_dream_16"] == 50).all()


def test_the_warp_knows_what_was_seen_and_not_the_holes(floors: Scores):
    np.testing.assert_allclose(floors["visible_ms_ssim_warp_8"], 1, atol=0.2)
    assert (floors["static_psnr_warp_8"] > floors["static_psnr_repeated_8"] + 3).all()
    assert (floors["holes_psnr_warp_8"] < 20).all()


def test_a_camera_at_rest_has_no_holes():
    still = wall_walk(pixels_per_frame=(0, 1))
    scores = video_scores("dream", still.rgb, still)
    assert np.isnan(scores["holes_psnr_dream_16"]).tolist() == [True, False]
    assert not np.isnan(scores["static_psnr_dream_16"]).any()


def test_half_the_contrast_is_a_quarter_of_the_gradient_energy(walk: Walk, floors: Scores):
    pale = (walk.rgb / 2 + 64).round().astype(np.uint8)
    scores = floors | video_scores("dream", pale, walk)
    assert metric(scores, "gradient_ratio_dream_8") == pytest.approx(0.25, rel=0.01)
    assert (np.abs(scores["kernel_distance_dream_8"]) < ALIKE).all()  # contrast is not texture


def test_the_kernel_distance_sees_softness_and_not_the_place(walk: Walk):
    soft, elsewhere = video_scores("dream", softened(walk.rgb), walk), video_scores("dream", walk.rgb[:, ::-1], walk)
    assert (soft["kernel_distance_dream_4"] > 2 * ALIKE).all()
    assert (np.abs(elsewhere["kernel_distance_dream_4"]) < ALIKE).all()


def test_the_perceptual_distance_goes_by_its_networks_name(walk: Walk):
    name, distance = perceptual_distance()
    if distance is None:
        pytest.skip("no perceptual network is installed")
    perfect, soft = (video_scores("dream", rgb, walk)[f"{name}_dream_8"] for rgb in (walk.rgb, softened(walk.rgb)))
    np.testing.assert_allclose(perfect, 0, atol=1e-6)
    assert (soft > 0.01).all()


def test_pictures_too_small_for_the_network_have_no_perceptual_distance():
    small = wall_walk(16, 24)
    names = video_scores("dream", small.rgb, small)
    assert "ms_ssim_dream_8" in names and not any("lpips" in name for name in names)


def test_without_a_network_nothing_stands_in_for_it(walk: Walk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(video, "_network", lambda device: ("none", None))
    assert not {name for name in video_scores("dream", walk.rgb, walk) if "lpips" in name or "none" in name}


def test_frames_after_the_first_alone_are_refused(walk: Walk):
    with pytest.raises(ValueError, match="first frame at 0"):
        video_scores("dream", walk.rgb[:, 1:], walk)
    with pytest.raises(ValueError, match="first frame at 0"):
        video_scores("dream", walk.rgb[:1], walk)
