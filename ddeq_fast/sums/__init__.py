"""Potential and field of a charged cloud: kernels, sums, discrepancies, and the backends that carry them out."""
