"""Compare raymap decoders under noise and write docs/raymap-decoders.md: python -m benchmarks.raymap_decoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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


def main(out: Path = Path("docs/raymap-decoders.md"), count: int = 1000) -> None:
    """Print the table and write it to `out`."""
    text = table(count)
    print(text)
    out.write_text(HEADER + text + "\n")


HEADER = """# Which raymap decoder

`python -m benchmarks.raymap_decoders` prints and writes this table: mean error of rotation / horizontal field of view
in degrees, 1000 random cameras of 50-90 degrees, gaussian noise of standard deviation sigma on all six channels of an
8 x 12 raymap (directions have length about 1). "Smooth" noise is alike in neighbouring cells, as a network's errors.

`decode_raymap` is the least-squares decoder with a prior: without noise it is exact for any pinhole camera; with noise
it draws the principal point to the picture's centre. Algorithm 1 is 2 degrees off where the principal point is 2 % off
the centre and 1.4-1.6 times worse in rotation under noise per cell (from sigma 0.01). With a centred principal point
and smooth noise it is the better one in field of view (by 12-16 %) and, at sigma 0.01 and below, in rotation (by at
most 0.1 degrees). It stays only inside the published checkpoint's codec.

"""

if __name__ == "__main__":
    tyro.cli(main)
