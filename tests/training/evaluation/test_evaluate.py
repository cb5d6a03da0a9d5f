"""Whole protocols on the tiny checkpoint, from the command to the files it leaves."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aether_env.sim import seed_in
from tests.training.evaluation.test_datasets import make_tum
from tests.training.evaluation.test_tables import read, row_of
from tests.training.evaluation.test_vbench import package  # noqa: F401  a fixture
from training.evaluation import drift, evaluate, running, tables, vbench
from training.evaluation.datasets import SEQUENCES


def run(checkpoint: Path, out: Path, **kwargs: Any) -> tuple[dict[str, Any], str]:
    """Return the JSON and the Markdown that the command leaves."""
    evaluate.main(str(checkpoint), out=out, **kwargs)
    results = json.loads(out.read_text())
    assert results["metrics"] and all(np.isfinite(value) for value in results["metrics"].values())
    return results, out.with_suffix(".md").read_text()


@pytest.mark.slow
def test_the_simulator_protocol_measures_every_section_and_says_why_there_is_no_vbench(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(evaluate, "DRIFT_STEPS", {"simulator": 5})
    monkeypatch.setattr(drift, "RETURN_STEPS", (4,))
    monkeypatch.setattr(running, "ENDURANCE_STEPS", 2)
    monkeypatch.setattr(running, "measure_memory", lambda folder, sigmas: {"cpu_memory_mib": 12.5})  # takes a process
    monkeypatch.setattr(evaluate, "FEW_CLIPS", 2)  # fewer leave out endurance
    results, text = run(tiny_checkpoint, tmp_path / "all.json", protocol="simulator", clips=2)
    assert set(results["settings"]["sections"]) == set(evaluate.SECTIONS["simulator"])
    of_sections = {
        "psnr_dream_8", "psnr_repeated_8", "pipeline_abs_rel", "depth_abs_rel", "metric_abs_rel_5", "return_psnr_4",
        "ms_ssim_dream_8", "action_rotation_error_deg", "plan_end_error", "nan_free_200", "cpu_steps_per_second",
    }  # fmt: skip
    assert of_sections <= set(results["counts"]) | set(results["metrics"])
    assert not any(name.endswith(("_10", "return_psnr_8")) for name in results["metrics"])
    assert results["speed"]["cpu_memory_mib"] == 12.5 and "| cpu_memory_mib | 12.5 |" in text
    assert text.endswith(f"\n{results['settings']['vbench']}\n") and "VBench is not measured" in text


def test_the_tables_protocol_measures_table_5_and_says_why_there_is_no_vbench(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(vbench, "find_spec", lambda name: None)
    results, text = run(tiny_checkpoint, tmp_path / "tables.json", protocol="tables", clips=2)
    inside, outside = (row_of(read(text)["Table 5"], method="ours", domain=d) for d in ("in-domain", "out-of-domain"))
    both = row_of(read(text)["Table 5"], method="ours", domain="overall")
    assert both["clips"] == "4, simulator (other data)" and inside["psnr"] != outside["psnr"]
    assert float(both["psnr"]) == pytest.approx((float(inside["psnr"]) + float(outside["psnr"])) / 2, abs=0.011)
    assert "of 2 in-domain and 2 out-of-domain test clips of the simulator (the paper has 93 and 43)" in text
    first = seed_in("test", tables.OUT_OF_DOMAIN_FIRST)
    assert results["seeds"]["prediction"] == {
        "in_domain": {"first": seed_in("test", 0), "count": 2}, "out_of_domain": {"first": first, "count": 2},
    }  # fmt: skip
    assert text.endswith(f"\n{results['settings']['vbench']}\n") and "vbench is not installed" in text


@pytest.mark.slow
@pytest.mark.usefixtures("package")
def test_where_vbench_is_installed_each_task_is_judged_in_one_call(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls, judge = [], vbench.vbench_scores

    def counted(videos: dict[str, np.ndarray], fps: float, **kwargs: Any) -> Any:
        calls.append({name: rgb.shape for name, rgb in videos.items()})
        found = judge(videos, fps, **kwargs)
        for name, rgb in videos.items():
            level = {"truth": 0.75, "repeated": 0.25}.get(name, 0.5)
            found[f"vbench_{name}_motion_smoothness"] = np.full(len(rgb), level)
        return found

    monkeypatch.setattr(vbench, "vbench_scores", counted)
    # Sets of three sizes, so that a clip in the wrong domain, or another kind's sets, are seen.
    monkeypatch.setattr(tables, "SIZES", {"prediction": (2, 1), "planning": (1, 1)})
    results, text = run(tiny_checkpoint, tmp_path / "tables.json", protocol="tables", clips=256)
    shapes = [set(shown.values()) for shown in calls]
    assert [set(shown) - {"truth", "repeated"} for shown in calls] == [{"free"}, {"path"}, {"plan"}]
    assert shapes == [{(3, 17, 16, 24, 3)}, {(3, 17, 16, 24, 3)}, {(2, 17, 16, 24, 3)}]
    rows = {"ours": "50.00", "first frame repeated (floor)": "25.00", "the truth (ceiling)": "75.00"}
    for table, sizes in {"Table 3": (2, 1, 3), "Table 4": (2, 1, 3), "Table 6": (1, 1, 2)}.items():
        for method, motion in rows.items():
            of_domains = [row_of(read(text)[table], method=method, domain=d) for d in tables._DOMAIN_WORDS.values()]
            assert [row["clips"].split(",")[0] for row in of_domains] == [str(size) for size in sizes]
            assert {row["motion"] for row in of_domains} == {motion}
            inside, outside, both = (float(row["subject"]) for row in of_domains)
            assert both == pytest.approx((inside * sizes[0] + outside * sizes[1]) / sizes[2], abs=0.02)
            assert all(row["weighted"] != tables.NOT_MEASURED for row in of_domains)
    planning = results["seeds"]["planning"]
    assert (planning["in_domain"]["count"], planning["out_of_domain"]["count"]) == (1, 1)
    assert results["settings"]["vbench"] is None and "VBench is not measured" not in text


def test_a_public_set_goes_from_its_folder_to_the_papers_table(tiny_checkpoint: Path, tmp_path: Path):
    # Every third frame is read: 17 that go 3 m a frame straight on, 3 * 24 ** 0.5 from their mean (root mean square).
    times = [1 + i / 10 for i in range(3 * 17)]
    for scene in SEQUENCES["tum"]:
        make_tum(tmp_path / "tum", times, [f"{time:.6f} 0 0 {i} 0 0 0 1" for i, time in enumerate(times)], scene)
    results, text = run(tiny_checkpoint, tmp_path / "path.json", protocol="tum", root=tmp_path / "tum")
    assert results["counts"]["tum_ate"] == 8 and results["settings"]["dataset"] == "tum"
    table = read(text)["Table 2"]
    assert row_of(table, method="no motion (floor)")["TUM-dynamics ATE"] == "14.697"
    assert row_of(table, method="straight line (floor)")["TUM-dynamics ATE"] == "0.000"
    assert row_of(table, method="ours")["TUM-dynamics ATE"] == f"{results['metrics']['tum_ate']:.3f}"
    assert row_of(table, method="ours")["Sintel ATE"] == tables.NOT_MEASURED


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_memory_is_that_of_a_fresh_process(tiny_checkpoint: Path):
    ballast = np.ones((32, 2**20))  # 256 MiB that are none of the checkpoint's, though a child may inherit their count
    memory = running.measure_memory(tiny_checkpoint)
    held = running._status_mib("VmRSS")
    half = ballast.nbytes / 2**21
    assert 0 < memory["cpu_memory_mib"] < memory["cpu_memory_total_mib"] < held - half


def test_memory_is_left_out_where_it_cannot_be_read(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(running.sys, "platform", "darwin")
    assert running.measure_memory(tiny_checkpoint) == {}
