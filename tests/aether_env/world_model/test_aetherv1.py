"""AetherV1: the public code's numbers, each item by itself, and a folder that is whole or says what it lacks."""

import json
import math
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from aether_env.world_model import import_aetherv1 as importing
from aether_env.world_model.aetherv1 import (
    INDEX_FILE,
    AetherV1,
    check_aetherv1,
    guidance_weight,
    load_aetherv1,
    rotary_aetherv1,
)
from aether_env.world_model.checkpoint import PROMPT_FILE, WEIGHTS_FILE, CheckpointError
from aether_env.world_model.import_aetherv1 import PROMPT_TOKENS, import_aetherv1
from training.evaluation.parity import TOLERANCE, differences, read_case

GOLDENS = Path(__file__).parents[2] / "goldens" / "aetherv1"
TINY = GOLDENS / "tiny_checkpoint"
CASES = sorted((GOLDENS / "cases").glob("*.npz"))
FIELDS = ("rgb", "disparity", "raymap")


@pytest.fixture(scope="module")
def model() -> AetherV1:
    return load_aetherv1(TINY)


@pytest.fixture
def folder(tmp_path) -> Path:
    shutil.copytree(TINY, tmp_path / "copy", copy_function=shutil.copyfile)
    return tmp_path / "copy"


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def assert_clips_close(found, expected, tolerance=1e-4):
    for name in FIELDS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=tolerance, rtol=tolerance)


# --- the same numbers as the public code


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_public_codes_cases_come_out(model, path):
    found = differences(model, *read_case(path))
    assert set(found) == set(FIELDS)
    assert max(found.values()) <= TOLERANCE / 10  # float32 alone makes 4e-5


def by_hand(model, seed, frames, size, fps=12, steps=3, guidance=1.0, image=None, goal=None, video=None, raymap=None):
    """The rule for one item, line by line: no batches, no shortcuts, nothing of the module under test."""
    crop_region = pytest.importorskip(
        "diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video", reason="needs transformers"
    ).get_resize_crop_region_for_grid
    generator = torch.Generator().manual_seed(seed)
    vae, net, scheduler = model.vae, model.transformer, model.scheduler
    n, h, w = (frames + 3) // 4, size[0] // 8, size[1] // 8

    def encode(video_t3hw):
        moments = vae.encode(video_t3hw.movedim(0, 1)[None] * 2 - 1).latent_dist.parameters
        mean, log_variance = moments[:, :16], moments[:, 16:].clamp(-30, 20)
        return (mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=generator))[0].movedim(1, 0) / 0.7

    condition = torch.zeros(1, n, 40, h, w)
    if image is not None:
        condition[0, 0, :16] = encode(image[None])[0]
    if goal is not None:
        condition[0, n - 1, :16] = encode(goal[None])[0]
    if video is not None:
        condition[0, :, :16] = encode(video)
    if raymap is not None:
        padded = [raymap[0], raymap[1], raymap[2], *raymap]
        for step in range(n):
            for group in range(4):
                condition[0, step, 16 + 6 * group : 22 + 6 * group] = padded[group * n + step]
    latents = torch.randn((1, n, 56, h, w), generator=generator)

    (top, left), (bottom, right) = crop_region((h // 2, w // 2), 6, 4)  # trained: 64 x 96, 4 x 6 tokens
    rows = np.linspace(top, bottom * (h // 2 - 1) / (h // 2), h // 2)
    columns = np.linspace(left, right * (w // 2 - 1) / (w // 2), w // 2)
    places = np.stack(np.meshgrid(np.arange(n) * 12 / fps, rows, columns, indexing="ij"), axis=-1).reshape(-1, 3)
    angles = [places[:, [k]] / 10000 ** (np.arange(0, dim, 2) / dim) for k, dim in enumerate((8, 12, 12))]
    angles = torch.from_numpy(np.concatenate(angles, axis=1).repeat(2, axis=1))
    rotary = angles.cos().float(), angles.sin().float()

    def ask(shown, timestep):
        return net(torch.cat([latents, shown], 2), model.prompt_embeds, timestep.expand(1), image_rotary_emb=rotary)[0]

    scheduler.set_timesteps(steps)
    clean, before = None, None
    for timestep in scheduler.timesteps:
        velocity = ask(condition, timestep)
        if guidance > 1:
            blank = condition.clone()
            blank[:, :, :16] = 0
            weight = 1 + guidance * (1 - math.cos(math.pi * ((steps - timestep.item()) / steps) ** 5)) / 2
            velocity = (1 - weight) * ask(blank, timestep) + weight * velocity
        latents, clean = scheduler.step(velocity, clean, timestep, before, latents, generator=generator)
        before = timestep

    rgb, disparity = (vae.decode(latents[:, :, c : c + 16].transpose(1, 2) / 0.7).sample[0] for c in (0, 16))
    rays = [latents[0, step, 32 + 6 * group : 38 + 6 * group] for group in range(4) for step in range(n)]
    return SimpleNamespace(
        rgb=(rgb.movedim(1, 0) / 2 + 0.5).clamp(0, 1)[None],
        disparity=(disparity.mean(0) / 2 + 0.5).square()[None],
        raymap=torch.stack(rays[-frames:])[None],
    )


@pytest.mark.parametrize(
    "given, frames, size, settings",
    [
        ("image goal raymap", 25, (32, 48), {"fps": 24, "guidance": 3.0}),
        ("video raymap", 33, (48, 32), {"fps": 8, "steps": 6}),
        ("image", 17, (64, 64), {"fps": 10, "steps": 7, "guidance": 2.0}),
        ("goal", 17, (32, 32), {"guidance": 1.5, "steps": 2}),
        ("raymap", 41, (32, 16), {"fps": 15, "guidance": 3.0}),
        ("", 25, (16, 32), {"fps": 8, "guidance": 3.0}),
    ],
)
@torch.inference_mode()
def test_other_lengths_sizes_speeds_and_inputs_follow_the_same_rule(model, given, frames, size, settings):
    shapes = {"image": (3, *size), "goal": (3, *size), "video": (frames, 3, *size)}
    shapes["raymap"] = (frames, 6, size[0] // 8, size[1] // 8)
    inputs = {name: pictures(*shapes[name], seed=i) for i, name in enumerate(given.split())}
    expected = by_hand(model, 5, frames, size, **{"steps": 3} | settings, **inputs)
    batched = {name: tensor[None] for name, tensor in inputs.items()}
    found = model(seeded(5), num_frames=frames, size=size, **{"steps": 3} | settings, **batched)
    assert_clips_close(found, expected)


def test_a_batch_gives_what_its_items_give_alone(model):
    image, goal, raymap = pictures(3, 3, 32, 32), pictures(3, 3, 32, 32, seed=1), pictures(3, 9, 6, 4, 4, seed=2)
    together = model(seeded(1, 2, 3), image=image, goal=goal, raymap=raymap, steps=3)
    assert not torch.equal(together.rgb[0], together.rgb[1])
    for item, seed in enumerate((1, 2, 3)):
        row = slice(item, item + 1)
        alone = model(seeded(seed), image=image[row], goal=goal[row], raymap=raymap[row], steps=3)
        assert_clips_close(alone, SimpleNamespace(**{name: getattr(together, name)[row] for name in FIELDS}))


def test_branches_in_turn_and_clips_one_by_one_give_the_same_numbers(model):
    inputs = {"image": pictures(2, 3, 32, 32), "num_frames": 9, "steps": 2}
    frugal = replace(model, guidance_in_turn=True, slicing=True)
    assert_clips_close(frugal(seeded(1, 2), **inputs), model(seeded(1, 2), **inputs))


def test_tiles_are_only_taken_when_asked_for(folder):
    edit(folder / "vae" / "config.json", sample_height=96, sample_width=80)  # tiles are half of that
    model = load_aetherv1(folder)
    inputs = {"video": pictures(1, 9, 3, 64, 96), "steps": 1}
    whole, tiled, again = (m(seeded(1), **inputs).rgb for m in (model, replace(model, tiling=True), model))
    assert (tiled - whole).abs().max() > 1e-3
    torch.testing.assert_close(again, whole)


def test_tasks_have_their_own_steps_and_progress_is_told(model):
    told = []
    model(seeded(1), video=pictures(1, 9, 3, 16, 16), progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_guidance_is_full_at_timestep_0_and_none_where_the_timestep_is_the_number_of_steps():
    assert guidance_weight(3.0, 50, 0) == pytest.approx(4.0)
    assert guidance_weight(3.0, 50, 50) == pytest.approx(1.0)
    assert guidance_weight(3.0, 50, 25) == pytest.approx(1 + 3 * math.sin(math.pi / 64) ** 2)
    assert all(1 <= guidance_weight(3.0, 50, t) <= 4 for t in range(1000))


@pytest.mark.parametrize("size", [(480, 720), (256, 512), (720, 480), (512, 512), (96, 1008)])
def test_rope_is_that_of_diffusers_image_to_video_pipeline(size):
    module = pytest.importorskip("diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video")
    config = SimpleNamespace(patch_size=2, patch_size_t=None, sample_width=90, sample_height=60, attention_head_dim=64)
    pipeline = SimpleNamespace(vae_scale_factor_spatial=8, transformer=SimpleNamespace(config=config))
    expected = module.CogVideoXImageToVideoPipeline._prepare_rotary_positional_embeddings(pipeline, *size, 5, "cpu")
    found = rotary_aetherv1(5, (size[0] // 16, size[1] // 16), (30, 45), 64)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    # At twice the speed, every other latent step is at the time of a step of 12 frames per second.
    fast = rotary_aetherv1(9, (size[0] // 16, size[1] // 16), (30, 45), 64, fps=24)
    for table, reference in zip(fast, expected, strict=True):
        torch.testing.assert_close(table.unflatten(0, (9, -1))[::2].flatten(0, 1), reference, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"image": pictures(1, 3, 32, 32), "video": pictures(1, 9, 3, 32, 32)}, "video shows all frames"),
        ({"video": pictures(1, 9, 3, 32, 32), "guidance": 2.0}, "guidance must be at most 1"),
        ({"image": pictures(1, 3, 32, 32), "guidance": math.nan}, "guidance must be"),
        ({"image": pictures(1, 3, 32, 32), "num_frames": 13}, "num_frames must be 8 k .* got 13"),
        ({"image": pictures(1, 3, 32, 32), "num_frames": 1}, "num_frames"),
        ({"image": pictures(1, 3, 40, 32)}, "multiples of 16, got 40 x 32"),
        ({"image": pictures(2, 3, 32, 32)}, r"image must have the shape \(1, 3, 32, 32\)"),
        ({"image": pictures(1, 3, 32, 32), "goal": pictures(1, 3, 32, 48)}, "goal must have the shape"),
        ({"image": pictures(1, 3, 32, 32) * 255}, r"image must be in \[0, 1\]"),
        ({"image": pictures(1, 3, 32, 32) * math.nan}, r"image must be in \[0, 1\]"),
        ({"image": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)}, "image must be float"),
        ({"image": pictures(1, 3, 32, 32), "raymap": pictures(1, 9, 6, 4, 5)}, "raymap must have the shape"),
        ({"image": pictures(1, 3, 32, 32), "raymap": pictures(1, 9, 6, 4, 4) / 0}, "raymap must be finite"),
        ({"image": pictures(1, 3, 32, 32), "steps": 0}, r"steps must be an integer in 1..1000"),
        ({"image": pictures(1, 3, 32, 32), "num_frames": 9, "fps": 0}, "fps"),
    ],
)
def test_what_does_not_go_together_is_named(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        model(seeded(1), **inputs)


# --- the folder


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def sharded(folder: Path, size: str = "300KB") -> Path:
    """Store a folder's transformer in shards, as diffusers does."""
    load_aetherv1(folder).transformer.save_pretrained(folder / "sharded", max_shard_size=size)
    shutil.rmtree(folder / "transformer")
    return (folder / "sharded").rename(folder / "transformer")


def test_shards_hold_what_one_file_holds(folder):
    assert len(list(sharded(folder).glob("*-of-*.safetensors"))) > 2
    found, expected = (load_aetherv1(f).transformer.state_dict() for f in (folder, TINY))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's list of mapped files")
def test_weights_of_the_stored_type_are_mapped_and_not_copied(folder):
    model = load_aetherv1(folder)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    for module, part in ((model.transformer, "transformer"), (model.vae, "vae")):
        spans = [m[0].split("-") for m in maps if len(m) > 5 and m[5] == str(folder / part / WEIGHTS_FILE)]
        for parameter in module.parameters():
            assert any(int(a, 16) <= parameter.data_ptr() < int(b, 16) for a, b in spans)


def test_lower_precision_stays_near(model):
    half = load_aetherv1(TINY, dtype=torch.bfloat16)
    assert half.transformer.dtype == half.vae.dtype == torch.bfloat16
    inputs = {"image": pictures(1, 3, 32, 32), "num_frames": 9, "steps": 2}
    found, expected = (m(seeded(1), **inputs).raymap for m in (half, model))
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.1 * expected.abs().max()
    with pytest.raises(ValueError, match="dtype"):
        load_aetherv1(TINY, dtype=torch.int8)


def test_learned_positions_are_kept_and_hold_for_one_size(folder):
    model = load_aetherv1(folder)
    config = {k: v for k, v in model.transformer.config.items() if not k.startswith("_")}
    learned = type(model.transformer)(**config | {"use_learned_positional_embeddings": True})
    torch.nn.init.normal_(learned.patch_embed.pos_embedding, generator=torch.Generator().manual_seed(0))
    learned.float().save_pretrained(folder / "transformer")  # diffusers makes them in float64
    model = load_aetherv1(folder)
    buffer = model.transformer.patch_embed.pos_embedding
    assert torch.equal(buffer, learned.patch_embed.pos_embedding) and buffer.std() > 0.9
    assert model(seeded(1), num_frames=9, steps=1).rgb.shape == (1, 9, 3, 64, 96)
    with pytest.raises(ValueError, match="64 x 96"):
        model(seeded(1), image=pictures(1, 3, 32, 32))
    save_file({"prompt_embeds": torch.zeros(1, 9, 24)}, folder / PROMPT_FILE)
    with pytest.raises(CheckpointError, match="10 tokens"):
        load_aetherv1(folder)


def test_the_base_models_scheduler_file_is_read_into_the_sampler_of_the_public_code(folder):
    edit(folder / "scheduler" / "scheduler_config.json", _class_name="CogVideoXDDIMScheduler")
    assert type(load_aetherv1(folder).scheduler).__name__ == "CogVideoXDPMScheduler"


@pytest.mark.parametrize(
    "part",
    [
        PROMPT_FILE, "vae/config.json", f"vae/{WEIGHTS_FILE}", "transformer/config.json", f"transformer/{WEIGHTS_FILE}",
        "scheduler/scheduler_config.json",
    ],
)  # fmt: skip
def test_a_missing_file_is_named(folder, part):
    (folder / part).unlink()
    with pytest.raises(CheckpointError, match=f"{part}.* is missing"):
        load_aetherv1(folder)


def drop_shard(part):
    next(part.glob("*00002-of*")).unlink()


def drop_from_shard(part):
    path = next(part.glob("*00002-of*"))
    save_file(dict(list(load_file(path).items())[1:]), path)


def list_outside(part):
    edit(part / INDEX_FILE, weight_map={"proj_out.weight": "../vae/diffusion_pytorch_model.safetensors"})


def list_less(part):
    weights = json.loads((part / INDEX_FILE).read_text())["weight_map"]
    edit(part / INDEX_FILE, weight_map={k: v for k, v in weights.items() if k != "proj_out.weight"})


@pytest.mark.parametrize(
    "damage, message",
    [
        (drop_shard, "00002-of.* is missing"),
        (drop_from_shard, "00002-of.* lacks "),
        (list_outside, f"{INDEX_FILE}.*beside it"),
        (list_less, "proj_out.weight: missing"),
    ],
)
def test_shards_that_do_not_fit_their_index_are_named(folder, damage, message):
    damage(sharded(folder))
    with pytest.raises(CheckpointError, match=message):
        load_aetherv1(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -50])
def test_truncated_weights_are_refused(folder, keep):
    path = folder / "vae" / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=str(path)):
        load_aetherv1(folder)


def test_a_pickle_in_place_of_weights_is_never_opened(folder):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was opened",))

    (folder / "transformer" / WEIGHTS_FILE).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="never opened"):
        load_aetherv1(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: state | {"proj_out.bias": torch.zeros(3)}, r"proj_out.bias: \(3,\) instead of \(224,\)"),
        (lambda state: state | {"surprise": torch.zeros(3)}, "surprise: not in the config"),
        (lambda state: state | {"proj_out.bias": torch.zeros(224, dtype=torch.int8)}, "proj_out.bias is I8"),
    ],
)
def test_weights_that_do_not_fit_are_named(folder, change, message):
    path = folder / "transformer" / WEIGHTS_FILE
    save_file(change(load_file(path)), path)
    with pytest.raises(CheckpointError, match=message):
        load_aetherv1(folder)


@pytest.mark.parametrize("shape", [(1, 10, 23), (2, 10, 24), (1, 0, 24), (10, 24)])
def test_a_prompt_that_the_transformer_can_not_read_is_refused(folder, shape):
    save_file({"prompt_embeds": torch.ones(shape)}, folder / PROMPT_FILE)
    with pytest.raises(CheckpointError, match=f"{PROMPT_FILE}.*24"):
        load_aetherv1(folder)


@pytest.mark.parametrize(
    "part, name, value",
    [
        ("transformer/config.json", "_class_name", "os.system"),
        ("transformer/config.json", "in_channels", 115),
        ("transformer/config.json", "out_channels", 16),
        ("transformer/config.json", "patch_size_t", 2),
        ("transformer/config.json", "num_layers", 10**9),
        ("transformer/config.json", "num_layers", True),
        ("transformer/config.json", "attention_head_dim", 40),
        ("transformer/config.json", "attention_bias", "yes"),
        ("transformer/config.json", "use_rotary_positional_embeddings", False),
        ("transformer/config.json", "dropout", "x"),
        ("vae/config.json", "scaling_factor", 0),
        ("vae/config.json", "scaling_factor", None),
        ("vae/config.json", "invert_scale_latents", 1),
        ("vae/config.json", "block_out_channels", [8, 8, 16]),
        ("vae/config.json", "block_out_channels", 8),
        ("vae/config.json", "norm_num_groups", 7),
        ("vae/config.json", "temporal_compression_ratio", 8),
        ("vae/config.json", "latents_mean", [0.0] * 16),
        ("scheduler/scheduler_config.json", "_class_name", "EulerDiscreteScheduler"),
        ("scheduler/scheduler_config.json", "prediction_type", "epsilon"),
        ("scheduler/scheduler_config.json", "timestep_spacing", "leading"),
        ("scheduler/scheduler_config.json", "beta_end", 2.0),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**9),
        ("scheduler/scheduler_config.json", "beta_schedule", "nonsense"),
    ],
)
def test_configs_that_can_not_be_used_are_refused_with_file_and_setting(folder, part, name, value):
    edit(folder / part, **{name: value})
    with pytest.raises(CheckpointError, match=part) as caught:
        load_aetherv1(folder)
    assert name in str(caught.value) or str(value) in str(caught.value)


def test_a_scale_is_never_taken_from_another_models_default(folder):
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "scaling_factor"}))
    with pytest.raises(CheckpointError, match="scaling_factor must be given"):
        load_aetherv1(folder)


# --- made of the published parts


@pytest.fixture
def published(folder, tmp_path) -> tuple[Path, Path]:
    """The published transformer's folder and the base model's, as they are downloaded, with tiny random weights."""
    transformers = pytest.importorskip("transformers", reason="the text encoder is a model of transformers")
    torch.manual_seed(0)
    sharded(folder)
    transformer, base = tmp_path / "AetherV1", tmp_path / "CogVideoX-5b-I2V"
    transformer.mkdir()
    (folder / "transformer").rename(transformer / "transformer")
    folder.rename(base)
    (base / PROMPT_FILE).unlink()
    edit(base / "scheduler" / "scheduler_config.json", _class_name="CogVideoXDDIMScheduler")
    sizes = {"vocab_size": 8, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    encoder = transformers.T5EncoderModel(transformers.T5Config(**sizes, feed_forward_proj="gated-gelu"))
    encoder.save_pretrained(base / "text_encoder", max_shard_size="10KB")
    return transformer, base


class Tokenizer:
    """T5's answer to the empty prompt: its end, then padding."""

    def __call__(self, prompt, max_length=1, **kwargs):
        assert prompt == [""]
        return SimpleNamespace(input_ids=torch.tensor([[1] + [0] * (max_length - 1)]))


def test_an_import_is_a_whole_checkpoint_with_the_pipelines_own_empty_prompt(published, tmp_path):
    from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import CogVideoXImageToVideoPipeline
    from transformers import T5EncoderModel

    transformer, base = published
    out = tmp_path / "models" / "aetherv1"
    import_aetherv1(transformer, base, out)
    names = {path.name for path in out.iterdir()}
    assert names == {"transformer", "vae", "scheduler", PROMPT_FILE}
    assert [path.name for path in out.parent.iterdir()] == ["aetherv1"]
    shard = next((out / "transformer").glob("*00001-of*"))
    assert shard.stat().st_ino == (transformer / "transformer" / shard.name).stat().st_ino  # linked, no second copy

    encoder = T5EncoderModel.from_pretrained(base / "text_encoder").eval()
    pipeline = SimpleNamespace(tokenizer=Tokenizer(), text_encoder=encoder)
    embed = CogVideoXImageToVideoPipeline._get_t5_prompt_embeds
    with torch.inference_mode():
        expected = embed(pipeline, "", device=torch.device("cpu"), dtype=torch.float32)
    model = load_aetherv1(out)
    assert model.prompt_embeds.shape == (1, PROMPT_TOKENS, 24)
    torch.testing.assert_close(model.prompt_embeds, expected)
    for name, tensor in load_file(TINY / "transformer" / WEIGHTS_FILE).items():
        assert torch.equal(model.transformer.state_dict()[name], tensor)
    assert model(seeded(1), image=pictures(1, 3, 16, 16), num_frames=9, steps=1).rgb.isfinite().all()


def test_the_bases_own_tokenizer_is_used_where_it_can_be(published, tmp_path):
    from transformers import T5Tokenizer

    words = [("<pad>", 0.0), ("<unk>", 0.0), ("</s>", 0.0), ("\u2581", -1.0)]  # not T5's usual numbers
    transformer, base = published
    import_aetherv1(transformer, base, tmp_path / "usual")
    T5Tokenizer(vocab=words, extra_ids=0).save_pretrained(base / "tokenizer")
    import_aetherv1(transformer, base, tmp_path / "own")
    usual, own = (load_aetherv1(tmp_path / name).prompt_embeds for name in ("usual", "own"))
    assert (usual - own).abs().max() > 1e-3


def test_the_transformers_folder_may_be_given_itself_and_files_are_copied_where_links_fail(
    published, tmp_path, monkeypatch
):
    def no_links(*args):
        raise OSError("another disk")

    transformer, base = published
    monkeypatch.setattr(importing.os, "link", no_links)
    import_aetherv1(transformer / "transformer", base, tmp_path / "out")
    check_aetherv1(tmp_path / "out")
    copied = tmp_path / "out" / "vae" / WEIGHTS_FILE
    assert copied.stat().st_ino != (base / "vae" / WEIGHTS_FILE).stat().st_ino
    assert copied.read_bytes() == (base / "vae" / WEIGHTS_FILE).read_bytes()


def cut_text_encoder(transformer, base):
    path = next((base / "text_encoder").glob("*00002-of*"))
    save_file(dict(list(load_file(path).items())[1:]), path, metadata={"format": "pt"})


def other_transformer(transformer, base):
    edit(transformer / "transformer" / "config.json", num_layers=3)


def no_text_encoder(transformer, base):
    shutil.rmtree(base / "text_encoder")


def other_text_encoder(transformer, base):
    edit(base / "text_encoder" / "config.json", model_type="bert")


def no_scheduler(transformer, base):
    (base / "scheduler" / "scheduler_config.json").unlink()


@pytest.mark.parametrize(
    "damage, message",
    [
        (cut_text_encoder, "text_encoder lack "),
        (other_transformer, "transformer_blocks.2.* missing"),
        (no_text_encoder, "text_encoder.config.json is missing"),
        (other_text_encoder, "'bert'; expected a t5"),
        (no_scheduler, "scheduler_config.json is missing"),
    ],
)
def test_an_import_that_fails_says_why_and_leaves_nothing(published, tmp_path, damage, message):
    damage(*published)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=message):
        import_aetherv1(*published, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_without_transformers_an_import_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install transformers"):
        import_aetherv1(TINY, TINY, tmp_path / "out")


def test_an_import_replaces_nothing(tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ValueError, match="is there already"):
        import_aetherv1(TINY, TINY, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
