"""What pages are given when the site is built: help of commands, sections of the README, links to the reference, and
formulas as they are."""

import os
import re
from collections import Counter
from pathlib import Path
from unittest import mock

from markdown.extensions import Extension
from markdown.inlinepatterns import SimpleTagInlineProcessor
from mkdocs.exceptions import PluginError

from ddeq_fast.commands import main

# Where nothing is linked: code blocks, headings, links.
_LEFT = re.compile(r"(<pre.*?</pre>|<h[1-6].*?</h[1-6]>|<a\b.*?</a>)", re.DOTALL)
_NAME = re.compile(r"<code>(?:ddeq_fast\.)?(\w+)</code>")


class _Formulas(Extension):
    """A single * is a product or a star, as in u*, and <a, z> no tag."""

    def extendMarkdown(self, md):
        md.inlinePatterns.register(SimpleTagInlineProcessor(r"(\*\*)(?!\s)(.+?)\*\*", "strong"), "em_strong", 60)
        md.inlinePatterns.deregister("html")


def on_config(config, **_):
    config.markdown_extensions.append(_Formulas())
    return config


def _reference():
    """Identifiers of everything in the reference by its last name, where that is the name of one thing alone."""
    pages = Path(__file__).with_name("reference").glob("*.md")
    found = [name for page in pages for name in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.M)]
    count = Counter(name.rpartition(".")[2] for name in found)
    return {name.rpartition(".")[2]: name for name in found if count[name.rpartition(".")[2]] == 1}


_PLACES = _reference()


def on_page_markdown(markdown, **_):
    """`<!-- help: COMMAND -->` becomes what it prints with --help, `<!-- readme: TITLE -->` that section."""
    markdown = re.sub(r"<!-- readme: (.+) -->", lambda found: _section(found[1]), markdown)
    return re.sub(r"<!-- help: (\w+) -->", lambda found: _help(found[1]), markdown)


def _section(title):
    readme = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    _, mark, rest = readme.partition(f"\n## {title}\n")
    if not mark:
        raise PluginError(f"README.md has no section {title!r}")
    return rest.partition("\n## ")[0].replace("(docs/", "(").removesuffix("MIT licence.\n").strip()


def _help(command):
    with mock.patch.dict(os.environ, {"COLUMNS": "88", "NO_COLOR": "1"}):
        (commands,) = [action for action in main.make_parser(command)._actions if action.dest == "command"]
        return f"```text\n{commands.choices[command].format_help().rstrip()}\n```"


def on_page_content(html, **_):
    """Names of the reference in the running text become links to it."""
    parts = _LEFT.split(html)
    parts[::2] = [_NAME.sub(_link, part) for part in parts[::2]]
    return "".join(parts)


def _link(found):
    place = _PLACES.get(found[1])
    return f'<autoref identifier="{place}">{found[0]}</autoref>' if place else found[0]
