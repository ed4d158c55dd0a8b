"""The pages: their Python runs, their commands and options exist, and the reference has everything public."""

import re

import pages
import pytest
import torch

import ddeq_fast
from ddeq_fast import data, gradients, networks, solvers
from ddeq_fast.commands import main as commands

# CONTRIBUTING's blocks have tests of their own.
WITH_CODE = [page for page in pages.PAGES if page != "CONTRIBUTING.md" and pages.blocks(pages.text_of(page))]
# Extras that a page's code needs.
EXTRAS = {
    "docs/howto/from-torchdeq.md": ["torchdeq"],
    "docs/howto/own-data.md": ["safetensors", "tqdm"],
}


@pytest.mark.usefixtures("registries")
# A network that is not trained may leave a sample above the tolerance, which it tells.
@pytest.mark.filterwarnings("ignore::ddeq_fast.solvers.ConvergenceWarning")
@pytest.mark.parametrize("page", WITH_CODE)
def test_python_on_a_page_runs(page, tmp_path, monkeypatch):
    """One block after another, in a folder that is empty at first."""
    for extra in EXTRAS.get(page, ()):
        pytest.importorskip(extra)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = None
    for i, code in enumerate(pages.blocks(pages.text_of(page))):
        names = pages.run(code, f"{page}, block {i + 1}", names)


def command_lines(text):
    """(command, options) of each `ddeq-fast COMMAND --option ...` in a text, in a block or in a line."""
    for command, rest in re.findall(r"ddeq-fast ([a-z]+)\b([^`\n]*)", text.replace("\\\n", " ")):
        yield command, re.findall(r"(?<!\S)--[a-z][\w-]*", re.split(r"[|&#]", rest)[0])


def known_options(command):
    """Options of a command."""
    (action,) = [action for action in commands.make_parser(command)._actions if action.dest == "command"]
    return set(action.choices[command]._option_string_actions)


@pytest.mark.parametrize("page", pages.PAGES)
def test_commands_and_options_on_a_page_exist(page):
    found = list(command_lines(pages.text_of(page)))
    assert {command for command, _ in found} <= set(commands.COMMANDS)
    strange = [(command, word) for command, words in found for word in words if word not in known_options(command)]
    assert not strange


def test_command_lines_are_found():
    text = "`ddeq-fast eval runs/x --json`\n\n    .venv/bin/ddeq-fast train \\\n  --data=digits --run x && ls --all\n"
    assert list(command_lines(text)) == [("eval", ["--json"]), ("train", ["--data", "--run"])]
    assert sum(len(list(command_lines(pages.text_of(page)))) for page in pages.PAGES) > 20


def test_benchmarks_on_pages_exist():
    bench = pytest.importorskip("bench.__main__", reason="no benchmarks beside the tests")
    found = {name for page in pages.PAGES for name in re.findall(r"python -m bench ([a-z]+)", pages.text_of(page))}
    assert found <= set(bench.COMMANDS)


def test_the_reference_has_everything_public():
    """A name that is missing gets a line `::: its.module.name` on the page of its room, in docs/reference/."""
    text = "".join(pages.text_of(page) for page in pages.PAGES if page.startswith("docs/reference/"))
    shown = {tuple(name.split(".")[1:]) for name in re.findall(r"^::: (ddeq_fast\.\S+)", text, re.MULTILINE)}
    front = {(*room.split("."), name) for room, names in ddeq_fast._ROOMS.items() for name in names}
    assert not front - shown
    for module in (solvers, gradients, networks, data):
        room = module.__name__.rpartition(".")[2]
        inner = {"SPACES", "Callback", "run", "check_scale", "refuse_transforms"}
        assert not {(room, name) for name in module.__all__ if name not in inner} - shown


def test_every_command_is_in_the_reference():
    text = pages.text_of("docs/reference/commands.md")
    assert re.findall(r"^<!-- help: (\w+) -->$", text, re.MULTILINE) == list(commands.COMMANDS)
