"""Measure the annotation on known videos: python -m training.evaluation.annotation --videos 40 --doom 10

Videos of the simulator (test scenes, 320 x 240) and walks in ViZDoom are recorded without cameras, intrinsics and
masks, annotated, and judged by the truth that was kept aside (see `annotation_scores`); then again with one stage left
out at a time. Run again, it goes on with what is missing in --work; what other code or settings gave is measured anew.
Everything but seconds is the same for the same call on the same machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import tyro

if TYPE_CHECKING:
    from training.annotate.recorders import Known, KnownVideo
    from training.annotate.run import Chain
    from training.annotate.settings import AnnotateSettings
    from training.evaluation.annotation_videos import VideoJob

Ablation = Literal["no_masks", "no_refinement", "no_depth_residuals"]
ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)


def main(
    videos: int = 40,
    doom: int = 10,
    out: Path | None = Path("docs/results/annotation.json"),
    work: Path = Path("runs/annotation"),
    ablations: tuple[Ablation, ...] = ABLATIONS,
    frames: int = 48,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Measure the annotation; print tables, and leave them and the JSON where --out says.

    Args:
        videos: Of the simulator: half of them the first test scenes in which nothing moves, half in which much does.
        doom: Walks in ViZDoom; odd ones have monsters.
        out: JSON file; the tables go beside it as .md. None only prints.
        work: Folder for recordings, and for what was measured of each video.
        ablations: What is left out, one at a time; none is quickest.
        frames: Of each video, 12 a second.
        seed: Of the recordings and the bootstrap.
        workers: Processes, one thread each; default one for each core, 0 is this process.
    """
    from training.evaluation.annotation_tables import markdown
    from training.evaluation.report import check_writable, write_json

    if out is not None:
        check_writable(out)
    results = measure(
        videos, doom, work=work, ablations=ablations, frames=frames, seed=seed, workers=workers, progress=True
    )
    print(markdown(results))
    if out is not None:
        write_json(out, results)
        out.with_suffix(".md").write_text(markdown(results), encoding="utf-8")


def measure(
    videos: int = 40,
    doom: int = 10,
    *,
    work: Path,
    ablations: Sequence[Ablation] = ABLATIONS,
    frames: int = 48,
    seed: int = 0,
    workers: int | None = None,
    scenes: Sequence[int] | None = None,
    settings: AnnotateSettings | None = None,
    chain: Chain | None = None,
    record: Callable[[Known, int], KnownVideo] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure the annotation; other processes import `chain` and `record` by name.

    Args:
        videos: See `main`.
        doom: See `main`.
        work: See `main`.
        ablations: See `main`.
        frames: See `main`.
        seed: See `main`.
        workers: See `main`.
        scenes: Numbers of the test scenes instead of `videos` that are chosen.
        settings: Of the annotation; None is the default.
        chain: What is measured; None is `training.annotate.chain.annotate_piece`.
        record: Who records; None is the simulator.
        progress: Show bars.

    Returns:
        metrics, intervals, counts (videos that a metric was taken over), ablations (the same of each), videos (a row
        each, for each way), silent_failures (kept clips that are wrong, by name), commit, seeds, settings, speed.

    Raises:
        ValueError: No videos, unknown ablations, other recordings in `work`, or ViZDoom is not installed.
        RuntimeError: Videos that could not be measured; a chain that fails on one is no such video but a result.
    """
    from training.annotate.recorders import Known, record_known
    from training.annotate.settings import AnnotateSettings
    from training.evaluation.annotation_videos import FULL, VideoJob, code_digest

    if videos < 0 or doom < 0 or videos + doom < 1:
        raise ValueError(f"videos and doom must be at least 0, and one of them more, got {videos} and {doom}.")
    if not set(ablations) <= set(ABLATIONS):
        raise ValueError(f"ablations must be some of {', '.join(ABLATIONS)}, got {', '.join(ablations)}.")
    settings = settings or AnnotateSettings()
    known = Known(world="simulator", videos=max(videos, 1), frames=frames, seed=seed, split="test")
    walks = replace(known, world="vizdoom", videos=max(doom, 1))
    _claim(work, known)
    if scenes is None:
        scenes = _scenes(work, known) if videos else ()
    if doom:  # here and not in the jobs: two games at once would tidy up the same folder
        record_known(work / walks.world, walks, progress=progress)
    ways = {FULL: settings} | {name: without(settings, name) for name in ablations}
    jobs = [
        VideoJob(known=one, number=number, work=work, ways=ways, code=code_digest(), chain=chain, record=record)
        for one, numbers in ((known, scenes), (walks, range(doom)))
        for number in numbers
    ]
    _run(jobs, workers, progress)
    return _results(jobs, known, settings)


def without(settings: AnnotateSettings, ablation: Ablation) -> AnnotateSettings:
    """Return the settings with a stage left out."""
    if ablation == "no_masks":
        return replace(settings, masker="none")
    if ablation == "no_refinement":
        return replace(settings, refine=False)
    adjust = replace(settings.refinement.adjust, depth_sigma=None)
    return replace(settings, refinement=replace(settings.refinement, adjust=adjust))


def _run(jobs: Sequence[VideoJob], workers: int | None, progress: bool) -> None:
    """Measure what is not measured yet."""
    from tqdm import tqdm

    from training.annotate.jobs import run_here, run_in_processes
    from training.annotate.run import cores
    from training.evaluation.annotation_videos import measure_video

    waiting = {job.name: job for job in jobs if any(job.row(way) is None for way in job.ways)}
    count = cores() if workers is None else workers
    finished = run_in_processes(measure_video, waiting, count) if count else run_here(measure_video, waiting)
    errors = []
    with tqdm(total=len(jobs), initial=len(jobs) - len(waiting), unit="video", disable=not progress) as bar:
        for name, error in finished:
            if error is not None:
                errors.append(f"{name}: {error}")
            bar.update()
    if errors:
        raise RuntimeError(f"{len(errors)} videos could not be measured; run again to go on. {'; '.join(errors)}")


def _results(jobs: Sequence[VideoJob], known: Known, settings: AnnotateSettings) -> dict[str, Any]:
    from training.evaluation.annotation_scores import is_wrong
    from training.evaluation.annotation_tables import speed, summary
    from training.evaluation.annotation_videos import FULL, recording
    from training.evaluation.report import commit

    rows = {way: [row for job in jobs if (row := job.row(way)) is not None] for way in jobs[0].ways}
    found = {way: summary(told, known.seed) for way, told in rows.items()}
    numbers = {world: [job.number for job in jobs if job.known.world == world] for world in ("simulator", "vizdoom")}
    return {
        **found.pop(FULL), "ablations": found, "protocol": "annotation", "commit": commit(),
        "seeds": {"split": known.split, **numbers, "recordings": known.seed, "annotation": settings.seed,
                  "bootstrap": known.seed},
        "settings": {"recordings": recording(known), "annotation": settings.told()},
        "speed": speed(rows[FULL]),
        "silent_failures": [
            f"{row['name']} from frame {clip['first']} on ({clip['frames']} frames)"
            for row in rows[FULL] for clip in row["clips"] if is_wrong(clip)
        ],
        "videos": rows,
    }  # fmt: skip


def _scenes(work: Path, known: Known) -> list[int]:
    """Return which scenes are recorded; how much moves in which is written down."""
    from training.evaluation.annotation_videos import choose_scenes

    path = work / "moving_shares.json"
    shares: list[float] = json.loads(path.read_text()) if path.exists() else []
    chosen = choose_scenes(known, shares)
    path.write_text(json.dumps(shares) + "\n")
    return chosen


def _claim(work: Path, known: Known) -> None:
    """Leave in a new folder what is recorded there; refuse a folder of other recordings."""
    from training.evaluation.annotation_videos import recording

    path, mine = work / "recordings.json", recording(known)
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(mine) + "\n")
    elif (theirs := json.loads(path.read_text())) != mine:
        raise ValueError(f"work must be new or hold recordings of {mine}, {path} says {theirs}; take another folder.")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m training.evaluation.annotation", description=__doc__)
