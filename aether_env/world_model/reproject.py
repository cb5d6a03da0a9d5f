"""What frames that were seen show from other poses: a guess at the next frames, by geometry alone.

A guess for the network, not an answer: depth that was dreamed is a little wrong, light and things may change, and much
of the new view was never seen.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from aether_env.disparity import encode_disparity, push_pull
from aether_env.world_model.latents import CELL, Codec, shows_surface

SAME_SURFACE = 0.05
"""Relative difference of depth below which two samples are of one surface."""
_FAR_OFF = 0.25
"""A first guess of depth that is off by less than this is mended."""
_NEAREST = 1e-3


class Views(NamedTuple):
    """S frames that B dreams have seen, the one to be trusted most first."""

    rgb: Tensor
    """(B, S, H, W, 3) uint8."""
    depth: Tensor
    """(B, S, H, W) float, FAR_DEPTH for the sky; in the unit of the poses."""
    world_from_camera: Tensor
    """(B, S, 4, 4) float64."""
    there: Tensor
    """(B, S) bool: the others are empty."""


class Guess(NamedTuple):
    """T pictures of B dreams, in the order of `reproject`'s targets."""

    rgb: Tensor
    """(B, T, 3, H, W) float32 in [-1, 1]; anything where nothing is seen."""
    depth: Tensor
    """(B, T, H, W) float32."""
    seen: Tensor
    """(B, T, H, W) bool: some view shows what is here."""


def reproject(views: Views, intrinsics: Tensor, world_from_camera: Tensor) -> Guess:
    """Return what the views show from other poses.

    Depth is splatted forwards with a z-buffer; then every pixel of the new picture looks its colour up in the view,
    which keeps it as sharp as bilinear interpolation does, and is dropped where the view shows another surface there.
    Views are laid one under the other, the first on top.

    Args:
        views: Frames, depth and poses.
        intrinsics: (B, 3, 3) pixels, of all cameras.
        world_from_camera: (B, T, 4, 4) float64, the wanted poses.
    """
    batch, count, height, width = views.depth.shape
    times = world_from_camera.shape[1]
    k = intrinsics.float()
    rays = _rays(k, height, width)
    # float64 until the poses are relative: far from the origin float32 would lose the motion.
    to_target = (_inverse(world_from_camera)[:, None] @ views.world_from_camera[:, :, None]).float()
    to_view = (_inverse(views.world_from_camera)[:, :, None] @ world_from_camera[:, None]).float()
    depth = views.depth.float().flatten(2)
    points = [ray[:, None] * depth for ray in rays]  # 3 of (B, S, P)
    x, y, z = _moved(to_target, [p[:, :, None] for p in points])
    u, v = _pixels(k[:, None, None], x, y, z)
    usable = views.there[:, :, None, None] & (z > _NEAREST)
    nearest = _splat(u, v, z, usable, height, width, reach=0)
    dilated = _splat(u, v, z, usable, height, width, reach=1)

    picture = torch.cat([views.rgb.float().movedim(-1, 2) / 127.5 - 1, views.depth.float().reciprocal()[:, :, None]], 2)
    picture = picture[:, :, None].expand(-1, -1, times, -1, -1, -1).flatten(0, 2)
    rgb = torch.zeros(batch, count, times, 3, height * width, device=z.device)
    found = torch.zeros_like(rgb[:, :, :, 0])
    seen = torch.zeros_like(found, dtype=torch.bool)
    # The wide splat has no cracks in what is near; where it goes over an edge, the narrow one is asked.
    for guess in (dilated, nearest):
        colour, better, fits = _looked_up(guess, picture, rays, k, to_view, height, width)
        new = fits & ~seen
        rgb = torch.where(new[:, :, :, None], colour, rgb)
        found, seen = torch.where(new, better, found), seen | fits
    return _stacked(rgb, found, seen, height, width)


def guess_latents(codec: Codec, guess: Guess, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Return a guess of four pictures as the network is shown it.

    Args:
        codec: Of the checkpoint.
        guess: With T = 4.
        unit: (B,) length unit.

    Returns:
        Normalised latents (B, 32, h, w) of colour and disparity, holes filled from around them, and the share of
        the pixels of each cell (B, h, w) that are seen.
    """
    batch, times, height, width = guess.seen.shape
    stored = encode_disparity(guess.depth, guess.seen & shows_surface(guess.depth), unit, codec.parts.settings.headroom)
    both = torch.cat([guess.rgb, stored[:, :, None] * 2 - 1], dim=2).flatten(0, 1)
    filled = push_pull(both, guess.seen.flatten(0, 1)).unflatten(0, (batch, times)).transpose(1, 2)
    latents = [codec.encode_video(filled[:, :3]), codec.encode_stored(filled[:, 3:])]
    share = guess.seen.float().mean(1).unflatten(-1, (-1, CELL)).unflatten(-3, (-1, CELL)).mean((-3, -1))
    return torch.cat(latents, dim=2)[:, 0], share


def _looked_up(
    depth: Tensor, picture: Tensor, rays: list[Tensor], k: Tensor, to_view: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return colour (B, S, T, 3, P), depth and whether it fits (B, S, T, P) of pixels at about these depths."""

    def look(z: Tensor, channels: slice) -> tuple[Tensor, Tensor, Tensor]:
        x, y, there = _moved(to_view, [ray[:, None, None] * z for ray in rays])
        u, v = _pixels(k[:, None, None], x, y, there)
        inside = (there > _NEAREST) & (u >= 0) & (u <= width) & (v >= 0) & (v <= height)
        grid = torch.stack([u / width, v / height], dim=-1) * 2 - 1
        grid = torch.where(inside[..., None], grid, 0.0).flatten(0, 2)[:, None]
        sampled = grid_sample(picture[:, channels], grid, mode="bilinear", padding_mode="border", align_corners=False)
        # Disparity is linear on every plane, so that its interpolation is exact but at edges, where it fits no side.
        ratio = 1 / (sampled[:, -1, 0].view_as(z) * there.clamp_min(_NEAREST))
        return sampled[:, :-1, 0].unflatten(0, z.shape[:3]), ratio, inside

    known = torch.isfinite(depth)
    z = torch.where(known, depth, 1.0)
    _, ratio, _ = look(z, slice(3, 4))
    z = torch.where((ratio - 1).abs() < _FAR_OFF, z * ratio, z)
    colour, ratio, inside = look(z, slice(0, 4))
    return colour, z, known & inside & ((ratio - 1).abs() < SAME_SURFACE)


def _stacked(rgb: Tensor, depth: Tensor, seen: Tensor, height: int, width: int) -> Guess:
    """Lay views (B, S, ...) one under the other."""
    top_rgb, top_depth, any_seen = rgb[:, 0], depth[:, 0], seen[:, 0]
    for under in range(1, rgb.shape[1]):
        new = seen[:, under] & ~any_seen
        top_rgb = torch.where(new[:, :, None], rgb[:, under], top_rgb)
        top_depth = torch.where(new, depth[:, under], top_depth)
        any_seen = any_seen | new
    size = (height, width)
    return Guess(top_rgb.unflatten(-1, size), top_depth.unflatten(-1, size), any_seen.unflatten(-1, size))


def _splat(u: Tensor, v: Tensor, z: Tensor, usable: Tensor, height: int, width: int, reach: int) -> Tensor:
    """Return the least z (..., P) that lands on each pixel, infinity where none does.

    Args:
        u: (..., P) where the points land.
        v: (..., P).
        z: (..., P).
        usable: (..., P) or broadcast: the points that count.
        height: Of the picture.
        width: Of the picture.
        reach: 0: on the pixel they land on; 1: on the four whose centres are nearest.
    """
    offsets = [(0.0, 0.0)] if reach == 0 else [(-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)]
    least = torch.full((*z.shape[:-1], height * width + 1), torch.inf, device=z.device).flatten(0, -2)
    for down, right in offsets:
        column, row = (u + right).floor(), (v + down).floor()
        lands = usable & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        # Points that land nowhere share one cell beyond the picture.
        cell = torch.where(lands, row * width + column, float(height * width)).long().flatten(0, -2)
        least = least.scatter_reduce(1, cell, z.flatten(0, -2), "amin")
    return least[:, :-1].unflatten(0, z.shape[:-1])


def _rays(k: Tensor, height: int, width: int) -> list[Tensor]:
    """Return x, y, z (B, P) of the rays through the pixels' centres, z = 1."""
    v, u = torch.meshgrid(
        *(torch.arange(n, device=k.device, dtype=torch.float32) + 0.5 for n in (height, width)), indexing="ij"
    )
    u, v = u.flatten(), v.flatten()
    y = (v - k[:, 1, 2, None]) / k[:, 1, 1, None]
    x = (u - k[:, 0, 2, None] - k[:, 0, 1, None] * y) / k[:, 0, 0, None]
    return [x, y, torch.ones_like(x)]


def _moved(pose: Tensor, point: list[Tensor]) -> list[Tensor]:
    """Move points, three of (..., P), by poses (..., 4, 4); element by element, so that rows do not mind each other."""
    x, y, z = point
    return [
        pose[..., i, 0, None] * x + pose[..., i, 1, None] * y + pose[..., i, 2, None] * z + pose[..., i, 3, None]
        for i in range(3)
    ]


def _pixels(k: Tensor, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return u and v; of points behind the camera they mean nothing."""
    z = z.clamp_min(_NEAREST)
    x, y = x / z, y / z
    u = k[..., 0, 0, None] * x + k[..., 0, 1, None] * y + k[..., 0, 2, None]
    return u, k[..., 1, 1, None] * y + k[..., 1, 2, None]


def _inverse(pose: Tensor) -> Tensor:
    """Invert rigid transforms (..., 4, 4)."""
    rotation = pose[..., :3, :3].mT
    top = torch.cat([rotation, -(rotation @ pose[..., :3, 3:])], dim=-1)
    return torch.cat([top, pose[..., 3:, :]], dim=-2)
