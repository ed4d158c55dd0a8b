"""What launches have in common: block sizes by shape and architecture, sharing out of sources, outputs."""

import torch
import triton

# (BLOCK_M targets, BLOCK_N sources, num_warps) by architecture, "other" for those not named; a table, so that no call
# stops to tune. Low dimension: by the 32-bit registers a pair needs for its running sums (the first limit not
# exceeded). Chosen from the machine code, see `python -m bench roofline`: fewest issue slots a pair without a spill.
LOW_D = {
    "evaluate": {
        "other": {4: (64, 32, 4), 9: (64, 16, 4), 18: (32, 16, 4)},
        "gfx942": {4: (64, 32, 2), 9: (64, 16, 2), 18: (32, 16, 2)},
    },
    "tangent": {
        "other": {4: (64, 16, 4), 10: (32, 16, 4), 18: (16, 16, 4)},
        "gfx942": {4: (64, 16, 2), 10: (32, 16, 2), 18: (16, 16, 2)},
    },
}


# Direct sums: (BLOCK_M, num_warps) by the 32-bit registers that hold a target; a single warp sums without a barrier.
DIRECT = {
    "other": {
        4: (64, 1),
        16: (32, 1),
        32: (16, 1),
        64: (8, 1),
        128: (4, 1),
        256: (2, 1),
        512: (1, 1),
        1024: (1, 2),
        4096: (1, 4),
    }
}


# High dimension: (BLOCK_M, BLOCK_N, BLOCK_D coordinates at a time, BLOCK_F components of the field, num_warps) by
# dimension. Blocks are small for the registers that a product of float32 in three parts takes.
HIGH_D = {
    "evaluate": {
        "other": {1024: (64, 32, 32, 128, 8)},
        90: {1024: (128, 32, 16, 128, 8)},
        100: {1024: (128, 32, 32, 128, 8)},
        "gfx942": {1024: (64, 32, 32, 128, 4)},
    },
    "tangent": {
        "other": {1024: (64, 16, 16, 64, 8)},
        100: {1024: (64, 32, 32, 128, 8)},
        "gfx942": {1024: (64, 32, 32, 128, 4)},
    },
}


def architecture(kernel):
    """Compute capability as 10 x major + minor, or a name such as gfx942; "other" where `kernel` is interpreted."""
    compiled = isinstance(kernel, triton.JITFunction)
    return triton.runtime.driver.active.get_current_target().arch if compiled else "other"


def _first_within(table, kernel, size):
    sizes = table.get(architecture(kernel), table["other"])
    return next(block for limit, block in sizes.items() if size <= limit)


def low_d_block(sums, kernel, d, dtype):
    """Block sizes of `sums`, a key of LOW_D, for the device on which `kernel` would run."""
    return _first_within(LOW_D[sums], kernel, (d + 1) * dtype.itemsize // 4)


def direct_block(kernel, numbers, dtype):
    """(BLOCK_M, num_warps) for targets of so many numbers each, at most 2048."""
    return _first_within(DIRECT, kernel, numbers * dtype.itemsize // 4)


def high_d_block(sums, kernel, d, precision):
    """Launch options of `sums`, a key of HIGH_D, in dimension d; how to multiply included."""
    device = architecture(kernel)
    if str(device).startswith("gfx") and precision.startswith("tf32"):
        precision = "tf32" if precision == "tf32" and device == "gfx942" else "ieee"
    block_m, block_n, block_d, block_f, warps = _first_within(HIGH_D[sums], kernel, d)
    width = max(16, triton.next_power_of_2(d))
    return {
        "PRECISION": precision,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_D": min(block_d, width),
        "BLOCK_F": min(block_f, width),
        "num_warps": warps,
        "num_stages": 2,
    }


def sum_dtype(x):
    """The dtype that sums over x are carried out in: single precision at least."""
    return torch.promote_types(x.dtype, torch.float32)


def split(x, programs, tiles):
    """Among how many programs to share out the sources of one, so that a GPU is filled: at least 8 tiles each."""
    if not x.is_cuda:
        return 1
    wanted = triton.cdiv(4 * torch.cuda.get_device_properties(x.device).multi_processor_count, programs)
    return max(1, min(wanted, tiles // 8))


def outputs(x, splits, potential, field):
    """Uninitialised u (splits, B, m) and f (splits, B, m, d); None for what is not wanted."""
    shape, options = x.shape[:2], {"dtype": x.dtype if splits == 1 else sum_dtype(x), "device": x.device}
    u = torch.empty(splits, *shape, **options) if potential else None
    return u, torch.empty(splits, *x.shape, **options) if field else None


def joined(x, *parts):
    """Outputs with the splits added up, in the dtype of x."""
    return tuple(None if p is None else p[0] if len(p) == 1 else p.sum(0).to(x.dtype) for p in parts)
