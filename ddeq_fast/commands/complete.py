"""`ddeq-fast complete`: a partial cloud from a file, completed by the model of a run, in the file's own coordinates."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from ddeq_fast.commands import arguments, cloud_pictures, trained
from ddeq_fast.commands.cloud_completion import Completed, Frame, complete, frame, usual_frame
from ddeq_fast.data.files import FORMATS, WRITTEN, load_points, write_points
from ddeq_fast.utils import console, drawing
from ddeq_fast.utils.validation import check_integer

# New points whose bounding box is less than this share of the partial cloud's are one spot.
_SPOT = 0.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "Complete a cloud of your own with the model of a completion run. The points of\n"
        "PARTIAL come back as they were read, first and in their order; the new ones follow.\n\n"
        "A model knows clouds of one place and size. One in coordinates of its own is moved,\n"
        "and scaled by the same factor along all axes, until the middle of its bounding box\n"
        "and the longest side of that are those of the partial clouds of the training data,\n"
        "on average; the completion is moved back. It is not turned: up must be where it is in\n"
        "the training data. That is a guess, for the whole is unknown: a cloud that is in the\n"
        "coordinates of the data is completed better with --coordinates data. The data set of\n"
        "the run must be there, as for eval."
    )
    parser.add_argument("partial", type=Path, metavar="PARTIAL", help="cloud: .npy, .npz, .ply, .off, .xyz, .csv")
    parser.add_argument(
        "--run", type=Path, dest="folder", required=True, metavar="FOLDER", help="run folder of a completion"
    )
    arguments.add_checkpoint(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help=".npy, .npz, .ply or .xyz; .npz has weights, and a mask of the points of PARTIAL, beside the points",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw both clouds: .png")
    arguments.add_json(parser)
    parser.add_argument(
        "--points",
        type=int,
        metavar="N",
        help="of the completed cloud, those of PARTIAL among them (default: what the growth of the run gives)",
    )
    parser.add_argument(
        "--coordinates",
        choices=("own", "data"),
        default="own",
        help="of PARTIAL: its own, or those of the data of the run, which are left as they are (default: %(default)s)",
    )
    parser.add_argument(
        "--shown",
        type=int,
        metavar="N",
        help="most points that the model is shown, drawn at random from a larger PARTIAL (default: as many as the "
        "largest training cloud has)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of that, and of where new points start if they do so at random in the run (default: %(default)s)",
    )
    arguments.add_device(parser, "auto")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    partial, out, picture = options.partial, options.out, options.picture
    _check(options)
    cloud = load_points(partial)
    n, d = cloud.shape
    if options.points is not None and check_integer("points", options.points, high=2**31 - 1) <= n:
        raise ValueError(f"--points must be more than the {n:,} of {partial}, got {options.points}")
    if out.suffix.lower() == ".ply" and d not in (2, 3):
        raise ValueError(f"--out {out}: a PLY file holds points in 2 or 3 dimensions, {partial} has {d}")
    loaded = trained.load(options.folder, options, task="complete")
    if d != (dim := loaded.dataset.dim):
        raise ValueError(f"{partial} holds points in {d} dimensions, the run in {options.folder} is of clouds in {dim}")
    frames = _frames(loaded, cloud, partial) if options.coordinates == "own" else None
    found = complete(loaded, cloud, frames=frames, points=options.points, shown=options.shown, seed=options.seed)
    whole = torch.cat((cloud, found.new))
    told = _told(found, cloud, options, loaded.config.tol)
    write_points(
        out, whole, dtype=cloud.dtype, beside=_beside(found, n) if FORMATS[out.suffix.lower()].beside else None
    )
    wrote = [str(out)]
    if picture is not None:
        try:
            cloud_pictures.draw_completion(picture, cloud, found.new)
            wrote.append(str(picture))
        except Exception as error:  # the cloud is there
            console.say(f"no picture {picture}: {type(error).__name__}: {error}", error=True)
    if options.json:
        console.say(json.dumps(told), result=True)
    else:
        _say(told, out, varied=loaded.config.mass == "learned")
        console.say(f"wrote {', '.join(wrote)}")
    _warn(told, loaded.config.max_steps)
    return 0


def _check(options: argparse.Namespace) -> None:
    """What can be refused before anything is read."""
    check_integer("seed", options.seed, low=0)
    if options.shown is not None:
        check_integer("shown", options.shown)
    for option, endings in (("out", WRITTEN), ("picture", (".png",))):
        path = getattr(options, option)
        if path is not None:
            arguments.check_output(option, path, endings, options.partial, "partial cloud")
    if options.picture is not None:
        drawing.load_matplotlib()


def _frames(loaded: trained.Trained, cloud: Tensor, partial: Path) -> tuple[Frame, Frame]:
    """From where, and to where, a cloud in coordinates of its own is moved."""
    frames = frame(cloud), usual_frame(loaded)
    for (_, side), name in zip(frames, (partial, f"a partial cloud of {loaded.dataset.name}"), strict=True):
        if not side > 0:
            raise ValueError(f"{name} has no two different points, hence no size: use --coordinates data")
    return frames


def _beside(found: Completed, observed: int) -> dict[str, Tensor]:
    """What a file that can holds beside the points."""
    mask = torch.arange(observed + len(found.new)) < observed
    return {"weights": torch.cat((torch.ones(observed), found.weights.float())), "observed": mask}


def _told(found: Completed, cloud: Tensor, options: argparse.Namespace, tol: float) -> dict:
    """The figures of a completion, for JSON."""
    return {
        "partial": str(options.partial),
        "run": str(options.folder),
        "checkpoint": options.checkpoint,
        "coordinates": options.coordinates,
        "seed": options.seed,
        "out": str(options.out),
        "dim": cloud.shape[1],
        "side": frame(cloud).side,
        "observed": len(cloud),
        "shown": found.shown,
        "points": len(cloud) + len(found.new),
        "new": len(found.new),
        "new_weight": float(found.weights.mean()),
        "new_side": frame(found.new).side,
        "evaluations": found.evaluations,
        "residual": found.residual,
        "tol": tol,
        "converged": found.converged,
    }


def _say(told: dict, out: Path, *, varied: bool) -> None:
    """The same in words; `varied`: weights of new points differ."""
    shown = "" if told["shown"] == told["observed"] else f", of which the model was shown {told['shown']:,}"
    console.say(f"{told['partial']}: {told['observed']:,} points in {told['dim']} dimensions{shown}")
    console.say(
        f"completed to {told['points']:,} points, {told['new']:,} of them new; {told['evaluations']} evaluations of F, "
        f"relative residual {told['residual']:.1e}, {'within' if told['converged'] else 'above'} the tolerance "
        f"{told['tol']:g} of the run"
    )
    if told["new_weight"] != 1:
        own = " on average" if varied else ""
        rest = "" if FORMATS[out.suffix.lower()].beside else f", which a {out.suffix} file does not hold: .npz does"
        console.say(f"a new point has the weight {told['new_weight']:.4g}{own}, an observed one 1{rest}")


def _warn(told: dict, max_steps: int) -> None:
    """What is wrong with a completion."""
    if told["new"] > 1 and told["new_side"] < _SPOT * told["side"]:
        console.say(
            "ddeq-fast: warning: all new points lie on one spot: the equilibria of this run are points, not clouds; "
            "train with --dim-label, and see ddeq-fast audit",
            error=True,
        )
    if not told["converged"]:
        console.say(
            f"ddeq-fast: warning: no equilibrium was reached in the {max_steps} steps of the run: the new points are "
            "where the solver stopped",
            error=True,
        )
