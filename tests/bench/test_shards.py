"""Tests run in several processes within a time limit."""

import pytest

shards = pytest.importorskip("bench.shards", reason="no benchmarks beside the tests")


def test_outcomes_are_counted_up_to_the_limit(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest, time\n"
        "@pytest.mark.parametrize('a', ['x y', 'z'])\n"
        "def test_good(a): pass\n"
        "def test_bad(): assert False\n"
        "def test_skipped(): pytest.skip('so')\n"
        "def test_long(): time.sleep(100)\n"
    )
    outcomes, broken = shards.run(tmp_path, ["test_some.py"], 15, processes=2)
    assert outcomes == {"passed": 2, "failed": 1, "skipped": 1, "not reached": 1}
    assert broken == ["test_some.py::test_bad"]


def test_a_broken_file_is_reported(tmp_path):
    (tmp_path / "test_broken.py").write_text("import nothing_of_that_name")
    with pytest.raises(RuntimeError, match="nothing_of_that_name"):
        shards.collect(tmp_path, ["test_broken.py"])
