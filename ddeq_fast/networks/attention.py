"""Attention encoders: post-norm layers in which keys and values may be computed ahead of the queries."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddeq_fast.networks.layers import FeedForward

# On CPUs attention matrices of up to MATRIX_ENTRIES a cloud are formed, CHUNK_ENTRIES at a time: below that, streaming
# kernels spend more on their blocks, and on gradients of keys and values that nobody asked for, than they save.
MATRIX_ENTRIES, CHUNK_ENTRIES = 1 << 18, 1 << 19


class Memory(NamedTuple):
    """What queries attend to: keys and values (B, heads, m, dim / heads)."""

    keys: Tensor
    values: Tensor


class AttentionLayer(nn.Module):
    """ffn(norm(q + attention(q, memory))): (B, n, dim) -> (B, n, dim)."""

    def __init__(self, dim: int, heads: int, dim_hidden: int, dropout: float = 0.0):
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide the width {dim}, got {heads}")
        self.heads = heads
        self.project_in = nn.Linear(dim, 3 * dim)  # queries, keys, values
        self.project_out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, dim_hidden, dropout)
        nn.init.xavier_uniform_(self.project_in.weight)
        nn.init.zeros_(self.project_in.bias)
        nn.init.zeros_(self.project_out.bias)

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, n, parts * dim) -> `parts` tensors (B, heads, n, dim / heads)."""
        batch, n, width = x.shape
        x = x.view(batch, n, parts, self.heads, width // (parts * self.heads))
        return x.permute(2, 0, 3, 1, 4).unbind(0)

    def memory(self, x: Tensor) -> Memory:
        """Keys and values of a cloud (B, m, dim)."""
        dim = x.shape[-1]
        parts = self._split(F.linear(x, self.project_in.weight[dim:], self.project_in.bias[dim:]), 2)
        # Contiguous once here, or copied in every evaluation.
        return Memory(*(part.contiguous() for part in parts))

    def forward(
        self,
        q: Tensor,
        memory: Memory | None,
        bias: Tensor | None,
        drop: Tensor | None = None,
        present: Tensor | None = None,
        held: Memory | None = None,
    ) -> Tensor:
        """Attend from q to `memory`, or to q itself if None; `bias` (B, 1, 1, m) is added to the logits.

        What is `held` is attended to besides, and stands first in `bias`. Rows of the result that are not `present`
        (B, n, 1) are zero.
        """
        if memory is None:
            queries, keys, values = self._split(self.project_in(q), 3)
        else:
            dim = q.shape[-1]
            (queries,) = self._split(F.linear(q, self.project_in.weight[:dim], self.project_in.bias[:dim]), 1)
            keys, values = memory
        if held is not None:
            keys, values = (torch.cat(pair, 2) for pair in zip(held, (keys, values), strict=True))
        attended = attend(queries, keys, values, bias)
        attended = self.project_out(attended.transpose(1, 2).reshape(q.shape))
        return zeroed(self.ffn(self.norm(q + attended), drop), present)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(c) + bias) v: queries (B, heads, n, c), keys and values (B, heads, m, c).

    `bias` (B, 1, 1, m) or None. Returns (B, heads, n, c).
    """
    entries = q.shape[1] * q.shape[2] * k.shape[2]
    if q.device.type != "cpu" or entries > MATRIX_ENTRIES or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    size = max(1, CHUNK_ENTRIES // entries)
    q = q * q.shape[-1] ** -0.5
    biases = [None] * q.shape[0] if bias is None else bias.split(size)
    parts = zip(q.split(size), k.split(size), v.split(size), biases, strict=False)
    return torch.cat([_attend(*part) for part in parts])


def _attend(q, k, v, bias):
    logits = q @ k.mT
    return torch.softmax(logits if bias is None else logits + bias, -1) @ v


class AttentionEncoder(nn.ModuleList):
    """A stack of attention layers: self-attention without memories, cross-attention with one a layer."""

    def __init__(self, layers: int, dim: int, heads: int, dim_hidden: int, dropout: float = 0.0):
        super().__init__(AttentionLayer(dim, heads, dim_hidden, dropout) for _ in range(layers))

    def memories(self, x: Tensor) -> list[Memory]:
        """Keys and values of x (B, m, dim) for every layer."""
        return [layer.memory(x) for layer in self]

    def draw(self, like: Tensor) -> list[Tensor | None]:
        """Dropout masks for every layer, see `FeedForward.draw`."""
        return [layer.ffn.draw(like) for layer in self]

    def forward(
        self, q: Tensor, memories=None, bias: Tensor | None = None, drops=None, present: Tensor | None = None, held=None
    ) -> Tensor:
        """See `AttentionLayer.forward`; memories, drops and held have one entry a layer."""
        for i, layer in enumerate(self):
            memory, drop, kept = (parts[i] if parts else None for parts in (memories, drops, held))
            q = layer(q, memory, bias, drop, present, kept)
        return q


def zeroed(x: Tensor, present: Tensor | None) -> Tensor:
    """x (B, n, dim) with zeros where not `present` (B, n, 1); x itself if None."""
    return x if present is None else torch.where(present, x, 0)


def attention_bias(weights: Tensor) -> Tensor | None:
    """log w, (B, 1, 1, m): a point of weight w counts as w points, one of weight zero not at all.

    None where all weights are one, which is the faster path of the attention kernels.
    """
    if torch.compiler.is_compiling() or bool((weights != 1).any()):
        return log_weights(weights)
    return None


def log_weights(weights: Tensor) -> Tensor:
    """log w as an attention bias (B, 1, 1, m), -inf for padding, without a gradient there."""
    present = weights > 0
    logs = torch.where(present, weights, 1).log()
    return logs.masked_fill(~present, -torch.inf)[:, None, None]
