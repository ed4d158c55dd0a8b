"""Bridges to other code: checkpoints of the original DDEQ implementation."""
