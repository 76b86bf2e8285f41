"""Who attacks in a round, whom the attackers see, and what reaches the server."""

from __future__ import annotations

import pytest
import torch

from fedgan.checkpoint import to_bytes
from fedgan.vectors import flatten


def test_only_the_attackers_updates_change_and_only_while_they_attack(trained, federate):
    def work(federation):
        return [trained(federation, round) for round in (1, 2, 3)]

    honest = federate(work)
    window = {"attack.from_round": 2, "attack.until_round": 2}
    attacked = federate(work, {"attack.update": "sign-flip", **window})
    for round, ((plain, said), (found, told)) in enumerate(zip(honest, attacked, strict=True), 1):
        assert told == said  # the losses are their own, and honest
        for client in range(5):
            lies = round == 2 and client in (1, 3)
            assert torch.equal(found[client], -plain[client] if lies else plain[client])


def test_what_stays_at_home_is_not_touched(federate):
    def work(federation):
        federation.play_round(1, 0.0)
        return [to_bytes(client.gan.local_state()) for client in federation.pool.clients.values()]

    changes = {"federation.share": "generator"}
    honest = federate(work, changes)
    for attack in ("scaling", {"name": "free-rider", "init_args": {"mode": "zero"}}):
        assert federate(work, {**changes, "attack.update": attack}) == honest


def test_the_discriminator_is_attacked_too(trained, federate):
    def work(federation):
        size = flatten(federation.pool.clients[0].gan.generator).numel()
        return trained(federation)[0][1][size:]

    plain = federate(work)
    assert plain.numel() > 0
    assert torch.equal(federate(work, {"attack.update": "sign-flip"}), -plain)


def norms_and_rows(federation):
    """Norms as they travel to the server, and those of the updates that it gets."""
    gather, seen = federation.cluster.gather_rows, []

    def spy(rows, most):
        seen.append(gather(rows, most))
        return seen[-1]

    federation.cluster.gather_rows = spy
    matrix = federation.pool.train_once(federation.server.parameters, [0, 1, 2, 3, 4], 1).updates
    last = seen[-1][:, 1:].flatten(0, 1)  # the first row is each rank's own word
    told = {int(row[0]): row[6].item() for row in last if row[0] >= 0}
    return len(seen), told, dict(zip(matrix.clients, matrix.norms().tolist(), strict=True))


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("update", [None, "scaling", "min-max"])
def test_the_norm_in_a_report_is_that_of_what_is_sent(federate, update, world):
    exchanges, told, measured = federate(norms_and_rows, {"attack.update": update}, world)
    assert exchanges == (1 if update is None else 2)
    assert told == pytest.approx(measured, rel=1e-6)
    if update == "scaling":
        assert told[1] > 2 * told[0]


@pytest.mark.parametrize("changes", [{}, {"attack.name": "patch"}])
def test_no_exchange_more_where_nobody_attacks_updates_or_reports(federate, changes):
    assert federate(norms_and_rows, changes)[0] == 1


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("how", ["fails", "no number"])
def test_clients_that_fail_are_not_among_the_benign(broken, federate, how, world):
    seen = []

    def spied(federation):
        plan = federation.pool.malice.updates[0].plan

        def spy(view):
            benign = view.omniscient.benign
            seen.append((view.attackers, view.n, benign.clients, sorted(view.weights)))
            return plan(view)

        federation.pool.malice.updates[0].plan = spy

    def work(federation):
        spied(federation)
        broken(federation, 0, how)
        broken(federation, 3, how)  # a colluder: it sends nothing
        training = federation.pool.train_once(federation.server.parameters, [0, 1, 2, 3, 4], 1)
        return seen, [report.status for report in training.reports], training.updates.clients

    seen, statuses, clients = federate(work, {"attack.update": "alie"}, world)
    assert seen == [((1,), 3, (2, 4), [1, 2, 4])]
    assert clients == (1, 2, 4)
    assert [status == "ok" for status in statuses] == [False, True, True, False, True]


def test_attackers_who_all_fail_do_nothing(trained, broken, federate):
    def work(federation):
        broken(federation, 1, "fails")
        broken(federation, 3, "no number")
        return trained(federation)

    plain = federate(work)
    found = federate(work, {"attack.update": "alie", "attack.report": "median"})
    assert found[0].keys() == plain[0].keys() == {0, 2, 4}
    assert all(torch.equal(found[0][i], plain[0][i]) for i in (0, 2, 4))


def test_nobody_lies_in_a_round_without_attackers(federate):
    def work(federation):
        training = federation.pool.train_once(federation.server.parameters, [0, 2, 4], 1)
        return training.updates.rows

    assert torch.equal(federate(work), federate(work, {"attack.update": "alie"}))
