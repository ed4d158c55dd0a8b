"""`ddeq-fast completion`: what a shell makes of it."""

import shutil
import subprocess

import pytest

from ddeq_fast.commands.main import main

pytest.importorskip("shtab")


def completed(script, *words):
    """What bash offers for the last word."""
    line = " ".join(words)
    asked = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE={line!r}; _shtab_ddeq_fast"
    command = ["bash", "-c", f"{script}\n{asked}\necho ${{COMPREPLY[@]}}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_and_values(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert completed(script, "ddeq-fast", "a") == ["audit"]
    assert "--preset" in completed(script, "ddeq-fast", "train", "--pre")
    assert completed(script, "ddeq-fast", "train", "--preset", "dig") == ["digits"]


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells(shell, capsys):
    assert main(["completion", shell]) == 0
    assert "ddeq-fast" in capsys.readouterr().out


def test_unknown_shells_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["completion", "fish"])
    assert "invalid choice: 'fish'" in capsys.readouterr().err
