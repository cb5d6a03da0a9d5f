"""Videos of known worlds as inputs of `aether annotate`, their truth aside where it cannot be seen.

    python -m training.annotate.recorders --world simulator --out runs/known --videos 40
    aether annotate runs/known/videos --out runs/annotated

OUT/videos/NAME holds rgb/, depth/ and video.json (see `inputs`), OUT/truth/NAME.npz holds world_from_camera (T, 4, 4),
intrinsics (3, 3), moving (T, H, W) and fps. Run again, it goes on with the videos that are missing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import cv2
import numpy as np
import tyro

from aether_env.conventions import FAR_DEPTH
from aether_env.files import replacing

_PNG_SCALE = 1e-3
"""Metres per count: 65 metres fit into 16 bits."""
_PNG_SKY = 65535


@dataclass(frozen=True, kw_only=True)
class KnownVideo:
    """A video and its truth."""

    name: str
    rgb: np.ndarray
    """(T, H, W, 3) uint8."""
    stored: np.ndarray
    """(T, H, W) depth as it is stored: uint8 or uint16 in PNG, float32 in .npy."""
    about: dict[str, Any]
    """Of video.json."""
    moving: np.ndarray
    """(T, H, W) bool."""
    world_from_camera: np.ndarray
    """(T, 4, 4) float64."""
    intrinsics: np.ndarray
    """(3, 3) float64."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is recorded."""

    world: Literal["simulator", "vizdoom"]
    """Which world; vizdoom is 320 x 240, its depth has 8 bits, its odd videos have monsters."""
    videos: int = 10
    """How many."""
    frames: int = 60
    """Of each."""
    fps: float = 12.0
    """Frames per second; of vizdoom the nearest to it that is 35 over a whole number."""
    height: int = 240
    """Pixels, of the simulator."""
    width: int = 320
    """Pixels, of the simulator."""
    depth: Literal["npy", "png16"] = "npy"
    """Of the simulator: "npy" is exact, "png16" is rounded to millimetres, and farther than 65 m unknown."""
    masks: bool = False
    """Write the true masks of what moves into the inputs, too."""
    seed: int = 0
    """Of the worlds."""
    split: Literal["train", "validation", "test"] = "validation"
    """Which scenes of the simulator."""

    def __post_init__(self) -> None:
        for name in ("videos", "frames", "height", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.fps <= 240:
            raise ValueError(f"fps must be in (0, 240], got {self.fps}.")


def main(known: tyro.conf.OmitArgPrefixes[Known], out: Path) -> None:
    """Record videos of a known world.

    Args:
        known: What is recorded.
        out: Folder for videos/ and truth/.
    """
    try:
        written = record_known(out, known)
    except ValueError as error:
        _refuse(str(error))
    print(f"{written} videos written, {known.videos} there: {out}")


def record_known(out: Path, known: Known, *, progress: bool = True) -> int:
    """Write the videos that are missing and return how many these were.

    Raises:
        ValueError: ViZDoom is asked for and not installed.
    """
    from tqdm import tqdm

    make: Callable[[Known, int], KnownVideo] = {"simulator": simulated, "vizdoom": doomed}[known.world]
    written = 0
    for number in tqdm(range(known.videos), unit="video", disable=not progress):
        name = f"{known.world}-{known.seed}-{number:04d}"
        if not (out / "videos" / name).exists():
            write_known(out, make(known, number), masks=known.masks)
            written += 1
    return written


def simulated(known: Known, number: int) -> KnownVideo:
    """Return a video of the simulator."""
    from training.clip_sources import Wanted, render_seeds, scene_seed

    wanted = Wanted(num_frames=known.frames, fps=known.fps, height=known.height, width=known.width)
    (clip,) = render_seeds([scene_seed(known.split, known.seed, number)], wanted)
    about: dict[str, Any] = {"fps": known.fps, "depth_scale": 1.0, "depth_sky": [FAR_DEPTH]}
    stored = clip.depth
    if known.depth == "png16":
        counts = np.rint(clip.depth / _PNG_SCALE)
        stored = np.where(clip.valid, np.where(counts < _PNG_SKY, counts, 0), _PNG_SKY).astype(np.uint16)
        about |= {"depth_scale": _PNG_SCALE, "depth_sky": [_PNG_SKY]}
    return KnownVideo(
        name=f"simulator-{known.seed}-{number:04d}",
        rgb=clip.rgb,
        stored=stored,
        about=about,
        moving=clip.moving,
        world_from_camera=clip.world_from_camera,
        intrinsics=clip.intrinsics[0],
    )


def doomed(known: Known, number: int) -> KnownVideo:
    """Return a video of ViZDoom."""
    from training.annotate import doom

    walk = doom.record_walk(number, known.frames, known.fps, seed=known.seed)
    about = {"depth_scale": doom.LEVEL, "depth_offset": doom.NEAR, "depth_sky": [doom.SKY], "fps": walk.fps}
    return KnownVideo(
        name=f"vizdoom-{known.seed}-{number:04d}",
        rgb=walk.rgb,
        stored=walk.levels,
        about=about,
        moving=walk.moving,
        world_from_camera=walk.world_from_camera,
        intrinsics=doom.INTRINSICS,
    )


def write_known(out: Path, video: KnownVideo, *, masks: bool = False) -> None:
    """Write a video into `out`/videos and its truth into `out`/truth; the video appears when all is whole."""
    truth = out / "truth" / f"{video.name}.npz"
    truth.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        truth,
        world_from_camera=video.world_from_camera,
        intrinsics=video.intrinsics,
        moving=video.moving,
        fps=video.about["fps"],
    )
    with replacing(out / "videos" / video.name) as folder:
        (folder / "video.json").write_text(json.dumps(video.about, indent=1) + "\n")
        _write_pngs(folder / "rgb", video.rgb[..., ::-1])
        if masks:
            _write_pngs(folder / "masks", video.moving.astype(np.uint8) * 255)
        if video.stored.dtype == np.float32:
            (folder / "depth").mkdir()
            for number, stored in enumerate(video.stored):
                np.save(folder / "depth" / f"{number:06d}.npy", stored)
        else:
            _write_pngs(folder / "depth", video.stored)


def _write_pngs(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir()
    for number, frame in enumerate(frames):
        path = folder / f"{number:06d}.png"
        if not cv2.imwrite(str(path), np.ascontiguousarray(frame)):
            raise OSError(f"{path} cannot be written.")


def _refuse(why: str) -> NoReturn:
    print(f"error: {why}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m training.annotate.recorders")
