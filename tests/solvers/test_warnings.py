"""A `ConvergenceWarning` points at the line of the caller, from wherever it is issued."""

import _thread
import sys
import time
import warnings

import pytest
import torch

from ddeq_fast.gradients import Bilevel, ImplicitFunction
from ddeq_fast.models import DDEQ, Classifier
from ddeq_fast.solvers import Anderson, ConvergenceWarning, Pushforward, solve
from ddeq_fast.utils.warning import warn
from problems import affine, affine_context, small_transport


@pytest.fixture
def brief(cloud):
    """(problem, start) that two steps do not solve."""
    return Pushforward(affine, affine_context([0.5, 0.8, 0.9])), cloud(3, 4, 3)


def line():
    """The number of the line that calls it."""
    return sys._getframe(1).f_lineno


def assert_points_here(caught, number):
    assert [(warning.filename, warning.lineno) for warning in caught] == [(__file__, number)]


def test_from_solve(brief):
    with pytest.warns(ConvergenceWarning) as caught:
        _, here = solve(*brief, "anderson", max_steps=2), line()
    assert_points_here(caught, here)


def test_through_a_function_in_a_context(brief):
    @torch.no_grad()
    def solution():
        return solve(*brief, "auto", max_steps=2), line()

    with pytest.warns(ConvergenceWarning) as caught:
        _, here = solution()
    assert_points_here(caught, here)


@pytest.mark.parametrize(
    "model", [DDEQ, lambda *args, **options: Classifier(*args, 2, **options)], ids=["ddeq", "classifier"]
)
def test_from_a_layer(cloud, model):
    model, x = model(small_transport(), solver="anderson", max_steps=1).double(), cloud(2, 5, 2)
    with pytest.warns(ConvergenceWarning) as caught:
        _, here = model(x), line()
    assert_points_here(caught, here)


@pytest.mark.parametrize(
    "backward", [ImplicitFunction(max_steps=1, tol=1e-14), Bilevel(max_steps=1, tol=1e-9)], ids=["ift", "bilevel"]
)
def test_from_a_backward_pass(cloud, backward):
    layer = DDEQ(small_transport(), 4, solver=Anderson(tol=1e-3), backward=backward).double()
    loss = layer(cloud(2, 5, 2)).particles.square().sum()
    with pytest.warns(ConvergenceWarning) as caught:
        _, here = loss.backward(), line()
    assert_points_here(caught, here)


def test_a_warning_is_shown_once_a_line(brief):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", ConvergenceWarning)
        for _ in range(3):
            solve(*brief, "anderson", max_steps=2)
        solve(*brief, "anderson", max_steps=2)
    assert len(caught) == 2


def test_from_a_thread_without_a_caller():
    """As torch's threads are that run backward passes on a GPU: the main thread waits for them."""
    deadline = time.monotonic() + 10
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _thread.start_new_thread(warn, ("here", ConvergenceWarning))
        while not caught and time.monotonic() < deadline:
            pass
    assert [warning.filename for warning in caught] == [__file__]
