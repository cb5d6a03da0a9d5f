"""Steps that are recorded as CUDA graphs are the steps of the run."""

import json
from dataclasses import replace

import pytest
import torch

from training.config import TrainConfig
from training.recipes import RECIPES, debug_cpu
from training.recorded import WARM_UP, Recorded
from training.trainer import train

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a recording is of a GPU")


def log_of(run_dir):
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


@on_gpu
def test_a_recorded_run_has_the_losses_of_one_that_is_not(tmp_path):
    logs = {}
    for recorded in (False, True):
        transformer = replace(debug_cpu().transformer, walker_start=0.4, walker_every=1)
        config = replace(
            debug_cpu(), transformer=transformer, watch=replace(debug_cpu().watch, sheet_every=0), device="cuda",
            threads=0, cuda_graphs=recorded,
        )  # fmt: skip
        train(config, tmp_path / str(recorded))
        logs[recorded] = log_of(tmp_path / str(recorded))
    assert len(logs[True]) == config.steps > 4 * WARM_UP
    for plain, line in zip(logs[False], logs[True], strict=True):
        assert line["loss"] == pytest.approx(plain["loss"], rel=2e-2)
        assert line["grad_norm"] == pytest.approx(plain["grad_norm"], rel=0.1)


@on_gpu
def test_every_replay_draws_anew_and_reads_what_was_changed():
    generator, shift = torch.Generator("cuda"), torch.zeros(1, device="cuda")
    draw = Recorded(lambda: torch.rand(4, generator=generator, device="cuda") + shift, generator)
    for call in range(3 * WARM_UP):
        shift.fill_(call)
        generator.manual_seed(call)
        wanted = torch.rand(4, generator=torch.Generator("cuda").manual_seed(call), device="cuda") + call
        assert torch.equal(draw(), wanted)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"stage": "autoencoder"}, "stage must be 'transformer'"),
        ({"device": "cpu"}, "device must be 'cuda'"),
        ({"stage2": True}, "transformer.stage2 must be False"),
        ({"shards": 2}, "parallel.shards must be 1"),
    ],
)
def test_what_cannot_be_recorded_is_refused(change, name):
    one = RECIPES["mini_1gpu"]()
    change = dict(change)
    stage2, shards = change.pop("stage2", False), change.pop("shards", 1)
    with pytest.raises(ValueError, match=name):
        replace(
            one, **{"cuda_graphs": True, "watch": replace(one.watch, sheet_every=0), **change},
            transformer=replace(one.transformer, stage2=stage2), parallel=replace(one.parallel, shards=shards),
        )  # fmt: skip


def test_recipes_record_where_it_helps():
    recorded = {name for name, recipe in RECIPES.items() if isinstance(recipe(), TrainConfig) and recipe().cuda_graphs}
    assert recorded == {"mini_1gpu", "mini_4gpu", "mini_finetune"}
