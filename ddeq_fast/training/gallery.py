"""A page of a run: results, curves, pictures, settings; plain HTML in a folder of its own, without scripts."""

from __future__ import annotations

import shutil
from dataclasses import fields
from html import escape
from pathlib import Path

from ddeq_fast.training.config import GROUPS, Config, declared
from ddeq_fast.training.metrics import table
from ddeq_fast.training.run import AUDIT_PICTURE, read_config, read_metrics, read_verdict
from ddeq_fast.utils.files import write_atomically

PAGE = "index.html"
# Pictures that training leaves in the run's folder, in the order of the page, and what they show.
_PICTURES = {
    "completion.png": "Held-out clouds. Partial clouds, completed with the orange points, and whole.",
    "flow.png": "New points on their way from random places, lowered to the plane; grey is observed.",
    "equilibrium.png": "Held-out clouds, their latent particles on the way to equilibrium, and the residual.",
    AUDIT_PICTURE: "What the equilibria are worth: measurements of each held-out cloud, and of the output.",
    "curves.png": "Training (blue) and held-out clouds (orange).",
}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
figure { margin: 1.2rem 0; } img { max-width: 100%; border: 1px solid #ddd; } figcaption, .note { color: #555; }
table { border-collapse: collapse; } td { border-bottom: 1px solid #ddd; padding: .15rem 1.2rem .15rem 0; }
th { text-align: left; padding-top: .5rem; color: #555; font-weight: 400; }
td + td { font-variant-numeric: tabular-nums; } .settings { columns: 2; } .settings td { font-size: .85rem; }
.changed { font-weight: 600; }
"""


def write(run: Path, folder: Path | None = None) -> Path:
    """Write the page of a run to `folder`, RUN/gallery if None, with copies of the run's pictures; returns its path.

    Raises FileNotFoundError if there is no run, ValueError if it has not been evaluated yet.
    """
    config, metrics = read_config(run), read_metrics(run)
    tests = [entry for entry in metrics if entry["split"] == "test"]
    if not tests:
        raise ValueError(f"{run} has no evaluation yet: train an epoch first")
    folder = Path(run) / "gallery" if folder is None else Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures = []
    for name, text in _PICTURES.items():
        if (Path(run) / name).is_file():
            shutil.copyfile(Path(run) / name, folder / name)
            figures.append(f'<figure><img src="{name}" alt="{text}"><figcaption>{text}</figcaption></figure>')
    body = [
        f"<h1>{escape(_title(config))}</h1>",
        f'<p class="note">step {tests[-1]["step"]:,}, {tests[-1]["seconds"]:,.0f} s of training, '
        f"run {escape(Path(run).resolve().name)}</p>",
        "<h2>Held-out clouds</h2>",
        _table(table(tests[-1])),
        *_verdict(Path(run)),
        "<h2>Pictures</h2>",
        *(figures or ["<p>None: training draws them when it ends, if matplotlib is installed.</p>"]),
        "<h2>Settings</h2>",
        '<p class="note">Those that differ from the defaults are bold.</p>',
        f'<div class="settings">{_settings(config)}</div>',
    ]
    page = _document(_title(config), "\n".join(body))
    write_atomically(folder / PAGE, page.encode())
    return folder / PAGE


def _verdict(run: Path) -> list[str]:
    """What an audit said, if there was one."""
    verdict = read_verdict(run)
    return [] if verdict is None else ["<h2>Equilibria</h2>", f"<p>{escape(verdict[:1].upper() + verdict[1:])}.</p>"]


def _title(config: Config) -> str:
    return f"{'Completion' if config.task == 'complete' else 'Classification'} of {config.data}"


def _document(title: str, body: str) -> str:
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _table(rows: list[tuple[str, str]]) -> str:
    cells = (f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"


def _settings(config: Config) -> str:
    """A table of all settings, in their groups."""
    rows = []
    for group in GROUPS:
        rows.append(f'<tr><th colspan="2">{group}</th></tr>')
        for item in fields(config):
            if declared(item).group == group:
                value = getattr(config, item.name)
                style = ' class="changed"' if value != item.default else ""
                rows.append(f"<tr{style}><td>{item.name}</td><td>{escape(str(value))}</td></tr>")
    return f"<table>{''.join(rows)}</table>"
