"""Parts of `python -m bench gpu` beyond kernels: labelled particles, sums to a tolerance, training."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from bench.measure import peak_memory, seconds
from bench.tolerance import charged
from bench.train import measure
from ddeq_fast import potential_and_field
from ddeq_fast.solvers import quiet
from ddeq_fast.training import Trainer, make_model
from ddeq_fast.training.config import Config
from ddeq_fast.training.presets import PRESETS
from ddeq_fast.utils.units import duration

# Clouds of a forward pass, and points of each.
CLOUDS, POINTS, DIM, CLASSES = 64, 64, 3, 10
# Targets at which sums are compared with float64.
CHECKED = 1000


def labelled(device: str, tol: float = 1e-4) -> str:
    """Forward passes of a labelled classifier, fresh weights, with and without recorded steps.

    Raises ValueError if an equilibrium is not that of the same model on the CPU, in float64.
    """
    lines, particles = [], None
    for graph in (False, True):
        config = Config(**PRESETS["mnist-classify"].settings | {"tol": tol, "cuda_graph": graph, "max_steps": 200})
        torch.manual_seed(0)
        model = make_model(config, DIM, CLASSES).eval()
        x = torch.rand(CLOUDS, POINTS, DIM)
        with torch.no_grad(), quiet():
            if particles is None:
                particles = model.double()(x.double()).equilibrium.particles
                model.float()
            model, x = model.to(device), x.to(device)
            found = model(x).equilibrium
            taken = seconds(lambda model=model, x=x: model(x), device)
        scale = particles.square().mean().sqrt()
        error = float((found.particles.double().cpu() - particles).square().mean().sqrt() / scale)
        if not error < 100 * tol:
            raise ValueError(f"equilibria of labelled particles differ by {error:.1e} from those of the CPU")
        recorded = "recorded steps" if graph else "steps as they come"
        evaluations = found.info.evaluations.double().mean()
        lines.append(f"{recorded}: {duration(taken, 3)}, {evaluations:.1f} evaluations, {error:.0e} from the CPU's")
    return "; ".join(lines)


def to_tolerance(device: str, n: int, tolerance: float = 1e-3) -> dict[str, str]:
    """Potential and field of n points, d = 3, exact, to a tolerance and sliced: time, memory and error of the field.

    Raises ValueError if a bound is not kept.
    """
    x, v = (part.to(device) for part in charged(3, n))
    at = torch.randperm(n, generator=torch.Generator().manual_seed(1))[:CHECKED].to(device)
    expected = potential_and_field(x[at].double(), x.double(), charges=v.double())[1]
    lines = {}
    for name, by in (("exact", {}), (f"to {tolerance:g}", {"tolerance": tolerance}), ("sliced", {"backend": "sliced"})):
        found: list[Tensor] = []

        def run(by=by, found=found) -> None:
            found[:] = potential_and_field(x, x, charges=v, **by)

        peak, taken = peak_memory(run, device), seconds(run, device)
        error = float((found[1][at] - expected).norm() / expected.norm())
        lines[name] = f"{duration(taken, 3)}, {peak / 2**20:.0f} MiB, field off by {error:.1e}"
        if not error < 0.05 or (name != "sliced" and not error <= tolerance):
            raise ValueError(f"{n} points, {name}: {lines[name]}")
    return lines


def training(device: str, preset: str, warmup: int, steps: int, **settings) -> str:
    """Training steps of a preset, with and without recorded solver steps.

    Raises ValueError if the losses of the two differ.
    """
    rows, losses = [], []
    for graph in (False, True):
        config = Config(**PRESETS[preset].settings | settings | {"device": device, "cuda_graph": graph})
        with tempfile.TemporaryDirectory() as scratch:
            trainer = Trainer(config, Path(scratch, "run"))
            row = measure(trainer, warmup, steps, profiled=False)
            losses.append(trainer.evaluate()["loss"])
        recorded = "recorded steps" if graph else "steps as they come"
        took = f"{1e3 * row['step_seconds']:.1f} ms a step, {row['clouds_per_second']:.0f} clouds a second"
        rows.append(f"{recorded}: {took}, {row['evaluations']:.1f} evaluations a solve")
    if abs(losses[0] - losses[1]) > 0.2 * statistics.mean(losses):
        raise ValueError(f"losses {losses} after {warmup + steps} steps, without and with recorded steps")
    return "; ".join(rows)
