"""An attacker that knows of the audit, and hides from it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedgan.evidence import Groups, a_colour, logarithms, look, of_unit_strength

USUAL = (0.02, 0.2, 0.2)
"""What a deviation of mean images, in [-1, 1], and of the logarithms of amplitudes and textures is
measured by: about what a round of honest training does to them."""
USUAL_ASKED = (0.15, 0.1, 0.025)
"""The same of what discriminators ask for, in units of its root mean square."""


class Hiding:
    """Terms in a malicious client's losses that keep what its generator draws, and what its
    discriminator asks of that, near what honest training would have come to, as the audit sees it.
    The client trains twice: on its images as they are, which tells that, and then with its trigger.

    Of its generator, weight * d(G) + weight * d(G_s) / s^2, where d(G) = mean((m - m_0)^2) / 0.02^2
    + mean((a - a_0)^2) / 0.2^2 + mean((t - t_0)^2) / 0.2^2; m are the mean images, a and t the
    logarithms of amplitudes and textures of a mini-batch's samples, of all and of each class, and
    m_0, a_0 and t_0 those that its honest generator G_0 draws from the same latents and labels
    (`fedgan.evidence`, `defenses.audit`). G_s has the parameters (1 - s) G_0 + s G: the mean of all
    clients, if the others came to what honest training comes to here. Of its discriminator the
    same with 0.15, 0.1 and 0.025, of the gradients of logits at what G_0 draws, against its honest
    discriminator's. The latents are the client's own: it knows how the server looks, but not at
    what.

    Args:
        weight: at least 0; with 0 nothing is hidden. With large ones little is left to hide.
        classes: K.
        share: s, the client's part in the mean, in (0, 1].
    """

    def __init__(self, weight: float, classes: int, share: float) -> None:
        self.weight = weight
        self.classes = classes
        self.share = share
        self._generator: nn.Module | None = None
        self._discriminator: nn.Module | None = None

    def begin(self, generator: nn.Module, discriminator: nn.Module | None = None) -> None:
        """These are what honest training of this round has come to; without a discriminator where
        it is not shared, and has nothing to hide."""
        self._generator = _frozen(generator)
        self._discriminator = None if discriminator is None else _frozen(discriminator)

    def of_generator(
        self, generator: nn.Module, images: Tensor, latents: Tensor, labels: Tensor
    ) -> Tensor:
        """The term of the generator as it is now, which has drawn images [B, C, H, W] from latents
        [B, Z]."""
        assert self._generator is not None
        with torch.no_grad():
            before = self._generator(latents, labels).float()
        mean = self._in_the_mean(self._generator, generator)
        averaged = functional_call(self._generator, mean, (latents, labels)).float()
        return self._apart((images.float(), averaged, before), latents, labels, USUAL)

    def of_discriminator(
        self, discriminator: nn.Module, latents: Tensor, labels: Tensor
    ) -> Tensor | None:
        """The term of the discriminator as it is now; None where it is not shared."""
        if self._discriminator is None:
            return None
        assert self._generator is not None
        with torch.no_grad():
            drawn = self._generator(latents, labels).float()
        # In the frozen copy, and so in eval mode, as the server runs it.
        mean = self._in_the_mean(self._discriminator, discriminator)
        states: tuple[dict[str, Tensor], ...] = (_tensors(discriminator), mean, {})
        now, averaged, before = (self._asked(state, drawn, labels) for state in states)
        return self._apart((now, averaged, before), latents, labels, USUAL_ASKED)

    def _in_the_mean(self, honest: nn.Module, own: nn.Module) -> dict[str, Tensor]:
        """The tensors of a network of which `own` is a part."""
        before, now = _tensors(honest), _tensors(own)
        return {
            name: torch.lerp(one, now[name], self.share) if one.is_floating_point() else one
            for name, one in before.items()
        }

    def _asked(self, state: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        assert self._discriminator is not None
        images = images.detach().requires_grad_()
        logits = functional_call(self._discriminator, state, (images, labels)).float()
        (found,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        return of_unit_strength(found)

    def _apart(
        self,
        images: tuple[Tensor, Tensor, Tensor],
        latents: Tensor,
        labels: Tensor,
        usual: tuple[float, ...],
    ) -> Tensor:
        """Of what the networks now, the mean's, and the honest ones do."""
        groups = Groups(labels, self.classes)
        colour = a_colour(latents.flatten()[: images[0].shape[1]])
        *seen, honest = (logarithms(look(one, groups, colour)) for one in images)
        parts = [
            (one - other).square().mean() / (size * step) ** 2
            for found, step in zip(seen, (1, self.share), strict=True)
            for one, other, size in zip(found, honest, usual, strict=True)
        ]
        return self.weight * torch.stack(parts).sum()


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _frozen(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).requires_grad_(False).eval()
