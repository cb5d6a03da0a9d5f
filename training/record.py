"""Record the simulator's clips in shards: python -m training.record --out runs/clips --clips 1000

Run again after an interruption, it goes on with the shards that are missing; a shard is there when it is whole. And
python -m training.record --validate FOLDER reads every byte of any folder of shards and names what is damaged.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import tyro

if TYPE_CHECKING:
    from training.clips import Clip

SETTINGS = "recording.json"
"""In the folder: what was recorded, so that an interrupted recording is not continued as another one."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What is recorded."""

    clips: int = 1000
    """How many."""
    height: int = 64
    """Pixels."""
    width: int = 96
    """Pixels."""
    fps: float = 24.0
    """Frames per second; training draws rates up to this one."""
    frames: int = 121
    """Frames of a clip: 121 at 24 per second hold 41 at 8."""
    seed: int = 0
    """Of the scenes; training with the simulator in the loop sees these of the same seed too."""
    split: Literal["train", "validation", "test"] = "train"
    """Which scenes; never train on others than "train"."""
    rgb: Literal["png", "jpeg"] = "png"
    """"png" keeps every bit, "jpeg" is several times smaller."""
    quality: int = 95
    """Of JPEG, 1 to 100."""
    clips_per_shard: int = 64
    """Clips in a tar file."""
    supersample: int = 2
    """Rays per pixel and axis."""

    def __post_init__(self) -> None:
        for name in ("clips", "height", "width", "frames", "clips_per_shard", "supersample"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.fps <= 240:
            raise ValueError(f"fps must be in (0, 240], got {self.fps}.")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be in 1..100, got {self.quality}.")


def main(
    recording: tyro.conf.OmitArgPrefixes[Recording],
    out: Path | None = None,
    validate: Path | None = None,
    device: str = "cpu",
    batch: int = 16,
) -> None:
    """Record clips, or validate a folder of shards.

    Args:
        recording: What is recorded.
        out: Folder for the shards.
        validate: Folder of shards to read from end to end instead.
        device: Where clips are drawn.
        batch: Clips drawn together.
    """
    if (out is None) == (validate is None):
        _refuse("give either --out FOLDER, to record, or --validate FOLDER.")
    if out is not None:
        try:
            record(out, recording, device=device, batch=batch)
        except ValueError as error:
            _refuse(str(error))
    folder = validate or out
    assert folder is not None
    if problems := report(folder):
        raise SystemExit(f"{problems} problems in {folder}.")


def record(out: Path, recording: Recording, *, device: str = "cpu", batch: int = 16, progress: bool = True) -> int:
    """Write the shards that are missing in `out`, and return how many these were.

    Args:
        out: Folder; made if it is not there.
        recording: What is recorded.
        device: Where clips are drawn.
        batch: Clips drawn together.
        progress: Show a bar.

    Raises:
        ValueError: The folder holds another recording, or the seeds do not suffice.
    """
    from tqdm import tqdm

    from aether_env.devices import check_device
    from training.clip_sources import scene_seed
    from training.clips import check_size
    from training.shards import shard_path, write_shard

    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}.")
    check_device(device)
    check_size(recording.frames, recording.height, recording.width)
    scene_seed(recording.split, recording.seed, recording.clips - 1)
    _claim(out, recording)
    each, written = recording.clips_per_shard, 0
    with tqdm(total=recording.clips, unit="clip", disable=not progress) as bar:
        for number, first in enumerate(range(0, recording.clips, each)):
            indices = range(first, min(first + each, recording.clips))
            path = shard_path(out, number)
            if not path.exists():
                clips = _render(recording, indices, device, batch, bar.update)
                write_shard(path, clips, first_number=first, rgb=recording.rgb, quality=recording.quality)
                written += 1
            else:
                bar.update(len(indices))
    return written


def _refuse(why: str) -> NoReturn:
    print(f"error: {why}", file=sys.stderr)
    raise SystemExit(2)


def report(folder: Path) -> int:
    """Print what a folder of shards holds and what is damaged, and return the number of problems."""
    from training.shards import validate_shards

    try:
        found = validate_shards(folder)
    except ValueError as error:
        _refuse(str(error))
    for problem in found.problems:
        print(problem)
    print(f"{found.clips} whole clips in {found.shards} shards, {len(found.problems)} problems: {folder}")
    return len(found.problems)


def _claim(out: Path, recording: Recording) -> None:
    """Leave the settings in a new folder; refuse a folder with others."""
    path, settings = out / SETTINGS, asdict(recording)
    if path.exists():
        try:
            known = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); delete it if its folder holds this recording.") from error
        if known != settings:
            raise ValueError(f"out must be new or hold the same recording, {path} says {known}; take another folder.")
        return
    if out.exists() and any(out.glob("*.tar")):
        raise ValueError(f"out must be new, {out} holds shards of something else; take another folder.")
    out.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(settings, indent=1) + "\n")
    unfinished.replace(path)


def _render(
    recording: Recording, indices: range, device: str, batch: int, done: Callable[[int], object]
) -> Iterator[Clip]:
    """Yield the clips of a shard."""
    from training.clip_sources import Wanted, render_seeds, scene_seed

    wanted = Wanted(num_frames=recording.frames, fps=recording.fps, height=recording.height, width=recording.width)
    for first in range(0, len(indices), batch):
        seeds = [scene_seed(recording.split, recording.seed, index) for index in indices[first : first + batch]]
        yield from render_seeds(seeds, wanted, device=device, supersample=recording.supersample)
        done(len(seeds))


if __name__ == "__main__":
    tyro.cli(main, prog="python -m training.record")
