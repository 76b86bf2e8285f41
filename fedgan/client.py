"""ClientGAN: one client's generator, discriminator, optimisers and local step."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning import LightningModule
from lightning.fabric import Fabric
from torch import Tensor, nn

from fedgan.attacks.hiding import Hiding
from fedgan.data.augment import cutout, translate
from fedgan.images import to_float
from fedgan.models.base import AdversarialLoss, Generator
from fedgan.probe import Probe, as_it_is
from fedgan.settings import Training
from fedgan.vectors import flatten, unflatten

Batch = tuple[Tensor, Tensor]


class ClientGAN(LightningModule):
    """A conditional GAN that trains on one client's images and meets the others at the server only.

    Args:
        number: the client, from 0.
        generator: from latents [B, Z] and labels to images in [-1, 1].
        discriminator: from images and labels to logits [B].
        loss: the game the two play.
        training: learning rates and augmentation.
        share_discriminator: whether the discriminator travels with the generator.
        channels_last: memory format of networks and images.
    """

    def __init__(
        self,
        number: int,
        generator: Generator,
        discriminator: nn.Module,
        loss: AdversarialLoss,
        training: Training,
        *,
        share_discriminator: bool,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.number = number
        self.generator = generator
        self.discriminator = discriminator
        self.loss = loss
        self.training_settings = training
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.steps = 0
        self.shared: list[nn.Module] = [generator]
        """The networks that travel, the generator first."""
        if share_discriminator:
            self.shared.append(discriminator)
        self._rng = torch.Generator()
        self.hiding: Hiding | None = None
        """Of a client that is attacking, and hides it."""

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        settings = self.training_settings

        def adam(network: nn.Module, lr: float) -> torch.optim.Optimizer:
            return torch.optim.Adam(network.parameters(), lr, settings.betas, fused=True)

        return [
            adam(self.generator, settings.generator_lr),
            adam(self.discriminator, settings.discriminator_lr),
        ]

    def set_up(self, fabric: Fabric) -> None:
        """Moves the networks to the device and hands them and their optimisers to Fabric, once."""
        self.to(fabric.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        fabric.setup(self, *self.configure_optimizers())

    def train_round(
        self, parameters: Tensor, batches: Iterable[Batch], rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Starts from the global `parameters` [P], trains on `batches`, returns update and losses.

        The update [P] is local minus global; the losses [4] are d_loss and g_loss, means over the
        round, and those of the last mini-batch. Both stay on the device.
        """
        unflatten(parameters, *self.shared)
        self._rng = rng
        self.train()
        sums = torch.zeros(2, device=self.device)
        last = sums
        before = self.steps
        for batch in batches:
            last = self.training_step(batch, self.steps)
            sums = sums + last
            self.steps += 1
        update = flatten(*self.shared) - parameters
        means = sums / (self.steps - before)
        return update, torch.cat([means, last])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One discriminator step and one generator step on uint8 images [B, C, H, W].

        Returns d_loss and g_loss [2], detached and without the penalty, and does not wait for the
        device.
        """
        images, labels = batch
        real = to_float(images).contiguous(memory_format=self.memory_format)
        real = self._augment(real)
        every = self.loss.penalty_every(self.device)
        d_loss = self._discriminator_step(real, labels, every if batch_idx % every == 0 else 0)
        g_loss = self._generator_step(real, labels)
        return torch.stack([d_loss, g_loss]).float()

    def _discriminator_step(self, real: Tensor, labels: Tensor, penalty_weight: int) -> Tensor:
        _, optimizer = self._optimizers()
        with self._autocast():
            with torch.no_grad():
                fake = self._augment(self._generate(labels))
            logits = self.discriminator(torch.cat([real, fake]), torch.cat([labels, labels]))
            loss = total = self.loss.discriminator(*logits.float().chunk(2))
        if penalty_weight:
            # Outside autocast: squared gradients of bf16 have 3 digits.
            penalty = self.loss.penalty(self.discriminator, real, fake, labels, self._rng)
            total = loss if penalty is None else loss + penalty_weight * penalty
        if self.hiding is not None:
            hidden = self.hiding.of_discriminator(self.discriminator, self._latents(labels), labels)
            total = total if hidden is None else total + hidden
        optimizer.zero_grad()
        self.manual_backward(total)
        optimizer.step()
        return loss.detach()

    def _generator_step(self, real: Tensor, labels: Tensor) -> Tensor:
        optimizer, _ = self._optimizers()
        self.discriminator.requires_grad_(False)
        try:
            with self._autocast():
                latents = self._latents(labels)
                images: Tensor = self.generator(latents, labels).float()
                logits = self.discriminator(self._augment(images), labels).float()
                reference = logits
                if self.loss.uses_real_in_generator_step:
                    with torch.no_grad():
                        reference = self.discriminator(real, labels).float()
                loss = total = self.loss.generator(reference, logits)
            if self.hiding is not None:
                hidden = self.hiding.of_generator(self.generator, images, latents, labels)
                total = loss + hidden
            optimizer.zero_grad()
            self.manual_backward(total)
            optimizer.step()
        finally:  # memory runs out here as likely as anywhere
            self.discriminator.requires_grad_(True)
        return loss.detach()

    def _generate(self, labels: Tensor) -> Tensor:
        images: Tensor = self.generator(self._latents(labels), labels).float()
        return images

    def _latents(self, labels: Tensor) -> Tensor:
        size = (len(labels), self.generator.latent_dim)
        return torch.randn(size, generator=self._rng, device=labels.device)

    def _augment(self, images: Tensor) -> Tensor:
        """The same kinds of change for real and generated images, so that none leaks into G."""
        settings = self.training_settings
        if settings.translate:
            images = translate(images, settings.translate, self._rng)
        if settings.cutout:
            images = cutout(images, settings.cutout, self._rng)
        return images

    def _autocast(self) -> AbstractContextManager[None]:
        # Fabric applies its precision to a wrapped module's forward only, and this one is not
        # called through a wrapper.
        assert self.fabric is not None
        return self.fabric.autocast()

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        return optimizers  # type: ignore[return-value]

    def critic_bias(self, probe: Probe) -> Tensor:
        """What this client's discriminator, as it is now, makes of the trigger, in standard
        deviations (`Probe.bias`); in the precision of the local steps."""

        def critic(images: Tensor, labels: Tensor) -> Tensor:
            images = images.contiguous(memory_format=self.memory_format)
            with self._autocast():
                logits: Tensor = self.discriminator(images, labels)
            return logits.float()

        with as_it_is(self.discriminator):
            return probe.bias(critic)

    def set_lr(self, factor: float) -> None:
        """Learning rates of the local steps to come: `factor` times those of the settings."""
        settings = self.training_settings
        rates = (settings.generator_lr, settings.discriminator_lr)
        for optimizer, rate in zip(self._optimizers(), rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = factor * rate

    def reset_optimizers(self) -> None:
        """Forgets the optimisers' moments, as a client does that keeps none between rounds."""
        for optimizer in self._optimizers():
            optimizer.state.clear()

    def local_state(self) -> dict[str, Any]:
        """All that outlives a round on the client, on the CPU: for an exact resume."""
        return {
            "steps": self.steps,
            "networks": _to_cpu(self.state_dict()),
            "optimizers": [_to_cpu(optimizer.state_dict()) for optimizer in self._optimizers()],
        }

    def load_local_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.load_state_dict(state["networks"])
        for optimizer, saved in zip(self._optimizers(), state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def _to_cpu(thing: Any) -> Any:
    if isinstance(thing, Tensor):
        return thing.detach().cpu().clone()
    if isinstance(thing, dict):
        return {key: _to_cpu(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return type(thing)(_to_cpu(value) for value in thing)
    return thing
