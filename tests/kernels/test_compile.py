"""Machine code of the kernels, compiled for GPUs that need not be there: spills, issue slots, instructions used.

The compiler runs in a process of its own: in this one triton may have been imported as an interpreter.
"""

import json
import os
import re
import subprocess
import sys

import pytest

from ddeq_fast.sums.backends import triton
from references import ROOT

sass = pytest.importorskip("bench.sass", reason="no benchmarks beside the tests")
pytestmark = pytest.mark.skipif(sass.missing() is not None, reason=f"cannot compile: {sass.missing()}")

NVIDIA = [target for target in sass.TARGETS if target.startswith("sm_")]
# All launches are compiled for one target; for the others, as compiling takes long, those that need most registers.
WHOLE = "sm_90"
WIDEST = ["d=3", "d=8", "d=8, float64", "d=8, tangent", "d=8, tangent, float64", "nearest, d=8, masked"]
WIDEST += ["high, d=128, mixture", "high, d=1000, tangent", "direct, d=1024, tangent, float64", "nearest, d=128"]


def needs_its_triton(target):
    """With 3.7, code for sm_100 spills 8 bytes in one launch, and derivatives in high dimensions lack matrix units."""
    if target == "sm_100" and triton._version() < (3, 9):
        pytest.skip("needs Triton 3.9")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """rows(target): {launch: what `python -m bench roofline` found}, made once a target."""
    made = {}

    def make(target):
        if target not in made:
            file = tmp_path_factory.mktemp("roofline") / "rows.json"
            command = [sys.executable, "-m", "bench", "roofline", "--target", target, "--json", str(file)]
            for launch in WIDEST if target != WHOLE else []:
                command += ["--launch", launch]
            environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
            result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stderr
            made[target] = {row["launch"]: row for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}
        return made[target]

    return make


@pytest.mark.parametrize("target", sass.TARGETS)
def test_nothing_spills(target, rows):
    needs_its_triton(target)
    assert {name: row["spilled"] for name, row in rows(target).items() if row["spilled"]} == {}


@pytest.mark.parametrize("launch, most", [("d=2", 11), ("d=3", 13.5), ("d=3, potential", 10.5), ("d=3, field", 12.5)])
def test_issue_slots_a_pair(launch, most, rows):
    """The energy distance: d differences, d fma of the distance, one rsqrt, one product, 1 + d fma of the sums."""
    assert rows(WHOLE)[launch]["slots"] <= most


@pytest.mark.parametrize("d, most", [(2, 8), (3, 10.5), (8, 21)])
def test_issue_slots_a_pair_of_nearest_points(d, most, rows):
    """d differences, d fma of the square, a comparison and two selections; the rest is shared by a tile's rows."""
    names = (f"nearest, d={d}", f"nearest, d={d}, masked")
    slots = [row["slots"] for name, row in rows(WHOLE).items() if name in names]
    assert slots and max(slots) <= most


@pytest.mark.parametrize("target", NVIDIA)
def test_nothing_is_reduced_or_awaited_inside_the_loop(target, rows):
    low = {name: row for name, row in rows(target).items() if re.match(r"(nearest, )?d=\d(,|$)", name)}
    assert len(low) > (16 if target == WHOLE else 4)
    for row in low.values():
        assert not {"SHFL", "BAR", "STS", "LDS", "LDL", "STL"} & set(row["loop"])


def test_one_special_function_a_pair(rows):
    """The reciprocal square root is a single instruction, without a division or a branch around it."""
    loop = rows(WHOLE)["d=3"]["loop"]
    assert loop["MUFU"] * 12 <= sum(loop.values()) and loop["BRA"] == 1


@pytest.mark.parametrize(
    "target, product", [("sm_80", "HMMA"), ("sm_90", "HGMMA"), ("sm_100", "UTCHMMA"), ("gfx942", "v_mfma")]
)
def test_high_dimension_runs_on_matrix_units(target, product, rows):
    needs_its_triton(target)
    high = [row for name, row in rows(target).items() if name.startswith("high")]
    assert high
    for row in high:
        assert any(opcode.startswith(product) for opcode in row["opcodes"])
