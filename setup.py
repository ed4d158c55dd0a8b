"""Packages: `ddeq_fast`, with the top-level folder `kernels/` as `ddeq_fast.kernels`. All else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=sorted({*find_packages(include=["ddeq_fast", "ddeq_fast.*"]), "ddeq_fast.kernels"}),
    package_dir={"ddeq_fast.kernels": "kernels"},
)
