"""What the server runs the clients' networks on."""

from __future__ import annotations

import pytest
import torch

from fedgan.defenses._inspection import inspect
from fedgan.defenses.base import ServerMeans
from fedgan.reports import Report
from fedgan.updates import UpdateMatrix

PLACES = 64


class Asked:
    """A generator that keeps what it is asked for; each class adds a parameter to a pixel of its
    own, and having none adds one to the last pixel."""

    latent_dim, image, size = 4, (1, 8, 8), PLACES

    def __init__(self, classes, multi_label):
        self.classes, self.multi_label = classes, multi_label
        self.latents, self.labels = [], []

    def __call__(self, parameters, latents, labels):
        self.latents.append(latents)
        self.labels.append(labels)
        has = labels if self.multi_label else torch.eye(self.classes)[labels]
        images = torch.zeros(len(latents), PLACES)
        images[:, : self.classes] = has * parameters[: self.classes]
        images[:, -1] = parameters[-1] * (has.sum(1) == 0)
        return images.view(-1, *self.image)


def looked_at(sampler, update, losses=(1.0, 1.0), round=1, samples=40):
    rows = torch.stack([update, torch.zeros(PLACES)])
    reports = [Report(i, round, 10, loss, loss, loss, loss) for i, loss in enumerate(losses)]
    server = ServerMeans(round, torch.zeros(PLACES), 3, sampler)
    return inspect(UpdateMatrix.of(rows), reports, server, samples)


def test_labels_are_the_classes_in_turn():
    sampler = Asked(3, False)
    looked_at(sampler, torch.ones(PLACES))
    labels = torch.cat(sampler.labels)[:40]
    assert labels.tolist() == [i % 3 for i in range(40)]


def test_of_several_labels_there_are_images_with_one_with_two_and_with_none():
    sampler = Asked(3, True)
    update = torch.zeros(PLACES)
    update[-1] = 1.0  # shows where there is none, and nowhere else
    look = looked_at(sampler, update).looks[0]
    labels = torch.cat(sampler.labels)[:40]
    assert labels.dtype == torch.float32
    assert labels.shape == (40, 3)
    assert set(labels.sum(1).tolist()) == {0, 1, 2}
    assert (labels.sum(0) >= 10).all()
    shown = look.maps[0].flatten(1)[:, -1]  # of all, of each class, of those of none
    assert shown[1:].tolist() == pytest.approx([0, 0, 0, 1])
    assert shown[0].item() == pytest.approx(0.25)
    assert not look.maps[1].any()


def test_latents_are_told_by_the_round_and_by_what_nobody_knows_before():
    def latents(**how):
        sampler = Asked(3, False)
        looked_at(sampler, torch.ones(PLACES), **how)
        return sampler.latents[0]

    assert torch.equal(latents(), latents())
    assert not torch.equal(latents(), latents(round=2))
    # The seed is in the config: what another client reports is not.
    assert not torch.equal(latents(), latents(losses=(1.0, 1.0 + 1e-9)))
