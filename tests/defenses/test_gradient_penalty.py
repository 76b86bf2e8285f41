"""The server asks for gradient penalties; the clients' loss has them, and config.yaml says so."""

from __future__ import annotations

import logging

import pytest
import torch
import yaml

from fedgan import config
from fedgan.defenses.base import ServerMeans
from fedgan.defenses.chain import Chain, PerNetwork
from fedgan.defenses.clipping import Clip
from fedgan.defenses.gradient_penalty import GradientPenalty
from fedgan.errors import UserError
from fedgan.experiment import resume, run
from fedgan.models.base import AdversarialLoss
from fedgan.plan import make_plan
from fedgan.updates import UpdateMatrix

BCE = {"loss.name": "bce", "federation.rounds": 2}
ASKED = {"defense.name": "gradient-penalty"}


class Squares(AdversarialLoss):
    """A user's own loss, without a penalty."""

    def discriminator(self, real, fake):
        return (real - 1).square().mean() + fake.square().mean()

    def generator(self, real, fake):
        return (fake - 1).square().mean()


class Smooth(Squares):
    """One with a penalty of which fedgan knows nothing."""

    def penalty(self, critic, real, fake, labels, rng):
        return critic(real, labels).square().mean()


@pytest.fixture
def planned(tiny):
    """The plan and its settings for some changes of the tiny experiment."""

    def make(changes):
        settings = config.from_dict(tiny(changes))
        return make_plan(settings), settings

    return make


@pytest.mark.parametrize(
    ("loss", "init_args", "argument", "weight"),
    [
        ("bce", {}, "gamma", 0.05),
        ("hinge", {}, "gamma", 0.05),
        ("relativistic", {"gamma": 0.0}, "gamma", 0.05),
        ("wgan-gp", {"weight": 0.0}, "weight", 10.0),
        ("relativistic", {}, "gamma", 0.05),
        ("wgan-gp", {}, "weight", 10.0),
    ],
)
def test_what_each_loss_is_given(planned, caplog, loss, init_args, argument, weight):
    changes = {"loss.name": loss, "loss.init_args": init_args, **ASKED}
    with caplog.at_level(logging.WARNING):
        plan, settings = planned(changes)
    assert getattr(plan.loss, argument) == weight
    assert settings.loss.init_args[argument] == weight
    assert not caplog.messages


def test_without_it_a_loss_stays_as_it_is(planned):
    plan, settings = planned({"loss.name": "bce"})
    assert plan.loss.gamma == settings.loss.init_args["gamma"] == 0


def test_a_penalty_that_is_there_stays(planned, caplog):
    changes = {"loss.name": "bce", "loss.init_args": {"gamma": 0.3}, **ASKED}
    with caplog.at_level(logging.WARNING):
        plan, settings = planned(changes)
    assert plan.loss.gamma == settings.loss.init_args["gamma"] == 0.3
    assert caplog.messages == [
        "the loss bce keeps its own gradient penalty: gamma is 0.3, the defence asks for 0.05"
    ]


@pytest.mark.parametrize(
    "defense",
    [
        {"defense.rules": ["gradient-penalty", "mean"]},
        {"defense.rules": ["clip", "gradient-penalty"], "defense.per_network": True},
    ],
)
def test_beside_any_rule(planned, defense):
    plan, settings = planned({"loss.name": "bce", **defense})
    assert plan.loss.gamma == 0.05
    asked = [one for one in settings.defense.rules if one["name"] == "gradient-penalty"]
    assert asked[0]["init_args"] == {"gamma": 0.05, "weight": 10.0}


def test_a_gamma_of_ones_own(planned):
    plan, _ = planned({"loss.name": "bce", **ASKED, "defense.init_args": {"gamma": 2.0}})
    assert plan.loss.gamma == 2.0


def test_a_loss_of_ones_own(planned, caplog, monkeypatch):
    monkeypatch.setattr("fedgan.choices.find", _finding(Squares))
    with pytest.raises(UserError, match="the loss bce has no gradient penalty to switch on"):
        planned({"loss.name": "bce", **ASKED})
    monkeypatch.setattr("fedgan.choices.find", _finding(Smooth))
    with caplog.at_level(logging.WARNING):
        planned({"loss.name": "bce", **ASKED})
    assert caplog.messages == ["the loss bce keeps its own gradient penalty"]


def _finding(loss):
    from fedgan.components import find

    return lambda key, *others: loss if key == "loss" else find(key, *others)


def test_updates_stay_as_they_are():
    updates = UpdateMatrix.of(torch.randn(3, 4))
    stage = GradientPenalty()
    assert stage(updates, [], ServerMeans(1, torch.zeros(4))) is updates
    expected = updates.weighted_mean(updates.weights)
    verdict = Chain([stage])(updates, [], ServerMeans(1, torch.zeros(4)))
    assert torch.equal(verdict.joined(updates), expected)
    assert not verdict.acted


def test_the_whole_defence_says_what_one_stage_asks_for():
    asked = {"gamma": 0.1, "weight": 10.0}
    chain = Chain([Clip(), GradientPenalty(0.1)])
    assert chain.penalties() == PerNetwork([chain, chain], [1, 1]).penalties() == asked
    assert Chain([Clip()]).penalties() == {}


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A run with the preset: its folder and summary, and that of one whose loss says the same."""
    folder = tmp_path_factory.mktemp("penalty")
    asked = run(tiny({**BCE, **ASKED, "run_dir": str(folder / "asked"), "checkpoint.keep": 9}))
    same = {**BCE, "loss.init_args": {"gamma": 0.05}, "run_dir": str(folder / "same")}
    return folder / "asked", asked, run(tiny(same))


def test_clients_train_with_it_and_config_yaml_says_so(trained):
    folder, asked, same = trained
    assert asked["generator_sha256"] == same["generator_sha256"]
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["loss"]["init_args"]["gamma"] == 0.05
    assert written["defense"]["init_args"] == {"gamma": 0.05, "weight": 10.0}


def test_a_run_with_it_can_be_resumed(trained, caplog):
    folder, asked, _ = trained
    with caplog.at_level(logging.WARNING):
        again = resume(folder, checkpoint=folder / "checkpoints" / "round_0001")
    assert again["generator_sha256"] == asked["generator_sha256"]
    assert not [line for line in caplog.messages if "penalty" in line]


@pytest.mark.parametrize("init_args", [{"gamma": 0.0}, {"weight": -1.0}])
def test_values_out_of_range(init_args):
    with pytest.raises(ValueError, match=rf"init_args\.{next(iter(init_args))} is"):
        GradientPenalty(**init_args)
