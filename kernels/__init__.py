"""Triton kernels of ddeq_fast (installed as `ddeq_fast.kernels`): jit code and launchers only."""
