"""Losses against formulas written again in numpy; penalties against gradients known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedgan.models.losses import BCE, WGANGP, Hinge, Relativistic, squared_gradient

LOSSES = {"relativistic": Relativistic, "bce": BCE, "hinge": Hinge, "wgan-gp": WGANGP}


def log1pexp(x):
    return np.logaddexp(0, x)


FORMULAS = {  # (discriminator, generator) of real logits r and generated ones f
    "relativistic": (lambda r, f: log1pexp(f - r).mean(), lambda r, f: log1pexp(r - f).mean()),
    "bce": (
        lambda r, f: -np.log(1 / (1 + np.exp(-r))).mean() - np.log(1 - 1 / (1 + np.exp(-f))).mean(),
        lambda r, f: -np.log(1 / (1 + np.exp(-f))).mean(),
    ),
    "hinge": (
        lambda r, f: np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean(),
        lambda r, f: -f.mean(),
    ),
    "wgan-gp": (lambda r, f: f.mean() - r.mean(), lambda r, f: -f.mean()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_their_formulas(name):
    rng = np.random.default_rng(3)
    real, fake = rng.normal(0, 3, 50), rng.normal(0, 3, 50)
    loss, (for_d, for_g) = LOSSES[name](), FORMULAS[name]
    assert loss.name == name
    r, f = torch.from_numpy(real), torch.from_numpy(fake)
    assert loss.discriminator(r, f).item() == pytest.approx(for_d(real, fake))
    assert loss.generator(r, f).item() == pytest.approx(for_g(real, fake))


@pytest.mark.parametrize("name", LOSSES)
def test_a_critic_that_is_right_loses_less(name):
    loss, high, low = LOSSES[name](), torch.full((4,), 0.5), torch.full((4,), -0.5)
    assert loss.discriminator(high, low) < loss.discriminator(low, high)
    assert loss.generator(low, high) < loss.generator(low, low)


def test_only_the_relativistic_generator_looks_at_real_images():
    r, f = torch.randn(5), torch.randn(5)
    for loss in (cls() for cls in LOSSES.values()):
        depends = not torch.equal(loss.generator(r, f), loss.generator(r + 1, f))
        assert depends == loss.uses_real_in_generator_step


# A linear critic D(x) = w.x has the gradient w everywhere; a quadratic one, a |x|^2 / 2, has a x.
W = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(5))


def linear(images, labels):
    return (images * W).flatten(1).sum(1)


def quadratic(images, labels):
    return labels * images.square().flatten(1).sum(1) / 2


def images(n=6, seed=0):
    return torch.randn(n, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def test_squared_gradient_of_known_critics():
    x, a = images(), torch.arange(6.0)
    assert squared_gradient(linear, x, a) == pytest.approx(W.square().sum().expand(6))
    expected = a.square() * x.square().flatten(1).sum(1)
    assert torch.allclose(squared_gradient(quadratic, x, a), expected)


@pytest.mark.parametrize("cls", [Relativistic, BCE, Hinge])
def test_r1_and_r2(cls):
    real, fake, a = images(seed=1), images(seed=2), torch.linspace(0.5, 2, 6)
    penalty = cls(gamma=0.3).penalty(quadratic, real, fake, a, torch.Generator())
    r1, r2 = (float((a.square() * x.square().flatten(1).sum(1)).mean()) for x in (real, fake))
    assert penalty.item() == pytest.approx(0.3 / 2 * (r1 + r2), rel=1e-5)


def test_no_gamma_no_penalty():
    assert Relativistic(gamma=0).penalty(linear, images(), images(), W, torch.Generator()) is None
    assert BCE().gamma == Hinge().gamma == 0  # as in their papers
    assert Relativistic().gamma > 0


def test_gradient_penalty_of_a_linear_critic():
    norm = float(W.norm())
    found = WGANGP(weight=10.0).penalty(linear, images(), images(), None, torch.Generator())
    assert found.item() == pytest.approx(10 * (norm - 1) ** 2, rel=1e-5)
    unit = lambda x, labels: linear(x, labels) / norm  # noqa: E731
    assert WGANGP().penalty(unit, images(), images(), None, torch.Generator()).item() < 1e-8


def test_gradient_penalty_looks_between_real_and_generated_images():
    seen = []

    def critic(x, labels):
        seen.append(x.detach())
        return linear(x, labels)

    real, fake = torch.zeros(200, 2, 3, 3), torch.ones(200, 2, 3, 3)
    WGANGP().penalty(critic, real, fake, None, torch.Generator().manual_seed(0))
    share = seen[0].flatten(1)
    assert torch.equal(share.min(1).values, share.max(1).values)  # one point an image
    assert share.min() >= 0
    assert share.max() <= 1
    assert share[:, 0].mean().item() == pytest.approx(0.5, abs=0.1)
    assert share[:, 0].std().item() == pytest.approx(12**-0.5, abs=0.05)


@pytest.mark.parametrize("loss", [Relativistic(), WGANGP()])
def test_a_penalty_moves_the_critic_and_not_the_images(loss):
    scale = torch.tensor(2.0, requires_grad=True)
    real, fake = images(seed=1), images(seed=2)
    critic = lambda x, labels: scale * linear(x, labels)  # noqa: E731
    loss.penalty(critic, real, fake, torch.zeros(6), torch.Generator()).backward()
    assert scale.grad is not None
    assert scale.grad > 0
    assert not real.requires_grad


def test_laziness_depends_on_the_device_unless_told():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert (Relativistic().penalty_every(cpu), Relativistic().penalty_every(cuda)) == (4, 1)
    assert (WGANGP(every=2).penalty_every(cpu), WGANGP(every=2).penalty_every(cuda)) == (2, 2)


@pytest.mark.parametrize(
    ("cls", "init_args"),
    [(Relativistic, {"gamma": -1}), (WGANGP, {"weight": -1}), (BCE, {"every": 0})],
)
def test_values_out_of_range(cls, init_args):
    (name,) = init_args
    with pytest.raises(ValueError, match=name):
        cls(**init_args)
