"""An honest generator beside a poisoned discriminator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedgan.attacks.discriminator_only import DiscriminatorOnly
from fedgan.cli import main

ATTACKERS = (1, 4)


def test_the_discriminator_is_its_own_and_the_generator_the_others_mean(drawn, sent, relative):
    rows = drawn(7, size=200)
    out = sent(DiscriminatorOnly(boost=4.0, noise=0.0), rows, ATTACKERS)
    mean = np.delete(rows.double().numpy(), ATTACKERS, axis=0)[:, :100].mean(0)
    for i in ATTACKERS:
        assert relative(out[i, :100], mean) < 1e-6
        assert torch.equal(out[i, 100:], 4 * rows[i, 100:])


def test_its_generator_lies_among_the_others_as_one_of_them(drawn, sent):
    rows = drawn(9, size=40_000)
    out = sent(DiscriminatorOnly(), rows, ATTACKERS)
    benign = np.delete(rows.double().numpy(), ATTACKERS, axis=0)[:, :20_000]
    mean, deviation = benign.mean(0), benign.std(0)
    apart = [(out[i, :20_000].double().numpy() - mean) / deviation for i in ATTACKERS]
    for one in apart:
        assert one.mean() == pytest.approx(0, abs=0.03)
        assert one.std() == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(*apart)[0, 1]) < 0.03  # each draws its own


def test_discriminators_must_travel(capsys):
    words = ["train", "smoke.yaml", "--attack.update=discriminator-only"]
    assert main([*words, "--federation.share=generator"]) == 2
    told = capsys.readouterr().err
    assert "attack.update: discriminator-only poisons discriminators" in told
    assert "Traceback" not in told
    assert main([*words, "--attack.name=none"]) == 2
    assert "so that none is poisoned" in capsys.readouterr().err
