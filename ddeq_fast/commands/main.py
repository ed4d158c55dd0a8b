"""The command `ddeq-fast`: train, eval, gallery, doctor. Errors of the user's are one line and exit status 2."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ddeq_fast.commands import clouds as cloud_commands
from ddeq_fast.training.presets import PRESETS
from ddeq_fast.utils import console


def _parser(command: str | None) -> argparse.ArgumentParser:
    """All commands; the options of `train` need torch and are added only when it is asked for."""
    from ddeq_fast import __version__

    parser = argparse.ArgumentParser(
        prog="ddeq-fast", description="Distributional deep equilibrium models on fused MMD kernels."
    )
    parser.add_argument("--version", action="version", version=f"ddeq-fast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    train = commands.add_parser(
        "train",
        help="train a classifier or a completer of point clouds",
        description="Train a classifier or a completer of point clouds. The run folder receives config.json,\n"
        "metrics.jsonl, checkpoints and pictures. Several processes share every batch:\n"
        "torchrun --nproc-per-node 2 -- $(which ddeq-fast) train ...",
        epilog=_presets(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("--preset", choices=PRESETS, metavar="NAME", help="settings by name, see below; others override")
    train.add_argument("--run", type=Path, metavar="FOLDER", help="run folder (default: runs/PRESET or runs/DATA)")
    train.add_argument("--resume", action="store_true", help="continue the run of that folder, with its own settings")
    train.add_argument("--quiet", action="store_true", help="no progress bar")
    train.add_argument("--tensorboard", action="store_true", help="write metrics for TensorBoard to the run folder too")
    if command == "train":
        _add_settings(train.add_argument_group("settings"))

    evaluate = commands.add_parser("eval", help="results of a trained model on held-out clouds")
    evaluate.add_argument("run", type=Path, metavar="FOLDER", help="run folder")
    evaluate.add_argument("--checkpoint", choices=("last", "best"), default="last", help="default: %(default)s")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    evaluate.add_argument("--device", default="auto", help="cpu, cuda... (default: %(default)s)")

    gallery = commands.add_parser("gallery", help="a page (HTML) of a run: results, curves, pictures, settings")
    gallery.add_argument("run", type=Path, metavar="FOLDER", help="run folder")
    gallery.add_argument("--out", type=Path, metavar="FOLDER", help="where to write it (default: FOLDER/gallery)")

    cloud_commands.add(commands, command)
    commands.add_parser("doctor", help="versions, devices, and which backends work")
    return parser


def _presets() -> str:
    """The presets, a line each."""
    return "\n".join(["presets:", *(f"  {name:21s} {preset.text}" for name, preset in PRESETS.items())])


def _add_settings(group) -> None:
    """One option for each field of `Config`; absent ones stay out of the namespace."""
    from dataclasses import fields

    from ddeq_fast.training.config import Config

    types = {"int": int, "float": float, "str": str}
    for item in fields(Config):
        group.add_argument(
            "--" + item.name.replace("_", "-"),
            type=types[item.type],
            default=argparse.SUPPRESS,
            metavar=item.type.upper(),
            help=f"{item.metadata['help']} (default: {item.default})",
        )


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    console.open_streams()
    argv = sys.argv[1:] if argv is None else argv
    command = next((word for word in argv if not word.startswith("-")), None)
    options = vars(_parser(command).parse_args(argv))
    try:
        return _COMMANDS[options.pop("command")](**options)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        console.say(f"ddeq-fast: error: {error}", error=True)
        return 2
    except KeyboardInterrupt:
        console.say("ddeq-fast: interrupted", error=True)
        return 130


def _train(run: Path | None, resume: bool, quiet: bool, tensorboard: bool, preset: str | None, **settings) -> int:
    import torch

    from ddeq_fast import training
    from ddeq_fast.training.config import Config

    if resume and set(settings) - {"data"}:
        given = ", ".join("--" + name.replace("_", "-") for name in settings if name != "data")
        raise ValueError(f"{given} cannot be changed by --resume: a run keeps its settings")
    if preset is not None:
        settings = {**PRESETS[preset].settings, **settings}
    folder = run or Path("runs", preset or settings.get("data", Config.data))
    if resume:
        _check_same(training.read_config(folder), folder, settings)
    trainer = training.Trainer.resume(folder) if resume else training.Trainer(Config(**settings), folder)
    torch.set_num_threads(trainer.config.threads)
    main, parameters = trainer.processes.main, sum(parameter.numel() for parameter in trainer.model.parameters())
    if main:
        console.say(
            f"{trainer.dataset.name}: {len(trainer.dataset.train)} clouds, {len(trainer.dataset.test)} held out"
        )
        console.say(f"model: {parameters:,} parameters on {trainer.device}; run folder {trainer.folder}")
    try:
        result = trainer.fit(progress=not quiet, tensorboard=tensorboard)
    except training.Interrupted as stop:
        if main:
            console.say(f"ddeq-fast: {stop}; continue with --resume", error=True)
        return 130
    if not main:
        return 0
    console.say(f"trained {trainer.config.epochs} epochs in {trainer.seconds:.0f} s")
    _show(result)
    _draw(trainer)
    return 0


def _check_same(config, folder: Path, settings: dict) -> None:
    """What was said to find the folder must not contradict the run in it."""
    for name in ("data", "task"):
        if name in settings and settings[name] != (there := getattr(config, name)):
            raise ValueError(f"--resume: the run in {folder} has {name} {there}, not {settings[name]}")


def _draw(trainer) -> None:
    """Pictures of a finished run. Nothing that goes wrong with them is an error: the run is done, and saved."""
    drawn = []
    try:
        from ddeq_fast.training import pictures as plots
        from ddeq_fast.utils import drawing

        drawing.load_matplotlib()
        for path, draw in plots.pictures(trainer).items():
            try:
                draw()
                drawn.append(str(path))
            except Exception as error:
                console.say(f"no picture {path}: {type(error).__name__}: {error}", error=True)
    except Exception as error:
        console.say(f"no pictures: {error}", error=True)
    if drawn:
        console.say(f"pictures: {', '.join(drawn)}")


def _show(metrics: dict) -> None:
    """Results on the held-out clouds, for people."""
    if "accuracy" in metrics:
        console.say(f"held-out accuracy          {metrics['accuracy']:.2%}")
    for key, name in (("chamfer", "Chamfer distance"), ("mmd", "squared MMD")):
        if key in metrics:
            ours, theirs = metrics[key], metrics["partial_" + key]
            # Where nothing was removed, the partial clouds are the whole ones.
            share = (
                f"{ours / theirs:.2f} of the partial input's own {theirs:.5f}" if theirs > 0 else "the partial's is 0"
            )
            console.say(f"{name:26s} {ours:.5f}, {share}")
    console.say(f"loss                       {metrics['loss']:.4f}")
    if "evaluations" in metrics:
        console.say(f"evaluations a solve        {metrics['evaluations']:.1f}")
        console.say(f"relative MMD residual      {metrics['residual']:.1e} mean, {metrics['worst_residual']:.1e} worst")
        console.say(f"equilibria within the tol  {metrics['converged']:.2%}")


def _eval(run: Path, checkpoint: str, json: bool, device: str) -> int:
    from json import dumps

    import torch

    from ddeq_fast import training

    config = training.read_config(run)
    torch.set_num_threads(config.threads)
    where = training.choose_device(device)
    dataset = config.load()
    model = training.load_model(run, checkpoint, dataset).to(where)
    metrics = training.evaluate(training.make(config), model, dataset.test, where)
    if json:
        console.say(dumps({"run": str(run), "checkpoint": checkpoint, **metrics}), result=True)
    else:
        _show(metrics)
    return 0


def _gallery(run: Path, out: Path | None) -> int:
    from ddeq_fast.training import gallery

    console.say(str(gallery.write(run, out)))
    return 0


def _doctor() -> int:
    from ddeq_fast.commands import doctor

    console.say(doctor.report(), result=True)
    return 0


_COMMANDS = {"train": _train, "eval": _eval, "gallery": _gallery, "doctor": _doctor, **cloud_commands.COMMANDS}

if __name__ == "__main__":
    sys.exit(main())
