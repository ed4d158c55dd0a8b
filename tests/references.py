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


def bend(kernel, r):
    """d2k/dr2 at distances r > 0."""
    name = type(kernel).__name__
    if name == "Riesz":
        return -kernel.r * (kernel.r - 1) * r ** (kernel.r - 2)
    if name == "Mixture":
        return sum(weight * bend(part, r) for weight, part in kernel.components)
    k, s = profile(kernel, r)[0], kernel.sigma
    if name == "Gaussian":
        return (r**2 / s**4 - 1 / s**2) * k
    if name == "Laplacian":
        return k / s**2
    if name == "InverseMultiquadric":
        return 3 * r**2 / s**4 * k**5 - k**3 / s**2
    raise NotImplementedError(name)


def bend_at_zero(kernel):
    """d2k/dr2 at r = 0, taken as zero at a cusp."""
    name = type(kernel).__name__
    if name == "Mixture":
        return sum(weight * bend_at_zero(part) for weight, part in kernel.components)
    return -1 / kernel.sigma**2 if name in ("Gaussian", "InverseMultiquadric") else 0.0


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


def tangent(x, y, v, s, t, kernel):
    """The rates at which u (..., m) and f (..., m, d) change where targets move at rates s and sources at rates t."""
    x, y, v, s, t = map(_array, (x, y, v, s, t))
    if x.ndim == 3:
        parts = [tangent(*cloud, kernel) for cloud in zip(x, y, v, s, t, strict=True)]
        return np.stack([du for du, _ in parts]), np.stack([df for _, df in parts])
    du, df = np.zeros(len(x)), np.zeros(x.shape)
    for i in range(len(x)):
        difference, move = x[i] - y, s[i] - t
        r = np.sqrt(np.sum(difference**2, 1))
        df[i] = bend_at_zero(kernel) * v[r == 0] @ move[r == 0]
        difference, move, charge, r = difference[r > 0], move[r > 0], v[r > 0], r[r > 0]
        direction, slope = difference / r[:, None], profile(kernel, r)[1]
        along = np.sum(direction * move, 1)
        across = move - along[:, None] * direction
        du[i] = charge @ (slope * along)
        df[i] += (charge * bend(kernel, r) * along) @ direction + (charge * slope / r) @ across
    return du, df


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


def relative_error(value, exact, terms=None):
    """|value - exact| / |terms| in the Euclidean norm; terms: what was summed, where that cancels."""
    value, exact = _array(value.cpu() if isinstance(value, torch.Tensor) else value), _array(exact)
    assert value.shape == exact.shape
    error, size = np.linalg.norm(value - exact), np.linalg.norm(_array(exact if terms is None else terms))
    return error / size if size else error
