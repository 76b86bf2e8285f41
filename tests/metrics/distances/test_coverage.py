"""Precision, recall, density and coverage: by hand, by numpy, by torch-fidelity, by behaviour."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given as drawing
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from fedgan.errors import UserError
from fedgan.metrics import neighbours
from fedgan.metrics.coverage import Coverage, overlap, radii
from fedgan.metrics.neighbours import kth_nearest, nearest, squared_distances
from fedgan.metrics.streams.coverage import PrecisionRecallDensityCoverage

FIGURES = ("precision", "recall", "density", "coverage")


def prdc(real: Tensor, fake: Tensor, k: int) -> dict[str, float]:
    metric = PrecisionRecallDensityCoverage(neighbours=k)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return {name: float(value) for name, value in metric.compute().items()}


def naive(real: Tensor, fake: Tensor, k: int) -> dict[str, float]:
    """One distance at a time, as the definitions read."""
    x, y = real.double().numpy(), fake.double().numpy()

    def ball(points: np.ndarray, i: int) -> float:
        others = [np.linalg.norm(points[i] - p) for j, p in enumerate(points) if j != i]
        return sorted(others)[k - 1]

    of_real, of_fake = ([ball(p, i) for i in range(len(p))] for p in (x, y))
    d = np.array([[np.linalg.norm(p - q) for q in y] for p in x])
    in_real, in_fake = d <= np.array(of_real)[:, None], d <= np.array(of_fake)
    return {
        "precision": in_real.any(0).mean(),
        "recall": in_fake.any(1).mean(),
        "density": in_real.sum(0).mean() / k,
        "coverage": in_real.any(1).mean(),
    }


def drawn(n: int, size: int, seed: int) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed))


def test_by_hand() -> None:
    """On a line, k = 1. Balls of the real ones: 0 +- 1, 1 +- 1, 4 +- 2, 6 +- 2; of the generated:
    0.5 +- 1, 1.5 +- 1, 5 +- 3.5."""
    real = torch.tensor([[0.0], [1.0], [4.0], [6.0]])
    fake = torch.tensor([[0.5], [1.5], [5.0]])
    assert prdc(real, fake, 1) == {
        "precision": 1.0,  # each is in a ball
        "recall": 1.0,  # 6 and 4 are in that around 5
        "density": 5 / 3,  # 0.5 in two balls, 1.5 in one, 5 in two
        "coverage": 1.0,
    }
    assert prdc(real, fake + 100, 1) == dict.fromkeys(FIGURES, 0.0)


def test_at_exactly_the_radius_is_inside() -> None:
    """As Kynkaanniemi et al. have it; not so in the code of Naeem et al."""
    real = torch.tensor([[0.0], [1.0], [10.0]])
    assert prdc(real, torch.tensor([[2.0], [50.0], [90.0]]), 1)["precision"] == 1 / 3


@settings(max_examples=25)
@drawing(
    n=st.integers(7, 40),
    m=st.integers(7, 40),
    size=st.integers(1, 30),
    k=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_agrees_with_the_definitions(n: int, m: int, size: int, k: int, seed: int) -> None:
    real, fake = drawn(n, size, seed), 1.1 * drawn(m, size, seed + 1)
    assert prdc(real, fake, k) == pytest.approx(naive(real, fake, k))


@pytest.mark.parametrize(("n", "m", "k"), [(200, 150, 3), (150, 200, 5)])
def test_agrees_with_torch_fidelity(n: int, m: int, k: int) -> None:
    """Which calls generated features the first, k the neighbourhood, and takes k + 1 with self."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = drawn(n, 16, 1).double(), (0.9 * drawn(m, 16, 2) + 0.2).double()
    theirs = prc_features_to_metric(fake, real, prc_neighborhood=k, verbose=False)
    ours = prdc(real, fake, k)
    assert 0.1 < ours["recall"] < 0.99
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=1e-6)


def test_batches_reset_and_blocks(monkeypatch) -> None:
    """A stream in batches, and distances in small blocks, give the same."""
    real, fake = drawn(90, 8, 1), drawn(70, 8, 2)
    wanted = prdc(real, fake, 5)
    monkeypatch.setattr(neighbours, "ROWS", 7)
    monkeypatch.setattr(neighbours, "COLUMNS", 11)
    metric = PrecisionRecallDensityCoverage()
    for _ in range(2):
        for batch in fake.split(9):
            metric.update(batch, real=False)
        for batch in real.split(13):
            metric.update(batch, real=True)
        assert {name: float(value) for name, value in metric.compute().items()} == wanted
        metric.reset()
    with pytest.raises(ValueError, match="k must be between"), pytest.warns(match="before"):
        metric.compute()


def on_rank(cluster) -> dict[str, float]:
    metric = PrecisionRecallDensityCoverage()
    metric.update(drawn(90, 8, 1)[cluster.rank :: cluster.world], real=True)
    metric.update(drawn(70, 8, 2)[cluster.rank :: cluster.world], real=False)
    return {name: float(value) for name, value in metric.compute().items()}


def test_ranks_join_their_features(on_ranks) -> None:
    assert on_ranks(2, on_rank) == prdc(drawn(90, 8, 1), drawn(70, 8, 2), 5)


def test_near_duplicates_keep_their_distance() -> None:
    """A product of lengths near 1e10 would leave nothing of squared distances near 1e-6."""
    a = (1e5 + drawn(30, 64, 1)).double()
    b = a + 1e-4 * drawn(30, 64, 2).double()
    direct = (a[:, None] - b).square().sum(2)
    assert torch.allclose(squared_distances(a, b), direct, rtol=1e-9, atol=0)
    assert squared_distances(a, a).diagonal().eq(0).all()
    of_float = b.float()
    exact = (of_float.double()[:, None] - a).square().sum(2)
    assert torch.allclose(squared_distances(of_float, a), exact, rtol=1e-9, atol=0)


@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-3, 7e-3])
def test_a_collapsed_generator_is_not_taken_pair_by_pair(monkeypatch, noise) -> None:
    """Half of all pairs are near ones; 7e-3 puts them about the limit, some near and some not."""
    modes, n = drawn(2, 64, 1), 200
    a, b = (modes[torch.arange(n) % 2] + noise * drawn(n, 64, seed) for seed in (2, 3))
    a[5], b[8] = a[3], a[4]
    taken, products = [], []
    one_by_one, about = neighbours._one_by_one, neighbours._about
    monkeypatch.setattr(
        neighbours, "_one_by_one", lambda *given: taken.append(len(given[2])) or one_by_one(*given)
    )
    monkeypatch.setattr(neighbours, "_about", lambda *given: products.append(1) or about(*given))
    for others in (a, b):
        found = squared_distances(a, others)
        x, y = a.double(), others.double()
        direct = torch.stack([(row - y).square().sum(1) for row in x])
        assert torch.allclose(found, direct, rtol=1e-9, atol=0)
        assert torch.equal(found == 0, direct == 0)
    assert sum(taken) <= 2 * n * neighbours.FEW
    assert len(products) <= 2 * 40


def test_neighbours_over_blocks(monkeypatch) -> None:
    a, b = drawn(40, 5, 1), drawn(50, 5, 2)
    b[33] = b[12]  # the first of equals
    direct = torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")
    own = torch.cdist(a.double(), a.double(), compute_mode="donot_use_mm_for_euclid_dist")
    monkeypatch.setattr(neighbours, "COLUMNS", 7)
    found = nearest(a, b)
    assert torch.equal(found.which, direct.argmin(1))
    assert torch.allclose(found.squared.sqrt(), direct.min(1).values)
    third = kth_nearest(a, 3, slice(10, 35))
    assert torch.allclose(third.sqrt(), own.sort(1).values[10:35, 3])


def test_copies_are_neighbours() -> None:
    """An image's own copy is its neighbour at 0; the balls are then points, and hold the copies."""
    real = drawn(4, 3, 1).repeat(3, 1)
    assert radii(real, 2).eq(0).all()
    assert prdc(real, real, 2) == {"precision": 1, "recall": 1, "density": 1.5, "coverage": 1}


def test_the_measure_and_its_floors(scene_of, given, ranks, smooth, averages) -> None:
    scene, generated = scene_of(smooth(200)), smooth(100, seed=7)
    found = Coverage().measure(scene, given(generated))
    names = {f"{figure}_averages" for figure in FIGURES}
    assert set(found.figures) == names | {f"{name}_real" for name in names}
    features, _ = scene.halves(averages)
    a, b = features[:100], features[100:]
    ours = naive(a, averages(generated)[0], 5)
    assert [found.figures[f"{name}_averages"] for name in FIGURES] == pytest.approx(
        [*ours.values()]
    )
    floor = naive(a, b, 5)
    assert [found.figures[f"{name}_averages_real"] for name in FIGURES] == pytest.approx(
        [*floor.values()]
    )
    assert found.details["settings"]["neighbours"] == 5
    assert found == Coverage().measure(scene_of(smooth(200), share=ranks(3)), given(generated))


def test_a_perfect_generator_is_at_the_floors(scene_of, given, smooth) -> None:
    figures = Coverage().measure(scene_of(smooth(800)), given(smooth(400, seed=7))).figures
    for name in FIGURES:
        value, floor = figures[f"{name}_averages"], figures[f"{name}_averages_real"]
        assert value == pytest.approx(floor, abs=0.1)
    assert figures["coverage_averages"] == pytest.approx(1 - 2**-5, abs=0.04)
    assert figures["density_averages"] == pytest.approx(1, abs=0.15)


def test_a_collapse_and_an_outlier(smooth, averages) -> None:
    """One image for all: precise, and nothing else. Far outliers raise recall, not coverage."""
    real, fake = (averages(smooth(200, seed=seed))[0] for seed in (1, 2))
    collapsed = prdc(real, fake[:1] + 1e-3 * drawn(200, 9, 3), 5)
    assert collapsed["recall"] < 0.02
    assert collapsed["coverage"] < 0.2
    wild = torch.cat([fake[:1] + 1e-3 * drawn(190, 9, 3), 30 * drawn(10, 9, 4)])
    fooled = prdc(real, wild, 5)
    assert fooled["recall"] > 0.9
    assert fooled["coverage"] < 0.2


def test_overlap_of_unequal_numbers() -> None:
    real, fake = drawn(30, 4, 1), drawn(50, 4, 2)
    found = overlap(real, fake, radii(real, 3), radii(fake, 3), 3)
    assert found._asdict() == pytest.approx(naive(real, fake, 3))


def test_refusals(scene_of, smooth) -> None:
    with pytest.raises(UserError, match="neighbours is 5; it must be below the number of images"):
        Coverage().prepare(scene_of(smooth(10)))
    with pytest.raises(ValueError, match=r"\[n, F\]"):
        PrecisionRecallDensityCoverage().update(torch.zeros(3), real=True)
    with pytest.raises(ValueError, match="at least 1"):
        PrecisionRecallDensityCoverage(neighbours=0)
