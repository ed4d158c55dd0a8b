"""Checkpoints of the original code: every name has its counterpart, and strange ones are reported."""

from pathlib import Path

import pytest
import torch

from ddeq_fast.interop.original.state_dicts import from_original, load_original
from ddeq_fast.models import Classifier
from ddeq_fast.networks import TransportMap
from problems import fails
from references import golden

GOLDEN = golden("classifier2d")


@pytest.fixture(scope="module")
def original():
    return {k.removeprefix("state_dict/"): torch.from_numpy(GOLDEN[k]) for k in GOLDEN if k.startswith("state_dict/")}


def test_names_and_shapes_are_those_of_the_classifier(original):
    transport = TransportMap(16, 2, num_heads=4, dim_lift=(8, 8, 16), dim_hidden=64, dim_final=64, cross_layers=2)
    expected = {name: p.shape for name, p in Classifier(transport, 10).named_parameters()}
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


def small_classifier(classes=10, **options):
    sizes = {"num_heads": 4, "dim_lift": (8, 8, 16), "dim_hidden": 64, "dim_final": 64, "cross_layers": 2, **options}
    return Classifier(TransportMap(16, 2, **sizes), classes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["state dict", "path", "string"])
def test_loading(original, tmp_path, form, dtype):
    """Every weight, in the model's dtype; its start cloud stays."""
    path = tmp_path / "original.pth"
    torch.save(original, path)
    model = small_classifier().to(dtype)
    start = model.ddeq.start.clone()
    load_original(model, {"state dict": original, "path": path, "string": str(path)}[form])
    weights = dict(model.named_parameters())
    for name, value in from_original(original).items():
        assert weights[name].dtype == dtype and torch.equal(weights[name], value.to(dtype))
    assert torch.equal(model.ddeq.start, start)


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (
            40,
            {},
            "head.bias has shape (10,) in the checkpoint, (40,) in the model; "
            "head.weight has shape (10, 16) in the checkpoint, (40, 16) in the model",
        ),
        (
            10,
            {"dim_final": 32},
            "ddeq.transport.final.linear1.bias has shape (64,) in the checkpoint, (32,) in the model; "
            "ddeq.transport.final.linear1.weight has shape (64, 16) in the checkpoint, (32, 16) in the model; "
            "ddeq.transport.final.linear2.weight has shape (16, 64) in the checkpoint, (16, 32) in the model",
        ),
    ],
)
def test_sizes_that_differ_are_listed(original, classes, options, message):
    model = small_classifier(classes, **options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with fails(ValueError, f"checkpoint does not fit the model: {message}"):
        load_original(model, original)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("layers", "where"), [(1, "model"), (3, "checkpoint")])
def test_layers_that_are_missing_are_listed(original, layers, where):
    with pytest.raises(ValueError, match=rf"cross_encoder\.{min(layers, 2)}\.norm\.bias is not in the {where}; "):
        load_original(small_classifier(cross_layers=layers), original)


def test_a_file_of_anything_but_weights_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "run",))

    torch.save({"deq_model.ln1.weight": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"^checkpoint .*bad\.pth is no file of weights alone: "):
        load_original(small_classifier(), tmp_path / "bad.pth")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"weights"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"^checkpoint .*bad\.pth is no file of weights alone: "):
        load_original(small_classifier(), tmp_path / "bad.pth")
    with pytest.raises(FileNotFoundError, match=r"^checkpoint: there is no file .*none\.pth$"):
        load_original(small_classifier(), tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("model", "checkpoint", "message"),
    [
        (None, {}, "model must be a Classifier or Completer, got NoneType"),
        (torch.nn.Linear(1, 1), 3, "checkpoint must be a path, got int"),
        (torch.nn.Linear(1, 1), {"weight": 3}, "checkpoint must hold tensors by name, got int under 'weight'"),
        (torch.nn.Linear(1, 1), {3: torch.ones(1)}, "checkpoint must hold tensors by name, got Tensor under 3"),
    ],
)
def test_what_is_no_model_or_checkpoint(model, checkpoint, message):
    with fails(TypeError, message):
        load_original(model, checkpoint)
