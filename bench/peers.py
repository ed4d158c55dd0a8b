"""Layers and losses of other packages on the same clouds: time, memory and errors on the CPU.

Layers are those of torchdeq and silva-networks on the same F; losses are by geomloss, KeOps and torch.cdist. What is
not installed is left out by name. docs/peers.md tells what is compared, and where a peer is the better choice.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout

from bench import machine, options, peer_layers, peer_losses
from bench.report import write_json
from ddeq_fast.utils.optional import available
from ddeq_fast.utils.units import duration

PEERS = ("torchdeq", "silva-networks", "geomloss", "pykeops")


def _parser() -> argparse.ArgumentParser:
    parser = options.parser("peers", __doc__)
    parser.add_argument("--only", choices=("layers", "losses"), help="one of the two tables (default: both)")
    options.add_largest(parser)
    options.add_json(parser)
    return parser


def main(argv: list[str]) -> int:
    """Measure, print the tables, write the JSON file if asked."""
    args = _parser().parse_args(argv)
    described = machine.describe() | {name: machine.version(name) for name in PEERS}
    print(machine.line(described))
    results: dict = {"machine": described}
    if args.only != "losses":
        results["layers"] = layers(peer_layers.setting())
    if args.only != "layers":
        results["losses"] = losses([(d, n) for d, n in peer_losses.SIZES if n <= args.largest])
    if args.json:
        write_json(args.json, results)
    return 0


def layers(given: peer_layers.Setting) -> list[dict]:
    """A row for each layer that is installed; prints them, and what is left out."""
    batch, points = given.x.shape[:2]
    _, particles, dim_z = given.start.shape
    print(f"\n{batch} clouds of {points} points, {particles} particles in {dim_z} dimensions, float32,", end=" ")
    print(f"to a relative MMD of {given.tol:g}\n")
    head = "layer | gradient | own setting | forward | backward | memory | evaluations of F | products with J^T"
    _header(f"{head} | relative MMD | largest difference | error of the gradient")
    exact, rows, left = peer_layers.reference(given), [], {}
    for method in peer_layers.methods(given):
        if not available(method.package):
            left[method.name.split(",")[0]] = f"{method.package} is not installed"
            continue
        row = peer_layers.measure(given, method, exact)
        cells = [row["method"], row["backward"], f"{row['knob']:.0e}"]
        cells += [duration(row[f"{way}_seconds"], 3) for way in ("forward", "backward")] + [_mebibytes(row)]
        cells += [f"{row[name]:.0f}" for name in ("evaluations", "products")]
        _line(*cells, *(f"{row[name]:.1e}" for name in ("residual", "largest", "error")))
        rows.append(row)
    _left_out(left)
    return rows


def losses(sizes: list[tuple[int, int]]) -> list[dict]:
    """A row for each loss and size (d, n) that it runs at; prints them, and what is left out."""
    print("\nvalue and gradient of the energy distance of two clouds of n points, float32\n")
    _header("d | n | loss | time | memory | error of the value | error of the gradient")
    left = {name: reason for name in peer_losses.METHODS if (reason := peer_losses.refusal(name))}
    rows = []
    for d, n in sizes:
        x, y = peer_losses.clouds(d, n)
        exact = peer_losses.reference(x, y)
        for name, method in peer_losses.METHODS.items():
            if name in left:
                continue
            if method.matrices and n > peer_losses.MATRICES:
                left[f"{name}, of more than {peer_losses.MATRICES:,} points"] = "it keeps matrices of all pairs"
                continue
            with redirect_stdout(sys.stderr):  # KeOps prints while it compiles
                row = peer_losses.measure(name, x, y, exact)
            cells = [str(d), f"{n:,}", name, duration(row["seconds"], 3), _mebibytes(row)]
            _line(*cells, *(f"{row[key]:.1e}" for key in ("error_value", "error_gradient")))
            rows.append(row)
    _left_out(left)
    return rows


def _left_out(reasons: dict[str, str]) -> None:
    print("".join(f"\n{name} left out: {reason}" for name, reason in reasons.items()))


def _mebibytes(row: dict) -> str:
    return f"{row['peak_bytes'] / 2**20:.0f} MiB"


def _header(names: str) -> None:
    print(f"| {names} |\n|" + "---|" * (names.count("|") + 1))


def _line(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)
