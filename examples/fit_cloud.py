"""A large cloud in a few weighted points: positions and weights are fitted by squared MMD.

`python examples/fit_cloud.py --target cloud.ply --out few.npz` does it to a file; without one, to a cloud of two lumps.
"""

import argparse

import torch

from ddeq_fast import mmd_distance, squared_mmd
from ddeq_fast.data import load_points, write_points


def lumps(n):
    """Two lumps of n points in all, a third of them in the small one."""
    small = n // 3
    return torch.cat((torch.randn(n - small, 2), 0.3 * torch.randn(small, 2) + 3))


def main(target=None, out=None, points=12, steps=300):
    """MMD to the target of equal weights, of fitted ones, and of as many points drawn from it."""
    torch.manual_seed(0)
    y = lumps(600) if target is None else load_points(target)
    x = y[torch.randperm(len(y))[:points]].clone()
    drawn = float(mmd_distance(x, y))
    positions, logits = x.requires_grad_(), torch.zeros(points, requires_grad=True)
    size = float(y.std(0).mean())
    adam = torch.optim.Adam([{"params": positions, "lr": 0.02 * size}, {"params": logits, "lr": 0.02}])
    for _ in range(steps):
        loss = squared_mmd(positions, y, x_weights=logits.softmax(0))  # weights are normalised anyway
        adam.zero_grad()
        loss.backward()
        adam.step()
    weights = logits.softmax(0).detach()
    equal = float(mmd_distance(positions.detach(), y))
    fitted = float(mmd_distance(positions.detach(), y, x_weights=weights))
    print(f"MMD to {len(y)} points: {points} of them {drawn:.4f}, fitted {fitted:.4f} (weights equal: {equal:.4f})")
    if out is not None:
        write_points(out, positions.detach(), beside={"weights": weights})
    return drawn, fitted


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", metavar="FILE", help="cloud: .npy, .npz, .ply, .off, .xyz, .csv")
    parser.add_argument("--out", metavar="FILE", help=".npz, with the weights beside the points")
    parser.add_argument("--points", type=int, default=12)
    options = parser.parse_args()
    main(options.target, options.out, options.points)
