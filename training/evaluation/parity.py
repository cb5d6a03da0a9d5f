"""Compare with the public code, seed for seed: python -m training.evaluation.parity --checkpoint DIR CASE.npz...

The checkpoint has the published format. A case holds inputs, what the public code made of them, and the settings in its
`meta` (JSON), see tests/goldens. The exit status is 0 where everything agrees, 1 where something differs by more than
1e-3, 2 where a case or the checkpoint can not be used.
"""

from __future__ import annotations

import json
import sys
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import tyro

if TYPE_CHECKING:  # PyTorch waits until after --help
    from aether_env.world_model.aetherv1 import AetherV1

TOLERANCE = 1e-3
OUTPUTS = ("rgb", "disparity", "raymap")
PICTURES = ("image", "goal", "video")
INTEGERS = ("num_frames", "seed", "height", "width")
TASKS = ("reconstruction", "prediction", "planning")
DAMAGES = (OSError, EOFError, KeyError, TypeError, ValueError, MemoryError, zipfile.BadZipFile, zlib.error)
"""What numpy and json raise for files that are truncated or no cases at all."""


def main(
    cases: tyro.conf.Positional[tuple[Path, ...]],
    checkpoint: Path,
    device: str = "cpu",
    guidance_in_turn: bool = False,
    slicing: bool = False,
    tiling: bool = False,
) -> None:
    """Print the largest differences of each case in colour, disparity and raymap.

    Args:
        cases: Files with inputs and reference outputs.
        checkpoint: Folder in the published format (without aether.json).
        device: Where to compute.
        guidance_in_turn: Both branches of guidance one after the other.
        slicing: Encode and decode one clip at a time.
        tiling: Encode and decode in tiles; then the cases have to be made with tiling too.
    """
    if not cases:
        _fail("give at least one case: parity --checkpoint DIR CASE.npz...")
    try:
        parts = load(checkpoint, device)
    except ValueError as error:
        _fail(str(error))
    parts.guidance_in_turn, parts.slicing, parts.tiling = guidance_in_turn, slicing, tiling
    width = max(len(path.name) for path in cases)
    print(f"{'case':<{width}}", *(f"{name:>10}" for name in OUTPUTS))
    bad, far = False, False
    for path in cases:
        try:
            found = differences(parts, *read_case(path))
        except ValueError as error:
            print(f"parity: {path}: {error}", file=sys.stderr)
            bad = True
            continue
        print(f"{path.name:<{width}}", *(f"{found[name]:>10.2e}" for name in OUTPUTS), flush=True)
        far |= not all(value <= TOLERANCE for value in found.values())  # NaN is far
    sys.exit(2 if bad else 1 if far else 0)


def load(checkpoint: Path, device: str = "cpu") -> AetherV1:
    """Load a checkpoint of the published format in float32.

    Raises:
        ValueError: It is of our own layout, or can not be used.
    """
    from aether_env.world_model.aetherv1 import load_aetherv1
    from aether_env.world_model.checkpoint import SETTINGS_FILE

    if (checkpoint / SETTINGS_FILE).exists():
        raise ValueError(f"{checkpoint} has {SETTINGS_FILE}: our own layout, for which there are no reference cases.")
    return load_aetherv1(checkpoint, device=device)


def read_case(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return a case's arrays and its settings.

    Raises:
        ValueError: It is missing, truncated, or lacks a setting or an output.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays.pop("meta")))
        wrong = [f"{name}: {meta[name]!r}" for name in INTEGERS if type(meta[name]) is not int]
        wrong += [] if meta["task"] in TASKS else [f"task: {meta['task']!r}"]
        wrong += [f"out_{name} is missing" for name in OUTPUTS if f"out_{name}" not in arrays]
    except DAMAGES as error:
        raise ValueError(f"no readable case ({type(error).__name__}: {error}); fetch or make it again.") from error
    if wrong:
        raise ValueError(f"no whole case: {'; '.join(wrong)}.")
    return arrays, meta


def differences(parts: AetherV1, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> dict[str, float]:
    """Return the largest difference of each output of `AetherPipeline`, NaN where something is not finite.

    Args:
        parts: Of `load`.
        arrays: Inputs and outputs: `image`, `goal` (H, W, 3), `video` (T, H, W, 3); `raymap` (T, 6, h, w), or
            `camera_pose` (T, 4, 4), `intrinsic` (T, 3, 3) and `dmax`; `out_rgb`, `out_disparity`, `out_raymap`.
        meta: `num_frames`, `seed`, `height`, `width`, and what is not the task's default.

    Raises:
        ValueError: Inputs or outputs have wrong shapes or do not go together.
    """
    from aether_env.world_model.aetherv1_clips import AetherV1Clips
    from aether_env.world_model.conditions import BASE_FPS
    from aether_env.world_model.pipeline import AetherPipeline

    size = (meta["height"], meta["width"])
    given: dict[str, Any] = {name: arrays[name] for name in PICTURES if name in arrays}
    if "video" in given and len(given) > 1:
        raise ValueError(f"a case is of a video or of pictures, got {', '.join(given)}.")
    steps, guidance = meta.get("num_inference_steps"), meta.get("guidance_scale")
    pipeline = AetherPipeline(AetherV1Clips(parts, size=size, steps=steps, guidance=guidance))
    options: dict[str, Any] = {
        "raymap": _raymap(arrays, *size),
        "fps": meta.get("fps", BASE_FPS),
        "seed": meta["seed"],
        "resampling": "public",
        "smooth": False,
    }
    if "video" in given:
        if len(given["video"]) != meta["num_frames"]:
            raise ValueError(f"video must have the {meta['num_frames']} frames of meta, got {len(given['video'])}.")
        result = pipeline.reconstruct(given["video"], source_fps=options["fps"], **options)
    else:
        dream = pipeline.plan if "goal" in given else pipeline.predict
        result = dream(**given, num_frames=meta["num_frames"], **options)
    outputs = {"rgb": result.model_rgb, "disparity": result.model_disparity, "raymap": result.raymap}
    found = {}
    for name, output in outputs.items():
        expected = arrays[f"out_{name}"]
        assert output is not None  # of one window in parity mode
        if expected.shape != output.shape:
            raise ValueError(f"out_{name} must have the shape {output.shape}, got {expected.shape}.")
        found[name] = float(np.abs(output - expected.astype(np.float64)).max())
    return found


def _raymap(arrays: dict[str, np.ndarray], height: int, width: int) -> np.ndarray | None:
    """Return the known path's raymap (T, 6, h, w): as given, or made of the poses."""
    import torch

    from aether_env.raymap import encode_raymap_aetherv1

    if "raymap" in arrays:
        return arrays["raymap"].astype(np.float32)
    if "camera_pose" not in arrays:
        return None
    if "intrinsic" not in arrays:
        raise ValueError("camera_pose needs intrinsic.")
    poses, intrinsics = (torch.from_numpy(arrays[n].astype(np.float64))[None] for n in ("camera_pose", "intrinsic"))
    return encode_raymap_aetherv1(poses, intrinsics, height, width, dmax=float(arrays.get("dmax", 1.0)))[0].numpy()


def _fail(message: str) -> NoReturn:
    print(f"parity: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
