"""The transport map F(Z, X): equivariant in the latent cloud Z, with its labels, invariant in the input cloud X.

Split in two: `encode(X)` computes all that depends on X alone, once; `forward(Z, context)` is what a solver
evaluates again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddeq_fast.networks.attention import KeysAndValues, Prepared, arranged_here, prepare
from ddeq_fast.networks.bilinear import Bilinear
from ddeq_fast.networks.descriptors import Descriptors
from ddeq_fast.networks.encoders import MOST_LAYERS, AttentionEncoder
from ddeq_fast.networks.layers import WIDEST, FeedForward, PointwiseMLP, check_widths
from ddeq_fast.networks.padding import attention_bias, log_weights, without_padding, zeroed
from ddeq_fast.utils import tree
from ddeq_fast.utils.validation import check_alike, check_cloud, check_flag, check_integer, check_number, check_weights

MOST_HEADS = 32  # of the default, as the paper has them
LEAST_HEAD = 4  # coordinates a head
POINTS_AT_ONCE = 2048  # of input clouds, encoded on a CPU without a graph


class Anchors(NamedTuple):
    """Particles that stay where they are, as the others see them: keys and values (B, num_heads, m, dim_z / num_heads)
    for every self-attention layer, and weights (B, m)."""

    keys_and_values: tuple[KeysAndValues, ...]
    weights: Tensor


class Labels(NamedTuple):
    """Labels of n particles as F sees them: `lifted` (B, n, middle) and `widened` (B, n, dim_z) features of each."""

    lifted: Tensor
    widened: Tensor


class Context(NamedTuple):
    """All that F needs of X, and of labels, for a batch of B clouds; every tensor has the batch axis first.

    matrix: of the bilinear layer, (B, middle, middle). sources: keys and values of X for every cross-attention layer.
    bias: log weights of X, (B, 1, 1, m), None where all are one. drops: dropout masks (B, 1, hidden) of every layer, or
    None. anchors: of `TransportMap.anchored`. labels: of `TransportMap.labelled`.
    """

    matrix: Tensor
    sources: tuple[KeysAndValues | Prepared, ...]
    bias: Tensor | None
    drops: dict[str, list[Tensor | None]]
    anchors: Anchors | None = None
    labels: Labels | None = None


def default_heads(dim: int) -> int:
    """The largest number of heads, at most 32, of at least 4 coordinates each, that divides the width; or 1."""
    most = max(1, min(MOST_HEADS, dim // LEAST_HEAD))
    return next(heads for heads in range(most, 0, -1) if dim % heads == 0)


class TransportMap(nn.Module):
    """The EI network of a DDEQ: bilinear mixing, then self-attention in Z and cross-attention to X.

    `compile(fullgraph=True, dynamic=True)`, inherited, compiles what a solver evaluates; the batch may shrink. It is
    meant for GPUs: on CPUs attention as it is arranged here is faster.

    Both clouds are lifted to a narrow width, mixed by the bilinear layer, widened to `dim_z`, and mixed again
    by attention (Geuter et al. 2025, section 4; all normalisations are post-norm). The defaults are the paper's.

    With labels a particle is (z, e), and F acts as (z, e) -> (F_z(z, e; mu, X), e): nothing moves e. Where z enters,
    features of e of their own are added to those of z: what makes F contractive in z does not take its labels away. A
    plain F that is contractive has one fixed point Z*, which permutations carry to itself: all particles coincide. With
    labels each has a place of its own, z*(e; X), and the equilibrium is the image of their law.

    Args:
        dim_z, dim_x: dimension of the latent and of the input points.
        num_heads: attention heads; must divide dim_z. None for the most, up to 32, with at least 4 coordinates each.
        dim_lift: hidden and output width of the first equivariant layers, hidden width of the second.
        dim_hidden: hidden width of the encoders' feed-forward blocks.
        dim_final: hidden width of the last feed-forward block.
        self_layers, cross_layers, x_layers: attention layers within Z, from Z to X, within X.
        dropout: probability of dropping a hidden unit, for all points of a cloud and all evaluations of a solve.
        dim_label: dimension of the particles' labels; 0 for none, as in the paper.
        bandwidths: of the cloud's own potential and field, by which a point of X is described beside its coordinates,
            see `ddeq_fast.networks.Descriptors`; none in the paper.
        attend_to_padding: compatibility with checkpoints of the original code, which attends to padded points
            and sums over them, after zeroing their rows before each normalisation and after each attention layer.
        network_dtype: torch.bfloat16 or torch.float16 evaluate F with matrix products in that precision (autocast);
            particles, residuals and weights keep their own. None for none of it.

    Raises:
        TypeError, ValueError: a size out of range, heads that do not divide dim_z.
    """

    def __init__(
        self,
        dim_z: int = 128,
        dim_x: int = 2,
        *,
        num_heads: int | None = None,
        dim_lift: tuple[int, int, int] = (16, 16, 128),
        dim_hidden: int = 512,
        dim_final: int = 512,
        self_layers: int = 1,
        cross_layers: int = 1,
        x_layers: int = 1,
        dropout: float = 0.0,
        dim_label: int = 0,
        bandwidths: Sequence[float] = (),
        attend_to_padding: bool = False,
        network_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_widths(dim_z=dim_z, dim_x=dim_x, dim_hidden=dim_hidden, dim_final=dim_final)
        self.dim_z, self.dim_x = dim_z, dim_x
        self.num_heads = default_heads(dim_z) if num_heads is None else check_integer("num_heads", num_heads)
        if dim_z % self.num_heads:
            raise ValueError(f"num_heads must divide dim_z = {dim_z}, got {num_heads}")
        for name, value in (("self_layers", self_layers), ("cross_layers", cross_layers), ("x_layers", x_layers)):
            check_integer(name, value, low=0, high=MOST_LAYERS)
        check_number("dropout", dropout, high=1.0, closed=True)
        self.dim_label = check_integer("dim_label", dim_label, low=0, high=WIDEST)
        if not isinstance(dim_lift, (tuple, list)) or len(dim_lift) != 3:
            raise TypeError(f"dim_lift must be three widths, got {dim_lift!r}")
        narrow, middle, widen = (check_integer("dim_lift", width, high=WIDEST) for width in dim_lift)
        self.attend_to_padding = check_flag("attend_to_padding", attend_to_padding)
        if not any(network_dtype is dtype for dtype in (None, torch.bfloat16, torch.float16)):
            raise ValueError(f"network_dtype must be torch.bfloat16, torch.float16 or None, got {network_dtype!r}")
        self.network_dtype = network_dtype

        self.lift_z = PointwiseMLP(dim_z, narrow, middle)
        self.descriptors = Descriptors(bandwidths)
        self.lift_x = PointwiseMLP(dim_x + self.descriptors.width, narrow, middle)
        self.norm_lift_z, self.norm_lift_x = nn.LayerNorm(middle), nn.LayerNorm(middle)
        self.bilinear = Bilinear(middle, middle, middle)
        self.norm_bilinear = nn.LayerNorm(middle)
        self.widen_z = PointwiseMLP(middle, widen, dim_z)
        self.widen_x = PointwiseMLP(middle, widen, dim_z)
        self.norm_widen_z, self.norm_widen_x = nn.LayerNorm(dim_z), nn.LayerNorm(dim_z)
        self.norm_start = nn.LayerNorm(dim_z)

        self.x_encoder, self.self_encoder, self.cross_encoder = (
            AttentionEncoder(layers, dim_z, self.num_heads, dim_hidden, dropout)
            for layers in (x_layers, self_layers, cross_layers)
        )
        self.final = FeedForward(dim_z, dim_final, dropout)
        if self.dim_label:
            self.lift_label = PointwiseMLP(self.dim_label, narrow, middle)
            self.widen_label = PointwiseMLP(self.dim_label, widen, dim_z)

    def extra_repr(self) -> str:
        shown = [f"dim_z={self.dim_z}, dim_x={self.dim_x}, num_heads={self.num_heads}"]
        shown += [f"dim_label={self.dim_label}"] * (self.dim_label > 0)
        shown += [f"bandwidths={self.descriptors.bandwidths}"] * bool(self.descriptors.bandwidths)
        shown += ["attend_to_padding=True"] * self.attend_to_padding
        shown += [f"network_dtype={self.network_dtype}"] * (self.network_dtype is not None)
        return ", ".join(shown)

    def encode(self, x: Tensor, weights: Tensor | None = None, *, mask: Tensor | None = None) -> Context:
        """Everything F needs of X.

        Args:
            x: input clouds (B, m, dim_x), in the network's dtype and on its device.
            weights: (B, m), nonnegative, one a plain point, zero for padding; ones if None; boolean ones are a mask.
            mask: boolean (B, m), False for padding; may accompany weights.

        Raises:
            TypeError, ValueError: wrong shape, dtype or dimension, NaN, an empty or fully padded cloud.
        """
        if isinstance(x, Tensor) and x.dim() != 3:
            raise ValueError(f"x must have shape (B, m, {self.dim_x}), got {tuple(x.shape)}")
        check_cloud("x", x)
        if x.shape[-1] != self.dim_x:
            raise ValueError(f"x must have points in dimension {self.dim_x}, got {x.shape[-1]}")
        check_alike("x", x, "the network", self.bilinear.bias)
        padded, weights = weights is not None or mask is not None, check_weights("weights", weights, mask, x)
        if padded:
            x = without_padding(x, weights)
        described = self.descriptors(x, weights)
        present = self._present(weights)
        if self.attend_to_padding:
            weights = torch.ones_like(weights)
        bias, drops_x = attention_bias(weights), self.x_encoder.draw(x)
        drops = {
            "self": self.self_encoder.draw(x),
            "cross": self.cross_encoder.draw(x),
            "final": [self.final.draw(x)],
        }
        pieces, size = (described, weights, bias, present, drops_x), self._encoded_at_once(x)
        chunks = [tree.select(pieces, slice(i, i + size)) for i in range(0, len(x), size)]
        with self._precision(x):
            matrix, sources = tree.joined([self._encoded(*chunk) for chunk in chunks])
        return Context(matrix, sources, bias, drops)

    def _encoded(
        self,
        described: Tensor,
        weights: Tensor,
        bias: Tensor | None,
        present: Tensor | None,
        drops: list[Tensor | None],
    ) -> tuple[Tensor, tuple[KeysAndValues, ...]]:
        """Matrix of the bilinear layer, keys and values of X, of described points (B, m, width)."""
        lifted = self.norm_lift_x(zeroed(self.lift_x(described), present))
        wide = self.norm_widen_x(zeroed(self.widen_x(lifted), present))
        encoded = self.x_encoder(wide, bias=bias, drops=drops, present=present)
        return self.bilinear.encode(lifted, weights), self.cross_encoder.keys_and_values(encoded)

    def _encoded_at_once(self, x: Tensor) -> int:
        """Clouds of X whose layers the caches of a CPU hold; with a graph, which keeps all of them, the whole batch."""
        if torch.is_grad_enabled() or not arranged_here(x):
            return len(x)
        return max(1, POINTS_AT_ONCE // x.shape[1])

    def check_context(self, context: Context) -> None:
        """Raise TypeError if `context` is none of `encode`."""
        if not isinstance(context, Context):
            raise TypeError(f"context must be a Context, of TransportMap.encode, got {type(context).__name__}")

    def check_labels(self, context: Context, labels: Tensor | None) -> None:
        """Raise ValueError if `labels` (B, n, dim_label), of a cloud of particles, are not those of the context."""
        expected = None if context.labels is None else (*context.labels.lifted.shape[:2], self.dim_label)
        if self.dim_label and expected is None:
            raise ValueError(f"context must have labels in dimension {self.dim_label}, of TransportMap.labelled")
        if (None if labels is None else tuple(labels.shape)) != expected:
            got = None if labels is None else tuple(labels.shape)
            raise ValueError(f"labels must be those of the context, of shape {expected}, got {got}")

    def check_particles(self, z: Tensor, name: str = "start") -> None:
        """Raise ValueError or TypeError, naming them `name`, if F cannot be evaluated at the particles z (B, n, d)."""
        if z.shape[-1] != self.dim_z:
            raise ValueError(f"{name} must have points in dimension {self.dim_z}, got {z.shape[-1]}")
        check_alike(name, z, "the network", self.bilinear.bias)

    def _precision(self, like: Tensor) -> AbstractContextManager[Any]:
        """The context in which layers are evaluated."""
        return nullcontext() if self.network_dtype is None else torch.autocast(like.device.type, self.network_dtype)

    def prepare(self, context: Context) -> Context:
        """The context of F for many evaluations and products with J^T: they get faster, other derivatives are cut.

        The keys and values of X are arranged anew, without a graph. Where that does not pay, on GPUs, in compiled code
        and in low precision, only the graph is cut, or nothing is done.
        """
        if self._compiled_call_impl is not None:  # compiled code has its own attention
            return context
        sources = (part.source if isinstance(part, Prepared) else part for part in context.sources)
        return context._replace(sources=tuple(prepare(part, context.bias) for part in sources))

    def labelled(self, context: Context, labels: Tensor, weights: Tensor | None = None) -> Context:
        """The context of F for particles with these labels, which gradients reach.

        Args:
            context: of `encode`.
            labels: (B, n, dim_label), in the network's dtype and on its device.
            weights: of the particles (B, n), zero for padding, whose labels may be anything finite; ones if None.

        Raises:
            TypeError, ValueError: a network without labels, wrong shape, dtype or device, NaN, bad weights.
        """
        self.check_context(context)
        self._check_labels("labels", labels, len(context.matrix))
        charges = None if weights is None else check_weights("weights", weights, None, labels)
        return context._replace(labels=self._features(labels, charges))

    def _check_labels(self, name: str, labels: Tensor, batch: int, n: int | None = None) -> None:
        if not self.dim_label:
            raise ValueError(f"{name} must be None: this network has dim_label = 0")
        if not isinstance(labels, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(labels).__name__}")
        shape = tuple(labels.shape)
        if len(shape) != 3 or shape[::2] != (batch, self.dim_label) or n not in (None, shape[1]):
            raise ValueError(f"{name} must have shape ({batch}, {n or 'n'}, {self.dim_label}), got {shape}")
        check_cloud(name, labels)
        check_alike(name, labels, "the network", self.bilinear.bias)

    def _features(self, labels: Tensor, charges: Tensor | None) -> Labels:
        """What F sees of labels (B, n, dim_label) of particles with these weights (B, n)."""
        labels = labels if charges is None else without_padding(labels, charges)
        with self._precision(labels):
            return Labels(self.lift_label(labels), self.widen_label(labels))

    def anchored(
        self, context: Context, points: Tensor, weights: Tensor | None = None, labels: Tensor | None = None
    ) -> Context:
        """The context of F for particles beside anchors, which no layer moves.

        With one self-attention layer, F is what it would be for all particles together.

        Args:
            context: of `encode`.
            points: the anchors (B, m, dim_z), in the network's dtype and on its device.
            weights: (B, m), nonnegative, zero for padding; ones if None. A cloud may have none but padding.
            labels: of the anchors (B, m, dim_label), where particles have labels.

        Raises:
            TypeError, ValueError: wrong shape, dtype or device, NaN, negative weights, labels without need or missing.
        """
        self.check_context(context)
        batch = len(context.matrix)
        if isinstance(points, Tensor) and (points.dim() != 3 or points.shape[::2] != (batch, self.dim_z)):
            got = tuple(points.shape)
            raise ValueError(f"anchors.points must have shape ({batch}, m, {self.dim_z}), got {got}")
        check_cloud("anchors.points", points)
        check_alike("anchors.points", points, "the network", self.bilinear.bias)
        charges = check_weights("anchors.weights", weights, None, points, some=False)
        if weights is not None and not self.attend_to_padding:
            points = without_padding(points, charges)
        if labels is not None or self.dim_label:
            self._check_labels("anchor_labels", labels, *points.shape[:2])  # type: ignore[arg-type]
        features = None if labels is None else self._features(labels, charges)
        present = self._present(None if weights is None else charges)
        with self._precision(points):
            keys_and_values = self.self_encoder.keys_and_values(self._start(points, context, present, features))
        return context._replace(anchors=Anchors(keys_and_values, charges))

    def forward(self, z: Tensor, context: Context, weights: Tensor | None = None) -> Tensor:
        """F(z, X), (B, n, dim_z). Nothing is checked: this is the inner loop of every solver.

        Args:
            z: particles (B, n, dim_z).
            context: of X, from `encode`, and of the labels of the particles, from `labelled`.
            weights: (B, n), zero for padding, ones if None; padding is neither attended to nor seen by the others.
        """
        present, anchors = self._present(weights), context.anchors
        if weights is not None and not self.attend_to_padding:
            z = without_padding(z, weights)
        if anchors is not None:
            weights = torch.cat((anchors.weights, z.new_ones(z.shape[:2]) if weights is None else weights), 1)
        bias = None if weights is None or self.attend_to_padding else log_weights(weights)
        beside = None if anchors is None else anchors.keys_and_values
        with self._precision(z):
            mixed = self._start(z, context, present, context.labels)
            mixed = self.self_encoder(mixed, bias=bias, drops=context.drops["self"], present=present, anchors=beside)
            mixed = self.cross_encoder(mixed, context.sources, context.bias, context.drops["cross"], present)
            return zeroed(self.final(mixed, context.drops["final"][0]), present).to(z.dtype)

    def _start(self, z: Tensor, context: Context, present: Tensor | None, labels: Labels | None) -> Tensor:
        """Particles (B, n, dim_z) with these labels as they enter attention: mixed with X by the bilinear layer."""
        lifted, beside = self.lift_z(z), z
        if labels is not None:
            lifted, beside = lifted + labels.lifted, z + labels.widened
        elif self.dim_label:
            raise ValueError(f"context must have labels in dimension {self.dim_label}, of TransportMap.labelled")
        lifted = self.norm_lift_z(zeroed(lifted, present))
        lifted = self.norm_bilinear(lifted + zeroed(self.bilinear(lifted, context.matrix), present))
        return self.norm_start(beside + self.norm_widen_z(zeroed(self.widen_z(lifted), present)))

    def _present(self, weights: Tensor | None) -> Tensor | None:
        """Points that are no padding, (B, n, 1), where the original code zeroes the others; None elsewhere."""
        return weights[..., None] > 0 if self.attend_to_padding and weights is not None else None
