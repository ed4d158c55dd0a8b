"""`audit`: all measurements of a model, on a batch of clouds."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddeq_fast.clouds import PointClouds
from ddeq_fast.diagnostics import measures
from ddeq_fast.diagnostics.measures import GradientError
from ddeq_fast.diagnostics.replay import Replay
from ddeq_fast.diagnostics.results import Audit, Step
from ddeq_fast.gradients import Backward, ImplicitFunction, Phantom
from ddeq_fast.solvers import Auto, Pushforward, run
from ddeq_fast.sums.radial import Riesz
from ddeq_fast.utils.validation import check_integer

# Steps after which the output is looked at.
COUNTS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
PLAIN = 16
# Most steps of a solve that is to be tight, and of the linear one of its gradient.
MAX_STEPS, PRODUCTS = 150, 100
TOLERANCE = 1e-3
_RIESZ = Riesz(1.0)


def audit(
    model: nn.Module,
    x: Tensor,
    weights: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    targets: Tensor | PointClouds | None = None,
    starts: int = 3,
    seed: int = 0,
    **options: Any,
) -> Audit:
    """Does the equilibrium of a model matter, and is it a distribution?

    The model is run on the clouds in evaluation mode, as it is, with solves that go on further, with other starts, and
    with particles in place of a solve; nothing of it is changed.

    Args:
        model: a DDEQ, Classifier or Completer.
        x: clouds (B, m, dim_x); a few dozen tell enough.
        weights: (B, m), zero for padding; ones if None. Boolean ones are a mask.
        mask: boolean (B, m), False for padding.
        targets: labels (B,), int64, of a Classifier, or the whole clouds of a Completer, `PointClouds`: scores are
            measured by them, and gradients are those of its loss, cross-entropy or squared MMD. Without them gradients
            are those of a random functional of the output.
        starts: further starts that equilibria are sought from: normal, with the mean and the deviations of the model's
            own start.
        seed: of these, of what a Completer draws, and of the random directions.
        options: further arguments of the model, such as `noise`; tensors.

    Returns:
        `Audit`: print it, or see its `verdict`.

    Raises:
        TypeError, ValueError: another model, bad targets, or what the model refuses.
    """
    check_integer("starts", starts)
    check_integer("seed", seed, low=0, high=2**62)
    given = {**options, **({} if mask is None else {"mask": mask})}
    replay = Replay(model, x, weights, given, targets, seed)
    with replay.evaluation():
        return _audit(replay, starts, seed)


def _audit(replay: Replay, starts: int, seed: int) -> Audit:
    watched, results = replay.solve()
    problem, start, (own, info) = watched.problem, watched.start, watched.solution
    tol = watched.tol if watched.tol > 0 else TOLERANCE
    known = _solve_on(problem, start, own, tol)
    z, solved = known
    mass = measures.masses(problem, z)
    with torch.no_grad():
        away = measures.distance(start, z, mass)
        left = measures.distance(problem.constrained_image(start), z, mass)
    reached = torch.where(away > 0, left / away, torch.where(left > 0, torch.inf, 0))
    apart, mmd, found = _from_other_starts(problem, start, known, tol, starts, seed)
    return Audit(
        particles=start.shape[1],
        tol=tol,
        evaluations=float(info.evaluations.double().mean()),
        residual=info.residual.tolist(),
        solved=solved.tolist(),
        start_spread=measures.spread(start, mass).tolist(),
        own_spread=measures.spread(own, mass).tolist(),
        spread=measures.spread(z, mass).tolist(),
        extent=measures.extent(z, mass).tolist(),
        between=measures.between(z, mass),
        one_particle=_one_particle(replay, problem, start, own),
        one_label=_one_label(replay, problem, start, own),
        plain=_steps(replay, _plain(problem, start), results.output),
        own=_steps(replay, replay.watch(problem, start, COUNTS), results.output),
        reached=reached.tolist(),
        starts=starts,
        found=found,
        distance=apart.tolist(),
        mmd=mmd.tolist(),
        jacobian=measures.jacobian_size(problem, z, seed=seed).tolist(),
        radius=measures.spectral_radius(problem, z, seed=seed).tolist(),
        gradients=_gradients(replay, own, z, solved & info.converged),
        scores=results.scores,
    )


def _tight(problem: Pushforward, z: Tensor, tol: float) -> Auto:
    """A solver to a tenth of the tolerance, and as far below as the precision allows."""
    rounding = torch.finfo(problem.precision(z)).eps
    return Auto(tol=min(tol / 10, max(100 * rounding, 1e-10)), max_steps=MAX_STEPS)


class _Known(NamedTuple):
    """Equilibria z (B, n, d), and which of them are known well (B,)."""

    z: Tensor
    solved: Tensor


@torch.no_grad()
def _solve_on(problem: Pushforward, start: Tensor, begin: Tensor, tol: float) -> _Known:
    """The equilibrium as well as it can be had from `begin`.

    It is known well if the residual is a tenth of the tolerance of that at `start`, or if F moves particles by a
    hundredth of it: of clouds that are one point MMD is the root of that, which rounding keeps above a small tolerance.
    """
    image, mass = problem.constrained_image(start), measures.masses(problem, start)
    scale = problem.squared_mmd(start, image, _RIESZ).sqrt()
    scale = torch.where(scale > 0, scale, 1)
    usable = begin.isfinite().all(-1).all(-1)[:, None, None]
    z, info = run(_tight(problem, start, tol), problem, torch.where(usable, begin, start), scale=scale)
    moved, move = measures.distance(start, image, mass), measures.distance(z, problem.constrained_image(z), mass)
    return _Known(z, (info.residual <= tol / 10) | (move <= tol / 100 * moved))


def _from_other_starts(
    problem: Pushforward, start: Tensor, known: _Known, tol: float, starts: int, seed: int
) -> tuple[Tensor, Tensor, float]:
    """Largest distances and squared MMDs (B,) between equilibria and those from other starts, relative; NaN where
    none was found. And the share of these solves that found one."""
    draw, moving, mass = torch.Generator().manual_seed(seed), problem.moving(start), measures.masses(problem, start)
    shares = mass[..., None].to(start.dtype)
    inside = torch.where(moving, start, 0)
    mean = (shares * inside).sum(1, keepdim=True)
    deviation = (shares * (inside - mean).square()).sum(1, keepdim=True).sqrt()
    deviation = torch.where(deviation > 0, deviation, 1)
    apart = torch.full((len(start),), -torch.inf, dtype=torch.float64, device=start.device)
    mmd, hits = apart.clone(), 0.0
    for _ in range(starts):
        noise = torch.randn(start.shape, generator=draw, dtype=torch.float64).to(start)
        begin = torch.where(moving, mean + deviation * noise, start)
        other = _solve_on(problem, start, begin, tol)
        hits += float(other.solved.double().mean())
        for largest, measure in ((apart, measures.relative_distance), (mmd, measures.relative_mmd)):
            value = torch.where(other.solved & known.solved, measure(other.z, known.z, mass), -torch.inf)
            largest.copy_(torch.maximum(largest, value))
    apart, mmd = (torch.where(part.isneginf(), torch.nan, part) for part in (apart, mmd))
    return apart, mmd, hits / starts


@torch.no_grad()
def _plain(problem: Pushforward, start: Tensor) -> dict[int, Tensor]:
    """Particles after some evaluations z <- F(z)."""
    z, seen = start, {0: start}
    for step in range(1, PLAIN + 1):
        z = torch.where(problem.moving(z), problem.image(z), z)
        if step in COUNTS:
            seen[step] = z
    return seen


def _steps(replay: Replay, seen: dict[int, Tensor], output: Tensor) -> list[Step]:
    """What the model makes of these particles in place of its equilibrium's."""
    steps = []
    for count, z in seen.items():
        bounded = bool((z.isfinite() & (z.abs() < 1e6)).all())
        results = replay.results(z) if bounded else None
        change = math.inf if results is None else measures.change(results.output, output)
        steps.append(Step(count, change, {} if results is None else results.scores))
    return steps


def _one_particle(replay: Replay, problem: Pushforward, start: Tensor, own: Tensor) -> float:
    """Change of the output at equilibrium with the first particle alone, which has the mass of all."""
    n, moving = start.shape[1], problem.moving(start)[..., 0]
    if problem.frozen is not None and bool(problem.frozen.any()):
        return math.nan
    rows, first = torch.arange(len(start), device=start.device), moving.int().argmax(1)

    def alone(part: Any) -> Any:
        of_particles = isinstance(part, Tensor) and part.dim() > 1 and part.shape[1] == n
        return part[rows, first][:, None] if of_particles else part

    parts = {name: part if name == "context" else alone(part) for name, part in problem.parts().items()}
    weights = start.new_ones(start.shape[:2]) if problem.weights is None else problem.weights
    parts["weights"] = weights.sum(1, keepdim=True)
    one = run(replay.ddeq.solver, _labelled(problem, parts), start[rows, first][:, None]).particles
    outputs = (replay.results(z, image=False).output for z in (one.expand_as(own), own))
    return measures.change(*outputs)


def _labelled(problem: Pushforward, parts: dict[str, Any]) -> Pushforward:
    """The problem with other parts; labels among them are those that F sees, too."""
    problem = problem.with_parts(parts)
    labels, labelled = getattr(problem, "labels", None), getattr(problem.func, "labelled", None)
    if labels is None or labelled is None:
        return problem
    with torch.no_grad():
        return problem.with_parts({"context": labelled(problem.context, labels, problem.weights)})


def _one_label(replay: Replay, problem: Pushforward, start: Tensor, own: Tensor) -> float | None:
    """Change of the output with the mean label of every cloud for all its particles, at that equilibrium."""
    labels = getattr(problem, "labels", None)
    if labels is None:
        return None
    mass = measures.masses(problem, start)[..., None].to(labels.dtype)
    alike = (mass * labels).sum(1, keepdim=True).expand_as(labels).contiguous()
    one = run(replay.ddeq.solver, _labelled(problem, {"labels": alike}), start).particles
    outputs = (replay.results(z, image=False).output for z in (one, own))
    return measures.change(*outputs)


def _gradients(replay: Replay, own: Tensor, z: Tensor, rows: Tensor) -> dict[str, GradientError]:
    """Errors of gradients at the model's own solutions, of those clouds for which these and a reference are solved."""
    if float(rows.double().mean()) < 0.5:
        return {}
    tight = ImplicitFunction(method="gmres", max_steps=PRODUCTS, tol=1e-5)
    reference = replay.gradient(z, tight, rows)
    if reference is None or reference[1] is None or bool((reference[1][rows] > 1e-3).any()):
        return {}
    backwards: dict[str, Backward] = {"own": replay.ddeq.backward, "ift": ImplicitFunction()}
    backwards |= {f"phantom {k}": Phantom(steps=k) for k in (1, 2, 3, 5, 10)}
    found = {name: replay.gradient(own, backward, rows) for name, backward in backwards.items()}
    return {name: measures.gradient_error(part[0], reference[0]) for name, part in found.items() if part is not None}
