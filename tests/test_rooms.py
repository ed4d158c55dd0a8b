"""The order of the rooms: who may import whom, and how large a room's parts may be."""

import ast
import re
from pathlib import Path

import pytest

import ddeq_fast
from references import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / "ddeq_fast").is_dir(), reason="no sources beside the tests")
SOURCES = {
    **{path: "ddeq_fast" for path in (ROOT / "ddeq_fast").rglob("*.py") if "kernels" not in path.parts[-2:-1]},
    **{path: "ddeq_fast.kernels" for path in (ROOT / "kernels").glob("*.py")},
}
MAP = ddeq_fast.__doc__.split("\n\n")[3]
ROOMS = re.findall(r"^ +(\w+)  ", MAP, flags=re.M)


def dotted(path):
    """Name of the module in that file."""
    base = ROOT / ("kernels" if SOURCES[path] == "ddeq_fast.kernels" else "ddeq_fast")
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join([SOURCES[path], *(part for part in parts if part != "__init__")])


MODULES = {dotted(path): path for path in SOURCES}


def room(module):
    """The room of a module's name; None for the front door itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def lazy(node):
    """Whether a statement is for type checkers alone."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def statements(tree):
    """Nodes of a module that are run."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        todo += [child for child in ast.iter_child_nodes(node) if not lazy(child)]


def imported(path):
    """(module, whether when the importer itself is imported) of this package's modules that a file imports anywhere."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(child) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for child in ast.walk(node)}
    for node in statements(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "ddeq_fast":
                yield (name if name in MODULES else name.rpartition(".")[0]), id(node) not in inside


IMPORTS = {module: list(imported(path)) for module, path in MODULES.items()}


def test_the_map_names_every_room():
    found = {room(module) for module in MODULES} - {None, "__main__"}
    assert sorted(ROOMS) == sorted(found)
    assert all(getattr(ddeq_fast, name).__name__ == f"ddeq_fast.{name}" for name in ROOMS if name != "kernels")


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_those_above_it(name):
    allowed = ROOMS[: ROOMS.index(name) + 1]
    own = [module for module in MODULES if room(module) == name]
    targets = [(module, target) for module in own for target, _ in IMPORTS[module]]
    upward = [pair for pair in targets if room(pair[1]) not in [*allowed, None]]
    assert not upward
    # The front door knows all rooms: what stands inside goes to the room itself.
    front = [pair for pair in targets if room(pair[1]) is None]
    assert name == "commands" or not front


def test_no_import_goes_in_a_circle():
    graph = {module: {target for target, _ in found if target != module} for module, found in IMPORTS.items()}
    # A package's names are there once its own module has run: importing from a part of it runs that first.
    while graph:
        leaves = [module for module, targets in graph.items() if not targets & set(graph)]
        assert leaves, f"a circle among {sorted(graph)}"
        for module in leaves:
            del graph[module]


def test_sizes():
    python = [path for folder in ("ddeq_fast", "kernels", "bench", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert len([path for path in (ROOT / "ddeq_fast").iterdir() if path.is_file()]) <= 6
    long = [path.name for path in python if len(path.read_text(encoding="utf-8").splitlines()) > 400]
    assert not long


def test_every_module_says_what_lives_there():
    silent = [module for module, path in MODULES.items() if not ast.get_docstring(ast.parse(Path(path).read_text()))]
    assert not silent


def test_nothing_is_imported_behind_a_directive():
    text = {path: path.read_text(encoding="utf-8") for path in SOURCES}
    assert not [path.name for path in SOURCES if re.search(r"import .*noqa: *E402", text[path])]


def test_files_of_tests_have_names_of_their_own():
    """pytest imports them by their last name alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(set(names)) == len(names)
