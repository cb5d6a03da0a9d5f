"""Metrics of many annotated videos (`annotation_scores` tells what they are of one), and their tables in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from training.evaluation.annotation_scores import GOOD, KINDS, LEAST_PATH, WRONG
from training.evaluation.scores import Scores
from training.evaluation.summary import Row, mean, median, ratio_of_means, summarise

TARGETS = {
    "static_ate_percent": ("<=", 0.5), "static_rotation_deg": ("<=", 0.1), "dynamic_ate_percent": ("<=", 1.0),
    "dynamic_rotation_deg": ("<=", 0.3), "focal_error_percent": ("<=", 1.0), "kept_share": (">=", 0.9),
    "coarse_over_refined": (">=", 2.0),
}  # fmt: skip
"""What the annotation should reach on the simulator's videos."""
GROUPS = {"": ("static", "dynamic"), **{f"{kind}_": (kind,) for kind in KINDS}}
"""Beginning of a metric's name -> the kinds of videos that it is taken over: all of the simulator, or one kind."""
_MEDIANS = {
    "ate_percent": "ATE, % of the path", "coarse_ate_percent": "... of the coarse cameras",
    "coarse_over_refined": "... coarse over refined",
    "rotation_deg": "rotation, degrees", "coarse_rotation_deg": "... of the coarse cameras",
    "coarse_over_refined_rotation": "... coarse over refined", "rotation_worst_deg": "... of the worst frame",
    "rotation_aligned_deg": "... after the similarity", "scale_percent": "length of the path, % off",
    "focal_error_percent": "focal length, % off", "coarse_focal_error_percent": "... of the coarse cameras",
    "mask_iou": "masks: IoU", "mask_recall": "masks: recall", "mask_false_share": "masks: share of what rests",
}  # fmt: skip
"""Medians over videos, and their words."""
_SHARES = {
    "kept_share": "usable frames kept", "kept_of_all_share": "all frames kept",
    "success_share": "videos with a good clip", "wrong_clips": "silent failures (clips)", "crashes": "chain failed",
}  # fmt: skip
_ABLATED = ("ate_percent", "rotation_deg", "focal_error_percent", "kept_share", "success_share", "wrong_clips")
_WAYS = {
    "full": "full", "no_masks": "without masks", "no_refinement": "without refinement",
    "no_depth_residuals": "without depth residuals",
}  # fmt: skip


def summary(rows: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Return metrics, intervals and counts of videos.

    Args:
        rows: Of `annotation_scores.video_scores`.
        seed: Of the bootstrap.
    """
    names = (*_MEDIANS, "usable", "kept_usable", "frames", "kept", "success", "wrong_clips", "crashes")
    told = [row | {"crashes": row["failed"] is not None} for row in rows]
    scores: Scores = {}
    for group, kinds in GROUPS.items():
        inside = np.array([row["kind"] in kinds for row in told], dtype=bool)
        for name in names:
            values = np.array([np.nan if row[name] is None else row[name] for row in told], dtype=np.float64)
            scores[group + name] = np.where(inside, values, np.nan)
        scores[group + "usable"][scores[group + "usable"] == 0] = np.nan  # no share can be told of it
    metrics, intervals, counts = summarise(scores, seed, list(_rows()))
    return {"metrics": metrics, "intervals": intervals, "counts": counts}


def _rows() -> Iterator[Row]:
    for group in GROUPS:
        yield from ((group + name, median, (group + name,)) for name in _MEDIANS)
        yield group + "kept_share", ratio_of_means, (group + "kept_usable", group + "usable")
        yield group + "kept_of_all_share", ratio_of_means, (group + "kept", group + "frames")
        yield group + "success_share", mean, (group + "success",)
        yield from ((group + name, _total, (group + name,)) for name in ("wrong_clips", "crashes"))


def _total(values: np.ndarray) -> Any:
    return np.nansum(values, axis=-1)


def speed(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return CPU seconds a frame, of the whole chain (median over videos) and of its stages (mean)."""
    frames = sum(row["frames"] for row in rows)
    stages = sorted({stage for row in rows for stage in row["seconds"]} - {"cpu"})
    mean_of = {stage: sum(row["seconds"].get(stage, 0.0) for row in rows) / frames for stage in stages}
    whole = float(np.median([row["seconds"]["cpu"] / row["frames"] for row in rows]))
    return {"seconds_per_frame": whole} | {f"{stage}_seconds_per_frame": spent for stage, spent in mean_of.items()}


def markdown(results: dict[str, Any]) -> str:
    """Return results of `annotation.measure` as Markdown tables."""
    seeds, told = results["seeds"], results["settings"]["recordings"]
    lines = [
        f"# Annotation: {len(seeds['simulator'])} videos of the simulator, {len(seeds['vizdoom'])} of ViZDoom", "",
        f"`python -m training.evaluation.annotation`, commit `{results['commit']}`, {told['width']} x "
        f"{told['height']}, {told['frames']} frames each, scenes of the {seeds['split']} split; cameras, intrinsics "
        "and masks are hidden from the annotation.", "",
        "ATE: after a similarity, over the length of the true path. Rotation: against the clip's first frame, median "
        "over frames. Of a video: the mean of its clips by their frames. Of all: the median over videos; shares are of "
        f"all together. Clips whose path is below {100 * LEAST_PATH:g} cm have no ATE and no focal error. Usable are "
        "the frames that slicing leaves with the true masks.", "",
    ]  # fmt: skip
    parts = (_target_table(results), _kind_table(results), _ablation_table(results), _failures(results))
    return "\n".join([*lines, *(line for part in parts for line in part), *_video_table(results)]) + "\n"


def _number(metrics: dict[str, float], name: str) -> str:
    return f"{metrics[name]:.3g}" if name in metrics else "-"


def _kinds(results: dict[str, Any]) -> list[str]:
    """Return the kinds of videos that there are."""
    return [kind for kind in KINDS if any(row["kind"] == kind for row in results["videos"]["full"])]


def _target_table(results: dict[str, Any]) -> list[str]:
    metrics, intervals = results["metrics"], results["intervals"]
    if not results["seeds"]["simulator"]:
        return []
    lines = ["| targets | measured | 95 % interval | videos | target | met |", "|---|---|---|---|---|---|"]
    for name, (sign, target) in TARGETS.items():
        if name not in metrics:
            lines.append(f"| {name} | - | - | 0 | {sign} {target:g} | no |")
            continue
        between = " to ".join(f"{value:.3g}" for value in intervals[name])
        met = metrics[name] >= target if sign == ">=" else metrics[name] <= target
        cells = [name, _number(metrics, name), between, str(results["counts"][name]), f"{sign} {target:g}"]
        lines.append("| " + " | ".join([*cells, "yes" if met else "no"]) + " |")
    return [*lines, ""]


def _kind_table(results: dict[str, Any]) -> list[str]:
    kinds = _kinds(results)
    lines = ["| median over videos | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for name, words in (_MEDIANS | _SHARES).items():
        cells = [_number(results["metrics"], f"{kind}_{name}") for kind in kinds]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    lines += ["", "| CPU seconds a frame, one thread | |", "|---|---|"]
    for name, spent in results["speed"].items():
        lines.append(f"| {name.removesuffix('seconds_per_frame').rstrip('_') or 'all'} | {spent:.3g} |")
    return [*lines, ""]


def _ablation_table(results: dict[str, Any]) -> list[str]:
    if not results["ablations"]:
        return []
    ways = {"full": results["metrics"], **{way: found["metrics"] for way, found in results["ablations"].items()}}
    lines = ["| ablations | " + " | ".join(_WAYS[way] for way in ways) + " |", "|---" * (len(ways) + 1) + "|"]
    for kind in _kinds(results):
        for name in _ABLATED:
            cells = " | ".join(_number(metrics, f"{kind}_{name}") for metrics in ways.values())
            lines.append(f"| {kind}: {(_MEDIANS | _SHARES)[name]} | {cells} |")
    return [*lines, ""]


def _failures(results: dict[str, Any]) -> list[str]:
    rows = results["videos"]["full"]
    lost = Counter[str]()
    for row in rows:
        lost.update(row["lost"])
    good = "; ".join(f"{kind} {ate:g} % and {turn:g} degrees" for kind, (ate, turn) in GOOD.items())
    failed = [f"{row['name']} ({row['failed']})" for row in rows if row["failed"] is not None]
    return [
        f"Good clips: at most {good}.", "",
        f"Silent failures (kept, but more than {WRONG[0]:g} % or {WRONG[1]:g} degree off): "
        f"{', '.join(results['silent_failures']) or 'none'}.", "",
        f"Chain failed: {', '.join(failed) or 'never'}.", "",
        f"Frames in no clip: {', '.join(f'{reason} {count}' for reason, count in lost.most_common()) or 'none'}.", "",
    ]  # fmt: skip


def _video_table(results: dict[str, Any]) -> list[str]:
    figures = ("ate_percent", "rotation_deg", "focal_error_percent", "coarse_over_refined", "mask_iou")
    head = ("video", "kind", "path, m", "kept / usable / all", "clips", *(_MEDIANS[name] for name in figures))
    lines = ["| " + " | ".join(head).replace("...", "ATE") + " |", "|---" * len(head) + "|"]
    for row in results["videos"]["full"]:
        cells = ["-" if row[name] is None else f"{row[name]:.3g}" for name in figures]
        kept = f"{row['kept']} / {row['usable']} / {row['frames']}"
        cells = [row["name"], row["kind"], f"{row['path_m']:.2f}", kept, str(len(row["clips"])), *cells]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
