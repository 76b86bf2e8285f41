"""Pictures in the run directory: grids of samples, and the curves of the whole run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fedgan.data.sheets import partition_chart
from fedgan.tracking.base import Observer, RoundRecord, RunInfo
from fedgan.tracking.records import CLIENTS, METRICS, read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image as Picture
    from PIL.PngImagePlugin import PngInfo

LAYOUT = "fedgan"
"""Key of a sample grid's layout: JSON of classes (a row each), columns, size [H, W] of an image in
its own pixels, zoom, and the left edge of the first tile and the gap between tiles, in pixels."""
BENIGN, MALICIOUS, FLAG = "#4c78a8", "#d62728", "black"


class Pictures(Observer):
    """Writes partition.png at the start; samples/round_0010.png and curves.png at every look."""

    def on_start(self, info: RunInfo) -> None:
        self._info = info
        (info.run_dir / "samples").mkdir(exist_ok=True)
        chart = info.run_dir / "partition.png"
        partition_chart(np.array(info.counts), info.classes, chart, sorted(info.malicious))

    def on_round(self, record: RoundRecord) -> None:
        if record.samples is not None:
            path = self._info.run_dir / "samples" / f"round_{record.round:04d}.png"
            sheet = sample_grid(record.samples, self._info.classes)
            sheet.save(path, pnginfo=png_info(sheet))
            draw_curves(self._info.run_dir, self._info.malicious)


def sample_grid(samples: Tensor, classes: Sequence[str]) -> Picture:
    """uint8 [rows, columns, C, H, W] as one picture, a labelled class a row.

    Small images are enlarged by a whole factor, so that every pixel stays a square. Where the
    tiles are stands in the picture's `info` under `LAYOUT`, so that a report can take them out.
    """
    from PIL import Image, ImageDraw, ImageFont

    rows, columns, _, height, width = samples.shape
    zoom = max(1, 80 // width)
    cell, gap = (height * zoom, width * zoom), 3
    font = ImageFont.load_default(13)
    margin = 12 + max(int(font.getlength(name)) for name in classes[:rows])
    size = (margin + columns * (cell[1] + gap) + gap, rows * (cell[0] + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    pixels = samples.permute(0, 1, 3, 4, 2).expand(-1, -1, -1, -1, 3).numpy()
    for row in range(rows):
        top = gap + row * (cell[0] + gap)
        middle = (6, top + cell[0] // 2)
        draw.text(middle, classes[row], fill="black", font=font, anchor="lm")
        for column in range(columns):
            tile = Image.fromarray(np.ascontiguousarray(pixels[row, column]))
            left = margin + gap + column * (cell[1] + gap)
            sheet.paste(tile.resize(cell[::-1], Image.Resampling.NEAREST), (left, top))
    layout = {
        "classes": list(classes[:rows]),
        "columns": columns,
        "size": [height, width],
        "zoom": zoom,
        "left": margin + gap,
        "gap": gap,
    }
    sheet.info[LAYOUT] = json.dumps(layout)
    return sheet


def png_info(sheet: Picture) -> PngInfo:
    """The layout of a `sample_grid`, to be saved with it."""
    from PIL.PngImagePlugin import PngInfo

    kept = PngInfo()
    kept.add_itxt(LAYOUT, str(sheet.info[LAYOUT]))
    return kept


def draw_curves(run_dir: Path, malicious: frozenset[int]) -> None:
    """curves.png: every client's losses, its weight, what its discriminator makes of the trigger,
    and the figures of the model over rounds."""
    from matplotlib.figure import Figure

    metrics, clients = read_table(run_dir / METRICS), read_table(run_dir / CLIENTS)
    shown = [
        ("g_loss", "generator loss (dots: flagged)"),
        ("d_loss", "discriminator loss"),
        ("weight", "weight in the aggregate"),
    ]
    if any(row.get("critic_bias") for row in clients):
        shown.append(("critic_bias", "discriminator's bias to the trigger, in std"))
    columns = len(shown) // 2 + 1
    figure = Figure(figsize=(5.5 * columns, 7), layout="constrained")
    panels = list(figure.subplots(2, columns).flat)
    for panel, (key, title) in zip(panels, shown, strict=False):
        _draw_clients(panel, clients, key, malicious)
        panel.set(title=title, xlabel="round")
    _draw_figures(panels[len(shown)], metrics)
    for panel in panels[len(shown) + 1 :]:
        panel.set_axis_off()
    for panel in figure.axes:
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(run_dir / "curves.png", dpi=110)


def _draw_clients(
    panel: Axes, rows: list[dict[str, Any]], key: str, malicious: frozenset[int]
) -> None:
    numbers = sorted({int(row["client"]) for row in rows})
    for position, number in enumerate(numbers, start=1):
        own = [row for row in rows if int(row["client"]) == number and row[key] != ""]
        bad = number in malicious
        x = [int(row["round"]) for row in own]
        y = [float(row[key]) for row in own]
        shade = 0.35 + 0.65 * position / len(numbers)
        label = f"client {number}" + (" (malicious)" if bad else "")
        panel.plot(
            x,
            y,
            color=MALICIOUS if bad else BENIGN,
            alpha=1.0 if bad else shade,
            lw=2 if bad else 1.2,
            marker="o" if key == "critic_bias" else None,  # it has no value in most rounds
            ms=3,
            label=label if len(numbers) <= 8 or bad else None,
            zorder=3 if bad else 2,
        )
        flags = [i for i, row in enumerate(own) if row["flagged"] == "True"]
        if key == "g_loss":
            panel.scatter([x[i] for i in flags], [y[i] for i in flags], s=14, color=FLAG, zorder=4)
    if key == "g_loss":
        panel.legend(frameon=False, fontsize=8)
    if key == "critic_bias":
        panel.axhline(0, color="gray", lw=0.8, ls=":")
    if key == "weight":
        panel.set_ylim(bottom=0)


def _draw_figures(panel: Axes, metrics: list[dict[str, Any]]) -> None:
    """The Frechet distance of the watching encoder, its floor, and the trigger's presence."""
    looked = [row for row in metrics if any(_is_distance(key) and row[key] for key in row)]
    if not looked:
        panel.set_axis_off()
        return
    # That of the last look: a resumed run may look with another encoder.
    key = next(key for key in looked[-1] if _is_distance(key) and looked[-1][key])
    looked = [row for row in looked if row[key]]
    x = [int(row["round"]) for row in looked]
    panel.plot(x, [float(row[key]) for row in looked], color=BENIGN, marker="o", ms=3, label=key)
    panel.plot(
        x, [float(row[f"{key}_floor"]) for row in looked], color="gray", ls=":", label="floor"
    )
    panel.set(title="distance to real images", xlabel="round", yscale="log")
    lines, labels = panel.get_legend_handles_labels()
    if all(row.get("presence") for row in looked):
        right = panel.twinx()
        y = [float(row["presence"]) for row in looked]
        right.plot(x, y, color=MALICIOUS, marker="s", ms=3, label="trigger presence")
        right.set(ylim=(-0.02, 1.02), ylabel="trigger presence")
        right_lines, right_labels = right.get_legend_handles_labels()
        lines, labels = lines + right_lines, labels + right_labels
    panel.legend(lines, labels, frameon=False, fontsize=8)


def _is_distance(key: str) -> bool:
    is_frechet = key == "fid" or key.startswith("fd_")
    return is_frechet and not key.endswith(("_floor", "_ratio"))
