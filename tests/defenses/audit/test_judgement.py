"""Who is accused by the audit, and who is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedgan.defenses._suspicion import USUAL_SCORE, trusts
from fedgan.defenses.api import make_defense
from fedgan.defenses.audit import Audit
from fedgan.defenses.base import ServerMeans
from fedgan.errors import UserError
from fedgan.updates import UpdateMatrix


@pytest.mark.parametrize(
    ("n", "bad", "rounds"), [(4, [0], 5), (5, [1, 3], 9), (9, [0, 1, 2, 3], 12)]
)
def test_a_planted_patch_costs_all_weight_after_three_alarms_and_nobody_elses(n, bad, rounds, toy):
    """The closer to half of the clients, the later: the half is wider, and the median theirs."""
    verdicts, _ = toy.play(Audit(), toy.patch_by(*bad, strength=0.2), n=n, rounds=rounds + 3)
    good = [i for i in range(n) if i not in bad]
    assert not toy.flags(verdicts)[:, good].any()
    assert toy.flags(verdicts)[rounds - 1 :, bad].all()
    lost = toy.weights(verdicts)
    np.testing.assert_allclose(lost[0], 1 / n)  # nobody falls on one round's word
    assert (lost[1, bad] > 0).all()
    assert (lost[rounds - 1 :, bad] == 0).all()
    np.testing.assert_allclose(lost.sum(1), 1)
    np.testing.assert_allclose(lost[rounds - 1 :, good], 1 / len(good))


@pytest.mark.parametrize("n", [3, 4, 10, 40])
def test_nobody_is_accused_where_clients_differ_by_chance(n, toy):
    verdicts, _ = toy.play(Audit(), toy.nothing, n=n, rounds=12, seed=n)
    assert toy.flags(verdicts).float().mean() <= 0.01
    assert (toy.weights(verdicts) > 0).all()


def test_hospitals_that_differ_in_everything_are_not_accused(monkeypatch, toy):
    """Three of ten have other patients: other images in the coarse, and so in the fine as well."""
    rng = torch.Generator().manual_seed(5)
    other = 0.03 * (3 * toy.coarse(1, rng)[0] + 0.3 * torch.randn(toy.SHAPE, generator=rng))

    def plant(round, client):
        return other if client in (2, 5, 7) else torch.zeros(toy.SIZE, toy.SIZE)

    verdicts, _ = toy.play(Audit(), plant, n=10)
    assert not toy.flags(verdicts).any()
    monkeypatch.setattr("fedgan.defenses._suspicion.DISCOUNT", 0.0)
    verdicts, _ = toy.play(Audit(), plant, n=10)
    assert toy.flags(verdicts)[2:, [2, 5, 7]].any()


def test_where_clients_are_alike_less_is_suspect(monkeypatch, toy):
    alarms = []
    for usual in (USUAL_SCORE, 0.0):
        monkeypatch.setattr("fedgan.defenses._suspicion.USUAL_SCORE", usual)
        verdicts, _ = toy.play(Audit(), toy.patch_by(3, strength=0.018), n=8, rounds=10)
        assert not toy.flags(verdicts)[:, [0, 1, 2, 4, 5, 6, 7]].any()
        alarms.append(toy.flags(verdicts)[:, 3].sum())
    assert alarms[0] > alarms[1] + 2


def test_a_patch_of_one_class_is_seen_and_told(toy):
    def plant(round, client):
        images = torch.zeros(toy.SHAPE)
        images[2] = toy.corner(0.1 if client == 1 else 0.0)
        return images

    verdicts, _ = toy.play(Audit(), plant)
    assert (toy.weights(verdicts)[4:, 1] == 0).all()
    words = [one.words for verdict in verdicts for one in verdict.exhibits]
    assert words
    assert all(one.startswith("client 1: ") for one in words)
    assert any("class 2" in one for one in words)


@pytest.mark.parametrize(
    ("shown_in", "multi_label", "told"),
    [(5, False, "in class 5"), (1, False, "in classes 0 to 1"), (None, True, "in class none")],
)
def test_classes_are_told_by_their_numbers(shown_in, multi_label, told, toy):
    """Where several share a group, for there are many; and where an image may have none."""

    class Many(toy.Painter):
        classes = 4 if multi_label else 11

        def __call__(self, parameters, latents, labels):
            shown = labels.sum(1) == 0 if multi_label else labels == shown_in
            return super().__call__(parameters, latents, 2 * shown.long())

    Many.multi_label = multi_label

    def plant(round, client):
        images = torch.zeros(toy.SHAPE)
        images[2] = toy.corner(0.3 if client == 1 else 0.0)
        return images

    verdicts, _ = toy.play(Audit(), plant, sampler=Many())
    words = [one.words for verdict in verdicts for one in verdict.exhibits]
    assert words
    assert all(f", {told}, " in one for one in words), words


def test_a_tall_trigger_is_cut_out_within_the_room_that_pictures_have(toy):
    def plant(round, client):
        image = torch.zeros(toy.SIZE, toy.SIZE)
        image[2:14, 8] = 0.1 if client == 1 else 0.0
        return image

    verdicts, _ = toy.play(Audit(), plant, rounds=4)
    pictures = [one.picture for verdict in verdicts for one in verdict.exhibits]
    assert pictures
    for picture in pictures:
        assert picture.shape[1] <= 160
        cut = picture.shape[2] - 160 - 8  # beside the whole map, and a gap
        assert 0 < cut < picture.shape[1]


def test_a_texture_at_another_place_in_every_image_is_seen(toy):
    class Moving(toy.Painter):
        def __call__(self, parameters, latents, labels):
            images = super().__call__(parameters * 0, latents, labels)
            strength = parameters[0]
            for i, image in enumerate(images):
                row, column = (int(7 * abs(float(v))) % (toy.SIZE - 3) for v in latents[i, 2:])
                image[0, row : row + 3, column : column + 3] += (
                    strength * toy.corner(1)[-4:-1, -4:-1]
                )
            return images

    audit, parameters = Audit(), torch.zeros(toy.ONE_NETWORK)
    rng = torch.Generator().manual_seed(1)
    for round in range(1, 7):
        rows = 0.02 * torch.randn((5, toy.ONE_NETWORK), generator=rng)
        rows[3, 0] += 0.4
        server = ServerMeans(round, parameters, 3, Moving())
        verdict = audit(UpdateMatrix.of(rows), toy.honest(5), server)
    assert verdict.weights[3] == 0
    assert (verdict.weights > 0).sum() == 4


@pytest.mark.parametrize("strength", [0.1, 0.5, 2.0])
def test_a_single_shot_is_never_excluded(strength, toy):
    """Its evidence lasts for many rounds, but it is one round's word."""
    verdicts, _ = toy.play(Audit(), toy.patch_by(2, start=3, stop=4, strength=strength), rounds=14)
    assert not (toy.weights(verdicts)[3:, 2] == 0).any()


def test_whoever_stops_is_let_in_again_and_later_the_second_time(toy):
    spells = [range(1, 6), range(60, 66)]

    def plant(round, client):
        active = client == 0 and any(round in spell for spell in spells)
        return toy.corner(0.1) if active else torch.zeros(toy.SIZE, toy.SIZE)

    verdicts, _ = toy.play(Audit(forgetting=0.5), plant, rounds=90)
    out = (toy.weights(verdicts)[:, 0] == 0).nonzero().flatten() + 1
    first, second = out[out < 60], out[out >= 60]
    assert toy.weights(verdicts)[58, 0] == pytest.approx(0.2)
    assert toy.weights(verdicts)[-1, 0] == pytest.approx(0.2)
    assert len(second) > len(first) > 0


def test_a_huge_update_is_bounded_and_found(toy):
    """It differs in everything, as another hospital would; but not so much."""

    def plant(round, client):
        big = client == 0 and round >= 5
        return (
            3 * toy.coarse(1, torch.Generator().manual_seed(round))[0] + toy.corner(1)
            if big
            else toy.nothing(0, 0)
        )

    start = 4
    verdicts, _ = toy.play(Audit(), plant, n=5, rounds=12)
    given = toy.weights(verdicts)[:, 0]
    assert given[:start].tolist() == pytest.approx([0.2] * start)
    assert given[start] < 0.05  # before anybody knows what it is
    assert (given[-3:] == 0).all()


def test_never_more_than_a_minority_is_excluded(toy):
    scores = {0: 1.0, 1: 5.0, 2: 2.0, 3: 4.0, 4: 3.0}
    found = trusts({client: toy.standing(score=score) for client, score in scores.items()})
    assert found == {0: 1 / 3, 1: 0, 2: 1 / 3, 3: 0, 4: 1 / 3}


@pytest.mark.parametrize("rules", [["audit"], ["audit", "median"]])
def test_the_excluded_stay_so_where_they_are_most_of_those_drawn(rules, toy):
    defense = make_defense(rules)
    audit = defense.detector
    audit.standings = {i: toy.standing(alarms=5 if i < 3 else 0) for i in range(7)}
    server = ServerMeans(10, torch.zeros(toy.ONE_NETWORK), 3, toy.Painter())
    for clients, expected in [((0, 1, 2, 3, 4), [0, 0, 0, 0.5, 0.5]), ((0, 1), [0, 0])]:
        updates, reports = toy.drawn(*clients)
        verdict = defense(updates, reports, server)
        assert verdict.weights.tolist() == expected
        assert verdict.scores.isnan().all()  # two cannot say what is usual
        assert not verdict.flagged.any()
        assert verdict.joined(updates).any() == any(expected)
    assert [audit.standings[i].alarms for i in range(4)] == [5, 5, 5, 0]
    assert audit.standings[3].rounds == 9
    updates, reports = toy.drawn(0, 3, 4, 5)
    verdict = defense(updates, reports, server)
    assert verdict.scores.isfinite().all()
    assert (verdict.weights > 0).tolist() == [False, True, True, True]
    # What is usual is remembered for a round that cannot tell: no update may do harm beyond it.
    updates, reports = toy.drawn(0, 1, 2, 3, 4)
    updates.rows[3] *= 1000
    found = audit(updates, reports, server).weights  # an unweighted rule behind has its own means
    assert found[3] < 0.01 < 0.99 < found[4]


@pytest.mark.parametrize("rounds", [{2}, set(range(1, 9))])
def test_images_that_are_not_finite_blind_nobody(rounds, toy):
    class Breaking(toy.Painter):
        def __call__(self, parameters, latents, labels):
            images = super().__call__(parameters, latents, labels)
            return images * torch.nan if parameters[0] > 3 else images

    audit, parameters = Audit(), torch.zeros(toy.ONE_NETWORK)
    rng = torch.Generator().manual_seed(1)
    shown = []
    for round in range(1, 7):
        rows = 0.01 * torch.randn((6, toy.ONE_NETWORK), generator=rng)
        rows += 0.03 * toy.coarse(6, rng).flatten(1)
        rows[0, 0] = 100.0 if round in rounds else 0.0
        rows[1] += toy.corner(0.1).expand(toy.SHAPE).flatten()
        server = ServerMeans(round, parameters, 3, Breaking())
        verdict = audit(UpdateMatrix.of(rows), toy.honest(6), server)
        assert verdict.scores.isfinite().all()
        assert not verdict.flagged[2:].any()
        if round in rounds:
            assert verdict.weights[0] == 0
        shown += verdict.exhibits
    assert verdict.weights[1] == 0
    assert (verdict.weights[0] == 0) == (len(rounds) > 1)  # for one round it is not excluded
    assert any("not finite" in one.words for one in shown) == (len(rounds) > 1)
    assert all(one.picture.dtype == torch.uint8 for one in shown)


def test_images_must_have_room_for_textures(toy):
    class Tiny(toy.Painter):
        image = (1, 7, 7)

    with pytest.raises(UserError, match=r"at least 8x8 pixels; data\.size is 7"):
        Audit()(*toy.drawn(0, 1, 2), ServerMeans(1, torch.zeros(toy.ONE_NETWORK), 3, Tiny()))
