"""The digits, batches in reproducible order, and jitter."""

import pytest
import torch

from ddeq_fast import data
from ddeq_fast.data.dataset import Split, generator

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_the_split_is_fixed_stratified_and_disjoint(digits):
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.dim == 3 and digits.classes == 10
    assert digits.test.labels.bincount().tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    train, test = ({cloud.numpy().tobytes() for cloud in split.points} for split in (digits.train, digits.test))
    assert not train & test and len(train) == 1437


@pytest.mark.parametrize("intensity", ["coordinate", "weight"])
def test_clouds_hold_the_images(intensity, digits):
    """Every image can be put together again from its cloud."""
    from sklearn.datasets import load_digits

    # As weights, brightness is known up to a factor.
    scale = 16 if intensity == "weight" else None
    images = {(image * ((scale or image.max()) / image.max())).round().tobytes() for image in load_digits().images}
    split = data.load("digits", intensity=intensity).test
    for points, weights in list(zip(split.points, split.weights, strict=True))[:50]:
        column, row = (points[:, :2] * 2 + 3.5).round().long().unbind(1)
        if intensity == "coordinate":
            ink = 8 * (points[:, 2] + 1)
            assert (weights == 1).all()
        else:
            ink = weights * 16 / weights.max()
            assert weights.mean().item() == pytest.approx(1.0, abs=1e-6)
        image = torch.zeros(8, 8, dtype=torch.float64)
        image[7 - row, column] = ink.round().double()
        assert image.numpy().tobytes() in images


def test_batches_depend_on_seed_and_epoch_alone(digits):
    def order(seed, epoch):
        return torch.cat(digits.test.order(50, seed, epoch))

    torch.manual_seed(1)
    first = order(0, 0)
    torch.manual_seed(2)
    assert torch.equal(order(0, 0), first)
    assert sorted(first.tolist()) == list(range(360))
    assert not torch.equal(order(0, 1), first) and not torch.equal(order(1, 0), first)
    assert torch.equal(torch.cat(digits.test.order(50)), torch.arange(360))


def test_a_batch_holds_the_clouds_of_its_indices(digits):
    batch = digits.test.batch(torch.tensor([7, 3]))
    assert batch.labels.tolist() == digits.test.labels[[7, 3]].tolist()
    for row, index in enumerate((7, 3)):
        assert torch.equal(batch.clouds.points[row, batch.clouds.mask[row]], digits.test.points[index])


def test_generators_of_different_seeds_differ():
    states = {generator(*seeds).initial_seed() for seeds in [(0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0)]}
    assert len(states) == 7


def test_bad_requests(digits):
    with pytest.raises(ValueError, match=r"^name must be one of digits.*; got 'letters'$"):
        data.load("letters")
    with pytest.raises(ValueError, match=r"^intensity must be one of coordinate, none, weight; got 'colour'$"):
        data.load("digits", intensity="colour")
    with pytest.raises(ValueError, match=r"^batch_size must be at least 1, got 0$"):
        digits.test.order(0)
    with pytest.raises(ValueError, match=r"^points, weights and labels must be equally many .*, got \(1, 0, 1\)$"):
        Split([torch.zeros(1, 2)], [], torch.zeros(1, dtype=torch.int64))
