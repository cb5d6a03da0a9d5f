"""A run: its steps, its checkpoints, its log. It can be cut off anywhere and goes on from there, bit by bit.

A run folder holds config.json, environment.json, log.jsonl (one line a step), step_*/ (to go on from), warm/ (to begin
another run from), tensorboard/, samples/, in the end checkpoint/, and stopped.json where a run gave up.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.checkpointing import (
    OWN,
    Checkpoints,
    load_training_state,
    seed_for,
    training_state,
)
from training.config import TrainConfig
from training.folder import LOG, REPORT, record_start, trim_log, write_text
from training.optimizer import (
    AveragedWeights,
    build_optimizers,
    rate_factor,
    rates_as_tensors,
    set_rates,
    step_unless,
)
from training.parallelize import Processes, average_gradients, average_tensor, clip_gradients, reshard, whole_weights
from training.recorded import Recorded
from training.warm import WARM, begin_with, find_warm, write_warm
from training.watch import Watch

logger = logging.getLogger(__name__)
BAD_STEPS_CODE = 3
"""Exit code of a run that gave up."""
LOOK_SECONDS, LOOK_STEPS = 2.0, 10
"""Several processes look at the clock and for signals about so often: they have to agree, which makes them wait."""


class RunStopped(Exception):
    """A run that ended early, saved as far as it had come.

    Args:
        message: Why, and how to go on.
        code: Exit code for the process.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class Run:
    """What the stages share: processes, optimizers, averaged weights, log, checkpoints, resume.

    Args:
        config: Of the run.
        run_dir: Its folder; its newest whole checkpoint is loaded, else `config.warm_start` if it is a warm folder.
        model: What is trained, sharded or not, on the device of `processes`.
        processes: All processes.
        flops_per_sample: Of the model, forward and backward, for MFU; None if nobody counted.
        recorded: Parts of the steps will be CUDA graphs, see `part`.
    """

    def __init__(
        self,
        config: TrainConfig,
        run_dir: Path,
        model: nn.Module,
        processes: Processes,
        flops_per_sample: float | None = None,
        recorded: bool = False,
    ):
        self.config, self.run_dir, self.processes = config, run_dir, processes
        self.recorded = recorded
        self.model = model.to(processes.device)
        self.names, self.parameters = map(list, zip(*self._trained(), strict=True))
        self.optimizers = build_optimizers(self.model, config.optimizer)
        self.average = AveragedWeights(self.parameters, config.optimizer.ema)
        self.checkpoints = Checkpoints(run_dir, processes)
        self.step, self.skipped, self.bad_in_a_row = 0, 0, 0
        self.extra: dict[str, Any] = {}
        """What the stage kept beside model and optimizers, the same on every process; empty if it begins."""
        self.own: dict[str, Any] = {}
        """What this process of the stage kept for itself; also empty if there were other processes."""
        self.bad = torch.zeros((), device=processes.device)
        """0-dim on the device: 1 if the last step was skipped."""
        self._generator = torch.Generator(processes.device)
        self._share = torch.zeros((), device=processes.device)
        self._numbers: Tensor | None = None
        if recorded:
            rates_as_tensors(self.optimizers)
        self.began = time.monotonic()
        resumed = self._resume()
        if not resumed and config.warm_start is not None and (warm := find_warm(config.warm_start)) is not None:
            begin_with(warm, self.model, self.average, self.parameters)
        if resumed and recorded:  # what was loaded lies elsewhere
            rates_as_tensors(self.optimizers)
        if processes.rank == 0:
            trim_log(run_dir / LOG, self.step)
            record_start(config, run_dir, processes, self.step)
        self.watch = Watch(config, run_dir, processes, self.step, flops_per_sample)
        self._pending: list[tuple[int, float, list[str], Tensor]] = []
        self._signal: int | None = None
        self._clock_share, self._stop, self._last_look, self._next_look = 0.0, False, (self.step, self.began), 0

    def generator(self, salt: int = 0) -> torch.Generator:
        """Return the run's generator, set to the beginning of this step: always the same object."""
        seed = seed_for(self.config.seed + salt, self.step, self.processes.rank)
        return self._generator.manual_seed(seed)

    def part(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """Return a part of the steps as it is to be called: recorded where the run records."""
        return Recorded(function, self._generator) if self.recorded else function

    @property
    def progress(self) -> float:
        """Share of the run that is done: by steps, or by the clock where `minutes` is set."""
        return max(self.step / self.config.steps, self._clock_share)

    def descend(self, loss: Tensor, progress: float, *also: Tensor) -> Tensor:
        """Take one optimizer step, unless the loss, the gradient or one of `also` is not finite on some process.

        The decision is made and kept on the device (`bad`), so that a GPU never waits for it.

        Args:
            loss: 0-dim.
            progress: For the schedule.
            also: Other 0-dim numbers that spoil the step.

        Returns:
            The gradient's norm.
        """
        loss.backward()
        self.exchange(loss, *also)
        self.set_pace(progress)
        norm = self.update()
        self.drop_gradients()
        return norm

    def drop_gradients(self) -> None:
        """Forget the gradients and their memory."""
        for parameter in self.parameters:
            parameter.grad = None

    def exchange(self, *numbers: Tensor) -> None:
        """Average the gradients, and the 0-dim numbers that must be finite, over the processes; first of three."""
        average_gradients(self.parameters, self.processes)
        # A mean over processes is finite if and only if all its parts are (or overflow, which is as bad).
        mean = average_tensor(torch.stack([number.detach().float() for number in numbers]), self.processes)
        if self._numbers is None:
            self._numbers = mean.clone()
        self._numbers.copy_(mean)

    def set_pace(self, progress: float) -> None:
        """Set the rates for a step that begins at this share of the run; second of three."""
        set_rates(self.optimizers, rate_factor(progress, self.step, self.config.optimizer))
        self._share.fill_(self.average.share(self.step))

    def update(self) -> Tensor:
        """Let optimizers and average take the step, see `descend`; third of three, on the device alone."""
        assert self._numbers is not None
        norm = clip_gradients(self.parameters, self.config.optimizer.clip_norm)
        finite = torch.isfinite(torch.cat([self._numbers, norm.detach()[None].to(self._numbers)])).all()
        self.bad.copy_(1.0 - finite.float())
        step_unless(self.bad, self.optimizers)
        self.average.update(self.parameters, self._share, self.bad)
        return norm

    def loop(
        self,
        advance: Callable[[float], dict[str, Tensor]],
        extra: Callable[[], dict[str, Any]] = dict,
        own: Callable[[], dict[str, Any]] = dict,
        sheet: Callable[[dict[str, Tensor]], np.ndarray] | None = None,
    ) -> None:
        """Call `advance(progress)` until the run is done; log, save and draw on the way.

        A checkpoint that is due after a bad step is left out. After a signal and at the end one is written all the
        same: its weights are those before the bad steps.

        Args:
            advance: Takes one step and returns what to log.
            extra: What a checkpoint keeps beside model and optimizers, the same on every process.
            own: What it keeps of this process.
            sheet: Draws samples of the model with these weights, a picture (H, W, 3); called by the first process.

        Raises:
            RunStopped: By a signal, after saving; or after too many bad steps in a row.
        """
        try:
            with self._signals():
                self._look()
                while self.progress < 1.0:
                    self._one_step(advance, extra, own, sheet)
                    self._look()
                    if self._stop:
                        self._leave(extra, own)
            self._write_log()
            self._save(extra, own, end=True)
            self.checkpoints.wait()
        finally:
            self.watch.close()

    def _one_step(self, advance: Callable, extra: Callable, own: Callable, sheet: Callable | None) -> None:
        config, progress = self.config, self.progress
        record = advance(progress)
        self.step += 1
        record = {**record, "bad": self.bad}
        # Copied now: the next step may write the same memory.
        values = torch.stack([value.detach().float() for value in record.values()])
        self._pending.append((self.step, progress, list(record), values))
        if self.step % config.log_every == 0:
            self._write_log()
        if self.step % config.save_every == 0 and self.progress < 1.0:
            self._write_log()
            if not self.bad_in_a_row:  # what spoiled the step may be in what would be saved
                self._save(extra, own)
        if sheet is not None and config.watch.sheet_every and self.step % config.watch.sheet_every == 0:
            weights = self.averaged_weights()
            if self.processes.rank == 0:
                self.watch.sheet(self.step, sheet(weights))

    def averaged_weights(self) -> dict[str, Tensor]:
        """Return the model's state with the averaged weights, whole, on the CPU.

        Every process must call it; only the first one gets them.
        """
        self.average.swap_with(self.parameters)
        reshard(self.model)
        # Of a whole model on a CPU these are the weights themselves, not copies.
        weights = {name: weight.clone() for name, weight in whole_weights(self.model).items()}
        self.average.swap_with(self.parameters)
        reshard(self.model)
        return weights

    def _save(self, extra: Callable, own: Callable, end: bool = False) -> None:
        """Begin to write a checkpoint, when all log lines up to it are written."""
        self._write_log()
        state = self._state() | {"extra": extra(), OWN: own()}
        state["numbers"] = {
            "seconds": time.monotonic() - self.began,
            "skipped": self.skipped,
            "bad_in_a_row": self.bad_in_a_row,
            "head_start": self.average.head_start,
        }
        self.checkpoints.save(self.step, state)
        if self.config.warm == "saves" or (end and self.config.warm == "end"):
            raw, ema = whole_weights(self.model), self.averaged_weights()
            if self.processes.rank == 0:
                sets = ({name: weights[name] for name in self.names} for weights in (raw, ema))
                write_warm(self.run_dir / WARM, self.step + self.average.head_start, *sets)

    def _state(self) -> dict[str, Any]:
        """Return the tensors that a checkpoint is read into."""
        average = dict(zip(self.names, self.average.average, strict=True))
        return training_state(self.model, self.optimizers) | {"average": average}

    def _resume(self) -> bool:
        """Go on from the newest checkpoint; return False if there is none."""
        if self.checkpoints.newest() is None:
            return False
        loaded = self.checkpoints.load_newest(self._state() | dict.fromkeys(("extra", "numbers", OWN)))
        assert loaded is not None
        self.step, state = loaded
        load_training_state(self.model, self.optimizers, state)
        self.average.average = [state["average"][name] for name in self.names]
        self.extra, self.own, numbers = state["extra"], state.get(OWN, {}), state["numbers"]
        self.skipped, self.bad_in_a_row = numbers["skipped"], numbers["bad_in_a_row"]
        self.average.head_start = numbers["head_start"]
        self.began = time.monotonic() - numbers["seconds"]
        return True

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def _write_log(self) -> None:
        """Fetch the numbers of the steps since last time, in one transfer, and write their lines.

        Raises:
            RunStopped: Too many bad steps in a row.
        """
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        flat = torch.cat([values for *_, values in pending])
        values = iter(average_tensor(flat, self.processes).tolist())
        rates = self.watch.rates(len(pending))
        lines = []
        for step, progress, names, _ in pending:
            numbers = {name: next(values) for name in names}
            line: dict[str, Any] = {"step": step, **numbers, "progress": round(progress, 5), **rates}
            lines.append(self._judged(line))
            if self.bad_in_a_row >= self.config.max_bad_steps:
                break
        if self.processes.rank == 0:
            with (self.run_dir / LOG).open("a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
        self.watch.show(lines)
        if self.bad_in_a_row >= self.config.max_bad_steps:
            self._give_up(lines)

    def _judged(self, line: dict[str, Any]) -> dict[str, Any]:
        """Count a bad step and name its bad parts, which are null in JSON."""
        skipped = line.pop("bad") > 0
        bad = [name for name, value in line.items() if isinstance(value, float) and not math.isfinite(value)]
        line |= dict.fromkeys(bad)
        self.bad_in_a_row = self.bad_in_a_row + 1 if skipped else 0
        self.skipped += skipped
        return line | {"bad": bad, "skipped": self.skipped} if skipped else line

    def _give_up(self, lines: list[dict[str, Any]]) -> None:
        """Write the report of a run that cannot go on, and leave."""
        newest = self.checkpoints.newest()
        report = {
            "step": lines[-1]["step"],
            "bad_steps_in_a_row": self.bad_in_a_row,
            "bad_steps_of_the_run": self.skipped,
            "bad_parts": sorted({name for line in lines for name in line.get("bad", ())}),
            "last_good_checkpoint": None if newest is None else newest.name,
            "try": [
                "The weights are those before the first of the bad steps: skipped steps change nothing.",
                "If data is bad, the same batches will come again: look at what they hold, or take another seed.",
                "If the model diverged: begin a new folder with --warm-start of this run and a lower optimizer.lr.",
                "If bf16 overflows: --no-bf16.",
            ],
        }
        if self.processes.rank == 0:
            write_text(self.run_dir / REPORT, json.dumps(report, indent=2))
        raise RunStopped(
            f"{self.bad_in_a_row} steps in a row had no finite {' or '.join(report['bad_parts'])}, the last one is "
            f"{report['step']}; see {self.run_dir / REPORT}.",
            BAD_STEPS_CODE,
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM end the run after its step; a second one ends it at once."""
        (self.run_dir / REPORT).unlink(missing_ok=True)

        def note(number: int, frame: FrameType | None) -> None:
            logger.warning("%s: saving after this step; once more to leave at once.", signal.Signals(number).name)
            self._signal = number
            signal.signal(number, before[signal.Signals(number)])

        # Only the main thread may ask for signals.
        wanted = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.getsignal(number) for number in wanted}
        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _look(self) -> None:
        """Look at the clock and for a signal; several processes agree on what they see."""
        if self.step < self._next_look:
            return
        now, minutes = time.monotonic(), self.config.minutes
        clock = 0.0 if minutes is None else (now - self.began) / (60 * minutes)
        stop, seconds = float(self._signal is not None), now - self._last_look[1]
        if self.processes.world_size > 1:
            seen = torch.tensor([clock, stop, seconds], dtype=torch.float64, device=self.processes.device)
            clock, stop, seconds = average_tensor(seen, self.processes).tolist()
            per_step = seconds / max(1, self.step - self._last_look[0])
            self._next_look = self.step + max(1, min(LOOK_STEPS, int(LOOK_SECONDS / max(per_step, 1e-6))))
        self._last_look = self.step, now
        self._clock_share, self._stop = clock, stop > 0

    def _leave(self, extra: Callable, own: Callable) -> None:
        """Save and end the run because of a signal."""
        self._save(extra, own)
        self.checkpoints.wait()
        number = self._signal or signal.SIGTERM
        raise RunStopped(
            f"stopped by {signal.Signals(number).name} after step {self.step}, which is saved in {self.run_dir}; the "
            "same command goes on from there.",
            128 + number,
        )
