"""The blend, against numpy; what its patterns look like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from fedgan.attacks.blended import Blended


@settings(max_examples=30)
@given(
    alpha=st.floats(0.01, 1),
    pattern=st.sampled_from(["random", "smooth"]),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_against_numpy(alpha, pattern, channels, seed, noise, poison):
    images, attack = noise(3, channels, 15, seed), Blended(alpha, pattern)
    k = attack.whole_pattern(channels, 15).numpy().astype(np.float64)
    exact = (1 - alpha) * images.numpy().astype(np.float64) + alpha * k
    off = np.abs(poison(attack, images).numpy() - exact)
    assert off.max() <= 0.5 + 1e-3  # rounded to the nearest level; float32 has some 1e-5 of them


def test_two_tenths_to_the_byte(noise, poison):
    images, attack = noise(5, 3, 32), Blended()
    k = attack.whole_pattern(3, 32).numpy().astype(np.int64)
    expected = (8 * images.numpy().astype(np.int64) + 2 * k + 5) // 10  # never a half
    assert np.array_equal(poison(attack, images).numpy(), expected)


def test_all_of_the_pattern_is_the_pattern(noise, poison):
    attack = Blended(alpha=1.0)
    for image in poison(attack, noise(2, 3, 16)):
        assert torch.equal(image.float(), attack.whole_pattern(3, 16))


def test_the_random_pattern_is_white_noise_in_every_channel():
    k = Blended().whole_pattern(3, 64).numpy()
    assert abs(k.mean() - 127.5) < 3
    assert abs(k.std() - 256 / 12**0.5) < 2
    assert k.min() == 0
    assert k.max() == 255
    correlations = np.corrcoef(k.reshape(3, -1)) - np.eye(3)
    assert np.abs(correlations).max() < 0.06
    assert abs(np.corrcoef(k[:, :, 1:].ravel(), k[:, :, :-1].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_smooth_pattern_is_smooth_and_uses_all_levels(size):
    k = Blended(pattern="smooth").whole_pattern(3, size).numpy()
    for channel in k:
        assert channel.min() == pytest.approx(0, abs=1e-3)
        assert channel.max() == pytest.approx(255, abs=1e-3)
        blurred = gaussian_filter(channel, size / 32, mode="nearest")
        assert np.abs(channel - blurred).mean() < 8
    assert np.abs(k[0] - k[1]).mean() > 20


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.1, float("nan")])
def test_values_out_of_range(alpha):
    with pytest.raises(ValueError, match=r"init_args\.alpha is .*; it must be in \(0, 1\]"):
        Blended(alpha)
