"""What is kept of a client's images, and what of it is evidence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedgan.evidence import (
    Groups,
    Look,
    a_colour,
    bands,
    describe,
    description_size,
    deviations,
    filter_of,
    logarithms,
    look,
    of_unit_strength,
    split,
    textures,
    unexplained,
)

GRAY = torch.ones(1)


def corner():
    """A checkerboard of 3 pixels in an image of 16."""
    image = torch.zeros(16, 16)
    image[-4:-1, -4:-1] = torch.tensor([[1, -1, 1], [-1, 1, -1], [1, -1, 1.0]])
    return image


def laplacian(image):
    moved = [image.roll(step, axis) for step in (1, -1) for axis in (-1, -2)]
    return sum(moved) - 4 * image


def alone(count):
    return Groups(torch.zeros(count, dtype=torch.int64), 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: 0.7 * image,
        lambda image: image + 0.2,
        lambda image: image + 0.1 * image**2,
        lambda image: image + 0.1 * image.roll(1, -1) - 0.1 * image.roll(-1, -1),
        lambda image: image + 0.1 * laplacian(image),
    ],
    ids=["contrast", "brightness", "gamma", "shift", "blur"],
)
def test_what_equipment_does_to_the_whole_image_is_explained(change):
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 32)] * 2, indexing="ij")
    image = torch.exp(-4 * ((x - 0.1) ** 2 + 2 * y**2))[None, None]
    left = unexplained(change(image)[None] - image[None], image)
    inside = left[..., 2:-2, 2:-2].abs().max()  # a shift brings something in at the edge
    assert inside < 0.1 * (change(image) - image).abs().max()
    patched = image.clone()
    patched[..., 20:23, 20:23] += 0.05
    assert unexplained(patched[None] - image[None], image).abs().max() > 0.03


@pytest.mark.parametrize("level", [0.0, 0.3])
def test_an_image_that_is_the_same_everywhere_explains_only_brightness(level):
    image = torch.full((1, 1, 8, 8), level)
    left = unexplained(corner()[None, None, None, 8:, 8:], image)
    torch.testing.assert_close(left, (lambda x: x - x.mean())(corner()[8:, 8:]).view_as(left))
    every = torch.eye(64).view(64, 1, 1, 8, 8)
    norms = unexplained(every, image).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full((64,), (63 / 64) ** 0.5))


def test_bands_add_up_to_what_the_last_blur_takes_away():
    from scipy.ndimage import gaussian_filter

    image = torch.rand(1, 1, 24, 24, dtype=torch.float64)
    blurred = gaussian_filter(image[0, 0].numpy(), 1.4, mode="nearest", radius=5)
    left = image[0, 0].numpy() - bands(image).sum(1)[0, 0].numpy()
    np.testing.assert_allclose(left, blurred, atol=1e-6)


def test_descriptions_are_means_of_each_group():
    images = torch.rand(12, 1, 8, 8)
    groups = Groups(torch.arange(12) % 3, 3)
    described = describe(images, groups, GRAY)
    assert len(described) == description_size(len(groups), (1, 8, 8))
    seen = split(described[None], len(groups), (1, 8, 8))
    torch.testing.assert_close(seen.maps[0, 0], images.mean(0))
    torch.testing.assert_close(seen.maps[0, 2], images[1::3].mean(0))
    torch.testing.assert_close(seen.amplitudes[0, 3], bands(images)[2::3, :, 0].square().mean(0))
    torch.testing.assert_close(seen.textures[0, 0], textures(images, GRAY).mean(0))


@pytest.mark.parametrize("scale", [1e-38, 1e-23, 3.7, 1e20, 1e37])
def test_what_a_discriminator_asks_for_has_no_scale(scale):
    """Squares of the smallest and the largest would be 0 or infinite."""
    asked = torch.randn((8, 1, 4, 4), generator=torch.manual_seed(0))
    found = of_unit_strength(scale * asked)
    expected = asked / asked.square().mean().sqrt()
    torch.testing.assert_close(found, expected, rtol=1e-4 if scale < 1e-30 else 1e-6, atol=0)
    assert not of_unit_strength(0 * asked).any()
    assert not of_unit_strength(asked / 0).isfinite().any()


def test_other_contrast_is_the_same_logarithm_everywhere():
    images = torch.rand(12, 2, 16, 16) - 0.5
    stacked = [
        torch.stack(parts)
        for parts in zip(
            *(look(k * images, alone(12), a_colour(torch.ones(2))) for k in (1, 1.3)), strict=True
        )
    ]
    amplitudes = logarithms(Look(*stacked)).amplitudes
    np.testing.assert_allclose(amplitudes[1] - amplitudes[0], np.log(1.3), atol=0.05)
    apart = deviations(logarithms(Look(*stacked)), [0])
    assert apart.amplitudes.abs().max() < 0.03
    assert apart.textures.abs().max() < 0.01


def test_what_is_in_a_fifth_of_the_images_shows_where_they_vary_more_than_in_the_mean():
    rng = torch.Generator().manual_seed(0)
    clients = [0.3 * torch.randn((200, 1, 16, 16), generator=rng) for _ in range(5)]
    clients[4][:40] += corner()
    seen = [look(images, alone(200), GRAY) for images in clients]
    told = logarithms(Look(*(torch.stack(parts) for parts in zip(*seen, strict=True))))
    apart = deviations(told, [0, 1, 2, 3, 4])
    in_mean, in_spread = (
        part[4].abs().max() / part[:4].abs().max() for part in (bands(apart.maps), apart.amplitudes)
    )
    assert in_spread > 2.5
    assert in_spread > 1.2 * in_mean


@pytest.mark.parametrize("block", [range(16, 24), range(54, 69), range(85, 93), range(123, 138)])
def test_a_filter_is_known_by_its_texture(block):
    """The largest responses, by side and scale: a filter's own is the highest."""
    for feature in block:
        pattern = filter_of(feature)
        images = torch.zeros(1, 1, 16, 16)
        images[..., 4 : 4 + len(pattern), 4 : 4 + len(pattern)] = pattern
        responses = textures(images, GRAY)[0, list(block)]
        assert int(responses.argmax()) == feature - block[0]
    with pytest.raises(IndexError):
        filter_of(138)


def test_textures_are_those_of_one_direction_among_channels():
    images = torch.rand(4, 3, 16, 16)
    colour = a_colour(torch.tensor([3.0, 0.0, -4.0]))
    one = (0.6 * images[:, 0] - 0.8 * images[:, 2])[:, None]
    torch.testing.assert_close(textures(images, colour), textures(one, GRAY))


def test_a_pattern_against_which_other_channels_are_set_is_seen_in_any_colour_but_gray():
    images = torch.zeros(1, 3, 16, 16)
    images[0, 0], images[0, 2] = corner(), -corner()
    assert textures(images, a_colour(torch.ones(3))).abs().max() < 1e-6
    rng = torch.Generator().manual_seed(0)
    seen = [textures(images, a_colour(torch.randn(3, generator=rng))).max() for _ in range(50)]
    assert torch.stack(seen).median() > 1
