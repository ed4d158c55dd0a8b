"""Phantom gradient: a few damped steps from the solution are differentiated (Geng et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq_fast.gradients.base import Backward, BackwardInfo
from ddeq_fast.solvers.problem import Pushforward
from ddeq_fast.utils.validation import check_integer, check_share


@dataclass(kw_only=True, repr=False, eq=False)
class Phantom(Backward):
    """Phantom gradient: `steps` tracked steps Z <- (1 - damping) Z + damping F(Z) from the solution, which is fixed.

    Its derivatives, of any order, are those of the cloud after these steps with the solution fixed: they tend to the
    equilibrium's as steps are added, as fast as F contracts, and those of higher order later. The fused kernels of
    attention, taken for large clouds, have no second ones: evaluate the layer inside `twice_differentiable()` for them.

    Args:
        steps: k >= 1.
        damping: tau in (0, 1]; 1 takes plain evaluations of F.

    Raises:
        TypeError, ValueError: naming an option out of range.
    """

    steps: int = 1
    damping: float = 1.0

    def __post_init__(self) -> None:
        check_integer("steps", self.steps)
        self.damping = check_share("damping", self.damping)

    def attach(self, problem: Pushforward, z: Tensor) -> tuple[Tensor, BackwardInfo]:
        z, problem = z.detach(), problem.recorded(z)
        image = problem.constrained_image(z)
        info = BackwardInfo(self.steps, evaluated=(z, image))
        z = torch.lerp(z, image, self.damping)
        for _ in range(self.steps - 1):
            z = torch.lerp(z, problem.constrained_image(z), self.damping)
        return z, info
