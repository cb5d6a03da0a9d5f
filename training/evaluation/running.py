"""How a checkpoint runs: whether a long random walk stays finite, and what an env step costs on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tqdm import tqdm

import aether_env  # noqa: F401  registers Aether-v0
from aether_env.camera import interpolate_pose
from aether_env.conventions import FRAMES_PER_LATENT
from aether_env.envs.actions import Se3Action
from aether_env.world_model.checkpoint import load_checkpoint
from aether_env.world_model.conditions import COLOUR, DISPARITY
from aether_env.world_model.rollout import DreamWorld
from training.evaluation.walks import Walk

ENDURANCE_STEPS = 200
WARM_UP, TIMED = 3, 16
CPU_THREADS = 2


def stays_finite(world: DreamWorld, walk: Walk, seed: int) -> bool:
    """Return whether depth and latents stay finite during `ENDURANCE_STEPS` random env steps from some clips."""
    rng = np.random.default_rng(seed)
    action = Se3Action()
    state, _ = world.start(walk.starts(), walk.seeds(seed))
    pose = np.tile(np.eye(4), (len(state), 1, 1))
    fractions = np.arange(1, FRAMES_PER_LATENT + 1) / FRAMES_PER_LATENT
    for _ in tqdm(range(ENDURANCE_STEPS), desc="random steps", unit="step"):
        targets = [action.target(rng.uniform(-1, 1, 6), here) for here in pose]
        path = np.stack([interpolate_pose(a, b, fractions) for a, b in zip(pose, targets, strict=True)])
        state, frames = world.advance(state, path)
        pose = path[:, -1]
        if not (np.isfinite(frames.depth).all() and bool(torch.isfinite(state.history).all())):
            return False
    return True


def measure_speed(folder: Path, walk: Walk, sigmas: Sequence[float] | None, seed: int) -> dict[str, Any]:
    """Return seconds of single env steps of Aether-v0 on the CPU with `CPU_THREADS` threads.

    Args:
        folder: Of the checkpoint.
        walk: Its first clip is where the env starts.
        sigmas: Noise levels of a step, None for the checkpoint's.
        seed: Of the actions.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(CPU_THREADS)
    try:
        began = time.perf_counter()
        world = DreamWorld(load_checkpoint(folder, "cpu"), sigmas=sigmas)
        loading = time.perf_counter() - began
        env = gym.make("Aether-v0", world=world)
        start = walk.starts()[0]
        options = {"image": start.rgb, "depth": start.depth, "intrinsics": start.intrinsics}
        reset = _seconds(lambda: env.reset(seed=seed, options=options))
        rng = np.random.default_rng(seed)
        steps = [_seconds(lambda: env.step(rng.uniform(-1, 1, 6).astype(np.float32))) for _ in range(WARM_UP + TIMED)]
        decoding = _decoding_seconds(world)
        env.close()
    finally:
        torch.set_num_threads(threads)
    warm = np.array(steps[WARM_UP:])
    median = float(np.median(warm))
    return {
        "cpu_threads": CPU_THREADS,
        "cpu_step_seconds_median": median,
        "cpu_step_seconds_p95": float(np.quantile(warm, 0.95)),
        "cpu_step_seconds_cold": steps[0],
        "cpu_reset_seconds": reset,
        "cpu_load_seconds": loading,
        "cpu_decoding_share": decoding / median,
        "cpu_frames_per_second": FRAMES_PER_LATENT / median,
    }


def _decoding_seconds(world: DreamWorld) -> float:
    """Return the median seconds that both decoders take in one env step."""
    latents = torch.zeros(1, 1, DISPARITY.stop, *world.codec.latent_size)

    @torch.inference_mode()
    def decode() -> None:
        world.codec.decode_colour(latents[:, :, COLOUR], latents[:, 0, COLOUR])
        world.codec.decode_depth(latents[:, :, DISPARITY], torch.ones(1), latents[:, 0, DISPARITY])

    return float(np.median([_seconds(decode) for _ in range(WARM_UP + TIMED)][WARM_UP:]))


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
