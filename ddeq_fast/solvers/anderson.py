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
    """The last iterate z and its residual g = F(z) - z, (B, size), and rings of differences between one iterate and the
    next: `dg` of g, of length one, and `moves` of z + mixing g, divided by the same length, (B, depth - 1, size) each.

    gram: scalar products of the dg, (B, depth - 1, depth - 1) float64. slot: where the next difference goes, (B,)
    int64, a tensor so that a recorded step moves on with it.
    """

    z: Tensor
    g: Tensor
    moves: Tensor
    dg: Tensor
    gram: Tensor
    slot: Tensor


def empty_history(z: Tensor, depth: int) -> History:
    """The history of `depth` iterates shaped like z (B, ...) before the first one."""
    flat, kept = z.flatten(1), depth - 1
    # Each slot is written before it is read.
    moves, dg = (flat.new_empty(len(z), kept, flat.shape[1]) for _ in range(2))
    gram = flat.new_empty(len(z), kept, kept, dtype=torch.float64)
    slot = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    return History(torch.zeros_like(flat), torch.zeros_like(flat), moves, dg, gram, slot)


def mix(z: Tensor, y: Tensor, history: History, step: int, mixing: float, ridge: float) -> tuple[Tensor, History]:
    """The next iterate after z, y = F(z), and the history with this pair in it, whose rings are written in place.

    Of all affine combinations of the stored residuals the one of least norm is taken, and the same combination
    of iterates, moved by `mixing` times that residual. `ridge` regularises the normal equations, whose rows
    have unit norm.
    """
    flat_z = z.flatten(1)
    flat_g = y.flatten(1) - flat_z
    found = torch.add(flat_z, flat_g, alpha=mixing)
    depth, slot = history.dg.shape[1], history.slot
    if step:
        # The new difference and the residual to be made small, of which all old differences are asked at once.
        asked = torch.stack((flat_g - history.g, flat_g), 1)
        dg = asked[:, :1]
        norm = torch.linalg.vector_norm(dg, dim=-1, keepdim=True)
        # Differences of the size of rounding errors say nothing, and would extrapolate to infinity.
        floor = 4 * torch.finfo(z.dtype).eps * torch.linalg.vector_norm(flat_z, dim=-1)[:, None, None]
        inverse = torch.where(norm > floor, 1 / norm, 0)
        moves = torch.add(flat_z - history.z, asked[:, 0], alpha=mixing)[:, None].mul_(inverse)
        history.moves.index_copy_(1, slot[:1], moves)
        history.dg.index_copy_(1, slot[:1], dg.mul_(inverse))
        kept = min(step, depth)
        products = (asked @ history.dg[:, :kept].mT).double()
        gram, row = history.gram[:, :kept, :kept], products[:, :1]
        gram.index_copy_(1, slot[:1], row)
        gram.index_copy_(2, slot[:1], row.mT)
        slot = (slot + 1) % depth
        ridged = gram + ridge * torch.eye(kept, dtype=gram.dtype, device=gram.device)
        gamma = torch.linalg.solve_ex(ridged, products[:, 1:].mT).result
        gamma = torch.where(gamma.isfinite(), gamma, 0).to(z.dtype).mT
        found = torch.baddbmm(found[:, None], gamma, history.moves[:, :kept], alpha=-1).squeeze(1)
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
