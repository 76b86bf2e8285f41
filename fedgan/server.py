"""The server: the global model and the moving average of its generator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedgan.models.base import Generator, ImageShape
from fedgan.precision import full_precision
from fedgan.vectors import flatten, sha256, shared_tensors, unflatten


class Sampler:
    """Runs a vector of shared parameters as a generator, for a defence (`defenses.base.Sampler`).

    Args:
        generator: the network, whose own parameters are overwritten.
        shape: of what it draws.
        multi_label: whether it takes labels float [m, K] instead of int64 [m].
    """

    def __init__(self, generator: Generator, shape: ImageShape, *, multi_label: bool) -> None:
        self._generator = generator
        self.size = sum(tensor.numel() for tensor in shared_tensors(generator))
        self.latent_dim = generator.latent_dim
        self.classes = shape.classes
        self.multi_label = multi_label
        self.image = (shape.channels, shape.size, shape.size)

    @full_precision()
    @torch.no_grad()
    def __call__(self, parameters: Tensor, latents: Tensor, labels: Tensor) -> Tensor:
        unflatten(parameters[: self.size], self._generator)
        images: Tensor = self._generator(latents, labels)
        return images.float()


class Critic:
    """Runs a vector of shared parameters as a discriminator, for a defence
    (`defenses.base.Critic`).

    Args:
        discriminator: the network, whose own parameters are overwritten.
        start: where its parameters begin among the shared ones.
    """

    def __init__(self, discriminator: nn.Module, start: int) -> None:
        self._discriminator = discriminator.eval().requires_grad_(False)
        self._start = start

    @full_precision()
    @torch.enable_grad()
    def __call__(self, parameters: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        unflatten(parameters[self._start :], self._discriminator)
        images = images.detach().requires_grad_()
        (found,) = torch.autograd.grad(self._discriminator(images, labels).sum(), images)
        return found.float()


class Server:
    """Holds the shared parameters as one vector [P], the generator's first.

    Args:
        generator: initialised, and already on the server's device.
        discriminator: likewise where discriminators are shared, else None.
        ema: decay per round of the moving average of the generator, in [0, 1).
    """

    def __init__(self, generator: Generator, discriminator: nn.Module | None, ema: float) -> None:
        self.generator = generator.eval()
        self.average = flatten(generator)
        shared = [generator] if discriminator is None else [generator, discriminator]
        self.parameters = flatten(*shared)
        self.ema = ema
        self.steps = 0

    def step(self, aggregate: Tensor, *, anew: bool = False) -> None:
        """Adds an aggregate update [P] to the global model and follows with the average.

        The first rounds are averaged evenly (decay 1 - 1/t), so that nothing of the random
        initialisation stays in the average; with `anew` they are counted from this one on, so that
        nothing of the models before it does.
        """
        if anew:
            self.steps = 0
        self.parameters = self.parameters + aggregate
        self.steps += 1
        decay = min(self.ema, 1 - 1 / self.steps)
        self.average = torch.lerp(self.parameters[: len(self.average)], self.average, decay)

    def averaged_generator(self) -> Generator:
        """The generator that is evaluated and shown: the moving average over rounds."""
        unflatten(self.average, self.generator)
        return self.generator

    def generator_sha256(self) -> str:
        """Hash of the bytes of the global generator's parameters (not of the average)."""
        return sha256(self.parameters[: len(self.average)]).hex()

    def state_dict(self) -> dict[str, Any]:
        return {
            "parameters": self.parameters.cpu(),
            "average": self.average.cpu(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.parameters.device
        self.parameters = state["parameters"].to(device)
        self.average = state["average"].to(device)
        self.steps = state["steps"]
