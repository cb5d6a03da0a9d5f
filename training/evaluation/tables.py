"""The paper's tables 1 to 6 with our rows beside the printed ones, and the clips that our rows of tables 3 to 6 are of.

    sets = domain_sets("prediction", settings)
    metrics = {metric_name("navigation", "in_domain", "psnr"): 21.3, "sintel_abs_rel_scale": 0.4, ...}
    text = markdown_tables(metrics)

Results of several protocols, of one checkpoint, make one document:

    python -m training.evaluation.tables tables.json sintel.json tum.json --out tables.md

Names of metrics: those of `public` for tables 1 and 2, of `metric_name` for the others. What has no number says "not
measured". Printed figures are in paper_tables.json, beside where they come from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import tyro

from aether_env.sim import ClipPlans, plan_clips, seed_in
from aether_env.sim.seeds import draw_uniforms
from aether_env.world_model.checkpoint import Settings
from aether_env.world_model.own_clips import CLIP_FRAMES
from training.evaluation.planning import FRAMES as NAVIGATION_FRAMES
from training.evaluation.vbench import WEIGHTS, weighted_average
from training.evaluation.walks import WalkSet

Kind = Literal["prediction", "planning"]
Task = Literal["prediction_without_action", "prediction_with_action", "navigation", "planning"]
Domain = Literal["in_domain", "out_of_domain", "overall"]

SIZES: dict[Kind, tuple[int, int]] = {"prediction": (93, 43), "planning": (80, 40)}
"""Clips in-domain and out-of-domain, as many as the paper's."""
KINDS: dict[Task, Kind] = {
    "prediction_without_action": "prediction", "prediction_with_action": "prediction", "navigation": "prediction",
    "planning": "planning",
}  # fmt: skip
"""Task of a table -> the clips that it is of."""
OUT_OF_DOMAIN_FIRST = 2**19
"""Number in the test split of the first out-of-domain seed."""
OUT_OF_DOMAIN_FOV = (95.0, 110.0)
"""Degrees; training shows 50 to 90."""
OUT_OF_DOMAIN_SATURATION = (0.6, 1.0)
"""Of the colour that multiplies a surface's texture; training shows 0 to 0.45."""
NOT_MEASURED = "not measured"

_TRAINING_SATURATION = 0.45
_FOV_STREAM = 6
_DOMAINS: tuple[Domain, ...] = get_args(Domain)
_DOMAIN_WORDS = {"in_domain": "in-domain", "out_of_domain": "out-of-domain", "overall": "overall"}
_OUR_DATA = "simulator (other data)"
_PUBLIC_NOTE = (
    "Ours: the same public sets, but only the centre of each picture, in the checkpoint's aspect and size, and windows "
    "of the checkpoint's length (see `training/evaluation/public.py`)."
)

_GIVEN: dict[Task, str] = {
    "prediction_without_action": "the first frame alone is given",
    "prediction_with_action": "the first frame, its depth, the intrinsics and the path are given",
    "navigation": "the first frame, its depth, the intrinsics, the goal and the path are given",
    "planning": "the first frame and the goal are given, no depth",
}

_BESIDE = {"repeated": "first frame repeated (floor)", "truth": "the truth (ceiling)"}
OUR_ROWS: dict[Task, dict[str, str]] = {
    "prediction_without_action": {"": "ours", **_BESIDE},
    "prediction_with_action": {"": "ours", **_BESIDE},
    "navigation": {
        "no_depth": "ours, trained without the depth objective", "": "ours", "repeated": "first frame repeated (floor)",
        "warp": "first frame warped by true depth and pose", "autoencoder": "autoencoder alone (ceiling)",
    },
    "planning": {"no_depth": "ours, trained without the depth objective", "": "ours", **_BESIDE},
}  # fmt: skip
"""What is measured on our clips: the row's part of the metrics' names -> words in the table."""


class DomainSets(NamedTuple):
    """The fixed clips of one kind."""

    in_domain: WalkSet
    out_of_domain: WalkSet


@dataclass(frozen=True)
class OutOfDomainSet(WalkSet):
    """Test clips from another range of seeds, seen as training never shows a scene; see `push_out_of_domain`."""

    @cached_property
    def plans(self) -> ClipPlans:
        """All clips before they are drawn."""
        seeds = [seed_in("test", OUT_OF_DOMAIN_FIRST + number) for number in range(self.count)]
        return push_out_of_domain(plan_clips(seeds, num_frames=self.num_frames, fps=self.settings.fps))


def domain_sets(kind: Kind, settings: Settings, *, num_frames: int = CLIP_FRAMES, device: str = "cpu") -> DomainSets:
    """Return the fixed clips that stand for the paper's validation sets, as many as there.

    In-domain are the first test seeds of the simulator, drawn as training draws its own. Out-of-domain are the test
    seeds from `OUT_OF_DOMAIN_FIRST` on with a wider field of view and stronger colours than training ever shows. Their
    kinds of scenes and walks are the same: what differs is the camera and the look, not the world.

    Args:
        kind: "prediction" (tables 3 to 5) or "planning" (table 6).
        settings: Size and speed of the checkpoint's pictures.
        num_frames: Frames of each clip.
        device: Where they are drawn.

    Raises:
        ValueError: An unknown kind.
    """
    if kind not in SIZES:
        raise ValueError(f"kind must be one of {', '.join(SIZES)}, got {kind!r}.")
    inside, outside = SIZES[kind]
    return DomainSets(
        in_domain=WalkSet(inside, num_frames, settings, device),
        out_of_domain=OutOfDomainSet(outside, num_frames, settings, device),
    )


def push_out_of_domain(plans: ClipPlans) -> ClipPlans:
    """Return clips with another camera and other colours; where things are and the camera's path stay.

    The horizontal field of view is drawn from `OUT_OF_DOMAIN_FOV` by the clip's seed. Every surface keeps its hue and
    value; its saturation, 0 to 0.45, is stretched to `OUT_OF_DOMAIN_SATURATION`. Lights, skies and textures stay.
    """
    scenes = plans.scenes
    low, high = OUT_OF_DOMAIN_FOV
    fov = low + (high - low) * draw_uniforms(scenes.seeds, 1, stream=_FOV_STREAM)[:, 0]
    value = scenes.tint.max(axis=-1, keepdims=True)
    lack = 1 - scenes.tint / value  # what a channel lacks: 0 to the saturation, in shares that are the hue
    saturation = lack.max(axis=-1, keepdims=True)
    low, high = OUT_OF_DOMAIN_SATURATION
    wanted = low + (high - low) * np.minimum(saturation / _TRAINING_SATURATION, 1.0)
    tint = value * (1 - wanted * lack / np.maximum(saturation, 1e-12))
    return replace(plans, scenes=replace(scenes, horizontal_fov=np.deg2rad(fov), tint=tint))


def metric_name(task: Task, domain: Domain, column: str, row: str = "") -> str:
    """Return the name under which `markdown_tables` looks for a number of tables 3 to 6.

    Args:
        task: "prediction_without_action" (table 3), "prediction_with_action" (4), "navigation" (5), "planning" (6).
        domain: Of the clips; "overall" is all of both sets.
        column: Of tables 3, 4 and 6: a dimension as in `vbench.WEIGHTS`, a fraction of 1. Of table 5: "psnr", "ssim",
            "ms_ssim", "lpips" or "st_lpips".
        row: Of `OUR_ROWS`; empty is the checkpoint's.
    """
    return "_".join(part for part in (task, row, domain, column) if part)


def printed_tables() -> dict[str, Any]:
    """Return the figures as the paper prints them, with their source."""
    return json.loads(Path(__file__).with_name("paper_tables.json").read_text(encoding="utf-8"))


def markdown_tables(metrics: Mapping[str, float], counts: Mapping[str, int] | None = None) -> str:
    """Return the six tables as Markdown.

    Args:
        metrics: Name -> number; what is missing or not finite was not measured.
        counts: Name -> how many clips the number is of; None leaves out how many.
    """
    printed, counts = printed_tables(), counts or {}
    parts = [
        f"# The paper's tables, and ours beside them\n\nPrinted rows: {printed['source']}.\n",
        _depth_table(printed["table1_video_depth"], metrics),
        _pose_table(printed["table2_camera_pose"], metrics),
        _vbench_table(
            "Table 3: prediction without action", printed["table3_prediction_without_action_vbench"],
            "prediction_without_action", metrics, counts,
        ),
        _vbench_table(
            "Table 4: prediction with action", printed["table4_prediction_with_action_vbench"],
            "prediction_with_action", metrics, counts,
        ),
        _navigation_table(printed["table5_action_conditioned_navigation"], metrics, counts),
        _vbench_table(
            "Table 6: visual path planning", printed["table6_visual_path_planning_vbench"], "planning", metrics, counts
        ),
    ]  # fmt: skip
    return "\n".join(parts)


def merge(files: Sequence[Path]) -> dict[str, Any]:
    """Return the results of several protocols as one.

    Args:
        files: JSON files of `aether evaluate`, all of one checkpoint.

    Returns:
        metrics, counts, checkpoint, checkpoint_sha256 and settings: "vbench", see `remark`.

    Raises:
        ValueError: There is no file, one is no result of `aether evaluate`, two are of different checkpoints, or a
            metric differs between two; they are named.
    """
    if not files:
        raise ValueError("results is empty; give JSON files of `aether evaluate`.")
    merged: dict[str, Any] = {"metrics": {}, "counts": {}}
    source: dict[tuple[str, str], Path] = {}
    reasons: list[str | None] = []
    for file in files:
        found = _read(file)
        for key in ("checkpoint", "checkpoint_sha256"):
            merged.setdefault(key, found[key])
        if found["checkpoint_sha256"] != merged["checkpoint_sha256"]:
            raise ValueError(f"{files[0]} and {file} are of different checkpoints; a document shows one.")
        for key in ("metrics", "counts"):
            for name, value in found[key].items():
                before = source.setdefault((key, name), file)
                if merged[key].setdefault(name, value) != value:
                    raise ValueError(
                        f"{key}: {name} is {merged[key][name]} in {before} but {value} in {file}; leave one file out."
                    )
        if found["protocol"] == "tables":
            reasons.append(found["settings"].get("vbench"))
    return merged | {"settings": {"vbench": None if None in reasons or not reasons else reasons[0]}}


def remark(results: Mapping[str, Any]) -> str:
    """Return a paragraph of Markdown that says why there is no VBench, where the results' settings say so."""
    reason = results["settings"].get("vbench")
    return f"\n{reason}\n" if reason else ""


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    needed = {"metrics", "counts", "checkpoint", "checkpoint_sha256", "protocol", "settings"}
    if not isinstance(found, dict) or not needed <= set(found):
        raise ValueError(f"{file} is no result of `aether evaluate`: it lacks some of {', '.join(sorted(needed))}.")
    return found


def _depth_table(printed: dict[str, Any], metrics: Mapping[str, float]) -> str:
    heads = [f"{name} {what}" for name in ("Sintel", "Bonn", "KITTI") for what in ("Abs Rel", "delta < 1.25, %")]
    ours = {
        "scale": {
            "ours": ("", "scale"),
            "flat depth (floor)": ("flat_", "scale"),
            "true depth at the checkpoint's size (ceiling)": ("resized_truth_", "scale"),
        },
        "scale_and_shift": {
            "ours, aligned as the public code does": ("", "public_scale_shift"),
            "ours, best alignment": ("", "scale_shift"),
        },
    }
    lines = []
    for section, rows in ours.items():
        words = section.replace("_", " ")
        for method, figures in printed[section].items():
            cells = [_cell(value, 1 if column % 2 else 3) for column, value in enumerate(figures)]
            lines.append([words, f"{method} (printed)", *cells])
        for label, (row, align) in rows.items():
            cells = []
            for name in ("sintel", "bonn", "kitti"):
                cells.append(_cell(metrics.get(f"{name}_{row}abs_rel_{align}"), 3))
                cells.append(_cell(metrics.get(f"{name}_{row}delta125_{align}"), 1, 100))
            lines.append([words, label, *cells])
    return _table("Table 1: video depth", _PUBLIC_NOTE, ["alignment", "method", *heads], lines)


def _pose_table(printed: dict[str, Any], metrics: Mapping[str, float]) -> str:
    errors = {
        "ate": "ATE", "rpe_translation": "RPE translation", "rpe_rotation_deg": "RPE rotation, degrees",
    }  # fmt: skip
    heads = [f"{name} {words}" for name in ("Sintel", "TUM-dynamics", "ScanNet") for words in errors.values()]
    lines = [[f"{m} (printed)", *(_cell(value, 3) for value in row)] for m, row in _methods(printed).items()]
    for row, label in {"": "ours", "standing_": "no motion (floor)", "straight_": "straight line (floor)"}.items():
        found = [metrics.get(f"{name}_{row}{error}") for name in ("sintel", "tum", "scannet") for error in errors]
        lines.append([label, *(_cell(value, 3) for value in found)])
    return _table("Table 2: camera pose", _PUBLIC_NOTE, ["method", *heads], lines)


def _vbench_table(
    title: str, printed: dict[str, Any], task: Task, metrics: Mapping[str, float], counts: Mapping[str, int]
) -> str:
    columns: list[str] = printed["columns"]
    note = f"{_data_note(task, counts)} Printed rows: overall only. VBench in percent."
    lines = [
        [f"{method} (printed)", "the paper's", "overall", *(_cell(value, 2) for value in row)]
        for method, row in _methods(printed).items()
    ]
    if "CogVideoX" in _methods(printed):
        label = "CogVideoX with GPT-4o's prompts, run by us"
        lines.append([label, _OUR_DATA, "overall", *["out of scope"] * len(columns)])
        note += " The baseline CogVideoX + GPT-4o, and language prompts, are out of scope here."
    for row, label, domain in _our_rows(task):
        names = {dimension: metric_name(task, domain, dimension, row) for dimension in WEIGHTS}
        found = {dimension: metrics[name] for dimension, name in names.items() if name in metrics}
        cells = [_cell(found.get(dimension), 2, 100) for dimension in WEIGHTS]
        complete = len(found) == len(WEIGHTS)
        average = weighted_average({k: np.array(v) for k, v in found.items()}).item() if complete else None
        cells.append(_cell(average, 2, 100))
        lines.append([label, _clips(counts, names.values()), _DOMAIN_WORDS[domain], *cells])
    return _table(title, note, ["method", "clips", "domain", *columns], lines)


def _navigation_table(printed: dict[str, Any], metrics: Mapping[str, float], counts: Mapping[str, int]) -> str:
    columns: list[str] = printed["columns"]
    lines = []
    for method, cells in printed["in_domain/out_domain/overall"].items():
        by_domain = zip(*(cell.split("/") for cell in cells), strict=True)
        for domain, figures in zip(_DOMAINS, by_domain, strict=True):
            lines.append([f"{method} (printed)", "the paper's", _DOMAIN_WORDS[domain], *figures])
    for row, label, domain in _our_rows("navigation"):
        names = {column: metric_name("navigation", domain, column, row) for column in (*columns, "st_lpips")}
        cells = [_cell(metrics.get(names[column]), 2 if column == "psnr" else 4) for column in columns]
        if names["lpips"] not in metrics and names["st_lpips"] in metrics:
            cells[columns.index("lpips")] = f"{_cell(metrics[names['st_lpips']], 4)} (ST-LPIPS)"
        lines.append([label, _clips(counts, names.values()), _DOMAIN_WORDS[domain], *cells])
    note = (
        f"{_data_note('navigation', counts)} Ours are means over frames {', '.join(map(str, NAVIGATION_FRAMES[:-1]))} "
        f"and {NAVIGATION_FRAMES[-1]} of a clip's frames 0 to {CLIP_FRAMES - 1}, then over clips. ST-LPIPS, where it "
        "stands, has another scale than LPIPS."
    )
    return _table("Table 5: action-conditioned navigation", note, ["method", "clips", "domain", *columns], lines)


def _our_rows(task: Task) -> Iterator[tuple[str, str, Domain]]:
    """Yield row, words and domain."""
    for row, label in OUR_ROWS[task].items():
        for domain in _DOMAINS:
            yield row, label, domain


def _methods(printed: dict[str, Any]) -> dict[str, list[float]]:
    return {method: figures for method, figures in printed.items() if method != "columns"}


def _clips(counts: Mapping[str, int], names: Iterable[str]) -> str:
    """Return what a row of ours is of, and of how many clips where that is known."""
    known = [counts[name] for name in names if name in counts]
    return f"{max(known)}, {_OUR_DATA}" if known else _OUR_DATA


def _data_note(task: Task, counts: Mapping[str, int]) -> str:
    found = tuple(_set_size(task, domain, counts) for domain in _DOMAINS[:2])
    wanted = SIZES[KINDS[task]]
    clips = "test clips of the simulator"
    if found != (0, 0):
        clips = f"{found[0]} in-domain and {found[1]} out-of-domain {clips}"
        clips += ", as many as the paper has" if found == wanted else f" (the paper has {wanted[0]} and {wanted[1]})"
    return (
        f"**Our rows are of other data than the paper's**: of {clips}; do not compare them with printed ones. "
        f"Out-of-domain: a field of view of {OUT_OF_DOMAIN_FOV[0]:g} to {OUT_OF_DOMAIN_FOV[1]:g} degrees and stronger "
        f"colours than in training. Ours: {_GIVEN[task]}."
    )


def _set_size(task: Task, domain: Domain, counts: Mapping[str, int]) -> int:
    """Return how many clips of a domain a table was measured on, 0 where that is not known."""
    names = (name for name in counts if name.startswith(f"{task}_") and f"_{domain}_" in name)
    return max((counts[name] for name in names), default=0)


def _cell(value: float | None, decimals: int, factor: float = 1.0) -> str:
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    return f"{value * factor:.{decimals}f}"


def _table(title: str, note: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [list(heads), ["---"] * len(heads), *lines]
    return f"## {title}\n\n{note}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def main(results: tyro.conf.Positional[tuple[Path, ...]], out: Path | None = None) -> None:
    """Print one document of the paper's tables from several results.

    Args:
        results: JSON files of `aether evaluate`, all of one checkpoint.
        out: Markdown file to write as well.
    """
    merged = merge(results)
    files = ", ".join(f"`{file.name}`" for file in results)
    ours = f"Our rows: checkpoint {merged['checkpoint']}, sha256 `{merged['checkpoint_sha256'][:12]}`, from {files}."
    text = f"{markdown_tables(merged['metrics'], merged['counts'])}\n{ours}\n{remark(merged)}"
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
