"""`ddeq-fast audit` on tiny runs: files, table, page, one-line errors."""

import json

import pytest

from ddeq_fast.commands import main as cli
from ddeq_fast.training import Config, Trainer, gallery

for module in ("sklearn", "safetensors", "tqdm"):
    pytest.importorskip(module)

TINY = {
    "dim_z": 8,
    "particles": 3,
    "num_heads": 2,
    "dim_lift": 4,
    "dim_hidden": 8,
    "device": "cpu",
    "epochs": 1,
    "max_points": 12,
}


@pytest.fixture(scope="module", params=["classify", "complete"])
def trained(request, tmp_path_factory):
    """The folder of a finished run on a few digits."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    Trainer(Config(task=request.param, batch_size=512, **TINY), folder).fit(progress=False)
    return folder


def test_it_writes_and_prints(trained, capsys):
    pytest.importorskip("matplotlib")
    assert cli.main(["audit", str(trained), "--samples", "6", "--starts", "1", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    found = json.loads((trained / "audit.json").read_text())
    assert err == "" and out.startswith(f"audit of 6 clouds: {found['verdict']}\n")
    assert out.endswith(f"wrote {trained / 'audit.json'} and {trained / 'audit.png'}\n")
    assert len(found["residual"]) == 6 and found["particles"] >= 2 and found["starts"] == 1
    assert (trained / "audit.png").stat().st_size > 10_000
    page = gallery.write(trained).read_text()
    assert "<h2>Equilibria</h2>" in page and found["verdict"][1:40] in page and 'src="audit.png"' in page


def test_json_elsewhere(trained, tmp_path, capsys):
    words = ["--samples", "2", "--starts", "1", "--json", "--out", str(tmp_path / "new"), "--checkpoint", "best"]
    assert cli.main(["audit", str(trained), *words, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out == (tmp_path / "new" / "audit.json").read_text() and len(json.loads(out)["radius"]) == 2


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere"], "nowhere holds no run: nowhere/config.json is missing"),
        (["nowhere", "--samples", "0"], "samples must be at least 1, got 0"),
    ],
)
def test_errors_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["audit", *words]) == 2
    assert capsys.readouterr() == ("", f"ddeq-fast: error: {message}\n")


@pytest.mark.parametrize("text", ["", "[]", '{"verdict": 3}', "\xff"])
def test_a_damaged_audit_is_named(trained, text, tmp_path):
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / "audit.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"audit\.json: no audit: "):
        gallery.write(tmp_path)
