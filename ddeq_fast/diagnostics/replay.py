"""A model run on the same clouds again and again: with its own solver, watched, or with particles that are given."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddeq_fast.clouds import PointClouds
from ddeq_fast.distances.chamfer import chamfer
from ddeq_fast.gradients import Backward
from ddeq_fast.models import DDEQ, Classification, Classifier, Completer, Completion, missing_points
from ddeq_fast.solvers import Pushforward, Solution, SolveInfo, Solver, quiet
from ddeq_fast.sums.mmd import squared_mmd
from ddeq_fast.utils.validation import check_cloud, check_weights

Targets = Tensor | PointClouds | None


class Results(NamedTuple):
    """What a model makes of a batch.

    output: (B, ...): logits, new points of completed clouds, or particles; zero at padding. losses: (B,), by which
    gradients are compared. scores: means over the batch, where targets are known.
    """

    output: Tensor
    losses: Tensor
    scores: dict[str, float]


class Watched(Solver):
    """A solver, and what it was asked: problem, start, and its solution."""

    problem: Pushforward
    start: Tensor
    solution: Solution

    def __init__(self, inner: Solver):
        self.inner, self.tol, self.backend = inner, inner.tol, inner.backend

    def solve(self, problem, start, *, scale=None, callback=None):
        self.problem, self.start = problem, start
        given = {} if scale is None else {"scale": scale}
        self.solution = self.inner.solve(problem, start, **given)
        return self.solution


class Given(Solver):
    """No solver: it returns these particles, whatever it is asked."""

    tol = 0.0

    def __init__(self, particles: Tensor):
        self.particles = particles

    def solve(self, problem, start, *, scale=None, callback=None):
        zeros = torch.zeros(len(start), dtype=torch.float64, device=start.device)
        return Solution(self.particles, SolveInfo(zeros.long(), zeros, zeros == 0, zeros + 1))


class Replay:
    """A model and its inputs, in evaluation mode inside `with`.

    Args:
        model: a DDEQ, Classifier or Completer.
        x, weights: clouds (B, m, dim_x) and weights (B, m) or None.
        options: further arguments of the model, which fix all that it draws.
        targets: labels (B,) of a classifier, whole clouds of a completer, or None.
        seed: of the random functional of the output that stands for a loss without targets.

    Raises:
        TypeError, ValueError: another model, or targets that it has none of.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, weights: Tensor | None, options: dict[str, Any], targets: Targets, seed: int
    ):
        if not isinstance(model, (DDEQ, Classifier, Completer)):
            raise TypeError(f"model must be a DDEQ, Classifier or Completer, got {type(model).__name__}")
        self.model, self.x, self.weights, self.options, self.seed = model, x, weights, options, seed
        self.ddeq = model if isinstance(model, DDEQ) else model.ddeq
        check_cloud("x", x)
        self.targets = _check_targets(model, x, targets)
        if isinstance(model, Completer) and not {"start", "noise"} & options.keys():
            draw = torch.Generator().manual_seed(seed)
            present = check_weights("weights", weights, options.get("mask"), x)
            most = int(missing_points(present, model.growth).max())
            noise = torch.randn(len(x), most, x.shape[2], generator=draw, dtype=torch.float64).to(x)
            self.options = {**options, "noise": noise}

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """The model in evaluation mode, and put back."""
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            with quiet():
                yield
        finally:
            for module in training:
                module.training = True

    @contextmanager
    def _with(self, **parts: Any) -> Iterator[None]:
        """The layer with other parts."""
        own = {name: getattr(self.ddeq, name) for name in parts}
        try:
            for name, part in parts.items():
                setattr(self.ddeq, name, part)
            yield
        finally:
            for name, part in own.items():
                setattr(self.ddeq, name, part)

    def _run(self) -> Any:
        return self.model(self.x, self.weights, **self.options)

    def solve(self) -> tuple[Watched, Results]:
        """A run with the model's own solver: what it was asked, and what the model made of it."""
        watched = Watched(self.ddeq.solver)
        with self._with(solver=watched), torch.no_grad():
            return watched, self._results(self._run())

    def results(self, particles: Tensor, image: bool | None = None) -> Results:
        """The run with these particles (B, n, d) in place of a solve; `image` replaces the layer's `return_image`."""
        parts: dict[str, Any] = {} if image is None else {"return_image": image}
        with self._with(solver=Given(particles), **parts), torch.no_grad():
            return self._results(self._run())

    def gradient(self, particles: Tensor, backward: Backward, rows: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Gradient (p,) of the mean loss of the clouds `rows`, boolean (B,), in the parameters of F, through these
        particles by `backward`; and the residual of that, where it solves. None of an F without parameters."""
        parameters = [parameter for parameter in self.ddeq.parameters() if parameter.requires_grad]
        if not parameters:
            return None
        with self._with(solver=Given(particles), backward=backward), torch.enable_grad():
            output = self._run()
            loss = torch.where(rows, self._results(output).losses, 0).sum() / rows.sum()
            if not loss.requires_grad:
                return None
            found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        equilibrium = output if isinstance(self.model, DDEQ) else output.equilibrium
        return torch.cat([part.flatten() for part in found]), equilibrium.backward_info.residual

    def watch(self, problem: Pushforward, start: Tensor, counts: tuple[int, ...]) -> dict[int, Tensor]:
        """Particles (B, n, d) of the own solver after these numbers of steps, if it can be watched."""
        solver, seen = self.ddeq.solver, {}
        if "callback" not in inspect.signature(solver.solve).parameters:
            return {}

        def note(step: int, particles: Tensor, residual: Tensor) -> None:
            if step in counts:
                seen[step] = particles

        solver.solve(problem, start, callback=note)
        return seen

    def _results(self, output: Any) -> Results:
        targets = self.targets
        if isinstance(output, Classification):
            logits = output.logits
            if not isinstance(targets, Tensor):
                return Results(logits, self._functional(logits), {})
            losses = F.cross_entropy(logits, targets, reduction="none")
            hits = logits.argmax(1).eq(targets)
            return Results(
                logits, losses, {"loss": float(losses.detach().mean()), "accuracy": float(hits.double().mean())}
            )
        if isinstance(output, Completion):
            new = (output.weights > 0) & ~output.observed
            points = torch.where(new[..., None], output.points, 0)
            if not isinstance(targets, PointClouds):
                return Results(points, self._functional(points), {})
            clouds, (a, b) = (output.points, targets.points), (output.weights, targets.weights)
            losses = squared_mmd(*clouds, x_weights=a, y_weights=b)
            nearest = chamfer(*clouds, x_mask=a > 0, y_mask=b > 0).detach()
            return Results(points, losses, {"mmd": float(losses.detach().mean()), "chamfer": float(nearest.mean())})
        particles = output.problem.present(output.particles)
        return Results(particles, self._functional(particles), {})

    def _functional(self, output: Tensor) -> Tensor:
        """A random linear functional of each sample, (B,)."""
        draw = torch.Generator().manual_seed(self.seed)
        direction = torch.randn(output.shape, generator=draw, dtype=torch.float64).to(output)
        return (output * direction).flatten(1).sum(1)


def _check_targets(model: nn.Module, x: Tensor, targets: Any) -> Targets:
    if targets is None:
        return None
    if isinstance(model, Classifier):
        if not isinstance(targets, Tensor) or targets.dtype != torch.int64:
            raise TypeError(f"targets of a Classifier must be labels, int64, got {_kind(targets)}")
        classes = model.head.out_features
        if targets.shape != x.shape[:1] or not 0 <= int(targets.min()) <= int(targets.max()) < classes:
            raise ValueError(f"targets must be {len(x)} labels below {classes}, got {tuple(targets.shape)}")
        return targets
    if isinstance(model, Completer):
        if not isinstance(targets, (tuple, list)) or len(targets) != 2:
            raise TypeError(f"targets of a Completer must be PointClouds, got {_kind(targets)}")
        points, weights = targets
        check_cloud("targets", points, like=("x", x))
        if points.dim() != 3 or points.shape[::2] != x.shape[::2]:
            raise ValueError(f"targets must have shape ({len(x)}, m, {x.shape[2]}), got {tuple(points.shape)}")
        return PointClouds(points, check_weights("targets.weights", weights, None, points))
    raise TypeError("targets must be None for a DDEQ, which has neither labels nor whole clouds")


def _kind(thing: object) -> str:
    return str(thing.dtype) if isinstance(thing, Tensor) else type(thing).__name__
