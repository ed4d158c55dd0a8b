"""Networks: the transport map of a DDEQ and its layers."""

from ddeq_fast.networks.coupling import Lift
from ddeq_fast.networks.descriptors import Descriptors
from ddeq_fast.networks.transport import Context, TransportMap

__all__ = ["Context", "Descriptors", "Lift", "TransportMap"]
