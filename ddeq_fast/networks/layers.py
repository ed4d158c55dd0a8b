"""Building blocks that act on every point alone: multilayer perceptron, residual feed-forward, shared dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddeq_fast.utils.validation import check_integer, check_number

WIDEST = 1 << 20  # features of a point: more are a mistake, and fill the memory

# (samples of the whole batch, those of them at hand) while a process works on its share of one.
_SHARE: ContextVar[tuple[int, Tensor] | None] = ContextVar("share", default=None)


@contextmanager
def share_of_batch(total: int, rows: Tensor) -> Iterator[None]:
    """Within it, in this thread, dropout masks are drawn for a batch of `total` samples of which `rows` are at hand."""
    token = _SHARE.set((total, rows))
    try:
        yield
    finally:
        _SHARE.reset(token)


def check_widths(**widths: int) -> None:
    """Raise TypeError or ValueError naming the first of them that is no integer from 1 to `WIDEST`."""
    for name, width in widths.items():
        check_integer(name, width, high=WIDEST)


class PointwiseMLP(nn.Module):
    """linear2(relu(linear1(x))) on each point: (..., dim_in) -> (..., dim_out)."""

    def __init__(self, dim_in: int, dim_hidden: int, dim_out: int):
        super().__init__()
        check_widths(dim_in=dim_in, dim_hidden=dim_hidden, dim_out=dim_out)
        self.linear1 = nn.Linear(dim_in, dim_hidden)
        self.linear2 = nn.Linear(dim_hidden, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim_in) -> (..., dim_out)."""
        return self.linear2(F.relu(self.linear1(x)))


class FeedForward(nn.Module):
    """Post-norm residual perceptron, norm(x + linear2(drop(relu(linear1(x))))): (B, n, dim) -> (B, n, dim).

    Dropout is one mask a cloud, the same for all its points, and is passed in: drawn anew in every
    evaluation it would make the equilibrium that of no function at all, and drawn point by point it would break
    equivariance.
    """

    def __init__(self, dim: int, dim_hidden: int, dropout: float = 0.0):
        super().__init__()
        check_widths(dim=dim, dim_hidden=dim_hidden)
        self.linear1 = nn.Linear(dim, dim_hidden)
        self.linear2 = nn.Linear(dim_hidden, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = check_number("dropout", dropout, high=1.0, closed=True)

    def extra_repr(self) -> str:
        return f"dropout={self.dropout:g}" if self.dropout else ""

    def draw(self, like: Tensor) -> Tensor | None:
        """A dropout mask (B, 1, dim_hidden) for the batch of `like`; None when nothing is dropped.

        Raises ValueError if B is not the number of samples that an enclosing `share_of_batch` has at hand.
        """
        if not (self.training and self.dropout > 0):
            return None
        keep = 1 - self.dropout
        total, rows = _SHARE.get() or (like.shape[0], None)
        if rows is not None and len(rows) != like.shape[0]:
            raise ValueError(f"x must have the {len(rows)} clouds of this share of a batch, got {like.shape[0]}")
        shape = (total, 1, self.linear1.out_features)
        mask = torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(keep) / keep
        return mask if rows is None else mask[rows]

    def forward(self, x: Tensor, drop: Tensor | None = None) -> Tensor:
        """(B, n, dim) -> (B, n, dim), with a mask of `draw` or none."""
        # Flat, for a rectifier in place: of a view, autograd would make copies.
        hidden = self.linear1(x.flatten(0, 1)).relu_()
        if drop is not None:
            hidden = hidden.unflatten(0, x.shape[:2]) * drop
        return self.norm(x + self.linear2(hidden).view_as(x))
