"""Single measurements against their closed forms."""

import math

import pytest
import torch

from ddeq_fast import Pushforward
from ddeq_fast.diagnostics import measures
from problems import affine, affine_context


def matrices(*given):
    return torch.tensor(given, dtype=torch.float64)


SPECTRA = {
    "symmetric": affine_context([0.3, 0.9])[0],
    "a rotation": 0.8 * matrices([[0.6, -0.8, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 0.5]]),
    "opposite": matrices([[0.7, 0.0, 0.0], [0.0, -0.7, 0.0], [0.0, 0.0, 0.1]]),
    "not normal": matrices([[0.5, 5.0, 0.0], [0.0, 0.45, 5.0], [0.0, 0.0, 0.2]]),
    "nilpotent": matrices([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]),
    "expanding": matrices([[3.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, -4.0]]),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_the_spectral_radius_of_linear_maps(name, cloud):
    matrix = SPECTRA[name].reshape(-1, 3, 3)
    problem = Pushforward(affine, (matrix, torch.zeros(len(matrix), 3, dtype=torch.float64)))
    expected = torch.linalg.eigvals(matrix).abs().amax(-1)
    found = measures.spectral_radius(problem, cloud(len(matrix), 4, 3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # Most of the way by powers alone.
    powers = measures.spectral_radius(problem, cloud(len(matrix), 4, 3), steps=300, subspace=2)
    torch.testing.assert_close(powers, expected, rtol=1e-4, atol=1e-4)
    # One in single precision, and the mean square of all singular values.
    single = Pushforward(affine, tuple(part.float() for part in problem.context))
    torch.testing.assert_close(
        measures.spectral_radius(single, cloud(len(matrix), 4, 3).float()), expected, rtol=1e-2, atol=1e-2
    )
    size = measures.jacobian_size(problem, cloud(len(matrix), 4, 3), probes=4000)
    torch.testing.assert_close(size, matrix.square().sum((1, 2)).div(3).sqrt(), rtol=0.05, atol=0)


def test_a_map_that_does_not_depend_on_particles(cloud):
    problem = Pushforward(lambda z, context, weights: torch.ones_like(z))
    assert measures.spectral_radius(problem, cloud(2, 4, 3)).tolist() == [0, 0]
    assert measures.jacobian_size(problem, cloud(2, 4, 3)).tolist() == [0, 0]


def test_padding_and_frozen_particles_have_no_part(cloud):
    z, weights = cloud(2, 4, 3), torch.tensor([[1.0, 2.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    frozen = torch.tensor([[False, False, False, True], [False] * 4])
    mass = measures.masses(Pushforward(lambda z, context, weights: z.abs(), None, weights, frozen), z)
    torch.testing.assert_close(mass, torch.tensor([[1, 2, 0, 0], [1, 1, 1, 0]]) / mass.new_tensor([[3], [3]]))
    far = z.masked_fill((mass == 0)[..., None], math.inf)
    for measure in (measures.spread, measures.extent):
        assert torch.equal(measure(far, mass), measure(z, mass))
    for measure in (measures.distance, measures.relative_mmd):
        assert torch.equal(measure(far, z + 1, mass), measure(z, z + 1, mass))
    mean = z[1, :3].mean(0)
    torch.testing.assert_close(measures.spread(z, mass)[1], (z[1, :3] - mean).square().sum(1).mean().sqrt())
    means = torch.stack(((z[0, 0] + 2 * z[0, 1]) / 3, mean))
    assert measures.between(z, mass) == pytest.approx(float((means[0] - means[1]).norm() / 2))


def test_distances_relative_to_zero(cloud):
    mass = torch.full((2, 4), 0.25, dtype=torch.float64)
    point = cloud(2, 1, 3).expand(-1, 4, -1)
    torch.testing.assert_close(measures.relative_mmd(1.3 * point, point, mass), torch.full((2,), 0.3).double())
    torch.testing.assert_close(measures.relative_distance(1.3 * point, point, mass), torch.full((2,), 0.3).double())
    z = cloud(2, 4, 3)
    assert (
        float(measures.relative_mmd(z.flip(1), z, mass).max())
        < 1e-12
        < float(measures.distance(z.flip(1), z, mass).min())
    )
    assert measures.relative_distance(0 * z, 0 * z, mass).tolist() == [0, 0]


def test_changes_and_gradient_errors():
    reference = torch.tensor([3.0, 4.0])
    assert measures.change(reference, reference) == 0 and measures.change(1.1 * reference, reference) == pytest.approx(
        0.1
    )
    assert measures.change(reference, 0 * reference) == math.inf
    assert measures.gradient_error(2 * reference, reference) == pytest.approx((1.0, 1.0))
    assert measures.gradient_error(torch.tensor([-4.0, 3.0]), reference) == pytest.approx((2**0.5, 0.0), abs=1e-7)
