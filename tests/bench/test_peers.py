"""The comparison with other packages: all compute the same, at sizes that take moments."""

import pytest
import torch

from ddeq_fast.utils.optional import available

peers = pytest.importorskip("bench.peers", reason="no benchmarks beside the tests")
layers, losses = peers.peer_layers, peers.peer_losses


@pytest.fixture(scope="module")
def given():
    return layers.setting(batch=2, points=10, particles=4, dim_z=8)


@pytest.fixture(scope="module")
def exact(given):
    return layers.reference(given)


@pytest.fixture(scope="module")
def phantom(given, exact):
    """Error of the phantom gradient at the fixed point."""
    double = given.double()
    problem, z = double.problem(), double.start
    for step in range(200 + layers.PHANTOM):
        z = problem.image(z if step > 200 else z.detach())
    return float((double.gradient(z) - exact).norm() / exact.norm())


@pytest.fixture
def once(monkeypatch):
    """Each is run once: what is tested is not how long it takes."""

    def cost(run):
        run()
        return {"seconds": 1.0, "peak_bytes": 2**20}

    monkeypatch.setattr(layers, "UNROLLED", 3)
    monkeypatch.setattr(layers, "time_and_memory", cost)
    monkeypatch.setattr(losses, "time_and_memory", cost)


def test_the_reference_is_the_gradient_through_all_steps(given, exact):
    double = given.double()
    problem, z = double.problem(), double.start
    for _ in range(200):
        z = problem.image(z)
    assert float((double.gradient(z) - exact).norm() / exact.norm()) < 1e-8


def test_a_map_that_does_not_contract_has_no_reference(given, monkeypatch):
    monkeypatch.setattr(layers, "EXACT_STEPS", 2)
    with pytest.raises(RuntimeError, match="does not come to rest in 2 evaluations"):
        layers.reference(given)


@pytest.mark.parametrize("number", range(8))
def test_layers_reach_the_same(given, exact, phantom, once, number):
    method = layers.methods(given)[number]
    if not available(method.package):
        pytest.skip(f"{method.package} is not installed")
    row = layers.measure(given, method, exact)
    assert row["evaluations"] >= 2 and row["products"] >= 1 and row["peak_bytes"] == 2**20
    if method.backward == "unrolled":
        assert row["evaluations"] == layers.UNROLLED + 1 and row["residual"] < 1
        return
    assert row["residual"] <= given.tol and row["largest"] < 0.01
    if method.backward == "phantom":
        assert row["products"] == layers.PHANTOM and row["error"] == pytest.approx(phantom, rel=0.01)
    else:
        assert row["error"] < 0.05


def test_a_peer_gets_its_loosest_tolerance_that_suffices_or_the_best(given):
    asked = []

    def build(setting, knob):
        asked.append(knob)
        z = setting.start if knob > 0.05 else setting.start * torch.nan
        return lambda: reached if knob == 0.1 else z

    problem, reached = given.problem(), given.start
    with torch.no_grad():
        for _ in range(60):
            reached = problem.image(reached)
    method = layers.Method("peer", "ift", "peer", (0.3, 0.1, 0.01), build)
    assert layers.choose(given, method) == 0.1 and asked == [0.3, 0.1]
    assert layers.choose(given, method._replace(knobs=(0.01, 0.3))) == 0.3
    assert layers.choose(given, method._replace(knobs=(7.0,))) == 7.0


@pytest.mark.parametrize("d", [2, 20])
@pytest.mark.parametrize("name", list(losses.METHODS))
def test_losses_agree(name, d, once):
    if reason := losses.refusal(name):
        pytest.skip(reason)
    if "pykeops" in losses.METHODS[name].needs:
        pytest.skip("compiling takes long")
    x, y = losses.clouds(d, 60)
    row = losses.measure(name, x, y, losses.reference(x, y))
    # geomloss takes no distance for less than 1e-4, torch.cdist takes them from products.
    assert row["error_value"] < (1e-5 if name == "ddeq_fast" else 1e-3) and row["error_gradient"] < 1e-4


def test_references_are_exact(monkeypatch):
    monkeypatch.setattr(losses, "BLOCK", 7)
    x, y = (cloud.double() for cloud in losses.clouds(3, 30))
    value, gradient = losses.reference(x, y)
    right, slope = losses.value_and_gradient("torch.cdist", x, y)
    torch.testing.assert_close(value, right, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, slope, rtol=1e-10, atol=1e-14)


def test_what_is_not_installed_is_named(given, once, monkeypatch, capsys):
    monkeypatch.setattr(peers, "available", lambda name: name == "ddeq_fast")
    monkeypatch.setattr(losses, "available", lambda name: False)
    monkeypatch.setattr(losses, "MATRICES", 20)
    assert {row["method"] for row in peers.layers(given)} == {"ddeq_fast, auto"}
    rows = peers.losses([(2, 15), (2, 30)])
    assert [(row["method"], row["n"]) for row in rows] == [("ddeq_fast", 15), ("torch.cdist", 15), ("ddeq_fast", 30)]
    out = capsys.readouterr().out
    assert "torchdeq left out: torchdeq is not installed\nsilva-networks left out: silva_networks is not" in out
    assert "KeOps, LazyTensor left out: pykeops is not installed" in out
    assert "torch.cdist, of more than 20 points left out: it keeps matrices of all pairs" in out


def test_the_command(tmp_path, given, once, monkeypatch, capsys):
    monkeypatch.setattr(layers, "setting", lambda: given)
    monkeypatch.setattr(losses, "SIZES", ((2, 15), (2, 1000)))
    for name in ("geomloss, online", "KeOps, LazyTensor"):
        monkeypatch.delitem(losses.METHODS, name)
    assert peers.main(["--only", "losses", "--largest", "100", "--json", str(tmp_path / "found.json")]) == 0
    assert "layers" not in (text := (tmp_path / "found.json").read_text()) and '"n": 15' in text
    widths = {line.count("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")}
    assert widths == {8}
    assert peers.main(["--only", "layers"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) >= 4 and {line.count("|") for line in lines} == {12}
