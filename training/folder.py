"""The folder of a run: what must fit when a run goes on, and what is needed to repeat it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from training.checkpointing import newest_run
from training.config import TrainConfig
from training.parallelize import Processes

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

EXPORT = "checkpoint"
LOG, REPORT, CONFIG, ENVIRONMENT = "log.jsonl", "stopped.json", "config.json", "environment.json"
LOCK, PROCESSES = ".lock", "processes"
FREE = ("steps", "minutes", "save_every", "log_every", "max_bad_steps", "warm", "watch", "compile", "parallel")
"""Settings that may change when a run goes on; of the data also how many processes load it, and the batch of a process
where their number changes, so that together they take as many samples a step."""
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


def check_folder(config: TrainConfig, run_dir: Path, world_size: int = 1) -> None:
    """Refuse a folder that holds another run; what is in `FREE` may change.

    Args:
        config: Of the run.
        run_dir: Its folder.
        world_size: Processes that are to go on with it.

    Raises:
        ValueError: It does.
    """
    path = run_dir / CONFIG
    if run_dir.exists() and not run_dir.is_dir():
        raise ValueError(f"run_dir must be a folder or new, got the file {run_dir}.")
    if not path.exists() or newest_run(run_dir) is None:
        return
    before, now = _read_config(path), describe(config)
    for settings in (before, now):
        for part in ("data", "aetherv1"):
            settings.get(part, {}).pop("workers", None)
    earlier = before.get(PROCESSES, world_size)
    batch, wanted = now.pop("batch_size") * world_size, before.pop("batch_size") * earlier
    if batch != wanted:
        raise ValueError(
            f"{run_dir} holds a run of {wanted} samples a step, got batch_size {config.batch_size} on {world_size} "
            "processes; let them take as many together, or choose another folder."
        )
    changed = [line for name in now if name not in FREE for line in differences(name, before.get(name), now[name])]
    if changed:
        raise ValueError(f"{run_dir} holds a run with another {'; '.join(changed)}. Choose another folder.")


def differences(name: str, before: Any, now: Any) -> list[str]:
    """Return a line for each setting below `name` that is not what it was."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [line for key in keys for line in differences(f"{name}.{key}", before.get(key), now.get(key))]
    return [] if before == now else [f"{name} ({before!r}, now {now!r})"]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it if the run of its folder is the one that shall go on."
        ) from error


def write_config(config: TrainConfig, run_dir: Path, world_size: int = 1) -> None:
    """Write config.json: the settings, and beside them how many processes share the batch."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / CONFIG, json.dumps(describe(config) | {PROCESSES: world_size}, indent=2))


@contextlib.contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Keep the folder for one training; the system frees it when that is killed.

    Systems without such locks are trusted.

    Raises:
        ValueError: Another process trains there.
    """
    if fcntl is None:
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / LOCK
    while True:
        file = path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise ValueError(
                f"another process trains in {run_dir}; wait for its end, or choose another folder."
            ) from error
        except OSError:  # a file system without locks
            break
        # Whoever held it before may have removed it in between.
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            break
        file.close()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def check_unclaimed(run_dir: Path) -> None:
    """Refuse a folder in which another process trains; nothing is made there.

    Raises:
        ValueError: It does.
    """
    if (run_dir / LOCK).exists():
        with claimed(run_dir):
            pass


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
