"""Attention encoders: post-norm layers in which keys and values may be computed ahead of the queries."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.nn import functional as F

from ddeq_fast.networks.layers import FeedForward, check_widths
from ddeq_fast.utils.differentiation import wanted_twice
from ddeq_fast.utils.validation import check_integer, values_readable

# On CPUs attention matrices of up to MATRIX_ENTRIES are formed, CHUNK_ENTRIES at a time, which caches hold: so many in
# a cloud where a graph keeps them, in a head where none does. Below that, streaming kernels spend more on their
# blocks, and on gradients of keys and values that nobody asked for, than they save.
MATRIX_ENTRIES, CHUNK_ENTRIES = 1 << 18, 1 << 17
# On some CPUs powers of 2 take less than half the time of those of e.
LOG2_E = math.log2(math.e)
# Widest heads whose products of keys and values are summed: they are (width + 1)^2 a point.
MOMENT_WIDTH = 4


class Memory(NamedTuple):
    """What queries attend to: keys and values (B, heads, m, dim / heads)."""

    keys: Tensor
    values: Tensor


class Prepared(NamedTuple):
    """A memory arranged for many evaluations, which makes derivatives with respect to queries nearly free as well.

    `keys` are (1, k_j) and `values` w_j (1, v_j), w_j the weight of a point in the `bias` of the layer; both
    (B, heads, c + 1, m). The Jacobian of softmax attention in a query is the covariance of keys and values under its
    attention weights: one more sum over the points, of the products of both, beside the one that attention is.
    """

    memory: Memory
    keys: Tensor
    values: Tensor


class AttentionLayer(nn.Module):
    """ffn(norm(q + attention(q, memory))): (B, n, dim) -> (B, n, dim)."""

    def __init__(self, dim: int, heads: int, dim_hidden: int, dropout: float = 0.0):
        super().__init__()
        check_widths(dim=dim, heads=heads, dim_hidden=dim_hidden)
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
        memory: Memory | Prepared | None,
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
            keys, values = memory.memory if isinstance(memory, Prepared) else memory
        if held is not None:
            keys, values = (torch.cat(pair, 2) for pair in zip(held, (keys, values), strict=True))
        if isinstance(memory, Prepared):
            attended = attend_to_prepared(queries, memory, bias)
        else:
            attended = attend(queries, keys, values, bias)
        attended = self.project_out(attended.transpose(1, 2).reshape(q.shape))
        return zeroed(self.ffn(self.norm(q + attended), drop), present)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(c) + bias) v: queries (B, heads, n, c), keys and values (B, heads, m, c).

    `bias` (B, 1, 1, m) or None. Returns (B, heads, n, c).
    """
    entries = q.shape[1] * q.shape[2] * k.shape[2]
    # The fused kernels have neither second derivatives nor forward ones.
    plain = not torch.compiler.is_compiling() and (wanted_twice() or _has_tangent(q, k, v))
    if not plain:
        if not on_cpu(q):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        if not torch.is_grad_enabled():
            sums = _sums(q, k.mT, _weighted(v, bias))
            if sums is not None:
                return _mean(sums)
    if entries > MATRIX_ENTRIES and not plain:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    size = _chunk(q.shape[0], entries)
    q = q * _scale(q)
    biases = [None] * q.shape[0] if bias is None else (bias * LOG2_E).split(size)
    parts = zip(q.split(size), k.split(size), v.split(size), biases, strict=False)
    return torch.cat([_attend(*part) for part in parts])


def _has_tangent(*tensors: Tensor) -> bool:
    """Whether one of them is moved in forward mode."""
    return any(unpack_dual(tensor).tangent is not None for tensor in tensors)


def on_cpu(q: Tensor) -> bool:
    """Whether attention is arranged here, and not by PyTorch, which does it better elsewhere, and in low precision."""
    return q.device.type == "cpu" and q.dtype.itemsize >= 4 and not torch.compiler.is_compiling()


def _scale(q: Tensor) -> float:
    """What turns <q, k> into a logit to the base 2."""
    return LOG2_E * q.shape[-1] ** -0.5


def _chunk(count: int, entries: int) -> int:
    """How many of `count` matrices of so many entries are handled at once, the chunks being of nearly one size."""
    chunks = max(1, min(count, -(-count * entries // CHUNK_ENTRIES)))
    return -(-count // chunks)


def _attend(q, k, v, bias):
    logits = q @ k.mT
    if bias is not None:
        logits = logits + bias
    # A softmax that leaves the division to the result; torch.softmax takes three times as long on short rows.
    weights = (logits - logits.detach().amax(-1, keepdim=True)).exp2_()
    return (weights @ v) / weights.sum(-1, keepdim=True)


def prepared(memory: Memory, bias: Tensor | None) -> Prepared | Memory:
    """Arrange a memory for evaluations and derivatives in the queries alone: it is cut from its graph.

    Itself where attention is not arranged here.
    """
    memory = Memory(*(part.detach() for part in memory))
    if not on_cpu(memory.keys):
        return memory
    return Prepared(memory, _beneath_ones(memory.keys), _weighted(memory.values, bias))


def attend_to_prepared(q: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
    """`attend`, whose derivative is that in the queries and the first only."""
    c, grad = q.shape[-1], q.requires_grad and torch.is_grad_enabled()
    sums = None
    # Otherwise autocast or a compiler is at work, or too many products would be summed.
    if q.dtype == prepared.keys.dtype and on_cpu(q) and not (grad and c > MOMENT_WIDTH):
        sums = _sums(q.detach(), prepared.keys[..., 1:, :], prepared.values, prepared.keys if grad else None)
    if sums is None:
        return attend(q, *prepared.memory, bias)
    return _Attended.apply(q, sums.unflatten(-1, (c + 1, c + 1))) if grad else _mean(sums)


def _beneath_ones(x: Tensor) -> Tensor:
    """(1, x_j) for x (B, heads, m, c): (B, heads, c + 1, m), contiguous."""
    return F.pad(x.mT, (0, 0, 1, 0), value=1.0)


def _weighted(v: Tensor, bias: Tensor | None) -> Tensor:
    """w_j (1, v_j), where log w is the bias: (B, heads, c + 1, m)."""
    rows = _beneath_ones(v)
    return rows if bias is None else rows * bias.detach().exp()


def _sums(q: Tensor, keys: Tensor, rows: Tensor, factors: Tensor | None = None) -> Tensor | None:
    """sum_j exp(<q_i, k_j> / sqrt(c)) rows_j, (B, heads, n, r), for keys (B, heads, c, m) and rows (B, heads, r, m).

    With `factors` (B, heads, s, m) the rows are all products of a factor and a row, (B, heads, n, s r). The first row,
    and product, is that of the weights. No maximum is taken off, as a softmax does: None where it is needed, the
    exponentials leaving the range of numbers, where matrices of entries are too large, and in forward mode.
    """
    (*shape, n, _), m = q.shape, keys.shape[-1]
    if n * m > MATRIX_ENTRIES or _has_tangent(q, keys, rows):
        return None
    q, keys, rows = (q * _scale(q)).flatten(0, 1), keys.flatten(0, 1), rows.flatten(0, 1)
    size = _chunk(len(q), n * m)
    # Memory is used again in every chunk: got anew, it would be neither in a cache nor, often, mapped.
    weights = q.new_empty(size, n, m)
    if factors is not None:
        factors = factors.flatten(0, 1)
        products = q.new_empty(size, factors.shape[1], rows.shape[1], m)
    sums = q.new_empty(len(q), n, rows.shape[1] * (1 if factors is None else factors.shape[1]))
    for i in range(0, len(q), size):
        part = slice(i, i + size)
        chunk = rows[part]
        w = torch.bmm(q[part], keys[part], out=weights[: len(chunk)]).exp2_()
        if factors is not None:
            chunk = torch.mul(factors[part, :, None], chunk[:, None], out=products[: len(chunk)]).flatten(1, 2)
        torch.bmm(w, chunk.mT, out=sums[part])
    least, most = torch.aminmax(sums[..., 0])
    return sums.view(*shape, n, -1) if 1e-20 < least <= most < 1e20 else None


def _mean(sums: Tensor) -> Tensor:
    """Values (..., c) under the attention weights, of their sums (..., c + 1) behind that of the weights."""
    return sums[..., 1:] / sums[..., :1]


class _Attended(torch.autograd.Function):
    """Attention from q (..., n, c) and `sums` (..., n, c + 1, c + 1) of (1, k) x (1, v) under its weights."""

    @staticmethod
    def forward(ctx, q, sums):
        attended = _mean(sums[..., 0, :])
        ctx.save_for_backward(sums, attended)
        return attended

    @staticmethod
    def backward(ctx, gradient):
        if torch.is_grad_enabled():
            raise RuntimeError("a context prepared for vector-Jacobian products has no second derivative")
        sums, attended = ctx.saved_tensors
        c = gradient.shape[-1]
        onto_values = torch.cat((-(attended * gradient).sum(-1, keepdim=True), gradient), -1)
        covariance = (sums[..., 1:, :] @ onto_values[..., None])[..., 0]
        return covariance * (c**-0.5 / sums[..., 0, :1]), None


class AttentionEncoder(nn.ModuleList):
    """A stack of attention layers: self-attention without memories, cross-attention with one a layer."""

    def __init__(self, layers: int, dim: int, heads: int, dim_hidden: int, dropout: float = 0.0):
        count = check_integer("layers", layers, low=0)
        super().__init__(AttentionLayer(dim, heads, dim_hidden, dropout) for _ in range(count))

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


def without_padding(x: Tensor, weights: Tensor) -> Tensor:
    """x (B, n, dim) with zeros where its weights (B, n) are zero: a far value there overflows, which a weight of zero
    does not undo."""
    return x.masked_fill((weights <= 0)[..., None], 0)


def attention_bias(weights: Tensor) -> Tensor | None:
    """log w, (B, 1, 1, m): a point of weight w counts as w points, one of weight zero not at all.

    None where all weights are one, which is the faster path of the attention kernels.
    """
    if not values_readable(weights) or bool((weights != 1).any()):
        return log_weights(weights)
    return None


def log_weights(weights: Tensor) -> Tensor:
    """log w as an attention bias (B, 1, 1, m), -inf for padding, without a gradient there."""
    present = weights > 0
    logs = torch.where(present, weights, 1).log()
    return logs.masked_fill(~present, -torch.inf)[:, None, None]
