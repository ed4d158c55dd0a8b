"""Anderson acceleration against least squares written out, its limits, and Auto's guarantee."""

import numpy as np
import pytest
import torch

import references
from ddeq_fast import Gaussian, Riesz
from ddeq_fast.solvers import Anderson, Auto, ConvergenceWarning, FixedTarget, MMDFlow, Pushforward, solve
from ddeq_fast.solvers.anderson import empty_history, mix
from ddeq_fast.sums.backends import names
from problems import Recorder, affine, affine_context, affine_solution, close, fails, half_turn, small_transport


def textbook_step(pairs, mixing):
    """Of all affine combinations of the residuals y - z the shortest: sum_j alpha_j (z_j + mixing g_j)."""
    z, g = (np.stack(part, 1) for part in zip(*[(z, y - z) for z, y in pairs], strict=True))
    gamma = np.linalg.lstsq(g[:, 1:] - g[:, :1], -g[:, 0], rcond=None)[0] if len(pairs) > 1 else np.zeros(0)
    alpha = np.concatenate(([1 - gamma.sum()], gamma))
    return (z + mixing * g) @ alpha


@pytest.mark.parametrize("mixing", [1.0, 0.4])
@pytest.mark.parametrize("depth", [2, 3, 5])
def test_mixing_is_constrained_least_squares(cloud, depth, mixing):
    """Over the last `depth` pairs, for every sample on its own; what the history held before plays no part."""
    z, history = cloud(2, 3, 4), empty_history(cloud(2, 3, 4), depth)
    history.moves.fill_(torch.nan), history.dg.fill_(torch.nan), history.gram.fill_(torch.nan)
    pairs = []
    for step in range(7):
        y = (2 * z).sin() + 0.3 * z.flip(1)
        pairs.append((z.flatten(1).numpy(), y.flatten(1).numpy()))
        z, history = mix(z, y, history, step, mixing, 0.0)
        for b in range(2):
            expected = textbook_step([(p[b], q[b]) for p, q in pairs[-depth:]], mixing)
            assert np.allclose(z[b].flatten(), expected, atol=1e-10)


def test_ridge_shortens_the_combination(cloud):
    z, history = cloud(2, 3, 4), empty_history(cloud(2, 3, 4), 3)
    _, history = mix(z, z.sin(), history, 0, 1.0, 0.0)
    y = (z + 1).sin()
    plain, weak, strong = (mix(z + 1, y, history, 1, 1.0, ridge)[0] for ridge in (0.0, 1e-3, 1e9))
    assert close(strong, y, 1e-6) and not close(plain, y, 1e-3)
    assert (weak - y).norm() < (plain - y).norm()


@pytest.mark.parametrize("rates", [[0.1, 0.5, 0.95], [0.9, 3.0, 40.0]], ids=["contracting", "expanding"])
def test_affine_maps_are_solved_to_high_accuracy(cloud, rates):
    """In a handful of steps, whether or not plain iteration would converge."""
    context = affine_context(rates)
    particles, info = solve(Pushforward(affine, context), cloud(3, 4, 3), "anderson", tol=1e-6)
    assert close(particles, affine_solution(context)[:, None].expand(3, 4, 3), 1e-8)
    assert (info.evaluations <= 10).all()


def test_acceleration_pays(cloud):
    """Far fewer evaluations than plain iteration needs, log(tol) / log(rate)."""
    transport = small_transport()
    context = transport.encode(cloud(3, 6, 2))
    rate_one = affine_context([0.99] * 3, d=20)
    info = solve(Pushforward(affine, rate_one), cloud(3, 2, 20), "anderson", tol=1e-4, max_steps=100).info
    assert info.evaluations.max() < 60 < np.log(1e-4) / np.log(0.99)
    info = solve(Pushforward(transport, context), cloud(3, 4, 8), "anderson", tol=1e-8).info
    assert info.converged.all()


def test_the_iterate_of_least_residual_is_returned(cloud):
    seen = []

    def chaotic(z, context, weights):
        seen.append(z.clone())
        return 3.9 * z * (1 - z)

    start = cloud(3, 4, 2).sigmoid()
    particles, info = Anderson(depth=6, tol=0.0, max_steps=15, patience=None).solve(Pushforward(chaotic, None), start)
    residuals = np.stack([np.sqrt(references.squared_mmd(z, chaotic(z, None, None), Riesz(1.0))) for z in seen[:16]])
    best = residuals.argmin(0)
    assert len(set(best.tolist()) | {0, 15}) > 2
    assert np.allclose(info.residual * info.scale, residuals.min(0), rtol=1e-6)
    assert all(torch.equal(particles[i], seen[best[i]][i]) for i in range(3))


def test_patience_ends_a_hopeless_solve(cloud):
    """Particles go round in antipodal pairs, with no point to rest at."""
    start = cloud(3, 4, 2)
    with pytest.warns(ConvergenceWarning, match="3 of 3 samples"):
        impatient = solve(Pushforward(half_turn, ()), start, "anderson", tol=1e-6, patience=7).info
    assert (impatient.evaluations < 25).all() and (impatient.residual > 1e-3).all()
    with pytest.warns(ConvergenceWarning, match="3 of 3 samples"):
        patient = solve(Pushforward(half_turn, ()), start, "anderson", tol=1e-6, patience=None).info
    assert (patient.evaluations == 61).all()


@pytest.mark.parametrize("patience", [1, 5])
def test_patience_counts_steps_without_halving(cloud, patience):
    """A translation between numbers that add up exactly: the same residual in every step."""
    problem, start = Pushforward(lambda z, context, weights: z + 1, ()), (8 * cloud(2, 3, 2)).round()
    info = Anderson(patience=patience).solve(problem, start).info
    assert info.evaluations.tolist() in ([patience + 1] * 2, [patience + 2] * 2)
    assert torch.allclose(info.residual, torch.ones(2).double())


def test_a_translation_has_no_equilibrium(cloud):
    """Not at infinity either, to where differences of rounding errors extrapolate."""
    info = Anderson().solve(Pushforward(lambda z, context, weights: z + 1, ()), cloud(2, 3, 2)).info
    assert not info.converged.any() and torch.allclose(info.residual, torch.ones(2).double())


def test_patience_is_kept_while_residuals_halve(cloud):
    """The MMD falls by the root of 0.8 a step: it halves in seven, not in four."""
    context = affine_context([0.8] * 2, d=1)
    plain = {"ridge": 1e12, "tol": 1e-2, "max_steps": 100}  # such a ridge leaves plain iteration
    problem, start = Pushforward(affine, context), cloud(2, 3, 1)
    assert Anderson(patience=8, **plain).solve(problem, start).info.converged.all()
    assert not Anderson(patience=4, **plain).solve(problem, start).info.converged.any()


def test_repeated_residuals_do_no_harm(cloud):
    """Differences of residuals that vanish give a singular system."""
    context = affine_context([1e-12] * 2)
    particles, info = Anderson(tol=0.0, max_steps=10).solve(Pushforward(affine, context), cloud(2, 4, 3))
    assert close(particles, context[1][:, None].expand(2, 4, 3), 1e-9) and info.residual.isfinite().all()


def test_frozen_particles_do_not_hold_up_the_others(cloud):
    frozen = torch.tensor([[True, False, False, False]] * 3)
    context, start = affine_context([0.1, 0.5, 0.95]), cloud(3, 4, 3)
    particles, _ = Anderson(tol=0.0, max_steps=12).solve(Pushforward(affine, context, frozen=frozen), start)
    assert torch.equal(particles[:, 0], start[:, 0])
    expected = affine_solution(context)[:, None].expand(3, 3, 3)
    assert close(particles[:, 1:], expected, 0.1)


BACKENDS = f"backend must be one of auto, {', '.join(names())}; got 'fast'"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"depth": 1}, ValueError, "depth must be at least 2, got 1"),
        ({"depth": 2.0}, TypeError, "depth must be an integer, got float"),
        ({"mixing": 0.0}, ValueError, "mixing must lie in (0, 1], got 0.0"),
        ({"mixing": 1.5}, ValueError, "mixing must lie in (0, 1], got 1.5"),
        ({"ridge": -1.0}, ValueError, "ridge must lie in [0, inf), got -1.0"),
        ({"patience": 0}, ValueError, "patience must be at least 1, got 0"),
        ({"relative": "no"}, TypeError, "relative must be True or False, got 'no'"),
        ({"cuda_graph": 1}, TypeError, "cuda_graph must be True or False, got 1"),
        ({"backend": "fast"}, ValueError, BACKENDS),
    ],
)
def test_bad_options_of_anderson(options, error, message):
    with fails(error, message):
        Anderson(**options)


def test_anderson_needs_an_image_of_the_same_shape(cloud):
    with fails(ValueError, "Anderson needs an image of shape (2, 3, 2), got (2, 6, 2)"):
        solve(FixedTarget(cloud(2, 6, 2)), cloud(2, 3, 2), "anderson")


TRANSPORT = small_transport()
PROBLEMS = {
    "contracting": (affine, lambda cloud: (affine_context([0.1, 0.5, 0.95], d=2), cloud(3, 4, 2))),
    "expanding": (lambda z, c, w: 2 * z + (3 * z).sin() + 1, lambda cloud: ((), cloud(3, 4, 2))),
    "permuting": (half_turn, lambda cloud: ((), cloud(3, 4, 2))),
    "translating": (lambda z, c, w: z + 0.1, lambda cloud: ((), cloud(3, 4, 2))),
    "chaotic": (lambda z, c, w: 3.9 * z * (1 - z), lambda cloud: ((), cloud(3, 4, 2).sigmoid())),
    "network": (TRANSPORT, lambda cloud: (TRANSPORT.encode(cloud(3, 6, 2)), cloud(3, 4, 8))),
}


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("kernel", [Riesz(1.0), Gaussian(1.0)], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("tol", [0.0, 0.2])
def test_auto_never_ends_above_the_flow(cloud, name, kernel, tol, separable):
    """Where the flow ends above the tolerance; below it, one cloud is as good as another."""
    func, draw = PROBLEMS[name]
    context, start = draw(cloud)
    flow = {"lr": 0.3, "max_steps": 30}
    problem = Pushforward(func if separable else lambda z, _, w: func(z, context, w), context if separable else None)
    alone = MMDFlow(kernel=kernel, tol=tol, **flow).solve(problem, start).info
    particles, info = Auto(kernel=kernel, tol=tol, anderson={"max_steps": 15}, flow=flow).solve(problem, start)
    assert (info.residual <= alone.residual.clamp_min(tol) * (1 + 1e-9)).all()
    assert torch.equal(info.converged, info.residual <= tol)
    image = func(particles, context, None)
    expected = references.squared_mmd(particles, image, kernel)
    assert np.allclose((info.residual * info.scale) ** 2, expected, rtol=1e-8, atol=1e-14)


def test_auto_takes_the_better_of_both_sample_by_sample(cloud):
    """Sample 0 is for Anderson, sample 1 for the flow."""
    turn = torch.tensor([0.0, 1.0]).double().view(2, 1, 1)
    problem = Pushforward(lambda z, c, w: torch.lerp(0.9 * z + 0.2, half_turn(z, c, w), c[0]), (turn,))
    start, flow = cloud(2, 4, 2), {"lr": 0.3, "max_steps": 40}
    anderson, by_flow = (
        Anderson(tol=1e-3).solve(problem, start).info,
        MMDFlow(tol=1e-3, **flow).solve(problem, start).info,
    )
    assert anderson.residual[0] < by_flow.residual[0] and anderson.residual[1] > by_flow.residual[1]
    info = Auto(tol=1e-3, flow=flow).solve(problem, start).info
    assert info.residual[0] == pytest.approx(float(anderson.residual[0]))
    assert info.residual[1] <= by_flow.residual[1] * (1 + 1e-9)


def test_auto_leaves_the_flow_out_where_anderson_converges(cloud):
    func, context, start = Recorder(affine), affine_context([0.1, 0.5, 0.95]), cloud(3, 4, 3)
    particles, info = solve(Pushforward(func, context), start)
    expected, info_anderson = solve(Pushforward(affine, context), start, "anderson")
    assert torch.equal(particles, expected) and torch.equal(info.evaluations, info_anderson.evaluations)
    assert func.tracked == 0


def test_auto_stops_at_rounding(cloud):
    """Single precision resolves no 1e-6 here: nothing is left to the flow, and double precision gets there."""
    x, start, infos = cloud(3, 6, 2), cloud(3, 4, 8), []
    for dtype in (torch.float32, torch.float64):
        transport = small_transport(dtype=dtype)
        func = Recorder(transport)
        with torch.no_grad():
            problem = Pushforward(func, transport.encode(x.to(dtype)))
        infos.append(Auto(tol=1e-6).solve(problem, start.to(dtype)).info)
        assert func.tracked == 0
    assert not infos[0].converged.any() and (infos[0].residual < 1e-3).all() and infos[1].converged.all()


def test_auto_sends_only_the_failures_to_the_flow(cloud):
    turn = torch.tensor([0.0, 1.0, 0.0]).double().view(3, 1, 1)
    func = Recorder(lambda z, c, w: torch.lerp(0.5 * z, half_turn(z, c, w), c[0]))
    info = Auto(flow={"max_steps": 8, "check_every": 1}).solve(Pushforward(func, (turn,)), cloud(3, 4, 2)).info
    assert sum(func.batches) == info.evaluations.sum()
    assert func.batches[-18:] == [1] * 18  # eight steps and a last look, twice
    assert info.evaluations[1] > 18 and info.converged.tolist() == [True, False, True]


def test_auto_starts_anew_then_tries_the_flow_from_the_best_iterate_and_from_the_start(cloud):
    seen, start = [], cloud(2, 4, 2)

    def func(z, context, weights):
        seen.append(z.detach().clone())
        return half_turn(z, context, weights)

    problem = Pushforward(func, ())
    first, info = Anderson(max_steps=6).solve(problem, start)
    second, again = Anderson(max_steps=6, depth=3).solve(problem, first, scale=info.scale)
    best = torch.where((again.residual < info.residual)[:, None, None], second, first)
    seen.clear()
    Auto(anderson={"max_steps": 6}, flow={"max_steps": 3}).solve(problem, start)
    assert len(seen) == 7 + 7 + 4 + 4 and not torch.equal(first, start)
    assert torch.equal(seen[7], first) and torch.equal(seen[14], best) and torch.equal(seen[18], start)


def test_auto_starts_anew_where_a_long_memory_is_stuck(cloud):
    """A memory as long as the whole solve keeps what its first iterates said of a map that has changed since."""

    def kinked(z, context, weights):
        return torch.where(z.abs() > 0.05, 0.9 * z - 0.3 * z.sign() * z.abs().sqrt(), -0.5 * z)

    problem, start = Pushforward(kinked, ()), 3 * cloud(6, 4, 3)
    alone = Anderson(tol=1e-8, patience=4).solve(problem, start).info
    auto = Auto(tol=1e-8, anderson={"patience": 4}, flow={"max_steps": 1}).solve(problem, start).info
    stuck = ~alone.converged
    assert stuck.any() and (auto.residual[stuck] < 0.5 * alone.residual[stuck]).any()
    assert (auto.residual <= alone.residual).all()


def test_the_gradient_may_stop_anderson(cloud):
    """Its direction is F(z) - z, and the cloud that is returned is the one of least norm, not the last."""
    problem, start = Pushforward(affine, affine_context([0.5, 3.0, 0.9])), cloud(3, 4, 3)
    solver = Anderson(stop_on="gradient", relative=False, tol=0.0, max_steps=3)
    particles, info = solver.solve(problem, start)
    found = (problem.image(particles) - particles).flatten(1).norm(dim=1)
    assert torch.allclose(found, info.residual, rtol=1e-10)
    seen = []
    solver.solve(problem, start, callback=lambda step, z, _: seen.append((problem.image(z) - z).flatten(1).norm(dim=1)))
    assert torch.allclose(torch.stack(seen[:-1]).amin(0), found, rtol=1e-10)


def test_auto_passes_its_options_on():
    auto = Auto(kernel=Gaussian(2.0), tol=1e-2, anderson={"depth": 3}, flow={"lr": 0.2, "gradient": "witness"})
    assert auto.accelerated.kernel == auto.descent.kernel == Gaussian(2.0)
    assert auto.tol == auto.accelerated.tol == auto.descent.tol == 1e-2
    assert auto.accelerated.depth == 3 and auto.descent.lr == 0.2 and not auto.descent.needs_vjp


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tol": -1.0}, ValueError, "tol must lie in [0, inf), got -1.0"),
        ({"max_steps": 0}, ValueError, "max_steps must be at least 1, got 0"),
        ({"anderson": 6}, TypeError, "anderson must be a dict of options, got int"),
        ({"backend": 6}, TypeError, "backend must be a string, got int"),
        ({"kernel": 1.0}, TypeError, "kernel must be a RadialKernel such as Riesz(1.0), got float"),
        ({"anderson": {"depth": 0}}, ValueError, "depth must be at least 2, got 0"),
        (
            {"flow": {"tol": 0.1, "anneal": (0.9, 1.0)}},
            ValueError,
            "flow must not set anneal, tol: the residuals of both solvers are compared",
        ),
        ({"flow": {"lr": -1.0}}, ValueError, "lr must lie in (0, inf), got -1.0"),
    ],
)
def test_bad_options_of_auto(options, error, message):
    with fails(error, message):
        Auto(**options)


@pytest.mark.parametrize("max_steps", [1, 5, 9, 30])
def test_the_steps_of_auto_are_bounded_as_a_whole(cloud, max_steps):
    """Anderson acceleration gives up after six steps here; a second one and the flows share what it leaves."""
    options = {"anderson": {"patience": 5}, "flow": {"max_steps": 10, "check_every": 1}}
    auto, func = Auto(max_steps=max_steps, tol=1e-6, **options), Recorder(half_turn)
    info = auto.solve(Pushforward(func, ()), cloud(3, 4, 2)).info
    assert int(info.evaluations.max()) == len(func.batches) <= max_steps + 1
    first = Anderson(patience=5, tol=1e-6).solve(Pushforward(half_turn, ()), cloud(3, 4, 2))
    again = Anderson(patience=5, tol=1e-6, depth=3).solve(
        Pushforward(half_turn, ()), first.particles, scale=first.info.scale
    )
    assert bool(func.tracked) == (max_steps > int((first.info.evaluations + again.info.evaluations).max()))
    unbounded = Auto(tol=1e-6, **options).solve(Pushforward(half_turn, ()), cloud(3, 4, 2)).info
    assert (unbounded.evaluations >= 22 + 6 + 6).all() or max_steps < 30


def test_the_bound_of_auto_holds_for_a_fixed_target(cloud):
    auto = Auto(max_steps=4, tol=1e-9)
    assert (auto.solve(FixedTarget(cloud(2, 6, 2)), cloud(2, 3, 2)).info.evaluations == 5).all()


def floor_problem(cloud, dtype):
    transport = small_transport(dtype=dtype)
    return Pushforward(transport, transport.encode(cloud(3, 6, 2).to(dtype))), cloud(3, 4, 8).to(dtype)


def test_a_solve_stops_soon_at_the_floor_of_its_precision(cloud):
    """Not before it: more steps lower the residual by no more than rounding moves it."""
    problem, start = floor_problem(cloud, torch.float32)
    particles, info = Anderson(tol=1e-6).solve(problem, start)
    long = Anderson(tol=0.0, patience=None, max_steps=60).solve(problem, start)
    assert (info.evaluations < 35).all() and (info.residual < 1.6 * long.info.residual).all()
    assert problem.at_rounding(particles, info.residual * info.scale, Riesz(1.0)).all()
    patient = Anderson(tol=1e-6, patience=None).solve(problem, start).info
    assert (patient.evaluations == 61).all()


def test_the_warning_tells_of_the_floor(cloud):
    problem, start = floor_problem(cloud, torch.float32)
    message = r"^Auto: 3 of 3 samples .*; 3 of them are down at the rounding of torch.float32, .*model\.double\(\)"
    with pytest.warns(ConvergenceWarning, match=message):
        solve(problem, start, tol=1e-6)
    with pytest.warns(ConvergenceWarning, match=r"\(worst [\d.e-]+\)$"):
        solve(problem, start, tol=1e-6, max_steps=2)


def test_the_warning_tells_of_a_network_in_lower_precision(cloud):
    transport = small_transport(dtype=torch.float32, network_dtype=torch.bfloat16)
    problem = Pushforward(transport, transport.encode(cloud(3, 6, 2, dtype=torch.float32)))
    with pytest.warns(ConvergenceWarning, match="F is evaluated in torch.bfloat16"):
        solve(problem, cloud(3, 4, 8, dtype=torch.float32), "anderson", tol=1e-6, max_steps=10)


def test_far_padding_does_not_slow_anderson_down(cloud):
    """Its distance would hide the differences of all others from the mixing."""
    problem, start = floor_problem(cloud, torch.float64)
    expected = Anderson().solve(problem, start)
    weights = torch.ones(3, 6).double()
    weights[:, 4:] = 0
    padded = torch.cat((start, torch.full((3, 2, 8), 1e30).double()), 1)
    found = Anderson().solve(Pushforward(problem.func, problem.context, weights), padded)
    assert torch.equal(found.info.evaluations, expected.info.evaluations)
    assert close(found.particles[:, :4], expected.particles, 1e-9)
    assert torch.equal(found.particles[:, 4:], padded[:, 4:])


@pytest.mark.parametrize("check_every", [1, 4])
def test_what_auto_does_with_a_sample_does_not_depend_on_the_others(cloud, check_every):
    """Anderson gives them up at different steps, and leaves the flow different numbers of them."""
    mixing, shift, start = 1.2 * cloud(6, 4, 4), cloud(6, 5, 4), cloud(6, 5, 4)

    def func(z, context, weights):
        return 1.5 * (z.roll(1, 1) @ context[0] + context[1]).tanh()

    solver = Auto(max_steps=60, tol=1e-4, anderson={"depth": 6}, flow={"check_every": check_every})
    together = solver.solve(Pushforward(func, (mixing, shift)), start)
    given_up = Anderson(depth=6, tol=1e-4).solve(Pushforward(func, (mixing, shift)), start).info
    assert len(given_up.evaluations[~given_up.converged].unique()) > 2
    assert together.info.evaluations.max() <= 61
    for row in torch.arange(6)[:, None]:
        alone = solver.solve(Pushforward(func, (mixing[row], shift[row])), start[row])
        assert torch.equal(alone.info.evaluations, together.info.evaluations[row])
        assert close(alone.particles, together.particles[row], 1e-6)
