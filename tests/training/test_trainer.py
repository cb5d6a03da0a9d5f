"""Runs of seconds on the CPU: a run that was cut off goes on bit by bit; what it exports dreams."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import training.discriminator
from aether_env.world_model.checkpoint import load_checkpoint
from aether_env.world_model.network import build_transformer
from aether_env.world_model.own_clips import OwnClips
from aether_env.world_model.promise import Start
from aether_env.world_model.rollout import DreamWorld
from training.config import (
    DataConfig,
    DecodedConfig,
    DecoderConfig,
    OptimizerConfig,
    ParallelConfig,
    TrainConfig,
    TransformerConfig,
    WatchConfig,
)
from training.folder import claimed
from training.objective import Walkers
from training.recipes import RECIPES
from training.train import main
from training.trainer import check_run, flops_per_window, train

ROOT = Path(__file__).parents[2]


def records(run_dir):
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("samples_per_s", "mfu", "data_wait")} for line in lines]


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
        config,
        transformer=replace(config.transformer, autoencoder=str(folder / "autoencoder" / "checkpoint")),
        watch=WatchConfig(sheet_every=6, sheet_clips=1, tensorboard=False),
        steps=6,
        save_every=3,
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


def test_a_run_that_shows_guesses_goes_on_to_the_last_bit_and_exports_what_wants_them(runs, tmp_path):
    config = transformer_config(runs)
    guessing = replace(config.transformer, step_guess=True, walker_start=0.0)
    config = replace(config, transformer=guessing, watch=replace(config.watch, sheet_every=0))
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "step_00000006")
    shutil.rmtree(tmp_path / "cut" / "checkpoint")
    train(config, tmp_path / "cut")
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    starts = json.loads((tmp_path / "cut" / "environment.json").read_text())
    assert starts[-1]["from_step"] == 3  # walkers have dreamed once before that, and do so twice after it
    assert records(tmp_path / "whole")[-1]["step_colour"] != records(runs / "transformer")[-1]["step_colour"]
    assert load_checkpoint(tmp_path / "cut" / "checkpoint").settings.step_guess
    world = DreamWorld.from_checkpoint(tmp_path / "cut" / "checkpoint")
    state, _ = world.start([Start(rgb=np.zeros((16, 24, 3), np.uint8))], [0])
    _, frames = world.advance(state, np.tile(np.eye(4), (1, 4, 1, 1)))
    assert np.isfinite(frames.depth).all()


def test_a_run_goes_on_though_what_it_began_with_is_gone(runs, tmp_path):
    start = shutil.copytree(runs / "transformer" / "checkpoint", tmp_path / "start")
    config = replace(transformer_config(runs), warm_start=str(start), steps=1)
    train(config, tmp_path / "run")
    shutil.rmtree(start)
    with pytest.raises(ValueError, match="start"):
        check_run(config, tmp_path / "other")
    train(replace(config, steps=2), tmp_path / "run")
    assert [r["step"] for r in records(tmp_path / "run")] == [1, 2]


def test_a_finished_run_that_is_started_again_keeps_its_checkpoint_as_it_is(runs, tmp_path):
    shutil.copytree(runs / "autoencoder", tmp_path / "run")
    state = tmp_path / "run" / "step_00000006" / "state.json"
    before = state.stat()
    train(RECIPES["debug_cpu_autoencoder"](), tmp_path / "run")
    assert (state.stat().st_ino, state.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_folder_in_which_a_run_is_going_on_is_refused_and_left_as_it_is(runs, tmp_path):
    shutil.copytree(runs / "autoencoder", tmp_path / "run")
    being_written = tmp_path / "run" / ".step_00000007"
    being_written.mkdir()
    with claimed(tmp_path / "run"), pytest.raises(ValueError, match="another process trains in"):
        train(replace(RECIPES["debug_cpu_autoencoder"](), steps=8), tmp_path / "run")
    assert being_written.is_dir()


def test_a_critic_whose_gradient_is_not_finite_spoils_the_step_though_its_loss_is(runs, tmp_path, monkeypatch):
    true_loss = training.discriminator.critic_loss

    def steep(of_real, of_decoded):  # the slope of a root at 0
        return true_loss(of_real, of_decoded) + of_real.mean().mul(0).abs().sqrt()

    monkeypatch.setattr(training.discriminator, "critic_loss", steep)
    train(replace(decoder_config(runs), steps=1), tmp_path)
    line = records(tmp_path)[0]
    assert line["bad"] == ["critic_grad_norm"] and line["critic_loss"] is not None
    saved = [load_file(path) for path in (tmp_path / "step_00000001").glob("*.safetensors")]
    assert all(tensor.isfinite().all() for tensors in saved for tensor in tensors.values())


def test_two_processes_save_and_one_goes_on_with_the_command(tmp_path):
    command = ["--recipe", "debug_cpu", "--run-dir", str(tmp_path), "--optimizer.muon-lr", "0"]
    command += ["--watch.no-tensorboard", "--watch.sheet-every", "0", "--data.chunk-clips", "2"]
    both = ["--steps", "2", "--parallel.shards", "2", "--batch-size", "32"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*torchrun, "-m", "training.train", *command, *both],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone = [*command, "--steps", "4", "--parallel.shards", "1", "--batch-size"]
    with pytest.raises(SystemExit) as refused:
        main([*alone, "32"])  # half of the samples
    assert refused.value.code == 2
    main([*alone, "64"])
    assert [r["step"] for r in records(tmp_path)] == [1, 2, 3, 4]
    assert all(np.isfinite(r["loss"]) for r in records(tmp_path))
    starts = json.loads((tmp_path / "environment.json").read_text())
    assert [(start["from_step"], start["processes"]) for start in starts] == [(0, 2), (2, 1)]


def test_another_run_in_the_same_folder_is_refused(runs, tmp_path):
    shutil.copytree(runs / "transformer", tmp_path / "run")
    with pytest.raises(ValueError, match="seed"):
        train(replace(transformer_config(runs), seed=5), tmp_path / "run")


def test_what_differs_from_the_folders_run_is_named_with_both_values(runs, tmp_path):
    shutil.copytree(runs / "transformer", tmp_path / "run")
    config = transformer_config(runs)
    other = replace(config, optimizer=replace(config.optimizer, lr=3e-4, ema=0.5))
    with pytest.raises(
        ValueError, match=r"another optimizer.ema \(0.9995, now 0.5\); optimizer.lr \(0.001, now 0.0003\)"
    ):
        train(other, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text('{"seed": 0, "da')
    with pytest.raises(ValueError, match="config.json is damaged.*delete it"):
        train(config, tmp_path / "run")


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
        (lambda: TransformerConfig(walker_every=0), "walker_every"),
        (lambda: OptimizerConfig(decay_share=0.0), "decay_share"),
        (lambda: OptimizerConfig(schedule="cosine"), "schedule"),
        (lambda: OptimizerConfig(ema=1.0), "ema"),
        (lambda: ParallelConfig(shards=0), "shards"),
        (lambda: WatchConfig(peak_tflops=0.0), "peak_tflops"),
        (lambda: replace(RECIPES["debug_cpu"](), batch_size=4), "batch_size 4"),
        (lambda: replace(RECIPES["debug_cpu"](), minutes=0.0), "minutes"),
    ],
)
def test_impossible_settings_are_named_before_any_work(build, name):
    with pytest.raises(ValueError, match=name):
        build()


def test_walkers_take_a_step_every_so_many_steps_and_none_between(runs, tmp_path, monkeypatch):
    moved = []
    advance = Walkers.advance

    def watched(walkers, *args):
        before = walkers.step.clone()
        advance(walkers, *args)
        moved.append(not torch.equal(before, walkers.step))

    monkeypatch.setattr(Walkers, "advance", watched)
    config = transformer_config(runs)
    train(replace(config, transformer=replace(config.transformer, walker_every=3)), tmp_path)
    assert moved == [True, True]


def test_a_run_begins_with_the_weights_of_a_checkpoint(runs, tmp_path):
    config = replace(transformer_config(runs), warm_start=str(runs / "transformer" / "checkpoint"), steps=1)
    config = replace(config, optimizer=OptimizerConfig(lr=1e-12, muon_lr=0.0))
    train(config, tmp_path)
    old, new = (load_checkpoint(folder / "checkpoint").transformer for folder in (runs / "transformer", tmp_path))
    for a, b in zip(old.parameters(), new.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_a_sheet_shows_truth_and_prediction_of_validation_clips(runs):
    sheet = np.asarray(Image.open(runs / "transformer" / "samples" / "step_00000006.png"))
    assert sheet.shape == (4 * 16 + 3 * 2, 5 * 24 + 4 * 2, 3)
    truth, dream = sheet[:16, :24], sheet[18:34, :24]
    assert np.array_equal(truth, dream) and truth.std() > 1  # the first picture was given
    assert not np.array_equal(sheet[:16, 26:50], sheet[18:34, 26:50])


def test_the_operations_of_a_window_are_those_of_its_matrices(monkeypatch):
    monkeypatch.setattr(TransformerConfig, "windows", lambda config, size: {"clip": size})  # no other kind
    config, counted = RECIPES["debug_cpu"](), []
    for layers in (1, 2):
        architecture = {**config.transformer.architecture, "num_layers": layers}
        counted.append(flops_per_window(config, build_transformer(16, 24, **architecture)))
    tokens, width, level = 1 + 5 * 2 * 3, 64, 16  # the prompt, and patches of 2 x 2 cells of 4 x 4 pixels
    matrices, attention = 2 * tokens * 12 * width**2, 2 * 2 * tokens**2 * width
    modulation = 2 * 2 * level * 6 * width
    assert counted[1] - counted[0] == 3 * (matrices + attention + modulation)


def test_stage_2_is_a_loss_more_of_the_clips_and_changes_what_is_learned(runs, tmp_path):
    config = transformer_config(runs)
    decoded = replace(config.transformer, stage2=True, decoded=DecodedConfig(share=0.2))
    train(replace(config, transformer=decoded, steps=1), tmp_path)
    before, after = records(runs / "transformer")[0], records(tmp_path)[0]
    parts = {"clip_decoded_colour", "clip_decoded_depth", "clip_decoded_points"}
    assert after.keys() - before.keys() == parts and all(after[part] > 0 for part in parts)
    assert after["clip_colour"] == before["clip_colour"]  # the same draws
    assert after["loss"] > before["loss"] and after["grad_norm"] != before["grad_norm"]
