"""The solvers here as forward solvers of torchdeq (Geng & Kolter 2023): `register()`, then `f_solver="mmd"`.

What torchdeq's arguments are called here, for code that leaves it for `DDEQ(transport, solver=..., backward=...)`:

    f_solver="anderson"              solver="anderson"; for "broyden" take "auto"
    f_max_iter, f_tol                max_steps, tol: DDEQ(transport, solver="anderson", max_steps=40, tol=1e-3)
    f_stop_mode="abs", "rel"         relative=False, True: residuals MMD(Z, F(Z)), or these over that of the start
    solver_kwargs                    further options of `Anderson`, `MMDFlow` or `Auto`
    grad=k, tau                      backward=Phantom(steps=k, damping=tau)
    ift, hook_ift                    backward="ift"
    b_solver, b_max_iter, b_tol      backward=ImplicitFunction(method="anderson", max_steps=40, tol=1e-6)
    jac_loss_weight                  weight * jacobian_norm(problem, z) in the loss, `ddeq_fast.gradients`
    z_init                           start
    f(z), a closure over x           F(z, context, weights): Pushforward(lambda z, context, weights: f(z))
    info["nstep"]                    info.evaluations - 1, of the last evaluation that certifies the cloud
    info["abs_lowest"], "rel_lowest" info.residual, by `relative`

indexing, n_states and gamma, losses on the way, and eval_factor have no counterpart: a `callback` of `solve` sees the
way, and max_steps of `layer.solver` may be set after training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ddeq_fast.interop.original.functions import steps_listed
from ddeq_fast.interop.original.network import one_solve
from ddeq_fast.solvers import Anderson, MMDFlow, Pushforward
from ddeq_fast.utils.optional import require
from ddeq_fast.utils.validation import check_choice, check_cloud

__all__ = ["SOLVERS", "register"]

SOLVERS = {"mmd": MMDFlow, "mmd_anderson": Anderson}


def register() -> None:
    """Make torchdeq know the solvers "mmd", the flow `MMDFlow`, and "mmd_anderson", `Anderson`; again if it did.

    They solve for clouds: `z_init` of the DEQ must be one tensor (B, n, d). `solver_kwargs` of its call are the options
    of `MMDFlow` or `Anderson`, and `weights` and `frozen` of `Pushforward`; f_max_iter, f_tol and f_stop_mode are their
    steps, tolerance, and whether residuals are relative. Residuals are MMD(Z, F(Z)), and relative ones relative to
    that of the start. That is no measure of a gradient: these are no backward solvers.

    Raises ImportError if torchdeq is not installed.
    """
    solvers = require("torchdeq.solver", "torchdeq")
    for name, factory in SOLVERS.items():
        solvers.register_solver(name, partial(solve, factory))


@one_solve()
def solve(
    factory: Callable[..., MMDFlow | Anderson],
    func: Callable[[Tensor], Tensor],
    x0: Tensor,
    max_iter: int = 50,
    tol: float = 1e-3,
    stop_mode: str = "abs",
    indexing: Sequence[int] | None = None,
    *,
    weights: Tensor | None = None,
    frozen: Tensor | None = None,
    **options,
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """A solver as torchdeq calls it, made by `factory` with these `options`.

    Returns:
        The equilibrium (B, n, d). The clouds after the steps in `indexing`, one for each; the equilibrium stands for
        those after the last. torchdeq's statistics: abs_trace, rel_trace (B, steps + 1), residuals as last looked at;
        abs_lowest, rel_lowest (B,), those of the equilibrium; nstep (B,), steps taken.

    Raises:
        ValueError: x0 is no batch of clouds (B, n, d), such as the packed vector of a DEQ over several tensors.
        TypeError, ValueError: as `ddeq_fast.solvers.solve`.
    """
    stat = require("torchdeq.solver.stat", "torchdeq").SolverStat
    check_choice("stop_mode", stop_mode, ("abs", "rel"))
    if not isinstance(x0, Tensor) or x0.dim() != 3:
        got = f"shape {tuple(x0.shape)}" if isinstance(x0, Tensor) else type(x0).__name__
        raise ValueError(f"z_init must be one tensor of clouds (B, n, d), not several packed into one; got {got}")
    if not callable(func):
        raise TypeError(f"func must be callable, got {type(func).__name__}")
    check_cloud("z_init", x0)
    (max_steps,) = steps_listed("max_iter", [max_iter], low=1)
    steps = [] if indexing is None else steps_listed("indexing", indexing, low=0)
    solver = factory(max_steps=max_steps, tol=tol, relative=stop_mode == "rel", **options)
    problem = Pushforward(lambda z, context, weights: func(z), None, weights, frozen)
    problem = problem.checked(x0, "z_init")
    kept: dict[int, Tensor] = {}
    residuals: list[Tensor] = []

    def watch(step: int, particles: Tensor, residual: Tensor) -> None:
        residuals.append(residual)
        if step in steps:
            kept[step] = particles

    particles, info = solver.solve(problem, x0, callback=watch)
    kept.pop(len(residuals) - 1, None)  # the equilibrium may be an earlier cloud than the last
    trace = torch.stack(residuals, 1)
    if stop_mode == "abs":
        scale = trace[:, :1]
        relative = torch.where(trace == 0, 0, trace / scale)
    else:
        scale, relative = info.scale[:, None], trace
    return (
        particles,
        [kept.get(step, particles) for step in steps],
        stat(
            abs_trace=relative * scale,
            rel_trace=relative,
            abs_lowest=relative[:, -1] * scale[:, 0],
            rel_lowest=relative[:, -1],
            nstep=(info.evaluations - 1).double(),
        ),
    )
