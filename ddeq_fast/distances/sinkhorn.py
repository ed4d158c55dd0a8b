"""Optimal transport by Sinkhorn's iteration (Cuturi, 2013) of logarithms, its regularisation lowered in steps.

What comes out is no regularised value. The iteration's potentials, made feasible, give a lower bound of the optimal
cost by duality; its plan, rounded to one that has the marginals (Altschuler et al., 2017, algorithm 2), costs more than
that. The regularisation falls until both are near. The lower bound is by far the better one: rounding moves some mass
anywhere, at the price of half a diameter, where a potential that is wrong costs what it is wrong by.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq_fast.distances import blocks

# Distances that are kept between passes, if there are no more.
KEPT_ENTRIES = 1 << 22
# Regularisations, as shares of the diameter: each half of the one before.
FIRST, FACTOR, CHECKED, LAST = 0.5, 0.5, 2e-2, 1e-4
# Iterations at each of them.
ITERATIONS = 10
# Of each iteration but the last (Thibault et al., 2021): converges in far fewer.
RELAXATION = 1.8


class Plan(NamedTuple):
    """Cost and lower bound (B,) of a plan P, and sum_j P_ij (x_i - y_j) / |x_i - y_j|, and the same for y."""

    cost: Tensor
    bound: Tensor
    x_gradient: Tensor
    y_gradient: Tensor


def transport(x: Tensor, y: Tensor, a: Tensor, b: Tensor, tolerance: float) -> Plan:
    """A plan between x (B, m, d) and y (B, n, d), of weights a, b of mass one, all float64.

    Where a weight is zero the point has no influence. Ends where cost - bound <= tolerance * cost in all of the batch,
    or at the last regularisation. No (m, n) matrix is kept of more than `KEPT_ENTRIES` distances.
    """
    x, y, scale = _unit(x, y, a, b)
    costs, turned = _Costs(x, y), _Costs(y, x)
    log_a, log_b = a.log(), b.log()
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    epsilon = FIRST
    best: Plan | None = None
    while epsilon >= LAST and not (best is not None and bool((best.cost - best.bound <= tolerance * best.cost).all())):
        for k in range(ITERATIONS, 0, -1):
            step = RELAXATION if k > 1 else 1.0
            f = f + step * (_softmin(costs, g, log_b, epsilon) - f)
            g = g + step * (_softmin(turned, f, log_a, epsilon) - g)
        if epsilon <= CHECKED:
            best = _better(best, _rounded(costs, x, y, a, b, f, g, epsilon))
        epsilon *= FACTOR
    assert best is not None  # the last regularisation is among those that are checked
    return Plan(best.cost * scale, best.bound * scale, best.x_gradient, best.y_gradient)


class _Costs:
    """Distances of two clouds by blocks of rows: kept if they are few, made anew in every pass otherwise."""

    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y = x, y
        self.rows = max(1, blocks.BLOCK_ENTRIES // (y.shape[0] * y.shape[1]))
        few = x.shape[0] * x.shape[1] * y.shape[1] <= KEPT_ENTRIES
        self.kept = [self._block(start) for start in range(0, x.shape[1], self.rows)] if few else None

    def _block(self, start: int) -> Tensor:
        return blocks.distances(self.x[:, start : start + self.rows], self.y)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        for k, start in enumerate(range(0, self.x.shape[1], self.rows)):
            yield slice(start, start + self.rows), self._block(start) if self.kept is None else self.kept[k]


def _unit(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both clouds in a box of diagonal one around the origin, in zero where there is no weight; the diagonal (B,)."""
    real = torch.cat((a, b), 1)[..., None] > 0
    points = torch.cat((x, y), 1)
    low = points.masked_fill(~real, torch.inf).amin(1, keepdim=True)
    high = points.masked_fill(~real, -torch.inf).amax(1, keepdim=True)
    # In two steps: the squares of a difference may be beyond the range of floating point.
    side = (high - low).amax(2, keepdim=True)
    side = torch.where(side > 0, side, 1)
    scale = side * torch.linalg.vector_norm((high - low) / side, dim=2, keepdim=True).clamp(min=1)
    points = ((points - low) / scale - 0.5 * (high - low) / scale).masked_fill(~real, 0)
    return points[:, : x.shape[1]], points[:, x.shape[1] :], scale[:, 0, 0]


def _softmin(costs: _Costs, g: Tensor, log_b: Tensor, epsilon: float) -> Tensor:
    """f_i = -epsilon log sum_j b_j exp((g_j - C_ij) / epsilon), (B, m)."""
    h = (log_b + g / epsilon)[:, None]
    return torch.cat([-epsilon * (h - block / epsilon).logsumexp(2) for _, block in costs], 1)


def _rounded(costs: _Costs, x: Tensor, y: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, epsilon: float) -> Plan:
    """The plan of potentials whose second marginal is b, rounded to the first as well, and the bound of g."""
    cost, bound = torch.zeros_like(a[:, 0]), (b * g).sum(1)
    rest_b = b.clone()
    rest_a = torch.zeros_like(a)
    gradients = torch.zeros_like(x), torch.zeros_like(y)
    absent = (b == 0)[:, None]
    for rows, block in costs:
        bound = bound + (a[:, rows] * (block - g[:, None]).masked_fill(absent, torch.inf).amin(2)).sum(1)
        plan = a[:, rows, None] * b[:, None] * ((f[:, rows, None] + g[:, None] - block) / epsilon).exp()
        # Rows that have too much give it up; what rows and columns then lack is filled in proportion.
        has, may = plan.sum(2), a[:, rows]
        plan = plan * torch.where(has > may, may / has, 1)[..., None]
        rest_a[:, rows] = (may - plan.sum(2)).clamp(min=0)
        rest_b -= plan.sum(1)
        cost = cost + _add(gradients, rows, plan, block, x, y)
    rest_b = rest_b.clamp(min=0)
    left = rest_a.sum(1)
    share = (rest_b / torch.where(rest_b.sum(1) > 0, rest_b.sum(1), 1)[:, None])[:, None]
    if bool((left > 0).any()):
        for rows, block in costs:
            cost = cost + _add(gradients, rows, rest_a[:, rows, None] * share, block, x, y)
    return Plan(cost, bound, *gradients)


def _add(gradients: tuple[Tensor, Tensor], rows: slice, plan: Tensor, block: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Cost (B,) of some rows of a plan, whose gradients are added to the others'."""
    pull = torch.where(block > 0, plan / block, 0)
    here = x[:, rows]
    gradients[0][:, rows] += pull.sum(2)[..., None] * here - pull @ y
    gradients[1].add_(pull.sum(1)[..., None] * y - pull.mT @ here)
    return (plan * block).sum((1, 2))


def _better(old: Plan | None, new: Plan) -> Plan:
    """For each of the batch the cheaper plan and the higher bound."""
    if old is None:
        return new
    cheaper = new.cost < old.cost
    gradients = (torch.where(cheaper[:, None, None], b, a) for a, b in zip(old[2:], new[2:], strict=True))
    return Plan(torch.minimum(old.cost, new.cost), torch.maximum(old.bound, new.bound), *gradients)
