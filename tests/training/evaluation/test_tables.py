from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aether_env.camera import horizontal_fov
from aether_env.sim import seed_in
from aether_env.sim.scenes import sample_scenes
from aether_env.world_model.checkpoint import Settings
from training.evaluation.tables import (
    NOT_MEASURED,
    OutOfDomainSet,
    domain_sets,
    main,
    markdown_tables,
    merge,
    printed_tables,
    push_out_of_domain,
    remark,
)
from training.evaluation.vbench import WEIGHTS
from training.evaluation.walks import WalkSet

SETTINGS = Settings(height=16, width=24)
Rows = list[dict[str, str]]


def read(text: str) -> dict[str, Rows]:
    """Return title -> rows of a Markdown text, each row by the heads of its columns."""
    tables = {}
    for section in text.split("\n## ")[1:]:
        lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
        tables[section.splitlines()[0][: len("Table 1")]] = [
            dict(zip(lines[0], line, strict=True)) for line in lines[2:]
        ]
    return tables


def row_of(rows: Rows, **wanted: str) -> dict[str, str]:
    (row,) = [row for row in rows if all(row[column] == value for column, value in wanted.items())]
    return row


@pytest.fixture(scope="module")
def empty() -> str:
    return markdown_tables({})


# --- The tables ---


@pytest.mark.parametrize(
    "table, wanted, column, figure",
    [  # read off the paper
        ("Table 1", {"method": "AETHER (printed)", "alignment": "scale"}, "Sintel Abs Rel", "0.324"),
        ("Table 1", {"method": "AETHER (printed)", "alignment": "scale and shift"}, "KITTI delta < 1.25, %", "97.7"),
        ("Table 1", {"method": "DepthCrafter (printed)"}, "Sintel Abs Rel", "0.590"),
        ("Table 2", {"method": "AETHER (printed)"}, "ScanNet RPE rotation, degrees", "1.204"),
        ("Table 2", {"method": "CUT3R (printed)"}, "TUM-dynamics ATE", "0.046"),
        ("Table 3", {"method": "AETHER (printed)", "domain": "overall"}, "weighted", "80.04"),
        ("Table 4", {"method": "CogVideoX (printed)", "domain": "overall"}, "dynamic", "86.76"),
        ("Table 5", {"method": "AETHER (printed)", "domain": "in-domain"}, "psnr", "19.87"),
        ("Table 5", {"method": "AETHER-no-depth (printed)", "domain": "out-of-domain"}, "lpips", "0.2995"),
        ("Table 6", {"method": "AETHER-no-depth (printed)", "domain": "overall"}, "subject", "88.61"),
    ],
)
def test_a_printed_figure_stands_in_its_row_and_column(empty, table, wanted, column, figure):
    assert row_of(read(empty)[table], **wanted)[column] == figure


def test_every_printed_figure_is_in_its_table_and_in_the_order_of_the_paper(empty):
    tables, printed = read(empty), printed_tables()
    rows = {
        title: [[cell for cell in row.values() if cell[0].isdigit()] for row in rows if "(printed)" in row["method"]]
        for title, rows in tables.items()
    }
    for key, table in printed.items():
        if key == "source":
            continue
        wanted: list[list[float]] = []
        for section in (
            (table["scale"], table["scale_and_shift"])
            if "scale" in table
            else ({k: v for k, v in table.items() if k != "columns"},)
        ):
            if "in_domain/out_domain/overall" in section:
                for cells in section["in_domain/out_domain/overall"].values():
                    wanted += [
                        [float(v) for v in of_domain] for of_domain in zip(*(c.split("/") for c in cells), strict=True)
                    ]
            else:
                wanted += list(section.values())
        assert [[float(cell) for cell in row] for row in rows[f"Table {key[5]}"]] == wanted


def test_what_has_no_number_says_that_it_was_not_measured(empty):
    for rows in read(empty).values():
        ours = [row for row in rows if "(printed)" not in row["method"] and "run by us" not in row["method"]]
        assert ours
        for row in ours:
            cells = [v for k, v in row.items() if k not in ("method", "alignment", "clips", "domain")]
            assert set(cells) == {NOT_MEASURED}


def test_not_finite_is_not_a_measurement():
    rows = read(markdown_tables({"tum_ate": float("nan"), "tum_rpe_translation": 0.25}))["Table 2"]
    ours = row_of(rows, method="ours")
    assert ours["TUM-dynamics ATE"] == NOT_MEASURED and ours["TUM-dynamics RPE translation"] == "0.250"


def test_our_numbers_stand_beside_the_printed_ones_in_their_units():
    metrics = {"kitti_abs_rel_scale": 0.1234, "kitti_delta125_scale": 0.875, "kitti_delta125_public_scale_shift": 0.5}
    metrics |= {"kitti_flat_abs_rel_scale": 0.7, "sintel_standing_ate": 0.5}
    metrics |= {"prediction_without_action_in_domain_subject_consistency": 0.91}
    metrics |= {"navigation_out_of_domain_psnr": 22.0, "navigation_warp_overall_ssim": 0.75}
    metrics |= {"planning_no_depth_in_domain_dynamic_degree": 0.4}
    tables = read(markdown_tables(metrics, {"navigation_warp_overall_ssim": 7}))
    ours = row_of(tables["Table 1"], method="ours")
    assert (ours["KITTI Abs Rel"], ours["KITTI delta < 1.25, %"]) == ("0.123", "87.5")
    assert ours["Bonn Abs Rel"] == NOT_MEASURED
    assert row_of(tables["Table 1"], method="ours, aligned as the public code does")["KITTI delta < 1.25, %"] == "50.0"
    assert row_of(tables["Table 1"], method="flat depth (floor)")["KITTI Abs Rel"] == "0.700"
    assert row_of(tables["Table 2"], method="no motion (floor)")["Sintel ATE"] == "0.500"
    assert row_of(tables["Table 3"], method="ours", domain="in-domain")["subject"] == "91.00"
    assert row_of(tables["Table 4"], method="ours", domain="in-domain")["subject"] == NOT_MEASURED
    assert row_of(tables["Table 5"], method="ours", domain="out-of-domain")["psnr"] == "22.00"
    warp = row_of(tables["Table 5"], method="first frame warped by true depth and pose", domain="overall")
    assert warp["ssim"] == "0.7500" and warp["clips"] == "7, simulator (other data)"
    without = row_of(tables["Table 6"], method="ours, trained without the depth objective", domain="in-domain")
    assert without["dynamic"] == "40.00"


def test_the_average_of_vbench_is_weighted_as_the_paper_weights_it():
    # The printed row of AETHER in table 3, whose average is printed too.
    printed = read(markdown_tables({}))["Table 3"]
    aether = row_of(printed, method="AETHER (printed)")
    columns = ("subject", "background", "motion", "dynamic", "aesthetic", "imaging")
    metrics = {
        f"prediction_without_action_overall_{dimension}": float(aether[column]) / 100
        for dimension, column in zip(WEIGHTS, columns, strict=True)
    }
    ours = row_of(read(markdown_tables(metrics))["Table 3"], method="ours", domain="overall")
    assert {key: ours[key] for key in (*columns, "weighted")} == {key: aether[key] for key in (*columns, "weighted")}
    del metrics["prediction_without_action_overall_dynamic_degree"]
    ours = row_of(read(markdown_tables(metrics))["Table 3"], method="ours", domain="overall")
    assert ours["weighted"] == ours["dynamic"] == NOT_MEASURED


def test_another_perceptual_distance_stands_under_its_own_name():
    metrics = {"navigation_overall_st_lpips": 0.25}
    assert row_of(read(markdown_tables(metrics))["Table 5"], method="ours", domain="overall")["lpips"] == (
        "0.2500 (ST-LPIPS)"
    )
    metrics["navigation_overall_lpips"] = 0.125
    assert row_of(read(markdown_tables(metrics))["Table 5"], method="ours", domain="overall")["lpips"] == "0.1250"


def test_tables_3_to_6_say_that_ours_is_other_data_of_which_size_and_what_is_out_of_scope(empty):
    tables = read(empty)
    for title in ("Table 3", "Table 4", "Table 5", "Table 6"):
        for row in tables[title]:
            assert row["clips"] == ("the paper's" if "(printed)" in row["method"] else "simulator (other data)")
        ours = [row["domain"] for row in tables[title] if row["method"] == "ours"]
        assert ours == ["in-domain", "out-of-domain", "overall"]
        if title != "Table 5":
            assert {row["domain"] for row in tables[title] if "(printed)" in row["method"]} == {"overall"}
    assert empty.count("**Our rows are of other data than the paper's**: of test clips of the simulator;") == 4
    for title in ("Table 3", "Table 4"):
        row = row_of(tables[title], method="CogVideoX with GPT-4o's prompts, run by us")
        assert row["weighted"] == "out of scope"
    assert empty.count("CogVideoX + GPT-4o, and language prompts, are out of scope") == 2


def test_notes_count_the_clips_that_were_measured_and_not_those_that_there_are():
    counts = {"navigation_in_domain_psnr": 93, "navigation_out_of_domain_psnr": 43, "navigation_overall_psnr": 136}
    counts |= {"planning_in_domain_dynamic_degree": 5, "planning_out_of_domain_dynamic_degree": 3}
    counts |= {"planning_repeated_in_domain_dynamic_degree": 4, "plan_psnr_4": 900}
    three, _, five, six = markdown_tables({}, counts).split("\n## ")[3:]
    clips = "of {} in-domain and {} out-of-domain test clips of the simulator"
    assert clips.format(93, 43) + ", as many as the paper has;" in five
    assert clips.format(5, 3) + " (the paper has 80 and 40);" in six
    assert " of test clips of the simulator;" in three


def test_table_5_says_which_frames_its_means_are_over(empty):
    # FRAMES of `planning`: those in between the two that are given.
    (table,) = [text for text in empty.split("\n## ") if text.startswith("Table 5")]
    assert "means over frames 4, 8 and 12 of a clip's frames 0 to 16" in table


def test_the_source_of_the_figures_stands_in_the_tables(empty):
    assert "arXiv 2503.18945" in empty


# --- Several results as one document ---


def write_results(path: Path, metrics: dict[str, float], **others: Any) -> Path:
    results = {
        "checkpoint": "mini", "checkpoint_sha256": "ab" * 32, "protocol": "sintel", "settings": {},
        "metrics": metrics, "counts": dict.fromkeys(metrics, 14),
    }  # fmt: skip
    path.write_text(json.dumps(results | others))
    return path


def test_results_of_several_protocols_make_one_document(tmp_path, capsys):
    sintel = write_results(tmp_path / "sintel.json", {"sintel_abs_rel_scale": 0.4321})
    reason = {"vbench": "VBench is not measured: a reason."}
    navigation = write_results(
        tmp_path / "tables.json", {"navigation_in_domain_psnr": 21.5}, protocol="tables", settings=reason
    )
    again = write_results(tmp_path / "again.json", {"sintel_abs_rel_scale": 0.4321, "sintel_ate": 0.125})
    out = tmp_path / "new" / "tables.md"
    main((sintel, navigation, again), out=out)
    text = out.read_text()
    tables = read(text)
    assert row_of(tables["Table 1"], method="ours")["Sintel Abs Rel"] == "0.432"
    assert row_of(tables["Table 2"], method="ours")["Sintel ATE"] == "0.125"
    ours = row_of(tables["Table 5"], method="ours", domain="in-domain")
    assert (ours["psnr"], ours["clips"]) == ("21.50", "14, simulator (other data)")
    assert "checkpoint mini, sha256 `abababababab`, from `sintel.json`, `tables.json`, `again.json`." in text
    assert text.endswith("\nVBench is not measured: a reason.\n") and text in capsys.readouterr().out


def test_a_reason_against_vbench_is_not_printed_beside_its_numbers(tmp_path):
    without = write_results(tmp_path / "a.json", {}, protocol="tables", settings={"vbench": "not installed"})
    measured = write_results(tmp_path / "b.json", {}, protocol="tables", settings={"vbench": None})
    assert remark(merge([without])) and not remark(merge([without, measured]))


def test_results_that_contradict_each_other_are_named(tmp_path):
    first, second = (
        write_results(tmp_path / f"{name}.json", {"tum_ate": value}) for name, value in {"a": 0.1, "b": 0.2}.items()
    )
    with pytest.raises(ValueError, match=r"tum_ate is 0\.1 in .*a\.json but 0\.2 in .*b\.json"):
        merge([first, second])
    other = write_results(tmp_path / "c.json", {}, checkpoint_sha256="cd" * 32)
    with pytest.raises(ValueError, match=r"a\.json and .*c\.json are of different checkpoints"):
        merge([first, other])


def test_what_is_no_result_is_named(tmp_path):
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"list\.json is no result of `aether evaluate`"):
        merge([tmp_path / "list.json"])
    for name in ("broken", "missing"):
        with pytest.raises(ValueError, match=rf"{name}\.json cannot be read as JSON"):
            merge([tmp_path / f"{name}.json"])
    with pytest.raises(ValueError, match="results is empty"):
        merge([])


# --- The sets ---


@pytest.mark.parametrize("kind, sizes", [("prediction", (93, 43)), ("planning", (80, 40))])
def test_sets_have_the_papers_sizes_and_share_no_seed(kind, sizes):
    sets = domain_sets(kind, SETTINGS, num_frames=2)
    seeds = [part.plans.scenes.seeds for part in sets]
    assert tuple(map(len, seeds)) == sizes and not set(seeds[0]) & set(seeds[1])
    assert seeds[0].tolist() == [seed_in("test", number) for number in range(sizes[0])]
    assert all(seed_in("test", 0) <= seed <= seed_in("test", 2**20 - 1) for seed in seeds[1])


def saturation(tint: np.ndarray) -> np.ndarray:
    return 1 - tint.min(-1) / tint.max(-1)


def test_out_of_domain_has_a_field_of_view_and_colours_that_training_never_shows():
    sets = domain_sets("prediction", SETTINGS, num_frames=2)
    training = sample_scenes(np.arange(500))
    inside, outside = (part.plans.scenes for part in sets)
    for known in (training, inside):
        assert (np.rad2deg(known.horizontal_fov) >= 50).all() and (np.rad2deg(known.horizontal_fov) <= 90).all()
        assert saturation(known.tint).max() <= 0.45 + 1e-9
    fov = np.rad2deg(outside.horizontal_fov)
    assert 95 <= fov.min() < 97 and 108 < fov.max() <= 110
    assert saturation(outside.tint).min() >= 0.6 - 1e-9 and saturation(outside.tint).max() <= 1 + 1e-9


def test_pushing_keeps_the_walk_the_things_and_the_hue_and_value_of_their_colours():
    plans = WalkSet(3, 2, SETTINGS).plans
    pushed = push_out_of_domain(plans)
    assert np.array_equal(pushed.scene_from_camera, plans.scene_from_camera)
    assert np.array_equal(pushed.scenes.position, plans.scenes.position)
    before, after = plans.scenes.tint, pushed.scenes.tint
    np.testing.assert_allclose(after.max(-1), before.max(-1))
    # The middle channel's place between the other two is the hue.
    place = [(np.median(t, -1) - t.min(-1)) / (t.max(-1) - t.min(-1)) for t in (before, after)]
    np.testing.assert_allclose(*place, atol=1e-6)
    assert np.array_equal(before.argmax(-1), after.argmax(-1))


def test_the_wider_view_is_what_is_drawn_and_what_the_intrinsics_say():
    walk = OutOfDomainSet(2, 2, SETTINGS).draw(np.arange(2))
    fov = np.rad2deg(horizontal_fov(walk.intrinsics, SETTINGS.width))
    assert (fov > 95 - 1e-6).all() and (fov < 110 + 1e-6).all()
    narrow = WalkSet(2, 2, SETTINGS).draw(np.arange(2))
    assert not np.array_equal(walk.rgb, narrow.rgb) and walk.rgb.shape == (2, 2, 16, 24, 3)


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="kind must be one of prediction, planning, got 'navigation'"):
        domain_sets("navigation", SETTINGS)
