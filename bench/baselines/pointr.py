"""PoinTr (Yu et al., ICCV 2021, "PoinTr: diverse point cloud completion with geometry-aware transformers").

Far apart points of the partial cloud, each with what lies around it, are tokens of an encoder; coarse points made of a
code of the cloud are queries of a decoder, which attends to these; of each query some points around its coarse point
are made. Smaller than published, with plain attention in all layers, and trained on the fine points alone.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from bench.baselines.grouping import farthest, neighbours, padded, picked
from bench.baselines.pcn import completed
from bench.baselines.pointnet import largest, perceptron, real
from ddeq_fast.models import Completion

HEADS, FINE = 4, 4  # attention heads; points of a query


class PoinTr(nn.Module):
    """Completes clouds with as many points as `ddeq_fast.models.Completer` would, keeping those that are there.

    Args:
        dim: of the points.
        most: points of the largest completed cloud; larger ones get too few.
        growth: points of a completed cloud for each point of the partial one.
        width: of an attention head; tokens have four.
        layers: of the encoder, and of the decoder.
        ratio: points of the partial cloud a token.
        k: points around a token's point that it knows of.
    """

    def __init__(
        self, dim: int, most: int, growth: float = 1.275, width: int = 16, layers: int = 2, ratio: int = 8, k: int = 16
    ):
        super().__init__()
        self.growth, self.dim, self.ratio, self.k = growth, dim, ratio, k
        self.queries = max(1, math.ceil((most - int(most / growth)) / FINE))
        wide = HEADS * width
        plain = partial(perceptron, norm=nn.Identity)
        self.local = nn.Sequential(plain(dim, wide // 2), nn.Linear(wide // 2, wide))
        self.position = nn.Sequential(plain(dim, wide // 2), nn.Linear(wide // 2, wide))
        options = {"dim_feedforward": 2 * wide, "dropout": 0.0, "batch_first": True, "norm_first": True}
        self.encoder = nn.ModuleList(nn.TransformerEncoderLayer(wide, HEADS, **options) for _ in range(layers))
        self.decoder = nn.ModuleList(nn.TransformerDecoderLayer(wide, HEADS, **options) for _ in range(layers))
        self.to_code = nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, 2 * wide))
        self.coarse = nn.Sequential(plain(2 * wide, wide), nn.Linear(wide, self.queries * dim))
        self.query = nn.Sequential(plain(2 * wide + dim, wide), nn.Linear(wide, wide))
        self.fine = nn.Sequential(nn.LayerNorm(wide), plain(wide, wide), nn.Linear(wide, FINE * dim))

    def encode(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, m, c) of clouds x (B, n, dim), and which of them are real."""
        index, kept = farthest(x, mask, self.ratio)
        centres = picked(x, index)
        near = neighbours(centres, kept, x, mask, self.k)
        around = near.real(near.of(x[mask]) - centres[kept][:, None])
        tokens = padded(largest(self.local(around), near.mask) + self.position(centres[kept]), kept)
        for layer in self.encoder:
            tokens = layer(tokens, src_key_padding_mask=~kept)
        return tokens, kept

    def decode(self, tokens: Tensor, kept: Tensor) -> Tensor:
        """Fine points (B, FINE times queries, dim), first one of each query, then another of each..."""
        code = largest(self.to_code(tokens[kept]), kept)
        coarse = self.coarse(code).view(len(code), self.queries, self.dim)
        found = self.query(torch.cat((coarse, code[:, None].expand(-1, self.queries, -1)), 2))
        for layer in self.decoder:
            found = layer(found, tokens, memory_key_padding_mask=~kept)
        offsets = self.fine(found).view(len(code), self.queries, FINE, self.dim)
        return (coarse[:, None] + offsets.transpose(1, 2)).flatten(1, 2)

    def forward(self, x: Tensor, weights: Tensor | None = None, *, noise: Tensor | None = None) -> Completion:
        """Complete clouds x (B, n, dim); weights (B, n), zero for padding; noise, of which `Completer` makes its
        points, is of no use here. Errors as of `DDEQ.forward`."""
        return completed(x, weights, self.decode(*self.encode(x, real(x, weights))), self.growth)
