"""What frames that were seen show from other poses: a guess at the next frames, by geometry alone.

A guess for the network, not an answer: depth that was dreamed is a little wrong, light and things may change, and much
of the new view was never seen.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from aether_env.conventions import FAR_DEPTH
from aether_env.disparity import encode_disparity, push_pull
from aether_env.world_model.latents import CELL, Codec, shows_surface

SAME_SURFACE = 0.05
"""Relative difference of depth below which two samples are of one surface."""
_FAR_OFF = 0.25
"""A first guess of depth that is off by less than this is mended."""
_NEAREST = 1e-3
_SKY = 1e4
"""Where the sky is put: so far away that no way moves it."""


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
    """(B, T, H, W) float32, FAR_DEPTH for the sky."""
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
    away = torch.where(shows_surface(views.depth), views.depth.float(), _SKY)
    view, target = views.world_from_camera[:, :, None], world_from_camera[:, None]
    u, v, z = _carried(away[:, :, None], intrinsics, inverse_pose(target) @ view)
    z = torch.where(views.there[:, :, None, None, None] & (z > _NEAREST), z, torch.inf)
    back = inverse_pose(view) @ target
    picture = torch.cat([views.rgb.float().movedim(-1, 2) / 127.5 - 1, away.reciprocal()[:, :, None]], dim=2)
    picture = picture[:, :, None].expand(-1, -1, z.shape[2], -1, -1, -1)
    # The wide splat has no cracks in what is near; where it goes over an edge, the narrow one is asked.
    rgb, depth, seen = _looked_up(_splat(u, v, z, wide=True), picture, intrinsics, back)
    more_rgb, more_depth, more = _looked_up(_splat(u, v, z, wide=False), picture, intrinsics, back)
    rgb, depth = torch.where(seen[:, :, :, None], rgb, more_rgb), torch.where(seen, depth, more_depth)
    guess = _stacked(rgb, depth, seen | more)
    return guess._replace(depth=guess.depth.clamp(max=FAR_DEPTH))


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
    batch, times = guess.seen.shape[:2]
    stored = encode_disparity(guess.depth, guess.seen & shows_surface(guess.depth), unit, codec.parts.settings.headroom)
    both = torch.cat([guess.rgb, stored[:, :, None] * 2 - 1], dim=2).flatten(0, 1)
    filled = push_pull(both, guess.seen.flatten(0, 1)).unflatten(0, (batch, times)).transpose(1, 2)
    latents = [codec.encode_video(filled[:, :3]), codec.encode_stored(filled[:, 3:])]
    share = guess.seen.float().mean(1).unflatten(-1, (-1, CELL)).unflatten(-3, (-1, CELL)).mean((-3, -1))
    return torch.cat(latents, dim=2)[:, 0], share


def inverse_pose(pose: Tensor) -> Tensor:
    """Invert rigid transforms (..., 4, 4)."""
    rotation = pose[..., :3, :3].mT
    top = torch.cat([rotation, -(rotation @ pose[..., :3, 3:])], dim=-1)
    return torch.cat([top, pose[..., 3:, :]], dim=-2)


def _looked_up(
    depth: Tensor, picture: Tensor, intrinsics: Tensor, view_from_target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return colour (B, S, T, 3, H, W), depth and whether it fits (B, S, T, H, W) of pixels at about these depths.

    Args:
        depth: (B, S, T, H, W), infinite where there is none.
        picture: (B, S, T, 4, H, W) colour and disparity of the views.
        intrinsics: (B, 3, 3).
        view_from_target: (B, S, T, 4, 4) float64.
    """
    height, width = depth.shape[-2:]

    def look(z: Tensor, channels: slice) -> tuple[Tensor, Tensor, Tensor]:
        u, v, there = _carried(z, intrinsics, view_from_target)
        across, down = u * (2 / width) - 1, v * (2 / height) - 1
        grid = torch.stack([across, down], dim=-1)
        inside = (there > _NEAREST) & (across.abs() <= 1) & (down.abs() <= 1)
        sampled = grid_sample(
            picture[:, :, :, channels].flatten(0, 2), grid.flatten(0, 2), padding_mode="border", align_corners=False
        ).unflatten(0, z.shape[:3])
        # Disparity is linear on every plane, so that its interpolation is exact but at edges, where it fits no side.
        return sampled[:, :, :, :-1], 1 / (sampled[:, :, :, -1] * there.clamp_min(_NEAREST)), inside

    known = torch.isfinite(depth)
    z = torch.where(known, depth, 1.0)
    _, ratio, _ = look(z, slice(3, 4))
    z = torch.where((ratio - 1).abs() < _FAR_OFF, z * ratio, z)
    colour, ratio, inside = look(z, slice(0, 4))
    return colour, z, known & inside & ((ratio - 1).abs() < SAME_SURFACE)


def _stacked(rgb: Tensor, depth: Tensor, seen: Tensor) -> Guess:
    """Lay views (B, S, ...) one under the other."""
    top = Guess(rgb[:, 0], depth[:, 0], seen[:, 0])
    for under in range(1, rgb.shape[1]):
        top = Guess(
            torch.where(top.seen[:, :, None], top.rgb, rgb[:, under]),
            torch.where(top.seen, top.depth, depth[:, under]),
            top.seen | seen[:, under],
        )
    return top


def _splat(u: Tensor, v: Tensor, z: Tensor, wide: bool) -> Tensor:
    """Return the least z (..., H, W) that lands on each pixel, infinity where none does.

    Args:
        u: (..., H, W) where the points land.
        v: (..., H, W).
        z: (..., H, W).
        wide: A point lands on the four pixels whose centres are nearest, not only on the one that it is in.
    """
    height, width = z.shape[-2:]
    shift = 0.5 if wide else 0.0
    # A rim of two cells above and to the left, one below and to the right, takes what lands outside; points that are
    # nowhere have infinite z.
    column = (u - shift).floor().clamp(-2, width).add_(2)
    row = (v - shift).floor().clamp(-2, height).add_(2)
    cell = row.mul_(width + 3).add_(column).nan_to_num_(0.0).long().flatten(-2).flatten(0, -2)
    least = torch.full((len(cell), (height + 3) * (width + 3)), torch.inf, device=z.device)
    least = least.scatter_reduce_(1, cell, z.flatten(-2).flatten(0, -2), "amin")
    least = least.unflatten(1, (1, height + 3, width + 3))
    if wide:
        least = least[:, :, 1:-1, 1:-1]
        least = torch.minimum(least[..., :-1], least[..., 1:])  # quicker than max_pool2d on a CPU
        least = torch.minimum(least[..., :-1, :], least[..., 1:, :])
    else:
        least = least[:, :, 2:-1, 2:-1]
    return least[:, 0].unflatten(0, z.shape[:-2])


def _carried(depth: Tensor, intrinsics: Tensor, to_other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return u, v and z in another camera of what is seen at these depths; behind that camera u and v mean nothing.

    A pixel p at depth d goes to K R K^-1 p d + K t: the first part is linear in column and row.

    Args:
        depth: (B, S, T, H, W), or with ones where it is shared.
        intrinsics: (B, 3, 3).
        to_other: (B, S, T, 4, 4) float64, of points in camera axes.
    """
    height, width = depth.shape[-2:]
    k = intrinsics.double()[:, None, None]
    turn = (k @ to_other[..., :3, :3] @ _inverse_of_intrinsics(k)).float()
    move = (k @ to_other[..., :3, 3:]).float()
    column = torch.arange(width, device=depth.device) + 0.5
    row = torch.arange(height, device=depth.device) + 0.5

    def along(axis: int) -> Tensor:
        part = turn[..., axis, :, None, None]
        ray = part[..., 0, :, :] * column + (part[..., 1, :, :] * row[:, None] + part[..., 2, :, :])
        return torch.addcmul(move[..., axis, :, None], ray, depth)

    z = along(2)
    front = z.clamp_min(_NEAREST)
    return along(0) / front, along(1) / front, z


def _inverse_of_intrinsics(k: Tensor) -> Tensor:
    """Invert upper triangular (..., 3, 3) with a last row of 0, 0, 1."""
    one, zero = torch.ones_like(k[..., 0, 0]), torch.zeros_like(k[..., 0, 0])
    x, y, skew, u, v = k[..., 0, 0], k[..., 1, 1], k[..., 0, 1], k[..., 0, 2], k[..., 1, 2]
    rows = [1 / x, -skew / (x * y), (skew * v - u * y) / (x * y), zero, 1 / y, -v / y, zero, zero, one]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))
