"""Checks of user input: each raises ValueError or TypeError naming the argument and what it got."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from ddeq_fast.utils import transforms

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_number(name: str, value: object, *, low: float = 0.0, high: float = math.inf, closed: bool = False) -> float:
    """`value` as a float inside (low, high), or [low, high) if `closed`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond all floats
        number = math.inf if value > 0 else -math.inf
    inside = (low <= number < high) if closed else (low < number < high)
    if not inside:
        got = number if math.isinf(number) else value
        raise ValueError(f"{name} must lie in {'[' if closed else '('}{low:g}, {high:g}), got {got!r}")
    return number


def check_share(name: str, value: object) -> float:
    """`value` as a float inside (0, 1]."""
    number = check_number(name, value, low=-math.inf)
    if not 0 < number <= 1:
        raise ValueError(f"{name} must lie in (0, 1], got {value!r}")
    return number


def check_integer(name: str, value: object, *, low: int = 1, high: int = 2**63 - 1) -> int:
    """`value` as an int of at least `low`, and at most `high`, by default what a tensor can count."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    if value > high:
        # Python refuses to write out thousands of digits.
        got = value if value.bit_length() < 128 else f"one of {value.bit_length()} bits"
        raise ValueError(f"{name} must be at most {high}, got {got}")
    return value


def check_flag(name: str, value: object) -> bool:
    """`value` if it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def check_pair(name: str, value: object, parts: str) -> tuple:
    """`value` as a tuple of the two things that `parts` names, such as "(factor, steps)"."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be a pair {parts}, got {value!r}")
    return tuple(value)


def check_choice(name: str, value: object, choices: Collection[str]) -> str:
    """`value` if it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(sorted(choices))}; got {value!r}")
    return value


def check_path(name: str, value: object) -> Path:
    """`value`, a string or path, as a path."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, got {type(value).__name__}")
    if "\0" in os.fspath(value) or not os.fspath(value):
        raise ValueError(f"{name} must be a path, got {value!r}")
    return Path(value)


def check_called(name: str, func: object, *arguments: str) -> None:
    """Raise TypeError unless `func` can be called with these positional arguments, as far as its signature tells."""
    wanted = f"{name} must be callable as {name}({', '.join(arguments)})"
    if not callable(func):
        raise TypeError(f"{wanted}, got {type(func).__name__}")
    if torch.compiler.is_compiling():
        return
    try:
        signature = inspect.signature(func.forward if isinstance(func, torch.nn.Module) else func)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        got = f"one that takes ({', '.join(signature.parameters)})"
        wrapper = f"lambda {', '.join(arguments)}: f({arguments[0]})"
        raise TypeError(f"{wanted}, got {got}: a function f({arguments[0]}) is passed as {wrapper}") from None


def values_readable(tensor: Tensor) -> bool:
    """False for a tensor that has none (meta, under vmap), and while a graph is made, which reading breaks."""
    if tensor.is_meta or torch.compiler.is_compiling() or transforms.mapped(tensor) or transforms.traced(tensor):
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise if `tensor` holds NaN or infinity."""
    if not values_readable(tensor):
        return
    # A sum is finite only where all are, and takes a fraction of the time of a look at each.
    if not bool(torch.isfinite(tensor.detach().sum())) and not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite values of {tensor.numel()}")


def check_alike(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise TypeError or ValueError, naming both, if their dtypes or devices differ."""
    if tensor.dtype != other.dtype:
        raise TypeError(f"{name} has dtype {tensor.dtype} but {other_name} has {other.dtype}")
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device} but {other_name} is on {other.device}")


def check_cloud(name: str, cloud: object, *, like: tuple[str, Tensor] | None = None) -> Tensor:
    """`cloud` as a floating-point tensor (n, d) or (B, n, d) with n, d >= 1, finite.

    `like` names another cloud whose batch, dimension, dtype and device it must share.
    """
    if not isinstance(cloud, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(cloud).__name__}")
    if cloud.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested one: ddeq_fast.pad makes a padded batch of it")
    if cloud.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {cloud.layout}")
    if cloud.dtype not in FLOATS:
        raise TypeError(f"{name} must have a floating-point dtype, got {cloud.dtype}")
    if cloud.dim() not in (2, 3):
        raise ValueError(f"{name} must have shape (n, d) or (B, n, d), got {tuple(cloud.shape)}")
    if 0 in cloud.shape:
        raise ValueError(f"{name} is an empty cloud: shape {tuple(cloud.shape)}")
    if like is not None:
        other_name, other = like
        check_alike(name, cloud, other_name, other)
        if cloud.dim() != other.dim() or cloud.shape[:-2] != other.shape[:-2]:
            raise ValueError(
                f"{name} has batch shape {tuple(cloud.shape[:-2])} but {other_name} has {tuple(other.shape[:-2])}"
            )
        if cloud.shape[-1] != other.shape[-1]:
            raise ValueError(f"{name} has points in dimension {cloud.shape[-1]} but {other_name} in {other.shape[-1]}")
    check_finite(name, cloud)
    return cloud


def check_charges(name: str, charges: Tensor | None, cloud: Tensor) -> Tensor:
    """Charges (n,) or (B, n) of `cloud`: ones if None, any finite real values otherwise."""
    if charges is None:
        return cloud.new_ones(cloud.shape[:-1])
    if not isinstance(charges, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(charges).__name__}")
    if charges.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {charges.layout}")
    if charges.shape != cloud.shape[:-1]:
        raise ValueError(f"{name} must have shape {tuple(cloud.shape[:-1])}, got {tuple(charges.shape)}")
    check_alike(name, charges, "its cloud", cloud)
    check_finite(name, charges)
    return charges


def check_nonnegative(name: str, values: Tensor) -> None:
    """Raise if `values` holds negative numbers."""
    if values_readable(values) and bool((values < 0).any()):
        raise ValueError(f"{name} must be nonnegative, got a minimum of {float(values.min()):g}")


def check_mask(name: str, mask: Tensor, cloud: Tensor) -> Tensor:
    """Boolean mask (n,) or (B, n), or the same with a trailing axis of one; True marks a real point."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must have dtype torch.bool, got {mask.dtype}")
    if mask.dim() == cloud.dim() and mask.shape[-1] == 1:
        mask = mask.squeeze(-1)
    if mask.shape != cloud.shape[:-1]:
        raise ValueError(f"{name} must have shape {tuple(cloud.shape[:-1])}, got {tuple(mask.shape)}")
    if mask.device != cloud.device:
        raise ValueError(f"{name} is on {mask.device} but its cloud is on {cloud.device}")
    return mask


def check_weights(
    name: str, weights: Tensor | None, mask: Tensor | None, cloud: Tensor, *, some: bool = True
) -> Tensor:
    """Nonnegative weights (n,) or (B, n) of a cloud: one a real point, zero for padding.

    Boolean weights are a mask. `weights`, called `name`, and `mask`, called the same with "mask" for "weights", may
    both be given. Raises if a weight is negative or, if `some`, a cloud has no mass left.
    """
    mask_name = name.replace("weights", "mask")
    if isinstance(weights, Tensor) and weights.dtype == torch.bool:
        weights = check_mask(name, weights, cloud).to(cloud.dtype)
    result = check_charges(name, weights, cloud)
    if weights is not None:
        check_nonnegative(name, result)
        if values_readable(result) and not bool(result.sum(-1, dtype=torch.float64).isfinite().all()):
            raise ValueError(f"{name} must have a finite sum, got a maximum of {float(result.max()):g}")
    if mask is not None:
        result = result * check_mask(mask_name, mask, cloud)
    if some and (weights is not None or mask is not None) and values_readable(result):
        check_some_left(mask_name if mask is not None else name, (result > 0).any(-1))
    return result


def check_some_left(name: str, some: Tensor) -> None:
    """Raises ValueError unless `some`, boolean () or (B,), says of every cloud that `name` leaves a point in it."""
    if not bool(some.all()):
        empty = (~some).reshape(-1).nonzero().reshape(-1).tolist()
        raise ValueError(f"{name} leaves no point in cloud {', '.join(map(str, empty[:8]))} of the batch")


def choose_device(name: str) -> torch.device:
    """The device of that name, "auto" for a GPU if there is one; raises ValueError if it cannot be used."""
    return check_device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def check_device(name: str) -> torch.device:
    """The device of that name; raises ValueError if nothing can be put there."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device
