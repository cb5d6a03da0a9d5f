"""Steps that a GPU takes by itself: their kernels are recorded once as a CUDA graph and replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

WARM_UP = 3
"""Calls before the recording, in which everything is compiled and every table is made."""


class Recorded:
    """A function without arguments whose every call launches the same kernels on the same memory.

    The first calls run as they are. The next one is recorded, and from then on replayed: a GPU gets thousands of small
    kernels at once, where a CPU would need longer to ask for them than they take. So the function may not ask the
    device anything; what varies (draws, rates, data) must be in tensors that stay where they are, or come from the
    generator.

    Args:
        function: What it returns is kept, and written anew by every replay.
        generator: Of the device; all draws are its, from wherever it stands at a replay. Others may share it.
    """

    def __init__(self, function: Callable[[], Any], generator: torch.Generator):
        self.function, self.generator = function, generator
        self._calls, self._result = 0, None
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> Any:
        """Run the function, or its recording; return what it returned, the same objects from the recording on."""
        if self._graph is not None:
            self._graph.replay()
            return self._result
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._aside()
        graph: Any = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        # Other threads (NCCL's watchdog, pinned memory) may go on meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._result = self.function()
        self._graph = graph
        graph.replay()
        return self._result

    def _aside(self) -> Any:
        """Run the function on a stream of its own, as a recording will."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            result = self.function()
        here.wait_stream(aside)
        return result
