"""Batches by length: every cloud once, little padding, and still a function of (seed, epoch)."""

import pytest
import torch

from ddeq_fast.data.dataset import Split


def split(sizes):
    points = [torch.full((n, 2), float(i)) for i, n in enumerate(sizes)]
    return Split(points, [torch.ones(n) for n in sizes], torch.arange(len(points)))


@pytest.fixture(scope="module")
def ragged():
    return split(torch.randint(5, 100, (1003,), generator=torch.Generator().manual_seed(0)).tolist())


def padding(split, order):
    """Share of the places in the padded batches that hold no point."""
    sizes = torch.tensor([len(points) for points in split.points])
    places = sum(len(batch) * int(sizes[batch].max()) for batch in order)
    return 1 - int(sizes.sum()) / places


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("by_length", [True, False])
def test_every_cloud_comes_once_and_one_batch_is_smaller(ragged, seed, by_length):
    order = ragged.order(10, seed, 2, by_length)
    assert torch.cat(order).sort().values.tolist() == list(range(1003))
    assert sorted(map(len, order)) == [3] + [10] * 100


def test_little_is_padded(ragged):
    plain, sorted_, whole = (
        padding(ragged, order)
        for order in (ragged.order(10, 0), ragged.order(10, 0, 0, True), ragged.order(10, None, 0, True))
    )
    assert plain > 0.4
    assert sorted_ < 0.06
    assert whole < 0.01


def test_the_order_is_a_function_of_seed_and_epoch(ragged):
    def order(*arguments):
        return torch.cat(ragged.order(10, *arguments, by_length=True))

    torch.manual_seed(1)
    first = order(0, 3)
    torch.manual_seed(2)
    assert torch.equal(order(0, 3), first)
    assert not torch.equal(order(0, 4), first) and not torch.equal(order(1, 3), first)
    assert torch.equal(order(None, 3), order(None, 4))


def test_batches_of_all_sizes_come_at_all_times(ragged):
    """Sizes must not tell early from late: means of the halves of an epoch differ by little, as do epochs."""
    means = torch.tensor(
        [[len(ragged.points[i]) for i in batch] for batch in ragged.order(10, 0, 0, True) if len(batch) > 3]
    )
    first, second = means.double().mean(1).split(50)
    assert abs(first.mean() - second.mean()) < 3 * (2 / 50) ** 0.5 * 28


def test_a_cloud_meets_others_in_every_epoch(ragged):
    def company(epoch):
        return next(set(batch.tolist()) for batch in ragged.order(10, 0, epoch, True) if 17 in batch)

    assert len(company(0) & company(1)) < 5


def test_batches_hold_the_clouds_of_their_order(ragged):
    order = ragged.order(64, 5, 1, True)
    for indices in order:
        batch = ragged.batch(indices)
        assert torch.equal(batch.indices, indices) and torch.equal(batch.labels, indices)
        assert batch.clouds.mask.sum(1).tolist() == [len(ragged.points[i]) for i in indices.tolist()]


def test_clouds_of_one_size_stay_shuffled():
    order = torch.cat(split([7] * 200).order(10, 0, 0, True))
    assert not torch.equal(order, order.sort().values)
