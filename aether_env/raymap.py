"""Camera paths as pictures: the raymap codec of our checkpoints and that of the published one.

A raymap has six channels a cell: the ray's direction in world axes (camera z = 1, not normalised), then the camera's
centre, squashed: signed_log1p(origin_gain * centre / unit). Axes, pixels and shape letters: see conventions.

All sums are written out element by element: matrix products would lose digits under autocast or TF32.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aether_env.conventions import FRAMES_PER_LATENT

Packing = Literal["consecutive", "strided"]

ORIGIN_GAIN = 10.0
"""Gain on origins before the logarithm (s_ray of the paper)."""

PRINCIPAL_POINT_STD = 0.002
"""How far principal points are expected off the picture's centre, as the tangent of an angle."""

# Decoding a network's output must never overflow: directions are of order 1, origins are logarithms.
_MAX_DIRECTION, _MAX_LOG_ORIGIN = 1e4, 30.0
_FOCAL_RANGE = (0.005, 100.0)  # times the longer side: 179 to 0.6 degrees
_TINY = 1e-6


def signed_log1p(x: Tensor) -> Tensor:
    """Return sign(x) * log(1 + |x|), any shape."""
    return x.sign() * x.abs().log1p()


def signed_expm1(x: Tensor) -> Tensor:
    """Return sign(x) * (exp(|x|) - 1), any shape: undoes `signed_log1p`."""
    return x.sign() * x.abs().expm1()


def expand_unit(unit: Tensor | float, like: Tensor) -> Tensor:
    """Return `unit` with ones appended to its shape until it broadcasts against the leading dimensions of `like`.

    Args:
        unit: Unit of length, a number or (...): any number of `like`'s leading dimensions.
        like: (..., anything).

    Raises:
        ValueError: `unit` is a number that is not positive and finite, or has more dimensions than `like`.
    """
    if not isinstance(unit, Tensor):
        if not 0 < unit < float("inf"):
            raise ValueError(f"unit must be positive and finite, got {unit}; use 1.0 where the scale is unknown.")
        return torch.tensor(unit, dtype=like.dtype, device=like.device)
    if unit.ndim > like.ndim:
        raise ValueError(f"unit has shape {tuple(unit.shape)}, more dimensions than {tuple(like.shape)} it belongs to.")
    return unit.to(like).reshape(unit.shape + (1,) * (like.ndim - unit.ndim))


def encode_raymap(
    world_from_camera: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    *,
    grid_height: int,
    grid_width: int,
    unit: Tensor | float,
    origin_gain: float = ORIGIN_GAIN,
) -> Tensor:
    """Return the rays through the centres of a grid of cells that covers the picture.

    Args:
        world_from_camera: (..., T, 4, 4) poses; the raymap's world is theirs.
        intrinsics: (..., T, 3, 3) in pixels of (height, width).
        height: Picture height in pixels.
        width: Picture width in pixels.
        grid_height: Rows h of the raymap.
        grid_width: Columns w of the raymap.
        unit: Unit of length (in the poses' unit), a number or broadcast over `...`.
        origin_gain: Gain on origins before the logarithm.

    Returns:
        (..., T, 6, h, w): three channels of direction, three of origin.

    Raises:
        ValueError: A shape does not fit, or the unit is not positive.
    """
    _check_cameras(world_from_camera, intrinsics)
    u_w, v_h = _cell_centres(height, width, grid_height, grid_width, like=world_from_camera)
    return _rays(world_from_camera, intrinsics, u_w, v_h, unit, origin_gain)


def decode_raymap(
    raymap: Tensor,
    height: int,
    width: int,
    *,
    unit: Tensor | float,
    origin_gain: float = ORIGIN_GAIN,
    principal_point_std: float = PRINCIPAL_POINT_STD,
) -> tuple[Tensor, Tensor]:
    """Return the cameras whose raymap is nearest in the least-squares sense.

    A plane is fitted to the directions; its three coefficient vectors are a rotation times the inverse intrinsics
    (upper triangular, positive diagonal). Principal point and turn of the camera look almost alike in a raymap, so
    the more the cells scatter around the plane, the more the principal point is drawn to the picture's centre. A raymap
    without noise comes back exactly. Any finite input gives proper rotations and finite, positive focal lengths.

    Args:
        raymap: (..., T, 6, h, w) with h, w >= 2.
        height: Picture height in pixels.
        width: Picture width in pixels.
        unit: Unit of length that the raymap was encoded with, a number or broadcast over `...`.
        origin_gain: Gain that the raymap was encoded with.
        principal_point_std: Expected distance of the principal point from the centre, as a tangent; 0 holds it there.

    Returns:
        world_from_camera (..., T, 4, 4) and intrinsics (..., T, 3, 3) in pixels of (height, width); float64 for
        float64 input, else float32.

    Raises:
        ValueError: The raymap has a wrong shape, or the unit is not positive.
    """
    direction_3hw, log_origin_3 = _split_raymap(raymap)
    grid_height, grid_width = direction_3hw.shape[-2:]
    u_w, v_h = _cell_centres(height, width, grid_height, grid_width, like=direction_3hw)
    x_w, y_h = u_w - width / 2, v_h - height / 2
    spread_x, spread_y = x_w.square().mean().sqrt(), y_h.square().mean().sqrt()
    x_hw = (x_w / spread_x).expand(grid_height, -1)
    y_hw = (y_h / spread_y)[:, None].expand(-1, grid_width)

    # 1. Plane through the directions: direction ~ slope_x * x + slope_y * y + middle. x, y and 1 are orthonormal.
    slope_x, slope_y, middle = ((direction_3hw * a).mean((-2, -1)) for a in (x_hw, y_hw, torch.ones_like(x_hw)))
    plane = torch.stack([slope_x, slope_y, middle], dim=-1)
    fitted = slope_x[..., None, None] * x_hw + slope_y[..., None, None] * y_hw + middle[..., None, None]
    cells = grid_height * grid_width
    variance = (direction_3hw - fitted).square().sum((-3, -2, -1)) / (3 * cells - 9)

    # 2. Columns of the plane are rotation @ upper triangle: Gram-Schmidt gives the triangle.
    right, length_x = _unit_and_length(slope_x)
    skew = (right * slope_y).sum(-1)
    down, length_y = _unit_and_length(slope_y - skew[..., None] * right)
    forward = torch.linalg.cross(right, down)
    depth = (forward * middle).sum(-1)
    slope = torch.minimum(length_x, length_y)
    prior = principal_point_std**2
    trust = torch.where(depth > _TINY, prior / (prior + variance / (cells * slope.square()) + 1e-30), 0.0)
    off_x, off_y = ((axis * middle).sum(-1) * trust for axis in (right, down))
    zero = torch.zeros_like(depth)
    depth = torch.where(depth > _TINY, depth, _unit_and_length(middle)[1])
    triangle = torch.stack([length_x, skew * trust, off_x, zero, length_y, off_y, zero, zero, depth], dim=-1).unflatten(
        -1, (3, 3)
    )

    # 3. The rotation nearest to plane @ triangle^-1 in the cells' own metric, then the triangle that belongs to it.
    rotation = nearest_rotation(_times(plane, triangle.mT))
    turned = _times(rotation.mT, plane)
    ray_middle = triangle[..., :, 2] / depth[..., None]
    depth = ((turned[..., :, 2] * ray_middle).sum(-1) / ray_middle.square().sum(-1)).clamp_min(_TINY)
    least_focal, most_focal = (f * max(height, width) for f in _FOCAL_RANGE)
    focal_x = (spread_x * depth / turned[..., 0, 0].clamp_min(_TINY)).clamp(least_focal, most_focal)
    focal_y = (spread_y * depth / turned[..., 1, 1].clamp_min(_TINY)).clamp(least_focal, most_focal)
    # U / depth = K^-1; U = [[depth / focal_x, skew / spread_y, off_x], [0, depth / focal_y, off_y], [0, 0, depth]].
    shear = -focal_x * focal_y * triangle[..., 0, 1] / (spread_y * depth)
    centre_x = width / 2 - focal_x * ray_middle[..., 0] - shear * ray_middle[..., 1]
    centre_y = height / 2 - focal_y * ray_middle[..., 1]
    intrinsics = torch.stack(
        [focal_x, shear, centre_x, zero, focal_y, centre_y, zero, zero, zero + 1], dim=-1
    ).unflatten(-1, (3, 3))

    centre = signed_expm1(log_origin_3) * expand_unit(unit, log_origin_3) / origin_gain
    return _join_pose(rotation, centre), intrinsics


def pack_raymap(raymap: Tensor, packing: Packing = "consecutive") -> Tensor:
    """Return the raymap of every frame as channels of latent steps, four frames a step.

    Args:
        raymap: (..., T, 6, h, w).
        packing: "consecutive": T = 4 N, step j holds frames 4j .. 4j + 3. "strided": the published checkpoint's;
            T = 4 N - 3 frames are padded at the front with the first three, and channel group g of step j holds padded
            frame g * N + j.

    Returns:
        (..., N, 24, h, w), channels frame-major.

    Raises:
        ValueError: Unknown packing, or a number of frames that does not fit.
    """
    _check_packing(packing)
    if raymap.ndim < 4 or raymap.shape[-3] != 6:
        raise ValueError(f"raymap must have shape (..., T, 6, h, w), got {tuple(raymap.shape)}.")
    num_frames = raymap.shape[-4]
    if packing == "consecutive":
        if num_frames == 0 or num_frames % FRAMES_PER_LATENT:
            raise ValueError(f"consecutive packing needs a multiple of 4 frames, got {num_frames}; repeat frame 0.")
        return raymap.unflatten(-4, (-1, FRAMES_PER_LATENT)).flatten(-4, -3)
    if num_frames < 5 or num_frames % FRAMES_PER_LATENT != 1:
        raise ValueError(f"strided packing needs 4 k + 1 frames, k >= 1, got {num_frames}.")
    padded = torch.cat([raymap[..., : FRAMES_PER_LATENT - 1, :, :, :], raymap], dim=-4)
    return padded.unflatten(-4, (FRAMES_PER_LATENT, -1)).transpose(-5, -4).flatten(-4, -3)


def unpack_raymap(packed: Tensor, packing: Packing = "consecutive", num_frames: int | None = None) -> Tensor:
    """Return the raymap of every frame: undoes `pack_raymap`.

    Args:
        packed: (..., N, 24, h, w).
        packing: As in `pack_raymap`.
        num_frames: Keep the last so many frames; None keeps 4 N (consecutive) or 4 N - 3 (strided).

    Returns:
        (..., T, 6, h, w).

    Raises:
        ValueError: Unknown packing, a wrong shape, or more frames asked for than there are.
    """
    _check_packing(packing)
    if packed.ndim < 4 or packed.shape[-3] != 6 * FRAMES_PER_LATENT:
        raise ValueError(f"packed must have shape (..., N, 24, h, w), got {tuple(packed.shape)}.")
    grouped = packed.unflatten(-3, (FRAMES_PER_LATENT, 6))
    if packing == "strided":
        grouped = grouped.transpose(-5, -4)
    frames = grouped.flatten(-5, -4)
    total = frames.shape[-4]
    if num_frames is None:
        num_frames = total if packing == "consecutive" else total - FRAMES_PER_LATENT + 1
    if not 1 <= num_frames <= total:
        raise ValueError(f"num_frames must be in 1..{total} for {packed.shape[-4]} latent steps, got {num_frames}.")
    return frames[..., total - num_frames :, :, :, :]


def encode_raymap_aetherv1(
    world_from_camera: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    *,
    dmax: Tensor | float = 1.0,
    origin_gain: float = ORIGIN_GAIN,
    downsample: int = 8,
) -> Tensor:
    """Return the published checkpoint's raymap: rays through integer pixels, then bilinear down-sampling.

    Down-sampling by s without aligned corners takes the ray at pixel index s * i + (s - 1) / 2. Directions are linear
    in the pixel and origins constant, so that ray is written down directly.

    Args:
        world_from_camera: (..., T, 4, 4), relative to the first frame.
        intrinsics: (..., T, 3, 3) in pixels of (height, width).
        height: Picture height in pixels, at least `downsample`.
        width: Picture width in pixels, at least `downsample`.
        dmax: The clip's largest disparity, a number or broadcast over `...`; 1 where depth is unknown.
        origin_gain: s_ray.
        downsample: Pixels to a cell.

    Returns:
        (..., T, 6, height // downsample, width // downsample).

    Raises:
        ValueError: A shape does not fit.
    """
    _check_cameras(world_from_camera, intrinsics)
    rows, columns = height // downsample, width // downsample
    if rows < 1 or columns < 1:
        raise ValueError(f"a picture of {height} x {width} is smaller than one cell of {downsample} pixels.")
    cell = torch.arange(max(rows, columns), dtype=world_from_camera.dtype, device=world_from_camera.device)
    index = cell * downsample + (downsample - 1) / 2
    return _rays(world_from_camera, intrinsics, index[:columns], index[:rows], 1 / dmax, origin_gain)


def decode_raymap_aetherv1(raymap: Tensor, *, origin_gain: float = ORIGIN_GAIN) -> tuple[Tensor, Tensor, Tensor]:
    """Return poses and half fields of view exactly as the published code does (the paper's Algorithm 1).

    The field of view is that code's: the width perpendicular to the forward axis, not relative to the forward length.

    Args:
        raymap: (..., T, 6, h, w) with h, w >= 2.
        origin_gain: s_ray.

    Returns:
        world_from_camera (..., T, 4, 4), translation in units of the nearest depth; half field of view in x and
        in y, each (..., T), radians.

    Raises:
        ValueError: The raymap has a wrong shape.
    """
    _check_raymap(raymap)
    raymap = raymap.to(torch.promote_types(raymap.dtype, torch.float32))
    origin, direction = signed_expm1(raymap[..., 3:, :, :]) / origin_gain, raymap[..., :3, :, :]
    forward, forward_length = _unit_and_length(direction.mean((-2, -1)))
    across = (direction[..., -1] - direction[..., 0]).mean(-1)
    along = (direction[..., -1, :] - direction[..., 0, :]).mean(-1)
    down, _ = _unit_and_length(torch.linalg.cross(forward, across))
    right = torch.linalg.cross(down, forward)

    def half_angle(span: Tensor, cells: int) -> Tensor:
        width = torch.linalg.cross(span, forward).norm(dim=-1) * cells / (cells - 1)
        return torch.atan(width / 2)

    # The axes are orthonormal already; a degenerate map (all zeros) still gets a proper rotation.
    rotation = nearest_rotation(torch.stack([right, down, forward], dim=-1))
    pose = _join_pose(rotation, origin.mean((-2, -1)))
    return pose, half_angle(across, raymap.shape[-1]), half_angle(along, raymap.shape[-2])


def intrinsics_aetherv1(half_fov_x: Tensor, half_fov_y: Tensor, height: int, width: int) -> Tensor:
    """Return the published code's intrinsics (..., 3, 3): one focal length, the mean over x and y, centred.

    Args:
        half_fov_x: (...) radians.
        half_fov_y: (...) radians.
        height: Picture height in pixels.
        width: Picture width in pixels.
    """
    focal = (width / half_fov_x.tan() + height / half_fov_y.tan()) / 4
    zero = torch.zeros_like(focal)
    rows = [focal, zero, zero + width / 2, zero, focal, zero + height / 2, zero, zero, zero + 1]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def nearest_rotation(matrix: Tensor) -> Tensor:
    """Return the proper rotation nearest to `matrix` (..., 3, 3) in the Frobenius norm; zeros give the identity."""
    left, _, right = torch.linalg.svd(matrix)
    sign = torch.ones_like(matrix[..., 0])
    sign[..., 2] = torch.where(torch.linalg.det(left) * torch.linalg.det(right) < 0, -1.0, 1.0)
    return _times(left * sign[..., None, :], right)


def _rays(
    world_from_camera: Tensor, intrinsics: Tensor, u_w: Tensor, v_h: Tensor, unit: Tensor | float, origin_gain: float
) -> Tensor:
    """Return the raymap of the rays through columns u and rows v (pixel coordinates of the intrinsics)."""
    k = intrinsics.to(world_from_camera)[..., None, None]
    y = (v_h[:, None] - k[..., 1, 2, :, :]) / k[..., 1, 1, :, :]
    x = (u_w - k[..., 0, 2, :, :] - k[..., 0, 1, :, :] * y) / k[..., 0, 0, :, :]
    axes = world_from_camera[..., :3, :3, None, None]
    direction = axes[..., 0, :, :] * x[..., None, :, :] + axes[..., 1, :, :] * y[..., None, :, :] + axes[..., 2, :, :]
    translation = world_from_camera[..., :3, 3]
    origin = signed_log1p(origin_gain * translation / expand_unit(unit, translation))
    return torch.cat([direction, origin[..., None, None].expand_as(direction)], dim=-3)


def _cell_centres(height: int, width: int, rows: int, columns: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return u of the columns (w,) and v of the rows (h,) of a grid over the picture, pixel-centre convention."""
    if min(height, width, rows, columns) < 1:
        raise ValueError(f"picture {height} x {width} and grid {rows} x {columns} must be at least 1 x 1.")
    u_w = (torch.arange(columns, dtype=like.dtype, device=like.device) + 0.5) * (width / columns)
    v_h = (torch.arange(rows, dtype=like.dtype, device=like.device) + 0.5) * (height / rows)
    return u_w, v_h


def _split_raymap(raymap: Tensor) -> tuple[Tensor, Tensor]:
    """Return directions (..., T, 3, h, w) and the mean squashed origin (..., T, 3), finite and at least float32."""
    _check_raymap(raymap)
    raymap = torch.nan_to_num(raymap.to(torch.promote_types(raymap.dtype, torch.float32)))
    direction = raymap[..., :3, :, :].clamp(-_MAX_DIRECTION, _MAX_DIRECTION)
    return direction, raymap[..., 3:, :, :].clamp(-_MAX_LOG_ORIGIN, _MAX_LOG_ORIGIN).mean((-2, -1))


def _unit_and_length(vector: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unit vector and the length of (..., 3); no division by zero."""
    length = vector.square().sum(-1).sqrt().clamp_min(_TINY)
    return vector / length[..., None], length


def _times(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b for (..., 3, 3), untouched by autocast and TF32."""
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)


def _join_pose(rotation: Tensor, centre: Tensor) -> Tensor:
    """Return (..., 4, 4) from (..., 3, 3) and (..., 3)."""
    top = torch.cat([rotation, centre[..., None]], dim=-1)
    bottom = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, bottom], dim=-2)


def _check_cameras(world_from_camera: Tensor, intrinsics: Tensor) -> None:
    if world_from_camera.ndim < 3 or world_from_camera.shape[-2:] != (4, 4):
        raise ValueError(f"world_from_camera must have shape (..., T, 4, 4), got {tuple(world_from_camera.shape)}.")
    expected = (*world_from_camera.shape[:-2], 3, 3)
    if intrinsics.shape != expected:
        raise ValueError(f"intrinsics must have shape {expected} to fit the poses, got {tuple(intrinsics.shape)}.")


def _check_raymap(raymap: Tensor) -> None:
    if raymap.ndim < 4 or raymap.shape[-3] != 6 or min(raymap.shape[-2:]) < 2:
        raise ValueError(f"raymap must have shape (..., T, 6, h, w) with h, w >= 2, got {tuple(raymap.shape)}.")


def _check_packing(packing: str) -> None:
    if packing not in ("consecutive", "strided"):
        raise ValueError(f'packing must be "consecutive" or "strided", got {packing!r}.')
