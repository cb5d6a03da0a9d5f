"""The true world: random scenes with physics, drawn by a ray tracer on CPU or GPU, with exact depth, poses and motion.

Names are looked up when they are first used, so that importing this package loads neither torch nor MuJoCo.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aether_env.sim.clips import ClipPlans, SimClips, clear_renderers, draw_clips, plan_clips, render_clips
    from aether_env.sim.scenes import FAMILIES
    from aether_env.sim.seeds import SPLITS, seed_in, split_of
    from aether_env.sim.world import SimState, SimWorld

__all__ = [
    "FAMILIES",
    "SPLITS",
    "ClipPlans",
    "SimClips",
    "SimState",
    "SimWorld",
    "clear_renderers",
    "draw_clips",
    "plan_clips",
    "render_clips",
    "seed_in",
    "split_of",
]

_HOMES = {
    "aether_env.sim.clips": ("ClipPlans", "SimClips", "clear_renderers", "draw_clips", "plan_clips", "render_clips"),
    "aether_env.sim.scenes": ("FAMILIES",),
    "aether_env.sim.seeds": ("SPLITS", "seed_in", "split_of"),
    "aether_env.sim.world": ("SimState", "SimWorld"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
