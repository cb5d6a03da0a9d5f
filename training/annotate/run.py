"""Find the cameras of RGB-D videos and write them as clips to train on.

    aether annotate FOLDER_OR_VIDEO ... --out runs/annotated

Every video is a job of its own. OUT/clips holds a shard of clips for each video that gave some (`shards=OUT/clips` of
training), OUT/videos a JSON for each video that is done, OUT/report.html and OUT/report.json what was kept and why.
Run again, it goes on with the videos that are missing or failed.
"""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import tyro

from training.annotate.footage import Footage
from training.annotate.inputs import VideoInput, find_videos
from training.annotate.jobs import run_here, run_in_processes, run_on_ray
from training.annotate.pieces import read_pieces
from training.annotate.plots import video_figure
from training.annotate.report import version, write_report
from training.annotate.results import PieceResult, plain, summary
from training.annotate.settings import AnnotateSettings
from training.clips import Clip
from training.shards import validate_shards, write_shard

CLIPS, VIDEOS, CLAIM = "clips", "videos", "annotate.json"
Chain = Callable[[Footage, AnnotateSettings], PieceResult]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A video to annotate, wherever that happens."""

    video: VideoInput
    out: Path
    settings: AnnotateSettings
    chain: Chain | None = None
    """None is `chain.annotate_piece`."""


def main(
    sources: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER_OR_VIDEO")],
    out: Path,
    settings: Annotated[AnnotateSettings, tyro.conf.arg(name="")] = AnnotateSettings(),  # noqa: B008 (frozen)
    workers: int | None = None,
    ray_address: str | None = None,
) -> None:
    """Annotate videos.

    Args:
        sources: Folders of videos, and video files with their depth beside them; docs/annotation.md tells the layouts.
        out: Folder for clips and report.
        settings: Of the annotation.
        workers: Processes, one thread each; default one for each core.
        ray_address: Of a Ray cluster that does the work instead, "auto" for the one of this machine; `out` and the
            videos must be where all its machines see them.
    """
    totals = annotate(sources, out, settings, workers=workers, ray_address=ray_address)
    print(
        f"{totals['clips']} clips of {totals['kept']} frames from {totals['videos']} videos; of {totals['frames']} "
        f"frames {totals['dropped']} were dropped, {totals['failed']} videos failed: {out / 'report.html'}"
    )


def annotate(
    sources: Sequence[Path],
    out: Path,
    settings: AnnotateSettings | None = None,
    *,
    workers: int | None = None,
    ray_address: str | None = None,
    chain: Chain | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Annotate the videos that are not done yet and write the report of all.

    Args:
        sources: Folders of videos, and video files.
        out: Folder; made if it is not there.
        settings: Of the annotation; None is the default.
        workers: Processes; None is one for each core, 0 is this process.
        ray_address: Of a Ray cluster that does the work instead.
        chain: What is done to a piece of a video; None is `chain.annotate_piece`. Other processes import it by name.
        progress: Show a bar.

    Returns:
        The report's totals.

    Raises:
        ValueError: There is no video, or `out` holds a run of other settings or sources.
    """
    from tqdm import tqdm

    if workers is not None and workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}.")
    settings = settings or AnnotateSettings()
    videos = find_videos(sources)
    _claim(out, settings, sources, chain)
    _sweep(out)
    jobs = {video.name: Job(video=video, out=out, settings=settings, chain=chain) for video in videos}
    waiting = {name: job for name, job in jobs.items() if not _is_done(out, name)}
    if ray_address is not None:
        finished = run_on_ray(annotate_video, waiting, ray_address)
    elif workers == 0:
        finished = run_here(annotate_video, waiting)
    else:
        finished = run_in_processes(annotate_video, waiting, workers or cores())
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(waiting), unit="video", disable=not progress)
    with bar, closing(finished):  # closed at once after Ctrl-C, which ends the processes
        for name, error in finished:
            if error is not None:
                _log.warning("%s: %s", name, error)
                _write_failure(jobs[name], error)
            bar.update()
    return write_report(out, [_json_path(out, name) for name in jobs], settings)


def annotate_video(job: Job) -> None:
    """Annotate one video: its shard of clips appears whole, and then its JSON, which makes it done."""
    start = monotonic()
    account = _Account()
    shard = job.out / CLIPS / f"{job.video.name}.tar"
    clips = _clips(job, account)
    if (first := next(clips, None)) is None:
        shard.unlink(missing_ok=True)  # of an earlier try that died between the shard and the JSON
    else:
        write_shard(shard, _chained(first, clips))
        found = validate_shards(shard)
        if found.problems or found.clips != account.clips:
            shard.unlink()
            raise OSError(f"{shard} holds {found.clips} of {account.clips} clips after writing: {found.problems}")
    about = {
        "name": job.video.name,
        "input": str(job.video.rgb),
        "failed": None,
        "clips": account.clips,
        "fps": account.fps,
        "dropped": {str(number): reason for number, reason in account.dropped.items()},
        "pieces": account.pieces,
        "seconds": plain(monotonic() - start),
    }
    if job.settings.plots:
        about["figure"] = base64.b64encode(video_figure(about)).decode()
    _write_json(_json_path(job.out, job.video.name), about)


@dataclass
class _Account:
    """What happened in a video, filled while its clips are written."""

    dropped: dict[int, str] = field(default_factory=dict)
    pieces: list[dict[str, Any]] = field(default_factory=list)
    clips: int = 0
    fps: float | None = None


def _clips(job: Job, account: _Account) -> Iterator[Clip]:
    """Yield the clips of a video; one piece of it is in memory."""
    chain = job.chain or _default_chain()
    for piece in read_pieces(job.video, job.settings.inputs):
        account.dropped |= piece.dropped
        if piece.footage is None:
            continue
        result = _named(chain(piece.footage, job.settings), job.video.name, len(account.pieces))
        account.pieces.append(summary(piece.footage, result))
        account.fps = piece.footage.fps
        for one in result.slices:
            if one.clip is not None:
                account.clips += 1
                yield one.clip


def _named(result: PieceResult, name: str, piece: int) -> PieceResult:
    """Return a result whose clips have names that no other clip of the run has."""
    slices = tuple(
        one if one.clip is None else replace(one, clip=replace(one.clip, name=f"{name}-{piece:03d}-{number:03d}"))
        for number, one in enumerate(result.slices)
    )
    return replace(result, slices=slices)


def _chained(first: Clip, rest: Iterator[Clip]) -> Iterator[Clip]:
    yield first
    yield from rest


def _default_chain() -> Chain:
    from training.annotate.chain import annotate_piece

    return annotate_piece


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _claim(out: Path, settings: AnnotateSettings, sources: Sequence[Path], chain: Chain | None) -> None:
    """Leave settings and sources in a new folder; refuse a folder with others."""
    path = out / CLAIM
    mine = {
        "settings": settings.told(),
        "sources": sorted(str(Path(source).resolve()) for source in sources),
        "chain": None if chain is None else getattr(chain, "__qualname__", type(chain).__name__),
    }
    if path.exists():
        try:
            known = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); delete it if its folder holds this run.") from error
        for name, value in mine.items():
            if known.get(name) != value:
                raise ValueError(
                    f"out must be new or hold a run of the same {name}, {path} says {known.get(name)} instead of "
                    f"{value}; take another folder."
                )
        return
    if out.exists() and any((out / CLIPS).glob("*.tar")):
        raise ValueError(f"out must be new, {out} holds clips of something else; take another folder.")
    _write_json(path, mine | {"version": version()})


def _sweep(out: Path) -> None:
    """Remove what a killed run left half-written; no other run may write here at the same time."""
    for folder in (out / CLIPS, out / VIDEOS):
        for path in folder.glob(".*.unfinished"):
            path.unlink()


def _is_done(out: Path, name: str) -> bool:
    try:
        return json.loads(_json_path(out, name).read_text())["failed"] is None
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _json_path(out: Path, name: str) -> Path:
    return out / VIDEOS / f"{name}.json"


def _write_failure(job: Job, error: str) -> None:
    (job.out / CLIPS / f"{job.video.name}.tar").unlink(missing_ok=True)
    about = {"name": job.video.name, "input": str(job.video.rgb), "failed": error}
    _write_json(_json_path(job.out, job.video.name), about)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(json.dumps(value, allow_nan=False) + "\n")
    unfinished.replace(path)
