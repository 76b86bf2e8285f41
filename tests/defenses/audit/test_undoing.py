"""What the audit undoes, keeps, and hands on."""

from __future__ import annotations

import pytest
import torch

from fedgan.defenses._cleanup import LEAD
from fedgan.defenses._suspicion import ALARMS_TO_EXCLUDE
from fedgan.defenses.api import make_defense
from fedgan.defenses.audit import Audit
from fedgan.defenses.detected import Detected


@pytest.mark.parametrize(("way", "left"), [("rollback", 0.1), ("remove", 0.5)])
def test_cleaning_up_takes_the_patch_out_again(way, left, toy):
    """What went in before anybody suspected it can be gone back behind, but not be taken off."""
    dirty, clean = (
        toy.play(Audit(cleanup=one), toy.patch_by(0, start=3), n=4, rounds=7)[1].view(
            toy.CLASSES, toy.SIZE, toy.SIZE
        )
        for one in ("none", way)
    )
    template = toy.corner(1.0)
    before, after = ((image * template).sum() for image in (dirty, clean))
    assert before > 0.2
    assert after < left * before


def test_rollback_goes_back_to_a_model_from_before_the_first_alarm(toy):
    audit = Audit(cleanup="rollback")
    seen = []

    class Spy:
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, updates, reports, server):
            seen.append(server.parameters)
            return self.inner(updates, reports, server)

    verdicts, _ = toy.play(Spy(audit), toy.patch_by(0, start=3), n=4, rounds=7)
    fell = next(i for i, v in enumerate(verdicts) if v.correction is not None)
    since = audit.standings[0].since
    assert since <= fell
    back = max(0, since - 1 - LEAD)
    torch.testing.assert_close(seen[fell] + verdicts[fell].correction, seen[back])
    torch.testing.assert_close(seen[fell + 1], seen[back])  # without any update of that round
    assert verdicts[fell].back_to == back + 1  # rounds are counted from 1


def test_what_a_rule_keeps_of_the_way_is_forgotten_with_it(toy):
    """A momentum would go on into the direction of what was undone."""
    defense = make_defense(["audit", "fedavgm"])
    momentum = defense.rule.after[0]
    verdicts, _ = toy.play(Audit(), toy.patch_by(0, start=3), n=4, rounds=7)
    fell = next(i for i, verdict in enumerate(verdicts) if verdict.correction is not None)
    verdicts, _ = toy.play(defense, toy.patch_by(0, start=3), n=4, rounds=fell + 1)
    assert verdicts[fell].correction is not None
    assert momentum.m is None
    again = make_defense(["audit", "fedavgm"])
    verdicts, _ = toy.play(again, toy.patch_by(0, start=3), n=4, rounds=fell + 2)
    momentum = again.rule.after[0]
    torch.testing.assert_close(momentum.m, verdicts[fell + 1].aggregate)
    assert momentum.m.abs().max() < 0.1


@pytest.mark.parametrize("way", ["rollback", "remove"])
def test_a_resume_goes_on_with_the_same_bytes(way, tmp_path, toy):
    """Between the first alarm and the exclusion, which has to undo what was done before."""
    kept, first = Audit(cleanup=way), Audit(cleanup=way)
    toy.play(first, toy.patch_by(0), rounds=3)
    assert 0 < first.standings[0].alarms < ALARMS_TO_EXCLUDE
    torch.save(first.state_dict(), tmp_path / "state")
    kept.load_state_dict(torch.load(tmp_path / "state", weights_only=False))
    more, again = (
        toy.play(one, toy.patch_by(0), rounds=2, seed=9, start=4)[0] for one in (first, kept)
    )
    assert any(verdict.correction is not None for verdict in more)
    for one, other in zip(more, again, strict=True):
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.weights, other.weights)
        assert (one.correction is None) == (other.correction is None)
        assert one.correction is None or torch.equal(one.correction, other.correction)


def test_what_is_kept_of_a_client_keeps_nothing_of_others(toy):
    """Neither in memory nor in a checkpoint, which writes whole storages."""
    audit = Audit()
    toy.play(audit, toy.nothing, rounds=3)
    for standing in audit.standings.values():
        for one in standing.evidence.values():
            for part in (*one.total, *one.loudest):
                assert part.untyped_storage().nbytes() == part.nbytes


def test_a_rule_behind_it_sees_only_who_is_left(toy):
    defense = make_defense(["audit", {"name": "median"}])
    assert isinstance(defense, Detected)

    def plant(round, client):
        return 5 + toy.corner(0.3) if client == 0 else torch.zeros(toy.SIZE, toy.SIZE)

    verdicts, _ = toy.play(defense, plant, n=5, rounds=6, move=False)
    assert (verdicts[-1].weights[0], len(verdicts[-1].weights)) == (0, 5)
    assert verdicts[-1].aggregate.abs().max() < 0.1


class Scripted(Audit):
    """Accuses whom it is told to, `{round: {client: score}}`."""

    def __init__(self, script, cleanup="rollback"):
        super().__init__(cleanup=cleanup)
        self.script = script

    def _evidence(self, updates, reports, seen, finite, believed):
        found, p, ratios = super()._evidence(updates, reports, seen, finite, believed)
        scores = self.script(max(one.rounds for one in self.standings.values()))
        for client, score in scores.items():
            found[client] = score
        return found, torch.tensor([float(i not in scores) for i in range(len(p))]), ratios


def three_of_five(round):
    """Of 5 clients 2 can be excluded: of 3 that are accused, the most suspect in each round."""
    return {} if round == 1 else {i: 10.0 + (i + round) % 3 for i in range(3)}


def test_clients_that_change_places_among_the_excluded_are_gone_back_behind_once(toy):
    verdicts, _ = toy.play(Scripted(three_of_five), toy.nothing, rounds=14)
    excluded = [tuple((verdict.weights[:3] == 0).tolist()) for verdict in verdicts[4:]]
    assert len(set(excluded)) == 3  # they do change places
    undone = [i for i, verdict in enumerate(verdicts, 1) if verdict.correction is not None]
    assert undone[0] == 4
    assert len(undone) <= 2  # the third one's turn comes later


def test_of_whoever_has_no_weight_all_that_it_has_put_in_is_taken_off(toy):
    """Also what it has put in while it was spared for others' sake: each client paints pixels of
    its own, so that they tell what the model has of it."""

    def plant(round, client):
        image = torch.zeros(toy.SIZE, toy.SIZE)
        image[:, client] = 0.1
        return image

    audit, left, spared = Scripted(three_of_five, "remove"), torch.zeros(5), 0

    class Spy:
        def __call__(self, updates, reports, server):
            nonlocal left, spared
            verdict = audit(updates, reports, server)
            after = server.parameters + verdict.joined(updates)
            left = after.view(toy.CLASSES, toy.SIZE, toy.SIZE)[:, :, :3].mean((0, 1))
            if server.round > 3:
                out = verdict.weights[:3] == 0
                spared += int((left[~out] > 0.01).sum())
                assert left[out].abs().max() < 0.05  # of the one round before the first alarm
            return verdict

    toy.play(Spy(), plant, rounds=14, chance=0.0)
    assert spared > 3


def test_a_round_that_was_dropped_is_not_undone_again(toy):
    def script(round):
        return {i: 10.0 for i in (0, 1) if i + 2 <= round}

    verdicts, _ = toy.play(Scripted(script), toy.nothing, rounds=8)
    undone = [i for i, verdict in enumerate(verdicts, 1) if verdict.correction is not None]
    assert undone == [4]  # of client 1, excluded in round 5, nothing is left by then
    assert verdicts[4].weights[:2].tolist() == [0, 0]
