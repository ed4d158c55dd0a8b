"""An F of your own in a DDEQ layer, trained to tell how wide a cloud is: `python examples/own_map.py`.

F is a module with `dim_z`, `encode(x, weights)`, called once a solve, and `forward(z, context, z_weights)`.
"""

import argparse

import torch
from torch import nn

from ddeq_fast import DDEQ
from ddeq_fast.gradients import jacobian_norm


class DeepSets(nn.Module):
    """Particles see their own mean and features of the input cloud: equivariant in them, invariant in it."""

    def __init__(self, dim_x, dim_z=8, width=32):
        super().__init__()
        self.dim_z = dim_z
        self.features = nn.Sequential(nn.Linear(dim_x, width), nn.ReLU(), nn.Linear(width, width))
        self.update = nn.Sequential(nn.Linear(2 * dim_z + width, width), nn.Tanh(), nn.Linear(width, dim_z))

    def encode(self, x, weights=None):
        weights = x.new_ones(x.shape[:2]) if weights is None else weights
        share = weights / weights.sum(1, keepdim=True)  # padding has weight zero
        return (share[..., None] * self.features(x)).sum(1)

    def forward(self, z, context, weights=None):
        mean = z.mean(1, keepdim=True)
        return self.update(torch.cat((z, mean.expand_as(z), context[:, None].expand(-1, z.shape[1], -1)), 2))


def main(steps=200, clouds=64, points=40):
    """Losses of the first and of the last step."""
    torch.manual_seed(0)
    layer = DDEQ(DeepSets(2), num_particles=4, solver="anderson", tol=1e-3, backward="ift")
    head = nn.Linear(layer.transport.dim_z, 1)
    adam = torch.optim.Adam([*layer.parameters(), *head.parameters()], 1e-2)
    losses = []
    for _ in range(steps):
        width = 0.5 + torch.rand(clouds, 1)
        equilibrium = layer(width[..., None] * torch.randn(clouds, points, 2))
        loss = (head(equilibrium.particles.mean(1)) - width).square().mean()
        particles, image = equilibrium.backward_info.evaluated
        contraction = jacobian_norm(equilibrium.problem, particles, image=image).mean()
        adam.zero_grad()
        (loss + 0.1 * contraction).backward()  # which keeps solves short
        adam.step()
        losses.append(float(loss.detach()))
    evaluations = float(equilibrium.info.evaluations.double().mean())
    print(f"squared error {losses[0]:.3f} -> {losses[-1]:.4f}, {evaluations:.1f} evaluations of F a solve")
    return losses[0], losses[-1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    main(parser.parse_args().steps)
