"""What a run shows: counted operations in closed form, rates, TensorBoard's files, sheets, the environment."""

import builtins
import json
import logging
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from training.config import TrainConfig, WatchConfig
from training.folder import git_state, record_start
from training.parallelize import Processes
from training.watch import Watch, count_flops

ALONE = Processes(0, 1, "cpu")
LINE = {"step": 1, "loss": 0.5, "samples_per_s": 2.0, "mfu": None, "data_wait": 0.0}


def config(**watch):
    return TrainConfig(stage="autoencoder", batch_size=8, watch=WatchConfig(**watch))


def test_operations_are_counted_as_two_a_product_and_thrice_for_training():
    linear, x = nn.Linear(7, 5, bias=False), torch.zeros(11, 7)
    assert count_flops(lambda: linear(x)) == 3 * 2 * 11 * 7 * 5
    q, kv = torch.zeros(2, 3, 4, 16), torch.zeros(2, 3, 6, 16)
    assert count_flops(lambda: scaled_dot_product_attention(q, kv, kv)) == 3 * 2 * (2 * 3) * 2 * (4 * 6 * 16)


def test_rates_are_samples_and_the_share_of_the_peak_that_they_take(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Watch(config(tensorboard=False, peak_tflops=0.001), tmp_path, Processes(0, 4, "cpu"), 0, 2e6)
    now[0] += 3.0
    with watch.waiting():
        now[0] += 1.0
    # 10 steps of 8 samples in 4 s on each of 4 processes; 20 samples/s of 2 MFLOP are 4 % of a GFLOP/s.
    assert watch.rates(10) == {"samples_per_s": 80.0, "mfu": 0.04, "data_wait": 0.25}
    now[0] += 1.0
    assert watch.rates(1)["data_wait"] == 0.0
    watch.close()


def test_on_a_cpu_there_is_no_mfu(tmp_path):
    watch = Watch(config(tensorboard=False), tmp_path, ALONE, 0, 1e6)
    assert watch.rates(1)["mfu"] is None
    watch.close()


def test_scalars_and_sheets_are_in_tensorboard(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    watch = Watch(config(), tmp_path, ALONE, 0, None)
    watch.show([LINE, {**LINE, "step": 2, "loss": None}, {**LINE, "step": 3, "loss": 0.25}])
    picture = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    watch.sheet(3, picture)
    watch.close()
    seen = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in seen.Scalars("loss")] == [(1, 0.5), (3, 0.25)]
    assert seen.Images("samples")[0].step == 3
    assert np.array_equal(np.asarray(Image.open(tmp_path / "samples" / "step_00000003.png")), picture)


def test_without_tensorboard_a_run_says_so_and_goes_on(tmp_path, monkeypatch, caplog):
    load = builtins.__import__

    def no_tensorboard(name, *args, **kwargs):
        if "tensorboard" in name:
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setattr(builtins, "__import__", no_tensorboard)
    with caplog.at_level(logging.INFO):
        watch = Watch(config(), tmp_path, ALONE, 0, None)
    watch.show([LINE])
    watch.close()
    assert caplog.text.count("pip install tensorboard") == 1


def test_each_start_is_told_with_all_that_repeats_it(tmp_path):
    for step in (0, 7):
        record_start(config(), tmp_path, ALONE, step)
    starts = json.loads((tmp_path / "environment.json").read_text())
    assert [start["from_step"] for start in starts] == [0, 7]
    assert starts[0]["command"] == sys.orig_argv and starts[0]["versions"]["torch"] == torch.__version__
    assert {"seed", "device", "processes", "python", "git"} <= starts[0].keys()


def test_the_commit_is_told_and_whether_files_differ_from_it(tmp_path):
    assert git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    file = tmp_path / "file"
    file.write_text("one")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    file.write_text("two")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}
