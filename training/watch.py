"""What a run shows of itself: how fast it is, TensorBoard, the files of sheets."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from aether_env.visual import write_png
from training.config import TrainConfig
from training.parallelize import Processes

logger = logging.getLogger(__name__)
SAMPLES, TENSORBOARD = "samples", "tensorboard"


class Watch:
    """The progress bar, the rates and TensorBoard of a run. Only the first process shows anything.

    Args:
        config: Of the run.
        run_dir: Its folder.
        processes: All processes.
        step: Steps that were done before.
        flops_per_sample: Of the model, forward and backward; None leaves MFU out.
    """

    def __init__(
        self, config: TrainConfig, run_dir: Path, processes: Processes, step: int, flops_per_sample: float | None
    ):
        self.config, self.run_dir, self.processes = config, run_dir, processes
        self.flops_per_sample = flops_per_sample
        self.peak = None if flops_per_sample is None else peak_flops(config, processes.device)
        self._first = processes.rank == 0
        self._writer = (
            tensorboard_writer(run_dir / TENSORBOARD, step) if self._first and config.watch.tensorboard else None
        )
        self._bar = tqdm(total=config.steps, initial=step, disable=not self._first, mininterval=5.0, unit="step")
        self._since, self._waited = time.monotonic(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as time in which the model waits for data."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - began

    def rates(self, steps: int) -> dict[str, float | None]:
        """Return samples/s of all processes, MFU and the share of time waited for data, over the last `steps` steps.

        MFU is the model's own work, without walkers and what is computed twice, over the peak of the device; None where
        the peak is not known.
        """
        now = time.monotonic()
        seconds, waited = max(now - self._since, 1e-9), self._waited
        self._since, self._waited = now, 0.0
        per_process = steps * self.config.batch_size / seconds
        mfu = None
        if self.peak is not None and self.flops_per_sample is not None:
            mfu = round(per_process * self.flops_per_sample / self.peak, 4)
        return {
            "samples_per_s": round(per_process * self.processes.world_size, 1),
            "mfu": mfu,
            "data_wait": round(min(1.0, waited / seconds), 4),
        }

    def show(self, lines: list[dict[str, Any]]) -> None:
        """Show log lines on the bar and in TensorBoard."""
        last = lines[-1]
        parts = {
            "samples/s": last["samples_per_s"],
            "MFU": last["mfu"],
            "data": last["data_wait"],
            "loss": last["loss"],
        }
        self._bar.set_postfix({name: value for name, value in parts.items() if value is not None}, refresh=False)
        self._bar.update(len(lines))
        if self._writer is not None:
            for line in lines:
                for name, value in line.items():
                    if isinstance(value, int | float) and name != "step":
                        self._writer.add_scalar(name, value, line["step"])

    def sheet(self, step: int, picture: np.ndarray) -> None:
        """Write a sheet of samples (H, W, 3) uint8."""
        write_png(self.run_dir / SAMPLES / f"step_{step:08d}.png", picture)
        if self._writer is not None:
            self._writer.add_image("samples", picture, step, dataformats="HWC")

    def close(self) -> None:
        """End the bar and TensorBoard's file."""
        self._bar.close()
        if self._writer is not None:
            self._writer.close()


def tensorboard_writer(folder: Path, step: int) -> Any | None:
    """Return a writer that goes on after `step`, or None, and a line in the log, where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("no TensorBoard: pip install tensorboard, or --watch.no-tensorboard; log.jsonl has all numbers.")
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def count_flops(forward: Callable[[], Any]) -> int:
    """Return the floating-point operations of a forward and backward pass, where `forward` is run once.

    The backward pass of matrix products and attention is twice the forward one. Tensors may be on the device "meta".
    """
    # As matrix products attention is counted on every device.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward()
    return 3 * counter.get_total_flops()


def peak_flops(config: TrainConfig, device: str) -> float | None:
    """Return the operations per second of the device in the run's precision: as set, or measured on a large product.

    Returns:
        None on a CPU, unless it is set.
    """
    if config.watch.peak_tflops is not None:
        return config.watch.peak_tflops * 1e12
    if not device.startswith("cuda"):
        return None
    size, rounds = 8192, 20
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16 if config.bf16 else torch.float32)
    times = []
    for _ in range(3):  # the first one also wakes the device up
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(rounds):
            matrix @ matrix
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000 / rounds)
    return 2 * size**3 / min(times)
