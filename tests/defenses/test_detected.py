"""A detector in front of a rule: what goes together, and whole runs of it."""

from __future__ import annotations

import pytest
import torch

from fedgan import config
from fedgan.defenses.api import aggregate, make_defense
from fedgan.defenses.audit import Audit
from fedgan.defenses.chain import PerNetwork
from fedgan.defenses.detected import Detected, per_network
from fedgan.errors import UserError
from fedgan.plan import make_plan


def test_taking_off_what_another_rule_has_joined_is_refused():
    remove = {"name": "audit", "init_args": {"cleanup": "remove"}}
    for rules in ([remove], [remove, "fedavg"]):
        make_defense(rules)
    for rules in ([remove, "median"], [remove, "fedavgm"], [remove, "clip"]):
        with pytest.raises(UserError, match="cleanup is remove"):
            make_defense(rules)


@pytest.mark.parametrize(
    ("rules", "way"),
    [
        (["audit"], "remove"),
        (["audit", "fedavg"], "remove"),
        (["audit", "median"], "rollback"),
        (["audit", "fedavgm"], "rollback"),
        (["audit", "clip"], "rollback"),
        (["audit", "gradient-penalty"], "remove"),
    ],
)
def test_unless_told_it_takes_off_where_it_can_and_else_goes_back(rules, way):
    made = make_defense(rules)
    assert isinstance(made, Detected)
    assert isinstance(made.detector, Audit)
    assert made.detector.cleanup.way == way
    # The one in front of both networks' rules, of which only the discriminator's is another.
    both = per_network([made, make_defense(["krum"])], [3, 4])
    assert isinstance(both, Detected)
    assert isinstance(both.detector, Audit)
    assert both.detector.cleanup.way == "rollback"


def test_one_detector_first_and_for_generators_only():
    with pytest.raises(UserError, match="audit judges before all other stages"):
        make_defense(["median", "audit"])
    with pytest.raises(UserError, match=r"audit runs the clients' generators"):
        aggregate(torch.randn(5, 3), "audit")
    both = per_network([make_defense(["audit", "median"]), make_defense(["krum"])], [3, 4])
    assert isinstance(both, Detected)
    assert isinstance(both.rule, PerNetwork)
    with pytest.raises(UserError, match="at least 3 clients"):
        Audit().check(2)


@pytest.mark.parametrize("rules", [["krum"], ["audit", "krum"]])
def test_no_detector_for_the_discriminator_alone(rules, tiny):
    theirs = [{"name": "audit", "init_args": {"cleanup": "none"}}, "median"]
    changes = {"defense.rules": rules, "defense.discriminator": theirs}
    with pytest.raises(UserError, match=r"defense\.discriminator: audit .* into defense\.rules"):
        make_plan(config.from_dict(tiny(changes)))


@pytest.mark.parametrize("behind", ["rules", "discriminator"])
def test_taking_off_is_refused_in_front_of_another_rule_for_one_network(behind, tiny, monkeypatch):
    remove = {"name": "audit", "init_args": {"cleanup": "remove"}}
    alone = {"defense.rules": [remove], "defense.per_network": True, "federation.clients": 5}
    make_plan(config.from_dict(tiny(alone)))
    if behind == "rules":
        changes = {**alone, "defense.rules": [remove, "median"]}
    else:
        changes = {**alone, "defense.per_network": False, "defense.discriminator": ["median"]}
    monkeypatch.setattr("fedgan.plan.plan_data", None)  # it is told before data are read
    with pytest.raises(UserError, match="cleanup is remove"):
        make_plan(config.from_dict(tiny(changes)))


@pytest.mark.parametrize("behind", [["median"], []], ids=["rollback", "remove"])
def test_the_same_bytes_on_two_processes_and_after_a_resume(
    behind, tiny, tmp_path, monkeypatch, capsys
):
    from fedgan.experiment import resume, run

    # Whoever has any score at all is alarming.
    monkeypatch.setattr("fedgan.defenses.audit.p_values", lambda scores, tests: -scores)
    changes = {
        "defense.rules": [{"name": "audit", "init_args": {"losses": True}}, *behind],
        "attack.name": "patch",
        "attack.update": "sign-flip",
        "federation.clients": 5,
        "federation.rounds": 5,
        "run_dir": str(tmp_path / "run"),
    }
    whole = run(tiny(changes))
    done = "back to the model before" if behind else "taken off the model"
    assert done in capsys.readouterr().out
    again = {**changes, "cluster.devices": 2, "run_dir": str(tmp_path / "again")}
    assert run(tiny(again))["generator_sha256"] == whole["generator_sha256"]
    clients = [(tmp_path / name / "clients.csv").read_text() for name in ("run", "again")]
    assert clients[0] == clients[1]
    torn = resume(tmp_path / "run", checkpoint=torn_at(tmp_path / "run"))
    assert torn["generator_sha256"] == whole["generator_sha256"]
    assert (tmp_path / "run" / "clients.csv").read_text() == clients[0]


def torn_at(run_dir):
    """The older of the checkpoints that are kept."""
    return min(path.name for path in (run_dir / "checkpoints").glob("round_*"))


@pytest.mark.parametrize(("share", "networks"), [("both", 2), ("generator", 1)])
def test_discriminators_are_inspected_where_they_are_shared(
    tiny, tmp_path, monkeypatch, share, networks
):
    from fedgan.experiment import run

    seen, judge = [], Audit.judge

    def spy(audit, updates, reports, inspection, server):
        seen.append(inspection)
        return judge(audit, updates, reports, inspection, server)

    monkeypatch.setattr(Audit, "judge", spy)
    changes = {"federation.share": share, "federation.clients": 3, "run_dir": str(tmp_path / "run")}
    run(tiny({"defense.name": "audit", **changes}))
    for one in seen:
        assert one.norms.shape[1] == networks
        assert len(one.views) == 2 * networks
        assert one.finite.all()
        assert all(view.finite().all() for view in one.views.values())
        assert (one.norms > 0).all()
    assert seen
