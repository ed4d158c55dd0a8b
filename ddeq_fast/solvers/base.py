"""The interface of solvers, and their registry."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ddeq_fast.solvers.iterate import Callback, Solution, iterate
from ddeq_fast.solvers.problem import Pushforward
from ddeq_fast.sums import backends
from ddeq_fast.sums.fields import check_kernel
from ddeq_fast.sums.radial import RadialKernel
from ddeq_fast.utils.validation import check_choice, check_flag, check_integer, check_number


class Solver:
    """Anything with `solve(problem, start) -> Solution` and a tolerance `tol` on the residual.

    A solver that can be watched takes `callback` too, see `iterate.Callback`.
    """

    tol: float
    # Kernel of the residual, to tell what of it is rounding; None if it is no MMD(Z, F(Z)) in one kernel.
    rounding_kernel: RadialKernel | None = None

    def solve(
        self, problem: Pushforward, start: Tensor, *, scale: Tensor | None = None, callback: Callback | None = None
    ) -> Solution:
        """Solve from `start` (B, n, d), checked by the caller; without an autograd graph. See `solvers.solve`."""
        raise NotImplementedError


class IterativeSolver(Solver):
    """A solver made of `init` and `step`; the loop around them is `iterate`.

    Args:
        kernel: kernel of the residual MMD(Z, F(Z)); `Riesz(1)` if None.
        max_steps: most steps taken. One more evaluation certifies the last cloud.
        tol: residual at which a sample is done; 0 runs all steps.
        relative: measure residuals relative to that of the start cloud.
        stop_on: "mmd", or "gradient": the norm of the step direction.
        stop_together: stop the batch as one, on the mean of its squared residuals.
        check_every: steps between two looks at the residual.
        backend: backend of the kernel sums.
        cuda_graph: on a GPU, record a step in a CUDA graph and replay it; nothing elsewhere. It pays where launches
            take longer than their work, as they do for small clouds. The recording is kept for solves of the same
            shape; samples that are done stay in the batch, where they are not moved.
    """

    needs_vjp = False
    keep_best = False
    patience: int | None = None
    # From this step on all steps are alike, but for the numbers in tensors; None if they never are.
    alike_from: int | None = None

    def __init__(
        self,
        *,
        kernel: RadialKernel | None,
        max_steps: int,
        tol: float,
        relative: bool,
        stop_on: str,
        stop_together: bool,
        check_every: int,
        backend: str,
        cuda_graph: bool = False,
    ):
        self.kernel = check_kernel(kernel)
        self.max_steps = check_integer("max_steps", max_steps)
        self.tol = check_number("tol", tol, closed=True)
        self.relative, self.stop_together = check_flag("relative", relative), check_flag("stop_together", stop_together)
        self.stop_on = check_choice("stop_on", stop_on, ("mmd", "gradient"))
        self.check_every = check_integer("check_every", check_every)
        self.backend = backends.check_whole(type(self).__name__, backend)
        self.cuda_graph = check_flag("cuda_graph", cuda_graph)
        if self.cuda_graph and self.alike_from is None:
            raise ValueError(f"cuda_graph needs steps that are all alike, and this {type(self).__name__} changes them")

    def init(self, problem: Pushforward, z: Tensor, y: Tensor):
        """State before the first step, y = F(z); tensors in it have the batch axis first."""
        raise NotImplementedError

    def step(self, problem: Pushforward, z: Tensor, y: Tensor, vjp: Callable | None, state, step: int):
        """(next cloud, next state, direction of the step), all without a graph."""
        raise NotImplementedError

    def kernel_at(self, state, step: int) -> RadialKernel:
        """Kernel of the residual at this step."""
        return self.kernel

    @property
    def rounding_kernel(self):
        return self.kernel if self.stop_on == "mmd" and not self.stop_together else None

    def solve(self, problem, start, *, scale=None, callback=None):
        return iterate(self, problem, start, scale, callback)


_SOLVERS: dict[str, Callable[..., Solver]] = {}


def register(name: str, factory: Callable[..., Solver]) -> None:
    """Make a solver known by name."""
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {type(name).__name__}")
    if not callable(factory):
        raise TypeError(f"factory must make solvers when called, got {type(factory).__name__}")
    if name in _SOLVERS:
        raise ValueError(f"solver name {name!r} is taken")
    _SOLVERS[name] = factory


def names() -> list[str]:
    """Registered solvers."""
    return list(_SOLVERS)


def make(solver: str | Solver, **options) -> Solver:
    """The solver of that name with these options; a Solver is returned as it is.

    Raises ValueError naming the known solvers, TypeError if options accompany a ready solver.
    """
    if isinstance(solver, str):
        return _SOLVERS[check_choice("solver", solver, _SOLVERS)](**options)
    if not hasattr(solver, "solve") or isinstance(solver, type):
        raise TypeError(f"solver must be a name or a Solver, got {type(solver).__name__}")
    if options:
        raise TypeError(f"options {', '.join(options)} need a solver given by name, got {type(solver).__name__}")
    return solver
