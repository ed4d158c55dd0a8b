"""Options of the benchmarks."""

import pytest


def pytest_addoption(parser):
    parser.addoption("--bench-device", default="cpu")


@pytest.fixture(scope="session")
def bench_device(request):
    """The device to measure on."""
    return request.config.getoption("--bench-device")
