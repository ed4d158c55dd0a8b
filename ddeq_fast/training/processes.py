"""The processes of a job started by torchrun, one a GPU or CPU share; a plain start is a job of one process."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ddeq_fast.gradients.bilevel import Bilevel

# A process that neither answers nor dies ends the job after this time.
TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True)
class Processes:
    """This process is number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> Processes:
        """Meet the other processes that torchrun started, over nccl for GPUs and gloo for CPUs."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not distributed.is_initialized():
            on_gpu = device.type == "cuda"
            distributed.init_process_group(
                "nccl" if on_gpu else "gloo", timeout=TIMEOUT, device_id=device if on_gpu else None
            )
            atexit.register(leave)
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def main(self) -> bool:
        """Whether this one writes files and talks to the user."""
        return self.rank == 0

    def share(self, n: int) -> Tensor:
        """Which of n samples are this process's, (m,); some process may have none."""
        return torch.arange(self.rank, n, self.size)

    def gather(self, item: Any) -> list:
        """The items of all processes, in their order."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        distributed.all_gather_object(items, item)
        return items

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of the tensors of all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def check(self, model: nn.Module) -> None:
        """Raises ValueError, naming it, if a part of the model makes several processes train otherwise than one."""
        if self.size == 1:
            return
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
                what = f"{name} is a {type(module).__name__}, which draws for each process's share of the batch alone"
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                what = f"{name} is a {type(module).__name__}, which takes the share for the batch"
            elif isinstance(backward := getattr(module, "backward", None), Bilevel) and backward.kernel is None:
                what = "backward='bilevel' has a kernel as wide as the particles of the whole batch"
            elif getattr(getattr(module, "solver", None), "stop_together", False):
                what = f"the solver of {name} has stop_together, which takes the share for the batch"
            else:
                continue
            raise ValueError(f"cannot be trained by {self.size} processes with the results of one: {what}")

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose backward averages gradients over the processes."""
        return model if self.size == 1 else nn.parallel.DistributedDataParallel(model)


def leave() -> None:
    """End what `join` began while Python still runs: a thread of the group that outlives it may abort the process."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def local_device(name: str) -> str:
    """The device for this process: "cuda" and "auto" mean a GPU of its own.

    Raises ValueError for a single GPU that several processes would share.
    """
    index = os.environ.get("LOCAL_RANK")
    if name.startswith("cuda:") and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise ValueError(f"device must be cuda or auto in a job of several processes, a GPU for each, got {name!r}")
    if index is not None and name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{index}"
    return name
