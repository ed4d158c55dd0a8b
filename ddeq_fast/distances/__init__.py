"""Distances between clouds that are no discrepancy: nearest points, Chamfer distance, entropy."""
