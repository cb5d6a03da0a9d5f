"""The real package is not installed here: a double writes what the source of vbench 0.1.5 writes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from training.evaluation import vbench
from training.evaluation.summary import summarise
from training.evaluation.vbench import METRICS, vbench_scores, weighted_average, why_not_measured, write_videos

PRINTED = (
    (87.77, 92.29, 97.81, 90.83, 54.18, 54.35, 78.51),
    (90.18, 94.07, 98.42, 97.50, 53.77, 55.01, 80.04),
    (90.51, 92.77, 98.24, 86.76, 56.58, 58.10, 79.92),
    (91.54, 94.06, 98.56, 94.85, 55.50, 56.84, 80.71),
    (88.61, 93.66, 98.32, 96.15, 54.78, 54.29, 79.59),
    (90.36, 94.13, 98.46, 95.19, 56.19, 56.93, 80.67),
)
"""Rows of tables 3, 4 and 6 of arXiv 2503.18945: six dimensions and the weighted average."""

DOUBLE = """
import json, os
import cv2

class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.output_path = output_path
        os.makedirs(output_path, exist_ok=True)

    def evaluate(self, videos_path, name, dimension_list, local, mode):
        assert local and mode == "custom_input"
        files = sorted(os.listdir(videos_path), reverse=True)  # no order is promised
        table = {}
        for dimension in dimension_list:
            rows = []
            for file in files:
                path = os.path.join(videos_path, file)
                brightness = cv2.VideoCapture(path).read()[1].mean() / 255
                score = {"imaging_quality": 100 * brightness, "dynamic_degree": "bright" in file}
                rows.append({"video_path": path, "video_results": score.get(dimension, brightness)})
            table[dimension] = [0.5, rows]
        with open(os.path.join(self.output_path, name + "_eval_results.json"), "w") as file:
            json.dump(table, file)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the double; return the folder of its weights, which are all there."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "vbench.py").write_text(DOUBLE)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(__import__("sys").modules, "vbench", raising=False)
    weights = tmp_path / "weights"
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(weights))
    for name in vbench._FILES:
        (weights / name).parent.mkdir(parents=True, exist_ok=True)
        (weights / name).touch()
    return weights


def grey(*levels: int) -> np.ndarray:
    """Return one even video for each grey level."""
    return np.stack([np.full((5, 16, 24, 3), level, np.uint8) for level in levels])


@pytest.mark.parametrize("row", PRINTED)
def test_the_weighted_average_is_the_papers(row: tuple[float, ...]):
    assert weighted_average(dict(zip(vbench.WEIGHTS, row, strict=False))) == pytest.approx(row[-1], abs=0.006)


def test_without_the_package_a_line_says_so_and_nothing_is_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vbench, "find_spec", lambda name: None)
    line = why_not_measured()
    assert line is not None and "not installed" in line and "\n" not in line
    with pytest.raises(RuntimeError, match="not installed"):
        vbench_scores({"plan": grey(100)}, 12.0)


def test_without_weights_a_line_names_those_that_are_missing(package: Path):
    assert why_not_measured() is None
    (package / "amt_model" / "amt-s.pth").unlink()
    line = why_not_measured()
    assert line is not None and line.endswith("lacks its weights amt_model/amt-s.pth.")


def test_every_video_gets_its_own_scores_as_fractions(package: Path):
    scores = vbench_scores({"plan": grey(51, 102), "truth": grey(204)}, 12.0)
    for dimension in ("subject_consistency", "imaging_quality"):
        np.testing.assert_allclose(scores[f"vbench_plan_{dimension}"], [0.2, 0.4], atol=0.01)
        np.testing.assert_allclose(scores[f"vbench_truth_{dimension}"], [0.8], atol=0.01)
    np.testing.assert_allclose(scores["vbench_plan_weighted"], np.array([0.2, 0.4]) * 5 / 5.5, atol=0.01)
    metrics, _, _ = summarise(scores, seed=0, rows=METRICS)
    assert metrics["vbench_plan_subject_consistency"] == pytest.approx(0.3, abs=0.01)
    assert metrics["vbench_plan_dynamic_degree"] == 0 and "vbench_free_weighted" not in metrics


class Dreamer:
    """Shows the first frame 100 grey levels brighter, and keeps which arguments it was given."""

    def predict(self, picture: np.ndarray, *, seeds: list[int], **given: np.ndarray) -> SimpleNamespace:
        return self._dreamed(picture, seeds, {"picture", *given})

    def plan(self, picture: np.ndarray, goal: np.ndarray, *, seeds: list[int], **given: np.ndarray) -> SimpleNamespace:
        assert np.array_equal(goal[..., 0], picture[..., 0] + 16)
        return self._dreamed(picture, seeds, {"picture", "goal", *given})

    def _dreamed(self, picture: np.ndarray, seeds: list[int], given: set[str]) -> SimpleNamespace:
        assert seeds == [7, 8]
        self.given = given
        return SimpleNamespace(rgb=np.repeat(picture[:, None] + 100, 17, axis=1))


@pytest.mark.parametrize(
    "task, name, given",
    [
        ("prediction_without_action", "free", {"picture"}),
        ("prediction_with_action", "path", {"picture", "depth", "intrinsics", "world_from_camera"}),
        ("planning", "plan", {"picture", "goal"}),
    ],
)
def test_a_table_shows_its_own_dream_the_truth_and_the_first_frame_repeated(task: str, name: str, given: set[str]):
    # Frame t of clip c is all 50 c + t.
    levels = (50 * np.arange(2)[:, None] + np.arange(17)).astype(np.uint8)
    rgb = np.broadcast_to(levels[..., None, None, None], (2, 17, 4, 6, 3))
    walk = SimpleNamespace(
        rgb=rgb, first_depth=np.ones((2, 4, 6)), path=np.tile(np.eye(4), (2, 17, 1, 1)), intrinsics=np.eye(3)[None],
        seeds=lambda seed: [seed, seed + 1],
    )  # fmt: skip
    dreamer = Dreamer()
    videos = vbench.task_videos(dreamer, task, walk, seed=7)
    assert set(videos) == {name, "truth", "repeated"} and dreamer.given == given
    assert np.array_equal(videos["truth"], rgb)
    assert videos["repeated"].shape == rgb.shape and (videos["repeated"] == levels[:, :1, None, None, None]).all()
    assert (videos[name][1] == 150).all()


def test_written_videos_are_large_enough_and_show_the_frames(tmp_path: Path):
    ramp = np.linspace(40, 200, 5).astype(np.uint8)[None, :, None, None, None]
    files = write_videos(tmp_path / "new", {"plan": np.broadcast_to(ramp, (1, 5, 64, 96, 3))}, 12.0)
    capture = cv2.VideoCapture(str(tmp_path / "new" / files["plan"][0]))
    frames = [capture.read()[1] for _ in range(5)]
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(12.0) and not capture.read()[0]
    assert all(frame.shape == (256, 384, 3) for frame in frames)
    np.testing.assert_allclose([frame.mean() for frame in frames], ramp.ravel(), atol=2)


def test_what_is_not_a_video_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="videos is empty"):
        write_videos(tmp_path, {}, 12.0)
    with pytest.raises(ValueError, match=r"videos\['plan'\] must be uint8"):
        write_videos(tmp_path, {"plan": grey(100)[0]}, 12.0)
