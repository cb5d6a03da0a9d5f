"""The published checkpoint as functions of batches of windows: pictures, depth and paths in our conventions.

The checkpoint knows neither depth nor metres. Its unit of length is the clip's nearest depth; where the first picture's
depth is given, a path is counted in its nearest depth, and what is dreamed is scaled so that the first picture fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from aether_env.camera import check_intrinsics, check_poses, relative_to
from aether_env.conventions import FAR_DEPTH
from aether_env.files import replacing
from aether_env.pictures import as_uint8
from aether_env.raymap import decode_raymap, encode_raymap_aetherv1
from aether_env.world_model.aetherv1 import CELL, TRAINED_FPS, TRAINED_FRAMES, AetherV1, AetherV1Clip
from aether_env.world_model.aetherv1_speed import speed_up
from aether_env.world_model.checkpoint import PROMPT_FILE
from aether_env.world_model.clip_model import ClipResult, Piece
from aether_env.world_model.windows import later_seed

NEAREST_QUANTILE = 0.01
"""Of a given depth: the very nearest pixel is often a fault."""
LEAST_DISPARITY = 1e-3
"""Of the clip's largest: what is farther is cut off there, as in the public code."""


class AetherV1Clips:
    """The ClipModel promise kept by the published checkpoint.

    Args:
        parts: Of `load_aetherv1`.
        size: Height and width of the pictures, multiples of 16; None: those of the training.
        steps: Sampling steps of every task; None: each task's own (4 for reconstruction, 50 for the others).
        guidance: Of prediction and planning; 1 is none, None the published one.
        progress: Called with (steps done, all steps) while it samples.
        fast: Compile parts and use memory for speed, see `aetherv1_speed.speed_up`; the same numbers but for rounding.
    """

    lengths: tuple[int, ...] = TRAINED_FRAMES
    rates: tuple[float, ...] = tuple(map(float, TRAINED_FPS))
    other_rates = True
    at_once = 1  # of full size one fills a GPU
    limits = "the walks of this project's simulator (AetherV1's own limits are not published)"

    def __init__(
        self,
        parts: AetherV1,
        *,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        progress: Callable[[int, int], None] | None = None,
        fast: bool = False,
    ):
        config = parts.transformer.config
        self.parts = speed_up(parts) if fast else parts
        self.steps, self.guidance, self.progress = steps, guidance, progress
        trained: tuple[int, int] = (config.sample_height * CELL, config.sample_width * CELL)
        self.height, self.width = size or trained
        self.raymap_hw: tuple[int, int] | None = (self.height // CELL, self.width // CELL)

    @property
    def components(self) -> dict[str, Any]:
        """The parts, by the names of their folders."""
        return {name: getattr(self.parts, name) for name in ("vae", "transformer", "scheduler")}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.parts.device

    def to(self, device: str | torch.device) -> Self:
        """Move everything to a device."""
        self.parts.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write the checkpoint's folder in the published format, weights in the type that they have."""
        with replacing(folder) as new:
            for name, part in self.components.items():
                part.save_pretrained(new / name)
            save_file({"prompt_embeds": self.parts.prompt_embeds.cpu().contiguous()}, new / PROMPT_FILE)

    def units(self, depth: np.ndarray) -> np.ndarray:
        """Return the nearest depth (B,) of first frames' depth (B, H, W); 1 where it shows nothing."""
        return np.array([_nearest(picture) for picture in np.asarray(depth, np.float64)])

    def reconstruct(
        self,
        video: np.ndarray,
        *,
        depth: np.ndarray | None = None,
        world_from_camera: np.ndarray | None = None,
        intrinsics: np.ndarray | None = None,
        seeds: Sequence[int] | None = None,
        fps: float | None = None,
        raymap: np.ndarray | None = None,
    ) -> ClipResult:
        """Find depth and path of a video.

        Args:
            video: (B, T, H, W, 3) uint8, T of 8 k + 1.
            depth: (B, H, W) or (B, T, H, W) metres, NaN where unknown: of the first frame, which fixes the scale; the
                model is not shown it, so that depth of later frames is not used.
            world_from_camera: (B, T, 4, 4) where the path is known.
            intrinsics: (B, 3, 3) pixels; only with `world_from_camera`, the model dreams them otherwise.
            seeds: B integers; default 0.
            fps: Default 12.
            raymap: (B, T, 6, h, w) in place of a path, as `encode_raymap_aetherv1` makes it.

        Raises:
            ValueError: A wrong shape or type, a pose that is not rigid, or a path without intrinsics.
        """
        first_depth = None if depth is None else np.asarray(depth)[:, 0] if np.ndim(depth) == 4 else np.asarray(depth)
        return self._ask(len(video), first_depth, world_from_camera, intrinsics, raymap, seeds, fps, None, video=video)

    def predict(
        self,
        picture: np.ndarray | None,
        *,
        depth: np.ndarray | None = None,
        world_from_camera: np.ndarray | None = None,
        intrinsics: np.ndarray | None = None,
        seeds: Sequence[int] | None = None,
        fps: float | None = None,
        num_frames: int | None = None,
        raymap: np.ndarray | None = None,
    ) -> ClipResult:
        """Dream what follows a picture, along a path or freely; without a picture, from the path alone or nothing.

        Args:
            picture: (B, H, W, 3) uint8, or None.
            depth: (B, H, W) metres; fixes the scale.
            world_from_camera: (B, T, 4, 4).
            intrinsics: (B, 3, 3) pixels; needed with `world_from_camera`.
            seeds: B integers; default 0.
            fps: Default 12.
            num_frames: T; default the path's, else 41.
            raymap: As in `reconstruct`.

        Raises:
            ValueError: As `reconstruct`.
        """
        given = (picture, world_from_camera, raymap, seeds)
        batch = next((len(some) for some in given if some is not None), 1)
        return self._ask(batch, depth, world_from_camera, intrinsics, raymap, seeds, fps, num_frames, image=picture)

    def plan(
        self,
        picture: np.ndarray,
        goal: np.ndarray,
        *,
        depth: np.ndarray | None = None,
        goal_depth: np.ndarray | None = None,
        world_from_camera: np.ndarray | None = None,
        intrinsics: np.ndarray | None = None,
        seeds: Sequence[int] | None = None,
        fps: float | None = None,
        num_frames: int | None = None,
        raymap: np.ndarray | None = None,
    ) -> ClipResult:
        """Dream the way from a picture to a goal picture: as `predict`, with the goal (B, H, W, 3) at the end.

        Raises:
            ValueError: As `reconstruct`; or `goal_depth` is given, which this checkpoint has no place for.
        """
        if goal_depth is not None:
            raise ValueError("goal_depth must be left out: the published checkpoint takes no depth.")
        if len(goal) != len(picture):
            raise ValueError(f"goal has {len(goal)} items, picture has {len(picture)}; give one goal for each.")
        return self._ask(
            len(picture), depth, world_from_camera, intrinsics, raymap, seeds, fps, num_frames, image=picture, goal=goal
        )

    def follow(
        self,
        picture: np.ndarray,
        *,
        world_from_camera: np.ndarray,
        intrinsics: np.ndarray,
        depth: np.ndarray | None = None,
        seeds: Sequence[int] | None = None,
        fps: float | None = None,
    ) -> Iterator[Piece]:
        """Dream along a path of any length, window by window.

        Each begins with the last picture of the one before, whose depth keeps the unit.

        Args:
            picture: (B, H, W, 3) uint8.
            world_from_camera: (B, T, 4, 4).
            intrinsics: (B, 3, 3) pixels.
            depth: (B, H, W) metres; fixes the scale.
            seeds: B integers; default 0.
            fps: Default 12.

        Yields:
            The frames of each window that were not in the one before.

        Raises:
            ValueError: As `predict`.
        """
        poses = check_poses("world_from_camera", world_from_camera)
        seeds = [0] * len(picture) if seeds is None else seeds
        longest = TRAINED_FRAMES[-1]
        for first in range(0, max(poses.shape[1] - 1, 1), longest - 1):
            wanted = poses[:, first : first + longest]
            length = next(n for n in TRAINED_FRAMES if n >= wanted.shape[1])
            path = np.concatenate([wanted, np.repeat(wanted[:, -1:], length - wanted.shape[1], axis=1)], axis=1)
            dream = self.predict(
                picture, depth=depth, world_from_camera=path, intrinsics=intrinsics, fps=fps,
                seeds=seeds if first == 0 else [later_seed(seed, first) for seed in seeds],
            )  # fmt: skip
            new = slice(0 if first == 0 else 1, wanted.shape[1])
            yield Piece(dream.rgb[:, new], dream.depth[:, new])
            picture, depth = dream.rgb[:, wanted.shape[1] - 1], dream.depth[:, wanted.shape[1] - 1]

    def _ask(
        self,
        batch: int,
        depth: np.ndarray | None,
        path: np.ndarray | None,
        intrinsics: np.ndarray | None,
        raymap: np.ndarray | None,
        seeds: Sequence[int] | None,
        fps: float | None,
        num_frames: int | None,
        **pictures: np.ndarray | None,
    ) -> ClipResult:
        """Return what the checkpoint makes of B items."""
        seeds = [0] * batch if seeds is None else list(seeds)
        if len(seeds) != batch:
            raise ValueError(f"seeds must be {batch} integers, got {len(seeds)}.")
        if depth is not None and depth.shape != (batch, self.height, self.width):
            raise ValueError(f"depth must be {(batch, self.height, self.width)}, got {depth.shape}.")
        unit = np.ones(batch) if depth is None else self.units(depth)
        camera = None if path is None else _checked_camera(path, intrinsics, batch)
        if camera is not None and raymap is not None:
            raise ValueError("raymap must be left out where world_from_camera is given: they say the same.")
        rays = None if raymap is None else torch.from_numpy(np.array(raymap, np.float32))
        if camera is not None:
            poses, matrix = (torch.from_numpy(array) for array in camera)
            dmax = 1 / torch.from_numpy(unit)
            rays = encode_raymap_aetherv1(poses, matrix, self.height, self.width, dmax=dmax).float()
        shown = {name: self._pictures(name, some) for name, some in pictures.items() if some is not None}
        clip = self.parts(
            [torch.Generator().manual_seed(int(seed)) for seed in seeds],
            **{name: some.movedim(-1, -3) / (255 if some.dtype == torch.uint8 else 1) for name, some in shown.items()},
            raymap=rays,
            num_frames=num_frames,
            size=(self.height, self.width),
            fps=12.0 if fps is None else fps,
            steps=self.steps,
            guidance=None if "video" in shown else self.guidance,
            progress=self.progress,
        )
        return self._result(clip, shown, depth, unit, camera)

    def _result(
        self,
        clip: AetherV1Clip,
        shown: dict[str, Tensor],
        depth: np.ndarray | None,
        unit: np.ndarray,
        camera: tuple[np.ndarray, np.ndarray] | None,
    ) -> ClipResult:
        """Return it in our conventions."""
        rgb = (clip.rgb.movedim(2, -1) * 255).round().to(torch.uint8).cpu().numpy()
        if "image" in shown:
            rgb[:, 0] = as_uint8(shown["image"].numpy())
        if "video" in shown:
            rgb = as_uint8(shown["video"].numpy())
        found = 1 / clip.disparity.double().clamp(LEAST_DISPARITY, 1).cpu().numpy()
        metric = np.zeros(len(rgb), bool)
        scale = unit
        if depth is not None:
            scale, metric = np.array([_scale(*pair) for pair in zip(found[:, 0], depth, strict=True)]).T
        lengths = np.where(metric, scale, unit)[:, None, None, None]
        if camera is not None:
            path, intrinsics = camera
        else:
            decoded = decode_raymap(
                clip.raymap.double().cpu(), self.height, self.width, unit=1.0, principal_point_std=0.0
            )
            path, intrinsics = (array.numpy() for array in decoded)
            path = relative_to(path, path[:, :1])
            path[..., :3, 3] *= lengths[..., 0]
        return ClipResult(
            rgb=rgb,
            depth=np.minimum(found * lengths, FAR_DEPTH).astype(np.float32),
            world_from_camera=path,
            intrinsics=np.ascontiguousarray(intrinsics),
            raymap=clip.raymap.cpu().numpy(),
            unit=lengths[:, 0, 0, 0],
            metric=metric.astype(bool),
            model_rgb=clip.rgb,
            model_disparity=clip.disparity,
        )

    def _pictures(self, name: str, pictures: np.ndarray) -> Tensor:
        array = np.asarray(pictures)
        kinds = (np.uint8, np.float32)
        frames = "T, " if name == "video" else ""
        if array.dtype not in kinds or array.ndim != 4 + (name == "video") or array.shape[-3:] != (*self.size, 3):
            raise ValueError(
                f"{name} must be uint8 or float32 (B, {frames}{self.height}, {self.width}, 3), "
                f"got {array.dtype} {array.shape}; pictures.fit_picture resizes one picture."
            )
        return torch.from_numpy(np.array(array, order="C"))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.height, self.width


def _checked_camera(path: np.ndarray, intrinsics: np.ndarray | None, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return poses (B, T, 4, 4) relative to the first and intrinsics (B, T, 3, 3)."""
    if intrinsics is None:
        raise ValueError("world_from_camera needs intrinsics; camera.intrinsics_from_fov makes them.")
    poses, matrix = check_poses("world_from_camera", path), check_intrinsics("intrinsics", intrinsics)
    if poses.ndim != 4 or len(poses) != batch or matrix.shape != (batch, 3, 3):
        raise ValueError(
            f"world_from_camera and intrinsics must be ({batch}, T, 4, 4) and ({batch}, 3, 3), got {poses.shape} and "
            f"{matrix.shape}."
        )
    return relative_to(poses, poses[:, :1]), np.repeat(matrix[:, None], poses.shape[1], axis=1)


def _surface(depth: np.ndarray) -> np.ndarray:
    return np.isfinite(depth) & (depth > 0) & (depth < 0.999 * FAR_DEPTH)


def _nearest(depth: np.ndarray) -> float:
    known = depth[_surface(depth)]
    return float(np.quantile(known, NEAREST_QUANTILE)) if known.size else 1.0


def _scale(found: np.ndarray, known: np.ndarray) -> tuple[float, bool]:
    """Return metres of one unit of the found depth (H, W), and whether the known depth tells; both of one picture."""
    both = _surface(np.asarray(known, np.float64)) & (found < 0.999 / LEAST_DISPARITY)
    return (float(np.median(known[both] / found[both])), True) if both.any() else (1.0, False)
