"""`ddeq-fast flow`: particles moved onto a target cloud, saved on the way, and a picture of it."""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack, suppress
from dataclasses import fields
from pathlib import Path

from torch import Tensor

from ddeq_fast.commands import arguments, cloud_pictures
from ddeq_fast.commands.cloud_flow import CloudFlow, Settings
from ddeq_fast.data.files import WRITTEN, load_points, write_points
from ddeq_fast.training.processes import Processes, local_device
from ddeq_fast.utils import console, drawing, files, locks
from ddeq_fast.utils.signals import stop_on_signal
from ddeq_fast.utils.units import duration
from ddeq_fast.utils.validation import check_integer, choose_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "Move random particles onto a target cloud by the MMD flow. Lengths (lr,\n"
        "bandwidths) are in units of the target's spread. Ctrl-C saves; --resume continues\n"
        "as if nothing had happened. torchrun --nproc-per-node K -- ddeq-fast flow ... shares\n"
        "the sums among K processes; --resume may be given to another number of them."
    )
    files_group = parser.add_argument_group("files")
    files_group.add_argument(
        "--target", type=Path, required=True, metavar="FILE", help="cloud: .npy, .npz, .ply, .off, .xyz, .csv"
    )
    files_group.add_argument(
        "--out",
        type=Path,
        default=Path("flow.npy"),
        metavar="FILE",
        help=".npy, .npz, .ply or .xyz (default: %(default)s)",
    )
    files_group.add_argument("--picture", type=Path, metavar="FILE", help="draw the way there: .png or .gif")
    files_group.add_argument(
        "--checkpoint-every",
        type=int,
        default=20,
        metavar="STEPS",
        help="save to OUT.checkpoint; 0: on Ctrl-C alone (default: %(default)s)",
    )
    files_group.add_argument(
        "--resume", action="store_true", help="continue an interrupted flow, with the same settings"
    )

    flow = parser.add_argument_group("the flow")
    flow.add_argument("--particles", type=int, default=10_000, metavar="N", help="how many move (default: %(default)s)")
    flow.add_argument(
        "--steps", type=int, default=Settings.steps, metavar="N", help="of the flow (default: %(default)s)"
    )
    flow.add_argument(
        "--lr", type=float, default=Settings.lr, metavar="X", help="first step, falls to nothing (default: %(default)s)"
    )
    flow.add_argument(
        "--momentum", type=float, default=Settings.momentum, metavar="X", help="below one (default: %(default)s)"
    )
    flow.add_argument(
        "--minibatch",
        type=int,
        default=Settings.minibatch,
        metavar="N",
        help="particles and target points that make the field of a step, drawn anew: noisy, wants a smaller lr; "
        "0: all (default: %(default)s)",
    )
    flow.add_argument(
        "--seed", type=int, default=Settings.seed, metavar="N", help="of all that is drawn (default: %(default)s)"
    )

    sums = parser.add_argument_group("the sums")
    arguments.add_kernel(sums)
    sums.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="auto: exact if all steps take less than a minute, else sliced for Riesz(1); with --tolerance the "
        "fastest within it (default: %(default)s)",
    )
    sums.add_argument(
        "--tolerance", type=float, metavar="T", help="relative error that the field of a step may have (default: none)"
    )
    sums.add_argument(
        "--directions",
        type=int,
        default=Settings.directions,
        metavar="N",
        help="of a sliced step, drawn anew (default: %(default)s)",
    )
    arguments.add_device(sums, "auto")
    arguments.add_quiet(parser)
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    settings = Settings(**{item.name: getattr(options, item.name) for item in fields(Settings)})
    target, out, picture = options.target, options.out, options.picture
    check_integer("checkpoint-every", options.checkpoint_every, low=0)
    arguments.check_output("out", out, WRITTEN, target, "target")
    if picture is not None:
        arguments.check_output("picture", picture, cloud_pictures.ENDINGS, target, "target")
        drawing.load_matplotlib()
    cloud, device = load_points(target), choose_device(local_device(options.device))
    if out.suffix.lower() == ".ply" and cloud.shape[1] not in (2, 3):
        raise ValueError(f"--out {out}: a PLY file holds points in 2 or 3 dimensions, the target has {cloud.shape[1]}")
    flow = CloudFlow(
        cloud.to(device),
        settings,
        options.kernel,
        options.backend,
        tolerance=options.tolerance,
        processes=Processes.join(device),
    )
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    outputs = [out] if picture is None else [out, picture]
    main = flow.processes.main
    with ExitStack() as locked:
        if main:
            for path in outputs:
                locked.enter_context(locks.alone(path.with_name(f".{path.name}.lock"), str(path)))
            files.remove_leftovers(*outputs, checkpoint)
        if options.resume:
            flow.restore(checkpoint)
        elif main and checkpoint.exists():
            raise ValueError(f"{checkpoint} is of an interrupted flow: continue it with --resume, or delete it")
        if main and not options.json:
            console.say(_summary(flow, target))
        if not _move(flow, checkpoint, options.checkpoint_every, options.quiet):
            return 130
        if main:
            wrote = _write(flow, cloud, out, picture, checkpoint)
            told = json.dumps(_told(flow, target, wrote)) if options.json else _in_words(flow, wrote)
            console.say(told, result=options.json)
        return 0


def _move(flow: CloudFlow, checkpoint: Path, checkpoint_every: int, quiet: bool) -> bool:
    """Move to the end, or until a signal comes: then save and return False."""
    steps, main, stop = flow.settings.steps, flow.processes.main, False
    if not flow.history:
        flow.note()
        flow.look()
    with stop_on_signal() as stopped, console.Bar(steps, flow.done, shown=main and not quiet) as bar:
        while flow.done < steps and not stop:
            flow.step()
            text = None
            if flow.reports(flow.done):
                flow.note()
                text = _progress(flow)
            flow.look()
            if checkpoint_every and flow.done % checkpoint_every == 0:
                flow.save(checkpoint)
            bar.step(text)
            stop = any(flow.processes.gather(stopped.is_set()))
    if flow.done == steps:
        return True
    flow.save(checkpoint)
    text = f"stopped after step {flow.done}, saved to {checkpoint}; continue with --resume"
    if main:
        console.say(f"ddeq-fast: {text}", error=True)
    return False


def _progress(flow: CloudFlow) -> str:
    """How near the particles are, and how good the sums that move them."""
    start, now = flow.history[0][1], flow.history[-1][1]
    nearer = f", {now / start:.2g} of the start's" if start > 0 else ""
    error = "" if flow.error is None else f", field off by {flow.error:.1g}"
    return f"MMD {now:.2e}{nearer}; {flow.backend}{error}"


def _write(flow: CloudFlow, cloud: Tensor, out: Path, picture: Path | None, checkpoint: Path) -> list[str]:
    """Write the results, the cloud first, and return their paths.

    A picture that cannot be drawn is no error, for the cloud is there.
    """
    try:
        write_points(out, flow.points())
    except OSError:
        with suppress(OSError):
            flow.save(checkpoint)
        raise
    wrote = [str(out)]
    if picture is not None:
        try:
            cloud_pictures.draw(picture, flow.frames, flow.seen(cloud), flow.history)
            wrote.append(str(picture))
        except Exception as error:
            console.say(f"no picture {picture}: {type(error).__name__}: {error}", error=True)
    checkpoint.unlink(missing_ok=True)  # only now: a kill on the way here is resumed
    return wrote


def _in_words(flow: CloudFlow, wrote: list[str]) -> str:
    """What came of it."""
    return f"{_progress(flow)}; wrote {' and '.join(wrote)}"


def _told(flow: CloudFlow, target: Path, wrote: list[str]) -> dict:
    """The figures of a finished flow, for JSON; MMDs are those of the cloud in units of its spread."""
    n, d = flow.target.shape
    return {
        "target": str(target),
        "points": n,
        "dim": d,
        "particles": len(flow.x),
        "steps": flow.done,
        "kernel": str(flow.kernel),
        "backend": flow.backend,
        "processes": flow.processes.size,
        "start_mmd": flow.history[0][1],
        "mmd": flow.history[-1][1],
        "field_error": flow.error,
        "wrote": wrote,
    }


def _summary(flow: CloudFlow, target: Path) -> str:
    """What is about to be done, and for how long."""
    n, d = flow.target.shape
    step, left = flow.step_seconds(), flow.settings.steps - flow.done
    shared = "" if flow.processes.size == 1 else f" in {flow.processes.size} processes"
    time = "" if step is None else f", about {duration(step)} a step, {duration(step * left)} in all"
    return (
        f"{target}: {n:,} points in {d} dimensions; {len(flow.x):,} particles, {left} steps, {flow.charges():,} "
        f"charges a step, {flow.backend}{shared}{time}"
    )
