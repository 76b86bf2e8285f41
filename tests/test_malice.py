"""Attacks on updates and reports in whole federations: who acts, on what, and that it is exact."""

from __future__ import annotations

import csv
import logging
import shutil
import time

import numpy as np
import pytest
import torch
import yaml

from fedgan import config
from fedgan.assembly import assemble
from fedgan.attacks.updates import UpdateAttack
from fedgan.checkpoint import load_server, to_bytes
from fedgan.errors import UserError
from fedgan.experiment import resume, run
from fedgan.plan import make_plan
from fedgan.reports import LOSSES
from fedgan.scenes import examiners
from fedgan.tracking.base import Observer
from fedgan.vectors import flatten

FIVE = {"federation.clients": 5, "attack.clients": [1, 3]}
EXACT = {"name": "scaling", "init_args": {"exact": True}}
BOUND = {"name": "norm-bound", "init_args": {"norm": 0.05}}
CLOCK = ("seconds", "training_seconds", "images_per_second")


@pytest.fixture
def federate(on_ranks, tiny, tmp_path):
    """Assembles a federation of the tiny config and hands it to `work` on every rank."""

    def start(work, changes=None, world=1):
        values = tiny({"run_dir": str(tmp_path / "run"), **FIVE, **(changes or {})})
        plan = make_plan(config.from_dict(values))

        def on_rank(cluster):
            watch, final = examiners(cluster, plan)
            return work(assemble(cluster, plan, watch, final, Observer()))

        return on_ranks(world, on_rank)

    return start


def trained(federation, round=1, clients=(0, 1, 2, 3, 4)):
    """The updates and the reports of a round, on one process."""
    training = federation.pool.train_once(federation.server.parameters, list(clients), round)
    rows = dict(zip(training.updates.clients, training.updates.rows, strict=True))
    return rows, {report.client: report for report in training.reports}


def losses(report):
    return [getattr(report, name) for name in LOSSES]


def test_only_the_attackers_updates_change_and_only_while_they_attack(federate):
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


def test_the_discriminator_is_attacked_too(federate):
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


def test_exact_scaling_replaces_the_model(federate):
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


def broken(federation, number, how):
    if number not in federation.pool.clients:
        return
    gan = federation.pool.clients[number].gan
    step = gan.training_step

    def training_step(batch, index):
        found = step(batch, index)
        if how == "fails":
            raise ValueError("broken")
        return found * torch.nan

    gan.training_step = training_step


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("how", ["fails", "no number"])
def test_clients_that_fail_are_not_among_the_benign(federate, how, world):
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


def test_attackers_who_all_fail_do_nothing(federate):
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


def test_a_naive_free_rider_is_in_quarantine_and_trains_on(federate):
    def work(federation):
        return [federation.play_round(round, 0.0).reports for round in (1, 2)]

    naive = {"name": "free-rider", "init_args": {"mode": "zero"}}
    for reports in federate(work, {"attack.update": naive}):
        assert [r.status for r in reports] == ["ok", "zero update", "ok", "zero update", "ok"]
        assert np.isfinite(losses(reports[1])).all()


@pytest.mark.parametrize("mode", ["stale", "noisy"])
def test_a_free_rider_trains_while_there_is_nothing_to_repeat(federate, mode):
    rider = {"attack.update": {"name": "free-rider", "init_args": {"mode": mode}}}
    # so that quarantining two of five would end the run
    found, reports = federate(trained, {**rider, "federation.min_clients": 5})
    plain, honest = federate(trained)
    assert reports == honest
    assert all(torch.equal(found[i], plain[i]) for i in range(5))


def test_a_stale_free_rider_repeats_what_the_server_did(federate):
    def work(federation):
        before = federation.server.parameters
        first = federation.play_round(1, 0.0)
        step = federation.server.parameters.double() - before
        return first.reports[1].status, step, trained(federation, 2)[0]

    status, step, rows = federate(work, {"attack.update": "free-rider"})
    assert status == "ok"
    assert torch.equal(rows[1], rows[3])
    assert (rows[1] - step).abs().max() < 1e-6


def test_one_attack_after_the_other(federate):
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


def test_the_same_noise_is_not_added_twice(federate):
    noise = {"name": "gaussian", "init_args": {"relative": False, "std": 1.0, "add": True}}

    def work(federation):
        return trained(federation)[0][1]

    plain, once = federate(work), federate(work, {"attack.update": [noise]})
    second = federate(work, {"attack.update": [noise, noise]}) - once
    assert torch.equal(once, federate(work, {"attack.update": noise}))
    assert second.std().item() == pytest.approx(1, rel=0.1)
    assert abs(torch.corrcoef(torch.stack([once - plain, second]))[0, 1]) < 0.1


def test_fang_sends_more_than_its_threshold(federate):
    def work(federation):
        return trained(federation)[0][1]

    found = federate(work, {"attack.update": "fang-krum", "attack.clients": [1]})
    assert found.abs().min() > 10 * 1e-5
    assert found.abs().max() == found.abs().min()


# Reports


def test_colluders_report_the_benign_median_of_the_round_before(federate):
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
def test_a_clean_report_beside_a_poisoned_update(federate, share):
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


def test_two_trainings_share_one_deadline(federate):
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
def test_a_liar_whose_training_fails_sends_nothing(federate, how):
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


# Whole runs

RUN = {
    **FIVE,
    "federation.rounds": 3,
    "federation.sample": 0.8,
    "partition.name": "quantity",
    "attack.name": "patch",
    "checkpoint.keep": 9,
}
ATTACKS = {
    "scaling": {"attack.update": "scaling", "attack.report": "median"},
    "exact": {"attack.update": EXACT, "attack.report": "clean", "training.flip": True},
    "alie": {"attack.update": "alie", "attack.name": "none"},
    "gaussian": {"attack.update": "gaussian", "attack.name": "none"},
    "stale": {"attack.update": "free-rider", "attack.name": "none"},
    "chain": {"attack.update": ["neurotoxin", BOUND]},
}


def table(path):
    with path.open() as file:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def without(tiny, tmp_path_factory):
    """The generator of a run whose clients send what they have trained; each run once."""
    known = {}

    def generator(changes):
        changes = {k: v for k, v in changes.items() if k not in ("attack.update", "attack.report")}
        key = repr(sorted(changes.items()))
        if key not in known:
            folder = tmp_path_factory.mktemp("without") / "run"
            known[key] = run(tiny({**changes, "run_dir": str(folder)}))["generator_sha256"]
        return known[key]

    return generator


@pytest.mark.parametrize("name", ATTACKS)
def test_the_same_bytes_on_two_processes_and_after_a_resume(tiny, tmp_path, name, without):
    one, two = tmp_path / "one", tmp_path / "two"
    whole = run(tiny({**RUN, **ATTACKS[name], "run_dir": str(one)}))
    assert whole["generator_sha256"] != without({**RUN, **ATTACKS[name]})
    changes = {**RUN, **ATTACKS[name], "run_dir": str(two), "cluster.devices": 2}
    assert run(tiny(changes))["generator_sha256"] == whole["generator_sha256"]
    for path in ("clients.csv", "metrics.csv"):
        assert table(one / path) == table(two / path)
    shutil.rmtree(one / "checkpoints" / "round_0003")
    again = resume(one, ["--cluster.devices=2"])
    assert again["generator_sha256"] == whole["generator_sha256"]
    assert again["clients"] == whole["clients"]
    assert table(one / "clients.csv") == table(two / "clients.csv")


@pytest.mark.parametrize(
    "update", ["sign-flip", "ipm", "min-max", "min-sum", "fang-krum", "norm-bound"]
)
def test_a_run_of_every_other_attack(tiny, tmp_path, update, without):
    clients = [1] if update == "fang-krum" else [1, 3]  # of 5 Krum bears one
    choice = BOUND if update == "norm-bound" else update
    changes = {**FIVE, "attack.update": choice, "attack.clients": clients}
    summary = run(tiny({**changes, "run_dir": str(tmp_path / "run")}))
    assert summary["generator_sha256"] != without(FIVE)
    assert summary["attack_on_updates"] == [update]
    assert [row["malicious"] for row in summary["clients"]] == [i in clients for i in range(5)]
    rows = table(tmp_path / "run" / "clients.csv")
    assert all(row["status"] == "ok" for row in rows)
    assert {int(row["client"]) for row in rows if row["malicious"] == "True"} == {*clients}


def test_the_clean_arm_has_no_malicious_client_and_remembers_nothing(tiny, tmp_path):
    attack = {**FIVE, "attack.name": "patch"}
    rate = {"attack.poison_rate": 0.0}
    both = {"attack.update": "scaling", "attack.report": "median"}
    plain = run(tiny({**attack, **rate, "run_dir": str(tmp_path / "plain")}))
    clean = run(tiny({**attack, **rate, **both, "run_dir": str(tmp_path / "clean")}))
    assert clean["generator_sha256"] == plain["generator_sha256"]
    assert not any(row["malicious"] for row in clean["clients"])
    assert load_server(tmp_path / "clean" / "checkpoints" / "round_0002")["malice"] == {}


# Configs

ONE = {"attack.clients": [1]}
SAMPLED = {"federation.sample": 0.2, "attack.clients": [1], "federation.rounds": 1}

OWN = """
import torch
from fedgan.attacks.reports import ReportAttack
from fedgan.attacks.updates import UpdateAttack


class Double(UpdateAttack):
    def __init__(self, by: float = 2.0) -> None:
        self.by = by

    def corrupt(self, own, client, planned, view):
        return own * self.by


class Boast(ReportAttack):
    def forge(self, own, honest, view):
        return torch.zeros_like(own)
"""


def test_ones_own_attacks_from_ones_own_file(tiny, tmp_path, monkeypatch):
    (tmp_path / "own_lies.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    changes = {
        "attack.update": [{"class_path": "own_lies.Double", "init_args": {"by": 3.0}}],
        "attack.report": {"class_path": "own_lies.Boast"},
        "run_dir": str(tmp_path / "run"),
    }
    summary = run(tiny(changes))
    assert (summary["attack_on_updates"], summary["attack_on_reports"]) == (["Double"], "Boast")
    rows = table(tmp_path / "run" / "clients.csv")
    assert {row["g_loss"] == "0.0" for row in rows if row["client"] == "0"} == {True}
    assert {row["g_loss"] == "0.0" for row in rows if row["client"] != "0"} == {False}


def test_every_argument_is_written_down_and_read_back(tiny, tmp_path):
    chosen = {"attack.update": ["alie", "norm-bound"], "attack.report": "median"}
    experiment = config.from_dict(tiny(chosen))
    plan = make_plan(experiment)
    alie = {"name": "alie", "init_args": {"z": None, "sample_std": False, "seen": "benign"}}
    bound = {"name": "norm-bound", "init_args": {"norm": None}}
    assert experiment.attack.update == [alie, bound]
    assert experiment.attack.report == "median"  # it has no arguments
    assert [isinstance(one, UpdateAttack) for one in plan.update_attacks] == [True, True]
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(experiment))
    back = config.read(path)
    assert back.attack == experiment.attack
    assert config.read(path, ["--attack.update=null"]).attack.update is None
    assert config.read(path, ["--attack.update=[scaling, norm-bound]"]).attack.update == [
        *("scaling", "norm-bound")
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attack.update": "scalling"}, r"attack\.update\.name: .*did you mean 'scaling'"),
        ({"attack.report": "mean"}, r"attack\.report\.name: .*did you mean 'median'"),
        ({"attack.report": "scaling"}, r"attack\.report\.name: unknown 'scaling'"),
        ({"attack.name": "alie"}, r"attack\.name: unknown 'alie'"),
        (
            {"attack.update": {"name": "alie", "init_args": {"zed": 1}}},
            r"attack\.update\.init_args\.zed: unknown argument; did you mean 'z'",
        ),
        (
            {"attack.update": {"name": "scaling", "init_args": {"factor": -1.0}}},
            r"attack\.update: init_args\.factor is -1",
        ),
        ({"attack.update": {"nam": "alie"}}, r"attack\.update\.nam: unknown key; .*'name'"),
        ({"attack.update": ["scaling", 3]}, r"attack\.update: .*expected str.*Given value: 3"),
        ({"attack.update": [{"nam": "alie"}]}, r"attack\.update\.nam: unknown key; .*'name'"),
        ({"attack.update": {"init_args": {"z": 1.5}}}, r"attack\.update\.name: is missing$"),
        ({"attack.update": [{"init_args": {}}]}, r"attack\.update\.name: is missing$"),
        ({"attack.report": {"init_args": {}}}, r"attack\.report\.name: is missing$"),
        ({"attack.update": ["scaling", "alie"]}, r"attack\.update: alie .* scaling would be lost"),
        ({"attack.update": ["alie", "free-rider"]}, r"attack\.update: free-rider .*be the first$"),
        ({"attack.update": ["scaling", "norm-bound", "gaussian"]}, r"attack\.update: gaussian .*"),
        (
            {"attack.update": "scaling", "attack.from_round": 3},
            r"attack\.from_round: 3 .*rounds, 2$",
        ),
        ({"attack.report": "clean"}, r"attack\.report: clean .* attack\.name is none"),
        (
            {"attack.update": "scaling", "attack.only_label": 1},
            r"attack\.only_label: is 1, but attack\.name is none",
        ),
        (
            {"attack.update": {"class_path": "fedgan.attacks.patch.Patch"}},
            r"attack\.update\.class_path: .*not a subclass of .*UpdateAttack",
        ),
        ({"attack.update": "alie", "attack.clients": []}, r"attack\.clients: is empty"),
        ({"attack.report": "median", "attack.clients": [5]}, r"attack\.clients: .*client 5"),
    ],
)
def test_refused_in_one_line(tiny, tmp_path, changes, words):
    with pytest.raises(UserError, match=words) as caught:
        run(tiny({"run_dir": str(tmp_path / "run"), **changes}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_attack_on_all_three_in_one_line_of_yaml(tmp_path):
    path = tmp_path / "mine.yaml"
    text = "attack: {name: patch, update: scaling, report: median, clients: [0, 1]}"
    path.write_text(text)
    attack = config.read(path).attack
    assert (attack.name, attack.update, attack.report) == ("patch", "scaling", "median")
    assert yaml.safe_load(config.dump(config.read(path)))["attack"]["update"] == "scaling"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"attack.update": "alie", "federation.clients": 10},
            "attack.update: alie: z_max is 0.00 for n=10, f=2: it sends the benign mean; "
            "give init_args.z",
        ),
        (
            {"attack.update": "alie", "federation.clients": 4, "attack.clients": [1]},
            "z_max is -0.43 for n=4, f=1: it shifts the benign mean the other way; give",
        ),
        (
            {"attack.update": {"name": "alie", "init_args": {"seen": "colluders"}}, **ONE},
            "alie: one colluder has no spread",
        ),
        ({"attack.update": "alie", "federation.clients": 10, "attack.clients": [1, 3, 5]}, None),
        ({"attack.update": {"name": "alie", "init_args": {"z": 1.5}}, **ONE}, None),
        ({"attack.update": "fang-krum"}, "fang-krum: n=5 is below 2f + 3 for f=2: Krum"),
        ({"attack.update": "fang-krum", **ONE}, None),
        ({"attack.update": ["scaling", "norm-bound"]}, "norm-bound: norm is null: what is sent"),
        ({"attack.update": "norm-bound"}, "norm-bound: norm is null"),
        ({"attack.update": ["scaling", BOUND]}, None),
        ({"attack.update": [EXACT, "norm-bound"]}, None),
        ({"attack.update": ["sign-flip", "norm-bound"]}, None),
        ({"attack.update": "scaling", "attack.poison_rate": 0.0}, "attack.poison_rate: is 0"),
        ({"attack.name": "patch", "attack.poison_rate": 0.0}, None),
        ({"attack.name": "patch", **SAMPLED}, "attack.clients: none is drawn in any round"),
        ({"attack.name": "patch", **SAMPLED, "federation.rounds": 20}, None),
        # two attackers, of whom the two that are drawn never meet: n = 2, f = 1
        ({"attack.update": "alie", "federation.sample": 0.4}, "n=2, f="),
    ],
)
def test_warned_of_attacks_that_do_nothing(tiny, caplog, changes, words):
    with caplog.at_level(logging.WARNING, "fedgan.plan"):
        make_plan(config.from_dict(tiny({"run_dir": "unused", **FIVE, **changes})))
    assert caplog.messages == [] if words is None else words in caplog.text
