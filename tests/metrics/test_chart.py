"""The picture of utility: every training set a row, nothing cut off."""

from __future__ import annotations

import pytest
import torch

from fedgan.metrics import _chart
from fedgan.metrics._chart import chart, worded
from fedgan.metrics._table import Table

ARMS = ("real_1", "real_100", "synthetic", "both_1", "both_100")


def table(seeds: int, auc: float | None = 0.8) -> Table:
    return Table(
        [
            {
                "arm": arm,
                "seed": seed,
                "n_real": 8,
                "n_synthetic": 90,
                "balanced_accuracy": 0.5 + i / 10,
                "auc": auc,
            }
            for seed in range(seeds)
            for i, arm in enumerate(ARMS)
        ]
    )


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("auc", [0.8, None])
def test_it_is_a_picture_with_nothing_cut_off(seeds, auc) -> None:
    made = chart(table(seeds, auc), 100, 0.25, seeds)
    assert made.dtype == torch.uint8
    assert made.shape[0] == 3
    assert 700 < made.shape[2] < 1300
    for edge in (made[:, :2], made[:, -2:], made[..., :2], made[..., -2:]):
        assert (edge == 255).all()
    assert torch.equal(made, chart(table(seeds, auc), 100, 0.25, seeds))


def test_it_says_what_and_in_which_units(monkeypatch) -> None:
    from matplotlib.figure import Figure

    drawn = []
    whole = Figure.subplots
    monkeypatch.setattr(
        Figure, "subplots", lambda self, *a, **k: (drawn.append(self), whole(self, *a, **k))[1]
    )
    chart(table(3), 100, 0.25, 3)
    (figure,) = drawn
    left, right = figure.axes
    assert "(%)" in left.get_xlabel()
    assert "(%)" in right.get_xlabel()
    assert "100 real test images" in figure.get_suptitle()
    rows = [label.get_text() for label in left.get_yticklabels()]
    wanted = ("real_1", "both_1", "real_100", "both_100", "synthetic")
    assert rows == [worded(arm, 8, 90) for arm in wanted]
    assert "25" in {f"{line.get_xdata()[0]:.0f}" for line in left.lines}
    assert _chart.colour("both_1") != _chart.colour("real_1")
