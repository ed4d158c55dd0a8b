"""How threads of OpenMP, among which torch divides its work on CPUs, wait for each other."""

from __future__ import annotations

import os
import sys

# GNU's OpenMP, that of torch's wheels for Linux, lets a thread that waits for others run in circles 300,000 times
# before it sleeps. Where another process needs its core, all wait for one that does not run: layers took up to 150
# times as long. After 3,000 circles they take 2.6 times as long beside one busy process, and a seventh more alone.
SPINS = "3000"
VARIABLE = "GOMP_SPINCOUNT"
POLICY = "OMP_WAIT_POLICY"
# For programs of users.
ADVICE = f"beside other busy processes set OMP_NUM_THREADS=1, or {VARIABLE}={SPINS} before torch is imported"


def wait_briefly() -> None:
    """Let waiting threads of this process sleep soon, if its user has not said how they are to wait.

    That is read when torch is imported, after which this does nothing. A library must not decide it for the program
    that imports it; commands, which are programs, do.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in (VARIABLE, POLICY)):
        os.environ[VARIABLE] = SPINS


def waiting() -> str:
    """What the environment says of it, in words."""
    said = [f"{name}={os.environ[name]}" for name in (VARIABLE, POLICY) if name in os.environ]
    return ", ".join(said) if said else f"neither {VARIABLE} nor {POLICY} is set"
