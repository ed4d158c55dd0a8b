"""What is measured of models: one table, which tasks, the loop, console, curves and pages read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ddeq_fast.clouds import PointClouds
from ddeq_fast.distances.chamfer import chamfer
from ddeq_fast.sums.mmd import squared_mmd

# Of each group of samples, by its number: the sum of a metric over them, and how many they are.
Groups = dict[int, tuple[float, int]]
# A metric of a batch.
Measured = float | Groups


@dataclass(frozen=True)
class Metric:
    """A number that entries of metrics.jsonl hold.

    name: its key there.
    title: in results and pages.
    form: format of its values.
    values: (output of the model, inputs of the task) -> what it is of each sample, (B,), or None of a model that has
        none; of a whole batch or split it is the mean of these. None if the loss or the loop makes it.
    largest: of a batch it is the largest value, not the mean.
    groups: (output, inputs) -> the group of each sample, (B,) int64: of a split it is the mean over groups of their
        means, not over samples.
    higher_is_better: else lower ones are.
    partial: the metric that is the same of the partial clouds, and is shown beside it.
    short: its word in the line of an epoch, where it is left out without one.
    curve: title of its curve, which is not drawn without one; a share of which more is better is drawn as what is
        missing to one.
    log: the curve has a logarithmic axis, if its values allow that.
    """

    name: str
    title: str
    form: str
    values: Callable[[Any, Any], Tensor | None] | None = None
    largest: bool = False
    groups: Callable[[Any, Any], Tensor] | None = None
    higher_is_better: bool = False
    partial: str | None = None
    short: str | None = None
    curve: str | None = None
    log: bool = True

    def text(self, value: float) -> str:
        """A value for people."""
        return self.form.format(value)

    def better(self, value: float, other: float) -> bool:
        """Whether a value beats another one."""
        return value > other if self.higher_is_better else value < other

    def drawn(self, value: float) -> float:
        """A value as its curve has it."""
        return 1 - value if self.higher_is_better else value


def _hits(output: Any, inputs: Any) -> Tensor:
    return output.logits.argmax(1) == inputs.labels


def _chamfer(cloud: PointClouds, whole: PointClouds) -> Tensor:
    return chamfer(cloud.points, whole.points, x_mask=cloud.mask, y_mask=whole.mask)


def _squared_mmd(cloud: PointClouds, whole: PointClouds) -> Tensor:
    return squared_mmd(cloud.points, whole.points, x_weights=cloud.weights, y_weights=whole.weights)


def _completed(distance: Callable[[PointClouds, PointClouds], Tensor]) -> Callable[[Any, Any], Tensor]:
    return lambda output, inputs: distance(PointClouds(output.points, output.weights), inputs.whole)


def _of_partial(distance: Callable[[PointClouds, PointClouds], Tensor]) -> Callable[[Any, Any], Tensor]:
    return lambda _, inputs: distance(inputs.clouds, inputs.whole)


def _of_solve(name: str) -> Callable[[Any, Any], Tensor | None]:
    """An entry of `SolveInfo`, of models that have an equilibrium."""
    return lambda output, _: None if output.equilibrium is None else getattr(output.equilibrium.info, name)


# The mean over classes of their recall: the share of their clouds that are found.
BALANCED = "balanced_accuracy"
_TABLE = (
    Metric("loss", "loss", "{:.4f}", short="loss", curve="loss"),
    Metric(
        "accuracy",
        "accuracy",
        "{:.2%}",
        values=_hits,
        higher_is_better=True,
        short="accuracy",
        curve="error (1 - accuracy)",
    ),
    Metric(
        BALANCED,
        "balanced accuracy",
        "{:.2%}",
        values=_hits,
        groups=lambda _, inputs: inputs.labels,
        higher_is_better=True,
    ),
    Metric(
        "chamfer",
        "Chamfer distance",
        "{:.5f}",
        values=_completed(_chamfer),
        partial="partial_chamfer",
        short="Chamfer",
        curve="Chamfer distance",
    ),
    Metric("partial_chamfer", "Chamfer distance of the partial clouds", "{:.5f}", values=_of_partial(_chamfer)),
    Metric(
        "mmd",
        "squared MMD",
        "{:.5f}",
        values=_completed(_squared_mmd),
        partial="partial_mmd",
        short="MMD^2",
        curve="squared MMD",
    ),
    Metric("partial_mmd", "squared MMD of the partial clouds", "{:.5f}", values=_of_partial(_squared_mmd)),
    Metric(
        "evaluations",
        "evaluations of F a solve",
        "{:.1f}",
        values=_of_solve("evaluations"),
        short="evaluations",
        curve="evaluations of F a solve",
        log=False,
    ),
    Metric("residual", "relative MMD residual, mean", "{:.1e}", values=_of_solve("residual")),
    Metric(
        "worst_residual",
        "relative MMD residual, worst",
        "{:.1e}",
        values=_of_solve("residual"),
        largest=True,
        short="residual",
        curve="largest relative MMD residual",
    ),
    Metric(
        "converged", "equilibria within the tolerance", "{:.2%}", values=_of_solve("converged"), higher_is_better=True
    ),
    Metric("jacobian", "penalty on the Jacobian", "{:.3g}"),
    Metric("lr", "learning rate", "{:.2e}"),
)
# Every metric by name, in the order in which they are shown.
METRICS = {metric.name: metric for metric in _TABLE}
# Those of every solve.
SOLVE = ("evaluations", "residual", "worst_residual", "converged")


def measure(names: Iterable[str], output: Any, inputs: Any) -> dict[str, Measured]:
    """The metrics of these names over a batch; those that the model does not have are left out."""
    found: dict[str, Measured] = {}
    for name in names:
        metric = METRICS[name]
        values = None if metric.values is None else metric.values(output, inputs)
        if values is not None:
            values = values if values.is_floating_point() else values.double()
            if metric.groups is None:
                found[name] = float(values.max() if metric.largest else values.mean())
            else:
                groups, place = metric.groups(output, inputs).unique(return_inverse=True)
                sums = values.new_zeros(len(groups)).index_add_(0, place, values).tolist()
                counts = place.bincount().tolist()
                found[name] = dict(zip(groups.tolist(), zip(sums, counts, strict=True), strict=True))
    return found


def combine(parts: list[tuple[int, dict[str, Any]]]) -> dict[str, float]:
    """The metrics of all samples together, from (number of samples, their metrics)."""
    parts = [(n, part) for n, part in parts if n]
    total = sum(n for n, _ in parts)

    def together(name: str) -> float:
        if METRICS[name].groups is not None:
            groups = by_group(parts, name).values()
            return sum(share / n for share, n in groups) / len(groups)
        if METRICS[name].largest:
            return max(part[name] for _, part in parts)
        return sum(n * part[name] for n, part in parts) / total

    return {name: together(name) for name in parts[0][1]}


def by_group(parts: list[tuple[int, dict[str, Any]]], name: str) -> Groups:
    """A metric of groups in all samples, from (number of samples, their metrics); nothing of what was not measured."""
    found: Groups = {}
    for _, part in parts:
        for group, (share, n) in part.get(name, {}).items():
            before = found.get(group, (0.0, 0))
            found[group] = before[0] + share, before[1] + n
    return found


def one_line(metrics: dict) -> str:
    """The entry of a step or an evaluation in one line for people."""
    words = [
        f"{metric.short} {metric.text(metrics[name])}"
        for name, metric in METRICS.items()
        if metric.short and name in metrics
    ]
    return f"{metrics['split']}: {'  '.join(words)}"


def table(metrics: dict) -> list[tuple[str, str]]:
    """(title, value) of each result of an evaluation, for people; those of partial clouds stand beside the others."""
    rows, beside = [], {metric.partial for metric in METRICS.values()}
    for name, metric in METRICS.items():
        if name in metrics and name not in beside:
            text = metric.text(metrics[name])
            if metric.partial in metrics:
                text += f", {_share(metric, metrics[name], metrics[metric.partial])}"
            rows.append((metric.title, text))
    return rows


def _share(metric: Metric, ours: float, partial: float) -> str:
    # Where nothing was removed, the partial clouds are the whole ones.
    return (
        f"{ours / partial:.2f} of the partial input's own {metric.text(partial)}"
        if partial > 0
        else "the partial's is 0"
    )
