"""A batch of affine problems whose samples take different numbers of steps."""

import pytest

from problems import SOLVERS, affine_context


@pytest.fixture
def start(cloud):
    return 1.5 * cloud(3, 4, 3)


@pytest.fixture
def context():
    return affine_context([0.001, 0.5, 0.8])


@pytest.fixture(params=SOLVERS)
def solver(request):
    return SOLVERS[request.param]
