"""What is installed, and what importing it costs."""

import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest
import torch

import ddeq_fast
from references import ROOT as SOURCES

OPTIONAL = ["triton", "pykeops", "torchdeq", "ferreus_bbfmm", "matplotlib", "sklearn", "scipy", "tqdm", "safetensors"]
ROOT = Path(ddeq_fast.__file__).resolve().parent.parent


def python(*words, cwd, root=ROOT):
    """(exit status, standard output) of a fresh interpreter in `cwd`, which finds the package in `root` first."""
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert "Traceback" not in result.stderr, result.stderr
    return result.returncode, result.stdout


def run(code, cwd, root=ROOT):
    """What `code` prints as JSON in such an interpreter."""
    status, out = python("-c", code, cwd=cwd, root=root)
    assert status == 0
    return json.loads(out)


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


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["fly"]], ids=" ".join)
def test_the_package_runs_as_its_command(words, tmp_path):
    alone = "import sys; from ddeq_fast.commands.main import main; sys.exit(main())"
    assert python("-m", "ddeq_fast", *words, cwd=tmp_path) == python("-c", alone, *words, cwd=tmp_path)


# The archives that would be published


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(source archive, wheel made of it), built from a copy of the sources by the installed setuptools."""
    pytest.importorskip("setuptools", minversion="77")
    if not all((SOURCES / name).exists() for name in ("pyproject.toml", "setup.py", "kernels")):
        pytest.skip("no sources beside the tests")
    folder = tmp_path_factory.mktemp("built")
    ignored = shutil.ignore_patterns(".*cache*", ".venv", ".git", "__pycache__", "*.egg-info", "build", "runs", "site")
    shutil.copytree(SOURCES, folder / "clone", ignore=ignored, symlinks=True)

    def build(what, cwd):
        code = f"import json; from setuptools import build_meta as b; made = b.build_{what}({str(folder)!r})"
        # setuptools prints what it does.
        status, out = python("-c", f"{code}; print(); print(json.dumps(made))", cwd=cwd, root=cwd)
        assert status == 0
        return folder / json.loads(out.splitlines()[-1])

    archive = build("sdist", folder / "clone")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return archive, build("wheel", folder / archive.name.removesuffix(".tar.gz"))


def test_the_source_archive_has_what_a_developer_needs(built):
    archive, _ = built
    with tarfile.open(archive) as tar:
        found = {name.partition("/")[2] for name in tar.getnames()}
    needed = [
        "CHANGELOG.md",
        "LICENSE",
        "constraints.txt",
        "mkdocs.yml",
        ".ci/run",
        "bench/__main__.py",
        "docs/hooks.py",
    ]
    needed += ["tests/conftest.py", "tests/golden/mmd.npz", "examples/tour.ipynb", "kernels/README.md", "docs/index.md"]
    assert not set(needed) - found
    assert not [name for name in found if name.endswith(".pyc") or name.startswith("ddeq_fast/kernels")]


def test_the_wheel_has_the_package_alone(built):
    with zipfile.ZipFile(built[1]) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    kinds = {".py", ".json", ".typed"}
    expected = {
        f"{place}/{path.relative_to(folder).as_posix()}"
        for place, folder in (("ddeq_fast", SOURCES / "ddeq_fast"), ("ddeq_fast/kernels", SOURCES / "kernels"))
        for path in folder.rglob("*")
        if path.suffix in kinds
    }
    assert found == expected and "ddeq_fast/kernels/blocks.json" in found


def test_the_wheel_says_what_it_is(built):
    with zipfile.ZipFile(built[1]) as wheel:
        (file,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(wheel.read(file))
        entry_points = wheel.read(file.replace("METADATA", "entry_points.txt")).decode()
    assert metadata["Version"] == ddeq_fast.__version__ and metadata["License-Expression"] == "MIT"
    assert "ddeq-fast = ddeq_fast.commands.main:main" in entry_points
    needed = [text for text in metadata.get_all("Requires-Dist") if "extra ==" not in text]
    assert sorted(re.match(r"[\w-]+", text)[0] for text in needed) == ["numpy", "torch"]
    extras = metadata.get_all("Provides-Extra")
    everything = next(text for text in metadata.get_all("Requires-Dist") if re.search(r"extra == .all.", text))
    assert sorted(re.findall(r"[\w-]+", everything.partition("[")[2].partition("]")[0])) == sorted({*extras} - {"all"})


def test_the_wheel_works(built, tmp_path):
    with zipfile.ZipFile(built[1]) as wheel:
        wheel.extractall(tmp_path / "site")
    code = (
        "import json, torch, ddeq_fast; from ddeq_fast.kernels import launch; x = torch.eye(3, dtype=torch.float64); "
        "print(json.dumps([ddeq_fast.__file__, launch.__file__, float(ddeq_fast.squared_mmd(x, x + 1))]))"
    )
    package, kernels, value = run(code, tmp_path, tmp_path / "site")
    assert Path(package).is_relative_to(tmp_path) and Path(kernels).is_relative_to(tmp_path / "site" / "ddeq_fast")
    x = torch.eye(3, dtype=torch.float64)
    assert value == pytest.approx(float(ddeq_fast.squared_mmd(x, x + 1)), rel=1e-12)
    expected = 0, f"ddeq-fast {ddeq_fast.__version__}\n"
    assert python("-m", "ddeq_fast", "--version", cwd=tmp_path, root=tmp_path / "site") == expected
