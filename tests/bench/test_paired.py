"""Methods by turns: a line for each, ratios to the first, and refusals."""

import json

import pytest

paired = pytest.importorskip("bench.paired", reason="no benchmarks beside the tests")
from bench.cases import Case  # noqa: E402


@pytest.fixture
def small(monkeypatch):
    """One small case; dense sums and ones that are wrong."""
    monkeypatch.setattr(paired, "CASES", [Case("small", "sums", 40, 12)])
    dense = paired.METHODS["dense"]
    monkeypatch.setitem(paired.METHODS, "again", dense)
    monkeypatch.setattr(paired, "refusal", lambda case, method, device: "no" if method == "keops" else None)


def test_a_line_for_each_method_that_can(small, tmp_path, capsys):
    file = tmp_path / "rows.json"
    command = ["small-n40", "--methods", "dense", "again", "keops", "--rounds", "2", "--json", str(file)]
    assert paired.main(command) == 0
    lines = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines() if "small-n40" in line]
    assert [(case.strip(), method.strip()) for case, method, _ in lines] == [
        ("small-n40", "dense"),
        ("small-n40", "again"),
    ]
    assert float(lines[0][2]) == 1
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert [len(row["ratios"]) for row in rows] == [2, 2] and rows[0]["ratios"] == [1, 1]
    assert all(row["error"] < 1e-5 for row in rows)


def test_unknown_names(small):
    with pytest.raises(ValueError, match=r"^cases must be one of small-n40; got 'large'$"):
        paired.main(["large"])
    with pytest.raises(ValueError, match=r"^methods must be one of .*; got 'fast'$"):
        paired.main(["small-n40", "--methods", "fast"])
