"""Runs of seconds on the CPU: a run that was cut off goes on bit by bit; what it exports dreams."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from aether_env.world_model.checkpoint import load_checkpoint
from aether_env.world_model.own_clips import OwnClips
from training.checkpointing import load_run, newest_run, save_run
from training.config import DataConfig, DecoderConfig, OptimizerConfig, TrainConfig, TransformerConfig
from training.recipes import RECIPES
from training.trainer import train


def records(run_dir):
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "samples_per_s"} for line in lines]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run of each stage, whole."""
    folder = tmp_path_factory.mktemp("runs")
    train(RECIPES["debug_cpu_autoencoder"](), folder / "autoencoder")
    train(transformer_config(folder), folder / "transformer")
    train(decoder_config(folder), folder / "decoder")
    return folder


def transformer_config(folder):
    config = RECIPES["debug_cpu"]()
    return replace(
        config, transformer=replace(config.transformer, autoencoder=str(folder / "autoencoder" / "checkpoint"))
    )


def decoder_config(folder):
    """Refine the decoder of the transformer's checkpoint, as one would to ship it."""
    config = RECIPES["debug_cpu_decoder"]()
    return replace(config, decoder=replace(config.decoder, autoencoder=str(folder / "transformer" / "checkpoint")))


@pytest.mark.parametrize("stage", ["autoencoder", "transformer", "decoder"])
def test_a_run_cut_off_half_way_goes_on_to_the_last_bit(runs, stage, tmp_path):
    shutil.copytree(runs / stage, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "step_00000006")
    log = tmp_path / "cut" / "log.jsonl"
    log.write_text(log.read_text()[:-40])  # a torn last line
    configs = {"transformer": transformer_config(runs), "decoder": decoder_config(runs)}
    train(configs.get(stage, RECIPES["debug_cpu_autoencoder"]()), tmp_path / "cut")
    assert records(tmp_path / "cut") == records(runs / stage)
    assert [r["step"] for r in records(runs / stage)] == list(range(1, 7))


def test_a_run_cut_off_where_its_clips_are_renewed_goes_on_to_the_last_bit(runs, tmp_path):
    config = transformer_config(runs)
    config = replace(config, data=replace(config.data, renew_every=3), steps=5, save_every=3)
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "step_00000005")
    train(config, tmp_path / "cut")
    assert records(tmp_path / "cut") == records(tmp_path / "whole")


def test_another_run_in_the_same_folder_is_refused(runs, tmp_path):
    shutil.copytree(runs / "transformer", tmp_path / "run")
    with pytest.raises(ValueError, match="seed"):
        train(replace(transformer_config(runs), seed=5), tmp_path / "run")


def test_what_a_run_exports_dreams(runs):
    pipeline = OwnClips.from_checkpoint(runs / "transformer" / "checkpoint")
    result = pipeline.predict(np.zeros((1, 16, 24, 3), np.uint8))
    assert result.rgb.shape == (1, 17, 16, 24, 3) and np.isfinite(result.depth).all()


def test_latents_of_the_exported_autoencoder_have_unit_variance(runs):
    vae = OwnClips.from_checkpoint(runs / "autoencoder" / "checkpoint").parts.vae
    assert len(vae.config.latents_std) == 16 and min(vae.config.latents_std) > 0


def test_the_decoder_stage_changes_the_colour_decoder_and_nothing_else(runs):
    before, after = (load_checkpoint(runs / stage / "checkpoint") for stage in ("transformer", "decoder"))
    assert after.settings == before.settings and dict(after.vae.config) == dict(before.vae.config)
    changed = set()
    for name in ("vae", "disparity_vae", "transformer"):
        old, new = (getattr(parts, name).state_dict() for parts in (before, after))
        changed |= {f"{name}.{key.split('.')[0]}" for key in old if not torch.equal(old[key], new[key])}
    assert changed == {f"vae.{part}" for part in ("from_latents", "decoder", "group_out", "fine", "frame_out")}


def test_only_whole_checkpoints_are_found_and_old_ones_go(tmp_path):
    for step in (1, 2, 3):
        save_run(tmp_path, step, {"a": np_tensor(step), "nested": [{"b": np_tensor(step), 5: "five"}, 1.5, None]})
    (tmp_path / ".step_00000009.1").mkdir()
    assert sorted(p.name for p in tmp_path.glob("step_*")) == ["step_00000002", "step_00000003"]
    step, state = load_run(newest_run(tmp_path), "cpu")
    assert step == 3 and state["nested"][0][5] == "five" and state["nested"][1:] == [1.5, None]
    assert state["a"].tolist() == [3.0]


def test_a_run_killed_during_a_save_saves_again(tmp_path):
    for pid in (os.getpid(), 1):
        (tmp_path / f".step_00000001.{pid}").mkdir()
        (tmp_path / f".step_00000001.{pid}" / "state.safetensors").write_bytes(b"half")
    save_run(tmp_path, 1, {"a": np_tensor(1)})
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    assert load_run(newest_run(tmp_path), "cpu")[1]["a"].tolist() == [1.0]


def test_a_damaged_checkpoint_is_named(tmp_path):
    folder = save_run(tmp_path, 1, {"a": np_tensor(1)})
    (folder / "state.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="step_00000001 is not a whole checkpoint"):
        load_run(folder, "cpu")


def np_tensor(value):
    return torch.tensor([float(value)])


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: TrainConfig(stage="both"), "stage"),
        (lambda: TrainConfig(stage="transformer"), "autoencoder"),
        (lambda: TrainConfig(stage="autoencoder", batch_size=0), "batch_size"),
        (lambda: DataConfig(height=60), "height"),
        (lambda: DataConfig(clip_starts=(3,)), "clip_starts"),
        (lambda: DataConfig(clip_starts=(40,)), "clip_starts"),
        (lambda: DataConfig(clip_starts=(4,)), "clip_starts"),
        (lambda: DecoderConfig(adversarial_start=1.5), "adversarial_start"),
        (lambda: DecoderConfig(critic_widths=()), "critic_widths"),
        (lambda: DecoderConfig(latent_noise=-0.1), "latent_noise"),
        (lambda: TransformerConfig(mask_shares=(0.5, 0.5, 0.5, 0.5)), "mask_shares"),
        (lambda: TransformerConfig(step_share=0.9), "shares"),
        (lambda: TransformerConfig(walker_sigmas=(0.5,)), "walker_sigmas"),
        (lambda: OptimizerConfig(decay_share=0.0), "decay_share"),
    ],
)
def test_impossible_settings_are_named_before_any_work(build, name):
    with pytest.raises(ValueError, match=name):
        build()


def test_a_batch_too_small_for_every_kind_of_window_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="batch_size 4"):
        train(replace(transformer_config(runs), batch_size=4), tmp_path / "run")
