"""Classification of clouds by their equilibrium."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from ddeq_fast.models.layer import DDEQ, Equilibrium, check_transport
from ddeq_fast.networks import TransportMap
from ddeq_fast.utils.validation import check_integer


class Classification(NamedTuple):
    """logits: (B, classes); equilibrium: of the DDEQ layer."""

    logits: Tensor
    equilibrium: Equilibrium


class Classifier(nn.Module):
    """DDEQ, maximum over the particles, linear head.

    Args:
        transport: the map F of the layer.
        num_classes: classes to tell apart.
        options: of `DDEQ`, those of its solver among them.

    Raises:
        TypeError, ValueError: as `DDEQ`.
    """

    def __init__(self, transport: TransportMap, num_classes: int, **options: Any):
        super().__init__()
        dim_z = check_transport(transport, "dim_z")
        self.ddeq = DDEQ(transport, **options)
        self.head = nn.Linear(dim_z, check_integer("num_classes", num_classes, high=2**31 - 1))

    def forward(
        self,
        x: Tensor,
        weights: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        start: Tensor | Equilibrium | None = None,
        labels: Tensor | None = None,
    ) -> Classification:
        """Class scores of clouds x (B, m, dim_x); arguments and errors as in `DDEQ.forward`."""
        equilibrium = self.ddeq(x, weights, mask=mask, start=start, labels=labels)
        return Classification(self.head(equilibrium.particles.amax(1)), equilibrium)
