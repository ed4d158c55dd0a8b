"""A picture of an audit. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddeq_fast.diagnostics.results import APART, Audit, Step
from ddeq_fast.utils import drawing
from ddeq_fast.utils.drawing import BLUE, GREEN, GREY, ORANGE


def draw(audit: Audit, path: Path) -> None:
    """Spread of the particles, residual and spectral radius of every cloud, changes of the output, gradients; a PNG.

    Raises ImportError if matplotlib is missing, OSError naming `path` if it cannot be written.
    """
    figure, axes = drawing.figure(2, 3, 12, 6.5)
    (spread, residual, radius), (steps, apart, gradients) = axes
    _dots(spread, audit.start_spread, "start", GREY)
    _dots(spread, audit.own_spread, "where the solver stops", BLUE)
    _dots(spread, audit.spread, "equilibrium", ORANGE)
    if audit.between > 0:
        spread.axhline(audit.between, color=GREEN, label="between clouds")
    spread.set(title="spread of the particles", xlabel="clouds, sorted", yscale="log")
    _dots(residual, audit.residual, "solve", BLUE)
    residual.axhline(audit.tol, color=GREY, linestyle="--", label="tolerance")
    residual.set(title="residual MMD(Z, F(Z)), relative", xlabel="clouds, sorted", yscale="log")
    _dots(radius, audit.radius, "spectral radius", BLUE)
    _dots(radius, audit.jacobian, "root mean square", GREEN)
    radius.axhline(1, color=GREY, linestyle="--", label="contraction below")
    radius.set(title="Jacobian of F at the equilibrium", xlabel="clouds, sorted", ylim=(0, None))
    _changes(steps, audit.plain, "z <- F(z)", BLUE)
    _changes(steps, audit.own, "own solver", ORANGE)
    steps.axhline(max(audit.one_particle, 1e-12), color=GREEN, linestyle=":", label="one particle")
    steps.set(title="change of the output", xlabel="steps in place of a solve", yscale="log")
    _dots(apart, audit.distance, "distance", BLUE)
    _dots(apart, audit.mmd, "squared MMD", ORANGE)
    apart.axhline(APART, color=GREY, linestyle="--", label="another one above")
    apart.set(title="equilibria from other starts, relative", xlabel="clouds, sorted", yscale="log")
    bars = {name: error.error for name, error in audit.gradients.items() if error.error > 0}
    gradients.barh(list(bars), list(bars.values()), color=BLUE)
    gradients.invert_yaxis()
    gradients.set(title="error of gradients, relative", xscale="log" if bars else "linear")
    for axis in axes.flat[:5]:
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.suptitle(f"audit of {len(audit.residual)} clouds: {audit.headline}")
    drawing.write_png(figure, path)


def _dots(axis: Any, values: list[float], label: str, colour: str) -> None:
    """The values in order; zeros and NaN, which a logarithmic axis has no place for, are left out."""
    known = sorted(value for value in values if value > 0)
    axis.plot(range(len(known)), known, ".", color=colour, label=label)


def _changes(axis: Any, steps: list[Step], label: str, colour: str) -> None:
    known = [step for step in steps if 0 < step.change < float("inf")]
    axis.plot([step.steps for step in known], [step.change for step in known], ".-", color=colour, label=label)
