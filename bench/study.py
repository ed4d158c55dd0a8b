"""Which solver comes to rest soonest, on trained models: residuals against evaluations and against time.

Every method solves for the equilibria of the same test clouds, from the same start, in float64 unless told otherwise,
and its residual is looked at after every evaluation of F. A sample has reached a residual at the evaluation that
first gets there; its time is that of so many steps of the whole batch, looking included. With one thread it is the time
that the processor spent, which other programs do not disturb.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import machine, options
from bench.report import write_json
from ddeq_fast import training
from ddeq_fast.models import DDEQ
from ddeq_fast.networks import TransportMap
from ddeq_fast.solvers import SGD, Anderson, Auto, ConvergenceWarning, MMDFlow, Pushforward, Solution, SolveInfo, Solver
from ddeq_fast.training.config import Config
from ddeq_fast.training.tasks import make_task
from ddeq_fast.utils import tree
from ddeq_fast.utils.drawing import figure, write_png

TARGETS = (1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class RestartedNesterov:
    """Nesterov's momentum k / (k + 3), begun anew where it points uphill (O'Donoghue & Candes 2015)."""

    def init(self, z: Tensor):
        return torch.zeros_like(z), z.new_zeros(len(z), 1, 1)

    def direction(self, g: Tensor, state, step: int):
        velocity, age = state
        uphill = (velocity * g).sum((1, 2), keepdim=True) < 0
        velocity, age = torch.where(uphill, 0, velocity), torch.where(uphill, 0, age)
        momentum = age / (age + 3)
        velocity = momentum * velocity + g
        return g + momentum * velocity, (velocity, age + 1)


class PolyakFlow(MMDFlow):
    """The flow with the step G / |grad G|^2 for every sample: the least value of G = MMD^2 / 2 is known to be zero."""

    def step(self, problem, z, y, vjp, state, step):
        g = self.wasserstein_gradient(problem, z, y, vjp, self.kernel, step)
        value = problem.squared_mmd(z, y, self.kernel, self.backend) / 2
        slope = (problem.measures(z, y)[0][..., None] * g.square()).sum((1, 2)).double()
        length = torch.where(slope > 0, value / slope, 0)[:, None, None].to(z.dtype)
        return z - self.lr * length * g, state, g


class BacktrackingFlow(MMDFlow):
    """The flow with a step size for every sample, which grows by a tenth and is halved when the residual rises."""

    def init(self, problem, z, y):
        return super().init(problem, z, y), z.new_full((len(z),), self.lr), z.new_full((len(z),), torch.inf)

    def kernel_at(self, state, step):
        return self.kernel

    def step(self, problem, z, y, vjp, state, step):
        inner, lr, last = state
        value = problem.squared_mmd(z, y, self.kernel, self.backend).to(z.dtype)
        lr = torch.where(value > last, lr / 2, lr * 1.1)
        g = self.wasserstein_gradient(problem, z, y, vjp, self.kernel, step)
        return z - lr[:, None, None] * g, (inner, lr, value), g


class Method(NamedTuple):
    """make(budget) gives the solver; `shown` in the plot."""

    make: Callable[[int], Solver]
    shown: bool = False


def _flow(kind=MMDFlow, shown=False, **options) -> Method:
    return Method(lambda budget: kind(max_steps=budget, tol=0.0, check_every=1, **options), shown)


def _anderson(shown=False, **options) -> Method:
    return Method(lambda budget: Anderson(max_steps=budget, tol=0.0, patience=None, **options), shown)


METHODS = {
    "flow, lr 0.2": _flow(lr=0.2),
    "flow, lr 1": _flow(lr=1.0, shown=True),
    "flow, lr 5": _flow(lr=5.0),
    "flow, lr 2, decay 0.9 in 10 steps": _flow(lr=2.0, lr_decay=(0.9, 10)),
    "flow, lr 0.2, momentum 0.9": _flow(lr=0.2, optimizer=SGD(0.9)),
    "flow, lr 0.2, Nesterov 0.9": _flow(lr=0.2, optimizer=SGD(0.9, nesterov=True)),
    "flow, lr 0.2, Nesterov with restart": _flow(lr=0.2, optimizer=RestartedNesterov(), shown=True),
    "flow, backtracking": _flow(BacktrackingFlow, lr=1.0, shown=True),
    "flow, Polyak steps": _flow(PolyakFlow, lr=1.0, shown=True),
    "fixed-point iteration": _anderson(depth=2, ridge=1e30, shown=True),
    "Anderson 2": _anderson(depth=2, shown=True),
    "Anderson 4": _anderson(depth=4),
    "Anderson 6": _anderson(depth=6, shown=True),
    "Anderson 8": _anderson(depth=8),
    "Anderson 10": _anderson(depth=10),
    "Anderson 20": _anderson(depth=20),
    "Anderson 6, ridge 1e-6": _anderson(depth=6, ridge=1e-6),
    "Anderson 6, ridge 1e-3": _anderson(depth=6, ridge=1e-3),
    "Anderson 6, mixing 0.7": _anderson(depth=6, mixing=0.7),
    "Anderson 10, ridge 1e-6": _anderson(depth=10, ridge=1e-6),
    "auto": Method(lambda budget: Auto(tol=TARGETS[-1]), True),
}


class Subject(NamedTuple):
    """Equilibria that a layer solves for: the problem, with its clouds, and where it starts (B, n, dim_z)."""

    name: str
    problem: Pushforward
    start: Tensor


class _Seen(Solver):
    """Solves nothing, and keeps what it was asked for."""

    tol = math.inf
    problem: Pushforward
    start: Tensor

    def solve(self, problem, start, *, scale=None, callback=None):
        self.problem, self.start = problem, start
        nothing = torch.zeros(len(start), dtype=torch.int64), torch.zeros(len(start)), torch.ones(len(start)).bool()
        return Solution(start, SolveInfo(*nothing, torch.ones(len(start))))


def captured(name: str, layer: DDEQ, run: Callable[[], Any]) -> Subject:
    """What `layer` is asked to solve for in `run()`."""
    solver, seen = layer.solver, _Seen()
    layer.solver = seen
    try:
        with torch.no_grad():
            run()
    finally:
        layer.solver = solver
    return Subject(name, seen.problem, seen.start)


def trained(folder: Path, samples: int, dtype: torch.dtype) -> Subject:
    """The model of a run folder, of whatever task, and the first clouds of its test split."""
    config = training.read_config(folder)
    dataset = training.load_data(config)
    model = training.load_model(folder, "last", dataset).to(dtype)
    task = make_task(config, dataset)
    inputs = task.inputs(dataset.test.batch(torch.arange(min(samples, len(dataset.test)))), None)
    inputs = tree.apply(lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)
    return captured(folder.name, model.ddeq, lambda: task.run(model, inputs))


def untrained(samples: int, dtype: torch.dtype) -> Subject:
    """The size of the MNIST classifier with random weights, on random clouds."""
    torch.manual_seed(0)
    layer = DDEQ(TransportMap(128, 2, num_heads=32)).to(dtype)
    x = torch.randn(samples, 100, 2, dtype=dtype)
    return captured("random weights", layer, lambda: layer(x))


def train_small(folder: Path) -> Path:
    """A small classifier of digits, a minute or so on one core."""
    config = replace(Config(), epochs=6, jacobian=0.05)
    training.Trainer(config, folder).fit(progress=False)
    return folder


@torch.no_grad()
def follow(subject: Subject, solver: Solver) -> tuple[Tensor, float]:
    """Least residual of every sample up to each evaluation, (evaluations, B), and seconds an evaluation."""
    history: list[Tensor] = []

    def watch(step, particles, residual):
        history.extend([residual] * (step + 1 - len(history)))

    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    solver.solve(subject.problem, subject.start, callback=watch)
    spent = clock() - began
    return torch.stack(history).cummin(0).values, spent / len(history)


def reached(history: Tensor, target: float) -> Tensor:
    """Evaluations after which each sample was at `target`, infinite where it never was."""
    hit = history <= target
    return torch.where(hit.any(0), hit.int().argmax(0).double() + 1, torch.inf)


def measure(subjects: list[Subject], methods: dict[str, Method], budget: int) -> list[dict]:
    """A row for each subject and method."""
    rows = []
    for subject in subjects:
        for name, method in methods.items():
            history, seconds = follow(subject, method.make(budget))
            row = {"subject": subject.name, "method": name, "seconds_per_evaluation": seconds, "targets": {}}
            for target in TARGETS:
                count = reached(history, target)
                row["targets"][f"{target:g}"] = {
                    "share": float(count.isfinite().double().mean()),
                    "median": float(count.median()),
                    "most": float(count.max()),
                }
            bands = history.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64), dim=1)
            rows.append(row | {"bands": [[float(f"{value:.3g}") for value in band] for band in bands.tolist()]})
            print(f"{subject.name}: {name}, {len(history)} evaluations, {seconds * len(history):.1f} s", flush=True)
    return rows


def table(rows: list[dict]) -> str:
    """Markdown, a table for each subject."""
    lines = []
    for subject in dict.fromkeys(row["subject"] for row in rows):
        heads = " | ".join(f"to {target:g}" for target in TARGETS)
        lines += ["", f"{subject}: evaluations (median, most; share of samples where not all), and seconds to the last"]
        lines += ["", f"| method | {heads} | s to {TARGETS[-1]:g} |", "|---" * (len(TARGETS) + 2) + "|"]
        for row in rows:
            if row["subject"] == subject:
                cells = [_cell(entry) for entry in row["targets"].values()]
                entry = row["targets"][f"{TARGETS[-1]:g}"]
                finished = entry["share"] == 1
                cells.append(f"{entry['most'] * row['seconds_per_evaluation']:.2f}" if finished else "")
                lines.append("| " + " | ".join([row["method"], *cells]) + " |")
    return "\n".join(lines)


def _cell(entry: dict) -> str:
    if entry["share"] == 1:
        return f"{entry['median']:.0f}, {entry['most']:.0f}"
    return f"{entry['share']:.0%}" if entry["share"] else "none"


def plot(rows: list[dict], shown: list[str], path: Path) -> None:
    """Median and 90 % band of the residual, against evaluations and against time, a row of panels a subject."""
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    drawing, axes = figure(len(subjects), 2, 11, 3.4 * len(subjects))
    for subject, pair in zip(subjects, axes, strict=True):
        for number, name in enumerate(shown):
            row = next((r for r in rows if r["subject"] == subject and r["method"] == name), None)
            if row is None:
                continue
            low, middle, high = row["bands"]
            count = range(1, len(middle) + 1)
            for axis, unit in zip(pair, (1, row["seconds_per_evaluation"]), strict=True):
                x = [n * unit for n in count]
                axis.plot(x, middle, color=f"C{number}", label=name, lw=1.6)
                axis.fill_between(x, low, high, color=f"C{number}", alpha=0.15, lw=0)
        pair[0].set(title=subject, xlabel="evaluations of F", ylabel="relative MMD(Z, F(Z))", xlim=(1, 60))
        pair[1].set(title=subject, xlabel="seconds for the batch", xscale="log")
        for axis in pair:
            axis.set(yscale="log", ylim=(1e-6, 2))
            axis.grid(alpha=0.3)
    axes[0, 1].legend(fontsize=8)
    write_png(drawing, path)


def _parser() -> argparse.ArgumentParser:
    parser = options.parser("study", __doc__)
    text = "run folders; if none, a small model is trained, in a minute"
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help=text)
    parser.add_argument("--samples", type=int, default=100, help="test clouds (default: %(default)s)")
    parser.add_argument("--budget", type=int, default=100, help="steps of every method (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64", help="default: %(default)s")
    parser.add_argument("--only", metavar="TEXT", default="", help="methods whose name contains this")
    parser.add_argument("--untrained", action="store_true", help="also random weights, in the size of MNIST")
    options.add_json(parser)
    options.add_plot(parser, "the residuals")
    return parser


def main(argv: list[str]) -> int:
    """Measure, print the tables, draw and write what is asked for."""
    args = _parser().parse_args(argv)
    warnings.simplefilter("ignore", ConvergenceWarning)
    methods = {name: method for name, method in METHODS.items() if args.only in name}
    if not methods:
        raise SystemExit(f"bench study: no method contains {args.only!r}; there are {', '.join(METHODS)}")
    dtype = getattr(torch, args.dtype)
    with tempfile.TemporaryDirectory() as scratch:
        runs = args.runs
        if not runs:
            print("training a small classifier of digits, about a minute", flush=True)
            runs = [train_small(Path(scratch, "digits"))]
        subjects = [trained(folder, args.samples, dtype) for folder in runs]
    if args.untrained:
        subjects.append(untrained(args.samples, dtype))
    described = machine.describe()
    rows = measure(subjects, methods, args.budget)
    print(f"\n{machine.line(described)}, {args.dtype}")
    print(table(rows))
    if args.plot:
        plot(rows, [name for name, method in methods.items() if method.shown], args.plot)
    if args.json:
        write_json(args.json, {"machine": described, "rows": rows}, indent=None)
    return 0
