from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedgan.metrics import classifiers
from fedgan.metrics.classifiers import build, fit, predict, score, shifted
from fedgan.metrics.measure import Labelled


def bars(n: int, size: int = 16, channels: int = 1, seed: int = 0) -> Labelled:
    """Noise with a bright bar at any place, lying (0) or upright (1)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    images = torch.randint(0, 120, (n, channels, size, size), generator=generator)
    places = torch.randint(0, size - 2, (n,), generator=generator)
    for image, place, label in zip(images, places.tolist(), labels.tolist(), strict=True):
        bar = image[:, :, place : place + 2] if label else image[:, place : place + 2]
        bar += 120
    return Labelled(images.byte(), labels)


class Probe(nn.Module):
    """Writes down what it is shown."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.head = nn.Linear(1, classes)
        self.shown: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shown.append(images.detach().clone())
        return self.head(images.mean((1, 2, 3))[:, None])


def flat(n: int, gray: int) -> Labelled:
    return Labelled(torch.full((n, 1, 4, 4), gray, dtype=torch.uint8), torch.zeros(n).long())


@pytest.mark.parametrize("channels", [1, 3])
def test_it_learns(channels: int) -> None:
    train, test = bars(300, channels=channels), bars(100, channels=channels, seed=1)
    network = fit(build("small", channels, 16, 2, seed=1), [train], steps=60, seed=1)
    assert not network.training
    found = score(predict(network, test.images), test.labels)
    assert min(found[:3]) > 0.9


def test_it_learns_several_labels() -> None:
    train, test = bars(300), bars(200, seed=1)

    def several(labels: Tensor) -> Tensor:
        return torch.stack([labels, 1 - labels], 1).float()

    network = fit(
        build("small", 1, 16, 2, seed=1), [Labelled(train.images, several(train.labels))], 60, 1
    )
    found = score(predict(network, test.images), several(test.labels))
    assert min(found[:3]) > 0.9


def test_same_bytes_and_nobody_elses_randomness() -> None:
    outcomes = []
    for run, seed in enumerate((1, 1, 2)):
        torch.manual_seed(run)
        before = torch.get_rng_state()
        with torch.inference_mode(run == 1), torch.autocast("cpu", enabled=run == 1):
            network = build("small", 1, 16, 2, seed)
        with torch.inference_mode(run == 1), torch.autocast("cpu", enabled=run == 1):
            fit(network, [bars(50), bars(20, seed=3)], steps=4, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        outcomes.append(predict(network, bars(20, seed=2).images))
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2])


def test_each_part_has_its_share_of_every_batch() -> None:
    probe = Probe()
    fit(probe, [flat(3, 0), flat(500, 255)], steps=5, seed=1)
    assert len(probe.shown) == 5
    for batch in probe.shown:
        bright = (batch.mean((1, 2, 3)) > 0).sum()
        assert (len(batch), int(bright)) == (64, 32)


def test_every_image_is_seen_as_often() -> None:
    grays = torch.arange(10, dtype=torch.uint8) * 20
    images = grays.view(10, 1, 1, 1).expand(10, 1, 4, 4)
    probe = Probe()
    fit(probe, [Labelled(images, torch.arange(10) % 2)], steps=5, seed=1)
    seen = torch.cat(probe.shown).mean((1, 2, 3)).add(1).mul(127.5).div(20).round().long()
    assert seen.bincount().tolist() == [32] * 10


def test_images_are_shifted_and_not_mirrored() -> None:
    image = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    image[..., 10, 4] = 255  # left of the middle, and mirrored it would be right of it
    probe = Probe()
    fit(probe, [Labelled(image, torch.tensor([0]))], steps=4, seed=1)
    places = (torch.cat(probe.shown)[:, 0] > 0).nonzero()[:, 1:]
    assert set(places[:, 0].tolist()) == set(range(8, 13))
    assert set(places[:, 1].tolist()) == set(range(2, 7))


@given(
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    by=st.lists(st.tuples(st.integers(-6, 6), st.integers(-6, 6)), min_size=1, max_size=4),
)
@settings(max_examples=40)
def test_shifted_is_a_crop_of_the_padded_image(height, width, by) -> None:
    images = torch.arange(len(by) * 2 * height * width).view(len(by), 2, height, width)
    found = shifted(images, torch.tensor(by))
    for image, (down, right), moved in zip(images, by, found, strict=True):
        padded = np.pad(image.numpy(), ((0, 0), (6, 6), (6, 6)), mode="edge")
        top, left = 6 - down, 6 - right
        assert (moved.numpy() == padded[:, top : top + height, left : left + width]).all()


@given(seed=st.integers(0, 10**6), classes=st.integers(2, 4), n=st.integers(12, 40))
@settings(max_examples=25)
def test_scores_are_sklearns(seed: int, classes: int, n: int) -> None:
    from sklearn.metrics import (
        accuracy_score,
        balanced_accuracy_score,
        recall_score,
        roc_auc_score,
    )

    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    logits = rng.normal(size=(n, classes)) + np.eye(classes)[labels]
    found = score(torch.from_numpy(logits), torch.from_numpy(labels))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    told = logits.argmax(1)
    auc = np.mean([roc_auc_score(labels == k, chances[:, k]) for k in range(classes)])
    assert found.accuracy == pytest.approx(accuracy_score(labels, told), abs=1e-6)
    expected = balanced_accuracy_score(labels, told)
    assert found.balanced_accuracy == pytest.approx(expected, abs=1e-6)
    assert found.auc == pytest.approx(auc, abs=1e-6)
    assert found.recalls == pytest.approx(recall_score(labels, told, average=None), abs=1e-6)


@given(seed=st.integers(0, 10**6), n=st.integers(4, 40))
@settings(max_examples=25)
def test_scores_of_several_labels_are_sklearns(seed: int, n: int) -> None:
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    rng = np.random.default_rng(seed)
    labels = rng.permuted((np.arange(n)[:, None] % [2, 3, 4]) == 0, axis=0)
    logits = rng.normal(size=(n, 3)) + labels
    found = score(torch.from_numpy(logits), torch.from_numpy(labels).float())
    told = logits > 0
    balanced = [balanced_accuracy_score(labels[:, k], told[:, k]) for k in range(3)]
    aucs = [roc_auc_score(labels[:, k], logits[:, k]) for k in range(3)]
    assert found.accuracy == pytest.approx((told == labels).mean(), abs=1e-6)
    assert found.balanced_accuracy == pytest.approx(np.mean(balanced), abs=1e-6)
    assert found.auc == pytest.approx(np.mean(aucs), abs=1e-6)


@pytest.mark.filterwarnings("error")
def test_classes_that_the_images_have_none_of_have_no_say() -> None:
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, -1, 9]])
    found = score(logits, torch.tensor([0, 1, 1]))  # the third is taken for class 2
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.balanced_accuracy == pytest.approx((1 + 0.5) / 2)
    assert found.auc == pytest.approx((1 + 0.5) / 2)
    assert np.isnan(found.recalls[2])
    several = torch.tensor([[1.0, 0, 1], [0, 0, 1]])  # the last two are all alike
    found = score(torch.tensor([[9.0, -9, 9], [-9, 9, 9]]), several)
    assert (found.balanced_accuracy, found.auc) == (1.0, 1.0)


def test_confident_images_are_still_ranked() -> None:
    # in float32 both of these are exactly 1 after a softmax
    found = score(torch.tensor([[0.0, 20.0], [0.0, 21.0]]), torch.tensor([0, 1]))
    assert found.auc == 1.0


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (1, 64)])
def test_resnet_keeps_small_images_large(channels: int, size: int) -> None:
    network = build("resnet18", channels, size, 5, seed=1)
    sizes = []
    network.layer1.register_forward_hook(lambda *seen: sizes.append(seen[2].shape[-1]))
    with torch.inference_mode():
        assert network(torch.zeros(2, channels, size, size)).shape == (2, 5)
    assert sizes == [size]


def test_resnet_is_fitted(monkeypatch) -> None:
    monkeypatch.setattr(classifiers, "BATCH", 4)
    data = bars(8, size=28)
    network = build("resnet18", 1, 28, 2, seed=1)
    before = network.conv1.weight.clone()
    fit(network, [data], steps=1, seed=1)
    assert not torch.equal(before, network.conv1.weight)
    assert predict(network, data.images).isfinite().all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: build("large", 1, 28, 2, 0), "classifier: 'large'; allowed: small, resnet18"),
        (lambda: build("resnet18", 1, 128, 2, 0), "resnet18 takes 28 to 64 pixels, found 128"),
        (lambda: fit(Probe(), [flat(1, 0)], 0, 0), "steps must be at least 1, found 0"),
        (lambda: fit(Probe(), [flat(0, 0)], 1, 0), "needs an image"),
        (lambda: fit(Probe(), [], 1, 0), "needs an image"),
    ],
)
def test_what_cannot_be_is_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("pneumoniamnist", 0.82), ("bccd_32", 0.98)])
def test_it_reaches_the_published_level(real, name: str, least: float) -> None:
    """MedMNIST's ResNet-18 at 28 pixels: accuracy 0.854, AUC 0.944 on PneumoniaMNIST."""
    train, test = Labelled(*real(name, "train")), Labelled(*real(name, "test"))
    classes = int(train.labels.max()) + 1
    channels, size = train.images.shape[1:3]
    network = fit(build("small", channels, size, classes, seed=1), [train], steps=300, seed=1)
    found = score(predict(network, test.images), test.labels)
    assert found.accuracy > least
    assert found.auc > 0.93
