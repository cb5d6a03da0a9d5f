"""How far a dream in a batch is from the same dream alone, which has the same seed, start and actions.

    python benchmarks/seed_exactness.py                    # about 30 seconds of one core
    python benchmarks/seed_exactness.py --device cuda:0 --out seed_exactness.json

Batches round otherwise than single rows. "latents" are differences of normalised latents, "levels" of 8-bit colours,
"depth" is relative, "camera" in metres: differing depth may stop it elsewhere. Largest of all steps, rows and elements,
with the mean in brackets; the last two columns show how rounding errors grow on the way.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from aether_env.envs.aether import AetherEnv
from aether_env.envs.core import Episodes, Observation
from aether_env.envs.vector import AetherVectorEnv

Walk = list[dict[str, np.ndarray]]
"""What rows dreamed in each step: `latents`, `rgb`, `depth` and `camera`, (rows, ...)."""
MEASURES = ("latents", "levels", "depth", "camera")


def seen(episodes: Episodes, observation: Observation, rows: list[int]) -> dict[str, np.ndarray]:
    """Return what rows dreamed in one step."""
    assert isinstance(observation, dict)
    return {
        "latents": episodes.state.history[rows, -1].cpu().numpy(),
        "rgb": observation["rgb"][rows],
        "depth": observation["depth"][rows],
        "camera": episodes.world_from_camera[rows, :3, 3],
    }


def walk_alone(env: AetherEnv, seed: int, actions_T6: np.ndarray) -> Walk:
    """Dream in the lone env."""
    env.reset(seed=seed)
    walk = []
    for action in actions_T6:
        observation = env.step(action)[0]
        walk.append(seen(env._episode, {name: array[None] for name, array in observation.items()}, [0]))
    return walk


def walk_together(env: AetherVectorEnv, seeds: list[int], actions_TB6: np.ndarray, rows: list[int]) -> Walk:
    """Dream in the vector env; return what some rows did."""
    env.reset(seed=seeds)
    walk = []
    for actions in actions_TB6:
        observation = env.step(actions)[0]
        walk.append(seen(env._episodes, observation, rows))
    return walk


def differences(alone: Walk, together: Walk) -> dict[str, np.ndarray]:
    """Return for each measure the largest and the mean difference of each step, (T, 2)."""
    apart: dict[str, list[tuple[float, float]]] = {name: [] for name in MEASURES}
    for one, many in zip(alone, together, strict=True):
        parts = {
            "latents": one["latents"] - many["latents"],
            "levels": one["rgb"].astype(float) - many["rgb"],
            "depth": many["depth"] / one["depth"] - 1,
            "camera": one["camera"] - many["camera"],
        }
        for name, part in parts.items():
            apart[name].append((float(np.abs(part).max()), float(np.abs(part).mean())))
    return {name: np.array(numbers) for name, numbers in apart.items()}


def measure(env: AetherEnv, batches: tuple[int, ...], steps: int, seeds: int) -> list[dict[str, Any]]:
    """Return a row of the table for each batch, with the numbers of every step."""
    generator = np.random.default_rng(0)
    actions_TS6 = generator.uniform(-1, 1, (steps, seeds, 6)).astype(np.float32)
    alone = [walk_alone(env, seed, actions_TS6[:, seed]) for seed in range(seeds)]
    rows = []
    for size in batches:
        # From the first to the last place; every other row has a seed and actions of its own.
        followed = min(seeds, size)
        places = [seed * (size - 1) // max(followed - 1, 1) for seed in range(followed)]
        seeds_B = list(range(1000, 1000 + size))
        actions_TB6 = generator.uniform(-1, 1, (steps, size, 6)).astype(np.float32)
        for seed, place in enumerate(places):
            seeds_B[place], actions_TB6[:, place] = seed, actions_TS6[:, seed]
        together = walk_together(AetherVectorEnv(size, world=env.core.world), seeds_B, actions_TB6, places)
        expected = [{name: np.concatenate([walk[t][name] for walk in alone[:followed]]) for name in together[t]}
                    for t in range(steps)]  # fmt: skip
        by_step = differences(expected, together)
        rows.append(
            {"batch": size}
            | {name: {"max": part[:, 0].max(), "mean": part[:, 1].mean()} for name, part in by_step.items()}
            | {"by_step": {name: part[:, 0].tolist() for name, part in by_step.items()}}
        )
    return rows


def main(
    model: str = "mini",
    device: str = "cpu",
    dtypes: tuple[Literal["float32", "bfloat16"], ...] | None = None,
    batches: tuple[int, ...] | None = None,
    steps: int | None = None,
    seeds: int | None = None,
    rows_at_once: int | None = None,
    out: Path | None = None,
) -> None:
    """Print the table.

    Args:
        model: Checkpoint, a bundled name or a folder.
        device: "cpu" or "cuda:0".
        dtypes: Of the network; None is float32 on the CPU and both on a GPU.
        batches: Rows of the batches; None is 2 and 4 on the CPU, 2 and 16 on a GPU.
        steps: Env steps; None is 4 on the CPU, where memory has a part in the last one, and 24 on a GPU.
        seeds: Rows that are followed; None is 2 on the CPU, 4 on a GPU.
        rows_at_once: As in `AetherEnv`.
        out: JSON file, with the largest differences of every step.
    """
    gpu = device.startswith("cuda")
    dtypes = dtypes or (("float32", "bfloat16") if gpu else ("float32",))
    batches = batches or ((2, 16) if gpu else (2, 4))
    steps, seeds = steps or (24 if gpu else 4), seeds or (4 if gpu else 2)
    about = {
        "model": model, "device": torch.cuda.get_device_name(device) if gpu else "cpu", "torch": torch.__version__,
        "threads": torch.get_num_threads(), "steps": steps, "seeds": seeds, "rows_at_once": rows_at_once,
    }  # fmt: skip
    print(json.dumps(about), flush=True)
    print("| dtype | batch | latents | levels | depth | camera | latents, first step | last step |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for dtype in dtypes:
        env = AetherEnv(model=model, device=device, dtype=dtype, rows_at_once=rows_at_once)
        for row in measure(env, batches, steps, seeds):
            rows.append({"dtype": dtype} | row)
            numbers = [f"{row[name]['max']:.2g} ({row[name]['mean']:.1g})" for name in MEASURES]
            ends = [f"{row['by_step']['latents'][step]:.2g}" for step in (0, -1)]
            print(f"| {dtype} | {row['batch']} | {' | '.join([*numbers, *ends])} |", flush=True)
        env.close()
    if out is not None:
        out.write_text(json.dumps(about | {"rows": rows}, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
