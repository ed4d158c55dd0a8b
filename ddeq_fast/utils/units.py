"""Times and sizes in words."""

from __future__ import annotations

_TIMES = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
_SIZES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def duration(seconds: float, digits: int = 2) -> str:
    """A time in the largest unit that it holds once, such as "1.5 h"; in microseconds if it is shorter than one."""
    factor, unit = next((entry for entry in _TIMES if seconds >= entry[0]), _TIMES[-1])
    return f"{float(f'{seconds / factor:.{digits}g}'):,g} {unit}"


def size(count: int) -> str:
    """A number of bytes, such as "1.5 MiB"."""
    for factor, unit in _SIZES:
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} B"
