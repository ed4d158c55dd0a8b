"""The table of block sizes: what it may hold, and how the tuner rewrites it."""

import json

import pytest
import torch

from ddeq_fast.kernels import launch, low_d

tune = pytest.importorskip("bench.tune", reason="no benchmarks beside the tests")


def test_every_kernel_and_class_of_shapes_can_be_tuned():
    assert set(tune.SHAPES) == set(tune.CANDIDATES) == set(launch.BLOCKS)
    for name, table in launch.BLOCKS.items():
        for sizes in table.values():
            assert list(tune.SHAPES[name]) == list(sizes)
            assert all(len(block) == len(tune.CANDIDATES[name][0]) for block in sizes.values())


def cost_of(table, favourite, gain):
    """A cost that only `favourite` lowers, and only while it is in the table as block of "75"."""
    return lambda shape: 1 - gain if favourite in launch.BLOCKS[table].get("75", {}).values() else 1.0


def test_the_best_block_is_found_and_the_table_put_back():
    before = launch.BLOCKS["low_d.evaluate"]
    found = tune.best("low_d.evaluate", "75", 9, cost_of("low_d.evaluate", (32, 64, 8), 0.5))
    assert found == ((32, 64, 8), 0.5, 1.0)
    assert launch.BLOCKS["low_d.evaluate"] is before


def test_a_gain_within_noise_changes_nothing():
    kept = launch.BLOCKS["direct"]["other"][64]
    assert tune.best("direct", "75", 64, cost_of("direct", (2, 2), 0.01)) == (kept, 1.0, 1.0)


def test_the_written_table_is_read_back(tmp_path):
    tables = tune.updated(launch.BLOCKS, "75", {"low_d.evaluate": {9: (32, 64, 8)}, "direct": {4: (64, 1)}})
    file = tmp_path / "blocks.json"
    file.write_text(tune.dumps(tables))
    read = launch.load_blocks(file)
    assert read["low_d.evaluate"].pop("75") == {**launch.BLOCKS["low_d.evaluate"]["other"], 9: (32, 64, 8)}
    assert read == launch.BLOCKS  # the other architectures, and no line for what is as elsewhere


def test_the_committed_table_is_as_the_tuner_writes_it():
    assert launch.BLOCKS_FILE.read_text() == tune.dumps(launch.BLOCKS)


def test_launches_take_their_block_from_the_table(cloud):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, v = cloud(1, 40, 3).float().to(device), cloud(1, 40).float().to(device)
    packed, pack = [], low_d.pack
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(low_d, "pack", lambda *a: packed.append(a[1]) or pack(*a))
        patch.setattr(launch, "architecture", lambda kernel: "75")
        with tune.using("low_d.evaluate", "75", 4, (16, 64, 2)):
            low_d.evaluate(x, x, v, ("riesz_1",), tune.Launch().prepared().args[4], True, False)
    assert packed == [64]


@pytest.mark.parametrize(
    "text, says",
    [
        ("{", "JSONDecodeError"),
        ("[]", "AttributeError"),
        ('{"direct": {"90": {}}}', "'other'"),
        ('{"direct": {"other": {"8": [1, 1], "4": [1, 1]}}}', "limits must grow"),
        ('{"direct": {"other": {"8": [1, "a"]}}}', "integers"),
    ],
)
def test_a_damaged_table_is_named(text, says, tmp_path):
    file = tmp_path / "blocks.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"blocks\.json is no table of block sizes: .*{says}"):
        launch.load_blocks(file)


def test_without_a_gpu_it_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 1
    assert "--target judges by machine code" in capsys.readouterr().err
    assert tune.main(["--target", "sm_90", "--only", "direct"]) == 1
    assert "direct: needs a GPU to measure on" in capsys.readouterr().err


def test_a_run_rewrites_the_output(tmp_path, capsys, monkeypatch):
    file = tmp_path / "blocks.json"
    monkeypatch.setattr(tune, "slots_for", lambda target: lambda shape: launch.BLOCKS["nearest"]["90"][8][0])
    assert tune.main(["--target", "sm_90", "--only", "nearest", "--output", str(file)]) == 0
    assert json.loads(file.read_text())["nearest"]["90"]["8"][0] == 16
    assert "| nearest | 8 | (16, " in capsys.readouterr().out
