"""Implicit gradient of an equilibrium that is fixed as a measure, though F may permute its particles.

The equilibrium minimises G(Z) = MMD^2(mu, F#mu) / 2 (Geuter et al. 2025, section 3.3), so that the implicit function
theorem is applied to grad G = 0, and not to Z = F(Z), which does not hold particle by particle. Where the
discrepancy vanishes, G is half the squared norm of the embedded measure nu = mu - F#mu, and its Hessian is exactly
that of Gauss and Newton: for a motion t of the points p = (Z, F(Z)), with charges w,

    (A t)_i = w_i sum_j w_j D_2 grad_1 k(p_i, p_j) t_j,        H v = (I, J^T) A (v, J v).

That is one tangent of the op, one product with J and one with its transpose; conjugate gradients solve H v = dL/dZ.
Of particles with labels, p are points of the product space, and t has no part along the labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ddeq_fast.gradients.base import Backward, BackwardInfo
from ddeq_fast.gradients.implicit import implicit
from ddeq_fast.gradients.linear import conjugate_gradients
from ddeq_fast.solvers.iterate import warn_of
from ddeq_fast.solvers.problem import Pushforward
from ddeq_fast.sums import backends
from ddeq_fast.sums.mmd import signed_measure
from ddeq_fast.sums.operators import tangent
from ddeq_fast.sums.radial import Gaussian, RadialKernel
from ddeq_fast.utils.validation import check_integer, check_number


@dataclass(kw_only=True, repr=False, eq=False)
class Bilevel(Backward):
    """Gradient through the minimiser of the discrepancy; agrees with "ift" where F fixes every particle.

    F is differentiated twice, which PyTorch's fused attention does not allow: take `networks.attention.attend` in an F
    of your own. A derivative of the gradient raises RuntimeError, as does forward mode.

    Args:
        kernel: a kernel that is smooth where points coincide, as Z and F(Z) do: no Riesz or Laplacian part. None
            takes a Gaussian as wide as the root mean square distance of the particles of the batch; where they coincide
            it is a width at which the linear system says so, by a residual above `tol`.
        max_steps: most steps of conjugate gradients, each with one product with J and one with J^T.
        tol: relative residual of the linear system at which a sample is done.
        damping: added to the Hessian, relative to its largest diagonal entries; a cloud with nearly coincident
            particles needs some.
        backend: backend of the kernel sums.

    Raises:
        ValueError, TypeError: a kernel with a cusp, or an option out of range.
    """

    kernel: RadialKernel | None = None
    max_steps: int = 100
    tol: float = 1e-5
    damping: float = 0.0
    backend: str = "auto"

    def __post_init__(self) -> None:
        kernel = self.kernel
        if kernel is not None:
            if not isinstance(kernel, RadialKernel):
                raise TypeError(f"kernel must be a RadialKernel such as Gaussian(1.0), got {type(kernel).__name__}")
            if not kernel.smooth:
                raise ValueError(f"kernel must be smooth where points coincide, got {kernel!r}")
        backends.check_whole("Bilevel", self.backend)
        check_integer("max_steps", self.max_steps)
        self.tol = check_number("tol", self.tol)
        self.damping = check_number("damping", self.damping, closed=True)

    def attach(self, problem: Pushforward, z: Tensor) -> tuple[Tensor, BackwardInfo]:
        z, problem = z.detach(), problem.recorded(z)
        image = problem.constrained_image(z)
        info = BackwardInfo(evaluated=(z, image))

        def solve(gradient: Tensor) -> Tensor:
            hessian = _Hessian(self, problem, z, info)
            motion, info.residual = conjugate_gradients(
                hessian, hessian.constrained(gradient), self.max_steps, self.tol
            )
            warn_of("backward", info.residual, info.residual <= self.tol, self.tol)
            return -hessian.pull(motion)[1]

        # The equilibrium itself is returned; its gradient enters F(z) as the motion of the image that it stands for.
        return implicit(image, z, solve), info


class _Hessian:
    """H v at a cloud z, and the parts that it is made of."""

    def __init__(self, options: Bilevel, problem: Pushforward, z: Tensor, info: BackwardInfo):
        self.problem, self.z, self.info, self.backend = problem, z, info, options.backend
        y, *products = problem.jacobian(z)
        self.push, self.pull_back = (problem.product(product, z) for product in products)
        wide = torch.promote_types(z.dtype, torch.float32)
        real = problem.present(torch.ones_like(z[..., :1]))
        points, image = (problem.on_product(problem.present(part).to(wide)) for part in (z, y))
        charged = points, image
        self.points, self.charges = signed_measure(*charged, *problem.measures(*charged))
        kernel = options.kernel
        if kernel is None:
            count = real.sum(1, keepdim=True)
            centred = points - points.sum(1, keepdim=True) / count
            spread, size = (
                ((part.square().sum(-1) * real[..., 0]).sum() / count.sum()).sqrt() for part in (centred, points)
            )
            # Of coincident particles the spread is rounding, and a width made of it gives gradients of noise.
            least = torch.finfo(z.dtype).eps ** 0.5 * float(size)
            kernel = Gaussian(max(2**0.5 * float(spread), least, 1e-12))
        self.kernel = kernel
        diagonal = self.charges[:, : z.shape[1]].square().amax(1) * abs(float(kernel.phi(points.new_zeros(()))))
        self.damping = (options.damping * diagonal)[:, None, None]
        self.moving = problem.moving(z)

    def constrained(self, v: Tensor) -> Tensor:
        """v without the components of padding and of frozen particles."""
        return v * self.moving

    def pull(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """A (v, J v), split into the parts of z and of F(z)."""
        self.info.evaluations += 1
        d = v.shape[-1]
        motion = F.pad(torch.cat((v, self.push(v)), 1), (0, self.points.shape[-1] - d))  # labels stay
        nothing = torch.zeros_like(self.points)
        rest = self.points, self.points, self.charges, nothing, motion, self.kernel, self.backend
        return (self.charges[..., None] * tangent(*rest)[1][..., :d]).split(v.shape[1], 1)

    def __call__(self, v: Tensor) -> Tensor:
        on_z, on_image = self.pull(v)
        return self.constrained(on_z + self.pull_back(on_image)) + self.damping * v
