"""The commands `ddeq-fast explain` and `ddeq-fast flow`: their options, and what they run."""

from __future__ import annotations

import argparse
from contextlib import ExitStack, suppress
from pathlib import Path

from ddeq_fast.utils import console

OUTPUTS = (".npy", ".ply", ".xyz")


def add(commands, command: str | None) -> None:
    """Add both to the subparsers `commands`; their options need torch and are added only for `command`."""
    explain = commands.add_parser(
        "explain",
        help="which backend sums clouds of given sizes, and what each would cost",
        description="Predicted time and memory of every backend for potential and field, and which one 'auto' takes.",
    )
    if command == "explain":
        _add_sizes(explain)
    flow = commands.add_parser(
        "flow",
        help="move random particles onto a target cloud",
        description="Move random particles onto a target cloud by the MMD flow. Lengths (lr, bandwidths) are in units "
        "of the target's spread. Ctrl-C saves; --resume continues as if nothing had happened.",
    )
    if command == "flow":
        _add_flow(flow)


def _add_flow(parser) -> None:
    from ddeq_fast.commands.cloud_flow import Settings

    parser.add_argument(
        "--target", type=Path, required=True, metavar="FILE", help="cloud: .npy, .npz, .ply, .off, .xyz, .csv"
    )
    parser.add_argument("--particles", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument(
        "--out", type=Path, default=Path("flow.npy"), metavar="FILE", help=".npy, .ply or .xyz (default: %(default)s)"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the way there: .png or .gif")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="default: %(default)s")
    parser.add_argument(
        "--lr", type=float, default=Settings.lr, help="first step, falls to nothing (default: %(default)s)"
    )
    parser.add_argument("--momentum", type=float, default=Settings.momentum, help="default: %(default)s")
    parser.add_argument(
        "--minibatch",
        type=int,
        default=Settings.minibatch,
        help="particles and target points that make the field of a step, drawn anew: noisy, wants a smaller lr; "
        "0: all (default: %(default)s)",
    )
    parser.add_argument(
        "--directions",
        type=int,
        default=Settings.directions,
        help="of a sliced step, drawn anew (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=Settings.seed, help="default: %(default)s")
    parser.add_argument(
        "--backend",
        default="auto",
        help="auto: exact if all steps take less than a minute, else sliced for Riesz(1)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda... (default: %(default)s)")
    parser.add_argument(
        "--checkpoint-every", type=int, default=20, metavar="STEPS", help="0: only on Ctrl-C (default: %(default)s)"
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted flow with the same settings")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_kernel(parser)


def _add_sizes(parser) -> None:
    from ddeq_fast.commands.explain import DTYPES

    parser.add_argument("--n", type=int, required=True, help="sources of a cloud")
    parser.add_argument("--d", type=int, required=True, help="dimension of the points")
    parser.add_argument("--m", type=int, help="targets of a cloud (default: as many as sources)")
    parser.add_argument("--batch", type=int, default=1, help="clouds (default: %(default)s)")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu, cuda... (default: %(default)s)")
    _add_kernel(parser)


def _add_kernel(parser) -> None:
    parser.add_argument(
        "--kernel",
        type=_kernel,
        default="riesz:1",
        metavar="KERNEL",
        help="such as riesz:1, gaussian:0.5, riesz:1+0.5*gaussian:2 (default: %(default)s)",
    )


def _kernel(text: str):
    from ddeq_fast.sums.text import parse

    try:
        return parse(text)
    except ValueError as error:  # argparse hides the message of any other
        raise argparse.ArgumentTypeError(str(error)) from error


def _explain(**sizes) -> int:
    from ddeq_fast.commands.explain import explain

    console.say(explain(**sizes), result=True)
    return 0


def _flow(target, out, picture, kernel, backend, device, checkpoint_every, resume, quiet, **settings) -> int:
    from ddeq_fast.commands import cloud_pictures
    from ddeq_fast.commands.cloud_flow import CloudFlow, Settings
    from ddeq_fast.data.files import load_points
    from ddeq_fast.training import choose_device
    from ddeq_fast.utils import checkpoints, drawing, locks
    from ddeq_fast.utils.validation import check_integer

    settings = Settings(**settings)
    check_integer("checkpoint-every", checkpoint_every, low=0)
    _check_output("out", out, OUTPUTS, target)
    if picture is not None:
        _check_output("picture", picture, cloud_pictures.ENDINGS, target)
        drawing.load_matplotlib()
    cloud = load_points(target)
    if out.suffix.lower() == ".ply" and cloud.shape[1] not in (2, 3):
        raise ValueError(f"--out {out}: a PLY file holds points in 2 or 3 dimensions, the target has {cloud.shape[1]}")
    flow = CloudFlow(cloud.to(choose_device(device)), settings, kernel, backend)
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    outputs = [out] if picture is None else [out, picture]
    with ExitStack() as held:
        for path in outputs:
            held.enter_context(locks.alone(path.with_name(f".{path.name}.lock"), str(path)))
        checkpoints.remove_leftovers(*outputs, checkpoint)
        if resume:
            flow.restore(checkpoint)
        elif checkpoint.exists():
            raise ValueError(f"{checkpoint} is of an interrupted flow: continue it with --resume, or delete it")
        console.say(_summary(flow, target))
        if not _move(flow, checkpoint, checkpoint_every, quiet):
            return 130
        return _finish(flow, cloud, out, picture, checkpoint)


def _move(flow, checkpoint: Path, checkpoint_every: int, quiet: bool) -> bool:
    """Move to the end, or until a signal comes: then save and return False."""
    from ddeq_fast.utils.signals import stop_on_signal

    steps = flow.settings.steps
    if not flow.history:
        flow.note()
        flow.look()
    with stop_on_signal() as stopped, console.Bar(steps, flow.done, shown=not quiet) as bar:
        while flow.done < steps and not stopped.is_set():
            flow.step()
            text = None
            if flow.done % max(1, steps // 20) == 0 or flow.done == steps:
                flow.note()
                text = _progress(flow)
            flow.look()
            if checkpoint_every and flow.done % checkpoint_every == 0:
                flow.save(checkpoint)
            bar.step(text)
    if flow.done == steps:
        return True
    flow.save(checkpoint)
    text = f"stopped after step {flow.done}, saved to {checkpoint}; continue with --resume"
    console.say(f"ddeq-fast: {text}", error=True)
    return False


def _progress(flow) -> str:
    start, now = flow.history[0][1], flow.history[-1][1]
    return f"MMD {now:.2e}" + (f", {now / start:.2g} of the start's" if start > 0 else "")


def _finish(flow, cloud, out: Path, picture: Path | None, checkpoint: Path) -> int:
    """Write the results, the cloud first; a picture that cannot be drawn is no error, for the cloud is there."""
    from ddeq_fast.commands import cloud_pictures
    from ddeq_fast.data.files import write_points

    try:
        write_points(out, flow.points())
    except OSError:
        with suppress(OSError):
            flow.save(checkpoint)
        raise
    wrote = str(out)
    if picture is not None:
        try:
            cloud_pictures.draw(picture, flow.frames, flow.seen(cloud), flow.history)
            wrote += f" and {picture}"
        except Exception as error:
            console.say(f"no picture {picture}: {type(error).__name__}: {error}", error=True)
    checkpoint.unlink(missing_ok=True)  # only now: a kill on the way here is resumed
    console.say(f"{_progress(flow)}; wrote {wrote}")
    return 0


def _check_output(option: str, path: Path, endings: tuple[str, ...], target: Path) -> None:
    """Before hours of work, not after: an output that cannot be written, or would overwrite the target."""
    if path.suffix.lower() not in endings:
        raise ValueError(f"--{option} must end in one of {', '.join(endings)}, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for --{option} {path.name}")
    if path.is_dir():
        raise IsADirectoryError(f"--{option} {path} is a folder")
    if path.exists() and target.exists() and path.samefile(target):
        raise ValueError(f"--{option} {path} is the target")


def _summary(flow, target) -> str:
    """What is about to be done, and for how long."""
    from ddeq_fast.commands.explain import duration

    n, d = flow.target.shape
    step, left = flow.step_seconds(), flow.settings.steps - flow.done
    time = "" if step is None else f", about {duration(step)} a step, {duration(step * left)} in all"
    return (
        f"{target}: {n:,} points in {d} dimensions; {len(flow.x):,} particles, {left} steps, {flow.charges():,} "
        f"charges a step, {flow.backend}{time}"
    )


COMMANDS = {"explain": _explain, "flow": _flow}
