"""Invertible lifting of points: zero padding and affine coupling (Dinh et al. 2017; Geuter et al. 2025, section 4)."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from ddeq_fast.networks.layers import WIDEST, PointwiseMLP
from ddeq_fast.utils.validation import check_alike, check_integer


class AffineCoupling(nn.Module):
    """(a, b) -> (a, b * exp(s(a)) + t(a)) on the halves a, b of each point; s and t are perceptrons.

    Args:
        dim: of the points, at least 2; a has the smaller half of the coordinates.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim_kept = check_integer("dim", dim, low=2, high=WIDEST) // 2
        self.scale = PointwiseMLP(self.dim_kept, self.dim_kept, dim - self.dim_kept)
        self.shift = PointwiseMLP(self.dim_kept, self.dim_kept, dim - self.dim_kept)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        a, b = x[..., : self.dim_kept], x[..., self.dim_kept :]
        return torch.cat((a, b * self.scale(a).exp() + self.shift(a)), -1)

    def inverse(self, y: Tensor, keep: int) -> Tensor:
        """The first `keep` coordinates of the point that is mapped to y (..., dim)."""
        a = y[..., : self.dim_kept]
        if keep <= self.dim_kept:  # exp(-s) of coordinates that nobody reads may overflow, and spoil gradients
            return a[..., :keep]
        b = (y[..., self.dim_kept :] - self.shift(a)) * (-self.scale(a)).exp()
        return torch.cat((a, b), -1)[..., :keep]


class Lift(nn.Module):
    """q: R^d -> R^dz, injective, with a left inverse that is defined on all of R^dz.

    Each layer appends zeros and applies an affine coupling. Going back undoes the couplings and drops what was
    appended.

    Args:
        dims: increasing widths, from d to dz, at least two, of which only the first may be 1.

    Raises:
        TypeError, ValueError: other widths.
    """

    def __init__(self, dims: tuple[int, ...]):
        super().__init__()
        if not isinstance(dims, (tuple, list)):
            raise TypeError(f"dims must be a tuple of widths, got {dims!r}")
        self.dims = tuple(check_integer("dims", width, high=WIDEST) for width in dims)
        if len(dims) < 2 or any(wide <= narrow for narrow, wide in pairwise(dims)) or dims[1] < 2:
            raise ValueError(f"dims must be two or more increasing widths, the second at least 2, got {tuple(dims)}")
        self.layers = nn.ModuleList(AffineCoupling(width) for width in self.dims[1:])

    def extra_repr(self) -> str:
        return f"dims={self.dims}"

    def forward(self, x: Tensor) -> Tensor:
        """q(x): (..., d) -> (..., dz). Raises TypeError, ValueError for points in another dimension."""
        self._check("x", x, self.dims[0])
        for layer, width in zip(self.layers, self.dims[1:], strict=True):
            x = layer(nn.functional.pad(x, (0, width - x.shape[-1])))
        return x

    def inverse(self, y: Tensor) -> Tensor:
        """q^-1(y): (..., dz) -> (..., d), with q^-1(q(x)) = x. Raises TypeError, ValueError as `forward`."""
        self._check("y", y, self.dims[-1])
        layers = cast("list[AffineCoupling]", list(self.layers))
        for layer, width in zip(reversed(layers), reversed(self.dims[:-1]), strict=True):
            y = layer.inverse(y, width)
        return y

    def _check(self, name: str, points: Tensor, dim: int) -> None:
        if not isinstance(points, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(points).__name__}")
        if points.shape[-1:] != (dim,):
            raise ValueError(f"{name} must have points in dimension {dim}, got shape {tuple(points.shape)}")
        check_alike(name, points, "the network", next(self.parameters()))
