"""Code on the pages: README, CONTRIBUTING and docs show Python that tests run, and commands that they look up."""

import re
import textwrap

from references import ROOT

PAGES = {path.relative_to(ROOT).as_posix(): path for path in [*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/**/*.md"))]}
_PYTHON = re.compile(r"^( *)```python[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def text_of(page):
    """The text of a page, of that path below the root."""
    return PAGES[page].read_text(encoding="utf-8")


def blocks(text):
    """Python in a text, block by block, but for those that show a file of examples/, which is run for itself."""
    found = [textwrap.dedent(code) for _, code in _PYTHON.findall(text)]
    return [code for code in found if not code.startswith("--8<--")]


def run(code, title, names=None):
    """The names that the code makes, beside those that were there."""
    # A module of that name, where dataclasses look for their annotations.
    names = {"__name__": __name__} if names is None else names
    exec(compile(code, title, "exec"), names)
    return names
