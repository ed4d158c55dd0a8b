"""Whether single precision keeps a cloud."""

from __future__ import annotations

import numpy as np

# Share of a cloud's extent by which rounding may move a point: 17 times as far from the origin as it is wide.
_MOST_MOVED = 1e-6


def keeps(rounded: np.ndarray, array: np.ndarray) -> bool:
    """Whether points (n, d), rounded to float32, are still the cloud.

    They are if no point moved by more than a millionth of the cloud's extent, and none became another one's equal.
    """
    if array.dtype.itemsize <= 4:
        return True
    if (rounded == array).all():
        return True
    if not moves_little(rounded, array):
        return False
    # Points that became one are neighbours in the order of a number made of all their bits; zero has one sign.
    bits = (rounded + np.float32(0)).view(np.uint32).astype(np.uint64)
    number = np.zeros(len(bits), np.uint64)
    for column in bits.T:
        number = (number ^ column) * np.uint64(0x9E3779B97F4A7C15)
    order = number.argsort()
    first, second = order[:-1], order[1:]
    same = np.flatnonzero(number[first] == number[second])
    first, second = first[same], second[same]
    fused = (rounded[first] == rounded[second]).all(1) & (array[first] != array[second]).any(1)
    return not fused.any()


def moves_little(rounded: np.ndarray, array: np.ndarray) -> bool:
    """Whether no point (n, d) moved by more than a millionth of the cloud's extent."""
    return bool(np.abs(array - rounded).max() <= _MOST_MOVED * np.ptp(array, axis=0).max())
