"""Progress where there is no terminal: a line of text now and then."""

import pytest

from ddeq_fast.utils import console


@pytest.mark.parametrize(("seconds", "shown", "lines"), [(0.0, True, 2), (1e6, True, 0), (0.0, False, 0)])
def test_progress_without_a_terminal(monkeypatch, capsys, seconds, shown, lines):
    """Steps that have something to say, no more often than allowed, and none where no bar is wanted."""
    monkeypatch.setattr(console, "QUIET", seconds)
    with console.Bar(5, 1, shown=shown) as bar:
        bar.step("one")
        bar.step()
        bar.step("two")
    said = capsys.readouterr().err.splitlines()
    assert said == ["step 2 of 5: one", "step 4 of 5: two"][:lines]
