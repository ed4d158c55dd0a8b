"""Attention as sums over points: matrices in chunks that caches hold, and sums arranged for many evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.nn import functional as F

from ddeq_fast.utils.differentiation import wanted_twice

# On CPUs, without a graph, attention matrices of up to MATRIX_ENTRIES in a head are formed, CHUNK_ENTRIES at a time,
# which caches hold. Below that, streaming kernels spend more on their blocks than they save.
MATRIX_ENTRIES, CHUNK_ENTRIES = 1 << 18, 1 << 17
# With a graph those are the faster ones, up to three times, but for clouds of so few points.
FEW_POINTS = 16
# On some CPUs powers of 2 take less than half the time of those of e.
LOG2_E = math.log2(math.e)
# Widest heads whose products of keys and values are summed: they are (width + 1)^2 a point.
MOMENT_WIDTH = 4
# Sums of weights that need no shift of the logits.
SMALLEST_SUM, LARGEST_SUM = 1e-20, 1e20


class KeysAndValues(NamedTuple):
    """What queries attend to: keys and values (B, heads, m, c), c = dim / heads."""

    keys: Tensor
    values: Tensor


class Prepared(NamedTuple):
    """Keys and values arranged for many evaluations, which makes derivatives in the queries nearly free as well.

    `rows` are w_j (1, v_j), w_j the weight of a point in the `bias` of the layer, and `factors` (1, k_j), None for wide
    heads; both (B, heads, c + 1, m). The Jacobian of softmax attention in a query is the covariance of keys and values
    under its attention weights: one more sum over the points, of the products of both, beside the one that attention
    is.
    """

    source: KeysAndValues
    rows: Tensor
    factors: Tensor | None


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(c) + bias) v, differentiable in all of them.

    Args:
        q: queries (B, heads, n, c).
        k, v: keys and values (B, heads, m, c).
        bias: (B, 1, 1, m), or None for zero.

    Returns:
        (B, heads, n, c).
    """
    # The fused kernels have neither second derivatives nor forward ones.
    plain = not torch.compiler.is_compiling() and (wanted_twice() or _has_tangent(q, k, v))
    if not plain:
        if not arranged_here(q):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        if not torch.is_grad_enabled():
            sums = _sums(q, k, _weighted_rows(v, bias))
            if sums is not None:
                return _mean(sums)
        if k.shape[2] > FEW_POINTS or q.shape[1] * q.shape[2] * k.shape[2] > MATRIX_ENTRIES:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return _attend_by_chunks(q, k, v, bias)


def _attend_by_chunks(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """`attend` with the matrices of some clouds at a time."""
    size = _chunk_size(q.shape[0], q.shape[1] * q.shape[2] * k.shape[2])
    queries, keys, values = (q * _scale(q)).split(size), k.split(size), v.split(size)
    biases = [None] * len(queries) if bias is None else (bias * LOG2_E).split(size)
    return torch.cat([_softmax_mean(*chunk) for chunk in zip(queries, keys, values, biases, strict=True)])


def _softmax_mean(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """`attend` with logits to the base 2, for scaled queries."""
    logits = q @ k.mT
    if bias is not None:
        logits = logits + bias
    # A softmax that leaves the division to the result; torch.softmax takes three times as long on short rows.
    weights = (logits - logits.detach().amax(-1, keepdim=True)).exp2_()
    return (weights @ v) / weights.sum(-1, keepdim=True)


def arranged_here(q: Tensor) -> bool:
    """Whether attention is arranged here: on CPUs. PyTorch does it better elsewhere, and in low precision."""
    return q.device.type == "cpu" and q.dtype.itemsize >= 4 and not torch.compiler.is_compiling()


def prepare(source: KeysAndValues, bias: Tensor | None) -> Prepared | KeysAndValues:
    """Arrange keys and values for evaluations and derivatives in the queries alone: they are cut from their graph.

    Without a graph, but otherwise themselves, where attention is not arranged here.
    """
    source = KeysAndValues(source.keys.detach(), source.values.detach())
    if not arranged_here(source.keys):
        return source
    narrow = source.keys.shape[-1] <= MOMENT_WIDTH
    return Prepared(source, _weighted_rows(source.values, bias), _below_ones(source.keys) if narrow else None)


def attend_to_prepared(q: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
    """`attend`, whose derivative is that in the queries and the first only."""
    c, differentiable = q.shape[-1], q.requires_grad and torch.is_grad_enabled()
    # Queries of another dtype: autocast is at work.
    if q.dtype == prepared.rows.dtype and arranged_here(q) and (prepared.factors is not None or not differentiable):
        factors = prepared.factors if differentiable else None
        sums = _sums(q.detach(), prepared.source.keys, prepared.rows, factors)
        if sums is not None:
            return _Attended.apply(q, sums.unflatten(2, (c + 1, c + 1))) if differentiable else _mean(sums)
    return attend(q, *prepared.source, bias)


def _below_ones(x: Tensor) -> Tensor:
    """(1, x_j) for x (B, heads, m, c): (B, heads, c + 1, m), contiguous."""
    return F.pad(x.mT, (0, 0, 1, 0), value=1.0)


def _weighted_rows(v: Tensor, bias: Tensor | None) -> Tensor:
    """w_j (1, v_j), where log w is the bias: (B, heads, c + 1, m)."""
    rows = _below_ones(v)
    return rows if bias is None else rows * bias.detach().exp()


def _sums(q: Tensor, keys: Tensor, rows: Tensor, factors: Tensor | None = None) -> Tensor | None:
    """sum_j rows_j exp(<q_i, k_j> / sqrt(c)), without a graph and without taking off a maximum, as a softmax does.

    The first row, and product, must be that of the weights: it tells whether the exponentials stayed within range.
    Queries are columns throughout: matrix products of few rows are faster than of few columns.

    Args:
        q, keys, rows: (B, heads, n, c), (B, heads, m, c), (B, heads, r, m).
        factors: (B, heads, s, m); the rows are then all products of a factor and a row, s r of them.

    Returns:
        (B, heads, r, n) or (B, heads, s r, n); None where the exponentials leave the range of numbers, where matrices
        of entries are too large, and in forward mode.
    """
    batch, heads, n, _ = q.shape
    m = keys.shape[2]
    if n * m > MATRIX_ENTRIES or _has_tangent(q, keys, rows):
        return None
    q, keys, rows = (q * _scale(q)).flatten(0, 1).mT, keys.flatten(0, 1), rows.flatten(0, 1)
    factors = None if factors is None else factors.flatten(0, 1)
    width = rows.shape[1] if factors is None else factors.shape[1] * rows.shape[1]
    size = _chunk_size(batch * heads, n * m)
    sums = q.new_empty(batch * heads, width, n)
    # Memory is used again in every chunk: got anew, it would be neither in a cache nor, often, mapped.
    weights = q.new_empty(size, m, n)
    products = None if factors is None else q.new_empty(size, factors.shape[1], rows.shape[1], m)
    for part in _chunks(batch * heads, size):
        count = part.stop - part.start
        chunk = rows[part]
        torch.bmm(keys[part], q[part], out=weights[:count]).exp2_()
        if factors is not None and products is not None:
            torch.mul(factors[part, :, None], rows[part, None], out=products[:count])
            chunk = products[:count].flatten(1, 2)
        torch.bmm(chunk, weights[:count], out=sums[part])
    least, most = torch.aminmax(sums[:, 0])
    return sums.unflatten(0, (batch, heads)) if SMALLEST_SUM < least <= most < LARGEST_SUM else None


def _mean(sums: Tensor) -> Tensor:
    """Values (B, heads, n, c) under the attention weights, of their sums (B, heads, c + 1, n) behind that of the
    weights."""
    return (sums[:, :, 1:] / sums[:, :, :1]).mT


def _scale(q: Tensor) -> float:
    """What turns <q, k> into a logit to the base 2."""
    return LOG2_E * q.shape[-1] ** -0.5


def _chunk_size(count: int, entries: int) -> int:
    """How many of `count` matrices of so many entries are handled at once, the chunks being of nearly one size."""
    chunks = math.ceil(count * entries / CHUNK_ENTRIES)
    return math.ceil(count / max(1, min(chunks, count)))


def _chunks(count: int, size: int) -> Iterator[slice]:
    """The numbers below `count`, so many at a time."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _has_tangent(*tensors: Tensor) -> bool:
    """Whether one of them is moved in forward mode."""
    return any(unpack_dual(tensor).tangent is not None for tensor in tensors)


class _Attended(torch.autograd.Function):
    """Attention from q (B, heads, n, c) and `moments` (B, heads, c + 1, c + 1, n), sums of (1, k) x (1, v) under its
    weights."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, moments: Tensor) -> Tensor:
        attended = _mean(moments[:, :, 0])
        ctx.save_for_backward(moments, attended)
        return attended

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("a context prepared for vector-Jacobian products has no second derivative")
        moments, attended = ctx.saved_tensors
        c = gradient.shape[-1]
        onto_values = torch.cat((-(attended * gradient).sum(-1, keepdim=True), gradient), -1).mT
        covariance = (moments[:, :, 1:] * onto_values[:, :, None]).sum(3)
        return (covariance * (c**-0.5 / moments[:, :, 0, :1])).mT, None
