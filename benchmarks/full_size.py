"""Time, memory and rounding of AetherV1 at its full size, with random weights: the public code's way and the fast way.

    python benchmarks/full_size.py --out full_size.json             # about 7 minutes on one H100
    python benchmarks/full_size.py --device cpu                     # toy size, to see that every row works

The public way: eager, the autoencoder sliced and tiled, both branches of guidance in one batch. Each
row is printed and saved as soon as it is measured; a row that fails is kept with its error. "difference" is the
relative L2 distance, for a pass, encoding and decoding from float32, for whole clips from the same model left as it is.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from aether_env.world_model.aetherv1 import CELL, AetherV1
from aether_env.world_model.aetherv1_speed import speed_up
from aether_env.world_model.conditions import COLOUR, LATENT_CHANNELS, TARGET_CHANNELS

CHANNELS = 2 * TARGET_CHANNELS - LATENT_CHANNELS
TRANSFORMER = dict(in_channels=CHANNELS, out_channels=TARGET_CHANNELS, use_rotary_positional_embeddings=True)
FULL: dict[str, dict[str, Any]] = {
    "transformer": dict(num_attention_heads=48, attention_head_dim=64, num_layers=42, time_embed_dim=512)
    | dict(text_embed_dim=4096, max_text_seq_length=226, sample_height=60, sample_width=90),
    "vae": dict(block_out_channels=(128, 256, 256, 512), layers_per_block=3, norm_num_groups=32)
    | dict(sample_height=480, sample_width=720),
}
TINY: dict[str, dict[str, Any]] = {
    "transformer": dict(num_attention_heads=2, attention_head_dim=32, num_layers=2, time_embed_dim=32)
    | dict(text_embed_dim=24, max_text_seq_length=10, sample_height=12, sample_width=20),
    "vae": dict(block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4)
    | dict(sample_height=96, sample_width=160),
}
PUBLIC = {"reconstruction": 10.4, "prediction": 77.9}
"""Seconds of the public code itself on one H100 80 GB (torch 2.11, bfloat16)."""
Section = Literal["passes", "autoencoder", "reconstruction", "prediction", "extras"]
Outputs = dict[str, Tensor]


def build(sizes: dict[str, dict[str, Any]], device: str, dtype: torch.dtype) -> AetherV1:
    """Return a model with torch's usual random weights, made where they are used."""
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            transformer = CogVideoXTransformer3DModel(**TRANSFORMER, **sizes["transformer"])
            vae = AutoencoderKLCogVideoX(**sizes["vae"], scaling_factor=0.7, invert_scale_latents=True)
    finally:
        torch.set_default_dtype(usual)
    for module in (transformer, vae):
        module.eval().requires_grad_(False)
    scheduler = CogVideoXDPMScheduler(
        beta_schedule="scaled_linear", prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=1.0,
        timestep_spacing="trailing",
    )  # fmt: skip
    shape = (1, transformer.config.max_text_seq_length, transformer.config.text_embed_dim)
    prompt = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    return AetherV1(transformer, vae, scheduler, prompt)


def twin(model: AetherV1, **options: Any) -> AetherV1:
    """Return a second model over the same weights, so that one can be sped up and the other stays as it is."""
    parts: dict[str, Any] = {}
    for name in ("transformer", "vae"):
        module = getattr(model, name)
        with torch.device("meta"):
            parts[name] = type(module).from_config(module.config)
        parts[name].load_state_dict(module.state_dict(), assign=True)
        parts[name].eval().requires_grad_(False)
    scheduler = CogVideoXDPMScheduler.from_config(model.scheduler.config)
    return replace(model, **parts, scheduler=scheduler, **options)


def apart(found: Outputs, expected: Outputs) -> dict[str, float]:
    """Return relative L2 distances."""
    return {n: float((t - expected[n]).norm() / expected[n].norm()) for n, t in found.items() if n in expected}


@dataclass
class Report:
    """The table, on the screen and in a file."""

    device: str
    out: Path | None
    budget: float
    about: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def add(self, row: dict[str, Any]) -> None:
        row["at"] = round(time.perf_counter() - self.started, 1)
        self.rows.append(row)
        if len(self.rows) == 1:
            print("| what | seconds | first call | peak GiB | difference | note | at |\n|---|---|---|---|---|---|---|")
        numbers = [f"{row[key]:.3f}" if key in row else "" for key in ("seconds", "first", "peak_gib")]
        differences = ", ".join(f"{name} {value:.2e}" for name, value in row.get("difference", {}).items())
        note = row.get("error") or row.get("note", "")
        print(f"| {row['what']} | {' | '.join(numbers)} | {differences} | {note} | {row['at']} |", flush=True)
        if self.out is not None:
            self.out.write_text(json.dumps(self.about | {"rows": self.rows}, indent=1))

    def measure(
        self,
        what: str,
        work: Callable[[], Outputs],
        *,
        repeats: int = 1,
        warm_up: bool = True,
        expected: Outputs | None = None,
        needs: float = 0.0,
        note: str = "",
    ) -> Outputs:
        """Measure one row, and return what came out (nothing, if it failed or there was no time).

        Args:
            what: The row's name.
            work: Returns tensors by name.
            repeats: Times measured; the median counts.
            warm_up: Call once before, and tell how long that took.
            expected: What the outputs are compared with.
            needs: Seconds that it takes about; where fewer are left of the budget, it is left out.
            note: Printed with it.
        """
        row: dict[str, Any] = {"what": what, "note": note}
        outputs: Outputs = {}
        if time.perf_counter() - self.started + needs > self.budget:
            self.add(row | {"error": f"left out: needs about {needs:.0f} s, the budget is {self.budget:.0f} s"})
            return outputs
        try:
            gc.collect()
            if self.on_gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            if warm_up:
                row["first"] = self._seconds(work)[0]
            times = []
            for _ in range(repeats):
                outputs = {}
                seconds, outputs = self._seconds(work)
                times.append(seconds)
            row |= {"seconds": statistics.median(times), "times": times}
            if self.on_gpu:
                row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            outputs = {name: tensor.float().cpu() for name, tensor in outputs.items()}
            if expected:
                row["difference"] = apart(outputs, expected)
            row["finite"] = all(bool(tensor.isfinite().all()) for tensor in outputs.values())
            if not row["finite"]:
                row["note"] = f"{note} NOT FINITE".strip()
        except Exception as error:  # the other rows are still wanted
            lines = str(error).strip().splitlines() or [""]
            row["error"], outputs = f"{type(error).__name__}: {lines[0][:200]}", {}
        self.add(row)
        return outputs

    def _seconds(self, work: Callable[[], Outputs]) -> tuple[float, Outputs]:
        if self.on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.inference_mode():
            outputs = work()
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start, outputs

    def seconds(self, what: str) -> float | None:
        """Return what a row took, None if it was not measured."""
        return next((row["seconds"] for row in self.rows if row["what"] == what and "seconds" in row), None)


def main(
    device: str | None = None,
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    tiny: bool = False,
    num_frames: int = 41,
    steps: int = 50,
    skip: tuple[Section, ...] = (),
    budget: float = 540.0,
    mode: str = "default",
    backend: str = "inductor",
    out: Path | None = None,
) -> None:
    """Print the table.

    Args:
        device: "cuda:0" or "cpu"; None takes a GPU where there is one, else shows the toy size on the CPU.
        dtype: Of transformer and autoencoder.
        tiny: Toy size, to see that every row works.
        num_frames: Frames of a clip, 8 k + 1.
        steps: Sampling steps of the prediction.
        skip: Sections left out.
        budget: Seconds after which rows are left out.
        mode: Of torch.compile, for the blocks.
        backend: Of torch.compile.
        out: JSON file for the rows.
    """
    started = time.perf_counter()
    if device is None:
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not tiny:
        print("No GPU: toy size on the CPU, which says nothing about speed.")
        tiny, dtype, backend = True, "float32", "aot_eager"
    sizes = TINY if tiny else FULL
    config = sizes["transformer"]
    height, width = config["sample_height"] * CELL, config["sample_width"] * CELL
    if tiny:
        num_frames, steps = 17, 3
    model = build(sizes, device, getattr(torch, dtype))
    gpu = device.startswith("cuda")
    about = {
        "device": torch.cuda.get_device_name(device) if gpu else "cpu", "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version() if gpu else None, "dtype": dtype, "mode": mode, "backend": backend,
        "size": [height, width], "num_frames": num_frames, "steps": steps, "public": PUBLIC,
        "parameters": sum(p.numel() for p in model.transformer.parameters()),
    }  # fmt: skip
    print(json.dumps(about), flush=True)
    report = Report(device, out, budget, about, started=started)
    if gpu:
        # float32 is the yardstick
        torch.backends.cudnn.allow_tf32 = False

    def faster(**options: Any) -> AetherV1:
        frugal = {name: options.pop(name) for name in ("guidance_in_turn", "slicing", "tiling") if name in options}
        return speed_up(twin(model, **frugal), **{"mode": mode, "backend": backend} | options)

    public, plain = twin(model, slicing=True, tiling=True), twin(model, slicing=True)
    blocks = faster(guidance_in_turn=True)

    # What goes in, the same for all.
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn((1, (num_frames - 1) // 4 + 1, CHANNELS, height // CELL, width // CELL), generator=generator)
    latents = latents.to(device)
    video = torch.rand((1, num_frames, 3, height // 16, width // 16), generator=generator)
    video = torch.nn.functional.interpolate(video, (3, height, width), mode="trilinear").to(device)
    rotary = model._rotary(latents.shape[1], height // CELL, width // CELL, 12)

    def one_pass(model: AetherV1, batch: int = 1) -> Outputs:
        noisy, condition = latents.expand(batch, -1, -1, -1, -1).split([TARGET_CHANNELS, CHANNELS - TARGET_CHANNELS], 2)
        return {"velocity": model._velocity(noisy, condition, 600, rotary)[:1]}

    def set_autoencoder(model: AetherV1, **switches: bool) -> Any:
        model.vae.use_slicing = switches.get("slicing", False)
        model.vae.use_tiling = switches.get("tiling", False)
        return model.vae

    def encode(model: AetherV1, **switches: bool) -> Outputs:
        vae = set_autoencoder(model, **switches)
        return {"latents": vae.encode((video * 2 - 1).transpose(1, 2).to(vae.dtype)).latent_dist.mean}

    def decode(model: AetherV1, **switches: bool) -> Outputs:
        """Decode colour and disparity, as the rule does."""
        vae = set_autoencoder(model, **switches)
        both = torch.cat([latents[:, :, COLOUR], latents[:, :, LATENT_CHANNELS : 2 * LATENT_CHANNELS]])
        return {"pictures": vae.decode((both / 0.7).transpose(1, 2).to(vae.dtype)).sample}

    def clip(model: AetherV1, **inputs: Any) -> Outputs:
        made = model([torch.Generator().manual_seed(2)], num_frames=num_frames, **inputs)
        return {"rgb": made.rgb, "disparity": made.disparity, "raymap": made.raymap}

    def in_float32(part: Literal["transformer", "vae"], work: Callable[[AetherV1], Outputs]) -> Outputs:
        exact = twin(model)  # gone afterwards, with its copy of the weights
        getattr(exact, part).float()
        return work(exact)

    # --- One pass of the transformer, left uncompiled.
    exact: Outputs = {}
    if "passes" not in skip:
        work = partial(in_float32, "transformer", one_pass)
        exact = report.measure("pass, float32", work, needs=30, warm_up=False)
        report.measure("pass, eager", partial(one_pass, public), repeats=5, expected=exact)
        report.measure("pass of two, eager", partial(one_pass, public, batch=2), repeats=2, expected=exact)
        if gpu:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                report.measure("pass, eager, flash", partial(one_pass, public), repeats=5, expected=exact)

    # --- The autoencoder, left uncompiled.
    whole: Outputs = {}
    pictures: Outputs = {}
    if "autoencoder" not in skip:
        whole = report.measure("encode, float32", partial(in_float32, "vae", encode), needs=15, warm_up=False)
        report.measure("encode, eager, tiled", partial(encode, public, tiling=True), expected=whole)
        report.measure("encode, eager", partial(encode, plain), expected=whole)
        work = partial(in_float32, "vae", partial(decode, slicing=True))
        pictures = report.measure("decode both, float32, one by one", work, needs=30, warm_up=False)
        for name, chosen, switches in (
            ("eager, tiled, one by one", public, {"slicing": True, "tiling": True}),
            ("eager, one by one", plain, {"slicing": True}),
            ("eager, one batch", plain, {}),
            ("eager, folded norms, one by one", blocks, {"slicing": True}),
            ("eager, folded norms, one batch", blocks, {}),
        ):
            report.measure(f"decode both, {name}", partial(decode, chosen, **switches), expected=pictures, needs=15)

    # --- Whole clips the public way, and what the fast ways are compared with.
    known: Outputs = {}
    if "reconstruction" not in skip:
        known = report.measure("reconstruction, eager", partial(clip, plain, video=video), warm_up=False, needs=15)
        report.measure(
            "reconstruction, public way", partial(clip, public, video=video), expected=known, warm_up=False, needs=15
        )

    # --- Compiled blocks, folded norms, colour and disparity in one batch: the fast way.
    name = "pass, compiled"
    report.measure(name, partial(one_pass, blocks), repeats=5, expected=exact, needs=60)
    if report.seconds(name) is None:
        blocks = faster(compile_blocks=False, guidance_in_turn=True)
    if "reconstruction" not in skip:
        report.measure(
            "reconstruction, fast way", partial(clip, blocks, video=video), repeats=2, expected=known, needs=30
        )

    # --- Fifty steps.
    if "prediction" not in skip:
        task: dict[str, Any] = {"image": video[:, 0], "steps": steps, "guidance": 3.0}
        one_step = task | {"steps": 1}  # warms up what an image alone needs
        report.measure("prediction in one step, fast way", partial(clip, blocks, **one_step), warm_up=False, needs=10)
        dreamed = report.measure(
            "prediction, fast way",
            partial(clip, blocks, **task),
            warm_up=False,
            needs=70,
            note="branches in turn",
        )
        report.measure(
            "prediction, public way", partial(clip, public, **task), expected=dreamed, warm_up=False, needs=95,
            note="difference: from the fast way; fifty steps of random weights, and tiles",
        )  # fmt: skip
    for kind in ("reconstruction", "prediction"):
        slow, quick = report.seconds(f"{kind}, public way"), report.seconds(f"{kind}, fast way")
        if slow is not None and quick is not None:
            row = {"what": f"{kind}, times faster", "note": f"{slow / quick:.2f}x than the public way"}
            if not tiny:
                row["note"] += f", {PUBLIC[kind] / quick:.2f}x than the public code's {PUBLIC[kind]} s on an H100"
            report.add(row)

    # --- What else could matter.
    if "extras" not in skip:
        torch.backends.cudnn.benchmark = True
        report.measure("encode, eager, cudnn.benchmark", partial(encode, plain), expected=whole, needs=30)
        work = partial(decode, blocks)
        report.measure("decode both, folded norms, one batch, cudnn.benchmark", work, expected=pictures, needs=60)
        torch.backends.cudnn.benchmark = False
        last = faster(compile_blocks=False)
        for module in last.vae.modules():
            if isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)
        report.measure("encode, eager, channels last", partial(encode, last), expected=whole)
        work = partial(decode, last)
        report.measure("decode both, folded norms, one batch, channels last", work, expected=pictures, needs=20)
        usual = faster(attention="torch")
        report.measure(
            "pass, compiled, PyTorch's attention", partial(one_pass, usual), repeats=5, expected=exact, needs=40
        )
        tuned = faster(mode="max-autotune-no-cudagraphs")
        report.measure("pass, compiled, tuned", partial(one_pass, tuned), repeats=5, expected=exact, needs=60)
        report.measure("pass of two, compiled", partial(one_pass, blocks, batch=2), repeats=3, expected=exact, needs=80)
    print(f"all took {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
