"""Wrong labels, by tables and by what must hold for all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import one_hot

from fedgan.attacks.base import poison_share
from fedgan.attacks.labels import FlipLabels
from fedgan.errors import UserError


def flipped(labels, classes, **init_args):
    attack = FlipLabels(**init_args)
    attack.check(1, 8, classes)
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    same, changed = attack.poison(images, labels, torch.Generator())
    assert torch.equal(same, images)
    return changed


@pytest.mark.parametrize(
    ("classes", "after"),
    [(2, [1, 0]), (3, [2, 1, 0]), (4, [3, 2, 1, 0]), (8, [7, 6, 5, 4, 3, 2, 1, 0])],
)
def test_all_labels(classes, after):
    assert flipped(torch.arange(classes), classes).tolist() == after


def test_classes_that_a_client_lacks_count_too():
    assert flipped(torch.tensor([0, 0, 1]), 5).tolist() == [4, 4, 3]


def test_one_class_for_another():
    labels = torch.tensor([0, 1, 2, 1, 0])
    assert flipped(labels, 3, source=1, target=0).tolist() == [0, 0, 2, 0, 0]
    assert flipped(labels, 3, source=0, target=2).tolist() == [2, 1, 2, 1, 2]


def test_several_labels_an_image():
    labels = torch.tensor([[1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 1]]).float()
    assert flipped(labels, 3).tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 0, 1]]
    after = [[0, 1, 1], [0, 0, 1], [0, 0, 0], [0, 0, 1]]
    assert flipped(labels, 3, source=0, target=2).tolist() == after


def test_a_share_is_of_the_images_that_are_changed():
    labels = torch.arange(60) % 3
    images = torch.zeros((60, 1, 8, 8), dtype=torch.uint8)
    for init_args, found, only in (
        ({"source": 1, "target": 0}, 20, None),
        ({}, 40, None),
        ({}, 20, 2),
    ):
        attack = FlipLabels(**init_args)
        attack.check(1, 8, 3)
        for rate in (0.1, 0.5, 1.0):
            after = poison_share(attack, images, labels, rate, torch.Generator(), only)[1]
            assert (after != labels).sum() == round(rate * found)


@settings(max_examples=40)
@given(data=st.data(), classes=st.integers(2, 9), one=st.booleans(), several=st.booleans())
def test_what_is_affected_is_what_is_changed(data, classes, one, several):
    n = data.draw(st.integers(0, 9))
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    labels = torch.randint(classes, (n,), generator=rng)
    if several:
        labels = torch.randint(2, (n, classes), generator=rng).float()
    pair = data.draw(st.permutations(range(classes)))[:2]
    attack = FlipLabels(*(pair if one else ()))
    attack.check(1, 8, classes)
    _, after = attack.poison(torch.zeros((n, 1, 8, 8)), labels, rng)
    changed = after != labels
    affected = attack.affects(labels)
    assert affected.dtype == torch.bool
    assert torch.equal(affected, changed.any(1) if several else changed)


@settings(max_examples=40)
@given(data=st.data(), classes=st.integers(2, 9), one=st.booleans())
def test_one_label_an_image_is_the_same_either_way(data, classes, one):
    labels = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=1)))
    pair = data.draw(st.permutations(range(classes)))[:2]
    init_args = {"source": pair[0], "target": pair[1]} if one else {}
    single = flipped(labels, classes, **init_args)
    several = flipped(one_hot(labels, classes).float(), classes, **init_args)
    assert torch.equal(one_hot(single, classes).float(), several)
    if not one:
        assert torch.equal(flipped(single, classes), labels)  # twice is not at all


@pytest.mark.parametrize(
    ("init_args", "word"),
    [
        ({"source": 1}, r"init_args\.target is null"),
        ({"target": 1}, r"init_args\.source is null"),
        ({"source": 1, "target": 1}, r"init_args\.target is 1, as source is"),
        ({"source": -1, "target": 1}, r"init_args\.source is -1"),
        ({"source": 1, "target": -1}, r"init_args\.target is -1"),
    ],
)
def test_values_out_of_range(init_args, word):
    with pytest.raises(ValueError, match=word):
        FlipLabels(**init_args)


@pytest.mark.parametrize(
    ("init_args", "classes", "word"),
    [
        ({"source": 3, "target": 1}, 3, r"init_args\.source: there is no class 3; .* 0 to 2$"),
        ({"source": 1, "target": 5}, 3, r"init_args\.target: there is no class 5; .* 0 to 2$"),
        ({}, 1, r"attack: .* one class only"),
    ],
)
def test_classes_that_there_are_not(init_args, classes, word):
    with pytest.raises(UserError, match=word):
        FlipLabels(**init_args).check(1, 8, classes)


def test_poison_before_check():
    images = torch.zeros((1, 1, 8, 8), dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="check comes before poison"):
        FlipLabels().poison(images, torch.tensor([0]), torch.Generator())
