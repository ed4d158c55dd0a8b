"""Random changes of training clouds that keep their labels."""

from __future__ import annotations

import torch

from ddeq_fast.clouds import PointClouds
from ddeq_fast.data.dataset import check_generator
from ddeq_fast.utils.validation import check_cloud, check_integer, check_number, check_pair, check_weights


def jitter(clouds: PointClouds, strength: float, generator: torch.Generator) -> PointClouds:
    """Each cloud turned, sheared, scaled and shifted a little in its first two coordinates, as handwriting varies.

    Args:
        clouds: points (B, n, d), d >= 2, floating-point, on the CPU, and weights (B, n), zero for padding.
        strength: standard deviation of the turn and shear in radians, of the change of scale, and of the shift in the
            units of the points; 0 changes nothing.
        generator: source of all randomness; the number of draws depends on B alone.

    Raises:
        TypeError, ValueError: bad shape or dtype, NaN, a negative strength, no generator.
    """
    points, weights = check_pair("clouds", clouds, "(points, weights)")
    if check_cloud("clouds.points", points).dim() != 3 or points.shape[2] < 2:
        raise ValueError(f"clouds.points must have shape (B, n, d), d at least 2, got {tuple(points.shape)}")
    weights = check_weights("clouds.weights", weights, None, points, some=False)
    check_number("strength", strength, closed=True)
    check_generator("generator", generator)
    draw = torch.randn(points.shape[0], 6, generator=generator).to(points.dtype) * strength
    linear = draw[:, :4].view(-1, 2, 2) + torch.eye(2, dtype=points.dtype)
    plane = points[..., :2] @ linear.mT + draw[:, None, 4:]
    moved = torch.cat((plane, points[..., 2:]), -1)
    return PointClouds(torch.where(weights[..., None] > 0, moved, points), weights)


def draw_points(clouds: PointClouds, most: int, generator: torch.Generator) -> PointClouds:
    """Each cloud, or `most` of its points, drawn at random without replacement, if it has more.

    Args:
        clouds: points (B, n, d), floating-point, on the CPU, and weights (B, n), zero for padding.
        most: points that are left of a cloud at most.
        generator: source of all randomness.

    Returns:
        Clouds (B, m, d) padded together, m = min(n, most); points keep their order and their weights.

    Raises:
        TypeError, ValueError: bad shape or dtype, NaN, a cloud without weight, `most` below 1, no generator.
    """
    points, weights = check_pair("clouds", clouds, "(points, weights)")
    if check_cloud("clouds.points", points).dim() != 3:
        raise ValueError(f"clouds.points must have shape (B, n, d), got {tuple(points.shape)}")
    weights = check_weights("clouds.weights", weights, None, points, some=False)
    check_integer("most", most)
    check_generator("generator", generator)
    if most >= points.shape[1]:
        return PointClouds(points, weights)
    # Points without weight come last in the order in which they are taken.
    chance = torch.rand(weights.shape, generator=generator) - (weights <= 0).float()
    kept = chance.topk(most, dim=1).indices.sort(1).values
    return PointClouds(points.gather(1, kept[..., None].expand(-1, -1, points.shape[2])), weights.gather(1, kept))
