"""The registry of microbenchmarks: what is computed, on what shapes, by which methods, and how it is verified."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq_fast import Gaussian, RadialKernel, Riesz, potential_and_field
from ddeq_fast.sums import backends, naive
from ddeq_fast.sums.encoding import encode
from ddeq_fast.sums.functions import energy_op
from ddeq_fast.sums.operators import tangent

ENERGY_DISTANCE = Riesz(1.0)


@dataclass(frozen=True)
class Case:
    """One operation on clouds of one shape.

    op: "sums" (potential and field), "tangent" (their derivative along a direction), or "mmd" (MMD^2 of two clouds of
    half the points each, with both gradients). batch clouds of n points in dimension d, against as many.
    devices: where it is worth running. tolerance: norm-wise relative error allowed against float64.
    """

    family: str
    op: str
    n: int
    d: int
    batch: int = 1
    dtype: torch.dtype = torch.float32
    kernel: RadialKernel = ENERGY_DISTANCE
    devices: tuple[str, ...] = ("cpu", "cuda")
    tolerance: float = 2e-6

    @property
    def name(self) -> str:
        """What `--filter` matches."""
        dtype = "" if self.dtype == torch.float32 else f"-{str(self.dtype).removeprefix('torch.')}"
        return f"{self.family}{dtype}-n{self.n}"

    @property
    def pairs(self) -> int:
        """Pairs of points that are summed over."""
        return self.batch * self.n * self.n

    def inputs(self, device: str, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        """Seeded inputs; the same numbers in every dtype and on every device."""
        generator = torch.Generator().manual_seed(0)

        def draw(*shape):
            values = torch.randn(self.batch, self.n, *shape, generator=generator).to(self.dtype)
            return values.to(device, dtype or self.dtype)

        x, y = draw(self.d), draw(self.d)
        if self.op == "mmd":
            weights = x.new_full((self.batch, self.n), 2 / self.n)
            weights[:, self.n // 2 :] *= -1
            return x, weights
        v = draw()
        return (x, y, v) if self.op == "sums" else (x, y, v, draw(self.d), draw(self.d))


def _ladder(family: str, sizes: dict[str, tuple[int, ...]], op: str, d: int, **options) -> list[Case]:
    """One case for each size, on the devices whose list holds it."""
    cases = []
    for n in sorted(set().union(*sizes.values())):
        devices = tuple(device for device, listed in sizes.items() if n in listed)
        cases.append(Case(family, op, n, d, devices=devices, **options))
    return cases


CASES = [
    *_ladder("sums-d3", {"cpu": (1024, 4096, 16384), "cuda": (4096, 16384, 65536, 262144)}, "sums", 3),
    *_ladder("sums-d2", {"cuda": (65536,)}, "sums", 2),
    *_ladder("sums-d3-gaussian", {"cpu": (4096,), "cuda": (65536,)}, "sums", 3, kernel=Gaussian(1.0)),
    *_ladder("sums-d3", {"cuda": (16384,)}, "sums", 3, dtype=torch.float64, tolerance=1e-13),
    *_ladder("sums-d128", {"cpu": (256, 1024, 4096), "cuda": (1024, 4096, 16384)}, "sums", 128),
    *(Case(f"sums-d{d}", "sums", 5000, d, devices=("cpu",)) for d in (16, 32, 64, 128)),
    Case("sums-d64", "sums", 5000, 64, devices=("cpu",), dtype=torch.float64, tolerance=1e-14),
    Case("tangent-d64", "tangent", 5000, 64, devices=("cpu",), tolerance=1e-5),
    *_ladder("tangent-d3", {"cpu": (1024, 4096), "cuda": (16384, 65536)}, "tangent", 3, tolerance=1e-5),
    *_ladder("mmd-b64-d128", {"cpu": (20,), "cuda": (20,)}, "mmd", 128, batch=64, tolerance=1e-5),
]


def _with_backend(name: str) -> Callable:
    def build(case: Case) -> Callable:
        if case.op == "sums":
            return lambda x, y, v: potential_and_field(x, y, case.kernel, charges=v, backend=name)
        if case.op == "tangent":
            return lambda *tensors: tangent(*tensors, case.kernel, name)
        return lambda z, w: energy_op(z, w, encode(case.kernel), name, True)

    return build


def _compiled(case: Case) -> Callable:
    """torch.compile of the plain formula, specialised to the shape."""
    formula = {"sums": naive.evaluate, "tangent": naive.tangent, "mmd": naive.energy}[case.op]
    return torch.compile(functools.partial(formula, kernel=case.kernel), dynamic=False)


# Four backends, and the plain formula compiled.
METHODS: dict[str, Callable[[Case], Callable]] = {
    **{name: _with_backend(name) for name in ("triton", "compiled", "keops", "dense")},
    "torch.compile": _compiled,
}


def refusal(case: Case, method: str, device: str) -> str | None:
    """Why this method does not run this case here, or None."""
    if device not in case.devices:
        return f"not on {device}"
    if method == "torch.compile":
        return "its matrices would not fit" if case.pairs * case.d > 1 << 33 else None
    if method == "dense" and case.pairs > 1 << 33:
        return "would take minutes"
    probe = torch.empty(1, 1, case.d, dtype=case.dtype, device=device)
    return backends.get(method).unsupported(probe, probe, case.kernel)


@functools.lru_cache(maxsize=1)  # methods take turns on a case
def reference(case: Case, rows: int = 256) -> tuple[Tensor, ...]:
    """The first `rows` targets of every cloud in float64, by the dense backend on the CPU."""
    tensors = case.inputs("cpu", torch.float64)
    if case.op == "mmd":
        return energy_op(*tensors, encode(case.kernel), "dense", True)
    if case.op == "sums":
        x, y, v = tensors
        return potential_and_field(x[:, :rows], y, case.kernel, charges=v, backend="dense")
    x, y, v, s, t = tensors
    return tangent(x[:, :rows], y, v, s[:, :rows], t, case.kernel, "dense")


def error(case: Case, results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Largest norm-wise relative error of the results on the rows of the reference."""
    worst = 0.0
    for result, exact in zip(results, expected, strict=True):
        result = result.detach().cpu().double()
        result = result if result.dim() == 1 else result[:, : exact.shape[1]]
        worst = max(worst, float((result - exact).norm() / exact.norm()))
    return worst
