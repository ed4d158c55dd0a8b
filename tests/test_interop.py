"""Checkpoints of the original code: every name has its counterpart, and strange ones are reported."""

from pathlib import Path

import numpy as np
import pytest
import torch
from problems import fails

from ddeq_fast.interop.checkpoints import from_original
from ddeq_fast.models import Classifier
from ddeq_fast.networks import TransportMap

GOLDEN = np.load(Path(__file__).parent / "golden" / "classifier2d.npz", allow_pickle=False)


@pytest.fixture(scope="module")
def original():
    return {k.removeprefix("state_dict/"): torch.from_numpy(GOLDEN[k]) for k in GOLDEN if k.startswith("state_dict/")}


def test_names_and_shapes_are_those_of_the_classifier(original):
    transport = TransportMap(16, 2, heads=4, dim_lift=(8, 8, 16), dim_hidden=64, dim_final=64, cross_layers=2)
    expected = {name: p.shape for name, p in Classifier(10, transport).named_parameters()}
    assert {name: value.shape for name, value in from_original(original).items()} == expected


def test_values_are_passed_on_untouched(original):
    renamed = from_original(original)
    assert len(renamed) == len(original)
    assert {id(value) for value in renamed.values()} == {id(value) for value in original.values()}
    assert renamed["ddeq.transport.final.linear1.bias"] is original["deq_model.ffn.linear1.bias"]
    theirs = "deq_model.cross_encoder.layers.1.multihead_attn.in_proj_weight"
    assert renamed["ddeq.transport.cross_encoder.1.project_in.weight"] is original[theirs]


def test_unknown_keys_are_listed():
    state_dict = {
        "deq_model.ln1.weight": torch.ones(2),
        "zeta.bias": torch.ones(2),
        "deq_model.ln7.bias": torch.ones(2),
    }
    with fails(ValueError, "state_dict has keys that do not fit: deq_model.ln7.bias, zeta.bias"):
        from_original(state_dict)


def test_a_name_that_only_begins_alike_does_not_fit():
    """ "ln1" is a name there, "ln11" is not."""
    with fails(ValueError, "state_dict has keys that do not fit: deq_model.ln11.weight"):
        from_original({"deq_model.ln11.weight": torch.ones(2)})
