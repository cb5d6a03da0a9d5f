"""`aether reconstruct`, `predict` and `plan` on files, by a tiny checkpoint with random weights."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aether_env.camera import CameraPath, intrinsics_from_fov, poses_in_axes, relative_to, se3_exp
from aether_env.cli import main
from aether_env.paths import walk_path
from aether_env.world_model.pipeline import AetherPipeline
from aether_env.world_model.result import VideoResult

pytestmark = pytest.mark.usefixtures("small_videos")

HEIGHT, WIDTH = 16, 24


@pytest.fixture
def desk(tmp_path, monkeypatch, tiny_checkpoint) -> Path:
    """A folder to work in, with a checkpoint "tiny", a video in pictures and two pictures of another size."""
    (tmp_path / "tiny").symlink_to(tiny_checkpoint)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "walk").mkdir()
    for index in range(20):
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(f"walk/{index:03d}.png")
    for name in ("here.png", "there.png"):
        Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(name)
    return tmp_path


def said(capsys) -> tuple[list[str], str]:
    """Return the notes and the line about the result."""
    *notes, summary = capsys.readouterr().out.splitlines()
    return [note.strip().split(":")[0] for note in notes], summary


def curve(num: int) -> np.ndarray:
    return se3_exp(np.arange(num)[:, None] * np.array([0.01, 0, 0.04, 0, 0.02, 0]))


def test_reconstruct_writes_what_the_pipeline_finds_and_says_where(desk, capsys):
    assert (
        main(["reconstruct", "walk", "--model", "tiny", "--source-fps", "12", "--out", "found", "--stride", "4"]) == 0
    )
    result = VideoResult.load("found")
    expected = AetherPipeline.from_pretrained("tiny").reconstruct("walk", source_fps=12, stride=4)
    np.testing.assert_array_equal(result.rgb, expected.rgb)
    np.testing.assert_array_equal(result.depth, expected.depth)
    np.testing.assert_allclose(result.path.world_from_camera, expected.path.world_from_camera, atol=1e-9)
    notes, summary = said(capsys)
    assert notes == ["windowed"]
    assert summary.startswith("20 frames of 16 x 24 at 12 a second, path ") and summary.endswith(" units: found")
    assert f"{expected.path.length:.2f} units" in summary
    assert sorted(path.name for path in desk.iterdir()) == ["found", "here.png", "there.png", "tiny", "walk"]


def test_predict_follows_a_walk_in_words(desk, capsys):
    assert main(["predict", "here.png", "--walk", "forward 0.5 turn-left 20", "--model", "tiny"]) == 0
    result = VideoResult.load("outputs/predict-here")
    np.testing.assert_allclose(result.path.world_from_camera, walk_path("forward 0.5 turn-left 20", fps=12), atol=1e-9)
    notes, summary = said(capsys)
    assert notes == ["resized", "assumed_fov", "windowed"]
    assert summary.startswith("19 frames of 16 x 24 at 12 a second, path 0.50 units")
    assert summary.endswith("outputs/predict-here")


def test_plan_follows_a_walk_to_the_goal(desk, capsys):
    words = ["plan", "here.png", "there.png", "--walk", "forward 0.5", "--num-frames", "12", "--model", "tiny"]
    assert main(words) == 0
    path = VideoResult.load("outputs/plan-here-there").path
    assert len(path) == 12
    np.testing.assert_allclose(path.world_from_camera[-1, :3, 3], [0, 0, 0.5], atol=1e-9)


def test_the_published_checkpoint_runs_by_command_with_its_own_settings(desk, capsys):
    published = Path(__file__).parents[1] / "goldens" / "aetherv1" / "tiny_checkpoint"
    words = ["predict", "here.png", "--model", str(published), "--steps", "2", "--num-frames", "17"]
    assert main([*words, "--dtype", "float32"]) == 0
    assert len(VideoResult.load("outputs/predict-here")) == 17
    assert "sampling:   0%" in (error := capsys.readouterr().err) and "/2 " in error


def test_a_path_that_is_too_fast_is_told_before_the_dream(desk, capsys):
    assert main(["predict", "here.png", "--walk", "forward 3", "--num-frames", "9", "--model", "tiny"]) == 0
    assert "warning: The camera path is outside what the model was trained on" in capsys.readouterr().err


def test_plan_takes_seed_and_depth(desk, capsys):
    depth = np.random.default_rng(1).uniform(1, 5, (32, 48)).astype(np.float32)
    np.save("depth.npy", depth)
    words = ["plan", "here.png", "there.png", "--model", "tiny", "--depth", "depth.npy", "--seed", "5"]
    assert main(words) == 0
    result = VideoResult.load("outputs/plan-here-there")
    expected = AetherPipeline.from_pretrained("tiny").plan("here.png", "there.png", depth=depth, seed=5)
    assert result.metric and result.unit == pytest.approx(expected.unit)
    np.testing.assert_array_equal(result.rgb, expected.rgb)
    notes, summary = said(capsys)
    assert notes == ["resized"] and " m, median depth of the first " in summary
    middle = float(np.median(expected.depth[0]))
    assert f"median depth of the first {middle:.2f} m: outputs/plan-here-there" in summary


def test_depth_of_a_png_is_in_levels_a_metre_and_zero_is_unknown(desk, capsys):
    metres = np.random.default_rng(1).uniform(1, 5, (32, 48))
    metres[:4] = 0
    for scale in (1000, 5000):
        Image.fromarray(np.rint(metres * scale).astype(np.uint16)).save("depth.png")
        words = ["--depth", "depth.png", "--depth-scale", str(scale), "--model", "tiny", "--out", f"dream{scale}"]
        assert main(["predict", "here.png", *words]) == 0
        depth = VideoResult.load(f"dream{scale}").depth[0]
        np.testing.assert_allclose(depth[2:], metres[1::2, 1::2][2:], atol=0.6 / scale)
        assert (depth[:2] > 0).all()


def test_depth_of_a_video_is_read_from_an_array_frame_by_frame(desk, capsys):
    depth = np.random.default_rng(1).uniform(1, 5, (20, HEIGHT, WIDTH)).astype(np.float32)
    np.save("depth.npy", depth)
    assert main(["reconstruct", "walk", "--depth", "depth.npy", "--model", "tiny"]) == 0
    result = VideoResult.load("outputs/reconstruct-walk")
    np.testing.assert_allclose(result.depth, depth, rtol=1e-6)
    assert result.metric and "assumed_fps" in said(capsys)[0]


@pytest.mark.parametrize(
    ("axes", "kind"), [("opencv", "camera_to_world"), ("ros", "camera_to_world"), ("blender", "world_to_camera")]
)
def test_paths_in_other_axes_are_the_same_way(desk, axes, kind):
    path = CameraPath(curve(20), np.eye(3))
    np.save("path.npy", poses_in_axes(path, axes=axes, kind=kind))
    options = ["--path", "path.npy", "--axes", axes, "--kind", kind, "--model", "tiny"]
    assert main(["reconstruct", "walk", *options, "--out", "found"]) == 0
    assert main(["predict", "here.png", *options, "--scene-scale", "2", "--num-frames", "17", "--out", "dream"]) == 0
    expected = relative_to(curve(20), curve(1)[0])
    np.testing.assert_allclose(VideoResult.load("found").path.world_from_camera, expected, atol=1e-9)
    last = VideoResult.load("dream").path.world_from_camera[-1]
    np.testing.assert_allclose(last[:3, 3], 2 * expected[-1, :3, 3], atol=1e-9)
    np.testing.assert_allclose(last[:3, :3], expected[-1, :3, :3], atol=1e-9)


def test_a_nerfstudio_file_is_known_by_its_form(desk):
    matrix = intrinsics_from_fov(np.deg2rad(60), HEIGHT, WIDTH)
    frames = poses_in_axes(CameraPath(curve(20), matrix), axes="opengl")
    told = {"w": WIDTH, "h": HEIGHT, "fl_x": matrix[0, 0]}
    told["frames"] = [{"file_path": f"{i}.png", "transform_matrix": pose.tolist()} for i, pose in enumerate(frames)]
    Path("transforms.json").write_text(json.dumps(told))
    assert main(["reconstruct", "walk", "--path", "transforms.json", "--model", "tiny", "--out", "found"]) == 0
    result = VideoResult.load("found")
    np.testing.assert_allclose(result.path.world_from_camera, curve(20), atol=1e-9)
    np.testing.assert_allclose(result.path.intrinsics[7], matrix, rtol=1e-9)


def test_the_angle_of_the_camera_is_that_of_the_pictures(desk):
    focal = WIDTH / 2 / np.tan(np.deg2rad(25))
    for words in (["reconstruct", "walk"], ["predict", "here.png"], ["plan", "here.png", "there.png"]):
        assert main([*words, "--horizontal-fov", "50", "--model", "tiny", "--out", "result"]) == 0
        result = VideoResult.load("result")
        np.testing.assert_allclose(result.path.intrinsics[:, 0, 0], focal, rtol=1e-9)
        assert "assumed_fov" not in [note.what for note in result.notes]


def test_a_dream_can_be_looked_at_again(desk, capsys):
    for words in (["predict", "here.png"], ["plan", "here.png", "there.png"]):
        assert main([*words, "--post-reconstruction", "--model", "tiny", "--out", "result"]) == 0
        assert "post_reconstruction" in said(capsys)[0]


def test_what_is_warned_of_is_told_in_one_line_at_the_end(desk, capsys):
    assert main(["predict", "here.png", "--walk", "forward 30", "--num-frames", "17", "--model", "tiny"]) == 0
    out, error = capsys.readouterr()
    (warning,) = [line for line in error.splitlines() if line.startswith("warning: ")]
    assert "scene_scale=" in warning and "30 units away" in warning
    assert out.splitlines()[-1].startswith("17 frames")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("reconstruct missing.mp4", "video: there is no file or folder 'missing.mp4'"),
        ("reconstruct walk --path missing.tum", "there is no file 'missing.tum'"),
        ("reconstruct walk --depth grey.png", "depth 'grey.png' must be a 16-bit grey .png, got uint8 (32, 48)"),
        ("reconstruct walk --depth colour.png", "depth 'colour.png' must be a 16-bit grey .png"),
        ("reconstruct walk --depth mask.png", "depth 'mask.png' must be a 16-bit grey .png, got bool"),
        ("reconstruct walk --depth missing.npy", "depth: there is no file 'missing.npy'"),
        ("reconstruct walk --depth empty.npy", "depth 'empty.npy' is no readable .npy or .png"),
        ("reconstruct walk --depth pickled.npy", "depth 'pickled.npy' is no readable .npy or .png"),
        ("reconstruct walk --depth zipped.npy", "depth 'zipped.npy' is no readable .npy or .png"),
        ("reconstruct walk --depth notes.txt", "depth 'notes.txt' is no readable .npy or .png"),
        ("reconstruct walk --depth deep.png --depth-scale 0", "depth_scale must be positive and finite, got 0"),
        ("reconstruct walk --depth deep.png", "depth must have the picture's shape (16, 24), got (32, 48)"),
        ("reconstruct walk --horizontal-fov 180", "horizontal_fov must be in (0, 180) degrees, got 180"),
        ("reconstruct walk --fps 30", "fps must be 12"),
        ("reconstruct walk --stride 17", "stride must be a whole number in 1..16, got 17"),
        ("reconstruct walk --seed -1", "seed must be a whole number"),
        ("reconstruct walk --out .", "is not a saved result; choose a new folder"),
        ("predict missing.png", "there is no file 'missing.png'"),
        ("predict here.png --model tiny --steps 4", "steps is no setting of tiny"),
        ("predict here.png --model tiny --dtype bfloat16", "dtype must be float32 for tiny"),
        ("predict notes.txt", "image 'notes.txt' is not a readable PNG, JPEG, WebP or BMP picture"),
        ("predict here.png --path p.tum --walk forward", "path and walk must not both be given"),
        ("predict here.png --walk dance", "a walk has no word 'dance'"),
        ("predict here.png --num-frames 0", "num_frames must be a whole number >= 1, got 0"),
        ("predict here.png --scene-scale 0", "scene_scale must be positive"),
        ("predict here.png --device nowhere", "device 'nowhere' cannot be used here"),
        ("predict here.png --model nowhere", "checkpoint 'nowhere' is neither a bundled one"),
        ("plan here.png missing.png", "there is no file 'missing.png'"),
        ("plan here.png there.png --num-frames 18", "num_frames (default: those of the path) must be at most 17"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(desk, capsys, words, message):
    pixels = np.zeros((32, 48), np.uint8)
    Image.fromarray(pixels).save("grey.png")
    Image.fromarray(pixels > 0).save("mask.png")
    Image.fromarray(np.stack([pixels] * 3, axis=-1)).save("colour.png")
    Image.fromarray(np.full((32, 48), 2000, np.uint16)).save("deep.png")
    np.save("pickled.npy", np.array([{}], dtype=object))
    np.savez("zipped.npz", depth=pixels)
    Path("zipped.npz").rename("zipped.npy")
    Path("empty.npy").touch()
    Path("notes.txt").write_text("3.0")
    before = sorted(path.name for path in desk.iterdir())
    model = [] if "--model" in words else ["--model", "tiny"]
    assert main([*words.split(), *model]) == 1
    out, error = capsys.readouterr()
    lines = [line for line in re.split(r"[\r\n]+", error) if line and not line.startswith("reconstructing")]
    assert out == "" and len(lines) == 1
    assert lines[0].startswith(f"aether {words.split()[0]}: ") and message in lines[0]
    assert sorted(path.name for path in desk.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("reconstruct walk --axes maya", "opencv"),
        ("predict here.png --kind sideways", "camera_to_world"),
        ("plan here.png", "GOAL"),
        ("reconstruct walk --stride often", "stride"),
    ],
)
def test_words_that_are_not_known_end_with_what_is_and_exit_code_two(capsys, words, message):
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_help_tells_every_argument_and_loads_no_torch():
    code = (
        "import sys\nfrom aether_env.cli import main\n"
        "for name in ('reconstruct', 'predict', 'plan'):\n"
        "    try:\n        main([name, '--help'])\n"
        "    except SystemExit as end:\n        print('END', name, end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    helps = dict(zip(("reconstruct", "predict", "plan"), re.split(r"END \w+ 0 False\n", done.stdout), strict=False))
    assert done.stdout.count("0 False") == 3
    for name, arguments in {
        "reconstruct": "VIDEO --out --model --device --depth --depth-scale --path --axes --kind --fps --stride --seed",
        "predict": "IMAGE --path --walk --out --depth --horizontal-fov --scene-scale --num-frames --seed",
        "plan": "IMAGE GOAL --out --model --depth --num-frames --seed",
    }.items():
        assert all(word in helps[name] for word in arguments.split())
        assert f"Example: aether {name}" in helps[name]
