"""What single attacks, and chains of them, send in rounds of a federation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

EXACT = {"name": "scaling", "init_args": {"exact": True}}
BOUND = {"name": "norm-bound", "init_args": {"norm": 0.05}}


def test_exact_scaling_replaces_the_model(trained, federate):
    """FedAvg's aggregate is the attackers' own mean, although the clients weigh differently."""
    changes = {"partition.name": "quantity", "attack.name": "patch"}

    def own(federation):
        rows, _ = trained(federation)
        sizes = federation.pool.n_images
        return sum(sizes[i] * rows[i].double() for i in (1, 3)) / (sizes[1] + sizes[3])

    def aggregate(federation):
        federation.play_round(1, 0.0)
        return federation.pool.malice.last_aggregate

    target = federate(own, changes)
    found = federate(aggregate, {**changes, "attack.update": EXACT})
    assert (found - target).abs().max() / target.abs().max() < 1e-6


def test_a_naive_free_rider_is_in_quarantine_and_trains_on(losses, federate):
    def work(federation):
        return [federation.play_round(round, 0.0).reports for round in (1, 2)]

    naive = {"name": "free-rider", "init_args": {"mode": "zero"}}
    for reports in federate(work, {"attack.update": naive}):
        assert [r.status for r in reports] == ["ok", "zero update", "ok", "zero update", "ok"]
        assert np.isfinite(losses(reports[1])).all()


@pytest.mark.parametrize("mode", ["stale", "noisy"])
def test_a_free_rider_trains_while_there_is_nothing_to_repeat(trained, federate, mode):
    rider = {"attack.update": {"name": "free-rider", "init_args": {"mode": mode}}}
    # so that quarantining two of five would end the run
    found, reports = federate(trained, {**rider, "federation.min_clients": 5})
    plain, honest = federate(trained)
    assert reports == honest
    assert all(torch.equal(found[i], plain[i]) for i in range(5))


def test_a_stale_free_rider_repeats_what_the_server_did(trained, federate):
    def work(federation):
        before = federation.server.parameters
        first = federation.play_round(1, 0.0)
        step = federation.server.parameters.double() - before
        return first.reports[1].status, step, trained(federation, 2)[0]

    status, step, rows = federate(work, {"attack.update": "free-rider"})
    assert status == "ok"
    assert torch.equal(rows[1], rows[3])
    assert (rows[1] - step).abs().max() < 1e-6


def test_one_attack_after_the_other(trained, federate):
    chain = ["scaling", BOUND]

    def work(federation):
        return trained(federation)[0][1].double()

    plain, found = federate(work), federate(work, {"attack.update": chain})
    assert found.norm().item() == pytest.approx(0.05, rel=1e-6)
    assert (found / found.norm() - plain / plain.norm()).abs().max() < 1e-7


@pytest.mark.parametrize("world", [1, 2])
def test_norm_bound_keeps_what_was_trained_from_the_first_round_on(federate, world):
    chain = [{"name": "sign-flip", "init_args": {"scale": 5.0}}, "norm-bound"]

    def work(federation):
        rounds = [federation.pool.train_once(federation.server.parameters, [*range(5)], 1)]
        federation.play_round(2, 0.0)
        rounds.append(federation.pool.train_once(federation.server.parameters, [*range(5)], 3))
        return [one.updates.norms().tolist() for one in rounds]

    until = {"attack.until_round": 2, "federation.rounds": 3}  # the third tells what is honest
    first, third = federate(work, {"attack.update": chain, "federation.rounds": 3}, world)
    assert first == pytest.approx(federate(work, {}, world)[0], rel=1e-5)
    assert third == pytest.approx(federate(work, {"attack.update": chain, **until}, world)[1], 1e-5)


def test_the_same_noise_is_not_added_twice(trained, federate):
    noise = {"name": "gaussian", "init_args": {"relative": False, "std": 1.0, "add": True}}

    def work(federation):
        return trained(federation)[0][1]

    plain, once = federate(work), federate(work, {"attack.update": [noise]})
    second = federate(work, {"attack.update": [noise, noise]}) - once
    assert torch.equal(once, federate(work, {"attack.update": noise}))
    assert second.std().item() == pytest.approx(1, rel=0.1)
    assert abs(torch.corrcoef(torch.stack([once - plain, second]))[0, 1]) < 0.1


def test_fang_sends_more_than_its_threshold(trained, federate):
    def work(federation):
        return trained(federation)[0][1]

    found = federate(work, {"attack.update": "fang-krum", "attack.clients": [1]})
    assert found.abs().min() > 10 * 1e-5
    assert found.abs().max() == found.abs().min()
