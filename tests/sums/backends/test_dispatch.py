"""Which backend "auto" takes, the table of costs it goes by, and `ddeq-fast explain`."""

import json

import pytest
import torch

from ddeq_fast import Gaussian, Laplacian, Riesz
from ddeq_fast.commands.main import main
from ddeq_fast.sums import backends
from ddeq_fast.sums.backends import costs

MEMORY = {"point_bytes": 8, "number_bytes": 4}
KERNELS = {"kernels": dict.fromkeys(("riesz_1", "power", "gaussian", "laplacian", "inverse_multiquadric"), 1.0)}
# A machine on which a pair costs 10 ns dense and 1 ns compiled in every dimension, and compiling takes 9 s.
TABLE = {
    "machine": {"cpu": "a processor"},
    "threads": 1,
    "backends": {
        name: {"call": 1e-4, "first": first, "pairs": {"1": pair, "4": pair, "8": 4 * pair}, "float64": 2.0}
        | KERNELS
        | MEMORY
        for name, first, pair in (("dense", 0.0, 1e-8), ("compiled", 9.0, 1e-9), ("keops", 10.0, 1e-8))
    }
    | {"sliced": {"call": 1e-3, "directions": 64, "points": 1e-9, "grid": 1e-8, "frequencies": 1e-9} | MEMORY}
    | {"products": {"call": 2e-3, "first": 9.0, "pairs": {"9": 1e-9}, "float64": 2.0} | KERNELS}
    | {"tree": {"call": 0.01, "tree": {"riesz_1": {"3": 1e-5}}, "fields": ["riesz_1"]} | MEMORY},
}


def forget():
    for cached in (costs.table, costs._pair_seconds, costs._least):
        cached.cache_clear()


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """That machine."""
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(TABLE), encoding="utf-8")
    forget()
    monkeypatch.setattr(costs, "PATH", path)
    yield
    monkeypatch.undo()
    forget()


def taken(m, n, d=3, kernel=None, batch=1, dtype=torch.float32):
    one = torch.zeros(1, 1, 1, dtype=dtype)
    return backends.resolve("auto", one.expand(batch, m, d), one.expand(batch, n, d), kernel or Riesz(1.0))


def test_auto_compiles_where_ten_calls_save_more_than_compiling_takes(machine):
    """From 9 s / (10 calls x 9 ns) = 10^8 pairs on."""
    assert taken(9_999, 10_000) == "dense"
    assert taken(10_001, 10_000) == "compiled"
    assert taken(1_001, 1_000, batch=100) == "compiled"
    assert taken(7_100, 7_100, dtype=torch.float64) == "compiled"
    assert taken(5_100, 5_100, d=8) == "compiled" and taken(4_900, 4_900, d=8) == "dense"
    assert taken(7_000, 7_000, d=6) == "compiled", "between the dimensions that were measured"
    assert taken(7_100, 7_100, kernel=Riesz(1.0) + Gaussian(1.0)) == "compiled"
    assert taken(100_000, 100_000, d=1025) == "dense", "where it cannot"


def test_expected_calls_compile_smaller_sums(machine):
    """From 9 s / (1000 calls x 9 ns) = 10^6 pairs on, and only within."""
    with backends.expected_calls(1_000):
        assert taken(999, 1_000) == "dense" and taken(1_001, 1_000) == "compiled"
        with backends.expected_calls(1):
            assert taken(30_000, 30_000) == "dense"
        assert taken(1_001, 1_000) == "compiled"
    assert taken(1_001, 1_000) == "dense"
    with pytest.raises(ValueError, match="count must be at least 1, got 0"), backends.expected_calls(0):
        pass
    with pytest.raises(TypeError, match="count must be an integer, got str"), backends.expected_calls("10"):
        pass


def test_above_eight_dimensions_other_code_is_measured(machine):
    """A pair costs 5 d ns dense and d / 9 ns by products, and a call 1.9 ms more: from 9 s / 10 + 1.9 ms on."""
    least = (0.9 + 1.9e-3) / 44e-9
    assert taken(1, int(0.99 * least), d=9) == "dense" and taken(1, int(1.01 * least), d=9) == "compiled"
    with backends.expected_calls(10**9):  # compiling is free, calls are not
        assert taken(1, int(0.99 * 1.9e-3 / 44e-9), d=9) == "dense"
        assert taken(1, int(1.01 * 1.9e-3 / 44e-9), d=9) == "compiled"
    assert costs.call_bytes("compiled", (1, 100, 200, 10), 4, torch.device("cpu")) == 4 * (6 * 20_000 + 2 * 300 * 10)


def test_more_threads_pay_later(machine, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert taken(19_000, 20_000) == "dense"
    assert taken(21_000, 20_000) == "compiled"


def test_small_clouds_are_dense_without_a_look_at_the_kernel(machine, monkeypatch):
    monkeypatch.setattr(costs, "pair_seconds", None)
    assert taken(100, 100) == "dense"


def test_the_committed_table_is_complete():
    forget()
    for name in ("dense", "compiled", "keops"):
        for kernel in (Riesz(1.0), Riesz(0.5), Gaussian(2.0)):
            assert 0 < costs.pair_seconds(name, 5, kernel, torch.float64) < 1e-5
    assert costs.first_seconds("compiled", 3) > 0 == costs.first_seconds("dense", 3)
    assert costs.table()["machine"]["cpu"]
    for d in (3, 16, 128):
        assert taken(100_000, 100_000, d) == "compiled" and taken(10, 10, d) == "dense"


def test_beyond_the_table_cost_grows_with_the_dimension(machine):
    assert costs.pair_seconds("dense", 16, Riesz(1.0), torch.float32) == pytest.approx(8e-8)


def test_costs_of_slices(machine, monkeypatch):
    """64 directions of 2 x 8,192 points: sorted, on a grid of few frequencies, or on one of as many as points."""

    def seconds(kernel):
        return costs.call_seconds("sliced", (1, 8192, 8192, 3), kernel, torch.float32)

    for kernel, line in [
        (Riesz(1.0), 16384 * 14e-9),
        (Gaussian(1.0), 16384 * 1e-8),
        (Laplacian(1.0), 16384 * 1e-8 + 8192 * 13e-9),
        (Riesz(1.0) + Gaussian(1.0) + Riesz(0.5), 16384 * 14e-9 + 16384 * 1e-8 + 8192 * 13e-9),
    ]:
        assert seconds(kernel) == pytest.approx(1e-3 + 64 * line)
    monkeypatch.delitem(costs.table()["backends"]["sliced"], "grid")
    assert seconds(Gaussian(1.0)) is None and seconds(Riesz(1.0)) is not None


def test_explain(machine, capsys):
    assert main(["explain", "--n", "20000", "--d", "3"]) == 0
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert set(backends.names()) <= set(lines)
    assert lines["compiled"].split()[1:] == ["*", "9.4", "s", "400", "ms", "781", "KiB"]
    assert lines["dense"].split()[1:5] == ["4", "s", "4", "s"]
    assert "cannot: needs torch.distributed.init_process_group" in lines["ring"]
    assert "an estimate, not exact" in lines["sliced"] and "an estimate, not exact" in lines["tree"]
    assert lines["tree"].split()[1:5] == ["410", "ms", "410", "ms"]
    assert '"auto" takes compiled: in 10 calls it saves more time than compiling takes.' in text
    assert "measurements on a processor" in text


def test_explain_as_json(machine, capsys):
    assert main(["explain", "--n", "20000", "--d", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["targets"], told["sources"], told["dim"], told["clouds"]) == (20000, 20000, 3, 1)
    assert told["auto"] == "compiled" and told["measured_on"] == "a processor"
    costs = {cost["backend"]: cost for cost in told["backends"]}
    assert list(costs) == backends.names()
    assert costs["compiled"]["seconds"] == pytest.approx(0.4, rel=1e-3) and costs["compiled"]["first_seconds"] > 9
    assert costs["compiled"]["reason"] is None and costs["compiled"]["exact"] and not costs["sliced"]["exact"]
    assert "init_process_group" in costs["ring"]["reason"] and costs["ring"]["seconds"] is None


def test_explain_refuses(capsys):
    assert main(["explain", "--n", "0", "--d", "3", "--m", "4"]) == 2
    assert main(["explain", "--n", "5", "--d", "3", "--device", "nowhere"]) == 2
    errors = capsys.readouterr().err
    assert "n must be at least 1, got 0" in errors and "device 'nowhere' cannot be used: " in errors
    with pytest.raises(SystemExit):
        main(["explain", "--n", "5", "--d", "3", "--kernel", "cubic"])
    assert "kernel must be such as riesz:1 or gaussian:0.5" in capsys.readouterr().err
