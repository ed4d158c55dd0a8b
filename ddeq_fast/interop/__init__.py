"""Bridges to other code: torchdeq, and functions and checkpoints of the original DDEQ code."""
