"""The loop that every iterative solver runs in: evaluations, residuals, and samples leaving as they finish."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from ddeq_fast.solvers import graphs
from ddeq_fast.solvers.problem import FixedTarget, Pushforward
from ddeq_fast.utils import precision, transforms, tree
from ddeq_fast.utils.warning import warn

if TYPE_CHECKING:
    from ddeq_fast.solvers.base import IterativeSolver, Solver


class ConvergenceWarning(UserWarning):
    """Some samples ended above the tolerance."""


class SolveInfo(NamedTuple):
    """What a solve took and where it ended, for each sample of the batch.

    evaluations: (B,) int64, evaluations of F spent on the sample (a vector-Jacobian product is not counted again).
    residual: (B,) float64, MMD(Z, F(Z)) of the returned cloud, divided by that of the start cloud if relative.
    converged: (B,) bool, residual <= tol.
    scale: (B,) float64, what the residual is relative to; 1 if absolute, or if the start was a fixed point already.
    """

    evaluations: Tensor
    residual: Tensor
    converged: Tensor
    scale: Tensor


class Solution(NamedTuple):
    """Particles (B, n, d), detached, and the `SolveInfo` of the solve."""

    particles: Tensor
    info: SolveInfo


_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quiet() -> Iterator[None]:
    """No `ConvergenceWarning` from what this thread does inside; filters of warnings are the whole process's."""
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


def warn_if_unconverged(solver: Solver, problem: Pushforward, solution: Solution) -> None:
    """Issue a `ConvergenceWarning` that counts the samples above the tolerance; with tol = 0 none is expected.

    It counts those down at the rounding of their precision too, which no more steps would help.
    """
    info, z, rest = solution.info, solution.particles, ""
    if not solver.tol > 0 or _QUIET.get() or bool(info.converged.all()):
        return
    kernel, lowest = getattr(solver, "rounding_kernel", None), problem.precision(z)
    if lowest != z.dtype:
        rest = f"; F is evaluated in {lowest}, whose rounding bounds how far they fall"
    elif kernel is not None and not isinstance(problem, FixedTarget):
        stuck = problem.at_rounding(z, info.residual * info.scale, kernel, solver.backend) & ~info.converged
        if bool(stuck.any()):
            rest = (
                f"; {int(stuck.sum())} of them are down at the rounding of {z.dtype}, where more steps do not help: "
                "float64 goes on, by model.double() and inputs to match, or a larger tol accepts them"
            )
    warn_of(type(solver).__name__, info.residual, info.converged, solver.tol, rest)


def warn_of(name: str, residual: Tensor, converged: Tensor, tol: float, rest: str = "") -> None:
    """Issue a `ConvergenceWarning` if some samples have not converged; its text ends with `rest`."""
    missed = ~converged
    if not _QUIET.get() and bool(missed.any()):
        warn(
            f"{name}: {int(missed.sum())} of {missed.numel()} samples ended above a residual of {tol:g} "
            f"(worst {float(residual.max()):.2g}){rest}",
            ConvergenceWarning,
        )


# callback(step, particles, residual), see `solve`
Callback = Callable[[int, Tensor, Tensor], None]


# Share of a batch that must be done before it is left behind: to copy all that is known of the others takes longer than
# to evaluate F at a few more.
DONE_SHARE = 1 / 8
# Steps in which a sample down at the rounding of its precision must have gained a tenth, to go on.
FLOOR_STEPS = 5


@torch.no_grad()
def iterate(
    solver: IterativeSolver,
    problem: Pushforward,
    start: Tensor,
    scale: Tensor | None = None,
    callback: Callback | None = None,
    max_steps: int | Tensor | None = None,
) -> Solution:
    """Run `solver` (see `IterativeSolver`) from `start` (B, n, d) until every sample is done or steps run out.

    `scale` (B,) is what residuals are relative to, that of `start` if None. `callback` is called before every step and
    after the last. `max_steps` are the solver's if None, and never more than those; (B,) int64 for a number of each
    sample's own.

    Raises:
        RuntimeError: under `torch.vmap`, or in forward mode, whose derivatives no solve passes on.
    """
    refuse_transforms(start, *tree.leaves((problem.context, problem.weights)))
    problem = problem.recorded(start)
    with precision.disabled(start.device.type):  # that of F is the problem's own affair
        return _Run(solver, problem, start, scale, callback, max_steps).run()


def refuse_transforms(*tensors: Tensor) -> None:
    """Raise RuntimeError if one of them is mapped, or has a tangent, of which the solution would know nothing."""
    if not transforms.active():
        return
    if any(map(transforms.mapped, tensors)):
        raise RuntimeError("a solve cannot run under torch.vmap, since it looks at residuals: stack the clouds instead")
    if any(unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError(
            "a solve has no forward-mode derivatives: take those of reverse mode (torch.autograd.grad, torch.func.vjp)"
        )


class _Run:
    """One solve. Full-batch results in `z`, `residual`...; `rows` are the samples still moving."""

    def __init__(
        self,
        solver: IterativeSolver,
        problem: Pushforward,
        start: Tensor,
        scale: Tensor | None,
        callback: Callback | None,
        max_steps: int | Tensor | None,
    ):
        self.solver, self.callback = solver, callback
        self.allowed = max_steps if isinstance(max_steps, Tensor) else None
        max_steps = max_steps if self.allowed is None else int(self.allowed.max())
        self.max_steps = solver.max_steps if max_steps is None else min(max_steps, solver.max_steps)
        self.problem = problem.prepared()
        batch, device = start.shape[0], start.device
        self.z = start.detach().clone()
        self.residual = torch.full((batch,), torch.inf, dtype=torch.float64, device=device)
        self.evaluations = torch.zeros(batch, dtype=torch.int64, device=device)
        self.rows = torch.arange(batch, device=device)
        # Residuals and steps of the last halving, for `patience`, and of the last gain of a tenth.
        self.halved, self.gained = ((self.residual.clone(), torch.zeros_like(self.evaluations)) for _ in range(2))
        self.scale = scale
        self.recorded = solver.cuda_graph and graphs.usable(start)
        self.replay: graphs.Recording | None = None

    def run(self) -> Solution:
        solver, z, state = self.solver, self.z.clone(), None
        moving, everyone = torch.ones_like(self.rows, dtype=torch.bool), True
        for step in range(self.max_steps + 1):
            last = step == self.max_steps
            check, due = last or step % solver.check_every == 0, None
            if self.allowed is not None:
                due = moving & (self.allowed[self.rows] <= step)
            y, proposal, state, direction = self._advance(z, state, step)
            self.evaluations.index_add_(0, self.rows, moving.long())
            if last and solver.stop_on == "gradient":  # no direction is known of the last cloud
                if not solver.keep_best:
                    self.z[self.rows[moving]] = z[moving]
            elif check or (due is not None and bool(due.any())):
                if solver.stop_on == "gradient":
                    squared = direction.double().square().sum((1, 2))
                else:
                    squared = self.problem.squared_mmd(z, y, solver.kernel_at(state, step), solver.backend)
                # Between checks, samples at their last step alone: the others must not depend on them.
                going = self._record(squared, z, y, moving if check else due, step)
                moving, check = going if check else moving, True
                if due is not None:
                    moving = moving & ~due
            self._show(step, z, moving)
            if last:
                break
            if check:  # the device is waited for here, and between two checks nowhere
                count = int(moving.sum())
                everyone = count == len(moving)
                if not count:
                    break
                done = len(moving) - count
                if self.problem.separable and done >= DONE_SHARE * len(moving) and not self.recorded:
                    keep, everyone = moving.nonzero().squeeze(1), True
                    self.problem, self.rows, moving = self.problem.select(keep), self.rows[keep], moving[keep]
                    proposal, state, z = tree.select((proposal, state, z), keep)
            if self.problem.frozen is not None:
                proposal = torch.where(self.problem.frozen[..., None], z, proposal)
            z = proposal if everyone else torch.where(moving[:, None, None], proposal, z)
        assert self.scale is not None  # the start is always looked at
        converged = self.residual <= solver.tol
        return Solution(self.z, SolveInfo(self.evaluations, self.residual, converged, self.scale))

    def _advance(self, z, state, step):
        """F(z); before the last step also the next cloud, the next state and the direction of the step."""
        solver, last = self.solver, step == self.max_steps
        if self.recorded and not last:
            if solver.alike_from is not None and step == max(1, solver.alike_from):
                self.replay = graphs.recording(solver, self.problem, z, state, step)
            if self.replay is not None:
                return self.replay(z, state)
        y, vjp = self.problem.linearise(z) if solver.needs_vjp and not last else (self.problem.image(z), None)
        if step == 0:
            refuse_transforms(y)
            self.problem.check_image(z, y)
            state = solver.init(self.problem, z, y)
        return (y, None, state, None) if last else (y, *solver.step(self.problem, z, y, vjp, state, step))

    def _show(self, step, z, moving):
        """Hand copies to the callback."""
        if self.callback is not None:
            particles = self.z.clone()
            particles[self.rows[moving]] = z[moving]
            self.callback(step, particles, self.residual.clone())

    def _record(self, squared, z, y, moving, step):
        """Take down residuals and clouds of the moving samples; return those that go on."""
        solver, rows, problem = self.solver, self.rows, self.problem
        # One that has overflown would make all others small beside it.
        finite = squared.isfinite()
        if solver.stop_on == "gradient":  # which says nothing of the clouds themselves
            finite &= problem.present(z).isfinite().all(-1).all(-1)
            finite &= problem.present_image(y).isfinite().all(-1).all(-1)
        squared = squared.masked_fill(~finite, torch.nan)
        if solver.stop_together:
            squared = squared.mean().expand_as(squared)
        if self.scale is None:
            # A start that is a fixed point already is nothing to be relative to.
            self.scale = torch.where((squared != 0) & solver.relative, squared.sqrt(), 1)
        scale = self.scale[rows]
        residual = squared.sqrt() / scale
        better = moving & (residual < self.residual[rows]) if solver.keep_best else moving
        self.z[rows[better]] = z[better]
        self.residual[rows[better]] = residual[better]
        going = moving & (residual > solver.tol)
        if solver.patience is not None:
            going &= self._since(self.halved, 0.5, residual, step) <= solver.patience
            idle = self._since(self.gained, 0.9, residual, step) >= FLOOR_STEPS
            going &= ~self._at_the_floor(going & idle, z, scale)
        return going

    def _since(self, milestone, factor, residual, step):
        """Steps since the residual fell to this part of what it was at the milestone, which moves on with it."""
        (best, when), rows = milestone, self.rows
        fallen = residual < factor * best[rows]
        best[rows[fallen]], when[rows[fallen]] = residual[fallen], step
        return step - when[rows]

    def _at_the_floor(self, idle, z, scale):
        """Which of the `idle` samples have nothing left but rounding, and a tolerance far below that."""
        kernel = self.solver.rounding_kernel
        if kernel is None or self.solver.tol == 0 or not bool(idle.any()):
            return torch.zeros_like(idle)
        limit = self.problem.rounding(z, kernel, self.solver.backend)
        low = self.residual[self.rows] * scale <= 2 * limit
        return idle & low & (self.solver.tol * scale < limit / 2)
