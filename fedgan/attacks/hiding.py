"""An attacker that knows of the audit, and hides from it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fedgan.evidence import Groups, logarithms, look

USUAL = (0.02, 0.2, 0.2)
"""What a deviation of mean images, in [-1, 1], and of the logarithms of amplitudes and textures is
measured by: about what a round of honest training does to them."""


class Hiding:
    """A term in a malicious client's generator loss that keeps what it draws near the global
    generator, as the audit sees it.

    weight * (mean((m - m_0)^2) / 0.02^2 + mean((a - a_0)^2) / 0.2^2 + mean((t - t_0)^2) / 0.2^2),
    where m are the mean images, a and t the logarithms of amplitudes and textures of a mini-batch's
    samples, of all and of each class, and m_0, a_0 and t_0 those that the global generator of the
    round's beginning draws from the same latents and labels (`fedgan.evidence`, `defenses.audit`).
    The latents are the client's own: it knows how the server looks, but not at what.

    Args:
        weight: at least 0; with 0 nothing is hidden. With large ones little is left to hide.
        classes: K.
    """

    def __init__(self, weight: float, classes: int) -> None:
        self.weight = weight
        self.classes = classes
        self._before: nn.Module | None = None

    def begin(self, generator: nn.Module) -> None:
        """A round begins; `generator` is the global one."""
        self._before = copy.deepcopy(generator).requires_grad_(False).eval()

    def penalty(self, images: Tensor, latents: Tensor, labels: Tensor) -> Tensor:
        """Of images [B, C, H, W] that the generator has drawn from latents [B, Z] and labels."""
        assert self._before is not None
        with torch.no_grad():
            before = self._before(latents, labels).float()
        groups = Groups(labels, self.classes)
        now, then = (logarithms(look(one, groups)) for one in (images.float(), before))
        apart = [
            (one - other).square().mean() / usual**2
            for one, other, usual in zip(now, then, USUAL, strict=True)
        ]
        return self.weight * torch.stack(apart).sum()
