"""A checkpoint of our own layout as functions of batches of windows: reconstruct, predict, plan, follow.

A window is 17 frames: the first picture at rest and four groups of four frames. Everything that is dreamed depends on
the item's own seed, never on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from aether_env.camera import check_intrinsics, check_poses, relative_to
from aether_env.conventions import FAR_DEPTH, FRAMES_PER_LATENT
from aether_env.pictures import as_uint8
from aether_env.raymap import decode_raymap, unpack_raymap
from aether_env.world_model.checkpoint import (
    Components,
    checked_sigmas,
    checked_views,
    load_checkpoint,
    save_checkpoint,
)
from aether_env.world_model.clip_model import ClipResult, Piece
from aether_env.world_model.conditions import (
    CLIP_POSITIONS,
    COLOUR,
    DISPARITY,
    RAY,
    TARGET_CHANNELS,
    WINDOW,
    Window,
    trained_fps,
)
from aether_env.world_model.denoise import denoise
from aether_env.world_model.latents import Codec, at_rest, known_depth, shows_surface
from aether_env.world_model.noise import CLIP_NOISE, normal_noise
from aether_env.world_model.promise import Start
from aether_env.world_model.refine import refine
from aether_env.world_model.rollout import DreamWorld
from aether_env.world_model.views import VIEWS, mean_depth, mean_path, relative_scale

CLIP_FRAMES = 17
"""Frames of one window."""


class OwnClips:
    """The ClipModel promise kept by a checkpoint of our own layout.

    Args:
        parts: Of a checkpoint.
        sigmas: Noise levels at which the network is asked, in all tasks; None takes the checkpoint's of each task.
        reconstruct_views: How often a video is looked at, 1, 2 or 4 times, see `reconstruct`; None: the checkpoint's.
        reconstruct_refine: Make what was found of a video fit its pictures, see refine.py; None: the checkpoint's.
    """

    lengths: tuple[int, ...] = (CLIP_FRAMES,)
    raymap_hw: tuple[int, int] | None = None
    other_rates = False
    at_once = 8
    limits = "what the model was trained on"
    progress: Callable[[int, int], None] | None = None  # never called: a window takes a step or two

    def __init__(
        self,
        parts: Components,
        *,
        sigmas: Sequence[float] | None = None,
        reconstruct_views: int | None = None,
        reconstruct_refine: bool | None = None,
    ):
        settings = parts.settings
        self.parts, self.settings, self.codec = parts, settings, Codec(parts)
        self.height, self.width = settings.height, settings.width
        self.rates: tuple[float, ...] = (settings.fps,)
        self.sigmas = checked_sigmas("sigmas", settings.clip_sigmas if sigmas is None else sigmas)
        self.reconstruct_sigmas = checked_sigmas("sigmas", settings.reconstruct_sigmas if sigmas is None else sigmas)
        views = settings.reconstruct_views if reconstruct_views is None else reconstruct_views
        self.reconstruct_views = checked_views("reconstruct_views", views)
        self.reconstruct_refine = settings.reconstruct_refine if reconstruct_refine is None else reconstruct_refine

    @classmethod
    def from_checkpoint(cls, model: str | Path = "mini", device: str = "cpu", **kwargs: Any) -> Self:
        """Load a checkpoint by name or folder; `kwargs` as in the class."""
        return cls(load_checkpoint(model, device), **kwargs)

    @property
    def components(self) -> dict[str, Any]:
        """The parts, by the names of their folders."""
        return {name: getattr(self.parts, name) for name in ("vae", "disparity_vae", "transformer", "scheduler")}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.codec.device

    def to(self, device: str | torch.device) -> Self:
        """Move everything to a device."""
        self.parts.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write the checkpoint's folder; weights become int8 and float16, as in the package."""
        save_checkpoint(self.parts, folder)

    def without_refining(self) -> Self:
        """Return the same model, which leaves what the network found of a video as it is."""
        same = copy(self)
        same.reconstruct_refine = False
        return same

    def units(self, depth: np.ndarray) -> np.ndarray:
        """Return the metres (B,) of one unit, where first frames have the depth (B, H, W); 1 where it shows nothing."""
        known = torch.as_tensor(np.nan_to_num(np.asarray(depth, np.float32), nan=0.0, posinf=0.0, neginf=0.0))
        unit = torch.where(shows_surface(known).flatten(1).any(dim=1), self.codec.unit(known), 1.0)
        return unit.double().numpy()

    def reconstruct(
        self,
        video: np.ndarray,
        *,
        depth: np.ndarray | None = None,
        world_from_camera: np.ndarray | None = None,
        intrinsics: np.ndarray | None = None,
        seeds: Sequence[int] | None = None,
        fps: float | None = None,
    ) -> ClipResult:
        """Find depth and camera path of a video.

        With `reconstruct_views` of 2 it is also looked at mirrored, with 4 backwards too (unless depth or path are
        known, which belong to the first frame); the result is the mean: disparity, positions, rotations, focal lengths.
        With `reconstruct_refine` that is then moved to where the pictures agree with each other, see refine.py: what
        is known stays as it is. The raymap is what the network said.

        Args:
            video: (B, 17, H, W, 3) uint8.
            depth: (B, H, W) metres of the first frame (fixes the scale), or (B, 17, H, W) of all; NaN where unknown.
            world_from_camera: (B, 17, 4, 4) where the path is known.
            intrinsics: (B, 3, 3) pixels, where known; needed with `world_from_camera`.
            seeds: B integers; default 0. Without effect where the checkpoint reconstructs at one noise level.
            fps: Of the video; only the checkpoint's.

        Returns:
            The video as it was given, with the depth and the path that were found.

        Raises:
            ValueError: An argument has a wrong shape or type, a pose is not rigid, or a path comes without intrinsics.
        """
        shown = self._pictures("video", video, CLIP_FRAMES)
        result = self._dream(
            first=shown[:, 0],
            video=shown,
            depth=depth,
            path=world_from_camera,
            intrinsics=intrinsics,
            seeds=seeds,
            fps=fps,
        )
        last = self.reconstruct_views if depth is None and world_from_camera is None else min(self.reconstruct_views, 2)
        looks = [result]
        for view in VIEWS[1:last]:
            turned = torch.as_tensor(view.pictures(video).copy(), device=shown.device)
            found = self._dream(
                first=turned[:, 0],
                video=turned,
                depth=None if depth is None else view.depth(depth),
                path=None if world_from_camera is None else view.poses(world_from_camera),
                intrinsics=None if intrinsics is None else view.intrinsics(intrinsics, self.settings.width),
                seeds=seeds,
                fps=fps,
            )
            looks.append(
                replace(
                    found,
                    depth=view.pictures(found.depth),
                    world_from_camera=view.poses(found.world_from_camera),
                    intrinsics=view.intrinsics(found.intrinsics, self.settings.width),
                )
            )
        if last > 1:
            result = _mean_of_looks(looks, path_known=world_from_camera is not None)
        if not self.reconstruct_refine:
            return result
        given = 0 if depth is None else CLIP_FRAMES if np.ndim(depth) == 4 else 1
        return self._refined(result, given, world_from_camera is not None, intrinsics is not None)

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
    ) -> ClipResult:
        """Dream what follows a picture, along a path or along a path of the model's own.

        Args:
            picture: (B, H, W, 3) uint8; None dreams from the path alone, or from nothing (give B seeds).
            depth: (B, H, W) metres; fixes the scale.
            world_from_camera: (B, 17, 4, 4): where the camera goes; its first pose is taken as the world.
            intrinsics: (B, 3, 3) pixels; needed with `world_from_camera`.
            seeds: B integers; default 0.
            fps: Only the checkpoint's.
            num_frames: Only 17.

        Returns:
            The picture, and the 16 frames dreamed after it.

        Raises:
            ValueError: As `reconstruct`; or depth comes without a picture.
        """
        _check_num_frames(num_frames)
        if picture is None and depth is not None:
            raise ValueError("depth must be left out where there is no picture that it belongs to.")
        first = None if picture is None else self._pictures("picture", picture, None)
        return self._dream(
            first=first, depth=depth, path=world_from_camera, intrinsics=intrinsics, seeds=seeds, fps=fps
        )

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
    ) -> ClipResult:
        """Dream the way from a picture to a goal picture, and the camera path with it.

        Args:
            picture: (B, H, W, 3) uint8.
            goal: (B, H, W, 3) uint8.
            depth: (B, H, W) metres of `picture`; fixes the scale.
            goal_depth: (B, H, W) metres of `goal`; only with `depth`.
            world_from_camera: (B, 17, 4, 4) where the path is wanted.
            intrinsics: (B, 3, 3) pixels, where known.
            seeds: B integers; default 0.
            fps: Only the checkpoint's.
            num_frames: Only 17.

        Returns:
            The picture, and the 16 frames dreamed on the way to the goal; the last one is dreamed too.

        Raises:
            ValueError: As `reconstruct`; or the goals are not as many as the pictures, or lack `depth` beside theirs.
        """
        _check_num_frames(num_frames)
        first, last = self._pictures("picture", picture, None), self._pictures("goal", goal, None)
        if len(last) != len(first):
            raise ValueError(f"goal has {len(last)} items, picture has {len(first)}; give one goal for each.")
        if goal_depth is not None and depth is None:
            raise ValueError("goal_depth needs depth: the unit of length comes from the first picture.")
        return self._dream(
            first=first, goal=last, depth=depth, goal_depth=goal_depth, path=world_from_camera,
            intrinsics=intrinsics, seeds=seeds, fps=fps,
        )  # fmt: skip

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
        """Dream along a path of any length, step by step as the environment does, with its memory.

        Args:
            picture: (B, H, W, 3) uint8.
            world_from_camera: (B, T, 4, 4); its first pose is taken as the world.
            intrinsics: (B, 3, 3) pixels.
            depth: (B, H, W) metres; fixes the scale.
            seeds: B integers; default 0.
            fps: Only the checkpoint's.

        Yields:
            The picture, then four frames a step, the last piece fewer where T ends.

        Raises:
            ValueError: As `predict`.
        """
        world, batch = DreamWorld(self.parts, fps=fps), len(picture)
        matrix, poses = check_intrinsics("intrinsics", intrinsics), check_poses("world_from_camera", world_from_camera)
        if poses.ndim != 4 or len(poses) != batch or matrix.shape != (batch, 3, 3):
            raise ValueError(
                f"world_from_camera and intrinsics must be ({batch}, T, 4, 4) and ({batch}, 3, 3), got {poses.shape} "
                f"and {matrix.shape}."
            )
        depths = [None] * batch if depth is None else list(depth)
        starts = [Start(rgb=p, depth=d, intrinsics=k) for p, d, k in zip(picture, depths, matrix, strict=True)]
        state, frames = world.start(starts, [0] * batch if seeds is None else seeds)
        yield Piece(frames.rgb, frames.depth)
        poses = relative_to(poses, poses[:, :1])
        for first in range(1, poses.shape[1], FRAMES_PER_LATENT):
            wanted = poses[:, first : first + FRAMES_PER_LATENT]
            missing = FRAMES_PER_LATENT - wanted.shape[1]
            path = np.concatenate([wanted, np.repeat(wanted[:, -1:], missing, axis=1)], axis=1)
            state, frames = world.advance(state, path)
            yield Piece(frames.rgb[:, : wanted.shape[1]], frames.depth[:, : wanted.shape[1]])

    @torch.inference_mode()
    def _dream(
        self,
        *,
        first: Tensor | None,
        video: Tensor | None = None,
        goal: Tensor | None = None,
        depth: np.ndarray | None,
        goal_depth: np.ndarray | None = None,
        path: np.ndarray | None,
        intrinsics: np.ndarray | None,
        seeds: Sequence[int] | None,
        fps: float | None,
    ) -> ClipResult:
        device, fps = self.codec.device, trained_fps(fps, self.settings.fps)
        given = (first, seeds, path)
        batch = next((len(some) for some in given if some is not None), 1)
        seeds = [0] * batch if seeds is None else list(seeds)
        if len(seeds) != batch:
            raise ValueError(f"seeds must be {batch} integers, got {len(seeds)}.")
        depths = self._depth("depth", depth, batch, clip=video is not None)
        unit = torch.ones(batch, device=device)
        metric = torch.zeros(batch, dtype=torch.bool, device=device)
        if depths is not None:
            metric = shows_surface(depths[:, 0]).flatten(1).any(dim=1)
            unit = torch.where(metric, self.codec.unit(depths[:, 0]), unit)

        known = torch.zeros(batch, WINDOW, TARGET_CHANNELS, *self.codec.latent_size, device=device)
        mask = torch.zeros(batch, WINDOW, 3, device=device)
        if first is not None:
            known[:, 0, COLOUR] = self.codec.encode_colour(at_rest(first))[:, 0]
            mask[:, 0, 0] = 1.0
        if video is not None:
            known[:, 1:, COLOUR] = self.codec.encode_colour(video[:, 1:])
            mask[:, 1:, 0] = 1.0
        if goal is not None:
            known[:, -1, COLOUR] = self.codec.encode_colour(at_rest(goal))[:, 0]
            mask[:, -1, 0] = 1.0
        if depths is not None:
            known[:, 0, DISPARITY] = self.codec.encode_depth(at_rest(depths[:, 0]), unit)[:, 0]
            mask[:, 0, 1] = metric.float()
            if depths.shape[1] == CLIP_FRAMES:
                known[:, 1:, DISPARITY] = self.codec.encode_depth(depths[:, 1:], unit)
                mask[:, 1:, 1] = metric[:, None].float()
        goal_depths = self._depth("goal_depth", goal_depth, batch, clip=False)
        if goal_depths is not None:
            known[:, -1, DISPARITY] = self.codec.encode_depth(at_rest(goal_depths[:, 0]), unit)[:, 0]
            mask[:, -1, 1] = metric.float()
        shown = self._show_path(known, mask, path, intrinsics, unit)

        nonce = torch.tensor([int(s) & (2**63 - 1) for s in seeds], dtype=torch.int64, device=device)
        zero = torch.zeros_like(nonce)
        noise = normal_noise(nonce, zero, zero, CLIP_NOISE, tuple(known.shape[1:]))
        window = Window(known, mask, torch.ones(batch, WINDOW, device=device), CLIP_POSITIONS)
        predict = self.codec.predict_clean(fps)
        sigmas = self.sigmas if video is None else self.reconstruct_sigmas
        if video is not None and len(sigmas) == 1:
            noise = torch.zeros_like(noise)  # a single answer is a mean over all noises; any one of them only disturbs
        latents = denoise(predict, self.parts.scheduler, window, noise, sigmas)
        result = self._result(latents, video, first, depths, unit, metric)
        return result if shown is None else replace(result, world_from_camera=shown[0], intrinsics=shown[1])

    def _refined(self, result: ClipResult, given_depth: int, path_known: bool, focal_known: bool) -> ClipResult:
        """Return what was found, moved to where the pictures agree; the first `given_depth` frames keep their depth."""
        videos = as_uint8(result.rgb)
        found = [
            refine(
                rgb, depth, poses, intrinsics.mean(0), hold_depth=(np.arange(len(rgb)) < given_depth) & metric,
                hold_path=path_known, hold_focal=focal_known, device=self.device,
            )
            for rgb, depth, poses, intrinsics, metric in zip(
                videos, result.depth, result.world_from_camera, result.intrinsics, result.metric, strict=True
            )
        ]  # fmt: skip
        result = replace(result, depth=np.stack([one.depth for one in found]))
        if path_known:
            return result
        path = np.stack([one.world_from_camera for one in found])
        intrinsics = np.stack([one.intrinsics for one in found])
        return replace(result, world_from_camera=path, intrinsics=np.repeat(intrinsics[:, None], CLIP_FRAMES, axis=1))

    def _show_path(
        self, known: Tensor, mask: Tensor, path: np.ndarray | None, intrinsics: np.ndarray | None, unit: Tensor
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Fill the ray condition of a window under construction: the whole path, or the first frame's rays.

        Returns:
            Poses (B, 17, 4, 4) relative to the first and intrinsics (B, 17, 3, 3), where the whole path is known.
        """
        if intrinsics is None:
            if path is not None:
                raise ValueError("world_from_camera needs intrinsics; camera.intrinsics_from_fov makes them.")
            return None
        batch, device = len(known), known.device
        matrix = check_intrinsics("intrinsics", intrinsics)
        if matrix.shape != (batch, 3, 3):
            raise ValueError(f"intrinsics must be {(batch, 3, 3)}, got {matrix.shape}.")
        steps = 1 if path is None else WINDOW
        poses = np.tile(np.eye(4), (batch, CLIP_FRAMES, 1, 1))
        if path is not None:
            poses = np.asarray(path, dtype=np.float64)
            if poses.shape != (batch, CLIP_FRAMES, 4, 4):
                raise ValueError(f"world_from_camera must be {(batch, CLIP_FRAMES, 4, 4)}, got {poses.shape}.")
            check_poses("world_from_camera", poses)
            poses = relative_to(poses, poses[:, :1])
        slots = np.concatenate([np.repeat(poses[:, :1], 3, axis=1), poses], axis=1).reshape(batch, WINDOW, 4, 4, 4)
        slots_t = torch.as_tensor(slots[:, :steps], dtype=torch.float32, device=device)
        matrix_t = torch.as_tensor(matrix, dtype=torch.float32, device=device)
        known[:, :steps, RAY] = self.codec.rays(slots_t, matrix_t, unit)
        mask[:, :steps, 2] = 1.0
        return None if path is None else (poses, np.repeat(matrix[:, None], CLIP_FRAMES, axis=1))

    def _result(
        self,
        latents: Tensor,
        video: Tensor | None,
        first: Tensor | None,
        depths: Tensor | None,
        unit: Tensor,
        metric: Tensor,
    ) -> ClipResult:
        """Decode a window; what was given comes back as it was given."""
        colour = self.codec.decode_colour(latents[:, :, COLOUR])[:, 3:]
        if first is not None:
            colour[:, 0] = first
        if video is not None:
            colour = video
        depth = self.codec.decode_depth(latents[:, :, DISPARITY], unit)[:, 3:]
        if depths is not None:
            span = slice(0, depths.shape[1])
            known = known_depth(depths) & metric[:, None, None, None]  # else the dream has a unit of its own
            depth[:, span] = torch.where(known, depths.clamp(max=FAR_DEPTH), depth[:, span])
        raymap = unpack_raymap(latents[:, :, RAY], packing="consecutive")
        # The first picture stands for four frames: the mean of its four raymaps is its own.
        raymap = torch.cat([raymap[:, :4].mean(dim=1, keepdim=True), raymap[:, 4:]], dim=1)
        pose, intrinsics = decode_raymap(
            raymap.double(),
            self.settings.height,
            self.settings.width,
            unit=unit.double(),
            origin_gain=self.settings.origin_gain,
            principal_point_std=0.0,  # pictures are cropped about their centre
        )
        pose = torch.linalg.inv(pose[:, :1]) @ pose
        return ClipResult(
            rgb=colour.cpu().numpy(),
            depth=depth.float().cpu().numpy(),
            world_from_camera=pose.cpu().numpy(),
            intrinsics=intrinsics.cpu().numpy(),
            raymap=raymap.cpu().numpy(),
            unit=unit.double().cpu().numpy(),
            metric=metric.cpu().numpy(),
        )

    def _pictures(self, name: str, pictures: np.ndarray, frames: int | None) -> Tensor:
        pictures = np.asarray(pictures)
        size = (self.settings.height, self.settings.width, 3)
        wanted = size if frames is None else (frames, *size)
        if (
            pictures.ndim != len(wanted) + 1
            or pictures.shape[1:] != wanted
            or not len(pictures)
            or pictures.dtype not in (np.uint8, np.float32)
        ):
            raise ValueError(
                f"{name} must be uint8 or float32 (B, {', '.join(map(str, wanted))}), got {pictures.dtype} "
                f"{pictures.shape}; pictures.fit_picture resizes one picture."
            )
        if pictures.dtype != np.uint8 and not (pictures.min() >= 0 and pictures.max() <= 1):
            raise ValueError(f"{name} must be in [0, 1] where it is floats, got {pictures.min()} to {pictures.max()}.")
        return torch.as_tensor(np.array(as_uint8(pictures), order="C"), device=self.codec.device)

    def _depth(self, name: str, depth: np.ndarray | None, batch: int, *, clip: bool) -> Tensor | None:
        """Return (B, 1 or, of a `clip`, 17, H, W) float32, 0 where unknown."""
        if depth is None:
            return None
        depth = np.asarray(depth, dtype=np.float32)
        size = (self.settings.height, self.settings.width)
        shapes = [(batch, *size), (batch, CLIP_FRAMES, *size)][: 1 + clip]
        if depth.shape not in shapes:
            raise ValueError(f"{name} must be {' or '.join(map(str, shapes))}, got {depth.shape}.")
        depth = np.nan_to_num(depth, nan=0.0, posinf=0.0, neginf=0.0)
        depth_t = torch.as_tensor(depth, device=self.codec.device)
        return depth_t[:, None] if depth_t.ndim == 3 else depth_t


def _check_num_frames(num_frames: int | None) -> None:
    if num_frames not in (None, CLIP_FRAMES):
        raise ValueError(f"num_frames must be {CLIP_FRAMES} for this checkpoint, got {num_frames}.")


def _mean_of_looks(looks: Sequence[ClipResult], path_known: bool) -> ClipResult:
    """Return the mean of what was found in several looks at one video, all undone; a known path stays as it is."""
    first, depths = looks[0], [look.depth for look in looks]
    scale = np.where(first.metric, 1.0, relative_scale(depths))
    merged = replace(first, depth=mean_depth(depths, scale, first.unit))
    if path_known:
        return merged
    path = mean_path([look.world_from_camera for look in looks], scale)
    return replace(merged, world_from_camera=path, intrinsics=np.mean([look.intrinsics for look in looks], axis=0))
