"""Tests in several processes within a time limit: outcomes are read from what pytest has printed so far."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

_FOUND = re.compile(r"^\d+ workers? \[(\d+) items?\]", re.MULTILINE)
_ENDED = re.compile(r"^\[gw\d+\] \[ *\d+%\] (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS) (.+?) *$", re.MULTILINE)
# Files that could not be read, and tests that went down with their process, are in the closing summary alone.
_BROKEN = re.compile(r"^(ERROR|FAILED) (.+?)(?: - .*)?$", re.MULTILINE)


def run_tests(
    folder: Path, arguments: list[str], limit: float, processes: int, log: Path
) -> tuple[Counter[str], list[str]]:
    """(how many tests ended with which outcome, "not reached" included; the names of those that failed).

    arguments: of pytest, run in `folder` with the plugin pytest-xdist. limit: in seconds, collecting included. log: the
    file for what pytest prints. Raises RuntimeError with the end of that if no test was found.
    """
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-v", "-rfE"]
    command += ["-n", str(processes), "--dist", "worksteal", *arguments]
    # One process compiles for itself: torch would start as many compilers again in each.
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(max(0.1, limit))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the workers too
            process.wait()
    return read_outcomes(log.read_text(encoding="utf-8", errors="replace"))


def read_outcomes(text: str) -> tuple[Counter[str], list[str]]:
    """The same from what pytest has printed."""
    found = _FOUND.search(text)
    ended = {name: outcome.lower() for outcome, name in _ENDED.findall(text)}
    broken = {name: outcome.lower() for outcome, name in _BROKEN.findall(text)}
    broken |= {name: outcome for name, outcome in ended.items() if outcome in ("failed", "error")}
    if found is None or (int(found[1]) == 0 and not broken):
        raise RuntimeError(f"pytest runs no test: {text.strip()[-500:]}")
    outcomes = Counter((ended | broken).values())
    outcomes["not reached"] = int(found[1]) - len(ended)
    return outcomes, list(broken)
