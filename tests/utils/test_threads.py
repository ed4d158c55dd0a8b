"""How threads wait: said before torch is there, and only where the user has not."""

import os
import subprocess
import sys

import pytest

from ddeq_fast.utils import threads

SCRIPT = """
import os, sys
{before}
from ddeq_fast.utils import threads
threads.wait_briefly()
print(os.environ.get(threads.VARIABLE), threads.waiting(), sep="|")
"""


def said(before="", **variables):
    """What a new process says after `wait_briefly`, which this one, with torch, cannot."""
    environment = {name: value for name, value in os.environ.items() if name not in (threads.VARIABLE, threads.POLICY)}
    command = [sys.executable, "-c", SCRIPT.format(before=before)]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    return done.stdout.strip().split("|")


def test_threads_wait_briefly():
    assert said() == [threads.SPINS, f"{threads.VARIABLE}={threads.SPINS}"]


@pytest.mark.parametrize("name, value", [(threads.VARIABLE, "7"), (threads.POLICY, "ACTIVE")])
def test_what_the_user_said_stays(name, value):
    variable, words = said(**{name: value})
    assert words == f"{name}={value}" and variable == ("7" if name == threads.VARIABLE else "None")


def test_once_torch_is_there_nothing_is_said():
    assert said("import torch") == ["None", f"neither {threads.VARIABLE} nor {threads.POLICY} is set"]
