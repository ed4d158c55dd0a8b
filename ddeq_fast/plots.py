"""Pictures of a run: its curves, and latent particles flowing to equilibrium. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ddeq_fast.data.dataset import Batch
from ddeq_fast.models import Classifier
from ddeq_fast.optional import require
from ddeq_fast.solvers import Anderson, IterativeSolver, MMDFlow, Pushforward

# Okabe & Ito's colours, which the colour-blind can tell apart.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "0.6"


def _figure(rows: int, columns: int, width: float, height: float):
    """(figure, array of axes) drawn without a screen."""
    require("matplotlib", "plots")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def curves(metrics: list[dict], path: Path) -> None:
    """Loss, accuracy, evaluations a solve and residual against the training step, as a PNG.

    `metrics` are the entries of a run's metrics.jsonl.
    """
    panels = [
        ("loss", "cross-entropy", "log"),
        ("accuracy", "error (1 - accuracy)", "log"),
        ("evaluations", "evaluations of F a solve", "linear"),
        ("worst_residual", "largest relative MMD residual", "log"),
    ]
    figure, axes = _figure(2, 2, 9, 6)
    for axis, (key, label, scale) in zip(axes.flat, panels, strict=True):
        for split, colour in (("train", _BLUE), ("test", _ORANGE)):
            entries = [entry for entry in metrics if entry["split"] == split]
            steps = [entry["step"] for entry in entries]
            values = [1 - entry[key] if key == "accuracy" else entry[key] for entry in entries]
            if scale == "log":  # an error of zero has no place on the axis: leave a gap
                values = [value if value > 0 else float("nan") for value in values]
            if split == "train":
                axis.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
                axis.plot(steps, _smoothed(values), color=colour, label="train, running mean")
            else:
                axis.plot(steps, values, color=colour, marker="o", markersize=3, label="test")
        axis.set(xlabel="step", ylabel=label, yscale=scale)
        axis.grid(alpha=0.3)
    axes[0, 0].legend()
    figure.savefig(path)


def _smoothed(values: list[float], share: float = 0.05) -> list[float]:
    """Exponential running mean, corrected for its start; gaps are skipped."""
    result, total, weight = [], 0.0, 0.0
    for value in values:
        if value == value:
            total, weight = (1 - share) * total + share * value, (1 - share) * weight + share
        result.append(total / weight if weight else float("nan"))
    return result


@torch.no_grad()
def trajectory(model: Classifier, batch: Batch, solver: IterativeSolver) -> tuple[Tensor, Tensor, Tensor]:
    """Where `solver` evaluates F: clouds (steps, B, n, dim_z), and their residuals relative to the first (steps, B),
    NaN once a sample has converged; and the solution (B, n, dim_z).
    """
    visited, transport = [], model.ddeq.transport
    context = transport.encode(*batch.clouds)

    def recorded(z, _, weights):
        visited.append(z)
        return transport(z, context, weights)

    start = model.ddeq.start.expand(len(batch.labels), -1, -1)
    solution = solver.solve(Pushforward(recorded), start)
    problem = Pushforward(transport, context)
    squared = torch.stack([problem.squared_mmd(z, problem.image(z), solver.kernel) for z in visited])
    residuals = (squared / squared[0]).sqrt()
    spent = torch.arange(len(visited))[:, None] >= solution.info.evaluations
    return torch.stack(visited), residuals.masked_fill(spent, torch.nan), solution.particles


def equilibrium(model: Classifier, batch: Batch, path: Path, steps: int = 150) -> None:
    """For each cloud of a small batch: the cloud, its latent particles on their way, and the residual; a PNG.

    The way is that of the flow with shrinking steps, the equilibrium that of Anderson acceleration to the model's
    tolerance. Particles are drawn in the plane of their first two principal components, pooled over all clouds.
    """
    model = model.eval().cpu()
    z, flow, _ = trajectory(model, batch, MMDFlow(lr=2.0, lr_decay=(0.98, 1), max_steps=steps, tol=0.0))
    _, anderson, end = trajectory(model, batch, Anderson(tol=model.ddeq.solver.tol, max_steps=steps))
    points = z.flatten(0, 2)
    centre = points.mean(0)
    components = torch.linalg.eigh((points - centre).mT @ (points - centre)).eigenvectors[:, -2:].flip(1)
    plane, end = (z - centre) @ components, (end - centre) @ components

    figure, axes = _figure(len(batch.labels), 3, 10, 3 * len(batch.labels))
    for i, (left, middle, right) in enumerate(axes):
        present = batch.clouds.mask[i]
        _draw_input(left, batch.clouds.points[i, present], batch.clouds.weights[i, present])
        left.set_title(f"input cloud, label {int(batch.labels[i])}")
        middle.plot(*plane[:, i].unbind(-1), color=_GREY, linewidth=0.8)
        middle.scatter(*plane[0, i].unbind(-1), facecolor="none", edgecolor=_BLUE, label="start", zorder=3)
        middle.scatter(*end[i].unbind(-1), color=_ORANGE, s=24, label="equilibrium", zorder=4)
        middle.set(title="latent particles along the flow", xlabel="first component", ylabel="second component")
        right.semilogy(flow[:, i], color=_BLUE, label="flow")
        right.semilogy(anderson[:, i], color=_GREEN, marker=".", label="Anderson")
        right.set(title="residual", xlabel="evaluations of F", ylabel="MMD(Z, F(Z)), relative")
        right.grid(alpha=0.3)
    axes[0, 1].legend()
    axes[0, 2].legend()
    figure.savefig(path)


def _draw_input(axis, points: Tensor, weights: Tensor) -> None:
    """A cloud in the plane; a third coordinate, or else the weight, is the darkness of a point."""
    shade = points[:, 2] if points.shape[1] > 2 else weights
    axis.scatter(*points[:, :2].unbind(-1), c=shade, cmap="Greys", vmin=float(shade.min()) - 0.5, s=60, linewidths=0)
    axis.set_aspect("equal")
