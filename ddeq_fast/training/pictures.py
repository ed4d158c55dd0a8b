"""Pictures of a run: its curves, particles flowing to equilibrium, completed clouds. Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddeq_fast.clouds import PointClouds, spread_normal
from ddeq_fast.data.dataset import Batch
from ddeq_fast.models import Classifier, Completer, Completion
from ddeq_fast.solvers import Anderson, IterativeSolver, MMDFlow, Pushforward, quiet
from ddeq_fast.training.loop import Trainer
from ddeq_fast.training.metrics import METRICS, Metric
from ddeq_fast.training.run import read_metrics
from ddeq_fast.training.tasks import CompletionTask, Partial
from ddeq_fast.utils import drawing, tree
from ddeq_fast.utils.drawing import BLUE, GREEN, GREY, ORANGE

MORE = 6  # times as many new points, of the same mass, as a model was trained with


def curves(metrics: list[dict], path: Path) -> None:
    """The metrics that have a curve, of training and of held-out clouds, against the training step; a PNG.

    `metrics` are the entries of a run's metrics.jsonl.
    """
    drawn = [metric for metric in METRICS.values() if metric.curve and metric.name in metrics[-1]]
    rows = (len(drawn) + 1) // 2
    figure, axes = drawing.figure(rows, 2, 9, 3 * rows)
    for axis, metric in zip(axes.flat, drawn, strict=False):
        _draw_curves(axis, metric, metrics)
    axes[0, 0].legend(fontsize="small")
    for axis in axes.flat[len(drawn) :]:
        axis.axis("off")
    drawing.write_png(figure, path)


def _draw_curves(axis: Any, metric: Metric, metrics: list[dict]) -> None:
    entries = [entry for entry in metrics if metric.name in entry]
    train, test = ([entry for entry in entries if entry["split"] == split] for split in ("train", "test"))
    # An error of zero has no place on a logarithmic axis, and becomes a gap; more than a gap needs a linear one.
    log = metric.log and (metric.higher_is_better or all(entry[metric.name] > 0 for entry in entries))

    def values(of: list[dict]) -> list[float]:
        return [metric.drawn(entry[metric.name]) for entry in of]

    def shown(found: list[float]) -> list[float]:
        return [value if value > 0 else math.nan for value in found] if log else found

    if train:
        steps = [entry["step"] for entry in train]
        axis.plot(steps, shown(values(train)), color=BLUE, alpha=0.3, linewidth=0.8)
        axis.plot(steps, shown(_smoothed(values(train))), color=BLUE, label="train, running mean")
    steps = [entry["step"] for entry in test]
    axis.plot(steps, shown(values(test)), color=ORANGE, marker="o", markersize=3, label="test")
    if metric.partial in metrics[-1]:
        axis.axhline(metrics[-1][metric.partial], color=GREY, linestyle="--", label="partial input")
        axis.legend(fontsize="small")
    axis.set(xlabel="step", ylabel=metric.curve, yscale="log" if log else "linear")
    axis.grid(alpha=0.3)
    if not log:  # numbers as they are, also where they hardly differ
        axis.ticklabel_format(useOffset=False)


def _smoothed(values: list[float], share: float = 0.05) -> list[float]:
    """Exponential running mean, corrected for its start; gaps are skipped."""
    result, total, weight = [], 0.0, 0.0
    for value in values:
        if not math.isnan(value):
            total, weight = (1 - share) * total + share * value, (1 - share) * weight + share
        result.append(total / weight if weight else math.nan)
    return result


@torch.no_grad()
def trajectory(model: Classifier, batch: Batch, solver: IterativeSolver) -> tuple[Tensor, Tensor, Tensor]:
    """Where `solver` evaluates F: clouds (steps, B, n, dim_z), and their residuals relative to the first (steps, B),
    NaN once a sample has converged; and the solution (B, n, dim_z).
    """
    visited, layer, labels = [], model.ddeq, None
    transport, count = layer.transport, len(batch.labels)
    context = transport.encode(*batch.clouds)
    if layer.labels is None:
        start = layer.get_buffer("start").expand(count, -1, -1)
    else:
        labels = layer.labels.expand(count, -1, -1)
        context, start = transport.labelled(context, labels), labels.new_zeros(count, labels.shape[1], transport.dim_z)

    def recorded(z, _, weights):
        visited.append(z)
        return transport(z, context, weights)

    solution = solver.solve(Pushforward(recorded, labels=labels), start)
    problem = Pushforward(transport, context, labels=labels)
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

    figure, axes = drawing.figure(len(batch.labels), 3, 10, 3 * len(batch.labels))
    for i, (left, middle, right) in enumerate(axes):
        present = batch.clouds.mask[i]
        _draw_input(left, batch.clouds.points[i, present], batch.clouds.weights[i, present])
        left.set_title(f"input cloud, label {int(batch.labels[i])}")
        middle.plot(*plane[:, i].unbind(-1), color=GREY, linewidth=0.8)
        middle.scatter(*plane[0, i].unbind(-1), facecolor="none", edgecolor=BLUE, label="start", zorder=3)
        middle.scatter(*end[i].unbind(-1), color=ORANGE, s=24, label="equilibrium", zorder=4)
        middle.set(title="latent particles along the flow", xlabel="first component", ylabel="second component")
        right.semilogy(flow[:, i], color=BLUE, label="flow")
        right.semilogy(anderson[:, i], color=GREEN, marker=".", label="Anderson")
        right.set(title="residual", xlabel="evaluations of F", ylabel="MMD(Z, F(Z)), relative")
        right.grid(alpha=0.3)
    axes[0, 1].legend()
    axes[0, 2].legend()
    drawing.write_png(figure, path)


def completion(model: Completer, inputs: Partial, path: Path) -> None:
    """For each cloud of a small batch: partial cloud, its completion, and the whole cloud, one below the other; a PNG.

    Particles with labels are a distribution: below the completion, so many more of the new points that share its mass.
    """
    model, rows = model.eval().cpu(), ["partial", "completed", "whole"]
    outputs = [_complete(model, inputs.clouds, inputs.noise)]
    if model.ddeq.dim_label:
        rows.insert(2, f"{MORE} times as many")
        more = spread_normal(MORE * (inputs.noise.shape[1] + 1), inputs.noise.shape[2]).to(inputs.noise)
        outputs.append(_complete(model, inputs.clouds, more.expand(len(inputs.noise), -1, -1), MORE))
    figure, axes = drawing.figure(len(rows), len(inputs.noise), 1.8 * len(inputs.noise), 1.8 * len(rows))
    for name, axis in zip(rows, axes[:, 0], strict=True):
        axis.set_ylabel(name)
    for i, column in enumerate(axes.T):
        for axis in column[:-1]:
            _draw_points(axis, inputs.clouds, i, BLUE)
        for axis, output in zip(column[1:], outputs, strict=False):
            _draw_points(axis, PointClouds(output.points, output.weights * ~output.observed), i, ORANGE)
        _draw_points(column[-1], inputs.whole, i, BLUE)
        _share_limits(column, inputs.whole.points[i, inputs.whole.mask[i]])
    drawing.write_png(figure, path)


def _complete(model: Completer, clouds: PointClouds, noise: Tensor, times: int = 1) -> Completion:
    """Completions with `times` as many new points as the model's growth gives."""
    with torch.no_grad(), quiet():
        return model(*clouds, noise=noise, growth=1 + times * (model.growth - 1))


@torch.no_grad()
def completion_flow(model: Completer, inputs: Partial, path: Path, shown: int = 5) -> None:
    """New points on their way from random places to a completed cloud, lowered to the plane, a row a cloud; a PNG."""
    model = model.eval().cpu()
    start = model.draw_start(*inputs.clouds, inputs.noise)
    with quiet():
        output = model(*inputs.clouds, start=start)
    visited = []
    particles = torch.where(start.mask[..., None], model.lift(start.points), 0)
    model.ddeq.solver.solve(
        output.equilibrium.problem, particles, callback=lambda step, z, _: visited.append((step, model.lift.inverse(z)))
    )
    first = torch.linspace(0, len(visited) - 1, shown).round().int().tolist()
    panels = [(f"step {visited[k][0]}", visited[k][1]) for k in sorted(set(first))]
    panels.append(("completed", model.lift.inverse(output.equilibrium.particles)))
    figure, axes = drawing.figure(len(particles), len(panels), 2 * len(panels), 2 * len(particles))
    for i, row in enumerate(axes):
        for axis, (title, points) in zip(row, panels, strict=True):
            _draw_points(axis, inputs.clouds, i, GREY)
            _draw_points(axis, PointClouds(points, start.weights), i, ORANGE)
            if i == 0:
                axis.set_title(title, fontsize="medium")
        _share_limits(row, inputs.whole.points[i, inputs.whole.mask[i]])
    drawing.write_png(figure, path)


def _draw_points(axis, clouds: PointClouds, i: int, colour: str) -> None:
    """The points of cloud i in the plane of their first two coordinates."""
    present = clouds.mask[i]
    size = 7 * clouds.weights[i, present].detach().clamp(0.2, 3)  # an area for each unit of weight
    axis.scatter(*clouds.points[i, present][:, :2].detach().unbind(-1), s=size, color=colour, linewidths=0)


def _share_limits(axes, points: Tensor) -> None:
    """The frame of these points, a little wider, and no ticks."""
    low, high = points[:, :2].amin(0), points[:, :2].amax(0)
    (x, y), half = ((low + high) / 2).tolist(), 0.7 * float((high - low).max())
    for axis in axes:
        axis.set(xlim=(x - half, x + half), ylim=(y - half, y + half), xticks=[], yticks=[], aspect="equal")


def _draw_input(axis, points: Tensor, weights: Tensor) -> None:
    """A cloud in the plane; a third coordinate, or else the weight, is the darkness of a point."""
    shade = points[:, 2] if points.shape[1] > 2 else weights
    axis.scatter(*points[:, :2].unbind(-1), c=shade, cmap="Greys", vmin=float(shade.min()) - 0.5, s=60, linewidths=0)
    axis.set_aspect("equal")


def pictures(trainer: Trainer) -> dict[Path, Callable[[], None]]:
    """The pictures of a run, by the file in its folder that each is written to when called."""
    folder, test, model = trainer.folder, trainer.dataset.test, trainer.model
    completing = isinstance(trainer.task, CompletionTask)
    labels = test.labels.unique()[: 8 if completing else 3]
    batch = test.batch(torch.stack([(test.labels == label).nonzero()[0, 0] for label in labels]))
    drawn: dict[str, Callable[[Path], None]] = {"curves.png": lambda path: curves(read_metrics(folder), path)}
    if completing and isinstance(model, Completer):
        inputs = trainer.task.inputs(batch, None)
        few = tree.select(inputs, torch.arange(min(4, len(labels))))
        drawn["completion.png"] = lambda path: completion(model, inputs, path)
        drawn["flow.png"] = lambda path: completion_flow(model, few, path)
    elif isinstance(model, Classifier):
        drawn["equilibrium.png"] = lambda path: equilibrium(model, batch, path)
    return {folder / name: partial(draw, folder / name) for name, draw in drawn.items()}
