"""Parts of `python -m bench gpu` that take models, on the CPU."""

import pytest

gpu_models = pytest.importorskip("bench.gpu_models", reason="no benchmarks beside the tests")


def test_labelled_particles_are_those_of_the_cpu(monkeypatch):
    monkeypatch.setattr(gpu_models, "CLOUDS", 3)
    line = gpu_models.labelled("cpu")
    assert line.startswith("steps as they come: ") and "; recorded steps: " in line


def test_sums_to_a_tolerance_are_checked(monkeypatch):
    lines = gpu_models.to_tolerance("cpu", 3000)
    assert list(lines) == ["exact", "to 0.001", "sliced"]
    real = gpu_models.potential_and_field

    def wrong(x, y, **by):
        u, f = real(x, y, **by)
        return u, f * (1.01 if "tolerance" in by else 1)

    monkeypatch.setattr(gpu_models, "potential_and_field", wrong)
    with pytest.raises(ValueError, match=r"^3000 points, to 0\.001: .* field off by 1\.0e-02$"):
        gpu_models.to_tolerance("cpu", 3000)


def test_training_with_and_without_recorded_steps():
    pytest.importorskip("sklearn")
    settings = {"dim_z": 16, "dim_hidden": 16, "num_heads": 2, "particles": 3, "batch_size": 256}
    line = gpu_models.training("cpu", "digits", 2, 2, **settings)
    assert line.count(" clouds a second, ") == 2 and "; recorded steps: " in line
