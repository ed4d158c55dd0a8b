"""One process of the ring tests: `ring_worker.py STORE RANK COUNT`. Every check is an assertion; 0 if all hold."""

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from ddeq_fast import Gaussian, Riesz, backends, field, potential, potential_and_field, squared_mmd
from ddeq_fast.backends.ring import Ring, normalised

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
    """MMD of clouds in shards, with its gradient."""
    i, j = (slice(*shards(count, n)[rank : rank + 2]) for n in (23, 31))
    x, y = draw(2, 23, 3, seed=0), draw(2, 31, 3, seed=1) + 0.5
    whole = x.clone().requires_grad_()
    expected = squared_mmd(whole, y, backend="dense")
    (gradient,) = torch.autograd.grad(expected.sum(), whole)
    mine = x[:, i].clone().requires_grad_()
    a, b = (normalised(torch.ones_like(cloud[..., 0])) for cloud in (x[:, i], y[:, j]))
    z, w = torch.cat((mine, y[:, j]), 1), torch.cat((a, -b), 1)
    part = (w * potential(z, z, w, backend="ring")).sum(-1)
    (found,) = torch.autograd.grad(part.sum(), mine)
    check((found,), (gradient,), i)
    total = part.detach().clone()
    dist.all_reduce(total)
    torch.testing.assert_close(total, expected.detach(), rtol=1e-10, atol=1e-12)


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
