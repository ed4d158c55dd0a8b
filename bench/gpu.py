"""All that needs a GPU in one command under 9 minutes: benchmarks, layers, CUDA graphs, training, tests.

Run from a checkout; the package need not be installed. torch, numpy and triton are needed. The tests also need pytest,
pytest-xdist, pytest-benchmark and hypothesis. pykeops has a column of the table where it is installed, for example with
`pip install --target FOLDER pykeops keopscore`, from wheels if the machine is offline, and PYTHONPATH=FOLDER.

What is missing, cannot run or is out of time is listed as skipped. One JSON file and one Markdown page are named
after the GPU, and written after every part, so that nothing is lost if a part crashes. The exit status is 1 if a result
was wrong or a test failed.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench import gpu_models, layer, machine, options, processes, report
from bench.cases import CASES, METHODS, Case, refusal
from bench.measure import WrongResult, graph_seconds, peak_memory, prepare, seconds
from ddeq_fast.utils.units import duration

ROOT = Path(__file__).parent.parent
# A process with a CUDA context, torch's libraries and the tests' tensors.
BYTES_A_PROCESS = 4 << 30


class Session:
    """Results so far, what was skipped and why, what failed, and the time that is left."""

    def __init__(self, minutes: float, device: str, folder: Path):
        self.device, self.folder = device, folder
        self.end = time.monotonic() + 60 * minutes
        self.kept = 0.0  # seconds that later parts need
        self.rows: list[dict] = []
        self.lines: dict[str, str] = {}
        self.skipped: list[str] = []
        self.failed: list[str] = []

    def left(self) -> float:
        """Seconds that the present part may still take."""
        return self.end - self.kept - time.monotonic()

    def cannot(self, name: str, method: str, error: Exception) -> None:
        """Note that a method cannot do something; only our own kernels must be able to."""
        (self.failed if method == "triton" else self.skipped).append(f"{name}: {_told(error)}")

    def run(self, name: str, part: Callable[[Session], None]) -> None:
        """Run a part; what goes wrong in it is noted, and does not stop the others."""
        started = time.monotonic()
        print(f"== {name}", flush=True)
        try:
            part(self)
        except Exception as error:
            self.failed.append(f"{name}: {_told(error)}")
        torch.cuda.empty_cache()  # for the next part, which may run in other processes
        print(f"   {time.monotonic() - started:.0f} s", flush=True)


def _told(error: Exception) -> str:
    """Type and first line of an error."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


def graph(session: Session) -> None:
    """One MMD value with both gradients for the classifier's latent clouds, inside a CUDA graph."""
    case = next(case for case in CASES if case.op == "mmd")
    for method in ("triton", "dense"):
        name = f"MMD and both gradients, B=64, N=10, d=128, in a graph, {method}"
        try:
            session.lines[name] = duration(graph_seconds(METHODS[method](case), case.inputs(session.device)), 3)
        except Exception as error:
            session.cannot(name, method, error)


def memory(session: Session) -> None:
    """Peak memory of exact sums beyond their inputs: linear in n."""
    for n in (65536, 262144):
        run, _ = prepare(Case("memory", "sums", n, 3), "triton", session.device)
        extra = peak_memory(run, session.device) / 2**20
        session.lines[f"memory of d=3, {n} x {n}, beyond the inputs"] = f"{extra:.1f} MiB"


def micro(session: Session) -> None:
    """Every case by every method."""
    for case in CASES:
        for method in METHODS:
            reason = refusal(case, method, session.device)
            if reason is None and session.left() < 0:
                reason = "out of time"
            if reason is None:
                _measure(session, case, method)
            elif session.device in case.devices:
                session.skipped.append(f"{case.name} by {method}: {reason}")


def _measure(session: Session, case: Case, method: str) -> None:
    """A row for one case and method, or why there is none."""
    name = f"{case.name} by {method}"
    try:
        run, error = prepare(case, method, session.device)
        peak, taken = peak_memory(run, session.device), seconds(run, session.device, 0.5)
    except WrongResult as wrong:
        session.failed.append(str(wrong))
    except Exception as failure:  # out of memory, no compiler for KeOps...
        session.cannot(name, method, failure)
    else:
        row = {"case": case.name, "family": case.family, "n": case.n, "pairs": case.pairs, "method": method}
        session.rows.append(row | {"error": error, "peak_bytes": peak, "seconds": taken})
        print(f"   {name}: {duration(taken, 3)}", flush=True)


def whole_layer(session: Session) -> None:
    """The classifier's forward pass, in float32 as one trains, and in float64 to compare results."""
    for dtype in ("float32", "float64"):
        args = layer.parser().parse_args(["--device", session.device, "--dtype", dtype, "--rounds", "3"])
        session.lines[f"layer, {dtype}"] = "\n" + layer.report(layer.measure(args), args)


def labelled(session: Session) -> None:
    """Labelled particles."""
    session.lines["labelled classifier, forward"] = gpu_models.labelled(session.device)


def to_tolerance(session: Session) -> None:
    """Large sums, exact and not."""
    for n in (65_536, 1_000_000):
        for name, line in gpu_models.to_tolerance(session.device, n).items():
            session.lines[f"potential and field, d=3, {n:,} points, {name}"] = line


def training(session: Session) -> None:
    """Throughput of training; the digits are in scikit-learn."""
    if importlib.util.find_spec("sklearn") is None:
        session.skipped.append("training: scikit-learn not installed")
        return
    session.lines["training, digits"] = gpu_models.training(session.device, "digits", 60, 60)


def tests(session: Session) -> None:
    """The tests marked `gpu`, in several processes, for most of their time is that of the compiler."""
    needed = ("pytest", "xdist", "pytest_benchmark", "hypothesis")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        session.skipped.append(f"tests: {', '.join(missing)} not installed")
        return
    fitting = torch.cuda.mem_get_info()[0] // BYTES_A_PROCESS if session.device == "cuda" else 8
    count = max(1, min(8, machine.cores(), fitting))
    log = session.folder / "gpu-tests.log"
    arguments = ["-p", "bench", "-m", "gpu", "tests"]  # as a plugin, bench makes the kernels importable
    outcomes, broken = processes.run_tests(ROOT, arguments, session.left(), count, log)
    session.lines["GPU tests"] = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items())
    session.failed += [f"test {name}" for name in broken]
    if outcomes["not reached"]:
        session.skipped.append(f"{outcomes['not reached']} tests: out of time")
    if broken:
        print(log.read_text(errors="replace")[-6000:])


# Parts with the seconds that are kept for each.
PARTS: dict[str, tuple[Callable[[Session], None], float]] = {
    "graph": (graph, 20),
    "memory": (memory, 20),
    "micro": (micro, 60),
    "layer": (whole_layer, 90),
    "labelled": (labelled, 20),
    "tolerance": (to_tolerance, 40),
    "training": (training, 60),
    "tests": (tests, 150),
}


def run_parts(session: Session, names: list[str]) -> Path:
    """Run parts in the order of PARTS, within the session's time; returns the Markdown page."""
    session.kept = sum(PARTS[name][1] for name in names)
    for name, (part, least) in PARTS.items():
        if name not in names:
            continue
        session.kept -= least
        if session.left() < least:
            session.skipped.append(f"{name}: {least:.0f} s needed, {max(session.left(), 0):.0f} left")
        else:
            session.run(name, part)
        page = write(session)
    return page


def write(session: Session) -> Path:
    """One JSON file and one Markdown page named after the GPU and the day; returns the latter."""
    described = machine.describe()
    slug = "".join(c if c.isalnum() else "-" for c in str(described["gpu"]).lower()).strip("-")
    page = session.folder / f"{slug}-{time.strftime('%Y%m%d')}.md"
    outcome = {"machine": described, "rows": session.rows, "lines": session.lines}
    outcome |= {"skipped": session.skipped, "failed": session.failed}
    report.write_json(page.with_suffix(".json"), outcome)
    text = [f"# {described['gpu']}", machine.line(described), report.table(session.rows)]
    text += [f"**{name}**: {line}" for name, line in session.lines.items()]
    for title, entries in (("Skipped", session.skipped), ("Failed", session.failed)):
        if entries:
            text += [f"## {title}", "\n".join(f"* {entry}" for entry in entries)]
    page.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    return page


def _problem() -> str | None:
    """Why nothing can be measured here, or None."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "no GPU: torch.cuda.is_available() is False; see nvidia-smi, and CUDA_VISIBLE_DEVICES"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET"):
        return "TRITON_INTERPRET is set, which keeps kernels off the GPU: unset it"
    return None


def main(argv: list[str]) -> int:
    """Run all parts; returns 0, 1 if something failed, 2 without a GPU."""
    parser = options.parser("gpu", __doc__)
    text = "folder for results (default: bench/results)"
    parser.add_argument("--out", type=Path, metavar="FOLDER", default=ROOT / "bench" / "results", help=text)
    parser.add_argument("--minutes", type=float, default=8.5, help="time to spend (default: %(default)s)")
    names = f"some of {', '.join(PARTS)} (default: all)"
    parser.add_argument("--only", nargs="+", metavar="PART", choices=PARTS, default=list(PARTS), help=names)
    args = parser.parse_args(argv)
    problem = _problem()
    if problem:
        print(f"bench gpu: error: {problem}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    session = Session(args.minutes, "cuda", args.out)
    page = run_parts(session, args.only)
    print(page.read_text(encoding="utf-8"))
    print(f"written: {page} and {page.with_suffix('.json').name}")
    return 1 if session.failed else 0
