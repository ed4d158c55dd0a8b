"""The study of large clouds: every method sums the same, and what was measured is drawn."""

import pytest
import torch

from ddeq_fast import potential_and_field

large = pytest.importorskip("bench.large", reason="no benchmarks beside the tests")


@pytest.mark.parametrize("method", [*large.SIZES])
def test_methods_agree(method, cloud):
    if reason := large.refusal(method):
        pytest.skip(reason)
    if method in ("keops", "compiled"):
        pytest.skip("compiling takes long, and these are tested as backends")
    x, v = cloud(300, 3, dtype=torch.float32), cloud(300).abs().float() + 0.1
    exact = potential_and_field(x.double(), x.double(), charges=v.double(), backend="dense")
    for found, right in zip(large.sums(method, x, v), exact, strict=True):
        assert float((found.detach() - right).norm() / right.norm()) < (0.02 if method == "sliced" else 1e-5)


def test_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    sizes = [("tree", 1000), ("tree", 10_000), ("sliced", 1000)]
    rows = [{"method": name, "n": n, "seconds": n / 1e6, "peak_bytes": n, "error": 1e-4} for name, n in sizes]
    assert large.slope(rows, "tree") == pytest.approx(1.0)
    large.plot(rows, tmp_path / "large.png")
    assert (tmp_path / "large.png").read_bytes().startswith(b"\x89PNG")


def test_lines_by_grid_and_by_finufft():
    pytest.importorskip("finufft")
    nufft = pytest.importorskip("bench.nufft")
    for kernel in nufft.KERNELS:
        rows = nufft.measure(kernel, 500)
        assert [row["by"] for row in rows] == ["grid", "finufft"]
        assert all(0 < row["error"] < 2e-5 for row in rows)
