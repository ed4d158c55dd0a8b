"""Attention encoders: post-norm layers in which keys and values may be computed ahead of the queries."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddeq_fast.networks.layers import FeedForward

# On CPUs attention matrices of up to MATRIX_ENTRIES are formed, CHUNK_ENTRIES at a time, which caches hold: so many in
# a cloud where a graph keeps them, in a head where none does. Below that, streaming kernels spend more on their
# blocks, and on gradients of keys and values that nobody asked for, than they save.
MATRIX_ENTRIES, CHUNK_ENTRIES = 1 << 18, 1 << 17
# Widest heads whose moments are prepared: they take (width + 1)^2 numbers a point and head.
MOMENT_WIDTH = 4


class Memory(NamedTuple):
    """What queries attend to: keys and values (B, heads, m, dim / heads)."""

    keys: Tensor
    values: Tensor


class Moments(NamedTuple):
    """A memory that makes derivatives with respect to queries nearly free.

    The Jacobian of softmax attention in a query is the covariance of keys and values under its attention weights: one
    more sum over the points, beside the one that attention is. Both together are one matrix product with
    `outer` (B, heads, m, (c + 1)^2), the rows w_j (1, k_j) x (1, v_j), w_j the weight of a point in the `bias` of the
    layer.
    """

    memory: Memory
    outer: Tensor


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
        memory: Memory | Moments | None,
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
            keys, values = memory.memory if isinstance(memory, Moments) else memory
        if held is not None:
            keys, values = (torch.cat(pair, 2) for pair in zip(held, (keys, values), strict=True))
        if isinstance(memory, Moments):
            attended = attend_to_moments(queries, memory, bias)
        else:
            attended = attend(queries, keys, values, bias)
        attended = self.project_out(attended.transpose(1, 2).reshape(q.shape))
        return zeroed(self.ffn(self.norm(q + attended), drop), present)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(c) + bias) v: queries (B, heads, n, c), keys and values (B, heads, m, c).

    `bias` (B, 1, 1, m) or None. Returns (B, heads, n, c).
    """
    if not on_cpu(q):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    if not torch.is_grad_enabled():
        sums = _sums(q, k, _weighted(v, bias))
        if sums is not None:
            return sums[..., 1:] / sums[..., :1]
    entries = q.shape[1] * q.shape[2] * k.shape[2]
    if entries > MATRIX_ENTRIES:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    size = max(1, CHUNK_ENTRIES // entries)
    q = q * q.shape[-1] ** -0.5
    biases = [None] * q.shape[0] if bias is None else bias.split(size)
    parts = zip(q.split(size), k.split(size), v.split(size), biases, strict=False)
    return torch.cat([_attend(*part) for part in parts])


def on_cpu(q: Tensor) -> bool:
    """Whether attention is arranged here, and not by PyTorch, which does it better elsewhere, and in low precision."""
    return q.device.type == "cpu" and q.dtype.itemsize >= 4 and not torch.compiler.is_compiling()


def _attend(q, k, v, bias):
    logits = q @ k.mT
    if bias is not None:
        logits = logits + bias
    # A softmax that leaves the division to the result; torch.softmax takes three times as long on short rows.
    weights = (logits - logits.detach().amax(-1, keepdim=True)).exp_()
    return (weights @ v) / weights.sum(-1, keepdim=True)


def moments(memory: Memory, bias: Tensor | None) -> Moments | Memory:
    """Prepare a memory for many derivatives with respect to queries alone; itself where that does not pay.

    What is prepared is cut from the graph of the memory.
    """
    memory = Memory(*(part.detach() for part in memory))
    if not on_cpu(memory.keys) or memory.keys.shape[-1] > MOMENT_WIDTH:
        return memory
    keys, values = F.pad(memory.keys, (1, 0), value=1.0), _weighted(memory.values, bias)
    return Moments(memory, (keys[..., :, None] * values[..., None, :]).flatten(-2))


def attend_to_moments(q: Tensor, moments: Moments, bias: Tensor | None) -> Tensor:
    """`attend`, whose derivative is that in the queries and the first only."""
    sums = None
    if q.dtype == moments.outer.dtype and on_cpu(q):  # no autocast, no compiler
        sums = _sums(q.detach(), moments.memory.keys, moments.outer)
    if sums is None:
        return attend(q, *moments.memory, bias)
    c = q.shape[-1]
    return _Attended.apply(q, sums.unflatten(-1, (c + 1, c + 1)))


def _weighted(v: Tensor, bias: Tensor | None) -> Tensor:
    """w_j (1, v_j), where log w is the bias: (B, heads, m, c + 1)."""
    v = F.pad(v, (1, 0), value=1.0)
    return v if bias is None else v * bias.detach().mT.exp()


def _sums(q: Tensor, k: Tensor, rows: Tensor) -> Tensor | None:
    """sum_j exp(<q_i, k_j> / sqrt(c)) rows_j, (B, heads, n, r), for rows (B, heads, m, r) that start with weights.

    No maximum is taken off, as a softmax does: None where it is needed, the exponentials leaving the range of numbers,
    and where matrices of entries are too large.
    """
    (*shape, n, c), m = q.shape, k.shape[2]
    if n * m > MATRIX_ENTRIES:
        return None
    size = max(1, CHUNK_ENTRIES // (n * m))
    parts = zip(*(t.flatten(0, 1).split(size) for t in (q * c**-0.5, k, rows)), strict=True)
    sums = torch.cat([torch.bmm(torch.bmm(a, b.mT).exp_(), r) for a, b, r in parts])
    least, most = torch.aminmax(sums[..., 0])
    return sums.view(*shape, n, -1) if 1e-20 < least <= most < 1e20 else None


class _Attended(torch.autograd.Function):
    """Attention from q (..., n, c) and `sums` (..., n, c + 1, c + 1) of (1, k) x (1, v) under its weights."""

    @staticmethod
    def forward(ctx, q, sums):
        attended = sums[..., 0, 1:] / sums[..., 0, :1]
        ctx.save_for_backward(sums, attended)
        return attended

    @staticmethod
    def backward(ctx, gradient):
        if torch.is_grad_enabled():
            raise RuntimeError("a context prepared for vector-Jacobian products has no second derivative")
        sums, attended = ctx.saved_tensors
        c = gradient.shape[-1]
        onto_values = torch.cat((-(attended * gradient).sum(-1, keepdim=True), gradient), -1)
        covariance = (sums[..., 1:, :] * onto_values[..., None, :]).sum(-1)
        return covariance * (c**-0.5 / sums[..., 0, :1]), None


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
