"""KeOps' compiled formulas: shared by threads and processes, broken on disk, and a cache folder that is no use."""

import itertools
import os
import shutil
import subprocess
import sys

import pytest
import torch

import references
from ddeq_fast import Gaussian, Laplacian, Riesz, kde_entropy
from ddeq_fast.sums.backends import dense, keops

pytest.importorskip("pykeops")
pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
# Several threads call one formula for the first time; what one prints meanwhile must arrive.
THREADS = r"""
import sys, threading, torch
from ddeq_fast import Gaussian, potential
stdout, found, failed = sys.stdout, {}, []

def call(i):
    try:
        sys.stdout.write(f"line {i}\n")
        x = torch.linspace(0, 1 + i, 12, dtype=torch.float64).view(6, 2)
        for _ in range(20):
            u = potential(x, x, Gaussian(1 / 3), backend="keops")
            error = (u - potential(x, x, Gaussian(1 / 3), backend="dense")).abs().max()
            if error > 1e-14:
                failed.append((i, float(error)))
        sys.stdout.write(f"line {i}\n")
    except Exception as error:
        failed.append((i, repr(error)))

threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
assert not failed, failed
assert sys.stdout is stdout
"""
PRINTED = sorted(f"line {i}" for i in range(4) for _ in range(2))


def start(code, **environment):
    path = os.pathsep.join(filter(None, [str(references.ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def printed(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return sorted(out.splitlines())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cache folder in which two processes, of four threads each, have compiled the same formula at once."""
    folder = tmp_path_factory.mktemp("keops")
    for process in [start(THREADS, KEOPS_CACHE_FOLDER=str(folder)) for _ in range(2)]:
        assert printed(process) == PRINTED
    return folder


def libraries(folder):
    found = [path for path in folder.rglob("pykeops_cpp_*") if path.suffix not in (".cpp", ".sha256")]
    assert found
    return found


def test_a_compiled_formula_cut_short_is_compiled_again(folder):
    """And so are pykeops' own lists."""
    for path in libraries(folder):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    for path, kept in zip(sorted(folder.rglob("*_cache.pkl")), (0, 20), strict=True):
        path.write_bytes(path.read_bytes()[:kept])
    assert printed(start(THREADS, KEOPS_CACHE_FOLDER=str(folder))) == PRINTED


def test_a_whole_formula_is_not_compiled_again(folder):
    before = {path: path.stat().st_mtime_ns for path in libraries(folder)}
    assert printed(start(THREADS, KEOPS_CACHE_FOLDER=str(folder), CXX="false")) == PRINTED
    assert {path: path.stat().st_mtime_ns for path in libraries(folder)} == before


REFUSED = """
import torch
from ddeq_fast import Gaussian, potential
for _ in range(2):
    try:
        potential(torch.zeros(3, 2), torch.zeros(3, 2), Gaussian(), backend="keops")
    except ValueError as error:
        print(error)
"""


@pytest.mark.parametrize("below", ["file", "file/folder"])
def test_a_cache_that_is_no_folder_is_named(tmp_path, below):
    (tmp_path / "file").write_text("")
    found = printed(start(REFUSED, KEOPS_CACHE_FOLDER=str(tmp_path / below)))
    assert len(found) == 2
    for message in found:
        assert message.startswith("backend 'keops' cannot run this: pykeops cannot use its cache folder ")
        assert str(tmp_path / "file") in message and "set KEOPS_CACHE_FOLDER" in message


def test_a_compiler_that_fails_is_told_with_the_folder(tmp_path):
    found = printed(start(REFUSED, KEOPS_CACHE_FOLDER=str(tmp_path), CXX="false"))
    assert len(found) == 2
    for message in found:
        assert message.startswith(f"backend 'keops' cannot compile or load a formula in its cache folder {tmp_path}")


@pytest.mark.parametrize(
    ("d", "dtype", "kernel"),
    [(1, torch.float32, Riesz(1.0)), (3, torch.float64, 0.5 * Riesz() + 2.0 * Gaussian(1.7) + -0.25 * Laplacian(0.6))],
)
def test_batches_targets_and_sources_of_one(d, dtype, kernel, cloud):
    """pykeops drops axes of one, or takes such a cloud for parameters."""
    tolerance = 50 * torch.finfo(dtype).eps
    for batch, m, n in itertools.product((1, 2), repeat=3):
        x, s = cloud(batch, m, d, dtype=dtype), cloud(batch, m, d, dtype=dtype)
        y, t, v = cloud(batch, n, d, dtype=dtype), cloud(batch, n, d, dtype=dtype), cloud(batch * n).view(batch, n)
        inputs = x, y, v.to(dtype)
        found = *keops.evaluate(*inputs, kernel, True, True), *keops.tangent(*inputs, s, t, kernel)
        expected = *dense.evaluate(*inputs, kernel, True, True), *dense.tangent(*inputs, s, t, kernel)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_entropy_by_halves_of_one_point(n, cloud):
    x = cloud(2, n, 3)
    found = kde_entropy(x, 1.0, backend="keops")
    torch.testing.assert_close(found, kde_entropy(x, 1.0, backend="dense"), rtol=1e-14, atol=1e-14)
