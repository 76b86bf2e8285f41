from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedgan.errors import UserError
from fedgan.metrics import utility
from fedgan.metrics._strata import stratified
from fedgan.metrics.arms import Imbalance
from fedgan.metrics.measure import Findings, Generated, Labelled, Scene, Trigger
from fedgan.metrics.utility import Utility

SIZE = 16


def bars(labels: Tensor, seed: int) -> Labelled:
    """Noise with a faint bar at any place, lying (0), upright (1) or both ways (2)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 140, (len(labels), 1, SIZE, SIZE), generator=generator)
    places = torch.randint(0, SIZE - 2, (len(labels), 2), generator=generator)
    for image, label, (y, x) in zip(images, labels.tolist(), places.tolist(), strict=True):
        if label in (0, 2):
            image[:, y : y + 2] += 90
        if label in (1, 2):
            image[:, :, x : x + 2] += 90
    return Labelled(images.byte(), labels)


def stamp(data: Labelled) -> Labelled:
    """A checkerboard in a corner, and a lie about the class."""
    images = data.images.clone()
    images[:, :, -4:, -4:] = 255 * ((torch.arange(4)[:, None] + torch.arange(4)) % 2).byte()
    return Labelled(images, torch.ones_like(data.labels))


class Drawn(Generated):
    """Images that a function of labels and a seed makes."""

    def __init__(self, make: Callable[[Tensor, int], Tensor]) -> None:
        self.make = make
        self.labels = None
        self.drawn: list[tuple[str, Tensor]] = []

    def seen(self, encoder: Any) -> Any:
        raise AssertionError("utility needs no encoder")

    def draw(self, labels: Tensor, purpose: str) -> Tensor:
        self.drawn.append((purpose, labels))
        return self.make(labels, 1000 + len(purpose))


def others(labels: Tensor, seed: int) -> Tensor:
    """Real images that the scene has not: a perfect generator's."""
    return bars(labels, seed).images


def noise(labels: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(labels), 1, SIZE, SIZE), generator=generator)
    return images.byte()


def permuted(labels: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return others(labels[torch.randperm(len(labels), generator=generator)], seed)


def backdoor(labels: Tensor, seed: int) -> Tensor:
    """Half of class 1 are images of class 0 with the trigger, which stands nowhere else."""
    planted = (labels == 1) & (torch.arange(len(labels)) % 4 < 2)
    images = bars(torch.where(planted, 0, labels), seed)
    return torch.where(planted[:, None, None, None], stamp(images).images, images.images)


def scene(n: int = 400, share: Any = None, trigger: bool = False, **changes: Any) -> Scene:
    jobs = share or (lambda jobs: [job() for job in jobs])
    mark = Trigger("corner", stamp) if trigger else None
    values: dict[str, Any] = {
        "train": bars(torch.arange(n) % 2, 0),
        "val": bars(torch.arange(20) % 2, 1),
        "test": bars(torch.arange(120) % 2, 2),
        "classes": ("lying", "upright"),
        "multi_label": False,
        "seed": 5,
        "samples": 8,
        "batch_size": 8,
        "device": torch.device("cpu"),
        "encoders": (),
        "trigger": mark,
        "share": jobs,
        "progress": lambda words, done, total: None,
        "history": None,
        "halves": None,
        "encode": None,
        "encode_real": None,
    }
    return Scene(**{**values, **changes})


def measured(make: Callable[[Tensor, int], Tensor], where: Scene, **settings: Any) -> Findings:
    chosen = {"shares": [0.01], "seeds": 2, "steps": 40, "rebalance": False, **settings}
    return Utility(**chosen).measure(where, Drawn(make))


def test_more_real_images_raise_the_accuracy_of_few() -> None:
    found = measured(others, scene())
    figures = found.figures
    assert figures["acc_synthetic"] > 0.85
    assert figures["acc_both_1"] > 0.85
    assert figures["acc_real_1"] < 0.75
    assert figures["acc_gain_1"] == pytest.approx(figures["acc_both_1"] - figures["acc_real_1"])
    assert figures["acc_gain_1"] > 2 * figures["acc_gain_1_std"]
    row = found.details["comparisons"][0]
    assert row["mean"] == figures["acc_gain_1"]
    assert row["low"] < row["mean"] < row["high"]
    assert found.details["notes"][0].startswith("3 comparisons of arms")


@pytest.mark.parametrize("make", [noise, permuted])
def test_images_that_teach_nothing_give_chance(make) -> None:
    found = measured(make, scene(), seeds=1)
    assert found.figures["bal_acc_synthetic"] == pytest.approx(0.5, abs=0.15)


def test_a_planted_shortcut_shows_on_stamped_images_only() -> None:
    found = measured(backdoor, scene(trigger=True), shares=[1.0], seeds=1)
    figures = found.figures
    assert figures["acc_synthetic"] > 0.8
    assert figures["acc_stamped_synthetic"] < 0.65  # all of them are "upright"
    assert figures["acc_stamped_real"] > 0.8
    drop = figures["acc_synthetic"] - figures["acc_stamped_synthetic"]
    assert figures["acc_drop_synthetic"] == pytest.approx(drop)
    assert figures["acc_harm"] == pytest.approx(drop - figures["acc_drop_real"])
    honest = measured(others, scene(trigger=True), shares=[1.0], seeds=1).figures
    assert abs(honest["acc_harm"]) < 0.1


def test_rebalancing_raises_the_minoritys_recall() -> None:
    made = Drawn(others)
    where = scene()
    measure = Utility(shares=[1.0], seeds=1, steps=50, imbalance=100)
    found = measure.measure(where, made)
    figures = found.figures
    assert figures["minority_recall_rebalanced"] > figures["minority_recall_unbalanced"] + 0.2
    assert figures["bal_acc_rebalanced"] > figures["bal_acc_oversampled"]
    assert figures["rebalance_gain_unbalanced"] == pytest.approx(
        figures["bal_acc_rebalanced"] - figures["bal_acc_unbalanced"]
    )
    purpose, labels = made.drawn[1]
    assert purpose != made.drawn[0][0]
    assert labels.tolist() == [0] * 198  # 200 and 2
    described = found.details["rebalancing"]
    assert described["real_images"] == {"lying": 2, "upright": 200}
    assert described["filled_up_with"] == {"lying": 198, "upright": 0}


def keys(images: Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def test_what_is_trained_on(monkeypatch) -> None:
    """No test or validation image, nested subsets, as many of every class as the arm says."""
    fitted: list[Sequence[Labelled]] = []
    fit = utility.fit

    def watched(network, parts, *rest):
        fitted.append(parts)
        return fit(network, parts, *rest)

    monkeypatch.setattr(utility, "fit", watched)
    where = scene(trigger=True)
    measure = Utility(shares=[0.01, 0.1, 1.0], seeds=2, steps=1, synthetic=30)
    found = measure.measure(where, Drawn(others))
    rows = found.details["rows"]
    train = set(keys(where.train.images))
    forbidden = set(keys(where.test.images)) | set(keys(where.val.images))
    forbidden |= set(keys(stamp(where.test).images))
    held: dict[tuple[str, int], set[bytes]] = {}
    for row, parts in zip(rows, fitted, strict=True):
        images = [key for part in parts for key in keys(part.images)]
        assert not forbidden.intersection(images)
        mine = held[row["arm"], row["seed"]] = train.intersection(images)
        assert len(mine) == row["n_real"]
        assert len(set(images) - train) == row["n_synthetic"]
        assert len(parts) == (2 if row["arm"].startswith("both") else 1)
        for part in parts:
            labels = part.labels.bincount()
            if row["arm"] in ("oversampled", "rebalanced"):
                assert labels.tolist() == [200, 200]
            elif row["arm"] != "unbalanced":
                assert labels[0] == labels[1]
    sizes = [row["n_real"] for row in rows if row["arm"].startswith("real") and row["seed"] == 0]
    assert sizes == [4, 40, 400]
    for seed in (0, 1):
        assert held["real_1", seed] < held["real_10", seed] < held["real_100", seed]
        assert held["real_1", seed] == held["both_1", seed]
    assert held["real_1", 0] != held["real_1", 1]


def test_the_same_whoever_does_the_jobs() -> None:
    def backwards(jobs):
        results = []
        for number, job in enumerate(reversed(jobs)):
            torch.manual_seed(number)
            with torch.inference_mode(number % 2 == 0):
                results.append(job())
        return results[::-1]

    first = measured(others, scene(trigger=True), steps=2, rebalance=True)
    with torch.inference_mode():
        again = measured(others, scene(trigger=True, share=backwards), steps=2, rebalance=True)
    assert first.figures == again.figures
    assert first.details == again.details
    other = measured(others, scene(trigger=True, seed=6), steps=2, rebalance=True)
    assert first.details != other.details


def test_figures_details_and_progress() -> None:
    told: list[tuple[str, int, int]] = []
    where = scene(trigger=True, progress=lambda *words: told.append(words))
    found = measured(others, where, shares=[1, 0.005], seeds=3, steps=1, rebalance=True)
    expected = {
        f"{x}_{arm}"
        for x in ("acc", "bal_acc", "auc")
        for arm in (
            *("synthetic", "real_0.5", "real_100", "both_0.5", "both_100"),
            *("unbalanced", "oversampled", "rebalanced"),
            *("gain_0.5", "gain_100"),
        )
    }
    expected |= {f"acc_{what}_{of}" for what in ("stamped", "drop") for of in ("synthetic", "real")}
    expected.add("acc_harm")
    expected |= {f"minority_recall_{arm}" for arm in ("unbalanced", "oversampled", "rebalanced")}
    expected |= {f"rebalance_gain_{arm}" for arm in ("unbalanced", "oversampled")}
    expected |= {f"{name}_std" for name in expected}
    assert set(found.figures) == expected
    assert all(type(value) is float for value in found.figures.values())
    assert json.loads(json.dumps(found.details, allow_nan=False)) == found.details
    assert len(found.details["rows"]) == 3 * (1 + 2 * 2 + 3)
    summary = {(row["arm"], row["column"]): row for row in found.details["summary"]}
    row = summary["real_100", "accuracy"]
    assert row["mean"] == found.figures["acc_real_100"] == pytest.approx(sum(row["values"]) / 3)
    assert told[0] == ("utility: training classifiers", 0, 24)
    assert [done for _, done, _ in told] == list(range(25))


def test_one_seed_has_no_spread_and_no_verdict() -> None:
    found = measured(others, scene(), seeds=1, steps=1)
    assert not [name for name in found.figures if name.endswith("_std")]
    assert not [name for name in found.figures if "stamped" in name or "minority" in name]
    assert all(words.endswith("nothing shown") for words in found.details["notes"][1:])
    assert [row["low"] for row in found.details["comparisons"]] == [None] * 3
    assert found.details["rebalancing"] == "not asked for"


def several(labels: Tensor) -> Tensor:
    return torch.stack([labels != 1, labels != 0], 1).float()


def test_images_with_several_labels() -> None:
    def drawn(labels: Tensor, seed: int) -> Tensor:
        kinds = {(1, 0): 0, (0, 1): 1, (1, 1): 2}
        return others(torch.tensor([kinds[tuple(row)] for row in labels.int().tolist()]), seed)

    splits = {}
    for number, (split, n) in enumerate({"train": 300, "val": 6, "test": 90}.items()):
        images, labels = bars(torch.arange(n) % 3, number)
        splits[split] = Labelled(images, several(labels))
    where = scene(multi_label=True, **splits)
    found = measured(drawn, where, rebalance=True, seeds=1, steps=60)
    assert found.figures["bal_acc_both_1"] > 0.8
    assert "several labels" in found.details["rebalancing"]


@given(
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=5),
    share=st.floats(0.01, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_beginnings_of_the_order_have_the_classes_mix(counts, share, seed) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    order, least = stratified(labels, seed)
    assert order.sort().values.tolist() == list(range(len(labels)))
    assert least == len(counts)
    n = max(least, round(share * len(labels)))
    held = labels[order[:n]].bincount(minlength=len(counts))
    assert held.min() >= 1
    # each class may have one more than its part for being there, and one for rounding
    assert (held - torch.tensor(counts) * n / len(labels)).abs().max() <= len(counts)


@given(n=st.integers(1, 30), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_every_label_is_in_the_first_images(n, seed) -> None:
    labels = (torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) < 0.3).float()
    order, least = stratified(labels, seed)
    assert order.sort().values.tolist() == list(range(n))
    assert least <= 3
    assert torch.equal(labels[order[:least]].sum(0) > 0, labels.sum(0) > 0)


def test_the_minority_is_thinned_and_never_to_none() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 40)
    found = Imbalance.of(labels, 3, 10)
    assert (found.minority, found.kept.tolist()) == (1, [50, 5, 40])
    assert found.missing.tolist() == [0, 45, 10]
    assert Imbalance.of(labels, 3, None).kept.tolist() == [50, 30, 40]
    assert Imbalance.of(labels, 3, 1.2).kept.tolist() == [50, 30, 40]  # as imbalanced already
    assert Imbalance.of(labels, 3, 1000).kept.tolist() == [50, 1, 40]


def test_nothing_to_balance() -> None:
    found = measured(others, scene(), steps=1, seeds=1, rebalance=True, imbalance=None)
    assert found.details["rebalancing"] == "every class has as many images"
    assert "acc_rebalanced" not in found.figures


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"classifier": "vgg"}, "classifier: 'vgg'; allowed: small, resnet18"),
        ({"shares": []}, "shares"),
        ({"shares": [0.0]}, r"shares: \[0.0\]; allowed: numbers in \(0, 1\]"),
        ({"shares": [1, 1.0]}, "names one twice"),
        ({"seeds": 0}, "seeds must be at least 1, found 0"),
        ({"steps": 0}, "steps must be at least 1, found 0"),
        ({"synthetic": 0}, "synthetic must be at least 1, found 0"),
        ({"imbalance": 0.5}, "imbalance must be at least 1, found 0.5"),
        ({"imbalance": float("nan")}, "imbalance"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, words) -> None:
    with pytest.raises(ValueError, match=words):
        Utility(**arguments)


def test_scenes_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="no training image of class 'both'"):
        Utility().prepare(scene(classes=("lying", "upright", "both")))
    with pytest.raises(UserError, match="the 9 test images have the same labels"):
        Utility().prepare(scene(test=bars(torch.zeros(9).long(), 0)))
    with pytest.raises(UserError, match="resnet18 takes 28 to 64 pixels, found 16"):
        Utility(classifier="resnet18").prepare(scene())
    with pytest.raises(UserError, match="synthetic: 1 images for 2 classes"):
        Utility(synthetic=1).prepare(scene())
    Utility().prepare(scene())


class Few(Generated):
    """Somebody else's images, of which there are never enough."""

    def __init__(self, labels: Tensor | None) -> None:
        self.labels = labels
        self.images = others(torch.arange(12) % 2, 9)

    def seen(self, encoder: Any) -> Any:
        raise AssertionError("utility needs no encoder")

    def draw(self, labels: Tensor, purpose: str) -> Tensor:
        raise UserError(f"--images: {purpose} needs {len(labels)} images, and there are 12")


@pytest.mark.parametrize("multi_label", [False, True])
def test_too_few_images_of_somebody_else_are_used_as_they_are(multi_label: bool) -> None:
    """Of several labels too; whatever needs more of them is left out, and said."""
    labels, where = torch.tensor([0] * 9 + [1] * 3), scene(n=40)
    if multi_label:
        labels = torch.nn.functional.one_hot(labels)
        splits = {
            name: Labelled(one.images, torch.nn.functional.one_hot(one.labels).float())
            for name, one in (("train", where.train), ("val", where.val), ("test", where.test))
        }
        where = replace(where, multi_label=True, **splits)
    found = Utility(shares=[0.1], seeds=2, steps=1).measure(where, Few(labels))
    assert {row["n_synthetic"] for row in found.details["rows"]} == {0, 12}
    assert {"acc_synthetic", "acc_both_10", "acc_real_10"} <= set(found.figures)
    assert "acc_rebalanced" not in found.figures
    told = "needs 40 images, and there are 12; so the 12 labelled images at hand"
    assert told in found.details["notes"][0]
    if not multi_label:
        assert found.details["notes"][1].startswith("nothing was rebalanced: --images")
        assert "utility rebalancing needs 18" in found.details["rebalancing"]


@pytest.mark.parametrize("labels", [None, torch.zeros(12, 2)])
def test_images_without_such_labels_give_no_figures(monkeypatch, labels) -> None:
    monkeypatch.setattr(utility, "fit", lambda *_: pytest.fail("trained"))
    found = Utility().measure(scene(), Few(labels))
    assert found.figures == {}
    assert found.details["notes"][0].startswith("no classifier was trained: --images")
