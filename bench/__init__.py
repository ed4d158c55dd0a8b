"""Benchmarks, run from a checkout as `python -m bench`; the package itself need not be installed."""

import importlib.util
import sys
from pathlib import Path

import ddeq_fast

if importlib.util.find_spec("ddeq_fast.kernels") is None:  # installation maps the folder kernels/ to this name
    _folder = Path(__file__).parent.parent / "kernels"
    _spec = importlib.util.spec_from_file_location(
        "ddeq_fast.kernels", _folder / "__init__.py", submodule_search_locations=[str(_folder)]
    )
    ddeq_fast.kernels = sys.modules["ddeq_fast.kernels"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(ddeq_fast.kernels)
