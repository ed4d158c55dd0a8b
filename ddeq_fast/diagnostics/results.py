"""What an audit finds: numbers, and what they mean in words."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ddeq_fast.diagnostics.measures import GradientError

# Particles that lie within this share of their start's spread, and of their distance from zero, are one point.
ONE_POINT = 1e-2
# A map that one evaluation from the start takes so near to the equilibrium, and whose J is so small, ignores particles.
IGNORED = 1e-2
# Equilibria further apart than this share of their distance from zero are two.
APART = 5e-2
# Clouds of which something must be said to be said of the model.
MOST, SOME = 0.95, 0.05
# Steps that a table has room for.
COLUMNS = 9


class Step(NamedTuple):
    """After some steps: their number, the change of the output against that at the equilibrium that the solver found,
    relative and infinite once it has left all bounds, and the scores."""

    steps: int
    change: float
    scores: dict[str, float]


class Finding(NamedTuple):
    """One thing that is to be known of a model: a code, and a sentence."""

    code: str
    text: str


@dataclass(frozen=True)
class Audit:
    """What was measured of a model on a batch of B clouds. Lists with an entry a cloud are (B,); NaN where something
    could not be measured.

    Lengths are root mean squares in units of the latent space; "equilibrium" is the best cloud that is known: the
    model's own solution, solved on to a tenth of the tolerance or better.

    Attributes:
        particles: of the largest latent cloud.
        tol: the solver's tolerance, 1e-3 if it has none.
        evaluations: mean number of evaluations of F in a solve.
        residual: relative MMD residuals of the model's own solutions (B,).
        solved: which equilibria are known to a tenth of the tolerance (B,).
        start_spread, own_spread, spread: distances of particles from their mean at the start, in the model's own
            solution, and at the equilibrium (B,).
        extent: distance of the equilibrium's particles from zero (B,).
        between: distance of the clouds' means from each other's mean.
        one_particle: change of the output with one particle in place of all; NaN with frozen particles.
        one_label: the same with the mean label in place of all; None of a model without labels.
        plain, own: the output after some steps of z <- F(z), without a solver, and of the model's own solver.
        reached: how far from the equilibrium one evaluation of F ends, relative to the start's own distance (B,).
        starts: further starts that equilibria were sought from.
        found: share of these solves that ended within a tenth of the tolerance.
        distance, mmd: largest distance, and squared MMD, between an equilibrium and one from another start, relative to
            its distance from zero (B,); by MMD particles that exchange places make no difference.
        jacobian: root mean square singular value of J (B,).
        radius: spectral radius of J (B,).
        gradients: errors of gradients of the parameters of F against a tight solve, by name; the model's own is "own".
        scores: of the model's own output.
        findings: what this means, the most important first; none of a healthy model.
    """

    particles: int
    tol: float
    evaluations: float
    residual: list[float]
    solved: list[bool]
    start_spread: list[float]
    own_spread: list[float]
    spread: list[float]
    extent: list[float]
    between: float
    one_particle: float
    one_label: float | None
    plain: list[Step]
    own: list[Step]
    reached: list[float]
    starts: int
    found: float
    distance: list[float]
    mmd: list[float]
    jacobian: list[float]
    radius: list[float]
    gradients: dict[str, GradientError]
    scores: dict[str, float]

    @property
    def findings(self) -> list[Finding]:
        return list(_findings(self))

    @property
    def verdict(self) -> str:
        """All findings in words, or why there are none."""
        if self.findings:
            return "; ".join(finding.text for finding in self.findings)
        return (
            f"healthy: a distribution within tolerance, whose particles spread over {_text(median(self.spread))} "
            f"({_text(median(self.start_spread))} at the start), and the same one from every start"
        )

    @property
    def headline(self) -> str:
        """The verdict in a few words."""
        return "; ".join(finding.code for finding in self.findings) or "healthy"

    @property
    def healthy(self) -> bool:
        """Whether there is nothing to find fault with."""
        return not self.findings

    @property
    def within(self) -> float:
        """Share of clouds whose own solution is within the tolerance."""
        return mean([value <= self.tol for value in self.residual])

    def to_dict(self) -> dict[str, Any]:
        """All of it as numbers, texts, lists and dicts; what is not finite is None."""
        findings = [finding._asdict() for finding in self.findings]
        entries = [[step._asdict() for step in steps] for steps in (self.plain, self.own)]
        found = asdict(self) | dict(zip(("plain", "own"), entries, strict=True))
        found["gradients"] = {name: error._asdict() for name, error in self.gradients.items()}
        return _finite(
            {"verdict": self.verdict, "headline": self.headline, "healthy": self.healthy, "findings": findings, **found}
        )

    def to_json(self) -> str:
        """`to_dict` as one JSON object."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def table(self) -> list[tuple[str, str]]:
        """(title, value) of what was measured, for people."""
        tol = f"{self.tol:.0e}"
        rows = [
            ("residual of a solve, relative", f"{_both(self.residual)}; {self.within:.0%} within {tol}"),
            ("evaluations of F a solve", f"{self.evaluations:.1f}"),
            ("solved on to a tenth of the tolerance", f"{mean(self.solved):.0%} of the clouds"),
            (
                "spread of the particles",
                f"{_text(median(self.spread))} at the equilibrium, {_text(median(self.own_spread))} where the solver "
                f"stops, {_text(median(self.start_spread))} at the start",
            ),
            ("spread of clouds' means", _text(self.between)),
            ("output changed by", f"{_text(self.one_particle)} with one particle in place of {self.particles}"),
        ]
        if self.one_label is not None:
            rows.append(("", f"{_text(self.one_label)} with one label, the mean, for all"))
        rows += self._steps("z <- F(z)", self.plain) + self._steps("the own solver", self.own)
        rows += [
            ("distance left after one evaluation", f"{_both(self.reached)} of the start's"),
            (
                f"equilibria from {self.starts} other starts",
                f"{_both(self.distance)} apart, {_both(self.mmd)} in MMD^2; {self.found:.0%} found",
            ),
            ("size of J, root mean square", _both(self.jacobian)),
            ("spectral radius of J", _both(self.radius)),
        ]
        rows += [
            (f"gradient, {name}", f"error {_text(error)}, cosine {cosine:.4f}")
            for name, (error, cosine) in self.gradients.items()
        ]
        if not self.gradients:
            rows.append(("gradients", "not compared: F has no parameters, or no reference converged"))
        return rows

    def _steps(self, title: str, steps: list[Step]) -> list[tuple[str, str]]:
        """Rows of columns, one a step."""
        if not steps:
            return []
        shown = steps[:COLUMNS]
        rows = [(f"after steps of {title}", [str(step.steps) for step in shown])]
        rows.append(("  output changed by", [_text(step.change) for step in shown]))
        rows += [(f"  {name}", [_score(step, name) for step in shown]) for name in shown[0].scores]
        return [(name, " ".join(f"{cell:>8}" for cell in cells)) for name, cells in rows]

    def __str__(self) -> str:
        rows = self.table()
        width = max(len(title) for title, _ in rows)
        lines = [f"  {title:{width}}  {text}" for title, text in rows]
        return "\n".join([f"audit of {len(self.residual)} clouds: {self.verdict}", *lines])


def _findings(audit: Audit):
    """What is to be known, the most important first."""
    worst = max(audit.residual, key=lambda value: math.inf if math.isnan(value) else value)
    if audit.within < MOST:
        share = f"{1 - audit.within:.0%} of the clouds end above a residual of {audit.tol:.0e} (worst {_text(worst)})"
        if mean(audit.solved) < 0.5:
            yield Finding(
                "never converges",
                f"never converges: {share}, and solved further only {mean(audit.solved):.0%} have an equilibrium",
            )
            return
        yield Finding("stops short", f"stops short of equilibria that exist: {share}")
    known = [i for i, solved in enumerate(audit.solved) if solved] or list(range(len(audit.solved)))

    def of(values: list[float]) -> list[float]:
        return [values[i] for i in known]

    spread, start, extent = (median(of(values)) for values in (audit.spread, audit.start_spread, audit.extent))
    reached, jacobian = median(of(audit.reached)), median(of(audit.jacobian))
    if reached <= IGNORED and jacobian <= IGNORED:
        yield Finding(
            "ignores its particles",
            f"F ignores its particles: one evaluation ends at the equilibrium to {_text(reached)} of the way, "
            f"and J is {_text(jacobian)}",
        )
    # Labelled particles may all start from one point.
    if audit.particles > 1 and spread <= ONE_POINT * extent and (start == 0 or spread <= ONE_POINT * start):
        yield Finding(
            "collapsed",
            f"collapsed to one point: particles lie within {_text(spread)} of their mean, {_text(start)} at the "
            f"start, and one in place of {audit.particles} changes the output by {_text(audit.one_particle)}",
        )
    if len(known) > 1 and audit.between <= ONE_POINT * extent and _alike(audit):
        yield Finding("ignores its input", "F ignores its input: different clouds have the same equilibrium")
    other = [value for value in of(audit.mmd) if not math.isnan(value)]
    apart = mean([value > APART for value in other])
    if apart > SOME:
        yield Finding(
            "not unique",
            f"not unique: from other starts {apart:.0%} of the clouds come to another equilibrium, up to "
            f"{_text(max(other))} of their distance from zero away",
        )


def _alike(audit: Audit) -> bool:
    """Whether the clouds' equilibria are as wide as each other, which distributions may be that share their mean."""
    return max(audit.spread) - min(audit.spread) <= ONE_POINT * median(audit.extent)


def mean(values: list) -> float:
    """Mean; NaN of none."""
    return sum(values) / len(values) if values else math.nan


def median(values: list[float]) -> float:
    """Median of the values that are numbers; NaN of none."""
    known = sorted(value for value in values if not math.isnan(value))
    return (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2 if known else math.nan


def _text(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.2g}"


def _score(step: Step, name: str) -> str:
    return f"{step.scores[name]:.4g}" if name in step.scores else "-"


def _both(values: list[float]) -> str:
    """Median and largest."""
    known = [value for value in values if not math.isnan(value)]
    return f"{_text(median(known))}, worst {_text(max(known))}" if known else "unknown"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
