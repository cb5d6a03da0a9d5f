"""Writing so that nothing is ever half-written."""

import pytest
import torch
from safetensors.torch import save_file

from aether_env.files import replacing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_there_as_a_whole_and_the_one_before_is_gone(tmp_path):
    for content in ("one", "two"):
        with replacing(tmp_path / "out") as new:
            (new / content).write_text(content)
            assert names(tmp_path / "out") == ["one"] if content == "two" else not (tmp_path / "out").exists()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["two"]


def test_what_fails_leaves_the_one_before_and_nothing_else(tmp_path):
    with replacing(tmp_path / "out") as new:
        (new / "one").touch()
    with pytest.raises(RuntimeError, match="half"), replacing(tmp_path / "out") as new:
        (new / "two").touch()
        raise RuntimeError("half way")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["one"]


def test_files_can_be_read_by_whom_any_new_file_can(tmp_path):
    with replacing(tmp_path / "out") as new:
        (new / "inner").mkdir()
        save_file({"a": torch.zeros(2)}, new / "inner" / "a.safetensors")
    usual = tmp_path / "usual"
    usual.touch()
    written = tmp_path / "out" / "inner" / "a.safetensors"
    assert written.stat().st_mode & 0o777 == usual.stat().st_mode & 0o777


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(ValueError, match="folder must be a folder"), replacing(tmp_path / "out"):
        pass
