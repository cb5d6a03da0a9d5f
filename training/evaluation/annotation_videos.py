"""Known videos of the annotation's measurement: which scenes, and what the chain makes of each."""

from __future__ import annotations

import ast
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.annotate.footage import Footage
from training.annotate.inputs import find_videos
from training.annotate.pieces import read_pieces
from training.annotate.recorders import Known, KnownVideo, simulated, write_known
from training.annotate.results import PieceResult
from training.annotate.settings import AnnotateSettings
from training.clip_sources import scene_seed
from training.evaluation.annotation_scores import MOVES, Truth, usable_frames, video_scores

if TYPE_CHECKING:
    from training.annotate.run import Chain

FULL = "full"
"""The way of annotating that leaves nothing out."""
MUCH_MOVES = 5e-3
"""Share of pixels that move in a scene that is chosen because something does."""
_PLANNED, _EVERY, _SMALL = 16, 4, (30, 40)
"""Scenes that are looked at together, every so many frames, in so few pixels."""
_CODE = ("training.annotate.chain", "training.annotate.pieces", "training.evaluation.annotation_scores")
"""What decides, with all that it imports of ours, what comes out of a recorded video."""


@dataclass(frozen=True, kw_only=True)
class VideoJob:
    """A video that is recorded, annotated in some ways, and judged."""

    known: Known
    """What is recorded; how many does not matter."""
    number: int
    work: Path
    ways: Mapping[str, AnnotateSettings]
    code: str
    """See `code_digest`."""
    chain: Chain | None
    """None is `chain.annotate_piece`."""
    record: Callable[[Known, int], KnownVideo] | None
    """None is `recorders.simulated`."""

    @property
    def name(self) -> str:
        """Of the video, as the recorders call it."""
        return f"{self.known.world}-{self.known.seed}-{self.number:04d}"

    @property
    def recordings(self) -> Path:
        """Folder of the world's videos and their truth."""
        return self.work / self.known.world

    def row(self, way: str) -> dict[str, Any] | None:
        """Return what was measured of the video in a way; None where that is still to be done."""
        try:
            kept = json.loads(self._path(way).read_text())
            return kept["row"] if kept["stamp"] == self._stamp(way) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, way: str, row: dict[str, Any]) -> None:
        """Write down what was measured; it appears whole."""
        path = self._path(way)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"stamp": self._stamp(way), "row": row}, allow_nan=False) + "\n")
        unfinished.replace(path)

    def _path(self, way: str) -> Path:
        return self.work / "rows" / way / f"{self.name}.json"

    def _stamp(self, way: str) -> str:
        """Return one word for all that a row follows from."""
        chain = None if self.chain is None else getattr(self.chain, "__qualname__", type(self.chain).__name__)
        told = [recording(self.known), self.ways[way].told(), chain, self.code]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def choose_scenes(known: Known, shares: list[float]) -> list[int]:
    """Return the numbers of the first scenes of a split in which nothing moves, and as many in which much does.

    Args:
        known: How many videos, and of which length; an odd one is of a scene at rest.
        shares: Of the pixels that move in the first scenes, as far as that is known already; more are added.
    """
    wanted = known.videos - known.videos // 2, known.videos // 2
    while True:
        rest = [number for number, share in enumerate(shares) if share < MOVES]
        moving = [number for number, share in enumerate(shares) if share >= MUCH_MOVES]
        if len(rest) >= wanted[0] and len(moving) >= wanted[1]:
            return sorted(rest[: wanted[0]] + moving[: wanted[1]])
        shares += _moving_shares(known, range(len(shares), len(shares) + _PLANNED))


def _moving_shares(known: Known, numbers: Sequence[int]) -> list[float]:
    """Return the shares of pixels that move in scenes, by small pictures of some frames."""
    from aether_env.sim import draw_clips, plan_clips

    seeds = [scene_seed(known.split, known.seed, number) for number in numbers]
    plans = plan_clips(seeds, num_frames=known.frames, fps=known.fps)
    few = replace(
        plans, scene_from_camera=plans.scene_from_camera[:, ::_EVERY], mover_pose=plans.mover_pose[:, ::_EVERY]
    )
    clips = draw_clips(few, height=_SMALL[0], width=_SMALL[1], supersample=1, shadows=False)
    return clips.moving.cpu().numpy().mean((1, 2, 3)).round(5).tolist()


def measure_video(job: VideoJob) -> None:
    """Record a video that is not there yet, and measure it in the ways that are missing."""
    folder = job.recordings / "videos" / job.name
    if not folder.exists():
        write_known(job.recordings, (job.record or simulated)(job.known, job.number))
    truth = Truth.read(job.recordings / "truth" / f"{job.name}.npz", job.known.world)
    (video,) = find_videos([folder])
    pieces = list(read_pieces(video, job.ways[FULL].inputs))
    dropped = [reason for piece in pieces for reason in piece.dropped.values()]
    footage = [piece.footage for piece in pieces if piece.footage is not None]
    usable = usable_frames(footage, truth)
    for way in job.ways:
        if job.row(way) is None:
            job.keep(way, _annotated(job, way, footage, truth, usable, dropped))


def code_digest() -> str:
    """Return one digest of the code that decides what comes out of a recorded video: what other code gave is void."""
    root, waiting = Path(__file__).parents[2], list(_CODE)
    sources: dict[str, bytes] = {}
    while waiting:
        name = waiting.pop()
        path = root / f"{name.replace('.', '/')}.py"
        if name not in sources and path.is_file():
            sources[name] = path.read_bytes()
            waiting += _imported(sources[name])
    digest = hashlib.sha256()
    for name in sorted(sources):
        digest.update(name.encode() + b"\0" + sources[name] + b"\0")
    return digest.hexdigest()


def _imported(source: bytes) -> Iterator[str]:
    """Yield the names that may be modules which a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def _annotated(
    job: VideoJob, way: str, footage: Sequence[Footage], truth: Truth, usable: list[int], dropped: list[str]
) -> dict[str, Any]:
    """Return the row of a video in a way; that the chain fails is a result, too."""
    chain, failed = job.chain or _default_chain(), None
    began = time.process_time()  # of all threads, and not of others on the machine
    try:
        results = [(piece, chain(piece, job.ways[way])) for piece in footage]
    except Exception as error:
        results, failed = [], f"{type(error).__name__}: {error}"[:500]
    spent = time.process_time() - began
    row = video_scores(job.name, truth, results, usable, dropped=dropped, failed=failed)
    return row | {"seconds": _seconds(spent, [result for _, result in results])}


def _seconds(spent: float, results: Sequence[PieceResult]) -> dict[str, float]:
    """Return CPU seconds, all and of each stage by its share of the time: a clock on the wall counts others, too."""
    stages = Counter[str]()
    for result in results:
        stages.update(result.seconds)
    told = {stage: spent * seconds / stages.total() for stage, seconds in stages.items() if stages.total() > 0}
    return {name: round(seconds, 2) for name, seconds in ({"cpu": spent} | told).items()}


def _default_chain() -> Chain:
    from training.annotate.chain import annotate_piece

    return annotate_piece


def recording(known: Known) -> dict[str, Any]:
    """Return what the recordings of all worlds have in common."""
    return {name: value for name, value in asdict(known).items() if name not in ("world", "videos")}
