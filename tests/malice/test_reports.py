"""Reports that lie about losses, beside updates of poisoned training."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from fedgan.checkpoint import to_bytes


def test_colluders_report_the_benign_median_of_the_round_before(losses, federate):
    def work(federation):
        return [federation.play_round(round, 0.0).reports for round in (1, 2)]

    changes = {"attack.name": "patch"}
    honest = federate(work, changes)
    first, second = federate(work, {**changes, "attack.report": "median"})
    assert first == honest[0]
    expected = np.median([losses(first[i]) for i in (0, 2, 4)], axis=0)
    for i in (1, 3):
        assert losses(second[i]) == pytest.approx(expected.tolist(), rel=1e-12)
    assert [second[i] for i in (0, 2, 4)] == [honest[1][i] for i in (0, 2, 4)]


@pytest.mark.parametrize("share", ["generator", "both"])
def test_a_clean_report_beside_a_poisoned_update(trained, losses, federate, share):
    changes = {"federation.share": share, "training.flip": True}
    patched = {**changes, "attack.name": "patch"}

    def first(federation):
        return trained(federation)

    rows, honest = federate(first, changes)
    poisoned, told = federate(first, patched)
    sent, said = federate(first, {**patched, "attack.report": "clean"})
    assert said == honest  # in the first round its past is honest, too
    assert said != told
    assert all(torch.equal(sent[i], poisoned[i]) for i in range(5))
    assert not torch.equal(sent[1], rows[1])

    def later(federation):
        records = [federation.play_round(round, 0.0) for round in (1, 2, 3)]
        states = [to_bytes(client.gan.local_state()) for client in federation.pool.clients.values()]
        return federation.server.generator_sha256(), states, losses(records[-1].reports[1])

    without, lying = (
        federate(later, patched),
        federate(later, {**patched, "attack.report": "clean"}),
    )
    assert lying[:2] == without[:2]  # nothing of the first of the two trainings is left
    assert lying[2] != without[2]


def test_two_trainings_share_one_deadline(trained, federate):
    def work(federation):
        gan = federation.pool.clients[1].gan
        step = gan.training_step

        def slow(batch, index):
            time.sleep(1)
            return step(batch, index)

        gan.training_step = slow
        return [report.status for report in trained(federation)[1].values()]

    changes = {"federation.local_steps": 1, "federation.client_timeout": 1.7}
    changes["attack.name"] = "patch"
    assert federate(work, changes) == ["ok"] * 5
    statuses = federate(work, {**changes, "attack.report": "clean"})
    assert statuses == ["ok", "timed out", "ok", "ok", "ok"]


@pytest.mark.parametrize("how", ["fails", "no number"])
def test_a_liar_whose_training_fails_sends_nothing(trained, broken, federate, how):
    def work(federation):
        before = to_bytes(federation.pool.clients[1].gan.local_state())
        broken(federation, 1, how)
        rows, reports = trained(federation)
        after = to_bytes(federation.pool.clients[1].gan.local_state())
        return rows, reports[1].status, after == before

    changes = {"attack.name": "patch", "attack.report": "clean"}
    rows, status, undone = federate(work, changes)
    assert 1 not in rows
    assert status == ("failed: ValueError: broken" if how == "fails" else "non-finite loss")
    assert undone == (how == "fails")
