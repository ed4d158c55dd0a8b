"""One process of the ring tests: `ring_worker.py STORE RANK COUNT`. Every check is an assertion; 0 if all hold."""

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from ddeq_fast import (
    Gaussian,
    Riesz,
    field,
    kde_entropy,
    potential,
    potential_and_field,
    squared_mmd,
    wasserstein_gradient,
    witness,
)
from ddeq_fast.commands.cloud_flow import CloudFlow, Settings
from ddeq_fast.gradients.bilevel import Bilevel
from ddeq_fast.solvers.anderson import Anderson
from ddeq_fast.sums import backends
from ddeq_fast.sums.backends.ring import Ring, normalised

KERNELS = (Riesz(1.0), 0.5 * Riesz(1.5) + Gaussian(0.7))


def shards(count, n):
    """Ends of uneven shards of n points."""
    edges = [n * i * (i + 1) // (count * (count + 1)) for i in range(count + 1)]
    assert all(b > a for a, b in zip(edges, edges[1:]))  # noqa: B905, RUF007
    return edges


def draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(found, whole, part):
    for value, expected in zip(found, whole, strict=True):
        torch.testing.assert_close(value, expected[:, part], rtol=1e-11, atol=1e-12)


def sums_and_gradients(rank, count, kernel):
    """Potential, field, their gradients and second derivatives against one process that has it all."""
    mine = [slice(*shards(count, n)[rank : rank + 2]) for n in (23, 31)]
    x, y, v, g, h = (draw(2, n, *d, seed=i) for i, (n, *d) in enumerate([(23, 3), (31, 3), (31,), (23,), (23, 3)]))
    y[:, :4] = x[:, 5:9]

    def derivatives(x, y, v, g, h, backend):
        x, y, v = (tensor.clone().requires_grad_() for tensor in (x, y, v))
        u, f = potential_and_field(x, y, kernel, charges=v, backend=backend)
        first = torch.autograd.grad((u * g).sum() + (f * h).sum(), (x, y, v))
        bent = torch.autograd.grad(
            (potential(x, y, kernel, charges=v, backend=backend) * g).sum(), (x, y, v), create_graph=True
        )
        second = torch.autograd.grad(sum(part.square().sum() for part in bent), (x, y, v))
        return (u.detach(), f.detach()), first, second

    whole = derivatives(x, y, v, g, h, "dense")
    i, j = mine
    found = derivatives(x[:, i], y[:, j], v[:, j], g[:, i], h[:, i], "ring")
    check(found[0], whole[0], i)
    for gradients, expected in zip(found[1:], whole[1:], strict=True):
        check(gradients[:1], expected[:1], i)
        check(gradients[1:], expected[1:], j)


def discrepancy(rank, count):
    """MMD, witness and Wasserstein gradient of clouds in shards, weighted and masked, with gradients of a root."""
    i, j = (slice(*shards(count, n)[rank : rank + 2]) for n in (23, 31))
    x, y, z = draw(2, 23, 3, seed=0), draw(2, 31, 3, seed=1) + 0.5, draw(2, 4, 3, seed=2)
    a, mask = draw(2, 23, seed=3).abs(), torch.arange(31).expand(2, -1) % 3 > 0
    a[:, : shards(count, 23)[1]] = 0  # no mass in the first process

    def derivatives(x, y, a, mask, backend):
        x, y, a = (tensor.clone().requires_grad_() for tensor in (x, y, a))
        options = {"x_weights": a, "y_mask": mask, "backend": backend}
        value = squared_mmd(x, y, **options)
        found = torch.autograd.grad(value.sqrt().sum(), (x, y, a))
        (bent,) = torch.autograd.grad(squared_mmd(x, y, **options).sum(), x, create_graph=True)
        second = torch.autograd.grad(bent.square().sum(), (x, y, a))
        others = witness(z, x, y, **options), wasserstein_gradient(x, y, **options)
        return [value.detach()[:, None], others[0].detach()], [others[1].detach()], found, second

    whole = derivatives(x, y, a, mask, "dense")
    found = derivatives(x[:, i], y[:, j], a[:, i], mask[:, j], "ring")
    check(found[0], whole[0], slice(None))
    check(found[1], whole[1], i)
    for gradients, expected in zip(found[2:], whole[2:], strict=True):
        check(gradients[::2], expected[::2], i)
        check(gradients[1:2], expected[1:2], j)
    flat = squared_mmd(x[0, i], y[0, j], backend="ring")
    torch.testing.assert_close(flat, squared_mmd(x[0], y[0], backend="dense"))
    shares = normalised(torch.ones(2, 40_000, dtype=torch.float16))
    assert bool((shares > 0).all())
    nothing = {"x_weights": torch.zeros_like(a[:, i]), "backend": "ring"}
    raises(ValueError, "x_weights leaves no point in cloud 0, 1", lambda: squared_mmd(x[:, i], y[:, j], **nothing))


def different_needs(rank, count):
    """One process needs the gradient of its targets, the others those of sources or charges, or none at all."""
    x, y, v = (draw(count, 5, *d, seed=i) for i, d in enumerate([(3,), (3,), ()]))
    whole = [tensor.clone().requires_grad_() for tensor in (x, y, v)]
    flat = [tensor.flatten(0, 1) for tensor in whole]
    for call in (potential, field):
        found = call(*flat[:2], charges=flat[2], backend="dense").square().sum()
        expected = torch.autograd.grad(found, whole, retain_graph=True)
        mine = [tensor[rank].clone().requires_grad_(rank == k) for k, tensor in enumerate((x, y, v))]
        call(*mine[:2], charges=mine[2], backend="ring").square().sum().backward()
        for k, tensor in enumerate(mine):
            assert (tensor.grad is not None) == (rank == k)
            if rank == k:
                torch.testing.assert_close(tensor.grad, expected[k][rank])
    mine = [tensor[rank].clone().requires_grad_(rank == 0) for tensor in (x, y)]
    squared_mmd(*mine, backend="ring").backward()
    value = squared_mmd(*flat[:2], backend="dense")
    for tensor, gradient in zip(mine, torch.autograd.grad(value, whole[:2]), strict=True):
        if rank == 0:
            torch.testing.assert_close(tensor.grad, gradient[0])
    with torch.set_grad_enabled(rank == 0):
        message = "the processes make different calls: gradients are needed in some"
        raises(ValueError, message, lambda: potential(*mine, backend="ring"))


def refusals():
    x = draw(4, 3, seed=0)
    for user in (
        lambda: kde_entropy(x, 1.0, backend="ring"),
        lambda: Anderson(backend="ring"),
        lambda: Bilevel(backend="ring"),
        lambda: CloudFlow(x, Settings(3), backend="ring"),
    ):
        raises(ValueError, "", user, "backend must not be 'ring'")
    near = draw(4, 3, seed=1).requires_grad_()
    root = squared_mmd(near, x, backend="ring").sqrt()
    start = "squared_mmd over shards has no second derivatives"
    raises(ValueError, start, lambda: torch.autograd.grad(root, near, create_graph=True))


def raises(error, start, call, part=""):
    try:
        call()
    except error as caught:
        assert str(caught).startswith(start) and part in str(caught), caught
        return
    raise AssertionError(f"no error that starts with {start!r}")


def disagreement(rank):
    x = draw(4, 3, seed=0)
    own = x.float() if rank == 1 else x
    raises(
        ValueError,
        "the processes make different calls: process 0 sums potential of",
        lambda: potential(own, own, backend="ring"),
    )
    call = field if rank == 1 else potential
    raises(ValueError, "the processes make different calls", lambda: call(x, x, backend="ring"))
    kernel = Gaussian(1.0 + rank)
    raises(ValueError, "the processes make different calls", lambda: potential(x, x, kernel, backend="ring"))


def third_derivatives():
    x = draw(4, 3, seed=0).requires_grad_()
    y = draw(4, 3, seed=1)
    (bent,) = torch.autograd.grad(field(x, y, backend="ring").square().sum(), x, create_graph=True)
    raises(ValueError, "backend 'ring' has no third derivatives", lambda: bent.sum().backward())


def main(store, rank, count):
    torch.set_num_threads(1)
    x = torch.zeros(2, 3)
    raises(
        ValueError,
        "backend 'ring' cannot run this: needs torch.distributed.init_process_group",
        lambda: potential(x, x, backend="ring"),
    )
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=count, timeout=timedelta(seconds=60))
    for kernel in KERNELS:
        sums_and_gradients(rank, count, kernel)
    discrepancy(rank, count)
    different_needs(rank, count)
    refusals()
    third_derivatives()
    disagreement(rank)
    pair = dist.new_group([0, 1], timeout=timedelta(seconds=60))
    if rank < 2:
        backends.register("pair", Ring(pair, local="dense"))
        y = draw(2, 5, 3, seed=7)
        found = potential(y[rank], y[rank], backend="pair")
        torch.testing.assert_close(found, potential(y[rank], y.flatten(0, 1), backend="dense"))
    if count == 2:
        return
    dist.barrier()
    if rank == count - 1:
        os._exit(3)  # dies without a word
    big = draw(2000, 3, seed=rank)
    raises(RuntimeError, f"process {rank} of the ring lost another one: ", lambda: potential(big, big, backend="ring"))
    os._exit(0)  # no farewell to the dead


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
