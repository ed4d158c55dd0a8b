"""What a sum costs with each backend, predicted from a table of measurements: time and memory, and whether it pays.

The table, `costs.json`, is written by `python -m bench calibrate`. It holds seconds a pair by dimension for Riesz(1) in
float32, and factors for other kernels and float64. GPUs are not in it: there "auto" follows a rule, see `register`.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddeq_fast.sums.backends import dense, memory, products, sliced, spectra
from ddeq_fast.sums.radial import RadialKernel
from ddeq_fast.utils.validation import check_integer

PATH = Path(__file__).with_name("costs.json")
# Kernels that are a general power of the distance, such as Riesz(1.2).
POWER = "power"
# Calls over which compiling is spread: who sums once sums again.
CALLS = 10
_calls: ContextVar[int] = ContextVar("calls", default=CALLS)


@contextmanager
def expected_calls(count: int) -> Iterator[None]:
    """Within it "auto" takes each sum for one that is made so many times, 10 else: where that pays, code is compiled.

    What is compiled is kept on disk. A training loop knows how many steps it will make.

    Args:
        count: calls, at least one.

    Raises:
        TypeError, ValueError: a count that is no positive integer.
    """
    token = _calls.set(check_integer("count", count))
    try:
        yield
    finally:
        _calls.reset(token)


def calls() -> int:
    """How often a sum is expected to be made."""
    return _calls.get()


@functools.cache
def table() -> dict:
    """The measurements: machine, threads, and an entry for each backend."""
    return json.loads(PATH.read_text(encoding="utf-8"))


def _entry(name: str, d: int) -> dict | None:
    """Measurements of a backend in d dimensions, of compiled matrix products those of "products"; None without any."""
    high = name == "compiled" and d > dense.DIFFERENCE_DIMENSION
    return table()["backends"].get("products" if high else name)


def kind(term: RadialKernel) -> str:
    """What the table knows an elementary kernel as; one that is not in it counts as a general power."""
    code = getattr(term, "code", POWER)
    return code if code in table()["backends"]["dense"]["kernels"] else POWER


def pair_seconds(name: str, d: int, kernel: RadialKernel, dtype: torch.dtype) -> float:
    """Time of one pair on the CPU, with the table's number of threads; KeyError if it was not measured."""
    return _pair_seconds(name, d, tuple(kind(term) for _, term in kernel.terms()), dtype)


@functools.lru_cache(maxsize=1024)
def _pair_seconds(name: str, d: int, kinds: tuple[str, ...], dtype: torch.dtype) -> float:
    entry = _entry(name, d)
    if entry is None:
        raise KeyError(name)
    dimensions, times = zip(*sorted((int(key), value) for key, value in entry["pairs"].items()), strict=True)
    # Between measurements on a line, above the last in proportion to the dimension.
    seconds = float(np.interp(d, dimensions, times)) * max(1, d / dimensions[-1])
    seconds *= sum(entry["kernels"][one] for one in kinds)
    return seconds * (entry["float64"] if dtype == torch.float64 else 1)


def first_seconds(name: str, d: int) -> float:
    """What the first call of a backend in d dimensions takes longer, to compile."""
    return (_entry(name, d) or {}).get("first", 0.0)


def call_seconds(name: str, shape: tuple[int, int, int, int], kernel: RadialKernel, dtype: torch.dtype) -> float | None:
    """Time of one call, potential and field, on the CPU with the threads torch has now; None if it was not measured.

    shape: (clouds B, targets m, sources n, dimension d).
    """
    batch, m, n, d = shape
    entry = _entry(name, d)
    if entry is None:
        return None
    if "tree" in entry:  # kernels without a field of trees are summed exactly
        fields = all(kind(term) in entry["fields"] for _, term in kernel.terms())
        return tree_seconds(shape, kernel) if fields else call_seconds("compiled", shape, kernel, dtype)
    if "points" in entry:
        return _sliced_seconds(entry, shape, kernel)
    return entry["call"] + batch * m * n * pair_seconds(name, d, kernel, dtype) * _threads()


def _sliced_seconds(entry: dict, shape: tuple[int, int, int, int], kernel: RadialKernel) -> float | None:
    """Of sums by slices, of which torch runs one thread a cloud; None where the grid was not measured."""
    batch, m, n, _ = shape
    rest = [term for _, term in kernel.terms() if kind(term) != "riesz_1"]
    line = 0.0 if len(rest) == len(kernel.terms()) else (m + n) * math.log2(m + n) * entry["points"]
    if rest:
        if "grid" not in entry:
            return None
        # Of smooth kernels, unless they are narrow, there are too few to count.
        smooth = all(term.name in spectra.SMOOTH for term in rest)
        number = 0 if smooth else sliced.frequencies(max(m, n))
        line += (m + n) * entry["grid"] + number * math.log2(max(number, 2)) * entry["frequencies"]
    return entry["call"] + batch * entry["directions"] * line


def tree_seconds(shape: tuple[int, int, int, int], kernel: RadialKernel) -> float:
    """Time of one sum by trees, of what they have of this kernel; infinite where they have nothing.

    shape: as in `call_seconds`.
    """
    entry = table()["backends"].get("tree", {"call": 0.0, "tree": {}})
    batch, m, n, d = shape
    points = sum(entry["tree"].get(kind(term), {}).get(str(d), math.inf) for _, term in kernel.terms())
    return batch * (entry["call"] + (m + n) * points * _threads())


def _threads() -> float:
    return table()["threads"] / torch.get_num_threads()


def call_bytes(name: str, shape: tuple[int, int, int, int], itemsize: int, device: torch.device) -> int | None:
    """Memory of one call beyond its inputs and results; None if unknown."""
    batch, m, n, d = shape
    if name == "dense":
        size = dense.pair_bytes(d, itemsize)
        return min(batch * m * n, memory.tile_pairs(device, size)) * size
    if name == "compiled" and d > dense.DIFFERENCE_DIMENSION:
        return products.call_bytes(shape, itemsize)
    entry = table()["backends"].get(name)
    return None if entry is None else int(batch * (m + n) * (entry["point_bytes"] + entry["number_bytes"] * d))


def worthwhile(name: str, x: Tensor, y: Tensor, kernel: RadialKernel) -> bool:
    """Whether on these clouds a backend beats the dense one in all `calls` expected, compiling included.

    A function of shapes and those alone: the same program chooses the same backends, however often it is resumed.
    """
    pairs, d = math.prod(x.shape[:-1]) * y.shape[-2], x.shape[-1]
    entry = _entry(name, d)
    if entry is None or calls() * pairs < _least(entry["first"]) or torch.compiler.is_compiling():
        return False
    saved = pairs * (pair_seconds("dense", d, kernel, x.dtype) - pair_seconds(name, d, kernel, x.dtype)) * _threads()
    return calls() * (saved + table()["backends"]["dense"]["call"] - entry["call"]) > entry["first"]


@functools.cache
def _least(first: float) -> float:
    """Pairs in all calls below which a backend hardly ever pays, whatever the kernel: what a sum is asked first."""
    backends = table()["backends"]
    slowest = max(backends["dense"]["pairs"].values()) * max(1, backends["dense"]["float64"]) * 8
    return first / slowest
