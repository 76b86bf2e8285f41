"""The default pair draws every size it says, minds labels, and refuses the rest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedgan.errors import UserError
from fedgan.models.base import ImageShape, LabelEmbedding
from fedgan.models.dcgan import DCGAN, PixelNorm

SIZES = (16, 28, 32, 56, 64, 112, 128, 224, 256)
NARROW = {"width": 4, "max_width": 8, "latent_dim": 5, "embed_dim": 3}


def build(size=16, channels=1, classes=3, **init_args):
    torch.manual_seed(0)
    return DCGAN(**{**NARROW, **init_args}).build(ImageShape(channels, size, classes))


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_shapes_and_range(size, channels):
    generator, discriminator = build(size, channels)
    labels = torch.tensor([0, 2])
    images = generator(10 * torch.randn(2, generator.latent_dim), labels)
    assert images.shape == (2, channels, size, size)
    assert images.abs().max() <= 1
    assert discriminator(images, labels).shape == (2,)


@pytest.mark.parametrize("size", [0, 4, 8, 14, 30, 31, 33, 48, 100])
def test_sizes_it_cannot_draw(size):
    with pytest.raises(UserError, match=rf"data\.size: .*{size}x{size}.* 28, 32, .*256"):
        build(size)


def test_default_is_small():
    generator, discriminator = DCGAN().build(ImageShape(1, 32, 4))
    assert 0.35e6 < count(generator) < 0.55e6
    assert 0.15e6 < count(discriminator) < 0.25e6


def test_neither_network_keeps_statistics_of_the_images():
    for network in build():
        assert not list(network.buffers())


def test_the_label_changes_what_is_drawn_and_judged():
    generator, discriminator = build()
    latents = torch.randn(1, generator.latent_dim)
    zero, one = torch.tensor([0]), torch.tensor([1])
    assert not torch.allclose(generator(latents, zero), generator(latents, one))
    images = torch.randn(1, 1, 16, 16)
    assert not torch.allclose(discriminator(images, zero), discriminator(images, one))


def test_one_positive_label_is_the_class_of_that_number():
    generator, discriminator = build()
    latents, images = torch.randn(3, generator.latent_dim), torch.randn(3, 1, 16, 16)
    numbers = torch.tensor([2, 0, 1])
    flags = nn.functional.one_hot(numbers, 3).float()
    assert torch.allclose(generator(latents, numbers), generator(latents, flags), atol=1e-6)
    assert torch.allclose(discriminator(images, numbers), discriminator(images, flags), atol=1e-6)


def test_several_positive_labels_add_up():
    embedding = LabelEmbedding(3, 4)
    both = embedding(torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    assert torch.allclose(both[0], embedding.weight[0] + embedding.weight[2])
    assert not both[1].any()


def test_an_image_is_drawn_and_judged_by_itself():
    generator, discriminator = build()
    latents, labels = torch.randn(4, generator.latent_dim), torch.tensor([0, 1, 2, 0])
    images = generator(latents, labels)
    assert torch.allclose(generator(latents[:1], labels[:1]), images[:1], atol=1e-6)
    logits = discriminator(images, labels)
    assert torch.allclose(discriminator(images[:1], labels[:1]), logits[:1], atol=1e-6)


def test_pixel_norm_gives_unit_mean_square():
    normed = PixelNorm()(7 * torch.randn(2, 16, 3, 3))
    assert normed.square().mean(1) == pytest.approx(torch.ones(2, 3, 3), abs=1e-4)


def test_depth_and_width_widen_the_networks():
    plain, deep, wide = build(), build(depth=2), build(width=8, max_width=16)
    for i in range(2):
        assert count(deep[i]) > count(plain[i])
        assert count(wide[i]) > count(plain[i])
    assert deep[0](torch.randn(1, 5), torch.tensor([0])).shape == (1, 1, 16, 16)


@pytest.mark.parametrize("name", ["latent_dim", "embed_dim", "width", "max_width", "depth"])
def test_sizes_of_nothing_are_refused(name):
    with pytest.raises(ValueError, match=name):
        DCGAN(**{name: 0})
