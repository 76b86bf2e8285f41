"""The round loop: who is drawn, what travels, who is left out, what the server makes of it."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch

from fedgan import config
from fedgan.assembly import assemble, examiners
from fedgan.plan import make_plan
from fedgan.server import Server
from fedgan.tracking.base import Observer
from fedgan.updates import flatten


@pytest.fixture
def federate(on_ranks, tiny, tmp_path):
    """Assembles a federation of the tiny config and hands it to `work` on every rank."""

    def start(work, changes=None, world=1):
        values = tiny({"run_dir": str(tmp_path / "run"), **(changes or {})})
        plan = make_plan(config.from_dict(values))

        def on_rank(cluster):
            watch, final = examiners(cluster, plan)
            return work(assemble(cluster, plan, watch, final, Observer()))

        return on_ranks(world, on_rank)

    return start


def test_clients_start_equal_and_differ_after(federate):
    def work(federation):
        starts = [
            flatten(c.gan.generator, c.gan.discriminator) for c in federation.clients.values()
        ]
        matrix, _ = federation.train_locally([0, 1, 2], 1)
        return starts, federation.server.parameters, matrix.rows

    starts, parameters, rows = federate(work)
    for start in starts:
        assert torch.equal(start, parameters)
    assert all(not torch.equal(rows[i], rows[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("share", ["generator", "both"])
def test_a_round_is_the_weighted_mean_of_the_clients(federate, share):
    def work(federation):
        before = federation.server.parameters
        matrix, _ = federation.train_locally([0, 1, 2], 1)
        size = flatten(federation.clients[0].gan.generator).numel()
        return before, matrix.rows, matrix.weights, size

    before, rows, weights, size = federate(work, {"federation.share": share})
    assert (len(before) == size) == (share == "generator")
    assert weights.sum().item() == pytest.approx(1)

    def play(federation):
        federation.play_round(1, 0.0)
        return federation.server.parameters

    after = federate(play, {"federation.share": share})
    expected = before.double() + weights @ rows.double()
    assert (after - expected).abs().max() < 1e-6


def test_a_discriminator_that_is_not_shared_stays_at_home(federate):
    def work(federation):
        federation.play_round(1, 0.0)
        one, two = (flatten(federation.clients[i].gan.discriminator) for i in (0, 1))
        federation.play_round(2, 0.0)
        return one, two, flatten(federation.clients[0].gan.discriminator)

    one, two, later = federate(work, {"federation.share": "generator"})
    assert not torch.equal(one, two)
    assert not torch.equal(one, later)


@pytest.mark.parametrize(
    ("how", "expected"), [("images", [24 / 56, 20 / 56, 12 / 56]), ("uniform", [1 / 3] * 3)]
)
def test_weights_before_any_defence(federate, how, expected):
    def work(federation):
        federation.n_images = [24, 20, 12]
        return federation.fedavg_weights([0, 1, 2]).tolist()

    assert federate(work, {"federation.weights": how}) == pytest.approx(expected)


def test_sampled_clients_are_a_share_drawn_anew_and_again(federate):
    changes = {"federation.clients": 6, "federation.sample": 0.5}

    def work(federation):
        return [federation.sample(round) for round in range(1, 30)]

    drawn = federate(work, changes)
    assert drawn == federate(work, changes)
    assert all(len(set(clients)) == 3 and clients == sorted(clients) for clients in drawn)
    assert len(set(map(tuple, drawn))) > 5
    assert set(np.concatenate(drawn)) == set(range(6))
    assert drawn != federate(work, {**changes, "seed": 2})


@pytest.mark.parametrize(("sample", "count"), [(1.0, 5), (0.5, 3), (0.3, 2), (0.01, 1)])
def test_how_many_are_drawn(sample, count):
    settings = config.from_dict({"federation": {"clients": 5, "sample": sample}}).federation
    assert settings.clients_in_round() == count


def test_attackers_train_on_poisoned_images_only_while_they_attack(federate):
    seen = []

    def work(federation):
        client = federation.clients[1]
        for name in ("clean", "poisoned"):
            images = getattr(client, name)
            old = images.batches
            images.batches = lambda *a, n=name, old=old, **k: (seen.append(n), old(*a, **k))[1]
        for round in (1, 2, 3):
            federation.train_locally([0, 1, 2], round)
        others = [federation.clients[i].poisoned for i in (0, 2)]
        return seen, others

    attack = {"attack.name": "patch", "attack.clients": [1]}
    window = {"attack.from_round": 2, "attack.until_round": 2}
    assert federate(work, attack | window) == (["clean", "poisoned", "clean"], [None, None])


def break_client(federation, how):
    """Client 1's last step goes wrong: its loss, or one parameter, is no number any more."""
    gan = federation.clients.get(1) and federation.clients[1].gan
    if gan is None:
        return
    step = gan.training_step

    def broken(batch, index):
        losses = step(batch, index)
        if how == "loss":
            return losses * math.inf
        with torch.no_grad():
            next(gan.generator.parameters()).view(-1)[0] = math.nan
        return losses

    gan.training_step = broken


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("how", ["loss", "update"])
def test_a_client_that_is_no_number_is_quarantined(federate, how, world):
    def work(federation):
        break_client(federation, how)
        records = [federation.play_round(round, 0.0) for round in (1, 2)]
        rows = [record.client_rows() for record in records]
        return rows, bool(federation.server.parameters.isfinite().all())

    changes = {"defense.name": "feddetect", "defense.init_args": {"warm_up": 0}}
    changes |= {"federation.clients": 4}
    rows, finite = federate(work, changes, world)
    assert finite
    for row in rows[0]:
        assert (row["status"] == "ok") == (row["client"] != 1)
    assert rows[0][1]["status"] == f"non-finite {how}"
    assert (rows[0][1]["weight"], rows[0][1]["flagged"]) == (0.0, False)
    assert sum(row["weight"] for row in rows[0]) == pytest.approx(1)
    assert all(row["weight"] > 0 for row in rows[0] if row["client"] != 1)


def test_a_defence_never_sees_what_is_no_number(federate):
    def work(federation):
        break_client(federation, "update")
        heard = []
        rule = federation.defense

        class Spy(type(rule)):
            def __call__(self, updates, reports, round):
                finite = bool(updates.rows.isfinite().all())
                heard.append((updates.clients, [r.client for r in reports], finite))
                return super().__call__(updates, reports, round)

        federation.defense = Spy()
        federation.play_round(1, 0.0)
        return heard

    assert federate(work) == [((0, 2), [0, 2], True)]


def test_a_round_without_a_sound_client_changes_nothing(federate):
    def work(federation):
        before = federation.server.parameters.clone()
        for client in federation.clients.values():
            client.gan.training_step = lambda batch, index: torch.full((2,), math.nan)
        record = federation.play_round(1, 0.0)
        return torch.equal(before, federation.server.parameters), record.scalars()

    unchanged, scalars = federate(work)
    assert unchanged
    assert scalars["left_out"] == 3
    assert "g_loss" not in scalars


@pytest.mark.parametrize("share", ["generator", "both"])
def test_one_bad_step_does_not_keep_a_client_out_for_good(federate, share):
    def work(federation):
        gan = federation.clients[1].gan
        step = gan.training_step

        def ruinous(batch, index):
            losses = step(batch, index)
            with torch.no_grad():
                for parameter in gan.parameters():
                    parameter.fill_(math.nan)
            for optimizer in gan._optimizers():
                for state in optimizer.state.values():
                    state["exp_avg"].fill_(math.nan)
            return losses

        gan.training_step = ruinous
        first = federation.play_round(1, 0.0)
        gan.training_step = step
        second = federation.play_round(2, 0.0)
        return [record.reports[1].status for record in (first, second)]

    assert federate(work, {"federation.share": share}) == ["non-finite update", "ok"]


def test_quarantine_is_written_down(tiny, tmp_path, monkeypatch):
    from fedgan import assembly
    from fedgan.experiment import run

    made = assembly.local_client

    def local_client(cluster, plan, number, *args):
        client = made(cluster, plan, number, *args)
        if number == 1:
            client.gan.training_step = lambda batch, index: torch.full((2,), math.nan)
        return client

    monkeypatch.setattr(assembly, "local_client", local_client)
    summary = run(tiny({"run_dir": str(tmp_path / "run")}))
    with (tmp_path / "run" / "clients.csv").open() as file:
        rows = list(csv.DictReader(file))
    bad = [row for row in rows if row["client"] == "1"]
    assert [(row["status"], row["weight"]) for row in bad] == [("non-finite loss", "0.0")] * 2
    assert summary["clients"][1]["left_out_rounds"] == [1, 2]
    assert "client 1 left out" in (tmp_path / "run" / "log.txt").read_text()


def test_average_follows_the_global_generator():
    def step(server, value):
        server.step(torch.full_like(server.parameters, value))
        return server.average[0].item()

    torch.manual_seed(0)
    network = torch.nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(100.0)
    server = Server(network, None, ema=0.7)
    assert step(server, -99.0) == pytest.approx(1.0)  # nothing of the initialisation stays
    assert step(server, 1.0) == pytest.approx(1.5)  # the first rounds count alike
    assert step(server, 1.0) == pytest.approx(2.0)
    assert step(server, 1.0) == pytest.approx(0.7 * 2.0 + 0.3 * 4.0)
    assert server.averaged_generator().weight.item() == pytest.approx(2.6)
    assert server.parameters.item() == pytest.approx(4.0)
