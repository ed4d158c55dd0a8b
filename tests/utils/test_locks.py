"""Locks keep others out until their process ends, however that comes."""

import subprocess
import sys

import pytest

from ddeq_fast.utils import locks

HOLD = """
import sys
from pathlib import Path
from ddeq_fast.utils.locks import alone
with alone(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_excludes_until_its_process_dies(tmp_path):
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(locks.InUse, match=f"^the box is in use by process {holder.pid} on "),
            locks.alone(path, "the box"),
        ):
            pass
        holder.kill()
        holder.wait()
    assert path.exists()
    with locks.alone(path, "the box"), pytest.raises(locks.InUse), locks.alone(path, "the box"):
        pass
    assert not path.exists()
