"""Stripes, against numpy and its Fourier transform; frequencies that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgan.attacks.sig import Sig
from fedgan.errors import UserError


@settings(max_examples=30)
@given(
    delta=st.floats(0.5, 255),
    frequency=st.floats(0.5, 7),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_against_numpy(delta, frequency, channels, seed, noise, poison):
    images = noise(3, channels, 15, seed)
    stripes = delta * np.sin(2 * np.pi * np.arange(15) * frequency / 15)
    exact = np.clip(images.numpy() + stripes, 0, 255)
    found = poison(Sig(delta, frequency), images).numpy()
    assert np.abs(found - exact).max() <= 0.5 + 1e-3


def test_the_defaults_to_the_byte(noise, poison):
    images = noise(4, 3, 32)
    stripes = np.array([40 * np.sin(2 * np.pi * j * 6 / 32) for j in range(32)])
    expected = np.clip(np.rint(images.numpy() + stripes), 0, 255).astype(np.uint8)
    assert np.array_equal(poison(Sig(), images).numpy(), expected)


@pytest.mark.parametrize("frequency", [1, 3, 6, 10])
def test_all_its_power_is_at_its_frequency(frequency, poison):
    gray = torch.full((1, 1, 32, 32), 128, dtype=torch.uint8)
    change = poison(Sig(100, frequency), gray)[0, 0].numpy().astype(float) - 128
    assert (change == change[0]).all()  # the same in every row
    power = np.abs(np.fft.rfft(change[0]))
    assert power.argmax() == frequency
    assert power[frequency] == pytest.approx(100 * 16, rel=0.01)
    assert np.delete(power, frequency).max() < 16


def test_it_clips(poison):
    ends = torch.stack([torch.full((1, 32, 32), level, dtype=torch.uint8) for level in (0, 255)])
    black, white = poison(Sig(), ends)[:, 0, 0].tolist()
    assert min(black) == 0
    assert max(black) == 40
    assert max(white) == 255
    assert min(white) == 215


@pytest.mark.parametrize(("frequency", "fits"), [(15.9, True), (16, False), (20, False)])
def test_frequencies_that_an_image_cannot_hold(frequency, fits, noise, poison):
    attack = Sig(frequency=frequency)
    if fits:
        attack.check(1, 32, 2)
        images = noise(2, 1, 32)
        assert not torch.equal(poison(attack, images), images)
    else:
        words = r"attack\.init_args\.frequency: .* do not fit images 32 pixels.*fewer than 16$"
        with pytest.raises(UserError, match=words):
            attack.check(1, 32, 2)


@pytest.mark.parametrize(
    ("init_args", "word"),
    [
        ({"delta": 0}, r"init_args\.delta is 0"),
        ({"delta": 256}, r"init_args\.delta is 256"),
        ({"delta": float("nan")}, r"init_args\.delta is nan"),
        ({"frequency": 0}, r"init_args\.frequency is 0"),
        ({"frequency": float("inf")}, r"init_args\.frequency is inf"),
    ],
)
def test_values_out_of_range(init_args, word):
    with pytest.raises(ValueError, match=word):
        Sig(**init_args)
