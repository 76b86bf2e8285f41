"""The attacker that keeps what it draws near what an honest generator would."""

from __future__ import annotations

from itertools import tee

import numpy as np
import pytest
import torch
from torch import nn

from fedgan.attacks.hiding import USUAL, USUAL_ASKED, Hiding
from fedgan.cli import main
from fedgan.evidence import AMPLITUDE_FLOOR, FLOOR, bands, textures
from fedgan.local import LocalClient
from fedgan.vectors import flatten


class Linear(nn.Module):
    """Draws the same noise whatever it learns, and an image of its own on top."""

    def __init__(self):
        super().__init__()
        self.added = nn.Parameter(torch.zeros(1, 8, 8))

    def forward(self, latents, labels):
        return 0.3 * latents.view(-1, 1, 8, 8) + self.added


def drawn(generator, labels):
    latents = torch.randn((len(labels), 64), generator=torch.Generator().manual_seed(0))
    return generator, generator(latents, labels), latents, labels


def logs_of(images):
    """Logarithms of amplitudes and of textures, by the definition."""
    return (
        np.log(bands(images).square().mean((0, 2)).detach() + AMPLITUDE_FLOOR**2) / 2,
        np.log(textures(images, torch.ones(1)).mean(0).detach() + FLOOR),
    )


def test_it_is_0_where_nothing_has_changed_and_the_definition_where_something_has():
    generator, hiding = Linear(), Hiding(3.0, 2, 0.25)
    hiding.begin(generator)
    labels = torch.tensor([0, 1, 1, 0, 1])
    assert hiding.of_generator(*drawn(generator, labels)).item() == 0
    before = drawn(generator, labels)[1].detach()
    with torch.no_grad():
        generator.added[0, 2, 3] = 0.5
    images = drawn(generator, labels)[1].detach()
    averaged = before.clone()  # of four networks of which one draws 0.5 more
    averaged[:, 0, 2, 3] += 0.5 / 4
    expected = 0
    for step, found in ((1, images), (0.25, averaged)):
        maps = 0.5**2 / 64 / USUAL[0] ** 2  # the same in every group
        logs = []
        for group in (slice(None), labels == 0, labels == 1):
            pairs = zip(logs_of(found[group]), logs_of(before[group]), USUAL[1:], strict=True)
            logs.append(
                sum(
                    (one - other).square().mean().item() / (usual * step) ** 2
                    for one, other, usual in pairs
                )
            )
        expected += 3 * (maps + sum(logs) / 3)
    term = hiding.of_generator(*drawn(generator, labels))
    assert term.item() == pytest.approx(expected, rel=1e-4)


class Asking(nn.Module):
    """Asks for the same of every image, and for more of it where there is more."""

    def __init__(self):
        super().__init__()
        self.wanted = nn.Parameter(torch.linspace(-1, 2, 64).view(1, 8, 8))
        self.dropout = nn.Dropout(0.5)

    def forward(self, images, labels):
        return (self.dropout(self.wanted) * (images + images**2)).flatten(1).sum(1)


def test_what_a_discriminator_asks_for_is_hidden_likewise():
    generator, critic, hiding = Linear(), Asking(), Hiding(3.0, 1, 0.25)
    critic.train()
    hiding.begin(generator, critic)
    _, images, latents, labels = drawn(generator, torch.zeros(5, dtype=torch.long))
    assert hiding.of_discriminator(critic, latents, labels).item() == 0  # dropout is off
    before = critic.wanted.detach().clone()
    with torch.no_grad():
        critic.wanted[0, 2, 3] += 4
    now = critic.wanted.detach()
    asked = [wanted * (1 + 2 * images.detach()) for wanted in (now, before.lerp(now, 0.25), before)]
    found = [one / one.square().mean().sqrt() for one in asked]
    *told, honest = [(one.mean(0), *logs_of(one)) for one in found]
    expected = 3 * sum(
        (one - other).square().mean().item() / (usual * step) ** 2
        for seen, step in zip(told, (1, 0.25), strict=True)
        for one, other, usual in zip(seen, honest, USUAL_ASKED, strict=True)
    )
    term = hiding.of_discriminator(critic, latents, labels)
    assert term.item() == pytest.approx(expected, rel=1e-4)
    term.backward()
    assert critic.wanted.grad[0, 2, 3] > 0
    assert critic.wanted.grad.abs().argmax() == 2 * 8 + 3
    assert critic.training  # and so left as it was


class OnlyInTheMean(nn.Module):
    """Draws a patch while its parameter is about a fifth, and nothing of it beyond."""

    def __init__(self):
        super().__init__()
        self.added = nn.Parameter(torch.zeros(()))

    def forward(self, latents, labels):
        patch = torch.zeros(1, 8, 8)
        patch[0, 2, 3] = 1
        return 0.3 * latents.view(-1, 1, 8, 8) + self.added * (1 - self.added).relu() * patch


def test_what_shows_in_the_mean_alone_is_hidden_too():
    generator, hiding = OnlyInTheMean(), Hiding(1.0, 2, 0.2)
    hiding.begin(generator)
    with torch.no_grad():
        generator.added += 1
    term = hiding.of_generator(*drawn(generator, torch.tensor([0, 1, 0, 1])))
    assert term.item() > 1
    _, alone, latents, _ = drawn(generator, torch.zeros(4))
    assert torch.equal(alone, 0.3 * latents.view(-1, 1, 8, 8))  # it draws what an honest one does


def test_a_discriminator_that_stays_at_home_has_nothing_to_hide():
    generator, hiding = Linear(), Hiding(1.0, 2, 0.25)
    hiding.begin(generator)
    *_, latents, labels = drawn(generator, torch.tensor([0, 1]))
    assert hiding.of_discriminator(Asking(), latents, labels) is None


def test_its_gradient_leads_back_to_the_honest_generator():
    generator, hiding = Linear(), Hiding(1.0, 2, 0.25)
    hiding.begin(generator)
    with torch.no_grad():
        generator.added[0, 2, 3] = 0.5
    hiding.of_generator(*drawn(generator, torch.tensor([0, 1, 0, 1]))).backward()
    assert generator.added.grad[0, 2, 3] > 0
    assert generator.added.grad.abs().argmax() == 2 * 8 + 3


def test_labels_may_be_several():
    generator, hiding = Linear(), Hiding(1.0, 3, 0.25)
    hiding.begin(generator)
    several = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 1]])
    assert hiding.of_generator(*drawn(generator, several)).item() == 0


class Coloured(nn.Module):
    def forward(self, latents, labels):
        return 0.3 * latents[:, :1, None, None].expand(-1, 3, 8, 8)


def test_an_image_may_have_more_colours_than_a_generator_has_latents():
    hiding = Hiding(1.0, 2, 0.25)
    hiding.begin(Coloured())
    latents, labels = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    images = Coloured()(latents, labels)
    assert hiding.of_generator(Coloured(), images, latents, labels).item() == 0
    assert hiding.of_generator(Coloured(), images + 1, latents, labels).item() > 0


def test_only_the_attackers_hide_and_only_while_they_attack(tmp_path, monkeypatch):
    seen, trained = [], []
    begin, train = Hiding.begin, LocalClient.train

    def spy(self, *networks):
        seen.append((self.weight, self.share, flatten(*networks)))
        begin(self, *networks)

    def spy_too(self, parameters, batches, rng, update, **how):
        hiding = self.gan.hiding is not None
        images, batches = tee(batches)
        report = train(self, parameters, batches, rng, update, **how)
        if self.hiding is not None:
            pixels = torch.cat([batch[0] for batch in images])
            trained.append((hiding, pixels, parameters + update))
        return report

    monkeypatch.setattr(Hiding, "begin", spy)
    monkeypatch.setattr(LocalClient, "train", spy_too)
    monkeypatch.chdir(tmp_path)
    small = ["--federation.local_steps=1", "--data.init_args.train=200", "--evaluate.every=0"]
    small += ["--cluster.threads=1"]
    words = ["train", "smoke.yaml", "--run_dir=run", "--federation.rounds=3", *small]
    words += ["--evaluate.measures=[fidelity]", "--attack.from_round=2", "--attack.hide=2.5"]
    assert main(words) == 0
    assert [one[:2] for one in seen] == [(2.5, 0.25)] * 2
    assert [hiding for hiding, _, _ in trained] == [False, False, True, False, True]
    # First as an honest client, of which both networks are what it hides behind; then, from the
    # same model and with the same images, with the trigger.
    for (*_, anchor), honest, malicious in zip(seen, trained[1::2], trained[2::2], strict=True):
        torch.testing.assert_close(anchor, honest[2])
        assert not torch.equal(honest[2], malicious[2])
        changed = (honest[1] != malicious[1]).flatten(1)
        assert 0 < changed.float().mean() < 0.05


def test_there_must_be_something_to_hide(capsys):
    assert main(["train", "smoke.yaml", "--attack.name=none", "--attack.hide=1"]) == 2
    assert "attack.hide: attack.name is none" in capsys.readouterr().err
