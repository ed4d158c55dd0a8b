"""The kernel losses of geomloss's `SamplesLoss` on the sums here: only the import changes.

    from ddeq_fast.interop.geomloss import SamplesLoss
    value = SamplesLoss("energy")(x, y)

With charges a at x and -b at y, and z = (x, y), the loss is 1/2 sum_ij w_i w_j k(z_i, z_j): half of `squared_mmd` where
both clouds have mass one (Feydy et al., 2019, Interpolating between optimal transport and MMD using Sinkhorn
divergences, section 1). Weights are taken as they are, of any mass and sign.

Sums are exact, by blocks or in fused kernels: no matrix of all pairs is kept. geomloss 0.3 with the backend
"tensorized" takes no distance, in units of blur for "laplacian", for less than 1e-4: its energy loss is less by 1e-4
times (sum a_i^2 + sum b_j^2) / 2. Its second derivatives and those of its potentials are not the formula's, as those
here are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddeq_fast.sums.mmd import signed_measure
from ddeq_fast.sums.operators import energy, evaluate
from ddeq_fast.sums.radial import Gaussian, Laplacian, RadialKernel, Riesz
from ddeq_fast.utils.validation import check_charges, check_choice, check_cloud, check_flag, check_number

__all__ = ["SamplesLoss"]

# What a person who asks for another loss may want.
_ELSEWHERE = {
    "sinkhorn": "ddeq_fast.earth_movers_distance is optimal transport between clouds",
    "hausdorff": "ddeq_fast.chamfer compares nearest points",
}
_KERNELS: dict[str, Callable[[float], RadialKernel]] = {
    "energy": lambda blur: Riesz(1.0),
    "gaussian": Gaussian,
    "laplacian": Laplacian,
}
_BACKENDS = {"auto": "auto", "tensorized": "dense", "online": "auto", "multiscale": "auto"}
# geomloss's defaults of arguments without effect on these losses, and why they have none.
_EXACT = "sums here are exact and need no clusters"
_TRANSPORT = "it belongs to loss='sinkhorn'"
_OTHER_KERNEL = "ddeq_fast.MMDLoss(kernel=...) takes any radial kernel"
_WITHOUT_EFFECT = {
    "p": (2, _TRANSPORT),
    "reach": (None, _TRANSPORT),
    "truncate": (5, _EXACT),
    "cost": (None, _OTHER_KERNEL),
    "kernel": (None, _OTHER_KERNEL),
    "cluster_scale": (None, _EXACT),
    "debias": (True, _TRANSPORT),
}


class SamplesLoss(nn.Module):
    """Half the squared MMD of two weighted clouds, called as geomloss's: (x, y) or (a, x, b, y).

    Args:
        loss: "energy", k = -|x - y|; "gaussian", k = exp(-|x - y|^2 / (2 blur^2)); or "laplacian", k =
            exp(-|x - y| / blur).
        blur: > 0, bandwidth of the Gaussian and the Laplacian kernel, in the units of the points.
        potentials: return the potential of the charges a, -b at x, and its negative at y, instead of the loss.
        backend: "tensorized" for blocks of all pairs, "auto", "online" or "multiscale" for the fastest exact sum.
        diameter, scaling, verbose: without effect on these losses, as in geomloss.
        p, reach, truncate, cost, kernel, cluster_scale, debias: at geomloss's defaults alone (truncate may be None):
            others ask for another loss.

    Raises:
        TypeError, ValueError: naming the argument: an unknown loss or backend, a blur that is no bandwidth, an argument
            without effect that is not at its default.
    """

    def __init__(
        self,
        loss: str = "sinkhorn",
        p: float = 2,
        blur: float = 0.05,
        reach: float | None = None,
        diameter: float | None = None,
        scaling: float = 0.5,
        truncate: float | None = 5,
        cost: object = None,
        kernel: object = None,
        cluster_scale: float | None = None,
        debias: bool = True,
        potentials: bool = False,
        verbose: bool = False,
        backend: str = "auto",
    ):
        super().__init__()
        if isinstance(loss, str) and loss in _ELSEWHERE:
            raise ValueError(f"loss must be one of {', '.join(_KERNELS)}; got {loss!r}: {_ELSEWHERE[loss]}")
        self.loss = check_choice("loss", loss, _KERNELS)
        self.blur = check_number("blur", blur)
        given = dict(p=p, reach=reach, truncate=truncate, cost=cost, kernel=kernel)
        given.update(cluster_scale=cluster_scale, debias=debias)
        for name, value in given.items():
            default, reason = _WITHOUT_EFFECT[name]
            same = isinstance(value, (bool, int, float)) and value == default
            if not (same or value is default or (name == "truncate" and value is None)):
                raise ValueError(f"{name} must be left at {default!r} for loss {loss!r}, got {value!r}: {reason}")
        self.potentials = check_flag("potentials", potentials)
        self.backend = check_choice("backend", backend, _BACKENDS)

    def extra_repr(self) -> str:
        """Shown by `print(loss)`."""
        return f"loss={self.loss!r}, blur={self.blur}, potentials={self.potentials}, backend={self.backend!r}"

    @property
    def radial(self) -> RadialKernel:
        """The kernel k."""
        return _KERNELS[self.loss](self.blur)

    def forward(self, *args: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        """The loss of (x, y), of (a, x, b, y), or of (None, a, x, None, b, y), since clusters cannot be given.

        Args:
            x, y: clouds, (n, d) and (m, d), or batched (B, n, d) and (B, m, d), floating point; same dtype and device.
            a, b: weights, (n,) or (B, n), or with a trailing axis of one, and so on, of any sign and sum; 1/n and 1/m
                if they are not given. A zero weight is padding.

        Returns:
            (B,), or a scalar for clouds without a batch axis; twice differentiable in x, y, a and b. With `potentials`
            a pair (B, n) and (B, m), where B = 1 for clouds without a batch axis, as geomloss has it.

        Raises:
            TypeError, ValueError: another number of arguments, wrong type, dtype, shape or device, NaN, labels.
        """
        a, x, b, y = _arguments(args)
        check_cloud("x", x)
        check_cloud("y", y, like=("x", x))
        a, b = _charges("a", a, x), _charges("b", b, y)
        dtype = torch.promote_types(x.dtype, torch.float32)  # a difference of sums loses the digits of half precision
        batched = x.dim() == 3
        tensors = (tensor.to(dtype) if batched else tensor.to(dtype)[None] for tensor in (x, y, a, b))
        z, w = signed_measure(*tensors)
        backend = _BACKENDS[self.backend]
        if self.potentials:
            u = evaluate(z, z, w, self.radial, backend, True, False)[0].to(x.dtype)
            return u[:, : x.shape[-2]], -u[:, x.shape[-2] :]
        value = (0.5 * energy(z, w, self.radial, backend)).to(x.dtype)
        return value if batched else value[0]


def _arguments(args: tuple) -> tuple:
    """(a, x, b, y), weights None where they are not given."""
    if len(args) == 2:
        return None, args[0], None, args[1]
    if len(args) == 6:
        for name, labels in (("l_x", args[0]), ("l_y", args[3])):
            if labels is not None:
                got = type(labels).__name__
                raise ValueError(f"{name}, labels of clusters, must be None, got {got}: {_EXACT}, call (a, x, b, y)")
        return *args[1:3], *args[4:]
    if len(args) != 4:
        raise TypeError(f"a loss must be called with (x, y) or (a, x, b, y), got {len(args)} arguments")
    return args


def _charges(name: str, weights: Tensor | None, cloud: Tensor) -> Tensor:
    """Weights (n,) or (B, n), without a trailing axis of one; equal ones of mass one if None."""
    if weights is None:
        return cloud.new_full(cloud.shape[:-1], 1 / cloud.shape[-2])
    if isinstance(weights, Tensor) and weights.dim() == cloud.dim() and weights.shape[-1] == 1:
        weights = weights.squeeze(-1)
    return check_charges(name, weights, cloud)
