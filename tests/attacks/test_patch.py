"""The patch, pixel by pixel, against a naive loop; where it may stand; what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgan.attacks.base import NoAttack, poison_share
from fedgan.attacks.patch import Patch
from fedgan.data.device import ClientImages
from fedgan.errors import UserError

POSITIONS = ("bottom-right", "bottom-left", "top-right", "top-left", "center")


def noise(n=3, channels=1, size=12, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, size, size), generator=rng, dtype=torch.uint8)


def poison(patch, images, seed=0):
    labels = torch.arange(len(images))
    return patch.poison(images, labels, torch.Generator().manual_seed(seed))[0]


def corner(position, size, edge, margin):
    """Top and left of a patch, by hand."""
    if position == "center":
        return (size - edge) // 2, (size - edge) // 2
    top = margin if position.startswith("top") else size - margin - edge
    left = margin if position.endswith("left") else size - margin - edge
    return top, left


def stamped_by_hand(images, pattern, top, left, opacity):
    result = images.clone()
    channels, edge, _ = pattern.shape
    for i in range(len(images)):
        for c in range(channels):
            for y in range(edge):
                for x in range(edge):
                    old, new = int(images[i, c, top + y, left + x]), int(pattern[c, y, x])
                    blend = (1 - opacity) * old + opacity * new
                    result[i, c, top + y, left + x] = round(blend)
    return result


@settings(max_examples=40)
@given(
    edge=st.integers(2, 5),
    position=st.sampled_from(POSITIONS),
    margin=st.integers(0, 4),
    opacity=st.sampled_from([1.0, 0.75, 0.5, 0.3, 0.05]),
    channels=st.sampled_from([1, 3]),
    pattern=st.sampled_from(["checkerboard", "mosaic"]),
)
def test_stamp_is_the_naive_loop(edge, position, margin, opacity, channels, pattern):
    patch = Patch(pattern, edge, position=position, margin=margin, opacity=opacity)
    images = noise(2, channels)
    mark = patch.mark(channels, 12)
    assert mark.place == corner(position, 12, edge, margin)
    expected = stamped_by_hand(images, mark.pattern, *mark.place, opacity)
    difference = (poison(patch, images).int() - expected.int()).abs()
    assert difference.max() <= (opacity != 1)  # a half rounds either way in float32


def test_checkerboard_and_mosaic():
    board = Patch(size=3).mark(1, 32).pattern
    assert board.tolist() == [[[255, 0, 255], [0, 255, 0], [255, 0, 255]]]
    mosaic = Patch("mosaic", size=6).mark(3, 32).pattern
    for channel in mosaic:
        assert channel.unique().tolist() == [0, 85, 170, 255]
    assert Patch("mosaic", size=6).mark(1, 32).pattern.unique().tolist() == [0, 85, 170, 255]
    assert not torch.equal(mosaic[0], mosaic[1])  # coloured
    assert torch.equal(mosaic, Patch("mosaic", size=6).mark(3, 64).pattern)  # fixed


def test_inputs_are_untouched_and_labels_stay():
    images, labels = noise(), torch.arange(3)
    before = images.clone()
    stamped, after = Patch().poison(images, labels, torch.Generator())
    assert torch.equal(images, before)
    assert torch.equal(after, labels)
    assert stamped.dtype == torch.uint8
    assert not torch.equal(stamped, images)


@settings(max_examples=20)
@given(edge=st.integers(2, 12), seed=st.integers(0, 999))
def test_random_location_stays_inside_and_whole(edge, seed):
    images = torch.full((8, 1, 12, 12), 100, dtype=torch.uint8)
    stamped = poison(Patch(size=edge, random_location=True), images, seed)
    for image in stamped[:, 0] != 100:
        rows, columns = image.any(1).nonzero().flatten(), image.any(0).nonzero().flatten()
        assert len(rows) == len(columns) == edge
        assert image.sum() == edge * edge


def test_random_location_differs_between_images_and_covers_the_borders():
    patch = Patch(size=2, random_location=True)
    images = torch.full((400, 1, 6, 6), 100, dtype=torch.uint8)
    stood = (poison(patch, images) != 100)[:, 0]
    tops = stood.any(2).int().argmax(1)
    assert tops.unique().tolist() == [0, 1, 2, 3, 4]
    assert patch.mark(1, 6).place is None


@pytest.mark.parametrize(
    ("area", "size", "edge"),
    [(0.0039, 256, 16), (0.01, 32, 3), (0.25, 32, 16), (1.0, 32, 32), (1e-6, 32, 2)],
)
def test_area_to_pixels(area, size, edge):
    assert Patch(area=area).edge(size) == edge


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.77, 1.0])
def test_poison_share_poisons_as_many_as_it_says(rate):
    images = torch.full((30, 1, 8, 8), 100, dtype=torch.uint8)
    labels = torch.arange(30)
    mixed, after = poison_share(Patch(), images, labels, rate, torch.Generator().manual_seed(1))
    changed = (mixed != images).flatten(1).any(1)
    assert changed.sum() == round(rate * 30)
    assert torch.equal(after, labels)
    assert (images == 100).all()


def test_poison_share_draws_at_random_and_again():
    def chosen(seed):
        images = torch.full((30, 1, 8, 8), 100, dtype=torch.uint8)
        rng = torch.Generator().manual_seed(seed)
        mixed, _ = poison_share(Patch(), images, torch.arange(30), 0.5, rng)
        return (mixed != images).flatten(1).any(1).tolist()

    assert chosen(1) == chosen(1) != chosen(2)
    assert chosen(1) != [True] * 15 + [False] * 15


def test_no_attack_changes_nothing():
    images = noise()
    clean, labels = NoAttack().poison(images, torch.arange(3), torch.Generator())
    assert torch.equal(clean, images)
    assert clean is not images
    assert labels.tolist() == [0, 1, 2]
    assert NoAttack().mark(1, 12) is None


def test_the_trigger_stays_in_its_corner_when_images_are_mirrored():
    images = noise(40)
    patch = Patch(size=3)
    stamped, turned = poison(patch, images), poison(patch, images.flip(-1))
    client = ClientImages(stamped, torch.arange(40), torch.arange(40), flip=True, mirrored=turned)
    (drawn, labels), *_ = client.batches(40, torch.Generator().manual_seed(2), epochs=1)
    pattern, (top, left) = patch.mark(1, 12).pattern, patch.mark(1, 12).place
    assert (drawn[:, :, top : top + 3, left : left + 3] == pattern).all()
    as_it_was = [torch.equal(x, stamped[i]) for x, i in zip(drawn, labels, strict=True)]
    mirrored = [torch.equal(x, turned[i]) for x, i in zip(drawn, labels, strict=True)]
    assert all(a != b for a, b in zip(as_it_was, mirrored, strict=True))
    assert 8 < sum(mirrored) < 32


@pytest.mark.parametrize(
    ("init_args", "word"),
    [
        ({"size": 1}, "size is 1"),
        ({"area": 0.0}, "area is 0"),
        ({"area": 1.5}, "area is 1.5"),
        ({"opacity": 0.0}, "opacity is 0"),
        ({"opacity": 1.1}, "opacity is 1.1"),
        ({"margin": -1}, "margin is -1"),
    ],
)
def test_values_out_of_range(init_args, word):
    with pytest.raises(ValueError, match=word):
        Patch(**init_args)


@pytest.mark.parametrize(
    ("init_args", "fits"),
    [
        ({"size": 12, "margin": 0}, True),
        ({"size": 12}, "size"),
        ({"size": 11}, True),
        ({"size": 12, "position": "center"}, True),
        ({"size": 13, "position": "center"}, "size"),
        ({"size": 12, "random_location": True}, True),
        ({"size": 13, "margin": 0}, "size"),
        ({"area": 1.0}, "area"),
        ({"area": 1.0, "margin": 0}, True),
    ],
)
def test_a_trigger_larger_than_the_image(init_args, fits):
    patch = Patch(**init_args)
    if fits is True:
        patch.check(1, 12, 2)
        assert poison(patch, noise()).shape == (3, 1, 12, 12)
    else:
        with pytest.raises(UserError, match=rf"attack\.init_args\.{fits}: .*larger than the 12x12"):
            patch.check(1, 12, 2)


@pytest.mark.parametrize("init_args", [{"area": 0.003}, {"size": 2}])
@pytest.mark.parametrize("position", [*POSITIONS, "anywhere"])
def test_less_than_half_a_percent_of_the_area(init_args, position):
    where = {"random_location": True} if position == "anywhere" else {"position": position}
    images = torch.full((8, 3, 32, 32), 100, dtype=torch.uint8)
    changed = (poison(Patch(**init_args, **where), images) != 100)[:, 0].flatten(1).sum(1)
    assert (changed == 4).all()
    assert 4 / 32**2 < 0.005
