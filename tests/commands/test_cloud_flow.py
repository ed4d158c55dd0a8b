"""Moving particles onto a cloud: the flow arrives, continues exactly where it was stopped, and `ddeq-fast flow`."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from ddeq_fast import Gaussian, Riesz, squared_mmd
from ddeq_fast.commands.cloud_flow import CloudFlow, Settings
from ddeq_fast.commands.main import main
from ddeq_fast.data.files import load_points
from ddeq_fast.sums import backends
from ddeq_fast.sums.backends import tree
from ddeq_fast.sums.backends.sliced import Sliced

pytest.importorskip("safetensors")
pytest.importorskip("tqdm")


@pytest.fixture
def ring():
    """Points on a circle, far from the origin and of no unit size."""
    angle = torch.linspace(0, 2 * np.pi, 121)[:-1]
    return torch.stack((300 + 50 * angle.cos(), -70 + 50 * angle.sin()), 1)


@pytest.fixture
def target(ring, tmp_path):
    path = tmp_path / "ring.npy"
    np.save(path, ring.numpy())
    return path


def finished(flow):
    while flow.done < flow.settings.steps:
        flow.step()
    return flow


@pytest.mark.parametrize("backend", ["dense", "sliced"])
def test_particles_arrive(backend, ring):
    flow = CloudFlow(ring, Settings(100, 60), backend=backend)
    start = float(squared_mmd(flow.points(), ring, backend="dense").sqrt())
    assert flow.note() == pytest.approx(start / 50**0.5, rel=0.2), "lengths inside are of the target's spread"
    finished(flow)
    assert float(squared_mmd(flow.points(), ring, backend="dense").sqrt()) < 0.1 * start
    radii = (flow.points() - ring.mean(0)).norm(dim=1)
    assert radii.median() == pytest.approx(50, rel=0.05)


def test_minibatches_arrive_roughly(ring):
    flow = CloudFlow(ring, Settings(100, 60, lr=0.5, minibatch=60), Gaussian(0.5) + Riesz(1.0), backend="dense")
    start = flow.note()
    assert finished(flow).note() < 0.5 * start


@pytest.mark.parametrize("backend", ["dense", "sliced"])
def test_a_stopped_flow_goes_on_exactly(backend, ring, tmp_path):
    settings = Settings(50, 8, minibatch=20)
    whole, part = (CloudFlow(ring, settings, backend=backend) for _ in range(2))
    finished(whole)
    for _ in range(3):
        part.step()
    part.note()
    part.save(tmp_path / "part")
    rest = CloudFlow(ring, settings, backend=backend)
    rest.restore(tmp_path / "part")
    assert rest.done == 3 and rest.history == part.history
    assert torch.equal(finished(rest).points(), whole.points())


def test_auto_is_exact_where_that_takes_no_patience(ring, monkeypatch):
    for per_step, kernel, expected in [
        ({"dense": 0.1, "compiled": 1.0, "sliced": 0.01}, Riesz(1.0), "dense"),
        ({"dense": 9.0, "compiled": 0.1, "sliced": 0.01}, Riesz(1.0), "compiled"),
        ({"dense": 9.0, "compiled": 5.0, "sliced": 1.0}, Riesz(1.0), "sliced"),
        ({"dense": 9.0, "compiled": 5.0, "sliced": 8.0}, Riesz(1.0), "compiled"),
        ({"dense": 9.0, "compiled": 5.0, "sliced": 1.0}, Gaussian(1.0), "compiled"),
    ]:
        monkeypatch.setattr(CloudFlow, "step_seconds", lambda self, name, per_step=per_step: per_step[name])
        assert CloudFlow(ring, Settings(20, 100), kernel).backend == expected


def test_a_tolerance_is_kept_and_told(ring, tmp_path, monkeypatch):
    """Trees are taken within it, never slices, and a checkpoint of another one is refused."""
    pytest.importorskip("ferreus_bbfmm")
    monkeypatch.setattr(tree, "_pays", lambda x, y, kernel: True)
    seconds = {"dense": 90.0, "compiled": 50.0, "sliced": 1e-3, "tree": 2.0}
    monkeypatch.setattr(CloudFlow, "step_seconds", lambda self, name: seconds[backends.base(name)])
    flow = CloudFlow(ring, Settings(100, 40), tolerance=1e-3)
    assert flow.backend == "tree@0.001" and flow.error is None
    flow.step()
    assert flow.error is None, "only steps before a report are compared"
    flow.step()
    assert 0 < flow.error <= 1e-3
    flow.save(tmp_path / "a")
    CloudFlow(ring, Settings(100, 40), tolerance=1e-3).restore(tmp_path / "a")
    with pytest.raises(ValueError, match=r"a is of another flow: tolerance 0.001, not 0.01$"):
        CloudFlow(ring, Settings(100, 40), tolerance=1e-2).restore(tmp_path / "a")
    with pytest.raises(ValueError, match=r"a is of another flow: tolerance 0.001, not None$"):
        CloudFlow(ring, Settings(100, 40)).restore(tmp_path / "a")
    seconds["tree"] = 1000.0
    assert CloudFlow(ring, Settings(100, 40), tolerance=1e-3).backend == "compiled"
    with pytest.raises(ValueError, match=r"^backend 'sliced' promises no tolerance, got 0.1$"):
        CloudFlow(ring, Settings(100), backend="sliced", tolerance=0.1)


def test_slices_are_checked_once_in_a_while(ring, monkeypatch):
    checked = []
    monkeypatch.setattr(Sliced, "check", lambda *args: checked.append(flow.done))
    flow = CloudFlow(ring, Settings(100, 100), backend="sliced")
    finished(flow)
    assert checked == list(range(4, 100, 5))
    assert 0 < flow.error < 1


def test_the_seed_decides(ring):
    a, b, c = (CloudFlow(ring, Settings(20, 2, seed=seed), backend="sliced") for seed in (0, 0, 1))
    assert torch.equal(finished(a).points(), finished(b).points())
    assert not torch.equal(a.points(), finished(c).points())


def test_another_flow_is_refused(ring, tmp_path):
    CloudFlow(ring, Settings(20), backend="dense").save(tmp_path / "a")
    with pytest.raises(
        ValueError, match=r"a is of another flow: steps 200, not 100, kernel 'riesz:1', not 'gaussian:1'"
    ):
        CloudFlow(ring, Settings(20, steps=100), Gaussian(1.0), backend="dense").restore(tmp_path / "a")
    with pytest.raises(ValueError, match=r"of another flow: target '120 x 2 of spread 50', not '60 x 2"):
        CloudFlow(ring[::2], Settings(20), backend="dense").restore(tmp_path / "a")


@pytest.mark.parametrize(
    "bad", [dict(particles=0), dict(steps=0), dict(lr=0.0), dict(momentum=1.0), dict(minibatch=-1)]
)
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=rf"^{next(iter(bad))} must "):
        Settings(**{"particles": 5, **bad})


def test_bad_targets(ring):
    for bad, message in [
        (ring[None], r"^target must have shape \(n, d\)"),
        (ring[:1].expand(5, 2), "^target must hold two different points$"),
        (ring * torch.nan, "^target must be finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            CloudFlow(bad, Settings(5), backend="dense")


def test_steps_that_are_too_long_are_told(ring):
    flow = CloudFlow(ring, Settings(20, lr=3e38), Riesz(1.9), backend="dense")
    with pytest.raises(FloatingPointError, match=r"^the particles left all bounds in step \d+: choose a smaller lr$"):
        finished(flow)


@pytest.mark.parametrize("out, picture", [("moved.ply", "moved.png"), ("moved.xyz", "moved.gif")])
def test_command(target, out, picture, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out, picture = tmp_path / out, tmp_path / picture
    options = ["--particles", "60", "--steps", "12", "--backend", "dense", "--out", str(out), "--picture", str(picture)]
    assert main(["flow", "--target", str(target), *options]) == 0
    text = capsys.readouterr().out
    assert "120 points in 2 dimensions; 60 particles, 12 steps, 180 charges a step, dense" in text
    assert f"wrote {out} and {picture}" in text
    points = load_points(out)
    assert points.shape == (60, 2) and 200 < float(points[:, 0].mean()) < 400
    assert picture.read_bytes()[:4] in (b"\x89PNG", b"GIF8")
    assert not list(tmp_path.glob("*.checkpoint"))


def test_figures_as_json(target, tmp_path, capsys):
    out = tmp_path / "moved.npy"
    options = ["--particles", "60", "--steps", "12", "--backend", "dense", "--out", str(out), "--quiet", "--json"]
    assert main(["flow", "--target", str(target), *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["points"], told["dim"], told["particles"], told["steps"], told["backend"]) == (120, 2, 60, 12, "dense")
    assert told["wrote"] == [str(out)] and told["mmd"] < told["start_mmd"]
    points, cloud = (torch.from_numpy(np.load(path)).float() for path in (out, target))
    spread = (cloud - cloud.mean(0)).square().sum(1).mean().sqrt()
    assert told["mmd"] == pytest.approx(float(squared_mmd(points, cloud).sqrt() / spread**0.5), rel=1e-2)


def test_ctrl_c_saves_and_resume_continues(target, tmp_path, capsys, monkeypatch):
    options = ["flow", "--target", str(target), "--particles", "30", "--steps", "9", "--backend", "dense", "--quiet"]
    whole, parts = tmp_path / "whole.npy", tmp_path / "parts.npy"
    assert main([*options, "--out", str(whole)]) == 0
    step = CloudFlow.step

    def interrupted(flow):
        step(flow)
        if flow.done == 4:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(CloudFlow, "step", interrupted)
    assert main([*options, "--out", str(parts)]) == 130
    assert "stopped after step 4, saved to" in capsys.readouterr().err and not parts.exists()
    monkeypatch.undo()
    assert main([*options, "--out", str(parts)]) == 2
    assert "is of an interrupted flow: continue it with --resume, or delete it" in capsys.readouterr().err
    assert main([*options, "--out", str(parts), "--resume"]) == 0
    assert np.array_equal(np.load(parts), np.load(whole))


@pytest.mark.parametrize(
    "options, message",
    [
        (["--out", "flow.stl"], "--out must end in one of .npy, .npz, .ply, .xyz, got flow.stl"),
        (["--out", "nowhere/flow.npy"], "there is no folder nowhere for --out flow.npy"),
        (["--picture", "flow.jpg"], "--picture must end in one of .png, .gif, got flow.jpg"),
        (["--resume", "--out", "none.npy"], "no checkpoint at none.npy.checkpoint"),
        (["--particles", "0"], "particles must be at least 1, got 0"),
        (["--backend", "fast"], "backend must be one of auto,"),
    ],
)
def test_command_refuses_before_it_works(target, options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["flow", "--target", str(target), "--quiet", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_target_names_file_and_line(tmp_path, capsys):
    path = tmp_path / "bad.xyz"
    path.write_text("0 1 2\n0 x 1\n", encoding="utf-8")
    assert main(["flow", "--target", str(path)]) == 2
    assert "bad.xyz" in (error := capsys.readouterr().err) and "line 2" in error
