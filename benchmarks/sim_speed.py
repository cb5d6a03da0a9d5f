"""Frames per second of the true world by number of clips and picture size.

    python benchmarks/sim_speed.py --device cuda:0 --clips 16 64 256

"plan" is the CPU's part (scenes, physics, walks; can run ahead in other processes), "draw" the ray tracer's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import tyro

from aether_env.sim import draw_clips, plan_clips


def seconds(work: Callable[[], object], device: str) -> float:
    """Return the best time of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def main(
    device: str = "cpu",
    clips: tuple[int, ...] = (1, 4),
    sizes: tuple[str, ...] = ("64x96", "96x128", "128x192"),
    num_frames: int = 17,
    supersample: tuple[int, ...] = (1, 2),
) -> None:
    """Print a table.

    Args:
        device: "cpu" or "cuda:0".
        clips: Numbers of clips drawn in one call.
        sizes: Heights x widths of the pictures.
        num_frames: Frames of a clip.
        supersample: Colour samples along each side of a pixel.
    """
    print(f"device {device}, clips of {num_frames} frames, frames per second")
    print("| clips | size | samples | plan | draw | both |")
    print("|---|---|---|---|---|---|")
    for count in clips:
        plans = plan_clips(range(count), num_frames=num_frames)
        planning = seconds(lambda count=count: plan_clips(range(count), num_frames=num_frames), device)
        for size in sizes:
            height, width = map(int, size.split("x"))
            for samples in supersample:
                options = {"height": height, "width": width, "supersample": samples, "device": device}
                draw_clips(plans, **options)  # compiles the kernels and allocates
                drawing = seconds(lambda plans=plans, options=options: draw_clips(plans, **options), device)
                frames = count * num_frames
                row = [f"{frames / t:,.0f}" for t in (planning, drawing, planning + drawing)]
                print(f"| {count} | {size} | {samples}x{samples} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
