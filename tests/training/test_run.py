"""A run on a model of a few weights: bad steps, signals, resuming, two processes, beginning from warm weights."""

import json
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

import training.warm
from training.config import OptimizerConfig, ParallelConfig, TrainConfig, WatchConfig
from training.folder import check_folder, check_unclaimed, claimed, trim_log, write_config
from training.optimizer import AveragedWeights, rate_factor
from training.parallelize import Processes, join_processes, leave_processes
from training.run import BAD_STEPS_CODE, Run, RunStopped
from training.warm import read_warm, write_warm

CONFIG = TrainConfig(
    stage="autoencoder",
    optimizer=OptimizerConfig(lr=0.05, warmup_steps=1),
    watch=WatchConfig(tensorboard=False),
    batch_size=4,
    steps=8,
    save_every=3,
    log_every=2,
    max_bad_steps=3,
)


class Toy(nn.Module):
    """Two matrices, one of which is Muon's."""

    def __init__(self, width=3):
        super().__init__()
        self.block = nn.ModuleDict({"ff": nn.Linear(width, width)})
        self.out = nn.Linear(width, 2)

    def forward(self, x):
        return self.out(torch.relu(self.block["ff"](x)))


ALONE = Processes(0, 1, "cpu")


def toy_run(folder, config=CONFIG, processes=ALONE):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Run(config, folder, Toy(), processes)


def toy_steps(run, bad=(), seen=None, when=lambda step: None):
    """Return `advance`: steps numbered from 1, of which `bad` have a spoiled loss."""

    def advance(progress):
        when(run.step + 1)
        loss = (run.model(torch.randn(4, 3, generator=run.generator())) - 1).square().mean()
        if run.step + 1 in bad:
            loss = loss * float("nan")
        record = {"loss": loss.detach(), "grad_norm": run.descend(loss, progress)}
        if seen is not None:
            seen.append(everything(run))
        return record

    return advance


def everything(run):
    """Weights, optimizers' state and averaged weights."""
    states = [value for optimizer in run.optimizers for state in optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in (*run.parameters, *states, *run.average.average)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder):
    return [(line["step"], line["loss"]) for line in lines(folder)]


def test_a_bad_step_changes_nothing_and_is_counted(tmp_path):
    run, seen = toy_run(tmp_path), []
    assert len(run.optimizers) == 2
    run.loop(toy_steps(run, bad={1, 4, 5}, seen=seen))
    assert same(seen[3], seen[2]) and same(seen[4], seen[2])
    assert not same(seen[1], seen[0]) and not same(seen[5], seen[4])
    assert all(torch.isfinite(tensor).all() for tensor in seen[-1])
    told = [(line["step"], line["loss"], line["bad"], line["skipped"]) for line in lines(tmp_path) if "bad" in line]
    assert told == [(step, None, ["loss", "grad_norm"], i + 1) for i, step in enumerate((1, 4, 5))]


def test_a_gradient_that_is_not_finite_is_bad_though_the_loss_is(tmp_path):
    run = toy_run(tmp_path)
    before = everything(run)
    run.descend(run.model(torch.zeros(1, 3)).sum().mul(0).abs().sqrt(), 0.0)  # the slope of sqrt at 0
    assert run.bad == 1 and same(everything(run), before)


def test_a_run_of_bad_steps_stops_with_a_report(tmp_path):
    run = toy_run(tmp_path)
    with pytest.raises(RunStopped, match="3 steps in a row") as stop:
        run.loop(toy_steps(run, bad={1, 2, 5, 6, 7}))  # two in a row are not yet three
    assert stop.value.code == BAD_STEPS_CODE
    report = json.loads((tmp_path / "stopped.json").read_text())
    assert (report["step"], report["bad_steps_of_the_run"]) == (7, 5)
    # Step 6 was bad, so it was not saved.
    assert report["last_good_checkpoint"] == "step_00000003" and report["bad_parts"] == ["grad_norm", "loss"]
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_00000003"]
    assert lines(tmp_path)[-1]["step"] == 7


@pytest.mark.parametrize("bad", [(), (5, 6)])
def test_a_run_stopped_by_a_signal_is_saved_and_goes_on_to_the_last_bit(tmp_path, bad):
    whole = toy_run(tmp_path / "whole")
    whole.loop(toy_steps(whole, bad))
    first = toy_run(tmp_path / "cut")
    with pytest.raises(RunStopped, match="SIGTERM after step 5") as stop:
        first.loop(toy_steps(first, bad, when=lambda step: step == 5 and os.kill(os.getpid(), signal.SIGTERM)))
    assert stop.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    second = toy_run(tmp_path / "cut")
    assert second.step == 5
    second.loop(toy_steps(second, bad))
    assert same(everything(second), everything(whole))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert (second.skipped, whole.skipped) == (len(bad), len(bad))


def test_a_run_goes_on_from_the_checkpoint_before_where_the_newest_is_torn(tmp_path, caplog):
    whole = toy_run(tmp_path / "whole")
    whole.loop(toy_steps(whole))
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    torn = next((cut / "step_00000008").glob("*.safetensors"))
    torn.write_bytes(torn.read_bytes()[:-4])
    again = toy_run(cut)
    assert again.step == 6 and "step_00000008 is not a whole checkpoint" in caplog.text
    assert (cut / "torn_step_00000008").is_dir() and not (cut / "step_00000008").exists()
    again.loop(toy_steps(again))
    assert losses(cut) == losses(tmp_path / "whole") and same(again.parameters, whole.parameters)


def test_a_run_whose_checkpoints_are_all_torn_says_so_and_leaves_them(tmp_path):
    run = toy_run(tmp_path)
    run.loop(toy_steps(run))
    for torn in tmp_path.glob("step_*/state.json"):
        torn.write_text("{")
    with pytest.raises(ValueError, match="step_00000008 is not a whole checkpoint"):
        toy_run(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*step_*")) == ["step_00000006", "step_00000008"]


def test_a_folder_belongs_to_one_training_at_a_time(tmp_path):
    with claimed(tmp_path):
        with pytest.raises(ValueError, match="another process trains in"), claimed(tmp_path):
            pass
        with pytest.raises(ValueError, match="another process trains in"):
            check_unclaimed(tmp_path)
    assert not list(tmp_path.iterdir())
    with claimed(tmp_path):
        pass


def test_processes_may_change_and_the_samples_of_a_step_may_not(tmp_path):
    run = toy_run(tmp_path, replace(CONFIG, steps=1))
    run.loop(toy_steps(run))
    write_config(CONFIG, tmp_path, world_size=2)
    check_folder(replace(CONFIG, parallel=ParallelConfig(shards=2)), tmp_path, world_size=2)
    check_folder(replace(CONFIG, batch_size=8), tmp_path, world_size=1)
    for batch_size, world_size in ((4, 1), (8, 2), (2, 3)):
        with pytest.raises(ValueError, match=f"8 samples a step, got batch_size {batch_size} on {world_size}"):
            check_folder(replace(CONFIG, batch_size=batch_size), tmp_path, world_size)


def test_every_step_is_in_the_log_before_a_checkpoint_holds_it(tmp_path):
    run = toy_run(tmp_path, replace(CONFIG, log_every=100, steps=4))
    save, told = run.checkpoints.save, []
    run.checkpoints.save = lambda step, state: (told.append((step, len(lines(tmp_path)))), save(step, state))
    run.loop(toy_steps(run))
    assert told == [(3, 3), (4, 4)]


def test_lines_of_lost_steps_and_a_torn_last_line_go(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n{"step": 3, "loss": 0.4}\n{"step": 2, "lo')
    trim_log(log, 2)
    assert log.read_text() == '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n'


def test_a_run_ends_by_the_clock_where_minutes_are_set(tmp_path):
    run = toy_run(tmp_path, replace(CONFIG, minutes=1e-9))
    run.loop(toy_steps(run))
    assert run.step == 0 and (tmp_path / "step_00000000").is_dir()


def test_both_sets_of_warm_weights_go_on(tmp_path):
    first = toy_run(tmp_path / "first")
    first.loop(toy_steps(first))
    assert not same(first.parameters, first.average.average)
    second = toy_run(tmp_path / "second", replace(CONFIG, warm_start=str(tmp_path / "first"), seed=1))
    assert second.step == 0
    for mine, given in ((second.parameters, first.parameters), (second.average.average, first.average.average)):
        assert same(mine, [tensor.detach().bfloat16().float() for tensor in given])
    # The average is as old as it was: it keeps (1 + 8) / (10 + 8) of itself, where a new one keeps a tenth.
    before = second.average.average[0].clone()
    toy_steps(second)(0.0)
    torch.testing.assert_close(second.average.average[0], 0.5 * before + 0.5 * second.parameters[0].detach())


def test_a_warm_run_that_is_cut_off_goes_on_from_its_own_checkpoint(tmp_path):
    first = toy_run(tmp_path / "first")
    first.loop(toy_steps(first))
    config = replace(CONFIG, warm_start=str(tmp_path / "first" / "warm"))
    second = toy_run(tmp_path / "second", config)
    second.loop(toy_steps(second))
    third = toy_run(tmp_path / "second", config)
    assert third.step == 8 and third.average.head_start == 8 and same(third.parameters, second.parameters)


def test_warm_weights_come_in_small_pieces_and_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(training.warm, "MAX_FILE_BYTES", 2000)
    monkeypatch.setattr(training.warm, "_HEADER_BYTES", 1000)
    weights = {name: torch.arange(float(size)).bfloat16() for name, size in (("a", 100), ("b", 1700), ("c", 3))}
    weights |= {"d": torch.full((5, 7), 0.5).bfloat16(), "e": torch.tensor(2.0).bfloat16()}
    ema = {name: -tensor for name, tensor in weights.items()}
    write_warm(tmp_path / "warm", 7, weights, ema)
    files = list((tmp_path / "warm").glob("*.safetensors"))
    assert len(files) > 6 and max(file.stat().st_size for file in files) <= 2000
    step, raw, averaged = read_warm(tmp_path / "warm")
    assert step == 7
    for read, given in ((raw, weights), (averaged, ema)):
        assert read.keys() == given.keys() and all(torch.equal(read[name], given[name]) for name in given)
    files[0].write_bytes(b"no")
    with pytest.raises(ValueError, match="not a whole warm folder"):
        read_warm(tmp_path / "warm")


def test_warm_weights_of_another_model_are_refused(tmp_path):
    first = toy_run(tmp_path / "first", replace(CONFIG, steps=1))
    first.loop(toy_steps(first))
    with pytest.raises(ValueError, match="another model.*block.ff"):
        Run(replace(CONFIG, warm_start=str(tmp_path / "first")), tmp_path / "second", Toy(5), ALONE)


def test_onecycle_is_the_schedule_of_pytorch():
    steps, config = 2000, OptimizerConfig(schedule="onecycle", lr=1.0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = OneCycleLR(optimizer, max_lr=1.0, total_steps=steps)
    for step in range(steps):
        wanted = optimizer.param_groups[0]["lr"]
        assert rate_factor(step / steps, step, config) == pytest.approx(wanted, abs=2e-3)
        optimizer.step()
        schedule.step() if step < steps - 1 else None
    assert rate_factor(1.0, steps, config) == pytest.approx(1 / 250_000)


def test_the_average_of_weights_swaps_to_the_bit():
    weights = [nn.Parameter(torch.tensor([0.1, 0.7]))]
    average = AveragedWeights(weights, 0.9)
    with torch.no_grad():
        weights[0].mul_(3)
    before = [weights[0].detach().clone(), average.average[0].clone()]
    average.swap_with(weights)
    assert torch.equal(weights[0], before[1]) and torch.equal(average.average[0], before[0])
    average.swap_with(weights)
    assert torch.equal(weights[0], before[0]) and torch.equal(average.average[0], before[1])


def test_two_processes_skip_a_step_that_is_bad_for_one_of_them(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.trainer"])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = [
        context.Process(
            target=runpy.run_path,
            args=(__file__,),
            kwargs={"run_name": "child", "init_globals": {"RANK": rank, "PORT": port, "FOLDER": tmp_path}},
        )
        for rank in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert [line["step"] for line in lines(tmp_path) if "bad" in line] == [2]
    weights = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert same(*weights)


def child():
    rank, folder = globals()["RANK"], globals()["FOLDER"]
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(globals()["PORT"]),
    }
    processes = join_processes("cpu")
    run, seen = toy_run(folder, replace(CONFIG, steps=4), processes), []
    run.loop(toy_steps(run, bad={2} if rank == 1 else set(), seen=seen))
    assert same(seen[1], seen[0]) and not same(seen[2], seen[1])
    torch.save(everything(run), folder / f"{rank}.pt")
    leave_processes(processes)


if __name__ == "child":
    child()
