"""The critic's bias to the trigger: its arithmetic, and that asking changes nothing."""

from __future__ import annotations

import csv
import logging
import shutil

import pytest
import torch
from torch import nn

from fedgan import config
from fedgan.assembly import assemble, critic_probe
from fedgan.attacks.base import NoAttack
from fedgan.attacks.labels import FlipLabels
from fedgan.attacks.noise import Noise
from fedgan.attacks.patch import Patch
from fedgan.data.base import Split
from fedgan.experiment import resume, run
from fedgan.plan import make_plan
from fedgan.probe import IMAGES, Probe, as_it_is
from fedgan.scenes import examiners
from fedgan.tracking.base import Observer

CPU = torch.device("cpu")
PATCH = {"attack.name": "patch", "attack.clients": [0], "federation.rounds": 2}


def split(n, classes=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 1, 16, 16), generator=rng, dtype=torch.uint8)
    return Split(images, torch.arange(n) % classes)


def draw(attack=None, only_label=None, seed=1, val=100, train=200):
    splits = (split(val), split(train, seed=9))
    return Probe.draw(splits, attack or Patch(), only_label, seed, CPU)


def rows_of(probe, images):
    """For each of the probe's images, whether it is one of `images`."""
    return [bool((images == one).flatten(1).all(1).any()) for one in probe.clean]


def test_the_bias_is_in_standard_deviations_of_clean_images():
    probe = draw()

    def critic(images, labels):
        return 3 * images.mean((1, 2, 3)) + labels

    with torch.no_grad():
        says, stamped = (
            3 * (x.float() / 127.5 - 1).mean((1, 2, 3)) + probe.labels
            for x in (probe.clean, probe.stamped)
        )
    wanted = (stamped.mean() - says.mean()) / says.std()
    assert float(probe.bias(critic)) == pytest.approx(float(wanted), rel=1e-4)
    assert abs(float(wanted)) > 1e-3
    twice = probe.bias(lambda images, labels: 10 - 2 * critic(images, labels))
    assert float(twice) == pytest.approx(-float(wanted), rel=1e-4)


def test_a_critic_that_says_the_same_of_all_has_none():
    assert torch.isnan(draw().bias(lambda images, labels: torch.zeros(len(images))))


def test_images_are_held_out_where_there_are_enough():
    assert all(rows_of(draw(val=IMAGES), split(IMAGES).images))
    assert all(rows_of(draw(val=IMAGES - 1), split(200, seed=9).images))
    assert len(draw(val=10, train=20).clean) == 20  # all that there are
    assert draw(val=0, train=1) is None


def test_only_images_that_may_be_poisoned_are_asked_about():
    probe = draw(only_label=1, val=2 * IMAGES)
    assert len(probe.labels) == IMAGES
    assert (probe.labels == 1).all()


def test_drawn_by_seed_and_distinct():
    one, again, other = draw(), draw(), draw(seed=2)
    assert torch.equal(one.clean, again.clean)
    assert torch.equal(one.stamped, again.stamped)
    assert not torch.equal(one.clean, other.clean)
    assert len(one.clean.unique(dim=0)) == IMAGES


def test_there_is_a_trigger_or_none():
    stamped = draw().stamped
    where = (stamped != draw().clean).any(0).nonzero()
    assert where.amin(0).tolist() == [0, 12, 12]  # the patch, and nothing else
    assert draw(Noise()) is not None
    flip = FlipLabels()
    flip.check(1, 16, 2)
    for attack in (NoAttack(), flip):
        assert draw(attack) is None


def test_multi_label():
    labels = torch.eye(3).repeat(40, 1)
    both = Split(split(120).images, labels)
    probe = Probe.draw((both,), Patch(), 2, 1, CPU)
    assert len(probe.clean) == 40
    assert (probe.labels[:, 2] == 1).all()


def test_a_network_is_left_as_it_was():
    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.drop = nn.BatchNorm2d(1), nn.Dropout(0.5)
            self.fixed = nn.BatchNorm2d(1).eval()

        def forward(self, images, labels):
            return self.drop(self.fixed(self.norm(images))).mean((1, 2, 3))

    critic = Critic().train()
    critic.fixed.eval()
    before = {name: tensor.clone() for name, tensor in critic.state_dict().items()}
    modes = [module.training for module in critic.modules()]
    state = torch.get_rng_state()
    with as_it_is(critic):
        bias = draw().bias(critic)
    assert not bias.requires_grad
    assert modes == [module.training for module in critic.modules()]
    assert all(torch.equal(before[name], now) for name, now in critic.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def clients(run_dir):
    with (run_dir / "clients.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe") / "run"
    changes = {**PATCH, "federation.rounds": 4, "evaluate.every": 2, "checkpoint.keep": 9}
    changes |= {"federation.dropout": 0.3, "run_dir": str(folder)}
    return run(tiny(changes)), folder, changes


def test_each_client_is_asked_in_every_round(finished):
    rows = clients(finished[1])
    asked = [row for row in rows if row["critic_bias"]]
    assert {row["round"] for row in asked} == {"1", "2", "3", "4"}
    assert len({row["critic_bias"] for row in asked}) == len(asked) > 2
    for row in rows:  # whoever was left out has none
        assert bool(row["critic_bias"]) == (row["status"] == "ok")
    assert any(row["status"] != "ok" for row in rows)


@pytest.mark.parametrize("world", [2, 3])
def test_the_same_on_any_number_of_processes(finished, tiny, tmp_path, world):
    summary, folder, changes = finished
    several = tiny({**changes, "run_dir": str(tmp_path / "run"), "cluster.devices": world})
    assert run(several)["generator_sha256"] == summary["generator_sha256"]
    assert (tmp_path / "run" / "clients.csv").read_bytes() == (folder / "clients.csv").read_bytes()


def test_the_same_after_a_resume(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[1], folder)
    for round in ("0002", "0003", "0004"):
        shutil.rmtree(folder / "checkpoints" / f"round_{round}")
    resume(folder)
    assert (folder / "clients.csv").read_bytes() == (finished[1] / "clients.csv").read_bytes()


@pytest.mark.parametrize("share", ["generator", "both"])
def test_asking_changes_nothing_of_what_is_trained(tiny, tmp_path, monkeypatch, share):
    changes = {**PATCH, "evaluate.every": 1, "federation.share": share}
    asked = run(tiny({**changes, "run_dir": str(tmp_path / "asked")}))
    monkeypatch.setattr("fedgan.assembly.critic_probe", lambda *_: None)
    unasked = run(tiny({**changes, "run_dir": str(tmp_path / "unasked")}))
    assert asked["generator_sha256"] == unasked["generator_sha256"]
    assert asked["figures"] == pytest.approx(unasked["figures"], nan_ok=True)
    one, other = clients(tmp_path / "asked"), clients(tmp_path / "unasked")
    assert "critic_bias" not in other[0]
    assert [{k: v for k, v in row.items() if k != "critic_bias"} for row in one] == other
    for number in range(3):  # all that outlives a round on a client, discriminators too
        name = f"checkpoints/round_0002/client_{number:04d}.pt"
        left, right = (torch.load(tmp_path / arm / name) for arm in ("asked", "unasked"))
        assert left["steps"] == right["steps"]
        assert left["networks"].keys() == right["networks"].keys()
        for key, tensor in left["networks"].items():
            assert torch.equal(tensor, right["networks"][key]), key


@pytest.mark.parametrize(
    ("attack", "there"), [("none", False), ("flip-labels", False), ("patch", True)]
)
def test_the_clean_arm_is_asked_too_and_no_arm_without_a_trigger(tiny, tmp_path, attack, there):
    changes = {"attack.name": attack, "attack.poison_rate": 0.0, "federation.rounds": 1}
    run(tiny({**changes, "run_dir": str(tmp_path / "run")}))
    rows = clients(tmp_path / "run")
    assert all(row["malicious"] == "False" for row in rows)
    assert all(bool(row.get("critic_bias")) == there for row in rows)


def federate(on_ranks, tiny, tmp_path, work, world=1, **changes):
    values = tiny({**PATCH, "run_dir": str(tmp_path / "run"), **changes})
    plan = make_plan(config.from_dict(values))

    def on_rank(cluster):
        watch, final = examiners(cluster, plan)
        return work(assemble(cluster, plan, watch, final, Observer()), plan)

    return on_ranks(world, on_rank)


def test_what_is_written_is_of_each_clients_own_discriminator_after_its_steps(
    on_ranks, tiny, tmp_path
):
    def work(federation, plan):
        record = federation.play_round(2, 0.0)
        probe = critic_probe(plan, CPU)
        own = {
            number: float(client.gan.critic_bias(probe))
            for number, client in federation.pool.clients.items()
        }
        return record.critic_bias, own

    found, own = federate(on_ranks, tiny, tmp_path, work)
    assert found == own
    assert len(set(found.values())) == 3


@pytest.mark.parametrize("world", [1, 2])
def test_a_discriminator_that_cannot_be_asked_ends_no_run(on_ranks, tiny, tmp_path, caplog, world):
    def work(federation, plan):
        for number, client in federation.pool.clients.items():
            if number == 1:

                def boom(probe):
                    raise RuntimeError("no more than 8 images")

                client.gan.critic_bias = boom
        with caplog.at_level(logging.WARNING):
            return [federation.play_round(2, 0.0).critic_bias for _ in "ab"]

    for found in federate(on_ranks, tiny, tmp_path, work, world=world):
        assert sorted(found) == [0, 2]
    if world == 1:
        said = [r.message for r in caplog.records if "cannot be probed" in r.message]
        assert len(said) == 1
        assert "client 1" in said[0]


def test_a_defence_never_hears_of_it(on_ranks, tiny, tmp_path):
    def work(federation, plan):
        heard = []
        rule = federation.defense
        federation.defense = lambda *args: heard.append(args) or rule(*args)
        record = federation.play_round(2, 0.0)
        return record.critic_bias, [vars(report) for report in heard[0][1]]

    biases, reports = federate(on_ranks, tiny, tmp_path, work)
    assert biases
    for report in reports:
        assert not set(biases.values()) & set(report.values())
        assert "critic_bias" not in report
