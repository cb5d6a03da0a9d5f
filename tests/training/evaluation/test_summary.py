from __future__ import annotations

import numpy as np
import pytest

from training.evaluation.summary import METRICS, bootstrap, gap_closed, mean, ratio_of_means, summarise

FLOOR, CEILING = np.array([10.0, 14.0, np.nan]), np.array([30.0, 34.0, np.nan])


def test_the_gap_is_zero_for_the_floor_one_for_the_ceiling_and_half_between():
    assert gap_closed(FLOOR, FLOOR, CEILING) == 0.0
    assert gap_closed(CEILING, FLOOR, CEILING) == 1.0
    assert gap_closed((FLOOR + CEILING) / 2, FLOOR, CEILING) == pytest.approx(0.5)


def test_the_gap_is_taken_from_mean_psnr_and_not_clip_by_clip():
    assert gap_closed(np.array([30.0, 10.0]), np.array([10.0, 10.0]), np.array([30.0, 20.0])) == pytest.approx(10 / 15)


def gap_scores() -> dict[str, np.ndarray]:
    rows = {"dream": (FLOOR + CEILING) / 2, "repeated": FLOOR, "autoencoder": CEILING}
    return {f"visible_psnr_{row}_8": values for row, values in rows.items()}


def test_clips_without_a_number_are_left_out_and_counted():
    metrics, intervals, counts = summarise(gap_scores(), seed=0)
    assert metrics["visible_gap_8"] == pytest.approx(0.5)
    assert counts["visible_gap_8"] == 2
    assert metrics["visible_psnr_repeated_8"] == 12.0
    low, high = intervals["visible_gap_8"]
    assert low == pytest.approx(0.5) and high == pytest.approx(0.5)


def test_a_metric_that_nobody_can_tell_is_left_out_rather_than_not_a_number():
    metrics, _, counts = summarise({"depth_abs_rel": np.full(3, np.nan)}, seed=0)
    assert "depth_abs_rel" not in metrics and counts["depth_abs_rel"] == 0
    equal = {name: FLOOR for name in gap_scores()}
    assert "visible_gap_8" not in summarise(equal, seed=0)[0]


def test_there_is_no_gap_below_the_floor():
    assert np.isnan(gap_closed(FLOOR, CEILING, FLOOR))


def test_medians_and_differences_are_what_their_names_say():
    scores = {
        "rotation_error_deg": np.array([1.0, 2.0, 9.0]),
        "fov_error_deg": np.array([1.0, 3.0, 11.0]),
        "psnr_dream_8": np.array([20.0, 22.0]),
        "psnr_other_path": np.array([15.0, 16.0]),
        "energy_dream_16": np.array([1.0, 2.0]),
        "energy_truth_16": np.array([2.0, 4.0]),
    }
    metrics, _, _ = summarise(scores, 0, [*METRICS, ("energy", ratio_of_means, ("energy_dream_16", "energy_truth_16"))])
    assert metrics["rotation_error_deg_median"] == 2.0
    assert metrics["fov_error_deg_median"] == metrics["fov_error_deg"] == 3.0
    assert metrics["controllability_db"] == pytest.approx(5.5)
    assert metrics["energy"] == pytest.approx(0.5)


def test_the_bootstrap_is_repeatable_and_as_wide_as_the_standard_error_says():
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    low, high = bootstrap(mean, [values], seed=1)
    assert [low, high] == bootstrap(mean, [values], seed=1)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 2.0 / np.sqrt(400), rel=0.15)
