"""Auto: Anderson acceleration where it converges, the flow where it does not."""

from __future__ import annotations

import torch

from ddeq_fast.solvers.anderson import Anderson
from ddeq_fast.solvers.base import Solver
from ddeq_fast.solvers.flow import MMDFlow
from ddeq_fast.solvers.iterate import Callback, Solution, iterate
from ddeq_fast.solvers.problem import FixedTarget
from ddeq_fast.sums.radial import RadialKernel
from ddeq_fast.utils import tree
from ddeq_fast.utils.validation import check_integer


class Auto(Solver):
    """Anderson first; samples it leaves above `tol` go to the flow from their best iterate, and, if still above,
    to the flow from their start. The best cloud of the three is returned, so that no sample ends above both
    `tol` and the residual of the flow alone. Samples down at the rounding of their particles are left at that.

    On trained classifiers Anderson acceleration reaches 1e-4 on every sample in 20 evaluations, while flows of any
    step rule are above 1e-2 after forty; a depth beyond 6 saves one evaluation at most and costs more than that,
    and no other regularisation saves any (`python -m bench study`).

    Args:
        kernel: kernel of the residual and of the flow; `Riesz(1)` if None.
        max_steps: most steps of all stages together, on any sample: an Anderson acceleration of so many, and flows of
            what it leaves of them; one more evaluation certifies the last cloud. The flow alone may then end lower.
            None for what each stage is allowed on its own.
        tol: residual MMD(Z, F(Z)) at which a sample is done.
        relative: measure residuals relative to that of the start cloud.
        anderson, flow: options of the two solvers, other than those that would make their residuals incomparable.
        backend: backend of the kernel sums.
        cuda_graph: see `IterativeSolver`, for both.
    """

    def __init__(
        self,
        kernel: RadialKernel | None = None,
        *,
        max_steps: int | None = None,
        tol: float = 1e-3,
        relative: bool = True,
        anderson: dict | None = None,
        flow: dict | None = None,
        backend: str = "auto",
        cuda_graph: bool = False,
    ):
        shared = {"kernel": kernel, "tol": tol, "relative": relative, "backend": backend, "cuda_graph": cuda_graph}
        self.max_steps = None if max_steps is None else check_integer("max_steps", max_steps)
        for name, options in (("anderson", anderson), ("flow", flow)):
            if not isinstance(options, (dict, type(None))):
                raise TypeError(f"{name} must be a dict of options, got {type(options).__name__}")
            clash = sorted({*shared, "stop_on", "stop_together", "anneal", "rescale"} & set(options or ()))
            if clash:
                raise ValueError(f"{name} must not set {', '.join(clash)}: the residuals of both solvers are compared")
        self.anderson = Anderson(**{**shared, **(anderson or {})})
        self.flow = MMDFlow(**{**shared, **(flow or {})})
        self.tol, self.backend = self.anderson.tol, self.anderson.backend

    @property
    def rounding_kernel(self):
        return self.anderson.kernel

    def solve(self, problem, start, *, scale=None, callback=None):
        steps = self.max_steps
        if isinstance(problem, FixedTarget):  # its image may have another number of points
            return iterate(self.flow, problem, start, scale, callback, steps)
        problem = problem.recorded(start)
        best = iterate(self.anderson, problem, start, scale, callback, steps)
        for from_start in (False, True):
            missed = ~(best.info.converged | self._at_rounding(problem, best))
            if self.max_steps is not None:  # each stage takes one evaluation more than steps
                steps = self.max_steps - best.info.evaluations
                missed &= steps >= 1
            rows = missed.nonzero().squeeze(1)
            if not rows.numel():
                break
            if self.max_steps is not None:  # of each sample's own, which does not depend on the others
                steps = steps[rows] if problem.separable else int(steps[rows].min())
            rows = rows if problem.separable else torch.arange(len(start), device=start.device)
            part = problem.select(rows) if problem.separable else problem
            begin = start if from_start else best.particles
            scale = tree.select(best.info.scale, rows)
            again = iterate(self.flow, part, begin[rows], scale, _among(callback, best, rows), steps)
            best = _better(best, again, rows)
        return best

    def _at_rounding(self, problem, solution):
        """Samples whose residual is what the rounding of their particles makes of it: nothing lowers it."""
        if bool(solution.info.converged.all()):
            return solution.info.converged
        residual = solution.info.residual * solution.info.scale
        return problem.at_rounding(solution.particles, residual, self.anderson.kernel, self.backend)


def _among(callback: Callback | None, best: Solution, rows) -> Callback | None:
    """`callback` for a solve of the samples `rows` alone: the others as in `best`, steps numbered on from there."""
    if callback is None:
        return None
    taken = int(best.info.evaluations.max())

    def watch(step, particles, residual):
        everything = best.particles.index_copy(0, rows, particles), best.info.residual.index_copy(0, rows, residual)
        callback(taken + step, *everything)

    return watch


def _better(best: Solution, again: Solution, rows) -> Solution:
    """`best`, with the samples `rows` replaced where `again` ended lower; evaluations add up."""
    info, other = best.info, again.info
    evaluations = info.evaluations.index_add(0, rows, other.evaluations)
    pick = other.residual < info.residual[rows]
    lower = rows[pick]
    particles, residual, converged = best.particles.clone(), info.residual.clone(), info.converged.clone()
    particles[lower], residual[lower] = again.particles[pick], other.residual[pick]
    converged[lower] = other.converged[pick]
    return Solution(particles, info._replace(evaluations=evaluations, residual=residual, converged=converged))
