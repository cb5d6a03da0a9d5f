"""The parity command: what agrees passes, what differs fails, what can not be read is named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from training.evaluation import parity

GOLDENS = Path(__file__).parents[2] / "goldens" / "aetherv1"
TINY = GOLDENS / "tiny_checkpoint"
CASE = GOLDENS / "cases" / "prediction_17_raymap.npz"


@pytest.fixture(scope="module")
def case() -> dict[str, np.ndarray]:
    with np.load(CASE) as file:
        return dict(file)


def run(*cases: Path, checkpoint: Path = TINY, **options) -> int:
    with pytest.raises(SystemExit) as status:
        parity.main(cases, checkpoint, **options)
    return status.value.code


def save(path: Path, case: dict[str, np.ndarray], **changes) -> Path:
    arrays = {name: value for name, value in (case | changes).items() if value is not None}
    np.savez(path, **arrays)
    return path


def test_what_agrees_passes_and_every_difference_is_printed(capsys):
    assert run(CASE, guidance_in_turn=True, slicing=True) == 0
    name, *numbers = capsys.readouterr().out.splitlines()[-1].split()
    assert name == CASE.name and len(numbers) == 3 and all(0 <= float(n) < 1e-4 for n in numbers)


def test_a_path_given_as_poses_and_a_larger_picture_are_read_as_the_public_code_does(case, tmp_path):
    image = case["image"].repeat(2, axis=0).repeat(2, axis=1)  # nearest pixels of it are the picture
    image = np.pad(image, ((0, 0), (6, 6), (0, 0)))  # cropped away again
    assert run(save(tmp_path / "poses.npz", case, raymap=None, image=image)) == 0


@pytest.mark.parametrize(
    "output, value, shown", [("out_disparity", 0.01, "1.00e-02"), ("out_rgb", np.nan, "nan"), ("out_raymap", 9, "9.")]
)
def test_what_differs_fails(case, tmp_path, capsys, output, value, shown):
    wrong = case[output].copy()
    wrong[-1, 2, 3] += value
    assert run(save(tmp_path / "wrong.npz", case, **{output: wrong})) == 1
    assert shown in capsys.readouterr().out


def meta(case, **changes) -> np.ndarray:
    values = json.loads(str(case["meta"])) | changes
    return np.array(json.dumps({name: value for name, value in values.items() if value is not None}))


def test_bad_cases_are_named_and_the_others_still_compared(case, tmp_path, capsys):
    def write(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    whole = CASE.read_bytes()
    array = case["image"]
    np.save(tmp_path / "array.npy", array)
    bad = [
        tmp_path / "missing.npz",
        tmp_path / "array.npy",
        write("empty.npz", b""),
        write("half.npz", whole[: len(whole) // 2]),
        write("tail.npz", whole[:-30]),
        write("middle.npz", whole[:5000] + bytes(2000) + whole[7000:]),
        write("text.npz", b"no archive"),
        save(tmp_path / "no_meta.npz", case, meta=None),
        save(tmp_path / "no_json.npz", case, meta=np.array("{")),
        save(tmp_path / "no_seed.npz", case, meta=meta(case, seed=None)),
        save(tmp_path / "seed.npz", case, meta=meta(case, seed="1")),
        save(tmp_path / "task.npz", case, meta=meta(case, task="dreaming")),
        save(tmp_path / "frames.npz", case, meta=meta(case, num_frames=18)),
        save(tmp_path / "steps.npz", case, meta=meta(case, num_inference_steps="4")),
        save(tmp_path / "size.npz", case, meta=meta(case, height=60)),
        save(tmp_path / "no_output.npz", case, out_raymap=None),
        save(tmp_path / "no_intrinsic.npz", case, raymap=None, intrinsic=None),
        save(tmp_path / "picture.npz", case, image=case["image"][..., :2]),
        save(tmp_path / "both.npz", case, video=case["out_rgb"]),
        save(tmp_path / "raymap.npz", case, raymap=case["raymap"][:9]),
        save(tmp_path / "pickle.npz", case, image=np.array([object()])),
    ]
    assert run(*bad, CASE) == 2
    told = capsys.readouterr()
    assert CASE.name in told.out
    lines = told.err.splitlines()
    assert len(lines) == len(bad)
    assert [line for line, path in zip(lines, bad, strict=True) if str(path) not in line] == []


def test_a_checkpoint_that_can_not_be_compared_is_named(tmp_path, tiny_checkpoint, capsys):
    assert run(CASE, checkpoint=tmp_path) == 2
    assert "transformer" in capsys.readouterr().err
    assert run(CASE, checkpoint=tiny_checkpoint) == 2
    assert "our own layout" in capsys.readouterr().err
    shutil.copytree(TINY, tmp_path / "copy", copy_function=shutil.copyfile)
    (tmp_path / "copy" / "vae" / "config.json").write_text("{}")
    assert run(CASE, checkpoint=tmp_path / "copy") == 2
    assert run() == 2
