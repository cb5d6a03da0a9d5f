"""Saving a run so that it goes on exactly where it was, and finding the newest whole checkpoint."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor

from training.parallelize import Processes

logger = logging.getLogger(__name__)
PREFIX = "step_"
OLD, GONE = ".old", ".gone"
"""Ends of the hidden names of checkpoints that are being replaced, and removed."""
OWN = "own"
"""Key of a state under which each process keeps what is its own: its place in the data, its walks."""
META = "state.json"

# One process without a group is what we mean then.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class Checkpoints:
    """The checkpoints of one run folder: `step_00000500/` and so on, whole or not there.

    A state is nested dicts and lists of tensors and JSON's values. Tensors go through torch.distributed.checkpoint:
    each process writes the shards that it holds and reads those that it needs, so a run goes on with any number of
    processes and shards. Nothing is ever unpickled: DCP's own format pickles its index, so its Hugging Face format is
    used, one safetensors file a process with the place of each piece in its header; all else is JSON.

    A save is written to a hidden folder beside the training; when every process has written, the first one notes the
    files and their sizes and gives the folder its name. All methods must be called by every process together.

    Args:
        run_dir: Folder of the run, the same on all machines. What a killed save left there is removed; a checkpoint
            that it was about to replace gets its name back.
        processes: All processes.
        keep: Whole checkpoints that stay.
    """

    def __init__(self, run_dir: Path, processes: Processes, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}.")
        self.run_dir, self.processes, self.keep = run_dir, processes, keep
        self._group: dist.ProcessGroup | None = None
        self._saving: tuple[Future, DefaultStager] | None = None
        self._last: int | None = None
        if processes.rank == 0:
            run_dir.mkdir(parents=True, exist_ok=True)
            _clean(run_dir)
        if dist.is_initialized():
            # Of the saves alone: their exchanges run beside those of the training, and on CPUs.
            self._group = dist.new_group(backend="gloo")
            dist.barrier(self._group)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Begin to save; returns when the state has been copied, and may be changed again.

        Args:
            step: Steps done. If this object has just saved or loaded them, nothing is done.
            state: Nested dicts and lists. Tensors are sharded, or the same on every process; values are those of the
                first process; what is under `OWN` is each process's own.
        """
        self.wait()
        if step == self._last:
            return
        rank, world_size = self.processes.rank, self.processes.world_size
        tensors, skeleton = flatten({key: value for key, value in state.items() if key != OWN})
        own_tensors, own_skeleton = flatten(state.get(OWN), f"/{OWN}/{rank}")
        meta = {"step": step, "processes": world_size, "own": OWN in state, "state": skeleton}
        folder = self.run_dir / f"{PREFIX}{step:08d}"
        stager = DefaultStager(StagingOptions(False, False, False, False))  # torch 2.11 closes it: one a save
        response = dcp.async_save(
            _separate(tensors | own_tensors),
            storage_writer=_Writer(folder, rank, json.dumps(meta), json.dumps(own_skeleton), self.keep),
            process_group=self._group,
            async_stager=stager,
            no_dist=self._group is None,
        )
        assert isinstance(response, Future)  # the stager copies before it returns
        self._saving, self._last = (response, stager), step

    def wait(self) -> None:
        """Wait until the last save is whole and has its name. Call it before the processes part.

        Raises:
            RuntimeError: It could not be written; the checkpoints before are as they were.
        """
        if self._saving is None:
            return
        (saving, stager), self._saving = self._saving, None
        try:
            saving.result()
        except (Exception, CheckpointException) as error:  # the latter is no Exception
            step, self._last = self._last, None
            raise RuntimeError(
                f"the checkpoint of step {step} could not be written ({_reason(error)}); those before are whole."
            ) from error
        finally:
            stager.close()  # it holds the copy

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint, or None; the same on every process."""
        self.wait()
        found = [newest_run(self.run_dir)]
        if self._group is not None:
            dist.broadcast_object_list(found, src=0, group=self._group)
        return found[0]

    def load_newest(self, state: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """Read the newest checkpoint that can be read, or return None if there is none at all.

        Newer ones, damaged since they were written, are told of and renamed to torn_step_*.

        Args:
            state: See `load`.

        Raises:
            ValueError: None of them can be read; the message is the newest one's.
        """
        self.wait()
        found = [_whole_ones(self.run_dir)]
        if self._group is not None:
            dist.broadcast_object_list(found, src=0, group=self._group)
        errors: dict[Path, ValueError] = {}
        for folder in reversed(found[0]):
            try:
                loaded = self.load(folder, state)
            except ValueError as error:
                errors[folder] = error
                continue
            logger.info("resumed %s", folder)
            if self.processes.rank == 0:
                for torn, why in errors.items():
                    logger.warning("%s; going on from %s", why, folder.name)
                    shutil.rmtree(torn.with_name(f"torn_{torn.name}"), ignore_errors=True)
                    torn.rename(torn.with_name(f"torn_{torn.name}"))
            return loaded
        if errors:
            raise next(iter(errors.values()))
        return None

    def load(self, folder: Path, state: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Read what `save` wrote, by any number of processes.

        Args:
            folder: Of `newest`.
            state: What is wanted: only these keys are read. A tensor in it, sharded or not, is filled in place; where
                it has none (the value of a key may be None) a saved one comes back whole, on the CPU.

        Returns:
            Steps done, and the saved state with the filled tensors in it. `OWN` is missing if it was not asked for,
            not saved, or saved by another number of processes: nobody could say then which part is whose.

        Raises:
            ValueError: The checkpoint is damaged, or of another model; the message names the folder.
        """
        self.wait()
        try:
            self._last, back = self._load(folder, state)
        except (OSError, KeyError, TypeError, ValueError, SafetensorError, CheckpointException) as error:
            raise ValueError(
                f"{folder} is not a whole checkpoint of this run ({_reason(error)}); choose another folder."
            ) from error
        return self._last, back

    def _load(self, folder: Path, state: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        plan, problem = None, None
        try:
            plan = self._plan(folder, state)
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            problem = error
        self._agree(problem)
        assert plan is not None
        step, templates, skeleton = plan
        dcp.load(
            dict(templates),
            storage_reader=HuggingFaceStorageReader(str(folder)),
            process_group=self._group,
            no_dist=self._group is None,
        )
        return step, unflatten(templates, skeleton)

    def _agree(self, error: Exception | None) -> None:
        """Raise on every process what went wrong on one: the others would wait for it in what they do together."""
        if self._group is not None:
            reasons: list[str | None] = [None] * self.processes.world_size
            dist.all_gather_object(reasons, None if error is None else _reason(error), group=self._group)
            found = [f"process {rank}: {reason}" for rank, reason in enumerate(reasons) if reason is not None]
            if found and error is None:
                raise ValueError("; ".join(found))
        if error is not None:
            raise error

    def _plan(self, folder: Path, state: dict[str, Any]) -> tuple[int, dict[str, Tensor], Any]:
        """Return the step of a checkpoint, the tensors to read it into, and the skeleton around them."""
        meta = json.loads((folder / META).read_text())
        for name, size in meta["files"].items():
            if (folder / name).stat().st_size != size:
                raise ValueError(f"{name} has {(folder / name).stat().st_size} bytes instead of {size}")
        skeleton = {"dict": [pair for pair in meta["state"]["dict"] if pair[0] in state and pair[0] != OWN]}
        templates, _ = flatten({key: value for key, value in state.items() if key != OWN})
        if OWN in state and meta["own"] and meta["processes"] == self.processes.world_size:
            rank = self.processes.rank
            skeleton["dict"].append([OWN, json.loads((folder / _own_file(rank)).read_text())])
            templates |= flatten(state[OWN], f"/{OWN}/{rank}")[0]
        names = _tensor_names(skeleton)
        if lost := sorted(templates.keys() - names):
            raise ValueError(f"it has no {lost[0]} and {len(lost) - 1} more tensors that are wanted")
        saved = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        for name in names:
            if name not in templates:
                templates[name] = torch.empty(saved[name].size, dtype=saved[name].properties.dtype)  # type: ignore
            elif templates[name].shape != saved[name].size:  # type: ignore[union-attr]
                raise ValueError(f"{name} is {tuple(saved[name].size)}, not {tuple(templates[name].shape)}")  # type: ignore
        return int(meta["step"]), templates, skeleton


class _Writer(HuggingFaceStorageWriter):
    """Writes the safetensors of one checkpoint, JSON beside them, and gives the folder its name in the end."""

    def __init__(self, folder: Path, rank: int, meta: str, own: str, keep: int):
        super().__init__(str(folder.with_name(f".{folder.name}")), save_distributed=True)
        self.folder, self.process, self.meta, self.own, self.keep = folder, rank, meta, own, keep
        self.hidden = folder.with_name(f".{folder.name}")

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        """Write this process's files; the result is one entry a file."""
        written = super().write_data(plan, planner)
        names = {result.storage_data.relative_path for result in written.wait()}
        _write_text(self.hidden / _own_file(self.process), self.own)
        names.add(_own_file(self.process))
        sizes = [WriteResult(MetadataIndex(n), (self.hidden / n).stat().st_size, None) for n in sorted(names)]
        done: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        done.set_result(sizes)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Make it a whole checkpoint, in the first process, once all have written; remove the oldest ones."""
        files = {result.index.fqn: result.size_in_bytes for part in results for result in part}
        _write_text(self.hidden / META, json.dumps(json.loads(self.meta) | {"files": files}))
        replaced = self.folder.with_name(f".{self.folder.name}{OLD}")
        if self.folder.exists():
            self.folder.rename(replaced)
        self.hidden.rename(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)
        for old in sorted(self.folder.parent.glob(f"{PREFIX}*"))[: -self.keep]:
            _remove(old)


def training_state(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """Return the part of a state that is a model and its optimizers, by parameter names: it may be sharded otherwise.

    The tensors are those in use, or stand-ins of an optimizer that has taken no step: pass the result to
    `Checkpoints.save`, or to `Checkpoints.load` and what comes back to `load_training_state`.
    """
    return {
        "model": get_model_state_dict(model),
        "optimizers": [get_optimizer_state_dict(model, optimizer) for optimizer in optimizers],
    }


def load_training_state(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], state: dict[str, Any]) -> None:
    """Undo `training_state`."""
    set_model_state_dict(model, state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        set_optimizer_state_dict(model, optimizer, saved)


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as safetensors wants them: contiguous, and none sharing memory with another."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        tensor = tensor.contiguous()
        place = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage().data_ptr()
        # Optimizers may hold one step counter for many parameters.
        apart[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return apart


def _reason(error: BaseException) -> str:
    """Return what went wrong in one line; DCP's own message is all processes' stacks."""
    if isinstance(error, CheckpointException):
        return "; ".join(f"process {rank}: {failure[0]}" for rank, failure in error.failures.items())
    return str(error)


def _own_file(rank: int) -> str:
    return f"{OWN}_{rank:05d}.json"


def _tensor_names(skeleton: Any) -> set[str]:
    """Return the names of all tensors of a skeleton of `flatten`."""
    if "tensor" in skeleton:
        return {skeleton["tensor"]}
    parts = [item for _, item in skeleton["dict"]] if "dict" in skeleton else skeleton.get("list", [])
    return set().union(*map(_tensor_names, parts))


def _write_text(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _remove(folder: Path) -> None:
    """Remove a checkpoint; cut off half-way it does not look whole."""
    hidden = folder.with_name(f".{folder.name}{GONE}")
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden)


def _clean(run_dir: Path) -> None:
    """Remove what a killed save left, and give a checkpoint back its name whose successor did not get it."""
    for torn in run_dir.glob(f".{PREFIX}*"):
        name = torn.with_name(torn.name.removeprefix(".").removesuffix(OLD))
        if torn.suffix == OLD and not name.exists():
            torn.rename(name)
        else:
            shutil.rmtree(torn)


def flatten(tree: Any, path: str = "") -> tuple[dict[str, Tensor], Any]:
    """Split nested dicts and lists into named tensors and the JSON that remains."""
    if isinstance(tree, Tensor):
        return {path: tree.detach()}, {"tensor": path}
    if isinstance(tree, dict):
        tensors: dict[str, Tensor] = {}
        rest: list = []
        for key, value in tree.items():
            part, skeleton = flatten(value, f"{path}/{key}")
            tensors |= part
            rest.append([key, skeleton])
        return tensors, {"dict": rest}
    if isinstance(tree, list | tuple):
        tensors, items = {}, []
        for index, value in enumerate(tree):
            part, skeleton = flatten(value, f"{path}/{index}")
            tensors |= part
            items.append(skeleton)
        return tensors, {"list": items}
    return {}, {"value": tree}


def unflatten(tensors: dict[str, Tensor], skeleton: Any) -> Any:
    """Undo `flatten`."""
    if "tensor" in skeleton:
        return tensors[skeleton["tensor"]]
    if "dict" in skeleton:
        return {key: unflatten(tensors, value) for key, value in skeleton["dict"]}
    if "list" in skeleton:
        return [unflatten(tensors, value) for value in skeleton["list"]]
    return skeleton["value"]


def newest_run(run_dir: Path) -> Path | None:
    """Return the newest whole checkpoint, or None."""
    found = _whole_ones(run_dir)
    return found[-1] if found else None


def _whole_ones(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob(f"{PREFIX}*"))


def seed_for(seed: int, step: int, rank: int) -> int:
    """Return the seed of one step's draws."""
    # A hash, because sums of multiples meet: there may be thousands of ranks, and millions of steps.
    mixed = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(mixed, "big") >> 2


def rng_for(seed: int, step: int, rank: int, device: str) -> torch.Generator:
    """Return the generator of one step: every draw is a function of (seed, step, rank)."""
    return torch.Generator(device).manual_seed(seed_for(seed, step, rank))
