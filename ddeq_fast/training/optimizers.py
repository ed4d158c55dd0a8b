"""Optimizers of training, by name."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ddeq_fast.utils.validation import check_choice

OPTIMIZERS = ("adamw", "muon")
# Weights with fewer rows or columns, of coordinates, labels or classes, are no matrices to Muon.
LEAST_SIDE = 16


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW, or Muon for matrices and AdamW for all else.

    Raises ValueError for an unknown name, or where torch is older than Muon.
    """
    if check_choice("optimizer", name, OPTIMIZERS) == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    return MuonAndAdamW(parameters, lr, weight_decay)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for matrices, AdamW for all other parameters, as one optimizer.

    Muon makes the momentum of a matrix orthogonal before it takes a step: all directions of it are learned at one pace.
    Its steps have the size of AdamW's (Liu et al. 2025), so that both have one learning rate.

    Args:
        parameters: of the model.
        lr, weight_decay: of both.

    Raises:
        ValueError: torch has no Muon.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float):
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"optimizer must be 'adamw' with torch {torch.__version__}: Muon came with torch 2.9")
        parameters = list(parameters)
        matrices = [p for p in parameters if p.dim() == 2 and min(p.shape) >= LEAST_SIDE]
        chosen = set(map(id, matrices))
        others = [p for p in parameters if id(p) not in chosen]
        super().__init__(parameters, {"lr": lr})
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            scaled = "match_rms_adamw"
            self.parts.append(torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn=scaled))
        if others:
            self.parts.append(make_optimizer("adamw", others, lr, weight_decay))
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        for part in self.parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure=None):
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss
