"""The transport map F(Z, X): equivariant in the latent cloud Z, invariant in the input cloud X.

Split in two: `encode(X)` computes all that depends on X alone, once; `forward(Z, context)` is what a solver
evaluates again and again.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddeq_fast.networks.attention import (
    AttentionEncoder,
    Memory,
    Prepared,
    attention_bias,
    log_weights,
    prepared,
    without_padding,
    zeroed,
)
from ddeq_fast.networks.bilinear import Bilinear
from ddeq_fast.networks.layers import FeedForward, PointwiseMLP
from ddeq_fast.utils.validation import check_cloud, check_flag, check_integer, check_number, check_weights


class Anchors(NamedTuple):
    """Particles that stay where they are, as the others see them: keys and values for every self-attention layer, and
    weights (B, m)."""

    memories: tuple[Memory, ...]
    weights: Tensor


class Context(NamedTuple):
    """All that F needs of X, for a batch of B clouds; every tensor has the batch axis first."""

    matrix: Tensor
    memories: tuple[Memory | Prepared, ...]
    bias: Tensor | None
    drops: dict[str, list[Tensor | None]]
    anchors: Anchors | None = None


class TransportMap(nn.Module):
    """The EI network of a DDEQ: bilinear mixing, then self-attention in Z and cross-attention to X.

    `compile(fullgraph=True, dynamic=True)`, inherited, compiles what a solver evaluates; the batch may shrink. It is
    meant for GPUs: on CPUs attention as it is arranged here is faster.

    Both clouds are lifted to a narrow width, mixed by the bilinear layer, widened to `dim_z`, and mixed again
    by attention (Geuter et al. 2025, section 4; all normalisations are post-norm). The defaults are the paper's.

    Args:
        dim_z, dim_x: dimension of the latent and of the input points.
        heads: attention heads; must divide dim_z.
        dim_lift: hidden and output width of the first equivariant layers, hidden width of the second.
        dim_hidden: hidden width of the encoders' feed-forward blocks.
        dim_final: hidden width of the last feed-forward block.
        self_layers, cross_layers, x_layers: attention layers within Z, from Z to X, within X.
        dropout: probability of dropping a hidden unit, for all points of a cloud and all evaluations of a solve.
        attend_to_padding: compatibility with checkpoints of the original code, which attends to padded points
            and sums over them, after zeroing their rows before each normalisation and after each attention layer.
        network_dtype: torch.bfloat16 or torch.float16 evaluate F with matrix products in that precision (autocast);
            particles, residuals and weights keep their own. None for none of it.
    """

    def __init__(
        self,
        dim_z: int = 128,
        dim_x: int = 2,
        *,
        heads: int = 32,
        dim_lift: tuple[int, int, int] = (16, 16, 128),
        dim_hidden: int = 512,
        dim_final: int = 512,
        self_layers: int = 1,
        cross_layers: int = 1,
        x_layers: int = 1,
        dropout: float = 0.0,
        attend_to_padding: bool = False,
        network_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if network_dtype not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"network_dtype must be torch.bfloat16, torch.float16 or None, got {network_dtype}")
        self.network_dtype = network_dtype
        self.dim_z, self.dim_x = check_integer("dim_z", dim_z), check_integer("dim_x", dim_x)
        for name, value in (("heads", heads), ("dim_hidden", dim_hidden), ("dim_final", dim_final)):
            check_integer(name, value)
        for name, value in (("self_layers", self_layers), ("cross_layers", cross_layers), ("x_layers", x_layers)):
            check_integer(name, value, low=0)
        check_number("dropout", dropout, high=1.0, closed=True)
        if not isinstance(dim_lift, (tuple, list)) or len(dim_lift) != 3:
            raise TypeError(f"dim_lift must be three widths, got {dim_lift!r}")
        narrow, middle, widen = (check_integer("dim_lift", width) for width in dim_lift)
        self.attend_to_padding = check_flag("attend_to_padding", attend_to_padding)

        self.lift_z = PointwiseMLP(dim_z, narrow, middle)
        self.lift_x = PointwiseMLP(dim_x, narrow, middle)
        self.norm_lift_z, self.norm_lift_x = nn.LayerNorm(middle), nn.LayerNorm(middle)
        self.bilinear = Bilinear(middle, middle, middle)
        self.norm_bilinear = nn.LayerNorm(middle)
        self.widen_z = PointwiseMLP(middle, widen, dim_z)
        self.widen_x = PointwiseMLP(middle, widen, dim_z)
        self.norm_widen_z, self.norm_widen_x = nn.LayerNorm(dim_z), nn.LayerNorm(dim_z)
        self.norm_start = nn.LayerNorm(dim_z)

        def encoder(layers):
            return AttentionEncoder(layers, dim_z, heads, dim_hidden, dropout)

        self.x_encoder, self.self_encoder, self.cross_encoder = map(encoder, (x_layers, self_layers, cross_layers))
        self.final = FeedForward(dim_z, dim_final, dropout)

    def encode(self, x: Tensor, weights: Tensor | None = None) -> Context:
        """Everything F needs of X.

        Args:
            x: input clouds (B, m, dim_x).
            weights: (B, m), nonnegative, one for a plain point, zero for padding; ones if None.

        Raises:
            TypeError, ValueError: wrong shape, dtype or dimension, NaN, an empty or fully padded cloud.
        """
        if isinstance(x, Tensor) and x.dim() != 3:
            raise ValueError(f"x must have shape (B, m, {self.dim_x}), got {tuple(x.shape)}")
        check_cloud("x", x)
        if x.shape[-1] != self.dim_x:
            raise ValueError(f"x must have points in dimension {self.dim_x}, got {x.shape[-1]}")
        self.check_match("x", x)
        padded, weights = weights is not None, check_weights("weights", weights, None, x)
        if padded:
            x = without_padding(x, weights)
        present = self._present(weights)
        if self.attend_to_padding:
            weights = torch.ones_like(weights)
        bias = attention_bias(weights)

        with self._precision(x):
            lifted = self.norm_lift_x(zeroed(self.lift_x(x), present))
            wide = self.norm_widen_x(zeroed(self.widen_x(lifted), present))
            encoded = self.x_encoder(wide, bias=bias, drops=self.x_encoder.draw(x), present=present)
            drops = {
                "self": self.self_encoder.draw(x),
                "cross": self.cross_encoder.draw(x),
                "final": [self.final.draw(x)],
            }
            memories = tuple(self.cross_encoder.memories(encoded))
            return Context(self.bilinear.encode(lifted, weights), memories, bias, drops)

    def check_particles(self, z: Tensor, name: str = "start") -> None:
        """Raise ValueError or TypeError, naming them `name`, if F cannot be evaluated at the particles z (B, n, d)."""
        if z.shape[-1] != self.dim_z:
            raise ValueError(f"{name} must have points in dimension {self.dim_z}, got {z.shape[-1]}")
        self.check_match(name, z)

    def check_match(self, name: str, points: Tensor) -> None:
        """Raise TypeError or ValueError, naming the points, if their dtype or device is not the network's."""
        parameter = self.bilinear.bias
        if points.dtype != parameter.dtype:
            raise TypeError(f"{name} has dtype {points.dtype} but the network has {parameter.dtype}")
        if points.device != parameter.device:
            raise ValueError(f"{name} is on {points.device} but the network is on {parameter.device}")

    def _precision(self, like: Tensor):
        """The context in which layers are evaluated."""
        return nullcontext() if self.network_dtype is None else torch.autocast(like.device.type, self.network_dtype)

    def prepare(self, context: Context) -> Context:
        """The context of F for many evaluations and products with J^T: they get faster, other derivatives are cut."""
        if self._compiled_call_impl is not None:  # compiled code has its own attention
            return context
        memories = tuple(prepared(memory, context.bias) for memory in context.memories)
        return context._replace(memories=memories)

    def anchored(self, context: Context, z: Tensor, weights: Tensor | None = None) -> Context:
        """The context of F for particles beside others, z (B, m, dim_z), that no layer moves.

        `weights` (B, m) are those of z, zero for padding, ones if None; a cloud may have none but padding. With one
        self-attention layer, F is what it would be for all particles together.

        Raises:
            TypeError, ValueError: naming `anchors`: wrong shape, dtype or device, NaN, negative weights.
        """
        shape = (len(context.matrix), self.dim_z)
        if isinstance(z, Tensor) and (z.dim() != 3 or z.shape[::2] != shape):
            raise ValueError(f"anchors must have shape ({shape[0]}, m, {shape[1]}), got {tuple(z.shape)}")
        check_cloud("anchors", z)
        self.check_match("anchors", z)
        if weights is not None:
            weights = check_weights("anchors.weights", weights, None, z, some=False)
        if weights is not None and not self.attend_to_padding:
            z = without_padding(z, weights)
        with self._precision(z):
            memories = tuple(self.self_encoder.memories(self._start(z, context, self._present(weights))))
        weights = z.new_ones(z.shape[:2]) if weights is None else weights
        return context._replace(anchors=Anchors(memories, weights))

    def forward(self, z: Tensor, context: Context, weights: Tensor | None = None) -> Tensor:
        """F(z, X): (B, n, dim_z) -> (B, n, dim_z).

        `weights` (B, n) are those of z, zero for padding, ones if None; padding is neither attended to nor seen
        by the other particles. Inputs are not checked: this is the inner loop of every solver.
        """
        present, anchors = self._present(weights), context.anchors
        if weights is not None and not self.attend_to_padding:
            z = without_padding(z, weights)
        if anchors is not None:
            weights = torch.cat((anchors.weights, z.new_ones(z.shape[:2]) if weights is None else weights), 1)
        bias = None if weights is None or self.attend_to_padding else log_weights(weights)
        memories = None if anchors is None else anchors.memories
        with self._precision(z):
            mixed = self._start(z, context, present)
            mixed = self.self_encoder(mixed, bias=bias, drops=context.drops["self"], present=present, held=memories)
            mixed = self.cross_encoder(mixed, context.memories, context.bias, context.drops["cross"], present)
            return zeroed(self.final(mixed, context.drops["final"][0]), present).to(z.dtype)

    def _start(self, z: Tensor, context: Context, present: Tensor | None) -> Tensor:
        """Particles (B, n, dim_z) as they enter attention: mixed with X by the bilinear layer."""
        lifted = self.norm_lift_z(zeroed(self.lift_z(z), present))
        lifted = self.norm_bilinear(lifted + zeroed(self.bilinear(lifted, context.matrix), present))
        return self.norm_start(z + self.norm_widen_z(zeroed(self.widen_z(lifted), present)))

    def _present(self, weights: Tensor | None) -> Tensor | None:
        """Points that are no padding, (B, n, 1), where the original code zeroes the others; None elsewhere."""
        return weights[..., None] > 0 if self.attend_to_padding and weights is not None else None
