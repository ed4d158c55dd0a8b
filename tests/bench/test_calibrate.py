"""The table of costs may be measured in part, on the machine of the rest alone."""

import json

import pytest
import torch

calibrate = pytest.importorskip("bench.calibrate", reason="no benchmarks beside the tests")


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A file with a table of this machine; measuring takes no time."""
    monkeypatch.setattr(calibrate, "MEASURES", {name: lambda: {"new": True} for name in ("dense", "sliced")})
    path = tmp_path / "costs.json"
    content = {"machine": calibrate.machine.describe(), "threads": torch.get_num_threads()}
    path.write_text(json.dumps({**content, "backends": {"dense": {"old": 1}, "sliced": {"old": 1}}}), encoding="utf-8")
    return path


@pytest.mark.parametrize("only", [["--only", "sliced"], []], ids=["a part", "all"])
def test_the_rest_is_kept(table, only):
    assert calibrate.main(["--out", str(table), *only]) == 0
    found = json.loads(table.read_text(encoding="utf-8"))["backends"]
    assert found["sliced"] == {"new": True, "point_bytes": 96, "number_bytes": 8}
    assert found["dense"] == ({"old": 1} if only else {"new": True})


def test_another_machine_is_refused(table, capsys):
    content = json.loads(table.read_text(encoding="utf-8"))
    content["machine"]["cpu"] = "another"
    table.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SystemExit):
        calibrate.main(["--out", str(table), "--only", "sliced"])
    assert "costs.json is of another machine or other versions, measure all of it" in capsys.readouterr().err
    assert json.loads(table.read_text(encoding="utf-8")) == content
