"""Sheets of samples of every stage: written when they are due, right, and without a trace in what is learned."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aether_env.conventions import FAR_DEPTH
from aether_env.sim import render_clips, seed_in
from aether_env.visual import colour_depth
from aether_env.world_model.aetherv1 import load_aetherv1
from aether_env.world_model.aetherv1_clips import AetherV1Clips
from aether_env.world_model.checkpoint import load_checkpoint
from aether_env.world_model.latents import Codec
from aether_env.world_model.own_clips import OwnClips
from training.config import AetherV1StageConfig, DecoderConfig, OptimizerConfig, TrainConfig, WatchConfig
from training.recipes import RECIPES
from training.trainer import train
from training.warm import read_warm

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "goldens" / "aetherv1" / "tiny_checkpoint"
WATCH = WatchConfig(sheet_every=2, sheet_clips=2, sheet_steps=2, tensorboard=False)
STAGES = ("autoencoder", "decoder", "transformer", "aetherv1")
CLOCK = ("samples_per_s", "mfu", "data_wait")
GAP = 2


def config_of(stage, tiny_checkpoint):
    """A run of four steps whose averaged weights are far from the raw ones."""
    ema = OptimizerConfig(lr=1e-2, muon_lr=0.0, warmup_steps=0, decay_share=0.1, ema=0.9)
    if stage == "aetherv1":
        sizes, fps = ((48, 64), (32, 48)), (24.0, 12.0)
        clips = AetherV1StageConfig(checkpoint=str(TINY), num_frames=(17, 9), fps=fps, sizes=sizes)
        config = TrainConfig(stage=stage, aetherv1=clips, batch_size=1)
    else:
        recipe = "debug_cpu" if stage == "transformer" else f"debug_cpu_{stage}"
        config = replace(RECIPES[recipe](), decoder=DecoderConfig(autoencoder=str(tiny_checkpoint), critic_widths=(8,)))
    return replace(config, optimizer=ema, watch=WATCH, steps=4, save_every=9, log_every=1)


@pytest.fixture(scope="module")
def run(tiny_checkpoint, tmp_path_factory):
    """The folder of a stage's run with sheets."""
    folders: dict[str, Path] = {}

    def folder(stage):
        if stage not in folders:
            folders[stage] = tmp_path_factory.mktemp(stage)
            train(config_of(stage, tiny_checkpoint), folders[stage])
        return folders[stage]

    return folder


def truth(num_frames=17, height=16, width=24, supersample=1):
    seeds = [seed_in("validation", i) for i in range(2)]
    return render_clips(seeds, num_frames=num_frames, fps=12.0, height=height, width=width, supersample=supersample)


def rows_of(folder, step, height, width, rows):
    """Return the cells of a sheet, (clip, row, column, height, width, 3); its size is right."""
    sheet = np.asarray(Image.open(folder / "samples" / f"step_{step:08d}.png")).astype(int)
    assert sheet.shape == (2 * rows * (height + GAP) - GAP, 5 * (width + GAP) - GAP, 3)
    padded = np.pad(sheet, [(0, GAP), (0, GAP), (0, 0)])
    cells = padded.reshape(2, rows, height + GAP, 5, width + GAP, 3).transpose(0, 1, 3, 2, 4, 5)
    return cells[..., :height, :width, :]


def coloured(true_depth, depth):
    near = [np.quantile(clip, 0.02) for clip in true_depth]
    return np.stack([colour_depth(clip, n, FAR_DEPTH) for clip, n in zip(depth, near, strict=True)]).astype(int)


def near(shown, wanted, of=1):
    """Whether pictures are the same but for the export's float16: off by at most `of`, and in few places."""
    off = np.abs(shown - wanted.astype(int))
    return off.max() <= of and off.mean() < 0.1


@pytest.mark.parametrize("stage", STAGES)
def test_a_sheet_is_written_whenever_it_is_due(run, stage):
    assert {path.name for path in (run(stage) / "samples").iterdir()} == {"step_00000002.png", "step_00000004.png"}
    first, last = (np.asarray(Image.open(path)).astype(int) for path in sorted((run(stage) / "samples").iterdir()))
    assert first.shape == last.shape and np.abs(first - last).max() > 2  # something was learned between


@pytest.mark.parametrize("stage", ["autoencoder", "decoder"])
def test_autoencoders_show_what_their_averaged_weights_make_of_validation_clips(run, stage):
    clips, parts = truth(), load_checkpoint(run(stage) / "checkpoint")
    codec = Codec(parts)
    at_rest = [0, 0, 0, *range(17)]
    with torch.no_grad():
        rgb = codec.decode_colour(codec.encode_colour(clips.rgb[:, at_rest]))[:, 3::4].numpy()
        unit = codec.unit(clips.depth[:, 0])
        depth = codec.decode_depth(codec.encode_depth(clips.depth[:, at_rest], unit), unit)[:, 3::4].numpy()
    cells = rows_of(run(stage), 4, 16, 24, rows=4 if stage == "autoencoder" else 2)
    assert np.array_equal(cells[:, 0], clips.rgb[:, ::4].numpy())
    assert near(cells[:, 1], rgb) and np.ptp(rgb) > 9
    if stage == "autoencoder":
        assert np.array_equal(cells[:, 2], coloured(clips.depth.numpy(), clips.depth[:, ::4].numpy()))
        assert near(cells[:, 3], coloured(clips.depth.numpy(), depth), of=16)
        assert not near(cells[:, 3], cells[:, 2], of=16)
    raw = read_warm(run(stage) / "warm")[1]
    names = {name.removeprefix("colour."): w.float() for name, w in raw.items() if not name.startswith("disparity.")}
    assert not parts.vae.load_state_dict(names, strict=False).unexpected_keys
    with torch.no_grad():
        assert not near(cells[:, 1], codec.decode_colour(codec.encode_colour(clips.rgb[:, at_rest]))[:, 3::4].numpy())


@pytest.mark.parametrize("stage", ["transformer", "aetherv1"])
def test_transformers_show_what_their_averaged_weights_predict_from_first_pictures(run, stage):
    check_predictions(run(stage), 4, aetherv1=stage == "aetherv1")


def check_predictions(folder, step, *, aetherv1):
    """The sheet of the last step shows what the exported checkpoint predicts."""
    if aetherv1:  # the smallest size, the fewest frames, the lowest rate
        clips = truth(9, 32, 48, supersample=2)
        model = AetherV1Clips(load_aetherv1(folder / "checkpoint"), size=(32, 48), steps=2)
    else:
        clips, model = truth(), OwnClips.from_checkpoint(folder / "checkpoint")
    rgb, depth, path = clips.rgb.numpy(), clips.depth.numpy(), clips.world_from_camera.numpy()
    dream = model.predict(
        rgb[:, 0], depth=depth[:, 0], world_from_camera=path, intrinsics=clips.intrinsics[:, 0].double().numpy(),
        seeds=[0, 1], fps=12.0,
    )  # fmt: skip
    every = (rgb.shape[1] - 1) // 4
    cells = rows_of(folder, step, *rgb.shape[2:4], rows=4)
    assert np.array_equal(cells[:, 0], rgb[:, ::every])
    assert near(cells[:, 1], dream.rgb[:, ::every]) and not near(cells[:, 1], cells[:, 0])
    assert np.array_equal(cells[:, 2], coloured(depth, depth[:, ::every]))
    assert near(cells[:, 3], coloured(depth, dream.depth[:, ::every]), of=16)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_with_sheets_learns_what_one_without_learns_to_the_last_bit(run, stage, tiny_checkpoint, tmp_path):
    train(replace(config_of(stage, tiny_checkpoint), watch=WatchConfig(tensorboard=False)), tmp_path)
    assert not (tmp_path / "samples").exists()
    logs = []
    for folder in (run(stage), tmp_path):
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        logs.append([{name: value for name, value in line.items() if name not in CLOCK} for line in lines])
    assert logs[0] == logs[1] and len(logs[0]) == 4
    for path in (tmp_path / "checkpoint").rglob("*.safetensors"):
        assert (run(stage) / path.relative_to(tmp_path)).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_processes_that_share_the_weights_wait_for_the_one_that_draws(tmp_path):
    command = "-m torch.distributed.run --standalone --nproc-per-node 2 -m training.train --recipe aetherv1_8gpu"
    command += f" --run-dir {tmp_path} --aetherv1.checkpoint {TINY} --aetherv1.sources simulator --aetherv1.workers 0"
    command += " --aetherv1.num-frames 17 9 --aetherv1.sizes 48 64 32 48 --aetherv1.fps 24 12 --parallel.shards 2"
    command += " --steps 2 --batch-size 1 --device cpu --no-compile --no-bf16 --optimizer.lr 0.01"
    command += " --watch.sheet-every 1 --watch.sheet-steps 2 --watch.sheet-clips 2 --watch.no-tensorboard"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {"step_00000001.png", "step_00000002.png"}
    check_predictions(tmp_path, 2, aetherv1=True)
