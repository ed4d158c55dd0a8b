"""Several kernels as the original code has them, whose flow follows the first alone."""

from __future__ import annotations

from typing import Any

from ddeq_fast.solvers import MMDFlow
from ddeq_fast.sums.radial import Mixture, RadialKernel


class FirstKernelFlow(MMDFlow):
    """`MMDFlow` that of several kernels follows the gradient of the first alone, its share of the average."""

    def followed_kernel(self, state: Any, step: int) -> RadialKernel:
        kernel = self.kernel_at(state, step)
        return kernel if len(self.kernels) == 1 else Mixture(kernel.terms()[: len(self.kernels[0].terms())])
