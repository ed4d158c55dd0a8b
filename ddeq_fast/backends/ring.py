"""Ring backend: clouds in shards over the processes of torch.distributed, exact sums over all of them.

Every process passes its own targets x (B, m, d) and its own sources y (B, n, d) with charges v, and gets potential and
field at its targets of the sources of all. The shards of sources travel round the ring of processes, the next one
under way while the present one is summed by a local backend: no process ever holds more than two.

A call is collective: every process makes the same calls, in the same order, forward and backward, with the same batch,
dimension and dtype; m and n may differ, but each is one at least (a source of zero charge is padding). Gradients are
those of the sum over all processes of their losses, so that each process gets the whole gradient in its own shard.

A process that dies or falls out of step is an error in all others, at once or after the timeout of the process group.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from ddeq_fast import backends
from ddeq_fast.radial import RadialKernel

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def normalised(weights: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Weights (n,) or (B, n) of this process's points, as shares of the mass of all processes: collective.

    `squared_mmd` knows the weights of one process alone. Of a cloud in shards, with charges w of this kind,

        u = potential(z, z, w, backend="ring");  MMD^2 = (w * u).sum(-1), added up over the processes.
    """
    mass = weights.sum(-1, keepdim=True)
    dist.all_reduce(mass, group=group)
    return weights / mass


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

    def unsupported(self, x: Tensor, y: Tensor, kernel: RadialKernel) -> str | None:
        """Needs a process group on this kind of device, and what the local backend needs."""
        if not dist.is_available():
            return "this build of torch has no torch.distributed"
        if not dist.is_initialized():
            return "needs torch.distributed.init_process_group in every process: start it with torchrun"
        if x.device.type == "cuda" and "nccl" not in dist.get_backend(self.group):
            return f"needs the nccl backend for tensors on a GPU, got {dist.get_backend(self.group)}"
        if torch.compiler.is_compiling():
            return "cannot be compiled"
        return None if self.local == "auto" else backends.get(self.local).unsupported(x, y, kernel)

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
        return backends.get(backends.resolve(self.local, x, y, kernel))

    def _round(self, sums: Callable, x: Tensor, sources: tuple[Tensor, ...], kernel: RadialKernel, call: int):
        """Total of `sums` over the shards of all processes; `call` numbers what is summed."""
        sizes = self._agree(x, sources, kernel, call)
        widths = [source.shape[2] for source in sources]
        shard = torch.cat(sources, 2)
        rank, count = dist.get_rank(self.group), dist.get_world_size(self.group)
        total = None
        for step in range(count):
            underway, incoming = [], None
            if step + 1 < count:
                incoming = shard.new_empty(shard.shape[0], sizes[(rank - step - 1) % count], shard.shape[2])
                underway = self._pass_on(shard, incoming)
            y, v, *rest = shard.split(widths, 2)
            found = sums(y.contiguous(), v.squeeze(2), *(tensor.contiguous() for tensor in rest))
            total = (
                found if total is None else tuple(a if a is None else a + b for a, b in zip(total, found, strict=True))
            )
            for work in underway:
                self._guarded(work.wait)
            shard = incoming
        return total

    def _pass_on(self, shard: Tensor, incoming: Tensor):
        """Start sending a shard to the next process and receiving one from the process before."""
        rank, count = dist.get_rank(self.group), dist.get_world_size(self.group)
        after, before = (
            dist.get_global_rank(self.group or dist.group.WORLD, (rank + step) % count) for step in (1, -1)
        )
        transfers = [
            dist.P2POp(dist.isend, shard.contiguous(), after, self.group),
            dist.P2POp(dist.irecv, incoming, before, self.group),
        ]
        return self._guarded(lambda: dist.batch_isend_irecv(transfers))

    def _agree(self, x: Tensor, sources: tuple[Tensor, ...], kernel: RadialKernel, call: int) -> list[int]:
        """Number of sources of each process; raises ValueError in all of them if they make different calls."""
        batch, n, d = sources[0].shape
        checksum = zlib.crc32(repr(kernel).encode())
        mine = torch.tensor([n, batch, d, _DTYPES.index(x.dtype), call, checksum], device=x.device)
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.group))]
        self._guarded(lambda: dist.all_gather(every, mine, group=self.group))
        every = [one.tolist() for one in every]
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
