"""How a checkpoint runs: whether a long random walk stays finite, and what an env costs on a CPU: time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from tqdm import tqdm

import aether_env.envs.aether  # noqa: F401  registers Aether-v0; imported before memory is measured
from aether_env.camera import interpolate_pose
from aether_env.conventions import FRAMES_PER_LATENT
from aether_env.envs.actions import Se3Action
from aether_env.world_model.checkpoint import load_checkpoint
from aether_env.world_model.conditions import COLOUR, DISPARITY
from aether_env.world_model.rollout import DreamWorld

if TYPE_CHECKING:
    from training.evaluation.walks import Walk  # only a type: the process that measures memory needs no simulator

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
        targets = np.stack([action.target(rng.uniform(-1, 1, 6), here) for here in pose])
        path = interpolate_pose(pose, targets, fractions)
        state, frames = world.advance(state, path)
        pose = path[:, -1]
        if not (np.isfinite(frames.depth).all() and bool(torch.isfinite(state.history).all())):
            return False
    return True


def measure_speed(folder: Path, walk: Walk, sigmas: Sequence[float] | None, seed: int) -> dict[str, Any]:
    """Return what single env steps of Aether-v0 cost on the CPU with `CPU_THREADS` threads: seconds and MiB.

    Memory is measured in a process of its own, see `measure_memory`.

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
        **measure_memory(folder, sigmas),
    }


def measure_memory(folder: Path, sigmas: Sequence[float] | None = None) -> dict[str, float]:
    """Return the most memory that a fresh process holds while it loads a checkpoint and plays Aether-v0 on the CPU.

    Args:
        folder: Of the checkpoint.
        sigmas: Noise levels of a step, None for the checkpoint's.

    Returns:
        "cpu_memory_mib", what loading, a reset and `WARM_UP + TIMED` steps add to the process (MiB), and
        "cpu_memory_total_mib", all that it holds, PyTorch among it. Nothing where the system is not Linux.
    """
    if sys.platform != "linux":
        return {}
    command = [sys.executable, "-m", "training.evaluation.running", str(folder), *map(str, sigmas or ())]
    paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _memory_of_this_process(folder: Path, sigmas: Sequence[float] | None) -> dict[str, float]:
    torch.set_num_threads(CPU_THREADS)
    before = _status_mib("VmRSS")
    world = DreamWorld(load_checkpoint(folder, "cpu"), sigmas=sigmas)
    env = gym.make("Aether-v0", world=world)
    picture = np.zeros((world.height, world.width, 3), np.uint8)
    env.reset(seed=0, options={"image": picture, "depth": np.ones(picture.shape[:2], np.float32)})
    for _ in range(WARM_UP + TIMED):
        env.step(np.zeros(6, np.float32))
    most = _status_mib("VmHWM")
    return {"cpu_memory_mib": most - before, "cpu_memory_total_mib": most}


def _status_mib(name: str) -> float:
    """Return what Linux says of this process: VmRSS, what it holds now, VmHWM, the most so far.

    Not getrusage: its most is handed on to a child, so that this process would begin with its parent's.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


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


if __name__ == "__main__":  # what `measure_memory` starts
    _levels = [float(word) for word in sys.argv[2:]]
    print(json.dumps(_memory_of_this_process(Path(sys.argv[1]), _levels or None)))
