"""The op of nearest points: which source is nearest to every target, and how far it is, differentiably.

The search is not differentiated. A squared distance is taken anew from the two points found, so that its value,
its gradient 2 (x_i - y_j) and all higher derivatives are those of a difference: exact on every backend, and zero
where points coincide. Where several sources are equally near, it is the gradient towards the first of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddeq_fast.distances import blocks, tree
from ddeq_fast.sums.backends import triton
from ddeq_fast.sums.measures import Measure, measure
from ddeq_fast.sums.mmd import positive_root
from ddeq_fast.sums.radial import Riesz
from ddeq_fast.sums.ranges import suits_single
from ddeq_fast.utils import transforms
from ddeq_fast.utils.validation import check_choice, check_cloud


class Nearest(NamedTuple):
    """Squared distances (m,) or (B, m) to the nearest sources, and the indices of these, int64 of the same shape."""

    squared_distance: Tensor
    index: Tensor  # type: ignore[assignment]  # tuples have a method of that name


def nearest(
    x: Tensor,
    y: Tensor,
    *,
    y_weights: Tensor | None = None,
    y_mask: Tensor | None = None,
    backend: str = "auto",
) -> Nearest:
    """Nearest source y_j of every target x_i: min_j |x_i - y_j|^2, differentiable in x and y, and its j.

    Args:
        x: targets, (m, d) or (B, m, d), floating point.
        y: sources, (n, d) or (B, n, d), same dtype and device.
        y_weights: nonnegative weights, (n,) or (B, n): a source of no weight is never nearest. Boolean ones are a mask.
        y_mask: boolean, same shape, True for real sources; padding is never nearest.
        backend: "dense", by blocks of all distances; "triton", on a GPU; "tree", a k-d tree on a CPU, needs scipy;
            or "auto": the fastest that can run. All find the same points.

    Returns:
        `Nearest`. Of equally near sources the first is found. Half-precision clouds are searched in single
        precision.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, NaN, an empty or fully masked cloud, an unknown
            backend or one that cannot run here.
    """
    check_cloud("x", x)
    sources = measure("y", y, y_weights, y_mask, like=("x", x)).batched()
    targets = x if x.dim() == 3 else x[None]
    q, index = search(targets, sources.points, sources.real, resolve(backend, x))
    q = q.to(x.dtype)
    return Nearest(q, index) if x.dim() == 3 else Nearest(q[0], index[0])


def check_backend(backend: str) -> str:
    """`backend`, if it is one of a search; raises ValueError otherwise."""
    return check_choice("backend", backend, ("auto", "dense", "tree", "triton"))


def resolve(backend: str, x: Tensor) -> str:
    """The backend to use for points like x; raises ValueError if it is unknown or cannot run them.

    Sizes alone tell whether a tree pays, and those of all that a transform maps only the operator sees: "auto" is left
    to it on CPUs.
    """
    if check_backend(backend) == "auto":
        if x.is_cuda and triton.unsupported(x, x, Riesz()) is None:
            return "triton"
        return "auto" if x.device.type == "cpu" else "dense"
    reason = triton.unsupported(x, x, Riesz()) if backend == "triton" else None
    reason = tree.unsupported(x) if backend == "tree" else reason
    if reason is not None:
        raise ValueError(f"backend {backend!r} cannot run this: {reason}")
    return backend


def search(x: Tensor, y: Tensor, mask: Tensor | None, backend: str) -> Nearest:
    """`nearest` of batched, checked clouds; distances in single precision at least, and where that holds them."""
    if mask is not None:
        y = y.masked_fill(~mask[..., None], 0)
    dtype = torch.promote_types(x.dtype, torch.float32 if suits_single(x, y) else torch.float64)
    x, y = x.to(dtype), y.to(dtype)
    index = index_op(x.detach(), y.detach(), mask, backend)
    found = y.gather(1, index[..., None].expand(-1, -1, y.shape[-1]))
    return Nearest((x - found).square().sum(-1), index)


def to_nearest(over: Measure, other: Measure, backend: str, *, squared: bool) -> Tensor:
    """Distances (B, m), or their squares, from each point of one batch of clouds to the nearest one of the other."""
    q = search(over.points, other.points, other.real, backend).squared_distance
    return q if squared else positive_root(q)


def mean(values: Tensor, over: Measure) -> Tensor:
    """Weighted mean (B,) of values (B, n) of the points of a cloud."""
    if over.uniform:
        return values.mean(-1)
    weights = over.weights.to(values.dtype)
    return (weights * values).sum(-1) / weights.sum(-1)


@torch.library.custom_op("ddeq_fast::nearest", mutates_args=())
def index_op(x: Tensor, y: Tensor, mask: Tensor | None, backend: str) -> Tensor:
    """Index (B, m) of the first nearest real source; an operator, so that it passes through `torch.compile`."""
    if backend == "auto":
        backend = "tree" if tree.pays(x, y) else "dense"
    if backend == "dense":
        return blocks.search(x, y, mask)
    if backend == "tree":
        return tree.search(x, y, mask)
    from ddeq_fast.kernels.nearest import nearest as launch

    with torch.cuda.device_of(x):
        return launch(x, y, mask)


@index_op.register_fake
def _(x, y, mask, backend):
    return x.new_empty(x.shape[:2], dtype=torch.int64)


@index_op.register_vmap
def _(info, in_dims, *args):
    return transforms.fold(index_op, info, in_dims, *args)
