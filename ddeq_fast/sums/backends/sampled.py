"""Exact sums at some of the targets, and how far others are from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddeq_fast.sums.radial import RadialKernel


def some(m: int, number: int, seed: int = 1) -> Tensor:
    """`number` of m targets drawn with replacement, (number,), or all m if they are no more.

    With it mean squares over them are unbiased estimates of those over all. The same in every call.
    """
    if m <= number:
        return torch.arange(m)
    return torch.randint(m, (number,), generator=torch.Generator().manual_seed(seed))


class Sample:
    """Exact sums at targets `at` (k,), with which sums at all targets are compared; a repeated one counts again.

    Args:
        exact: `evaluate` or, with moves s (B, m, d) and t (B, n, d), `tangent` of an exact backend, which is run in
            single precision at least.
        clouds: x (B, m, d), y (B, n, d) and v (B, n).
        wanted: of `evaluate`, which of potential and field; sums `found` are None where this is false.
    """

    def __init__(
        self,
        exact: Callable[..., Sequence[Tensor | None]],
        kernel: RadialKernel,
        clouds: tuple[Tensor, Tensor, Tensor],
        at: Tensor,
        wanted: tuple[bool, bool] = (True, True),
        moves: tuple[Tensor, ...] = (),
    ):
        self.at = at.to(clouds[0].device)
        targets, sources = (clouds[0], *moves[:1]), (clouds[1], *moves[1:])
        wide = torch.promote_types(clouds[0].dtype, torch.float32)
        x, *s = (part[:, self.at].to(wide) for part in targets)
        y, *t = (part.to(wide) for part in sources)
        self._charges = clouds[2].to(wide)

        def sums(v: Tensor) -> Sequence[Tensor | None]:
            return exact(x, y, v, *s, *t, kernel, *(() if moves else wanted))

        self._sums, self.exact = sums, sums(self._charges)

    def off(self, found: Sequence[Tensor | None]) -> list[Tensor]:
        """Root mean squares (B,) over these targets of the errors of each sum that is wanted."""
        pairs = zip(found, self.exact, strict=True)
        return [mean(a[:, self.at] - b) for a, b in pairs if a is not None and b is not None]

    def size(self) -> list[Tensor]:
        """Those of the exact sums."""
        return [mean(part) for part in self.exact if part is not None]

    def uncancelled(self) -> list[Tensor]:
        """Those of the exact sums of charges |v|."""
        if bool((self._charges >= 0).all()):
            return self.size()
        return [mean(part) for part in self._sums(self._charges.abs()) if part is not None]


def mean(values: Tensor) -> Tensor:
    """Root mean square (B,), float64, over targets, of numbers (B, m) or vectors (B, m, d)."""
    return values.flatten(1).double().square().sum(1).div(values.shape[1]).sqrt()
