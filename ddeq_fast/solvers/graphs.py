"""A solver's step in a CUDA graph: one launch in the place of hundreds, which on a GPU take longer than their work."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ddeq_fast.utils import tree

# Runs before a capture, in which kernels are compiled, libraries started and memory set aside.
WARM_UPS = 3


def usable(z: Tensor) -> bool:
    """Whether steps on these particles can be captured."""
    return z.is_cuda


def capture(work: Callable) -> tuple[Callable[[], None], tuple]:
    """Record what work() launches: a function that replays it, and the results, which every replay overwrites."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()
    return graph.replay, results


class Recording:
    """One step of `solver` on problems and clouds of one shape, in memory of its own."""

    def __init__(self, solver, problem, z: Tensor, state, step: int):
        self.problem = problem = problem.with_parts(tree.apply(torch.clone, problem.parts()))
        self.z, self.state = z, state = tree.apply(torch.clone, (z, state))

        def work():
            y, vjp = problem.linearise(z) if solver.needs_vjp else (problem.image(z), None)
            return y, *solver.step(problem, z, y, vjp, state, step)

        with torch.cuda.device_of(z):
            self.replay, self.results = capture(work)

    def load(self, problem) -> None:
        """Go on with another problem of the same shape."""
        _copy(problem.parts(), self.problem.parts())

    def __call__(self, z: Tensor, state) -> tuple:
        """(F(z), next cloud, next state, direction); all but the cloud are overwritten by the next call."""
        _copy((state, z), (self.state, self.z))  # in this order: a state may hold the last cloud, which `self.z` is
        self.replay()
        y, proposal, state, direction = self.results
        return y, proposal.clone(), state, direction


# The last recording of every solver, and what it is valid for.
_kept: WeakKeyDictionary = WeakKeyDictionary()


def recording(solver, problem, z: Tensor, state, step: int) -> Recording:
    """A recording of `solver`'s step, the one of its last solve if that still holds.

    It does for the same module F with its parameters where they were, changed in place or not, and tensors of the same
    shapes. What other functions F close over is not known; they are recorded anew in every solve.
    """
    key = _key(solver, problem, z, state)
    known, made = _kept.get(solver, (None, None))
    if key is not None and key == known:
        made.load(problem)
        return made
    made = Recording(solver, problem, z, state, step)
    if key is not None:  # else no other solve could use it, and it would hold memory
        _kept[solver] = key, made
    return made


def _key(solver, problem, z, state):
    """What a recording depends on, but for the numbers in tensors; None if that is not known."""
    func = problem.func
    if not isinstance(func, nn.Module) or not problem.separable:
        return None
    owned = [tensor.data_ptr() for tensor in (*func.parameters(), *func.buffers())]
    shapes = tree.apply(lambda t: (tuple(t.shape), t.dtype, t.device), (problem.parts(), z, state))
    return type(problem), problem.residual_space, func, func.training, owned, shapes, dict(vars(solver))


def _copy(source, target) -> None:
    """Copy the tensors of one tree into those of another."""
    for new, old in zip(tree.leaves(source), tree.leaves(target), strict=True):
        old.copy_(new)
