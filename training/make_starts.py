"""Render the bundled start pictures: python -m training.make_starts --out aether_env/envs/starts --count 16

They show test scenes of the simulator with an open view, much to see, and room for the demo's walk. Names begin with
the scene's family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import tyro

from aether_env.envs.starts import write_start
from aether_env.sim import FAMILIES, ClipPlans, draw_clips, plan_clips, seed_in
from aether_env.sim.solids import Solids
from aether_env.world_model.promise import Start
from policies.scripted import demo_walk, walk_poses

NEAREST = 0.7
"""Metres: what is nearer than this at a start (a 2 % quantile) stands in the way."""
OPEN = 1.5
"""Metres: least median depth of a start."""
MOST_SKY = 0.4
"""Share of a start's pixels that may be sky."""
CLEARANCE = 0.3
"""Metres to everything, all along the demo's walk."""
BUSY = 25.0
"""Grey levels between neighbouring pixels (down plus across); more contrast than this earns nothing."""

_FRAMES_PER_STEP = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """One scene as its camera first sees it."""

    index: int
    """Of the scene's seed among the test seeds."""
    family: str
    start: Start
    richness: float
    """Contrast (up to `BUSY`) times the number of shapes seen; more is better."""
    is_open: bool
    """Nothing stands in the way, of the view and of the demo's walk."""


def main(
    out: Path = Path("aether_env/envs/starts"),
    count: int = 16,
    candidates: int = 160,
    index: tuple[int, ...] = (),
    height: int = 64,
    width: int = 96,
) -> None:
    """Choose start pictures among the first test scenes and write them.

    Args:
        out: Folder that `aether_env.envs.starts` reads; starts that are there already are replaced.
        count: How many, half of each family.
        candidates: Scenes to choose from.
        index: Test scenes to take instead of choosing; `count` and `candidates` then mean nothing.
        height: Pixels.
        width: Pixels.
    """
    pool = render_candidates(index or range(candidates), height, width)
    for old in [*out.glob("*.json"), *out.glob("*.png")]:
        old.unlink()
    for candidate in pool if index else choose(pool, count):
        write_start(f"{candidate.family}-{candidate.index:03d}", candidate.start, out)


def render_candidates(indices: Sequence[int], height: int, width: int) -> list[Candidate]:
    """Return what the cameras of test scenes see first, in the order of `indices`."""
    seeds = [seed_in("test", index) for index in indices]
    walk = walk_poses(demo_walk())
    plans = plan_clips(seeds, num_frames=_FRAMES_PER_STEP * (len(walk) - 1) + 1)
    room = walk_clearance(plans, walk)
    # Cameras start where the scene's own walk starts.
    first = replace(plans, scene_from_camera=plans.scene_from_camera[:, :1], mover_pose=plans.mover_pose[:, :1])
    clips = draw_clips(first, height=height, width=width)
    found = []
    for row, index in enumerate(indices):
        rgb, valid = clips.rgb[row, 0].numpy(), clips.valid[row, 0].numpy()
        depth = clips.depth[row, 0].numpy()
        known = depth[valid]
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float64)
        contrast = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
        shapes = len(np.unique(clips.segmentation[row, 0].numpy()))
        found.append(
            Candidate(
                index=index,
                family=FAMILIES[int(plans.scenes.family[row])],
                start=Start(
                    rgb=rgb, depth=depth, intrinsics=clips.intrinsics[row, 0].double().numpy(), scene_seed=seeds[row]
                ),
                richness=float(min(contrast, BUSY) * shapes),
                is_open=bool(
                    valid.mean() > 1 - MOST_SKY
                    and np.quantile(known, 0.02) > NEAREST
                    and np.median(known) > OPEN
                    and room[row] > CLEARANCE
                ),
            )
        )
    return found


def walk_clearance(plans: ClipPlans, walk: np.ndarray) -> np.ndarray:
    """Return the least distance (N,) to anything along a walk of poses (S + 1, 4, 4) seen from the scenes' starts."""
    solids = Solids(plans.scenes)
    scene_from_camera = plans.scene_from_camera[:, :1] @ walk
    return np.min(
        [
            solids.clearance(
                scene_from_camera[:, step, None, :3, 3], plans.mover_pose[:, _FRAMES_PER_STEP * step, :, :3]
            )
            for step in range(len(walk))
        ],
        axis=(0, 2),
    )


def choose(pool: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return the richest open views, families in turn.

    Raises:
        ValueError: There are not enough of them.
    """
    ranked = sorted((c for c in pool if c.is_open), key=lambda c: -c.richness)
    chosen: list[Candidate] = []
    for place, family in enumerate(FAMILIES):
        share = (count + len(FAMILIES) - 1 - place) // len(FAMILIES)
        chosen += [candidate for candidate in ranked if candidate.family == family][:share]
    if len(chosen) < count:
        raise ValueError(f"only {len(chosen)} of {len(pool)} candidates are open views; raise candidates.")
    return chosen


if __name__ == "__main__":
    tyro.cli(main)
