"""Bilinear layer: points of Z against the pooled cloud X (Geuter et al. 2025, pushforward form)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddeq_fast.networks.layers import check_widths


class Bilinear(nn.Module):
    """relu(norm(z A(X) + b)), A(X)_ji = sum_k alpha_jik sum_rows w x_k.

    Equivariant in Z and invariant in X. A(X) depends on X alone: `encode` computes it once a solve, after which
    the layer is one small matrix product a cloud.

    Args:
        dim_z, dim_x: widths of the points of Z and X.
        dim_out: width of the result.

    Raises:
        TypeError, ValueError: a width that is no positive integer.
    """

    def __init__(self, dim_z: int, dim_x: int, dim_out: int):
        super().__init__()
        check_widths(dim_z=dim_z, dim_x=dim_x, dim_out=dim_out)
        self.alpha = nn.Parameter(torch.empty(dim_z, dim_out, dim_x))
        self.bias = nn.Parameter(torch.zeros(dim_out))
        self.norm = nn.LayerNorm(dim_out)
        nn.init.normal_(self.alpha, std=(dim_z * dim_x) ** -0.5)

    def extra_repr(self) -> str:
        dim_z, dim_out, dim_x = self.alpha.shape
        return f"dim_z={dim_z}, dim_x={dim_x}, dim_out={dim_out}"

    def encode(self, x: Tensor, weights: Tensor) -> Tensor:
        """A(X), (B, dim_z, dim_out), of features x (B, m, dim_x) with weights (B, m)."""
        pooled = torch.matmul(weights[:, None], x).squeeze(1)
        return torch.einsum("jik,bk->bji", self.alpha, pooled)

    def forward(self, z: Tensor, matrix: Tensor) -> Tensor:
        """(B, n, dim_z) -> (B, n, dim_out), with the matrix of `encode`."""
        return F.relu(self.norm(torch.matmul(z, matrix) + self.bias))
