"""Chunks of clips from anywhere: a function of their number, with complete depth; our own layout is trained on them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aether_env.camera import intrinsics_from_fov, se3_exp
from aether_env.conventions import FAR_DEPTH
from aether_env.world_model.checkpoint import load_checkpoint
from training.clip_sources import ClipSource, MixedClips, ShardClips, SimulatorClips
from training.clips import Clip
from training.config import DataConfig, WatchConfig
from training.recipes import RECIPES
from training.shards import write_shards
from training.simulate import LatentBank, MixedSource
from training.trainer import check_run, train

SIZE = (16, 24)
CLIPS, FRAMES = 8, 47
SKY, HOLE, WALL = slice(0, 4), slice(6, 9), 4.0
DATA = DataConfig(height=16, width=24, fps=12.0, latent_steps=6, clip_starts=(0, 4), chunk_clips=4, chunks=2)


def make_clip(number: int, size: tuple[int, int] = (32, 48)) -> Clip:
    """A wall under the sky, with a hole in its depth; the colour of frame t of clip n is (n, t, 0)."""
    rgb = np.zeros((FRAMES, *size, 3), np.uint8)
    rgb[..., 0], rgb[..., 1] = 10 * number, np.arange(FRAMES)[:, None, None]
    depth = np.full(rgb.shape[:3], WALL, np.float32)
    rows = size[0] // SIZE[0]
    depth[:, SKY.start * rows : SKY.stop * rows] = FAR_DEPTH
    depth[:, HOLE.start * rows : HOLE.stop * rows, size[1] // 3 :] = 0
    return Clip(
        rgb=rgb,
        depth=depth,
        valid=(depth > 0) & (depth < FAR_DEPTH),
        moving=np.zeros(depth.shape, bool),
        world_from_camera=se3_exp(np.arange(FRAMES)[:, None] * np.array([0.01 * number, 0, 0.02, 0, 0.01, 0])),
        intrinsics=np.tile(intrinsics_from_fov(1.2, *size), (FRAMES, 1, 1)),
        fps=24.0,
        name=f"clip {number}",
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Eight clips."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, map(make_clip, range(CLIPS)), clips_per_shard=3)
    return folder


def source(mixed, rank=0, world_size=1, seed=3, **changes) -> MixedSource:
    return MixedSource(replace(DATA, **changes), mixed, "cpu", rank, world_size, seed)


def both(shards: Path) -> MixedClips:
    return MixedClips([(ShardClips(shards), 1.0), (SimulatorClips(3, supersample=1), 1.0)])


class Walls(ClipSource):
    """One clip, in memory."""

    name, length = "wall", 1

    def __init__(self, **changes):
        self.changes = changes

    def clip(self, index, num_frames, fps, height, width, generator):
        return replace(make_clip(index, (height, width)).window(num_frames, fps), **self.changes)


def assert_chunks_equal(a, b) -> None:
    for name, value in vars(a).items():
        assert torch.equal(value, getattr(b, name)), name


def numbers(chunk) -> list[int]:
    return (chunk.rgb[:, 0, 0, 0, 0] // 10).tolist()


# --- chunks


def test_a_chunk_is_a_function_of_its_number(shards):
    chunks = source(both(shards))
    in_order = [chunks(number) for number in range(4)]
    assert_chunks_equal(chunks(3), in_order[3])  # again
    assert_chunks_equal(chunks(1), in_order[1])  # and back
    later = source(both(shards))
    for number in (2, 3, 0):
        assert_chunks_equal(later(number), in_order[number])
    assert not torch.equal(in_order[0].rgb, in_order[1].rgb)
    assert not torch.equal(source(both(shards), seed=4)(0).rgb, in_order[0].rgb)


def test_processes_share_the_clips_of_an_epoch_and_get_scenes_of_their_own(shards):
    recorded = MixedClips([(ShardClips(shards), 1.0)])
    dealt = [numbers(source(recorded, rank, 2)(0)) for rank in (0, 1)]
    assert sorted(dealt[0] + dealt[1]) == list(range(CLIPS))
    rendered = MixedClips([(SimulatorClips(3, supersample=1), 1.0)])
    a, b = (source(rendered, rank, 2, chunk_clips=2)(0) for rank in (0, 1))
    pictures = torch.cat([a.rgb, b.rgb]).flatten(1)
    assert len(torch.unique(pictures, dim=0)) == 4


def test_a_chunk_holds_windows_of_the_clips_in_the_size_and_rate_of_the_run(shards):
    chunk = source(MixedClips([(ShardClips(shards), 1.0)]))(0)
    frames = DATA.num_frames
    assert chunk.rgb.shape == (4, frames, *SIZE, 3) and chunk.rgb.dtype == torch.uint8
    assert chunk.depth.shape == chunk.valid.shape == (4, frames, *SIZE) and chunk.depth.dtype == torch.float32
    assert chunk.world_from_camera.dtype == torch.float64 and chunk.intrinsics.dtype == torch.float32
    for row, number in enumerate(numbers(chunk)):
        shown = chunk.rgb[row, :, 0, 0, 1].numpy()
        assert np.array_equal(np.diff(shown), np.full(frames - 1, 2))  # every other frame: 12 of 24 a second
        np.testing.assert_array_equal(chunk.world_from_camera[row], make_clip(number).world_from_camera[shown])
        half = intrinsics_from_fov(1.2, *SIZE).astype(np.float32)
        np.testing.assert_allclose(chunk.intrinsics[row], np.tile(half, (frames, 1, 1)), rtol=1e-6)


def test_unknown_depth_is_filled_from_around_and_the_sky_stays_far(shards):
    chunk = source(MixedClips([(ShardClips(shards), 1.0)]))(0)
    assert (chunk.depth[:, :, SKY] == FAR_DEPTH).all() and not chunk.valid[:, :, SKY].any()
    below = chunk.depth[:, :, SKY.stop :]
    torch.testing.assert_close(below, torch.full_like(below, WALL), rtol=0.02, atol=0)
    assert chunk.valid[:, :, SKY.stop :].all()


@pytest.mark.parametrize("sky", [FAR_DEPTH, 3e4, np.inf])
def test_however_far_the_sky_of_a_source_is_it_is_no_surface(sky):
    truth = make_clip(0, SIZE)
    depth = np.where(truth.depth >= FAR_DEPTH, np.float32(sky), truth.depth)[: DATA.num_frames]
    walls = MixedClips([(Walls(depth=depth), 1.0)])
    chunk, usual = source(walls)(0), source(MixedClips([(Walls(), 1.0)]))(0)
    assert_chunks_equal(chunk, usual)


def test_a_picture_of_which_no_depth_is_known_shows_no_surface_and_can_be_encoded():
    shape = (DATA.num_frames, *SIZE)
    nothing = {"depth": np.full(shape, np.nan, np.float32), "valid": np.zeros(shape, bool)}
    chunks = source(MixedClips([(Walls(**nothing), 1.0)]))
    chunk = chunks(0)
    assert not chunk.valid.any() and chunk.depth.isfinite().all()
    bank = LatentBank(DATA, *fresh_autoencoders(), "cpu", chunks)
    assert bank.disparity.isfinite().all() and (bank.unit == 1).all()


def fresh_autoencoders():
    from tests.tiny import tiny_components

    parts = tiny_components()
    return parts.vae, parts.disparity_vae


# --- runs of our own layout


def mini_config(shards: Path):
    """Two chunks of four clips; one is renewed before the third and one before the fifth step."""
    config = RECIPES["debug_cpu"]()
    data = replace(config.data, sources=(f"shards={shards}@1", "simulator@1"), renew_every=2)
    return replace(config, data=data, watch=WatchConfig(tensorboard=False), steps=5, save_every=4)


def records(run_dir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("samples_per_s", "mfu", "data_wait")} for line in lines]


def test_our_transformer_is_trained_on_shards_and_goes_on_to_the_last_bit_across_a_renewal(
    shards, tmp_path, monkeypatch
):
    asked = []
    chunk_of = MixedSource.__call__
    monkeypatch.setattr(MixedSource, "__call__", lambda self, number: asked.append(number) or chunk_of(self, number))
    config = mini_config(shards)
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "step_00000005")
    shutil.rmtree(tmp_path / "cut" / "checkpoint")
    train(config, tmp_path / "cut")
    # For the autoencoders' statistics, for the bank, and to renew it: at first, and after four steps.
    assert asked == [0, 1] + [0, 1] + [2, 3] + [0, 1] + [1, 2] + [3]
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    lines = records(tmp_path / "whole")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5] and not any("bad" in line for line in lines)
    a, b = (load_checkpoint(tmp_path / run / "checkpoint").transformer.state_dict() for run in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_our_autoencoders_are_trained_on_shards(shards, tmp_path):
    config = RECIPES["debug_cpu_autoencoder"]()
    config = replace(config, data=mini_config(shards).data, watch=WatchConfig(tensorboard=False), steps=2)
    folder = train(config, tmp_path / "run")
    lines = records(tmp_path / "run")
    assert len(lines) == 2 and all(line["grad_norm"] > 0 for line in lines)
    assert min(load_checkpoint(folder).disparity_vae.config.latents_std) > 0


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("shards={tmp}/none", "sources must be there"),
        ("shards={tmp}", "sources must hold .*tar"),
        ("sintel={tmp}/none", "sources must be there"),
    ],
)
def test_a_run_whose_clips_are_missing_is_refused_before_anything_is_built(sources, message, tmp_path):
    config = RECIPES["debug_cpu"]()
    config = replace(config, data=replace(config.data, sources=("simulator", sources.format(tmp=tmp_path))))
    with pytest.raises(ValueError, match=message) as error:
        check_run(config, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_clips_too_short_for_the_run_are_named(tmp_path):
    short = make_clip(0)
    write_shards(tmp_path, [replace(short.frames(list(range(20)), 24.0), name="short")])
    with pytest.raises(ValueError, match="none can give 21 at 12 .* has at most 20 frames and 24 a second"):
        source(MixedClips([(ShardClips(tmp_path), 1.0)]))


def test_words_that_are_no_source_are_refused():
    with pytest.raises(ValueError, match="got 'films=here'"):
        DataConfig(sources=("films=here",))
