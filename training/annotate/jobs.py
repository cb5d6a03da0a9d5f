"""Independent jobs here, in processes or on a Ray cluster: none of them can stop the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

Job = TypeVar("Job")
Finished = Generator[tuple[str, str | None]]
"""Name of a job, and why it failed."""

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_DIED = "the process died twice: it was killed, ran out of memory, or crashed"
_RAY_TRIES = 2


def run_here(work: Callable[[Job], None], jobs: Mapping[str, Job]) -> Finished:
    """Do jobs one after the other in this process."""
    for name, job in jobs.items():
        yield name, _failure(work, job)


def run_in_processes(work: Callable[[Job], None], jobs: Mapping[str, Job], workers: int) -> Finished:
    """Do jobs in processes that are started anew, one thread each.

    A process that dies takes its pool with it, and which job it was is not told: those that were at work are tried once
    more at the end, each alone.

    Args:
        work: Does a job; imported by name in the processes.
        jobs: By name.
        workers: Processes.
    """
    suspects: list[str] = []
    waiting = list(jobs)
    while waiting:
        with _pool(min(workers, len(waiting))) as pool:
            running: dict[Future[str | None], str] = {}
            broken = False
            while running or (waiting and not broken):
                # No more than can be at work: jobs that only wait are not suspected when a process dies.
                while waiting and len(running) < workers and not broken:
                    try:
                        running[pool.submit(_failure, work, jobs[waiting[0]])] = waiting[0]
                        waiting.pop(0)
                    except BrokenProcessPool:
                        broken = True
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    name = running.pop(future)
                    try:
                        yield name, future.result()
                    except BrokenProcessPool:
                        suspects.append(name)
                        broken = True
    for name in suspects:
        with _pool(1) as pool:
            try:
                yield name, pool.submit(_failure, work, jobs[name]).result()
            except BrokenProcessPool:
                yield name, _DIED


def run_on_ray(work: Callable[[Job], None], jobs: Mapping[str, Job], address: str) -> Finished:
    """Do jobs on a Ray cluster, one core each; a job whose machine or process dies is tried again.

    Args:
        work: Does a job; the package must be installed on all machines.
        jobs: By name.
        address: Of the cluster, "auto" for the one of this machine.

    Raises:
        ValueError: Ray is not installed, or no cluster is there.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError("ray_address needs Ray: pip install 'aether-env[annotate]'.") from error

    if not jobs:
        return
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=address, log_to_driver=False)
        except ConnectionError as error:
            raise ValueError(
                f"ray_address must be that of a Ray cluster, none answers at {address!r}: {error}"
            ) from error
    threads = {"env_vars": dict.fromkeys(_THREADS, "1")}
    task = ray.remote(num_cpus=1, max_retries=_RAY_TRIES - 1, runtime_env=threads)(_failure)
    running = {task.remote(work, job): name for name, job in jobs.items()}
    try:
        while running:
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            name = running.pop(done)
            try:
                yield name, ray.get(done)
            except ray.exceptions.RayError as error:
                yield name, f"{_DIED} ({type(error).__name__})"
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()


def _failure(work: Callable[[Any], None], job: Any) -> str | None:
    """Do a job and return why it failed."""
    try:
        work(job)
    except Exception as error:  # whatever is wrong with a video, the others go on
        text = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        return text[:2000]
    return None


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Give a pool whose processes end with the block, in whatever way it ends."""
    before = set(multiprocessing.active_children())
    old = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # read by the libraries when a process starts
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare)
    try:
        yield pool
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _prepare() -> None:
    """Leave Ctrl-C to the main process, and end by an exception that lets files be cleaned up."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    cv2.setNumThreads(1)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
