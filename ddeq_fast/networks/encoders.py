"""Attention encoders: post-norm layers in which keys and values may be computed ahead of the queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddeq_fast.networks.attention import KeysAndValues, Prepared, attend, attend_to_prepared
from ddeq_fast.networks.layers import FeedForward, check_widths
from ddeq_fast.networks.padding import zeroed
from ddeq_fast.utils.validation import check_integer

MOST_LAYERS = 1000


class AttentionLayer(nn.Module):
    """ffn(norm(q + attention(q, keys, values))): (B, n, dim) -> (B, n, dim).

    Args:
        dim: width of the points.
        num_heads: attention heads; must divide dim.
        dim_hidden: hidden width of the feed-forward block.
        dropout: of that block, in [0, 1).

    Raises:
        TypeError, ValueError: a size that is no positive integer, heads that do not divide the width.
    """

    def __init__(self, dim: int, num_heads: int, dim_hidden: int, dropout: float = 0.0):
        super().__init__()
        check_widths(dim=dim, num_heads=num_heads, dim_hidden=dim_hidden)
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim, {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.project_in = nn.Linear(dim, 3 * dim)  # queries, keys, values
        self.project_out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, dim_hidden, dropout)
        nn.init.xavier_uniform_(self.project_in.weight)
        nn.init.zeros_(self.project_in.bias)
        nn.init.zeros_(self.project_out.bias)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, n, parts * dim) -> `parts` tensors (B, num_heads, n, dim / num_heads)."""
        batch, n, width = x.shape
        x = x.view(batch, n, parts, self.num_heads, width // (parts * self.num_heads))
        return x.permute(2, 0, 3, 1, 4).unbind(0)

    def keys_and_values(self, x: Tensor) -> KeysAndValues:
        """Keys and values of a cloud (B, m, dim)."""
        dim = x.shape[-1]
        keys, values = self._split(F.linear(x, self.project_in.weight[dim:], self.project_in.bias[dim:]), 2)
        # Contiguous once here, or copied in every evaluation.
        return KeysAndValues(keys.contiguous(), values.contiguous())

    def forward(
        self,
        q: Tensor,
        source: KeysAndValues | Prepared | None = None,
        bias: Tensor | None = None,
        drop: Tensor | None = None,
        present: Tensor | None = None,
        anchors: KeysAndValues | None = None,
    ) -> Tensor:
        """Attend from q (B, n, dim) to `source`, or to q itself if None.

        Args:
            q: the points that attend.
            source: keys and values of m points.
            bias: (B, 1, 1, m), added to the logits; None for zero.
            drop: a dropout mask, see `FeedForward.draw`.
            present: boolean (B, n, 1), rows of the result that are not zeroed; None for all.
            anchors: keys and values of points that are attended to besides, and stand first in `bias`.
        """
        dim = q.shape[-1]
        if source is None:
            queries, keys, values = self._split(self.project_in(q), 3)
        else:
            (queries,) = self._split(F.linear(q, self.project_in.weight[:dim], self.project_in.bias[:dim]), 1)
        if isinstance(source, Prepared):
            attended = attend_to_prepared(queries, source, bias)
        else:
            if source is not None:
                keys, values = source
            if anchors is not None:
                keys, values = torch.cat((anchors.keys, keys), 2), torch.cat((anchors.values, values), 2)
            attended = attend(queries, keys, values, bias)
        attended = self.project_out(attended.transpose(1, 2).reshape(q.shape))
        return zeroed(self.ffn(self.norm(q + attended), drop), present)


class AttentionEncoder(nn.ModuleList):
    """A stack of attention layers: self-attention without keys and values, cross-attention with a pair for each layer.

    Args:
        layers: how many; 0 is the identity.
        dim, num_heads, dim_hidden, dropout: of each, see `AttentionLayer`.
    """

    def __init__(self, layers: int, dim: int, num_heads: int, dim_hidden: int, dropout: float = 0.0):
        count = check_integer("layers", layers, low=0, high=MOST_LAYERS)
        super().__init__(AttentionLayer(dim, num_heads, dim_hidden, dropout) for _ in range(count))

    @property
    def _layers(self) -> list[AttentionLayer]:
        return cast("list[AttentionLayer]", list(self))

    def keys_and_values(self, x: Tensor) -> tuple[KeysAndValues, ...]:
        """Keys and values of x (B, m, dim) for every layer."""
        return tuple(layer.keys_and_values(x) for layer in self._layers)

    def draw(self, like: Tensor) -> list[Tensor | None]:
        """Dropout masks for every layer, see `FeedForward.draw`."""
        return [layer.ffn.draw(like) for layer in self._layers]

    def forward(
        self,
        q: Tensor,
        sources: Sequence[KeysAndValues | Prepared] | None = None,
        bias: Tensor | None = None,
        drops: Sequence[Tensor | None] | None = None,
        present: Tensor | None = None,
        anchors: Sequence[KeysAndValues] | None = None,
    ) -> Tensor:
        """(B, n, dim) -> (B, n, dim): `AttentionLayer.forward` with one of the sources, drops and anchors a layer."""
        for i, layer in enumerate(self):
            q = layer(
                q,
                None if sources is None else sources[i],
                bias,
                None if drops is None else drops[i],
                present,
                None if anchors is None else anchors[i],
            )
        return q
