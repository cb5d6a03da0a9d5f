"""The bundled pictures that a dream starts from when it is given none.

A start `NAME` is three files: `NAME.png` (RGB), `NAME.depth.png` (16 bits, 0 where unknown) and `NAME.json`
(`intrinsics`, `metres_per_level` of the depth, and `scene_seed` where the simulator can show the same scene).
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from aether_env.conventions import FAR_DEPTH
from aether_env.pictures import checked_depth, checked_intrinsics, read_picture
from aether_env.world_model.promise import Start

FOLDER = Path(__file__).parent / "starts"
"""Where the bundled starts are."""

_METRES_PER_LEVEL = FAR_DEPTH / 65535


def start_names(folder: Path | None = None) -> list[str]:
    """Return the names of the starts in a folder (the bundled ones by default), sorted."""
    return sorted(path.stem for path in (folder or FOLDER).glob("*.json"))


def load_start(name: str, folder: Path | None = None) -> Start:
    """Return a start in the size of its picture.

    Raises:
        ValueError: There is no start of that name, or its files do not fit together.
    """
    folder = folder or FOLDER
    if name not in start_names(folder):
        raise ValueError(
            f"there is no start {name!r} in {folder}; there are {', '.join(start_names(folder)) or 'none'}."
        )
    description = json.loads((folder / f"{name}.json").read_text())
    rgb = read_picture(folder / f"{name}.png")
    depth = None
    depth_path = folder / f"{name}.depth.png"
    if depth_path.exists():
        level = cv2.imread(str(depth_path), cv2.IMREAD_UNCHANGED)
        if level is None or level.dtype != np.uint16:
            raise ValueError(f"{depth_path} must be a PNG of 16 bits per pixel; write starts with write_start.")
        depth = checked_depth(level.astype(np.float32) * description["metres_per_level"], *rgb.shape[:2])
    return Start(
        rgb=rgb,
        depth=depth,
        intrinsics=checked_intrinsics(description["intrinsics"], *rgb.shape[:2]),
        scene_seed=description.get("scene_seed"),
    )


def write_start(name: str, start: Start, folder: Path) -> None:
    """Write a start as the files that `load_start` reads.

    Args:
        name: File name without ending.
        start: Picture and intrinsics are needed; depth is rounded to 1.5 mm.
        folder: Made where it is missing.

    Raises:
        ValueError: Picture or intrinsics are missing.
    """
    if start.rgb is None or start.intrinsics is None:
        raise ValueError(f"start {name!r} must have a picture and intrinsics, got {start}.")
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(start.rgb).save(folder / f"{name}.png", optimize=True)
    description: dict[str, object] = {"intrinsics": np.asarray(start.intrinsics).tolist()}
    if start.scene_seed is not None:
        description["scene_seed"] = int(start.scene_seed)
    if start.depth is not None:
        known = np.isfinite(start.depth) & (start.depth > 0)
        level = np.rint(np.where(known, start.depth, 0) / _METRES_PER_LEVEL)
        # A known depth is never written as 0, which means unknown.
        level = np.where(known, np.clip(level, 1, 65535), 0).astype(np.uint16)
        cv2.imwrite(str(folder / f"{name}.depth.png"), level)
        description["metres_per_level"] = _METRES_PER_LEVEL
    (folder / f"{name}.json").write_text(json.dumps(description, indent=1) + "\n")
