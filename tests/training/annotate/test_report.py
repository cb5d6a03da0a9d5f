"""The report tells of every frame of every video what became of it, and is one file that asks for nothing."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.training.annotate.known_chain import CALLS, annotate_known
from training.annotate import report
from training.annotate.results import plain
from training.annotate.run import annotate


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A run over a good video with a frame that is missing, one that fails, and one that is not done."""
    folder = tmp_path_factory.mktemp("annotated")
    for name in ("good", "bad"):
        (folder / "in" / name / "rgb").mkdir(parents=True)
        for number in (0, 1, 2, 4, 5, 6, 7, 8):
            rgb = np.full((48, 64, 3), 20 * number, np.uint8)
            Image.fromarray(rgb).save(folder / "in" / name / "rgb" / f"{number}.png")
        np.save(folder / "in" / name / "depth.npy", np.ones((8, 48, 64), np.float32))
    (folder / "calls").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CALLS, str(folder / "calls"))
        annotate([folder / "in"], folder / "out", chain=annotate_known, workers=0, progress=False)
    return folder / "out"


@pytest.fixture(scope="module")
def told(out):
    return json.loads((out / "report.json").read_text(), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def page(out):
    return (out / "report.html").read_text()


def test_every_frame_is_counted_once_with_its_reason(told):
    assert told["totals"] == {
        "videos": 2, "failed": 1, "unfinished": 0, "clips": 1, "frames": 9, "kept": 5, "dropped": 4,
    }  # fmt: skip
    assert told["reasons"] == {"inconsistent": 2, "missing": 1, "blurred": 1}
    good = told["videos"][1]
    assert good["name"] == "good" and good["dropped"] == {"3": "missing"}
    (piece,) = good["pieces"]
    assert piece["frames"] == [0, 1, 2, 4, 5, 6, 7, 8] and piece["dropped"] == {"8": "blurred"}
    assert [one["frames"] for one in piece["slices"]] == [[0, 1, 2, 4, 5], [6, 7]]
    assert [one["reason"] for one in piece["slices"]] == [None, "inconsistent"]
    assert piece["moving_share"] == pytest.approx([1 / 12] * 8, rel=1e-3)
    assert good["told"]["quality"] == 0.875


def test_what_is_no_number_is_left_empty_and_the_settings_are_told(told):
    figures = told["videos"][1]["pieces"][0]["slices"][0]["figures"]
    assert figures["nothing"] is None and figures["focal"] == 30 and figures["reprojection"] == [0.25] * 5
    assert told["settings"]["inputs"]["piece_frames"] == 240
    assert plain({"a": np.array([1.0, np.inf]), "b": np.bool_(True)}) == {"a": [1.0, None], "b": True}


def test_the_page_holds_its_pictures_and_asks_for_nothing_else(page):
    sources = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^"\s>)]*)', page)
    assert sources and all(source.startswith("data:image/") for source in sources)
    pictures = [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]
    assert [picture.format for picture in pictures] == ["PNG", "JPEG", "JPEG", "JPEG"]
    assert pictures[0].width > 900


def test_names_and_errors_cannot_become_part_of_the_page(page):
    assert "this &lt;video&gt; is bad" in page and "<video>" not in page


def test_what_moves_is_red_on_the_pictures(out):
    picture = json.loads((out / "videos" / "good.json").read_text())["pieces"][0]["pictures"][-1]
    rgb = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["jpeg"])))).astype(int)
    grey = 20 * picture["frame"]
    above, below = rgb[4, 100], rgb[-20, 100]
    assert above[0] - above[2] > 90 and np.abs(below - grey).max() < 12


def test_the_worst_videos_are_drawn_where_there_are_too_many(out, monkeypatch):
    monkeypatch.setattr(report, "MOST_DRAWN", 1)
    paths = sorted((out / "videos").glob("*.json"))
    from training.annotate.settings import AnnotateSettings

    totals = report.write_report(out, [*paths, out / "videos" / "never.json"], AnnotateSettings())
    page = (out / "report.html").read_text()
    assert "<h2>bad</h2>" in page and "<h2>good</h2>" not in page and "<td>good</td>" in page
    assert totals["unfinished"] == 1
