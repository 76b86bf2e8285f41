"""The picture of what generated images are worth to a classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgan.metrics._table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REAL, SYNTHETIC, BOTH, BALANCE = "#4c78a8", "#d95f02", "#7b3294", "#737373"
PANELS = (
    ("balanced_accuracy", "balanced accuracy (%)"),
    ("auc", "area under the ROC curve (%)"),
)


def worded(arm: str, n_real: int, n_synthetic: int) -> str:
    """What a training set is, in words.

    >>> worded("both_10", 80, 800)
    '10 % of the real images + generated (80 + 800)'
    """
    kind, _, share = arm.partition("_")
    words = {
        "real": f"{share} % of the real images",
        "both": f"{share} % of the real images + generated",
        "synthetic": "generated images alone",
        "unbalanced": "real, a class thinned out",
        "oversampled": "real, small classes repeated",
        "rebalanced": "real, small classes filled up with generated",
    }
    counts = [str(n) for n in (n_real, n_synthetic) if n]
    return f"{words.get(kind, arm)} ({' + '.join(counts)})"


def colour(arm: str) -> str:
    kind = arm.partition("_")[0]
    return {"real": REAL, "synthetic": SYNTHETIC, "both": BOTH}.get(kind, BALANCE)


def chart(table: Table, test_images: int, chance: float, seeds: int) -> Tensor:
    """uint8 [3, h, w]: a row for each training set, a dot for each seed, a bar at the mean, and a
    line at `chance`, the balanced accuracy of a guess."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first = {row["arm"]: row for row in reversed(table.rows)}
    arms = _in_order(table.arms)
    labels = [worded(arm, first[arm]["n_real"], first[arm]["n_synthetic"]) for arm in arms]
    figure = Figure(figsize=(11, 2.1 + 0.36 * len(arms)), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for panel, (column, words) in zip(panels, PANELS, strict=True):
        values = {arm: [100 * value for value in table.values(arm, column)] for arm in arms}
        _draw(panel, arms, values)
        guess = 100 * chance if column == "balanced_accuracy" else 50
        panel.axvline(guess, color="gray", lw=1, ls=":")
        panel.annotate(
            "chance",
            (guess, 1),
            xycoords=("data", "axes fraction"),
            fontsize=9,
            color="gray",
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
        )
        panel.set_xlabel(words, fontsize=10)
    panels[0].set_yticks(range(len(arms)), labels, fontsize=10)
    panels[0].set_ylabel("trained on (number of images)", fontsize=10)
    panels[0].invert_yaxis()
    how = f"each dot is one training, the bar the mean of {seeds}" if seeds > 1 else "one training"
    figure.suptitle(
        "Are generated images of use to a classifier?\n"
        f"Tested on the {test_images} real test images; further right is better; {how}",
        fontsize=11,
    )
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _in_order(arms: Sequence[str]) -> list[str]:
    """With and without generated images beside one another, share by share."""
    shares = [arm.removeprefix("real_") for arm in arms if arm.startswith("real_")]
    pairs = [arm for share in shares for arm in (f"real_{share}", f"both_{share}")]
    found = [*pairs, *(arm for arm in arms if arm not in pairs)]
    return [arm for arm in found if arm in arms]


def _draw(panel: Axes, arms: Sequence[str], values: Mapping[str, Sequence[float]]) -> None:
    for y, arm in enumerate(arms):
        own = values[arm]
        if not own:
            continue
        panel.scatter(own, [y] * len(own), s=26, color=colour(arm), alpha=0.6, lw=0, zorder=3)
        mean = sum(own) / len(own)
        panel.plot([mean, mean], [y - 0.3, y + 0.3], color=colour(arm), lw=3, zorder=4)
    panel.set_ylim(-0.6, len(arms) - 0.4)
    panel.grid(axis="x", color="#e5e5e5")
    panel.tick_params(axis="x", labelsize=10)
    panel.spines[["top", "right"]].set_visible(False)
