"""The front door: lazy names, their help, and the map."""

import ast
import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import ddeq_fast
from ddeq_fast import data, gradients, networks, solvers
from references import ROOT

ROOMS = {"ddeq_fast": ddeq_fast, "solvers": solvers, "gradients": gradients, "networks": networks, "data": data}
PUBLIC = [(room, name) for room, module in ROOMS.items() for name in module.__all__]


def public(room, name):
    return getattr(ROOMS[room], name)


def fresh(code):
    """What `code` prints as JSON in a fresh interpreter."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_importing_it_loads_nothing_and_its_names_what_they_need():
    before, after = fresh(
        "import json, sys, ddeq_fast; before = 'torch' in sys.modules; ddeq_fast.DDEQ; "
        "print(json.dumps([before, 'torch' in sys.modules]))"
    )
    assert (before, after) == (False, True)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(ddeq_fast.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"ddeq_fast.{room}" for name, room in ddeq_fast._HOME.items()}


def test_dir_lists_names_and_rooms():
    assert {"DDEQ", "potential", "solvers", "sums", "__version__"} <= set(dir(ddeq_fast))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'ddeq_fast' has no attribute 'DEQ'$"):
        ddeq_fast.DEQ  # noqa: B018


def test_no_name_hides_a_module():
    """A module stays reachable as an attribute of its package: no function of its name stands in its way."""
    for found in pkgutil.walk_packages(ddeq_fast.__path__, "ddeq_fast."):
        if "kernels" in found.name.split("."):
            continue
        module = importlib.import_module(found.name)
        package, _, name = found.name.rpartition(".")
        assert getattr(sys.modules[package], name) is module, found.name


@pytest.mark.parametrize(("room", "name"), PUBLIC)
def test_public_names_explain_themselves(room, name):
    """A docstring of its own, and types on everything that can be passed."""
    thing = public(room, name)
    if not inspect.isroutine(thing) and not inspect.isclass(thing):
        return  # an alias of types
    assert thing.__doc__, name
    function = thing.__init__ if inspect.isclass(thing) and "__init__" in vars(thing) else thing
    if inspect.isclass(function):
        return
    signature = inspect.signature(function)
    some = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    given = [p for p in signature.parameters.values() if p.name != "self" and p.kind not in some]
    bare = [p.name for p in given if p.annotation is p.empty]
    assert not bare, f"{name}: {bare} have no type"


def test_types_are_shipped():
    assert (Path(ddeq_fast.__file__).parent / "py.typed").exists()
