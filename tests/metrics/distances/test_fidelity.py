"""The measure of distances: its figures, their floors, classes, and what it tells of itself."""

from __future__ import annotations

import math
from statistics import fmean, stdev

import pytest
import torch
from torch import Tensor

from fedgan.metrics import distances
from fedgan.metrics.fidelity import Fidelity, constants, encode, members


@pytest.fixture
def measured(scene_of, given):
    """Figures of generated images against real ones, of which the first half drawn is A."""

    def measure(real, generated, labels=None, **settings):
        scene = scene_of(real, **settings)
        measure = Fidelity()
        measure.prepare(scene)
        return measure.measure(scene, given(generated, labels)).figures

    return measure


def test_names_and_figures(measured, smooth) -> None:
    figures = measured(smooth(200), smooth(100, seed=7))
    assert set(figures) == {
        *("fd_averages", "fd_averages_floor", "fd_averages_ratio"),
        *("kd_averages", "kd_averages_floor", "is_averages", "is_averages_real"),
    }
    assert figures["fd_averages_ratio"] == figures["fd_averages"] / figures["fd_averages_floor"]
    assert 0.3 < figures["fd_averages_ratio"] < 3  # images of the same kind are at the floor
    assert abs(figures["kd_averages"]) < 1
    assert figures["is_averages"] == pytest.approx(figures["is_averages_real"], rel=0.2)


def test_inception_alone_has_the_short_names(measured, smooth, inceptionlike) -> None:
    labels = torch.arange(60) % 2
    figures = measured(smooth(120), smooth(60, seed=7), labels, encoders=(inceptionlike,))
    assert set(figures) == {
        *("fid", "fid_floor", "fid_ratio", "kid", "kid_floor", "is", "is_real"),
        *("kid_worst_class", "kid_worst_class_floor"),
        *("fid_worst_class", "fid_worst_class_floor"),
    }


def test_the_figures_are_those_of_the_functions(scene_of, given, smooth, averages) -> None:
    """Half A against the generated images, and against half B."""
    scene, generated = scene_of(smooth(120), seed=5), smooth(60, seed=7)
    found = Fidelity().measure(scene, given(generated))
    figures, floors = found.figures, found.details["floors"]["averages"]
    features, logits = scene.halves(averages)
    a, b = features[:60], features[60:]
    ours, scores = encode(averages, generated, 50)
    assert figures["fd_averages"] == distances.frechet(a, ours)
    assert floors["fd_averages"][0] == distances.frechet(a, b)
    assert figures["fd_averages_floor"] == pytest.approx(fmean(floors["fd_averages"]))
    assert 5 <= floors["pairs"] == len(set(floors["fd_averages"])) <= 10
    assert figures["kd_averages"] == distances.kernel(a, ours, 5)
    assert figures["kd_averages_floor"] == distances.kernel(a, b, 5)
    assert figures["is_averages"] == distances.inception_score(scores, 5)
    assert figures["is_averages_real"] == distances.inception_score(logits[:60], 5)


def test_the_kernel_distance_is_that_of_all_pairs(averages, smooth) -> None:
    """On average over subsets, and without bias where there are few images; torch-fidelity's of one
    subset that is everything."""
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = (encode(averages, smooth(n, seed=n), 50)[0].double() for n in (80, 90))

    def of_all(a: Tensor, b: Tensor) -> float:
        x, y, z = ((p @ q.T / 9 + 1) ** 3 for p, q in ((a, a), (b, b), (a, b)))
        n, m = len(a), len(b)
        within = (x.sum() - x.trace()) / (n * (n - 1)) + (y.sum() - y.trace()) / (m * (m - 1))
        return float(within - 2 * z.mean())

    scale = float(((a @ a.T / 9 + 1) ** 3).mean())
    assert distances.kernel(a, b, seed=1) == pytest.approx(of_all(a, b), abs=0.02 * scale)
    settings = {"kid_subsets": 1, "kid_subset_size": 80, "verbose": False}
    theirs = kid_features_to_metric(a, b[:80], **settings)["kernel_inception_distance_mean"]
    assert theirs == pytest.approx(of_all(a, b[:80]), rel=1e-6)


def test_figures_grow_with_the_harm(measured, smooth) -> None:
    """Distance and kernel distance rise with noise; the score falls when all images are one."""
    real, fresh = smooth(400), smooth(200, seed=7)
    noise = 80 * torch.rand(fresh.shape, generator=torch.Generator().manual_seed(1))
    worse = [
        measured(real, (fresh + share * noise).clamp(0, 255).byte())
        for share in (0.0, 0.3, 0.6, 1.0)
    ]
    for key in ("fd_averages", "kd_averages"):
        values = [figures[key] for figures in worse]
        assert values == sorted(values)
        assert values[-1] > values[0] + 1
    collapsed = measured(real, fresh[:1].expand_as(fresh))
    assert collapsed["is_averages"] == pytest.approx(1.0)
    assert collapsed["is_averages"] < collapsed["is_averages_real"]


def test_a_floor_of_0_gives_an_infinite_ratio(measured, smooth) -> None:
    """Where all real images are one."""
    same = smooth(1).expand(80, -1, -1, -1)
    figures = measured(same, smooth(40, seed=7))
    assert figures["fd_averages_floor"] == 0
    assert figures["fd_averages_ratio"] == math.inf


def test_same_bytes_twice_on_any_ranks_and_no_global_randomness(
    scene_of, given, ranks, smooth
) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    generated = given(smooth(60, seed=7), torch.arange(60) % 2)
    found = [
        Fidelity(infinity=True).measure(scene_of(smooth(120), share=ranks(world)), generated)
        for world in (1, 1, 2, 3)
    ]
    assert all(findings == found[0] for findings in found)
    assert torch.equal(before, torch.get_rng_state())
    other = Fidelity().measure(scene_of(smooth(120), seed=2), generated).figures
    assert other["is_averages"] != found[0].figures["is_averages"]  # its splits are drawn


def test_a_floor_does_not_hang_on_the_draw(scene_of, given, smooth) -> None:
    """Two classes far apart: without the classes' mix, and of one pair of halves, the floor of one
    seed is many times another's."""
    real, labels = smooth(240, size=8), (torch.arange(240) % 3 == 0).long()
    real[labels == 1] //= 4
    fresh = given(smooth(120, size=8, seed=7))
    floors = []
    for seed in range(12):
        measure = Fidelity(per_class=False)
        figures = measure.measure(scene_of(real, labels, seed=seed), fresh).figures
        floors.append(figures["fd_averages_floor"])
    assert stdev(floors) < 0.1 * fmean(floors)


def test_work_is_shared_and_floors_are_taken_once(scene_of, given, ranks, smooth) -> None:
    share = ranks(2)
    scene, generated = scene_of(smooth(120), share=share), given(smooth(60, seed=7))
    measure = Fidelity(per_class=False)
    measure.prepare(scene)
    pairs = len(measure._floors)
    assert share.jobs == 3 + (pairs - 1)
    measure.measure(scene, generated)
    measure.measure(scene, generated)
    assert share.jobs == 9 + (pairs - 1)


def test_a_class_that_is_broken_stands_out(scene_of, given, smooth) -> None:
    """Class 1 of the generated images is dark, and a quarter of all."""
    real, fresh = smooth(400), smooth(200, seed=7)
    labels = (torch.arange(200) % 4 == 1).long()
    fresh[labels == 1] //= 3
    scene = scene_of(real, (torch.arange(400) % 4 == 1).long())
    found = Fidelity().measure(scene, given(fresh, labels))
    good, broken = found.details["per_class"]["averages"]
    assert [row["class"] for row in (good, broken)] == ["class 0", "class 1"]
    assert [row["generated"] for row in (good, broken)] == [150, 50]
    assert good["real"] + broken["real"] == 200
    for key in ("kd", "fd"):
        assert broken[key] > 20 * max(good[key], broken[f"{key}_floor"])
        assert found.figures[f"{key}_averages_worst_class"] == broken[key]
        floors = [row[f"{key}_floor"] for row in (good, broken)]
        worst = found.figures[f"{key}_averages_worst_class_floor"]
        assert worst == max(floors) if key == "kd" else worst >= max(floors)
        assert broken[key] > 2 * found.figures[f"{key}_averages"]  # pooling hides it


def test_classes_with_few_images(scene_of, given, smooth, pixels, averages) -> None:
    """A class of 10 has no distance, and too many features no Frechet distance."""
    labels = (torch.arange(200) >= 180).long()
    scene = scene_of(smooth(400), labels.repeat(2), encoders=(averages, pixels))
    found = Fidelity().measure(scene, given(smooth(200, seed=7), labels))
    large, small = found.details["per_class"]["averages"]
    assert large["fd"] is not None
    assert small["generated"] == 20
    assert small["kd"] is None if small["real"] < 20 else small["kd"] is not None
    large, small = found.details["per_class"]["pixels"]
    assert large["kd"] is not None
    assert large["fd"] is large["fd_floor"] is small["fd"] is None
    assert "fd_pixels_worst_class" not in found.figures
    assert "kd_pixels_worst_class" in found.figures


def test_images_without_labels_have_no_classes(scene_of, given, smooth) -> None:
    scene, images = scene_of(smooth(80)), smooth(40, seed=7)
    labels = torch.arange(40) % 2
    assert "per_class" in Fidelity().measure(scene, given(images, labels)).details
    assert "per_class" not in Fidelity().measure(scene, given(images)).details
    silent = Fidelity(per_class=False).measure(scene, given(images, labels))
    assert "per_class" not in silent.details


def test_an_image_may_be_of_many_classes(scene_of, given, smooth) -> None:
    labels = torch.zeros(120, 2)
    labels[:, 0] = 1
    labels[::2, 1] = 1
    scene = scene_of(smooth(120), labels)
    found = Fidelity().measure(scene, given(smooth(60, seed=7), labels[:60]))
    every, half = found.details["per_class"]["averages"]
    assert (every["generated"], half["generated"]) == (60, 30)
    assert every["kd"] == found.figures["kd_averages"]
    assert members(labels, 2).tolist() == members(labels > 0, 2).tolist() == (labels > 0).tolist()


def test_the_limit(scene_of, given, smooth) -> None:
    """Below the distance, and its floor nearer to 0 than the floor is."""
    scene = scene_of(smooth(400))
    found = Fidelity(infinity=True, per_class=False).measure(scene, given(smooth(200, seed=7) // 2))
    figures, table = found.figures, found.details["infinity"]["averages"]
    assert figures["fd_averages_infinity"] == pytest.approx(figures["fd_averages"], rel=0.1)
    assert abs(figures["fd_averages_infinity_floor"]) < figures["fd_averages_floor"] / 2
    assert table["samples"][-1] == 200
    assert table["fd_averages"][-1] == pytest.approx(figures["fd_averages"])
    first = found.details["floors"]["averages"]["fd_averages"][0]
    assert table["fd_averages_floor"][-1] == pytest.approx(first)


def test_where_the_limit_is_none(scene_of, given, smooth, averages, pixels) -> None:
    """It is said of the encoder whose features are as many as the smallest subset, or more."""
    scene = scene_of(smooth(72, size=8), encoders=(averages, pixels))  # 9 in the smallest subset
    fresh = given(smooth(36, size=8, seed=7))
    found = Fidelity(infinity=True, per_class=False).measure(scene, fresh)
    first, second = found.details["notes"]
    assert first.startswith("fd_averages_infinity is no limit here: its line begins at 9 images")
    assert second.startswith("fd_pixels_infinity is no limit here")
    figures = found.figures
    assert figures["fd_pixels_infinity_excess"] == pytest.approx(
        figures["fd_pixels_infinity"] - figures["fd_pixels_infinity_floor"]
    )
    assert "notes" not in Fidelity(per_class=False).measure(scene, fresh).details
    larger = scene_of(smooth(80), encoders=(averages,))
    found = Fidelity(infinity=True, per_class=False).measure(larger, given(smooth(40, seed=7)))
    assert "notes" not in found.details


def test_it_tells_what_the_figures_depend_on(scene_of, given, smooth) -> None:
    wanted = {"kernel_subsets": 20, "kernel_subset_size": 10, "score_splits": 10}
    assert constants(20).items() >= wanted.items()
    assert constants(5000)["kernel_subset_size"] == 500
    settings = Fidelity().measure(scene_of(smooth(40)), given(smooth(20))).details["settings"]
    assert settings.items() >= constants(20).items()
    assert settings["encoders"] == {"averages": {"fingerprint": "averages"}}
    assert settings["samples"] == 20
    assert (settings["halves"], settings["floor_pairs"]) == ("stratified by class", 10)
    assert settings["batch_size"] == 50
    assert settings["images"].startswith("uint8 [1, 32, 32]")


def test_refuses_another_number_of_images(scene_of, given, smooth) -> None:
    with pytest.raises(ValueError, match="20 images, found 19"):
        Fidelity().measure(scene_of(smooth(40)), given(smooth(19)))
