"""Losses between clouds as modules, with the batch reduced as in `torch.nn`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ddeq_fast.distances.chamfer import CONVENTIONS, chamfer
from ddeq_fast.distances.points import check_backend
from ddeq_fast.sums import backends
from ddeq_fast.sums.mmd import squared_mmd
from ddeq_fast.sums.radial import RadialKernel, check_kernel
from ddeq_fast.utils.validation import check_choice

REDUCTIONS = ("mean", "sum", "none")


class _CloudLoss(nn.Module):
    """A distance of each pair of clouds, reduced over the batch."""

    def __init__(self, reduction: str):
        super().__init__()
        self.reduction = check_choice("reduction", reduction, REDUCTIONS)

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        *,
        x_weights: Tensor | None = None,
        y_weights: Tensor | None = None,
        x_mask: Tensor | None = None,
        y_mask: Tensor | None = None,
    ) -> Tensor:
        """A scalar; (B,) of batched clouds if the reduction is "none". Arguments and errors as in the distance."""
        given = dict(x_weights=x_weights, y_weights=y_weights, x_mask=x_mask, y_mask=y_mask)
        return reduced(self._distance(x, y, **given), self.reduction)

    def _distance(self, x: Tensor, y: Tensor, **given: Any) -> Tensor:
        """(B,), or a scalar of clouds without a batch axis; `given` are weights and masks."""
        raise NotImplementedError


class MMDLoss(_CloudLoss):
    """`squared_mmd` of two batches of clouds, reduced over the batch.

    Args:
        kernel: radial kernel; `Riesz(1)`, the energy distance, if None.
        reduction: "mean" or "sum" over the batch, "none" for the loss of each cloud.
        backend, tolerance: as in `squared_mmd`.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    def __init__(
        self,
        kernel: RadialKernel | None = None,
        *,
        reduction: str = "mean",
        backend: str = "auto",
        tolerance: float | None = None,
    ):
        super().__init__(reduction)
        self.kernel = check_kernel(kernel)
        backends.to_tolerance(backend, tolerance)
        self.backend, self.tolerance = backend, tolerance

    def extra_repr(self) -> str:
        """Shown by `print(loss)`."""
        within = "" if self.tolerance is None else f", tolerance={self.tolerance:g}"
        return f"{self.kernel!r}, reduction={self.reduction!r}, backend={self.backend!r}{within}"

    def _distance(self, x: Tensor, y: Tensor, **given: Any) -> Tensor:
        return squared_mmd(x, y, self.kernel, **given, backend=self.backend, tolerance=self.tolerance)


class ChamferLoss(_CloudLoss):
    """`chamfer` distance of two batches of clouds, reduced over the batch.

    Args:
        convention: which distance that is, a name of the table of `chamfer`.
        reduction: "mean" or "sum" over the batch, "none" for the loss of each cloud.
        backend: as in `nearest`.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    def __init__(self, convention: str = "l1", *, reduction: str = "mean", backend: str = "auto"):
        super().__init__(reduction)
        self.convention = check_choice("convention", convention, CONVENTIONS)
        self.backend = check_backend(backend)

    def extra_repr(self) -> str:
        """Shown by `print(loss)`."""
        return f"convention={self.convention!r}, reduction={self.reduction!r}, backend={self.backend!r}"

    def _distance(self, x: Tensor, y: Tensor, **given: Any) -> Tensor:
        return chamfer(x, y, **given, convention=self.convention, backend=self.backend)


def reduced(values: Tensor, reduction: str) -> Tensor:
    """Values (B,) or a scalar, by a name of `REDUCTIONS`."""
    if reduction == "none":
        return values
    return values.mean() if reduction == "mean" else values.sum()
