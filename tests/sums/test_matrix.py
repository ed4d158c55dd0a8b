"""Every backend against extended precision: kernels, derivatives, dtypes, dimensions and scenes that are hard to sum.

What rounding may cost, in units of eps and of the terms' magnitudes times their sensitivity to distance:

* Direct differences (d <= 8; in KeOps every d): a difference is rounded once, q = |d|^2 after d + 1 more, a kernel
  value after a few, and n terms are summed: d + n + 16. KeOps raises to a power by exp(e log q), which multiplies the
  rounding of log q by at most |log q|.
* Matrix products (d > 8): q loses (d + 4) eps of |x|^2 + |y|^2, up to 64 times q where a pair is not near; near pairs
  are summed from their differences.

An absolute error of (smallest normal number) / eps is allowed on top, for intermediate results that vanish.
"""

import itertools
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import exact
import references
from ddeq_fast import Gaussian, InverseMultiquadric, Laplacian, Riesz, potential_and_field, squared_mmd
from ddeq_fast.sums.backends.sliced import Sliced

TARGETS, SOURCES = 6, 8

UNITS = {"1e-6": 1e-6, "1e6": 1e6, "1e-12": 1e-12, "1e12": 1e12, "1e-25": 1e-25, "1e25": 1e25}
SCENES = ["plain", "offset", *UNITS, "coincident", "near 1e-6", "near 1e-12", "near 1e-15", "cancelling"] + [
    "padding 1e10",
    "padding 1e30",
    "clusters",
]


def kernels(unit):
    """Kernels by name, their bandwidths relative to the size of the cloud."""
    found = {f"riesz {r}": Riesz(r) for r in (0.5, 0.7, 1.5, 1.0)}
    for kind in (Gaussian, Laplacian, InverseMultiquadric):
        found |= {f"{kind.__name__.lower()} {s:g}": kind(s * unit) for s in (1e-3, 0.8, 1e3)}
    found["mixture"] = 0.5 * Riesz(1.0) + _scaled(unit)
    # Of one form: where numbers are compiled in, the second gets code of the first.
    for r, s in ((0.5, 1e-3), (0.7, 1.0), (1.5, 1e3)):
        found[f"mixture {r}"] = Riesz(r) + _scaled(s * unit)
    return found


def _scaled(unit):
    return -0.25 * Laplacian(0.6 * unit) + 2.0 * Gaussian(unit / 3) + 0.7 * InverseMultiquadric(1.3 * unit)


class Scene:
    """Clouds x (m, d), y (n, d), charges v, directions to differentiate along, of the dtype under test."""

    def __init__(self, name, d, dtype):
        draw = np.random.default_rng([d, SCENES.index(name)])
        normal = lambda *shape: draw.normal(size=shape) / (d**0.5 if len(shape) > 1 else 1)  # noqa: E731
        self.unit = unit = UNITS.get(name, 1.0)
        x, y, v = normal(TARGETS, d), normal(SOURCES, d), normal(SOURCES)
        aside = normal(TARGETS, d)
        aside /= np.linalg.norm(aside, axis=1, keepdims=True)
        kind, _, size = name.partition(" ")
        if kind == "offset":
            x, y = x + 1e4, y + 1e4
        elif kind == "coincident":
            y[:3], y[4] = x[:3], y[3]
        elif name == "near 1e-6":
            y[:4] = x[:4] + 1e-6 * aside[:4]
        elif kind == "near":
            x[0], y[0], y[1] = 0, float(size) * aside[0], -float(size) * aside[1]
        elif kind == "cancelling":
            y[SOURCES // 2 :] = y[: SOURCES // 2] + 1e-3 * normal(SOURCES // 2, d)
            v[SOURCES // 2 :] = -v[: SOURCES // 2]
        elif kind == "padding":
            y[-3:], v[-3:] = float(size) * np.sign(y[-3:]), 0
        elif kind == "clusters":
            y[SOURCES // 2 :] += 1e3 / d**0.5
        tensor = lambda a: torch.tensor(a, dtype=dtype)  # noqa: E731
        self.x, self.y, self.v = tensor(unit * x), tensor(unit * y), tensor(v)
        self.real = self.v != 0
        self.g = tensor(normal(TARGETS))
        self.s, self.t, self.h = (tensor(unit * normal(k, d)) for k in (TARGETS, SOURCES, TARGETS))
        self.w = tensor(normal(SOURCES)) * self.real

    def numbers(self, *names):
        return (exact.extended(getattr(self, name)) for name in names)


class Judge:
    """Compares results with exact sums and notes those that are further off than allowed."""

    def __init__(self, backend, dtype, d):
        self.backend, self.dtype, self.d = backend, dtype, d
        self.eps, self.tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
        self.wrong = []

    def pairs(self, x, y, charges, kernel):
        steps, loss = self.d + len(y) + 16, 0
        with np.errstate(divide="ignore", invalid="ignore"):
            q = np.sum((x[:, None] - y[None]) ** 2, -1)
            if self.backend == "keops":
                loss = np.where(q > 0, np.abs(np.log(q)), 0)
            elif self.d > 8:
                mass = np.abs(charges) / np.sum(np.abs(charges))
                size = [np.sum((points - mass @ y) ** 2, -1) for points in (x, y)]
                ratio = (size[0][:, None] + size[1][None]) / q
                loss = np.where(ratio < 70, ratio * (self.d + 4), 0)
        return exact.Pairs(x, y, kernel, steps=steps, loss=loss, tiny=self.tiny / self.eps)

    def check(self, what, found, expected, where=...):
        found = torch.atleast_1d(found.detach())[where]
        expected = exact.Sum(*(np.atleast_1d(part)[where] for part in expected))
        # Sums that may leave the range of the numbers are not judged.
        inside = expected.slack < torch.finfo(self.dtype).max
        found, expected = found[torch.from_numpy(inside)], exact.Sum(*(part[inside] for part in expected))
        ratio = exact.excess(found, expected, self.eps, self.tiny / self.eps)
        if ratio > 1:
            self.wrong.append((what, ratio))


def numbers_of(scene, *tensors):
    return [tensor.clone().requires_grad_() for tensor in tensors]


def judge_sums(judge, scene, kernel, backend):
    """Potential, field, first derivatives of both and second derivatives of the potential."""
    x, y, v = numbers_of(scene, scene.x, scene.y, scene.v)
    u, f = potential_and_field(x, y, kernel, charges=v, backend=backend)
    X, Y, V, g, h, s, t, w = scene.numbers("x", "y", "v", "g", "h", "s", "t", "w")
    real = scene.real.numpy()
    pairs = judge.pairs(X, Y, V, kernel)
    V2, G2 = np.broadcast_to(V, pairs.s.shape), np.broadcast_to(g[:, None], pairs.s.shape)
    W2 = np.broadcast_to(w, pairs.s.shape)
    ones = np.ones_like(V2)
    with np.errstate(invalid="ignore", over="ignore"):
        judge.check("potential", u, exact.summed(V2, pairs.value(), 1))
        judge.check("field", f, exact.summed(V2, pairs.gradient(), 1))

        dx, dy, dv = torch.autograd.grad((scene.g * u).sum(), (x, y, v), create_graph=True)
        judge.check("potential: d/dx", dx, exact.times(g, exact.summed(V2, pairs.gradient(), 1)))
        judge.check("potential: d/dy", dy, exact.times(-V, exact.summed(G2, pairs.gradient(), 0)))
        judge.check("potential: d/dv", dv, exact.summed(G2, pairs.value(), 0), real)

        move = h, 0 * Y
        fx, fy, fv = torch.autograd.grad((scene.h * f).sum(), (x, y, v))
        judge.check("field: d/dx", fx, exact.summed(V2, pairs.hessian(*move), 1))
        judge.check("field: d/dy", fy, exact.times(-V, exact.summed(ones, pairs.hessian(*move), 0)))
        judge.check("field: d/dv", fv, exact.summed(ones, pairs.slope(*move), 0), real)

        product = (scene.s * dx).sum() + (scene.t * dy).sum() + (scene.w * dv)[scene.real].sum()
        hx, hy, hv = torch.autograd.grad(product, (x, y, v))
        move = s, t
        along = exact.plus(exact.summed(V2, pairs.hessian(*move), 1), exact.summed(W2, pairs.gradient(), 1))
        judge.check("potential: Hessian, x", hx, exact.times(g, along))
        along = exact.plus(
            exact.times(-V, exact.summed(G2, pairs.hessian(*move), 0)),
            exact.times(-w, exact.summed(G2, pairs.gradient(), 0)),
        )
        judge.check("potential: Hessian, y", hy, along)
        judge.check("potential: Hessian, v", hv, exact.summed(G2, pairs.slope(*move), 0), real)


def measure(scene):
    """Exact positions and charges of the difference of the measures on x and on y, weighted by |v|."""
    X, Y, V, s, t = scene.numbers("x", "y", "v", "s", "t")
    b = np.abs(V) / np.sum(np.abs(V))
    return np.concatenate((X, Y)), np.concatenate((np.full(len(X), 1 / np.longdouble(len(X))), -b)), s, t


def judge_mmd(judge, scene, kernel, backend):
    """squared_mmd, its gradient, and its Hessian along a direction."""
    x, y = numbers_of(scene, scene.x, scene.y)
    value = squared_mmd(x, y, kernel, y_weights=scene.v.abs(), backend=backend)
    Z, W, *_ = measure(scene)
    pairs = judge.pairs(Z, Z, W, kernel)
    WW, W2 = W[:, None] * W[None], np.broadcast_to(W, pairs.s.shape)
    with np.errstate(invalid="ignore", over="ignore"):
        judge.check("squared_mmd", value, exact.summed(WW, pairs.value(), (0, 1)))
        found = torch.cat(torch.autograd.grad(value, (x, y), create_graph=True))
        judge.check("squared_mmd: gradient", found, exact.times(2 * W, exact.summed(W2, pairs.gradient(), 1)))
        moves = torch.cat((scene.s, scene.t))
        hessian = torch.cat(torch.autograd.grad((moves * found).sum(), (x, y)))
        move = exact.extended(moves), exact.extended(moves)
        judge.check("squared_mmd: Hessian", hessian, exact.times(2 * W, exact.summed(W2, pairs.hessian(*move), 1)))


def judge_forward_mode(judge, scene, kernel, backend):
    """Potential, field and squared_mmd as all inputs move."""
    X, Y, V, s, t, w = scene.numbers("x", "y", "v", "s", "t", "w")

    def sums(x, y, v):
        return potential_and_field(x, y, kernel, charges=v, backend=backend)

    _, (du, df) = torch.func.jvp(sums, (scene.x, scene.y, scene.v), (scene.s, scene.t, scene.w))
    with np.errstate(invalid="ignore", over="ignore"):
        expected = exact.tangent(judge.pairs(X, Y, V, kernel), V, s, t, w)
        judge.check("jvp of the potential", du, expected[0])
        judge.check("jvp of the field", df, expected[1])

        def discrepancy(x, y):
            return squared_mmd(x, y, kernel, y_weights=scene.v.abs(), backend=backend)

        _, change = torch.func.jvp(discrepancy, (scene.x, scene.y), (scene.s, scene.t))
        Z, W, s, t = measure(scene)
        pairs, move = judge.pairs(Z, Z, W, kernel), np.concatenate((s, t))
        terms = pairs.slope(move, move)
        judge.check("jvp of squared_mmd", change, exact.summed(W[:, None] * W[None], terms, (0, 1)))


def run(judges, backend, dtype, d, names, scenes=SCENES):
    """Everything that is wrong, a line each: by what factor an error exceeds its bound, or why a call is refused."""
    wrong = []
    for scene_name, name in itertools.product(scenes, names):
        scene = Scene(scene_name, d, dtype)
        kernel, judge = kernels(scene.unit)[name], Judge(backend, dtype, d)
        for one in judges:
            one(judge, scene, kernel, backend)
        wrong += [f"{name} | {scene_name} | {what}: {ratio:.3g}" for what, ratio in judge.wrong]
    return wrong


SUMS = (judge_sums, judge_mmd)
ALL = list(kernels(1.0))
EXPONENTS = ["riesz 0.5", "riesz 0.7", "riesz 1.5"]
# Two, as compiling takes long: the second might get the code of the first.
MIXTURES = ["mixture 0.7", "mixture 1.5"]
DTYPES = [torch.float32, torch.float64]
COMPILER = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
INTERPRETED = pytest.mark.skipif(
    torch.cuda.is_available(), reason="Triton compiles for the GPU here, clouds are on the CPU"
)


@pytest.mark.parametrize("d", [2, 3, 9, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dense(dtype, d):
    assert run(SUMS, "dense", dtype, d, ALL) == []


@COMPILER
@pytest.mark.parametrize(
    ("dtype", "d", "names"),
    [
        (torch.float32, 2, MIXTURES),
        (torch.float64, 3, EXPONENTS),
        (torch.float32, 9, ["mixture 0.7"]),
        (torch.float32, 40, ["mixture 0.7"]),
    ],
)
def test_compiled(dtype, d, names):
    assert run(SUMS, "compiled", dtype, d, names) == []


@COMPILER
def test_keops():
    pytest.importorskip("pykeops")
    assert run(SUMS, "keops", torch.float32, 9, MIXTURES) == []


@INTERPRETED
@pytest.mark.parametrize(
    ("dtype", "d", "few"),
    [(torch.float32, 3, True), (torch.float32, 3, False), (torch.float32, 9, False), (torch.float64, 3, True)],
)
def test_triton(dtype, d, few, monkeypatch):
    """The kernels for few sources and those for many. The interpreter takes a second a cell: a thin covering."""
    pytest.importorskip("triton")
    from ddeq_fast.kernels import direct

    if not few:
        monkeypatch.setattr(direct, "FEW_SOURCES", 0)
    cells = [("mixture 0.7", "near 1e-6"), ("laplacian 0.8", "near 1e-15"), ("mixture 1.5", "padding 1e30")]
    cells += [("riesz 0.5", "clusters")]
    assert [line for name, scene in cells for line in run(SUMS, "triton", dtype, d, [name], [scene])] == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [2, 3, 9])
def test_forward_mode(dtype, d):
    assert run((judge_forward_mode,), "dense", dtype, d, ALL) == []


@COMPILER
@pytest.mark.parametrize(("backend", "d"), [("compiled", 2), ("keops", 9)])
def test_forward_mode_of_compiled_code(backend, d):
    if backend == "keops":
        pytest.importorskip("pykeops")
    assert run((judge_forward_mode,), backend, torch.float32, d, MIXTURES) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [2, 9])
def test_sliced_is_an_estimate(dtype, d):
    """Within eight of its standard errors, where the sums along lines keep their digits."""
    sliced = Sliced(directions=20)
    for name in ("plain", "1e-6", "1e6", "coincident", "near 1e-6", "near 1e-15", "padding 1e10"):
        scene = Scene(name, d, dtype)
        x, y, v = (tensor[None] for tensor in (scene.x, scene.y, scene.v))
        estimate = sliced.estimate(x, y, v)
        X, Y, V = scene.numbers("x", "y", "v")
        pairs = exact.Pairs(X, Y, Riesz(1.0), steps=0)
        for found, error, terms in (
            (estimate.u, estimate.u_error, pairs.value()),
            (estimate.f, estimate.f_error, pairs.gradient()),
        ):
            expected = exact.summed(np.broadcast_to(V, pairs.s.shape), terms, 1).exact
            off = (exact.extended(found[0]) - expected) ** 2
            assert np.sqrt(off.reshape(len(X), -1).sum(1).mean()) <= 8 * float(error), name


PROCESS = """
import sys, torch
from test_matrix import judge_values, run
torch.set_num_threads(1)
wrong = run((judge_values,), "keops", torch.float64, 2, sys.argv[1:], ["plain"])
assert not wrong, wrong
"""


def judge_values(judge, scene, kernel, backend):
    """Potential and field alone."""
    u, f = potential_and_field(scene.x, scene.y, kernel, charges=scene.v, backend=backend)
    X, Y, V = scene.numbers("x", "y", "v")
    pairs = judge.pairs(X, Y, V, kernel)
    V = np.broadcast_to(V, pairs.s.shape)
    judge.check("potential", u, exact.summed(V, pairs.value(), 1))
    judge.check("field", f, exact.summed(V, pairs.gradient(), 1))


@COMPILER
def test_a_second_process_finds_right_code_in_the_cache(tmp_path):
    """In another order: KeOps's code of one exponent or bandwidth, kept on disk, must not serve another."""
    pytest.importorskip("pykeops")
    tests = references.ROOT / "tests"
    places = [str(references.ROOT), str(tests), str(tests / "sums"), os.environ.get("PYTHONPATH")]
    path = os.pathsep.join(filter(None, places))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    environment["KEOPS_CACHE_FOLDER"] = str(tmp_path)
    for order in (MIXTURES, MIXTURES[::-1]):
        command = [sys.executable, "-W", "ignore", "-c", PROCESS, *order]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
