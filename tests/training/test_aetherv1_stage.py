"""The stage "aetherv1" at toy size: from shards and the simulator to a checkpoint in the published format."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from safetensors.torch import load_file

from aether_env.camera import intrinsics_from_fov, se3_exp
from aether_env.conventions import FAR_DEPTH
from aether_env.world_model.aetherv1 import PATCH, load_aetherv1
from aether_env.world_model.aetherv1_clips import AetherV1Clips
from aether_env.world_model.conditions import COLOUR, TARGET_CHANNELS
from training import aetherv1_stage
from training.aetherv1_objective import AetherV1Objective
from training.aetherv1_stage import decoded_loss, draw_part, flops_per_clip
from training.clips import Clip
from training.config import (
    AetherV1Config,
    AetherV1StageConfig,
    DecodedConfig,
    OptimizerConfig,
    ParallelConfig,
    TrainConfig,
    WatchConfig,
)
from training.data_config import Source, read_source
from training.dataset import ClipBatch
from training.parallelize import check_shards
from training.recipes import RECIPES
from training.run import Run
from training.shards import write_shards
from training.train import parse
from training.trainer import train
from training.warm import read_warm

TINY = Path(__file__).parents[1] / "goldens" / "aetherv1" / "tiny_checkpoint"
SIZE = (32, 48)
CLOCK = ("samples_per_s", "mfu", "data_wait")


def make_clip(number: int, frames: int = 33, fps: float = 24.0) -> Clip:
    """A still picture seen from a camera that goes forward; depth with a hole and sky."""
    draw = np.random.default_rng(number)
    rgb = np.repeat(draw.integers(256, size=(1, *SIZE, 3), dtype=np.uint8), frames, axis=0)
    depth = np.repeat(draw.uniform(2, 9, (1, *SIZE)).astype(np.float32), frames, axis=0)
    depth[:, :8], depth[:, 20:24, 20:24] = FAR_DEPTH, 0
    return Clip(
        rgb=rgb,
        depth=depth,
        valid=(depth > 0) & (depth < FAR_DEPTH),
        moving=np.zeros(depth.shape, bool),
        world_from_camera=se3_exp(np.arange(frames)[:, None] * np.array([0, 0, 0.05, 0, 0.01, 0])),
        intrinsics=np.tile(intrinsics_from_fov(1.2, *SIZE), (frames, 1, 1)),
        fps=fps,
        name=f"clip {number}",
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Twelve clips."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, map(make_clip, range(12)), clips_per_shard=4)
    return folder


def tiny_config(shards: Path) -> TrainConfig:
    return TrainConfig(
        stage="aetherv1",
        aetherv1=AetherV1StageConfig(
            checkpoint=str(TINY),
            sources=(f"shards={shards}@3", "simulator@1"),
            num_frames=(9, 17),
            fps=(12.0, 24.0),
            sizes=(SIZE,),
        ),
        optimizer=OptimizerConfig(lr=1e-3, muon_lr=0.0, schedule="onecycle", ema=0.5),
        watch=WatchConfig(tensorboard=False, peak_tflops=1e-5),
        batch_size=2,
        steps=4,
        save_every=2,
        log_every=1,
    )


def changed(config: TrainConfig, **stage) -> TrainConfig:
    """Return the config with other settings of the stage."""
    return replace(config, aetherv1=replace(config.aetherv1, **stage))


def records(run_dir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


@contextmanager
def noted():
    """Yield what runs are fed, batch by batch, and their weights after each step."""
    fed, weights = [], []
    compose, descend = AetherV1Objective.compose, Run.descend

    def composed(objective, batch, generators):
        fed.append((batch.names, batch.rgb.shape[1], batch.fps))
        return compose(objective, batch, generators)

    def descended(run, *losses):
        norm = descend(run, *losses)
        weights.append({name: p.detach().clone() for name, p in run.model.named_parameters()})
        return norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AetherV1Objective, "compose", composed)
        patch.setattr(Run, "descend", descended)
        yield fed, weights


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """The folder of a run that nobody disturbed, what it was fed, and its weights after each step."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with noted() as (fed, weights):
        assert train(tiny_config(shards), folder) == folder / "checkpoint"
    return folder, fed, weights


# --- a run


def test_a_run_learns_from_shards_and_the_simulator_at_several_lengths_and_rates(whole):
    folder, fed, _ = whole
    names = [name for batch, *_ in fed for name in batch]
    assert len(names) == len(set(names)) == 8
    kinds = [name.split()[0].split("-")[0] for name in names]
    assert set(kinds) == {"clip", "sim"} and kinds.count("clip") > kinds.count("sim")
    assert {frames for _, frames, _ in fed} == {9, 17} and {fps for *_, fps in fed} == {12.0, 24.0}
    lines = records(folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert {"loss", "colour", "disparity", "ray", "grad_norm"} <= line.keys()
        shares = (line["colour"] * 16 + line["disparity"] * 16 + line["ray"] * 24) / 56
        assert line["loss"] == pytest.approx(shares, rel=1e-5) and line["grad_norm"] > 0
    assert all(json.loads(line)["mfu"] > 0 for line in (folder / "log.jsonl").read_text().splitlines())


def test_a_run_cut_off_half_way_goes_on_with_its_clips_and_to_the_last_bit(whole, shards, tmp_path):
    folder, fed, _ = whole
    shutil.copytree(folder, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "step_00000004")
    shutil.rmtree(tmp_path / "cut" / "checkpoint")
    log = tmp_path / "cut" / "log.jsonl"
    log.write_text(log.read_text()[:-40])  # a torn last line
    with noted() as (fed_later, _):
        train(tiny_config(shards), tmp_path / "cut")
    assert fed_later == fed[2:] and fed[2:] != fed[:2]
    assert records(tmp_path / "cut") == records(folder)
    weights = "checkpoint/transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "cut" / weights).read_bytes() == (folder / weights).read_bytes()


def test_what_a_run_exports_dreams_along_a_path(whole):
    parts = load_aetherv1(whole[0] / "checkpoint")
    clip = make_clip(0)
    dream = AetherV1Clips(parts, size=SIZE, steps=2).predict(
        clip.rgb[:1], world_from_camera=clip.world_from_camera[None, :9], intrinsics=clip.intrinsics[:1], fps=24.0
    )
    assert dream.rgb.shape == (1, 9, *SIZE, 3) and np.array_equal(dream.rgb[0, 0], clip.rgb[0])
    assert np.isfinite(dream.depth).all() and (dream.depth > 0).all()
    assert dream.rgb[0, 1:].std() > 0


def test_a_run_exports_the_averaged_weights_and_all_else_as_it_was(whole):
    folder, _, weights = whole
    average = load_file(TINY / "transformer" / "diffusion_pytorch_model.safetensors")
    for step, after in enumerate(weights):
        share = 1 - min(0.5, (1 + step) / (10 + step))  # a short memory at first
        average = {name: average[name] + share * (after[name] - average[name]) for name in average}
    exported = load_file(folder / "checkpoint" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert exported.keys() == average.keys()
    for name in average:
        torch.testing.assert_close(exported[name], average[name], atol=1e-6, rtol=1e-5)
    apart = max((exported[name] - weights[-1][name]).abs().max() for name in average)
    assert apart > 1e-4  # the average is not the last weights
    for path in ("vae/diffusion_pytorch_model.safetensors", "empty_prompt_embeds.safetensors"):
        before, after = load_file(TINY / path), load_file(folder / "checkpoint" / path)
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    before, after = (load_aetherv1(f).scheduler.alphas_cumprod for f in (TINY, folder / "checkpoint"))
    assert torch.equal(before, after)


def test_a_run_begins_with_the_raw_and_the_averaged_weights_of_another(whole, shards, tmp_path):
    config = replace(tiny_config(shards), warm_start=str(whole[0]), steps=1)
    train(replace(config, optimizer=replace(config.optimizer, lr=1e-12, ema=0.999)), tmp_path / "next")
    before, after = read_warm(whole[0] / "warm"), read_warm(tmp_path / "next" / "warm")
    assert (before[0], after[0]) == (4, 5)
    for name, raw in before[1].items():
        torch.testing.assert_close(after[1][name], raw, atol=1e-6, rtol=0)
        share = 1 - 5 / 14  # the average is as old as the first run left it
        mixed = before[2][name].float() + share * (raw.float() - before[2][name].float())
        torch.testing.assert_close(after[2][name].float(), mixed, atol=1e-4, rtol=2**-7)
    first, cold = records(tmp_path / "next")[0], records(whole[0])[0]
    assert first["loss"] != cold["loss"]


def test_a_widened_base_model_learns_what_is_new_to_it(shards, tmp_path):
    from training.widen import widen

    base = tmp_path / "base"
    shutil.copytree(TINY, base, copy_function=shutil.copyfile)
    shutil.rmtree(base / "transformer")
    sizes = json.loads((TINY / "transformer" / "config.json").read_text())
    sizes |= {"in_channels": 32, "out_channels": 16, "use_learned_positional_embeddings": True}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CogVideoXTransformer3DModel.from_config(sizes).save_pretrained(base / "transformer")
    widen(base, tmp_path / "wide")
    config = changed(replace(tiny_config(shards), steps=3), checkpoint=str(tmp_path / "wide"))
    exported = load_aetherv1(train(config, tmp_path / "run")).transformer
    begun = load_aetherv1(tmp_path / "wide").transformer
    new_answers, new_inputs = slice(16 * PATCH**2, None), slice(COLOUR.stop, TARGET_CHANNELS)
    assert not begun.proj_out.weight[new_answers].any() and not begun.patch_embed.proj.weight[:, new_inputs].any()
    assert (exported.proj_out.weight[new_answers] != 0).any(dim=1).all()
    assert exported.patch_embed.proj.weight[:, new_inputs].abs().sum(dim=(0, 2, 3)).all()
    lines = records(tmp_path / "run")
    assert len(lines) == 3 and not any("bad" in line for line in lines)


def test_the_operations_of_a_clip_are_those_of_its_matrices():
    stage = AetherV1StageConfig(checkpoint=str(TINY), num_frames=(9, 17), sizes=((32, 48), (48, 32), (64, 64)))
    sizes = json.loads((TINY / "transformer" / "config.json").read_text())
    counted = []
    for layers in (1, 2):
        with torch.device("meta"):
            counted.append(
                flops_per_clip(stage, CogVideoXTransformer3DModel.from_config(sizes | {"num_layers": layers}))
            )
    width, level, blocks = 64, 32, []
    for slots in (3, 5):
        for cells in (4 * 6, 6 * 4, 8 * 8):
            tokens = 10 + slots * cells // 4  # the prompt, and patches of 2 x 2 cells
            matrices, attention = 2 * tokens * 12 * width**2, 2 * 2 * tokens**2 * width
            blocks.append(3 * (matrices + attention + 2 * 2 * level * 6 * width))
    assert counted[1] - counted[0] == pytest.approx(sum(blocks) / 6, rel=1e-9)


# --- stage 2


def batch_of(*clips: Clip) -> ClipBatch:
    fields = ("depth", "valid", "moving", "world_from_camera", "intrinsics")
    stacked = {name: torch.from_numpy(np.stack([getattr(clip, name)[:9] for clip in clips])) for name in fields}
    rgb = torch.from_numpy(np.stack([clip.rgb[:9] for clip in clips])).movedim(-1, 2)
    return ClipBatch(rgb=rgb, fps=24.0, names=tuple(clip.name for clip in clips), **stacked)


def asked(stage, batch=None, seeds=(1, 2)):
    """Return what `decoded_loss` takes, from a tiny checkpoint in training."""
    parts = load_aetherv1(TINY)
    parts.transformer.train().requires_grad_()
    objective, batch = AetherV1Objective(parts, AetherV1Config()), batch or batch_of(make_clip(0), make_clip(1))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    sample = objective.compose(batch, generators)
    return objective, batch, sample, objective.ask(sample, generators), stage


def stage_2(**settings) -> AetherV1StageConfig:
    return AetherV1StageConfig(checkpoint=str(TINY), stage2=True, decoded=DecodedConfig(**settings))


def test_stage_2_is_a_loss_more_of_the_same_draws_and_changes_what_is_learned(whole, shards, tmp_path):
    decoded = DecodedConfig(share=0.5, level_power=0.0)
    config = changed(replace(tiny_config(shards), steps=1), stage2=True, decoded=decoded)
    train(config, tmp_path / "run")
    before, after = records(whole[0])[0], records(tmp_path / "run")[0]
    parts = {"decoded_colour", "decoded_depth", "decoded_points"}
    assert after.keys() - before.keys() == parts and all(after[part] > 0 for part in parts)
    assert all(after[part] == before[part] for part in ("colour", "disparity", "ray"))
    weights = {"colour": decoded.colour_weight, "depth": decoded.depth_weight, "points": decoded.points_weight}
    added = sum(weight * after[f"decoded_{name}"] for name, weight in weights.items())
    assert after["loss"] == pytest.approx(before["loss"] + added, rel=1e-5)
    assert after["grad_norm"] != before["grad_norm"]
    load_aetherv1(tmp_path / "run" / "checkpoint")


def test_the_decoded_losses_reach_every_weight_of_the_transformer_and_none_of_the_autoencoder():
    objective, *rest = asked(stage_2(share=1.0))
    decoded_loss(objective, *rest, torch.Generator())[0].backward()
    parts = objective.parts
    assert not [name for name, p in parts.transformer.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(p.grad is None for p in parts.vae.parameters())


def test_the_clips_with_the_least_noise_are_decoded():
    objective, batch, sample, answer, stage = asked(stage_2(share=0.5), seeds=(1, 3))
    loss, _ = decoded_loss(objective, batch, sample, answer, stage, torch.Generator())
    (gradient,) = torch.autograd.grad(loss, answer.velocity)
    least = int(answer.levels.share.argmin())
    assert gradient[least].any() and not gradient[1 - least].any()


def test_a_perfect_answer_has_no_decoded_loss_and_unknown_depth_says_nothing():
    objective, batch, sample, answer, stage = asked(stage_2(share=1.0, level_power=0.0))
    perfect = replace(answer, velocity=answer.wanted)
    loss, parts = decoded_loss(objective, batch, sample, perfect, stage, torch.Generator())
    worse, _ = decoded_loss(objective, batch, sample, answer, stage, torch.Generator())
    assert loss < 0.01 * worse
    unknown = replace(batch, valid=torch.zeros_like(batch.valid))
    _, parts = decoded_loss(objective, unknown, sample, answer, stage, torch.Generator())
    assert parts["decoded_depth"] == parts["decoded_points"] == 0 < parts["decoded_colour"]


def test_parts_lie_anywhere_alike_inside_and_are_the_whole_where_that_is_smaller():
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_part((10, 12), (64, 80), generator) for _ in range(400)]
    assert {(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in drawn} == {(8, 10)}
    firsts = np.array([(rows.start, columns.start) for rows, columns in drawn])
    assert (np.bincount(firsts[:, 0]) > 100).all() and np.bincount(firsts[:, 0]).shape == (3,)
    assert (np.bincount(firsts[:, 1]) > 100).all() and np.bincount(firsts[:, 1]).shape == (3,)
    assert draw_part((4, 6), (128, 192), generator) == [slice(0, 4), slice(0, 6)]


def test_of_larger_pictures_a_part_is_judged_where_it_lies():
    """Change the answer and the known depth outside of the part: nothing changes; inside: the loss does."""
    clips = [make_clip(seed).fitted(64, 96) for seed in (0, 1)]
    stage = replace(stage_2(share=1.0, level_power=0.0), decoded_size=(64, 64))
    objective, batch, sample, answer, stage = asked(stage, batch_of(*clips))
    _, columns = draw_part((8, 12), (64, 64), torch.Generator().manual_seed(4))
    assert columns == slice(4, 12)

    def judged(valid, velocity):
        given = replace(batch, valid=valid), sample, replace(answer, velocity=velocity), stage
        return decoded_loss(objective, *given, torch.Generator().manual_seed(4))[0].detach()

    inside = torch.zeros(12, dtype=torch.bool)
    inside[columns] = True
    pixels = inside.repeat_interleave(8)
    loss = judged(batch.valid, answer.velocity)
    assert judged(batch.valid & pixels, torch.where(inside, answer.velocity, 9.0)) == loss
    assert judged(batch.valid & ~pixels, answer.velocity) != loss
    assert judged(batch.valid, torch.where(inside, 9.0, answer.velocity)) != loss


# --- mistakes


def without_clips(config, tmp_path, our_layout):
    return changed(config, sources=(f"shards={tmp_path / 'none'}",))


def with_an_empty_folder(config, tmp_path, our_layout):
    (tmp_path / "empty").mkdir()
    return changed(config, sources=("simulator", f"shards={tmp_path / 'empty'}@2"))


def with_our_layout(config, tmp_path, our_layout):
    return changed(config, checkpoint=str(our_layout))


def without_a_checkpoint(config, tmp_path, our_layout):
    return changed(config, checkpoint=str(tmp_path / "none"))


def not_widened(config, tmp_path, our_layout):
    shutil.copytree(TINY, tmp_path / "base", copy_function=shutil.copyfile)
    path = tmp_path / "base" / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": 32, "out_channels": 16}))
    return changed(config, checkpoint=str(tmp_path / "base"))


def with_more_shards_than_processes(config, tmp_path, our_layout):
    return replace(config, parallel=ParallelConfig(shards=8))


def warm_from_a_checkpoint(config, tmp_path, our_layout):
    return replace(config, warm_start=str(TINY))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (without_clips, "sources must .*none.*training.record"),
        (with_an_empty_folder, "sources must .*empty.*training.record"),
        (with_our_layout, "transformer"),
        (without_a_checkpoint, "none/transformer/config.json"),
        (not_widened, "in_channels must be 96, got 32"),
        (with_more_shards_than_processes, "shards must divide the 1 processes, got 8"),
        (warm_from_a_checkpoint, "warm_start must be a run .*aetherv1.checkpoint"),
    ],
)
def test_what_cannot_work_is_told_in_a_line_before_anything_is_built(
    mistake, message, shards, tiny_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(aetherv1_stage, "load_aetherv1", lambda *_: pytest.fail("it was loaded"))
    config = mistake(tiny_config(shards), tmp_path, tiny_checkpoint)
    with pytest.raises(ValueError, match=message) as error:
        train(config, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_shards_that_cannot_be_read_are_told_before_the_model_is_loaded(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(aetherv1_stage, "load_aetherv1", lambda *_: pytest.fail("it was loaded"))
    (tmp_path / "torn").mkdir()
    torn = (shards / "clips-000000.tar").read_bytes()[:2000]
    (tmp_path / "torn" / "clips-000000.tar").write_bytes(torn)
    config = changed(tiny_config(shards), sources=(f"shards={tmp_path / 'torn'}",))
    with pytest.raises(ValueError, match="torn has none that can be read.*cut off"):
        train(config, tmp_path / "run")


def test_damaged_shards_are_left_out_and_named(shards, tmp_path, caplog):
    shutil.copytree(shards, tmp_path / "shards")
    torn = tmp_path / "shards" / "clips-000002.tar"
    torn.write_bytes(torn.read_bytes()[:3000])
    config = changed(tiny_config(shards), sources=(f"shards={tmp_path / 'shards'}",))
    train(replace(config, steps=1), tmp_path / "run")
    assert [r for r in caplog.records if r.levelname == "WARNING" and str(torn) in r.getMessage()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": ()}, "sources must name at least one"),
        ({"sources": ("video=clips",)}, "KIND one of simulator, shards, sintel, scannet, tum, got 'video=clips'"),
        ({"sources": ("bonn=clips",)}, "'bonn=clips': its groundtruth.txt follows markers and .*; annotate"),
        ({"sources": ("kitti=clips",)}, "'kitti=clips': the pictures with depth .* without poses; annotate"),
        ({"sources": ("shards",)}, "sources must name a folder"),
        ({"sources": ("simulator=clips",)}, "sources must name a folder"),
        ({"sources": ("simulator@0",)}, "positive weights, got 'simulator@0'"),
        ({"sources": ("shards=clips@inf",)}, "positive weights"),
        ({"sources": ("shards=clips@twice",)}, "positive weights"),
        ({"num_frames": (17, 24)}, r"num_frames must be .*8 k \+ 1.*got \[24\]"),
        ({"num_frames": ()}, "num_frames"),
        ({"fps": (0.0,)}, "fps"),
        ({"fps": (12.0, 90.0)}, "fps"),
        ({"fps": ()}, "fps"),
        ({"sizes": ((480, 724),)}, r"sizes must be .*multiples of 16, got \[\(480, 724\)\]"),
        ({"sizes": ()}, "sizes"),
        ({"workers": -1}, "workers"),
        ({"shuffle_shards": 0}, "shuffle_shards"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        AetherV1StageConfig(**settings)


def test_the_stage_needs_a_checkpoint_and_says_where_to_get_one():
    with pytest.raises(ValueError, match="aetherv1.checkpoint must name .*import-aetherv1.*training.widen"):
        TrainConfig(stage="aetherv1")


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("simulator", Source("simulator", None, 1.0)),
        ("simulator@0.5", Source("simulator", None, 0.5)),
        ("shards=data/clips", Source("shards", Path("data/clips"), 1.0)),
        ("shards=data/clips@2", Source("shards", Path("data/clips"), 2.0)),
        ("scannet=/sets/a=b@1e-3", Source("scannet", Path("/sets/a=b"), 0.001)),
        ("shards=/home/me@work/clips@2", Source("shards", Path("/home/me@work/clips"), 2.0)),
    ],
)
def test_a_source_is_a_kind_a_folder_and_a_weight(text, source):
    assert read_source(text) == source


@pytest.mark.parametrize("name, stage", [("mini_finetune", "data"), ("finetune", "aetherv1")])
def test_sources_are_named_on_the_command_line(name, stage):
    config = parse(["--recipe", name, f"--{stage}.sources", "shards=data/clips@2", "simulator@1"]).config
    assert getattr(config, stage).sources == ("shards=data/clips@2", "simulator@1")
    assert replace(config, **{stage: getattr(RECIPES[name](), stage)}) == RECIPES[name]()  # and nothing else changed


# --- recipes


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_and_is_given_by_its_name(name):
    config = RECIPES[name]()
    assert RECIPES[name].__name__ == name and config == RECIPES[name]()
    world_size = max(config.parallel.shards, {"aetherv1_paper": 80, "aetherv1_paper_stage2": 80}.get(name, 1))
    check_shards(config.parallel.shards, world_size, config.optimizer.muon_lr)


def test_the_papers_recipe_is_320_clips_on_80_gpus_in_nodes_of_8():
    paper, node = RECIPES["aetherv1_paper"](), RECIPES["aetherv1_8gpu"]()
    assert paper.stage == "aetherv1" and 80 * paper.batch_size == 320 == 10 * 8 * node.batch_size
    assert paper.parallel.shards == node.parallel.shards == 8
    assert paper.optimizer.schedule == "onecycle" and paper.bf16
    stage = paper.aetherv1
    assert set(stage.num_frames) == {17, 25, 33, 41} and set(stage.fps) == {8, 10, 12, 15, 24}
    assert stage.sizes == ((480, 720),) and stage.objective.prediction == "v_prediction" and not stage.stage2
    assert node.optimizer.lr < paper.optimizer.lr


def test_stage_2_of_the_paper_is_a_quarter_of_the_steps_from_what_stage_1_exported():
    one, two = RECIPES["aetherv1_paper"](), RECIPES["aetherv1_paper_stage2"]()
    assert 4 * two.steps == one.steps and two.aetherv1.stage2
    assert two.aetherv1.checkpoint == "runs/aetherv1_paper/checkpoint"
    same = replace(one.aetherv1, checkpoint=two.aetherv1.checkpoint, stage2=True)
    assert replace(one, aetherv1=same, steps=two.steps) == two


def test_fine_tuning_begins_with_the_published_model_and_a_lower_rate():
    tuned, node = RECIPES["finetune"](), RECIPES["aetherv1_8gpu"]()
    assert tuned.aetherv1.checkpoint != node.aetherv1.checkpoint
    assert tuned.optimizer.lr < node.optimizer.lr and tuned.parallel.shards == 8


@pytest.mark.parametrize("name", ["mini_finetune", "mini_stage2"])
def test_what_goes_on_from_mini_has_its_shape_its_autoencoders_and_a_lower_rate(name):
    from aether_env.world_model.checkpoint import BUNDLED
    from aether_env.world_model.network import build_transformer

    config, one = RECIPES[name](), RECIPES["mini_1gpu"]()
    assert config.warm_start == config.transformer.autoencoder == "mini"
    assert config.optimizer.lr < one.optimizer.lr and config.optimizer.muon_lr < one.optimizer.muon_lr
    assert config.transformer.stage2 == (name == "mini_stage2")
    with torch.device("meta"):
        built = build_transformer(config.data.height, config.data.width, **config.transformer.architecture)
    trained = json.loads((BUNDLED / "mini" / "transformer" / "config.json").read_text())
    assert {k: v for k, v in trained.items() if not k.startswith("_")} == json.loads(
        json.dumps({k: v for k, v in built.config.items() if not k.startswith("_")})
    )
    if name == "mini_stage2":
        assert 4 * config.minutes == one.minutes
