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
    """The last iterate z and its residual g = F(z) - z, (B, size), and a ring of the last differences between one
    iterate and the next, of both, divided by the length of that of g: (B, depth - 1, size).

    slot: where the next difference goes, (B,) int64, a tensor so that a recorded step moves on with it.
    """

    z: Tensor
    g: Tensor
    dz: Tensor
    dg: Tensor
    slot: Tensor


def empty_history(z: Tensor, depth: int) -> History:
    """The history of `depth` iterates shaped like z (B, ...) before the first one."""
    flat = z.flatten(1)
    # Each slot is written before it is read.
    dz, dg = (flat.new_empty(len(z), depth - 1, flat.shape[1]) for _ in range(2))
    slot = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    return History(torch.zeros_like(flat), torch.zeros_like(flat), dz, dg, slot)


def mix(z: Tensor, y: Tensor, history: History, step: int, mixing: float, ridge: float) -> tuple[Tensor, History]:
    """The next iterate after z, y = F(z), and the history with this pair in it, whose ring is written in place.

    Of all affine combinations of the stored residuals the one of least norm is taken, and the same combination
    of iterates, moved by `mixing` times that residual. `ridge` regularises the normal equations, whose rows
    have unit norm.
    """
    flat_z = z.flatten(1)
    flat_g = y.flatten(1) - flat_z
    found = torch.add(flat_z, flat_g, alpha=mixing)
    depth, slot = history.dz.shape[1], history.slot
    if step:
        dg = flat_g - history.g
        norm = torch.linalg.vector_norm(dg, dim=-1, keepdim=True)
        # Differences of the size of rounding errors say nothing, and would extrapolate to infinity.
        floor = 4 * torch.finfo(z.dtype).eps * torch.linalg.vector_norm(flat_z, dim=-1, keepdim=True)
        inverse = torch.where(norm > floor, 1 / norm, 0)
        history.dz.index_copy_(1, slot[:1], (flat_z - history.z).mul_(inverse)[:, None])
        history.dg.index_copy_(1, slot[:1], dg.mul_(inverse)[:, None])
        slot = (slot + 1) % depth
        dz, dg = (ring[:, : min(step, depth)] for ring in (history.dz, history.dg))
        gram = (dg @ dg.mT).double()
        gram.diagonal(dim1=-2, dim2=-1).add_(ridge)
        right = (dg @ flat_g[..., None]).double()
        gamma = torch.linalg.solve_ex(gram, right).result
        gamma = torch.where(gamma.isfinite(), gamma, 0).to(z.dtype).mT
        found = torch.baddbmm(found[:, None], gamma, dz, alpha=-1)
        found = torch.baddbmm(found, gamma, dg, alpha=-mixing).squeeze(1)
    return found.view_as(z), history._replace(z=flat_z, g=flat_g, slot=slot)


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

    depth: int = 10
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
