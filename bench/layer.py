"""One DDEQ forward pass at the size of the MNIST classifier, against a plain dense implementation.

Random clouds through a randomly initialised network; the same flow steps by the plain implementation
(`bench/baselines/plain.py`) and by the package, then `auto` to a given residual.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import torch

from bench import machine
from bench.baselines import plain
from ddeq_fast.networks import TransportMap
from ddeq_fast.solvers import Auto, ConvergenceWarning, MMDFlow, Pushforward


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench layer", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64, help="clouds (default: %(default)s)")
    parser.add_argument("--points", type=int, default=200, help="points of an input cloud (default: %(default)s)")
    parser.add_argument("--particles", type=int, default=10, help="latent particles (default: %(default)s)")
    parser.add_argument("--dim-z", type=int, default=128, help="latent dimension (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=32, help="attention heads (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="flow steps (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=0.5, help="step size of the flow (default: %(default)s)")
    parser.add_argument(
        "--plain-steps",
        type=int,
        default=20,
        help="steps of the slowest baseline, whose time is scaled to --steps (default: %(default)s)",
    )
    parser.add_argument("--tol", type=float, default=1e-4, help="relative MMD asked of auto (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    return parser


def _timed(function, device: str):
    """(result, seconds)."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if device != "cpu":
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def _ours(network, x, z0, solver):
    """Encode and solve, as the layer does."""
    with torch.no_grad():
        return solver.solve(Pushforward(network, network.encode(x)), z0)


def measure(args) -> list[dict]:
    """A row for each method: seconds for the whole pass, evaluations, residual, difference from the plain one."""
    torch.manual_seed(0)
    options = {"dtype": getattr(torch, args.dtype), "device": args.device}
    network = TransportMap(args.dim_z, 2, heads=args.heads).to(**options)
    x = torch.randn(args.batch, args.points, 2, **options)
    z0 = torch.randn(args.batch, args.particles, args.dim_z, **options)

    def flow(steps):
        return MMDFlow(lr=args.lr, max_steps=steps, tol=0.0, check_every=steps)

    for warm_up in (lambda: plain.flow(network, z0, x, 1, args.lr), lambda: _ours(network, x, z0, flow(1))):
        warm_up()
    few = min(args.plain_steps, args.steps)
    slow, slow_s = _timed(lambda: plain.flow(network, z0, x, few, args.lr), args.device)
    fused, fused_s = _timed(lambda: plain.flow(network, z0, x, args.steps, args.lr, fused=True), args.device)
    ours, ours_s = _timed(lambda: _ours(network, x, z0, flow(args.steps)), args.device)
    ours_few = _ours(network, x, z0, flow(few))
    end = float(ours.info.residual.max())
    until_end, until_end_s = _timed(lambda: _ours(network, x, z0, Auto(tol=end)), args.device)
    auto, auto_s = _timed(lambda: _ours(network, x, z0, Auto(tol=args.tol)), args.device)

    def row(name, seconds, info=None, difference=None, steps=None):
        return {
            "method": name,
            "seconds": seconds,
            "evaluations": float(info.evaluations.double().mean()) if info else steps,
            "residual": float(info.residual.max()) if info else None,
            "difference": difference,
        }

    scaled = slow_s * args.steps / few
    return [
        row(f"plain flow, attention matrices ({few} steps, scaled)", scaled, steps=args.steps),
        row("plain flow, fused attention", fused_s, steps=args.steps),
        row("ddeq_fast flow", ours_s, ours.info, float((ours.particles - fused).abs().max())),
        row(f"ddeq_fast flow, first {few} steps", None, ours_few.info, float((ours_few.particles - slow).abs().max())),
        row("ddeq_fast auto, to where the flow ended", until_end_s, until_end.info),
        row(f"ddeq_fast auto, to {args.tol:g}", auto_s, auto.info),
    ]


def report(rows: list[dict], args) -> str:
    """The rows as a Markdown table."""
    size = f"B={args.batch}, M={args.points}, N={args.particles}, d_z={args.dim_z}, {args.heads} heads"
    lines = [
        f"DDEQ forward pass, {size}, {args.steps} flow steps, {args.dtype}, {args.device}",
        "",
        "| method | seconds | x plain | evaluations | relative MMD | difference from plain |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.2f}"
        ratio = "" if row["seconds"] is None else f"{rows[0]['seconds'] / row['seconds']:.1f}"
        residual = "" if row["residual"] is None else f"{row['residual']:.1e}"
        difference = "" if row["difference"] is None else f"{row['difference']:.1e}"
        cells = (row["method"], seconds, ratio, f"{row['evaluations']:.0f}", residual, difference)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Measure, print the table, write the JSON file if asked."""
    args = _parser().parse_args(argv)
    warnings.simplefilter("ignore", ConvergenceWarning)
    described = machine.describe()
    print(", ".join(f"{key} {value}" for key, value in described.items()))
    rows = measure(args)
    print(report(rows, args))
    if args.json:
        args.json.write_text(json.dumps({"machine": described, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0
