"""What launches have in common: block sizes by shape and architecture, sharing out of sources, outputs."""

import json
from pathlib import Path

import torch
import triton

BLOCKS_FILE = Path(__file__).with_name("blocks.json")


def load_blocks(path):
    """Block sizes by kernel, architecture ("other" for those not named) and shape, {name: {name: {limit: block}}}.

    The first limit that a shape does not exceed counts, see `low_d_block` and the others. Raises ValueError naming
    the file if it holds anything else.
    """
    try:
        tables = json.loads(Path(path).read_text(encoding="utf-8"))
        for name, table in tables.items():
            for sizes in (table["other"], *table.values()):
                limits = [int(limit) for limit in sizes]
                if limits != sorted(limits) or not all(isinstance(n, int) for block in sizes.values() for n in block):
                    raise ValueError(f"{name}: limits must grow and blocks be integers")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no table of block sizes: {error!r}") from error
    return {
        name: {device: {int(limit): tuple(block) for limit, block in sizes.items()} for device, sizes in table.items()}
        for name, table in tables.items()
    }


# A table, so that no call stops to tune; `python -m bench tune` rewrites it. What is there was chosen from the machine
# code, see `python -m bench roofline`: fewest issue slots a pair without a spill.
BLOCKS = load_blocks(BLOCKS_FILE)


def current_architecture():
    """Of the current device: compute capability as 10 x major + minor, such as "90", or a name such as "gfx942"."""
    return str(triton.runtime.driver.active.get_current_target().arch)


def architecture(kernel):
    """`current_architecture`; "other" where `kernel` is interpreted."""
    return current_architecture() if isinstance(kernel, triton.JITFunction) else "other"


def _first_within(name, kernel, size):
    sizes = BLOCKS[name].get(architecture(kernel), BLOCKS[name]["other"])
    return next(block for limit, block in sizes.items() if size <= limit)


def low_d_block(sums, kernel, d, dtype):
    """(BLOCK_M, BLOCK_N, num_warps) of `sums`, "evaluate" or "tangent": by the 32-bit registers of a pair's sums."""
    return _first_within(f"low_d.{sums}", kernel, (d + 1) * dtype.itemsize // 4)


def direct_block(kernel, numbers, dtype):
    """(BLOCK_M, num_warps) for targets of so many numbers each, at most 2048, by the registers that hold a target.

    A single warp sums without a barrier.
    """
    return _first_within("direct", kernel, numbers * dtype.itemsize // 4)


def whole_cloud_block(kernel, numbers, m, dtype):
    """(BLOCK_M, num_warps) that gives all m targets to one program, if 16 warps hold them; else `direct_block`.

    Twice the warps that registers ask for: programs are few, and wait for memory rather than for each other.
    """
    block_m, warps = direct_block(kernel, numbers, dtype)
    rows = max(block_m, triton.next_power_of_2(m))
    needed = warps * rows // block_m
    return (rows, min(2 * needed, 16)) if needed <= 16 else (block_m, warps)


def nearest_block(kernel, d, dtype, width):
    """(BLOCK_M, BLOCK_N, num_warps): by the registers of a target, above `width` coordinates of 32 numbers."""
    return _first_within("nearest", kernel, (d if d <= width else 32) * dtype.itemsize // 4)


def high_d_block(sums, kernel, d, precision):
    """Launch options of `sums`, "evaluate" or "tangent", in dimension d; how to multiply included.

    The table holds, by dimension, (BLOCK_M, BLOCK_N, BLOCK_D coordinates at a time, BLOCK_F components of the field,
    num_warps); blocks are small for the registers that a product of float32 in three parts takes.
    """
    device = architecture(kernel)
    if device.startswith("gfx") and precision.startswith("tf32"):
        precision = "tf32" if precision == "tf32" and device == "gfx942" else "ieee"
    block_m, block_n, block_d, block_f, warps = _first_within(f"high_d.{sums}", kernel, d)
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
