"""Processes, started for real, that share a model: they learn what one learns, and read each other's checkpoints."""

import json
import multiprocessing
import os
import signal
import socket
import traceback
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from aether_env.world_model.conditions import INPUT_CHANNELS, STEP_POSITIONS, TARGET_CHANNELS, WINDOW
from aether_env.world_model.network import PROMPT_DIM, CleanPrediction, build_transformer
from training.checkpointing import OWN, Checkpoints, load_training_state, training_state
from training.config import OptimizerConfig
from training.optimizer import AveragedWeights, build_optimizers, step_unless
from training.parallelize import (
    Processes,
    average_gradients,
    average_tensor,
    check_shards,
    clip_gradients,
    join_processes,
    reshard,
    shard_model,
    whole_weights,
    within_shards,
)

ALONE = Processes(rank=0, world_size=1, device="cpu")
BATCH, STEPS = 4, 4
OPTIMIZER = OptimizerConfig(muon_lr=0.0, lr=1e-3, clip_norm=0.5)


@dataclass(frozen=True)
class Layout:
    """How a test trains."""

    shards: int = 1
    mini: bool = False
    activation_checkpointing: bool = False
    bf16: bool = False


class Training:
    """A tiny transformer, all that a run keeps of it, and its steps; the batch is shared out among the processes."""

    def __init__(self, layout, processes):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build_transformer(16, 24, num_attention_heads=1, num_layers=2, time_embed_dim=16)
        self.layout, self.processes, self.step = layout, processes, 0
        self.predict = CleanPrediction(model, torch.ones(1, 1, PROMPT_DIM), 12.0) if layout.mini else None
        self.model = shard_model(
            model, processes, layout.shards, layout.bf16, activation_checkpointing=layout.activation_checkpointing
        )
        self.parameters = list(self.model.parameters())
        self.optimizers = build_optimizers(self.model, OPTIMIZER)
        self.average = AveragedWeights(self.parameters, 0.9)
        self.loss_of = within_shards(self.model, self.mini_loss) if layout.mini else self.called_loss

    def mini_loss(self, x, target, level):
        past = self.predict.look(x[:, :-1], STEP_POSITIONS[:-1])
        new = self.predict(x[:, -1:], level, STEP_POSITIONS[-1:], past)
        whole = self.predict(x, level, STEP_POSITIONS)
        return ((new - target[:, -1:]) ** 2).mean() + ((whole - target) ** 2).mean()

    def called_loss(self, x, target, level):
        text = torch.ones(len(x), 1, PROMPT_DIM)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.layout.bf16):
            answer = self.model(x, text, (level * 1000).long(), return_dict=False)[0]
        return ((answer.float() - target) ** 2).mean()

    def batch(self):
        """This process's rows of the global batch of this step."""
        generator = torch.Generator().manual_seed(self.step)
        x = torch.randn(BATCH, WINDOW, INPUT_CHANNELS, 4, 6, generator=generator)
        target = torch.randn(BATCH, WINDOW, TARGET_CHANNELS, 4, 6, generator=generator)
        level = torch.rand(BATCH, generator=generator)
        share = BATCH // self.processes.world_size
        rows = slice(self.processes.rank * share, (self.processes.rank + 1) * share)
        return x[rows], target[rows], level[rows]

    def advance(self, steps):
        """Return (loss over the global batch, norm of its gradient) of each step."""
        records = []
        for _ in range(steps):
            loss = self.loss_of(*self.batch())
            loss.backward()
            average_gradients(self.parameters, self.processes)
            norm = clip_gradients(self.parameters, OPTIMIZER.clip_norm)
            bad = (~norm.isfinite()).float()
            step_unless(bad, self.optimizers)
            self.average.update(self.parameters, self.average.share(self.step), bad)
            for parameter in self.parameters:
                parameter.grad = None
            self.step += 1
            records.append((float(average_tensor(loss.detach().double(), self.processes)), float(norm)))
        return records

    def state(self):
        own = {"rank": self.processes.rank, "walk": torch.full((2,), float(self.processes.rank))}
        return {
            "training": training_state(self.model, self.optimizers),
            "average": self.average.average,
            "seconds": 1.5,
            OWN: own,
        }

    def resume(self, checkpoints, folder):
        """Go on from a checkpoint; returns what was this process's own."""
        self.step, state = checkpoints.load(folder, self.state())
        load_training_state(self.model, self.optimizers, state["training"])
        self.average.average = state["average"]
        return state.get(OWN)

    def loss(self):
        with torch.no_grad():
            return float(self.loss_of(*self.batch()))


LAYOUTS = {
    "replicated": Layout(),
    "sharded": Layout(shards=2),
    "mini": Layout(shards=2, mini=True),
    "mini_checkpointed": Layout(shards=2, mini=True, activation_checkpointing=True),
}
SHARDED = LAYOUTS["sharded"]


def two_processes(processes, folder):
    """All that two processes do here, one thing after the other; what each of them saw goes into seen_RANK.json."""
    seen = {name: Training(layout, processes).advance(STEPS) for name, layout in LAYOUTS.items()}
    half = Training(replace(SHARDED, bf16=True), processes)
    seen["bf16"] = half.advance(STEPS)
    seen["bf16_kept_in"] = sorted({str(p.dtype) for p in half.parameters})

    training = Training(SHARDED, processes)
    parts = [p.to_local().numel() for p in training.parameters]
    seen["local_share"] = sum(parts) / sum(p.numel() for p in training.parameters)
    checkpoints = Checkpoints(folder / "two", processes)
    training.advance(2)
    checkpoints.save(2, training.state())
    seen["after_save"] = training.advance(STEPS - 2)
    checkpoints.save(STEPS, training.state())
    checkpoints.wait()
    for name in ("two", "one"):
        resumed = Training(SHARDED, processes)
        seen[f"own_{name}"] = str(resumed.resume(checkpoints, folder / name / "step_00000002"))
        seen[f"resumed_{name}"] = resumed.advance(STEPS - 2)

    seen["whole"] = len(whole := whole_weights(training.model))
    if whole:
        save_file(whole, folder / "whole.safetensors")
    seen["swaps"] = [training.loss()]
    for _ in range(2):
        training.average.swap_with(training.parameters)
        reshard(training.model)
        seen["swaps"].append(training.loss())
    (folder / f"seen_{processes.rank}.json").write_text(json.dumps(seen))

    # Last, a save in which the second process is killed: its half is written, but not yet known to be on the disk.
    if processes.rank == 1:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    checkpoints.save(STEPS + 1, training.state())
    with pytest.raises(RuntimeError, match="step 5 could not be written"):
        checkpoints.wait()


def four_processes(processes, folder):
    seen = Training(LAYOUTS["mini"], processes).advance(2)
    (folder / f"seen_{processes.rank}.json").write_text(json.dumps(seen))


def child(rank, world_size, port, function, folder):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    try:
        function(join_processes("cpu"), folder)
    except BaseException:
        (folder / f"error_{rank}").write_text(traceback.format_exc())
        raise


def start(world_size, function, folder):
    """Run a function in processes of their own; return how each ended and what each saw."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # all imports once, instead of once a process
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        context.Process(target=child, args=(rank, world_size, port, function, folder)) for rank in range(world_size)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # CUDA does not outlive a fork
        for process in started:
            process.start()
    for process in started:
        process.join(100)
        process.kill()
        process.join()
    assert not (errors := [path.read_text() for path in folder.glob("error_*")]), errors[0]
    seen = [json.loads((folder / f"seen_{rank}.json").read_text()) for rank in range(world_size)]
    return [process.exitcode for process in started], seen


@pytest.fixture(scope="module")
def alone():
    """(loss, norm) of each step of one process, called as a whole and as `CleanPrediction` does."""
    return {mini: Training(Layout(mini=mini), ALONE).advance(STEPS) for mini in (False, True)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def two(folder):
    """How two processes ended and what they saw, after one process has left a checkpoint for them."""
    training, checkpoints = Training(Layout(), ALONE), Checkpoints(folder / "one", ALONE)
    training.advance(2)
    checkpoints.save(2, training.state())
    checkpoints.wait()
    return start(2, two_processes, folder)


def assert_same_curve(records, expected, relative=1e-6):
    np.testing.assert_allclose(records, expected, rtol=relative)


@pytest.mark.parametrize("name", LAYOUTS)
def test_two_processes_learn_what_one_learns_from_the_same_batches(two, alone, name):
    for seen in two[1]:
        assert_same_curve(seen[name], alone[LAYOUTS[name].mini])


def test_each_of_two_processes_holds_half_of_the_weights(two):
    assert [seen["local_share"] for seen in two[1]] == pytest.approx([0.5, 0.5], abs=0.01)


def test_in_bf16_the_curve_is_nearly_the_same_and_the_weights_stay_in_float32(two, alone):
    seen = two[1][0]
    assert_same_curve(seen["bf16"], alone[False], relative=0.01)
    assert seen["bf16"] != seen["sharded"] and seen["bf16_kept_in"] == ["torch.float32"]


def test_two_processes_go_on_from_their_own_checkpoint_to_the_last_bit(two):
    for rank, seen in enumerate(two[1]):
        assert seen["resumed_two"] == seen["after_save"] == seen["sharded"][2:]
        assert seen["own_two"] == str({"rank": rank, "walk": torch.full((2,), float(rank))})


def test_two_processes_go_on_from_the_checkpoint_of_one(two, alone):
    for seen in two[1]:
        assert_same_curve(seen["resumed_one"], alone[False][2:])
        assert seen["own_one"] == "None"  # of one process: not theirs


def test_one_process_goes_on_from_the_checkpoint_of_two(two, folder, alone):
    training, checkpoints = Training(Layout(), ALONE), Checkpoints(folder / "two", ALONE)
    assert training.resume(checkpoints, folder / "two" / "step_00000002") is None
    assert_same_curve(training.advance(STEPS - 2), alone[False][2:])


def test_the_weights_gathered_for_an_export_are_those_of_the_checkpoint(two, folder):
    training = Training(Layout(), ALONE)
    training.resume(Checkpoints(folder / "two", ALONE), folder / "two" / "step_00000004")
    gathered = load_file(folder / "whole.safetensors")
    weights = training.model.state_dict()
    assert gathered.keys() == weights.keys() and two[1][1]["whole"] == 0
    assert all(torch.equal(gathered[name], weights[name]) for name in weights)


def test_averaged_weights_can_be_tried_in_place_of_the_sharded_ones(two):
    before, averaged, after = two[1][0]["swaps"]
    assert before == after != averaged


def test_a_process_killed_during_a_save_leaves_the_checkpoint_before(two, folder):
    assert two[0] == [0, -signal.SIGKILL]
    checkpoints = Checkpoints(folder / "two", ALONE)
    assert checkpoints.newest() == folder / "two" / "step_00000004"
    assert sorted(path.name for path in (folder / "two").iterdir()) == ["step_00000002", "step_00000004"]


def test_two_replicas_of_two_shards_learn_what_one_process_learns(alone, tmp_path):
    exits, seen = start(4, four_processes, tmp_path)
    assert exits == [0, 0, 0, 0]
    for records in seen:
        assert_same_curve(records, alone[True][:2])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"shards": 3, "world_size": 8}, r"got 3; use one of \[1, 2, 4, 8\]"),
        ({"shards": 16, "world_size": 8}, "shards"),
        ({"shards": 0, "world_size": 8}, "shards"),
        ({"shards": 2, "world_size": 2, "muon_lr": 0.02}, "muon_lr=0.02"),
    ],
)
def test_impossible_shards_are_named(settings, named):
    with pytest.raises(ValueError, match=named):
        check_shards(**settings)


def test_autoencoders_are_not_sharded():
    with pytest.raises(ValueError, match="Linear; set shards to 1"):
        shard_model(torch.nn.Linear(2, 2), Processes(0, 2, "cpu"), shards=2)


def test_activation_checkpointing_alone_changes_nothing_that_is_learned(alone):
    training = Training(Layout(mini=True, activation_checkpointing=True), ALONE)
    assert training.advance(2) == alone[True][:2]
    assert "_checkpointed" in training.model.transformer_blocks[0].forward.__name__
