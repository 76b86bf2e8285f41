"""YAML and overrides to settings and back; what is refused, and in which words."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import yaml

from fedgan import config
from fedgan.checks import check_settings
from fedgan.errors import UserError
from fedgan.plan import make_plan
from fedgan.settings import Experiment


def write(folder, values, name="mine.yaml"):
    path = folder / name
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def test_an_empty_file_is_all_defaults(tmp_path):
    found = config.read(write(tmp_path, ""))
    assert found.run_dir == "runs/mine"
    assert found.python_path == [str(tmp_path)]
    expected = asdict(Experiment())
    given = {**asdict(found), "run_dir": None, "python_path": []}
    assert given == expected


def test_overrides_win(tmp_path):
    path = write(tmp_path, {"federation": {"rounds": 3, "clients": 5}, "attack": {"name": "patch"}})
    overrides = [
        "--federation.rounds=7",
        "--attack.clients=[1,2]",
        "--attack.init_args.size=4",
        "--evaluate.encoder=domain",
        "--training.betas=[0.5,0.9]",
        "--data.size=null",
        "--tracking.wandb.project=p",
    ]
    found = config.read(path, overrides)
    assert (found.federation.rounds, found.federation.clients) == (7, 5)
    assert (found.attack.clients, found.attack.init_args) == ([1, 2], {"size": 4})
    assert found.evaluate.encoder == "domain"
    assert tuple(found.training.betas) == (0.5, 0.9)
    assert found.tracking.wandb.project == "p"


@pytest.mark.parametrize("override", ["--attack.name=none", "--attack.class_path=mine.Attack"])
def test_another_component_drops_the_arguments_of_the_old_one(tmp_path, override):
    path = write(tmp_path, {"attack": {"name": "patch", "init_args": {"size": 4}, "clients": [1]}})
    found = config.read(path, [override]).attack
    assert found.init_args == {}
    assert found.clients == [1]


def test_the_same_component_keeps_its_arguments(tmp_path):
    path = write(tmp_path, {"attack": {"name": "patch", "init_args": {"size": 4}}})
    assert config.read(path, ["--attack.name=patch"]).attack.init_args == {"size": 4}


def test_arguments_given_with_another_component_are_its_own(tmp_path):
    path = write(tmp_path, {"loss": {"name": "relativistic", "init_args": {"gamma": 1.0}}})
    loss = config.read(path, ["--loss.name=wgan-gp", "--loss.init_args.weight=5"]).loss
    assert (loss.name, loss.init_args) == ("wgan-gp", {"weight": 5})


def test_a_named_component_takes_the_place_of_a_class_path(tmp_path):
    path = write(tmp_path, {"attack": {"class_path": "mine.Attack"}})
    assert config.read(path, ["--attack.name=patch"]).attack.class_path is None


@pytest.mark.parametrize("resolved", [False, True])
def test_what_is_dumped_is_read_back(tmp_path, tiny, resolved):
    experiment = config.from_dict(tiny({"attack.name": "patch", "run_dir": "x"}))
    if resolved:
        make_plan(experiment)
        assert experiment.attack.init_args["pattern"] == "checkerboard"
    back = config.read(write(tmp_path, config.dump(experiment)))
    back.python_path = experiment.python_path
    assert asdict(back) == asdict(experiment)


@pytest.mark.parametrize(
    ("changes", "every"),
    [
        ({}, 4),
        ({"loss.init_args": {"every": 3}}, 3),
        ({"loss.init_args": {"every": None}}, 4),
        ({"loss.name": "wgan-gp"}, 1),
        ({"loss.name": "wgan-gp", "loss.init_args": {"every": None}}, 4),
    ],
)
def test_a_plan_records_what_is_in_force(tiny, monkeypatch, changes, every):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    auto = {"cluster.accelerator": "auto", "cluster.threads": None}
    looks = {"evaluate.encoder": "domain", "evaluate.watch_encoder": "efficientnet-lite0"}
    plan = make_plan(config.from_dict(tiny({**auto, **looks, **changes})))
    found = plan.settings
    assert (found.cluster.accelerator, found.cluster.threads) == ("cpu", 3)
    assert found.loss.init_args["every"] == plan.loss.every == every
    assert found.evaluate.encoder == {"name": "domain", "init_args": {"steps": 250}}
    assert found.evaluate.watch_encoder == "efficientnet-lite0"  # it has no arguments


@pytest.mark.parametrize("name", config.shipped_configs())
def test_configs_that_ship_are_valid_and_found_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for spelling in (name, name.removesuffix(".yaml"), f"configs/{name}"):
        check_settings(config.read(spelling))
    assert config.read(name).run_dir == f"runs/{name.removesuffix('.yaml')}"


def test_a_file_of_ones_own_goes_before_one_that_ships(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"seed": 77}, "quickstart.yaml")
    assert config.read("quickstart.yaml").seed == 77


REFUSED = [  # values, what the one line must say
    ({"sed": 1}, r"sed: unknown key; did you mean 'seed'"),
    ({"federation": {"round": 1}}, r"federation\.round: unknown key; did you mean 'rounds'"),
    ({"atack": {"name": "x"}}, r"atack: unknown key; did you mean 'attack'"),
    ({"tracking": {"wandb": {"mod": 1}}}, r"tracking\.wandb\.mod: .*'mode'"),
    ({"federation": {"clients": "four"}}, r"federation\.clients.*int.*four"),
    ({"federation": {"rounds": 2.5}}, r"federation\.rounds.*int.*2\.5"),
    ({"federation": {"share": "discriminator"}}, r"federation\.share.*'generator', 'both'"),
    ({"federation": {"sample": "half"}}, r"federation\.sample.*half"),
    ({"federation": {"keep_optimizer": "perhaps"}}, r"federation\.keep_optimizer.*perhaps"),
    ({"attack": {"clients": "0"}}, r"attack\.clients"),
    ({"attack": {"clients": [0.5]}}, r"attack\.clients"),
    ({"attack": {"init_args": 3}}, r"attack\.init_args"),
    ({"partition": {"name": "fair"}}, r"partition\.name.*iid"),
    ({"cluster": {"precision": 16}}, r"cluster\.precision.*bf16-mixed"),
    ({"training": {"betas": [0.5]}}, r"training\.betas"),
    ({"federation": None}, r"federation: holds keys of its own"),
    ({"federation": 4}, r"federation: holds keys of its own, not 4"),
    ({"federation": {"rounds": None}}, r"federation\.rounds: null"),
    ({"seed": None}, r"seed: null"),
    ({"attack": {"poison_rate": None}}, r"attack\.poison_rate: null"),
]


@pytest.mark.parametrize(("values", "words"), REFUSED)
def test_refused_in_one_line_that_names_the_file_and_the_key(tmp_path, values, words):
    path = write(tmp_path, values)
    with pytest.raises(UserError, match=rf"^\S*mine\.yaml: .*{words}") as caught:
        config.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--federation.round=1", r"--federation\.round: unknown key; did you mean 'rounds'"),
        ("--rounds=1", r"--rounds: unknown key"),
        ("federation.rounds=1", r"unexpected argument 'federation\.rounds=1'.*--key=value"),
        ("--federation.rounds=x", r"federation\.rounds.*int"),
        ("--federation.rounds=null", r"federation\.rounds"),
        ("--federation=3", r"federation"),
        ("--data.path", r"data\.path"),
    ],
)
def test_bad_overrides(tmp_path, override, words):
    with pytest.raises(UserError, match=words) as caught:
        config.read(write(tmp_path, {}), [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b", "a config is a mapping of keys, this is a list"),
        ("a: [1", "not YAML"),
        ("seed: 1\n\tx: 2", "not YAML"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, words):
    with pytest.raises(UserError, match=rf"mine\.yaml: .*{words}") as caught:
        config.read(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match=r"mine\.yaml: "):
        config.read(path)


def test_a_config_that_is_not_there():
    with pytest.raises(UserError, match=r"quickstar\.yaml: no such config; did you mean 'quick"):
        config.read("quickstar.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("federation: {rounds: 3}\nseed: 1\nfederation: {clients: 5}\n", "federation stands there"),
        ("attack: &a {init_args: *a}\n", "an alias in it stands for what it is part of"),
    ],
)
def test_yaml_that_says_less_than_it_seems_to_is_refused(tmp_path, text, words):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"a.yaml: .*{words}"):
        config.read(path)


def test_merged_keys_may_be_overridden(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "federation: &f {rounds: 3, clients: 5}\n"
        "model: {init_args: {inner: &g {<<: *f, rounds: 4}}}\n"
        "loss: {init_args: {<<: *g}}\n"
    )
    experiment = config.read(path)
    assert experiment.loss.init_args == {"rounds": 4, "clients": 5}
    assert experiment.model.init_args == {"inner": {"rounds": 4, "clients": 5}}
