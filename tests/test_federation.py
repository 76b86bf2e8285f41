"""The round loop: who is drawn, what travels, who is left out, what the server makes of it."""

from __future__ import annotations

import csv
import math
import time

import numpy as np
import pytest
import torch

from fedgan import assembly, config
from fedgan.assembly import assemble
from fedgan.checkpoint import Checkpoints, to_bytes
from fedgan.clients import StopAsked, TooFewUpdates
from fedgan.errors import RunError
from fedgan.plan import make_plan
from fedgan.scenes import examiners
from fedgan.server import Server
from fedgan.tracking.base import Observer
from fedgan.vectors import flatten


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


def break_client(federation, how):
    """Client 1's last step goes wrong: its loss, or one parameter, is no number any more."""
    gan = federation.pool.clients.get(1) and federation.pool.clients[1].gan
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


def state_of(gan):
    return to_bytes(gan.local_state())


@pytest.mark.parametrize("world", [1, 2])
def test_a_round_without_a_usable_update_is_repeated_once_and_undone(federate, world):
    def work(federation):
        rounds = []
        before = federation.server.parameters.clone()
        states = {n: state_of(c.gan) for n, c in federation.pool.clients.items()}
        for client in federation.pool.clients.values():
            step = client.gan.training_step

            def broken(batch, index, step=step):
                rounds.append(index)
                return step(batch, index) * math.nan

            client.gan.training_step = broken
        with pytest.raises(TooFewUpdates, match=r"0 of 3 clients.*client 2: non-finite loss"):
            federation.play_round(1, 0.0)
        same = {n: state_of(c.gan) for n, c in federation.pool.clients.items()} == states
        unchanged = torch.equal(before, federation.server.parameters)
        steps = sum(federation.cluster.all_gather_objects(len(rounds)))
        return same, unchanged, steps

    assert federate(work, world=world) == (True, True, 3 * 2 * 2)  # clients, steps, attempts


class Broken:
    """Client 1 fails in its second step, in the rounds named."""

    def __init__(self, federation, error, rounds=(1,)):
        self.round = 0
        if 1 not in federation.pool.clients:
            return
        gan = federation.pool.clients[1].gan
        step, train = gan.training_step, gan.train_round

        def train_round(*args):
            self.round += 1
            return train(*args)

        def training_step(batch, index):
            losses = step(batch, index)
            if self.round in rounds and gan.steps % 2:
                raise error
            return losses

        gan.train_round, gan.training_step = train_round, training_step


FAULTS = [
    (ValueError("bad\nluck"), "failed: ValueError: bad"),
    (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
    (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "out of memory"),
]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("error", "status"), FAULTS)
def test_a_client_that_fails_is_left_out_and_undone(federate, error, status, world):
    def work(federation):
        own = federation.pool.clients.get(1)
        before = own and state_of(own.gan)
        Broken(federation, error)
        first = federation.play_round(1, 0.0)
        undone = own is None or state_of(own.gan) == before
        second = federation.play_round(2, 0.0)
        rows = [record.client_rows() for record in (first, second)]
        return rows, all(federation.cluster.all_gather_objects(undone))

    rows, undone = federate(work, world=world)
    assert undone
    assert [row["status"] for row in rows[0]] == ["ok", status, "ok"]
    assert [row["weight"] for row in rows[0]] == pytest.approx([0.5, 0, 0.5])
    assert [row["status"] for row in rows[1]] == ["ok"] * 3


def test_a_client_that_takes_too_long_is_left_out_and_undone(federate):
    def work(federation):
        gan = federation.pool.clients[1].gan
        before, step = state_of(gan), gan.training_step

        def slow(batch, index):
            time.sleep(0.6)
            return step(batch, index)

        gan.training_step = slow
        record = federation.play_round(1, 0.0)
        return [report.status for report in record.reports], state_of(gan) == before

    changes = {"federation.client_timeout": 0.5}
    assert federate(work, changes) == (["ok", "timed out", "ok"], True)


def test_too_few_once_is_played_again_with_other_draws(federate):
    def work(federation):
        Broken(federation, ValueError("once"), rounds=(1,))
        return [r.status for r in federation.play_round(1, 0.0).reports], federation.server

    changes = {"federation.min_clients": 3}
    statuses, server = federate(work, changes)
    assert statuses == ["ok"] * 3
    sound = federate(lambda federation: (federation.play_round(1, 0.0), federation.server)[1])
    assert server.generator_sha256() != sound.generator_sha256()


def test_clients_drop_out_at_random_and_again_alike(federate):
    changes = {"federation.dropout": 0.4, "federation.clients": 4, "federation.rounds": 9}

    def work(federation):
        records = [federation.play_round(round, 0.0) for round in range(1, 8)]
        statuses = [[report.status for report in record.reports] for record in records]
        return statuses, federation.server.generator_sha256()

    one, two = (federate(work, changes, world) for world in (1, 2))
    assert one == two
    everybody = [status for statuses in one[0] for status in statuses]
    assert set(everybody) == {"ok", "dropped out"}
    assert 4 <= everybody.count("dropped out") <= 20


def test_an_error_of_a_rank_names_the_client(federate, monkeypatch, tmp_path):
    def work(federation):
        if 1 in federation.pool.clients:
            gan = federation.pool.clients[1].gan
            monkeypatch.setattr(gan, "local_state", lambda: 1 / 0)
        federation.checkpoints = Checkpoints(tmp_path, 1)  # rank 0 has nothing to complain of
        federation.save()

    with pytest.raises(RunError, match=r"^rank 1, client 1: ZeroDivisionError") as caught:
        federate(work, world=2)
    assert "Traceback" in caught.value.details


@pytest.mark.parametrize("share", ["generator", "both"])
def test_one_bad_step_does_not_keep_a_client_out_for_good(federate, share):
    def work(federation):
        gan = federation.pool.clients[1].gan
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


@pytest.mark.parametrize("share", ["generator", "both"])
def test_a_client_with_an_unusable_update_is_where_it_was_before_the_round(federate, share):
    def work(federation):
        federation.play_round(1, 0.0)
        gan = federation.pool.clients[1].gan
        before, step = gan.local_state(), gan.training_step
        gan.training_step = lambda batch, index: step(batch, index) * math.nan
        record = federation.play_round(2, 0.0)
        return record.reports[1].status, before, gan.local_state()

    status, before, after = federate(work, {"federation.share": share})
    assert status == "non-finite loss"
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("repeated", [False, True])
def test_only_the_clients_of_a_round_are_put_back(federate, monkeypatch, repeated):
    """A stop, or a round played again, undoes that round; not what others did in earlier ones."""

    def work(federation):
        pool = federation.pool
        monkeypatch.setattr(type(pool), "sample", lambda self, round: {1: [0, 1], 2: [1, 2]}[round])
        federation.play_round(1, 0.0)
        before = {number: client.gan.local_state() for number, client in pool.clients.items()}
        if repeated:
            first = pool.train_once(federation.server.parameters, [1, 2], 2)
            assert len(first.sound) == 2
            pool.undo()
        else:
            federation.cluster.stopping = 15
            with pytest.raises(StopAsked):
                federation.play_round(2, 0.0)
        after = {number: client.gan.local_state() for number, client in pool.clients.items()}
        return before, after

    before, after = federate(work)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert before[0]["steps"] > 0


@pytest.mark.parametrize("loss", ["bce", "relativistic"])
def test_memory_that_runs_out_in_the_generators_step_leaves_nothing_behind(federate, loss):
    def work(federation):
        gan = federation.pool.clients[1].gan
        backward, calls = gan.manual_backward, []

        def out_of_memory(loss):
            calls.append(loss)
            if len(calls) == 2:
                raise torch.OutOfMemoryError("no room")
            backward(loss)

        gan.manual_backward = out_of_memory
        first = federation.play_round(1, 0.0)
        trainable = all(p.requires_grad for p in gan.discriminator.parameters())
        second = federation.play_round(2, 0.0)
        return [record.reports[1].status for record in (first, second)], trainable

    statuses, trainable = federate(work, {"loss.name": loss})
    assert statuses == ["out of memory", "ok"]
    assert trainable


def test_a_single_step_may_take_too_long(federate):
    def work(federation):
        gan = federation.pool.clients[1].gan
        step = gan.training_step

        def slow(batch, index):
            time.sleep(0.6)
            return step(batch, index)

        gan.training_step = slow
        return [report.status for report in federation.play_round(1, 0.0).reports]

    changes = {"federation.local_steps": 1, "federation.client_timeout": 0.5}
    assert federate(work, changes) == ["ok", "timed out", "ok"]


def test_layers_that_draw_at_random_draw_alike(federate):
    def played(federation):
        for client in federation.pool.clients.values():
            generate = client.gan._generate
            client.gan._generate = lambda labels, g=generate: torch.nn.functional.dropout(g(labels))
        federation.play_round(1, 0.0)
        return federation.server.generator_sha256()

    assert federate(played) == federate(played) == federate(played, world=2)


def test_quarantine_is_written_down(tiny, tmp_path, monkeypatch):
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
