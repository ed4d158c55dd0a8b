"""Running one case by one method: verified first, then timed; and the memory it takes."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from statistics import median

import torch

from bench.cases import METHODS, Case, error, reference


class Wrong(Exception):
    """A method's results differ from the float64 reference by more than the case allows."""


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.cuda.synchronize()


def prepare(case: Case, method: str, device: str):
    """(a function without arguments that runs the case, its error against float64); raises `Wrong`."""
    tensors = case.inputs(device)
    compute = METHODS[method](case)
    expected = reference(case)
    found = error(case, compute(*tensors), expected)
    # The tolerance is that of our kernels; long sums in single precision without their care lose a digit.
    allowed = case.tolerance * (1 if method == "triton" else 10)
    if not found <= allowed:
        raise Wrong(f"{case.name} by {method}: relative error {found:.1e}, allowed {allowed:.1e}")

    def run():
        result = compute(*tensors)
        synchronise(device)
        return result

    return run, found


def seconds(run, device: str, budget: float = 1.0) -> float:
    """Median time of `run` over as many repetitions as fit in `budget` seconds, three at least.

    On a GPU the events of its own clock count, launches included and waiting for the host excluded.
    """
    run()
    started = time.perf_counter()
    run()
    once = max(time.perf_counter() - started, 1e-7)
    times = []
    for _ in range(max(3, min(200, int(budget / once)))):
        if device == "cpu":
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        else:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
    return median(times)


def graph_seconds(compute, tensors, launches: int = 100) -> float:
    """Time of one launch inside a CUDA graph of `launches` of them: the device's share, without the host's."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            compute(*tensors)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(launches):
            compute(*tensors)
    return seconds(lambda: graph.replay(), "cuda") / launches


def peak_memory(run, device: str) -> int:
    """Most bytes in use during `run` beyond those before it; on the CPU sampled every millisecond."""
    if device != "cpu":
        synchronise(device)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    resident, page = Path("/proc/self/statm"), 4096
    samples, done = [], threading.Event()

    def sample():
        while not done.wait(1e-3):
            samples.append(int(resident.read_text().split()[1]) * page)

    before = int(resident.read_text().split()[1]) * page
    watcher = threading.Thread(target=sample)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return max([0, *(value - before for value in samples)])
