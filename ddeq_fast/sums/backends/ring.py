"""Ring backend: clouds in shards over the processes of torch.distributed, exact sums over all of them.

Every process passes its own targets x (B, m, d) and its own sources y (B, n, d) with charges v, and gets potential and
field at its targets of the sources of all. The shards of sources travel round the ring of processes, the next one
under way while the present one is summed by a local backend: no process ever holds more than two.

A call is collective: every process makes the same calls, in the same order, forward and backward, with the same batch,
dimension and dtype; m and n may differ, but each is one at least (a source of zero charge is padding). Gradients are
those of the sum over all processes of their losses, so that each process gets the whole gradient in its own shard.
Which tensors need one may differ, too: where another process needs a gradient, the result has a graph here, and
backward is called on it. Gradients enabled in some processes and disabled in others, where one is needed, are a
ValueError in all.

`squared_mmd` is, in every process, that of the whole clouds, with weights normalised over all processes. So that it
counts once in that sum of losses, its gradient in a process is that of the process's own part: where all processes call
backward on the same function of it, each gets the gradient of one such function in its shard. A second derivative of a
function that is not linear in it is refused. `witness` is at this process's points z, `wasserstein_gradient` at its
shard of x. What needs the pairs of a cloud one by one (`kde_entropy`) or has its particles whole in every process
(solvers, `Bilevel`, `CloudFlow`) refuses the backend by name.

A process that dies or falls out of step is an error in all others, at once or after the timeout of the process group.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from ddeq_fast.sums.backends import registry
from ddeq_fast.sums.backends.memory import Sums, added
from ddeq_fast.sums.radial import RadialKernel
from ddeq_fast.utils.validation import check_some_left

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Kinds of messages, so that processes out of step notice.
_KINDS = ("sums over sources", "adds up tensors", "starts a differentiable call", "is in a backward pass")
_ROUND, _SUM, _TRACK, _FLAGS = range(4)


def normalised(weights: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Weights (n,) or (B, n) of this process's points, as shares of the mass of all processes: collective.

    The mass is summed in float32 at least; derivatives are right in all processes. Raises ValueError, in all of them,
    if a cloud has no mass in any.
    """
    ring = Ring(group)
    return ring.normalised("weights", weights)


class _Total(torch.autograd.Function):
    """Sum of a tensor over the processes, and so is its transpose."""

    @staticmethod
    def forward(ctx, tensor, ring):
        ctx.ring = ring
        return ring.sum(tensor)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.ring.total(gradient), None


class _Whole(torch.autograd.Function):
    """Sum over the processes, in each with the gradient of its own part."""

    @staticmethod
    def forward(ctx, part, ring):
        return ring.sum(part)

    @staticmethod
    def backward(ctx, gradient):
        if torch.is_grad_enabled() and gradient.requires_grad:
            raise ValueError("squared_mmd over shards has no second derivatives of functions not linear in it")
        return gradient, None


class Ring:
    """The backend on a process group; for one of your own, `backends.register("mine", Ring(group))`.

    Args:
        group: the processes; all of them (the default group) if None.
        local: the backend that sums each shard.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, local: str = "auto"):
        if local == "ring":
            raise ValueError("local must name a backend of one process, got 'ring'")
        self.group, self.local = group, local

    # Derivatives that are not sums over sources would be of this process's shard alone.
    sharded = True

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, without a graph; the shape must be the same in all."""
        tensor = tensor.detach().contiguous().clone()
        every = self._gather(_SUM, *tensor.shape, _DTYPES.index(tensor.dtype))
        if any(one != every[0] for one in every):
            raise ValueError(f"the processes make different calls: sums of {every}")
        self._guarded(lambda: dist.all_reduce(tensor, group=self.group))
        return tensor

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, differentiable as the sum of their losses."""
        return _Total.apply(*self.tracked(tensor), self)

    def whole(self, part: Tensor) -> Tensor:
        """Sum over the processes that counts once in the sum of their losses."""
        return _Whole.apply(*self.tracked(part), self)

    def normalised(self, name: str, weights: Tensor) -> Tensor:
        """Weights (n,) or (B, n) as shares of the mass of all processes, named `name` in the error for no mass."""
        wide = weights.to(torch.promote_types(weights.dtype, torch.float32))
        mass = self.total(wide.sum(-1, keepdim=True))
        check_some_left(name, mass.squeeze(-1) > 0)
        return (wide / mass).to(weights.dtype)

    def tracked(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors, one of them made to need a gradient if one in another process does: the backward is collective.

        Raises ValueError in all processes if gradients are needed in one and disabled in another.
        """
        reason = self._unready(tensors[0])
        if reason is not None:
            raise ValueError(f"backend 'ring' cannot run this: {reason}")
        enabled = torch.is_grad_enabled()
        mine = enabled + (enabled and any(tensor.requires_grad for tensor in tensors))
        states = [one[0] for one in self._gather(_TRACK, mine)]
        if max(states) == 2 and min(states) == 0:
            raise ValueError("the processes make different calls: gradients are needed in some and disabled in others")
        if max(states) == 2 and mine == 1:
            return (tensors[0].detach().requires_grad_(), *tensors[1:])
        return tensors

    def anywhere(self, *flags: bool) -> list[bool]:
        """Which flags are set in any process."""
        return [any(flag) for flag in zip(*self._gather(_FLAGS, *flags), strict=True)]

    def _gather(self, kind: int, *numbers: int) -> list[list[int]]:
        """The numbers of every process, for one kind of message; ValueError in all if the kinds differ."""
        device = "cpu" if "nccl" not in dist.get_backend(self.group) else "cuda"
        mine = torch.tensor([kind, len(numbers), *numbers, *[0] * (6 - len(numbers))], device=device)
        received = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.group))]
        self._guarded(lambda: dist.all_gather(received, mine, group=self.group))
        every: list[list[int]] = [one.tolist() for one in received]
        for process, one in enumerate(every):
            if one[:2] != every[0][:2]:
                told = [f"process {p} {_KINDS[e[0]]}" for p, e in ((0, every[0]), (process, one))]
                raise ValueError(f"the processes make different calls: {', '.join(told)}")
        return [one[2 : 2 + one[1]] for one in every]

    def unsupported(self, x: Tensor, y: Tensor, kernel: RadialKernel) -> str | None:
        """Needs a process group on this kind of device, and what the local backend needs."""
        reason = self._unready(x)
        return reason if reason or self.local == "auto" else registry.unsupported(self.local, x, y, kernel)

    def _unready(self, x: Tensor) -> str | None:
        if not dist.is_available():
            return "this build of torch has no torch.distributed"
        if not dist.is_initialized():
            return "needs torch.distributed.init_process_group in every process: start it with torchrun"
        if x.device.type == "cuda" and "nccl" not in dist.get_backend(self.group):
            return f"needs the nccl backend for tensors on a GPU, got {dist.get_backend(self.group)}"
        if torch.compiler.is_compiling():
            return "cannot be compiled"
        return None

    def evaluate(self, x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel, potential: bool, field: bool):
        """See `Backend.evaluate`, and the module's docstring."""

        def sums(y, v):
            return self._backend(x, y, kernel).evaluate(x, y, v, kernel, potential, field)

        return self._round(sums, x, (y, v[..., None]), kernel, 1 + potential + 2 * field)

    def tangent(self, x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: RadialKernel):
        """See `Backend.tangent`, and the module's docstring."""

        def sums(y, v, t):
            return self._backend(x, y, kernel).tangent(x, y, v, s, t, kernel)

        return self._round(sums, x, (y, v[..., None], t), kernel, 0)

    def _backend(self, x, y, kernel):
        return registry.get(registry.resolve(self.local, x, y, kernel))

    def _round(self, sums: Callable, x: Tensor, sources: tuple[Tensor, ...], kernel: RadialKernel, call: int):
        """Total of `sums` over the shards of all processes; `call` numbers what is summed."""
        sizes = self._agree(x, sources, kernel, call)
        widths = [source.shape[2] for source in sources]
        shard = torch.cat(sources, 2)
        rank, count = dist.get_rank(self.group), dist.get_world_size(self.group)
        total: Sums = ()
        for step in range(count):
            last = step + 1 == count
            incoming = shard if last else shard.new_empty(len(shard), sizes[(rank - step - 1) % count], shard.shape[2])
            underway = [] if last else self._pass_on(shard, incoming)
            y, v, *rest = shard.split(widths, 2)
            found = sums(y.contiguous(), v.squeeze(2), *(tensor.contiguous() for tensor in rest))
            total = added(total, found) if total else found
            for work in underway:
                self._guarded(work.wait)
            shard = incoming
        return total

    def _pass_on(self, shard: Tensor, incoming: Tensor):
        """Start sending a shard to the next process and receiving one from the process before."""
        rank, count = dist.get_rank(self.group), dist.get_world_size(self.group)
        after, before = (rank + 1) % count, (rank - 1) % count
        if self.group is not None:
            after, before = (dist.get_global_rank(self.group, one) for one in (after, before))
        transfers = [
            dist.P2POp(dist.isend, shard.contiguous(), after, self.group),
            dist.P2POp(dist.irecv, incoming, before, self.group),
        ]
        return self._guarded(lambda: dist.batch_isend_irecv(transfers))

    def _agree(self, x: Tensor, sources: tuple[Tensor, ...], kernel: RadialKernel, call: int) -> list[int]:
        """Number of sources of each process; raises ValueError in all of them if they make different calls."""
        batch, n, d = sources[0].shape
        checksum = zlib.crc32(repr(kernel).encode())
        every = self._gather(_ROUND, n, batch, d, _DTYPES.index(x.dtype), call, checksum)
        for process, one in enumerate(every):
            if one[1:] != every[0][1:]:
                raise ValueError(
                    "the processes make different calls: process 0 sums "
                    f"{_described(*every[0])}, process {process} {_described(*one)}"
                )
        return [one[0] for one in every]

    def _guarded(self, communicate: Callable):
        """Run it; a failure names the ring."""
        try:
            return communicate()
        except RuntimeError as error:
            rank = dist.get_rank(self.group)
            raise RuntimeError(f"process {rank} of the ring lost another one: {error}") from error


def _described(n: int, batch: int, d: int, dtype: int, call: int, kernel: int) -> str:
    what = ("tangent", "nothing", "potential", "field", "potential and field")[call]
    return f"{what} of {batch} clouds in dimension {d}, {_DTYPES[dtype]}, kernel {kernel:08x}"
