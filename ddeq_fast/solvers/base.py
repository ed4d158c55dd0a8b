"""The interface of solvers, and their registry.

A solver of one's own needs its idea alone: what the next cloud is. All else, which is residuals and tolerances, samples
that leave the batch as they finish, frozen particles and callbacks, is that of `IterativeSolver` and its loop:

    class Picard(IterativeSolver):
        \"\"\"z <- F(z).\"\"\"

        def step(self, problem, z, y, vjp, state, step):
            return y, state, y - z

    register("picard", Picard)

From then on `solve(problem, start, "picard", tol=1e-4)` and `DDEQ(transport, solver="picard", tol=1e-4)` take it, and
so do their like with `Picard(tol=1e-4)`. Options of its own are fields, where the class is a
`dataclass(kw_only=True, eq=False)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ddeq_fast.solvers.iterate import Callback, Solution, iterate
from ddeq_fast.solvers.problem import Pushforward
from ddeq_fast.sums import backends
from ddeq_fast.sums.radial import RadialKernel, Riesz, check_kernel
from ddeq_fast.utils.options import Registry, ShortRepr
from ddeq_fast.utils.validation import check_choice, check_flag, check_integer, check_number

RIESZ = Riesz(1.0)


class Solver(ShortRepr):
    """Anything with `solve(problem, start) -> Solution` and a tolerance `tol` on the residual.

    One that can be given what residuals are relative to takes `scale` too, and one that can be watched `callback`, see
    `iterate.Callback`.
    """

    tol: float
    backend: str = "auto"

    @property
    def rounding_kernel(self) -> RadialKernel | None:
        """Kernel of the residual, to tell what of it is rounding; None if it is no MMD(Z, F(Z)) in one kernel."""
        return None

    def solve(
        self, problem: Pushforward, start: Tensor, *, scale: Tensor | None = None, callback: Callback | None = None
    ) -> Solution:
        """Solve from `start` (B, n, d), checked by the caller; without an autograd graph. See `solvers.solve`."""
        raise NotImplementedError


@dataclass(kw_only=True, repr=False, eq=False)
class IterativeSolver(Solver):
    """A solver made of `step`, and of `init` if it has a state; the loop around them is `iterate`.

    Args:
        kernel: kernel of the residual MMD(Z, F(Z)).
        max_steps: most steps taken. One more evaluation certifies the last cloud.
        tol: residual at which a sample is done; 0 runs all steps.
        relative: measure residuals relative to that of the start cloud.
        stop_on: "mmd", or "gradient": the norm of the step direction.
        stop_together: stop the batch as one, on the mean of its squared residuals.
        check_every: steps between two looks at the residual.
        patience: give up on a sample whose residual has not halved in so many steps; None never does. A few steps are
            enough where nothing but rounding is left of it.
        backend: backend of the kernel sums.
        cuda_graph: on a GPU, record a step in a CUDA graph and replay it; nothing elsewhere. It pays where launches
            take longer than their work, as they do for small clouds. The recording is kept for solves of the same
            shape; samples that are done stay in the batch, where they are not moved.

    Raises:
        TypeError, ValueError: naming an option out of range.
    """

    kernel: RadialKernel = RIESZ
    max_steps: int = 100
    tol: float = 1e-3
    relative: bool = True
    stop_on: str = "mmd"
    stop_together: bool = False
    check_every: int = 1
    patience: int | None = None
    backend: str = "auto"
    cuda_graph: bool = False

    # Whether `step` is given the map g -> J^T g, and whether the iterate of least residual is returned, not the last.
    needs_vjp = False
    keep_best = False

    def __post_init__(self) -> None:
        self._check_kernel()
        check_integer("max_steps", self.max_steps)
        self.tol = check_number("tol", self.tol, closed=True)
        check_flag("relative", self.relative)
        check_choice("stop_on", self.stop_on, ("mmd", "gradient"))
        check_flag("stop_together", self.stop_together)
        check_integer("check_every", self.check_every)
        if self.patience is not None:
            check_integer("patience", self.patience)
        backends.check_whole(type(self).__name__, self.backend)
        if check_flag("cuda_graph", self.cuda_graph) and self.alike_from is None:
            raise ValueError(f"cuda_graph needs steps that are all alike, and this {type(self).__name__} changes them")

    def _check_kernel(self) -> None:
        self.kernel = check_kernel(self.kernel)

    @property
    def alike_from(self) -> int | None:
        """From this step on all steps are alike, but for the numbers in tensors; None if they never are."""
        return None

    def init(self, problem: Pushforward, z: Tensor, y: Tensor) -> Any:
        """State before the first step, y = F(z); tensors in it have the batch axis first."""
        return None

    def step(
        self, problem: Pushforward, z: Tensor, y: Tensor, vjp: Callable[[Tensor], Tensor] | None, state: Any, step: int
    ) -> tuple[Tensor, Any, Tensor]:
        """One step from z (B, n, d), of which y = F(z) is the image, without a graph.

        `vjp` is g -> J^T g if `needs_vjp`; it may be applied once, and is None where F(z) does not depend on z. Steps
        are counted from 0.

        Returns:
            The next cloud (B, n, d), whose frozen particles the loop puts back; the next state; the direction of the
            step (B, n, d), whose norm is the residual if `stop_on` is "gradient".
        """
        raise NotImplementedError

    def kernel_at(self, state: Any, step: int) -> RadialKernel:
        """Kernel of the residual at this step."""
        return self.kernel

    @property
    def rounding_kernel(self) -> RadialKernel | None:
        return self.kernel if self.stop_on == "mmd" and not self.stop_together else None

    def solve(
        self, problem: Pushforward, start: Tensor, *, scale: Tensor | None = None, callback: Callback | None = None
    ) -> Solution:
        return iterate(self, problem, start, scale, callback)


SOLVERS: Registry[Solver] = Registry("solver", "solve")


def register(name: str, factory: Callable[..., Solver]) -> None:
    """Make a solver known by name: its class, or a function that makes one of options.

    Raises:
        TypeError: the name is no string, or the factory cannot be called. ValueError: the name is taken.
    """
    SOLVERS.register(name, factory)


def names() -> list[str]:
    """Registered solvers."""
    return list(SOLVERS.factories)


def make(solver: str | Solver, **options: Any) -> Solver:
    """The solver of that name with these options; a Solver is returned as it is.

    Raises:
        ValueError: an unknown name, or an option out of range.
        TypeError: no solver, an option that it has not, or options for a solver that is ready.
    """
    return SOLVERS.make(solver, options)
