"""Selecting samples from nested containers, and joining them."""

from typing import NamedTuple

import pytest
import torch

from ddeq_fast.utils import tree


class Pair(NamedTuple):
    first: object
    second: object


T = torch.arange(12.0).view(4, 3)
INDEX = torch.tensor([2, 0])
BOOLEAN = torch.tensor([False, True, False, True])


@pytest.mark.parametrize("index", [INDEX, BOOLEAN], ids=["integers", "booleans"])
def test_tensors_are_indexed_along_the_batch_axis(index):
    assert torch.equal(tree.select(T, index), T[index])


def test_containers_keep_their_types_and_order():
    nested = Pair({"b": [T, None], "a": (T + 1,)}, Pair(T[:, 0], ()))
    picked = tree.select(nested, INDEX)
    assert type(picked) is Pair and type(picked.second) is Pair and picked.second.second == ()
    assert list(picked.first) == ["b", "a"]
    assert type(picked.first["b"]) is list and type(picked.first["a"]) is tuple
    assert picked.first["b"][1] is None
    assert torch.equal(picked.first["b"][0], T[INDEX])
    assert torch.equal(picked.first["a"][0], T[INDEX] + 1)
    assert torch.equal(picked.second.first, T[INDEX, 0])


@pytest.mark.parametrize("leaf", [None, 3, 0.5, "name", T.numpy()])
def test_other_leaves_are_shared_by_all_samples(leaf):
    assert tree.select(leaf, INDEX) is leaf
    assert tree.select([leaf], INDEX)[0] is leaf


def test_the_original_is_left_alone():
    nested = {"a": [T]}
    tree.select(nested, INDEX)
    assert nested["a"][0] is T


def test_gradients_reach_the_samples_selected():
    x = T.clone().requires_grad_()
    tree.select((x,), INDEX)[0].sum().backward()
    assert x.grad.sum(1).tolist() == [3.0, 0.0, 3.0, 0.0]


def test_parts_are_joined_again():
    nested = Pair({"b": [T, None], "a": (T + 1,)}, 3)
    joined = tree.joined([tree.select(nested, slice(i, i + 3)) for i in (0, 3)])
    assert type(joined) is Pair and joined.second == 3 and joined.first["b"][1] is None
    assert torch.equal(joined.first["b"][0], T) and torch.equal(joined.first["a"][0], T + 1)
    assert tree.joined([nested]) is nested
    columns = tree.joined([(T[:, :1], None), (T[:, 1:], None)], 1)
    assert torch.equal(columns[0], T) and columns[1] is None
