"""Copies of modules: deepcopy, pickle, state dicts, functional calls, export; and workers that read a split."""

import copy
import io
import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from ddeq_fast.data.dataset import Batch, Split
from ddeq_fast.gradients import Phantom
from ddeq_fast.interop.original.network import DEQ
from ddeq_fast.models import DDEQ, Classifier, Completer
from ddeq_fast.solvers import Anderson
from problems import close, rings_and_discs, small_transport

SOLVE = {"solver": Anderson(tol=1e-2, max_steps=8), "backward": Phantom(steps=2)}
SIZES = {"d_z": 8, "hidden_dim_equiv_1": 4, "hidden_dim_equiv_2": 6, "d_encoder": 8, "dim_feedforward": 12}


class FFN(torch.nn.Module):
    """Stands for the original's class of that name."""


def image(model, x):
    """F(Z, X) for particles that are made of x, and labelled by it where there are labels."""
    context = model.encode(x)
    if model.dim_label:
        context = model.labelled(context, x)
    return model(x.repeat(1, 1, 4), context)


# How a module is made, of a seed, and what it returns for clouds x.
MODULES = {
    "transport": (lambda seed: small_transport(seed), image),
    "labelled transport": (lambda seed: small_transport(seed, dim_label=2), image),
    "layer": (lambda seed: DDEQ(small_transport(seed), 3, seed=seed, **SOLVE), lambda model, x: model(x).particles),
    "labelled layer": (
        lambda seed: DDEQ(small_transport(seed, dim_label=3), 3, seed=seed, **SOLVE),
        lambda model, x: model(x).particles,
    ),
    "layer with drawn labels": (
        lambda seed: DDEQ(small_transport(seed, dim_label=3), 3, seed=seed, labels="drawn", **SOLVE),
        lambda model, x: model(x).particles,
    ),
    "classifier": (
        lambda seed: Classifier(small_transport(seed), 5, num_particles=3, seed=seed, **SOLVE),
        lambda model, x: model(x).logits,
    ),
    "labelled classifier": (
        lambda seed: Classifier(small_transport(seed, dim_label=3), 5, num_particles=3, seed=seed, **SOLVE),
        lambda model, x: model(x).logits,
    ),
    "completer": (
        lambda seed: Completer(small_transport(seed), growth=1.5, **SOLVE),
        lambda model, x: model(x, noise=x).points,
    ),
    "labelled completer": (
        lambda seed: Completer(small_transport(seed, dim_label=2), growth=1.5, mass="learned", **SOLVE),
        lambda model, x: (out := model(x, noise=x)).points * out.weights[..., None],
    ),
    "original": (
        lambda seed: DEQ(**SIZES, num_layers=1, FFNNetwork=FFN, bilinear_pushforward=True),
        lambda model, x: model(x.repeat(1, 1, 4), x)[0],
    ),
}


def make(name, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODULES[name][0](seed).double()
        for parameter in model.parameters():
            if parameter.dim() < 2:  # norms and biases, which are the same at the start of every training
                torch.nn.init.normal_(parameter, 0.0, 0.1)
        return model.eval()


def evaluated(name, model, x):
    """The output, and the gradients of all parameters and of x by their names."""
    x = x.clone().requires_grad_()
    out = MODULES[name][1](model, x)
    named = {"x": x, **dict(model.named_parameters())}
    found = torch.autograd.grad(out.square().sum(), list(named.values()), allow_unused=True)
    return out.detach(), dict(zip(named, found, strict=True))


def same(found, expected):
    (out, gradients), (expected_out, expected_gradients) = found, expected
    assert torch.equal(out, expected_out) and gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert (gradient is None) == (gradients[name] is None), name
        assert gradient is None or torch.equal(gradients[name], gradient), name
    return True


def saved_whole(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved_whole,
}


@pytest.fixture
def x(cloud):
    return 2 * cloud(2, 6, 2)


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", MODULES)
def test_a_copy_does_the_same_and_is_apart(name, way, x):
    """Also of a module that has been evaluated and differentiated, with what it may have kept of that."""
    model = make(name, 0)
    expected = evaluated(name, model, x)
    assert any(gradient is not None and gradient.any() for gradient in expected[1].values())
    other = COPIES[way](model)
    assert type(other) is type(model) and repr(other) == repr(model) and not other.training
    assert same(evaluated(name, other, x), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    assert not torch.equal(evaluated(name, other, x)[0], expected[0])
    assert same(evaluated(name, model, x), expected)


@pytest.mark.parametrize("name", MODULES)
def test_a_state_dict_is_all_there_is(name, x):
    """It goes through a file that holds tensors alone, into a module of other weights, particles and labels."""
    model, other = make(name, 0), make(name, 1)
    expected, before = evaluated(name, model, x), evaluated(name, other, x)
    assert not torch.equal(before[0], expected[0])
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert same(evaluated(name, other, x), expected)


@pytest.mark.parametrize("name", ["classifier", "labelled classifier"])
def test_functional_call_is_the_module_with_those_weights(name, x):
    model, other = make(name, 0), make(name, 1)
    before, expected = evaluated(name, model, x), evaluated(name, other, x)
    weights = {key: value.detach().clone().requires_grad_() for key, value in other.named_parameters()}
    points = x.clone().requires_grad_()
    logits = torch.func.functional_call(model, {**weights, **dict(other.named_buffers())}, (points,)).logits
    named = {"x": points, **weights}
    gradients = torch.autograd.grad(logits.square().sum(), list(named.values()), allow_unused=True)
    assert same((logits.detach(), dict(zip(named, gradients, strict=True))), expected)
    assert same(evaluated(name, model, x), before)  # its own weights are back
    model.load_state_dict({**weights, **dict(other.named_buffers())})
    assert same(evaluated(name, model, x), expected)


def test_the_map_is_exported(x):
    """Evaluations of F, as many as one writes; a solve takes as many as its clouds need, which export cannot hold."""
    model = _Steps(make("transport", 0))
    with torch.no_grad():
        exported = torch.export.export(model, (x.repeat(1, 1, 4), x), strict=False).module()
        other = x.flip(0) + 1
        assert close(exported(other.repeat(1, 1, 4), other), model(other.repeat(1, 1, 4), other))


class _Steps(torch.nn.Module):
    """z <- F(z, x), twice."""

    def __init__(self, transport):
        super().__init__()
        self.transport = transport

    def forward(self, z, x):
        context = self.transport.encode(x)
        return self.transport(self.transport(z, context), context)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_a_split(start):
    split = rings_and_discs(7, 0, (3, 6), 0.5)
    order = split.order(3, seed=0)
    loader = DataLoader(_Batches(split, order), batch_size=None, num_workers=2, multiprocessing_context=start)
    found = list(loader)
    assert len(found) == len(order) == 3
    for batch, indices in zip(found, order, strict=True):
        expected = split.batch(indices)
        assert isinstance(batch, Batch) and torch.equal(batch.indices, indices)
        assert torch.equal(batch.labels, expected.labels)
        assert torch.equal(batch.clouds.points, expected.clouds.points)
        assert torch.equal(batch.clouds.mask, expected.clouds.mask)


class _Batches:
    """The batches of an epoch, as a data set of PyTorch's has its items."""

    def __init__(self, split: Split, order):
        self.split, self.order = split, order

    def __len__(self):
        return len(self.order)

    def __getitem__(self, i):
        return self.split.batch(self.order[i])
