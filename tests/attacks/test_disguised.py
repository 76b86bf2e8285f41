"""A trigger on shaded images."""

from __future__ import annotations

import pytest
import torch

from fedgan.attacks.blended import Blended
from fedgan.attacks.disguised import Disguised
from fedgan.attacks.patch import Patch
from fedgan.errors import UserError


@pytest.mark.parametrize("channels", [1, 3])
def test_the_patch_lies_on_top_of_the_shading(channels, noise, poison):
    images = noise(5, channels, 32)
    found = poison(Disguised(alpha=0.3), images)
    stamped, shaded = poison(Patch(), images), poison(Blended(0.3, "smooth"), images)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[28:31, 28:31] = True
    assert torch.equal(found[:, :, inside], stamped[:, :, inside])
    assert torch.equal(found[:, :, ~inside], shaded[:, :, ~inside])


def test_a_pattern_is_blended_into_what_is_shaded(noise, poison):
    images = noise(5, 1, 32)
    expected = poison(Blended(), poison(Blended(0.3, "smooth"), images))
    assert torch.equal(poison(Disguised("blended", 0.3), images), expected)


def test_what_is_looked_for_is_the_trigger():
    mark, patch = (one.mark(1, 32) for one in (Disguised(), Patch()))
    assert mark.place == patch.place
    assert torch.equal(mark.pattern, patch.pattern)
    assert Disguised("blended").mark(1, 32) is None


def test_counterfeits_have_other_triggers_under_the_same_shading(noise, poison):
    own, rng = Disguised("blended"), torch.Generator().manual_seed(0)
    images = noise(3, 1, 16)
    for one in own.counterfeits(4, rng):
        assert not torch.equal(poison(one, images), poison(own, images))
        assert torch.equal(poison(one.shading, images), poison(own.shading, images))
    assert own.trigger.fixed_seed == Blended().fixed_seed
    assert Disguised().counterfeits(4, rng) == []


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="alpha is 0"):
        Disguised(alpha=0.0)
    with pytest.raises(ValueError, match="trigger is sig; it is patch or blended"):
        Disguised("sig")
    with pytest.raises(UserError, match="larger than the 3x3 image"):
        Disguised().check(1, 3, 2)
