"""A client whose loss or update is no number: left out, never seen, back in the next round."""

from __future__ import annotations

import csv
import math

import pytest
import torch

from fedgan import assembly


def break_client(federation, how):
    """Client 1's last step goes wrong: its loss, or one parameter, is no number any more."""
    gan = federation.pool.clients.get(1) and federation.pool.clients[1].gan
    if gan is None:
        return
    step = gan.training_step

    def broken(batch, index):
        losses = step(batch, index)
        if how == "loss":
            return losses * math.inf
        with torch.no_grad():
            next(gan.generator.parameters()).view(-1)[0] = math.nan
        return losses

    gan.training_step = broken


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("how", ["loss", "update"])
def test_a_client_that_is_no_number_is_quarantined(federate, how, world):
    def work(federation):
        break_client(federation, how)
        records = [federation.play_round(round, 0.0) for round in (1, 2)]
        rows = [record.client_rows() for record in records]
        return rows, bool(federation.server.parameters.isfinite().all())

    changes = {"defense.name": "feddetect", "defense.init_args": {"warm_up": 0}}
    changes |= {"federation.clients": 4}
    rows, finite = federate(work, changes, world)
    assert finite
    for row in rows[0]:
        assert (row["status"] == "ok") == (row["client"] != 1)
    assert rows[0][1]["status"] == f"non-finite {how}"
    assert (rows[0][1]["weight"], rows[0][1]["flagged"]) == (0.0, False)
    assert sum(row["weight"] for row in rows[0]) == pytest.approx(1)
    assert all(row["weight"] > 0 for row in rows[0] if row["client"] != 1)


def test_a_defence_never_sees_what_is_no_number(federate):
    def work(federation):
        break_client(federation, "update")
        heard = []
        rule = federation.defense

        class Spy(type(rule)):
            def __call__(self, updates, reports, round):
                finite = bool(updates.rows.isfinite().all())
                heard.append((updates.clients, [r.client for r in reports], finite))
                return super().__call__(updates, reports, round)

        federation.defense = Spy()
        federation.play_round(1, 0.0)
        return heard

    assert federate(work) == [((0, 2), [0, 2], True)]


@pytest.mark.parametrize("share", ["generator", "both"])
def test_one_bad_step_does_not_keep_a_client_out_for_good(federate, share):
    def work(federation):
        gan = federation.pool.clients[1].gan
        step = gan.training_step

        def ruinous(batch, index):
            losses = step(batch, index)
            with torch.no_grad():
                for parameter in gan.parameters():
                    parameter.fill_(math.nan)
            for optimizer in gan._optimizers():
                for state in optimizer.state.values():
                    state["exp_avg"].fill_(math.nan)
            return losses

        gan.training_step = ruinous
        first = federation.play_round(1, 0.0)
        gan.training_step = step
        second = federation.play_round(2, 0.0)
        return [record.reports[1].status for record in (first, second)]

    assert federate(work, {"federation.share": share}) == ["non-finite update", "ok"]


@pytest.mark.parametrize("share", ["generator", "both"])
def test_a_client_with_an_unusable_update_is_where_it_was_before_the_round(federate, share):
    def work(federation):
        federation.play_round(1, 0.0)
        gan = federation.pool.clients[1].gan
        before, step = gan.local_state(), gan.training_step
        gan.training_step = lambda batch, index: step(batch, index) * math.nan
        record = federation.play_round(2, 0.0)
        return record.reports[1].status, before, gan.local_state()

    status, before, after = federate(work, {"federation.share": share})
    assert status == "non-finite loss"
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_quarantine_is_written_down(tiny, tmp_path, monkeypatch):
    from fedgan.experiment import run

    made = assembly.local_client

    def local_client(cluster, plan, number, *args):
        client = made(cluster, plan, number, *args)
        if number == 1:
            client.gan.training_step = lambda batch, index: torch.full((2,), math.nan)
        return client

    monkeypatch.setattr(assembly, "local_client", local_client)
    summary = run(tiny({"run_dir": str(tmp_path / "run")}))
    with (tmp_path / "run" / "clients.csv").open() as file:
        rows = list(csv.DictReader(file))
    bad = [row for row in rows if row["client"] == "1"]
    assert [(row["status"], row["weight"]) for row in bad] == [("non-finite loss", "0.0")] * 2
    assert summary["clients"][1]["left_out_rounds"] == [1, 2]
    assert "client 1 left out" in (tmp_path / "run" / "log.txt").read_text()
