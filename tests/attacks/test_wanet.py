"""The warp, against bilinear sampling by hand; how far it moves what."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgan.attacks.wanet import WaNet
from fedgan.errors import UserError


def shifts(attack, size):
    """How far each pixel is taken from its own place, in pixels: [size, size, 2] (x, y)."""
    own = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1)
    return (attack.places(size).numpy().astype(np.float64) + 1) / 2 * (size - 1) - own


def sampled_by_hand(image, attack):
    """Each pixel from the four around the place it is taken from; [H, W] of one channel."""
    size = len(image)
    result = np.empty((size, size))
    for i, row in enumerate(shifts(attack, size)):
        for j, (dx, dy) in enumerate(row):
            x, y = min(max(j + dx, 0), size - 1), min(max(i + dy, 0), size - 1)
            left, top = min(int(x), size - 2), min(int(y), size - 2)
            right, low = x - left, y - top
            upper = image[top, left] * (1 - right) + image[top, left + 1] * right
            lower = image[top + 1, left] * (1 - right) + image[top + 1, left + 1] * right
            result[i, j] = upper * (1 - low) + lower * low
    return result


@settings(max_examples=12)
@given(
    grid=st.integers(2, 8),
    strength=st.floats(0, 5),
    size=st.sampled_from([9, 16]),
    seed=st.integers(0, 99),
)
def test_against_sampling_by_hand(grid, strength, size, seed, noise, poison):
    images, attack = noise(2, 3, size, seed), WaNet(grid, strength)
    for before, after in zip(images.numpy(), poison(attack, images).numpy(), strict=True):
        for channel in range(3):
            expected = sampled_by_hand(before[channel].astype(np.float64), attack)
            assert np.abs(after[channel] - expected).max() <= 0.5 + 0.01


def catmull(points, x):
    """Cubic convolution with a = -0.75, ends repeated, of 1-D control points at x."""
    a, left = -0.75, int(np.floor(x))
    total = 0.0
    for i in range(left - 1, left + 3):
        t = abs(x - i)
        if t <= 1:
            weight = (a + 2) * t**3 - (a + 3) * t**2 + 1
        else:
            weight = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
        total = total + weight * points[min(max(i, 0), len(points) - 1)]
    return total


@pytest.mark.parametrize(("grid", "size"), [(4, 16), (3, 10)])
def test_the_flow_is_the_normalised_control_grid_upsampled(grid, size):
    drawn = torch.rand((1, 2, grid, grid), generator=torch.Generator().manual_seed(20210220))
    control = drawn[0].numpy().astype(np.float64) * 2 - 1
    control /= np.abs(control).mean()
    places = np.arange(size) * (grid - 1) / (size - 1)
    rows = np.stack([catmull(control.transpose(1, 0, 2), y) for y in places])  # [size, 2, grid]
    flow = np.stack([catmull(rows.transpose(2, 0, 1), x) for x in places])  # [size x, size y, 2]
    expected = np.linspace(-1, 1, size)[:, None] + 0.5 * flow[:, :, 0] / size
    found = WaNet(grid, 0.5).places(size).numpy()[:, :, 0].T
    assert np.abs(found - expected.clip(-1, 1)).max() < 1e-5


@pytest.mark.parametrize("size", [16, 28, 32, 64])
def test_without_strength_nothing_moves(size, noise, poison):
    images = noise(4, 3, size)
    assert torch.equal(poison(WaNet(strength=0), images), images)


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [16, 32, 64])
def test_how_far_pixels_move(strength, size):
    inner = shifts(WaNet(strength=strength), size)[4:-4, 4:-4]  # where nothing is clipped
    # the control points are 1 in the mean of their absolute values, and 2 at most in this draw;
    # cubic interpolation goes beyond them by a quarter at most
    assert np.abs(inner).max() <= 1.25 * 2 * strength / 2 * (size - 1) / size
    assert 0.2 * strength < np.abs(inner).mean() < 0.6 * strength


def test_it_stays_within_the_image():
    assert WaNet(strength=50).places(32).abs().max() == 1


def test_neighbours_move_together():
    moved = shifts(WaNet(), 32)[2:-2, 2:-2]  # where nothing is clipped
    assert np.abs(np.diff(moved, axis=0)).max() < 0.15
    assert np.abs(np.diff(moved, axis=1)).max() < 0.15


def test_a_ramp_moves_by_its_slope(poison):
    ramp = (torch.arange(32) * 8).to(torch.uint8).expand(1, 1, 32, 32)
    change = poison(WaNet(), ramp)[0, 0].numpy().astype(float) - ramp[0, 0].numpy()
    assert np.abs(change - 8 * shifts(WaNet(), 32)[:, :, 0]).max() <= 0.5 + 1e-3


def test_more_control_points_than_pixels():
    WaNet(grid=16).check(1, 16, 2)
    with pytest.raises(UserError, match=r"attack\.init_args\.grid: 17 control points .* 16 pixels"):
        WaNet(grid=17).check(1, 16, 2)


@pytest.mark.parametrize(
    ("init_args", "word"),
    [
        ({"grid": 1}, r"init_args\.grid is 1"),
        ({"strength": -0.1}, r"init_args\.strength is -0\.1"),
        ({"strength": float("inf")}, r"init_args\.strength is inf"),
    ],
)
def test_values_out_of_range(init_args, word):
    with pytest.raises(ValueError, match=word):
        WaNet(**init_args)
