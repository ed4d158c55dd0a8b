"""A plain DDEQ forward pass: the whole network and dense MMD matrices recomputed in every flow step.

It has the structure of the original code, in which F(z, x) is one function of both clouds, and takes its weights
from a `TransportMap`, so that both do identical work.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _attend(layer, q: Tensor, k: Tensor, fused: bool) -> Tensor:
    attended, _ = F.multi_head_attention_forward(
        q.transpose(0, 1),
        k.transpose(0, 1),
        k.transpose(0, 1),
        q.shape[-1],
        layer.num_heads,
        layer.project_in.weight,
        layer.project_in.bias,
        None,
        None,
        False,
        0.0,
        layer.project_out.weight,
        layer.project_out.bias,
        need_weights=not fused,
    )
    return _residual(layer.ffn, layer.norm(q + attended.transpose(0, 1)))


def _residual(block, x: Tensor) -> Tensor:
    return block.norm(x + block.linear2(F.relu(block.linear1(x))))


def transport(model, z: Tensor, x: Tensor, fused: bool = False) -> Tensor:
    """F(z, x), (B, n, dim_z), from both clouds.

    Attention forms its matrices, as nn.MultiheadAttention does unless told otherwise; `fused` tells it otherwise.
    """
    narrow_z = model.norm_lift_z(model.lift_z(z))
    narrow_x = model.norm_lift_x(model.lift_x(x))
    mixed = torch.einsum("jik,bnj,bk->bni", model.bilinear.alpha, narrow_z, narrow_x.sum(1)) + model.bilinear.bias
    narrow_z = model.norm_bilinear(narrow_z + F.relu(model.bilinear.norm(mixed)))
    wide_x = model.norm_widen_x(model.widen_x(narrow_x))
    for layer in model.x_encoder:
        wide_x = _attend(layer, wide_x, wide_x, fused)
    wide_z = model.norm_start(z + model.norm_widen_z(model.widen_z(narrow_z)))
    for layer in model.self_encoder:
        wide_z = _attend(layer, wide_z, wide_z, fused)
    for layer in model.cross_encoder:
        wide_z = _attend(layer, wide_z, wide_x, fused)
    return _residual(model.final, wide_z)


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Energy distance of equally weighted clouds, (B,), from three dense matrices."""
    means = [-torch.cdist(a, b).mean((1, 2)) for a, b in ((x, x), (y, y), (x, y))]
    return means[0] + means[1] - 2 * means[2]


def flow(model, z: Tensor, x: Tensor, steps: int, lr: float, fused: bool = False) -> Tensor:
    """Gradient descent on MMD^2(Z, F(Z, x)) / 2, differentiated through F."""
    for _ in range(steps):
        z = z.detach().requires_grad_()
        loss = 0.5 * squared_mmd(z, transport(model, z, x, fused)).sum()
        (gradient,) = torch.autograd.grad(loss, z)
        z = z - lr * z.shape[1] * gradient
    return z.detach()
