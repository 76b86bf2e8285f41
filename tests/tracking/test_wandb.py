"""W&B offline, read back from its own files: every promised key in every round, before and after a
resume."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from fedgan.settings import Wandb
from fedgan.tracking.base import Observers
from fedgan.tracking.evaluations import FOLDER, TABLE, looked_at, write_evaluation
from fedgan.tracking.pictures import sample_grid
from fedgan.tracking.records import Records, Table, round_first
from fedgan.tracking.series import MOST_ROWS
from fedgan.tracking.wandb import WandbTracker, extremes, kept_in_summary
from fedgan.tracking.wandb_session import LAST_STEP, RUN_ID

LABELS = {"data": "d", "attack": "patch", "defense": "krum", "seed": 3, "arm": "defended"}
PICTURE = torch.zeros((1, 4, 6), dtype=torch.uint8)
OF_A_ROUND = {"round", "d_loss", "g_loss", "seconds", "flagged", "acted", "left_out", "undone"}
OF_A_ROUND |= {f"{k}/client {c}" for k in ("d_loss", "g_loss", "weight", "score") for c in range(3)}
OF_A_ROUND |= {
    f"detection/{who}_{what}"
    for who in ("malicious", "benign")
    for what in ("clients", "flagged", "suppressed", "weight", "fair_weight")
}
OF_A_LOOK = {"fd_domain", "presence", "critic_bias/client 2", "samples/path", "charts/weights/path"}
OF_A_LOOK |= {f"charts/{k}_table/nrows" for k in ("g_loss", "d_loss", "score", "critic_bias")}


def play(info, record, samples, rounds=(1, 2, 3), looks=(3,), settings=None, end=True):
    """Rounds of a run as it tells them; distance and presence fall from round to round."""
    observers = Observers([Records(), WandbTracker(settings or Wandb(project="p"))])
    info = replace(info, labels=LABELS, first_round=rounds[0] if rounds else 4)
    observers.on_start(info)
    for round in rounds:
        look = round in looks
        figures = {"fd_domain": 9.0 - round, "presence": 1 / round} if look else None
        bias = {2: 1.5} if look else None
        observers.on_round(record(round, samples if look else None, figures, critic_bias=bias))
    if end:
        told = {"pictures": {"memory": ["closest pairs"]}, "final": {"measures": []}, "figures": {}}
        write_evaluation(info.run_dir / "evaluation.json", told, {"closest pairs": PICTURE})
        figures = {"fd_domain": 2.0}
        observers.on_end({"figures": figures, "generator_sha256": "abc", "rounds": 3})
    observers.close()


def table(run_dir, name):
    """The newest table of that name."""
    paths = sorted(run_dir.rglob(f"media/table/**/{name}_*.table.json"), key=step_of)
    return json.loads(paths[-1].read_text())


def step_of(path):
    return path.stat().st_mtime_ns


@pytest.mark.slow
def test_offline_holds_every_promised_key_of_every_round(info, record, samples, offline):
    settings = Wandb(project="p", group="g")
    play(info, record, samples, looks=(2, 3), settings=settings)
    (found,) = offline(info.run_dir)
    assert found.config["federation"]["rounds"] == 3
    assert found.config["labels"] == LABELS
    run = found.run
    assert (run.project, run.run_group, run.job_type) == ("p", "g", "defended")
    assert sorted(run.tags) == ["attack: patch", "data: d", "defense: krum", "seed: 3"]
    rounds = found.rounds()
    assert [row["round"] for row in rounds] == [row["_step"] for row in rounds] == [1, 2, 3]
    assert all(row.keys() >= OF_A_ROUND for row in rounds)
    assert [OF_A_LOOK - {"charts/weights/path"} <= row.keys() for row in rounds[:2]] == [0, 1]
    assert rounds[2].keys() >= OF_A_LOOK
    assert [row["weight/client 2"] for row in rounds] == [0.25] * 3
    assert [row["detection/malicious_suppressed"] for row in rounds] == [1, 1, 1]
    assert rounds[2]["samples/caption"] == "round 3"
    assert rounds[2]["charts/weights/_type"] == "image-file"
    assert found.summary["fd_domain"] == {"min": 6.0}
    assert found.summary["presence"] == {"last": pytest.approx(1 / 3), "max": 0.5}
    assert found.summary["g_loss"] == 2.0
    assert found.summary["final/fd_domain"] == 2.0
    assert found.summary["generator_sha256"] == "abc"
    assert found.metrics["*"].step_metric == "round"
    assert found.metrics["fd_domain"].step_metric == "round"
    last = found.history[-1]
    assert (last["_step"], last["closest pairs/_type"]) == (4, "image-file")


@pytest.mark.slow
def test_tables_and_charts_hold_every_client(info, record, samples):
    play(info, record, samples)
    content = table(info.run_dir, "clients")
    assert content["columns"] == ["client", "malicious", "images", "thin", "thick [sic]"]
    assert content["data"][2] == [2, True, 10, 0, 10]
    content = table(info.run_dir, "client rounds")
    assert len(content["data"]) == 9
    first = dict(zip(content["columns"], content["data"][1], strict=True))
    assert (first["client"], first["d_loss"], first["status"]) == (1, None, "non-finite loss")
    assert [row[content["columns"].index("critic_bias")] for row in content["data"]][8] == 1.5
    lines = table(info.run_dir, "g_loss_table")["data"]
    assert {name for _, name, _ in lines} == {"client 0", "client 1", "client 2 (malicious)"}
    assert [x for x, name, _ in lines if name == "client 0"] == [1, 2, 3]


@pytest.mark.slow
def test_charts_do_not_grow_with_the_square_of_the_rounds(info, record, samples):
    info.settings.federation.rounds = 20
    rounds = range(1, 21)
    play(info, record, samples, rounds, looks=rounds, end=False)
    charts = list(info.run_dir.rglob("g_loss_table_*.table.json"))
    rows = [len(json.loads(path.read_text())["data"]) for path in charts]
    assert sorted(rows) == [3 * round for round in (1, 2, 4, 8, 16, 20)]


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_same_run(info, record, samples, offline):
    play(info, record, samples, rounds=(1, 2), looks=(1, 2), end=False)
    play(info, record, samples, rounds=(2, 3), looks=(3,))  # round 2 is played again
    first, second = offline(info.run_dir)
    assert first.run.run_id == second.run.run_id == (info.run_dir / RUN_ID).read_text().strip()
    assert second.run.resume
    steps = [row["_step"] for found in (first, second) for row in found.history]
    assert steps == [0, 1, 2, 3, 4]  # the clients, three rounds, the end: none twice
    assert [row["round"] for row in first.rounds() + second.rounds()] == [1, 2, 3]
    rows = table(info.run_dir, "g_loss_table")["data"]
    assert sorted({x for x, _, _ in rows}) == [1, 2, 3]
    # W&B itself would tell those since the resume.
    assert second.summary["presence"] == {"last": pytest.approx(1 / 3), "max": 1.0}
    assert second.summary["fd_domain"] == {"min": 6.0}


@pytest.mark.slow
def test_rounds_that_a_kill_took_from_wandbs_file_are_sent_again(info, record, samples, offline):
    """W&B's file is behind by seconds: whoever is killed may have saved rounds that it lacks."""
    play(info, record, samples, looks=(2, 3), end=False)
    path = info.run_dir / "samples" / "round_0002.png"
    path.parent.mkdir()
    sample_grid(samples, info.classes).save(path)
    look = {"final": {"measures": ["memory"]}, "pictures": {"memory": ["closest pairs"]}}
    look |= {"round": 1, "figures": {"kid_x": 0.5}}
    (info.run_dir / FOLDER).mkdir()
    write_evaluation(info.run_dir / FOLDER / looked_at(1), look, {"closest pairs": PICTURE})
    (info.run_dir / LAST_STEP).write_text("1\n")  # all that was sure
    play(info, record, samples, rounds=())
    first, second = offline(info.run_dir)
    again = second.rounds()
    assert [row["_step"] for row in again] == [2, 3]
    for old, new in zip(first.rounds()[1:], again, strict=True):
        assert new.keys() >= OF_A_ROUND
        assert {k: new[k] for k in OF_A_ROUND} == {k: old[k] for k in OF_A_ROUND}
        assert new["fd_domain"] == old["fd_domain"]
    assert again[0]["samples/caption"] == "round 2"
    assert (again[0]["full/kid_x"], again[0]["full/round"]) == (0.5, 1)
    assert again[0]["closest pairs/caption"] == "closest pairs, round 1"


@pytest.mark.slow
def test_a_full_look_before_a_stop_is_in_the_next_row(info, record, samples, offline):
    """Its figures wait for the next round's row, which a stop in between keeps from coming."""
    told = {"round": 2, "final": {"measures": []}, "figures": {"kid_x": 0.5, "acc_x": 0.75}}
    play(info, record, samples, rounds=(1, 2), end=False)
    (info.run_dir / FOLDER).mkdir()
    write_evaluation(info.run_dir / FOLDER / looked_at(2), told, {})
    rows = [{"round": 1, "kid_x": 0.25}, {"round": 2, "kid_x": 0.5}]
    Table(info.run_dir / TABLE, round_first).append(rows)
    play(info, record, samples, rounds=(3,))
    _, second = offline(info.run_dir)
    (row,) = second.rounds()
    assert (row["round"], row["full/round"], row["full/kid_x"]) == (3, 2, 0.5)
    assert second.summary["full/kid_x"] == {"min": 0.25}
    # Drawn over the round that was looked at, whatever the summary keeps.
    for key in ("full/kid_x", "full/acc_x"):
        assert second.metrics[key].step_metric == "full/round"


@pytest.mark.slow
def test_the_clients_are_told_though_the_first_start_failed(info, record, samples, offline):
    (info.run_dir / RUN_ID).write_text("abcd1234\n")
    play(info, record, samples, rounds=(1,), end=False)
    (found,) = offline(info.run_dir)
    assert found.history[0]["clients/_type"] == "table-file"


@pytest.mark.slow
def test_a_run_that_only_had_its_end_to_come(info, record, samples, offline):
    play(info, record, samples, end=False)
    play(info, record, samples, rounds=())
    _, second = offline(info.run_dir)
    assert not second.rounds()
    assert second.summary["final/fd_domain"] == 2.0
    assert second.summary["presence"] == {"last": pytest.approx(1 / 3), "max": pytest.approx(1 / 3)}


@pytest.mark.slow
def test_a_later_evaluation_belongs_to_the_same_run(info, record, samples, offline):
    play(info, record, samples)
    tracker = WandbTracker(Wandb(project="p"))
    told = {"round": 3, "figures": {"acc_real": 0.5}}
    tracker.on_later_evaluation(info.run_dir, LABELS, told, {"pairs": PICTURE})
    tracker.close()
    first, second = offline(info.run_dir)
    assert first.run.run_id == second.run.run_id
    assert sorted(second.run.tags) == sorted(first.run.tags)
    assert second.summary["evaluated/acc_real"] == 0.5
    (row,) = second.history
    assert row["pairs/_type"] == "image-file"
    assert (row["_step"], row["round"]) == (5, 3)
    assert (info.run_dir / LAST_STEP).read_text() == "5\n"


@pytest.mark.slow
def test_a_grids_own_words_go_before(info, record, samples, offline):
    tags = ["attack: patch 6 %", "own", "defense: " + "x" * 80, "seed: 7"]
    settings = Wandb(project="p", tags=tags, job_type="attack", name="cell")
    play(info, record, samples, rounds=(1,), settings=settings, end=False)
    (found,) = offline(info.run_dir)
    assert (found.run.job_type, found.run.display_name) == ("attack", "cell")
    assert sorted(len(tag) for tag in found.run.tags) == [3, 7, 17, 64]
    assert found.config["labels"]["attack"] == "patch 6 %"
    assert found.config["labels"]["data"] == "d"
    assert found.config["labels"]["seed"] == 7  # to filter by it as by that of a single run


@pytest.mark.parametrize(
    ("key", "kept"),
    [
        ("fd_efficientnet-lite0", ("min",)),
        ("kd_domain_worst_class", ("min",)),
        ("full/fid_ratio", ("min",)),
        ("is_domain", ("max",)),
        ("full/recall_domain", ("max",)),
        ("precision_domain_real", ("last",)),
        ("kid_floor", ("last",)),
        ("presence_part_0", ("last", "max")),
        ("presence_high", ("last",)),
        ("images_per_second", ("last",)),
        ("charts/fd_x", ("last",)),
    ],
)
def test_what_the_summary_keeps(key, kept):
    assert kept_in_summary(key) == kept


def test_extremes_of_a_table_with_gaps():
    rows = [
        {"round": "1", "fd_x": "", "recall_x": "0.25", "presence": "nan"},
        {"round": "2", "fd_x": "inf", "recall_x": "", "presence": ""},
    ]
    assert extremes(rows) == {"recall_x": {"max": 0.25}}
    assert extremes([]) == {}


def test_tables_stay_below_wandbs_limit():
    import wandb

    assert wandb.Table.MAX_ROWS >= MOST_ROWS
