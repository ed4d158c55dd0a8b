"""`python -m bench gpu`: what it does with its time, with parts that fail, and with tests in several processes."""

import json

import pytest
import torch

gpu = pytest.importorskip("bench.gpu", reason="no benchmarks beside the tests")

from bench import cases, processes  # noqa: E402


@pytest.fixture
def session(tmp_path):
    """One minute on the CPU."""
    return gpu.Session(1.0, "cpu", tmp_path)


def test_parts_within_the_time(session, monkeypatch):
    """What later parts need is kept for them; a part that fails or does not fit stops nothing."""
    left = {}

    def first(session):
        left["first"] = session.left()
        session.lines["speed"] = "fast"

    def fails(session):
        raise ValueError("no luck\nat all")

    parts = {"first": (first, 10), "fails": (fails, 20), "long": (pytest.fail, 100), "unasked": (pytest.fail, 1)}
    monkeypatch.setattr(gpu, "PARTS", parts)
    session.end += 60
    page = gpu.run_parts(session, ["first", "fails"])
    assert 60 < left["first"] <= 100
    assert session.failed == ["fails: ValueError: no luck"] and session.skipped == []
    session.end -= 60
    page = gpu.run_parts(session, ["long"])
    assert len(session.skipped) == 1 and session.skipped[0].startswith("long: 100 s needed, ")
    text, content = page.read_text(), json.loads(page.with_suffix(".json").read_text())
    for expected in ("**speed**: fast", "* fails: ValueError: no luck", f"* {session.skipped[0]}"):
        assert expected in text
    assert content["failed"] == session.failed and content["machine"]["torch"] == torch.__version__


def test_only_our_own_method_must_be_able_to_run(session, monkeypatch):
    def broken(case):
        raise RuntimeError

    def wrong(case):
        return lambda *tensors: tuple(1.01 * part for part in cases.METHODS["dense"](case)(*tensors))

    methods = {"dense": cases.METHODS["dense"], "keops": broken, "triton": broken, "compiled": wrong}
    monkeypatch.setattr("bench.measure.METHODS", methods)
    case = cases.Case("small", "sums", 8, 3)
    for method in methods:
        gpu._measure(session, case, method)
    assert [row["method"] for row in session.rows] == ["dense"]
    assert session.skipped == ["small-n8 by keops: RuntimeError: "]
    assert session.failed[0] == "small-n8 by triton: RuntimeError: "
    assert session.failed[1].startswith("small-n8 by compiled: relative error 1.0e-02")


def test_without_a_gpu_it_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "results")]) == 2
    assert "bench gpu: error: " in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


TESTS = """
import pytest
@pytest.mark.parametrize("a", ["x y", "z"])
def test_good(a): pass
def test_bad(): assert False, "1 - 1"
def test_skipped(): pytest.skip("so")
@pytest.fixture
def broken(): raise ValueError
def test_error(broken): pass
"""


def test_outcomes_of_tests_in_two_processes(tmp_path):
    pytest.importorskip("xdist")
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_broken.py").write_text("import nothing_of_that_name")
    log = tmp_path / "log"
    outcomes, broken = processes.run_tests(tmp_path, ["."], 300, 2, log)
    assert outcomes == {"passed": 2, "failed": 1, "skipped": 1, "error": 2, "not reached": 0}
    assert sorted(broken) == ["test_broken.py", "test_some.py::test_bad", "test_some.py::test_error"]
    assert "nothing_of_that_name" in log.read_text()


def test_outcomes_so_far():
    text = (
        "8 workers [4 items]\n\ntest_a.py::test_a[x y] \n"
        "[gw1] [ 25%] PASSED test_a.py::test_a[x y] \n[gw0] [ 50%] FAILED test_a.py::test_b \ntest_a.py::test_c \n"
    )
    assert processes.read_outcomes(text) == ({"passed": 1, "failed": 1, "not reached": 2}, ["test_a.py::test_b"])


def test_no_tests(tmp_path):
    pytest.importorskip("xdist")
    with pytest.raises(RuntimeError, match=r"(?s)^pytest runs no test: .*no tests ran"):
        processes.run_tests(tmp_path, ["no_such_file.py"], 300, 1, tmp_path / "log")
    with pytest.raises(RuntimeError, match=r"^pytest runs no test"):
        processes.run_tests(tmp_path, ["."], 0.0, 1, tmp_path / "log")
