"""What is installed, and what importing it costs."""

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest
import torch

import ddeq_fast

OPTIONAL = ["triton", "pykeops", "torchdeq", "ferreus_bbfmm", "matplotlib", "sklearn", "scipy", "tqdm", "safetensors"]
ROOT = Path(ddeq_fast.__file__).resolve().parent.parent


def run(code, cwd):
    """What `code` prints as JSON in a fresh interpreter in `cwd`, which finds the package under test first."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def installed():
    """The installed distribution, if it is the package under test."""
    wheels = [d for d in importlib.metadata.distributions(name="ddeq_fast") if d.read_text("WHEEL") is not None]
    if not wheels:
        pytest.skip("ddeq_fast is not installed, only on the path")
    source = json.loads(wheels[0].read_text("direct_url.json") or "{}")
    editable = source.get("dir_info", {}).get("editable", False)
    location = url2pathname(urlparse(source["url"]).path) if editable else wheels[0].locate_file("")
    if Path(location).resolve() != ROOT:
        pytest.skip("the installed ddeq_fast is another copy than the one under test, which is only on the path")
    return wheels[0]


def test_import_from_another_folder_loads_nothing_optional(tmp_path):
    # torch loads some of them itself (tqdm, for its hub): what counts is what the package adds.
    file, added = run(
        "import json, sys, torch; before = set(sys.modules); import ddeq_fast; "
        f"print(json.dumps([ddeq_fast.__file__, [m for m in {OPTIONAL} if m in set(sys.modules) - before]]))",
        tmp_path,
    )
    assert Path(file).resolve() == Path(ddeq_fast.__file__).resolve()
    assert added == []


def test_works_where_nothing_optional_is_installed(tmp_path):
    value = run(
        f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL})); "  # None: importing it raises ImportError
        "import torch, ddeq_fast; x = torch.eye(3, dtype=torch.float64); "
        "print(float(ddeq_fast.squared_mmd(x, x + 1, backend='dense')))",
        tmp_path,
    )
    x = torch.eye(3, dtype=torch.float64)
    assert value == pytest.approx(float(ddeq_fast.squared_mmd(x, x + 1, backend="dense")), rel=1e-12)


def test_everything_public_is_there():
    assert len(set(ddeq_fast.__all__)) == len(ddeq_fast.__all__)
    assert all(getattr(ddeq_fast, name).__doc__ for name in ddeq_fast.__all__)


def test_kernels_are_installed_inside_the_package(installed):
    module = importlib.import_module("ddeq_fast.kernels")
    assert Path(module.__file__).resolve().parent in (ROOT / "kernels", ROOT / "ddeq_fast" / "kernels")


def test_no_other_top_level_name_is_installed(installed):
    assert installed.read_text("top_level.txt").split() == ["ddeq_fast"]
    assert not [f for f in installed.files if f.parts[0] in ("kernels", "tests", "bench")]


def test_version(installed):
    assert installed.version == ddeq_fast.__version__
