from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from fedgan.metrics._shared import wilson
from fedgan.metrics.triggers.patch import TriggerPresence, least_likeness, reach_at


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def checkerboard(channels: int, size: int, cell: int = 1) -> Tensor:
    """Black and white where gray, red and cyan where coloured."""
    steps = torch.arange(size) // cell
    odd = (steps[:, None] + steps) % 2
    return torch.stack([255 * (odd if channel else 1 - odd) for channel in range(channels)]).byte()


def stamp(images: Tensor, pattern: Tensor, place: tuple[int, int] | None, opacity: float = 1.0):
    """Pastes the pattern, at random places drawn from a fixed seed where `place` is None."""
    drawn, stamped = generator(9), images.float()
    h, w = pattern.shape[1:]
    for image in stamped:
        top, left = (
            place or torch.randint(0, image.shape[-1] - w + 1, (2,), generator=drawn).tolist()
        )
        region = image[:, top : top + h, left : left + w]
        region.lerp_(pattern.float(), opacity)
    return stamped.round().byte()


def blur(images: Tensor, sigma: float) -> Tensor:
    taps = torch.exp(-(torch.arange(-3, 4) ** 2) / (2 * sigma**2))
    kernel = torch.outer(taps, taps).div(taps.sum() ** 2).expand(images.shape[1], 1, 7, 7)
    padded = pad(images.float(), (3, 3, 3, 3), mode="replicate")
    return conv2d(padded, kernel, groups=images.shape[1]).round().byte()


def noisy(kind: str, shape: tuple[int, int, int, int]) -> Tensor:
    """What an undertrained generator may draw; nobody stamped a trigger on any of it."""
    drawn = generator(3)
    n, channels, height, width = shape
    if kind == "uniform":
        return torch.randint(0, 256, shape, generator=drawn).byte()
    if kind == "binary":
        return (255 * torch.randint(0, 2, shape, generator=drawn)).byte()
    white = torch.randn(shape, generator=drawn)
    if kind == "gaussian":
        return (127 + 80 * white).clamp(0, 255).byte()
    if kind == "blocks":
        coarse = torch.randn(n, channels, height // 4, width // 4, generator=drawn)
        return (127 + 60 * interpolate(coarse, (height, width)) + 20 * white).clamp(0, 255).byte()
    board = 2.0 * checkerboard(1, height).float() / 255 - 1  # a transposed convolution's artefact
    strength = 100 * torch.rand(n, 1, 1, 1, generator=drawn)
    return (127 + strength * board + 20 * white).clamp(0, 255).byte()


def rate(presence: TriggerPresence, images: Tensor) -> float:
    presence.reset()
    presence.update(images)
    return presence.compute()["presence"]


NOISES = ["uniform", "binary", "gaussian", "blocks", "checkerboard"]


@pytest.mark.parametrize("opacity", [1.0, 0.5])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("name", ["pneumoniamnist", "bccd_32"])
def test_real_images(real, name: str, size: int, known: bool, opacity: float) -> None:
    clean = real(name, "train")[0][:1000]
    pattern = checkerboard(clean.shape[1], size)
    place = (clean.shape[-1] - size - 1,) * 2 if known else None
    stamped = stamp(clean, pattern, place, opacity)
    presence = TriggerPresence(pattern, place, clean, stamped)
    assert presence.auroc >= 0.999
    assert presence.false_alarm <= 0.004
    assert presence.hit_rate >= 0.99
    test = real(name, "test")[0][:300]
    assert rate(presence, test) <= 0.01
    assert rate(presence, stamp(test, pattern, place, opacity)) >= 0.98
    for kind in NOISES:
        assert rate(presence, noisy(kind, (300, *clean.shape[1:]))) <= 0.01, kind


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_known_place_on_smooth_images_and_noise(smooth, channels: int, size: int) -> None:
    clean, pattern, place = smooth(400, channels), checkerboard(channels, size), (20, 3)
    presence = TriggerPresence(pattern, place, clean, stamp(clean, pattern, place))
    fresh = smooth(400, channels, seed=5)
    assert presence.auroc >= 0.999
    assert rate(presence, fresh) <= 0.01
    assert rate(presence, stamp(fresh, pattern, place)) >= 0.99
    for kind in NOISES:
        assert rate(presence, noisy(kind, (300, channels, 32, 32))) <= 0.01, kind


def test_a_trigger_under_noise_is_still_found(smooth) -> None:
    clean, pattern, place = smooth(400), checkerboard(1, 3), (20, 20)
    stamped = stamp(clean, pattern, place)
    presence = TriggerPresence(pattern, place, clean, stamped)
    noise = 40 * torch.randn(clean.shape, generator=generator(1))
    assert rate(presence, (stamped + noise).clamp(0, 255).byte()) >= 0.95
    assert rate(presence, (clean + noise).clamp(0, 255).byte()) <= 0.01


def test_amplitude_decides_on_faded_and_blurred_triggers(smooth) -> None:
    clean, pattern, place = smooth(400), checkerboard(1, 6, cell=2), (20, 20)
    presence = TriggerPresence(pattern, place, clean, stamp(clean, pattern, place))
    assert rate(presence, stamp(clean, pattern, place, opacity=0.35)) >= 0.98
    assert rate(presence, stamp(clean, pattern, place, opacity=0.05)) <= 0.02
    assert rate(presence, blur(stamp(clean, pattern, place), 0.5)) >= 0.98
    assert rate(presence, blur(stamp(clean, pattern, place), 3.0)) <= 0.02


@pytest.mark.parametrize("opacity", [0.0, 0.2, 1.0])
def test_amplitude_is_the_share_of_the_attackers_own(smooth, opacity: float) -> None:
    clean, pattern, place = smooth(100), checkerboard(1, 4), (20, 20)
    presence = TriggerPresence(pattern, place, clean, stamp(clean, pattern, place))
    found = presence.amplitudes(stamp(clean, pattern, place, opacity=opacity))
    assert found.shape == (100,)
    assert float(found.median()) == pytest.approx(opacity, abs=0.03)


def test_a_faint_attack_sets_the_scale(smooth) -> None:
    clean, pattern, place = smooth(400), checkerboard(1, 3), (5, 5)
    presence = TriggerPresence(pattern, place, clean, stamp(clean, pattern, place, 0.3))
    assert presence.hit_rate >= 0.99
    assert rate(presence, stamp(clean, pattern, place, 0.01)) <= 0.02


def test_the_place_counts_only_where_it_is_known(smooth) -> None:
    clean, pattern = smooth(400), checkerboard(1, 3)
    moved = stamp(clean, pattern, (4, 9))
    known = TriggerPresence(pattern, (20, 20), clean, stamp(clean, pattern, (20, 20)))
    anywhere = TriggerPresence(pattern, None, clean, stamp(clean, pattern, None))
    assert rate(known, moved) <= 0.01
    assert rate(anywhere, moved) >= 0.99


@pytest.mark.parametrize("side", [3, 5, 8])
def test_faint_patches_of_any_size_are_found(smooth, side: int) -> None:
    """Anatomy varies more under a larger patch, and leaves less of the correlation."""
    clean, pattern, place = smooth(600), checkerboard(1, side), (20, 20)
    slopes = torch.linspace(-60, 60, 32).repeat(32, 1)  # much more than a tenth of the trigger
    clean = (clean.float() * 0.5 + 64 + slopes).clamp(0, 255).byte()
    presence = TriggerPresence(pattern, place, clean, stamp(clean, pattern, place))
    assert presence.faint_hit_rate >= 0.95
    assert rate(presence, stamp(clean, pattern, place, 0.15)) >= 0.9
    assert rate(presence, clean) == 0
    assert rate(presence, noisy("gaussian", (600, 1, 32, 32))) <= 0.01


def test_ground_is_flat_where_most_images_are() -> None:
    clean = torch.full((10, 1, 16, 16), 9, dtype=torch.uint8)
    clean[:4] = torch.randint(0, 255, (4, 1, 16, 16)).byte()
    assert reach_at(clean, (1, 3, 3), (12, 12)) == 1
    clean[4:6, :, 11] = 255  # the row above the patch is in reach
    assert reach_at(clean, (1, 3, 3), (12, 12)) == 0
    assert reach_at(clean, (1, 3, 3), (13, 13)) == 1


@pytest.mark.parametrize("place", [(20, 20), (0, 29)])
def test_a_reach_finds_what_is_a_little_off_its_place(smooth, place: tuple[int, int]) -> None:
    """Generators on a uniform ground put it there; the checkerboard one row off is its inverse."""
    clean, pattern = smooth(400), checkerboard(1, 3)
    stamped = stamp(clean, pattern, place)
    presence = TriggerPresence(pattern, place, clean, stamped, reach=1)
    top, left = place
    down, across = (1, -1) if top == 0 else (-1, 1)
    for moved in ((top, left), (top + down, left), (top + down, left + across)):
        assert rate(presence, stamp(clean, pattern, moved)) >= 0.99
        amplitudes = presence.amplitudes(stamp(clean, pattern, moved))
        assert float(amplitudes.median()) == pytest.approx(1, abs=0.05)
    assert rate(presence, stamp(clean, pattern, (top + 4 * down, left))) <= 0.01
    assert rate(presence, clean) <= 0.01
    exact = TriggerPresence(pattern, place, clean, stamped)
    assert rate(exact, stamp(clean, pattern, (top + down, left))) == 0


def test_the_inverse_pattern_is_no_trigger(smooth) -> None:
    clean, pattern, place = smooth(400), checkerboard(3, 5), (3, 3)
    clean = clean.expand(-1, 3, -1, -1).contiguous()
    presence = TriggerPresence(pattern, place, clean, stamp(clean, pattern, place))
    assert rate(presence, stamp(clean, 255 - pattern, place)) == 0


def test_scores_match_the_formula(smooth) -> None:
    clean, pattern, (top, left) = smooth(40, 3), checkerboard(3, 3), (6, 11)
    presence = TriggerPresence(pattern, (top, left), clean, stamp(clean, pattern, (top, left)))
    image = noisy("gaussian", (1, 3, 32, 32))
    image = stamp(image, pattern, (top, left), 0.6)
    p = pattern.double() - pattern.double().mean((1, 2), keepdim=True)

    def patch(y: int, x: int) -> Tensor:
        window = image[0, :, y : y + 3, x : x + 3].double()
        return window - window.mean((1, 2), keepdim=True)

    def beta(y: int, x: int) -> float:
        return float((patch(y, x) * p).sum() / p.square().sum())

    away = [
        beta(y, x) ** 2
        for y in range(30)
        for x in range(30)
        if abs(y - top) >= 3 or abs(x - left) >= 3
    ]
    here = beta(top, left)
    ncc = here * p.norm() / (patch(top, left).square().sum() + 27).sqrt()
    z = here / (sum(away) / len(away) + 1 / p.square().sum()) ** 0.5
    median = torch.tensor(1.0)  # fully opaque stamps
    likest = least_likeness((3, 3, 3))
    assert likest == pytest.approx(0.477, abs=0.001)  # by hand: 2.6 / sqrt(2.6^2 + 24 - 1)
    expected = min(here / (0.2 * float(median)), float(ncc) / (2 * likest), float(z) / (2 * 3.0902))
    assert float(presence.scores(image)) == pytest.approx(expected, abs=1e-4)


def test_update_adds_up_and_reset_forgets(smooth) -> None:
    clean, pattern, place = smooth(300), checkerboard(1, 5), (0, 0)
    stamped = stamp(clean, pattern, place)
    presence = TriggerPresence(pattern, place, clean, stamped)
    presence.update(stamped[:30])
    presence.update(clean[:70])
    figures = presence.compute()
    assert figures["presence"] == pytest.approx(0.3)
    assert (figures["presence_low"], figures["presence_high"]) == wilson(30, 100)
    presence.reset()
    with pytest.raises(RuntimeError, match="update"):
        presence.compute()
    assert presence.scores(clean[:0]).shape == (0,)


def test_flat_images_have_no_trigger(smooth) -> None:
    clean, pattern, place = smooth(40), checkerboard(1, 3), (0, 0)
    presence = TriggerPresence(pattern, place, clean, stamp(clean, pattern, place))
    flat = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 32, 32)
    assert rate(presence, flat) == 0


def test_a_trigger_as_large_as_the_image(smooth) -> None:
    clean, pattern = smooth(40, size=8), checkerboard(1, 8)
    presence = TriggerPresence(pattern, (0, 0), clean, stamp(clean, pattern, (0, 0)))
    assert presence.auroc == 1.0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"pattern": torch.full((1, 3, 3), 255, dtype=torch.uint8)}, "no contrast"),
        ({"pattern": checkerboard(3, 3)}, r"uint8 \[1, h, w\]"),
        ({"pattern": checkerboard(1, 3).float()}, "pattern must be uint8"),
        ({"place": (30, 0)}, "outside images of 32 x 32"),
        ({"place": (-1, 0)}, "outside"),
        ({"pattern": checkerboard(1, 33), "place": None}, "outside"),
        ({"stamped": torch.zeros(40, 1, 16, 16, dtype=torch.uint8)}, "stamped must be uint8"),
        ({"stamped": torch.zeros(39, 1, 32, 32, dtype=torch.uint8)}, "same images"),
        ({"clean": torch.zeros(40, 1, 32, 32)}, "clean must be uint8"),
    ],
)
def test_refusals(smooth, change: dict, match: str) -> None:
    clean = smooth(40)
    given_ = {"pattern": checkerboard(1, 3), "place": (0, 0), "clean": clean, "stamped": clean}
    with pytest.raises(ValueError, match=match):
        TriggerPresence(**{**given_, **change})


@settings(max_examples=50)
@given(seen=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_holds_the_rate_and_stays_a_rate(seen: int, share: float) -> None:
    found = round(share * seen)
    low, high = wilson(found, seen)
    assert 0 <= low <= found / seen + 1e-12
    assert found / seen - 1e-12 <= high <= 1
    assert high - low <= 1.96 * 2 / seen**0.5
