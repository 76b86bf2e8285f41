"""What holds for every stage of the catalogue, alone in a chain; and where it does not, and why.

A new rule needs no line here, unless it has a parameter without a default, or a property does not
hold for it by its definition.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgan import shards
from fedgan.components import available
from fedgan.defenses import aggregate
from fedgan.defenses.api import make_defense
from fedgan.defenses.base import Defense, ServerMeans, Stage, Tolerant
from fedgan.reports import Report
from fedgan.updates import UpdateMatrix

STAGES = {
    name: cls
    for name, cls in available("fedgan.defenses", Stage).items()
    if not cls.runs_generators  # plain rows are none: tests/defenses/test_audit.py
}
PARAMETERS: dict[str, dict[str, Any]] = {"fltrust": {"root": 0}}
"""Of stages that have no defaults."""

QUIET = {
    "noise": {"sigma": 0},
    "weak-dp": {"sigma": 0},
    "crfl": {"sigma": 0},
    "flame": {"noise": 0},
}
"""Of stages that add noise, without it: for all properties but the number of ranks."""

PERMUTED, SHIFTED, SCALED = "permuted clients", "a vector added to all", "all times c > 0"
SAME, ONE_FAR, RANKS = "equal updates", "one update far off", "any number of ranks"
DOUBLE, UNTOUCHED = "float32 and float64", "inputs are never written"
READS = "unusable updates"
READS_LOSSES = "reads losses, and leaves the updates alone"
AVERAGES = "everybody moves a mean"
FROM_ZERO = "it looks at norms or directions, which a shift changes"
ADAPTIVE = "its step hardly depends on the size of the aggregate"
EXCEPT: dict[str, dict[str, str]] = {
    PERMUTED: {
        "feddetect": READS_LOSSES,
        "bulyan": "with f = 1 its last choices are ties, where the lower client goes first",
        "mda": "several sets may be as close together; the first of them in order is taken",
        "fltrust": "the root is a client by its number",
    },
    SHIFTED: {
        "feddetect": READS_LOSSES,
        "clip": FROM_ZERO,
        "centered-clipping": FROM_ZERO,
        "weak-dp": FROM_ZERO,
        "rlr": FROM_ZERO,
        "foolsgold": FROM_ZERO,
        "fltrust": FROM_ZERO,
        "flame": FROM_ZERO,
        "fedadam": ADAPTIVE,
        "fedyogi": ADAPTIVE,
    },
    SCALED: {
        "feddetect": READS_LOSSES,
        "fedadam": ADAPTIVE,
        "fedyogi": ADAPTIVE,
        "foolsgold": "its history is kept in float32, so its weights are right to 1e-6 only",
    },
    SAME: {"feddetect": READS_LOSSES, "fedadam": ADAPTIVE, "fedyogi": ADAPTIVE},
    ONE_FAR: {
        "feddetect": READS_LOSSES,
        "fedavg": AVERAGES,
        "mean": AVERAGES,
        "gradient-penalty": AVERAGES,
        "noise": AVERAGES,
        "crfl": AVERAGES,
        "fedavgm": AVERAGES,
        "fedadam": AVERAGES,
        "fedyogi": AVERAGES,
        "rlr": "it turns the mean's signs, and leaves its size",
        "foolsgold": "it looks for clients that agree too well, not for one that is far off",
        "fltrust": "the far one may be the root, whom it trusts",
        "nnm": "no defence alone: the far update is in its own mixture",
    },
    RANKS: {"feddetect": READS_LOSSES},
    DOUBLE: {"feddetect": READS_LOSSES},
    UNTOUCHED: {"feddetect": READS_LOSSES},
    READS: {"feddetect": READS_LOSSES},
}
"""Of each property, the stages for which it does not hold, and why."""

CASES = st.tuples(st.integers(7, 14), st.integers(1, 20), st.integers(0, 10**6))
FEW = settings(max_examples=8)
CLOSE = {"rtol": 1e-8, "atol": 1e-10}


def every_stage_but(of):
    return pytest.mark.parametrize("name", sorted(STAGES.keys() - EXCEPT[of].keys()))


def stage(name, quiet=False):
    noise = QUIET.get(name, {}) if quiet else {}
    return {"name": name, "init_args": {**PARAMETERS.get(name, {}), **noise}}


def joined(rows, *names):
    return aggregate(rows, [stage(name, quiet=True) for name in names])


def updates_of(n, size, seed, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=(n, size)).astype(dtype)


def test_the_table_names_stages_that_there_are():
    named = {name for of in EXCEPT.values() for name in of} | PARAMETERS.keys() | QUIET.keys()
    assert named <= STAGES.keys()


@every_stage_but(PERMUTED)
@FEW
@given(CASES)
def test_the_order_of_clients_does_not_matter(name, case):
    rows = updates_of(*case)
    order = np.random.default_rng(case[2] + 1).permutation(len(rows))
    np.testing.assert_allclose(joined(rows[order], name), joined(rows, name), **CLOSE)


@every_stage_but(SHIFTED)
@FEW
@given(CASES)
def test_a_vector_added_to_all_is_added_to_the_aggregate(name, case):
    rows = updates_of(*case)
    vector = 10 * np.random.default_rng(case[2] + 1).normal(size=rows.shape[1])
    np.testing.assert_allclose(joined(rows + vector, name), joined(rows, name) + vector, **CLOSE)


@every_stage_but(SCALED)
@FEW
@given(CASES, st.sampled_from([1e-9, 0.3, 7.0, 1e9]))
def test_a_factor_is_a_factor_of_the_aggregate(name, case, factor):
    rows = updates_of(*case)
    np.testing.assert_allclose(joined(rows * factor, name) / factor, joined(rows, name), **CLOSE)


@every_stage_but(SAME)
@pytest.mark.parametrize("n", [7, 8])
def test_equal_updates_give_that_update(name, n):
    row = updates_of(1, 300, 3, np.float32)
    np.testing.assert_array_equal(joined(np.repeat(row, n, 0), name), row[0])


def within_reach(found, honest):
    """No further from the honest mean than sqrt(n) times the honest client that is furthest: what
    holds for anything inside the box of the honest, and for the geometric median."""
    centre = honest.mean(0)
    reach = np.linalg.norm(honest - centre, axis=1).max()
    return np.linalg.norm(found - centre) <= math.sqrt(len(honest)) * reach


@every_stage_but(ONE_FAR)
@FEW
@given(CASES, st.floats(1, 1e5))
def test_one_update_far_off_does_little(name, case, far):
    rows = updates_of(*case)
    rows[case[2] % len(rows)] += far * np.random.default_rng(case[2]).choice([-1, 1])
    honest = np.delete(rows, case[2] % len(rows), axis=0)
    assert within_reach(joined(rows, name), honest)
    if issubclass(STAGES[name], Defense):
        assert within_reach(joined(rows, "nnm", name), honest)


@every_stage_but(DOUBLE)
@FEW
@given(CASES)
def test_float32_is_float64_but_for_rounding(name, case):
    rows = updates_of(*case, np.float32)
    found = joined(rows, name)
    assert found.dtype == np.float32
    expected = joined(rows.astype(np.float64), name)
    assert expected.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@every_stage_but(UNTOUCHED)
def test_the_updates_stay_as_they_are(name):
    rows = torch.from_numpy(updates_of(9, 300, 0))
    before = rows.clone()
    joined(rows, name), joined(rows, "nnm", name)
    assert torch.equal(rows, before)


BAD = {
    "NaN": np.full(20, np.nan),
    "infinite": np.r_[np.inf, np.zeros(19)],
    "zero": np.zeros(20),
    "gigantic": np.full(20, 1e30),
    "too short": np.ones(19),
}


def with_f(name, f):
    """The stage, told to stand f; one that has no f as it is."""
    chosen = stage(name, quiet=True)
    if "f" in inspect.signature(STAGES[name]).parameters:
        chosen["init_args"]["f"] = f
    return [chosen]


@pytest.mark.parametrize("bad", BAD)
@every_stage_but(READS)
@pytest.mark.parametrize("n", [11, 10])
def test_what_is_unusable_does_nothing(name, bad, n):
    """n and f are of those who are left: f stays, unless so few do not bear it."""
    rows = list(updates_of(n, 20, 5))
    found = aggregate([*rows[:4], BAD[bad], *rows[4:]], with_f(name, 2))
    least = STAGES[name].needs if issubclass(STAGES[name], Tolerant) else (0, 0)
    left = min(2, (n - least[1]) // least[0]) if least[0] else 2
    np.testing.assert_array_equal(found, aggregate(rows, with_f(name, left)))


CLIENTS = (0, 2, 3, 5, 7, 8, 10, 11, 15)
OWNERS = {1: (0,) * 9, 2: (1, 0, 1, 1, 1, 1, 0, 1, 1), 3: (2, 0, 2, 0, 2, 2, 0, 2, 2)}
WEIGHTS = torch.arange(1, 10, dtype=torch.float64) / 45


def verdicts(cluster, values, chains):
    """The aggregate, weights, scores and flags of each chain, on every rank."""
    owners = OWNERS[cluster.world]
    mine = [i for i, owner in enumerate(owners) if owner == cluster.rank]
    updates = UpdateMatrix(torch.from_numpy(values[mine]), CLIENTS, owners, WEIGHTS)
    server = ServerMeans(1, torch.zeros(values.shape[1]), 7)
    reports = [Report(client, 1, 1, *[1.0 + client] * 4) for client in CLIENTS]
    answers = {}
    for chain in chains:
        found = make_defense([stage(name) for name in chain])(updates, reports, server)
        parts = (found.joined(updates), found.weights, found.scores, found.flagged)
        answers[chain] = [part.numpy() for part in parts]
    return cluster.all_gather_objects(answers)


@pytest.mark.parametrize("size", [30, 6000])
def test_the_same_bytes_on_any_number_of_ranks(on_ranks, size, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK", 700)
    monkeypatch.setattr(shards, "PIECE", 700)
    values = updates_of(9, size, 1, np.float32)
    values[4] += 3
    names = sorted(STAGES.keys() - EXCEPT[RANKS].keys())
    chains = [(name,) for name in names]
    chains += [("nnm", name) for name in names if issubclass(STAGES[name], Defense)]
    alone = on_ranks(1, verdicts, values, chains)[0]
    for world in (2, 3):
        for answers in on_ranks(world, verdicts, values, chains):
            for chain in chains:
                for found, expected in zip(answers[chain], alone[chain], strict=True):
                    assert found.tobytes() == expected.tobytes(), (world, chain)
