"""KeOps backend: pair sums compiled by pykeops, linear in memory, on CPU and GPU. Imported only when used."""

from __future__ import annotations

import shutil

import torch
from torch import Tensor

from ddeq_fast.sums.backends import keops_build
from ddeq_fast.sums.radial import RadialKernel, elementary, unknown
from ddeq_fast.utils.optional import available, install


def unsupported(x: Tensor, y: Tensor, kernel: RadialKernel) -> str | None:
    """Needs pykeops, a C++ compiler, a cache folder, single or double precision and elementary kernels."""
    if not available("pykeops"):
        return f"pykeops is not installed: {install('keops')}"
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return "pykeops needs a C++ compiler, and none of c++, g++, clang++ is on the path"
    if x.dtype not in (torch.float32, torch.float64):
        return f"needs float32 or float64, got {x.dtype}"
    strange = unknown(kernel, _FORMULAS)
    if strange:
        return f"has no formula for the kernel {strange}"
    return keops_build.reason()


# Formulas are pykeops' own: Var(k, dimension, category) is argument k, of targets (0), sources (1), or parameters (2).
# As LazyTensors, clouds of one point would be taken for parameters.


def evaluate(x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel, potential: bool, field: bool):
    """See `Backend.evaluate`."""
    d = x.shape[2]
    arrays = _arrays(x, y, v[..., None], _numbers(kernel, x))
    charge, move, q = "Var(2,1,1)", f"(Var(0,{d},0)-Var(1,{d},1))", f"SqDist(Var(0,{d},0),Var(1,{d},1))"
    k, phi, _ = _mixed(kernel, q, 3)
    u = keops_build.reduce(f"{charge}*{k}", *arrays).squeeze(-1) if potential else None
    return u, (keops_build.reduce(f"({charge}*{phi})*{move}", *arrays) if field else None)


def tangent(x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: RadialKernel):
    """See `Backend.tangent`."""
    d = x.shape[2]
    arrays = _arrays(x, y, v[..., None], _numbers(kernel, x), s, t)
    charge, diff, q = "Var(2,1,1)", f"(Var(0,{d},0)-Var(1,{d},1))", f"SqDist(Var(0,{d},0),Var(1,{d},1))"
    move = f"(Var(4,{d},0)-Var(5,{d},1))"
    _, phi, curvature = _mixed(kernel, q, 3)
    along, inverse = f"({diff}|{move})", f"Rsqrt({q})"  # pykeops: Rsqrt(0) = 0
    # In this order numbers keep the range of phi, also for points that nearly coincide.
    bend = f"({charge}*{curvature})*((({along}*{inverse})*{inverse})*{diff})"
    both = keops_build.reduce(f"Concat(({charge}*{phi})*{along},({charge}*{phi})*{move}+{bend})", *arrays)
    return both[..., 0].clone(), both[..., 1:].clone()


def _arrays(*tensors: Tensor) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _numbers(kernel: RadialKernel, x: Tensor) -> Tensor:
    """Weights, and exponents or inverse bandwidths, (1, 2 terms): written into a formula they would lose digits."""
    pairs = [
        (weight, term.number if term.bandwidth is None else 1 / term.bandwidth) for weight, term in elementary(kernel)
    ]
    return x.new_tensor(pairs, dtype=torch.float64).to(x.dtype).reshape(1, -1)


def _mixed(kernel: RadialKernel, q: str, argument: int) -> tuple[str, str, str]:
    """k, phi and the curvature 2 q phi' of the squared distance q, their numbers at this argument."""
    terms = elementary(kernel)
    parameters = f"Var({argument},{2 * len(terms)},2)"
    k: list[str] = []
    phi: list[str] = []
    curvature: list[str] = []
    for i, (_, term) in enumerate(terms):
        weight, number = (f"Elem({parameters},{2 * i + j})" for j in range(2))
        found = _energy_distance(q) if term.code == "riesz_1" else _FORMULAS[term.name](q, number)
        for values, value in zip((k, phi, curvature), found, strict=True):
            values.append(f"({weight}*{value})")
    return f"({'+'.join(k)})", f"({'+'.join(phi)})", f"({'+'.join(curvature)})"


def _away_from_zero(q: str) -> str:
    """q with zeros replaced by one; adding zero changes nothing."""
    return f"({q}+(IntCst(1)-Sign({q})))"


def _energy_distance(q):
    phi = f"Minus(Rsqrt({q}))"
    return f"Minus(Sqrt({q}))", phi, f"Minus({phi})"


def _riesz(q, r):
    # pykeops' own powers take their exponents in single precision.
    power = f"Exp(({r}/IntCst(2)-IntCst({{}}))*Log({_away_from_zero(q)}))"
    phi = f"Minus({r}*(Sign({q})*{power.format(1)}))"
    return f"Minus(Sign({q})*{power.format(0)})", phi, f"(({r}-IntCst(2))*{phi})"


def _gaussian(q, c):
    t = f"(({q}*{c})*{c})"
    k = f"Exp(Minus({t}/IntCst(2)))"
    phi = f"Minus(({k}*{c})*{c})"
    return k, phi, f"Minus({t}*{phi})"


def _laplacian(q, c):
    k = f"Exp(Minus(Sqrt({q})*{c}))"
    inverse = f"Rsqrt({q})"
    # Of coincident points only the curvature's first summand would not vanish by itself.
    return k, f"Minus(({k}*{c})*{inverse})", f"(Sign({q})*(({k}*{c})*({c}+{inverse})))"


def _inverse_multiquadric(q, c):
    t = f"(({q}*{c})*{c})"
    k = f"Rsqrt(IntCst(1)+{t})"
    cube = f"((({k}*{k})*({k}*{c}))*{c})"
    return k, f"Minus({cube})", f"(IntCst(3)*(({t}*({k}*{k}))*{cube}))"


_FORMULAS = {
    "riesz": _riesz,
    "gaussian": _gaussian,
    "laplacian": _laplacian,
    "inverse_multiquadric": _inverse_multiquadric,
}
