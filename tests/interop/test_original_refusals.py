"""What of the original code's functions has no counterpart here is refused by name."""

from functools import partial

import pytest
import torch

from ddeq_fast.interop.original import mmd_gf, riesz_kernel
from problems import fails

QUIET = {"beta": 0.0, "tol": 0.0, "kernel": riesz_kernel, "autodiff": True}
NOISE = "noise needs target_tensor and autodiff=False, got"
CALLBACK = "cannot be mapped: draw and log in a callback, got"


@pytest.fixture
def start(cloud):
    return 2 * cloud(3, 5, 2)


def shifted(z):
    return 0.5 * z + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.01}, f"beta cannot be mapped: {NOISE} 0.01"),
        ({"func": None, "target_tensor": torch.ones(3, 2, 2).double(), "beta": 0.5, "autodiff": True}, NOISE),
        ({"plot": True}, f"plot {CALLBACK} True"),
        ({"plot_to_wandb": True}, f"plot_to_wandb {CALLBACK} True"),
        ({"plot_kwargs": {"batch_nb": 1}}, f"plot_kwargs {CALLBACK} {{'batch_nb': 1}}"),
        ({"progress_bar": True}, f"progress_bar {CALLBACK} True"),
        ({"wandb_dict": {"a": 1}}, f"wandb_dict {CALLBACK} {{'a': 1}}"),
        ({"witness_fn": print}, f"witness_fn cannot be mapped: it follows from the kernel, got {print!r}"),
        ({"kernel": torch.cdist}, "or a functools.partial of one, got <function cdist at 0x"),
        ({"kernel": partial(riesz_kernel, p=2)}, "kernel must be gaussian_kernel or riesz_kernel of this module"),
        ({"reg": 0.1}, "reg cannot be mapped: it needs autodiff=True, got 0.1"),
        ({"rescale_losses": True}, "rescale_losses cannot be mapped: it needs autodiff=True, got True"),
        ({"optimizer": "lbfgs"}, "optimizer must be one of adam, sgd; got 'lbfgs'"),
        (
            {"optim_kwargs": {"weight_decay": 0.1}},
            "optim_kwargs['weight_decay'] cannot be mapped: not an option of sgd",
        ),
        ({"optimizer": "adam", "optim_kwargs": {"amsgrad": True}}, "optim_kwargs['amsgrad'] cannot be mapped"),
        ({"scheduler": "cosine"}, "scheduler must be one of steplr; got 'cosine'"),
        ({"scheduler_kwargs": {"last_epoch": 3}}, "scheduler_kwargs['last_epoch'] cannot be mapped"),
        ({"stop_mode": "both"}, "stop_mode must be one of abs, rel; got 'both'"),
        ({"stop_type": "wasserstein"}, "stop_type must be one of grad, mmd; got 'wasserstein'"),
        ({"sigma": [2.0, 0.7]}, "gamma_sigma must have an entry for every bandwidth in sigma, 2, got 1"),
        ({"sigma": []}, "sigma must have an entry for every bandwidth in sigma, 0, got 0"),
        ({"min_sigma": [1.0, 1.0]}, "min_sigma must have an entry for every bandwidth in sigma, 1, got 2"),
        ({"sigma": 0.0}, "sigma must lie in (0, 1e+100), got 0.0"),
        ({"gamma_sigma": 1.5}, "gamma_sigma must lie in (0, 1], got 1.5"),
        ({"gamma_sigma": 0.9, "stop_type": "mmd"}, "gamma_sigma cannot be mapped: stop_type 'mmd' needs a constant"),
        ({"mask": True}, "mask cannot be mapped: func must map rows of zeros, and no others, to rows of zeros"),
        ({"func": None}, "mmd_gf needs x0 and either func or target_tensor"),
        ({"x0": None}, "mmd_gf needs x0 and either func or target_tensor"),
        ({"target_tensor": torch.ones(3, 2, 2)}, "mmd_gf needs x0 and either func or target_tensor"),
        ({"x0": torch.ones(2)}, "x0 must have shape (n, d) or (B, n, d), got (2,)"),
        ({"max_iter": 0}, "max_iter must be at least 1, got 0"),
        ({"tol": -1.0}, "tol must lie in [0, inf), got -1.0"),
        ({"stop_frequency": 0}, "stop_frequency must be at least 1, got 0"),
        ({"indexing": [0]}, "indexing must be at least 1, got 0"),
        ({"grad_mask": torch.ones(3, 4, 1)}, "grad_mask must have shape (3, 5), got (3, 4)"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(start, options, message):
    start[0, 3:] = 0
    with pytest.raises(ValueError) as caught:
        mmd_gf(**{"func": shifted, "x0": start, "max_iter": 100, "beta": 0.0, **options})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_iter": 10**20}, ValueError, f"max_iter must be at most 1000000000, got {10**20}"),
        ({"max_iter": True}, TypeError, "max_iter must be an integer, got bool"),
        ({"indexing": 10**20}, ValueError, f"indexing must be at most 1000000, got {10**20}"),
        ({"indexing": [1.5]}, TypeError, "indexing must be a list of integers, got [1.5]"),
        ({"timestamps_callback": "ab"}, TypeError, "timestamps_callback must be a list of integers, got 'ab'"),
        ({"sigma": "1"}, TypeError, "sigma must be a number, got str"),
        ({"sigma": [None]}, TypeError, "sigma must be a number, got NoneType"),
        ({"reg": -1.0}, ValueError, "reg must lie in [0, inf), got -1.0"),
        ({"reg_p": "2"}, TypeError, "reg_p must be a number, got str"),
        ({"optim_kwargs": 3}, TypeError, "optim_kwargs must be a dict of options or None, got int"),
        ({"optim_kwargs": {"lr": -1.0}}, ValueError, "optim_kwargs['lr'] must lie in (0, inf), got -1.0"),
        ({"scheduler_kwargs": {"gamma": 2.0}}, ValueError, "scheduler_kwargs['gamma'] must lie in (0, 1], got 2.0"),
        ({"callback_kwargs": [1]}, TypeError, "callback_kwargs must be a dict of options or None, got list"),
        ({"grad_mask": [True]}, TypeError, "grad_mask must be a torch.Tensor, got list"),
        ({"func": 3}, TypeError, "func must be callable, got int"),
        (
            {"func": None, "target_tensor": torch.ones(3, 2, 2)},
            TypeError,
            "target_tensor has dtype torch.float32 but x0 has torch.float64",
        ),
    ],
)
def test_bad_values_are_refused_by_name(start, options, error, message):
    with fails(error, message):
        mmd_gf(**{"func": shifted, "x0": start, "max_iter": 3, **QUIET, **options})


def test_kernels_of_clouds_that_do_not_go_together(cloud):
    x = cloud(2, 3, 2)
    for y, error, message in (
        (cloud(3, 3, 2), ValueError, "y must have a batch that goes with that of x, (2, 3, 2), got (3, 3, 2)"),
        (cloud(2, 3, 1), ValueError, "y must have points in dimension 2, as x has, got 1"),
        (x.float(), TypeError, "y has dtype torch.float32 but x has torch.float64"),
        (None, TypeError, "y must be a torch.Tensor, got NoneType"),
    ):
        with fails(error, message):
            riesz_kernel(x, y)


@pytest.mark.parametrize(
    ("options", "name"), [({"rescale_autodiff": False}, "rescale_autodiff=False"), ({"reg": 0.1}, "reg")]
)
def test_masks_of_different_sizes_that_would_scale_samples_apart(start, options, name):
    start[0, 3:] = 0
    message = f"{name} cannot be mapped: with this mask it would mean another factor for every sample"
    with fails(ValueError, message):
        mmd_gf(lambda z: 0.5 * z, start, mask=True, **{"rescale_autodiff": True, **options}, **QUIET)


def test_unknown_arguments_are_errors(start):
    with pytest.raises(TypeError, match="unexpected keyword argument 'lr'"):
        mmd_gf(shifted, start, lr=0.1)
