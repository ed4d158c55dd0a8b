"""What surrounds every point of a cloud, as the cloud's own potential and field have it at several bandwidths.

Numbers that no turn of the cloud changes, and that hardly depend on how many points were sampled: a network need not
learn either from examples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddeq_fast.sums.operators import evaluate
from ddeq_fast.sums.radial import Gaussian
from ddeq_fast.utils.validation import check_number

MOST = 64  # bandwidths: more are a mistake


class Descriptors(nn.Module):
    """Coordinates, followed by descriptors: (B, m, d) -> (B, m, d + 1 + 3 s) for s > 0 bandwidths. No parameters.

    The Gaussian kernel of bandwidth sigma, summed over the cloud as a probability measure, gives a point x the
    potential u(x) and the field f(x) = grad u(x). Its descriptors are |x| and, of every bandwidth,

    - log(1 + v / sigma^2), v the potential of the other points: how dense they are around it,
    - |g| and <g, x> of g = sigma f / u, the mean shift (Comaniciu and Meer 2002) in units of sigma: whether it lies at
      a border, and which way that faces.

    Rotations about the origin change none of them. Padding has some too, which mean nothing.

    Args:
        bandwidths: in the units of the points; none leaves the coordinates alone.

    Raises:
        TypeError, ValueError: no sequence, more than 64, one that is not positive and finite.
    """

    def __init__(self, bandwidths: Sequence[float] = ()):
        super().__init__()
        if not isinstance(bandwidths, (tuple, list)):
            raise TypeError(f"bandwidths must be a tuple or a list of numbers, got {bandwidths!r}")
        if len(bandwidths) > MOST:
            raise ValueError(f"bandwidths must be at most {MOST}, got {len(bandwidths)}")
        self.bandwidths = tuple(check_number("bandwidths", bandwidth) for bandwidth in bandwidths)

    def extra_repr(self) -> str:
        return f"bandwidths={self.bandwidths}"

    @property
    def width(self) -> int:
        """Numbers of a point beside its coordinates."""
        return 1 + 3 * len(self.bandwidths) if self.bandwidths else 0

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Of points x (B, m, d) with weights (B, m), zero for padding; gradients reach both. Neither is checked."""
        if not self.bandwidths:
            return x
        shares = weights / weights.sum(1, keepdim=True)
        # Of a point that is alone there are no others, and nothing to divide by.
        others = (1 - shares).clamp_min(torch.finfo(x.dtype).eps)
        columns = [torch.linalg.vector_norm(x, dim=-1)]
        for bandwidth in self.bandwidths:
            u, f = evaluate(x, x, shares, Gaussian(bandwidth), "auto", True, True)
            # Both sums may be zero at padding.
            shift = bandwidth * f / u.clamp_min(torch.finfo(x.dtype).tiny)[..., None]
            near = (u - shares).clamp_min(0) / others
            columns += [torch.log1p(near / bandwidth**2), torch.linalg.vector_norm(shift, dim=-1), (shift * x).sum(-1)]
        return torch.cat((x, torch.stack(columns, -1)), -1)
