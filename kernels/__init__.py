"""Triton kernels of ddeq_fast (installed as `ddeq_fast.kernels`): jit code and launchers only.

    radial      a radial kernel's formulas as functions of the squared distance
    sources     sources laid out in tiles, and where the padding starts
    launch      block sizes (from blocks.json), sharing out of sources, outputs
    low_d       sums in dimension 8 and below, pair by pair in registers
    direct      sums for few sources, or in float64, in any dimension
    high_d      sums in higher dimension through matrix products
    nearest     nearest points

The derivations are in kernels/README.md.
"""
