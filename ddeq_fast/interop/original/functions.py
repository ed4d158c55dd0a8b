"""The flow of the original DDEQ code, with its name, arguments and returned values, by `MMDFlow`."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddeq_fast.interop.original.first_kernel import FirstKernelFlow
from ddeq_fast.interop.original.mmd import gaussian_kernel, gaussian_witness_function, radial, real_rows
from ddeq_fast.interop.original.network import one_solve
from ddeq_fast.solvers import SGD, Adam, FixedTarget, Pushforward
from ddeq_fast.sums.radial import Gaussian
from ddeq_fast.utils.validation import (
    check_choice,
    check_cloud,
    check_flag,
    check_integer,
    check_mask,
    check_number,
    check_pair,
    check_share,
)

_MOST_STEPS, _MOST_TIMESTAMPS = 1_000_000_000, 1_000_000


class _Bandwidths(NamedTuple):
    """One entry for every bandwidth."""

    sigma: list[float]
    gamma_sigma: list[float]
    min_sigma: list[float]
    beta: list[float]
    gamma_beta: list[float]

    def at(self, step: int) -> list[float]:
        """The bandwidths of a step, counted from 0."""
        return [max(s * g**step, low) for s, g, low in zip(self.sigma, self.gamma_sigma, self.min_sigma, strict=True)]


def _bandwidths(**given: float | Sequence[float] | None) -> _Bandwidths:
    """The entries as lists of equal length; there, entries without a partner in every other list are dropped."""
    lists: dict[str, list[Any]] = {}
    for name, value in given.items():
        lists[name] = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    count = len(lists["sigma"])
    if given["min_sigma"] is None:
        lists["min_sigma"] = [0.0] * count
    for name, values in lists.items():
        if len(values) != count or not values:
            raise ValueError(f"{name} must have an entry for every bandwidth in sigma, {count}, got {len(values)}")
        for value in values:
            if name == "gamma_sigma":
                check_share(name, value)
            else:
                check_number(name, value, high=1e100, closed=name != "sigma")
    return _Bandwidths(**lists)


def _options(name: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of the options; raises TypeError naming the argument unless they are some, or None."""
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"{name} must be a dict of options or None, got {type(given).__name__}")
    return dict(given or {})


def _optimizer(name: str, options: Mapping[str, Any] | None, size: float) -> tuple[SGD | Adam, float]:
    """The descent rule and step size for gradients that are 1 / `size` times those of the original code."""
    check_choice("optimizer", name, ("sgd", "adam"))
    left = _options("optim_kwargs", options)
    if options is None and name == "sgd":
        left["lr"] = 1.0
    lr = check_number("optim_kwargs['lr']", left.pop("lr", 1e-3))
    rule: SGD | Adam
    if name == "sgd":
        momentum = check_number("optim_kwargs['momentum']", left.pop("momentum", 0.0), high=1.0, closed=True)
        rule = SGD(momentum=momentum, nesterov=check_flag("optim_kwargs['nesterov']", left.pop("nesterov", False)))
        lr *= size
    else:
        beta1, beta2 = check_pair("optim_kwargs['betas']", left.pop("betas", (0.9, 0.999)), "(beta1, beta2)")
        eps = check_number("optim_kwargs['eps']", left.pop("eps", 1e-8))
        rule = Adam(beta1=beta1, beta2=beta2, eps=eps / size)
    _refuse({f"optim_kwargs[{key!r}]": value for key, value in left.items()}, f"not an option of {name} here")
    return rule, lr


def _decay(name: str, options: Mapping[str, Any] | None) -> tuple[float, int]:
    """(factor, steps) of the step size."""
    check_choice("scheduler", name, ("steplr",))
    left = _options("scheduler_kwargs", options)
    factor = check_share("scheduler_kwargs['gamma']", left.pop("gamma", 1.0))
    steps = check_integer("scheduler_kwargs['step_size']", left.pop("step_size", 1))
    _refuse({f"scheduler_kwargs[{key!r}]": value for key, value in left.items()}, "not an option here")
    return factor, steps


def _refuse(arguments: Mapping[str, Any], why: str) -> None:
    """Raise ValueError naming the first argument that is set to anything."""
    for name, value in arguments.items():
        if not isinstance(value, (type(None), bool, int, float, str, Mapping, Sequence)) or value:
            raise ValueError(f"{name} cannot be mapped: {why}, got {value!r}")


def _same(name: str, values: list[float]) -> float:
    """The value that all samples share; raises ValueError naming the argument that takes it for granted."""
    if len(set(values)) > 1:
        raise ValueError(f"{name} cannot be mapped: with this mask it would mean another factor for every sample")
    return values[0]


def _steps(name: str, timestamps: int | Sequence[int] | None, max_iter: int) -> list[int]:
    """Numbers of steps after which to look at the flow: so many evenly spaced ones, or those listed."""
    if timestamps is None:
        return []
    if isinstance(timestamps, int):
        check_integer(name, timestamps, low=0, high=_MOST_TIMESTAMPS)
        return [1 + i * (max_iter - 1) // max(timestamps - 1, 1) for i in range(timestamps)]
    return steps_listed(name, timestamps, low=1)


def steps_listed(name: str, steps: Sequence[int], low: int) -> list[int]:
    """The numbers of steps in a list, an array or a tensor of integers, each at least `low`.

    Raises TypeError, ValueError naming the argument.
    """
    try:
        return [check_integer(name, operator.index(step), low=low, high=_MOST_STEPS) for step in steps]
    except TypeError:
        raise TypeError(f"{name} must be a list of integers, got {steps!r:.60}") from None


def _problem(
    func: Callable[[Tensor], Tensor] | None,
    target: Tensor | None,
    start: Tensor,
    mask: bool,
    grad_mask: Tensor | None,
    unbatched: bool,
) -> Pushforward:
    """The fixed-point problem of `func` or of a fixed `target`, for start particles (B, n, d)."""
    weights = real_rows(start).to(start.dtype) if mask else None
    frozen = None
    if grad_mask is not None:
        if not isinstance(grad_mask, Tensor):
            raise TypeError(f"grad_mask must be a torch.Tensor, got {type(grad_mask).__name__}")
        frozen = check_mask("grad_mask", (grad_mask[None] if unbatched else grad_mask).bool(), start)
    if target is not None:
        target = target.detach()[None] if unbatched else target.detach()
        return FixedTarget(target, real_rows(target).to(target.dtype) if mask else None, weights, frozen)

    if not callable(func):
        raise TypeError(f"func must be callable, got {type(func).__name__}")

    def image(z: Tensor, context: None, weights: Tensor | None) -> Tensor:
        return func(z[0])[None] if unbatched else func(z)

    problem = Pushforward(image, None, weights, frozen)
    if mask:
        with torch.no_grad():
            if not torch.equal(real_rows(problem.image(start)), real_rows(start)):
                raise ValueError("mask cannot be mapped: func must map rows of zeros, and no others, to rows of zeros")
    return problem


@one_solve()
def mmd_gf(
    func: Callable[[Tensor], Tensor] | None = None,
    x0: Tensor | None = None,
    max_iter: int = 2000,
    tol: float = 1e-3,
    stop_mode: str = "rel",
    indexing: int | Sequence[int] | None = None,
    stop_frequency: int = 100,
    stop_type: str = "grad",
    target_tensor: Tensor | None = None,
    beta: float | Sequence[float] = 0.01,
    gamma_beta: float | Sequence[float] = 1.0,
    witness_fn: Callable[..., Tensor] = gaussian_witness_function,
    kernel: Callable[..., Tensor] = gaussian_kernel,
    sigma: float | Sequence[float] = 1.0,
    gamma_sigma: float | Sequence[float] = 1.0,
    min_sigma: float | Sequence[float] | None = None,
    optimizer: str = "sgd",
    optim_kwargs: Mapping[str, Any] | None = None,
    scheduler: str = "steplr",
    scheduler_kwargs: Mapping[str, Any] | None = None,
    reg: float = 0.0,
    reg_p: float = 2.0,
    callback: Callable[..., None] | None = None,
    timestamps_callback: int | Sequence[int] = 0,
    plot: bool = False,
    plot_to_wandb: bool = False,
    plot_kwargs: Mapping[str, Any] | None = None,
    progress_bar: bool = False,
    callback_kwargs: Mapping[str, Any] | None = None,
    mask: bool = False,
    rescale_losses: bool = False,
    autodiff: bool = False,
    rescale_autodiff: bool = False,
    grad_mask: Tensor | None = None,
    wandb_dict: Mapping[str, Any] | None = None,
) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
    """Flow of MMD^2(Z, F(Z)) / 2, or towards a fixed target, by `MMDFlow`. A solver that torchdeq can register.

    Args:
        func: F, from a cloud of the shape of x0 to one of that shape. Either this or `target_tensor`.
        x0: start (n, d) or (B, n, d); not modified.
        max_iter: most steps.
        tol: the batch stops as one where its stop value is at most this.
        stop_mode: "rel": the stop value is divided by that of the start; "abs".
        indexing: steps after which clouds are kept, or the number of evenly spaced ones. Where the flow has stopped
            before, its last cloud stands for them.
        stop_frequency: steps between two looks at the stop value.
        stop_type: "mmd": squared MMD, batch mean (of several bandwidths the mean). "grad": norm of the whole batch's
            gradient.
        target_tensor: fixed target (m, d) or (B, m, d).
        beta, gamma_beta: noise level of the gradient's evaluation points, and its factor a step. Only with
            `target_tensor`, and without `autodiff`.
        witness_fn: must be `gaussian_witness_function`.
        kernel: `gaussian_kernel`, `riesz_kernel` or a `functools.partial` of one.
        sigma, gamma_sigma, min_sigma: bandwidth of the Gaussian kernel, its factor a step and its least value. Several
            bandwidths need lists of equal length here and in beta and gamma_beta. The gradient is then the first
            bandwidth's alone, divided by their number, as there. An annealed bandwidth excludes stop_type "mmd",
            unless the stop value is never looked at.
        optimizer, optim_kwargs: "sgd" with lr, momentum, nesterov, or "adam" with lr, betas, eps.
        scheduler, scheduler_kwargs: "steplr": lr is multiplied by gamma every step_size steps.
        reg, reg_p: adds reg * mean_i |x_i|_p to the objective, the mean over padding too. Needs `autodiff`.
        callback: called as callback(errors, x0, x, target, sigmas=, initial_sigmas=, last_sigmas=, kernel=,
            stop_type=, stop_mode=, step=, mask=, **callback_kwargs) at the start, at `timestamps_callback` (as
            `indexing`) and at the end; `errors` is a dict of its own making, handed back in the result. None logs
            nothing.
        mask: rows of zeros are padding. `func` must map them, and no others, to rows of zeros.
        rescale_losses: of several bandwidths, weigh the objectives alike at the start. Needs `autodiff`.
        autodiff: the gradient of the objective with respect to the particles, n times smaller than the witness
            function's, unless `rescale_autodiff` multiplies it by the number of (real) particles.
        grad_mask: (B, n, 1), true for particles that do not move.
        plot, plot_to_wandb, plot_kwargs, progress_bar, wandb_dict: must be off; a callback can do it.

    Returns:
        The last cloud; the clouds kept; a dict with nstep, stop_crit_value, abs_lowest or rel_lowest (the stop value
        as last looked at), iter_intermediates and errors. Nothing has a graph.

    Raises:
        ValueError: naming the argument that has no counterpart here. TypeError, ValueError: bad shapes or values.

    Differences: a start that meets `tol` takes no step (there, one), and a stop value is looked at after the first
    step too if `stop_frequency` is 1; "grad" looks at the gradient of the present cloud, not of the one before; the
    "mmd" stop value of an annealed flow is relative to the start's at the first bandwidth, not the last.
    """
    off = {"plot": plot, "plot_to_wandb": plot_to_wandb, "plot_kwargs": plot_kwargs}
    _refuse({**off, "progress_bar": progress_bar, "wandb_dict": wandb_dict}, "draw and log in a callback")
    if x0 is None or (func is None) == (target_tensor is None):
        raise ValueError("mmd_gf needs x0 and either func or target_tensor")
    check_cloud("x0", x0)
    if target_tensor is not None:
        check_cloud("target_tensor", target_tensor, like=("x0", x0))
    check_integer("max_iter", max_iter, high=_MOST_STEPS)
    check_number("tol", tol, closed=True)
    check_integer("stop_frequency", stop_frequency)
    flags = {"mask": mask, "autodiff": autodiff, "rescale_losses": rescale_losses, "rescale_autodiff": rescale_autodiff}
    for name, value in flags.items():
        check_flag(name, value)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, got {type(callback).__name__}")
    check_choice("stop_mode", stop_mode, ("abs", "rel"))
    check_choice("stop_type", stop_type, ("mmd", "grad"))
    if witness_fn is not gaussian_witness_function:
        raise ValueError(f"witness_fn cannot be mapped: it follows from the kernel, got {witness_fn!r}")
    check_number("reg", reg, closed=True)
    check_number("reg_p", reg_p)
    if not autodiff:
        _refuse({"reg": reg, "rescale_losses": rescale_losses}, "it needs autodiff=True")
    bandwidths = _bandwidths(
        sigma=sigma, gamma_sigma=gamma_sigma, min_sigma=min_sigma, beta=beta, gamma_beta=gamma_beta
    )
    if func is not None or autodiff:
        _refuse({"beta": bandwidths.beta[0]}, "noise needs target_tensor and autodiff=False")
    kernels = [radial(kernel, s) for s in bandwidths.at(0)]
    annealed = isinstance(kernels[0], Gaussian) and bandwidths.at(0) != bandwidths.at(max_iter - 1)
    if annealed and stop_type == "mmd" and max_iter >= stop_frequency:
        _refuse({"gamma_sigma": gamma_sigma}, "stop_type 'mmd' needs a constant bandwidth or stop_frequency > max_iter")

    unbatched = x0.dim() == 2
    start = x0.detach()[None] if unbatched else x0.detach()
    problem = _problem(func, target_tensor, start, mask, grad_mask, unbatched)
    problem = problem.checked(start, "x0")
    batch, n = start.shape[:2]
    counts = [float(n)] * batch if problem.weights is None else problem.weights.sum(1).tolist()
    # Gradients here are those of the witness function: n times those of the objective.
    size = 1.0 if rescale_autodiff or not autodiff else 1 / _same("rescale_autodiff=False", counts)
    rule, lr = _optimizer(optimizer, optim_kwargs, size)
    # Stop values here: MMD, or a sample's root mean square gradient.
    power, unit = (2.0, 1.0) if stop_type == "mmd" else (1.0, size * batch**0.5 if stop_mode == "abs" else 1.0)
    solver = FirstKernelFlow(
        kernel=kernels,
        lr=lr,
        max_steps=max_iter,
        tol=(tol / unit) ** (1 / power),
        relative=stop_mode == "rel",
        stop_on={"mmd": "mmd", "grad": "gradient"}[stop_type],
        stop_together=True,
        check_every=stop_frequency,
        optimizer=rule,
        lr_decay=_decay(scheduler, scheduler_kwargs),
        anneal=(bandwidths.gamma_sigma[0], bandwidths.at(max_iter - 1)[0]) if annealed else None,
        noise=(bandwidths.beta[0], bandwidths.gamma_beta[0]),
        rescale=rescale_losses,
        regulariser=(reg * _same("reg", counts) / n, reg_p) if reg else None,
    )

    keep, stamps = _steps("indexing", indexing, max_iter), _steps("timestamps_callback", timestamps_callback, max_iter)
    more = _options("callback_kwargs", callback_kwargs)
    kept: dict[int, Tensor] = {}
    errors: defaultdict[str, list[Any]] = defaultdict(list)

    def tell(step: int, particles: Tensor) -> None:
        if callback is None:
            return
        clouds = start.clone(), particles, problem.image(particles)
        callback(
            errors,
            *(cloud[0] if unbatched else cloud for cloud in clouds),
            sigmas=bandwidths.at(max(step - 1, 0)),
            initial_sigmas=bandwidths.at(0),
            last_sigmas=bandwidths.at(max_iter - 1),
            kernel=kernel,
            stop_type=stop_type,
            stop_mode=stop_mode,
            step=step,
            mask=mask,
            **more,
        )

    def watch(step: int, particles: Tensor, residual: Tensor) -> None:
        if step in keep:
            kept[step] = particles[0] if unbatched else particles
        if step == 0 or step in stamps:
            tell(step, particles)

    with torch.no_grad():
        particles, info = solver.solve(problem, start, callback=watch if keep or callback else None)
        nstep = int(info.evaluations.max()) - 1
        if nstep and nstep not in stamps:
            tell(nstep, particles)
    final = particles[0] if unbatched else particles
    value = unit * float(info.residual.max()) ** power
    return (
        final,
        [kept.get(step, final) for step in keep],
        {
            "nstep": torch.tensor(nstep),
            f"{stop_mode}_lowest": torch.tensor(value, dtype=torch.float64),
            "stop_crit_value": value,
            "iter_intermediates": [min(step, nstep) for step in keep],
            "errors": dict(errors),
        },
    )
