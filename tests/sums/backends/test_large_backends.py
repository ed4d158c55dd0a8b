"""The compiled and the KeOps backend: against the dense one, bounded memory, and life without a compiler."""

import functools
import itertools
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddeq_fast import Gaussian, Laplacian, RadialKernel, Riesz, potential_and_field, squared_mmd
from ddeq_fast.sums.backends import compiled, keops, programs
from ddeq_fast.sums.operators import tangent

KERNELS = {
    "riesz_half": Riesz(0.5),
    "riesz_one": Riesz(1.0),
    "laplacian": Laplacian(0.9),
    "mixture": 0.5 * Riesz(1.0) + 2.0 * Gaussian(1.7) + -0.25 * Laplacian(0.6),
}
COMPILER = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(params=["compiled", "keops"])
def backend(request):
    if request.param == "keops":
        pytest.importorskip("pykeops")
    return request.param


def compare(name, kernel, x, y, v, move_x, move_y, tolerance):
    """All four sums against the dense backend in float64, norm-wise."""
    found = (
        *potential_and_field(x, y, kernel, charges=v, backend=name),
        *tangent(x, y, v, move_x, move_y, kernel, name),
    )
    x, y, v, move_x, move_y = (tensor.double() for tensor in (x, y, v, move_x, move_y))
    exact = (
        *potential_and_field(x, y, kernel, charges=v, backend="dense"),
        *tangent(x, y, v, move_x, move_y, kernel, "dense"),
    )
    for value, expected in zip(found, exact, strict=True):
        assert (value.double() - expected).norm() <= tolerance * expected.norm()


@COMPILER
@pytest.mark.parametrize("name", KERNELS)
def test_agrees_with_dense(backend, name, cloud):
    """With coincident points, padding, and sizes that fill no block."""
    if backend == "keops" and name != "mixture":
        pytest.skip("the mixture holds its formula; compiling takes long")
    x, y, v = cloud(2, 7, 3), cloud(2, 9, 3), cloud(18).view(2, 9)
    y[:, :3], v[1, 5:] = x[:, :3], 0
    compare(backend, KERNELS[name], x, y, v, cloud(2, 7, 3), cloud(2, 9, 3), 1e-12)


@COMPILER
@pytest.mark.parametrize("d", [1, 8])
def test_every_low_dimension_is_compiled(d, cloud):
    x, y, v = cloud(2, 5, d), cloud(2, 6, d), cloud(12).view(2, 6)
    compare("compiled", Gaussian(1.3), x, y, v, cloud(2, 5, d), cloud(2, 6, d), 1e-12)


@COMPILER
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
def test_a_bandwidth_is_an_argument(sigma, cloud):
    """Annealing compiles nothing anew."""
    x, y = cloud(2, 5, 2, dtype=torch.float32), cloud(2, 6, 2, dtype=torch.float32)
    potential_and_field(x, y, Gaussian(0.7), backend="compiled")
    before = programs._compiled.cache_info().currsize
    u, f = potential_and_field(x, y, Gaussian(sigma), backend="compiled")
    expected = potential_and_field(x, y, Gaussian(sigma), backend="dense")
    torch.testing.assert_close((u, f), expected, rtol=1e-5, atol=1e-6)
    assert programs._compiled.cache_info().currsize == before


@COMPILER
def test_tiles_agree(cloud, monkeypatch):
    x, y, v = cloud(2, 7, 3), cloud(2, 9, 3), cloud(18).view(2, 9)
    monkeypatch.setattr(compiled, "TILE", 16)
    monkeypatch.setattr(compiled, "SOURCES", 4)
    compare("compiled", Riesz(1.0), x, y, v, cloud(2, 7, 3), cloud(2, 9, 3), 1e-12)


@COMPILER
def test_gradients(backend, cloud):
    x, y = cloud(2, 4, 3, grad=True), cloud(2, 5, 3, grad=True)
    found = torch.autograd.grad(squared_mmd(x, y, backend=backend).sum(), (x, y), create_graph=True)
    exact = torch.autograd.grad(squared_mmd(x, y, backend="dense").sum(), (x, y), create_graph=True)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-12)
    second, expected = (torch.autograd.grad(g[0].square().sum(), x)[0] for g in (found, exact))
    torch.testing.assert_close(second, expected, rtol=1e-9, atol=1e-11)


@COMPILER
def test_large_clouds_take_no_matrix(cloud):
    """A matrix of 20,000 x 20,000 pairs takes 1.6 GB."""
    x, v = cloud(20_000, 2, dtype=torch.float32), cloud(20_000).float()
    potential_and_field(x[:100], x[:100], charges=v[:100], backend="compiled")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    u, f = potential_and_field(x, x, charges=v, backend="compiled")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    exact = potential_and_field(x[:50].double(), x.double(), charges=v.double(), backend="dense")
    for value, expected in zip((u[:50], f[:50]), exact, strict=True):
        assert (value - expected).norm() <= 2e-6 * expected.norm()


@pytest.mark.parametrize("d", [2, 9])
def test_no_sequence_of_shapes_compiles_too_often(d, cloud, monkeypatch):
    """Dynamo refuses to compile one function more than eight times; traced here, but not compiled."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    programs._compiled.cache_clear()
    kernel = Gaussian(0.9)
    for dtype in (torch.float32, torch.float64):
        for batch, m, n in itertools.product((1, 2, 3), repeat=3):
            x, y = cloud(batch, m, d, dtype=dtype), cloud(batch, n, d, dtype=dtype)
            with torch.set_grad_enabled(n > m):
                found = potential_and_field(x, y, kernel, backend="compiled")
            expected = potential_and_field(x, y, kernel, backend="dense")
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    programs._compiled.cache_clear()


@pytest.mark.parametrize("d", [3, 12])
def test_without_a_compiler_dense_answers_after_one_warning(d, cloud, monkeypatch):
    def no_compiler(*_, **__):
        def program(*_):
            raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no C++ compiler"), None)

        return program

    programs._warn_once.cache_clear()
    monkeypatch.setattr(programs, "_compiled", no_compiler)
    x, y = cloud(2, 4, d), cloud(2, 5, d)
    with pytest.warns(RuntimeWarning, match=r"^the compiled backend falls back to dense: ") as caught:
        found = [potential_and_field(x, y, backend="compiled") for _ in range(2)][1]
    assert len(caught) == 1
    torch.testing.assert_close(found, potential_and_field(x, y, backend="dense"), rtol=0, atol=0)
    programs._warn_once.cache_clear()


class Own(RadialKernel):
    """A kernel that only plain PyTorch can evaluate."""


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "kernel", "reason"),
    [
        ("compiled", (3, 1025), torch.float32, Riesz(), "needs d <= 1024, got d = 1025"),
        ("compiled", (3, 2), torch.float16, Riesz(), "needs float32 or float64, got torch.float16"),
        ("keops", (3, 2), torch.bfloat16, Riesz(), "needs float32 or float64, got torch.bfloat16"),
        ("compiled", (3, 2), torch.float32, Own(), "has no code for the kernel Own"),
        ("keops", (3, 2), torch.float32, Own(), "has no formula for the kernel Own"),
    ],
)
def test_refusals(name, shape, dtype, kernel, reason):
    if name == "keops":
        pytest.importorskip("pykeops")
    x = torch.zeros(shape, dtype=dtype)
    with pytest.raises(ValueError, match=rf"^backend '{name}' cannot run this: {reason}"):
        potential_and_field(x, x, kernel, backend=name)


def test_keops_says_what_it_lacks(monkeypatch):
    x = torch.zeros(1, 3, 2)
    monkeypatch.setattr(keops, "available", lambda name: False)
    assert keops.unsupported(x, x, Riesz()).startswith("pykeops is not installed: pip install")
    monkeypatch.undo()
    pytest.importorskip("pykeops")
    monkeypatch.setattr(keops.shutil, "which", lambda name: None)
    assert keops.unsupported(x, x, Riesz()).startswith("pykeops needs a C++ compiler")


# Numbers of a kernel are arguments of compiled code, not part of it.
EXPONENTS = """
import sys, torch
from ddeq_fast import Gaussian, Riesz, potential_and_field
torch.set_num_threads(1)
x, y = torch.linspace(-1, 1, 33).view(11, 3), torch.linspace(-1.5, 2, 39).view(13, 3)
for number in map(float, sys.argv[1:]):
    for kernel in (Riesz(number), 0.5 * Riesz(number) + number * Gaussian(number)):
        found = potential_and_field(x, y, kernel, backend="compiled")
        exact = potential_and_field(x.double(), y.double(), kernel, backend="dense")
        for value, expected in zip(found, exact):
            error = float((value - expected).norm() / expected.norm())
            assert error < 1e-5, (kernel, error)
"""


@COMPILER
def test_no_number_is_kept_from_an_earlier_call_or_process(tmp_path):
    """Each number is the first in some process, which leaves its code to the next."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    for numbers in (["0.6", "0.7", "1.7"], ["1.7", "0.9", "0.6"]):
        command = [sys.executable, "-W", "ignore", "-c", EXPONENTS, *numbers]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("kind", ["a file", "not a folder to write to"])
def test_without_a_place_for_code_the_dense_backend_answers(kind, tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "cache" if kind == "a file" else Path("/proc/self")
    if not folder.parent.exists():
        pytest.skip("needs /proc")
    code = "import torch; from ddeq_fast import potential; print(float(potential(torch.ones(2, 1), torch.zeros(3, 1)"
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", f"{code}, backend='compiled')[0]))"]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "-3.0", result.stderr
    assert result.stderr.count("the compiled backend falls back to dense: ") == 1 and str(folder) in result.stderr
