"""One process of the ring tests: `ring_worker.py STORE RANK COUNT`. Every check is an assertion; 0 if all hold."""

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from ddeq_fast import (
    Gaussian,
    Riesz,
    backends,
    field,
    kde_entropy,
    potential,
    potential_and_field,
    squared_mmd,
    wasserstein_gradient,
    witness,
)
from ddeq_fast.backends.ring import Ring
from ddeq_fast.cloud_flow import CloudFlow, Settings
from ddeq_fast.solvers import Anderson

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
        u, f = potential_and_field(x, y, v, kernel, backend=backend)
        first = torch.autograd.grad((u * g).sum() + (f * h).sum(), (x, y, v))
        bent = torch.autograd.grad(
            (potential(x, y, v, kernel, backend=backend) * g).sum(), (x, y, v), create_graph=True
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
    """MMD, witness and Wasserstein gradient of weighted clouds in shards, and the gradients of the first."""
    i, j = (slice(*shards(count, n)[rank : rank + 2]) for n in (23, 31))
    x, y, a, b = draw(2, 23, 3, seed=0), draw(2, 31, 3, seed=1) + 0.5, draw(2, 23, seed=2).abs(), draw(2, 31, seed=3)
    b, last = b.abs(), slice(*shards(count, 31)[-2:])
    b[:, last] = 0  # the last process has nothing but padding of y
    kernel, z = KERNELS[1], draw(2, 5, 3, seed=4)

    def sums(x, y, a, b, z, backend):
        x, y, a, b = (tensor.clone().requires_grad_() for tensor in (x, y, a, b))
        options = {"x_weights": a, "y_weights": b, "backend": backend}
        value = squared_mmd(x, y, kernel, **options)
        gradients = torch.autograd.grad(value.sum(), (x, y, a, b), create_graph=True)
        (second,) = torch.autograd.grad(gradients[0].square().sum(), x)
        with torch.no_grad():
            force = wasserstein_gradient(x, y, kernel, **options)
            return value, gradients, second, witness(z, x, y, kernel, **options), force

    whole = sums(x, y, a, b, z, "dense")
    found = sums(x[:, i], y[:, j], a[:, i], b[:, j], z + rank, "ring")
    torch.testing.assert_close(found[0], whole[0], rtol=1e-10, atol=1e-12)
    check(found[1][::2], whole[1][::2], i)
    check(found[1][1::2], whole[1][1::2], j)
    check((found[2], found[4]), (whole[2], whole[4]), i)
    expected = witness(z + rank, x, y, kernel, x_weights=a, y_weights=b, backend="dense")
    torch.testing.assert_close(found[3], expected, rtol=1e-10, atol=1e-12)
    raises(
        ValueError,
        "weights leave no point in a cloud, in any process",
        lambda: squared_mmd(x[:, i], y[:, j], x_weights=0 * a[:, i], backend="ring"),
    )


def gradients_of_some(rank, count):
    """Each process wants another gradient; one may want none, but must not disable them."""
    i, j = (slice(*shards(count, n)[rank : rank + 2]) for n in (23, 31))
    x, y, v = draw(2, 23, 3, seed=0), draw(2, 31, 3, seed=1), draw(2, 31, seed=2)
    whole = [tensor.clone().requires_grad_() for tensor in (x, y, v)]
    expected = torch.autograd.grad(potential(*whole, backend="dense").sum(), whole)
    mine = [x[:, i].clone(), y[:, j].clone(), v[:, j].clone()]
    own = rank % 3
    mine[own].requires_grad_()
    potential(*mine, backend="ring").sum().backward()
    check((mine[own].grad,), (expected[own],), i if own == 0 else j)
    mine = [tensor.detach() for tensor in mine]
    if rank == 0:
        mine[0].requires_grad_()
    with torch.set_grad_enabled(rank == 0):
        raises(
            ValueError, "the processes make different calls: process 0 wants", lambda: potential(*mine, backend="ring")
        )


def refusals():
    """What needs all of a cloud in one process."""
    x = draw(4, 3, seed=0)
    reason = "backend 'ring' sums shards of several processes; "
    raises(ValueError, reason + "the density", lambda: kde_entropy(x, 1.0, backend="ring"))
    raises(ValueError, reason + "a solver moves", lambda: Anderson(backend="ring"))
    raises(ValueError, reason + "the flow moves", lambda: CloudFlow(x, Settings(5), backend="ring"))


def raises(error, start, call):
    try:
        call()
    except error as caught:
        assert str(caught).startswith(start), caught
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
    raises(ValueError, "the processes make different calls", lambda: potential(x, x, None, kernel, backend="ring"))


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
    gradients_of_some(rank, count)
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
