"""The original code's network F under its name, arguments and parameter names; what depends on X is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from ddeq_fast.interop.original.state_dicts import original_name, transport_name
from ddeq_fast.networks import Context, TransportMap
from ddeq_fast.networks.encoders import MOST_LAYERS
from ddeq_fast.networks.layers import check_widths
from ddeq_fast.utils.validation import check_integer, check_mask, check_some_left, values_readable

# Contexts of one solve, under the ids of the network, the cloud and its mask, and beside them cloud and mask.
_Known = dict[tuple[int, int, int], tuple[Context, Tensor, Tensor | None]]
_SOLVE: ContextVar[_Known | None] = ContextVar("solve", default=None)


@contextmanager
def one_solve() -> Iterator[None]:
    """Evaluations inside are of one function: a `DEQ` prepares each cloud X that it meets once, without a graph."""
    token = _SOLVE.set({})
    try:
        yield
    finally:
        _SOLVE.reset(token)


class DEQ(nn.Module):
    """F(Z, X) with the constructor, the call and the state dict of the original's `DEQ`, on a `TransportMap`.

    Inside a solver of this package (`mmd_gf`, or those of `ddeq_fast.interop.torchdeq`) all that depends on X alone is
    computed once a solve instead of once an evaluation, and dropout is drawn once a solve.

    Arguments are those of the original; the sizes of the self-attention encoders must be those of the others, and what
    no published configuration uses is refused.

    Raises:
        ValueError: naming the argument that has no counterpart here.
    """

    def __init__(
        self,
        d_z: int = 2,
        d_x: int = 2,
        hidden_dim_equiv_1: int = 32,
        hidden_dim_equiv_2: int = 64,
        hidden_dim_equiv_3: int | None = None,
        d_encoder: int = 64,
        encoder: type | None = None,
        num_heads: int = 2,
        num_layers: int = 2,
        dim_feedforward: int = 256,
        dropout: float = 0.1,
        num_heads_self_encoders: int | None = None,
        num_layers_self_encoders: int | None = None,
        dim_feedforward_self_encoders: int | None = None,
        ffn_hidden: int | None = None,
        bilinear: bool = True,
        global_skip: bool = False,
        x_encoder: bool = True,
        z_encoder: bool = True,
        bilinear_pushforward: bool = False,
        EquivariantNetwork: type | None = None,
        FFNNetwork: type | None = None,
    ):
        super().__init__()
        check_widths(
            d_z=d_z,
            d_x=d_x,
            hidden_dim_equiv_1=hidden_dim_equiv_1,
            hidden_dim_equiv_2=hidden_dim_equiv_2,
            num_heads=num_heads,
            dim_feedforward=dim_feedforward,
        )
        if d_z % num_heads:
            raise ValueError(f"num_heads must divide d_z = {d_z}, got {num_heads}")
        optional = {"hidden_dim_equiv_3": hidden_dim_equiv_3, "ffn_hidden": ffn_hidden}
        check_widths(**{name: width for name, width in optional.items() if width is not None})
        check_integer("num_layers", num_layers, low=0, high=MOST_LAYERS)
        if num_layers_self_encoders is not None:
            check_integer("num_layers_self_encoders", num_layers_self_encoders, low=0, high=MOST_LAYERS)
        _require("encoder", getattr(encoder, "__name__", None), (None, "CrossAttentionEncoder"))
        _require(
            "EquivariantNetwork", getattr(EquivariantNetwork, "__name__", None), (None, "EquivariantLinearNetwork")
        )
        _require("FFNNetwork", getattr(FFNNetwork, "__name__", None), ("FFN",))
        _require("d_encoder", d_encoder, (d_z,))
        _require("num_heads_self_encoders", num_heads_self_encoders, (None, num_heads))
        _require("dim_feedforward_self_encoders", dim_feedforward_self_encoders, (None, dim_feedforward))
        for name, value, needed in (
            ("bilinear", bilinear, True),
            ("bilinear_pushforward", bilinear_pushforward, True),
            ("global_skip", global_skip, False),
            ("x_encoder", x_encoder, True),
            ("z_encoder", z_encoder, True),
        ):
            _require(name, value, (needed,))
        self_layers = num_layers if num_layers_self_encoders is None else num_layers_self_encoders
        third = hidden_dim_equiv_1 // 2 if hidden_dim_equiv_3 is None else hidden_dim_equiv_3
        self.transport = TransportMap(
            d_z,
            d_x,
            num_heads=num_heads,
            dim_lift=(third, hidden_dim_equiv_1, hidden_dim_equiv_2),
            dim_hidden=dim_feedforward,
            dim_final=4 * d_encoder if ffn_hidden is None else ffn_hidden,
            self_layers=self_layers,
            cross_layers=num_layers,
            x_layers=self_layers,
            dropout=dropout,
            attend_to_padding=True,
        )
        self.transport.final.dropout = 0.1  # there, not an argument
        self.num_params = sum(parameter.numel() for parameter in self.parameters())
        self.register_state_dict_post_hook(_to_original)
        self.register_load_state_dict_pre_hook(_from_original)

    def forward(
        self,
        z: Tensor,
        x: Tensor,
        z_mask: Tensor | None = None,
        x_mask: Tensor | None = None,
        fix_mask: Tensor | None = None,
        fix_all: bool = False,
        fix_encoders: bool = False,
    ) -> tuple[Tensor, None, None]:
        """(F(Z, X), None, None): no attention weights.

        Args:
            z, x: clouds (B, n, d_z) and (B, m, d_x), or (n, d_z) and (m, d_x).
            z_mask, x_mask: boolean, (B, n, 1) and (B, m, 1), False for padding, which is attended to as if real.
            fix_mask: boolean (B, n, 1): particles that are returned as they came.
            fix_encoders: keep those in every layer; where there is one self-attention layer, nobody sees a difference.

        Raises:
            TypeError, ValueError: clouds that do not go together, masks of another shape or dtype, `fix_all`.
        """
        _require("fix_all", fix_all, (False,))
        if fix_mask is not None and len(self.transport.self_encoder) > 1:
            raise ValueError("fix_mask cannot be mapped: there must be one self-attention layer, got several")
        for name, cloud, dim in (("z", z, self.transport.dim_z), ("x", x, self.transport.dim_x)):
            if not isinstance(cloud, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(cloud).__name__}")
            if cloud.dim() not in (2, 3) or cloud.shape[-1] != dim:
                raise ValueError(f"{name} must have shape (n, {dim}) or (B, n, {dim}), got {tuple(cloud.shape)}")
        clouds, inputs = (t[None] if t.dim() == 2 else t for t in (z, x))
        if len(clouds) != len(inputs):
            raise ValueError(f"z has {len(clouds)} clouds but x has {len(inputs)}")
        weights = _weights("z_mask", z_mask, z, clouds)
        image = self.transport(clouds, self._context(inputs, x, x_mask), weights)
        if fix_mask is not None:
            image = torch.where(check_mask("fix_mask", fix_mask, z).reshape(*clouds.shape[:2], 1), clouds, image)
        return image.view(z.shape), None, None

    def _context(self, inputs: Tensor, x: Tensor, mask: Tensor | None) -> Context:
        """The context of clouds `inputs` (B, m, d_x), which the caller knows as `x`."""
        weights = _weights("x_mask", mask, x, inputs)
        if weights is not None and values_readable(weights):
            check_some_left("x_mask", (weights > 0).any(-1))
        known = _SOLVE.get()
        if known is None:
            return self.transport.encode(inputs, weights)
        key = id(self), id(x), id(mask)
        if key not in known:
            with torch.no_grad():
                context = self.transport.prepare(self.transport.encode(inputs, weights))
            known[key] = context, x, mask  # kept alive: their ids must not be given away
        return known[key][0]


def _weights(name: str, mask: Tensor | None, cloud: Tensor, batched: Tensor) -> Tensor | None:
    """Weights (B, n) of a mask of a cloud, of which `batched` (B, n, d) is a view."""
    return None if mask is None else check_mask(name, mask, cloud).reshape(batched.shape[:2]).to(batched.dtype)


def _require(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if not isinstance(value, (type(None), bool, int, str)) or value not in allowed:
        raise ValueError(f"{name} cannot be mapped: it must be {' or '.join(map(str, allowed))}, got {value!r}")


def _to_original(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, metadata: dict[str, Any]) -> None:
    for key in [key for key in state_dict if key.startswith(f"{prefix}transport.")]:
        state_dict[prefix + original_name(key.removeprefix(f"{prefix}transport."))] = state_dict.pop(key)


def _from_original(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name = transport_name(key.removeprefix(prefix))
        if name is not None:
            state_dict[f"{prefix}transport.{name}"] = state_dict.pop(key)
