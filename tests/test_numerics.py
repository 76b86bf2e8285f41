"""torch's switches: as the settings say within, as before after it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedgan.models.base import ImageShape
from fedgan.numerics import numerics
from fedgan.precision import full_precision
from fedgan.server import Critic, Sampler
from fedgan.settings import Cluster


def switches():
    return (
        torch.get_num_threads(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_as_the_settings_say_and_back(monkeypatch, tf32, deterministic):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = switches()
    settings = Cluster(tf32=tf32, deterministic=deterministic, threads=2)
    with pytest.raises(ValueError, match="inside"), numerics(settings):  # noqa: PT012
        assert switches() == (2, tf32, tf32, deterministic, deterministic)
        raise ValueError("inside")
    assert switches() == before


def test_what_a_defence_compares_is_computed_without_tf32():
    """Of a difference of a hundredth, TF32 leaves a digit."""
    before = switches()
    with numerics(Cluster(tf32=True, threads=2)):
        with full_precision():
            assert switches()[1:3] == (False, False)
        assert switches()[1:3] == (True, True)
    assert switches() == before


def test_a_defence_runs_networks_without_tf32():
    seen = []

    class Spying(nn.Module):
        latent_dim = 2

        def forward(self, x, labels):
            seen.append(switches()[1:3])
            return x.flatten(1).sum(1)

    with numerics(Cluster(tf32=True, threads=2)):
        shape = ImageShape(1, 8, 2)
        Sampler(Spying(), shape, multi_label=False)(
            torch.zeros(0), torch.zeros(3, 2), torch.zeros(3)
        )
        Critic(Spying(), 0)(torch.zeros(0), torch.zeros(3, 1, 8, 8), torch.zeros(3))
    assert seen == [(False, False)] * 2


def test_deterministic_refuses_what_cannot_be_repeated(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with numerics(Cluster(deterministic=True, threads=1)):
        into, index = torch.zeros(4), torch.tensor([1, 1])
        with pytest.raises(RuntimeError, match="deterministic"):
            into.put_(index, torch.ones(2), accumulate=False)
