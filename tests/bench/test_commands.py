"""`python -m bench`: every command is listed, explains itself and refuses what it does not know."""

import pytest

main = pytest.importorskip("bench.__main__", reason="no benchmarks beside the tests")


def test_the_list(capsys):
    assert main.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in main.COMMANDS:
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert line.endswith(".") and len(line) <= 120


@pytest.mark.parametrize("name", main.COMMANDS)
def test_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main([name, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and text.startswith(f"usage: python -m bench {name} ")
    assert main._summary(name) in text
    for line in text.splitlines():
        words = line.split(maxsplit=1)
        assert not words or not words[0].startswith("--") or len(words) == 2, f"{line} is not explained"


def test_an_unknown_command(capsys):
    assert main.main(["fast"]) == 2
    assert "COMMAND must be one of layer, " in capsys.readouterr().err


def test_a_file_that_is_not_there_is_no_traceback(capsys, tmp_path):
    assert main.main(["study", str(tmp_path / "no"), "--only", "Polyak"]) == 2
    assert "bench study: error: " in capsys.readouterr().err
