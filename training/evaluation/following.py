"""Whether a dream goes where it is told: the pose that each dreamed frame shows, found in the true scene.

Actions are drawn at random, by clip, from half of the range that an env allows. At the end of every env step the true
scene is rendered from poses around the commanded one, until the part that is at rest and that the first frame has seen
looks most like the dreamed frame. How far that pose is from the command is the dream's error; the same search on the
true frames is its floor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from aether_env.camera import motion_from_action, rotation_distance, se3_exp, se3_log
from aether_env.conventions import FAR_DEPTH, FRAMES_PER_LATENT
from aether_env.envs.actions import Se3Action
from aether_env.sim import ClipPlans, draw_clips
from aether_env.sim.clips import draw_views, moving_shapes
from aether_env.sim.seeds import draw_uniforms
from aether_env.sim.solids import Solids
from aether_env.sim.walks import CLEARANCE
from aether_env.world_model.rollout import DreamWorld
from training.evaluation.baselines import visible_part
from training.evaluation.scores import Scores, autoencode, roll_out
from training.evaluation.summary import Row, mean, median
from training.evaluation.walks import Walk, as_pictures

STEPS = 4
"""Env steps that are followed."""
ACTION_SHARE = 0.5
"""Actions are uniform within this share of the env's limits."""
TRIES = 16
"""Actions drawn for a step; the first that keeps clear of surfaces is taken."""
LEAST_VISIBLE = 0.2
"""Share of a frame below which its visible part is too small to tell a pose; pictures are judged by less."""
LEAST_WAY = 0.02
"""Metres below which an error is not given as a share of the way."""
START_ERRORS = (0.05, 2.0)
"""Metres and degrees by which every search begins beside a pose of the path."""
ROUNDS = ((1 / 24, 6), (1 / 48, 4), (1 / 96, 5))
"""Widths (sigma) of the blur as shares of the picture's width, each with its Gauss-Newton rounds."""
_LARGEST_ROUND = np.array([0.2] * 3 + [np.deg2rad(6.0)] * 3)
_SHARP = 0.02
"""Difference of colour below which errors count as squares, above as absolute values."""
_SKY = 1e5
_ACTION_STREAM, _SEARCH_STREAM = 2, 3


def following_scores(world: DreamWorld, plans: ClipPlans, numbers: np.ndarray, seed: int) -> Scores:
    """Return how far dreamed frames are from the commanded poses at the end of each env step.

    Beside `error` stand the same search on the true frames (`floor`) and on those that went through the autoencoder
    (`autoencoder`), and what a dream gets that repeats its first frame (`standing`): the commanded motion itself. Keys
    that end in a number are of that env step, the others are a clip's median over its steps; a `share` is of the way
    travelled so far. Steps that show too little of what the first frame saw are NaN in every row. A dream that shows
    nothing of the scene gets errors of any size, so take medians.

    Args:
        world: The dream, or whatever keeps its promise and has a `codec`.
        plans: B clips of at least 4 * STEPS + 1 frames at the world's speed; only where they begin and what moves in
            them is used.
        numbers: (B,) places in the set of clips, for the dreams' seeds.
        seed: Of the dreams; the actions do not depend on it.

    Raises:
        ValueError: Clips too short.
    """
    walk = random_walk(plans, numbers, height=world.height, width=world.width, device=str(world.codec.device))
    scene = TrueScene(commanded_clips(plans, walk.path), walk)
    dreamed = roll_out(world, walk, walk.path, STEPS, seed).rgb
    decoded = autoencode(world.codec, walk.clips.rgb)
    share = scene.visible_share()
    commanded = walk.path[:, scene.frames]
    way = np.linalg.norm(np.diff(walk.path[:, :, :3, 3], axis=1), axis=-1).cumsum(axis=1)[:, scene.frames - 1]
    rows = {
        "error": scene.find(dreamed[:, scene.frames - 1]),
        "floor": scene.find(walk.clips.rgb[:, scene.frames]),
        "autoencoder": scene.find(decoded[:, scene.frames]),
        "standing": np.broadcast_to(np.eye(4), commanded.shape),
    }
    scores: Scores = {f"action_visible_share_{step}": share[:, step - 1] for step in range(1, STEPS + 1)}
    for name, found in rows.items():
        metres = np.linalg.norm(found[..., :3, 3] - commanded[..., :3, 3], axis=-1)
        errors = {
            f"action_rotation_{name}_deg": np.rad2deg(rotation_distance(found, commanded)),
            f"action_translation_{name}": metres,
            f"action_translation_{name}_share": np.where(way >= LEAST_WAY, metres / np.maximum(way, LEAST_WAY), np.nan),
        }
        for score, values in errors.items():
            known = np.where(share >= LEAST_VISIBLE, values, np.nan)
            scores[score] = _median_over_steps(known)
            scores |= {f"{score}_{step}": known[:, step - 1] for step in range(1, STEPS + 1)}
    return scores


def _metrics() -> tuple[Row, ...]:
    names: list[str] = []
    for row in ("error", "floor", "autoencoder", "standing"):
        names += [f"action_rotation_{row}_deg", f"action_translation_{row}", f"action_translation_{row}_share"]
    names += [f"{name}_{step}" for name in names for step in range(1, STEPS + 1)]
    shares = [f"action_visible_share_{step}" for step in range(1, STEPS + 1)]
    return (*((name, median, (name,)) for name in names), *((name, mean, (name,)) for name in shares))


METRICS = _metrics()
"""Of the scores in this file; `_N` is env step N."""


def random_walk(plans: ClipPlans, numbers: np.ndarray, *, height: int, width: int, device: str) -> Walk:
    """Return clips along random actions of a fixed distribution, from where planned clips begin.

    Args:
        plans: B clips of at least 4 * STEPS + 1 frames.
        numbers: (B,) places in the set of clips.
        height: H.
        width: W.
        device: Where they are drawn.

    Raises:
        ValueError: Clips too short.
    """
    needed = STEPS * FRAMES_PER_LATENT + 1
    if plans.mover_pose.shape[1] < needed:
        raise ValueError(f"plans must have at least {needed} frames, got {plans.mover_pose.shape[1]}.")
    path = random_path(plans)
    clips = draw_clips(commanded_clips(plans, path), height=height, width=width, device=device)
    return Walk(clips=clips, other_path=path, numbers=numbers)


def commanded_clips(plans: ClipPlans, path: np.ndarray) -> ClipPlans:
    """Return clips in which the cameras take other paths (B, T, 4, 4) from the same start."""
    start = plans.scene_from_camera[:, :1]
    return replace(plans, scene_from_camera=start @ path, mover_pose=plans.mover_pose[:, : path.shape[1]])


def random_path(plans: ClipPlans) -> np.ndarray:
    """Return paths of random env actions, (B, 4 * STEPS + 1, 4, 4), world = first frame.

    An action is uniform within `ACTION_SHARE` of the limits of `Se3Action`, given that its four frames keep
    `CLEARANCE` from every surface; where none of `TRIES` does, the camera only turns. A path depends on its scene only.
    """
    limits, solids = Se3Action(), Solids(plans.scenes)
    scale = ACTION_SHARE * np.repeat([limits.max_translation, limits.max_rotation], 3)
    uniforms = draw_uniforms(plans.scenes.seeds, STEPS * (TRIES + 1) * 6, stream=_ACTION_STREAM)
    actions = (2 * uniforms.reshape(-1, STEPS, TRIES + 1, 6) - 1) * scale
    actions[:, :, -1, :3] = 0.0
    fractions = np.arange(1, FRAMES_PER_LATENT + 1)[:, None] / FRAMES_PER_LATENT
    path = np.tile(np.eye(4), (len(plans), 1, 1, 1))
    for step in range(STEPS):
        twist = se3_log(motion_from_action(actions[:, step, :, :3], actions[:, step, :, 3:]))
        options = path[:, None, -1:] @ se3_exp(fractions * twist[:, :, None])  # (B, TRIES + 1, 4, 4, 4)
        points = (plans.scene_from_camera[:, :1, None] @ options)[..., :3, 3]
        later = plans.mover_pose[:, path.shape[1] :, :, :3]
        room = np.stack([solids.clearance(points[:, :, i], later[:, i]) for i in range(FRAMES_PER_LATENT)])
        room_to_spare = room.min(axis=0)
        room_to_spare[:, -1] = np.inf  # turning alone is always allowed
        choice = (room_to_spare >= CLEARANCE).argmax(axis=1)
        path = np.concatenate([path, options[np.arange(len(plans)), choice]], axis=1)
    return path


@dataclass(frozen=True)
class TrueScene:
    """The true scenes at the ends of env steps, seen from anywhere."""

    plans: ClipPlans
    """B clips along the commanded paths."""
    walk: Walk
    """The same, drawn."""

    @property
    def frames(self) -> np.ndarray:
        """(V,) the frames that are looked at: the last of every env step."""
        return np.arange(FRAMES_PER_LATENT, self.plans.mover_pose.shape[1], FRAMES_PER_LATENT)

    @cached_property
    def _moves(self) -> Tensor:
        return torch.as_tensor(moving_shapes(self.plans), device=self.walk.clips.rgb.device)

    def visible_share(self) -> np.ndarray:
        """Return the share of each commanded view that is at rest and that the first frame has seen, (B, V)."""
        clips = self.walk.clips
        depth, valid, moving = (x[:, self.frames] for x in (clips.depth, clips.valid, clips.moving))
        return self._visible(depth, valid, moving, self.walk.path[:, self.frames]).float().mean((2, 3)).cpu().numpy()

    def view(self, world_from_camera: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the scenes at `frames`.

        Args:
            world_from_camera: (B, V, 4, 4), world = first frame.

        Returns:
            Colours (B, V, 3, H, W) in [0, 1]; depth (B, V, H, W) with a sky far away; which pixels are at rest and
            were seen in the first frame (B, V, H, W) bool.
        """
        device, size = self.walk.clips.rgb.device, self.walk.clips.depth.shape[-2:]
        rgb, depth, shape = draw_views(
            self.plans.scenes, self.plans.mover_pose[:, self.frames],
            self.plans.scene_from_camera[:, :1] @ world_from_camera, height=size[0], width=size[1], device=device,
        )  # fmt: skip
        valid = (shape >= 0) & (depth < FAR_DEPTH)
        moving = self._moves.gather(1, shape.long().clamp_min(0).flatten(1)).view(shape.shape) & (shape >= 0)
        visible = self._visible(depth, valid, moving, world_from_camera)
        return as_pictures(rgb, device), torch.where(valid, depth, _SKY), visible

    def find(self, rgb: Tensor | np.ndarray) -> np.ndarray:
        """Return from where pictures (B, V, H, W, 3) uint8 of the scenes at `frames` are taken, (B, V, 4, 4).

        Gauss-Newton on the colours of the visible part, from much blur to little. The searches begin beside the end,
        the middle and the beginning of the commanded path, so that a dream that stays behind is found as well; none
        begins exactly there, or a picture that tells nothing would seem to be followed perfectly.
        """
        wanted = as_pictures(rgb, self.walk.clips.rgb.device)
        (coarse, rounds), *finer = ROUNDS
        aside = self._aside()
        searches = [
            self._descend(wanted, self.walk.path[:, frames] @ aside[i], coarse, rounds)
            for i, frames in enumerate((self.frames, self.frames // 2, 0 * self.frames))
        ]
        best = np.argmin([cost for _, cost in searches], axis=0)
        pose = np.take_along_axis(np.stack([p for p, _ in searches]), best[None, ..., None, None], axis=0)[0]
        for blur, rounds in finer:
            pose, _ = self._descend(wanted, pose, blur, rounds)
        return pose

    def _aside(self) -> np.ndarray:
        """Return for three searches small motions (3, B, V, 4, 4) of random direction that depend on the scene."""
        shape = (len(self.plans), 3, len(self.frames), 2, 3)
        uniforms = draw_uniforms(self.plans.scenes.seeds, int(np.prod(shape[1:])), stream=_SEARCH_STREAM)
        direction = (uniforms.reshape(shape) - 0.5).swapaxes(0, 1)
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        metres, degrees = START_ERRORS
        return motion_from_action(metres * direction[..., 0, :], np.deg2rad(degrees) * direction[..., 1, :])

    def _descend(self, wanted: Tensor, pose: np.ndarray, blur: float, rounds: int) -> tuple[np.ndarray, np.ndarray]:
        """Return better poses (B, V, 4, 4) and their costs (B, V) after some rounds of Levenberg-Marquardt."""
        cost, gradient, curvature = self._fit(wanted, pose, blur)
        damping = np.full(cost.shape, 1e-2)
        for _ in range(rounds):
            diagonal = np.diagonal(curvature, axis1=-2, axis2=-1)
            # What the picture does not tell (translation before the sky) stays as it is.
            ridge = damping[..., None] * diagonal + 1e-6 * diagonal.max(axis=-1, keepdims=True) + 1e-12
            twist = -np.linalg.solve(curvature + ridge[..., None] * np.eye(6), gradient[..., None])[..., 0]
            twist /= np.maximum(np.abs(twist / _LARGEST_ROUND).max(axis=-1, keepdims=True), 1.0)
            trial = pose @ se3_exp(twist)
            new_cost, new_gradient, new_curvature = self._fit(wanted, trial, blur)
            better = new_cost < cost
            cost, damping = np.where(better, new_cost, cost), damping * np.where(better, 0.2, 8.0)
            pose = np.where(better[..., None, None], trial, pose)
            gradient = np.where(better[..., None], new_gradient, gradient)
            curvature = np.where(better[..., None, None], new_curvature, curvature)
        return pose, cost

    def _fit(self, wanted: Tensor, pose: np.ndarray, blur: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compare pictures with the views from poses.

        Returns:
            Cost (B, V), infinite where too little is visible; its gradient (B, V, 6) and approximate second derivative
            (B, V, 6, 6) by a twist of the camera.
        """
        rgb, depth, visible = (x.flatten(0, 1) for x in self.view(pose))
        mask, sigma = visible[:, None].float(), blur * rgb.shape[-1]
        error = _blurred(rgb - wanted.flatten(0, 1), mask, sigma)
        size = (error.square().sum(1, keepdim=True) + _SHARP**2).sqrt()  # smooth absolute value
        count = mask.sum((1, 2, 3)).clamp_min(1)
        # Poses that show little of what the first frame saw would win by having little to explain.
        enough = count >= LEAST_VISIBLE / 2 * mask[0].numel()
        cost = torch.where(enough, (mask * size).sum((1, 2, 3)) / count, torch.inf)
        weight = mask / size / count[:, None, None, None]
        smooth = _blurred(rgb, torch.ones_like(mask), sigma)
        k = self.walk.clips.intrinsics[:, 0].repeat_interleave(len(self.frames), 0)
        slope = _slopes(smooth, depth, k).flatten(2)  # (P, 6, 3 H W)
        weighted = slope * weight.expand_as(error).flatten(1)[:, None]
        gradient = (weighted @ error.flatten(1)[..., None])[..., 0]

        def by_view(values: Tensor) -> np.ndarray:
            return values.double().cpu().numpy().reshape(*pose.shape[:2], *values.shape[1:])

        return by_view(cost), by_view(gradient), by_view(weighted @ slope.mT)

    def _visible(self, depth: Tensor, valid: Tensor, moving: Tensor, pose: np.ndarray) -> Tensor:
        clips, views = self.walk.clips, len(self.frames)

        def first(x: Tensor) -> Tensor:
            return x[:, 0].repeat_interleave(views, 0)

        shown = visible_part(
            depth.flatten(0, 1), valid.flatten(0, 1), moving.flatten(0, 1), first(clips.intrinsics),
            torch.as_tensor(pose, device=depth.device).flatten(0, 1), first(clips.depth), first(clips.valid),
            first(clips.world_from_camera),
        )  # fmt: skip
        return shown.view(depth.shape)


def _slopes(rgb: Tensor, depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Return how the colours of still pictures change by a twist of their cameras.

    Args:
        rgb: (P, 3, H, W).
        depth: (P, H, W).
        intrinsics: (P, 3, 3).

    Returns:
        (P, 6, 3, H, W): per metre along the camera's axes, then per radian about them.
    """
    height, width = depth.shape[-2:]
    fx, fy, cx, cy = (intrinsics[:, i, j, None, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    x = (torch.arange(width, device=depth.device) + 0.5 - cx) / fx * torch.ones_like(depth)
    y = (torch.arange(height, device=depth.device)[:, None] + 0.5 - cy) / fy * torch.ones_like(depth)
    near, zero = 1 / depth, torch.zeros_like(depth)
    # A point moves by -v - w x X in the axes of a camera that moves by (v, w); this is where its picture goes.
    right = fx[:, None] * torch.stack([-near, zero, x * near, x * y, -1 - x * x, y], dim=1)
    down = fy[:, None] * torch.stack([zero, -near, y * near, 1 + y * y, -x * y, -x], dim=1)
    by_row, by_column = torch.gradient(rgb, dim=(2, 3))
    return -(by_column[:, None] * right[:, :, None] + by_row[:, None] * down[:, :, None])


def _blurred(pictures: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """Return pictures (P, C, H, W) under a gaussian of `sigma` pixels that does not look outside of (P, 1, H, W)."""
    reach = int(np.ceil(3 * sigma))
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, device=mask.device) ** 2) / (2 * sigma**2))

    def smooth(x: Tensor) -> Tensor:
        single = x.flatten(0, 1)[:, None]
        rows = conv2d(single, kernel[None, None, :, None], padding=(reach, 0))
        return conv2d(rows, kernel[None, None, None], padding=(0, reach)).view(x.shape)

    return smooth(pictures * mask) / smooth(mask).clamp_min(1e-6)


def _median_over_steps(values: np.ndarray) -> np.ndarray:
    """Return the median (B,) of (B, STEPS) without the NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    return np.array([np.median(row[ok]) if ok.any() else np.nan for row, ok in zip(values, known, strict=True)])
