"""Recordings of TUM RGB-D with all that a clip needs: colours, depth, path, intrinsics.

The evaluation judges paths only, on every third frame of eight recordings (layouts.py); here are whole recordings, as
published: rgbd_dataset_freiburgN_NAME/{rgb.txt,rgb/*.png,depth.txt,depth/*.png,groundtruth.txt}.

A frame is taken if a depth picture lies within 20 ms of it, each used once, and a pose within 20 ms before and another
after it; its pose is interpolated between these two. The others are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aether_env.camera import invert_pose, se3_exp, se3_log
from training.evaluation.datasets.files import (
    DatasetError,
    associate,
    depth_png,
    read_stamped_names,
    read_stamped_poses,
)
from training.evaluation.datasets.layouts import ASSOCIATION_SECONDS
from training.evaluation.datasets.lens import Lens
from training.evaluation.datasets.video import SHORTEST_WINDOW, LabelledVideo

TUM_FPS = 15.0
"""Frames per second that are read. The camera takes 30, but single ones are missing or lack depth: at 30 a second the
recordings would be scraps."""

# From "Intrinsic Camera Calibration of the Kinect" of https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats.
# The third camera's pictures were straightened by the publisher. Depth lies on the pictures of colours, 5000 a metre
# for all three; ORB-SLAM2 found that of the second 4 % too far and divides by 5208, which the publisher does not.
CAMERAS = {
    "freiburg1": Lens(517.3, 516.5, 318.6, 255.3, (0.2624, -0.9531, -0.0054, 0.0026, 1.1633), 480, 640),
    "freiburg2": Lens(520.9, 521.0, 325.1, 249.7, (0.2312, -0.7849, -0.0033, -0.0001, 0.9172), 480, 640),
    "freiburg3": Lens(535.4, 539.2, 320.1, 247.6, (), 480, 640),
}
"""The published calibrations of the colour cameras, by the beginning of a recording's name."""
_DEPTH = depth_png(5000)
_GAP = 1.75
"""Steps to the next frame that make a gap. Where every second frame is read, one missing makes a step of 1.5."""


def open_recordings(root: Path, only: Sequence[str] | None = None) -> list[LabelledVideo]:
    """Return the pieces of TUM recordings that have no gap, `TUM_FPS` frames a second, straightened.

    Args:
        root: Folder of the recordings.
        only: Their names, such as "freiburg1_desk"; None is all that are there.

    Raises:
        DatasetError: A folder or file is missing or broken, the camera is not known, or no piece is long enough.
    """
    if only is None:
        folders = sorted(path for path in root.glob("rgbd_dataset_*") if path.is_dir())
    else:
        folders = [root / f"rgbd_dataset_{name}" for name in only]
    if not folders:
        raise DatasetError(f"{root}: has no folder rgbd_dataset_NAME, as TUM RGB-D is unpacked.")
    return [piece for folder in folders for piece in _read(folder)]


def poses_at(times: np.ndarray, stamps: np.ndarray, poses: np.ndarray, within: float) -> tuple[np.ndarray, np.ndarray]:
    """Return poses between those that were measured.

    Args:
        times: (T,) seconds.
        stamps: (N,) seconds, when poses were measured, in any order.
        poses: (N, 4, 4) world_from_camera.
        within: Seconds; a pose must have been measured less than this before, and another after.

    Returns:
        Poses (K, 4, 4) on the screw motion from one to the other, and for which times they are, (T,) bool.
    """
    order = np.argsort(stamps, kind="stable")
    stamps, poses, last = stamps[order], poses[order], len(stamps) - 1
    before = np.searchsorted(stamps, times, side="right") - 1
    after = np.searchsorted(stamps, times, side="left")
    inside = (before >= 0) & (after <= last)
    before, after = before.clip(min=0), after.clip(max=last)
    known = inside & (times - stamps[before] < within) & (stamps[after] - times < within)
    times, before, after = times[known], before[known], after[known]
    apart = stamps[after] - stamps[before]  # 0 where a pose was measured just then
    share = np.divide(times - stamps[before], apart, out=np.zeros_like(apart), where=apart > 0)
    twist = se3_log(invert_pose(poses[before]) @ poses[after])
    return poses[before] @ se3_exp(share[:, None] * twist), known


def regular_pieces(stamps: np.ndarray, fps: float) -> list[np.ndarray]:
    """Return pieces of a video, in each of which `fps` frames a second follow each other without a gap.

    Args:
        stamps: (N,) seconds, increasing.
        fps: Frames per second wanted.

    Returns:
        Indices (K,) into `stamps`, increasing: of the frames nearest to K moments 1 / fps apart. A piece ends where a
        frame would come twice, or the next one 1.75 / fps later or more; the next frame begins another.
    """
    pieces, begin = [], 0
    while begin < len(stamps):
        rest = stamps[begin:]
        count = min(int((rest[-1] - rest[0]) * fps) + 2, len(rest))  # each takes a frame: no more can be had
        moments = rest[0] + np.arange(count) / fps
        rows = np.searchsorted((rest[1:] + rest[:-1]) / 2, moments)
        steps = np.diff(rest[rows])
        ends = (steps <= 0) | (steps >= _GAP / fps)
        pieces.append(begin + rows[: ends.argmax() + 1 if ends.any() else count])
        begin = int(pieces[-1][-1]) + 1
    return pieces


def _read(folder: Path) -> list[LabelledVideo]:
    name = folder.name.removeprefix("rgbd_dataset_")
    if (camera := re.match("freiburg[123](?=_)", name)) is None:
        raise DatasetError(f"{folder}: no camera of TUM RGB-D; calibrations are known of {', '.join(CAMERAS)}.")
    lens = CAMERAS[camera.group()]
    stamps, frames = read_stamped_names(folder / "rgb.txt")
    depth_stamps, depth = read_stamped_names(folder / "depth.txt")
    pairs = associate(stamps, depth_stamps, ASSOCIATION_SECONDS)
    truth = folder / "groundtruth.txt"
    poses, known = poses_at(stamps[pairs[:, 0]], *read_stamped_poses(truth), ASSOCIATION_SECONDS)
    pairs = pairs[known]
    times = stamps[pairs[:, 0]]
    pieces = [rows for rows in regular_pieces(times, TUM_FPS) if len(rows) >= SHORTEST_WINDOW]
    if not pieces:
        raise DatasetError(
            f"{truth}: {len(pairs)} of {len(stamps)} frames have depth and poses within {ASSOCIATION_SECONDS} s, but "
            f"nowhere {SHORTEST_WINDOW} in a row at {TUM_FPS:g} a second."
        )
    return [
        LabelledVideo(
            name=f"{name} {times[rows[0]]:.6f}",
            rgb_paths=tuple(folder / frames[i] for i in pairs[rows, 0]),
            depth_paths=tuple(folder / depth[j] for j in pairs[rows, 1]),
            depth_format=_DEPTH,
            world_from_camera=poses[rows],
            intrinsics=np.tile(lens.intrinsics, (len(rows), 1, 1)),
            timestamps=times[rows],
            lens=lens,
        )
        for rows in pieces
    ]
