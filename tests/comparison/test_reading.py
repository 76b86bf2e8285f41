"""Run directories and grid directories, read back."""

from __future__ import annotations

import json
import shutil
from dataclasses import astuple

import pytest

import fedgan
from fedgan.errors import UserError
from fedgan.runs import read_grid_dir, read_run


def test_run_directories_are_labelled_by_their_configs(write_run):
    paths = [
        write_run("a", "none", "none", 1, 10.0),
        write_run("b", "patch", "none", 1, 30.0),
        write_run("c", "patch", "krum", 1, 15.0),
    ]
    found = fedgan.compare(paths)
    assert [(row.attack, row.defense, row.value.mean) for row in found.rows] == [
        ("none", "none", 10.0),
        ("patch", "none", 30.0),
        ("patch", "krum", 15.0),
    ]
    assert found.row("brain-mri", "patch", "krum").runs == (str(paths[2]),)


def test_arguments_tell_attacks_of_one_name_apart(write_run):
    paths = [
        write_run(f"{size}-{seed}", "patch", "none", seed, 10.0 * size, config={
            "attack": {"init_args": {"size": size}},
        })
        for size in (3, 5)
        for seed in (1, 2)
    ]  # fmt: skip
    rows = fedgan.compare(paths).rows
    assert [(row.attack, row.seeds) for row in rows] == [
        ("patch (size=3)", (1, 2)),
        ("patch (size=5)", (1, 2)),
    ]


def test_attackers_that_are_drawn_by_the_seed_are_one_attack(write_run):
    paths = [
        write_run(f"{seed}", "patch", "none", seed, 10.0, config={
            "attack": {"share": 0.3, "clients": [seed]},
        })
        for seed in (1, 2)
    ]  # fmt: skip
    assert [row.seeds for row in fedgan.compare(paths).rows] == [(1, 2)]


def test_a_grid_says_what_it_lacks_and_may_be_moved(write_grid, tmp_path):
    moved = tmp_path / "moved"
    shutil.move(write_grid, moved)
    found = fedgan.compare(moved)
    assert len(found.rows) == 4
    assert [astuple(one) for one in found.missing] == [("mri", "patch", "krum", 2, "failed")]
    assert found.row("mri", "patch", "krum").seeds == (1,)
    assert found.row("mri", "none", "krum").difference.mean == pytest.approx(2.0)


def test_a_broken_cell_is_missing(write_grid):
    broken = write_grid / "cells" / "mri__patch__none__seed-1" / "summary.json"
    broken.write_text("{")
    runs, missing = read_grid_dir(write_grid)
    assert len(runs) == 6
    assert "is broken" in missing[0].state


@pytest.mark.parametrize("text", ["{", '{"cells": 3}', '[{"name": "x"}]'])
def test_a_broken_grid_is_told_in_a_line(write_grid, text):
    (write_grid / "grid.json").write_text(text)
    with pytest.raises(UserError, match=r"grid\.json: is broken"):
        fedgan.compare(write_grid)


def test_fewer_than_two_runs_are_refused(write_run, write_grid, tmp_path):
    with pytest.raises(UserError, match=r"needs two finished runs or more.*; found 1"):
        fedgan.compare(write_run("a", "none", "none", 1, 10.0))
    shutil.rmtree(write_grid / "cells")
    with pytest.raises(UserError, match="found 0 of 8 cells"):
        fedgan.compare([write_grid])


def test_a_run_that_has_not_finished_is_refused(write_run):
    paths = [write_run(name, name, "none", 1, 10.0) for name in ("none", "patch")]
    (paths[1] / "summary.json").unlink()
    with pytest.raises(UserError, match="has not finished; `fedgan resume"):
        fedgan.compare(paths)
    (paths[1] / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="is no summary of a run"):
        fedgan.compare(paths)


@pytest.fixture
def measure_again(write_run):
    """A run with an evaluation.json that says something else than its summary."""

    def measure(sha="abc", **final):
        path = write_run("a", "none", "none", 1, 10.0)
        told = json.loads((path / "evaluation.json").read_text())
        told |= {"figures": {"acc_gain_1": 0.1}, "generator_sha256": sha}
        told["final"] |= {"measures": ["utility"], **final}
        (path / "evaluation.json").write_text(json.dumps(told))
        return read_run(path)

    return measure


def test_what_was_evaluated_since_stands_beside(measure_again):
    assert {"fd_domain": 10.0, "acc_gain_1": 0.1}.items() <= measure_again().figures.items()


def test_what_was_measured_otherwise_stands_alone(measure_again):
    run = measure_again(samples=5000)
    assert run.figures == {"acc_gain_1": 0.1}
    assert run.final["samples"] == 5000


def test_another_generator_does_not_count(measure_again):
    run = measure_again(sha="of the best checkpoint", samples=5000)
    assert "acc_gain_1" not in run.figures
    assert run.final["samples"] == 100
