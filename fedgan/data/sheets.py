"""Pictures of a data set: what it looks like, and who holds what."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedgan.cache import write_atomically
from fedgan.data.base import Dataset
from fedgan.seeding import numpy_generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, ALARM = "#1f2933", "#6b7785", "#c0392b"
SHADES = (  # no red among them: red is for the malicious
    *("#4e79a7", "#f28e2b", "#59a14f", "#edc948", "#b07aa1", "#76b7b2", "#9c755f", "#bab0ac"),
    *("#a0cbe8", "#ffbe7d", "#8cd17d", "#f1ce63", "#d4a6c8", "#86bcb6", "#d7b5a6", "#79706e"),
)
COLUMNS = 12
CELL, GAP = 96, 6  # pixels


def contact_sheet(dataset: Dataset, path: Path | str, seed: int) -> None:
    """Writes a PNG of random training images: a row for each class, its name and count beside it.

    Raises `UserError` where it cannot be written.
    """
    from matplotlib.figure import Figure

    rows = [_members(dataset, label) for label in range(len(dataset.classes))]
    rng = numpy_generator(seed, "contact sheet")
    pitch = CELL + GAP
    sheet = np.full((len(rows) * pitch - GAP, COLUMNS * pitch - GAP, 3), 255, np.uint8)
    for row, members in enumerate(rows):
        for column, index in enumerate(rng.permutation(members)[:COLUMNS]):
            image = _enlarged(dataset.train.images[int(index)].cpu().numpy())
            top, left = row * pitch, column * pitch
            sheet[top : top + CELL, left : left + CELL] = image

    dpi, margin, head = 100, 240, 64  # the last two in pixels
    width, height = sheet.shape[1] + margin + 24, sheet.shape[0] + head + 20
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi, facecolor="white")
    place = (margin / width, 20 / height, sheet.shape[1] / width, sheet.shape[0] / height)
    axes = figure.add_axes(place)
    axes.imshow(sheet, interpolation="nearest", aspect="auto")
    axes.axis("off")
    for row, (name, members) in enumerate(zip(dataset.classes, rows, strict=True)):
        middle = row * pitch + CELL / 2
        label = textwrap.shorten(name, 66, placeholder=" ...")
        label = "\n".join(textwrap.wrap(label, 24)) or " "
        axes.text(-16, middle, label, ha="right", va="bottom", color=INK, fontsize=10)
        count = f"{len(members):,} images"
        axes.text(-16, middle + 4, count, ha="right", va="top", color=QUIET, fontsize=9)
    splits = (dataset.train, dataset.val, dataset.test)
    numbers = " / ".join(f"{len(split):,}" for split in splits)
    colour = "gray" if dataset.channels == 1 else "RGB"
    facts = f"{numbers} train / val / test,  {dataset.size} x {dataset.size} {colour}"
    _title(figure, dataset.name, facts, height)
    _save(figure, Path(path))


def partition_chart(
    counts: NDArray[Any],
    class_names: Sequence[str],
    path: Path | str,
    malicious: Sequence[int] = (),
) -> None:
    """Writes a PNG of stacked bars: images of each class (`counts` [clients, K]) by client.

    Clients numbered in `malicious` are marked. Raises `UserError` where it cannot be written.
    """
    from matplotlib.figure import Figure

    clients, classes = counts.shape
    names = [textwrap.shorten(name, 34, placeholder=" ...") for name in class_names]
    legend_rows = -(-classes // 3)
    dpi = 110
    height = 1.05 + 0.24 * legend_rows + 0.34 * max(clients, 3)
    figure = Figure(figsize=(9, height), dpi=dpi, facecolor="white")
    axes: Axes = figure.add_axes((0.13, 0.52 / height, 0.82, 0.34 * max(clients, 3) / height))
    left = np.zeros(clients)
    for k, name in enumerate(names):
        axes.barh(
            np.arange(clients),
            counts[:, k],
            left=left,
            height=0.72,
            color=SHADES[k % len(SHADES)],
            edgecolor="white",
            linewidth=0.6,
            label=name,
        )
        left += counts[:, k]
    for client, total in enumerate(left):
        axes.text(total, client, f"  {int(total):,}", va="center", color=QUIET, fontsize=8)
    axes.set_xlim(0, max(left.max(), 1) * 1.08)
    axes.set_ylim(clients - 0.5, -0.5)
    marks = ["malicious " if client in malicious else "client " for client in range(clients)]
    axes.set_yticks(
        np.arange(clients), [f"{mark}{client}" for client, mark in enumerate(marks)], fontsize=9
    )
    for client, tick in enumerate(axes.get_yticklabels()):
        tick.set_color(ALARM if client in malicious else INK)
    _bare(axes)
    axes.set_xlabel("training images", color=QUIET, fontsize=9)
    figure.text(
        0.02, 1 - 0.12 / height, "Who holds what", va="top", color=INK, fontsize=13, weight="bold"
    )
    figure.legend(
        loc="upper left",
        bbox_to_anchor=(0.012, 1 - 0.38 / height),
        ncols=min(3, classes),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=1.0,
        handleheight=1.0,
        columnspacing=1.5,
    )
    _save(figure, Path(path))


def _members(dataset: Dataset, label: int) -> NDArray[np.int64]:
    """Indices of the training images that carry a label."""
    labels = dataset.train.labels.cpu().numpy()
    return np.flatnonzero(labels[:, label] > 0 if dataset.multi_label else labels == label)


def _enlarged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[C, H, W] to RGB [CELL, CELL, 3]; small images keep their square pixels."""
    from PIL import Image

    pixels = np.repeat(image, 3 // len(image), axis=0).transpose(1, 2, 0)
    small = image.shape[-1] < CELL
    how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize((CELL, CELL), how), dtype=np.uint8)


def _title(figure: Figure, name: str, facts: str, height: int) -> None:
    """A title and a line of facts in the top left corner of a figure `height` pixels high."""
    left = 24 / (figure.get_figwidth() * figure.dpi)
    figure.text(left, 1 - 14 / height, name, va="top", color=INK, fontsize=14, weight="bold")
    figure.text(left, 1 - 40 / height, facts, va="top", color=QUIET, fontsize=9)


def _bare(axes: Axes) -> None:
    """Takes away the frame and leaves a light grid under the bars."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.tick_params(axis="x", colors=QUIET, labelsize=8)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda target: figure.savefig(target, format="png"))
