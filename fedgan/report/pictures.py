"""Sample grids for the page: taken out of a run's PNG files, and packed small."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgan.errors import UserError
from fedgan.runs import Run
from fedgan.tracking.pictures import LAYOUT

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

BUDGET = 8_000_000
"""Bytes of all PNG pictures of samples on the page; in the file they take a third more."""
ROUNDS = 60
"""Most rounds on the slider."""
FEWEST = 16
"""Rounds that are worth smaller pictures: below this number rounds are not thinned out further
before pictures shrink."""
SIZES = ((96, 8), (64, 8), (64, 4), (40, 4))
"""Side of a generated image in pixels and number of columns, at most: the first that fits."""


@dataclass(frozen=True)
class Grid:
    """One picture: its PNG as a data URI, the classes of its rows (none known: ()), and its size in
    pixels."""

    uri: str
    classes: tuple[str, ...]
    width: int
    height: int


def samples_of(run: Run) -> dict[int, Path]:
    """The run's sample grids by round."""
    found = {}
    for path in sorted((run.path / "samples").glob("round_*.png")):
        number = path.stem.removeprefix("round_")
        if number.isdigit():
            found[int(number)] = path
    return found


def films(runs: Sequence[Run], budget: int = BUDGET) -> list[dict[int, Grid]]:
    """Each run's grids by round, within `budget` bytes of PNG: all with images of one size and, as
    far as they were looked at, of the same rounds, the last among them.

    Raises `UserError` where a picture cannot be read.
    """
    there = [samples_of(run) for run in runs]
    rounds = sorted({number for paths in there for number in paths})
    if not rounds:
        return [{} for _ in runs]
    last = [paths[max(paths)] for paths in there if paths]
    wanted = min(len(rounds), FEWEST)
    for size, columns in SIZES:
        each = sum(len(_packed(path, size, columns)[0]) for path in last)
        room = max(1, int(budget / each))
        if room >= wanted:
            break
    kept = thinned(rounds, min(room, ROUNDS))
    return [
        {number: grid_of(paths[number], size, columns) for number in kept if number in paths}
        for paths in there
    ]


def thinned(rounds: Sequence[int], most: int) -> list[int]:
    """At most `most` of them, evenly spread, the first and the last among them.

    >>> thinned(range(1, 101), 4), thinned([5, 10], 4), thinned([5, 10], 1)
    ([1, 34, 67, 100], [5, 10], [10])
    """
    if len(rounds) <= most:
        return list(rounds)
    if most == 1:
        return [rounds[-1]]
    step = (len(rounds) - 1) / (most - 1)
    return [rounds[round(i * step)] for i in range(most)]


def grid_of(path: Path, size: int = SIZES[0][0], columns: int = SIZES[0][1]) -> Grid:
    """A sample grid as it goes into the page; images larger than `size` pixels are made smaller."""
    data, classes, (width, height) = _packed(path, size, columns)
    return Grid(_uri(data), classes, width, height)


def picture_uri(path: Path) -> str:
    """Any PNG file as a data URI."""
    return _uri(path.read_bytes())


def _packed(path: Path, size: int, columns: int) -> tuple[bytes, tuple[str, ...], tuple[int, int]]:
    """PNG, classes of the rows, and size in pixels."""
    from PIL import Image

    try:
        with Image.open(path) as sheet:
            sheet.load()
    except (OSError, SyntaxError) as error:  # Pillow's, of a broken PNG
        raise UserError(
            f"report: {path}: cannot be read ({error}); the report does without it if it is gone"
        ) from None
    layout = sheet.info.get(LAYOUT)
    if layout is None:  # of an older fedgan: as it is, with the names of the classes inside
        sheet.thumbnail((size * columns, size * columns * 4))
        return _png(sheet), (), sheet.size
    told = json.loads(layout)
    small = _tiles(sheet, told, size, min(columns, told["columns"]))
    return _png(small), tuple(told["classes"]), small.size


def _tiles(sheet: Picture, told: dict[str, Any], size: int, columns: int) -> Picture:
    """The tiles alone, each in its own pixels or fewer, on nothing."""
    from PIL import Image

    height, width = told["size"]
    zoom, gap, left, classes = (told[key] for key in ("zoom", "gap", "left", "classes"))
    shrink = min(1.0, size / max(height, width))
    tile = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    space = max(1, tile[0] // 24)
    extent = [
        n * (side + space) - space for n, side in zip((columns, len(classes)), tile, strict=True)
    ]
    colour = sheet.convert("RGB")
    packed = Image.new("RGBA", (extent[0], extent[1]), (0, 0, 0, 0))
    for row in range(len(classes)):
        for column in range(columns):
            x = left + column * (width * zoom + gap)
            y = gap + row * (height * zoom + gap)
            cut = colour.crop((x, y, x + width * zoom, y + height * zoom))
            # Enlarged by a whole factor: nearest gives back the very pixels.
            own = cut.resize((width, height), Image.Resampling.NEAREST)
            if own.size != tile:
                own = own.resize(tile, Image.Resampling.LANCZOS)
            packed.paste(own, (column * (tile[0] + space), row * (tile[1] + space)))
    red, green, blue, alpha = packed.split()
    if red.tobytes() == green.tobytes() == blue.tobytes():
        return Image.merge("LA", (red, alpha))
    return packed


def _png(picture: Picture) -> bytes:
    data = io.BytesIO()
    picture.save(data, "png", optimize=True)
    return data.getvalue()


def _uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()
