"""One cloud over several processes, each of which has a shard of it: potentials, MMD and its gradient, exactly.

    torchrun --nproc-per-node 2 examples/ring_sums.py --points 2000

On GPUs give the tensors a device and the process group "nccl", which has not been tested.
"""

import argparse

import torch
import torch.distributed as dist

from ddeq_fast import potential, squared_mmd


def shard(points, seed):
    """This process's part of a cloud that every process could draw whole."""
    whole = torch.randn(points, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return whole, whole.tensor_split(dist.get_world_size())[dist.get_rank()]


def main(points=2000):
    """Largest difference to what one process finds that has it all."""
    dist.init_process_group("gloo")
    try:
        (whole_x, x), (whole_y, y) = shard(points, 0), shard(points + 101, 1)
        x.requires_grad_()
        u = potential(x, y, backend="ring")  # at this process's targets, of the sources of all
        value = squared_mmd(x, y, backend="ring")  # of the whole clouds, in every process
        value.backward()  # collective too; the gradient is of this process's shard

        whole_x.requires_grad_()
        alone = squared_mmd(whole_x, whole_y)
        alone.backward()
        mine = slice(*(sum(part) for part in _ends(points)))
        expected = potential(whole_x, whole_y)[mine]
        apart = [(u - expected) / expected.abs().max(), value - alone, (x.grad - whole_x.grad[mine]) * points]
        apart = max(float(part.detach().abs().max()) for part in apart)
        here = f"process {dist.get_rank()}, {len(x)} of {points} targets"
        print(f"{here}: MMD^2 {float(value.detach()):.3e}, {apart:.0e} off")
        return apart
    finally:
        dist.destroy_process_group()


def _ends(points):
    """Numbers of points before this process's shard, and with it."""
    sizes = [len(part) for part in torch.arange(points).tensor_split(dist.get_world_size())]
    return sizes[: dist.get_rank()], sizes[: dist.get_rank() + 1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=2000)
    if main(parser.parse_args().points) > 1e-9:
        raise SystemExit("the ring differs from one process")
