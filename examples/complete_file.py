"""A completer trained on arcs of circles completes the cloud of a file: `python examples/complete_file.py`.

Points are labelled by where they start, so that the new ones are a distribution at equilibrium, not one spot.
"""

import argparse
from pathlib import Path

import torch

from ddeq_fast import Completer, PointClouds, TransportMap, chamfer, squared_mmd
from ddeq_fast.data import load_points, write_points
from ddeq_fast.solvers import quiet


def circles(clouds, points):
    """Whole circles (clouds, points, 2), and which of their points are observed, all but an arc of a third."""
    angle = 2 * torch.pi * torch.rand(clouds, points).sort(1).values
    whole = torch.stack((angle.cos(), angle.sin()), 2)
    observed = (angle + 2 * torch.pi * torch.rand(clouds, 1)) % (2 * torch.pi) > 2 * torch.pi / 3
    observed[:, 0] = True  # one point at least
    return whole, observed


def main(folder=".", steps=150, clouds=16, points=30):
    """Chamfer distance to the whole circle of the partial cloud and of the completed one."""
    torch.manual_seed(0)
    transport = TransportMap(16, 2, num_heads=2, dim_lift=(16, 16, 16), dim_hidden=64, dim_final=64, dim_label=2)
    model = Completer(transport, growth=1.5, solver="anderson", tol=1e-2, max_steps=20, return_image=True)
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        whole, observed = circles(clouds, points)
        with quiet():  # early solves may stop short
            completion = model(whole, mask=observed)
        loss = squared_mmd(completion.points, whole, x_weights=completion.weights).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()

    whole, observed = circles(1, 60)
    partial, out = Path(folder, "partial.ply"), Path(folder, "whole.ply")
    write_points(partial, whole[observed])
    cloud = load_points(partial)
    with torch.no_grad(), quiet():
        completion = model.eval()(cloud[None])
    completed = PointClouds(completion.points, completion.weights)
    write_points(out, completed.points[completed.mask])
    before, after = (float(chamfer(each, whole[0])) for each in (cloud, completed.points[completed.mask]))
    print(f"Chamfer distance {before:.3f} -> {after:.3f}; wrote {len(cloud)} points to {partial}, more to {out}")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default=".", help="where partial.ply and whole.ply are written")
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    main(options.folder, options.steps)
