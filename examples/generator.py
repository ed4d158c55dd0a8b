"""A generator without a discriminator: squared MMD is the loss (generative moment matching, Li et al. 2015).

`python examples/generator.py` trains a small network that maps noise to a ring; the energy distance, `Riesz(1)`, has no
bandwidth to choose, and its gradient reaches samples that are far from the data.
"""

import argparse

import torch
from torch import nn

from ddeq_fast import Gaussian, chamfer, squared_mmd


def ring(n):
    """n points near the unit circle."""
    angle = 2 * torch.pi * torch.rand(n, 1)
    return torch.cat((angle.cos(), angle.sin()), 1) + 0.05 * torch.randn(n, 2)


def main(steps=400, batch=256):
    """MMD^2 to fresh data before and after training."""
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    kernel = None  # Riesz(1); or several bandwidths, for instance 0.5 * Gaussian(0.2) + 0.5 * Gaussian(1.0)
    adam = torch.optim.Adam(generator.parameters(), 2e-3)

    def distance():
        with torch.no_grad():
            return float(squared_mmd(generator(torch.randn(1000, 4)), ring(1000), kernel))

    before = distance()
    for _ in range(steps):
        loss = squared_mmd(generator(torch.randn(batch, 4)), ring(batch), kernel)
        adam.zero_grad()
        loss.backward()
        adam.step()
    after = distance()
    with torch.no_grad():
        samples, data = generator(torch.randn(1000, 4)), ring(1000)
    print(f"MMD^2 {before:.3f} -> {after:.4f}; another kernel {float(squared_mmd(samples, data, Gaussian(0.5))):.4f}")
    print(f"Chamfer distance {float(chamfer(samples, data)):.3f}")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    main(parser.parse_args().steps)
