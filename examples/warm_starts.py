"""A video of clouds: each solve starts at the equilibrium of the frame before: `python examples/warm_starts.py`."""

import torch

from ddeq_fast import DDEQ, TransportMap


def video(frames, points):
    """A bar that turns and drifts: one cloud (1, points, 2) after another."""
    cloud = torch.randn(points, 2) * torch.tensor([1.0, 0.2])
    for i in range(frames):
        angle = torch.tensor(0.03 * i)
        turn = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos())).view(2, 2)
        yield (cloud @ turn.mT + 0.01 * i)[None]


def main(frames=20, points=60):
    """Evaluations of F over the video, cold and warm."""
    torch.manual_seed(0)
    layer = DDEQ(TransportMap(dim_z=16, dim_x=2, dim_label=2), num_particles=8, tol=1e-2)
    cold = warm = 0
    last = None
    with torch.no_grad():
        for cloud in video(frames, points):
            fresh = layer(cloud)
            last = layer(cloud, start=last)  # residuals stay relative to those of the first start
            cold, warm = cold + int(fresh.info.evaluations), warm + int(last.info.evaluations)
            apart = (fresh.particles - last.particles).norm() / fresh.particles.norm()
            counts = f"{int(fresh.info.evaluations):3d} cold, {int(last.info.evaluations):3d} warm"
            print(f"{counts}, {float(apart):.1e} apart")
    print(f"{frames} frames: {cold} evaluations cold, {warm} warm")
    return cold, warm


if __name__ == "__main__":
    main()
