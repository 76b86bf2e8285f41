"""What a config may say of attacks on updates and reports, and what it is warned of."""

from __future__ import annotations

import logging

import pytest
import yaml

from fedgan import config
from fedgan.attacks.updates import UpdateAttack
from fedgan.errors import UserError
from fedgan.experiment import run
from fedgan.plan import make_plan

EXACT = {"name": "scaling", "init_args": {"exact": True}}
BOUND = {"name": "norm-bound", "init_args": {"norm": 0.05}}
ONE = {"attack.clients": [1]}
SAMPLED = {"federation.sample": 0.2, "attack.clients": [1], "federation.rounds": 1}


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
def test_warned_of_attacks_that_do_nothing(five, caplog, changes, words):
    with caplog.at_level(logging.WARNING, "fedgan.plan"):
        make_plan(config.from_dict(five({"run_dir": "unused", **changes})))
    assert caplog.messages == [] if words is None else words in caplog.text
