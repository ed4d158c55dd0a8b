"""Sums, first and second derivatives of kernel sums in extended precision, and how far rounding may take one from them.

Every pair outright, in numpy's long double, from the textbook formulas of the distance s; no code of the package. A sum
over pairs comes with its slack: what the terms' magnitudes, each times its sensitivity to rounding, add up to.
"""

from typing import NamedTuple

import numpy as np
import torch


class Jet(NamedTuple):
    """k(s), k'(s) / s and k''(s) - k'(s) / s, or their slacks: arrays (m, n)."""

    value: np.ndarray
    slope: np.ndarray
    bend: np.ndarray


class Sum(NamedTuple):
    """A sum over pairs, (...) or (..., d), and its slack (...)."""

    exact: np.ndarray
    slack: np.ndarray


def extended(tensor):
    """The numbers of a tensor, exactly."""
    return tensor.detach().double().numpy().astype(np.longdouble)


def _jet(kernel, s):
    """(Jet, amplitude, kappa): amplitudes bound what an exponential that underflows was multiplied by; kappa (m, n)
    bounds the relative change of any of the three for a relative change of s."""
    name, one = type(kernel).__name__, np.ones_like(s)
    with np.errstate(divide="ignore", invalid="ignore"):
        if name == "Riesz":
            r = np.longdouble(kernel.r)
            jet = Jet(-(s**r), -r * s ** (r - 2), r * (2 - r) * s ** (r - 2))
            amplitude, kappa = Jet(0 * one, 0 * one, 0 * one), 3 * one
        else:
            c = 1 / np.longdouble(kernel.sigma)
            t = s * c
            if name == "Gaussian":
                amplitude, e, kappa = Jet(one, -c * c * one, (t * c) ** 2), np.exp(-t * t / 2), 3 + t * t
            elif name == "Laplacian":
                amplitude, e, kappa = Jet(one, -c / s, c * c + c / s), np.exp(-t), 3 + t
            else:
                b = 1 + t * t
                amplitude, e, kappa = Jet(one, -c * c / b, 3 * (t * c / b) ** 2), b**-0.5, 6 * one
            jet = Jet(*(e * part for part in amplitude))
    if name in ("Riesz", "Laplacian"):  # points that coincide exert no force
        jet, amplitude = (
            Jet(np.where(s == 0, int(name == "Laplacian"), j.value), *(np.where(s == 0, 0, p) for p in j[1:]))
            for j in (jet, amplitude)
        )
    return jet, amplitude, kappa


class Pairs:
    """All pairs of targets x (m, d) and sources y (n, d) under a kernel, with the errors allowed in units of eps.

    `steps` bounds the roundings of one term and its sum; `loss` (m, n) adds to it for single pairs. `tiny` is the
    smallest normal number of the precision under test, as a multiple of its eps.
    """

    def __init__(self, x, y, kernel, *, steps, loss=0, tiny=0):
        self.d = x[:, None] - y[None]
        self.s = np.sqrt(np.sum(self.d**2, -1))
        total, slack = [0, 0, 0], [0, 0, 0]
        for weight, term in kernel.terms():
            jet, amplitude, kappa = _jet(term, self.s)
            for i in range(3):
                total[i] = total[i] + weight * jet[i]
                allowed = np.abs(jet[i]) * kappa * (steps + loss) + 4 * tiny * np.abs(amplitude[i])
                slack[i] = slack[i] + abs(weight) * allowed
        self.jet, self.slack = Jet(*total), Jet(*slack)
        with np.errstate(divide="ignore", invalid="ignore"):
            self.direction = np.where(self.s[..., None] == 0, 0, self.d / self.s[..., None])

    def value(self):
        """k, (m, n)."""
        return self.jet.value, self.slack.value

    def gradient(self):
        """grad_1 k, (m, n, d)."""
        return self.jet.slope[..., None] * self.d, self.slack.slope * self.s

    def hessian(self, s, t):
        """D grad_1 k as targets move along s (m, d) and sources along t (n, d), two terms of their own: (m, n, d)."""
        move, length = self._moves(s, t)
        along = np.sum(self.direction * move, -1, keepdims=True) * self.direction
        exact = self.jet.slope[..., None] * move + self.jet.bend[..., None] * along
        return exact, (self.slack.slope + self.slack.bend) * length

    def slope(self, s, t):
        """<grad_1 k, s_i - t_j>, (m, n)."""
        move, length = self._moves(s, t)
        exact, slack = self.gradient()
        return np.sum(exact * move, -1), slack * length

    @staticmethod
    def _moves(s, t):
        return s[:, None] - t[None], np.linalg.norm(s, axis=1)[:, None] + np.linalg.norm(t, axis=1)[None]


def summed(weights, terms, axis):
    """sum over `axis` of weights (m, n) times terms."""
    exact, slack = terms
    wide = weights[..., None] if exact.ndim == 3 else weights
    return Sum(np.sum(wide * exact, axis), np.sum(np.abs(weights) * slack, axis))


def plus(a, b):
    """The sum of two sums."""
    return Sum(a.exact + b.exact, a.slack + b.slack)


def times(factor, a):
    """A sum times a number for each entry, (...)."""
    wide = factor[..., None] if a.exact.ndim > np.ndim(factor) else factor
    return Sum(wide * a.exact, np.abs(factor) * a.slack)


def tangent(pairs, v, s, t, w):
    """(du, df) as x moves along s (m, d), y along t (n, d) and v (n,) along w (n,)."""
    v, w = np.broadcast_to(v, pairs.s.shape), np.broadcast_to(w, pairs.s.shape)
    du = plus(summed(v, pairs.slope(s, t), 1), summed(w, pairs.value(), 1))
    df = plus(summed(v, pairs.hessian(s, t), 1), summed(w, pairs.gradient(), 1))
    return du, df


def excess(found: torch.Tensor, expected: Sum, eps, floor):
    """Largest error in units of what is allowed: more than one is too much; infinity where a number is missing."""
    if found.numel() == 0:
        return 0.0
    error = np.abs(extended(found) - expected.exact)
    if error.ndim > np.ndim(expected.slack):
        error = np.sqrt(np.sum(error**2, -1))
    ratio = error / (eps * expected.slack + floor)
    return float("inf") if np.isnan(ratio).any() else float(np.max(ratio))
