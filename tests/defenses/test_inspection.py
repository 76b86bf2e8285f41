"""What the server runs the clients' networks on."""

from __future__ import annotations

import pytest
import torch

from fedgan.defenses._inspection import inspect
from fedgan.defenses.base import ServerMeans
from fedgan.evidence import describe
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


class Linear(Asked):
    """Its parameters are its images, all the same."""

    def __call__(self, parameters, latents, labels):
        return parameters.expand(len(latents), -1).view(-1, *self.image)


def looked_at(sampler, update, other=0.0, round=1, samples=40):
    rows = torch.stack([update, torch.full((PLACES,), other)])
    server = ServerMeans(round, torch.zeros(PLACES), 3, sampler)
    return inspect(UpdateMatrix.of(rows), server, samples, torch.ones(2))


def test_labels_are_the_classes_in_turn():
    sampler = Asked(3, False)
    looked_at(sampler, torch.ones(PLACES))
    labels = torch.cat(sampler.labels)[:40]
    assert labels.tolist() == [i % 3 for i in range(40)]


def test_no_class_goes_unseen_where_there_are_more_than_samples():
    sampler, seen = Asked(50, False), set()
    for round in range(1, 31):
        sampler.labels.clear()
        looked_at(sampler, torch.ones(PLACES), round=round, samples=16)
        labels = set(sampler.labels[0].tolist())
        assert len(labels) == 16
        seen |= labels
    assert seen == set(range(50))


def test_of_several_labels_there_are_images_with_one_with_two_and_with_none():
    sampler = Asked(3, True)
    update = torch.zeros(PLACES)
    update[-1] = 1.0  # shows where there is none, and nowhere else
    look = looked_at(sampler, update).views["generator"].told
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
    # The seed is in the config: what another client hands in is not, nor what it would itself.
    assert not torch.equal(latents(), latents(other=1e-30))


def average_of(sampler, rows, weights=None, trust=None):
    """What is seen of each one's part in the clients' mean: maps [n, pixels], and who is finite."""
    n = len(rows)
    server = ServerMeans(1, torch.zeros(PLACES), 3, sampler)
    trust = torch.ones(n) if trust is None else torch.tensor(trust)
    updates = UpdateMatrix.of(rows, None if weights is None else torch.tensor(weights).double())
    found = inspect(updates, server, 16, trust.double())
    view = found.views["generator in the average"]
    return view.told.maps[:, 0].flatten(1), found.finite


@pytest.mark.parametrize("weights", [[0.25] * 4, [0.7, 0.1, 0.1, 0.1], [0.01, 0.19, 0.4, 0.4]])
def test_of_linear_networks_a_part_in_the_average_is_the_distance_from_it(weights):
    """With any weights; of whoever is not trusted, the distance from the others' mean."""
    rows = 0.1 * torch.randn((4, PLACES), generator=torch.manual_seed(0))
    mean = torch.tensor(weights) @ rows
    found, _ = average_of(Linear(1, False), rows, weights)
    torch.testing.assert_close(found, rows - mean, atol=1e-4, rtol=1e-4)
    others = torch.tensor(weights[1:]) @ rows[1:] / sum(weights[1:])
    found, _ = average_of(Linear(1, False), rows, weights, [0.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(found, rows - others, atol=1e-4, rtol=1e-4)


def test_the_average_is_that_under_bounded_weights():
    """An update a thousand times as long leaves the others' parts in it what they are."""
    rows = 0.1 * torch.randn((5, PLACES), generator=torch.manual_seed(1))
    before, _ = average_of(Linear(1, False), rows)
    rows[4] *= 1000
    after, _ = average_of(Linear(1, False), rows)
    apart = (after - before)[:4]
    assert (apart - apart.mean(0)).abs().max() < 0.01 * before.abs().max()
    assert apart.abs().max() < 10 * before.abs().max()


class Breaking(Asked):
    """Gives nothing finite between the parameters that clients hand in, where only means are."""

    def __call__(self, parameters, latents, labels):
        image = parameters.expand(len(latents), -1).view(-1, *self.image)
        return image * (torch.nan if 0.05 < parameters[0] < 0.5 else 1)


def test_whoever_keeps_the_average_from_being_finite_is_not_finite():
    """Though its own networks are."""
    rows = 0.01 * torch.randn((4, PLACES), generator=torch.manual_seed(0))
    rows[2, 0] = 1.0
    told, finite = average_of(Breaking(1, False), rows)
    assert finite.tolist() == [True, True, False, True]
    assert not told.any()  # nothing can be compared with an average that is not finite
    # If it is not trusted, it would do so again, were it let in.
    told, finite = average_of(Breaking(1, False), rows, trust=[1.0, 1.0, 0.0, 1.0])
    assert finite.tolist() == [True, True, False, True]
    assert (told.abs().amax(1) > 0).tolist() == [True, True, False, True]
    # Two that each do: nobody can tell who of all.
    rows[1, 0] = 0.6
    _, finite = average_of(Breaking(1, False), rows)
    assert not finite.any()


class Threshold(Asked):
    """Its one odd pixel shows between a half and nine tenths of what a client hands in."""

    def __call__(self, parameters, latents, labels):
        shown = ((parameters[0] > 0.5) & (parameters[0] < 0.9)).float()
        return shown * torch.ones(len(latents), *self.image)


@pytest.mark.parametrize("share", [0.55, 0.7, 0.85])
def test_most_of_the_weight_is_taken_out_of_the_mean_as_well(share):
    rows = torch.zeros(4, PLACES)
    rows[0, 0], rows[1:, 1] = 1.0, 1.0
    told, _ = average_of(Threshold(1, False), rows, [share, *[(1 - share) / 3] * 3])
    left = (1 - share) / share  # over the step from the mean to that without it
    assert told[0].tolist() == pytest.approx([left] * PLACES, rel=1e-4)


class Gated(Asked):
    """Its discriminator asks for bright images where they are bright already."""

    def __call__(self, parameters, latents, labels):
        return parameters[0] * torch.ones(len(latents), *self.image)

    def critic(self, parameters, images, labels):
        return torch.rand(images.shape, generator=torch.manual_seed(0)) + (images > 0.1) * 9


def test_the_averaged_discriminator_is_asked_about_what_the_averaged_generator_draws():
    rows = torch.zeros(4, PLACES)
    rows[:, 0] = 0.2  # the mean's images are bright, those of the model before were not
    sampler = Gated(1, False)
    server = ServerMeans(1, torch.zeros(PLACES), 3, sampler, sampler.critic)
    found = inspect(UpdateMatrix.of(rows), server, 16, torch.ones(4).double())
    alone = found.views["critic"].told.maps
    average = found.views["critic in the average"].about.maps
    assert average.std() < 0.05 * average.mean()
    assert alone.std() > 0.1 * alone.mean()


def test_what_networks_do_is_looked_at_without_tf32(monkeypatch):
    """A small difference is divided by a small step: its three digits would be none."""
    seen = []

    def spy(images, groups, colour):
        seen.append((cuda.matmul.allow_tf32, cudnn.allow_tf32))
        return describe(images, groups, colour)

    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    monkeypatch.setattr("fedgan.defenses._inspection.describe", spy)
    monkeypatch.setattr(cudnn, "allow_tf32", True)
    looked_at(Linear(1, False), torch.ones(PLACES))
    assert len(seen) == 5
    assert set(seen) == {(False, False)}
    assert cudnn.allow_tf32


def test_textures_are_looked_at_in_another_colour_in_each_round():
    class Coloured(Linear):
        image, size = (3, 8, 8), 3 * PLACES

    pattern = torch.zeros(3, 8, 8)
    pattern[0, 2:5, 2:5] = 1.0  # in the first channel alone
    rows = torch.stack([pattern.flatten(), torch.zeros(3 * PLACES)])

    def textures(round):
        server = ServerMeans(round, torch.zeros(3 * PLACES), 3, Coloured(1, False))
        seen = inspect(UpdateMatrix.of(rows), server, 16, torch.ones(2))
        return seen.views["generator"].told.textures[0, 0].max()

    assert textures(1) == textures(1)
    assert len({float(textures(round)) for round in range(1, 6)}) == 5
