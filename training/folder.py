"""The folder of a run: what must fit when a run goes on, and what is needed to repeat it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from training.checkpointing import newest_run
from training.config import TrainConfig
from training.parallelize import Processes

EXPORT = "checkpoint"
LOG, REPORT, CONFIG, ENVIRONMENT = "log.jsonl", "stopped.json", "config.json", "environment.json"
FREE = ("steps", "minutes", "save_every", "log_every", "max_bad_steps", "warm", "watch", "compile")
"""Settings that may change when a run goes on; of the data also how many processes load it."""
PACKAGES = (
    "aether-env", "torch", "diffusers", "numpy", "mujoco", "mujoco-warp", "warp-lang", "safetensors", "tensorboard",
)  # fmt: skip


def trim_log(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, which were lost, and a torn last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_text(path, "".join(kept))


def describe(config: TrainConfig) -> dict[str, Any]:
    """Return a config as JSON has it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def check_folder(config: TrainConfig, run_dir: Path) -> None:
    """Refuse a folder that holds another run; what is in `FREE` may change.

    Raises:
        ValueError: It does.
    """
    path = run_dir / CONFIG
    if run_dir.exists() and not run_dir.is_dir():
        raise ValueError(f"run_dir must be a folder or new, got the file {run_dir}.")
    if not path.exists() or newest_run(run_dir) is None:
        return
    before, now = json.loads(path.read_text()), describe(config)
    for settings in (before, now):
        for part in ("data", "aetherv1"):
            settings.get(part, {}).pop("workers", None)
    changed = [name for name in now if name not in FREE and now[name] != before.get(name)]
    if changed:
        raise ValueError(f"{run_dir} holds a run with another {', '.join(changed)}; choose another folder.")


def write_config(config: TrainConfig, run_dir: Path) -> None:
    """Write config.json."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / CONFIG, json.dumps(describe(config), indent=2))


def record_start(config: TrainConfig, run_dir: Path, processes: Processes, step: int) -> None:
    """Append this start to environment.json: with config.json, all that is needed to repeat the run."""
    path = run_dir / ENVIRONMENT
    starts = json.loads(path.read_text()) if path.exists() else []
    cuda = processes.device.startswith("cuda")
    start = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "from_step": step,
        "command": sys.orig_argv,
        "folder": os.getcwd(),
        "git": git_state(Path(__file__).parent),
        "seed": config.seed,
        "processes": processes.world_size,
        "device": torch.cuda.get_device_name(processes.device) if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": _versions(),
    }
    write_text(path, json.dumps([*starts, start], indent=2))


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit of a folder's repository and whether tracked files differ from it; None without one."""
    try:
        ask = ["git", "-C", str(folder)]
        commit = subprocess.run([*ask, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        status = ["status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.run([*ask, *status], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.strip(), "dirty": bool(changed.strip())}


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def write_text(path: Path, text: str) -> None:
    """Write a file, which is replaced only when the new one is whole."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.rename(path)
