"""Kernels as text: what `str` writes `parse` reads, every digit of it, on the command line as in operators."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddeq_fast import Gaussian, InverseMultiquadric, Laplacian, Mixture, Riesz
from ddeq_fast.sums.encoding import decode, encode
from ddeq_fast.sums.text import parse

positive = st.floats(1e-99, 1e99)
elementary = st.one_of(
    st.builds(Riesz, st.floats(1e-10, 2, exclude_max=True)),
    *(st.builds(kind, positive) for kind in (Gaussian, Laplacian, InverseMultiquadric)),
)
weights = st.floats(-1e99, 1e99)


@given(st.lists(st.tuples(weights, elementary), min_size=2, max_size=4))
def test_mixtures_survive(terms):
    kernel = Mixture(tuple(terms))
    assert parse(str(kernel)) == kernel == decode(encode(kernel))


@given(elementary)
def test_elementary_kernels_survive(kernel):
    assert parse(str(kernel)) == kernel == decode(encode(kernel))


def test_text(kernel):
    assert encode(kernel) == str(kernel)
    assert str(Riesz(1.0)) == "riesz:1" and str(Gaussian(0.5)) == "gaussian:0.5"
    assert str(Riesz(1.5) + -2 * Laplacian(1e-20)) == "riesz:1.5 + -2*laplacian:1e-20"


@pytest.mark.parametrize(
    "text, kernel",
    [
        ("riesz", Riesz(1.0)),
        ("Gaussian:0.5", Gaussian(0.5)),
        ("riesz:1.5 + 0.5*gaussian:2e-1", Riesz(1.5) + 0.5 * Gaussian(0.2)),
        ("riesz:1.5+1e+2*gaussian:1E+1", Riesz(1.5) + 100 * Gaussian(10)),
        ("-2 * riesz:1", -2 * Riesz(1.0)),
        (" .5*inverse_multiquadric:2. ", 0.5 * InverseMultiquadric(2)),
    ],
)
def test_kernels_as_people_write_them(text, kernel):
    assert parse(text) == kernel


@pytest.mark.parametrize(
    "text",
    [
        "",
        "riesz:",
        "riesz:1.2.3",
        "gaussian:-1",
        "2*",
        "+riesz",
        "riesz 1",
        "riesz+",
        "own:3",
        "riesz:nan",
        "riesz:0x1",
    ],
)
def test_no_kernel(text):
    with pytest.raises(ValueError, match=r"^kernel must be such as riesz:1 or gaussian:0.5, of riesz, gaussian, "):
        parse(text)


def test_numbers_out_of_range():
    with pytest.raises(ValueError, match=r"^r must lie in \(0, 2\), got 3.0$"):
        parse("riesz:3")
    with pytest.raises(ValueError, match=r"^sigma must lie in"):
        parse("riesz + gaussian:0")
