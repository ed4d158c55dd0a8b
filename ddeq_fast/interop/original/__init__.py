"""Drop-in parts for the original DDEQ code: its functions, its network, its checkpoints."""

from ddeq_fast.interop.original.functions import mmd_gf
from ddeq_fast.interop.original.mmd import gaussian_kernel, gaussian_witness_function, riesz_kernel, squared_mmd
from ddeq_fast.interop.original.network import DEQ
from ddeq_fast.interop.original.state_dicts import from_original, load_original

__all__ = [
    "DEQ",
    "from_original",
    "gaussian_kernel",
    "gaussian_witness_function",
    "load_original",
    "mmd_gf",
    "riesz_kernel",
    "squared_mmd",
]
