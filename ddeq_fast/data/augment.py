"""Random changes of training clouds that keep their labels."""

from __future__ import annotations

import torch
from torch import Tensor

from ddeq_fast.clouds import PointClouds
from ddeq_fast.data.dataset import check_batch, check_generator
from ddeq_fast.utils.validation import check_choice, check_integer, check_number

# Rotations: about the last axis of clouds in three dimensions, or any.
ROTATIONS = ("axis", "all")


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
    points, weights = _checked(clouds, generator, least=2)
    check_number("strength", strength, closed=True)
    draw = torch.randn(points.shape[0], 6, generator=generator).to(points.dtype) * strength
    linear = draw[:, :4].view(-1, 2, 2) + torch.eye(2, dtype=points.dtype)
    plane = points[..., :2] @ linear.mT + draw[:, None, 4:]
    moved = torch.cat((plane, points[..., 2:]), -1)
    return _moved(moved, points, weights)


def rotate(clouds: PointClouds, rotation: str, generator: torch.Generator) -> PointClouds:
    """Each cloud turned about the origin at random.

    Args:
        clouds: points (B, n, d), d >= 2, floating-point, on the CPU, and weights (B, n), zero for padding.
        rotation: "axis" turns clouds in three dimensions about the last axis, by an angle from 0 to 2 pi; "all" draws
            from the uniform (Haar) distribution of SO(d), in two dimensions or more.
        generator: source of all randomness; the number of draws depends on B and d alone.

    Raises:
        TypeError, ValueError: bad shape or dtype, NaN, an unknown rotation, "axis" in other than three dimensions, no
        generator.
    """
    points, weights = _checked(clouds, generator, least=2)
    check_choice("rotation", rotation, ROTATIONS)
    count, dim = len(points), points.shape[2]
    if rotation == "axis":
        if dim != 3:
            raise ValueError(f"rotation must be 'all' of clouds in dimension {dim}, 'axis' is about one of three")
        angle = 2 * torch.pi * torch.rand(count, generator=generator, dtype=torch.float64)
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        rows = (cos, -sin, zero), (sin, cos, zero), (zero, zero, zero + 1)
        turns = torch.stack([torch.stack(row, -1) for row in rows], -2)
    else:
        # With signs that make the factor R's diagonal positive, Q is uniform among orthogonal matrices (Mezzadri,
        # 2007, "How to generate random matrices from the classical compact groups").
        q, r = torch.linalg.qr(torch.randn(count, dim, dim, generator=generator, dtype=torch.float64))
        q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]
        turns = torch.cat((q[..., :1] * torch.linalg.det(q).sign()[:, None, None], q[..., 1:]), -1)
    return _moved(points @ turns.to(points.dtype).mT, points, weights)


def scale(clouds: PointClouds, strength: float, generator: torch.Generator) -> PointClouds:
    """Each cloud larger or smaller by one factor, uniform from 1 - strength to 1 + strength.

    Args:
        clouds: points (B, n, d), floating-point, on the CPU, and weights (B, n), zero for padding.
        strength: from 0, which changes nothing, to below 1.
        generator: source of all randomness; the number of draws depends on B alone.

    Raises:
        TypeError, ValueError: bad shape or dtype, NaN, a strength outside of [0, 1), no generator.
    """
    points, weights = _checked(clouds, generator)
    check_number("strength", strength, high=1.0, closed=True)
    factors = 1 + strength * (2 * torch.rand(len(points), 1, 1, generator=generator) - 1)
    return _moved(points * factors.to(points.dtype), points, weights)


def add_noise(clouds: PointClouds, deviation: float, generator: torch.Generator) -> PointClouds:
    """Each point moved on its own, by normal noise.

    Args:
        clouds: points (B, n, d), floating-point, on the CPU, and weights (B, n), zero for padding.
        deviation: standard deviation of each coordinate, in the units of the points; 0 changes nothing.
        generator: source of all randomness.

    Raises:
        TypeError, ValueError: bad shape or dtype, NaN, a negative deviation, no generator.
    """
    points, weights = _checked(clouds, generator)
    check_number("deviation", deviation, closed=True)
    noise = deviation * torch.randn(points.shape, generator=generator)
    return _moved(points + noise.to(points.dtype), points, weights)


def draw_points(clouds: PointClouds, most: int, generator: torch.Generator) -> PointClouds:
    """Each cloud, or `most` of its points, drawn at random without replacement, if it has more.

    Args:
        clouds: points (B, n, d), floating-point, on the CPU, and weights (B, n), zero for padding.
        most: points that are left of a cloud at most.
        generator: source of all randomness.

    Returns:
        Clouds (B, m, d) padded together, m = min(n, most); points keep their order and their weights.

    Raises:
        TypeError, ValueError: bad shape or dtype, NaN, `most` below 1, no generator.
    """
    points, weights = _checked(clouds, generator)
    check_integer("most", most)
    if most >= points.shape[1]:
        return PointClouds(points, weights)
    # Points without weight come last in the order in which they are taken.
    chance = torch.rand(weights.shape, generator=generator) - (weights <= 0).float()
    kept = chance.topk(most, dim=1).indices.sort(1).values
    return PointClouds(points.gather(1, kept[..., None].expand(-1, -1, points.shape[2])), weights.gather(1, kept))


def _checked(clouds: PointClouds, generator: torch.Generator, least: int = 1) -> PointClouds:
    """Points in `least` dimensions or more, and their weights; raises for what is none, and for no generator."""
    check_generator("generator", generator)
    return check_batch("clouds", clouds, least, some=False)


def _moved(moved: Tensor, points: Tensor, weights: Tensor) -> PointClouds:
    """Clouds whose real points have moved, and whose padding has not."""
    return PointClouds(torch.where(weights[..., None] > 0, moved, points), weights)
