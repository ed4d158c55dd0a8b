"""Where the time of a solver's step goes, part by part, by clocks around the parts.

Time belongs to the innermost part that is running, so that the parts add up to the whole. Derivatives are told apart by
hooks on the backward pass of the modules.
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import contextmanager
from unittest import mock

import torch

from bench.measure import synchronise
from ddeq_fast.networks import TransportMap
from ddeq_fast.solvers import MMDFlow, Pushforward
from ddeq_fast.solvers.base import IterativeSolver

# The rest of a solve: the loop, samples that are done, copies.
REST = "bookkeeping"
ONCE = "encode X, once a solve"


class Clock:
    """Seconds spent in each of nested parts, those within excluded."""

    def __init__(self, device: str):
        self.device, self.seconds, self.stack = device, defaultdict(float), [REST]
        synchronise(device)
        self.last = time.perf_counter()

    def _charge(self):
        synchronise(self.device)
        now = time.perf_counter()
        self.seconds[self.stack[-1]] += now - self.last
        self.last = now

    def enter(self, part: str) -> None:
        self._charge()
        self.stack.append(part)

    def leave(self) -> None:
        self._charge()
        self.stack.pop()

    def timed(self, part: str, function):
        """`function`, its time charged to `part`."""

        def run(*args, **kwargs):
            self.enter(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return run


def _parts(network: TransportMap):
    """(module, name of its part)."""
    yield network, "lifting, norms"
    yield network.bilinear, "bilinear"
    for name, encoder in (("self-attention", network.self_encoder), ("cross-attention", network.cross_encoder)):
        for layer in encoder:
            yield layer, name
            yield layer.ffn, "feed-forward"
    yield network.final, "feed-forward"


@contextmanager
def clocks(clock: Clock, network: TransportMap):
    """Clocks around the parts of `network` and of the solvers."""
    handles = []
    for module, part in _parts(network):
        handles += [
            module.register_forward_pre_hook(lambda *_, part=part: clock.enter(f"F: {part}")),
            module.register_forward_hook(lambda *_: clock.leave()),
            module.register_full_backward_pre_hook(lambda *_, part=part: clock.enter(f"J^T: {part}")),
            module.register_full_backward_hook(lambda *_: clock.leave()),
        ]
    linearise = Pushforward.linearise

    def timed_linearise(self, z, **options):
        y, vjp = clock.timed("F: lifting, norms", linearise)(self, z, **options)
        return y, clock.timed("J^T: lifting, norms", vjp)

    replaced = [
        mock.patch.object(network, "encode", clock.timed(ONCE, network.encode)),
        mock.patch.object(network, "prepare", clock.timed(ONCE, network.prepare)),
        mock.patch.object(Pushforward, "linearise", timed_linearise),
        mock.patch.object(Pushforward, "squared_mmd", clock.timed("residual", Pushforward.squared_mmd)),
        mock.patch.object(MMDFlow, "wasserstein_gradient", clock.timed("field", MMDFlow.wasserstein_gradient)),
    ]
    for patch in replaced:
        patch.start()
    try:
        yield
    finally:
        for patch in replaced:
            patch.stop()
        for handle in handles:
            handle.remove()


def profile(network: TransportMap, x, z0, solver: IterativeSolver, device: str) -> tuple[dict[str, float], float]:
    """(seconds of each part in a solve, seconds of the same solve without clocks); the solver runs all its steps."""

    @torch.no_grad()
    def work():
        return solver.solve(Pushforward(network, network.encode(x)), z0)

    work()
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    plain = time.perf_counter() - began
    clock = Clock(device)
    with clocks(clock, network):
        clock.timed(REST, work)()
    return dict(clock.seconds), plain


def table(columns: dict[str, tuple[dict[str, float], float]], steps: int) -> str:
    """Milliseconds a step and shares, as a Markdown table: a row for each part, a pair of columns for each solver."""
    once = [part for seconds, _ in columns.values() for part in seconds if part == ONCE]
    names = [part for seconds, _ in columns.values() for part in seconds if part not in (ONCE, REST)]
    rows = [*dict.fromkeys(names), REST, *dict.fromkeys(once)]
    lines = ["| part | " + " | ".join(f"{name}, ms a step | share" for name in columns) + " |"]
    lines.append("|---" * (1 + 2 * len(columns)) + "|")
    totals = {name: sum(seconds.values()) for name, (seconds, _) in columns.items()}
    for row in rows:
        cells = []
        for name, (seconds, _) in columns.items():
            value = seconds.get(row)
            found = value is not None
            cells += [f"{value / steps * 1e3:.2f}", f"{value / totals[name]:.0%}"] if found else ["", ""]
        lines.append("| " + " | ".join([row, *cells]) + " |")
    for label, each in (("all", totals), ("without clocks", {name: plain for name, (_, plain) in columns.items()})):
        cells = [cell for name in columns for cell in (f"{each[name] / steps * 1e3:.2f}", "")]
        lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join(lines)
