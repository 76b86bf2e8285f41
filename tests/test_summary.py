"""summary.json: all that the README promises is in it."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest

from fedgan.assembly import assemble
from fedgan.cache import write_json
from fedgan.evaluation import Evaluation
from fedgan.experiment import run
from fedgan.plan import make_plan
from fedgan.ranks import run_info
from fedgan.rundir import read_settings
from fedgan.scenes import examiners
from fedgan.summary import _passing, _peak, summarise
from fedgan.tracking.base import Observer
from fedgan.tracking.records import CLIENTS, METRICS, read_table


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": (1,)}})
    found = json.loads((tmp_path / "x.json").read_text())
    assert found == {"a": None, "b": [1.5, None], "c": {"d": [1]}}


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("summary") / "run"
    changes = {
        "run_dir": str(folder),
        "federation.rounds": 3,
        "evaluate.every": 2,
        "attack.name": "patch",
        "attack.from_round": 2,
        "defense.name": "feddetect",
        "federation.clients": 4,
        "defense.init_args": {"warm_up": 2},
    }
    return run(tiny(changes)), folder


def test_the_answer_of_run_is_the_file(finished):
    summary, folder = finished
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))


def test_what_it_holds(finished):
    summary, folder = finished
    assert re.fullmatch("[0-9a-f]{64}", summary["generator_sha256"])
    wanted = {"fd_domain", "fd_domain_floor", "fd_domain_ratio", "presence", "presence_amplitude"}
    assert wanted <= set(summary["figures"])
    assert (summary["rounds"], summary["processes"], summary["threads"]) == (3, 1, 1)
    assert summary["seconds"] > 0
    assert summary["images_per_second"] > 0
    assert {"fedgan", "python", "torch", "lightning"} <= set(summary["versions"])
    assert (folder / summary["last_samples"]).is_file()
    assert sorted(p.name for p in (folder / "samples").iterdir()) == [
        "round_0002.png",
        "round_0003.png",
    ]


def test_rank_0_summarises_alone(finished, on_ranks):
    """The others are gone by then: a word to them would hang."""
    summary, folder = finished
    plan = make_plan(read_settings(folder, []))

    def work(cluster):
        federation = assemble(cluster, plan, *examiners(cluster, plan), Observer())
        info = run_info(plan, federation)
        return (
            summarise(plan, info, cluster, federation, Evaluation(), 0.0)
            if cluster.is_main
            else None
        )

    again = on_ranks(2, work)
    for key in ("final", "watch", "watch_figures", "detection", "clients"):
        assert again[key] == summary[key], key


ROUNDS = [("1", ""), ("2", "0.3"), ("3", "0.8"), ("4", "0.8"), ("5", "0.0")]


@pytest.mark.parametrize(
    ("malicious", "last", "told"),
    [({0}, 0.004, True), ({0}, 0.72, False), ((), 0.004, False), ({0}, None, False)],
)
def test_a_trigger_that_has_gone_by_the_end_is_told_of(malicious, last, told):
    rows = [
        {"round": round, "presence": at, "presence_low": at and float(at) - 0.1}
        | {"presence_high": at and float(at) + 0.1}
        for round, at in ROUNDS
    ]
    peak = _peak(rows)
    assert peak["round"] == 3
    assert peak["presence_low"] == pytest.approx(0.7)
    info = SimpleNamespace(malicious=frozenset(malicious))
    figures = {} if last is None else {"presence_high": last}
    notes = list(_passing(info, peak, figures))
    pattern = r"the trigger was in 80 % \(70 to 90\) of the images after round 3, in fewer"
    assert [bool(re.match(pattern, note)) for note in notes] == [True] * told


def test_without_looks_there_is_no_peak(finished):
    assert _peak([{"round": "1"}, {"round": "2", "presence": ""}]) is None
    assert finished[0]["presence_peak"].keys() == {
        *("round", "presence", "presence_low", "presence_high")
    }


def test_attackers_count_only_while_they_attack(finished):
    found = finished[0]["detection"]
    assert (found["malicious_client_rounds"], found["benign_client_rounds"]) == (2, 10)
    clients = finished[0]["clients"]
    assert [client["malicious"] for client in clients] == [True, False, False, False]
    assert [client["rounds"] for client in clients] == [3] * 4
    assert sum(client["fair_weight"] for client in clients) == pytest.approx(1)


def test_a_flag_costs_weight_only_where_the_rule_acts(finished):
    summary, folder = finished
    rows, rounds = read_table(folder / CLIENTS), read_table(folder / METRICS)
    acted = {int(row["round"]) for row in rounds if row["acted"] == "1"}
    assert acted <= {3}  # the first two are warm-up
    for client in summary["clients"]:
        flagged = [
            int(row["round"])
            for row in rows
            if (row["client"], row["flagged"]) == (str(client["client"]), "True")
        ]
        assert client["flagged_rounds"] == flagged
        assert client["suppressed_rounds"] == [round for round in flagged if round in acted]
    found = summary["detection"]
    assert found["malicious_suppressed"] + found["benign_suppressed"] == sum(
        len(client["suppressed_rounds"]) for client in summary["clients"]
    )


def test_the_summary_has_what_became_of_the_attacker_and_of_the_weights(finished):
    summary, folder = finished
    found = summary["detection"]
    assert [one["client"] for one in found["attackers"]] == [0]
    assert found["attackers"][0]["attacked_from_round"] == 2
    assert 0 <= found["auroc"] <= 1
    assert found["unscored"] == 0
    for row in read_table(folder / CLIENTS):
        assert float(row["fair_weight"]) == pytest.approx(0.25, abs=0.05)


def test_clients_that_are_never_drawn_do_not_end_the_run(tiny, tmp_path):
    changes = {"federation.clients": 6, "federation.sample": 0.2, "federation.rounds": 1}
    summary = run(tiny({**changes, "run_dir": str(tmp_path / "run")}))
    drawn = [client for client in summary["clients"] if client["rounds"]]
    assert len(drawn) == 1
    assert drawn[0]["final_weight"] == 1.0
