"""Depth and camera path of the public test sets, as a checkpoint finds them in pictures alone.

The protocol is the public one (`depth_protocol`, `path_metrics`) but for what the checkpoint cannot do:

- Pictures are cropped to the centre with the checkpoint's aspect and resized to its size; only what is inside the crop
  is judged, at the set's own resolution. `..._judged_share` is the part of the true pixels that is inside.
- Windows have the 17 frames of the checkpoint instead of 41. Where the stride asked for leaves neighbours fewer than
  the 9 shared frames of the public protocol (41 frames, stride 32), it is cut to leave 9. `settings` tells both.
- Frames follow one another as the set has them, whatever their rate.

Beside every figure are its floors (flat depth; a camera that stands still, one that flies straight on; a constant guess
of the field of view) and, for depth, the ceiling: the true depth at the checkpoint's size.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from aether_env.camera import scale_intrinsics
from aether_env.depth_protocol import BONN, KITTI, SINTEL, Alignment, DepthProtocol, sequence_depth
from aether_env.disparity import fill_depth
from aether_env.pictures import fit_picture
from aether_env.world_model.own_clips import CLIP_FRAMES, OwnClips
from aether_env.world_model.windows import join_disparity, join_paths
from training.evaluation.datasets import DatasetError, DatasetName, LabelledVideo, open_dataset, windows
from training.evaluation.scores import PATH_ERRORS, PATH_ROWS, Scores, camera_scores, path_scores
from training.evaluation.summary import Row, mean, summarise

DEPTH_PROTOCOLS: dict[str, DepthProtocol] = {"sintel": SINTEL, "bonn": BONN, "kitti": KITTI}
"""The sets that depth is judged on; poses are judged on the others."""
DEPTH_STRIDE, POSE_STRIDE = 8, 32
"""Frames between the beginnings of windows in the public evaluation."""
LEAST_OVERLAP = 9
"""Frames that neighbouring windows share at least."""
BATCH = 8
"""Windows reconstructed together."""
ALIGNMENTS: tuple[Alignment, ...] = ("scale", "scale_shift", "public_scale_shift")


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> Any:
    """Return the mean over the last axis of values (..., N) with weights (..., N), without the NaN."""
    known = ~np.isnan(values)
    return np.where(known, values * weights, 0.0).sum(axis=-1) / np.where(known, weights, 0.0).sum(axis=-1)


DEPTH_METRICS: tuple[Row, ...] = (
    *((f"{error}_{align}", weighted_mean, (f"{error}_{align}", "pixels"))
      for align in ALIGNMENTS for error in ("abs_rel", "delta125")),
    *((f"{row}_{error}_scale", weighted_mean, (f"{row}_{error}_scale", "pixels"))
      for row in ("flat", "resized_truth") for error in ("abs_rel", "delta125")),
    ("judged_share", weighted_mean, ("judged_share", "all_pixels")),
)  # fmt: skip
"""Weighted by valid pixels. "scale_shift" is the best alignment, "public_scale_shift" is for comparing with tables."""
CAMERA_SCORES = ("fov_error_deg", "focal_error", "guessed_fov_error_deg", "guessed_focal_error")
"""Of the part of the pictures that is judged, where the set tells intrinsics; see `scores.camera_scores`."""
POSE_METRICS: tuple[Row, ...] = tuple(
    (name, mean, (name,)) for name in (*(f"{row}{error}" for row in PATH_ROWS for error in PATH_ERRORS), *CAMERA_SCORES)
)
"""Every sequence counts alike."""


class Found(NamedTuple):
    """What was found in a video. World and unit are those of its first window."""

    disparity: np.ndarray
    """(T, h, w) float64, of the checkpoint's size."""
    world_from_camera: np.ndarray
    """(T, 4, 4) float64."""
    intrinsics: np.ndarray
    """(T, 3, 3) float64, pixels of the checkpoint's size: the mean of what the windows find that show a frame."""


def public_scores(
    pipeline: OwnClips,
    name: DatasetName,
    root: str | Path,
    stride: int | None = None,
    seed: int = 0,
    *,
    only: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Reconstruct the videos of a public set and judge depth (sintel, bonn, kitti) or path (the others).

    Args:
        pipeline: The checkpoint.
        name: Of the set.
        root: Its folder, see `datasets`.
        stride: Frames between the beginnings of windows; None is the public one. See the module.
        seed: Of the noise and the bootstrap. A video's noise depends on its name and not on what else is judged.
        only: Sequences by name; None is all of the public evaluation.
        device: Where depth is compared.

    Returns:
        metrics, intervals (bootstrap over sequences) and counts (sequences), their names beginning with the set's
        ("sintel_abs_rel_scale", "sintel_ate", "tum_rpe_rotation_deg"); sequences: the scores of each; seeds; settings.
        A metric without any sequence that has truth is left out; its count tells.

    Raises:
        ValueError: An unknown set, a stride that is not positive, or a checkpoint that finds NaN.
        DatasetError: What the readers raise; or videos are shorter than a window, which are named.
    """
    if stride is not None and stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}; None takes the public one.")
    videos = open_dataset(name, root, only)
    if short := [f"{video.name} ({len(video)})" for video in videos if len(video) < CLIP_FRAMES]:
        raise DatasetError(
            f"{root}: {', '.join(short)} of {name} have fewer than the {CLIP_FRAMES} frames of a window; "
            "leave them out with only=."
        )
    judges_depth = name in DEPTH_PROTOCOLS
    asked = stride or (DEPTH_STRIDE if judges_depth else POSE_STRIDE)
    used = min(asked, CLIP_FRAMES - LEAST_OVERLAP)
    parts = []
    for video in tqdm(videos, desc=name, unit="video"):
        found = reconstruct_video(pipeline, video, used, seed)
        if judges_depth:
            parts.append(depth_scores(1 / np.maximum(found.disparity, 1e-12), video, DEPTH_PROTOCOLS[name], device))
        else:
            parts.append(pose_scores(found, video))
    scores: Scores = {key: np.array([part[key] for part in parts]) for key in parts[0]}
    prefix = name.removesuffix("_pose")
    table = DEPTH_METRICS if judges_depth else POSE_METRICS
    rows: list[Row] = [(f"{prefix}_{row}", statistic, keys) for row, statistic, keys in table]
    metrics, intervals, counts = summarise(scores, seed, rows)
    return {
        "metrics": metrics, "intervals": intervals, "counts": counts,
        "sequences": {
            video.name: {"frames": len(video), "skipped": video.skipped}
            | {key: float(value) for key, value in part.items() if not np.isnan(value)}
            for video, part in zip(videos, parts, strict=True)
        },
        "seeds": {"noise": seed},
        "settings": {
            "dataset": name, "height": pipeline.settings.height, "width": pipeline.settings.width,
            "window": CLIP_FRAMES, "stride_asked": asked, "stride": used,
        },
    }  # fmt: skip


def reconstruct_video(pipeline: OwnClips, video: LabelledVideo, stride: int, seed: int) -> Found:
    """Return what the checkpoint finds in a video of any length from its window on.

    Args:
        pipeline: The checkpoint.
        video: Of at least `CLIP_FRAMES` frames.
        stride: Frames between the beginnings of windows, at most `CLIP_FRAMES`.
        seed: Of the noise.

    Raises:
        ValueError: The video is too short, the stride too long, or what is found is NaN; the video is named.
        DatasetError: A file is damaged.
    """
    height, width = pipeline.settings.height, pipeline.settings.width
    rgb = np.stack([fit_picture(video.rgb(frame), height, width).rgb for frame in range(len(video))])
    cover = windows(len(video), CLIP_FRAMES, stride)
    depth: list[np.ndarray] = []
    paths: list[np.ndarray] = []
    intrinsics, shown = np.zeros((len(video), 3, 3)), np.zeros((len(video), 1, 1))
    for first in tqdm(range(0, len(cover), BATCH), desc=video.name, unit="batch", leave=False):
        batch = cover[first : first + BATCH]
        seeds = [_noise_seed(seed, video.name, window.start) for window in batch]
        result = pipeline.reconstruct(np.stack([rgb[window.start : window.stop] for window in batch]), seeds=seeds)
        found = (result.depth, result.world_from_camera, result.intrinsics)
        if not all(np.isfinite(values).all() for values in found):
            raise ValueError(
                f"{video.name}: the checkpoint finds NaN in frames {batch[0].start} to {batch[-1].stop - 1}."
            )
        depth += list(result.depth)
        paths += list(result.world_from_camera)
        for window, matrices in zip(batch, result.intrinsics, strict=True):
            intrinsics[window.start : window.stop] += matrices
            shown[window.start : window.stop] += 1
    starts = [window.start for window in cover]
    disparity = join_disparity([1 / d.astype(np.float64) for d in depth], starts)
    return Found(disparity, join_paths(paths, starts), intrinsics / shown)


def depth_scores(
    depth: np.ndarray, video: LabelledVideo, protocol: DepthProtocol, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """Return errors of a video's depth in its centre: NaN where it has no truth there.

    Args:
        depth: (T, h, w) in any unit, of the centre of the pictures.
        video: With depth.
        protocol: Of the set.
        device: Where depth is compared.

    Raises:
        ValueError: The depth is NaN.
        DatasetError: A file is damaged.
    """
    size = (depth.shape[1], depth.shape[2])
    rows, columns = judged_part(video.height, video.width, *size)
    inside, all_pixels = [], 0
    for frame in range(len(video)):
        whole = video.depth(frame)
        all_pixels += int((whole > 0).sum())
        inside.append(whole[rows, columns])
    truth = torch.as_tensor(np.stack(inside), device=device)
    valid = truth > 0
    small = interpolate(truth[:, None], size, mode="nearest-exact")[:, 0]
    predictions: dict[str, tuple[Tensor, tuple[Alignment, ...]]] = {
        "": (torch.as_tensor(depth, device=device), ALIGNMENTS),
        "flat_": (torch.ones_like(small), ("scale",)),
        "resized_truth_": (fill_depth(small), ("scale",)),
    }
    scores = {
        "all_pixels": float(all_pixels),
        "judged_share": int(valid.sum()) / all_pixels if all_pixels else float("nan"),
    }
    for row, (prediction, alignments) in predictions.items():
        for align in alignments:
            errors = sequence_depth(prediction, truth, valid, protocol, align)
            scores[f"{row}abs_rel_{align}"], scores[f"{row}delta125_{align}"] = errors.abs_rel, errors.delta125
            scores["pixels"] = float(errors.num_valid)
    return scores


def pose_scores(found: Found, video: LabelledVideo) -> dict[str, float]:
    """Return errors of a video's path and intrinsics, and of their floors: see `path_scores` and `camera_scores`.

    Lengths are in the set's unit (metres), angles in degrees. What concerns intrinsics is NaN where there is no truth.

    Args:
        found: In the centre of the pictures.
        video: With poses.
    """
    truth = video.world_from_camera
    assert truth is not None, "a set of DEPTH_PROTOCOLS has no poses to judge"
    scores = path_scores(found.world_from_camera, truth) | dict.fromkeys(CAMERA_SCORES, float("nan"))
    if video.intrinsics is not None:
        size = (found.disparity.shape[1], found.disparity.shape[2])
        rows, columns = judged_part(video.height, video.width, *size)
        cropped = video.intrinsics - [[0, 0, columns.start], [0, 0, rows.start], [0, 0, 0]]
        true = scale_intrinsics(cropped, (rows.stop - rows.start, columns.stop - columns.start), size)
        errors = camera_scores(found.intrinsics, true, size)
        scores |= {name: float(value) for name, value in errors.items()}
    return scores


def judged_part(full_height: int, full_width: int, height: int, width: int) -> tuple[slice, slice]:
    """Return the rows and columns of a picture (full_height, full_width) that `fit_picture` keeps."""
    # Unit focal lengths come back as the factors of the resizing, the principal point tells where the crop began.
    unit = np.array([[1.0, 0, full_width / 2], [0, 1.0, full_height / 2], [0, 0, 1]])
    fitted = fit_picture(np.zeros((full_height, full_width, 3), np.uint8), height, width, unit).intrinsics
    part = []
    for axis, whole, kept in ((1, full_height, height), (0, full_width, width)):
        factor = fitted[axis, axis]
        first, size = round(whole / 2 - fitted[axis, 2] / factor), round(kept / factor)
        part.append(slice(first, first + size))
    return part[0], part[1]


def _noise_seed(seed: int, video: str, start: int) -> int:
    entropy = np.random.SeedSequence([seed, zlib.crc32(video.encode()), start])
    return int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1))
