"""Curves of a run: the running mean counts steps without an error, which a logarithmic axis cannot show."""

import pytest

from ddeq_fast.training import pictures
from ddeq_fast.training.metrics import METRICS

pytest.importorskip("matplotlib")


def test_the_running_mean_counts_errors_of_zero():
    from ddeq_fast.utils.drawing import figure

    accuracies = [0.5] * 20 + [1.0] * 100
    entries = [{"step": i, "split": "train", "accuracy": accuracy} for i, accuracy in enumerate(accuracies)]
    axis = figure(1, 1, 4, 3)[1][0, 0]
    pictures._draw_curves(axis, METRICS["accuracy"], entries)
    (mean,) = [line for line in axis.get_lines() if line.get_label() == "train, running mean"]
    assert mean.get_ydata()[19] == pytest.approx(0.5) and mean.get_ydata()[-1] < 0.01
