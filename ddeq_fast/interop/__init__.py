"""Bridges to other code: torchdeq, geomloss, and functions and checkpoints of the original DDEQ code."""
