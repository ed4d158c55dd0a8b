"""Clouds of several sizes: padded batches with weights, zero for padding; buckets of like sizes; normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ddeq_fast.utils.validation import (
    check_called,
    check_cloud,
    check_flag,
    check_integer,
    check_number,
    check_weights,
    values_readable,
)


class PointClouds(NamedTuple):
    """A batch of clouds: points (B, n, d) and weights (B, n), nonnegative, zero for padding.

    Models take both, `model(*clouds)`, and sums by name: `squared_mmd(a.points, b.points, x_weights=a.weights, ...)`.
    `points[mask]` are the real points alone, (N, d), cloud after cloud.
    """

    points: Tensor
    weights: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, n), True for real points."""
        return self.weights > 0

    def to(self, *args, **kwargs) -> PointClouds:
        """Both tensors on another device or in another dtype, as `Tensor.to`."""
        return PointClouds(self.points.to(*args, **kwargs), self.weights.to(*args, **kwargs))


def pad(
    clouds: Sequence[Tensor] | Tensor, weights: Sequence[Tensor] | Tensor | None = None, *, batch: Tensor | None = None
) -> PointClouds:
    """Stack clouds (n_i, d) of several sizes into (B, n, d), n the largest n_i; padding is zero.

    Gradients reach the tensors that are given. Where sizes differ much, most of it is padding: see `in_buckets`.

    Args:
        clouds: at least one cloud, of one dimension, dtype and device: a list of tensors; a nested tensor (B, n_i, d);
            or the points of all clouds (N, d), with `batch`.
        weights: (n_i,) each, nonnegative, zero for padding, or boolean masks, as a list or a nested tensor; (N,) with
            `batch`; ones if None.
        batch: the number of each point's cloud, integers (N,): sorted, from zero, none left out. What PyTorch Geometric
            calls so: `pad(data.pos, batch=data.batch)`.

    Raises:
        TypeError, ValueError: no cloud, an empty cloud, mixed dimensions, dtypes or devices, NaN, negative weights, a
        batch vector that is not sorted or leaves out a cloud; names `clouds[i]`, `weights[i]` or `batch`.
    """
    return _stacked(*_listed("clouds", clouds, "weights", weights, "batch", batch))


def in_buckets(
    function: Callable[..., Tensor],
    x: Sequence[Tensor] | Tensor,
    y: Sequence[Tensor] | Tensor | None = None,
    *,
    x_weights: Sequence[Tensor] | Tensor | None = None,
    y_weights: Sequence[Tensor] | Tensor | None = None,
    x_batch: Tensor | None = None,
    y_batch: Tensor | None = None,
    ratio: float = 2.0,
    per_point: bool = False,
) -> Tensor | list[Tensor]:
    """A function of padded batches, evaluated on clouds of several sizes in buckets of clouds of like sizes.

    In a bucket the sizes of the clouds x differ by less than a factor of `ratio`, and so do those of the y, so that no
    more than that is padding: memory is in proportion to the points, and sums over pairs to the pairs of each cloud.

        in_buckets(lambda x, y: squared_mmd(x.points, y.points, x_weights=x.weights, y_weights=y.weights), xs, ys)
        in_buckets(lambda x, y: potential(x.points, y.points, charges=y.weights), xs, ys, per_point=True)

    Args:
        function: called as function(x), or function(x, y) if there is y, with a `PointClouds` of b of the clouds each,
            once a bucket; returns (b, ...).
        x, x_weights, x_batch: clouds as in `pad`.
        y, y_weights, y_batch: further clouds, as many, the i-th of which goes with the i-th x.
        ratio: > 1; one near 1 pads less, in more and smaller batches.
        per_point: whether function returns something for each point of the padded x, (b, n, ...).

    Returns:
        (B, ...), in the order of x; with `per_point` a list of B tensors (n_i, ...), without padding.

    Raises:
        TypeError, ValueError: as `pad`; not as many y as x; a function that returns anything else.
    """
    given = [_listed("x", x, "x_weights", x_weights, "x_batch", x_batch)]
    if y is not None:
        given.append(_listed("y", y, "y_weights", y_weights, "y_batch", y_batch))
        if len(given[1][0]) != len(given[0][0]):
            raise ValueError(f"y must hold as many clouds as x, {len(given[0][0])}, got {len(given[1][0])}")
    else:
        for name, value in (("y_weights", y_weights), ("y_batch", y_batch)):
            if value is not None:
                raise ValueError(f"{name} must be None where y is, got {type(value).__name__}")
    check_called("function", function, *("x", "y")[: len(given)])
    check_number("ratio", ratio, low=1.0)
    check_flag("per_point", per_point)
    buckets: dict[tuple[int, ...], list[int]] = {}
    for i, sizes in enumerate(zip(*([len(cloud) for cloud in clouds] for clouds, _ in given), strict=True)):
        buckets.setdefault(tuple(_level(size, ratio) for size in sizes), []).append(i)
    found = []
    for index in buckets.values():
        batches = [_stacked([part[i] for i in index], [own[i] for i in index]) for part, own in given]
        found.append(_returned(function(*batches), len(index), batches[0].points.shape[1] if per_point else None))
    order = [i for index in buckets.values() for i in index]
    if not per_point:
        shapes = {tuple(value.shape[1:]) for value in found}
        if len(shapes) > 1:
            raise ValueError(
                f"function must return one shape a cloud, got {sorted(shapes)}: per_point cuts padding off"
            )
        return torch.cat(found)[torch.tensor(order, device=found[0].device).argsort()]
    rows = dict(zip(order, (row for value in found for row in value.unbind()), strict=True))
    return [rows[i][: len(cloud)] for i, cloud in enumerate(given[0][0])]


def _level(size: int, ratio: float) -> int:
    """The bucket of a cloud of that size: size lies in [ratio^level, ratio^(level + 1)), but for rounding."""
    return math.floor(math.log(size) / math.log(ratio) + 1e-9)


def _returned(value: Tensor, count: int, size: int | None) -> Tensor:
    """What a function of `count` clouds has returned; raises unless it is (count, ...), or (count, size, ...)."""
    expected = (count,) if size is None else (count, size)
    if not isinstance(value, Tensor):
        raise TypeError(f"function must return a tensor, got {type(value).__name__}")
    if value.shape[: len(expected)] != expected:
        shape = f"({', '.join(map(str, expected))}, ...)"
        raise ValueError(f"function must return a tensor {shape}, got shape {tuple(value.shape)}")
    return value


def _stacked(clouds: Sequence[Tensor], weights: Sequence[Tensor]) -> PointClouds:
    """Clouds and weights that were checked, in one batch."""
    return PointClouds(*(pad_sequence(list(part), batch_first=True) for part in (clouds, weights)))


def _listed(
    name: str, clouds: object, weights_name: str, weights: object, batch_name: str, batch: Tensor | None
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Clouds (n_i, d) and their weights (n_i,), given under these names in any of the forms of `pad`."""
    if batch is not None:
        if not isinstance(clouds, Tensor) or clouds.is_nested or clouds.dim() != 2:
            got = f"a {clouds.dim()}-dimensional one" if isinstance(clouds, Tensor) else type(clouds).__name__
            raise ValueError(f"{name} must be one tensor (N, d) where {batch_name} is given, got {got}")
        check_cloud(name, clouds)
        charges = check_weights(weights_name, weights, None, clouds, some=False)  # type: ignore[arg-type]
        sizes = _sizes(batch_name, batch, name, clouds)
        return clouds.split(sizes), charges.split(sizes)
    if isinstance(clouds, Tensor) and not clouds.is_nested and clouds.dim() == 2:
        raise ValueError(
            f"{name} must be a list of tensors where {batch_name} is None, got shape {tuple(clouds.shape)}"
        )
    clouds, weights = _unbound(name, clouds), None if weights is None else _unbound(weights_name, weights)
    if not len(clouds):
        raise ValueError(f"{name} must hold at least one cloud, got none")
    if weights is not None and len(weights) != len(clouds):
        raise ValueError(f"{weights_name} must hold one entry a cloud, got {len(weights)} for {len(clouds)} clouds")
    found = []
    for i, cloud in enumerate(clouds):
        if isinstance(cloud, Tensor) and cloud.dim() != 2:
            raise ValueError(f"{name}[{i}] must have shape (n, d), got {tuple(cloud.shape)}")
        check_cloud(f"{name}[{i}]", cloud, like=(f"{name}[0]", clouds[0]) if i else None)
        own = None if weights is None else weights[i]
        found.append(check_weights(f"{weights_name}[{i}]", own, None, cloud, some=False))
    return clouds, found


def _unbound(name: str, given: object) -> Sequence[Tensor]:
    """A list, or the parts of a stacked or nested tensor."""
    if isinstance(given, Tensor):
        if not given.is_nested and not given.dim():
            raise ValueError(f"{name} must be a list of tensors, one for each cloud, got a scalar")
        return given.unbind()
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"{name} must be a list of tensors, one for each cloud, got {type(given).__name__}")
    return given


def _sizes(name: str, batch: Tensor, cloud_name: str, points: Tensor) -> list[int]:
    """How many points each cloud has, by the number (N,) of every point's cloud."""
    if not isinstance(batch, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(batch).__name__}")
    if batch.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must hold integers, got {batch.dtype}")
    if batch.shape != points.shape[:1]:
        raise ValueError(f"{name} must have shape {tuple(points.shape[:1])}, got {tuple(batch.shape)}")
    if batch.device != points.device:
        raise ValueError(f"{name} is on {batch.device} but {cloud_name} is on {points.device}")
    if not values_readable(batch):
        raise ValueError(f"{name} must have values that can be read, got a tensor on {batch.device}")
    unsorted = (batch[1:] < batch[:-1]).nonzero()
    if len(unsorted):
        i = int(unsorted[0])
        raise ValueError(f"{name} must be sorted, got {int(batch[i])} before {int(batch[i + 1])} at point {i + 1}")
    first, last = int(batch[0]), int(batch[-1])
    if first < 0 or last >= len(batch):
        raise ValueError(f"{name} must count clouds from 0, none empty, got {first} to {last} for {len(batch)} points")
    sizes = torch.bincount(batch).tolist()
    if not all(sizes):
        raise ValueError(f"{name} leaves no point in cloud {sizes.index(0)}")
    return sizes


def normalise(points: Tensor, weights: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
    """Each cloud with zero mean and unit standard deviation in every coordinate; padding becomes zero.

    Every point of nonzero weight counts once. A coordinate that is constant over a cloud is only centred.

    Args:
        points: (n, d) or (B, n, d).
        weights: (n,) or (B, n), zero for padding; ones if None. Boolean ones are a mask.
        mask: boolean (n,) or (B, n), False for padding.

    Raises:
        TypeError, ValueError: wrong shape or dtype, NaN, an empty or fully padded cloud.
    """
    check_cloud("points", points)
    present = check_weights("weights", weights, mask, points)[..., None] > 0
    count = present.sum(-2, keepdim=True)
    # Sums of half precision overflow; squares and sums of single precision do unless everything is of size one.
    scaled = points.to(torch.promote_types(points.dtype, torch.float32)).masked_fill(~present, 0)
    scaled, unit = _of_size_one(scaled)
    centred = (scaled - scaled.sum(-2, keepdim=True) / count).masked_fill(~present, 0)
    centred, size = _of_size_one(centred)
    variance = centred.square().sum(-2, keepdim=True) / count
    rounding = 8 * torch.finfo(scaled.dtype).eps * scaled.abs().amax(-2, keepdim=True)
    constant = variance.sqrt() * size <= rounding
    deviation = torch.where(constant, 1, variance).sqrt()
    return torch.where(constant, centred * size * unit, centred / deviation).to(points.dtype)


def _of_size_one(points: Tensor) -> tuple[Tensor, Tensor]:
    """Points divided by a power of two a coordinate, which loses nothing, so that none exceeds 2; and these powers."""
    largest = points.detach().abs().amax(-2, keepdim=True)
    power = torch.where(largest > 0, largest / (2 * torch.frexp(largest).mantissa), 1)
    return points / power, power


def compact(points: Tensor, weights: Tensor | None = None, *, mask: Tensor | None = None) -> PointClouds:
    """Clouds (B, n, d) with weights (B, n), padding at the end, zero, and no more of it than the longest needs.

    Weights are ones if None, and a mask if they are boolean; `mask`, boolean (B, n), is False for padding.

    Raises TypeError, ValueError: bad shape or dtype, NaN, negative weights.
    """
    check_cloud("points", points)
    if points.dim() != 3:
        raise ValueError(f"points must have shape (B, n, d), got {tuple(points.shape)}")
    if not values_readable(points):
        raise ValueError(f"points must have values that can be read, got a tensor on {points.device}")
    weights = check_weights("weights", weights, mask, points, some=False)
    present = weights > 0
    order = torch.sort(present.int(), dim=1, descending=True, stable=True).indices[:, : int(present.sum(1).max())]
    weights = weights.gather(1, order)
    points = points.gather(1, order[..., None].expand(-1, -1, points.shape[2]))
    return PointClouds(points.masked_fill((weights <= 0)[..., None], 0), weights)


def spread_normal(n: int, dim: int) -> Tensor:
    """Points (n, dim), float32, that fill a standard normal distribution evenly, and so do their first ones.

    Quantiles of an additive recurrence of the generalised golden ratio (Roberts 2018).

    Raises TypeError, ValueError unless n and dim are integers of at least 1.
    """
    check_integer("n", n, high=2**31 - 1)
    check_integer("dim", dim, high=2**31 - 1)
    ratio = 2.0
    for _ in range(60):  # the root of g^(dim + 1) = g + 1
        ratio = (1 + ratio) ** (1 / (dim + 1))
    steps = ratio ** -torch.arange(1, dim + 1, dtype=torch.float64)
    places = (0.5 + torch.arange(1, n + 1, dtype=torch.float64)[:, None] * steps) % 1
    return torch.special.ndtri(places).float()
