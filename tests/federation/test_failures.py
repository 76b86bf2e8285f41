"""Clients that fail, drop out or take too long; rounds that are undone or played again."""

from __future__ import annotations

import math
import time

import pytest
import torch

from fedgan.checkpoint import Checkpoints, to_bytes
from fedgan.clients import StopAsked, TooFewUpdates
from fedgan.errors import RunError


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
