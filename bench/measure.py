"""Running one case by one method: verified first, then timed; and the memory it takes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from bench.cases import METHODS, Case, error, reference


class WrongResult(Exception):
    """A method's results differ from the float64 reference by more than the case allows."""


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.cuda.synchronize()


def prepare(case: Case, method: str, device: str) -> tuple[Callable[[], object], float]:
    """(a function without arguments that runs the case, its error against float64); raises `WrongResult`.

    On a GPU the function returns before the work is done.
    """
    tensors = case.inputs(device)
    compute = METHODS[method](case)
    found = error(case, compute(*tensors), reference(case))
    # The tolerance is that of our kernels; long sums in single precision without their care lose a digit.
    allowed = case.tolerance * (1 if method == "triton" else 10)
    if not found <= allowed:
        raise WrongResult(f"{case.name} by {method}: relative error {found:.1e}, allowed {allowed:.1e}")
    return lambda: compute(*tensors), found


def seconds(run: Callable[[], object], device: str, budget: float = 1.0) -> float:
    """Median time of `run` over as many repetitions as fit in `budget` seconds, three at least.

    On a GPU the events of its own clock count, launches included and waiting for the host excluded.
    """
    run()
    once = max(_by_the_host(run, device), 1e-7)
    clock = _by_the_host if device == "cpu" else _by_the_gpu
    return median(clock(run, device) for _ in range(max(3, min(200, int(budget / once)))))


def _by_the_host(run: Callable[[], object], device: str) -> float:
    synchronise(device)
    started = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - started


def _by_the_gpu(run: Callable[[], object], device: str) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    synchronise(device)
    return begin.elapsed_time(end) / 1e3


def graph_seconds(compute: Callable, tensors: tuple, launches: int = 100) -> float:
    """Time of one launch inside a CUDA graph of `launches` of them: the device's share, without the host's."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            compute(*tensors)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(launches):
            compute(*tensors)
    return seconds(graph.replay, "cuda") / launches


def peak_memory(run: Callable[[], object], device: str) -> int:
    """Most bytes in use during `run` beyond those before it; on the CPU sampled every millisecond."""
    if device != "cpu":
        synchronise(device)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    samples: list[int] = []
    done = threading.Event()

    def sample():
        while not done.wait(1e-3):
            samples.append(_resident_bytes())

    before = _resident_bytes()
    watcher = threading.Thread(target=sample)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return max([before, *samples]) - before


def _resident_bytes() -> int:
    """Memory of this process, from its second number of pages in /proc (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
