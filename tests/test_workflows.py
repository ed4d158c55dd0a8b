"""What runs on GitHub: the files parse, what they call is there, and versions are those that the package names."""

import os
import re
import shlex

import pytest

from references import ROOT

yaml = pytest.importorskip("yaml")
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
if not FILES:
    pytest.skip("no workflows beside the tests", allow_module_level=True)
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
# Of Python or installed by an earlier step.
MODULES = {"pip", "pytest", "build", "twine", "venv"}


def jobs(path):
    """The jobs of a workflow by name."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]


def commands(path):
    """(job, command line) of each step that runs one."""
    for name, job in jobs(path).items():
        for step in job["steps"]:
            for line in step.get("run", "").splitlines():
                yield name, line


def versions(name):
    """All values of that matrix entry in any workflow."""
    found = [job.get("strategy", {}).get("matrix", {}).get(name, []) for path in FILES for job in jobs(path).values()]
    return {version for one in found for version in one}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_is_whole(path):
    whole = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert whole["name"] and whole[True] and whole["permissions"] == {"contents": "read"}  # YAML 1.1 reads `on` as true
    for job in whole["jobs"].values():
        assert job["runs-on"] and 0 < job["timeout-minutes"] <= 360
        assert job["steps"][0]["uses"].startswith("actions/checkout@")
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
        # A matrix entry that is used is there.
        used = set(re.findall(r"matrix\.(\w+)", yaml.safe_dump(job["steps"])))
        assert used == set(job.get("strategy", {}).get("matrix", {}))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commands_of_a_workflow_exist(path):
    made = set()
    for job, line in commands(path):
        program, *words = shlex.split(re.sub(r"\$\{\{ github\.workspace \}\}/", "", line))
        if program == "python":
            assert words[0] == "-m" and words[1] in MODULES, line
        elif program == "bash":
            assert os.access(ROOT / words[0], os.X_OK), line
        else:
            folder, *place = program.split("/")
            assert (job, folder) in made and place[0] == "bin" and place[1] in {"pip", "ddeq-fast"}, line
        if words[:2] == ["-m", "venv"]:
            made.add((job, words[2]))
        for extras in re.findall(r"^\.\[(.*)\]$", "\n".join(words), re.MULTILINE):
            assert all(re.search(rf"^{extra} = \[", PROJECT, re.MULTILINE) for extra in extras.split(",")), line


def test_every_python_is_tested():
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert versions("python") == set(named)
    assert min(named, key=lambda text: int(text[2:])) == re.search(r'requires-python = ">=(.+)"', PROJECT)[1]


def test_both_ends_of_torch_are_tested():
    oldest = re.search(r'"torch>=([\d.]+)"', PROJECT)[1]
    assert {version.removesuffix(".0") for version in versions("torch")} == {oldest}
    # The newest is that of constraints.txt, by the same script as everywhere.
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    lines = [line for path in FILES for _, line in commands(path)]
    assert "bash .ci/run" in lines and any("torch==${{ matrix.torch }}" in line for line in lines)
