"""Descent rules of the flow, as functions of a state whose tensors have the batch axis first.

torch.optim keeps one state for one parameter tensor; here samples leave the batch as they finish, and the state
must leave with them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq_fast.utils.validation import check_flag, check_number


@dataclass(frozen=True)
class SGD:
    """Gradient descent with (Nesterov) momentum: v <- momentum v + g."""

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self):
        check_number("momentum", self.momentum, high=1.0, closed=True)
        check_flag("nesterov", self.nesterov)
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0, got 0")

    def init(self, z: Tensor) -> Tensor | None:
        """State before the first step: the velocity, None if there is no momentum."""
        return torch.zeros_like(z) if self.momentum else None

    def direction(self, g: Tensor, state: Tensor | None, step: int) -> tuple[Tensor, Tensor | None]:
        """(what to subtract, times the learning rate; next state)."""
        if state is None:
            return g, None
        velocity = self.momentum * state + g
        return (g + self.momentum * velocity if self.nesterov else velocity), velocity


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba, 2015)."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self):
        check_number("beta1", self.beta1, high=1.0, closed=True)
        check_number("beta2", self.beta2, high=1.0, closed=True)
        check_number("eps", self.eps)

    def init(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """State before the first step: the means of the gradient and of its square."""
        return torch.zeros_like(z), torch.zeros_like(z)

    def direction(self, g: Tensor, state: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(what to subtract, times the learning rate; next state)."""
        mean = torch.lerp(state[0], g, 1 - self.beta1)
        square = torch.lerp(state[1], g * g, 1 - self.beta2)
        mean_hat = mean / (1 - self.beta1 ** (step + 1))
        square_hat = square / (1 - self.beta2 ** (step + 1))
        return mean_hat / (square_hat.sqrt() + self.eps), (mean, square)
