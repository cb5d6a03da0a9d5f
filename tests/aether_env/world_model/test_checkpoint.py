"""Checkpoints: what is written loads again; what is damaged, foreign or dangerous is refused by name."""

import json
import pickle
import re
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from aether_env.world_model.checkpoint import (
    BUNDLED,
    PROMPT_FILE,
    SETTINGS_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    Settings,
    load_checkpoint,
    pack_weights,
    read_weights,
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


def test_a_checkpoint_says_whether_its_steps_are_shown_a_guess_and_an_older_one_does_not_want_it(tmp_path):
    parts = tiny_components()
    parts.settings = replace(parts.settings, step_guess=True)
    save_checkpoint(parts, tmp_path / "guesses")
    assert load_checkpoint(tmp_path / "guesses").settings == parts.settings
    settings = json.loads((tmp_path / "guesses" / SETTINGS_FILE).read_text())
    assert settings.pop("step_guess") is True
    (tmp_path / "guesses" / SETTINGS_FILE).write_text(json.dumps(settings))
    assert load_checkpoint(tmp_path / "guesses").settings.step_guess is False


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


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("fails", ["old aside", "new in"])
def test_a_save_that_fails_at_a_rename_leaves_the_old_checkpoint(folder, monkeypatch, fails):
    before, rename = files_of(folder), Path.rename

    def broken(self, target):
        if self.name == {"old aside": folder.name, "new in": "new"}[fails]:
            raise OSError("the disk is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    parts = tiny_components()
    parts.settings = replace(parts.settings, fps=7.0)
    with pytest.raises(OSError, match="the disk is gone"):
        save_checkpoint(parts, folder)
    assert files_of(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_checkpoint_that_is_too_large_does_not_replace_a_smaller_one(folder):
    before = files_of(folder)
    size = sum(map(len, before.values()))
    with pytest.raises(ValueError, match=rf"more than the {size - 1} allowed"):
        save_checkpoint(tiny_components(), folder, max_bytes=size - 1)
    assert files_of(folder) == before and [p.name for p in folder.parent.iterdir()] == [folder.name]
    save_checkpoint(tiny_components(), folder, max_bytes=size)


def test_a_file_is_not_replaced_by_a_checkpoint(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ValueError, match="notes"):
        save_checkpoint(tiny_components(), tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "mine"


def test_shipping_refuses_what_is_too_large_and_keeps_what_was_shipped(tiny_checkpoint, tmp_path, monkeypatch):
    from training import ship
    from training.trainer import EXPORT

    shutil.copytree(tiny_checkpoint, tmp_path / "run" / EXPORT)
    ship.main(tmp_path / "run", tmp_path / "out", step_sigmas=(1.0,))
    shipped = files_of(tmp_path / "out")
    assert load_checkpoint(tmp_path / "out").settings.step_sigmas == (1.0,)
    monkeypatch.setattr(ship, "MAX_BYTES", 10_000)
    with pytest.raises(SystemExit, match="more than the 10000 allowed"):
        ship.main(tmp_path / "run", tmp_path / "out")
    assert files_of(tmp_path / "out") == shipped


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(CheckpointError, match="'nonsense' is neither a bundled one"):
        resolve("nonsense")


# --- hub ids, without a network


@pytest.fixture
def hub(tiny_checkpoint, monkeypatch):
    """A hub that has the tiny checkpoint as "someone/tiny", and tells what it was asked for."""
    asked = []

    def snapshot_download(repo_id, **given):
        asked.append({"repo_id": repo_id} | given)
        return str(tiny_checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_hub_id_is_fetched_without_anything_but_json_and_safetensors(hub, tiny_checkpoint):
    assert resolve("someone/tiny", revision="v1.0") == tiny_checkpoint
    assert hub[0]["repo_id"] == "someone/tiny" and hub[0]["revision"] == "v1.0"
    assert hub[0]["allow_patterns"] == ["*.json", "*.safetensors"]
    assert load_checkpoint("someone/tiny").settings == tiny_components().settings


def test_the_patterns_let_through_every_file_of_a_checkpoint_and_no_pickle(hub, tiny_checkpoint):
    resolve("someone/tiny")
    files = [path.relative_to(tiny_checkpoint).as_posix() for path in tiny_checkpoint.rglob("*") if path.is_file()]
    files += ["transformer/pytorch_model.bin", "vae/model.ckpt", "run.py", "picture.png"]
    fetched = list(filter_repo_objects(files, allow_patterns=hub[0]["allow_patterns"]))
    assert fetched == files[:-4]


ANSWER = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    "error",
    [
        RepositoryNotFoundError("404: no such repository", response=ANSWER),
        RevisionNotFoundError("404: no such revision", response=ANSWER),
        GatedRepoError("403: its terms were not accepted", response=ANSWER),
        HFValidationError("a repository is not called like this"),
        OfflineModeIsEnabled("HF_HUB_OFFLINE is set"),
        LocalEntryNotFoundError("not in the cache, and there is no network"),
        ConnectionError("refused"),
        TimeoutError("too slow"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_hub_refuses_is_named_with_its_reason(monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    message = f"'someone/else' is no folder here, and could not be fetched from the hub: {error}"
    with pytest.raises(CheckpointError, match=message):
        resolve("someone/else")


def test_a_folder_goes_before_a_hub_id_of_the_same_name(hub, folder, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    name = folder.relative_to(folder.parent.parent)
    assert resolve(str(name)) == name and hub == []
    with pytest.raises(CheckpointError, match="revision must be left out for the folder"):
        resolve(str(name), revision="main")


def test_only_a_plain_name_is_a_bundled_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "mini").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("mini") == BUNDLED / "mini"
    assert resolve("./mini") == Path("mini") == resolve(Path("mini"))
    assert resolve(".") == Path(".")
    for name in ("", "mini/transformer/../nothing"):
        with pytest.raises(CheckpointError, match="neither a bundled one"):
            resolve(name)


def test_a_revision_of_a_bundled_checkpoint_is_refused(hub):
    with pytest.raises(CheckpointError, match="revision must be left out for the folder .*mini"):
        resolve("mini", revision="main")


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "../someone/tiny", "/no/such/folder", "someone/", "some one/tiny"])
def test_names_that_are_no_hub_ids_are_not_asked_for(hub, name):
    with pytest.raises(CheckpointError, match="neither a bundled one .* nor a folder nor a hub id"):
        resolve(name)
    assert hub == []


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


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 0x4B50])
def test_a_header_whose_length_begins_like_a_pickle_is_still_read(tmp_path, length):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.arange(3.0)}, path, metadata={"pad": ""})
    short = struct.unpack("<Q", path.read_bytes()[:8])[0]
    header = path.read_bytes()[8 : 8 + short].rstrip().replace(b'"pad":""', b'"pad":"%s"' % (b"x" * (length - short)))
    path.write_bytes(struct.pack("<Q", length) + header.ljust(length) + path.read_bytes()[8 + short :])
    assert path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")
    assert read_weights(path)["a"].tolist() == [0.0, 1.0, 2.0]


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


@pytest.mark.parametrize(
    "change",
    [
        lambda scale: scale[:, 0].contiguous(),
        lambda scale: scale.expand(-1, 2).contiguous(),
        lambda scale: scale[:1].contiguous(),
        lambda scale: scale.to(torch.int32),
        lambda scale: scale * float("nan"),
    ],
)
def test_scales_that_are_not_one_float_a_row_are_refused(folder, change):
    path = folder / "transformer" / WEIGHTS_FILE
    state = load_file(path)
    state["proj_out.weight.scale"] = change(state["proj_out.weight.scale"])
    save_file(state, path)
    with pytest.raises(CheckpointError, match=rf"transformer.{WEIGHTS_FILE}.*proj_out.weight.scale"):
        load_checkpoint(folder)


def test_int8_that_is_no_matrix_is_refused(folder):
    path = folder / "vae" / WEIGHTS_FILE
    save_file(load_file(path) | {"frame_in.bias": torch.ones(8, dtype=torch.int8)}, path)
    with pytest.raises(CheckpointError, match="frame_in.bias"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "part, name, value",
    [
        ("scheduler/scheduler_config.json", "num_train_timesteps", "x"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 0),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 200_000_000),
        ("scheduler/scheduler_config.json", "shift", 3.0),
        ("scheduler/scheduler_config.json", "use_dynamic_shifting", True),
        ("scheduler/scheduler_config.json", "use_karras_sigmas", True),
        ("scheduler/scheduler_config.json", "surprise", 1),
        ("transformer/config.json", "activation_fn", "nope"),
        ("transformer/config.json", "timestep_activation_fn", "nope"),
        ("transformer/config.json", "num_layers", 10**9),
        ("transformer/config.json", "num_layers", 0),
        ("transformer/config.json", "num_layers", True),
        ("transformer/config.json", "num_layers", 1.0),
        ("transformer/config.json", "num_layers", None),
        ("transformer/config.json", "num_attention_heads", 200),
        ("transformer/config.json", "attention_head_dim", 72),
        ("transformer/config.json", "time_embed_dim", 10**8),
        ("transformer/config.json", "in_channels", 112),
        ("transformer/config.json", "out_channels", 115),
        ("transformer/config.json", "patch_size", 1),
        ("transformer/config.json", "text_embed_dim", "16"),
        ("transformer/config.json", "use_learned_positional_embeddings", True),
        ("vae/config.json", "width", 10**7),
        ("vae/config.json", "encoder_blocks", -1),
        ("vae/config.json", "latent_channels", 8),
        ("vae/config.json", "in_channels", 1),
        ("disparity_vae/config.json", "in_channels", 3),
        ("vae/config.json", "latents_mean", [0.0] * 15),
        ("vae/config.json", "latents_mean", [float("nan")] * 16),
        ("vae/config.json", "latents_mean", [1e300] * 16),
        ("vae/config.json", "latents_mean", "0000000000000000"),
        ("vae/config.json", "latents_std", [1.0] * 15 + [0.0]),
        ("vae/config.json", "latents_std", [1.0] * 15 + [-1.0]),
        ("vae/config.json", "latents_std", [1.0] * 15 + [None]),
    ],
)
def test_configs_that_can_not_be_used_are_refused_with_file_and_value(folder, part, name, value):
    path = folder / part
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as caught:
        load_checkpoint(folder)
    assert name in str(caught.value) or str(value) in str(caught.value)


@pytest.mark.parametrize(
    "part, name, value", [("transformer", "dropout", 2.0), ("transformer", "dropout", "x"), ("vae", "width", 12)]
)
def test_a_config_that_the_component_itself_refuses_is_refused_with_the_file(folder, part, name, value):
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(CheckpointError, match=re.escape(f"{path} does not describe")):
        load_checkpoint(folder)


def test_measured_latents_come_back(folder):
    path = folder / "vae" / "config.json"
    numbers = {"latents_mean": [0.5, -1.0] * 8, "latents_std": [1, 2.0] * 8}
    path.write_text(json.dumps(json.loads(path.read_text()) | numbers))
    vae = load_checkpoint(folder).vae
    assert vae.mean.tolist() == numbers["latents_mean"] and vae.std.tolist() == numbers["latents_std"]


@pytest.mark.parametrize("shape", [(1, 1, 15), (2, 1, 16), (1, 0, 16), (1, 16)])
def test_a_prompt_that_the_transformer_can_not_read_is_refused(folder, shape):
    save_file({"prompt_embeds": torch.ones(shape)}, folder / PROMPT_FILE)
    with pytest.raises(CheckpointError, match=f"{PROMPT_FILE}.*16.*"):
        load_checkpoint(folder)


def test_only_known_classes_are_built(folder):
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "os.system"}))
    with pytest.raises(CheckpointError, match="os.system"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "\x00",
        '{"height": 15}',
        '{"surprise": 1}',
        '{"step_sigmas": [0.5]}',
        '{"step_sigmas": ["1.0"]}',
        '{"step_sigmas": "1"}',
        '{"step_sigmas": 1}',
        '{"fps": true}',
        '{"fps": {}}',
        '{"step_guess": 1}',
        f'{{"headroom": {"9" * 400}}}',
        f'{{"headroom": {"9" * 5000}}}',
    ],
)
def test_bad_settings_are_refused_with_the_files_name(folder, text):
    (folder / SETTINGS_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=SETTINGS_FILE):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "bad",
    [
        {"height": 60},
        {"fps": 0},
        {"fps": 0.5},
        {"fps": 61},
        {"headroom": float("nan")},
        {"unit_quantile": 1.0},
        {"unit_quantile": 0.0},
        {"history_noise": 1.0},
        {"history_noise": "little"},
        {"history_noise": float("nan")},
        {"step_guess": 1},
        {"step_guess": "true"},
        {"step_guess": None},
        {"clip_sigmas": (1.0, 1.0)},
        {"clip_sigmas": (1.0, "0.5")},
    ],
)
def test_impossible_settings_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Settings(**bad)
