"""A trigger in parts: the bars of the paper, who stamps which, and what is looked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgan.attacks.dba import DistributedBackdoor
from fedgan.errors import UserError

POSITIONS = ("bottom-right", "bottom-left", "top-right", "top-left", "center")


def touched(attack, poison, size=32):
    """Which pixels of a gray image the attack changes: bool [size, size]."""
    gray = torch.full((1, 1, size, size), 100, dtype=torch.uint8)
    return (poison(attack, gray) != 100)[0, 0]


def test_the_bars_of_the_paper(poison):
    by_hand = torch.zeros(32, 32, dtype=torch.bool)
    for row in (0, 4):
        for column in (*range(6), *range(9, 15)):
            by_hand[row, column] = True
    assert torch.equal(touched(DistributedBackdoor(), poison), by_hand)


@settings(max_examples=40)
@given(
    length=st.integers(1, 5),
    thickness=st.integers(1, 3),
    gap=st.integers(1, 4),
    level=st.sampled_from([0, 60, 255]),
    position=st.sampled_from(POSITIONS),
    margin=st.integers(0, 2),
    opacity=st.sampled_from([1.0, 0.7, 0.25]),
    channels=st.sampled_from([1, 3]),
)
def test_the_whole_is_the_naive_loop(
    length, thickness, gap, level, position, margin, opacity, channels, noise, poison
):
    attack = DistributedBackdoor(length, thickness, gap, level, position, margin, opacity)
    images = noise(2, channels, 17)
    height, width = 2 * thickness + gap, 2 * length + gap
    top = 17 - height - margin if position.startswith("bottom") else margin
    left = 17 - width - margin if position.endswith("right") else margin
    if position == "center":
        top, left = (17 - height) // 2, (17 - width) // 2
    expected = images.numpy().astype(np.float64)
    for y in range(height):
        for x in range(width):
            if not (thickness <= y < thickness + gap or length <= x < length + gap):
                here = expected[:, :, top + y, left + x]
                expected[:, :, top + y, left + x] = (1 - opacity) * here + opacity * level
    found = poison(attack, images).numpy()
    assert np.abs(found - expected).max() <= 0.5 + 1e-3
    assert attack.mark(channels, 17).place == (top, left)
    assert attack.mark(channels, 17).pattern.shape == (channels, height, width)


@pytest.mark.parametrize("count", range(1, 10))
@pytest.mark.parametrize("position", POSITIONS)
def test_parts_are_disjoint_and_together_the_whole(count, position, poison):
    attack = DistributedBackdoor(thickness=2, position=position)
    whole = touched(attack, poison)
    parts = [touched(attack.part(i, count), poison) for i in range(count)]
    assert all(part.any() for part in parts)
    assert torch.equal(torch.stack(parts).any(0), whole)
    for i, part in enumerate(parts):
        for j in range(i):
            if i % 4 == j % 4 and count > 4:  # more attackers than bars: some stamp the same
                assert torch.equal(part, parts[j])
            else:
                assert not (part & parts[j]).any()


def test_stamping_all_parts_in_turn_stamps_the_whole(noise, poison):
    attack, images = DistributedBackdoor(level=3), noise(4, 3, 32)
    in_turn = images
    for i in range(3):
        in_turn = poison(attack.part(i, 3), in_turn)
    assert torch.equal(in_turn, poison(attack, images))


def test_a_part_leaves_the_whole_alone(poison):
    attack = DistributedBackdoor()
    before = touched(attack, poison)
    assert torch.equal(touched(attack.part(0, 1), poison), before)
    assert touched(attack.part(0, 4), poison).sum() == 6
    assert torch.equal(touched(attack, poison), before)


@pytest.mark.parametrize(("level", "between"), [(255, 0), (0, 255), (100, 255), (128, 0)])
def test_the_mark_is_of_the_whole_and_has_contrast(level, between):
    mark = DistributedBackdoor(length=2, gap=1, level=level).part(1, 4).mark(3, 32)
    bar = [level, level, between, level, level]
    assert mark.pattern.tolist() == [[bar, [between] * 5, bar]] * 3
    assert mark.place == (0, 0)


@pytest.mark.parametrize(
    ("init_args", "fits"),
    [
        ({}, "length"),
        ({"length": 5}, True),
        ({"length": 5, "margin": 1}, True),
        ({"length": 5, "margin": 2}, "length"),
        ({"length": 5, "margin": 2, "position": "center"}, True),
        ({"length": 1, "gap": 12}, True),
        ({"length": 1, "thickness": 6, "gap": 3}, "thickness"),
        ({"length": 1, "gap": 13}, "gap"),
    ],
)
def test_a_trigger_larger_than_the_image(init_args, fits, noise, poison):
    attack = DistributedBackdoor(**init_args)
    if fits is True:
        attack.check(1, 14, 2)
        assert poison(attack, noise(2, 1, 14)).shape == (2, 1, 14, 14)
    else:
        words = rf"attack\.init_args\.{fits}: .*x.* pixels .*larger than the 14x14 image"
        with pytest.raises(UserError, match=words):
            attack.check(1, 14, 2)


@pytest.mark.parametrize(
    ("init_args", "word"),
    [
        ({"length": 0}, r"init_args\.length is 0"),
        ({"thickness": 0}, r"init_args\.thickness is 0"),
        ({"gap": 0}, r"init_args\.gap is 0"),
        ({"margin": -1}, r"init_args\.margin is -1"),
        ({"level": 256}, r"init_args\.level is 256"),
        ({"level": -1}, r"init_args\.level is -1"),
        ({"opacity": 0.0}, r"init_args\.opacity is 0"),
        ({"opacity": 1.1}, r"init_args\.opacity is 1\.1"),
    ],
)
def test_values_out_of_range(init_args, word):
    with pytest.raises(ValueError, match=word):
        DistributedBackdoor(**init_args)
