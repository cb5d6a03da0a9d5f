from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aether_env.world_model.checkpoint import load_checkpoint
from aether_env.world_model.rollout import DreamWorld
from training.evaluation import report
from training.evaluation.evaluate import SECTIONS, evaluate
from training.evaluation.quick import main
from training.evaluation.scores import roll_out
from training.evaluation.walks import WalkSet

PROMISED = (
    "depth_abs_rel", "visible_gap_4", "visible_gap_8", "visible_gap_16", "rotation_error_deg_median",
    "controllability_db", "gradient_energy_16", "cpu_steps_per_second", "depth_delta125", "metric_abs_rel_1",
    "metric_abs_rel_10", "predicted_abs_rel", "pipeline_visible_gap_16", "nan_free_200", "psnr_warp_8",
    "visible_ssim_autoencoder_16", "fov_error_deg_median",
)  # fmt: skip


@pytest.fixture(scope="module")
def everything(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "quick.json"
    main(str(tiny_checkpoint), clips=2, out=out, only=SECTIONS["quick"])
    return out


def short(checkpoint: Path, **kwargs: Any) -> dict[str, Any]:
    return evaluate(checkpoint, **{"clips": 2, "only": ("rollout", "prediction", "reconstruction")} | kwargs)


@pytest.mark.slow
def test_one_command_gives_every_promised_number_as_json_and_as_a_table(everything: Path):
    results = json.loads(everything.read_text())
    # A random autoencoder is worse than a repeated picture, so that there is no gap to close; counts tell.
    assert set(PROMISED) <= set(results["metrics"]) | {name for name in results["counts"] if "visible_gap" in name}
    assert all(np.isfinite(value) for value in results["metrics"].values())
    assert {"metrics", "commit", "checkpoint_sha256", "device", "seeds", "speed"} <= set(results)
    assert results["metrics"]["nan_free_200"] == 1.0
    memory = (
        {"cpu_memory_mib", "cpu_memory_total_mib", "evaluation_peak_memory_mib"} if sys.platform == "linux" else set()
    )
    assert memory <= set(results["speed"]) and "peak_memory_mib" not in results["speed"]
    table = everything.with_suffix(".md").read_text()
    assert all(name in table for name in ("visible_gap_8", "first frame repeated", "cpu_step_seconds_p95"))


@pytest.mark.slow
def test_sheets_show_best_median_and_worst_clip(tiny_checkpoint: Path, tmp_path: Path):
    short(tiny_checkpoint, clips=3, only=("rollout",), sheets=tmp_path)
    world = DreamWorld(load_checkpoint(tiny_checkpoint, "cpu"))
    walks = WalkSet(3, 17, world.settings)
    errors, sheets = [], []
    for number in range(3):
        walk = walks.draw(np.array([number]))
        last = roll_out(world, walk, walk.path, 4, 0).rgb[0, -1]
        errors.append(np.square(last.astype(float) - walk.rgb[0, -1]).mean())
        report.write_sheet(tmp_path / f"{number}.png", world, walk, 0)
        sheets.append((tmp_path / f"{number}.png").read_bytes())
    assert len(set(sheets)) == len(set(errors)) == 3
    for name, number in zip(("best", "median", "worst"), np.argsort(errors), strict=True):
        assert (tmp_path / f"{name}.png").read_bytes() == sheets[number], name


@pytest.mark.slow
def test_the_same_call_gives_the_same_numbers_and_another_seed_other_dreams(tiny_checkpoint: Path):
    first, again = (short(tiny_checkpoint) for _ in range(2))
    assert (first["metrics"], first["intervals"]) == (again["metrics"], again["intervals"])
    other = short(tiny_checkpoint, seed=1)["metrics"]
    assert other["psnr_dream_8"] != first["metrics"]["psnr_dream_8"]
    assert other["psnr_warp_8"] == first["metrics"]["psnr_warp_8"]


def test_a_quick_look_leaves_out_the_two_hundred_steps(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SECTIONS, "quick", ("reconstruction", "endurance"))
    assert short(tiny_checkpoint, only=None)["settings"]["sections"] == ["reconstruction"]


def test_one_section_alone_measures_nothing_else(tiny_checkpoint: Path):
    metrics = short(tiny_checkpoint, only=("reconstruction",))["metrics"]
    assert "depth_abs_rel" in metrics and "psnr_dream_8" not in metrics and "psnr_warp_8" not in metrics


def test_noise_levels_can_be_changed_for_a_comparison(tiny_checkpoint: Path):
    results = short(tiny_checkpoint, only=("rollout",), step_sigmas=(1.0,))
    assert results["settings"]["step_sigmas"] == [1.0]


def test_what_cannot_be_measured_is_refused(tiny_checkpoint: Path):
    with pytest.raises(ValueError, match="clips must be at least 2, got 1"):
        short(tiny_checkpoint, clips=1)
    with pytest.raises(ValueError, match="only must be some of"):
        short(tiny_checkpoint, only=("everything",))
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        short(tiny_checkpoint, seed=-1)
    with pytest.raises(ValueError, match="out must end in .json"):
        main(str(tiny_checkpoint), out=Path("results.md"))
    with pytest.raises(ValueError, match="protocol must be one of"):
        short(tiny_checkpoint, protocol="everything")
    with pytest.raises(ValueError, match="of a protocol on the simulator"):
        short(tiny_checkpoint, protocol="tables")
    with pytest.raises(ValueError, match="add --root"):
        evaluate(tiny_checkpoint, protocol="sintel")
    with pytest.raises(ValueError, match="rollout"):
        short(tiny_checkpoint, only=("speed",), sheets=Path("sheets"))
    with pytest.raises(ValueError, match="neither a bundled one"):
        short(tiny_checkpoint / "missing")


def test_the_digest_of_a_checkpoint_knows_names_and_contents(tmp_path: Path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    digest = report.checkpoint_sha256(tmp_path)
    assert digest == report.checkpoint_sha256(tmp_path) and len(digest) == 64
    (tmp_path / "b").rename(tmp_path / "c")
    assert report.checkpoint_sha256(tmp_path) != digest


def test_metrics_that_differ_in_their_number_share_a_row_and_every_metric_is_in_the_table():
    names = ["way_1", "way_10", "lost_10", "lost_1", "alone_4", "plain"]
    results = {
        "checkpoint": "x", "protocol": "simulator", "commit": "c", "checkpoint_sha256": "s" * 64, "device": "cpu",
        "seeds": {"count": 2}, "settings": {"step_sigmas": [1.0], "clip_sigmas": [1.0]}, "counts": {}, "speed": {},
        "intervals": {}, "metrics": {name: float(place + 2) for place, name in enumerate(names)},
    }  # fmt: skip
    lines = report.markdown(results).splitlines()
    assert "| way | 2.00 | 3.00 |" in lines and "| lost | 5.00 | 4.00 |" in lines
    assert "| by frame or env step | 1 | 10 |" in lines
    assert "| alone_4 | 6.00 | - | - |" in lines and "| plain | 7.00 | - | - |" in lines


def test_results_come_back_from_json_as_they_were_and_nan_is_refused(tmp_path: Path):
    results = {"metrics": {"visible_gap_4": 0.1 + 0.2}, "counts": {"visible_gap_4": 3}}
    report.write_json(tmp_path / "new" / "results.json", results)
    assert json.loads((tmp_path / "new" / "results.json").read_text()) == results
    with pytest.raises(ValueError):
        report.write_json(tmp_path / "bad.json", {"metrics": {"x": float("nan")}})
