"""Specification of the package's sums in plain float64 numpy: every pair outright, no shared code.

Kernels are written here as functions of the distance r, where the package uses the squared distance.
"""

from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]


def golden(name):
    """Results of the authors' public code (commit 9fdbd99) in float64, by key."""
    return np.load(ROOT / "tests" / "golden" / f"{name}.npz", allow_pickle=False)


def profile(kernel, r):
    """(k(r), dk/dr) at distances r > 0 from the kernel's textbook formula."""
    name = type(kernel).__name__
    if name == "Riesz":
        return -(r**kernel.r), -kernel.r * r ** (kernel.r - 1)
    if name == "Gaussian":
        k = np.exp(-(r**2) / (2 * kernel.sigma**2))
        return k, -r / kernel.sigma**2 * k
    if name == "Laplacian":
        k = np.exp(-r / kernel.sigma)
        return k, -k / kernel.sigma
    if name == "InverseMultiquadric":
        k = 1 / np.sqrt(1 + (r / kernel.sigma) ** 2)
        return k, -r / kernel.sigma**2 * k**3
    if name == "Mixture":
        parts = [(weight, profile(part, r)) for weight, part in kernel.components]
        return sum(w * p[0] for w, p in parts), sum(w * p[1] for w, p in parts)
    raise NotImplementedError(name)


def at_zero(kernel):
    """k(0)."""
    name = type(kernel).__name__
    if name == "Mixture":
        return sum(weight * at_zero(part) for weight, part in kernel.components)
    return 0.0 if name == "Riesz" else 1.0


def _array(tensor):
    return tensor.detach().double().numpy() if isinstance(tensor, torch.Tensor) else np.asarray(tensor, np.float64)


def potential_and_field(x, y, v, kernel):
    """u (..., m) and f (..., m, d) of charges v (..., n) at y (..., n, d), at the targets x (..., m, d)."""
    x, y, v = _array(x), _array(y), _array(v)
    if x.ndim == 3:
        parts = [potential_and_field(*cloud, kernel) for cloud in zip(x, y, v, strict=True)]
        return np.stack([u for u, _ in parts]), np.stack([f for _, f in parts])
    u, f = np.zeros(len(x)), np.zeros(x.shape)
    for i, target in enumerate(x):
        for j, source in enumerate(y):
            if v[j] == 0:
                continue
            difference = target - source
            r = np.sqrt(np.sum(difference**2))
            if r == 0:
                u[i] += v[j] * at_zero(kernel)
                continue
            k, slope = profile(kernel, r)
            u[i] += v[j] * k
            f[i] += v[j] * slope * difference / r
    return u, f


def potential(x, y, v, kernel):
    """u alone."""
    return potential_and_field(x, y, v, kernel)[0]


def field(x, y, v, kernel):
    """f alone."""
    return potential_and_field(x, y, v, kernel)[1]


def _normalised(weights, cloud):
    weights = np.ones(cloud.shape[:-1]) if weights is None else _array(weights)
    return weights / weights.sum(-1, keepdims=True)


def squared_mmd(x, y, kernel, a=None, b=None):
    """E k(X, X') + E k(Y, Y') - 2 E k(X, Y): shape () or (B,)."""
    x, y = _array(x), _array(y)
    a, b = _normalised(a, x), _normalised(b, y)
    xx = (a * potential(x, x, a, kernel)).sum(-1)
    yy = (b * potential(y, y, b, kernel)).sum(-1)
    return xx + yy - 2 * (a * potential(x, y, b, kernel)).sum(-1)


def witness(z, x, y, kernel, a=None, b=None):
    """E k(X, z) - E k(Y, z)."""
    x, y = _array(x), _array(y)
    return potential(z, x, _normalised(a, x), kernel) - potential(z, y, _normalised(b, y), kernel)


def nearest(x, y, mask=None):
    """(min_j |x_i - y_j|^2, first such j) over the sources y (..., n, d) that `mask` (..., n) calls real."""
    x, y = _array(x), _array(y)
    mask = np.ones(y.shape[:-1], bool) if mask is None else np.asarray(mask)
    if x.ndim == 3:
        parts = [nearest(*cloud) for cloud in zip(x, y, mask, strict=True)]
        return np.stack([q for q, _ in parts]), np.stack([j for _, j in parts])
    q = np.array(
        [
            [np.sum((target - source) ** 2) if real else np.inf for source, real in zip(y, mask, strict=True)]
            for target in x
        ]
    )
    return q.min(1), q.argmin(1)


def chamfer(x, y, power=1):
    """mean_i min_j |x_i - y_j|^power and the same from y to x, of one pair of clouds without padding."""
    return sum(np.mean(nearest(*pair)[0] ** (power / 2)) for pair in ((x, y), (y, x)))


def kde_entropy(x, bandwidth):
    """-mean_i log(1e-10 + 1/n sum over j != i of the Gaussian), of one cloud without padding."""
    x = _array(x)
    surprises = []
    for i, point in enumerate(x):
        others = np.delete(x, i, 0)
        density = np.sum(np.exp(-np.sum((others - point) ** 2, 1) / (2 * bandwidth**2))) / len(x)
        surprises.append(-np.log(density + 1e-10))
    return np.mean(surprises)
