"""Stages in a row, and a defence for each network by itself; through a whole run too."""

from __future__ import annotations

import json
import re

import pytest
import torch
import yaml

from fedgan import config
from fedgan.defenses.api import make_defense
from fedgan.defenses.base import PreAggregation, ServerStep, Tolerant, Verdict
from fedgan.defenses.chain import Chain, PerNetwork
from fedgan.defenses.fedavg import FedAvg, Mean
from fedgan.defenses.feddetect import FedDetect
from fedgan.errors import UserError
from fedgan.experiment import run
from fedgan.plan import make_plan
from fedgan.updates import UpdateMatrix

ROWS = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [5.0, 5.0, 8.0]])


class Halve(PreAggregation):
    name = "halve"

    def __call__(self, updates, reports, server):
        return updates.mixed(torch.eye(len(updates)) / 2)


class Swap(PreAggregation):
    """The first row in the place of the last, and the other way round."""

    name = "swap"

    def __call__(self, updates, reports, server):
        return updates.mixed(torch.eye(len(updates)).flip(0))


class AddParameters(ServerStep):
    name = "add"
    rounds = 0

    def __call__(self, aggregate, server):
        self.rounds += 1
        return aggregate + server.parameters

    def state_dict(self):
        return {"rounds": self.rounds}

    def load_state_dict(self, state):
        self.rounds = state["rounds"]


class Second(FedAvg):
    """Takes the second update."""

    name = "second"

    def __call__(self, updates, reports, server):
        weights = torch.zeros(len(updates))
        weights[1] = 1
        return Verdict.of(weights, flagged=weights == 0, scores=torch.arange(len(updates)))


class Picky(Tolerant, Mean):
    name = "picky"
    needs = (4, 3)


def test_stages_go_in_their_order(server):
    chain = Chain([Halve(), Swap(), Halve(), Second(), AddParameters()])
    verdict = chain(UpdateMatrix.of(ROWS), [], server(size=3))
    assert verdict.aggregate.tolist() == (ROWS[1] / 4).tolist()
    assert verdict.flagged.tolist() == [True, False, True]
    first = Chain([Swap(), Mean()])(UpdateMatrix.of(ROWS), [], server())
    assert first.aggregate.tolist() == pytest.approx(ROWS.mean(0).tolist())


def test_without_a_rule_fedavg_joins(server):
    fair = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    verdict = Chain([Halve()])(UpdateMatrix.of(ROWS, fair), [], server())
    assert verdict.aggregate.tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(verdict.weights, fair)


def test_a_rule_alone_is_itself(server):
    verdict = Chain([Second()])(UpdateMatrix.of(ROWS), [], server())
    assert verdict.aggregate is None
    assert verdict.joined(UpdateMatrix.of(ROWS)).tolist() == ROWS[1].tolist()


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([Mean(), Second()], "mean and second both join the updates"),
        ([Mean(), Halve()], r"come first.*\[halve, mean\]"),
        ([AddParameters(), Mean()], r"\[mean, add\]"),
    ],
)
def test_stages_that_do_not_go_together(stages, words):
    with pytest.raises(UserError, match=words):
        Chain(stages)


def test_a_chain_is_as_demanding_as_its_stages():
    chain = Chain([Halve(), Picky(1)])
    assert chain.fewest() == 3
    with pytest.raises(UserError, match=r"^defense: picky needs n >= 4f\+3: n is 6, f is 1$"):
        chain.check(6)
    chain.check(7)


def test_f_is_of_those_who_are_left(caplog):
    rule = Picky(2)
    assert rule.f_of(11) == 2
    assert not caplog.messages
    assert rule.f_of(10) == 1
    assert rule.f_of(10) == 1
    assert caplog.messages == ["picky: f is 1 where 10 updates are usable"]  # once
    assert rule.f_of(3) == 0
    assert rule.f_of(11) == 2


def test_every_network_is_judged_by_itself(server):
    defense = PerNetwork([Second(), Mean()], [1, 2])
    verdict = defense(UpdateMatrix.of(ROWS), [], server(size=3))
    assert verdict.aggregate.tolist() == pytest.approx([3.0, 3.0, 4.0])
    assert verdict.weights.tolist() == pytest.approx([1 / 6, 2 / 3, 1 / 6])
    assert verdict.flagged.tolist() == [True, False, True]
    assert verdict.scores.tolist() == [0, 1, 2]
    assert verdict.acted


def test_memories_are_put_back():
    def make():
        return PerNetwork([Chain([FedDetect(), AddParameters()]), FedDetect()], [1, 2])

    one, other = make(), make()
    one.each[0].rule.counts = {3: 4}
    one.each[0].after[0].rounds = 7
    one.each[1].counts = {1: 2}
    other.load_state_dict(json.loads(json.dumps(one.state_dict()), object_hook=_numbers))
    assert other.each[0].rule.counts == {3: 4}
    assert other.each[0].after[0].rounds == 7
    assert other.each[1].counts == {1: 2}


def _numbers(mapping):
    return {int(k) if k.isdigit() else k: v for k, v in mapping.items()}


def test_a_rule_for_each_network(tiny, tmp_path):
    """What the generator's rule is given is the generator, and the discriminator's the rest."""
    changes = {
        "run_dir": str(tmp_path / "run"),
        "federation.clients": 5,
        "federation.rounds": 1,
        "federation.share": "both",
        "defense.name": "median",
        "defense.discriminator": ["clip", {"name": "krum", "init_args": {"f": 1}}],
    }
    plan = make_plan(config.from_dict(tiny(changes)))
    assert isinstance(plan.defense, PerNetwork)
    assert [type(one).__name__ for one in plan.defense.each] == ["Median", "Chain"]
    summary = run(tiny(changes))
    assert summary["defense"] == "median; discriminator: clip, krum"
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["defense"]
    assert written["discriminator"][1]["init_args"]["f"] == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"federation.share": "generator"}, "defense.discriminator: federation.share is generator"),
        ({"defense.discriminator": ["bulyan"]}, "bulyan needs n >= 4f"),
        ({"defense.discriminator": ["krumm"]}, "defense.discriminator"),
    ],
)
def test_what_a_rule_for_the_discriminator_refuses(tiny, changes, words):
    base = {"federation.clients": 5, "defense.discriminator": ["median"]}
    with pytest.raises(UserError, match=re.escape(words)):
        make_plan(config.from_dict(tiny({**base, **changes})))


@pytest.mark.parametrize("per_network", [False, True])
def test_a_run_with_a_chain(tiny, tmp_path, per_network):
    """The same bytes on two processes and after a resume, each from one line of a config."""
    from fedgan.experiment import resume, run

    changes = {
        "defense.rules": ["feddetect"],
        "defense.per_network": per_network,
        "federation.clients": 4,
        "federation.rounds": 3,
        "run_dir": str(tmp_path / "run"),
    }
    whole = run(tiny(changes))
    again = {**changes, "cluster.devices": 2, "run_dir": str(tmp_path / "again")}
    assert run(tiny(again))["generator_sha256"] == whole["generator_sha256"]
    torn = resume(tmp_path / "run", checkpoint="round_0002")
    assert torn["generator_sha256"] == whole["generator_sha256"]
    assert "rules:\n  - name: feddetect\n" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    "rules",
    [
        ["centered-clipping", "fedavgm"],
        ["foolsgold", "fedadam"],
        ["clip", "fedyogi", "noise", "noise"],
    ],
)
def test_what_a_defence_remembers_outlives_a_resume(tiny, tmp_path, rules):
    from fedgan.checkpoint import load_server
    from fedgan.experiment import resume, run

    changes = {
        "defense.rules": rules,
        "federation.clients": 4,
        "federation.sample": 0.75,
        "federation.rounds": 3,
        "run_dir": str(tmp_path / "run"),
    }
    whole = run(tiny(changes))
    state = load_server(tmp_path / "run" / "checkpoints" / "round_0002")["defense"]
    assert any(stage for stage in state["stages"])
    again = resume(tmp_path / "run", checkpoint="round_0002")
    assert again["generator_sha256"] == whole["generator_sha256"]


def test_two_steps_of_a_name_draw_other_noise(server):
    rows = torch.zeros(3, 100_000)
    rows[:, 0] = 1.0
    noise = {"name": "noise", "init_args": {"sigma": 1.0}}
    found = make_defense(["mean", noise, noise])(UpdateMatrix.of(rows), [], server(size=100_000))
    assert found.aggregate.std().item() == pytest.approx(2**0.5, rel=0.02)
