"""Real 3-D shapes: DDEQ and other networks of its size on arrays of clouds, as `bench compare` trains them.

FOLDER holds shapes/shapes.npz and lidar/lidar.npz, arrays as `--data npz` reads them, with held-out clouds. Each part
has a JSON file of its table, the score after every evaluation and, of classes, which were taken for which; a picture is
drawn from that file alone, both named after the part. What is trained already is read from --runs: a comparison of
hours may be interrupted.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch

from bench import compare, machine, options
from bench.report import write_json
from ddeq_fast import training
from ddeq_fast.data import Dataset
from ddeq_fast.solvers import quiet
from ddeq_fast.training.config import Config
from ddeq_fast.utils.optional import require

ROOT = Path(__file__).parent.parent


class Part(NamedTuple):
    """preset: of DDEQ's settings; file: within the folder; score: that curves are drawn of."""

    preset: str
    file: str
    score: str


PARTS = {
    "shapes": Part("shapes-classify", "shapes/shapes.npz", "balanced_accuracy"),
    "lidar": Part("scans-classify", "lidar/lidar.npz", "accuracy"),
    "shapes-completion": Part("shapes-complete", "shapes/shapes.npz", "chamfer"),
}


def _parser() -> argparse.ArgumentParser:
    parser = options.parser("shapes", __doc__)
    parser.add_argument("--root", type=Path, required=True, metavar="FOLDER", help="where the arrays are")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument(
        "--models", nargs="+", metavar="NAME", help="some of those of `compare` (default: all of a task)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, help="default: those of the preset")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--runs", type=Path, required=True, metavar="FOLDER", help="keep runs there; go on with those")
    text = "folder of results (default: bench/results)"
    parser.add_argument("--out", type=Path, metavar="FOLDER", default=ROOT / "bench" / "results", help=text)
    text = "folder of pictures (default: docs)"
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", default=ROOT / "docs", help=text)
    return parser


def curve(folder: Path, score: str) -> list[tuple[int, float]]:
    """(step, score) of every evaluation of a run."""
    return [(entry["step"], entry[score]) for entry in training.read_metrics(folder) if entry["split"] == "test"]


@torch.no_grad()
def confusion(folder: Path, config: Config, data: Dataset) -> list[list[int]]:
    """Held-out clouds of every class (rows) that a trained DDEQ takes for each (columns)."""
    model, task = training.load_model(folder, "last", data), training.make_task(config, data)
    counts = torch.zeros(data.classes, data.classes, dtype=torch.int64)
    for indices in data.test.order(config.batch_size):
        inputs = task.inputs(data.test.batch(indices), None)
        with quiet():
            taken = task.run(model, inputs).logits.argmax(-1)
        counts.index_put_((data.test.labels[indices], taken), torch.ones_like(taken), accumulate=True)
    return counts.tolist()


def measure(name: str, args: argparse.Namespace) -> dict:
    """Train what is not trained yet of a part; its results."""
    part = PARTS[name]
    asked = {"data": "npz", "root": str(args.root / part.file), "threads": args.threads}
    config = compare.settings(asked | ({} if args.epochs is None else {"epochs": args.epochs}), None, part.preset)
    data, rows, curves = training.load_data(config), [], {}
    known = compare.names(config)
    models = known if args.models is None else [model for model in known if model in args.models]
    torch.set_num_threads(config.threads)
    for model in models:
        for seed in range(args.seeds):
            folder = args.runs / f"{name}-{model}-{seed}"
            print(f"training {folder.name}", file=sys.stderr, flush=True)
            rows.append(compare.train(model, replace(config, seed=seed), data, folder, progress=False))
            curves.setdefault(rows[-1]["model"], []).append(curve(folder, part.score))
    print(compare.report(rows, config, data) + "\n", flush=True)
    result = {
        "machine": machine.describe(),
        "settings": asdict(config) | {"root": ""},
        "clouds": [len(data.train), len(data.test)],
        "rows": rows,
        "score": part.score,
        "curves": curves,
    }
    if config.task == "classify" and "ddeq" in models:
        result["class_names"] = list(data.names or map(str, range(data.classes)))
        result["confusion"] = confusion(args.runs / f"{name}-ddeq-0", config, data)
    return result


def draw(result: dict, path: Path) -> None:
    """Scores against epochs, means over seeds, and of classes shares of each that are taken for each."""
    pyplot = require("matplotlib.pyplot", "plots")
    steps = math.ceil(result["clouds"][0] / result["settings"]["batch_size"])
    table = result.get("confusion")
    figure, axes = pyplot.subplots(
        1, 1 if table is None else 2, figsize=(6 if table is None else 12, 4.5), squeeze=False
    )
    left = axes[0, 0]
    for model, seeds in result["curves"].items():
        places = [step / steps for step, _ in seeds[0]]
        left.plot(
            places,
            [mean(values) for values in zip(*([y for _, y in seed] for seed in seeds), strict=True)],
            label=model,
        )
    left.set(xlabel="epoch", ylabel=result["score"].replace("_", " "))
    left.grid(alpha=0.3)
    left.legend(frameon=False, fontsize=8)
    if table is not None:
        counts = torch.tensor(table, dtype=torch.float64)
        right, shares = axes[0, 1], counts / counts.sum(1, keepdim=True).clamp_min(1)
        image = right.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        names, size = result["class_names"], 9 if len(table) <= 10 else 4
        right.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        right.set_yticks(range(len(names)), names, fontsize=size)
        right.set(xlabel="taken for", ylabel="held-out clouds of")
        figure.colorbar(image, ax=right, label="share of the class")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: list[str]) -> int:
    """Train, print tables, write results and pictures."""
    parser = _parser()
    args = parser.parse_args(argv)
    missing = [PARTS[name].file for name in args.only if not (args.root / PARTS[name].file).is_file()]
    if missing:
        parser.error(f"--root {args.root} holds no {', '.join(dict.fromkeys(missing))}")
    for name in args.only:
        result = measure(name, args)
        path = args.out / f"{name}-cpu.json"
        write_json(path, result)
        draw(json.loads(path.read_text(encoding="utf-8")), args.pictures / f"{name}.png")
    return 0
