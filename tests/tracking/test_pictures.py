"""The grid of samples, pixel for pixel; the curves are made of whatever rounds there are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fedgan.tracking.pictures import Pictures, sample_grid
from fedgan.tracking.records import Records


@pytest.mark.parametrize("channels", [1, 3])
def test_every_sample_stands_in_its_row_and_column(channels):
    rng = torch.Generator().manual_seed(0)
    samples = torch.randint(256, (2, 3, channels, 16, 16), generator=rng, dtype=torch.uint8)
    grid = np.asarray(sample_grid(samples, ["thin", "thick"]))
    zoom, gap = 5, 3
    cell = 16 * zoom
    assert grid.shape[0] == 2 * cell + 3 * gap
    left_margin = grid.shape[1] - (3 * cell + 4 * gap)
    assert left_margin > 12
    for row in range(2):
        for column in range(3):
            top = gap + row * (cell + gap)
            left = left_margin + gap + column * (cell + gap)
            tile = grid[top : top + cell, left : left + cell]
            image = samples[row, column].expand(3, -1, -1).permute(1, 2, 0).numpy()
            assert np.array_equal(tile, image.repeat(zoom, 0).repeat(zoom, 1))
    assert (grid[:, left_margin : left_margin + gap] == 255).all()
    assert (grid[:, :left_margin] != 255).any()  # the names of the classes


def test_large_images_are_not_enlarged():
    samples = torch.zeros(1, 2, 3, 128, 128, dtype=torch.uint8)
    assert sample_grid(samples, ["x"]).height == 128 + 6


@pytest.mark.parametrize("figures", [{}, {"fd_domain": 2.0, "fd_domain_floor": 1.0}])
@pytest.mark.parametrize("presence", [{}, {"presence": 0.5}])
@pytest.mark.parametrize("bias", [{}, {0: 0.1, 2: 3.0}])
def test_pictures_are_written(info, record, samples, figures, presence, bias):
    records, pictures = Records(), Pictures()
    for observer in (records, pictures):
        observer.on_start(info)
    for round in (1, 2):
        looked = (samples, bias) if round == 2 else (None, {})
        told = record(round, looked[0], {**figures, **presence}, critic_bias=looked[1])
        records.on_round(told)
        pictures.on_round(told)
    assert [p.name for p in (info.run_dir / "samples").iterdir()] == ["round_0002.png"]
    with Image.open(info.run_dir / "curves.png") as curves:
        assert min(curves.size) > 500
        assert (curves.width > 1500) == bool(bias)  # a column more
        assert len(set(curves.convert("RGB").resize((64, 64)).getdata())) > 10
