"""Checkpoints: any damage is told, tied and strided weights survive, what does not fit is named."""

import json

import pytest
import torch
from torch import nn

from ddeq_fast.utils import checkpoints

pytest.importorskip("safetensors")


def test_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "c"
    tensors = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3, dtype=torch.int16)}
    checkpoints.save(path, tensors, {"step": 3, "x": "é"})
    good = path.read_bytes()
    loaded, info = checkpoints.load(path)
    assert info == {"step": 3, "x": "é"} and all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        path.write_bytes(bytes(bad))
        with pytest.raises(ValueError, match=r"/c is damaged or no checkpoint of ddeq_fast"):
            checkpoints.load(path)


def test_a_file_without_checksum_is_refused(tmp_path):
    from safetensors.torch import save

    (tmp_path / "c").write_bytes(save({"a": torch.ones(2)}, metadata={"ddeq_fast": json.dumps({})}))
    with pytest.raises(ValueError, match=r"its header lacks 'sha256'"):
        checkpoints.load(tmp_path / "c")


class Odd(nn.Module):
    """Weights and buffers that share memory in every way."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.again, self.tied = self.first, nn.Linear(3, 3)
        self.tied.weight = self.first.weight
        self.turned = nn.Parameter(torch.randn(4, 2).mT)
        self.short, self.scale = nn.Parameter(torch.randn(2).bfloat16()), nn.Parameter(torch.tensor(2.0))
        whole = torch.randn(6)
        self.register_buffer("whole", whole)
        self.register_buffer("part", whole[1:3])
        self.register_buffer("spread", torch.randn(1, 3).expand(4, 3))


def test_weights_that_share_memory_are_saved_and_stay_tied(tmp_path):
    models = [Odd(), Odd()]
    optimizers = [torch.optim.AdamW(model.parameters()) for model in models]
    for parameter in models[0].parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers[0].step()
    checkpoints.save(tmp_path / "c", checkpoints.pack(models[0], optimizers[0]), {})
    tensors, _ = checkpoints.load(tmp_path / "c")
    checkpoints.unpack_model(tensors, models[1], tmp_path / "c")
    checkpoints.unpack_optimizer(tensors, models[1], optimizers[1], tmp_path / "c")
    ours, theirs = (checkpoints.pack(*pair) for pair in zip(models, optimizers, strict=True))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert models[1].tied.weight is models[1].first.weight and models[1].again is models[1].first
    models[1].whole.fill_(7)
    assert models[1].part.tolist() == [7, 7]


@pytest.mark.parametrize(
    "value", [torch.ones(2) * 1j, torch.eye(2).to_sparse(), torch.ones(2, device="meta"), {"extra": 1}]
)
def test_what_cannot_be_saved_is_named(value, tmp_path):
    with pytest.raises(TypeError, match=r"^model\.odd "):
        checkpoints.save(tmp_path / "c", {"model.odd": value}, {})
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_named(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    good, path = checkpoints.pack(model, optimizer), tmp_path / "c"
    entry = "optimizer.weight:exp_avg"
    for change, message in [
        ({"model.weight": good["model.weight"].double()}, "does not fit the model: weight: .*float64, not .*float32"),
        ({"model.bias": torch.full((2,), torch.nan)}, "holds weights that are not finite: bias"),
        ({entry: None}, "does not fit the optimizer: weight:exp_avg is missing"),
        ({entry: good[entry][None]}, "does not fit the optimizer: weight:exp_avg"),
        ({entry: good[entry] * torch.inf}, "does not fit the optimizer: weight:exp_avg"),
        ({"optimizer.other:exp_avg": good[entry]}, "does not fit the optimizer: other"),
    ]:
        bad = {name: value for name, value in {**good, **change}.items() if value is not None}
        with pytest.raises(ValueError, match=f"/c {message}"):
            checkpoints.unpack_model(bad, model, path)
            checkpoints.unpack_optimizer(bad, model, optimizer, path)
