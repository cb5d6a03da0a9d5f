"""The command line; and runs that are killed for real, at random moments, and go on to the last bit."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from training.recipes import RECIPES
from training.train import check_command, main, parse

ROOT = Path(__file__).parents[2]
QUICK = ["--steps", "12", "--save-every", "2", "--data.chunk-clips", "2", "--watch.no-tensorboard"]


def started(run_dir, *options):
    """Start the command in a process of its own, which finds its imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.trainer", "aether_env.sim.renderer"])
    child = context.Process(target=main, args=(["--recipe", "debug_cpu", "--run-dir", str(run_dir), *QUICK, *options],))
    child.start()
    return child


def losses(run_dir):
    """Lines of the log that are whole, without what depends on the clock."""
    log, lines = run_dir / "log.jsonl", []
    for line in log.read_text().splitlines(keepends=True) if log.exists() else []:
        if line.endswith("\n"):
            lines.append({k: v for k, v in json.loads(line).items() if k not in ("samples_per_s", "mfu", "data_wait")})
    return lines


def test_a_run_killed_at_random_moments_goes_on_to_the_last_bit(tmp_path):
    whole, cut, dice = started(tmp_path / "whole"), tmp_path / "cut", random.Random(0)
    whole.join(120)
    assert whole.exitcode == 0
    kills, newest = 0, set()
    for moment in (1, 4, 7, 10):
        child = started(cut)
        while child.is_alive() and len(losses(cut)) < moment:
            time.sleep(0.005)
        time.sleep(0.1 * dice.random())
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        newest |= {folder.name for folder in cut.glob("step_*")}
    last = started(cut)
    last.join(120)
    assert last.exitcode == 0 and kills >= 3 and len(newest) >= 3
    assert losses(cut) == losses(tmp_path / "whole")
    assert [line["step"] for line in losses(cut)] == list(range(1, 13))
    starts = [start["from_step"] for start in json.loads((cut / "environment.json").read_text())]
    assert starts == sorted(starts) and starts[0] == 0 < starts[-1] and len(starts) >= 4
    assert not list(cut.glob(".*")) and (cut / "checkpoint" / "aether.json").exists()


def test_a_run_asked_to_end_saves_and_says_so_by_its_exit_code(tmp_path):
    child = started(tmp_path, "--steps", "100000", "--save-every", "100000")
    while child.is_alive() and not losses(tmp_path):
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGINT)
    child.join(60)
    done = losses(tmp_path)[-1]["step"]
    assert child.exitcode == 128 + signal.SIGINT
    assert [folder.name for folder in tmp_path.glob("step_*")] == [f"step_{done:08d}"]


def test_any_setting_of_a_recipe_is_an_option():
    command = parse(
        "--recipe mini_1gpu --autoencoder a --warm-start b --minutes 2 --steps 7 --batch-size 64 --optimizer.lr 1e-4 "
        "--data.chunks 8 --transformer.architecture.num-layers 3 --no-compile --autoencoder.kl-weight 0.5".split()
    )
    config, recipe = command.config, RECIPES["mini_1gpu"]()
    assert (config.transformer.autoencoder, config.decoder.autoencoder, config.warm_start) == ("a", "a", "b")
    assert (config.minutes, config.steps, config.batch_size, config.optimizer.lr) == (2.0, 7, 64, 1e-4)
    assert (config.data.chunks, config.compile, config.autoencoder.kl_weight) == (8, False, 0.5)
    assert config.transformer.architecture == {**recipe.transformer.architecture, "num_layers": 3}
    assert config.data.chunk_clips == recipe.data.chunk_clips and command.run_dir is None


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_can_be_said_on_the_command_line(recipe):
    assert parse(["--recipe", recipe]).config == RECIPES[recipe]()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--recipe nobody", "unknown recipe 'nobody'; choose one of debug_cpu"),
        ("", "--recipe is missing"),
        ("--recipe debug_cpu --optimizer.lr -1", "optimizer: lr must be above 0 and finite, got -1.0."),
        ("--recipe debug_cpu --batch-size 3", "batch_size 3 leaves no sample"),
        ("--recipe debug_cpu --steps two", "--steps: invalid literal"),
        ("--recipe debug_cpu --speed 3", "Unrecognized options: --speed"),
        ("--recipe debug_cpu --transformer.autoencoder nowhere", "checkpoint 'nowhere' is neither"),
        ("--recipe debug_cpu --warm-start nowhere", "checkpoint 'nowhere' is neither"),
        ("--recipe debug_cpu --parallel.shards 2", "shards must divide the 1 processes, got 2"),
        ("--recipe debug_cpu --device cuda:77", "device 'cuda:77' cannot be used here"),
        ("--recipe debug_cpu --minutes nan", "minutes must be above 0 and finite, got nan."),
        (
            "--recipe debug_cpu_autoencoder --warm-start mini",
            "warm_start must be a run or its folder warm/ in the stage",
        ),
        ("--recipe debug_cpu_decoder --warm-start mini", "warm_start must be a run or its folder warm/ in the stage"),
        ("--recipe finetune --aetherv1.objective.prediction flow", "watch.sheet_every must be 0 where aetherv1"),
    ],
)
def test_impossible_settings_give_one_plain_line_and_leave_nothing(options, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*options.split(), *(["--run-dir", str(tmp_path / "run")] if options else [])])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.startswith(f"error: {said}") and told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def refused(options, capsys):
    """What the command says when it ends with the code of impossible settings."""
    with pytest.raises(SystemExit) as stop:
        main(options)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_one_gpu_is_not_given_to_several_processes(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = refused(["--recipe", "debug_cpu", "--device", "cuda:1", "--run-dir", str(tmp_path)], capsys)
    assert told.startswith("error: device must be 'cuda' for 2 processes, got 'cuda:1'") and told.count("\n") == 1


def test_a_warm_start_of_another_architecture_is_told_in_one_line(tmp_path, capsys):
    told = refused(["--recipe", "debug_cpu", "--warm-start", "mini", "--run-dir", str(tmp_path)], capsys)
    assert told.startswith("error: ") and told.count("\n") == 1 and len(told) < 400


@pytest.mark.parametrize("name", ["debug_cpu_autoencoder", "debug_cpu_decoder"])
def test_a_warm_folder_is_a_beginning_for_the_stages_without_a_transformer(name, tmp_path):
    (tmp_path / "warm").mkdir()
    (tmp_path / "warm" / "warm.json").write_text("{}")
    check_command(replace(RECIPES[name](), warm_start=str(tmp_path)))


def test_what_a_run_cannot_read_is_one_line_and_what_breaks_in_it_is_a_traceback(tmp_path, capsys, monkeypatch):
    def broken(error):
        def train(config, run_dir):
            raise error

        monkeypatch.setattr("training.trainer.train", train)
        return ["--recipe", "debug_cpu", "--run-dir", str(tmp_path / "run")]

    assert (
        refused(broken(ValueError("clips.tar is torn;\n\tcopy it.")), capsys) == "error: clips.tar is torn; copy it.\n"
    )
    for error in (RuntimeError("out of memory"), KeyError("name")):
        with pytest.raises(type(error)):
            main(broken(error))


def test_help_names_every_setting_without_loading_pytorch():
    code = "import sys; from training.train import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.strip().endswith("False")
    for option in ("--recipe", "--run-dir", "--optimizer.lr", "--data.chunks", "--parallel.shards", "--max-bad-steps"):
        assert option in done.stdout
