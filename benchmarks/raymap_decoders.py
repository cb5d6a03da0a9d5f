"""Compare raymap decoders under noise; prints the table of docs/raymap-decoders.md."""

from __future__ import annotations

from collections.abc import Callable

import torch
import tyro
from torch import Tensor

from aether_env.raymap import decode_raymap, decode_raymap_aetherv1, encode_raymap, nearest_rotation

HEIGHT, WIDTH, GRID_HEIGHT, GRID_WIDTH = 64, 96, 8, 12
NOISE = (0.001, 0.01, 0.03, 0.1, 0.3)
Decoder = Callable[[Tensor], tuple[Tensor, Tensor]]


def algorithm1(raymap: Tensor) -> tuple[Tensor, Tensor]:
    """Decode by the paper's Algorithm 1, the field of view relative to the forward length, unit 1."""
    pose, half_x, half_y = decode_raymap_aetherv1(raymap)
    forward = raymap[..., :3, :, :].mean((-2, -1)).norm(dim=-1)
    intrinsics = torch.zeros(*raymap.shape[:-3], 3, 3).to(raymap)
    intrinsics[..., 0, 0], intrinsics[..., 0, 2] = WIDTH / 2 * forward / half_x.tan(), WIDTH / 2
    intrinsics[..., 1, 1], intrinsics[..., 1, 2] = HEIGHT / 2 * forward / half_y.tan(), HEIGHT / 2
    intrinsics[..., 2, 2] = 1
    return pose, intrinsics


def least_squares(principal_point_std: float) -> Decoder:
    """Return `decode_raymap` with a given prior on the principal point, unit 1."""
    return lambda raymap: decode_raymap(raymap, HEIGHT, WIDTH, unit=1.0, principal_point_std=principal_point_std)


DECODERS: dict[str, Decoder] = {
    "Algorithm 1 (paper)": algorithm1,
    "least squares, free principal point": least_squares(1e6),
    "least squares, centred": least_squares(0.0),
    "least squares, prior (`decode_raymap`)": least_squares(0.002),
}


def random_cameras(count: int, off_centre: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return (count, 1, 4, 4) poses within a few units and (count, 1, 3, 3) intrinsics of 50-90 degrees."""
    pose = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1, 1)
    random = torch.randn(count, 1, 3, 3, generator=generator, dtype=torch.float64)
    pose[..., :3, :3] = nearest_rotation(random)
    pose[..., :3, 3] = torch.randn(count, 1, 3, generator=generator, dtype=torch.float64)
    degrees = 50 + 40 * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    intrinsics = torch.zeros(count, 1, 3, 3, dtype=torch.float64)
    intrinsics[..., 0, 0] = intrinsics[..., 1, 1] = WIDTH / 2 / torch.tan(torch.deg2rad(degrees) / 2)
    shift = off_centre * WIDTH * torch.randn(count, 1, 2, generator=generator, dtype=torch.float64)
    intrinsics[..., 0, 2], intrinsics[..., 1, 2] = WIDTH / 2 + shift[..., 0], HEIGHT / 2 + shift[..., 1]
    intrinsics[..., 2, 2] = 1
    return pose, intrinsics


def noise_like(raymap: Tensor, level: float, smooth: bool, generator: torch.Generator) -> Tensor:
    """Return gaussian noise of one standard deviation, independent per cell or smooth over a 2 x 3 grid of patches."""
    if not smooth:
        return level * torch.randn(raymap.shape, generator=generator, dtype=raymap.dtype)
    coarse = torch.randn(*raymap.shape[:-2], 2, 3, generator=generator, dtype=raymap.dtype)
    size = raymap.shape[-2:]
    fine = torch.nn.functional.interpolate(coarse.flatten(0, 1), size, mode="bicubic").reshape(raymap.shape)
    return level * fine / fine.std()


def table(count: int = 1000) -> str:
    """Return the markdown table: mean rotation and field-of-view error of each decoder, in degrees."""
    lines = [f"| noise | principal point | sigma | {' | '.join(DECODERS)} |", "|---" * (3 + len(DECODERS)) + "|"]
    cases = [(smooth, off, level) for smooth in (False, True) for off in (0.0, 0.02) for level in NOISE]
    for smooth, off_centre, level in cases:
        generator = torch.Generator().manual_seed(0)
        pose, intrinsics = random_cameras(count, off_centre, generator)
        raymap = encode_raymap(
            pose, intrinsics, HEIGHT, WIDTH, grid_height=GRID_HEIGHT, grid_width=GRID_WIDTH, unit=1.0
        )
        noisy = raymap + noise_like(raymap, level, smooth, generator)
        cells = []
        for decode in DECODERS.values():
            found, found_intrinsics = decode(noisy)
            cosine = ((found[..., :3, :3] * pose[..., :3, :3]).sum((-2, -1)) - 1) / 2
            rotation = torch.rad2deg(cosine.clamp(-1, 1).acos()).mean()
            fov = [2 * torch.atan(WIDTH / 2 / k[..., 0, 0]) for k in (found_intrinsics, intrinsics)]
            cells.append(f"{rotation:.2f} / {torch.rad2deg((fov[0] - fov[1]).abs()).mean():.2f}")
        kind = "smooth" if smooth else "per cell"
        where = f"off by {off_centre:.0%}" if off_centre else "centred"
        lines.append(f"| {kind} | {where} | {level} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(count: int = 1000) -> None:
    """Print the table for `count` random cameras."""
    print(table(count))


if __name__ == "__main__":
    tyro.cli(main)
