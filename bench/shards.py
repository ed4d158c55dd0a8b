"""Tests in several processes within a time limit: outcomes are read from what pytest has printed so far."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

_PYTEST = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "--no-header"]
_OUTCOME = re.compile(r"^(\S.*::.*) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", re.MULTILINE)


def collect(folder: Path, arguments: list[str]) -> list[str]:
    """Names of the tests that `arguments` of pytest select; raises RuntimeError with what pytest says if it fails."""
    found = subprocess.run([*_PYTEST, "--collect-only", "-q", *arguments], cwd=folder, capture_output=True, text=True)
    if found.returncode not in (0, 5):  # 5: none
        raise RuntimeError(f"pytest collects nothing: {(found.stdout + found.stderr).strip()[-500:]}")
    return [line for line in found.stdout.splitlines() if "::" in line]


def run(folder: Path, arguments: list[str], limit: float, processes: int = 8) -> tuple[Counter, list[str]]:
    """(how many tests ended with which outcome, "not reached" included; the names of those that failed).

    `limit` in seconds, collecting included.
    """
    end = time.monotonic() + limit
    names = collect(folder, arguments)
    processes = max(1, min(processes, os.cpu_count() or 1, len(names)))
    with tempfile.TemporaryDirectory() as scratch:
        logs = [Path(scratch, f"{i}.log") for i in range(processes)]
        started = []
        for i, log in enumerate(logs):
            with log.open("w") as file:
                command = [*_PYTEST, "-v", *names[i::processes]]
                started.append(subprocess.Popen(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT))
        for process in started:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        text = "\n".join(log.read_text(errors="replace") for log in logs)
    ended = dict(_OUTCOME.findall(text))
    outcomes = Counter(outcome.lower() for outcome in ended.values())
    outcomes["not reached"] = len(names) - len(ended)
    broken = [name for name, outcome in ended.items() if outcome in ("FAILED", "ERROR")]
    if broken:
        print(text[-6000:])
    return outcomes, broken
