"""Attacks in an experiment: who is drawn, who stamps what, and what is written down."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from fedgan import config
from fedgan.assembly import poisoned_images
from fedgan.attacks.base import Attack
from fedgan.attacks.schedule import draw_attackers
from fedgan.components import available
from fedgan.data.device import ClientImages
from fedgan.experiment import resume, run
from fedgan.plan import make_plan


def planned(tiny, changes):
    return make_plan(config.from_dict(tiny({"run_dir": "unused", **changes})))


def trained_on(plan, number):
    """A malicious client's clean images and labels, and those that it trains on."""
    index = torch.from_numpy(plan.parts[number])
    train = plan.dataset.train
    poisoned = poisoned_images(plan, number, ClientImages(train.images, train.labels, index))
    return train.images[index], train.labels[index], poisoned.images, poisoned.labels


def attacked(run_dir):
    """(round, client) of those who poisoned, by clients.csv."""
    with (run_dir / "clients.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [(int(r["round"]), int(r["client"])) for r in rows if r["malicious"] == "True"]


def test_only_images_of_one_class_are_poisoned(tiny):
    changes = {"attack.name": "patch", "attack.only_label": 1, "attack.poison_rate": 0.5}
    clean, labels, poisoned, after = trained_on(planned(tiny, changes), 0)
    changed = (clean != poisoned).flatten(1).any(1)
    assert changed.sum() == round(0.5 * int((labels == 1).sum())) > 0
    assert not changed[labels == 0].any()
    assert torch.equal(after, labels)


def test_without_a_class_as_many_of_all(tiny):
    changes = {"attack.name": "patch", "attack.poison_rate": 0.5}
    clean, labels, poisoned, _ = trained_on(planned(tiny, changes), 0)
    changed = (clean != poisoned).flatten(1).any(1)
    assert changed.sum() == round(0.5 * len(labels))
    assert {*labels[changed].tolist()} == {0, 1}


@pytest.mark.parametrize("clients", [[2], [1, 0], [3, 0, 2]])
def test_each_attacker_stamps_its_own_part(tiny, clients):
    bars = {"length": 2, "gap": 1, "level": 1}
    changes = {"federation.clients": 4, "attack.name": "dba", "attack.init_args": bars}
    plan = planned(tiny, {**changes, "attack.clients": clients})
    seen = []
    for number in clients:
        clean, _, poisoned, _ = trained_on(plan, number)
        seen.append((clean != poisoned).any(0)[0])
        index = sorted(clients).index(number)
        own = plan.attack.part(index, len(clients))
        assert torch.equal(poisoned, own.poison(clean, clean, torch.Generator())[0])
    assert torch.stack(seen).sum(0).max() == 1  # disjoint
    assert torch.stack(seen).any(0).sum() == 8


def test_flipped_labels_arrive(tiny):
    clean, labels, poisoned, after = trained_on(planned(tiny, {"attack.name": "flip-labels"}), 0)
    assert torch.equal(poisoned, clean)
    assert torch.equal(after, 1 - labels)


@pytest.mark.parametrize(("share", "count"), [(0.1, 1), (0.25, 2), (0.5, 4), (0.99, 7)])
def test_a_share_is_drawn_and_written(tiny, share, count):
    changes = {"federation.clients": 8, "attack.name": "patch", "attack.share": share}
    plan = planned(tiny, {**changes, "attack.clients": [9]})  # not looked at
    assert plan.settings.attack.clients == draw_attackers(share, 8, plan.settings.seed)
    assert plan.schedule.clients == frozenset(plan.settings.attack.clients)
    assert len(plan.schedule.clients) == count
    again = make_plan(config.from_dict(tiny({**changes, "run_dir": "unused"})))
    assert again.settings.attack.clients == plan.settings.attack.clients
    other = planned(tiny, {**changes, "seed": 2}).settings.attack.clients
    assert len(other) == count


def test_a_share_of_no_attack_draws_nobody(tiny):
    plan = planned(tiny, {"attack.share": 0.5})
    assert plan.settings.attack.clients == [0]
    assert plan.schedule.clients == frozenset()


def test_a_run_with_one_class_taken_over_by_some_clients_in_some_rounds(tiny, tmp_path):
    changes = {
        "run_dir": str(tmp_path / "run"),
        "federation.rounds": 3,
        "federation.clients": 4,
        "attack.name": "dba",
        "attack.init_args": {"length": 2, "gap": 1},
        "attack.only_label": 1,
        "attack.share": 0.5,
        "attack.on_rounds": 1,
        "attack.off_rounds": 1,
    }
    summary = run(tiny(changes))
    assert 0 <= summary["figures"]["presence"] <= 1
    drawn = draw_attackers(0.5, 4, 1)
    settings = config.read(tmp_path / "run" / "config.yaml").attack
    assert (settings.clients, settings.share) == (drawn, 0.5)
    assert attacked(tmp_path / "run") == [(r, client) for r in (1, 3) for client in drawn]
    again = resume(tmp_path / "run", checkpoint=tmp_path / "run" / "checkpoints" / "round_0002")
    assert again["generator_sha256"] == summary["generator_sha256"]
    assert attacked(tmp_path / "run") == [(r, client) for r in (1, 3) for client in drawn]


@pytest.mark.parametrize("name", sorted({*available("fedgan.attacks", Attack)} - {"none", "dba"}))
def test_every_attack_trains(tiny, tmp_path, name):
    changes = {
        "run_dir": str(tmp_path / "run"),
        "federation.rounds": 1,
        "federation.local_steps": 1,
        "attack.name": name,
    }
    figures = run(tiny(changes))["figures"]
    assert ("presence" in figures) == (name in ("patch", "disguised", "blended", "sig", "wanet"))
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert written["attack"] == name
