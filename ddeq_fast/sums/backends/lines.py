"""Sums of one-dimensional kernels in O(n log n): of -|t| by sorting, of Fourier series on a grid.

On a grid charges are spread by a window, filtered by FFT, and read off by the same window, whose own spectrum the
filter divides out: the nonequispaced FFT with the window of Barnett, Magland and af Klinteberg (2019), eq. 1.8.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

# The window covers so many grid points: an error of about 1e-7 where the grid has twice the frequencies that it needs.
WINDOW, SHAPE, WINDOW_ERROR = 8, 2.3 * 8, 1e-7


def riesz(t: Tensor, s: Tensor, v: Tensor, potential: bool, field: bool) -> tuple[Tensor, Tensor]:
    """-sum_j v_j |t_i - s_j| and its derivative -sum_j v_j sign(t_i - s_j), (B, m), of charges v at s (B, n).

    An empty tensor stands for one that is not wanted.
    """
    ordered, order = s.sort(1)
    # Targets in order walk through memory once, where a search at random would jump.
    t, place = (ordered, order) if t is s else t.sort(1)
    s = ordered
    v = v.gather(1, order).double()
    charge = torch.nn.functional.pad(v.cumsum(1), (1, 0))
    below = torch.searchsorted(s, t)
    u = f = t.new_empty(0)
    before, total = charge.gather(1, below), charge[:, -1:]
    if potential:
        moment = torch.nn.functional.pad((v * s).cumsum(1), (1, 0))
        u = -(t * (2 * before - total) - (2 * moment.gather(1, below) - moment[:, -1:]))
        u = torch.empty_like(u).scatter_(1, place, u)
    if field:
        up_to = charge.gather(1, torch.searchsorted(s, t, right=True))
        f = total - before - up_to
        f = torch.empty_like(f).scatter_(1, place, f)
    return u, f


class Grid:
    """Sums of f(t) = sum_j b_j cos(2 pi j t / period), j up to a power of two, and of derivatives of f.

    Args:
        b: coefficients, the number of frequencies beside zero a power of two.
        period: at least twice the largest difference, plus the window.
        device: of the points.
    """

    def __init__(self, b: np.ndarray, period: float, device: torch.device):
        top = len(b) - 1
        self.size, self.period = 4 * top, period
        self._size = torch.from_numpy(np.abs(b))
        filtered = self.size * b / _window_spectrum(top) ** 2
        filtered[1:] /= 2
        self.filter = torch.from_numpy(filtered).to(device)
        self.frequencies = 2 * math.pi / period * torch.arange(top + 1, dtype=torch.float64, device=device)

    def bounds(self) -> tuple[float, float]:
        """Of the errors of f and its derivative, of a unit charge."""
        size = self._size
        return WINDOW_ERROR * float(size.sum()), WINDOW_ERROR * float((self.frequencies.cpu() * size).sum())

    def spread(self, s: Tensor, v: Tensor) -> Tensor:
        """Spectrum of charges v at s, both (B, n)."""
        at, offset = self._place(s)
        grid = v.new_zeros(len(v), self.size, dtype=torch.float64)
        for i in range(WINDOW):
            grid.scatter_add_(1, at + i, _window(offset + i) * v)
        return torch.fft.rfft(grid, dim=1)[:, : len(self.filter)] * self.filter

    def read(self, spectrum: Tensor, t: Tensor, *orders: int) -> list[Tensor]:
        """The sum, or its derivatives of these orders, at targets t (B, m), each (B, m)."""
        factors = [(1j * self.frequencies) ** order if order else 1.0 for order in orders]
        grids = [torch.fft.irfft(spectrum * factor, n=self.size, dim=1) for factor in factors]
        at, offset = self._place(t)
        totals = [torch.zeros_like(t, dtype=torch.float64) for _ in orders]
        for i in range(WINDOW):
            window, place = _window(offset + i), at + i
            for total, grid in zip(totals, grids, strict=True):
                total.addcmul_(window, grid.gather(1, place))
        return totals

    def _place(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The first grid point of the window around each t, and how far it lies from it, in (-WINDOW / 2, ...]."""
        place = (t.double() / self.period + 0.5) * self.size
        first = (place - WINDOW / 2).floor() + 1
        return first.long(), first - place


def _window(z: Tensor) -> Tensor:
    """At z, which is overwritten."""
    inside = z.mul_(2 / WINDOW).square_().neg_().add_(1).clamp_min_(0)
    return inside.sqrt_().sub_(1).mul_(SHAPE).exp_()


@functools.lru_cache(maxsize=4)
def _window_spectrum(top: int) -> np.ndarray:
    """Of the window at the frequencies 0, ..., top of a grid of 4 top points."""
    z, weights = np.polynomial.legendre.leggauss(48)
    values = weights * np.exp(SHAPE * (np.sqrt(1 - z * z) - 1)) * (WINDOW / 2)
    frequencies = math.pi / (2 * top) * (WINDOW / 2) * np.arange(top + 1)
    return sum(value * np.cos(frequencies * node) for value, node in zip(values, z, strict=True))
