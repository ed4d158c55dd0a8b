"""Benchmarks of ddeq_fast: `python -m bench --help`. Not installed."""
