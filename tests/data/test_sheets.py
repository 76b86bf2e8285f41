"""Pictures are made and show what they should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fedgan.data import Dataset, Split
from fedgan.data.sheets import COLUMNS, contact_sheet, partition_chart
from fedgan.errors import UserError


def test_contact_sheet(brains, tmp_path):
    contact_sheet(brains, tmp_path / "one.png", seed=1)
    contact_sheet(brains, tmp_path / "two.png", seed=1)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as image:
        assert image.width > COLUMNS * 90
        pixels = np.asarray(image.convert("L"))
    assert 0.2 < (pixels < 10).mean() < 0.8  # brains on black, on white paper


def test_contact_sheet_of_colour_multi_label_and_an_empty_class(tmp_path):
    images = torch.zeros(2, 3, 128, 128, dtype=torch.uint8)
    images[:, 0] = 255
    split = Split(images, torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    names = ("red", "none", "a finding with a name that is longer than any label should be, really")
    contact_sheet(Dataset("x", split, split, split, names, True), tmp_path / "x.png", 1)
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("RGB")).astype(int)
    red = (pixels[..., 0] > 240) & (pixels[..., 1:].max(axis=-1) < 15)
    assert abs(red.sum() - 3 * 96 * 96) < 600


@pytest.mark.parametrize("clients", [1, 4, 40])
def test_partition_chart(tmp_path, clients):
    table = np.random.default_rng(0).integers(0, 50, (clients, 14))
    names = [f"class {k}" for k in range(14)]
    partition_chart(table, names, tmp_path / "chart.png", malicious=[0])
    with Image.open(tmp_path / "chart.png") as image:
        assert image.height > 15 * clients
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert ((pixels - [192, 57, 43]).__abs__().sum(axis=-1) < 12).any()  # the malicious in red


def test_a_folder_that_is_not_there(brains, tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        contact_sheet(brains, tmp_path / "no" / "x.png", 1)
