"""A file imports only from rooms above it (docs/design.md, section 3), and importing the package stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = [
    "aether_env.conventions", "aether_env.files", "aether_env.devices", "aether_env.camera", "aether_env.raymap",
    "aether_env.disparity",
    "aether_env.trajectory",
    "aether_env.pointcloud", "aether_env.path_metrics", "aether_env.metrics", "aether_env.depth_protocol",
    "aether_env.pictures", "aether_env.videos", "aether_env.paths", "aether_env.visual",
    "aether_env.world_model.promise", "aether_env.world_model.noise", "aether_env.world_model.autoencoder",
    "aether_env.world_model.conditions", "aether_env.world_model.network", "aether_env.world_model.checkpoint",
    "aether_env.world_model.denoise", "aether_env.world_model.latents", "aether_env.world_model.reproject",
    "aether_env.world_model.refine", "aether_env.world_model.quantised",
    "aether_env.world_model.views",
    "aether_env.world_model.windows", "aether_env.world_model.result", "aether_env.world_model.aetherv1",
    "aether_env.world_model.aetherv1_speed", "aether_env.world_model.import_aetherv1",
    "aether_env.world_model.rollout", "aether_env.world_model.clip_model", "aether_env.world_model.own_clips",
    "aether_env.world_model.aetherv1_clips", "aether_env.world_model.long_video", "aether_env.world_model.dreams",
    "aether_env.world_model.pipeline",
    "aether_env.sim", "aether_env.envs", "aether_env.commands", "aether_env.cli", "policies",
    "training.checks", "training.data_config", "training.aetherv1_config", "training.config", "training.recipes",
    "training.evaluation.datasets", "training.clips", "training.clip_coding", "training.shards",
    "training.clip_sources", "training.record", "training.annotate", "training.batch_plan", "training.dataset",
    "training.simulate", "training.losses", "training.objective", "training.decoded", "training.aetherv1_objective",
    "training.muon", "training.optimizer", "training.recorded", "training.parallelize", "training.checkpointing",
    "training.folder", "training.warm", "training.watch", "training.run", "training.sheets",
    "training.discriminator", "training.aetherv1_stage",
    "training.trainer", "training.train", "training.ship", "training.widen", "training.make_starts",
    "training.evaluation",
]  # fmt: skip
"""From top to bottom; a folder stands for its files, which may import each other."""


def room(module: str) -> int | None:
    places = [i for i, name in enumerate(ROOMS) if module == name or module.startswith(name + ".")]
    return places[0] if places else None


def sources() -> list[Path]:
    return [p for folder in ("aether_env", "policies", "training") for p in sorted((ROOT / folder).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {n for n in names if n.split(".")[0] in ("aether_env", "policies", "training")}


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_upward(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if module in ("aether_env", "training", "aether_env.world_model"):
        assert not imported(path)
        return
    here = room(module)
    assert here is not None, f"{module} has no room in docs/design.md"
    below = sorted(n for n in imported(path) if (place := room(n)) is not None and place > here)
    assert not below


def test_importing_the_package_loads_no_torch_no_simulator_no_diffusers():
    code = "import sys, aether_env; print([m for m in ('torch', 'mujoco', 'warp', 'diffusers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists():
    import aether_env

    assert all(getattr(aether_env, name) is not None for name in aether_env.__all__)
