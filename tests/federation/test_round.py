"""The round: who is drawn, what travels, what the server makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedgan import assembly, config
from fedgan.assembly import assemble
from fedgan.defenses.fedavg import FedAvg
from fedgan.plan import make_plan
from fedgan.scenes import examiners
from fedgan.server import Server
from fedgan.tracking.base import Observer
from fedgan.vectors import flatten


def test_clients_start_equal_and_differ_after(federate):
    def work(federation):
        starts = [
            flatten(c.gan.generator, c.gan.discriminator) for c in federation.pool.clients.values()
        ]
        matrix = federation.pool.train_once(federation.server.parameters, [0, 1, 2], 1).updates
        return starts, federation.server.parameters, matrix.rows

    starts, parameters, rows = federate(work)
    for start in starts:
        assert torch.equal(start, parameters)
    assert all(not torch.equal(rows[i], rows[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("share", ["generator", "both"])
def test_a_round_is_the_weighted_mean_of_the_clients(federate, share):
    def work(federation):
        before = federation.server.parameters
        matrix = federation.pool.train_once(federation.server.parameters, [0, 1, 2], 1).updates
        size = flatten(federation.pool.clients[0].gan.generator).numel()
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


def test_learning_rates_fall_round_by_round(federate):
    """Adam's first step moves every coordinate by the learning rate, or nearly."""
    changes = {
        "federation.rounds": 5,
        "federation.local_steps": 1,
        "federation.keep_optimizer": False,
        "training.lr_end_factor": 0.1,
        "training.generator_lr": 1e-3,
        "training.discriminator_lr": 2e-3,
    }

    def work(federation):
        size = federation.server.average.numel()
        moves = []
        for round in (1, 2, 3, 4, 5, 1):  # and back: of the round, not of how often it was set
            row = federation.pool.train_once(federation.server.parameters, [0, 1, 2], round)
            update = row.updates.rows[0].abs()
            moves.append([update[:size].max().item(), update[size:].max().item()])
        return moves

    moves = np.array(federate(work, changes))
    falls = [1, 0.1 + 0.9 * (0.5 + 2**-1.5), 0.55, 0.1 + 0.9 * (0.5 - 2**-1.5), 0.1, 1]
    assert moves[:, 0] == pytest.approx(1e-3 * np.array(falls), rel=1e-3)
    assert moves[:, 1] == pytest.approx(2e-3 * np.array(falls), rel=1e-3)


def test_a_discriminator_that_is_not_shared_stays_at_home(federate):
    def work(federation):
        federation.play_round(1, 0.0)
        one, two = (flatten(federation.pool.clients[i].gan.discriminator) for i in (0, 1))
        federation.play_round(2, 0.0)
        return one, two, flatten(federation.pool.clients[0].gan.discriminator)

    one, two, later = federate(work, {"federation.share": "generator"})
    assert not torch.equal(one, two)
    assert not torch.equal(one, later)


@pytest.mark.parametrize(
    ("how", "expected"), [("images", [24 / 56, 20 / 56, 12 / 56]), ("uniform", [1 / 3] * 3)]
)
def test_weights_before_any_defence(federate, how, expected):
    def work(federation):
        federation.pool.n_images = [24, 20, 12]
        return federation.pool.fedavg_weights([0, 1, 2]).tolist()

    assert federate(work, {"federation.weights": how}) == pytest.approx(expected)


def test_sampled_clients_are_a_share_drawn_anew_and_again(federate):
    changes = {"federation.clients": 6, "federation.sample": 0.5}

    def work(federation):
        return [federation.pool.sample(round) for round in range(1, 30)]

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


def test_clients_are_placed_by_their_work(on_ranks, tiny, tmp_path):
    """Those that do the same number of steps are spread by number, whatever they hold."""
    changes = {"federation.clients": 4, "training.batch_size": 6}
    plan = make_plan(config.from_dict(tiny({"run_dir": str(tmp_path / "run"), **changes})))
    plan.parts = np.split(np.arange(48), [24, 32, 40])

    def owners(cluster):
        return assemble(cluster, plan, *examiners(cluster, plan), Observer()).pool.owners

    assert on_ranks(2, owners) == [0, 1, 0, 1]
    plan.settings.federation.local_steps = None
    assert on_ranks(2, owners) == [0, 1, 1, 1]


def test_a_rank_uploads_the_images_of_its_own_clients_and_trains_on_them(federate, monkeypatch):
    def work(federation):
        federation.play_round(1, 0.0)
        clients = federation.pool.clients
        sizes = [(len(c.clean), len(c.clean.images)) for c in clients.values()]
        everybody = federation.cluster.all_gather_objects(sizes)
        return everybody, federation.server.generator_sha256()

    changes = {"attack.name": "patch", "partition.name": "quantity", "training.flip": True}
    at_home, expected = federate(work, changes, 2)
    assert {there for rank in at_home for _, there in rank} == {48}
    # On the device that images rest on, nothing is uploaded; this is another name for it.
    upload = assembly.upload
    monkeypatch.setattr(assembly, "upload", lambda *a: upload(*a[:2], torch.device("cpu", 0)))
    uploaded, found = federate(work, changes, 2)
    assert found == expected
    for rank in uploaded:
        assert {there for _, there in rank} == {sum(own for own, _ in rank)}


def test_attackers_train_on_poisoned_images_only_while_they_attack(federate):
    seen = []

    def work(federation):
        client = federation.pool.clients[1]
        for name in ("clean", "poisoned"):
            images = getattr(client, name)
            old = images.batches
            images.batches = lambda *a, n=name, old=old, **k: (seen.append(n), old(*a, **k))[1]
        for round in (1, 2, 3):
            federation.pool.train_once(federation.server.parameters, [0, 1, 2], round)
        others = [federation.pool.clients[i].poisoned for i in (0, 2)]
        return seen, others

    attack = {"attack.name": "patch", "attack.clients": [1]}
    window = {"attack.from_round": 2, "attack.until_round": 2}
    assert federate(work, attack | window) == (["clean", "poisoned", "clean"], [None, None])


def test_layers_that_draw_at_random_draw_alike(federate):
    def played(federation):
        for client in federation.pool.clients.values():
            generate = client.gan._generate
            client.gan._generate = lambda labels, g=generate: torch.nn.functional.dropout(g(labels))
        federation.play_round(1, 0.0)
        return federation.server.generator_sha256()

    assert federate(played) == federate(played) == federate(played, world=2)


def test_average_follows_the_global_generator():
    def step(server, value, **anew):
        server.step(torch.full_like(server.parameters, value), **anew)
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
    # Where a defence has taken something out of the model, the average does not keep it.
    assert step(server, -2.0, anew=True) == pytest.approx(2.0)
    assert step(server, 1.0) == pytest.approx(2.5)


def test_the_average_begins_anew_with_a_correction(federate):
    class Undoing(FedAvg):
        def __call__(self, updates, reports, server):
            verdict = super().__call__(updates, reports, server)
            back = -server.parameters if server.round == 2 else None
            return replace(verdict, correction=back)

    def played(federation):
        federation.defense = Undoing()
        alike = []
        for round in (1, 2, 3):
            federation.play_round(round, 0.0)
            server = federation.server
            alike.append(torch.equal(server.average, server.parameters[: len(server.average)]))
        return alike

    assert federate(played) == [True, True, False]
