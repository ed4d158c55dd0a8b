"""Machine code of the Triton kernels, compiled for a named GPU without one: registers, spills, issue slots of loops."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}


def missing() -> str | None:
    """What is not there to compile kernels and read them, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None if _cuobjdump().exists() else f"{_cuobjdump()} is missing"


def _cuobjdump() -> Path:
    """The disassembler that comes with Triton."""
    folder = Path(importlib.util.find_spec("triton").origin).parent
    return folder / "backends" / "nvidia" / "bin" / "cuobjdump"


class _Driver:
    """Stands in for the driver of a GPU that is not there: kernels are compiled for it, and not run."""

    def __init__(self, target):
        self.target = target

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return str(self.target)  # keys the caches of compiled kernels

    def get_current_stream(self, device):
        return 0


@contextlib.contextmanager
def compiling(target: str):
    """Launches inside compile for `target`, a key of TARGETS, instead of running; yields the list of `Code` made.

    Call launchers with tensors on device "meta", whose shapes and dtypes select the same code as real ones.
    Raises RuntimeError where TRITON_INTERPRET made triton an interpreter when it was imported.
    """
    import triton

    if not isinstance(triton.language.standard.cdiv, triton.JITFunction):
        raise RuntimeError("triton was imported with TRITON_INTERPRET=1: it compiles nothing")
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    found: list[Code] = []
    run = triton.JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        found.append(Code(kernel, kwargs))
        return kernel

    before = dict(vars(driver))  # asking for the active driver would fail where there is no GPU
    driver.set_active(_Driver(GPUTarget(*TARGETS[target])))
    triton.JITFunction.run = compile_only
    try:
        yield found
    finally:
        triton.JITFunction.run = run
        vars(driver).update(before)


@dataclass(frozen=True)
class Loop:
    """A loop without loops inside: its instructions by opcode, such as {"FFMA": 112, "MUFU": 16}."""

    opcodes: Counter

    @property
    def slots(self) -> int:
        """Instructions a warp issues in one round."""
        return sum(self.opcodes.values())


class Code:
    """One compiled kernel."""

    def __init__(self, kernel, options):
        self.name = kernel.metadata.name
        self.options = {key: value for key, value in options.items() if key.isupper()}
        self.warps, self.warp_size = kernel.metadata.num_warps, kernel.metadata.target.warp_size
        self.shared = kernel.metadata.shared
        self._asm = kernel.asm

    @property
    def is_sum(self) -> bool:
        """Whether it runs over pairs, unlike kernels that prepare its inputs."""
        return "BLOCK_M" in self.options

    def resources(self) -> tuple[int, int]:
        """Registers a thread, and bytes a thread spilled or kept on a stack."""
        if "amdgcn" in self._asm:
            text = self._asm["amdgcn"]
            number = {key: int(value) for key, value in re.findall(r"\.(\w+):\s+(\d+)$", text, re.MULTILINE)}
            spilled = 4 * number["vgpr_spill_count"] + number["private_segment_fixed_size"]
            return number["vgpr_count"], spilled
        number = dict(re.findall(r"(\w+):(\d+)", self._dump("--dump-resource-usage")))
        return int(number["REG"]), int(number["STACK"]) + int(number["LOCAL"])

    def instructions(self) -> list[tuple[int, str]]:
        """(address, SASS instruction) in order of address; NVIDIA only."""
        lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", self._dump("--dump-sass"))
        return [(int(address, 16), text.strip()) for address, text in lines]

    def opcodes(self) -> Counter:
        """How often each opcode occurs in the whole kernel."""
        if "amdgcn" in self._asm:
            return Counter(re.findall(r"^\s+([vsdbfg]\w*_\w+)", self._asm["amdgcn"], re.MULTILINE))
        return _count(self.instructions())

    def loops(self) -> list[Loop]:
        """Innermost loops, by the backward branches."""
        code = self.instructions()
        spans = [(int(m[1], 16), here) for here, text in code if (m := re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text))]
        spans = [(target, here) for target, here in spans if target < here]  # not the trap that ends every kernel
        inner = [s for s in spans if not any(s != o and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
        return [Loop(_count((a, t) for a, t in code if first <= a <= end)) for first, end in inner]

    def main_loop(self) -> Loop:
        """The longest innermost loop."""
        return max(self.loops(), key=lambda loop: loop.slots)

    def pairs_per_thread(self) -> float:
        """(target, source) pairs that a thread deals with in one round of the main loop."""
        sources = self.options.get("BLOCK_N") or self.options["UNROLL"]
        return self.options["BLOCK_M"] * sources / (self.warps * self.warp_size)

    def slots_per_pair(self) -> float:
        """Instructions of the main loop that a thread issues for a pair."""
        return self.main_loop().slots / self.pairs_per_thread()

    def _dump(self, option: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernel.cubin"
            cubin.write_bytes(self._asm["cubin"])
            return subprocess.run([_cuobjdump(), option, cubin], capture_output=True, text=True, check=True).stdout


def _count(code) -> Counter:
    words = (re.sub(r"^@!?U?P\w+\s+", "", text).split()[0] for _, text in code)
    return Counter(word.split(".")[0] for word in words)
