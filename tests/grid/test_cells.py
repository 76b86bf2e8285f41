"""What a grid file stands for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from fedgan import config
from fedgan.errors import UserError
from fedgan.grid.cells import read_grid
from fedgan.plan import make_plan

PATCH = {"attack.name": "patch", "attack.clients": [0], "attack.init_args": {"size": 2}}


def by_name(grid):
    return {cell.name: cell for cell in grid.cells}


def test_every_combination_with_the_clean_and_the_undefended_arm(write_grid):
    grid = read_grid(write_grid(seeds=[1, 2], data={"a": {}, "b": {"partition.alpha": 0.3}}))
    assert [cell.name for cell in grid.cells[:4]] == [
        "a__none__none__seed-1",
        "a__patch__none__seed-1",
        "a__none__median__seed-1",
        "a__patch__median__seed-1",
    ]
    assert len(grid.cells) == 2 * 2 * 2 * 2 == len(by_name(grid))
    cells = by_name(grid)
    assert cells["b__patch__median__seed-2"].experiment.partition.alpha == 0.3
    assert cells["b__patch__median__seed-2"].experiment.seed == 2
    assert cells["a__patch__median__seed-2"].experiment.partition.alpha == 0.5


def test_the_clean_arm_looks_for_the_trigger_and_nobody_stamps_it(write_grid):
    grid = read_grid(write_grid(in_base={"attack.name": "patch"}))
    for cell in grid.cells:
        plan = make_plan(cell.experiment)
        assert bool(plan.schedule.clients) == (cell.labels.attack == "patch")
        assert plan.attack.name == "patch"


def test_what_none_changes_itself_stays_and_nobody_attacks(write_grid):
    grid = read_grid(write_grid(attacks={"none": {"attack.name": "blended"}}))
    assert {cell.name for cell in grid.cells} == {"none__none__seed-1", "none__median__seed-1"}
    attack = grid.cells[0].experiment.attack
    assert (attack.name, attack.poison_rate) == ("blended", 0.0)


def test_another_component_forgets_the_arguments_of_the_base(write_grid):
    base = {
        "attack": {"name": "patch", "clients": [1], "init_args": {"area": 0.01}},
        "defense": {"rules": ["clip", "median"], "per_network": True},
    }
    grid = read_grid(
        write_grid(
            in_base=base,
            attacks={"blend": {"attack.name": "blended"}, "small": {"attack.init_args.size": 1}},
            defenses={"krum": {"defense": {"name": "trimmed-mean", "init_args": {"f": 1}}}},
        )
    )
    cells = by_name(grid)
    blend = cells["blend__krum__seed-1"].experiment
    assert (blend.attack.name, blend.attack.clients) == ("blended", [1])
    assert blend.attack.init_args == {}
    assert (blend.defense.words(), blend.defense.init_args) == (
        "trimmed-mean; per network",
        {"f": 1},
    )
    small = cells["small__none__seed-1"].experiment
    assert small.attack.init_args == {"area": 0.01, "size": 1}
    assert small.defense.words() == "none"


def test_mappings_that_are_one_value_are_taken_whole(write_grid):
    grid = read_grid(
        write_grid(
            set={"evaluate": {"encoder": {"name": "domain", "init_args": {"steps": 5}}}},
            attacks={"up": {"attack": {"update": {"name": "scaling"}}}},
        )
    )
    one = by_name(grid)["up__none__seed-1"].experiment
    assert one.attack.update == {"name": "scaling"}
    assert one.evaluate.encoder == {"name": "domain", "init_args": {"steps": 5}}


def test_loggers_learn_the_place_of_a_cell(write_grid):
    grid = read_grid(write_grid(grid_dir="grids/study"))
    wandb = by_name(grid)["patch__median__seed-1"].experiment.tracking.wandb
    assert (wandb.group, wandb.job_type) == ("study", "defended")
    assert wandb.tags == ["data: npz", "attack: patch", "defense: median", "seed: 1"]
    arms = {cell.experiment.tracking.wandb.job_type for cell in grid.cells}
    assert arms == {"clean", "attacked", "alarms", "defended"}


def test_the_command_line_changes_all_cells(write_grid):
    grid = read_grid(write_grid(), None, ["--federation.rounds=1", "--attack.from_round=2"])
    assert {cell.experiment.federation.rounds for cell in grid.cells} == {1}
    assert by_name(grid)["patch__none__seed-1"].experiment.attack.from_round == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": None}, "base: is missing"),
        ({"base": "no.yaml"}, "no such config"),
        ({"defences": {}}, "did you mean 'defenses'"),
        ({"seeds": [1, 1]}, "names one twice"),
        ({"seeds": "1"}, "no list of whole numbers"),
        ({"attacks": {"a/b": {}}}, "the label 'a/b'"),
        ({"attacks": ["patch"]}, "attacks: holds labels"),
        ({"attacks": {"still": {}}}, "nobody attacks"),
        ({"attacks": {"patch": {"attack.nam": "patch"}}}, "did you mean 'name'"),
        ({"attacks": {"patch": "patch"}}, "attacks.patch: holds keys"),
        ({"set": {"federation.rounds": "x"}}, "federation.rounds"),
        ({"set": {"seed": 3}}, "every cell has its own"),
        ({"data": {"a b": {}, "a-b": {}}}, "two cells would be called a-b__none__none__seed-1"),
        (
            {"data": {"a": {}, "b": {}}},
            "a / none / none and b / none / none have the same settings",
        ),
        ({"defenses": {"still": {}}}, "none / none and none / still have the same settings"),
        ({"grid_dir": 3}, "grid_dir: 3 is no folder's name"),
        ({"attacks": {"p" * 200: PATCH}}, "longer than 200 letters; shorten its labels"),
        ({"attacks": {True: PATCH}}, "attacks: YAML reads a label as True; put it in quotes"),
        ({"set": False}, "set: holds keys of the vocabulary and values, not False"),
        ({"attacks": False}, "attacks: holds labels"),
        ({"set": {"": 3}}, "unknown key"),
        (
            {"set": {"federation.rounds": 3, "federation": {"rounds": 4}}},
            "set: federation.rounds stands there twice",
        ),
        (
            {"attacks": {"p": {"attack": {"init_args": {"size": 2}}, "attack.init_args": {}}}},
            "attacks.p: attack.init_args.size and attack.init_args both stand there",
        ),
    ],
)
def test_refused_in_one_line(write_grid, changes, words):
    with pytest.raises(UserError, match=re.escape(words)) as refused:
        read_grid(write_grid(**changes))
    assert "\n" not in str(refused.value)


def test_a_label_that_stands_there_twice_is_refused(write_grid):
    path = write_grid()
    path.write_text("base: base.yaml\nattacks:\n  1: {attack.name: patch}\n  '1': {}\n")
    with pytest.raises(UserError, match=r"mine\.yaml: not YAML \(1 stands there twice .* line 4"):
        read_grid(path)


def test_an_empty_group_changes_nothing(write_grid):
    grid = read_grid(write_grid(set={"federation": {}}))
    assert grid.cells[0].experiment.federation.rounds == 2  # the base's


def test_a_nested_component_forgets_the_arguments_of_another_too(write_grid):
    before = {"attack.update": {"name": "norm-bound", "init_args": {"bound": 3.0}}}
    grid = read_grid(write_grid(set=before, attacks={"up": {"attack.update.name": "scaling"}}))
    assert by_name(grid)["up__none__seed-1"].experiment.attack.update == {"name": "scaling"}


@pytest.mark.parametrize(
    "key",
    [
        *("seed", "run_dir", "attack.poison_rate", "defense", "attack.name"),
        *("partition.alpha", "partition", "attack.update.init_args.factor"),
    ],
)
def test_what_tells_cells_apart_cannot_be_overridden(write_grid, key):
    attacks = {"patch": PATCH, "up": {"attack.update": {"name": "scaling"}}}
    path = write_grid(attacks=attacks, data={"skewed": {"partition.alpha": 0.3}})
    with pytest.raises(UserError, match=f"--{key}: "):
        read_grid(path, None, [f"--{key}=1"])


SHIPPED = ["smoke", "paper", "false-alarms"]
SHIPPED += ["audit", "audit-settings", "audit-adaptive", "audit-cleanup"]


def test_grids_that_ship_are_found_by_name_and_clash_with_no_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {f"{name}.yaml" for name in SHIPPED} == set(config.shipped_grids())
    assert config.locate_grid(Path("smoke")) != config.locate(Path("smoke"))
    assert "base" in yaml.safe_load(config.locate_grid(Path("smoke")).read_text())
    assert "base" not in yaml.safe_load(config.locate(Path("smoke")).read_text())
    with pytest.raises(UserError, match="no such grid, but `fedgan train quickstart` knows it"):
        config.locate_grid(Path("quickstart"))


@pytest.mark.parametrize("name", SHIPPED)
def test_grids_that_ship_have_the_arms_they_promise(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid = read_grid(name)
    assert grid.folder == Path("grids") / name
    arms = {cell.labels.arm for cell in grid.cells}
    assert arms == (
        {"clean", "alarms"}
        if name == "false-alarms"
        else {"clean", "attacked", "alarms", "defended"}
    )
    if name != "smoke":
        assert len(grid.seeds) >= 3
