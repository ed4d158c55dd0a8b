"""One-dimensional kernels of which radial ones are averages over directions, as Fourier series.

A radial kernel is k(x) = E f(<theta, x>), theta uniform on the sphere, with f(t) = int_0^oo p(w) cos(w t) dw where p(w)
is the kernel's Fourier transform in d dimensions, integrated over the sphere of radius w (Hertrich 2024, "Fast kernel
summation in high dimensions via slicing and Fourier transforms"). For Riesz kernels, which grow, cos(w t) - 1 stands
for cos(w t).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ddeq_fast.sums.radial import Elementary

NAMES = ("riesz", "gaussian", "laplacian", "inverse_multiquadric")
SMOOTH = ("gaussian", "inverse_multiquadric")  # their spectra end: a series holds all of them
# The series stands for f on |t| <= T and has a period of so many T.
PERIOD = 3.0
# Frequencies below LOW steps are integrated, FITTED coefficients adjusted to the result at POINTS values of t.
LOW, FITTED, POINTS = 32, 16, 96


def sphere_constant(d: int, r: float) -> float:
    """1 / E |<theta, e>|^r, e a unit vector: |x|^r is the mean over directions of |<theta, x>|^r times this."""
    logs = math.lgamma((d + r) / 2) - math.lgamma(d / 2) - math.lgamma((r + 1) / 2)
    return math.sqrt(math.pi) * math.exp(logs)


def highest(term: Elementary, d: int) -> float:
    """The frequency beyond which a spectrum holds less than about 1e-8 of the kernel's value at zero."""
    if term.name == "gaussian":
        return (math.sqrt(d) + 6.5) / term.number
    return (d + 20.0) / term.number if term.name == "inverse_multiquadric" else math.inf


def density(term: Elementary, d: int, w: np.ndarray) -> np.ndarray:
    """p at frequencies w > 0."""
    if term.name == "riesz":
        r = term.number
        factor = sphere_constant(d, r) * 2 / math.pi * math.gamma(1 + r) * math.sin(math.pi * r / 2)
        return factor * w ** (-1 - r)
    sigma = term.number
    w = w * sigma
    if term.name == "gaussian":  # |w| of a normal vector
        log = (1 - d / 2) * math.log(2) - math.lgamma(d / 2) + (d - 1) * np.log(w) - w * w / 2
        return sigma * np.exp(log)
    if term.name == "laplacian":
        constant = math.log(2 / math.sqrt(math.pi)) + math.lgamma((d + 1) / 2) - math.lgamma(d / 2)
        return sigma * np.exp(constant + (d - 1) * np.log(w) - (d + 1) / 2 * np.log1p(w * w))
    return sigma * _matern(d, w)


def _matern(d: int, w: np.ndarray) -> np.ndarray:
    """w^a K_a(w) with a = (d - 1) / 2, of integral one: by the recurrence of Bessel functions, upwards."""
    if d % 2:
        bessel = torch.special.modified_bessel_k0, torch.special.modified_bessel_k1
        zero, one = (function(torch.from_numpy(w)).numpy() for function in bessel)
        lower, upper, order = 2 / math.pi * zero, 2 / math.pi * w * one, 1.0
    else:
        lower, upper, order = np.exp(-w), (1 + w) * np.exp(-w) / 2, 1.5
    if d < 3:
        return lower
    while order < (d - 1) / 2:
        following = w * w * lower / (4 * order * order - 1) + order / (order + 0.5) * upper
        lower, upper, order = upper, following, order + 1
    return upper


def series(terms: Sequence[tuple[float, Elementary]], d: int, width: float, number: int) -> np.ndarray:
    """b of length number + 1 with f(t) = sum_j b_j cos(2 pi j t / (PERIOD width)) for |t| <= width, of a mixture.

    Frequencies above half of the last fade out, but of spectra that end before: f is smoothed at that scale, which in d
    dimensions is the kernel smoothed there.
    """
    h = 2 * math.pi / (PERIOD * width)
    w = h * np.arange(1, number + 1)
    b, t = np.zeros(number + 1), np.linspace(0, width, POINTS)
    nodes, weights = _panels(h * LOW)
    low = min(LOW, number)
    off = np.zeros(POINTS)
    for weight, term in terms:
        p = weight * h * density(term, d, w)
        if highest(term, d) > w[-1]:
            p = p * _fade(2 * w / w[-1] - 1)
        b[1:] += p
        inside = weights * weight * density(term, d, nodes) * _fade(nodes / (h * LOW))
        if term.name == "riesz":
            off += (-2 * np.sin(np.outer(t, nodes) / 2) ** 2) @ inside + weight * _beyond(term, d, h * LOW, t)
        else:
            off += np.cos(np.outer(t, nodes)) @ inside
    off -= np.cos(np.outer(t, w[:low])) @ (b[1 : low + 1] * _fade(w[:low] / (h * LOW)))
    fitted = min(FITTED, number)
    b[: fitted + 1] += np.linalg.lstsq(np.cos(np.outer(t, h * np.arange(fitted + 1))), off, rcond=1e-13)[0]
    return b


def _beyond(term: Elementary, d: int, top: float, t: np.ndarray) -> np.ndarray:
    """What the panels up to `top` leave out of a Riesz kernel: next to zero, and - int p beyond the fading."""
    r, factor = term.number, density(term, d, np.ones(1))[0]
    nodes, weights = _panels(top)
    faded = weights @ (density(term, d, nodes) * (1 - _fade(nodes / top)))
    least = top * 2.0**-PANELS
    return -factor * (t * t / 2 * least ** (2 - r) / (2 - r) + top**-r / r) - faded


def _fade(u: np.ndarray) -> np.ndarray:
    """One for u <= 0.25, zero for u >= 1, smooth between."""
    u = np.clip((u - 0.25) / 0.75, 2e-3, 1 - 2e-3)
    return 1 / (1 + np.exp(1 / (1 - u) - 1 / u))


PANELS = 48


def _panels(top: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of integrals from 0 to `top`, of what may be singular at 0: Gauss on halves of halves."""
    x, weights = np.polynomial.legendre.leggauss(32)
    ends = top * 2.0 ** -np.arange(PANELS + 1)
    half = (ends[:-1] - ends[1:]) / 2
    nodes = (ends[:-1] + ends[1:])[:, None] / 2 + half[:, None] * x
    return nodes.ravel(), (half[:, None] * weights).ravel()
