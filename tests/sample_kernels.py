"""The radial kernels that tests run over, and kernels of a user's own."""

from ddeq_fast import Gaussian, InverseMultiquadric, Laplacian, Mixture, RadialKernel, Riesz

# Each elementary kernel, with a bandwidth that is not one, and a mixture.
KERNELS = {
    "riesz_half": Riesz(0.5),
    "riesz_one": Riesz(1.0),
    "riesz_three_halves": Riesz(1.5),
    "gaussian": Gaussian(0.8),
    "laplacian": Laplacian(0.9),
    "inverse_multiquadric": InverseMultiquadric(1.3),
    "mixture": Mixture(((0.5, Riesz(1.0)), (2.0, Gaussian(1.7)), (-0.25, Laplacian(0.6)))),
}


class Rational(RadialKernel):
    """1 / (1 + q): a class that is not registered."""

    def k(self, q):
        return 1 / (1 + q)

    def phi(self, q):
        return -2 / (1 + q) ** 2

    def dphi(self, q):
        return 4 / (1 + q) ** 3
