"""Checkpoints: what is written loads again; what is damaged, foreign or dangerous is refused by name."""

import json
import pickle
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from aether_env.world_model.checkpoint import (
    PROMPT_FILE,
    SETTINGS_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    Settings,
    load_checkpoint,
    pack_weights,
    resolve,
    save_checkpoint,
    unpack_weights,
)
from tests.tiny import tiny_components


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "copy")


def test_a_checkpoint_without_int8_comes_back_as_float16_rounds_it(tmp_path):
    parts = tiny_components()
    save_checkpoint(parts, tmp_path / "fp16", transformer_int8=False)
    loaded = load_checkpoint(tmp_path / "fp16")
    assert loaded.settings == parts.settings
    for name, tensor in parts.transformer.state_dict().items():
        torch.testing.assert_close(loaded.transformer.state_dict()[name], tensor.half().float(), atol=0, rtol=0)
    assert not any(p.name.startswith(".") for p in tmp_path.iterdir())


def test_int8_rows_are_off_by_at_most_half_a_level():
    matrix = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 3, 7)[:, None]
    packed = pack_weights({"w": matrix, "b": torch.ones(3)}, int8=True)
    assert packed["w"].dtype == torch.int8 and packed["b"].dtype == torch.float16
    error = (unpack_weights(packed)["w"] - matrix).abs()
    assert (error <= 0.5001 * matrix.abs().amax(dim=1, keepdim=True) / 127).all()


def test_an_int8_checkpoint_is_about_half_the_size_of_float16(tmp_path):
    parts = tiny_components()
    for int8 in (True, False):
        save_checkpoint(parts, tmp_path / str(int8), transformer_int8=int8)
    small, large = ((tmp_path / n / "transformer" / WEIGHTS_FILE).stat().st_size for n in ("True", "False"))
    assert small < 0.75 * large


def test_saving_over_a_checkpoint_replaces_it(folder):
    (folder / "stray").write_text("old")
    save_checkpoint(tiny_components(), folder)
    assert not (folder / "stray").exists()
    load_checkpoint(folder)


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(CheckpointError, match="'nonsense' is neither a bundled one"):
        resolve("nonsense")


@pytest.mark.parametrize(
    "part",
    [SETTINGS_FILE, PROMPT_FILE, f"vae/{WEIGHTS_FILE}", "transformer/config.json", "scheduler/scheduler_config.json"],
)
def test_a_missing_file_is_named(folder, part):
    (folder / part).unlink()
    with pytest.raises(CheckpointError, match=part.replace("/", ".")):
        load_checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -50])
def test_truncated_weights_are_refused(folder, keep):
    path = folder / "vae" / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated|damaged|no safetensors"):
        load_checkpoint(folder)


def test_a_pickle_in_place_of_weights_is_never_opened(folder):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was opened",))

    (folder / "transformer" / WEIGHTS_FILE).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="pickle.*safetensors"):
        load_checkpoint(folder)


def test_a_torch_zip_in_place_of_weights_is_never_opened(folder):
    torch.save({"a": torch.ones(1)}, folder / "transformer" / WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match="pickle"):
        load_checkpoint(folder)


def test_a_header_that_lies_about_its_size_is_refused_before_it_is_read(folder):
    path = folder / "vae" / WEIGHTS_FILE
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])
    with pytest.raises(CheckpointError, match="truncated"):
        load_checkpoint(folder)


def test_weights_of_another_size_are_named(folder):
    path = folder / "vae" / WEIGHTS_FILE
    state = load_file(path)
    state["frame_in.weight"] = state["frame_in.weight"][:3].contiguous()
    save_file(state, path)
    with pytest.raises(CheckpointError, match="frame_in.weight"):
        load_checkpoint(folder)


def test_int8_without_scales_is_refused(folder):
    path = folder / "transformer" / WEIGHTS_FILE
    save_file({k: v for k, v in load_file(path).items() if not k.endswith(".scale")}, path)
    with pytest.raises(CheckpointError, match="scales"):
        load_checkpoint(folder)


def test_only_known_classes_are_built(folder):
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "os.system"}))
    with pytest.raises(CheckpointError, match="os.system"):
        load_checkpoint(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"height": 15}', '{"surprise": 1}', '{"step_sigmas": [0.5]}', "\x00"])
def test_bad_settings_are_refused_with_the_files_name(folder, text):
    (folder / SETTINGS_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=SETTINGS_FILE):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "bad", [{"height": 60}, {"fps": 0}, {"headroom": float("nan")}, {"history_noise": 1.0}, {"clip_sigmas": (1.0, 1.0)}]
)
def test_impossible_settings_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Settings(**bad)
