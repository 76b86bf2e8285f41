"""Copies of training images: how many are found, what the test says, what is shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given as drawing
from hypothesis import settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, norm
from torch import Tensor

from fedgan.errors import UserError
from fedgan.metrics._pairs import Pairs, picture
from fedgan.metrics.copying import cell_centres, data_copying, mann_whitney, near_interval
from fedgan.metrics.memory import Memory


def normal(n: int, shift: float = 0.0, seed: int = 0) -> Tensor:
    return (torch.randn(n, generator=torch.Generator().manual_seed(seed)) + shift).double()


@settings(max_examples=30)
@drawing(
    m=st.integers(3, 40),
    n=st.integers(3, 40),
    levels=st.integers(2, 50),
    seed=st.integers(0, 2**31),
)
def test_mann_whitney_agrees_with_scipys(m: int, n: int, levels: int, seed: int) -> None:
    """With ties, too."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(levels, (m,), generator=generator).double()
    second = torch.randint(levels, (n,), generator=generator).double()
    if len(torch.cat([first, second]).unique()) == 1:
        return
    theirs = mannwhitneyu(
        first.numpy(), second.numpy(), alternative="less", method="asymptotic", use_continuity=False
    )
    ours = mann_whitney(first, second)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert ours.auc == pytest.approx(theirs.statistic / (m * n))
    assert norm.cdf(ours.z) == pytest.approx(ours.p)
    assert ours.auc_low <= ours.auc <= ours.auc_high


def test_mann_whitney_of_one_value_says_nothing() -> None:
    same = mann_whitney(torch.ones(5).double(), torch.ones(7).double())
    assert same == (0.5, 0.5, 0.5, 0.0, 0.5)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of 300 pairs of samples, some 95 %; and p under 5 % as often where there is no difference."""
    truth = float(norm.cdf(-0.5 / 2**0.5))
    held = found = 0
    for seed in range(300):
        first, second = normal(60, -0.5, 2 * seed), normal(90, 0.0, 2 * seed + 1)
        lies = mann_whitney(first, second)
        held += lies.auc_low <= truth <= lies.auc_high
        found += mann_whitney(first + 0.5, second).p < 0.05
    assert 275 <= held <= 297
    assert 5 <= found <= 30


def test_data_copying_is_the_mean_of_the_cells() -> None:
    """Two cells of 30 and 60 held-out images, and one with too few."""
    ours = [normal(n, shift, seed) for n, shift, seed in ((40, -1, 1), (50, 0.2, 2), (5, -9, 3))]
    theirs = [normal(n, 0.0, seed) for n, seed in ((30, 4), (60, 5), (80, 6))]

    def cells(parts: list[Tensor]) -> Tensor:
        return torch.cat([torch.full((len(part),), i) for i, part in enumerate(parts)])

    z = [mann_whitney(a, b).z for a, b in zip(ours[:2], theirs[:2], strict=True)]
    found = data_copying(torch.cat(ours), torch.cat(theirs), cells(ours), cells(theirs), 3)
    assert found.ct == pytest.approx((30 * z[0] + 60 * z[1]) / 90)
    assert found.z == pytest.approx((30 * z[0] + 60 * z[1]) / (30**2 + 60**2) ** 0.5)
    assert found.p == pytest.approx(norm.cdf(found.z))
    assert (found.used, found.cells) == (2, 3)
    alone = data_copying(ours[2], theirs[2], cells(ours[2:]), cells(theirs[2:]), 1)
    lies = mann_whitney(ours[2], theirs[2])
    assert alone == (lies.z, lies.z, lies.p, 1, 1)


def test_typical_images_are_no_copies() -> None:
    """Nearly all images are of the dense cell: one z would call that copying, C_T does not."""
    dense, sparse = normal(200, 0.0, 1).abs(), normal(200, 5.0, 2).abs()
    ours, cell = normal(400, 0.0, 3).abs(), torch.zeros(400)
    ours[380:] += 5
    cell[380:] = 1
    held_out = torch.cat([dense, sparse])
    assert mann_whitney(ours, held_out).z < -10
    cells = torch.arange(400) // 200
    assert abs(data_copying(ours, held_out, cell, cells, 2).z) < 3


def test_cells_are_those_of_the_images() -> None:
    groups = torch.arange(400) % 4
    train = 20.0 * torch.eye(4)[groups] + normal(1600, seed=1).view(400, 4).float()
    centres = cell_centres(train, held_out=200, seed=1)
    assert sorted(centres.argmax(1).tolist()) == [0, 1, 2, 3]
    assert torch.equal(centres, cell_centres(train, 200, 1))
    assert len(cell_centres(train, 99, 1)) == 1
    assert len(cell_centres(train[:3], 5000, 1)) == 3


@pytest.mark.parametrize("m", [100, 200, 624])
def test_of_nothing_copied_few_intervals_lie_above_one_per_cent(m: int) -> None:
    """Of a threshold of few test images, Wilson's do in up to 24 %."""
    rng, rank, held, above, known = np.random.default_rng(m), (m + 1) // 100, 0, 0, {}
    shares = []
    for near in rng.binomial(1000, rng.beta(rank, m + 1 - rank, 600)):
        low, high = known.setdefault(near, near_interval(int(near), 1000, rank, m))
        above += low > 0.01
        held += low <= rank / (m + 1) <= high
        shares.append(near / 1000)
    assert above <= 0.05 * 600
    assert held >= 0.92 * 600
    assert np.mean(shares) <= 0.0105


def test_the_interval_finds_copies() -> None:
    """As wide as a binomial one where they are most of it, and with both ends at their ends."""
    low, high = near_interval(500, 1000, 6, 624)
    assert (low, high) == pytest.approx((0.469, 0.531), abs=0.003)
    assert near_interval(40, 1000, 6, 624)[0] > 0.02
    assert near_interval(0, 1000, 6, 624)[0] == 0
    assert near_interval(1000, 1000, 6, 624)[1] == 1


@pytest.fixture
def scene(scene_of, smooth, pixels):
    """1000 training images, 300 held-out ones twice, all of one kind."""
    return scene_of(
        smooth(1000, size=8, seed=1),
        test=smooth(300, size=8, seed=2),
        val=smooth(300, size=8, seed=3),
        encoders=(pixels,),
        samples=400,
    )


def test_fresh_images_are_as_near_as_others(scene, given, smooth) -> None:
    figures = Memory().measure(scene, given(smooth(400, size=8, seed=4))).figures
    for name in ("memory_pixels", "memory_pixels_real"):
        assert figures[name] < 0.06
    assert figures["memory_pixels_low"] < figures["memory_pixels"] < figures["memory_pixels_high"]
    for name in ("memory_pixels_z", "memory_pixels_z_real"):
        assert abs(figures[name]) < 3
    for name in ("memory_pixels_nearer", "memory_pixels_nearer_real"):
        assert figures[name] == pytest.approx(0.5, abs=0.1)


def test_held_out_images_as_samples_give_one_per_cent(scene, given) -> None:
    figures = Memory().measure(scene, given(scene.test.images)).figures
    assert figures["memory_pixels"] == pytest.approx(0.01, abs=0.004)
    assert figures["memory_pixels_z"] == pytest.approx(0, abs=1e-9)


def test_planted_copies_are_counted(scene, given, smooth) -> None:
    """A fifth, a half: each a training image with a little noise."""
    fresh, copies = smooth(400, size=8, seed=4), scene.train.images[500:900]
    noise = torch.randint(0, 3, copies.shape, generator=torch.Generator().manual_seed(5))
    copies = (copies.int() + noise).clamp(0, 255).byte()
    clean, *planted = (
        Memory().measure(scene, given(torch.cat([copies[:n], fresh[n:]]))) for n in (0, 80, 200)
    )
    for share, found in zip((0.2, 0.5), planted, strict=True):
        figures, details = found.figures, found.details["pixels"]
        base = clean.figures["memory_pixels"]
        assert figures["memory_pixels"] == pytest.approx(share, abs=base + 0.01)
        assert figures["memory_pixels_low"] > 0.1
        assert figures["memory_pixels_z"] < -3
        assert details["cells"]["p"] < 1e-3
        assert figures["memory_pixels_nearer"] > clean.figures["memory_pixels_nearer"]
        assert details["mann_whitney"]["p"] < 1e-4
        assert details["mann_whitney"]["auc_high"] < 0.5
    assert planted[1].figures["memory_pixels_ct"] < planted[0].figures["memory_pixels_ct"]


def places(picture: Tensor, image: Tensor, zoom: int) -> list[tuple[int, int]]:
    """Where an enlarged gray image [1, h, w] stands in a picture, as (top, left)."""
    tile = image.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    height, width = tile.shape[1:]
    found = picture[0].unfold(0, height, 1).unfold(1, width, 1)
    corner = (found[..., 0, 0] == tile[0, 0, 0]) & (found[..., -1, -1] == tile[0, -1, -1])
    return [
        (top, left)
        for top, left in corner.nonzero().tolist()
        if (picture[:, top : top + height, left : left + width] == tile).all()
    ]


def test_the_picture_has_each_copy_above_its_original(scene, given, smooth) -> None:
    images = smooth(400, size=8, seed=4)
    images[[30, 7, 200]] = scene.train.images[[5, 900, 77]]
    picture = Memory().measure(scene, given(images)).pictures["memory_pixels"]
    assert picture.dtype == torch.uint8
    assert len(picture) == 3
    lefts = []
    for original in (900, 5, 77):
        above, below = places(picture, scene.train.images[original], 12)
        assert above[1] == below[1]
        assert below[0] - above[0] == 96 + 8
        lefts.append(above[1])
        # under both stands a red distance, as a copy is near
        under = picture[:, below[0] + 100 :, above[1] : above[1] + 96].int()
        assert (under[0] - under[1]).max() > 100
    assert lefts == sorted(lefts)


@pytest.mark.parametrize("threshold", [None, 2.0])
@pytest.mark.parametrize(("n", "size", "channels"), [(8, 32, 1), (8, 224, 3), (1, 28, 1)])
def test_nothing_of_the_picture_is_cut_off(threshold, n, size, channels, smooth) -> None:
    """A white margin all around; small images are enlarged, large ones are as they are."""
    images = smooth(n, channels, size)
    distances = [0.5 + i for i in range(n)]
    pairs = Pairs(images, images, distances, threshold, 100, "efficientnet-lite0")
    made = picture(pairs)
    assert made.shape[1] > 2 * max(96, size)
    for edge in (made[:, :4], made[:, -4:], made[..., :4], made[..., -4:]):
        assert (edge == 255).all()
    assert [pairs.is_near(distance) for distance in (2.0, 2.1)] == [threshold is not None, False]


def test_what_the_report_says(scene, given, smooth) -> None:
    found = Memory(most=600).measure(scene, given(smooth(400, size=8, seed=4)))
    assert "not a privacy guarantee" in found.details["notes"][0]
    assert found.details["settings"]["training_images"] == 600
    details = found.details["pixels"]
    assert set(details["distances"]) == {"generated", "test", "val"}
    assert details["threshold_rank"] == 3  # of 300 test images
    assert details["distances"]["test"]["0"] <= details["threshold"]
    assert details["threshold"] <= details["distances"]["test"]["1"]
    assert details["within_threshold"] == 400 * found.figures["memory_pixels"]
    assert details["cells"]["cells"] == 6


def test_the_same_on_any_ranks(scene_of, given, ranks, smooth, pixels) -> None:
    found = [
        Memory().measure(
            scene_of(
                smooth(200, size=8),
                test=smooth(60, size=8, seed=2),
                encoders=(pixels,),
                share=ranks(world),
            ),
            given(smooth(100, size=8, seed=4)),
        )
        for world in (1, 3)
    ]
    assert found[0].figures == found[1].figures
    assert found[0].details == found[1].details
    assert torch.equal(*(findings.pictures["memory_pixels"] for findings in found))
    assert not {name for name in found[0].figures if name.endswith("real")}  # there is no val


@pytest.mark.parametrize("m", [99, 100])
def test_a_threshold_needs_a_hundred_test_images(scene_of, given, smooth, averages, m) -> None:
    scene = scene_of(smooth(200), test=smooth(m, seed=2), val=smooth(50, seed=3))
    found = Memory().measure(scene, given(smooth(100, seed=4)))
    names = {f"memory_averages{ending}" for ending in ("", "_low", "_high", "_real")}
    assert names & set(found.figures) == (names if m == 100 else set())
    assert {"memory_averages_z", "memory_averages_nearer_real"} <= set(found.figures)
    notes = [words for words in found.details["notes"] if "needs 100 test images" in words]
    assert len(notes) == (m < 100)
    assert (found.details["averages"]["threshold"] is None) == (m < 100)


def test_more_test_than_training_images(scene_of, given, smooth, averages) -> None:
    scene = scene_of(smooth(40), test=smooth(90, seed=2))
    figures = Memory().measure(scene, given(smooth(20, seed=4))).figures
    assert 0.2 <= figures["memory_averages_nearer"] <= 0.8


def test_refuses_a_scene_without_test_images(scene_of, smooth) -> None:
    with pytest.raises(UserError, match="no test images"):
        Memory().prepare(scene_of(smooth(40)))


def test_quantiles_are_of_distances(scene, given) -> None:
    found = Memory().measure(scene, given(scene.test.images))
    pixels = scene.test.images.flatten(1).double() / 64
    train = scene.train.images.flatten(1).double() / 64
    direct = torch.cdist(pixels, train).min(1).values
    for share in (1, 50, 100):
        wanted = np.percentile(direct.numpy(), share)
        for kind in ("generated", "test"):
            assert found.details["pixels"]["distances"][kind][f"{share}"] == pytest.approx(wanted)
