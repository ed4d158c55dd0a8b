"""Solves that are watched: what a callback is told, and when."""

import numpy as np
import pytest
import torch

import references
from ddeq_fast import Riesz
from ddeq_fast.solvers import Auto, MMDFlow, Pushforward, solve
from problems import FLOW, SOLVERS, STEPS, affine, close


def watched(problem, start, solver):
    """(solution, steps, clouds, residuals) of a solve with a callback."""
    calls = []
    solution = solve(problem, start, solver, callback=lambda *call: calls.append(call))
    return solution, *(list(part) for part in zip(*calls, strict=True))


def test_the_callback_sees_every_step_of_the_whole_batch(solver, context, start):
    problem = Pushforward(affine, context)
    expected, info = solve(problem, start, solver)
    (particles, info_watched), steps, clouds, residuals = watched(problem, start, solver)
    assert torch.equal(particles, expected) and torch.equal(info_watched.evaluations, info.evaluations)
    assert {cloud.shape for cloud in clouds} == {start.shape} and torch.equal(clouds[0], start)
    assert steps == sorted(set(steps)) and steps[0] == 0
    if not isinstance(solver, Auto):  # which may go on from a cloud that it then rejects
        assert steps == list(range(info.evaluations.max()))
        assert torch.equal(clouds[-1], particles) and torch.equal(residuals[-1], info.residual)
        for i, end in enumerate(info.evaluations - 1):
            assert all(torch.equal(cloud[i], particles[i]) for cloud in clouds[end:])
            assert not any(torch.equal(cloud[i], particles[i]) for cloud in clouds[:end])


def test_the_callback_of_a_map_without_context_gives_the_same(context, start):
    closed = Pushforward(lambda z, _, weights: affine(z, context, weights))
    _, steps, clouds, _ = watched(closed, start, SOLVERS["flow"])
    _, expected_steps, expected, _ = watched(Pushforward(affine, context), start, SOLVERS["flow"])
    assert steps == expected_steps and all(map(close, clouds, expected))


@pytest.mark.parametrize("stop_on", ["mmd", "gradient"])
def test_the_callback_gets_residuals_as_last_looked_at(context, start, stop_on):
    solver = MMDFlow(lr=0.3, max_steps=7, tol=0.0, check_every=3, stop_on=stop_on)
    (particles, info), steps, clouds, residuals = watched(Pushforward(affine, context), start, solver)
    assert steps == list(range(8)) and torch.equal(clouds[-1], particles)
    looks = [0, 0, 0, 3, 3, 3, 6, 7 if stop_on == "mmd" else 6]
    assert all(torch.equal(residuals[step], residuals[look]) for step, look in enumerate(looks))
    assert len({tuple(residual.tolist()) for residual in residuals}) == len(set(looks))
    if stop_on == "mmd":
        for cloud, residual in zip(clouds[::3], residuals[::3], strict=True):
            mmd = np.sqrt(references.squared_mmd(cloud, affine(cloud, context, None), Riesz(1.0)))
            assert np.allclose(residual, mmd / info.scale.numpy(), rtol=1e-8)


def test_the_callback_gets_copies(context, start):
    def vandal(step, particles, residual):
        particles.zero_(), residual.zero_()

    problem = Pushforward(affine, context)
    expected, got = solve(problem, start, SOLVERS["flow"]), solve(problem, start, SOLVERS["flow"], callback=vandal)
    assert torch.equal(got.particles, expected.particles) and torch.equal(got.info.residual, expected.info.residual)


def test_the_callback_follows_auto_into_its_flow(context, start):
    """Sample 0 is done after one step of Anderson: from then on its cloud rests while the others flow."""
    solver = Auto(tol=0.25, anderson={"max_steps": 1}, flow=STEPS)
    solution, steps, clouds, residuals = watched(Pushforward(affine, context), start, solver)
    taken = solution.info.evaluations
    assert steps == list(range(taken.max())) and taken[0] == 2 < taken[1:].min()
    assert all(torch.equal(cloud[0], solution.particles[0]) for cloud in clouds[1:])
    assert all(residual[0] == solution.info.residual[0] for residual in residuals[1:])
    assert torch.equal(clouds[-1][1:], solution.particles[1:])


def test_a_solver_that_cannot_be_watched_says_so(context, start):
    class Deaf:
        tol = 0.0

        def solve(self, problem, start):
            return MMDFlow(**FLOW).solve(problem, start)

    assert solve(Pushforward(affine, context), start, Deaf()).info.converged.all()
    with pytest.raises(TypeError, match="callback"):
        solve(Pushforward(affine, context), start, Deaf(), callback=print)
