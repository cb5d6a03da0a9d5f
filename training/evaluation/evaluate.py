"""Measure a checkpoint: aether evaluate mini --protocol quick --clips 256 --out docs/results/quick.json

Protocols: `quick` and `simulator` on fixed test walks of the true world; `tables`, the paper's tables with ours beside
them; and the public sets `sintel`, `bonn`, `kitti` (depth), `sintel_pose`, `tum`, `scannet` (path), which need --root.
Everything but what stands under `speed` (and cpu_steps_per_second) is the same for the same call on the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

import tyro

if TYPE_CHECKING:
    import numpy as np

    from aether_env.world_model.own_clips import OwnClips
    from aether_env.world_model.rollout import DreamWorld
    from training.evaluation.scores import Scores
    from training.evaluation.summary import Row
    from training.evaluation.walks import Walk, WalkSet

Result = TypeVar("Result")

Section = Literal[
    "rollout", "video", "prediction", "reconstruction", "following", "planning", "drift", "return", "endurance", "speed"
]
PublicSet = Literal["sintel", "bonn", "kitti", "sintel_pose", "tum", "scannet"]
Protocol = Literal["quick", "simulator", "tables", "sintel", "bonn", "kitti", "sintel_pose", "tum", "scannet"]
SECTIONS: dict[str, tuple[Section, ...]] = {
    "quick": ("rollout", "prediction", "reconstruction", "drift", "endurance", "speed"),
    "simulator": get_args(Section),
}
"""What a protocol on the simulator measures unless it is told otherwise."""
DRIFT_CLIPS = {"quick": 32, "simulator": 16}
"""Most clips of the long walks: a walk of 200 env steps costs as much as 50 clips."""
DRIFT_STEPS = {"quick": 16, "simulator": 200}
"""Env steps of the long walks."""
FEW_CLIPS = 8
"""Fewer are a quick look, which leaves out endurance unless it is asked for: its 200 steps outlast the rest."""
RETURN_CLIPS = 16
"""Most clips of the walks out and back."""


class Clock:
    """Adds up the seconds that named pieces of work take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, work: Callable[[], Result]) -> Result:
        """Return what the work returns."""
        began = time.perf_counter()
        result = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        return result


@dataclass(frozen=True)
class Subject:
    """The checkpoint that is measured."""

    folder: Path
    world: DreamWorld
    pipeline: OwnClips
    seed: int
    device: str
    clock: Clock = field(default_factory=Clock)


def evaluate(
    checkpoint: str | Path = "mini",
    *,
    protocol: Protocol = "quick",
    clips: int = 256,
    seed: int = 0,
    device: str = "cpu",
    step_sigmas: tuple[float, ...] | None = None,
    clip_sigmas: tuple[float, ...] | None = None,
    only: tuple[Section, ...] | None = None,
    root: Path | None = None,
    stride: int | None = None,
    sheets: Path | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint of our own layout.

    Args:
        checkpoint: A bundled name or a folder.
        protocol: What is measured, and on what.
        clips: How many test clips, the first ones of the test seeds; of tables: of each of its sets, at most all.
            Public sets have their own.
        seed: Of the dreams' noise, the random actions and the bootstrap.
        device: Where to render and dream; the speed is always the CPU's.
        step_sigmas: Noise levels of an env step, None for the checkpoint's.
        clip_sigmas: Noise levels of prediction, planning and reconstruction, None for the checkpoint's.
        only: Sections of a simulator protocol, None for all of them.
        root: Folder of a public set.
        stride: Frames between windows of a public set, None for the public one.
        sheets: Folder for contact sheets of the best, median and worst clip; needs "rollout".

    Returns:
        metrics, intervals, counts (clips that a metric was taken over), commit, checkpoint, checkpoint_sha256, device,
        seeds, settings, speed.

    Raises:
        ValueError: Fewer than two clips (another clip's path is needed), an unknown protocol or section, sheets without
            rollout, a public set without its folder.
        DatasetError: A public set that cannot be read.
        CheckpointError: The checkpoint cannot be used.
    """
    from aether_env.sim import seed_in
    from aether_env.world_model.checkpoint import load_checkpoint, resolve
    from aether_env.world_model.own_clips import OwnClips
    from aether_env.world_model.rollout import DreamWorld
    from training.evaluation import report

    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol must be one of {', '.join(get_args(Protocol))}, got {protocol!r}.")
    if clips < 2:
        raise ValueError(f"clips must be at least 2, got {clips}: each is also dreamed along another clip's path.")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}.")
    sections = SECTIONS.get(protocol, ()) if only is None else only
    if only is None and clips < FEW_CLIPS:
        sections = tuple(section for section in sections if section != "endurance")
    if only is not None and (not only or protocol not in SECTIONS or not set(only) <= set(get_args(Section))):
        raise ValueError(
            f"only must be some of {', '.join(get_args(Section))}, of a protocol on the simulator, got {only}."
        )
    if sheets is not None and "rollout" not in sections:
        raise ValueError("sheets are chosen by the rollout's PSNR; measure 'rollout' as well.")
    if protocol in get_args(PublicSet) and root is None:
        raise ValueError(f"root must be the folder of {protocol}, got None: add --root FOLDER.")
    folder = resolve(checkpoint)
    components = load_checkpoint(folder, device)
    subject = Subject(
        folder, DreamWorld(components, sigmas=step_sigmas), OwnClips(components, sigmas=clip_sigmas), seed, device
    )
    world, pipeline = subject.world, subject.pipeline
    results: dict[str, Any] = {
        "metrics": {}, "intervals": {}, "counts": {}, "protocol": protocol,
        "commit": report.commit(), "checkpoint": str(checkpoint), "checkpoint_sha256": report.checkpoint_sha256(folder),
        "device": device,
        "seeds": {"noise": seed},
        "settings": {
            "height": world.height, "width": world.width, "fps": world.fps, "step_sigmas": list(world.sigmas),
            "clip_sigmas": list(pipeline.sigmas),
            "reconstruct_sigmas": list(pipeline.reconstruct_sigmas),
            "reconstruct_views": pipeline.reconstruct_views,
            "reconstruct_refine": pipeline.reconstruct_refine, "step_detail": components.settings.step_detail,
            "sections": list(sections),
        },
        "speed": {"checkpoint_mib": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**20},
    }  # fmt: skip
    if protocol in SECTIONS:
        results["seeds"] |= {"split": "test", "first": seed_in("test", 0), "count": clips}
        found = _simulator(subject, protocol, sections, clips, step_sigmas, sheets)
    elif root is None or protocol not in get_args(PublicSet):
        found = _tables(subject, clips)
    else:
        from training.evaluation.public import public_scores

        found = public_scores(pipeline, cast(PublicSet, protocol), root, stride, seed, device=device)
    for name, value in found.items():
        results[name] = results[name] | value if isinstance(results.get(name), dict) else value
    times = {f"evaluation_seconds_{name}": value for name, value in subject.clock.seconds.items()}
    memory = {f"evaluation_{name}": value for name, value in report.memory().items()}
    return results | {"speed": results["speed"] | times | memory}


def _simulator(
    subject: Subject,
    protocol: str,
    sections: Sequence[str],
    clips: int,
    step_sigmas: tuple[float, ...] | None,
    sheets: Path | None,
) -> dict[str, Any]:
    """Return metrics, intervals, counts and speed of some sections, on the first test walks."""
    import numpy as np
    from tqdm import tqdm

    from aether_env.world_model.own_clips import CLIP_FRAMES
    from training.evaluation import drift, report, scores, vbench
    from training.evaluation.perceptual import LEAST_SIZE, perceptual_distance
    from training.evaluation.running import measure_speed, stays_finite
    from training.evaluation.summary import summarise
    from training.evaluation.walks import BATCH, WalkSet

    world, seed, clock = subject.world, subject.seed, subject.clock
    metrics: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    speed: dict[str, Any] = {}

    def keep(found: Scores, rows: Sequence[Row]) -> None:
        new = summarise(found, seed, rows)
        metrics.update(new[0])
        intervals.update(new[1])
        counts.update(new[2])

    walks = WalkSet(clips, CLIP_FRAMES, world.settings, subject.device)
    compared = {"baselines"} if {"rollout", "prediction"} & set(sections) else set()
    wanted = {name: section for name, section in _clip_sections().items() if name in {*sections, *compared}}
    parts: dict[str, list[Scores]] = {name: [] for name in wanted}
    if wanted:
        clock.time("rendering", lambda: walks.plans)
    for first in tqdm(range(0, clips, BATCH) if wanted else (), desc="clips", unit="batch"):
        walk = clock.time("rendering", partial(walks.draw, np.arange(first, min(first + BATCH, clips))))
        for name, (measure, _) in wanted.items():
            parts[name].append(clock.time(name, partial(measure, subject, walks, walk)))
    joined = {name: _joined(of_section) for name, of_section in parts.items()}
    together = {name: values for of_section in joined.values() for name, values in of_section.items()}
    for rows in {id(rows): rows for _, rows in wanted.values()}.values():  # some sections share their metrics
        keep(together, rows)
    perceptual: drift.Perceptual = ("none", None)
    if {"drift", "return"} & set(sections) and min(world.height, world.width) >= LEAST_SIZE:
        perceptual = perceptual_distance(subject.device)

    def walk_far(name: str, count: int, measure: Callable[[WalkSet, np.ndarray], Scores]) -> None:
        far = drift.long_walks(count, world.settings, subject.device)
        batches = np.array_split(np.arange(count), -(-count // BATCH))
        bar = tqdm(batches, desc=name, unit="batch")
        keep(_joined([clock.time(name, partial(measure, far, numbers)) for numbers in bar]), drift.METRICS)

    if "drift" in sections:
        last = DRIFT_STEPS[protocol]
        drifting = partial(drift.drift_scores, world, seed=seed, last_step=last, perceptual=perceptual)
        walk_far("drift", min(clips, DRIFT_CLIPS[protocol]), drifting)
    if "return" in sections:
        returning = partial(drift.return_scores, world, seed=seed, steps=drift.RETURN_STEPS, perceptual=perceptual)
        walk_far("return", min(clips, RETURN_CLIPS), returning)
    if "endurance" in sections:
        few = walks.draw(np.arange(2))
        metrics["nan_free_200"] = float(clock.time("endurance", partial(stays_finite, world, few, seed)))
    if "speed" in sections:
        speed = measure_speed(subject.folder, walks.draw(np.arange(1)), step_sigmas, seed)
        metrics["cpu_steps_per_second"] = 1 / speed["cpu_step_seconds_median"]
    if sheets is not None:
        order = np.argsort(-joined["rollout"][f"psnr_dream_{scores.FRAMES[-1]}"], kind="stable")
        for title, number in (("best", order[0]), ("median", order[len(order) // 2]), ("worst", order[-1])):
            report.write_sheet(sheets / f"{title}.png", world, walks.draw(np.array([number])), seed)
    unmeasured = vbench.why_not_measured() or "VBench is not measured by this protocol but by `tables`."
    return {
        "metrics": metrics, "intervals": intervals, "counts": counts, "speed": speed,
        "settings": {"vbench": unmeasured} if protocol == "simulator" else {},
    }  # fmt: skip


def _clip_sections() -> dict[str, tuple[Callable[[Subject, WalkSet, Walk], Scores], Sequence[Row]]]:
    """Return what is measured on clips of 17 frames, batch by batch, and the metrics that come of it."""
    import numpy as np

    from training.evaluation import following, planning, scores, summary, video

    def dreamed_video(subject: Subject, walks: WalkSet, walk: Walk) -> Scores:
        steps = scores.FRAMES[-1] // 4
        frames = scores.roll_out(subject.world, walk, walk.path, steps, subject.seed)
        rgb = np.concatenate([walk.rgb[:, :1], frames.rgb], axis=1)
        return video.video_floor_scores(subject.world.codec, walk) | video.video_scores("dream", rgb, walk)

    return {
        "baselines": (lambda s, _, walk: scores.baseline_scores(s.world.codec, walk), ()),
        "rollout": (lambda s, _, walk: scores.rollout_scores(s.world, walk, s.seed), summary.METRICS),
        "prediction": (lambda s, _, walk: scores.prediction_scores(s.pipeline, walk, s.seed), summary.METRICS),
        "reconstruction": (lambda s, _, walk: scores.reconstruction_scores(s.pipeline, walk, s.seed), summary.METRICS),
        "video": (dreamed_video, video.METRICS),
        "following": (
            lambda s, walks, walk: following.following_scores(s.world, walks.plans[walk.numbers], walk.numbers, s.seed),
            following.METRICS,
        ),
        "planning": (lambda s, _, walk: planning.planning_scores(s.pipeline, walk, s.seed), planning.METRICS),
    }


def _tables(subject: Subject, clips: int) -> dict[str, Any]:
    """Return what our rows of the paper's tables 3 to 6 hold, on the sets in and out of the training's domain.

    Tables 3, 4 and 6 need VBench; without it only table 5 is measured, and settings say why.
    """
    import numpy as np
    from tqdm import tqdm

    from aether_env.sim import seed_in
    from training.evaluation import planning, tables, vbench
    from training.evaluation.summary import mean, summarise
    from training.evaluation.walks import BATCH

    scores: Scores = {}
    rows: list[Row] = []
    seeds: dict[str, Any] = {}

    def of_clips(task: tables.Task, measure: Callable[[Walk], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return what is measured of each clip, those in-domain first."""
        kind = tables.KINDS[task]
        firsts = {"in_domain": 0, "out_of_domain": tables.OUT_OF_DOMAIN_FIRST}
        sets = tables.domain_sets(kind, subject.world.settings, device=subject.device)
        seeds[kind], parts = {}, []
        for (domain, first), walks in zip(firsts.items(), sets, strict=True):
            count = min(clips, walks.count)
            seeds[kind][domain] = {"first": seed_in("test", first), "count": count}
            batches = np.array_split(np.arange(count), -(-count // BATCH))
            words = f"{task} {domain}".replace("_", " ")
            parts += [measure(walks.draw(numbers)) for numbers in tqdm(batches, desc=words, unit="batch")]
        return _joined(parts)

    def keep(task: tables.Task, row: str, column: str, values: np.ndarray) -> None:
        """Keep what `of_clips` or what comes of it holds for each clip."""
        inside = min(clips, tables.SIZES[tables.KINDS[task]][0])
        parts: dict[tables.Domain, slice] = {
            "in_domain": slice(inside), "out_of_domain": slice(inside, None), "overall": slice(None),
        }  # fmt: skip
        for domain, part in parts.items():
            name = tables.metric_name(task, domain, column, row)
            scores[name] = values[part]
            rows.append((name, mean, (name,)))

    found = of_clips("navigation", lambda walk: planning.planning_scores(subject.pipeline, walk, subject.seed))
    ours = {"": "navigation", "repeated": "plan_repeated", "warp": "plan_warp", "autoencoder": "plan_autoencoder"}
    for row, picture in ours.items():
        for column in ("psnr", "ssim", "ms_ssim", "lpips", "st_lpips"):
            keys = [f"{picture}_{column}_{frame}" for frame in planning.FRAMES]
            if keys[0] in found:
                keep("navigation", row, column, np.mean([found[key] for key in keys], axis=0))
    reason = vbench.why_not_measured()
    for name, dreamed in vbench.DREAMED.items() if reason is None else ():
        task = cast("tables.Task", name)
        videos = of_clips(task, partial(vbench.task_videos, subject.pipeline, task, seed=subject.seed))
        judged = vbench.vbench_scores(videos, subject.world.fps, device=subject.device)
        for row, video in {"": dreamed, "repeated": "repeated", "truth": "truth"}.items():
            for dimension in vbench.WEIGHTS:
                keep(task, row, dimension, judged[f"vbench_{video}_{dimension}"])
    metrics, intervals, counts = summarise(scores, subject.seed, rows)
    return {
        "metrics": metrics, "intervals": intervals, "counts": counts, "seeds": seeds, "settings": {"vbench": reason},
    }  # fmt: skip


def _joined(parts: list[Scores]) -> dict[str, np.ndarray]:
    """Join scores of batches, clip after clip."""
    import numpy as np

    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}


def main(
    checkpoint: tyro.conf.Positional[str] = "mini",
    protocol: Protocol = "quick",
    clips: int = 256,
    seed: int = 0,
    device: str = "cpu",
    out: Path | None = None,
    step_sigmas: tuple[float, ...] | None = None,
    clip_sigmas: tuple[float, ...] | None = None,
    only: tuple[Section, ...] | None = None,
    root: Path | None = None,
    stride: int | None = None,
    sheets: Path | None = None,
) -> None:
    """Measure a checkpoint; print tables, and leave them and the JSON where --out says.

    Args:
        checkpoint: A bundled name or a folder.
        protocol: What is measured, and on what.
        clips: How many test clips; more give narrower intervals.
        seed: Of the dreams' noise, the random actions and the bootstrap; the clips are always the same.
        device: Where to render and dream; the speed is always the CPU's.
        out: JSON file; the tables go beside it as .md, a plot of the drift as .png. None only prints.
        step_sigmas: Noise levels of an env step instead of the checkpoint's.
        clip_sigmas: Noise levels of prediction, planning and reconstruction instead of the checkpoint's.
        only: Sections of a simulator protocol.
        root: Folder of a public set.
        stride: Frames between windows of a public set; the public one unless given.
        sheets: Folder for contact sheets of the best, median and worst clip.
    """
    from training.evaluation import report

    if out is not None:
        report.check_writable(out)
    results = evaluate(
        checkpoint, protocol=protocol, clips=clips, seed=seed, device=device, step_sigmas=step_sigmas,
        clip_sigmas=clip_sigmas, only=only, root=root, stride=stride, sheets=sheets,
    )  # fmt: skip
    print(report.document(results))
    if out is not None:
        report.write(out, results)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
