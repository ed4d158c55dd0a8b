"""Packaging: `ddeq_fast`, with the top-level folder `kernels/` installed as `ddeq_fast.kernels`."""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    "data": ["scikit-learn>=1.3", "scipy>=1.10", "safetensors>=0.4", "tqdm>=4.60"],
    "train": ["scikit-learn>=1.3", "scipy>=1.10", "safetensors>=0.4", "tqdm>=4.60", "matplotlib>=3.7"],
    "metrics": ["scipy>=1.10"],
    "plots": ["matplotlib>=3.7"],
    "tensorboard": ["tensorboard>=2.14"],
    "triton": ["triton>=3.4; platform_system == 'Linux'"],
    "keops": ["pykeops>=2.2"],
    "large": ["ferreus-bbfmm>=0.3"],
    "torchdeq": ["torchdeq>=0.1"],
    "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.30"],
    "tests": [
        "pytest>=7.4",
        "pytest-xdist>=3.5",
        "pytest-benchmark>=4.0",
        "hypothesis>=6.80",
        "mypy>=1.10",
        "ruff>=0.4",
        "scipy>=1.10",
        "torchdeq>=0.1",
        "ferreus-bbfmm>=0.3",
    ],
}
EXTRAS["all"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})

setup(
    name="ddeq_fast",
    version="0.1.0",
    description="Distributional deep equilibrium models on fused MMD kernels",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    install_requires=["torch>=2.6", "numpy>=1.24"],
    extras_require=EXTRAS,
    packages=[*find_packages(include=["ddeq_fast", "ddeq_fast.*"]), "ddeq_fast.kernels"],
    package_dir={"ddeq_fast.kernels": "kernels"},
    package_data={
        "ddeq_fast": ["py.typed"],
        "ddeq_fast.kernels": ["blocks.json"],
        "ddeq_fast.sums.backends": ["costs.json"],
    },
    entry_points={"console_scripts": ["ddeq-fast = ddeq_fast.commands.main:main"]},
)
