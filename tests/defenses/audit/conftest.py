"""What tests of the audit share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fedgan.defenses._suspicion import Evidence, Standing
from fedgan.defenses.base import ServerMeans
from fedgan.evidence import Look
from fedgan.reports import Report
from fedgan.updates import UpdateMatrix

SIZE, CLASSES = 16, 3
SHAPE = (CLASSES, SIZE, SIZE)
PIXELS = SIZE * SIZE
ONE_NETWORK, TWO_NETWORKS = CLASSES * PIXELS, (CLASSES + 1) * PIXELS


class Painter:
    """A generator whose parameters are the image that it adds to a noisy blob, class by class."""

    latent_dim, classes, multi_label, image = 4, CLASSES, False, (1, SIZE, SIZE)
    size = ONE_NETWORK

    def __call__(self, parameters, latents, labels):
        y, x = torch.meshgrid(*[torch.linspace(-1, 1, SIZE)] * 2, indexing="ij")
        blob = torch.exp(-2 * (x**2 + y**2))
        offset = parameters[:ONE_NETWORK].view(SHAPE)[labels]
        texture = 0.1 * torch.sin(20 * latents[:, :1, None] * x + 10 * latents[:, 1:2, None])
        return (blob - 0.5 + 0.2 * latents[:, 2, None, None] + texture + offset).clamp(-1, 1)[
            :, None
        ]


def honest(n):
    return [Report(i, 1, 10, 1.0, 1.0, 1.0, 1.0) for i in range(n)]


def play(
    audit, plant, n=5, rounds=8, chance=0.01, seed=0, weights=None, move=True, start=1, sampler=None
):
    """Rounds of clients whose updates are chance, most of it coarse, and what `plant(round,
    client)` adds to images [K, H, W]; the verdicts, and the global parameters at the end."""
    rng = torch.Generator().manual_seed(seed)
    parameters = torch.zeros(ONE_NETWORK)
    verdicts = []
    for round in range(start, start + rounds):
        rows = chance * torch.randn((n, ONE_NETWORK), generator=rng)
        rows += 3 * chance * coarse(n, rng).flatten(1)
        for client in range(n):
            rows[client] += torch.as_tensor(plant(round, client)).expand(SHAPE).flatten()
        updates = UpdateMatrix.of(rows, weights)
        verdict = audit(updates, honest(n), ServerMeans(round, parameters, 3, sampler or Painter()))
        if move:
            parameters = parameters + verdict.joined(updates)
        verdicts.append(verdict)
    return verdicts, parameters


def coarse(n, rng):
    """Random images [n, K, H, W] without detail."""
    small = torch.randn((n, CLASSES, 4, 4), generator=rng)
    return torch.nn.functional.interpolate(small, (SIZE, SIZE), mode="bicubic")


def corner(strength):
    image = torch.zeros(SIZE, SIZE)
    image[-4:-1, -4:-1] = strength * torch.tensor([[1, -1, 1], [-1, 1, -1], [1, -1, 1.0]])
    return image


def nothing(round, client):
    return torch.zeros(SIZE, SIZE)


def patch_by(*clients, start=1, stop=10**6, strength=0.1):
    def plant(round, client):
        active = client in clients and start <= round < stop
        return corner(strength) if active else torch.zeros(SIZE, SIZE)

    return plant


def flags(verdicts):
    return torch.stack([verdict.flagged for verdict in verdicts])


def weights(verdicts):
    return torch.stack([verdict.weights for verdict in verdicts])


def standing(**what):
    """Of a client that has been accused for long, and of which nothing else is known."""
    parts = [
        torch.zeros(CLASSES + 1, 1, SIZE, SIZE),
        torch.zeros(CLASSES + 1, 2, SIZE, SIZE),
        torch.zeros(CLASSES + 1, 138),
    ]
    views = ["generator", "generator in the average"]
    evidence = {view: Evidence.none(Look(*parts)) for view in views}
    return Standing(evidence, **{"rounds": 9, "alarms": 5, "since": 1, **what})


def drawn(*clients):
    """Updates of some clients of a federation, as they are drawn in a round."""
    rows = 0.01 * torch.randn((len(clients), ONE_NETWORK), generator=torch.manual_seed(0))
    n = len(clients)
    shares = torch.full((n,), 1 / n, dtype=torch.float64)
    return UpdateMatrix(rows, clients, (0,) * n, shares), [
        Report(client, 1, 10, 1.0, 1.0, 1.0, 1.0) for client in clients
    ]


class Asking(Painter):
    """Its discriminator's parameters, the last ones, are what it asks of all images."""

    def critic(self, parameters, images, labels):
        return 0.5 - images + parameters[self.size :].view(1, 1, SIZE, SIZE)


@pytest.fixture(scope="session")
def toy() -> SimpleNamespace:
    """Generators whose whole doing is known: a base image, chance, and what is planted."""
    return SimpleNamespace(
        Painter=Painter,
        honest=honest,
        play=play,
        coarse=coarse,
        corner=corner,
        nothing=nothing,
        patch_by=patch_by,
        flags=flags,
        weights=weights,
        standing=standing,
        drawn=drawn,
        Asking=Asking,
        SIZE=SIZE,
        CLASSES=CLASSES,
        SHAPE=SHAPE,
        ONE_NETWORK=ONE_NETWORK,
        TWO_NETWORKS=TWO_NETWORKS,
    )
