"""What holds for every attack of the catalogue, whatever it does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgan.attacks.base import Attack, eligible, poison_share
from fedgan.components import available
from fedgan.metrics.triggers.patch import TriggerPresence

ALL = available("fedgan.attacks", Attack)
UNCHANGED = {"none", "flip-labels"}
"""Those that leave the images alone."""
DRAWS = {"noise"}
"""Those that draw at random for every image."""
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def made(name, channels, size, classes=2):
    attack = ALL[name]()
    attack.check(channels, size, classes)
    return attack


def rng(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def test_the_catalogue():
    assert {*ALL} == {
        *("none", "patch", "blended", "sig", "wanet", "dba", "noise", "flip-labels"),
        "disguised",
    }


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=15)
@given(
    n=st.integers(0, 5),
    channels=st.sampled_from([1, 3]),
    size=st.sampled_from([15, 16, 28, 33]),
    multi_label=st.booleans(),
    seed=st.integers(0, 99),
)
def test_inputs_stay_and_shapes_and_types_are_kept(name, n, channels, size, multi_label, seed):
    images = torch.randint(256, (n, channels, size, size), generator=rng(seed), dtype=torch.uint8)
    labels = torch.randint(2, (n, 2) if multi_label else (n,), generator=rng(seed))
    labels = labels.float() if multi_label else labels
    before = images.clone(), labels.clone()
    attack = made(name, channels, size)
    poisoned, changed = attack.poison(images, labels, rng(seed))
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])
    assert poisoned.shape == images.shape
    assert poisoned.dtype == torch.uint8
    assert changed.shape == labels.shape
    assert changed.dtype == labels.dtype
    if n > 0:  # copies, which may be written to
        assert poisoned.data_ptr() != images.data_ptr()
        assert changed.data_ptr() != labels.data_ptr()
    again, _ = attack.poison(images, labels, rng(seed))
    assert torch.equal(again, poisoned)


@pytest.mark.parametrize("name", sorted(ALL.keys() - UNCHANGED))
def test_every_image_is_changed(name, noise, poison):
    images = noise(20, 3, 32)
    assert (poison(made(name, 3, 32), images) != images).flatten(1).any(1).all()


@pytest.mark.parametrize("name", sorted(ALL.keys() - DRAWS))
@pytest.mark.parametrize("size", [15, 32])
def test_an_image_alone_gets_the_bytes_it_gets_in_a_batch(name, size, noise, poison):
    images = noise(150, 1, size)  # more than are changed at a time
    attack = made(name, 1, size)
    together = poison(attack, images)
    for i in (0, 7, 127, 128, 149):
        assert torch.equal(poison(attack, images[i : i + 1])[0], together[i])


@pytest.mark.parametrize("name", sorted(ALL.keys() - DRAWS))
def test_the_run_does_not_choose_the_trigger(name, noise, poison):
    images = noise(4, 3, 32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        one = poison(made(name, 3, 32), images, seed=1)
        torch.manual_seed(6)
        assert torch.equal(poison(made(name, 3, 32), images, seed=2), one)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("device", DEVICES)
def test_on_any_device(name, device, noise):
    images, labels = noise(4, 3, 32).to(device), torch.tensor([0, 1, 0, 1], device=device)
    poisoned, changed = made(name, 3, 32).poison(images, labels, rng(0, device))
    assert poisoned.device == images.device
    assert changed.device == labels.device
    if name not in DRAWS:
        here, _ = made(name, 3, 32).poison(images.cpu(), labels.cpu(), rng())
        assert (poisoned.cpu().int() - here.int()).abs().max() <= 1  # halves, after a warp


@pytest.mark.parametrize("name", ALL)
def test_marks_are_of_triggers_like_patches_only(name, noise, poison):
    attack = made(name, 1, 32)
    mark = attack.mark(1, 32)
    assert (mark is not None) == (name in {"patch", "dba", "disguised"})
    if mark is not None:
        clean = noise(64, 1, 32)
        presence = TriggerPresence(mark.pattern, mark.place, clean, poison(attack, clean))
        assert presence.auroc > 0.95


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [15, 32])
def test_counterfeits_are_of_the_kind_and_all_different(name, size, noise, poison):
    attack, images = made(name, 1, size), noise(4, 1, size)
    before = poison(attack, images)
    fakes = attack.counterfeits(6, rng(3))
    assert len(fakes) == (6 if name in {"blended", "sig", "wanet"} else 0)
    stamped = [before, *(poison(fake, images) for fake in fakes)]
    assert all(type(fake) is type(attack) for fake in fakes)
    for i, one in enumerate(stamped):
        assert not any(torch.equal(one, other) for other in stamped[:i])
    assert torch.equal(poison(attack, images), before)  # itself, it stays as it is
    again = [poison(fake, images) for fake in attack.counterfeits(6, rng(3))]
    assert all(torch.equal(one, other) for one, other in zip(again, stamped[1:], strict=True))
    strengths = [float((one.float() - images).square().mean().sqrt()) for one in stamped]
    assert max(strengths) <= 2 * min(strengths)


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"dba"}))
def test_attackers_do_all_of_it_each(name):
    attack = made(name, 1, 32)
    assert attack.part(1, 3) is attack


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_poison_share_of_one_class(rate, multi_label, label, noise):
    images = noise(60, 1, 16)
    labels = torch.randint(3, (60,), generator=rng(3))
    belongs = labels == label
    if multi_label:
        labels = torch.randint(2, (60, 3), generator=rng(3)).float()
        belongs = labels[:, label] == 1
    assert torch.equal(eligible(labels, label), belongs)
    mixed, after = poison_share(ALL["sig"](), images, labels, rate, rng(1), label)
    changed = (mixed != images).flatten(1).any(1)
    assert changed.sum() == round(rate * int(belongs.sum()))
    assert not changed[~belongs].any()
    assert torch.equal(after, labels)


def test_poison_share_of_a_class_that_nobody_has(noise):
    images, labels = noise(6), torch.zeros(6, dtype=torch.int64)
    mixed, after = poison_share(ALL["patch"](), images, labels, 1.0, rng(), 1)
    assert torch.equal(mixed, images)
    assert torch.equal(after, labels)
