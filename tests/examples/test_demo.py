import importlib.util
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import trimesh
from PIL import Image

from aether_env.envs.starts import load_start

DEMO = Path(__file__).parents[2] / "examples" / "00_demo.py"
FILES = ["cloud.glb", "contact_sheet.png", "plan.mp4", "plan.png", "walk.mp4"]


def load_demo():
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module
    spec.loader.exec_module(module)
    return module


def test_the_demo_begins_with_a_bundled_picture_that_the_simulator_can_show():
    start = load_start(load_demo().START)
    assert start.depth is not None and start.scene_seed is not None


def written(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def test_the_demo_walks_into_a_picture_of_ones_own(tiny_checkpoint, tmp_path, capsys):
    image = tmp_path / "mine.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(image)
    load_demo().main(image=image, out=tmp_path / "out", model=str(tiny_checkpoint), steps=5)
    assert written(tmp_path / "out") == FILES
    assert len(iio.imread(tmp_path / "out" / "walk.mp4")) == 21 and len(iio.imread(tmp_path / "out" / "plan.mp4")) == 17
    said = capsys.readouterr().out
    assert "took" in said and "no scale" in said and all(name in said for name in FILES)


@pytest.mark.slow
def test_the_demo_shows_the_truth_beside_the_dream(tiny_checkpoint, tmp_path, capsys):
    load_demo().main(out=tmp_path / "out", model=str(tiny_checkpoint), steps=6)
    assert written(tmp_path / "out") == FILES
    video = iio.imread(tmp_path / "out" / "walk.mp4")
    assert len(video) == 25
    # Both begin with the same picture, so that the halves of the first frame are alike.
    dream, truth = np.split(video[0].astype(int), 2, axis=0)
    middle = dream.shape[1] // 2
    assert np.abs(dream[24:, :middle] - truth[24:, :middle]).mean() < 12
    assert len(trimesh.load(tmp_path / "out" / "cloud.glb").geometry) == 2
    assert "no scale" not in capsys.readouterr().out


def assert_one_clear_line(error: str) -> None:
    assert error.count("\n") == 1 and error.startswith("error: image") and "mine.png" in error


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_a_bad_picture_is_one_clear_line(tmp_path, capsys, content):
    image = tmp_path / "mine.png"
    image.write_bytes(content)
    with pytest.raises(SystemExit) as end:
        load_demo().main(image=image, out=tmp_path / "out")
    assert end.value.code == 2 and not (tmp_path / "out").exists()
    assert_one_clear_line(capsys.readouterr().err)


def test_a_missing_picture_is_one_clear_line_of_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, str(DEMO), "--image", str(tmp_path / "mine.png"), "--out", str(tmp_path / "out")],
        capture_output=True, text=True, env={"PYTHONPATH": str(DEMO.parents[1])}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert_one_clear_line(done.stderr)
