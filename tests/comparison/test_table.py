"""Rows, ranking, what is missing and what is noted, of made-up runs worked out by hand."""

from __future__ import annotations

import math
from dataclasses import astuple

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

from fedgan.comparison import compare_runs
from fedgan.errors import UserError
from fedgan.runs import Labels, Missing
from fedgan.settings import Attack, Experiment


@pytest.fixture
def runs(make_run):
    """Two attacks, two defences and FedAvg, three seeds. krum is best against patch and bad against
    sig; median is even."""
    found = []
    for seed, noise in ((1, 0.0), (2, 0.5), (3, 1.0)):
        found += [
            make_run("none", "none", seed, 10 + noise),
            make_run("none", "krum", seed, 12 + noise),
            make_run("none", "median", seed, 11 + noise),
            make_run("patch", "none", seed, 30 + 2 * noise, presence=0.9),
            make_run("sig", "none", seed, 20 + noise, presence=0.5),
            make_run("patch", "krum", seed, 14 + noise / 4, presence=0.1),
            make_run("sig", "krum", seed, 28 + noise / 4, presence=0.0),
            make_run("patch", "median", seed, 20 + noise / 3, presence=0.4),
            make_run("sig", "median", seed, 19 + noise, presence=0.5),
        ]
    return found


def test_means_ratios_and_differences_by_hand(runs):
    found = compare_runs(runs)
    assert (found.figure, found.less_is_better) == ("fd_domain", True)
    row = found.row("mri", "patch", "krum")
    assert row.arm == "defended"
    assert row.seeds == (1, 2, 3)
    assert (row.value.mean, row.value.std) == pytest.approx((14.125, 0.125))
    # 14 / 10, 14.125 / 10.5, 14.25 / 11
    assert row.ratio.mean == pytest.approx((1.4 + 14.125 / 10.5 + 14.25 / 11) / 3)
    # 14 - 30, 14.125 - 31, 14.25 - 32: mean -16.875, deviation 0.875, t(0.975, 2) = 4.30265
    half = 4.30265273 * 0.875 / math.sqrt(3)
    assert row.difference.mean == pytest.approx(-16.875)
    assert (row.difference.low, row.difference.high) == pytest.approx(
        (-16.875 - half, -16.875 + half)
    )
    assert row.difference.shown == "better"
    assert row.is_better
    assert found.tested == 6  # of 9 rows, three are undefended
    assert row.difference.p_holm > row.difference.p


def test_recovery_is_of_means_and_paired(runs):
    row = compare_runs(runs).row("mri", "patch", "krum")
    assert row.recovery.paired
    assert row.recovery.value == pytest.approx(16.875 / 20.5)  # (31 - 14.125) / (31 - 10.5)
    assert row.leakage.value == pytest.approx(0.8 / 0.9)


def test_one_image_in_every_seed_shows_nothing(make_run):
    runs = [
        make_run("patch", defense, seed, 10.0 + seed, presence=share)
        for defense, share in (("none", 0.00), ("krum", 0.01))
        for seed in (1, 2)
    ]  # of 100 images
    found = compare_runs(runs)
    assert found.row("mri", "patch", "krum").presence_difference.shown == "nothing shown"
    found = compare_runs(runs, figure="presence")
    assert found.row("mri", "patch", "krum").difference.shown == "nothing shown"
    assert found.ranking[1].behind.shown == "nothing shown"


def test_undefended_and_clean_arms_have_no_difference(runs):
    found = compare_runs(runs)
    for attack in ("none", "patch", "sig"):
        row = found.row("mri", attack, "none")
        assert row.difference is None
        assert row.recovery is None
        assert row.detection == {}
    assert found.row("mri", "none", "none").ratio.mean == 1


def test_harm_is_of_undefended_attacks_and_corrected_for_them(runs):
    found = compare_runs(runs)
    harm = found.row("mri", "patch", "none").harm
    # 30 - 10, 31 - 10.5, 32 - 11
    assert harm.mean == pytest.approx(20.5)
    assert harm.shown == "worse"
    assert harm.p_holm == pytest.approx(harm.p)  # sig's, in every seed alike, has p = 0
    assert [row.attack for row in found.rows if row.harm] == ["patch", "sig"]
    assert all(row.defense == "none" for row in found.rows if row.harm)


def test_where_nobody_attacks_a_defence_costs_distance(runs):
    row = compare_runs(runs).row("mri", "none", "krum")
    assert row.arm == "alarms"
    assert row.difference.mean == pytest.approx(2.0)
    assert row.recovery is None
    assert row.detection["fpr"].mean == pytest.approx(0.1)
    assert "tpr" not in row.detection


def test_the_ranking_is_by_the_worst_case(runs):
    ranking = compare_runs(runs).ranking
    assert [(one.place, one.defense, one.attack) for one in ranking] == [
        (1, "median", "patch"),
        (2, "krum", "sig"),
        (3, "none", "patch"),
    ]
    first, second, third = ranking
    assert first.behind is None
    assert first.cost.mean > 1
    assert second.behind.mean == pytest.approx(28.125 - 20 - 0.5 / 3)
    assert second.behind.shown == third.behind.shown == "worse"
    assert (third.presence_attack, third.presence.mean) == ("patch", pytest.approx(0.9))


def test_a_defence_without_an_attack_has_no_place(runs):
    some = [run for run in runs if run.labels[1:3] != ("sig", "krum")]
    ranking = compare_runs(some).ranking
    assert [(one.place, one.defense) for one in ranking] == [
        (1, "median"),
        (2, "none"),
        (None, "krum"),
    ]
    assert ranking[-1].lacks == ("sig",)
    assert ranking[-1].behind is None


def test_more_can_be_better(make_run):
    runs = [
        make_run(attack, defense, seed, fd=1.0, recall_domain=recall + 0.01 * seed)
        for attack, defense, recall in (
            ("none", "none", 0.8),
            ("patch", "none", 0.2),
            ("patch", "krum", 0.5),
            ("sig", "none", 0.6),
            ("sig", "krum", 0.4),
        )
        for seed in (1, 2)
    ]
    found = compare_runs(runs, figure="recall_domain")
    assert not found.less_is_better
    row = found.row("mri", "patch", "krum")
    assert row.recovery.value == pytest.approx(0.5)
    assert row.difference.shown == "better"
    assert [(one.defense, one.attack) for one in found.ranking] == [
        ("krum", "sig"),
        ("none", "patch"),
    ]


def test_one_seed_is_never_better(make_run):
    runs = [
        make_run("none", "none", 1, 10.0),
        make_run("patch", "none", 1, 500.0),
        make_run("patch", "krum", 1, 10.0),
    ]
    found = compare_runs(runs)
    row = found.row("mri", "patch", "krum")
    assert row.difference.shown == "one seed"
    assert not row.is_better
    assert row.recovery.value == pytest.approx(1.0)
    assert row.recovery.low is None
    assert any("3 of 3 rows have one seed" in note for note in found.notes)
    assert found.ranking[1].behind.shown == "one seed"


def test_other_seeds_are_compared_by_their_means(make_run):
    runs = [
        make_run("none", "none", 1, 10.0),
        make_run("patch", "none", 2, 30.0),
        make_run("patch", "krum", 3, 15.0),
    ]
    row = compare_runs(runs).row("mri", "patch", "krum")
    assert (row.ratio.mean, row.ratio.n) == (1.5, 0)
    assert row.difference is None
    assert row.recovery.value == pytest.approx(0.75)
    assert not row.recovery.paired


def test_recovery_is_paired_by_the_seeds_that_all_arms_have(make_run):
    arms = {("none", "none"): 10.0, ("patch", "none"): 30.0, ("patch", "krum"): 15.0}
    runs = [make_run(*arm, seed, fd + seed) for arm, fd in arms.items() for seed in (1, 2)]
    runs.append(make_run("patch", "none", 3, 900.0))
    row = compare_runs(runs).row("mri", "patch", "krum")
    assert row.recovery.paired
    assert row.recovery.value == pytest.approx(0.75)


@given_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(data=st.data())
def test_the_order_of_runs_makes_no_difference(runs, data):
    some = runs[:-1]
    assert compare_runs(data.draw(st.permutations(some))) == compare_runs(some)


def test_rows_are_in_the_order_of_numbers_in_names(make_run):
    names = ["none", "patch 0.5", "patch 2", "patch 10"]
    runs = [make_run(name, "none", 1, 10.0) for name in reversed(names)]
    assert [row.attack for row in compare_runs(runs).rows] == names


def test_missing_cells_are_told_with_what_became_of_them(runs):
    some = [run for run in runs if run.labels != ("mri", "sig", "krum", 3)]
    some = [run for run in some if run.labels[1:3] != ("none", "median")]
    missing = compare_runs(
        some, [Missing("cell", Labels("mri", "sig", "krum", 3), "failed")]
    ).missing
    assert [astuple(one) for one in missing] == [
        *(("mri", "none", "median", seed, "is not among the runs") for seed in (1, 2, 3)),
        ("mri", "sig", "krum", 3, "failed"),
    ]


def test_a_figure_that_is_not_finite_is_missing(runs, make_run):
    some = [run for run in runs if run.labels != ("mri", "patch", "krum", 2)]
    some.append(make_run("patch", "krum", 2, math.nan))
    found = compare_runs(some)
    assert found.row("mri", "patch", "krum").value.n == 2
    assert "not finite" in found.missing[0].why


def test_data_sets_stand_apart(make_run):
    runs = [
        make_run(attack, "none", 1, fd, data=data, samples=samples)
        for data, samples in (("xray", 50), ("mri", 100))
        for attack, fd in (("none", 10.0), ("patch", 20.0))
    ]
    found = compare_runs(runs)
    assert found.data == ["mri", "xray"]
    assert found.measured["xray"]["samples"] == 50
    assert [one.data for one in found.ranking] == ["mri", "xray"]


def test_leakage_needs_the_same_trigger_in_the_clean_arm(make_run):
    attack = Attack(name="patch", init_args={"size": 3})
    alike = Experiment(attack=attack)
    arms = {("none", "none"): 0.0, ("patch", "none"): 0.8, ("patch", "krum"): 0.2}
    runs = [make_run(*arm, 1, 10.0, p, settings=alike) for arm, p in arms.items()]
    found = compare_runs(runs)
    assert found.row("mri", "patch", "krum").leakage.value == pytest.approx(0.75)
    other = Experiment(attack=Attack(name="patch", init_args={"size": 5}))
    runs[0] = make_run("none", "none", 1, 10.0, settings=other)
    found = compare_runs(runs)
    assert found.row("mri", "patch", "krum").leakage is None
    assert any("looked for another trigger than patch" in note for note in found.notes)


def test_notes_tell_what_else_a_defence_changes(make_run):
    bce = Experiment()
    bce.loss.name = "bce"
    runs = [make_run("none", "none", 1, 10.0), make_run("none", "bce", 1, 10.0, settings=bce)]
    notes = compare_runs(runs).notes
    assert "mri: loss.name differs too: bce with none / bce; relativistic with none / none" in notes
    assert "mri: nobody attacks in any run: no worst case, no ranking" in notes


def test_notes_tell_of_an_encoder_of_each_seed(make_run):
    runs = [make_run("none", "none", seed, 10.0, fingerprint=f"f{seed}") for seed in (1, 2)]
    assert any("domain is another one with every seed" in note for note in compare_runs(runs).notes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": 50}, "number of images measured is 100 in the first and 50 in the second"),
        ({"encoder": "inception"}, "encoders is domain in the first and inception in the second"),
        ({"fingerprint": "g"}, "fingerprint of domain is f in the first and g in the second"),
    ],
)
def test_runs_that_were_measured_otherwise_are_refused(make_run, change, words):
    runs = [make_run("none", "none", 1, 10.0), make_run("patch", "none", 1, 10.0, **change)]
    with pytest.raises(UserError, match=f"mri-none.* and mri-patch.* cannot be compared: {words}"):
        compare_runs(runs)


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("data", "size", 64),
        ("federation", "rounds", 9),
        ("federation", "clients", 9),
        ("partition", "name", "dirichlet"),
        ("model", "init_args", {"width": 64}),
    ],
)
def test_runs_that_were_trained_otherwise_are_refused(make_run, group, key, value):
    runs = [make_run("none", "none", 1, 10.0), make_run("patch", "none", 1, 10.0)]
    setattr(getattr(runs[1].settings, group), key, value)
    with pytest.raises(UserError, match=rf"cannot be compared: {group}\.|cannot be .*model.width"):
        compare_runs(runs)


def test_rounds_that_were_played_must_be_alike(make_run):
    runs = [make_run("none", "none", 1, 10.0), make_run("patch", "none", 1, 10.0)]
    runs[1].summary["rounds"] = 2
    with pytest.raises(
        UserError, match="rounds that were played is 3 in the first and 2 in the second"
    ):
        compare_runs(runs)


def test_one_label_stands_for_one_thing(make_run):
    runs = [make_run("patch", "none", seed, 10.0) for seed in (1, 2)]
    runs[1].settings.attack.init_args = {"size": 9}
    with pytest.raises(UserError, match="size is None in the first and 9 in the second"):
        compare_runs(runs)


def test_a_cell_has_one_run_a_seed(make_run):
    runs = [make_run("patch", "none", 1, 10.0) for _ in range(2)]
    with pytest.raises(UserError, match="are both mri, attack patch, defence none, seed 1"):
        compare_runs(runs)


@pytest.mark.parametrize("figure", ["fd_domain_floor", "presence_high", "nonsense"])
def test_figures_without_a_better_way_are_refused(make_run, figure):
    runs = [make_run("none", "none", 1, 10.0), make_run("patch", "none", 1, 10.0)]
    with pytest.raises(UserError, match=rf"--figure: '{figure}' is none .* known: fd_domain, pres"):
        compare_runs(runs, figure=figure)


def test_a_figure_that_was_not_measured_is_refused(make_run):
    runs = [make_run("none", "none", 1, 10.0), make_run("patch", "none", 1, 10.0)]
    with pytest.raises(UserError, match="no run on mri has recall_domain; they have fd_domain"):
        compare_runs(runs, figure="recall_domain")


def test_runs_of_an_older_fedgan_are_refused(make_run):
    runs = [make_run("none", "none", 1, 10.0), make_run("patch", "none", 1, 10.0)]
    runs[1].summary["final"] = {"encoder": {"name": "domain"}, "samples": 100}
    with pytest.raises(UserError, match="does not say what it was measured by"):
        compare_runs(runs)
