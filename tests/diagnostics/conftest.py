"""Layers whose equilibria are known by construction."""

import pytest
import torch
from torch import nn

from ddeq_fast import DDEQ


class Handmade(nn.Module):
    """F(z) = gain * shape(z) + label of the particle + centre of X, in three dimensions; `shape` is any function."""

    dim_z = 3

    def __init__(self, shape, gain=0.5, labels=0.0, centre=1.0):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.shape, self.centre = shape, centre
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64))
        self.labels = nn.Parameter(labels * torch.randn(5, 3, generator=draw, dtype=torch.float64))

    def encode(self, x, weights=None):
        return (self.centre * x.mean(1, keepdim=True),)

    def forward(self, z, context, weights=None):
        return self.gain * self.shape(z) + self.labels[: z.shape[1]] + context[0]


def layer(shape, solver="auto", backward="phantom", options=None, **parts):
    """A layer of five particles around that F."""
    return DDEQ(Handmade(shape, **parts), 5, solver=solver, backward=backward, **(options or {})).double()


PLANTED = {
    "healthy": lambda: layer(torch.tanh, labels=1.0),
    "collapsed": lambda: layer(torch.tanh),
    "ignores its particles": lambda: layer(torch.tanh, gain=0.0, labels=1.0),
    "ignores its input": lambda: layer(torch.tanh, labels=1.0, centre=0.0),
    "never converges": lambda: layer(lambda z: z + 2.0, gain=1.0, labels=1.0, options={"max_steps": 30}),
    "not unique": lambda: layer(lambda z: torch.tanh(2 * z), gain=3.0, labels=0.1, centre=0.1),
    "stops short": lambda: layer(torch.tanh, "anderson", labels=1.0, options={"max_steps": 1}),
}


@pytest.fixture
def planted():
    """A layer by what is wrong with it."""
    return lambda name: PLANTED[name]()


@pytest.fixture
def x():
    return torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
