"""How threads of OpenMP, among which torch divides its work on CPUs, wait for each other."""

from __future__ import annotations

import os

# GNU's OpenMP, that of torch's wheels for Linux, lets a thread that waits for others run in circles 300,000 times
# before it sleeps. Where another process needs its core, all wait for a thread that does not run: a layer took up to
# 150 times as long. After 3,000 circles it takes 2.6 times as long beside a busy process, and a seventh more alone.
SPINS = "3000"
VARIABLE = "GOMP_SPINCOUNT"
POLICY = "OMP_WAIT_POLICY"


def wait_briefly() -> None:
    """Let threads of this process sleep soon where they wait, if its user has not said how they are to wait.

    It is read when torch is imported: later it does nothing. A library must not decide this for the program that
    imports it; the commands, which are programs, do.
    """
    if not any(name in os.environ for name in (VARIABLE, POLICY)):
        os.environ[VARIABLE] = SPINS


def waiting() -> str:
    """What was said of how threads wait, in words."""
    said = [f"{name}={os.environ[name]}" for name in (VARIABLE, POLICY) if name in os.environ]
    return ", ".join(said) if said else "nothing said"
