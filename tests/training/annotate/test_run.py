"""Runs over many videos: nothing is lost, redone or doubled, whatever happens to single ones."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aether_env.cli import main
from tests.training.annotate.known_chain import CALLS, annotate_known
from training.annotate.pieces import InputSettings
from training.annotate.run import annotate
from training.annotate.settings import AnnotateSettings
from training.clip_sources import ShardClips
from training.shards import open_shards, read_clip, validate_shards

ROOT = Path(__file__).parents[3]
FRAMES = 8
PLAIN = AnnotateSettings(plots=False)


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """How often the chain saw each video."""
    folder = tmp_path / "calls"
    folder.mkdir()
    monkeypatch.setenv(CALLS, str(folder))

    def count():
        names = [path.name.partition(".")[0] for path in folder.iterdir()]
        return {name: names.count(name) for name in sorted(names)}

    return count


def write_video(folder, name, frames=FRAMES):
    generator = np.random.default_rng(len(name))
    (folder / name / "rgb").mkdir(parents=True)
    for number in range(frames):
        rgb = generator.integers(0, 256, (16, 24, 3), np.uint8)
        Image.fromarray(rgb).save(folder / name / "rgb" / f"{number}.png")
    np.save(folder / name / "depth.npy", generator.uniform(1, 5, (frames, 16, 24)).astype(np.float32))


def write_videos(folder, *names):
    for name in names:
        write_video(folder, name)
    return [folder]


def run(sources, out, **options):
    usual = {"settings": PLAIN, "chain": annotate_known, "workers": 0, "progress": False}
    return annotate(sources, out, **usual | options)


def clips_in(out):
    shards = open_shards(out / "clips")
    return {
        clip.name: clip
        for shard in shards
        for clip in [read_clip(shard.path, int(offset)) for offset in shard.rows["offset"]]
    }


def test_clips_come_back_as_the_chain_gave_them_and_training_opens_them(tmp_path, calls):
    sources = write_videos(tmp_path / "in", "one", "two")
    totals = run(sources, tmp_path / "out")
    assert totals | {"videos": 2, "clips": 2, "frames": 16, "kept": 10, "dropped": 6, "failed": 0} == totals
    clips = clips_in(tmp_path / "out")
    assert sorted(clips) == ["one-000-000", "two-000-000"]
    clip = clips["one-000-000"]
    frames = [np.asarray(Image.open(tmp_path / "in" / "one" / "rgb" / f"{t}.png")) for t in range(FRAMES - 3)]
    np.testing.assert_array_equal(clip.rgb, frames)
    np.testing.assert_allclose(clip.depth, np.load(tmp_path / "in" / "one" / "depth.npy")[: FRAMES - 3], rtol=1e-4)
    assert clip.world_from_camera[-1, 2, 3] == pytest.approx(0.4) and clip.moving[:, :4].all()
    assert ShardClips(tmp_path / "out" / "clips").length == 2


def test_a_long_video_gives_clips_of_all_its_pieces(tmp_path, calls):
    sources = write_videos(tmp_path / "in", "one")
    totals = run(sources, tmp_path / "out", settings=replace(PLAIN, inputs=InputSettings(piece_frames=4)))
    assert sorted(clips_in(tmp_path / "out")) == ["one-000-000", "one-001-000"]
    assert (totals["frames"], totals["kept"]) == (8, 2) and calls() == {"one": 2}


def test_bad_videos_are_named_in_the_report_and_stop_nothing(tmp_path, calls, caplog):
    sources = write_videos(tmp_path / "in", "bad", "one")
    (tmp_path / "in" / "empty").mkdir()
    write_video(tmp_path / "in", "blind")
    (tmp_path / "in" / "blind" / "depth.npy").unlink()
    with caplog.at_level(logging.WARNING):
        totals = run(sources, tmp_path / "out")
    assert (totals["videos"], totals["failed"], totals["clips"]) == (3, 2, 1)
    assert "bad: RuntimeError: this <video> is bad" in caplog.text
    failed = {
        video["name"]: video["failed"] for video in json.loads((tmp_path / "out/report.json").read_text())["videos"]
    }
    assert failed["one"] is None and "depth" in failed["blind"] and "is missing" in failed["blind"]


def test_run_again_it_does_only_what_is_missing_or_failed(tmp_path, calls):
    sources = write_videos(tmp_path / "in", "bad", "one", "two")
    run(sources, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "clips").iterdir()}
    # As if the run had been killed while it wrote "two": a whole shard, no JSON, and half of another file.
    (tmp_path / "out" / "videos" / "two.json").unlink()
    (tmp_path / "out" / "clips" / ".two.tar.unfinished").write_bytes(b"half")
    write_video(tmp_path / "in", "late")
    totals = run(sources, tmp_path / "out")
    assert calls() == {"bad": 2, "late": 1, "one": 1, "two": 2}
    assert sorted(clips_in(tmp_path / "out")) == ["late-000-000", "one-000-000", "two-000-000"]
    assert (totals["videos"], totals["clips"]) == (4, 3)
    assert before.items() - {path: path.stat().st_mtime_ns for path in before}.items() == {
        (tmp_path / "out" / "clips" / "two.tar", before[tmp_path / "out" / "clips" / "two.tar"])
    }
    assert validate_shards(tmp_path / "out" / "clips").problems == []
    assert [path.name for path in (tmp_path / "out").rglob(".*")] == []


def test_another_run_is_refused_in_the_same_folder(tmp_path, calls):
    sources = write_videos(tmp_path / "in", "one")
    run(sources, tmp_path / "out")
    with pytest.raises(ValueError, match="a run of the same settings"):
        run(sources, tmp_path / "out", settings=replace(PLAIN, seed=1))
    with pytest.raises(ValueError, match="a run of the same sources"):
        run(write_videos(tmp_path / "more", "one"), tmp_path / "out")
    with pytest.raises(ValueError, match="holds clips of something else"):
        (tmp_path / "out" / "annotate.json").unlink()
        run(sources, tmp_path / "out")
    assert calls() == {"one": 1}


@pytest.mark.slow
def test_processes_outlive_videos_that_kill_them(tmp_path, calls):
    names = ("bad", "deadly", "one", "slow1", "slow2")
    sources = write_videos(tmp_path / "in", *names)
    totals = run(sources, tmp_path / "out", workers=2)
    assert (totals["videos"], totals["failed"], totals["clips"]) == (5, 2, 3)
    failed = json.loads((tmp_path / "out" / "videos" / "deadly.json").read_text())["failed"]
    assert "died twice" in failed
    assert calls()["deadly"] == 2
    found = clips_in(tmp_path / "out")
    assert sorted(found) == [f"{name}-000-000" for name in names[2:]]


def test_after_ctrl_c_nothing_is_half_written_and_no_process_is_left(tmp_path, calls):
    sources = write_videos(tmp_path / "in", "endless", "one", "slow1")
    code = (
        "import signal; from pathlib import Path; from training.annotate.run import AnnotateSettings, annotate; "
        "from tests.training.annotate.known_chain import annotate_known\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # who runs in the background ignores it
        f"    annotate([Path({str(sources[0])!r})], Path({str(tmp_path / 'out')!r}), AnnotateSettings(plots=False), "
        "workers=2, chain=annotate_known)"
    )
    (tmp_path / "start.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = subprocess.Popen([sys.executable, tmp_path / "start.py"], env=environment, stderr=subprocess.PIPE)
    try:
        done = [tmp_path / "out" / "videos" / f"{name}.json" for name in ("one", "slow1")]
        limit = time.monotonic() + 60
        while not all(path.exists() for path in done) or "endless" not in calls():
            assert time.monotonic() < limit and started.poll() is None
            time.sleep(0.05)
        (worker,) = {int(path.name.split(".")[1]) for path in (tmp_path / "calls").glob("endless.*")}
        started.send_signal(signal.SIGINT)
        _, told = started.communicate(timeout=30)
    finally:
        started.kill()
    assert b"KeyboardInterrupt" in told
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == [
        "annotate.json", "one.json", "one.tar", "slow1.json", "slow1.tar",
    ]  # fmt: skip


@pytest.mark.slow
def test_two_ray_machines_share_the_videos_and_outlive_those_that_kill_a_process(tmp_path, calls, monkeypatch):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    sources = write_videos(tmp_path / "in", "bad", "deadly", "meet1", "meet2", "one")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        totals = run(sources, tmp_path / "out", ray_address=cluster.address)
        assert (totals["videos"], totals["failed"], totals["clips"]) == (5, 2, 3)
        assert calls()["deadly"] == 2 and calls()["meet1"] == 1
        assert "died twice" in json.loads((tmp_path / "out" / "videos" / "deadly.json").read_text())["failed"]
        assert sorted(clips_in(tmp_path / "out")) == [f"{name}-000-000" for name in ("meet1", "meet2", "one")]
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_the_command_tells_its_mistakes_in_a_line(tmp_path, capsys):
    assert main(["annotate", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "aether annotate: sources must hold videos" in capsys.readouterr().err
