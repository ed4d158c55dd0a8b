"""Earth mover's distance: optimal transport between clouds with the Euclidean distance as cost."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddeq_fast.distances import blocks, sinkhorn
from ddeq_fast.distances.points import mean
from ddeq_fast.sums.measures import Measure, pair, without_padding
from ddeq_fast.sums.mmd import normalised, positive_root
from ddeq_fast.sums.ranges import suits_single
from ddeq_fast.utils import transforms
from ddeq_fast.utils.optional import available, require
from ddeq_fast.utils.validation import check_choice, check_number, values_readable

# Points up to which "auto" assigns exactly: the time grows as their third power, to seconds at this number.
LARGEST_EXACT = 2000


class EarthMoversDistance(NamedTuple):
    """The distance, what it may lack of the optimal cost, both (B,) or a scalar, and how it was found.

    distance <= optimal cost <= distance + error, but for rounding. The error is zero where the method is "exact".
    """

    distance: Tensor
    error: Tensor
    method: str


def earth_movers_distance(
    x: Tensor,
    y: Tensor,
    *,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    method: str = "auto",
    tol: float = 0.05,
) -> EarthMoversDistance:
    """Earth mover's distance min_P sum_ij P_ij |x_i - y_j| over plans P between clouds of mass one.

    Rubner et al., 2000. For equally many points it is the minimum over permutations s of mean_i |x_i - y_s(i)| (Fan et
    al., 2017, with means).

    "exact" is that assignment, by `scipy.optimize.linear_sum_assignment`. "entropic" takes any sizes and weights: it
    is a bound from below, by Sinkhorn's iteration whose regularisation is lowered until a plan is found that costs
    no more than `tol` above the bound. That certified error is returned; of normal clouds in 3-D the true one is about
    a tenth of it, on a line most of it.

    Args:
        x, y: clouds, (m, d) and (n, d), or batched (B, m, d) and (B, n, d), floating point; same dtype and device.
        x_weights, y_weights: nonnegative weights, (m,) or (B, m) and so on, normalised to mass one; uniform if None.
            Boolean ones are a mask. There is no derivative in them.
        x_mask, y_mask: boolean, same shape, True for real points; padding has no influence and no gradient.
        method: "exact", "entropic", or "auto": exact for equally many points of equal weight up to 2,000, if scipy is
            installed.
        tol: >= 0, error wanted of "entropic", relative to the distance. It ends anyway where the regularisation
            comes to 1e-4 of the clouds' diameter. Memory is bounded, time is in proportion to m n.

    Returns:
        `EarthMoversDistance`. The gradient in x and y is that of the plan found, held fixed, which is the distance's
        own for an optimal plan (Danskin's theorem); zero for a pair of points that coincide. Exact distances have
        all derivatives; entropic ones a first by `backward` alone.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, NaN, an empty or fully masked cloud, an unknown
            method, "exact" for unequal numbers or weights; derivatives that there are not.
        ImportError: "exact" without scipy.
    """
    check_choice("method", method, ("auto", "exact", "entropic"))
    tol = check_number("tol", tol, closed=True)
    mu, rho = (over.batched() for over in pair(x, y, x_weights, y_weights, x_mask, y_mask))
    for name, weights in (("x_weights", x_weights), ("y_weights", y_weights)):
        _check_fixed(name, weights)
    if method == "auto":
        method = _choose(mu, rho)
    if method == "exact":
        distance = _exact(mu, rho)
        error = torch.zeros_like(distance.detach())
    else:
        if transforms.wrapped(x) or transforms.wrapped(y):
            raise ValueError("method 'entropic' has neither forward mode nor the transforms of torch.func")
        distance, error = transforms.outside_the_graph(_entropic, mu, rho, tol)
    distance, error = distance.to(x.dtype), error.to(x.dtype)
    return EarthMoversDistance(*((distance, error) if x.dim() == 3 else (distance[0], error[0])), method)


def _check_fixed(name: str, weights: Tensor | None) -> None:
    """Raise ValueError for weights that are being differentiated."""
    if weights is None or weights.dtype == torch.bool:
        return
    if (weights.requires_grad and torch.is_grad_enabled()) or transforms.wrapped(weights):
        raise ValueError(f"{name} must not require derivatives, which the earth mover's distance lacks: detach them")


def _choose(mu: Measure, rho: Measure) -> str:
    """The method for these clouds."""
    if not available("scipy"):
        return "entropic"
    if mu.uniform and rho.uniform:
        count = mu.points.shape[1]
        return "exact" if count == rho.points.shape[1] and count <= LARGEST_EXACT else "entropic"
    if not (values_readable(mu.weights) and values_readable(rho.weights)):
        raise ValueError("method must be 'exact' or 'entropic' where masks and weights cannot be read, got 'auto'")
    return "exact" if _assignable(mu, rho) and int((mu.weights > 0).sum(1).max()) <= LARGEST_EXACT else "entropic"


def _assignable(mu: Measure, rho: Measure) -> bool:
    """Whether both have equally many points, of equal weight."""
    counts = [(over.weights > 0).sum(1) for over in (mu, rho)]
    equal = [((over.weights == 0) | (over.weights == over.weights.amax(1, keepdim=True))).all() for over in (mu, rho)]
    return bool((counts[0] == counts[1]).all() and equal[0] and equal[1])


def _exact(mu: Measure, rho: Measure) -> Tensor:
    """(B,), as a function of the points, for the best assignment."""
    x, y = (without_padding(over.points, over.real) for over in (mu, rho))
    dtype = torch.promote_types(x.dtype, torch.float32 if suits_single(x, y) else torch.float64)
    x, y = x.to(dtype), y.to(dtype)
    index = assignment_op(x.detach(), y.detach(), mu.weights.detach(), rho.weights.detach())
    partners = y.gather(1, index[..., None].expand(-1, -1, y.shape[-1]))
    return mean(positive_root((x - partners).square().sum(-1)), mu)


@torch.library.custom_op("ddeq_fast::assignment", mutates_args=())
def assignment_op(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Index (B, m) of each real point's partner in y, zero for padding."""
    if not _assignable(Measure(x, a, False), Measure(y, b, False)):
        raise ValueError("method 'exact' needs equally many points of equal weight in x and y: use 'entropic'")
    assign = require("scipy.optimize", "metrics").linear_sum_assignment
    index = torch.zeros(x.shape[:2], dtype=torch.int64)
    for found, *cloud in zip(index, x, y, a > 0, b > 0, strict=True):
        points, others, real, real_others = cloud
        cost = blocks.distances(points[real].double(), others[real_others].double())
        rows, columns = (torch.from_numpy(part) for part in assign(cost.cpu().numpy()))
        found[real.cpu().nonzero()[:, 0][rows]] = real_others.cpu().nonzero()[:, 0][columns]
    return index.to(x.device)


@assignment_op.register_fake
def _(x, y, a, b):
    return x.new_empty(x.shape[:2], dtype=torch.int64)


@assignment_op.register_vmap
def _(info, in_dims, *args):
    return transforms.fold(assignment_op, info, in_dims, *args)


def _entropic(mu: Measure, rho: Measure, tol: float) -> tuple[Tensor, Tensor]:
    """The lower bound (B,), differentiable as the plan's cost, and its error."""
    x, y = mu.points.double(), rho.points.double()
    with torch.no_grad():
        a, b = (normalised(over.weights.double()) for over in (mu, rho))
        plan = sinkhorn.transport(x, y, a, b, tol)
        bound = plan.bound.clamp(min=0)
    return _Cost.apply(x, y, bound, plan.x_gradient, plan.y_gradient), (plan.cost - bound).clamp(min=0)


class _Cost(torch.autograd.Function):
    """A value (B,) with given gradients."""

    @staticmethod
    def forward(ctx, x, y, value, x_gradient, y_gradient):
        ctx.save_for_backward(x, y, x_gradient, y_gradient)
        return value.clone()

    @staticmethod
    def backward(ctx, g):
        x, y, *gradients = ctx.saved_tensors
        # They depend on the points, though nobody knows how the plan moves.
        error = ValueError("method 'entropic' has no second derivatives: use 'exact'")
        return *(g[:, None, None] * transforms.once(part, error, x, y) for part in gradients), None, None, None
