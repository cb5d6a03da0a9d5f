"""The annotation's measurement: errors that are put in come out, and nothing is measured twice or passed over."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from aether_env.camera import se3_exp
from tests.training.annotate.room import film, walk
from training.annotate.recorders import Known, KnownVideo
from training.annotate.results import PieceResult, SliceResult
from training.annotate.settings import AnnotateSettings
from training.clips import Clip
from training.evaluation import annotation
from training.evaluation.annotation import ABLATIONS, measure
from training.evaluation.annotation_scores import Truth, mask_scores, path_scores, usable_frames, video_scores
from training.evaluation.annotation_tables import markdown, summary
from training.evaluation.annotation_videos import choose_scenes, code_digest

FRAMES = 14
TWIST = (0.02, 0.0, 0.03, 0.0, 0.03, 0.0)


@cache
def room(number):
    """Footage and intrinsics; in odd rooms a ball flies by."""
    poses = walk(FRAMES, (TWIST[0] + 0.005 * number, *TWIST[1:]))
    ball = np.linspace((-0.8, 0.3, 2.0), (0.8, 0.3, 2.4), FRAMES) if number % 2 else None
    return *film(poses, ball=ball), poses


def record_room(known, number):
    footage, intrinsics, poses = room(number)
    return KnownVideo(
        name=f"simulator-{known.seed}-{number:04d}",
        rgb=footage.rgb,
        stored=footage.depth,
        about={"fps": known.fps, "depth_scale": 1.0},
        moving=footage.moving,
        world_from_camera=poses,
        intrinsics=intrinsics,
    )


def truth_of(number):
    footage, intrinsics, poses = room(number)
    return Truth(world="simulator", world_from_camera=poses, intrinsics=intrinsics, moving=footage.moving)


def turned(poses, degrees):
    """Turn all cameras but the first about their own vertical axis."""
    turn = se3_exp(np.array([0, 0, 0, 0, np.deg2rad(degrees), 0]))
    return np.concatenate([poses[:1], poses[1:] @ turn])


def shaken(poses, metres):
    """Push each second camera up and the others down, which no similarity takes away."""
    up = np.where(np.arange(len(poses)) % 2, metres, -metres)
    found = poses.copy()
    found[:, 1, 3] += up
    return found


def kept(number, poses, rows=slice(None), *, focal=1.0, reason=None, coarse=None):
    """Return a slice of a room with these poses of all its frames."""
    footage, intrinsics, _ = room(number)
    intrinsics = intrinsics * np.array([[focal, 1, 1], [1, focal, 1], [1, 1, 1]])
    clip = Clip(
        rgb=footage.rgb[rows],
        depth=footage.depth[rows],
        valid=footage.valid[rows],
        moving=footage.moving[rows],
        world_from_camera=poses[rows],
        intrinsics=np.tile(intrinsics, (len(poses[rows]), 1, 1)),
        fps=12.0,
        name="clip",
    )
    figures = {} if coarse is None else {"coarse_path": coarse[rows], "coarse_focal": intrinsics[0, 0]}
    return SliceResult(
        frames=footage.frame[rows], clip=clip if reason is None else None, reason=reason, quality=0.9, figures=figures,
        world_from_camera=poses[rows],
    )  # fmt: skip


def scored(number, *slices, dropped=()):
    result = PieceResult(slices=slices, dropped=dict.fromkeys(dropped, "blurred"))
    return video_scores("video", truth_of(number), [(room(number)[0], result)], range(FRAMES))


CALLS: list[tuple[str, str]] = []


def annotate_room(footage, settings):
    """Annotate a recorded room with errors that are known, by its number."""
    assert footage.moving is None and footage.intrinsics is None  # both are in the truth only
    number = int(footage.name[-4:])
    without_depth = settings.refinement.adjust.depth_sigma is None
    way = settings.masker, settings.refine, not without_depth
    CALLS.append((footage.name, str(way)))
    *_, poses = room(number)
    if number == 2:
        raise RuntimeError("this room is bad")
    found = turned(shaken(poses, 1e-3), 2.0 if number == 3 else 0.05)
    if way != ("auto", True, True):
        found = turned(found, 0.2)
    rows = slice(0, 12) if number == 1 else slice(None)
    one = kept(number, found, rows, focal=1.01, coarse=shaken(poses, 3e-3))
    dropped = {12: "blurred", 13: "blurred"} if number == 1 else {}
    return PieceResult(slices=(one,), dropped=dropped, moving=room(number)[0].moving, seconds={"all": 0.5})


def measured(work, videos=4, **options):
    usual = {"work": work, "frames": FRAMES, "workers": 0, "chain": annotate_room, "record": record_room}
    return measure(videos, 0, **usual | {"scenes": range(videos)} | options)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    CALLS.clear()
    work = tmp_path_factory.mktemp("work")
    return work, measured(work)


def test_a_path_like_the_true_one_in_another_world_unit_and_place_has_no_error_but_its_length():
    *_, true = room(0)
    found = se3_exp(np.array([1.0, 2, 3, 0.4, 0.5, 0.6])) @ true
    found[:, :3, 3] *= 1.5
    scores = path_scores(found, true)
    assert scores["ate_percent"] < 1e-6 and scores["rotation_deg"] < 1e-6 and scores["rotation_aligned_deg"] < 1e-5
    assert scores["scale_percent"] == pytest.approx(50, rel=1e-6)
    assert scores["path_m"] == pytest.approx(13 * np.hypot(0.02, 0.03), rel=0.01)


def test_errors_that_are_put_into_a_path_come_out():
    *_, true = room(0)
    scores = path_scores(turned(true, 0.7), true)
    assert scores["rotation_deg"] == pytest.approx(0.7) and scores["rotation_worst_deg"] == pytest.approx(0.7)
    assert 0.05 < scores["rotation_aligned_deg"] < 0.5  # the similarity shares it among centres and rotations
    shake = path_scores(shaken(true, 2e-3), true)
    assert shake["ate_m"] == pytest.approx(2e-3, rel=0.02)
    assert shake["ate_percent"] == pytest.approx(100 * 2e-3 / shake["path_m"], rel=0.02)
    assert shake["rotation_deg"] < 1e-6


def test_a_camera_that_only_turns_has_a_rotation_error_but_no_ate_and_no_focal_error():
    row = scored(0, kept(0, room(0)[2], focal=1.2))
    assert row["ate_percent"] < 1e-6 and row["focal_error_percent"] == pytest.approx(20)
    still = replace(truth_of(0), world_from_camera=walk(FRAMES, (0, 0, 0, 0, 0.03, 0)))
    one = kept(0, turned(still.world_from_camera, 0.4), focal=1.2)
    row = video_scores("video", still, [(room(0)[0], PieceResult(slices=(one,)))], range(FRAMES))
    assert row["ate_percent"] is None and row["focal_error_percent"] is None and row["coarse_over_refined"] is None
    assert row["rotation_deg"] == pytest.approx(0.4) and not row["success"] and row["wrong_clips"] == 0


def test_a_video_of_two_clips_counts_each_by_its_frames_and_one_good_clip_is_a_success():
    *_, poses = room(0)
    good, bad = kept(0, turned(poses, 0.05), slice(0, 10)), kept(0, turned(poses, 0.05), slice(10, 14))
    bad = replace(bad, clip=replace(bad.clip, world_from_camera=turned(poses[10:], 1.2)))
    row = scored(0, good, bad)
    assert row["rotation_deg"] == pytest.approx((10 * 0.05 + 4 * 1.2) / 14)
    assert row["success"] and row["wrong_clips"] == 1 and row["kept"] == 14
    assert not scored(0, bad)["success"]


def test_what_was_refused_is_no_silent_failure_and_every_lost_frame_has_its_reason():
    *_, poses = room(0)
    wrong = kept(0, turned(poses, 5.0), slice(0, 9), reason="inconsistent")
    row = scored(0, wrong, dropped=(9, 10))
    assert row["lost"] == {"inconsistent": 9, "untold": 3, "blurred": 2}
    assert row["wrong_clips"] == 0 and row["clips"] == [] and row["kept"] == row["kept_usable"] == 0
    assert row["refused"][0]["rotation_deg"] == pytest.approx(5.0)


def test_masks_are_compared_over_all_frames():
    true, found = np.zeros((2, 10, 10), bool), np.zeros((2, 10, 10), bool)
    true[0, :4, :5] = True
    found[0, 1:4, :5], found[1, 0, :3] = True, True
    scores = mask_scores(found, true)
    assert scores == {"mask_iou": 15 / 23, "mask_recall": 15 / 20, "mask_false_share": 3 / 180}
    assert mask_scores(found, np.zeros_like(true))["mask_iou"] is None


def test_frames_that_are_dark_or_move_wholly_are_not_asked_for():
    footage, *_ = room(0)
    truth, rgb = truth_of(0), footage.rgb.copy()
    rgb[13] = 3
    assert usable_frames([replace(footage, rgb=rgb)], truth) == list(range(13))
    moving = truth.moving.copy()
    moving[13] = True
    assert usable_frames([footage], replace(truth, moving=moving)) == list(range(13))


def test_half_of_the_scenes_rest_and_half_move_much_in_their_order():
    known = Known(world="simulator", videos=5)
    shares = [0.0, 0.02, 0.002, 0.0005, 0.3, 0.0, 0.1, 0.0]
    assert choose_scenes(known, list(shares)) == [0, 1, 3, 4, 5]
    assert choose_scenes(replace(known, videos=1), list(shares)) == [0]


def test_metrics_are_what_the_chain_did_to_the_truth(results):
    metrics, counts = results[1]["metrics"], results[1]["counts"]
    assert metrics["static_rotation_deg"] == pytest.approx(0.05) and counts["static_rotation_deg"] == 1
    assert metrics["dynamic_rotation_deg"] == pytest.approx((0.05 + 2.0) / 2) and counts["dynamic_rotation_deg"] == 2
    assert metrics["coarse_over_refined"] == pytest.approx(3, rel=0.05)
    assert metrics["focal_error_percent"] == pytest.approx(1.0)
    assert metrics["kept_share"] == (14 + 12 + 0 + 14) / 56
    assert metrics["mask_iou"] == metrics["mask_recall"] == 1.0
    assert metrics["success_share"] == 2 / 4
    low, high = results[1]["intervals"]["dynamic_rotation_deg"]
    assert low < metrics["dynamic_rotation_deg"] < high


def test_clips_that_are_wrong_and_videos_that_fail_are_named(results):
    told = results[1]
    assert told["silent_failures"] == ["simulator-0-0003 from frame 0 on (14 frames)"]
    assert told["metrics"]["wrong_clips"] == told["metrics"]["crashes"] == 1
    text = markdown(told)
    assert "simulator-0-0003 from frame 0 on" in text and "RuntimeError: this room is bad" in text
    assert "| static_rotation_deg | 0.05 | 0.05 to 0.05 | 1 | <= 0.1 | yes |" in text
    assert "| kept_share | 0.714 |" in text and "chain failed 14" in text


def test_each_ablation_leaves_its_own_stage_out_and_has_metrics_of_its_own(results):
    ways = {way for name, way in CALLS if name == "simulator-0-0000"}
    assert ways == {str(way) for way in (
        ("auto", True, True), ("none", True, True), ("auto", False, True), ("auto", True, False)
    )}  # fmt: skip
    for name in ABLATIONS:
        found = results[1]["ablations"][name]["metrics"]
        assert found["static_rotation_deg"] == pytest.approx(0.25)
    json.dumps(results[1], allow_nan=False)


def test_run_again_only_what_is_missing_or_damaged_is_measured_and_nothing_changes(results):
    work, first = results
    CALLS.clear()
    assert measured(work) == first and CALLS == []
    (work / "rows" / "full" / "simulator-0-0001.json").unlink()
    (work / "rows" / "no_masks" / "simulator-0-0003.json").write_text('{"stamp": "')
    again = measured(work)
    assert [name for name, _ in CALLS] == ["simulator-0-0001", "simulator-0-0003"]
    assert (again["metrics"], again["ablations"]) == (first["metrics"], first["ablations"])


def test_rows_are_void_when_code_that_they_follow_from_changes(monkeypatch):
    before, read = code_digest(), Path.read_bytes
    for name, changes in (("bundle_schur.py", True), ("plots.py", False)):
        change = lambda path, name=name: read(path) + b"#" * (path.name == name)  # noqa: E731
        monkeypatch.setattr(Path, "read_bytes", change)
        assert (code_digest() != before) == changes, name


def test_other_settings_are_measured_anew_and_other_recordings_refused(results, tmp_path):
    work, _ = results
    CALLS.clear()
    measured(work, videos=1, ablations=(), settings=AnnotateSettings(seed=1))
    assert len(CALLS) == 1
    with pytest.raises(ValueError, match="work must be new"):
        measured(work, videos=1, frames=FRAMES + 1)
    with pytest.raises(ValueError, match="videos and doom"):
        measured(tmp_path, videos=0)
    with pytest.raises(ValueError, match="ablations must be some of"):
        measured(tmp_path, ablations=("no_depth",))


def test_a_video_that_cannot_be_recorded_stops_the_results_but_not_the_others(tmp_path):
    def flaky(known, number):
        if number == 0:
            raise ValueError("no such scene")
        return record_room(known, number)

    CALLS.clear()
    with pytest.raises(RuntimeError, match="simulator-0-0000: no such scene"):
        measured(tmp_path, videos=2, ablations=(), record=flaky)
    assert [name for name, _ in CALLS] == ["simulator-0-0001"]


def test_no_video_with_a_figure_leaves_the_metric_out():
    row = scored(0, dropped=range(FRAMES)) | {"seconds": {"cpu": 1.0}}
    found = summary([row], 0)
    assert "static_ate_percent" not in found["metrics"] and found["counts"]["static_ate_percent"] == 0
    assert found["metrics"]["kept_share"] == 0.0 and found["metrics"]["success_share"] == 0.0


@pytest.mark.slow
def test_one_command_leaves_json_and_tables(tmp_path, capsys):
    out = tmp_path / "annotation.json"
    annotation.main(videos=1, doom=0, out=out, work=tmp_path / "work", ablations=(), frames=12, workers=1)
    results = json.loads(out.read_text())
    assert results["videos"]["full"][0]["failed"] is None and results["metrics"]["crashes"] == 0
    assert {"commit", "seeds", "settings", "speed", "intervals"} <= set(results)
    assert out.with_suffix(".md").read_text() in capsys.readouterr().out
