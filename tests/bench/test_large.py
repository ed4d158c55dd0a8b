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


def test_goals_of_sums_to_a_tolerance_and_of_nearest_points():
    tolerance = pytest.importorskip("bench.tolerance")
    row = tolerance.sums(tolerance.Goal(2, 3000))
    assert row["by"] == "sliced"
    assert 1e-6 < row["error_f"] < 0.02 and row["exact_seconds"] > 0
    assert tolerance.distance(2000)["error"] < 1e-6
    assert str(tolerance.Goal(3, 10, 1e-3)) == "tree, 1e-03"


def test_charges_of_both_clouds_cancel_on_average():
    tolerance = pytest.importorskip("bench.tolerance")
    x, v = tolerance.charged(3, 20_000)
    assert x.shape == (20_000, 3) and abs(float(v.mean())) < 0.02
    assert float(x[v < 0, 0].mean() - x[v > 0, 0].mean()) == pytest.approx(tolerance.APART, abs=0.1)
