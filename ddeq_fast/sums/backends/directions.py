"""Directions for averages over the sphere: designs that minimise an energy, rotated at random.

Only axes matter: what is averaged is even. For two points whose difference has a uniform direction the mean square
error of the sliced field of Riesz(1) is, up to a factor and a constant, the energy

    sum_pq g(<theta_p, theta_q>),   g(rho) = rho arcsin(rho),

in any dimension (Sheppard's formula for the correlation of signs), so its minimisers are good directions. Rotated at
random they are unbiased.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

# The minimisation takes pairs of directions, ITERATIONS times: more directions than these are several designs.
LARGEST = 512
ITERATIONS = 100


def draw(number: int, d: int, generator: torch.Generator) -> Tensor:
    """`number` unit vectors (number, d), float64 on the CPU: designs, each rotated at random."""
    parts = -(-number // LARGEST)
    sizes = [(number + i) // parts for i in range(parts)]
    return torch.cat([torch.from_numpy(design(size, d)) @ _rotation(d, generator) for size in sizes])


def _rotation(d: int, generator: torch.Generator) -> Tensor:
    """A uniform orthogonal matrix (d, d)."""
    q, r = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


@functools.lru_cache(maxsize=32)
def design(number: int, d: int) -> np.ndarray:
    """`number` unit vectors (number, d), float64, the same in every call: equal angles in the plane.

    Beyond it gradient descent with the steps of Barzilai and Borwein, from orthogonal frames: a tenth of a second for
    256 directions. Not to be written to.
    """
    if d == 2:
        angles = math.pi / number * np.arange(number)
        return np.stack([np.cos(angles), np.sin(angles)], 1)
    generator = torch.Generator().manual_seed(0)
    frames = torch.cat([_rotation(d, generator) for _ in range(-(-number // d))])
    theta = frames[:number].numpy()
    before, step = None, 0.5 / number
    for _ in range(ITERATIONS if 1 < d < number else 0):  # one frame is the best there is
        gradient = _gradient(theta)
        if before is not None:
            s, y = theta - before[0], gradient - before[1]
            step = abs(np.vdot(s, y)) / max(np.vdot(y, y), 1e-300)
        before = theta, gradient
        theta = theta - min(step, 0.1 / max(np.abs(gradient).max(), 1e-300)) * gradient
        theta = theta / np.linalg.norm(theta, axis=1, keepdims=True)
    return theta


def _gradient(theta: np.ndarray) -> np.ndarray:
    """Of the energy over the spheres."""
    rho = np.clip(theta @ theta.T, -1 + 1e-12, 1 - 1e-12)
    np.fill_diagonal(rho, 0)
    slope = (np.arcsin(rho) + rho / np.sqrt(1 - rho * rho)) @ theta
    return slope - (slope * theta).sum(1, keepdims=True) * theta
