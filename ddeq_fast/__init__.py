"""Distributional deep equilibrium models on fused MMD kernels."""

from ddeq_fast.losses import chamfer, kde_entropy
from ddeq_fast.mmd import mmd_distance, squared_mmd, wasserstein_gradient, witness
from ddeq_fast.nearest import nearest
from ddeq_fast.potential import field, potential, potential_and_field
from ddeq_fast.radial import Gaussian, InverseMultiquadric, Laplacian, Mixture, RadialKernel, Riesz

__version__ = "0.1.0"

__all__ = [
    "potential",
    "field",
    "potential_and_field",
    "squared_mmd",
    "mmd_distance",
    "witness",
    "wasserstein_gradient",
    "chamfer",
    "kde_entropy",
    "nearest",
    "RadialKernel",
    "Riesz",
    "Gaussian",
    "Laplacian",
    "InverseMultiquadric",
    "Mixture",
]
