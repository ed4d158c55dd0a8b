"""The loop that every iterative solver runs in: evaluations, residuals, and samples leaving as they finish."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq_fast import tree
from ddeq_fast.solvers import graphs
from ddeq_fast.solvers.problem import Pushforward


class ConvergenceWarning(UserWarning):
    """Some samples ended above the tolerance."""


class SolveInfo(NamedTuple):
    """What a solve took and where it ended, for each sample of the batch.

    evaluations: (B,) int64, evaluations of F spent on the sample (a vector-Jacobian product is not counted again).
    residual: (B,) float64, MMD(Z, F(Z)) of the returned cloud, divided by that of the start cloud if relative.
    converged: (B,) bool, residual <= tol.
    scale: (B,) float64, what the residual is relative to; 1 if absolute.
    """

    evaluations: Tensor
    residual: Tensor
    converged: Tensor
    scale: Tensor


class Solution(NamedTuple):
    """Particles (B, n, d), detached, and the `SolveInfo` of the solve."""

    particles: Tensor
    info: SolveInfo


def warn_if_unconverged(name: str, info: SolveInfo, tol: float) -> None:
    """Issue a `ConvergenceWarning` that counts the samples above the tolerance; with tol = 0 none is expected."""
    if tol > 0:
        warn_of(name, info.residual, info.converged, tol, stacklevel=4)


def warn_of(name: str, residual: Tensor, converged: Tensor, tol: float, stacklevel: int = 3) -> None:
    """Issue a `ConvergenceWarning` if some samples have not converged."""
    missed = ~converged
    if bool(missed.any()):
        warnings.warn(
            f"{name}: {int(missed.sum())} of {missed.numel()} samples ended above a residual of {tol:g} "
            f"(worst {float(residual.max()):.2g})",
            ConvergenceWarning,
            stacklevel=stacklevel,
        )


# callback(step, particles, residual), see `solve`
Callback = Callable[[int, Tensor, Tensor], None]


@torch.no_grad()
def iterate(
    solver, problem: Pushforward, start: Tensor, scale: Tensor | None = None, callback: Callback | None = None
) -> Solution:
    """Run `solver` (see `IterativeSolver`) from `start` (B, n, d) until every sample is done or steps run out.

    `scale` (B,) is what residuals are relative to, that of `start` if None. `callback` is called before every step and
    after the last.
    """
    return _Run(solver, problem, start, scale, callback).run()


class _Run:
    """One solve. Full-batch results in `z`, `residual`...; `rows` are the samples still moving."""

    def __init__(self, solver, problem, start, scale, callback):
        self.solver, self.callback = solver, callback
        self.problem = problem.prepared()
        batch, device = start.shape[0], start.device
        self.z = start.detach().clone()
        self.residual = torch.full((batch,), torch.inf, dtype=torch.float64, device=device)
        self.evaluations = torch.zeros(batch, dtype=torch.int64, device=device)
        self.rows = torch.arange(batch, device=device)
        self.milestone = self.residual.clone()  # residual and step of the last real gain, for `patience`
        self.milestone_step = torch.zeros_like(self.evaluations)
        self.scale = scale
        self.recorded, self.replay = solver.cuda_graph and graphs.usable(start), None

    def run(self) -> Solution:
        solver, z, state = self.solver, self.z.clone(), None
        moving, everyone = torch.ones_like(self.rows, dtype=torch.bool), True
        for step in range(solver.max_steps + 1):
            last = step == solver.max_steps
            check = last or step % solver.check_every == 0
            y, proposal, state, direction = self._advance(z, state, step)
            self.evaluations.index_add_(0, self.rows, moving.long())
            if last and solver.stop_on == "gradient":
                self.z[self.rows[moving]] = z[moving]
            elif check:
                if solver.stop_on == "gradient":
                    squared = direction.double().square().sum((1, 2))
                else:
                    squared = self.problem.squared_mmd(z, y, solver.kernel_at(state, step), solver.backend)
                finite = z.isfinite().all(-1).all(-1) & y.isfinite().all(-1).all(-1)
                moving = self._record(squared.masked_fill(~finite, torch.nan), z, moving, step)
            self._show(step, z, moving)
            if last:
                break
            if check:  # the device is waited for here, and between two checks nowhere
                count = int(moving.sum())
                everyone = count == len(moving)
                if not count:
                    break
                if self.problem.separable and not everyone and not self.recorded:
                    keep, everyone = moving.nonzero().squeeze(1), True
                    self.problem, self.rows, moving = self.problem.select(keep), self.rows[keep], moving[keep]
                    proposal, state, z = tree.select((proposal, state, z), keep)
            z = proposal if everyone else torch.where(moving[:, None, None], proposal, z)
        converged = self.residual <= solver.tol
        return Solution(self.z, SolveInfo(self.evaluations, self.residual, converged, self.scale))

    def _advance(self, z, state, step):
        """F(z); before the last step also the next cloud, the next state and the direction of the step."""
        solver, last = self.solver, step == self.solver.max_steps
        if self.recorded and not last:
            if step == max(1, solver.alike_from):
                self.replay = graphs.recording(solver, self.problem, z, state, step)
            if self.replay is not None:
                return self.replay(z, state)
        y, vjp = self.problem.linearise(z) if solver.needs_vjp and not last else (self.problem.image(z), None)
        if step == 0:
            state = solver.init(self.problem, z, y)
        return (y, None, state, None) if last else (y, *solver.step(self.problem, z, y, vjp, state, step))

    def _show(self, step, z, moving):
        """Hand copies to the callback."""
        if self.callback is not None:
            particles = self.z.clone()
            particles[self.rows[moving]] = z[moving]
            self.callback(step, particles, self.residual.clone())

    def _record(self, squared, z, moving, step):
        """Take down residuals and clouds of the moving samples; return those that go on."""
        solver, rows = self.solver, self.rows
        if solver.stop_together:
            squared = squared.mean().expand_as(squared)
        if self.scale is None:
            self.scale = squared.sqrt() if solver.relative else torch.ones_like(squared)
        # A start that is a fixed point already has nothing to be relative to.
        residual = torch.where(squared == 0, 0.0, squared.sqrt() / self.scale[rows])
        better = moving & (residual < self.residual[rows]) if solver.keep_best else moving
        self.z[rows[better]] = z[better]
        self.residual[rows[better]] = residual[better]
        going = moving & (residual > solver.tol)
        if solver.patience is not None:
            gained = residual < 0.5 * self.milestone[rows]
            self.milestone[rows[gained]] = residual[gained]
            self.milestone_step[rows[gained]] = step
            going &= step - self.milestone_step[rows] <= solver.patience
        return going
