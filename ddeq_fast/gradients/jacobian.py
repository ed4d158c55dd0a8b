"""How contractive F is at a cloud, to be penalised in training."""

from __future__ import annotations

import torch
from torch import Tensor

from ddeq_fast.solvers.problem import Pushforward
from ddeq_fast.utils.validation import check_cloud, check_number


def jacobian_norm(
    problem: Pushforward,
    z: Tensor,
    step: float = 0.05,
    direction: Tensor | None = None,
    image: Tensor | None = None,
) -> Tensor:
    """Mean squared singular value of J = dF/dZ at the detached cloud z (B, n, d), |J|_F^2 / (n d), estimated: (B,).

    As a penalty it keeps F contractive at its fixed points, and solves short (Bai et al. 2021, Stabilizing equilibrium
    models by Jacobian regularization). Hutchinson's estimate with one normal direction for each sample, given or drawn
    from torch's global generator, by a finite difference of length `step` per coordinate: the attention kernels have no
    second derivative. Differentiable in all that F depends on, once. Padding and frozen particles are held.

    With `residual_direction` it is the squared factor by which F contracts what a solve has left over, |J v|^2 / |v|^2.

    Args:
        problem: F and its context.
        z: the cloud (B, n, d).
        step: length of the difference.
        direction: (B, n, d), of mean square one where the value is to be a squared factor.
        image: F(z) with its graph, where it is known, as in `BackwardInfo.evaluated`; evaluated if None.

    Raises:
        TypeError, ValueError: a bad step, or z, direction or image that is no cloud of the problem's.
    """
    check_number("step", step)
    if not isinstance(problem, Pushforward):
        raise TypeError(f"problem must be a Pushforward, got {type(problem).__name__}")
    problem = problem.checked(z, "z")
    if direction is not None:
        _check_like(z, "direction", direction)
    if image is not None:
        _check_like(z, "image", image)
    z = z.detach()
    moving = problem.moving(z)
    direction = (torch.randn_like(z) if direction is None else direction) * moving
    image = problem.image(z) if image is None else image
    change = (problem.image(z + step * direction) - image) / step * moving
    return change.square().sum((1, 2)) / (moving.sum((1, 2)) * z.shape[2]).clamp_min(1)


def residual_direction(problem: Pushforward, z: Tensor, image: Tensor | None = None) -> Tensor:
    """The direction F(z) - z of a cloud near its equilibrium, (B, n, d), detached, of mean square one over what
    moves; zero where nothing is left.

    What a solve leaves over is what F contracts least: a penalty there, see `jacobian_norm`, reaches the few directions
    that decide how long solves take, where a random one is met by the many that F contracts anyway.

    Args:
        problem: F and its context.
        z: the cloud (B, n, d).
        image: F(z), where it is known; evaluated if None.

    Raises:
        TypeError, ValueError: as `jacobian_norm`.
    """
    if not isinstance(problem, Pushforward):
        raise TypeError(f"problem must be a Pushforward, got {type(problem).__name__}")
    problem = problem.checked(z, "z")
    with torch.no_grad():
        if image is None:
            image = problem.image(z)
        else:
            _check_like(z, "image", image)
        moving = problem.moving(z)
        direction = (image - z) * moving
        mean = direction.double().square().sum((1, 2)) / (moving.sum((1, 2)) * z.shape[2]).clamp_min(1)
        length = mean.sqrt()[:, None, None].to(z.dtype)
        return torch.where(length > 0, direction / length, 0)


def _check_like(z: Tensor, name: str, cloud: Tensor) -> None:
    check_cloud(name, cloud, like=("z", z))
    if cloud.shape != z.shape:
        raise ValueError(f"{name} must have shape {tuple(z.shape)}, got {tuple(cloud.shape)}")
