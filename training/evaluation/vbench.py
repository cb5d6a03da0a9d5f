"""The six VBench dimensions of the paper's tables 3, 4 and 6, through the public package `vbench`.

UNTESTED against the real package: this follows the source of vbench 0.1.5 (`VBench.evaluate` in mode custom_input, and
the files that it looks for), and the tests use a double of it. That release asks for numpy < 2 and transformers
4.33.2, so it cannot be installed beside this project as its requirements say: either without them (pip install
--no-deps), or `write_videos` here and `vbench evaluate --mode custom_input` in an environment of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch

from aether_env.visual import write_video
from aether_env.world_model.own_clips import OwnClips
from training.evaluation.scores import Scores
from training.evaluation.summary import Row, mean
from training.evaluation.walks import Walk

WEIGHTS = {
    "subject_consistency": 1.0, "background_consistency": 1.0, "motion_smoothness": 1.0, "dynamic_degree": 0.5,
    "aesthetic_quality": 1.0, "imaging_quality": 1.0,
}  # fmt: skip
"""The paper's dimensions and their weights in the average."""
VIDEOS = ("free", "path", "plan", "truth", "repeated")
"""What the tables show: prediction without and with a path, plans, the truth, and the first frame repeated."""
DREAMED = {"prediction_without_action": "free", "prediction_with_action": "path", "planning": "plan"}
"""The task of a table (see `tables.metric_name`) -> its dream in `VIDEOS`."""
LEAST_ROWS = 256
"""Rows to which smaller pictures are enlarged: the optical flow of dynamic_degree needs more than 64."""
_FILES = (
    "clip_model/ViT-B-32.pt", "clip_model/ViT-L-14.pt", "amt_model/amt-s.pth", "raft_model/models/raft-things.pth",
    "dino_model/facebookresearch_dino_main/hubconf.py", "dino_model/dino_vitbase16_pretrain.pth",
    "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth", "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
)  # fmt: skip


def why_not_measured() -> str | None:
    """Return a line that says why VBench cannot be measured here, None where it can.

    The package would fetch weights that are missing; an evaluation does not.
    """
    if find_spec("vbench") is None:
        return "VBench is not measured: the package vbench is not installed (pip install --no-deps vbench, see there)."
    folder = Path(os.environ.get("VBENCH_CACHE_DIR", Path.home() / ".cache" / "vbench"))
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        return f"VBench is not measured: {folder} lacks its weights {', '.join(missing)}."
    return None


def vbench_scores(videos: Mapping[str, np.ndarray], fps: float, *, device: str = "cpu") -> Scores:
    """Return the six dimensions and their weighted average for each video, fractions of 1.

    Every network is loaded once a call, so give all clips at once.

    Args:
        videos: Of `VIDEOS`, each (B, T, H, W, 3) uint8.
        fps: Frames per second; dynamic_degree depends on it.
        device: Where the networks run.

    Returns:
        "vbench_NAME_DIMENSION" and "vbench_NAME_weighted", each (B,).

    Raises:
        RuntimeError: VBench is not installed with its weights, or it gives no score for a video.
        ValueError: `videos` is empty or holds something else than videos.
    """
    reason = why_not_measured()
    if reason is not None:
        raise RuntimeError(reason)
    with TemporaryDirectory() as folder:
        files = write_videos(Path(folder) / "videos", videos, fps)
        results = _evaluate(Path(folder), device)
    scores: Scores = {}
    for name, paths in files.items():
        for dimension in WEIGHTS:
            found = results[dimension]
            if not set(paths) <= set(found):
                raise RuntimeError(f"VBench gave no {dimension} for {sorted(set(paths) - set(found))}.")
            scores[f"vbench_{name}_{dimension}"] = np.array([found[path] for path in paths])
        each = {dimension: scores[f"vbench_{name}_{dimension}"] for dimension in WEIGHTS}
        scores[f"vbench_{name}_weighted"] = weighted_average(each)
    return scores


def task_videos(pipeline: OwnClips, task: str, walk: Walk, seed: int) -> dict[str, np.ndarray]:
    """Return what is shown of clips in the table of a task.

    Args:
        pipeline: What dreams.
        task: Of `DREAMED`. Predictions are given the first frame, alone or with its depth, intrinsics and the path;
            plans are given the first and the last frame, and no depth.
        walk: B clips of 17 frames.
        seed: See `Walk.seeds`.

    Returns:
        The dream under its name in `VIDEOS`, "truth" and "repeated", each (B, 17, H, W, 3) uint8.
    """
    truth, seeds = walk.rgb, walk.seeds(seed)
    first = truth[:, 0]
    if task == "planning":
        dream = pipeline.plan(first, truth[:, -1], seeds=seeds)
    elif task == "prediction_with_action":
        dream = pipeline.predict(
            first, depth=walk.first_depth, world_from_camera=walk.path, intrinsics=walk.intrinsics, seeds=seeds
        )
    else:
        dream = pipeline.predict(first, seeds=seeds)
    return {DREAMED[task]: dream.rgb, "truth": truth, "repeated": np.repeat(truth[:, :1], truth.shape[1], axis=1)}


def weighted_average(dimensions: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the paper's average of the six dimensions, by `WEIGHTS`, in the scale in which they are given."""
    total = sum((weight * np.asarray(dimensions[name], np.float64) for name, weight in WEIGHTS.items()), np.zeros(()))
    return total / sum(WEIGHTS.values())


def write_videos(folder: Path, videos: Mapping[str, np.ndarray], fps: float) -> dict[str, list[str]]:
    """Write videos as VBench reads them, at least `LEAST_ROWS` rows high (cubic interpolation).

    Args:
        folder: Where to; it is made.
        videos: Name -> (B, T, H, W, 3) uint8.
        fps: Frames per second.

    Returns:
        Name -> the B file names.

    Raises:
        ValueError: `videos` is empty or holds something else than videos.
    """
    if not videos:
        raise ValueError(f"videos is empty; give some of {', '.join(VIDEOS)}.")
    files: dict[str, list[str]] = {}
    for name, rgb in videos.items():
        if rgb.ndim != 5 or rgb.shape[-1] != 3 or rgb.dtype != np.uint8 or rgb.shape[1] < 2:
            raise ValueError(f"videos[{name!r}] must be uint8 (B, T >= 2, H, W, 3), got {rgb.dtype} {rgb.shape}.")
        height, width = rgb.shape[2:4]
        factor = max(1, -(-LEAST_ROWS // height))
        size = width * factor, height * factor
        files[name] = [f"{name}-{clip:04d}.mp4" for clip in range(len(rgb))]
        for file, frames in zip(files[name], rgb, strict=True):
            large = (cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in frames)
            write_video(folder / file, large, fps, scale=1)
    return files


def _evaluate(folder: Path, device: str) -> dict[str, dict[str, float]]:
    """Return dimension -> file name -> score of the videos in a folder, fractions of 1."""
    from vbench import VBench  # type: ignore[import-not-found]

    results = folder / "results"
    VBench(torch.device(device), "", str(results)).evaluate(
        videos_path=str(folder / "videos"), name="aether", dimension_list=list(WEIGHTS), local=True, mode="custom_input"
    )
    table = json.loads((results / "aether_eval_results.json").read_text(encoding="utf-8"))
    # The mean over videos comes first. Single videos' imaging quality is in percent, unlike all else.
    return {
        dimension: {
            Path(video["video_path"]).name: float(video["video_results"])
            / (100 if dimension == "imaging_quality" else 1)
            for video in table[dimension][1]
        }
        for dimension in WEIGHTS
    }


def _metrics() -> Iterator[Row]:
    for name in VIDEOS:
        for key in (f"vbench_{name}_{dimension}" for dimension in (*WEIGHTS, "weighted")):
            yield key, mean, (key,)


METRICS: tuple[Row, ...] = tuple(_metrics())
