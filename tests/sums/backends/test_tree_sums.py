"""The tree backend: within its tolerance of naive sums in float64 wherever it answers, or exact."""

import pytest
import torch

from ddeq_fast import (
    Gaussian,
    InverseMultiquadric,
    Laplacian,
    Riesz,
    field,
    potential,
    potential_and_field,
    squared_mmd,
)
from ddeq_fast.sums import backends, naive
from ddeq_fast.sums.backends import costs, tree
from ddeq_fast.sums.backends.tree import Tree

pytest.importorskip("ferreus_bbfmm")

KERNELS = [Riesz(1.0), Gaussian(0.7), Laplacian(0.5), InverseMultiquadric(0.5), Riesz(1.0) + 0.5 * Gaussian(2.0)]
N, M = 1500, 700  # cells hold up to 256 points: several levels of them


@pytest.fixture
def trees(monkeypatch):
    """Small clouds are summed by trees too, and each sum that is not is counted."""
    exact, calls = tree._exact, []
    monkeypatch.setattr(tree, "_pays", lambda x, y, kernel: True)
    monkeypatch.setattr(tree, "_exact", lambda *args: calls.append(args) or exact(*args))
    tree._warn_once.cache_clear()
    return calls


def drawn(d, kind="normal", batch=1, dtype=torch.float64):
    """Targets, sources and signed charges; some sources lie on targets, some have no charge."""
    generator = torch.Generator().manual_seed(d)
    x, y = (torch.randn(batch, n, d, generator=generator, dtype=torch.float64) for n in (M, N))
    x += 0.5
    if kind == "outliers":
        y[:, 7], y[:, 8], x[:, 3] = 1e3, -50.0, -2e3
    if kind == "two scales":
        y[:, : N // 2], x[:, : M // 2] = 1e-3 * y[:, : N // 2], 1e-3 * x[:, : M // 2]
    if kind == "line":
        x[..., 1:], y[..., 1:] = 0, 0
    if kind == "heavy tails":
        x, y = x**5, y**5
    v = torch.randn(batch, N, generator=generator, dtype=torch.float64) + 0.3
    y[:, :50], v[:, 60:90] = x[:, 100:150], 0
    return x.to(dtype), y.to(dtype), v.to(dtype)


def errors(found, expected):
    """Norm-wise relative errors of each cloud's sums, the worst."""
    return [
        float(((a.double() - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).max())
        for a, b in zip(found, expected, strict=True)
        if a is not None
    ]


def exact(x, y, v, kernel):
    return naive.evaluate(x.double(), y.double(), v.double(), kernel)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_within_the_tolerance(trees, kernel, d):
    x, y, v = drawn(d, batch=2, dtype=torch.float32)
    expected = exact(x, y, v, kernel)
    for tolerance in (1e-2, 1e-5):
        alone = Tree(tolerance).evaluate(x, y, v, kernel, True, False)
        assert not trees, "the potential is summed by trees"
        assert alone[1] is None and max(errors(alone, expected)) <= tolerance
    u, f = Tree(1e-3).evaluate(x, y, v, kernel, True, True)
    assert u.dtype == f.dtype == torch.float32 and u.shape == x.shape[:2] and f.shape == x.shape
    assert max(errors((u, f), expected)) <= 1e-3
    assert bool(trees) == (kernel in KERNELS[2:4]), "fields of these kernels are exact"


@pytest.mark.parametrize("kind", ["outliers", "two scales", "line", "heavy tails"])
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("kernel", [Riesz(1.0), Gaussian(0.1)], ids=str)
@pytest.mark.filterwarnings("ignore:the tree backend falls back:RuntimeWarning")
def test_clouds_of_other_kinds(trees, kernel, d, kind):
    x, y, v = drawn(d, kind)
    assert max(errors(Tree(1e-3).evaluate(x, y, v, kernel, True, True), exact(x, y, v, kernel))) <= 1e-3


def test_a_small_tolerance_gives_small_errors(trees):
    x, y, v = drawn(2)
    for kernel in (Riesz(1.0), Gaussian(1.0)):
        assert max(errors(Tree(1e-6).evaluate(x, y, v, kernel, True, True), exact(x, y, v, kernel))) <= 1e-6
    assert not trees


def test_coincident_points_exert_no_force(trees):
    """Of sources all at one point, more than a cell holds, with targets there."""
    y = torch.full((1, 400, 2), 0.25, dtype=torch.float64)
    y[:, 300:] += 1
    v = torch.ones(1, 400, dtype=torch.float64)
    found = Tree().evaluate(y, y, v, Riesz(1.0), True, True)
    assert max(errors(found, exact(y, y, v, Riesz(1.0)))) <= 1e-3
    u, f = Tree().evaluate(y[:, :300], y[:, :300], v[:, :300], Riesz(1.0), True, True)
    assert not u.any() and not f.any()


def test_sums_that_trees_get_wrong_are_exact_with_a_warning(trees, monkeypatch):
    x, y, v = drawn(2)
    fmm = tree._fmm
    monkeypatch.setattr(tree, "_fmm", lambda *args: tuple(part * 1.01 for part in fmm(*args)))
    with pytest.warns(RuntimeWarning, match="^the tree backend falls back to exact sums: a result was not within"):
        found = Tree(1e-3).evaluate(x, y, v, Riesz(1.0), True, True)
    assert len(trees) == 1 and max(errors(found, exact(x, y, v, Riesz(1.0)))) < 1e-10


@pytest.mark.filterwarnings("ignore:the tree backend falls back:RuntimeWarning")
def test_one_wrong_target_is_found(trees, monkeypatch):
    """Random targets would miss it."""
    x, y, v = drawn(3)
    fmm = tree._fmm

    def wrong(*args):
        u, f = fmm(*args)
        f[17] = 1e4
        return u, f

    monkeypatch.setattr(tree, "_fmm", wrong)
    assert max(errors(Tree().evaluate(x, y, v, Riesz(1.0), True, True), exact(x, y, v, Riesz(1.0)))) < 1e-10


def test_nothing_and_no_numbers(trees):
    x, y, v = drawn(2)
    u, f = Tree().evaluate(x, y, 0 * v, Riesz(1.0), True, True)
    assert not u.any() and not f.any() and u.shape == x.shape[:2]
    y[0, 3] = torch.nan
    v[0, 3] = 1.0
    assert Tree().evaluate(x, y, v, Gaussian(1.0), True, True)[0].isnan().all()
    assert len(trees) == 1, "left to exact sums"


def test_padding_far_away_does_not_matter(trees):
    x, y, v = drawn(2)
    far = y.clone()
    far[:, 60:90] = 1e12
    torch.testing.assert_close(*(Tree().evaluate(x, z, v, Riesz(1.0), True, True) for z in (y, far)))


def test_derivatives(trees):
    x, y, v = drawn(2)
    inputs = [tensor.requires_grad_() for tensor in (x, y, v)]
    pull = torch.linspace(-1, 1, M, dtype=torch.float64)
    for kernel in (Riesz(1.0), Gaussian(1.0)):
        values = [(pull * potential(x, y, kernel, charges=v, backend=name)).sum() for name in ("tree", "dense")]
        found, expected = (torch.autograd.grad(value, inputs) for value in values)
        assert max(errors(found, expected)) <= 1e-3
    few, some = x[:, :20].detach().requires_grad_(), (y[:, :20].detach(), v[:, :20].detach())
    squares = [field(few, some[0], charges=some[1], backend=name).square().sum() for name in ("tree", "dense")]
    found, expected = (torch.autograd.grad(square, few)[0] for square in squares)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


def test_discrepancies(trees):
    x, y, _ = drawn(3, dtype=torch.float32)
    torch.testing.assert_close(*(squared_mmd(x, y, backend=name) for name in ("tree", "dense")), rtol=2e-2, atol=0)


def test_small_clouds_are_exact(cloud):
    x, y = cloud(1, 30, 2), cloud(1, 40, 2)
    found, expected = (potential_and_field(x, y, backend=name) for name in ("tree", "dense"))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_trees_are_taken_where_they_pay():
    one = torch.zeros(1, 1, 1)
    for n, pays in ((300, False), (300_000, True)):
        assert tree._pays(one.expand(1, n, 3), one.expand(1, n, 3), Riesz(1.0)) == pays
    shape = 1, 300_000, 300_000, 3
    by_tree, exactly = (costs.call_seconds(name, shape, Riesz(1.0), torch.float32) for name in ("tree", "compiled"))
    assert 0 < by_tree < exactly
    laplacian = [costs.call_seconds(name, shape, Laplacian(1.0), torch.float32) for name in ("tree", "compiled")]
    assert laplacian[0] == laplacian[1], "its fields are exact"


@pytest.mark.parametrize(
    ("kernel", "d", "message"),
    [
        (Riesz(0.5), 2, r"needs exponent 1 of Riesz kernels, got Riesz\(r=0.5\)"),
        (Riesz(1.0) + Riesz(1.5), 2, "needs exponent 1 of Riesz kernels"),
        (Gaussian(1.0), 4, "needs d <= 3, got d = 4"),
    ],
    ids=["exponent", "mixture", "dimension"],
)
def test_refusals(cloud, kernel, d, message):
    x = cloud(1, 3, d)
    with pytest.raises(ValueError, match=f"^backend 'tree' cannot run this: {message}"):
        potential(x, x, kernel, backend="tree")


def test_other_refusals(cloud, monkeypatch):
    x = cloud(1, 3, 2)
    assert Tree().unsupported(x.half(), x.half(), Riesz(1.0)) == "needs float32 or float64, got torch.float16"
    assert "needs tensors on the CPU, got meta" in Tree().unsupported(x.to("meta"), x.to("meta"), Riesz(1.0))
    monkeypatch.setattr(tree, "available", lambda name: False)
    assert Tree().unsupported(x, x, Riesz(1.0)) == 'needs ferreus-bbfmm: pip install "ddeq_fast[large]"'
    with pytest.raises(ValueError, match=r"^tolerance must lie in \(1e-07, 0.1\), got 0.0$"):
        Tree(0.0)
    assert backends.resolve("auto", x, x, Riesz(1.0)) != "tree"
