"""Detectors of triggers that cover the image, or that have no contrast of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedgan.metrics.triggers.base import auroc, mixed, noise_quantile
from fedgan.metrics.triggers.filter import CELLS, Filter, energies, pixels, whitened
from fedgan.metrics.triggers.image import ImagePresence
from fedgan.metrics.triggers.window import WindowPresence, box, shifts


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(n: int, size: int = 12, channels: int = 1, seed: int = 0) -> Tensor:
    coarse = torch.rand(n, channels, 4, 4, generator=generator(seed)) * 120 + 60
    up = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return (up + 6 * torch.randn(up.shape, generator=generator(seed + 100))).clamp(0, 255).byte()


def patterns(count: int, size: int = 12, channels: int = 1) -> Tensor:
    return torch.randn(count, channels, size, size, generator=generator(5)) * 20


def add(images: Tensor, pattern: Tensor, share: float = 1.0) -> Tensor:
    return (images + share * pattern).round().clamp(0, 255).byte()


def image_presence(clean: Tensor, count: int = 12) -> tuple[ImagePresence, Tensor]:
    own, *others = patterns(count + 1, clean.shape[-1], clean.shape[1])
    fakes = [add(clean[:40], other) for other in others]
    return ImagePresence(clean, add(clean, own), fakes), own


@settings(max_examples=25)
@given(
    n=st.integers(2, 12),
    features=st.integers(1, 9),
    shrinkage=st.floats(0.01, 10),
    seed=st.integers(0, 99),
)
def test_whitened_solves_the_shrunk_covariance(
    n: int, features: int, shrinkage: float, seed: int
) -> None:
    x = torch.randn(n, features, generator=generator(seed))
    d = torch.randn(3, features, generator=generator(seed + 1))
    s = (x.T @ x / n).double()
    s += shrinkage * s.trace() / features * torch.eye(features)
    expected = torch.linalg.solve(s, d.T.double()).T
    torch.testing.assert_close(whitened(x, d, shrinkage).double(), expected, rtol=1e-3, atol=1e-3)


def test_the_filter_answers_one_to_its_trigger_and_nothing_to_nuisances() -> None:
    seen = torch.randn(200, 30, generator=generator())
    added, nuisances = (torch.randn(k, 30, generator=generator(k)) for k in (5, 2))
    weights = Filter(pixels, seen, added, nuisances).weights
    answers = weights @ torch.cat([added[:1], nuisances]).T
    expected = torch.zeros(5, 3)
    expected[0, 0] = 1
    torch.testing.assert_close(answers, expected, atol=1e-4, rtol=0)


def test_amplitude_and_z_by_hand() -> None:
    """Two pixels that vary alike and independently: S is a multiple of the identity."""
    seen = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    added = torch.tensor([[2.0, 0.0], [2.0, 1.0], [0.0, 3.0], [0.0, -3.0]])
    filter = Filter(lambda images: images.flatten(1).float(), seen, added)
    torch.testing.assert_close(filter.weights[0], torch.tensor([0.5, 0.0]))
    # S^-1 d / d'S^-1 d = (0.4, 0.2), less what it answers to the trigger
    torch.testing.assert_close(filter.weights[1], torch.tensor([0.0, 0.2]))
    torch.testing.assert_close(filter.weights[2], torch.tensor([0.0, 1 / 3]))
    image = torch.tensor([[[[4, 3]]]], dtype=torch.uint8)
    amplitude, z = filter(image)
    # in standard deviations of 1 as yet: 2 of the trigger, 0.6, 1 and -1 of the counterfeits
    assert float(amplitude) == pytest.approx(2 - 0.2)
    assert float(z) == pytest.approx((2 - 0.2) / 1.0583, rel=1e-4)


def test_energies_of_white_noise_are_its_variance_in_every_order() -> None:
    noise = (128 + 20 * torch.randn(300, 1, 24, 24, generator=generator())).round().byte()
    found = energies(noise).exp().view(300, 8, CELLS**2).mean((0, 2))
    torch.testing.assert_close(found, torch.full((8,), 400.0), rtol=0.03, atol=0)
    assert energies(noise[..., :3]).shape == (300, (4 + 2) * CELLS**2)
    assert bool(energies(torch.zeros(2, 1, 1, 9, dtype=torch.uint8)).isfinite().all())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("share", "least"), [(1.0, 0.99), (0.2, 0.9)])
def test_a_pattern_over_the_image(channels: int, share: float, least: float) -> None:
    clean, fresh = plain(800, channels=channels), plain(200, channels=channels, seed=7)
    presence, own = image_presence(clean)
    assert presence.features == "pixels"
    assert presence.auroc >= 0.999
    assert presence.faint_hit_rate >= least if share < 1 else presence.hit_rate >= least
    marks = presence.marks(add(fresh, own, share))
    assert float((marks[:, 0] >= presence.threshold).float().mean()) >= least
    assert float(marks[:, 1].median()) == pytest.approx(share, abs=0.05)
    assert float((presence.scores(fresh) >= presence.threshold).float().mean()) <= 0.01


@pytest.mark.parametrize("kind", ["noise", "checkerboard", "flat", "inverse", "counterfeit"])
def test_what_is_no_trigger(kind: str) -> None:
    clean, fresh = plain(800), plain(200, seed=7)
    presence, own = image_presence(clean)
    steps = torch.arange(12)
    images = {
        "noise": torch.randint(256, fresh.shape, generator=generator()).byte(),
        "checkerboard": add(fresh, 60.0 * ((steps[:, None] + steps) % 2 * 2 - 1)),
        "flat": torch.arange(200).byte().view(-1, 1, 1, 1).expand_as(fresh),
        "inverse": add(fresh, -own),
        "counterfeit": add(fresh, patterns(40)[30]),  # of the same kind, and not among those known
    }[kind]
    assert float((presence.scores(images) >= presence.threshold).float().mean()) <= 0.01


def test_texture_is_looked_at_where_pixels_do_not_tell() -> None:
    """Blur in one half of the image: the mean image stays."""

    def blurred(images: Tensor, where: Tensor) -> Tensor:
        soft = torch.nn.functional.avg_pool2d(images.float(), 3, 1, 1, count_include_pad=False)
        return torch.where(where, soft, images.float()).round().byte()

    grain = (128 + 20 * torch.randn(800, 1, 24, 24, generator=generator())).clamp(0, 255).byte()
    left = torch.zeros(24, 24, dtype=torch.bool)
    left[:, :12] = True
    others = [torch.rand(24, 24, generator=generator(i)) < 0.5 for i in range(12)]
    fakes = [blurred(grain[:40], other) for other in others]
    presence = ImagePresence(grain, blurred(grain, left), fakes)
    assert presence.features == "energies"
    assert presence.auroc >= 0.999
    everywhere = blurred(grain, torch.ones(24, 24, dtype=torch.bool))
    assert float((presence.scores(everywhere) >= presence.threshold).float().mean()) <= 0.05


@pytest.mark.parametrize("channels", [1, 3])
def test_a_bar_of_one_colour(channels: int) -> None:
    clean, fresh = plain(800, 20, channels), plain(200, 20, channels, seed=7)

    def bar(images: Tensor, top: int = 3) -> Tensor:
        stamped = images.clone()
        stamped[:, :, top, 2:8] = 255
        return stamped

    presence = WindowPresence(clean, bar(clean))
    hits = [presence.scores(images) >= presence.threshold for images in (bar(fresh), fresh)]
    assert float(hits[0].float().mean()) >= 0.99
    assert float(hits[1].float().mean()) <= 0.01
    assert presence.auroc >= 0.999
    assert float((presence.scores(bar(fresh, 12)) >= presence.threshold).float().mean()) <= 0.01
    amplitude = presence.amplitudes(mixed(fresh, bar(fresh), 0.4))
    assert float(amplitude.median()) == pytest.approx(0.4, abs=0.05)


def test_other_parts_neither_pass_for_it_nor_hide_it() -> None:
    clean, fresh = plain(800, 20), plain(200, 20, seed=7)

    def bars(images: Tensor, *tops: int) -> Tensor:
        stamped = images.clone()
        for top in tops:
            stamped[:, :, top, 2:8] = 255
        return stamped

    presence = WindowPresence(clean, bars(clean, 3), others=[bars(clean, 7), bars(clean, 11)])
    shares = [
        float((presence.scores(bars(fresh, *tops)) >= presence.threshold).float().mean())
        for tops in ((3,), (3, 7, 11), (7, 11))
    ]
    assert shares[0] >= 0.99
    assert shares[1] >= 0.99
    assert shares[2] <= 0.01


@settings(max_examples=40)
@given(
    size=st.integers(6, 14),
    top=st.integers(0, 5),
    left=st.integers(0, 5),
    height=st.integers(1, 3),
    width=st.integers(1, 3),
    margin=st.integers(0, 4),
)
def test_boxes_and_shifts(
    size: int, top: int, left: int, height: int, width: int, margin: int
) -> None:
    top, left = min(top, size - height), min(left, size - width)
    change = torch.zeros(1, size, size)
    change[:, top : top + height, left : left + width] = -3
    _, rows, columns = box(change, margin)
    assert (rows.start, rows.stop) == (max(0, top - margin), min(size, top + height + margin))
    assert (columns.start, columns.stop) == (
        max(0, left - margin),
        min(size, left + width + margin),
    )
    moved = shifts(change)
    assert 2 <= len(moved) <= 32
    for one in moved:
        assert not ((one != 0) & (change != 0)).any()
        assert torch.equal(one.sum(), change.sum())
    assert len({tuple(one.flatten().tolist()) for one in moved}) == len(moved)


def test_a_stream_adds_up_over_ranks(on_ranks: Any) -> None:
    assert on_ranks(2, count_on_ranks) == pytest.approx(5 / 30)


def count_on_ranks(cluster: Any) -> float:
    clean = plain(200)
    presence, own = image_presence(clean)
    fresh = plain(30, seed=7)
    fresh[:5] = add(fresh[:5], own)
    presence.update(fresh[cluster.rank :: cluster.world])
    return presence.compute()["presence"]


def test_the_same_bytes_twice_and_in_any_batch() -> None:
    clean, fresh = plain(300), plain(200, seed=7)
    one, own = image_presence(clean)
    two, _ = image_presence(clean)
    images = torch.cat([fresh, add(fresh, own, 0.15)])
    assert torch.equal(one.marks(images), two.marks(images))
    pieces = torch.cat([one.marks(chunk) for chunk in images.split(37)])
    torch.testing.assert_close(pieces, one.marks(images), rtol=1e-4, atol=1e-4)
    assert one.marks(images[:0]).shape == (0, 2)


def test_small_numbers() -> None:
    assert noise_quantile(100) == pytest.approx(4.2649, abs=1e-4)  # of 1e-5, from tables
    assert auroc(torch.tensor([0.0, 0.2]), torch.tensor([0.2, 0.9])) == pytest.approx(0.875)
    clean = torch.tensor([[[[0, 100]]]], dtype=torch.uint8)
    stamped = torch.tensor([[[[255, 50]]]], dtype=torch.uint8)
    assert mixed(clean, stamped, 0.2).tolist() == [[[[51, 90]]]]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"counterfeits": []}, "two counterfeits or more are needed, found 0"),
        ({"counterfeits": [plain(3, 8)] * 2}, r"counterfeits must be uint8 \[N, 1, 12, 12\]"),
        ({"counterfeits": [plain(21)] * 2}, "counterfeits must be 1 to 20 images each, found 21"),
        ({"counterfeits": [plain(0)] * 2}, "found 0"),
        ({"stamped": plain(39)}, "same images, 8 or more, found 40 and 39"),
        ({"stamped": plain(40).float()}, "stamped must be uint8"),
        ({"stamped": plain(40)}, "changes none"),
    ],
)
def test_refusals_of_whole_images(change: dict[str, Any], match: str) -> None:
    clean = plain(40)
    given_ = {
        "clean": clean,
        "stamped": add(clean, patterns(1)[0]),
        "counterfeits": [clean[:9]] * 2,
    }
    with pytest.raises(ValueError, match=match):
        ImagePresence(**{**given_, **change})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"stamped": plain(40)}, "changes none"),
        ({"stamped": 255 - plain(40)}, "too large"),
        ({"clean": plain(7), "stamped": plain(7)}, "8 or more, found 7 and 7"),
    ],
)
def test_refusals_of_windows(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        WindowPresence(**{"clean": plain(40), **change})
