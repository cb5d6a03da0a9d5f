"""Results as files: JSON for programs, a Markdown table for people, contact sheets to look at."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aether_env.visual import colour_depth, contact_sheet, enlarge, write_png
from training.evaluation.drift import STEPS
from training.evaluation.scores import FRAMES, roll_out, warp_walk
from training.evaluation.summary import PICTURE_SCORES, ROWS
from training.evaluation.tables import markdown_tables, remark
from training.evaluation.walks import Walk

TARGETS = {
    "visible_gap_4": (">=", 0.6), "visible_gap_8": (">=", 0.5), "visible_gap_16": (">=", 0.4),
    "depth_abs_rel": ("<=", 0.12), "rotation_error_deg_median": ("<=", 2.5), "controllability_db": (">=", 4.0),
    "cpu_steps_per_second": (">=", 2.0), "gradient_energy_16": (">=", 0.5), "nan_free_200": (">=", 1.0),
}  # fmt: skip
"""What a first model should reach."""
_NAMES = {
    "dream": "dream (env steps)", "pipeline": "dream (one pass)", "repeated": "first frame repeated",
    "warp": "first frame warped by true depth and pose", "autoencoder": "autoencoder alone",
}  # fmt: skip
_SHEET_FRAMES = (0, 4, 8, 12, 16)
_DRIFT = {
    "gradient_energy": "gradient energy, share of the truth's",
    "autoencoder_gradient_energy": "... of the autoencoder",
    "long_psnr": "PSNR", "repeated_long_psnr": "... first frame repeated", "warp_long_psnr": "... warped",
    "autoencoder_long_psnr": "... autoencoder", "long_st_lpips": "ST-LPIPS", "warp_long_st_lpips": "... warped",
    "metric_abs_rel": "metric depth Abs Rel", "depth_scale": "depth scale", "contrast": "contrast",
}  # fmt: skip


def checkpoint_sha256(folder: Path) -> str:
    """Return one digest of all files of a folder, by name and content."""
    digest = hashlib.sha256()
    for path in sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.relative_to(folder).as_posix()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def commit() -> str:
    """Return the commit that runs, with "-dirty" where its code differs from it; "unknown" outside of a repository."""
    root = Path(__file__).parents[2]
    packages = [str(root / name) for name in ("aether_env", "policies", "training")]
    head, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", *packages)
    return "unknown" if head is None else head + ("-dirty" if status else "")


def write_json(path: Path, results: dict[str, Any]) -> None:
    """Write results; NaN and infinity are refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def markdown(results: dict[str, Any]) -> str:
    """Return results as Markdown tables."""
    metrics, intervals = results["metrics"], results["intervals"]

    def number(name: str) -> str:
        return f"{metrics[name]:.3g}" if abs(metrics.get(name, 0)) < 1 else f"{metrics[name]:.2f}"

    def cell(name: str) -> str:
        return number(name) if name in metrics else "-"

    lines = [
        f"# {results['checkpoint']}: {results['protocol']}{_clips(results)}", "",
        f"`aether evaluate --protocol {results['protocol']}`, commit `{results['commit']}`, checkpoint sha256 "
        f"`{results['checkpoint_sha256'][:12]}`, device {results['device']}, noise levels of a step "
        f"{results['settings']['step_sigmas']}, of a clip {results['settings']['clip_sigmas']}.", "",
    ]  # fmt: skip
    if set(TARGETS) & {*metrics, *results["counts"]}:
        lines += ["| first targets | measured | 95 % interval | target | met |", "|---|---|---|---|---|"]
    for name, (sign, target) in TARGETS.items():
        if name not in metrics and name in results["counts"]:
            lines.append(f"| {name} | undefined | - | {sign} {target:g} | no |")
        if name in metrics:
            between = " to ".join(f"{v:.3g}" for v in intervals[name]) if name in intervals else "-"
            met = metrics[name] >= target if sign == ">=" else metrics[name] <= target
            lines.append(f"| {name} | {number(name)} | {between} | {sign} {target:g} | {'yes' if met else 'no'} |")
    shown = [row for row in ROWS if f"psnr_{row}_{FRAMES[0]}" in metrics]
    for score in PICTURE_SCORES if shown else ():
        lines += ["", "| " + " | ".join([score, *(f"frame {frame}" for frame in FRAMES)]) + " |", "|---" * 4 + "|"]
        lines += [f"| {_NAMES[r]} | " + " | ".join(cell(f"{score}_{r}_{f}") for f in FRAMES) + " |" for r in shown]
    steps = [step for step in STEPS if f"gradient_energy_{step}" in metrics]
    if steps:
        lines += ["", "| long walk | " + " | ".join(f"step {step}" for step in steps) + " |"]
        lines += ["|---" * (len(steps) + 1) + "|"]
        for name, words in _DRIFT.items():
            if f"{name}_{steps[0]}" in metrics:
                lines.append(f"| {words} | " + " | ".join(cell(f"{name}_{step}") for step in steps) + " |")
    tabled = {f"{s}_{r}_{f}" for s in PICTURE_SCORES for r in ROWS for f in FRAMES} | set(TARGETS)
    tabled |= {f"{name}_{step}" for name in _DRIFT for step in steps}
    rest = [name for name in metrics if name not in tabled]
    for numbers, stems in _series(rest).items():
        lines += ["", "| by frame or env step | " + " | ".join(map(str, numbers)) + " |"]
        lines += ["|---" * (len(numbers) + 1) + "|"]
        lines += [f"| {stem} | " + " | ".join(cell(f"{stem}_{n}") for n in numbers) + " |" for stem in stems]
        rest = [name for name in rest if name not in {f"{stem}_{n}" for stem in stems for n in numbers}]
    if rest:
        lines += ["", "| other metrics | measured | 95 % interval | clips |", "|---|---|---|---|"]
    for name in rest:
        between = " to ".join(f"{v:.3g}" for v in intervals[name]) if name in intervals else "-"
        lines.append(f"| {name} | {number(name)} | {between} | {results['counts'].get(name, '-')} |")
    lines += ["", "| speed | |", "|---|---|"]
    lines += [f"| {k} | {f'{v:.3g}' if isinstance(v, float) else v} |" for k, v in results["speed"].items()]
    return "\n".join(lines) + "\n"


def _series(names: list[str]) -> dict[tuple[int, ...], list[str]]:
    """Return numbers -> beginnings of those names that differ in the number at their end only, two numbers or more."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        stem, _, number = name.rpartition("_")
        if number.isdecimal():
            numbers.setdefault(stem, []).append(int(number))
    series: dict[tuple[int, ...], list[str]] = {}
    for stem, found in numbers.items():
        if len(found) > 1:
            series.setdefault(tuple(sorted(found)), []).append(stem)
    return series


def _clips(results: dict[str, Any]) -> str:
    """Return on what a protocol on the simulator was measured, nothing for the others."""
    return f", {results['seeds']['count']} test clips of the simulator" if "count" in results["seeds"] else ""


def document(results: dict[str, Any]) -> str:
    """Return results as Markdown, with the paper's tables beside them where their protocol has some."""
    text = markdown(results)
    if results["protocol"] in ("quick", "simulator"):
        return text + remark(results)
    return text + "\n" + markdown_tables(results["metrics"], results["counts"]) + remark(results)


def check_writable(path: Path) -> None:
    """Make the folder of a JSON file.

    Raises:
        ValueError: The file is not named .json (the tables and the plot go beside it), or its folder cannot be made.
    """
    if path.suffix != ".json":
        raise ValueError(f"out must end in .json, got {path}: the tables go beside it as .md, the plot as .png.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out cannot be written: {error}") from error
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"out cannot be written: {path.parent} is read-only.")


def write(path: Path, results: dict[str, Any]) -> None:
    """Write results as JSON, their tables beside it as .md and, where there are long walks, a plot of them as .png."""
    write_json(path, results)
    path.with_suffix(".md").write_text(document(results), encoding="utf-8")
    write_plot(path.with_suffix(".png"), results["metrics"])


def write_plot(path: Path, metrics: dict[str, float]) -> bool:
    """Plot what drifts over the steps of long walks; returns False where there is nothing to plot or no matplotlib."""
    steps = [step for step in STEPS if f"gradient_energy_{step}" in metrics]
    if len(steps) < 2:
        return False
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(10, 6), layout="constrained")
    plots = {
        "PSNR [dB]": ("long_psnr", "repeated_long_psnr", "warp_long_psnr", "autoencoder_long_psnr"),
        "gradient energy / truth": ("gradient_energy", "autoencoder_gradient_energy"),
        "metric depth Abs Rel": ("metric_abs_rel", "flat_metric_abs_rel", "autoencoder_metric_abs_rel"),
        "contrast / truth": ("contrast", "autoencoder_contrast"),
    }
    for axes, (title, names) in zip(figure.subplots(2, 2).flat, plots.items(), strict=True):
        for name in names:
            values = [metrics.get(f"{name}_{step}", float("nan")) for step in steps]
            axes.plot(steps, values, marker="o", label=name.replace("_", " "))
        axes.set(title=title, xlabel="env step", xscale="log")
        axes.legend(fontsize="small")
    FigureCanvasAgg(figure).print_png(str(path))
    return True


def memory() -> dict[str, float]:
    """Return the most memory that this process held, and the GPU's where one is used, in MiB."""
    most = {}
    if sys.platform == "linux":
        import resource

        most["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        most["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return most


def write_sheet(path: Path, world: Any, walk: Walk, seed: int) -> None:
    """Write the first clip of a walk as a table of pictures: truth, dream, warp, true depth, dreamed depth."""
    frames = roll_out(world, walk, walk.path, _SHEET_FRAMES[-1] // 4, seed)
    clips = walk.clips
    depth = np.concatenate([walk.first_depth[:1], frames.depth[0]])
    rgb = np.concatenate([walk.rgb[:1, 0], frames.rgb[0]])
    true_depth = clips.depth[0].cpu().numpy()
    near = float(np.nanquantile(true_depth, 0.02)) if np.isfinite(true_depth).any() else None
    rows = {
        "truth": [walk.rgb[0, t] for t in _SHEET_FRAMES],
        "dream": [rgb[t] for t in _SHEET_FRAMES],
        "warp": [_bytes(warp_walk(walk, t)[0]) for t in _SHEET_FRAMES],
        "true depth": [colour_depth(true_depth[t], near) for t in _SHEET_FRAMES],
        "dreamed depth": [colour_depth(depth[t], near) for t in _SHEET_FRAMES],
    }
    pictures = [enlarge(picture, 2) for row in rows.values() for picture in row]
    captions = [f"{name} {t}" for name in rows for t in _SHEET_FRAMES]
    write_png(path, contact_sheet(pictures, len(_SHEET_FRAMES), captions))


def _bytes(picture: Any) -> np.ndarray:
    """Return float (3, H, W) in [0, 1] as uint8 (H, W, 3)."""
    return (picture.clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy()


def _git(*words: str) -> str | None:
    """Return what git answers about this file's repository, None where it knows nothing."""
    try:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
