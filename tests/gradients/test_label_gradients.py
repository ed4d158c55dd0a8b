"""Gradients through labels, and into learned ones, against unrolled differentiation in float64."""

import pytest
import torch

from ddeq_fast import DDEQ, Bilevel, Gaussian, ImplicitFunction, Phantom
from ddeq_fast.clouds import PointClouds
from ddeq_fast.solvers import Anderson
from problems import close, small_transport

BACKWARDS = {
    "ift": (ImplicitFunction(method="gmres", max_steps=100, tol=1e-11), 1e-7),
    "phantom": (Phantom(steps=80), 1e-7),
    "bilevel": (Bilevel(kernel=Gaussian(2.0), tol=1e-10, max_steps=400), 1e-5),
}
TIGHT = Anderson(tol=1e-8, max_steps=200)


@pytest.mark.parametrize("name", BACKWARDS)
@pytest.mark.parametrize("own", [True, False], ids=["learned", "given"])
def test_gradients_of_and_through_labels(name, own, cloud):
    backward, tolerance = BACKWARDS[name]
    layer = DDEQ(small_transport(dim_label=3), 4, solver=TIGHT, backward=backward).double()
    x, probe = cloud(2, 5, 2, grad=True), cloud(2, 4, 8)
    labels = layer.labels if own else cloud(2, 4, 3, grad=True)
    transport, wanted = layer.transport, (x, labels, *layer.transport.parameters())
    equilibrium = layer(x, labels=None if own else labels)
    context = transport.labelled(transport.encode(x), labels.expand(2, -1, -1))
    unrolled = equilibrium.particles.detach()
    for _ in range(80):
        unrolled = transport(unrolled, context)
    assert close(equilibrium.particles.detach(), unrolled.detach(), 1e-9)
    found, expected = (torch.autograd.grad((z * probe).sum(), wanted) for z in (equilibrium.particles, unrolled))
    largest = max(float(g.abs().max()) for g in expected)
    assert expected[1].abs().max() > 1e-3
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= tolerance * largest


def test_gradients_reach_labels_of_anchors(cloud):
    layer = DDEQ(small_transport(dim_label=3), None, solver=TIGHT, backward=BACKWARDS["ift"][0]).double()
    x, labels, own = cloud(2, 5, 2), cloud(2, 4, 3, grad=True), cloud(2, 3, 3, grad=True)
    anchors, transport = cloud(2, 3, 8), layer.transport
    particles = layer(x, labels=labels, anchors=PointClouds(anchors, None), anchor_labels=own).particles
    context = transport.labelled(transport.anchored(transport.encode(x), anchors, None, own), labels)
    unrolled = particles.detach()
    for _ in range(80):
        unrolled = transport(unrolled, context)
    probe = cloud(2, 4, 8)
    found, expected = (torch.autograd.grad((z * probe).sum(), (labels, own)) for z in (particles, unrolled))
    assert all(close(ours, theirs, 1e-6) for ours, theirs in zip(found, expected, strict=True))
    assert expected[1].abs().max() > 1e-6
