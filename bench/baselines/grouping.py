"""Neighbours and far apart points in padded batches of clouds, of which the baselines make local features.

Features of all real points of a batch lie one below another, (total, c), in the order of the padded points (B, n, d).
Where distances are equal, as between pixels, the order of the points decides which of them are neighbours or survive.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Neighbours(NamedTuple):
    """index: (total, k), rows of the nearest points; mask: (total, k), False where a cloud has fewer than k points."""

    index: Tensor
    mask: Tensor

    def of(self, features: Tensor) -> Tensor:
        """(total, k, c): the features of the neighbours."""
        return features.index_select(0, self.index.flatten()).view(*self.index.shape, -1)

    def real(self, values: Tensor) -> Tensor:
        """(pairs, c): values (total, k, c) of the neighbours that there are, without a copy if these are all."""
        return values.flatten(0, 1) if bool(self.mask.all()) else values[self.mask]


def rows(mask: Tensor) -> Tensor:
    """(B, n): where the features of each real point lie."""
    return mask.flatten().cumsum(0).view(mask.shape) - 1


def clouds(mask: Tensor) -> Tensor:
    """(total,): the number of the cloud to which each real point belongs."""
    return torch.arange(len(mask), device=mask.device).repeat_interleave(mask.sum(1))


def means(features: Tensor, mask: Tensor) -> Tensor:
    """Mean (B, c) of the features over the real points of each cloud."""
    total = features.new_zeros(len(mask), features.shape[1]).index_add(0, clouds(mask), features)
    return total / mask.sum(1, keepdim=True)


def padded(features: Tensor, mask: Tensor) -> Tensor:
    """(B, n, c): the features where their points are in the padded batch, zero at padding."""
    return features.new_zeros(*mask.shape, features.shape[1]).masked_scatter(mask[..., None], features)


@torch.no_grad()
def neighbours(x: Tensor, x_mask: Tensor, points: Tensor, mask: Tensor, k: int) -> Neighbours:
    """The k real ones among points (B, n, d) that are nearest to each real one of x (B, m, d)."""
    # Differences are exact, and cheap in few dimensions; of features there are many.
    mode = "donot_use_mm_for_euclid_dist" if x.shape[2] <= 8 else "use_mm_for_euclid_dist"
    distances = torch.cdist(x, points, compute_mode=mode)
    found = distances.masked_fill(~mask[:, None], float("inf")).topk(min(k, points.shape[1]), largest=False)
    index = rows(mask).gather(1, found.indices.flatten(1)).view(found.indices.shape)
    return Neighbours(index[x_mask].clamp_min(0), found.values[x_mask].isfinite())


def farthest(points: Tensor, mask: Tensor, ratio: int) -> tuple[Tensor, Tensor]:
    """One in `ratio` of the points of each cloud, each as far as can be from those before: indices and mask (B, m).

    The first is the one farthest from the mean.
    """
    count = (mask.sum(1) + ratio - 1) // ratio
    mean = (points * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
    place = (points - mean).square().sum(-1).masked_fill(~mask, -1).argmax(1)
    least, chosen = torch.where(mask, float("inf"), -1.0).to(points.dtype), []
    for _ in range(int(count.max())):
        chosen.append(place)
        last = points.gather(1, place[:, None, None].expand(-1, 1, points.shape[2]))
        least = torch.minimum(least, (points - last).square().sum(-1))
        place = least.argmax(1)
    return torch.stack(chosen, 1), torch.arange(len(chosen), device=points.device) < count[:, None]


def picked(points: Tensor, index: Tensor) -> Tensor:
    """(B, m, d): the points (B, n, d) at indices (B, m)."""
    return points.gather(1, index[..., None].expand(-1, -1, points.shape[2]))
