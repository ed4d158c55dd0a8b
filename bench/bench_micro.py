"""The registry of cases as pytest-benchmark tests; run by `python -m bench micro`."""

import pytest

from bench.cases import CASES, METHODS, refusal
from bench.measure import WrongResult, peak_memory, prepare, synchronise


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(benchmark, case, method, bench_device):
    """Verified, then timed by pytest-benchmark; error and peak memory go along."""
    reason = refusal(case, method, bench_device)
    if reason is not None:
        pytest.skip(reason)
    try:
        run, error = prepare(case, method, bench_device)
    except WrongResult as wrong:
        pytest.fail(str(wrong), pytrace=False)
    benchmark.extra_info |= {"case": case.name, "family": case.family, "n": case.n, "pairs": case.pairs}
    benchmark.extra_info |= {"method": method, "error": error, "peak_bytes": peak_memory(run, bench_device)}

    def finished():
        run()
        synchronise(bench_device)

    benchmark(finished)
