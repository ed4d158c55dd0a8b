"""One DDEQ forward pass at the size of the MNIST classifier, against a plain dense implementation.

Random clouds through a randomly initialised network; the same flow steps by the plain implementation
(`bench/baselines/plain.py`) and by the package, then `auto` to a given residual. Speed is compared over rounds in which
the methods take turns: all steps of the package's, which encodes X once, and some of the plain one's, scaled, which
repeats everything in every step. The median counts. The results are compared after all steps.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
import warnings
from pathlib import Path
from statistics import median

import torch

from bench import machine, profile
from bench.baselines import plain
from bench.measure import synchronise
from ddeq_fast.networks import TransportMap
from ddeq_fast.solvers import Anderson, Auto, ConvergenceWarning, MMDFlow, Pushforward


def parser() -> argparse.ArgumentParser:
    """Options of the command; other benchmarks measure with them too."""
    options = argparse.ArgumentParser(prog="python -m bench layer", description=__doc__.splitlines()[0])
    options.add_argument("--batch", type=int, default=64, help="clouds (default: %(default)s)")
    options.add_argument("--points", type=int, default=200, help="points of an input cloud (default: %(default)s)")
    options.add_argument("--particles", type=int, default=10, help="latent particles (default: %(default)s)")
    options.add_argument("--dim-z", type=int, default=128, help="latent dimension (default: %(default)s)")
    options.add_argument("--heads", type=int, default=32, help="attention heads (default: %(default)s)")
    options.add_argument("--steps", type=int, default=200, help="flow steps (default: %(default)s)")
    options.add_argument("--lr", type=float, default=0.2, help="step size of the flow (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=5, help="rounds of the comparison (default: %(default)s)")
    options.add_argument("--plain-steps", type=int, default=5, help="plain steps in a round (default: %(default)s)")
    options.add_argument("--tol", type=float, default=1e-4, help="relative MMD asked of auto (default: %(default)s)")
    options.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    options.add_argument("--device", default="cpu")
    options.add_argument("--profile", action="store_true", help="say where the time of a step goes, and do no more")
    options.add_argument("--json", type=Path, help="also write the results to this file")
    return options


def _timed(function, device: str):
    """(result, seconds)."""
    synchronise(device)
    start = time.perf_counter()
    result = function()
    synchronise(device)
    return result, time.perf_counter() - start


def _ours(network, x, z0, solver):
    """Encode and solve, as the layer does."""
    with torch.no_grad():
        return solver.solve(Pushforward(network, network.encode(x)), z0)


def _inputs(args):
    """(network, input clouds, start clouds)."""
    torch.manual_seed(0)
    options = {"dtype": getattr(torch, args.dtype), "device": args.device}
    network = TransportMap(args.dim_z, 2, num_heads=args.heads).to(**options)
    x = torch.randn(args.batch, args.points, 2, **options)
    return network, x, torch.randn(args.batch, args.particles, args.dim_z, **options)


def profiled(args) -> str:
    """Where the time of a step of the flow and of Anderson acceleration goes, as a table."""
    steps = args.steps
    solvers = {
        "flow": MMDFlow(lr=args.lr, max_steps=steps, tol=0.0),
        "Anderson": Anderson(max_steps=steps, tol=0.0, patience=None),
    }
    found = {name: profile.profile(*_inputs(args), solver, args.device) for name, solver in solvers.items()}
    return _size(args) + "\n\n" + profile.table(found, steps)


def _size(args) -> str:
    size = f"B={args.batch}, M={args.points}, N={args.particles}, d_z={args.dim_z}, {args.heads} heads"
    return f"DDEQ forward pass, {size}, {args.steps} steps, {args.dtype}, {args.device}"


def measure(args) -> list[dict]:
    """A row for each method: seconds for all steps, evaluations, residual, difference from the plain one."""
    network, x, z0 = _inputs(args)

    @functools.cache  # a solver keeps what it has recorded
    def solver(steps, cuda_graph):
        return MMDFlow(lr=args.lr, max_steps=steps, tol=0.0, check_every=steps, cuda_graph=cuda_graph)

    def flow(steps, cuda_graph=False):
        return _ours(network, x, z0, solver(steps, cuda_graph))

    methods = {
        "plain flow, attention matrices": lambda steps: plain.flow(network, z0, x, steps, args.lr),
        "plain flow, fused attention": lambda steps: plain.flow(network, z0, x, steps, args.lr, fused=True),
    }
    ours = {"ddeq_fast flow": flow}
    if torch.device(args.device).type == "cuda":
        ours["ddeq_fast flow, CUDA graph"] = functools.partial(flow, cuda_graph=True)
    methods |= ours
    for method in methods.values():
        method(1)
    times = {name: [] for name in methods}
    for _ in range(args.rounds):
        for name, method in methods.items():
            steps = args.steps if name in ours else args.plain_steps
            spent = _timed(lambda method=method, steps=steps: method(steps), args.device)[1]
            times[name].append(spent * args.steps / steps)
    seconds = {name: median(spent) for name, spent in times.items()}

    reference = methods["plain flow, fused attention"](args.steps)
    rows = [{"method": name, "seconds": spent, "evaluations": args.steps} for name, spent in seconds.items()]
    for row in rows[-len(ours) :]:
        found = ours[row["method"]](args.steps)
        end, difference = float(found.info.residual.max()), float((found.particles - reference).abs().max())
        row |= {"evaluations": _evaluations(found.info), "residual": end, "difference": difference}
    for name, tol in (("to where the flow ended", end), (f"to {args.tol:g}", args.tol)):
        spent = []
        for _ in range(3):
            solution, time_taken = _timed(lambda tol=tol: _ours(network, x, z0, Auto(tol=tol)), args.device)
            spent.append(time_taken)
        info = solution.info
        residual = float(info.residual.max())
        evaluations = _evaluations(info)
        rows.append(
            {
                "method": f"ddeq_fast auto, {name}",
                "seconds": median(spent),
                "evaluations": evaluations,
                "residual": residual,
            }
        )
    return rows


def _evaluations(info) -> float:
    """Mean over the batch."""
    return float(info.evaluations.double().mean())


def report(rows: list[dict], args) -> str:
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
    print(", ".join(f"{key} {value}" for key, value in described.items()))
    if args.profile:
        print(profiled(args))
        return 0
    rows = measure(args)
    print(report(rows, args))
    if args.json:
        args.json.write_text(json.dumps({"machine": described, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0
