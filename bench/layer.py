"""One DDEQ forward pass at the size of the MNIST classifier, against a plain dense implementation.

Random clouds through a randomly initialised network; the same flow steps by the plain implementation
(`bench/baselines/plain.py`) and by the package, then `auto` to a given residual. Speed is compared over rounds in which
the methods take turns: all steps of the package's, which encodes X once, and some of the plain one's, scaled, which
repeats everything in every step. The median counts. The results are compared after all steps.
"""

from __future__ import annotations

import argparse
import functools
import time
import warnings
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from bench import machine, options, profile
from bench.baselines import plain
from bench.measure import synchronise
from bench.report import write_json
from ddeq_fast.networks import TransportMap
from ddeq_fast.solvers import Anderson, Auto, ConvergenceWarning, MMDFlow, Pushforward, Solution, Solver


def parser() -> argparse.ArgumentParser:
    """Options of the command; `python -m bench gpu` measures with them too."""
    made = options.parser("layer", __doc__)
    made.add_argument("--batch", type=int, default=64, help="clouds (default: %(default)s)")
    made.add_argument("--points", type=int, default=200, help="points of an input cloud (default: %(default)s)")
    made.add_argument("--particles", type=int, default=10, help="latent particles (default: %(default)s)")
    made.add_argument("--dim-z", type=int, default=128, help="latent dimension (default: %(default)s)")
    made.add_argument("--heads", type=int, default=32, help="attention heads (default: %(default)s)")
    made.add_argument("--steps", type=int, default=200, help="flow steps (default: %(default)s)")
    made.add_argument("--lr", type=float, default=0.2, help="step size of the flow (default: %(default)s)")
    made.add_argument("--rounds", type=int, default=5, help="rounds of the comparison (default: %(default)s)")
    made.add_argument("--plain-steps", type=int, default=5, help="plain steps in a round (default: %(default)s)")
    made.add_argument("--tol", type=float, default=1e-4, help="relative MMD asked of auto (default: %(default)s)")
    made.add_argument("--dtype", choices=("float64", "float32"), default="float64", help="default: %(default)s")
    made.add_argument("--device", default="cpu", help="cpu, cuda... (default: %(default)s)")
    made.add_argument("--profile", action="store_true", help="say where the time of a step goes, and do no more")
    options.add_json(made)
    return made


def _timed(function: Callable, device: str) -> tuple:
    """(result, seconds)."""
    synchronise(device)
    began = time.perf_counter()
    result = function()
    synchronise(device)
    return result, time.perf_counter() - began


def _solve(network: TransportMap, x: Tensor, start: Tensor, solver: Solver) -> Solution:
    """Encode and solve, as the layer does."""
    with torch.no_grad():
        return solver.solve(Pushforward(network, network.encode(x)), start)


def _inputs(args: argparse.Namespace) -> tuple[TransportMap, Tensor, Tensor]:
    """(network, input clouds, start clouds)."""
    torch.manual_seed(0)
    kind = {"dtype": getattr(torch, args.dtype), "device": args.device}
    network = TransportMap(args.dim_z, 2, num_heads=args.heads).to(**kind)
    x = torch.randn(args.batch, args.points, 2, **kind)
    return network, x, torch.randn(args.batch, args.particles, args.dim_z, **kind)


def profiled(args: argparse.Namespace) -> str:
    """Where the time of a step of the flow and of Anderson acceleration goes, as a table."""
    steps = args.steps
    solvers = {
        "flow": MMDFlow(lr=args.lr, max_steps=steps, tol=0.0),
        "Anderson": Anderson(max_steps=steps, tol=0.0, patience=None),
    }
    found = {name: profile.profile(*_inputs(args), solver, args.device) for name, solver in solvers.items()}
    return _size(args) + "\n\n" + profile.table(found, steps)


def _size(args: argparse.Namespace) -> str:
    size = f"B={args.batch}, M={args.points}, N={args.particles}, d_z={args.dim_z}, {args.heads} heads"
    return f"DDEQ forward pass, {size}, {args.steps} steps, {args.dtype}, {args.device}"


def measure(args: argparse.Namespace) -> list[dict]:
    """A row for each method: seconds for all steps, evaluations, residual, difference from the plain one."""
    network, x, start = _inputs(args)

    def plain_flow(fused: bool) -> Callable:
        return lambda steps: plain.flow(network, start, x, steps, args.lr, fused)

    def our_flow(cuda_graph: bool) -> Callable:
        @functools.cache  # a solver keeps what it has recorded
        def solver(steps):
            return MMDFlow(lr=args.lr, max_steps=steps, tol=0.0, check_every=steps, cuda_graph=cuda_graph)

        return lambda steps: _solve(network, x, start, solver(steps))

    theirs = {
        "plain flow, attention matrices": plain_flow(fused=False),
        "plain flow, fused attention": plain_flow(fused=True),
    }
    ours = {"ddeq_fast flow": our_flow(cuda_graph=False)}
    if torch.device(args.device).type == "cuda":
        ours["ddeq_fast flow, CUDA graph"] = our_flow(cuda_graph=True)
    seconds = _in_turns(theirs, ours, args)

    reference = theirs["plain flow, fused attention"](args.steps)
    rows = [{"method": name, "seconds": seconds[name], "evaluations": args.steps} for name in theirs]
    for name, flow in ours.items():
        solution = flow(args.steps)
        row = {"method": name, "seconds": seconds[name], **_told(solution)}
        rows.append(row | {"difference": float((solution.particles - reference).abs().max())})
    for name, tol in (("to where the flow ended", rows[-1]["residual"]), (f"to {args.tol:g}", args.tol)):
        tries = [_timed(lambda tol=tol: _solve(network, x, start, Auto(tol=tol)), args.device) for _ in range(3)]
        row = {"method": f"ddeq_fast auto, {name}", "seconds": median(spent for _, spent in tries)}
        rows.append(row | _told(tries[-1][0]))
    return rows


def _in_turns(theirs: dict[str, Callable], ours: dict[str, Callable], args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of all steps by each flow; those of the plain ones from a few steps."""
    flows = theirs | ours
    for flow in flows.values():
        flow(1)
    times: dict[str, list[float]] = {name: [] for name in flows}
    for _ in range(args.rounds):
        for name, flow in flows.items():
            steps = args.steps if name in ours else args.plain_steps
            _, spent = _timed(lambda flow=flow, steps=steps: flow(steps), args.device)
            times[name].append(spent * args.steps / steps)
    return {name: median(spent) for name, spent in times.items()}


def _told(solution: Solution) -> dict[str, float]:
    """Evaluations, the mean over the batch, and the largest residual."""
    info = solution.info
    return {"evaluations": float(info.evaluations.double().mean()), "residual": float(info.residual.max())}


def report(rows: list[dict], args: argparse.Namespace) -> str:
    """The rows as a Markdown table."""
    lines = [
        _size(args),
        "",
        "| method | seconds | x plain | evaluations | relative MMD | difference from plain |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["method"], f"{row['seconds']:.2f}", f"{rows[0]['seconds'] / row['seconds']:.1f}"]
        cells.append(f"{row['evaluations']:.0f}")
        cells += [f"{row[key]:.1e}" if key in row else "" for key in ("residual", "difference")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Measure, print the table, write the JSON file if asked."""
    args = parser().parse_args(argv)
    warnings.simplefilter("ignore", ConvergenceWarning)
    described = machine.describe()
    print(machine.line(described))
    if args.profile:
        print(profiled(args))
        return 0
    rows = measure(args)
    print(report(rows, args))
    if args.json:
        write_json(args.json, {"machine": described, "rows": rows})
    return 0
