"""`ddeq-fast complete`: clouds of one's own completed by tiny models, in their own coordinates; refusals."""

import argparse
import json

import numpy as np
import pytest
import torch

from ddeq_fast import data
from ddeq_fast.commands import cloud_completion, trained
from ddeq_fast.commands import complete as command
from ddeq_fast.commands.cloud_completion import frame
from ddeq_fast.commands.main import main
from ddeq_fast.data.dataset import Dataset, Split
from ddeq_fast.data.files import load_points, write_points
from ddeq_fast.training import Config, Trainer, load_model, make_task
from ddeq_fast.training.tasks import CompletionTask
from problems import rings_and_discs

for module in ("safetensors", "tqdm"):
    pytest.importorskip(module)

TINY = {"dim_z": 8, "particles": 3, "num_heads": 2, "dim_lift": 4, "dim_hidden": 8, "device": "cpu", "growth": 1.5}
EVEN, RANDOM, BRIEF = {"start": "even", "dim_label": 2}, {}, {"max_steps": 1, "solver": "flow"}
KINDS = {
    "even": EVEN,
    "learned": {**EVEN, "mass": "learned"},
    "random": RANDOM,
    "brief": BRIEF,
    "classify": {"task": "classify"},
}


def load_rings(root=None, intensity="none", max_points=None):
    return Dataset("rings", 2, 2, *(rings_and_discs(count, seed, (12, 20), 0.5) for seed, count in enumerate((30, 6))))


def load_caps(root=None, intensity="none", max_points=None):
    """Points on a sphere."""
    clouds = torch.nn.functional.normalize(torch.randn(8, 24, 3, generator=torch.Generator().manual_seed(0)), dim=2)
    split = Split(list(clouds), list(torch.ones(8, 24)), torch.zeros(8, dtype=torch.int64))
    return Dataset("caps", 3, 1, split, split)


def config(settings, data="rings"):
    return Config(**{"task": "complete", "data": data, **TINY, **settings})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of new runs, one for each of `KINDS`, and one of clouds in three dimensions, "solid"."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data._LOADERS, "rings", load_rings)
        patch.setitem(data._LOADERS, "caps", load_caps)
        for kind, settings in KINDS.items():
            Trainer(config(settings), root / kind)
        Trainer(config({"dim_label": 3, "start": "even"}, "caps"), root / "solid")
        yield root


@pytest.fixture
def partial(tmp_path):
    """The file of three quarters of a ring; its coordinates are of the ring's data, and short binary fractions."""
    angle = torch.linspace(0, 4.7, 16)
    cloud = (torch.stack((angle.cos(), angle.sin()), 1) * 64).round() / 64
    write_points(tmp_path / "partial.npy", cloud)
    return tmp_path / "partial.npy"


def complete(partial, run, out, *words):
    assert main(["complete", str(partial), "--run", str(run), "--out", str(out), "--device", "cpu", *words]) == 0
    return load_points(out)


def test_it_is_what_the_model_says(runs, partial, tmp_path, capsys):
    """In coordinates of the data: the model's own completion, and its weights in a file that holds them."""
    out = tmp_path / "whole.npz"
    words = ["--coordinates", "data", "--points", "40"]
    assert torch.equal(
        complete(partial, runs / "even", out, *words, "--json"), complete(partial, runs / "even", out, *words)
    )
    told, text = capsys.readouterr().out.split("\n", 1)
    cloud, whole = load_points(partial), complete(partial, runs / "even", out, *words)
    config, model = (
        Config(task="complete", data="rings", **TINY, **EVEN),
        load_model(runs / "even", "last", load_rings()),
    )
    noise = make_task(config).noise(cloud[None], torch.tensor([24]), None, [])
    with torch.no_grad():
        expected = model(cloud[None], noise=noise, points=40)
    assert torch.allclose(whole, expected.points[0], atol=1e-5)
    written = np.load(out)
    assert np.allclose(written["weights"], expected.weights[0]) and written["weights"][-1] == np.float32(8 / 24)
    assert np.array_equal(written["observed"], expected.observed[0])
    found, info = json.loads(told), expected.equilibrium.info
    sizes = {"observed": 16, "shown": 16, "points": 40, "new": 24, "dim": 2, "new_weight": 8 / 24, "tol": 1e-3}
    assert found.items() >= {**sizes, "evaluations": int(info.evaluations), "converged": bool(info.converged)}.items()
    assert found["residual"] == pytest.approx(float(info.residual), rel=1e-3)
    assert "partial.npy: 16 points in 2 dimensions\ncompleted to 40 points, 24 of them new; " in text
    assert f"{found['evaluations']} evaluations of F, relative residual {found['residual']:.1e}, " in text
    assert text.endswith(f"a new point has the weight 0.3333, an observed one 1\nwrote {out}\n")


@pytest.mark.parametrize("kind", ["even", "random"])
@pytest.mark.parametrize("scale, shift", [(1 / 8, (0.0, 0.0)), (1024.0, (2.0**20, -(2.0**21)))])
def test_the_completion_moves_with_the_cloud(runs, kind, scale, shift, partial, tmp_path):
    cloud, whole = load_points(partial), complete(partial, runs / kind, tmp_path / "whole.npy")
    moved = cloud.double() * scale + torch.tensor(shift, dtype=torch.float64)
    write_points(tmp_path / "moved.xyz", moved, dtype=torch.float64)
    found = complete(tmp_path / "moved.xyz", runs / kind, tmp_path / "there.ply").double()
    assert torch.equal(found[:16], moved) and len(found) == len(whole) == 24
    back = (found - torch.tensor(shift, dtype=torch.float64)) / scale
    assert torch.allclose(back, whole.double(), atol=2e-4)
    assert frame(whole[16:]).side > 0


def test_the_model_sees_a_cloud_where_training_clouds_are(runs, partial, tmp_path, monkeypatch):
    """Its bounding box is where, and as large as, those of partial training clouds are; one factor for all axes."""
    seen, noise = [], CompletionTask.noise
    monkeypatch.setattr(CompletionTask, "noise", lambda *given: seen.append(given[1]) or noise(*given))
    cloud = load_points(partial) * torch.tensor([4.0, 1.0]) + 7
    write_points(tmp_path / "wide.npy", cloud)
    complete(tmp_path / "wide.npy", runs / "even", tmp_path / "whole.npy")
    placed = seen[-1][0]
    known = make_task(config(EVEN)).inputs(load_rings().train.batch(torch.arange(30)), None).clouds
    boxes = [frame(points[mask]) for points, mask in zip(known.points, known.mask, strict=True)]
    side, middle = sum(box.side for box in boxes) / 30, torch.stack([box.middle for box in boxes]).mean(0)
    assert frame(placed).side == pytest.approx(side, rel=1e-5) and 0 < side < 2
    assert torch.allclose(frame(placed).middle, middle, atol=1e-5)
    assert torch.allclose((placed - placed[0]) * frame(cloud).side / side, cloud - cloud[0], atol=1e-4)


def test_observed_points_come_back_exactly(runs, tmp_path, monkeypatch):
    """Also where single precision keeps the completed cloud, which is larger, but not the partial one."""
    far = cloud_completion.Completed(torch.zeros(5, 2, dtype=torch.float64), torch.ones(5), 10, 9, 1e-4, True)
    monkeypatch.setattr(command, "complete", lambda *_, **__: far)
    points = 0.9 * torch.rand(10, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 20
    write_points(tmp_path / "survey.npy", points, dtype=torch.float64)
    assert load_points(tmp_path / "survey.npy").dtype == torch.float64
    for name in ("whole.npy", "whole.npz", "whole.ply", "whole.xyz"):
        found = complete(tmp_path / "survey.npy", runs / "even", tmp_path / name)
        assert found.dtype == torch.float32 and not torch.equal(found[:10].double(), points)
        assert torch.equal(load_points(tmp_path / name, torch.float64)[:10], points)


def test_large_clouds_are_shown_in_part(runs, tmp_path, capsys):
    angle = torch.rand(300, generator=torch.Generator().manual_seed(0)) * 5
    cloud = torch.stack((angle.cos(), angle.sin()), 1)
    write_points(tmp_path / "large.npy", cloud)
    whole = complete(tmp_path / "large.npy", runs / "even", tmp_path / "whole.npz")
    assert "300 points in 2 dimensions, of which the model was shown 19\n" in capsys.readouterr().out
    assert len(whole) == 450 and torch.equal(whole[:300], cloud)
    assert (np.load(tmp_path / "whole.npz")["weights"] == 1).all()
    again = complete(tmp_path / "large.npy", runs / "even", tmp_path / "again.npy", "--seed", "1")
    assert not torch.equal(again, whole)
    complete(tmp_path / "large.npy", runs / "even", tmp_path / "again.npy", "--shown", "50")
    assert "of which the model was shown 50\n" in capsys.readouterr().out


def test_weights_are_those_that_the_model_learned(runs, partial, tmp_path, capsys, monkeypatch):
    """In a large cloud, of which the model is shown a part, of what is missing of all of it."""
    found = trained.load(runs / "learned", argparse.Namespace(checkpoint="last", device="cpu"))
    with torch.no_grad():
        found.model.to_mass.weight.normal_(generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(trained, "load", lambda *_, **__: found)
    out = tmp_path / "whole.npz"
    complete(partial, runs / "learned", out, "--coordinates", "data", "--json")
    told = json.loads(capsys.readouterr().out)
    complete(partial, runs / "learned", out, "--coordinates", "data")
    cloud = load_points(partial)
    with torch.no_grad():
        expected = found.model(cloud[None], noise=found.task.noise(cloud[None], torch.tensor([8]), None, [])).weights[0]
    weights = np.load(out)["weights"]
    assert np.allclose(weights, expected) and weights[16:].std() > 0.1 and (weights[:16] == 1).all()
    mean = told["new_weight"]
    assert mean == pytest.approx(float(expected[16:].mean()))
    assert f"a new point has the weight {mean:.4g} on average, an observed one 1\n" in capsys.readouterr().out
    with torch.no_grad():
        found.model.to_mass.weight.zero_()
        found.model.to_mass.bias.fill_(20.0)  # all weights are 20, whatever the model is shown
    complete(partial, runs / "learned", out, "--coordinates", "data", "--shown", "6", "--points", "32")
    assert np.allclose(np.load(out)["weights"][16:], 20 * 8 / 16)


def test_the_seed_is_of_random_starts_alone(runs, partial, tmp_path):
    for kind, same in (("even", True), ("random", False)):
        a, b, c = (complete(partial, runs / kind, tmp_path / "a.npy", "--seed", seed) for seed in ("3", "3", "4"))
        assert torch.equal(a, b) and torch.equal(a, c) == same


@pytest.mark.parametrize("kind, dim", [("even", 2), ("solid", 3)])
def test_picture(runs, kind, dim, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    write_points(tmp_path / "partial.npy", torch.rand(12, dim, generator=torch.Generator().manual_seed(0)))
    complete(tmp_path / "partial.npy", runs / kind, tmp_path / "whole.npy", "--picture", str(tmp_path / "both.PNG"))
    assert capsys.readouterr().out.endswith(f"wrote {tmp_path / 'whole.npy'}, {tmp_path / 'both.PNG'}\n")
    image = imread(tmp_path / "both.PNG", format="png")[..., :3]
    orange = (image[..., 0] > image[..., 2] + 0.3).sum(0)  # columns with new points
    half = image.shape[1] // 2
    assert orange[half:].sum() > 20 and orange[:half].sum() == 0


def test_a_picture_that_fails_is_told(runs, partial, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    from ddeq_fast.commands import cloud_pictures

    monkeypatch.setattr(cloud_pictures.drawing, "write_png", lambda *_: 1 / 0)
    complete(partial, runs / "even", tmp_path / "whole.npy", "--picture", str(tmp_path / "both.png"))
    assert "both.png: ZeroDivisionError" in capsys.readouterr().err


def test_what_is_wrong_with_a_completion_is_told(runs, partial, tmp_path, capsys):
    """A solve that was cut short, and new points on one spot."""
    complete(partial, runs / "brief", tmp_path / "a.npy")
    out, err = capsys.readouterr()
    assert "above the tolerance 0.001 of the run\n" in out
    assert "warning: no equilibrium was reached in the 1 steps of the run" in err and "on one spot" not in err
    complete(partial, runs / "random", tmp_path / "a.npy")
    out, err = capsys.readouterr()
    assert "within the tolerance" in out and "warning: all new points lie on one spot" in err and "reached" not in err


@pytest.mark.parametrize(
    "words, message",
    [
        (["--points", "16"], "--points must be more than the 16 of partial.npy, got 16"),
        (["--points", "0"], "points must be at least 1, got 0"),
        (["--shown", "0"], "shown must be at least 1, got 0"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--out", "whole.off"], "--out must end in one of .npy, .npz, .ply, .xyz, got whole.off"),
        (["--out", "partial.npy"], "--out partial.npy is the partial cloud"),
        (["--out", "nowhere/whole.npy"], "there is no folder nowhere for --out whole.npy"),
        (["--picture", "both.gif"], "--picture must end in .png, got both.gif"),
        (["--run", "nowhere"], "nowhere holds no run: nowhere/config.json is missing"),
        (["--run", "classify"], "the run in classify must have task complete, it has task classify"),
        (["--run", "solid"], "partial.npy holds points in 2 dimensions, the run in solid is of clouds in 3"),
        (["--device", "tpu9"], "device 'tpu9' cannot be used: "),
        (["--checkpoint", "best"], "no checkpoint at even/best.safetensors"),
    ],
    ids=" ".join,
)
def test_refusals_write_nothing(runs, words, message, partial, monkeypatch, capsys):
    refused(runs, partial, monkeypatch, "partial.npy", words)
    assert capsys.readouterr().err.startswith(f"ddeq-fast: error: {message}")


def refused(runs, partial, monkeypatch, name, words):
    """Run the command with a file of the folder of `partial`, where nothing new is left."""
    folder = partial.parent
    monkeypatch.chdir(folder)
    for run in runs.iterdir():
        (folder / run.name).symlink_to(run)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    given = {"--run": "even", "--out": "whole.npy", "--picture": "both.png", "--device": "cpu"}
    given |= dict(zip(words[::2], words[1::2], strict=True))
    assert main(["complete", name, *(word for pair in given.items() for word in pair)]) == 2
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("none.npy", None, "there is no file none.npy"),
        ("bad.xyz", b"0 1\n0 x\n", "bad.xyz, line 2"),
        ("bad.npy", b"\x93NUMPY\x01", "bad.npy is damaged"),
        ("cloud.stl", b"0 1\n", "path must end in one of .npy, "),
        ("spot.xyz", b"3 1\n3 1\n", "spot.xyz has no two different points, hence no size: use --coordinates data"),
    ],
    ids=["none", "text", "numpy", "unknown", "spot"],
)
def test_files_that_are_none(runs, name, content, message, partial, monkeypatch, capsys):
    if content is not None:
        (partial.parent / name).write_bytes(content)
    refused(runs, partial, monkeypatch, name, [])
    assert message in capsys.readouterr().err


def test_a_single_point_in_coordinates_of_the_data(runs, tmp_path):
    write_points(tmp_path / "point.npy", torch.zeros(1, 2))
    assert len(complete(tmp_path / "point.npy", runs / "even", tmp_path / "whole.npy", "--coordinates", "data")) == 2


def test_a_completion_beyond_all_bounds(runs):
    run = trained.load(runs / "even", argparse.Namespace(checkpoint="last", device="cpu"))
    frames = cloud_completion.Frame(torch.zeros(2), 3e38), cloud_completion.Frame(torch.zeros(2), 1e-3)
    with pytest.raises(FloatingPointError, match=r"^the completion left the range of torch\.float32$"):
        cloud_completion.complete(run, torch.tensor([[-3e38, 0.0], [3e38, 0.0], [0.0, 3e38]]), frames=frames)
