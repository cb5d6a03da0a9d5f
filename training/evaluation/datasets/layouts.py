"""From the folder of a test set to its videos; the layouts are described in the package's docstring."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from training.evaluation.datasets.files import (
    DPT,
    DatasetError,
    associate,
    depth_png,
    files_in,
    read_camera,
    read_numbers,
    read_stamped_names,
    read_stamped_poses,
    rigid,
    same_names,
    stamps_of,
    to_our_pixels,
)
from training.evaluation.datasets.video import LabelledVideo

DatasetName = Literal["sintel", "sintel_pose", "bonn", "kitti", "tum", "scannet"]

ASSOCIATION_SECONDS = 0.02
"""How far apart the timestamps of a frame and of its truth may be, as in the TUM benchmark's own tool."""

_SINTEL_POSE = (
    "alley_2", "ambush_4", "ambush_5", "ambush_6", "cave_2", "cave_4", "market_2", "market_5", "market_6", "shaman_3",
    "sleeping_1", "sleeping_2", "temple_2", "temple_3",
)  # fmt: skip
_SINTEL_OTHER = (
    "alley_1", "ambush_2", "ambush_7", "bamboo_1", "bamboo_2", "bandage_1", "bandage_2", "mountain_1", "shaman_2",
)  # fmt: skip
_KITTI_DRIVES = {
    "2011_09_26": (2, 5, 13, 20, 23, 36, 79, 95, 113),
    "2011_09_28": (37,), "2011_09_29": (26,), "2011_09_30": (16,), "2011_10_03": (47,),
}  # fmt: skip

SEQUENCES: dict[DatasetName, tuple[str, ...]] = {
    "sintel": tuple(sorted(_SINTEL_POSE + _SINTEL_OTHER)),
    "sintel_pose": _SINTEL_POSE,
    "bonn": ("balloon2", "crowd2", "crowd3", "person_tracking2", "synchronous"),
    "kitti": tuple(f"{date}_drive_{n:04d}_sync" for date, numbers in _KITTI_DRIVES.items() for n in numbers),
    "tum": tuple(
        f"freiburg3_{scene}_{motion}"
        for scene in ("sitting", "walking")
        for motion in ("halfsphere", "rpy", "static", "xyz")
    ),
    "scannet": tuple(f"scene{n:04d}_00" for n in range(707, 807)),
}
"""The sequences that the public evaluation of each set averages over."""

_BONN_FRAMES = slice(30, 140)
_KITTI_FRAMES = slice(0, 110)
_EVERY_THIRD, _AT_MOST = 3, 90


class _Layout(NamedTuple):
    frames: tuple[str, ...]
    """Where a sequence's pictures may be, below the root, first choice first."""
    read: Callable[[str, Path], LabelledVideo]
    """Name and folder of the pictures -> video."""


def open_dataset(name: DatasetName, root: str | Path, only: Sequence[str] | None = None) -> list[LabelledVideo]:
    """Return the videos of a test set after checking the headers of all their files.

    Args:
        name: Of the set.
        root: Its folder; what must be in it is in the package's docstring.
        only: Which sequences, by their names in the set; None is all of `SEQUENCES[name]`, for comparable averages.

    Raises:
        ValueError: An unknown set, or no sequence asked for.
        DatasetError: A folder or file is missing, broken or contradicts another.
    """
    if name not in _LAYOUTS:
        raise ValueError(f"name must be one of {', '.join(get_args(DatasetName))}, got {name!r}.")
    root, layout = Path(os.path.expanduser(root)), _LAYOUTS[name]
    if isinstance(only, str) or (only is not None and not only):
        raise ValueError(f"only must be a list of at least one sequence, got {only!r}; None reads all of them.")
    if not root.is_dir():
        raise DatasetError(f"{root}: there is no such folder; give the one that {name} was unpacked in.")
    wanted = SEQUENCES[name] if only is None else only
    found = {sequence: _first_folder(root, layout.frames, sequence) for sequence in wanted}
    if missing := [sequence for sequence, folder in found.items() if folder is None]:
        raise DatasetError(
            f"{root}: {len(missing)} of {len(found)} sequences of {name} are missing; the first would be in "
            f"{' or '.join(pattern.format(name=missing[0]) for pattern in layout.frames)}. "
            "To read a part of the set, name its sequences with only=."
        )
    return [layout.read(sequence, folder) for sequence, folder in found.items() if folder is not None]


def _first_folder(root: Path, patterns: tuple[str, ...], name: str) -> Path | None:
    folders = (root / pattern.format(name=name) for pattern in patterns)
    return next((folder for folder in folders if folder.is_dir()), None)


def _read_sintel(name: str, frames_folder: Path) -> LabelledVideo:
    training = frames_folder.parents[1]
    frames = files_in(frames_folder, ".png")
    cameras = [read_camera(path) for path in same_names(frames, training / "camdata_left" / name, ".cam")]
    return LabelledVideo(
        name=name,
        rgb_paths=frames,
        depth_paths=same_names(frames, training / "depth" / name, ".dpt"),
        depth_format=DPT,
        world_from_camera=np.stack([pose for pose, _ in cameras]),
        intrinsics=np.stack([intrinsics for _, intrinsics in cameras]),
    )


def _read_bonn(name: str, frames_folder: Path) -> LabelledVideo:
    frames = files_in(frames_folder, ".png")
    if frames_folder.name == "rgb":
        if len(frames) <= _BONN_FRAMES.start:
            raise DatasetError(f"{frames_folder}: has {len(frames)} pictures, but the 31st to 140th are judged.")
        frames = frames[_BONN_FRAMES]
    depth = files_in(frames_folder.with_name(frames_folder.name.replace("rgb", "depth")), ".png")
    stamps = stamps_of(frames)
    pairs = associate(stamps, stamps_of(depth), ASSOCIATION_SECONDS)
    if not len(pairs):
        raise DatasetError(f"{frames_folder}: no frame has depth within {ASSOCIATION_SECONDS} s.")
    return LabelledVideo(
        name=name,
        rgb_paths=tuple(frames[i] for i, _ in pairs),
        depth_paths=tuple(depth[j] for _, j in pairs),
        depth_format=depth_png(5000),
        timestamps=stamps[pairs[:, 0]],
        skipped=len(frames) - len(pairs),
    )


def _read_kitti(name: str, frames_folder: Path) -> LabelledVideo:
    if frames_folder.parent.name == "image_gathered":
        frames = files_in(frames_folder, ".png")
        depth = same_names(frames, frames_folder.parents[1] / "groundtruth_depth_gathered" / frames_folder.name, ".png")
    else:
        root = frames_folder.parents[3]
        depth = files_in(root / "val" / name / "proj_depth" / "groundtruth" / "image_02", ".png")[_KITTI_FRAMES]
        frames = tuple(frames_folder / path.name for path in depth)
    return LabelledVideo(name=name, rgb_paths=frames, depth_paths=depth, depth_format=depth_png(256))


def _read_tum(name: str, frames_folder: Path) -> LabelledVideo:
    folder = frames_folder.parent
    prepared = frames_folder.name == "rgb_90"
    truth = folder / ("groundtruth_90.txt" if prepared else "groundtruth.txt")
    pose_stamps, poses = read_stamped_poses(truth)
    if prepared:
        frames = files_in(frames_folder, ".png")
        stamps = stamps_of(frames)
    else:
        stamps, names = read_stamped_names(folder / "rgb.txt")
        frames = tuple(folder / file for file in names)
    pairs = associate(stamps, pose_stamps, ASSOCIATION_SECONDS)
    if not len(pairs) or (prepared and len({len(pairs), len(frames), len(poses)}) > 1):
        raise DatasetError(
            f"{truth}: {len(pairs)} of {len(poses)} poses are within {ASSOCIATION_SECONDS} s of one of {len(frames)} "
            f"frames in {frames_folder}."
        )
    used = pairs if prepared else pairs[::_EVERY_THIRD][:_AT_MOST]
    within = (pairs[:, 0] >= used[0, 0]) & (pairs[:, 0] <= used[-1, 0])
    return LabelledVideo(
        name=name,
        rgb_paths=tuple(frames[i] for i in used[:, 0]),
        world_from_camera=poses[used[:, 1]],
        timestamps=stamps[used[:, 0]],
        skipped=int(used[-1, 0] - used[0, 0] + 1 - within.sum()),
    )


def _read_scannet(name: str, frames_folder: Path) -> LabelledVideo:
    folder = frames_folder.parent
    frames = files_in(frames_folder, ".jpg")
    if frames_folder.name == "color_90":
        truth = folder / "pose_90.txt"
        poses = _lost_or_rigid(truth, read_numbers(truth, 16).reshape(-1, 4, 4))
        if len(poses) != len(frames):
            raise DatasetError(f"{truth}: has {len(poses)} poses for {len(frames)} frames in {frames_folder}.")
    else:
        truth = folder / "pose"
        frames = frames[::_EVERY_THIRD][:_AT_MOST]
        files = [truth / f"{path.stem}.txt" for path in frames]
        poses = np.concatenate([_lost_or_rigid(file, _read_matrix(file)[None]) for file in files])
    known = np.flatnonzero(np.isfinite(poses).all((1, 2)))
    if not len(known):
        raise DatasetError(f"{truth}: every pose is infinite.")
    calibration = folder / "intrinsic" / "intrinsic_color.txt"
    intrinsics = None
    if calibration.exists():
        one = to_our_pixels(calibration, _read_matrix(calibration)[:3, :3])
        intrinsics = np.tile(one, (len(known), 1, 1))
    return LabelledVideo(
        name=name,
        rgb_paths=tuple(frames[i] for i in known),
        world_from_camera=poses[known],
        intrinsics=intrinsics,
        skipped=len(frames) - len(known),
    )


def _lost_or_rigid(path: Path, poses: np.ndarray) -> np.ndarray:
    """Return poses (N, 4, 4), checked but for the infinite ones, with which the set marks that the camera was lost."""
    known = ~np.isinf(poses).any((1, 2))
    if known.any():
        poses[known] = rigid(path, poses[known])
    return poses


def _read_matrix(path: Path) -> np.ndarray:
    """Return (4, 4) float64."""
    matrix = read_numbers(path, 4)
    if len(matrix) != 4:
        raise DatasetError(f"{path}: has {len(matrix)} rows instead of 4.")
    return matrix


_SINTEL = _Layout(("training/final/{name}",), _read_sintel)
_LAYOUTS: dict[str, _Layout] = {
    "sintel": _SINTEL,
    "sintel_pose": _SINTEL,
    "bonn": _Layout(
        tuple(f"{top}rgbd_bonn_{{name}}/{rgb}" for rgb in ("rgb_110", "rgb") for top in ("rgbd_bonn_dataset/", "")),
        _read_bonn,
    ),
    "kitti": _Layout(
        (
            "depth_selection/val_selection_cropped/image_gathered/{name}_02",
            "{name:.10}/{name}/image_02/data",
        ),
        _read_kitti,
    ),
    "tum": _Layout(("rgbd_dataset_{name}/rgb_90", "rgbd_dataset_{name}/rgb"), _read_tum),
    "scannet": _Layout(("{name}/color_90", "{name}/color"), _read_scannet),
}
