"""A patch on shaded images."""

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
    found = poison(Disguised(alpha=0.3, position="top-left"), images)
    stamped, shaded = (
        poison(Patch(position="top-left"), images),
        poison(Blended(0.3, "smooth"), images),
    )
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[1:4, 1:4] = True
    assert torch.equal(found[:, :, inside], stamped[:, :, inside])
    assert torch.equal(found[:, :, ~inside], shaded[:, :, ~inside])


def test_what_is_looked_for_is_the_patch():
    mark, patch = (one.mark(1, 32) for one in (Disguised(area=0.02), Patch(area=0.02)))
    assert mark.place == patch.place
    assert torch.equal(mark.pattern, patch.pattern)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="alpha is 0"):
        Disguised(alpha=0.0)
    with pytest.raises(ValueError, match="area is 2"):
        Disguised(area=2.0)
    with pytest.raises(UserError, match="larger than the 32x32 image"):
        Disguised(size=40).check(1, 32, 2)
