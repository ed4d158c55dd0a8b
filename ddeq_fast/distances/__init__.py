"""Distances between clouds that are no discrepancy: nearest points, metrics of completion, transport, entropy."""
