"""Optimizers of training, by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ddeq_fast.utils.validation import check_choice

OPTIMIZERS = ("adamw", "muon")
# Weights with fewer rows or columns, of coordinates, labels or classes, are no matrices to Muon.
LEAST_SIDE = 16
# Of Muon (Jordan et al. 2024): the odd polynomial a s + b s^3 + c s^5, which takes singular values of any size to about
# one in so few iterations; and momentum.
POLYNOMIAL, ITERATIONS, MOMENTUM = (3.4445, -4.7750, 2.0315), 5, 0.95


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW, or Muon for matrices and AdamW for all else.

    Raises ValueError for an unknown name.
    """
    if check_choice("optimizer", name, OPTIMIZERS) == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    return MuonAndAdamW(parameters, lr, weight_decay)


def _evaluated(closure: Callable[[], Any] | None) -> Any:
    """The loss of a step's closure, evaluated with its graph; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class Muon(torch.optim.Optimizer):
    """Steps along the momentum of matrices made orthogonal: all directions of one are learned at one pace (Jordan et
    al. 2024), with Nesterov momentum.

    Its steps have the size of AdamW's (Liu et al. 2025), so that both have one learning rate. `torch.optim.Muon` takes
    the same ones up to rounding, matrix by matrix in bfloat16; here matrices of one shape are orthogonalised together,
    in their own precision, which on CPUs takes a quarter of the time.

    Args:
        parameters: matrices (rows, columns).
        lr: length of a step.
        weight_decay: shrinks matrices by lr times this in each step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """One step; matrices without a gradient are left."""
        loss = _evaluated(closure)
        for group in self.param_groups:
            alike = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape, matrix.dtype, matrix.device].append(matrix)
            for matrices in alike.values():
                self._step(matrices, group["lr"], group["weight_decay"])
        return loss

    def _step(self, matrices: list[Tensor], lr: float, weight_decay: float) -> None:
        """Move matrices of one shape, all with a gradient."""
        gradients, states = [m.grad for m in matrices if m.grad is not None], [self.state[m] for m in matrices]
        for matrix, state in zip(matrices, states, strict=True):
            if not state:
                state["momentum_buffer"] = torch.zeros_like(matrix)
        momenta = [state["momentum_buffer"] for state in states]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        steps = orthogonal(torch.stack(torch._foreach_lerp(gradients, momenta, MOMENTUM)))
        size = lr * 0.2 * max(matrices[0].shape) ** 0.5
        torch._foreach_mul_(matrices, 1 - lr * weight_decay)
        torch._foreach_add_(matrices, steps.unbind(), alpha=-size)


def orthogonal(x: Tensor) -> Tensor:
    """Matrices x (B, rows, columns) with all singular values about one, of the same singular vectors, by
    Newton-Schulz iterations."""
    if x.shape[1] > x.shape[2]:
        return orthogonal(x.mT).mT
    a, b, c = POLYNOMIAL
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class MuonAndAdamW(torch.optim.Optimizer):
    """`Muon` for matrices, AdamW for all other parameters, as one optimizer.

    Args:
        parameters: of the model.
        lr, weight_decay: of both.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float):
        parameters = list(parameters)
        matrices = [p for p in parameters if p.dim() == 2 and min(p.shape) >= LEAST_SIDE]
        chosen = set(map(id, matrices))
        others = [p for p in parameters if id(p) not in chosen]
        super().__init__(parameters, {"lr": lr})
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(Muon(matrices, lr, weight_decay))
        if others:
            self.parts.append(make_optimizer("adamw", others, lr, weight_decay))
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        for part in self.parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure=None):
        """One step of both."""
        loss = _evaluated(closure)
        for part in self.parts:
            part.step()
        return loss
