"""Times and sizes in words: the largest unit that is held once, few digits."""

import pytest

from ddeq_fast.utils.units import duration, size


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.0, "0 us"),
        (3.21e-7, "0.32 us"),
        (1e-3, "1 ms"),
        (0.99, "990 ms"),
        (59.0, "59 s"),
        (90.0, "1.5 min"),
        (7200.0, "2 h"),
        (86400.0 * 12345, "12,000 days"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_digits_of_durations():
    assert duration(1.23456, digits=3) == "1.23 s"


@pytest.mark.parametrize("count, text", [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3 GiB")])
def test_sizes(count, text):
    assert size(count) == text
