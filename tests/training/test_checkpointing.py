"""Checkpoints of one process: whole or not there, and nothing is lost. Those of two are in test_parallelize.py."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from training.checkpointing import OWN, Checkpoints, load_training_state, rng_for, training_state
from training.parallelize import Processes

ALONE = Processes(rank=0, world_size=1, device="cpu")


def value(number):
    return torch.full((2, 3), float(number))


def saved(folder, *numbers, **kwargs):
    """Save one step a number, each holding that number."""
    checkpoints = Checkpoints(folder, ALONE, **kwargs)
    for number in numbers:
        checkpoints.save(number, {"a": value(number)})
    checkpoints.wait()
    return checkpoints


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back(tmp_path):
    counter = torch.tensor(7)
    state = {
        "nested": [{"b": value(2), 5: "five"}, 1.5, None, [], {}],
        "shared": [counter, counter, value(1)[:, :1]],
        "kinds": {str(d): torch.ones(3, dtype=d) for d in (torch.bfloat16, torch.int64, torch.bool, torch.float64)},
        "empty": torch.zeros(0, 4),
        OWN: {"place": [3, "shard-07"], "walk": value(4)},
    }
    checkpoints = Checkpoints(tmp_path, ALONE)
    checkpoints.save(12, state)
    step, back = checkpoints.load(checkpoints.newest(), dict.fromkeys(state))
    assert step == 12 and str(back) == str(state)
    assert back["kinds"]["torch.bfloat16"].dtype == torch.bfloat16


def test_only_what_is_asked_for_is_read_and_tensors_are_filled_in_place(tmp_path):
    checkpoints = Checkpoints(tmp_path, ALONE)
    picture = torch.rand(2, 4, 3, 3).to(memory_format=torch.channels_last)
    checkpoints.save(1, {"model": {"w": picture, "n": 3}, "average": value(2), OWN: 1})
    template = {"model": {"w": torch.zeros(2, 4, 3, 3).to(memory_format=torch.channels_last)}}
    _, back = checkpoints.load(checkpoints.newest(), template)
    assert back.keys() == {"model"} and back["model"]["n"] == 3
    assert torch.equal(template["model"]["w"], picture)
    assert back["model"]["w"].data_ptr() == template["model"]["w"].data_ptr()


def test_a_state_may_change_as_soon_as_save_returns(tmp_path):
    checkpoints, a = Checkpoints(tmp_path, ALONE), torch.zeros(1000, 1000)
    checkpoints.save(1, {"a": a})
    a.fill_(9)
    assert float(checkpoints.load(checkpoints.newest(), {"a": None})[1]["a"].abs().max()) == 0


def test_a_checkpoint_holds_safetensors_and_json_alone(tmp_path):
    saved(tmp_path, 3)
    files = list((tmp_path / "step_00000003").iterdir())
    assert sorted(path.suffix for path in files) == [".json", ".json", ".safetensors"]
    tensors = [load_file(path) for path in files if path.suffix == ".safetensors"]
    assert tensors[0]["/a"].tolist() == value(3).tolist()
    assert json.loads((tmp_path / "step_00000003" / "state.json").read_text())["step"] == 3


def test_the_newest_ones_stay(tmp_path):
    checkpoints = saved(tmp_path, 1, 2, 10, keep=2)
    assert names(tmp_path) == ["step_00000002", "step_00000010"]
    assert checkpoints.newest().name == "step_00000010"


def test_a_step_saved_again_replaces_the_first(tmp_path):
    saved(tmp_path, 1)
    again = Checkpoints(tmp_path, ALONE)
    again.save(1, {"a": value(5)})
    assert again.load(again.newest(), {"a": None})[1]["a"].tolist() == value(5).tolist()
    assert names(tmp_path) == ["step_00000001"]


def test_what_was_loaded_is_not_written_again(tmp_path):
    saved(tmp_path, 1)
    again = Checkpoints(tmp_path, ALONE)
    again.load(again.newest(), {"a": None})
    again.save(1, {"a": value(5)})
    assert again.load(again.newest(), {"a": None})[1]["a"].tolist() == value(1).tolist()


@pytest.mark.parametrize(("place", "kept"), [((Path, "rename"), 1), ((shutil, "rmtree"), 5)])
def test_a_kill_while_a_checkpoint_is_replaced_leaves_the_old_or_the_new_one(tmp_path, monkeypatch, place, kept):
    saved(tmp_path, 1)
    again, true = Checkpoints(tmp_path, ALONE), getattr(*place)

    def killed(path, *arguments, **keywords):
        if path.name.startswith("."):  # the new one on its way to its name, or the old one on its way out
            raise RuntimeError("killed")
        return true(path, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(*place, killed)
        again.save(1, {"a": value(5)})
        with pytest.raises(RuntimeError, match="killed"):
            again.wait()
    assert len(names(tmp_path)) == 2
    after = Checkpoints(tmp_path, ALONE)
    assert names(tmp_path) == ["step_00000001"]
    assert after.load(after.newest(), {"a": None})[1]["a"].tolist() == value(kept).tolist()


def test_a_checkpoint_whose_removal_was_cut_off_does_not_come_back(tmp_path, monkeypatch):
    saved(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path, ALONE, keep=1)

    def killed(path, **_):
        if path.exists():
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        checkpoints.save(2, {"a": value(2)})
        with pytest.raises(RuntimeError, match="killed"):
            checkpoints.wait()
    assert len(names(tmp_path)) == 2
    Checkpoints(tmp_path, ALONE)
    assert names(tmp_path) == ["step_00000002"]


def test_every_step_of_every_rank_draws_its_own_numbers():
    triples = [(seed, step, rank) for seed in (0, 1) for step in range(3) for rank in range(1500)]
    seeds = {rng_for(*triple, "cpu").initial_seed() for triple in triples}
    assert len(seeds) == len(triples) and 0 <= min(seeds) and max(seeds) < 1 << 62


def test_a_half_written_checkpoint_is_never_picked_up_and_goes(tmp_path):
    saved(tmp_path, 1)
    half = tmp_path / ".step_00000009"
    half.mkdir()
    (half / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"half")
    checkpoints = Checkpoints(tmp_path, ALONE)
    assert checkpoints.newest().name == "step_00000001"
    assert names(tmp_path) == ["step_00000001"]


def test_a_save_that_fails_is_told_and_leaves_the_one_before(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, 1)

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    checkpoints.save(2, {"a": value(2)})
    with pytest.raises(RuntimeError, match=r"step 2 could not be written \(process 0: no space left"):
        checkpoints.wait()
    assert checkpoints.newest().name == "step_00000001"


def cut(folder):
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-4])


def garble(folder):
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(b"\xff" * path.stat().st_size)


def lose(folder):
    next(folder.glob("*.safetensors")).unlink()


def forget(folder):
    (folder / "state.json").write_text("{")


@pytest.mark.parametrize("damage", [cut, garble, lose, forget])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    checkpoints = saved(tmp_path, 1)
    damage(tmp_path / "step_00000001")
    with pytest.raises(ValueError, match="step_00000001 is not a whole checkpoint"):
        checkpoints.load(checkpoints.newest(), {"a": None})


@pytest.mark.parametrize(("wanted", "named"), [({"a": torch.zeros(3, 3)}, "/a is"), ({"b": torch.zeros(1)}, "no /b")])
def test_a_checkpoint_of_another_model_is_refused(tmp_path, wanted, named):
    checkpoints = saved(tmp_path, 1)
    with pytest.raises(ValueError, match=f"step_00000001.*{named}"):
        checkpoints.load(checkpoints.newest(), wanted)


def test_what_is_no_json_and_no_tensor_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="set"):
        Checkpoints(tmp_path, ALONE).save(1, {"a": {1, 2}})
    assert names(tmp_path) == []


def descend(model, optimizers, steps):
    for _ in range(steps):
        model(torch.ones(1, 3)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim == 1]
    return model, [torch.optim.AdamW(rest, lr=0.01), torch.optim.Muon(matrices, lr=0.01)]


def test_a_model_and_its_optimizers_go_on_to_the_last_bit(tmp_path):
    model, optimizers = build()
    checkpoints = Checkpoints(tmp_path, ALONE)
    descend(model, optimizers, 2)
    optimizers[0].param_groups[0]["lr"] = 0.005
    checkpoints.save(2, training_state(model, optimizers))
    descend(model, optimizers, 3)

    resumed, again = build()
    _, state = checkpoints.load(checkpoints.newest(), training_state(resumed, again))
    load_training_state(resumed, again, state)
    assert again[0].param_groups[0]["lr"] == 0.005
    descend(resumed, again, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


def test_at_least_one_checkpoint_is_kept(tmp_path):
    with pytest.raises(ValueError, match="keep"):
        Checkpoints(tmp_path, ALONE, keep=0)
