"""Weights of Chamfer distances, nearest points and entropies: those of repeated points, with derivatives."""

import pytest
import torch
from torch.autograd import gradcheck

from ddeq_fast import chamfer, kde_entropy, nearest

COUNTS = torch.tensor([2, 0, 1, 3])


@pytest.mark.parametrize("convention", ["l1", "l2"])
def test_whole_weights_are_repeated_points(convention, cloud):
    x, y = cloud(4, 3), cloud(5, 3)
    repeated = x.repeat_interleave(COUNTS, 0)
    for scale in (1.0, 0.3):
        value = chamfer(x, y, x_weights=scale * COUNTS.double(), convention=convention)
        torch.testing.assert_close(value, chamfer(repeated, y, convention=convention))
        value = chamfer(y, x, y_weights=scale * COUNTS.double(), convention=convention)
        torch.testing.assert_close(value, chamfer(y, repeated, convention=convention))


@pytest.mark.parametrize("kind", [torch.bool, torch.float64])
def test_weights_of_one_and_zero_are_a_mask(kind, cloud):
    x, y = cloud(4, 3), cloud(5, 3)
    mask = COUNTS > 0
    weights = mask.to(kind)
    torch.testing.assert_close(chamfer(x, y, x_weights=weights), chamfer(x[mask], y))
    torch.testing.assert_close(kde_entropy(x, 0.7, weights=weights), kde_entropy(x[mask], 0.7))
    assert torch.equal(nearest(y, x, y_weights=weights).index, nearest(y, x, y_mask=mask).index)


def test_weighted_entropy_by_its_formula(cloud):
    x, a = cloud(5, 2), torch.tensor([0.5, 1.0, 2.0, 0.0, 1.5], dtype=torch.float64)
    k = torch.exp(-torch.cdist(x, x).square() / (2 * 0.6**2)).fill_diagonal_(0)
    share = a / a.sum()
    expected = -(share * (k @ share + 1e-10).log()).sum()
    torch.testing.assert_close(kde_entropy(x, 0.6, weights=a), expected)


def test_derivatives_in_the_weights(cloud):
    x, y, a = cloud(4, 2), cloud(5, 2), torch.rand(4, dtype=torch.float64).add(0.2).requires_grad_()
    assert gradcheck(lambda a: chamfer(x, y, x_weights=a), a)
    assert gradcheck(lambda a: kde_entropy(x, 0.8, weights=a), a)


def test_names_in_messages(cloud):
    x = cloud(2, 4, 3)
    for call, name in (
        (lambda w: chamfer(x, x, y_weights=w), "y_weights"),
        (lambda w: nearest(x, x, y_weights=w), "y_weights"),
        (lambda w: kde_entropy(x, 1.0, weights=w), "weights"),
    ):
        with pytest.raises(ValueError, match=rf"^{name} must be nonnegative, got a minimum of -1$"):
            call(-torch.ones(2, 4, dtype=torch.float64))
