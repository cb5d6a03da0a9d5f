"""What the pipeline is asked to dream: checked, and fitted to a checkpoint's size and rate."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from aether_env.camera import intrinsics_from_fov, relative_to, scale_poses
from aether_env.paths import check_range
from aether_env.pictures import DEFAULT_HORIZONTAL_FOV, read_picture
from aether_env.videos import Note, Resampling, open_video
from aether_env.world_model.clip_model import ClipModel
from aether_env.world_model.conditions import checked_fps
from aether_env.world_model.long_video import PathLike, fitted_depth, given_path, intrinsics_of


class Wish(NamedTuple):
    """How a dream shall be, whatever it begins with."""

    num_frames: int | None
    fps: float | None
    scene_scale: float
    smooth: bool
    post_reconstruction: bool
    resampling: Resampling
    progress: bool


class _Fitted(NamedTuple):
    """A picture in the checkpoint's size, with its depth."""

    rgb: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    depth: np.ndarray | None = None
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Dream:
    """One dream: what is given, fitted and checked."""

    picture: np.ndarray | None
    goal: np.ndarray | None
    depth: np.ndarray | None
    goal_depth: np.ndarray | None
    path: np.ndarray | None
    """(T, 4, 4) relative to the first."""
    raymap: np.ndarray | None
    """(T, 6, h, w) in place of a path."""
    intrinsics: np.ndarray | None
    """(3, 3), where known or assumed."""
    frames: int
    seed: int
    notes: tuple[Note, ...]

    @property
    def kind(self) -> tuple[Any, ...]:
        """What items must have in common to be dreamed together."""
        parts = (self.picture, self.goal, self.depth, self.goal_depth, self.path, self.raymap, self.intrinsics)
        return self.frames, *(part is None for part in parts)


def fit_dream(model: ClipModel, given: dict[str, Any], wish: Wish) -> Dream:
    """Check and fit one item."""
    image, goal, longest = given["image"], given.get("goal"), model.lengths[-1]
    for name in ("depth", "intrinsics", "goal"):
        if image is None and given.get(name) is not None:
            raise ValueError(f"image must be given where {name} is, which belongs to it.")
    if "goal" in given and (image is None or goal is None):
        raise ValueError("image and goal must be pictures; predict dreams without one.")
    if given.get("goal_depth") is not None and given["depth"] is None:
        raise ValueError("goal_depth needs depth: the unit of length comes from the first picture.")
    if wish.num_frames is not None:
        checked_whole("num_frames", wish.num_frames, 1)
    if not 0 < wish.scene_scale < math.inf:
        raise ValueError(f"scene_scale must be positive and finite, got {wish.scene_scale}.")
    here = _Fitted() if image is None else _fitted(model, "image", image, given["depth"], given["intrinsics"], wish)
    there = _Fitted() if goal is None else _fitted(model, "goal", goal, given["goal_depth"], None, wish)
    fps, path, notes = rate_for(model, wish.fps), None, here.notes
    matrix = here.intrinsics if given["intrinsics"] is not None else None
    if given["path"] is not None:
        path, of_path = _poses_and_camera(given["path"], wish.num_frames, fps, model)
        if matrix is not None and of_path is not None:
            raise ValueError("intrinsics must be given with the image or in the path's file, not both.")
        if matrix is None and of_path is None:
            degrees = DEFAULT_HORIZONTAL_FOV
            text = f"The camera is unknown and assumed to span {degrees:g} degrees from left to right."
            notes += (Note("assumed_fov", text, {"degrees": degrees}),)
            of_path = intrinsics_from_fov(np.deg2rad(degrees), model.height, model.width)
        matrix = of_path if matrix is None else matrix
        path = scale_poses(relative_to(path, path[:1]), wish.scene_scale)
        unit = 1.0 if here.depth is None else float(model.units(here.depth[None])[0])
        check_range(path, unit, fps, whose=model.limits)
    raymap = None if given["raymap"] is None else checked_raymap(model, given["raymap"])
    if raymap is not None and (path is not None or wish.num_frames not in (None, len(raymap))):
        raise ValueError("raymap must be given alone: it stands for a path, and its frames are those that are dreamed.")
    whole = path if path is not None else raymap
    frames = len(whole) if whole is not None else longest if wish.num_frames is None else wish.num_frames
    if frames > longest and (path is None or goal is not None or image is None):
        raise ValueError(
            f"num_frames (default: those of the path) must be at most {longest} for a plan, and for a dream without "
            f"picture or path, got {frames}; predict follows a path of any length from a picture."
        )
    return Dream(
        picture=here.rgb, goal=there.rgb, depth=here.depth, goal_depth=there.depth, path=path, raymap=raymap,
        intrinsics=matrix, frames=frames, seed=checked_seed(given["seed"]), notes=notes,
    )  # fmt: skip


def _fitted(model: ClipModel, name: str, picture: Any, depth: Any, intrinsics: Any, wish: Wish) -> _Fitted:
    """Return a picture and its depth in the checkpoint's size."""
    height, width = model.height, model.width
    if isinstance(picture, str | os.PathLike):
        picture = read_picture(picture, name=name)
    opened = open_video(
        [picture], height, width, intrinsics=intrinsics, resampling=wish.resampling, name=name, source_fps=1.0
    )
    rgb, matrix, _ = next(iter(opened))
    notes = tuple(note for note in opened.notes if note.what != "assumed_fov")
    return _Fitted(rgb, matrix, fitted_depth("depth" if name == "image" else f"{name}_depth", depth, opened), notes)


def checked_raymap(model: ClipModel, raymap: Any) -> np.ndarray:
    """Return a raymap as (T, 6, h, w) float32.

    Raises:
        ValueError: It is none of a whole window, or the model takes none.
    """
    array = np.asarray(raymap)
    if not model.raymap_hw:
        raise ValueError("raymap must be left out for a checkpoint of our own layout; give it the path.")
    if array.ndim != 4 or len(array) not in model.lengths or array.shape[1:] != (6, *model.raymap_hw):
        lengths = ", ".join(map(str, model.lengths))
        raise ValueError(
            f"raymap must be (T, 6, {model.raymap_hw[0]}, {model.raymap_hw[1]}), T one of {lengths}, got {array.shape}."
        )
    if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
        raise ValueError("raymap must be finite floats, as raymap.encode_raymap_aetherv1 makes them.")
    return array.astype(np.float32)


def rate_for(model: ClipModel, fps: float | None) -> float:
    """Return the frames per second that are asked for, else the checkpoint's (12 where it knows several).

    Raises:
        ValueError: It can not be asked for these.
    """
    rates = model.rates
    if fps is not None and not model.other_rates and fps not in rates:
        raise ValueError(
            f"fps must be {', '.join(f'{rate:g}' for rate in rates)}, the speed this checkpoint was trained at, "
            f"got {fps}; leave it out, videos are resampled."
        )
    return checked_fps(fps) if fps is not None else 12.0 if 12.0 in rates else rates[0]


def batch_of(image: Any) -> int | None:
    """Return how many pictures are given, None for a single one."""
    many = isinstance(image, list | tuple) or (isinstance(image, np.ndarray) and image.ndim == 4)
    if many and not len(image):
        raise ValueError("image must be at least one picture, got an empty batch.")
    return len(image) if many else None


_ONE_FOR_ALL = {"path": 3, "raymap": 4, "depth": 2, "goal_depth": 2, "intrinsics": 2, "goal": 3, "seed": 0}
"""Dimensions of an array that holds for all items."""


def row_of(given: dict[str, Any], index: int, batch: int) -> dict[str, Any]:
    """Return what is given for one item of a batch."""
    row = {"image": given["image"][index]}
    for name, dimensions in _ONE_FOR_ALL.items():
        value = given.get(name)
        many = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > dimensions)
        if many and value is not None and len(value) != batch:
            raise ValueError(f"{name} must be one for all or one for each of {batch} images, got {len(value)}.")
        if name in given:
            row[name] = value[index] if many and value is not None else value
    return row


def stacked(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Return arrays of items that all have one, or None where none has."""
    found = [array for array in arrays if array is not None]
    return np.stack(found) if found else None


def checked_whole(name: str, number: Any, least: int, most: int | None = None) -> int:
    """Return a whole number.

    Raises:
        ValueError: It is none, less than `least` or more than `most`.
    """
    whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
    if not whole or number < least or (most is not None and number > most):
        span = f">= {least}" if most is None else f"in {least}..{most}"
        raise ValueError(f"{name} must be a whole number {span}, got {number!r}.")
    return int(number)


def checked_seed(seed: Any) -> int:
    """Return a seed: a whole number that generators take.

    Raises:
        ValueError: It is none.
    """
    return checked_whole("seed", seed, 0, 2**63 - 1)


def _poses_and_camera(
    path: PathLike, num_frames: int | None, fps: float, model: ClipModel
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a wanted path's poses (T, 4, 4), spread over the frames, and its intrinsics (3, 3) where it has some."""
    given = given_path(path)
    if num_frames is not None:
        given = given.resampled(num_frames)
    elif given.seconds is not None:
        given = given.at_fps(fps)
    intrinsics = intrinsics_of(given, model.height, model.width)
    return given.world_from_camera, None if intrinsics is None else intrinsics[0]
