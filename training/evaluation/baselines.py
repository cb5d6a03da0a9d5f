"""What a dream is measured against: the first frame warped by the truth, and which pixels the first frame has seen.

Pictures here are float (B, 3, H, W) in [0, 1]; sky is depth that is not valid and lies infinitely far away.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from aether_env.disparity import push_pull
from aether_env.pointcloud import depth_edges

SUBPIXELS = 3
"""Samples along each side of a pixel of the first frame; odd, so that one lies on the pixel's centre."""
SAME_SURFACE = 0.05
"""Relative difference of depth below which two samples are of one surface."""
_SKY = 1e5
_NEAREST = 1e-3


def warp_first_frame(
    rgb: Tensor, depth: Tensor, valid: Tensor, intrinsics: Tensor, world_from_camera: Tensor, target_pose: Tensor
) -> Tensor:
    """Return the first frame as seen from other poses: forward splatting with a z-buffer, holes by push-pull.

    Args:
        rgb: (B, 3, H, W) of the first frame.
        depth: (B, H, W) true z-depth, metres.
        valid: (B, H, W) bool, False for the sky.
        intrinsics: (B, 3, 3) pixels, of both cameras.
        world_from_camera: (B, 4, 4) of the first frame.
        target_pose: (B, 4, 4) world_from_camera of the wanted view.

    Returns:
        (B, 3, H, W).
    """
    batch, _, height, width = rgb.shape
    colour, disparity, own = _refine(rgb, torch.where(valid, depth, _SKY).double().reciprocal())
    target_from_first = torch.linalg.inv(target_pose.double()) @ world_from_camera.double()
    pixel, front = _project(_points(disparity.reciprocal(), intrinsics, SUBPIXELS), intrinsics, target_from_first)
    # The z-buffer asks the depth of a sample's own pixel, so that no pixel of a steep surface hides part of itself.
    _, z = _project(_points(own.reciprocal(), intrinsics, SUBPIXELS), intrinsics, target_from_first)
    column, row = pixel[..., 0].floor(), pixel[..., 1].floor()
    lands = (torch.minimum(z, front) > _NEAREST) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    # Samples that land nowhere share one cell beyond the picture.
    cell = torch.where(lands, row * width + column, height * width).long()

    nearest = _least(cell, z, height * width)
    ahead = lands & (z <= nearest.gather(1, cell) * (1 + SAME_SURFACE))
    offset = (pixel - torch.stack([column, row], dim=-1) - 0.5).square().sum(-1)
    offset = torch.where(ahead, offset, torch.inf)
    best = offset <= _least(cell, offset, height * width).gather(1, cell)
    number = torch.arange(z.shape[1], device=z.device, dtype=torch.float64).expand_as(z)
    winner = _least(cell, torch.where(ahead & best, number, torch.inf), height * width)[:, : height * width]
    seen = torch.isfinite(winner)
    index = torch.where(seen, winner, 0).long()[:, None].expand(-1, 3, -1)
    picture = colour.flatten(2).gather(2, index).view(batch, 3, height, width)
    return push_pull(picture, seen.view(batch, height, width))


def visible_part(
    depth: Tensor,
    valid: Tensor,
    moving: Tensor,
    intrinsics: Tensor,
    world_from_camera: Tensor,
    first_depth: Tensor,
    first_valid: Tensor,
    first_pose: Tensor,
) -> Tensor:
    """Return which pixels of a frame show something at rest that the first frame has seen.

    A pixel counts when its point lies inside the first frame and agrees with the depth there within `SAME_SURFACE`;
    sky counts where the first frame shows sky in that direction.

    Args:
        depth: (B, H, W) of the frame, metres.
        valid: (B, H, W) bool, False for the sky.
        moving: (B, H, W) bool.
        intrinsics: (B, 3, 3) pixels, of both cameras.
        world_from_camera: (B, 4, 4).
        first_depth: (B, H, W) of the first frame.
        first_valid: (B, H, W) bool.
        first_pose: (B, 4, 4) world_from_camera of the first frame.

    Returns:
        (B, H, W) bool.
    """
    height, width = depth.shape[-2:]
    point = _points(torch.where(valid, depth, _SKY).double(), intrinsics, 1)
    pixel, z = _project(point, intrinsics, torch.linalg.inv(first_pose.double()) @ world_from_camera.double())
    size = torch.tensor([width, height], dtype=pixel.dtype, device=pixel.device)
    inside = (z > _NEAREST) & (pixel >= -1e-6).all(-1) & (pixel <= size + 1e-6).all(-1)
    grid = torch.where(inside[..., None], pixel / size * 2 - 1, 0.0).view(*depth.shape, 2)
    # Disparity is linear on every plane, so that this interpolation is exact but at edges, where it fits neither side.
    disparity = torch.where(first_valid, first_depth.double().reciprocal(), 0.0)[:, None]
    found = grid_sample(disparity, grid, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]
    first_sky = (~first_valid[:, None]).double()
    sky = grid_sample(first_sky, grid, mode="nearest", padding_mode="border", align_corners=False)[:, 0] > 0.5
    agrees = torch.where(valid, (found * z.view_as(depth) - 1).abs() < SAME_SURFACE, sky)
    return inside.view_as(depth) & agrees & ~moving


def _refine(rgb: Tensor, disparity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return colour (B, 3, S H, S W) and disparity (B, S H, S W) of samples: smooth, but not across edges.

    S is SUBPIXELS; the third is the disparity of the pixel that a sample is in.
    """
    both = torch.cat([rgb.double(), disparity[:, None]], dim=1)
    smooth = interpolate(both, scale_factor=SUBPIXELS, mode="bilinear", align_corners=False)
    block = interpolate(both, scale_factor=SUBPIXELS, mode="nearest")
    edges = torch.as_tensor(depth_edges(disparity.reciprocal().cpu().numpy(), SAME_SURFACE), device=rgb.device)
    edges = interpolate(edges[:, None].double(), scale_factor=SUBPIXELS, mode="nearest") > 0
    fine = torch.where(edges, block, smooth)
    return fine[:, :3].to(rgb), fine[:, 3], block[:, 3]


def _points(depth: Tensor, intrinsics: Tensor, samples: int) -> Tensor:
    """Return what is seen, (B, P, 3) camera axes, of depth (B, h, w) with `samples` samples along a pixel's side."""
    rows, columns = ((torch.arange(n).to(depth) + 0.5) / samples for n in depth.shape[-2:])
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    pixel = torch.stack([u, v, torch.ones_like(u)], dim=-1).flatten(0, 1)
    return pixel @ torch.linalg.inv(intrinsics.to(depth)).mT * depth.flatten(1)[..., None]


def _project(point: Tensor, intrinsics: Tensor, camera_from_points: Tensor) -> tuple[Tensor, Tensor]:
    """Return pixels (B, P, 2) and z (B, P) of points (B, P, 3) in another camera; pixels behind it mean nothing."""
    moved = point @ camera_from_points[:, :3, :3].mT + camera_from_points[:, None, :3, 3]
    pixel = moved @ intrinsics.to(point).mT
    return pixel[..., :2] / pixel[..., 2:].clamp_min(_NEAREST), moved[..., 2]


def _least(cell: Tensor, value: Tensor, cells: int) -> Tensor:
    """Return the least value (B, P) that falls into each cell, (B, cells + 1); infinity where none does."""
    least = torch.full((len(cell), cells + 1), torch.inf, dtype=value.dtype, device=value.device)
    return least.scatter_reduce(1, cell, value, "amin")
