"""The ring backend over two and four processes, each of which checks its share against one that has it all."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="its processes meet in a file")


def launch(count, folder):
    """Exit status and errors of each process; none is left running."""
    worker = Path(__file__).with_name("ring_worker.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(worker), str(folder / "store"), str(rank), str(count)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(count)
    ]
    deadline, found = time.monotonic() + 240, []
    try:
        for process in processes:
            errors = process.communicate(timeout=max(1, deadline - time.monotonic()))[1]
            found.append((process.returncode, errors))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return found


def test_sums_and_gradients_are_those_of_one_process(tmp_path):
    for status, errors in launch(2, tmp_path):
        assert status == 0, errors


def test_a_process_that_dies_is_an_error_in_the_others(tmp_path):
    """After the checks on four processes, with uneven shards."""
    *living, dead = launch(4, tmp_path)
    for status, errors in living:
        assert status == 0, errors
    assert dead[0] == 3, dead[1]
