"""Anderson acceleration of z <- F(z) (Anderson 1965; Walker & Ni 2011), batched, for any map between tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq_fast.solvers.base import IterativeSolver
from ddeq_fast.solvers.problem import Pushforward
from ddeq_fast.utils.validation import check_integer, check_number, check_share

# Beyond it, a history is no longer solved for in no time, nor held.
LARGEST_DEPTH = 1000


class History(NamedTuple):
    """The last iterates z_j and their residuals F(z_j) - z_j, both (B, depth, size), newest first."""

    z: Tensor
    g: Tensor


def empty_history(z: Tensor, depth: int) -> History:
    """A history of zeros for iterates shaped like z (B, ...)."""
    shape = (z.shape[0], depth, z[0].numel())
    return History(z.new_zeros(shape), z.new_zeros(shape))


def mix(z: Tensor, y: Tensor, history: History, step: int, mixing: float, ridge: float) -> tuple[Tensor, History]:
    """The next iterate after z, y = F(z), and the history with this pair in it.

    Of all affine combinations of the stored residuals the one of least norm is taken, and the same combination
    of iterates, moved by `mixing` times that residual. `ridge` regularises the normal equations, whose rows
    are scaled to unit norm.
    """
    flat_z, flat_g = z.flatten(1), (y - z).flatten(1)
    depth = history.z.shape[1]
    others, move, gain = min(step, depth - 1), flat_z, flat_g
    if others:
        dz = history.z[:, :others] - flat_z[:, None]
        dg = history.g[:, :others] - flat_g[:, None]
        norm = torch.linalg.vector_norm(dg, dim=-1, keepdim=True)
        # Differences of the size of rounding errors say nothing, and would extrapolate to infinity.
        floor = 4 * torch.finfo(z.dtype).eps * torch.linalg.vector_norm(flat_z, dim=-1)
        inverse = torch.where(norm > floor[:, None, None], 1 / norm, 0)
        unit = dg * inverse
        gram = (unit @ unit.mT).double()
        gram.diagonal(dim1=-2, dim2=-1).add_(ridge)
        right = (unit @ flat_g[..., None]).double()
        gamma = torch.linalg.solve_ex(gram, right).result
        gamma = torch.where(gamma.isfinite(), gamma, 0).to(z.dtype) * inverse
        move = flat_z - (gamma.mT @ dz).squeeze(1)
        gain = flat_g - (gamma.mT @ dg).squeeze(1)
    kept = (torch.cat((flat[:, None], old[:, :-1]), 1) for flat, old in zip((flat_z, flat_g), history, strict=True))
    return (move + mixing * gain).view_as(z), History(*kept)


@dataclass(kw_only=True, repr=False, eq=False)
class Anderson(IterativeSolver):
    """Anderson acceleration, one evaluation of F a step; returns the iterate of least residual.

    It looks for a cloud that F maps to itself point by point. A measure may be fixed while its particles are
    permuted; there it stalls, and `Auto` turns to the flow.

    Args:
        depth: iterates kept.
        mixing: share of the combined residual added, in (0, 1].
        ridge: regularisation of the least-squares problem.
        kernel, max_steps, tol, relative, stop_on, stop_together, check_every, patience, backend, cuda_graph: see
            `IterativeSolver`.

    Raises:
        TypeError, ValueError: naming an option out of range.
    """

    depth: int = 6
    mixing: float = 1.0
    ridge: float = 1e-10
    max_steps: int = 60
    patience: int | None = 20

    keep_best = True

    def __post_init__(self) -> None:
        check_integer("depth", self.depth, low=2, high=LARGEST_DEPTH)
        self.mixing = check_share("mixing", self.mixing)
        self.ridge = check_number("ridge", self.ridge, closed=True)
        super().__post_init__()

    @property
    def alike_from(self) -> int:
        return self.depth - 1  # until then the history is not full

    def init(self, problem: Pushforward, z: Tensor, y: Tensor) -> History:
        if y.shape != z.shape:
            raise ValueError(f"Anderson needs an image of shape {tuple(z.shape)}, got {tuple(y.shape)}")
        return empty_history(z, self.depth)

    def step(
        self,
        problem: Pushforward,
        z: Tensor,
        y: Tensor,
        vjp: Callable[[Tensor], Tensor] | None,
        state: History,
        step: int,
    ) -> tuple[Tensor, History, Tensor]:
        if problem.frozen is None and problem.weights is None:
            z_next, state = mix(z, y, state, step, self.mixing, self.ridge)
            return z_next, state, y - z
        # Padding has no part in the norms that weigh iterates, and is left where it is.
        inside, moving = problem.present(z), problem.moving(z)
        y = torch.where(moving, y, inside)
        z_next, state = mix(inside, y, state, step, self.mixing, self.ridge)
        return torch.where(moving, z_next, z), state, y - inside
