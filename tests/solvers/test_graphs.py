"""Recorded steps; on the CPU work is done again in the place of a CUDA graph, for which see test_cuda.py."""

import copy
import pickle

import pytest
import torch
from torch import nn

from ddeq_fast import Gaussian
from ddeq_fast.solvers import SGD, Adam, Anderson, Auto, MMDFlow, Pushforward, graphs
from ddeq_fast.utils import tree
from problems import affine, affine_context, close, fails, small_transport

SOLVERS = [
    lambda **options: MMDFlow(lr=0.3, max_steps=40, check_every=3, **options),
    lambda **options: MMDFlow(optimizer=SGD(0.5, nesterov=True), max_steps=25, check_every=1, **options),
    lambda **options: Anderson(depth=3, max_steps=15, **options),
    lambda **options: Auto(tol=1e-6, anderson={"max_steps": 3}, flow={"max_steps": 30}, **options),
]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=["flow", "momentum", "anderson", "auto"])


class Affine(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, z, context, weights):
        return affine(z, context, weights) + self.shift


@pytest.fixture
def recordings(monkeypatch):
    """Makes steps recorded on the CPU: a list that grows by one with every recording."""
    made = []

    def capture(work):
        results = work()
        made.append(results)

        def replay():
            for old, new in zip(tree.leaves(results), tree.leaves(work()), strict=True):
                old.copy_(new)

        for tensor in tree.leaves(results):
            tensor.fill_(torch.nan if tensor.is_floating_point() else -1)  # a captured graph has not run yet
        return replay, results

    monkeypatch.setattr(graphs, "usable", lambda z: True)
    monkeypatch.setattr(graphs, "capture", capture)
    return made


def same(found, expected):
    assert close(found.particles, expected.particles, 1e-13)
    assert torch.allclose(found.info.residual, expected.info.residual, rtol=1e-9)
    assert torch.equal(found.info.evaluations, expected.info.evaluations)
    assert torch.equal(found.info.converged, expected.info.converged)
    return True


@each_solver
@pytest.mark.parametrize("parts", [False, True])
def test_recorded_steps_are_the_same_steps(recordings, solver, parts, context, start):
    weights, frozen = torch.ones(3, 4).double(), torch.zeros(3, 4, dtype=torch.bool)
    weights[1, 3:], frozen[:, 0] = 0, True
    problem = Pushforward(Affine(), context, *((weights, frozen) if parts else ()))
    expected = solver().solve(problem, start)
    assert not recordings
    assert same(solver(cuda_graph=True).solve(problem, start), expected) and recordings


@each_solver
def test_a_recording_serves_the_next_problem_of_its_shape(recordings, solver, start):
    func, recorded, first = Affine(), solver(cuda_graph=True), affine_context([0.1, 0.5, 0.8])
    recorded.solve(Pushforward(func, first), start)
    count = len(recordings)
    other = Pushforward(func, affine_context([0.3, 0.6, 0.7]))
    with torch.no_grad():
        func.shift.add_(0.5)  # as an optimiser does
    assert same(recorded.solve(other, 2 * start), solver().solve(other, 2 * start))
    assert len(recordings) == count


def test_a_recording_follows_all_that_a_problem_declares_as_batched(recordings, start, context):
    """Here the weights that the cloud has in the measure, as those beside anchors do."""

    class Shared(Pushforward):
        batched = (*Pushforward.batched, "share")
        share = None

        def measures(self, z, y):
            return tuple(weights * self.share for weights in super().measures(z, y))

    func, recorded = Affine(), MMDFlow(lr=0.3, max_steps=6, tol=0.0, cuda_graph=True)
    for share in ([1.0, 0.5, 0.2], [0.1, 1.0, 2.0]):
        problem = Shared(func, context)
        problem.share = torch.tensor(share).double()[:, None]
        assert same(recorded.solve(problem, start), MMDFlow(lr=0.3, max_steps=6, tol=0.0).solve(problem, start))
    assert len(recordings) == 1


def test_what_changes_the_step_is_recorded_anew(recordings, start, context):
    func, solver = Affine(), MMDFlow(lr=0.3, max_steps=5, cuda_graph=True)
    problem = Pushforward(func, context)

    def agrees(problem, start):
        plain = copy.copy(solver)
        plain.cuda_graph = False
        before = len(recordings)
        assert same(solver.solve(problem, start), plain.solve(problem, start))
        return len(recordings) - before

    assert agrees(problem, start) == 1
    assert agrees(problem, start) == 0
    solver.lr = 0.2
    assert agrees(problem, start) == 1
    func.shift = nn.Parameter(torch.ones((), dtype=torch.float64))
    assert agrees(problem, start) == 1
    assert agrees(Pushforward(func, context, torch.ones(3, 4).double()), start) == 1
    assert agrees(problem.select(torch.tensor([0, 2])), start[[0, 2]]) == 1
    assert agrees(Pushforward(Affine(), context), start) == 1
    for _ in range(2):  # what they close over is not known
        assert agrees(Pushforward(affine, context), start) == 1
        assert agrees(Pushforward(lambda z, *_: affine(z, context, None)), start) == 1


def test_a_network_and_its_context(recordings):
    network, x = small_transport(), torch.randn(3, 6, 2, dtype=torch.float64)
    with torch.no_grad():
        problem = Pushforward(network, network.encode(x))
        start = torch.randn(3, 4, 8, dtype=torch.float64)
        expected = MMDFlow(lr=0.2, max_steps=8).solve(problem, start)
        assert same(MMDFlow(lr=0.2, max_steps=8, cuda_graph=True).solve(problem, start), expected)
    assert len(recordings) == 1


def test_a_deeper_history_is_recorded_later(recordings, start, context):
    solver, problem = Anderson(depth=2, max_steps=12, cuda_graph=True), Pushforward(Affine(), context)
    solver.depth = 5
    assert same(solver.solve(problem, start), Anderson(depth=5, max_steps=12).solve(problem, start)) and recordings


def test_few_steps_are_not_recorded(recordings, start, context):
    Anderson(depth=6, max_steps=4, cuda_graph=True).solve(Pushforward(Affine(), context), start)
    assert not recordings


def test_a_solver_with_a_recording_is_copied_and_saved_without_it(recordings, start, context):
    solver = Anderson(depth=2, max_steps=5, cuda_graph=True)
    problem = Pushforward(Affine(), context)
    expected = solver.solve(problem, start)
    for other in (copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        assert same(other.solve(problem, start), expected)
    assert len(recordings) == 3


def test_nothing_is_recorded_off_the_gpu(start, context):
    problem = Pushforward(Affine(), context)
    assert same(MMDFlow(cuda_graph=True).solve(problem, start), MMDFlow().solve(problem, start))


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": Adam()},
        {"lr_decay": (0.9, 5)},
        {"kernel": Gaussian(), "anneal": (0.9, 0.1)},
        {"noise": (0.1, 0.9)},
    ],
)
def test_steps_that_change_are_refused(options):
    message = "cuda_graph needs steps that are all alike, and this MMDFlow changes them"
    with fails(ValueError, message):
        MMDFlow(cuda_graph=True, **options)


@each_solver
def test_a_recording_serves_other_labels_in_the_same_space(recordings, solver, start):
    context, func, recorded = affine_context([0.1, 0.5, 0.8]), Affine(), solver(cuda_graph=True)
    for space in ("product", "marginal"):
        for shift in (0.0, 1.0):
            labels = (torch.arange(8.0).view(4, 2).expand(3, -1, -1) * (1 + shift)).double()
            problem = Pushforward(func, context, labels=labels, residual_space=space)
            count = len(recordings)
            assert same(recorded.solve(problem, start), solver().solve(problem, start))
            assert shift == 0 or len(recordings) == count
        assert count
