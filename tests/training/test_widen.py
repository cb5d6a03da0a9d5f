"""CogVideoX-5b-I2V in the paper's layout: at first it answers as it always did, and the new parts say nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from safetensors.torch import load_file, save_file

from aether_env.world_model.aetherv1 import INDEX_FILE, AetherV1, load_aetherv1, rotary_aetherv1
from aether_env.world_model.checkpoint import PROMPT_FILE, WEIGHTS_FILE, CheckpointError
from training import widen as widening
from training.widen import widen

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "goldens" / "aetherv1" / "tiny_checkpoint"
SIZES = {
    "num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2, "time_embed_dim": 32, "text_embed_dim": 24,
    "max_text_seq_length": 10, "sample_height": 8, "sample_width": 12, "sample_frames": 17,
    "use_rotary_positional_embeddings": True, "in_channels": 32, "out_channels": 16,
}  # fmt: skip


def random_model(learned: bool = True, **changes) -> CogVideoXTransformer3DModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CogVideoXTransformer3DModel(**SIZES | {"use_learned_positional_embeddings": learned} | changes)
        torch.nn.init.normal_(model.proj_out.bias)  # zeros would hide a wrong order
    return model.float().eval()


@pytest.fixture
def base(tmp_path) -> Path:
    """A tiny random CogVideoX-5b-I2V, in shards, with the empty prompt's embedding instead of a text encoder."""
    folder = tmp_path / "base"
    shutil.copytree(TINY, folder, copy_function=shutil.copyfile)
    shutil.rmtree(folder / "transformer")
    random_model().save_pretrained(folder / "transformer", max_shard_size="200KB")
    return folder


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@torch.inference_mode()
def ask(model, latents, steps=3):
    return model(
        hidden_states=latents,
        encoder_hidden_states=torch.linspace(-1, 1, 240).view(1, 10, 24).expand(2, -1, -1),
        timestep=torch.tensor([7, 900]),
        image_rotary_emb=rotary_aetherv1(steps, (2, 3), (4, 6), 32),
        return_dict=False,
    )[0]


def without_positions(base: Path) -> CogVideoXTransformer3DModel:
    """The base model, its learned positions dropped."""
    model = random_model(learned=False)
    trained = CogVideoXTransformer3DModel.from_pretrained(base / "transformer").state_dict()
    del trained["patch_embed.pos_embedding"]
    model.load_state_dict(trained)
    return model


@pytest.mark.parametrize("seed", [0, 1])
def test_at_first_the_widened_model_gives_the_base_models_colour_whatever_the_new_channels_show(base, tmp_path, seed):
    widen(base, tmp_path / "out")
    generator = torch.Generator().manual_seed(seed)
    noisy, image = (torch.randn(2, 3, 16, 4, 6, generator=generator) for _ in range(2))
    disparity, ray, path = (100 * torch.randn(2, 3, n, 4, 6, generator=generator) for n in (16, 24, 24))
    expected = ask(without_positions(base), torch.cat([noisy, image], dim=2))
    found = ask(load_aetherv1(tmp_path / "out").transformer, torch.cat([noisy, disparity, ray, image, path], dim=2))
    assert expected.std() > 0.1 and found.shape == (2, 3, 56, 4, 6)
    torch.testing.assert_close(found[:, :, :16], expected, atol=1e-6, rtol=1e-6)
    assert (found[:, :, 16:] == 0).all()


def test_the_result_is_a_whole_checkpoint_that_can_be_sampled_and_trained(base, tmp_path):
    out = tmp_path / "models" / "start"
    widen(base, out)
    assert [path.name for path in out.parent.iterdir()] == ["start"]
    assert {path.name for path in out.iterdir()} == {"transformer", "vae", "scheduler", PROMPT_FILE}
    model = load_aetherv1(out)
    assert isinstance(model, AetherV1) and not model.transformer.config.use_learned_positional_embeddings
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 32, 48, generator=generator)
    found = model([generator], image=image, num_frames=9, steps=2)
    assert found.rgb.isfinite().all() and found.rgb.std() > 0
    for file in ("vae/config.json", f"vae/{WEIGHTS_FILE}", "scheduler/scheduler_config.json", PROMPT_FILE):
        assert (out / file).read_bytes() == (base / file).read_bytes()
    model.transformer.requires_grad_()
    output = model.transformer(
        torch.randn(1, 3, 96, 4, 6, generator=generator), model.prompt_embeds, torch.tensor([500]),
        image_rotary_emb=rotary_aetherv1(3, (2, 3), (4, 6), 32), return_dict=False,
    )[0]  # fmt: skip
    (output - 1).square().mean().backward()
    # The new parts begin at zero, and learn from the first step on.
    for layer in (model.transformer.patch_embed.proj, model.transformer.proj_out):
        by_channel = layer.weight.grad.abs().sum(dim=(0, 2, 3) if layer.weight.ndim == 4 else 1)
        assert (by_channel > 0).all()


@pytest.mark.parametrize("numbers", [1, 30_000, 10**9])
def test_weights_keep_their_type_and_numbers_however_they_are_split_into_files(base, tmp_path, monkeypatch, numbers):
    random_model().to(torch.bfloat16).save_pretrained(tmp_path / "half")
    shutil.rmtree(base / "transformer")
    (tmp_path / "half").rename(base / "transformer")
    monkeypatch.setattr(widening, "FILE_NUMBERS", numbers)
    widen(base, tmp_path / "out")
    files = sorted((tmp_path / "out" / "transformer").glob("*.safetensors"))
    assert (tmp_path / "out" / "transformer" / INDEX_FILE).exists() == (len(files) > 1) == (numbers < 10**9)
    stored = {name: tensor for file in files for name, tensor in load_file(file).items()}
    before = load_file(base / "transformer" / WEIGHTS_FILE)
    assert set(before) - set(stored) == {"patch_embed.pos_embedding"} and len(files) < len(before)
    changed = {"patch_embed.proj.weight", "proj_out.weight", "proj_out.bias"}
    assert all(torch.equal(stored[name], before[name]) for name in set(stored) - changed)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    # diffusers reads what we read
    reread = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "out" / "transformer", torch_dtype=torch.bfloat16)
    ours = load_aetherv1(tmp_path / "out", dtype=torch.bfloat16).transformer.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in reread.state_dict().items())


def test_the_empty_prompt_is_asked_of_the_bases_text_encoder_where_it_is_not_stored(base, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the text encoder is a model of transformers")
    (base / PROMPT_FILE).unlink()
    sizes = {"vocab_size": 8, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = transformers.T5EncoderModel(transformers.T5Config(**sizes, feed_forward_proj="gated-gelu")).eval()
    encoder.save_pretrained(base / "text_encoder")
    widen(base, tmp_path / "out")
    with torch.inference_mode():
        expected = encoder(torch.tensor([[1] + [0] * 225]))[0]
    torch.testing.assert_close(load_aetherv1(tmp_path / "out").prompt_embeds, expected)


def no_prompt(base):
    (base / PROMPT_FILE).unlink()


def truncate(base):
    file = sorted((base / "transformer").glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-8])


def lose_a_tensor(base):
    path = base / "transformer" / INDEX_FILE
    index = json.loads(path.read_text())
    del index["weight_map"]["transformer_blocks.1.ff.net.0.proj.weight"]
    path.write_text(json.dumps(index))


def other_projection(base):
    path = next(p for p in (base / "transformer").glob("*.safetensors") if "proj_out.bias" in load_file(p))
    save_file(load_file(path) | {"proj_out.bias": torch.zeros(60)}, path)


def text_to_video(base):
    shutil.rmtree(base / "transformer")
    random_model(learned=False, in_channels=16).save_pretrained(base / "transformer")


def widened_already(base):
    shutil.rmtree(base / "transformer")
    shutil.copytree(TINY / "transformer", base / "transformer")


@pytest.mark.parametrize(
    "damage, message",
    [
        (text_to_video, "in_channels must be 32, got 16; the base must be CogVideoX-5b-I2V"),
        (widened_already, "in_channels must be 32, got 96"),
        (lambda base: edit(base / "transformer" / "config.json", patch_size_t=2), "patch_size_t must be None, got 2"),
        (lambda base: edit(base / "transformer" / "config.json", _class_name="Other"), "names the class 'Other'"),
        (lambda base: edit(base / "transformer" / "config.json", num_layers=3), "transformer_blocks.2.*missing"),
        (lambda base: shutil.rmtree(base / "transformer"), "config.json is missing"),
        (lambda base: shutil.rmtree(base / "vae"), "vae.*is missing"),
        (lambda base: shutil.rmtree(base / "scheduler"), "scheduler_config.json is missing"),
        (lambda base: edit(base / "scheduler" / "scheduler_config.json", prediction_type="epsilon"), "prediction_type"),
        (no_prompt, "text_encoder.config.json is missing"),
        (truncate, "no safetensors file or is damaged"),
        (lose_a_tensor, "ff.net.0.proj.weight: missing"),
        (other_projection, r"proj_out.bias is \(60,\)"),
    ],
)
def test_a_wrong_base_is_named_and_nothing_is_left_behind(base, tmp_path, damage, message):
    damage(base)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=message):
        widen(base, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_replaced(base, tmp_path):
    with pytest.raises(ValueError, match="is there already"):
        widen(base, base)


def test_the_command_explains_itself_without_pytorch_and_ends_with_one_line_on_mistakes(base, tmp_path):
    code = "import sys, training.widen; print('torch' in sys.modules, 'diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["False", "False"]
    with pytest.raises(SystemExit, match="widen: .*is there already"):
        widening.main(base, base)
