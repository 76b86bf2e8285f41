"""The picture of the generated images that lie nearest to a training image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

TILE = 96
"""Pixels that an image is wide at least: small ones are enlarged by a whole factor."""
GAP = 8
LINE = 18
NEAR = "#b2182b"
ROWS = ("generated image", "its nearest\ntraining image", "distance")


class Pairs(NamedTuple):
    """What is shown of n pairs, nearest first.

    Attributes:
        above: generated images, uint8 [n, C, H, W].
        below: the training image that lies nearest to each.
        distances: between them.
        threshold: within which 1 % of held-out real images lie; None where it is not known.
        images: generated images that these are the nearest of.
        encoder: in whose features distances are taken.
    """

    above: Tensor
    below: Tensor
    distances: Sequence[float]
    threshold: float | None
    images: int
    encoder: str

    def lines(self) -> list[str]:
        """What stands above the pairs: what they are, and what to make of it."""
        what = (
            f"The {len(self.above)} of {self.images} generated images that lie nearest to a "
            "training image, nearest first."
        )
        how = f"Distances are Euclidean, in the features of the encoder {self.encoder} (no unit)."
        if self.threshold is None:
            how += " There are too few test images to say which of them are near."
        else:
            how += (
                f" Near (red): at most {self.threshold:.3g}, the first percentile of real images "
                "that nobody trained on (the test split). 1 % of fresh images are as near; copies "
                "are likely where many more are."
            )
        return ["Are training images copied?", what, how]

    def is_near(self, distance: float) -> bool:
        """Whether a distance is not beyond the first percentile."""
        return self.threshold is not None and distance <= self.threshold


def picture(pairs: Pairs) -> Tensor:
    """uint8 [3, h, w]: each generated image above its neighbour, the distance below, on white."""
    from PIL import Image, ImageDraw, ImageFont

    _, _, height, width = pairs.above.shape
    zoom = max(1, -(-TILE // width))
    tile = (width * zoom, height * zoom)
    font, bold = ImageFont.load_default(13), ImageFont.load_default(17)
    left = 12 + max(int(font.getlength(line)) for row in ROWS for line in row.split("\n")) + GAP
    wide = max(left + len(pairs.above) * (tile[0] + GAP) + GAP, 620)
    title, *told = pairs.lines()
    words = [part for line in told for part in wrapped(line, font, wide - 24)]
    top = 14 + 24 + len(words) * LINE + GAP
    sheet = Image.new("RGB", (wide, top + 2 * (tile[1] + GAP) + 2 * LINE + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((12, 12), title, fill="black", font=bold)
    for i, line in enumerate(words):
        draw.text((12, 14 + 24 + i * LINE), line, fill="black", font=font)
    middles = (top + tile[1] // 2, top + tile[1] + GAP + tile[1] // 2)
    under = top + 2 * (tile[1] + GAP)
    for row, middle in zip(ROWS, (*middles, under + LINE // 2), strict=True):
        draw.multiline_text((12, middle), row, fill="black", font=font, anchor="lm")
    for i, distance in enumerate(pairs.distances):
        x = left + i * (tile[0] + GAP)
        for y, images in ((top, pairs.above), (top + tile[1] + GAP, pairs.below)):
            pixels = images[i].permute(1, 2, 0).expand(-1, -1, 3).contiguous().numpy()
            tiled = Image.fromarray(pixels).resize(tile, Image.Resampling.NEAREST)
            sheet.paste(tiled, (x, y))
        foot = (x + tile[0] // 2, under)
        near = pairs.is_near(distance)
        text, colour = f"{distance:.3g}", NEAR if near else "black"
        if pairs.threshold is not None:
            text += "\nnear" if near else "\nnot near"
        draw.multiline_text(foot, text, fill=colour, font=font, anchor="ma", align="center")
    return (
        torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8)
        .view(sheet.height, sheet.width, 3)
        .permute(2, 0, 1)
        .contiguous()
    )


def wrapped(text: str, font: FreeTypeFont | ImageFont, width: float) -> list[str]:
    """The text in lines of at most so many pixels.

    >>> from PIL import ImageFont
    >>> wrapped("one two three", ImageFont.load_default(13), 60)
    ['one two', 'three']
    """
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
