"""Settings of the clips that a run is trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from aether_env.conventions import FRAMES_PER_LATENT
from training.checks import fields_in_range

SIMULATOR, SHARDS = "simulator", "shards"
SOURCE_KINDS = (SIMULATOR, SHARDS, "sintel", "scannet", "tum")
"""What clips may come from: rendered when they are needed; recorded or annotated; public sets that tell cameras."""
NO_CAMERAS = {
    "bonn": "its groundtruth.txt follows markers and not the camera, and the published transform between them scales",
    "kitti": "the pictures with depth that its evaluation takes come without poses",
}
"""Why clips cannot come from other sets of the paper's tests."""


class Source(NamedTuple):
    """One source of clips."""

    kind: str
    """One of `SOURCE_KINDS`."""
    folder: Path | None
    """Of all but the simulator."""
    weight: float
    """How often it is drawn from, relative to the others."""


def read_source(text: str) -> Source:
    """Read a source of clips, written KIND[=FOLDER][@WEIGHT]: "simulator", "shards=data/clips@2".

    Raises:
        ValueError: It is not written so.
    """
    rest, at, weight_text = text.rpartition("@")  # the last one: folders may have some too
    rest, weight_text = (rest, weight_text) if at else (text, "1")
    kind, _, folder = rest.partition("=")
    if kind in NO_CAMERAS:
        raise ValueError(
            f"sources cannot be of the set {kind}, got {text!r}: {NO_CAMERAS[kind]}; annotate its videos, which gives "
            "shards."
        )
    if kind not in SOURCE_KINDS:
        raise ValueError(
            f"sources must be KIND[=FOLDER][@WEIGHT], KIND one of {', '.join(SOURCE_KINDS)}, got {text!r}; annotate "
            "other videos, which gives shards."
        )
    if (kind == SIMULATOR) == bool(folder):
        raise ValueError(f"sources must name a folder, shards=FOLDER, for all but the simulator, got {text!r}.")
    try:
        weight = float(weight_text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ValueError(f"sources must have positive weights, got {text!r}.")
    return Source(kind, Path(folder) if folder else None, weight)


def check_sources(sources: tuple[str, ...]) -> None:
    """Check that the folders of sources are there, and that those of shards hold some.

    Raises:
        ValueError: One is not, or holds none.
    """
    for kind, folder, _ in map(read_source, sources):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"sources must be there, {folder} is none; python -m training.record makes shards.")
        if folder is not None and kind == SHARDS and not any(folder.glob("*.tar")):
            raise ValueError(f"sources must hold *.tar files, {folder} has none; python -m training.record makes some.")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Clips of our own layout."""

    height: int = 64
    """Rows of a picture."""
    width: int = 96
    """Columns of a picture."""
    fps: float = 12.0
    """Frames per second."""
    latent_steps: int = 12
    """Latent steps of a clip: the resting first frame and groups of four frames."""
    clip_starts: tuple[int, ...] = (0, 16, 28)
    """Frames at which a window of the three tasks may begin; multiples of 4."""
    chunk_clips: int = 1024
    """Clips rendered and encoded together."""
    chunks: int = 24
    """Chunks held at a time."""
    renew_every: int = 60
    """Training steps after which the oldest chunk is replaced."""
    supersample: int = 2
    """Rays per pixel and axis."""
    workers: int = 0
    """Processes that plan clips ahead, or load them; 0 does it in the training process."""
    family: str | None = None
    """One scene family only; None mixes all."""
    sources: tuple[str, ...] = ()
    """Where clips come from, each KIND[=FOLDER][@WEIGHT]: "shards=data/clips@2", recorded or annotated; "simulator";
    "sintel=FOLDER", "scannet=FOLDER", "tum=FOLDER" as published. Without any all are rendered inside the run, planned
    by workers."""

    @property
    def num_frames(self) -> int:
        """Frames of a clip."""
        return FRAMES_PER_LATENT * (self.latent_steps - 1) + 1

    def __post_init__(self) -> None:
        for source in self.sources:
            read_source(source)
        # Of sizes and rates a checkpoint takes no others: it would be refused when the run is over.
        fields_in_range(self, "height", "width", low=16, high=4096)
        fields_in_range(self, "fps", low=1, high=60)
        fields_in_range(self, "chunk_clips", "chunks", "renew_every", "supersample", low=1)
        fields_in_range(self, "latent_steps", low=5)
        fields_in_range(self, "workers", low=0)
        if self.height % 8 or self.width % 8:
            raise ValueError(f"height and width must be multiples of 8, got {self.height} x {self.width}.")
        if self.family is not None:
            from aether_env.sim import FAMILIES  # only where it is asked for: --help is quick

            if self.family not in FAMILIES:
                raise ValueError(f"family must be one of {', '.join(FAMILIES)}, or none, got {self.family!r}.")
        last = self.num_frames - 1 - 16
        bad = [s for s in self.clip_starts if s % FRAMES_PER_LATENT or not 0 <= s <= last]
        if bad or self.clip_starts[:1] != (0,):
            raise ValueError(
                f"clip_starts must be multiples of 4 in 0..{last}, got {bad}; change them or latent_steps."
            )
