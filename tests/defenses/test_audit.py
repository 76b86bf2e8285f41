"""The audit on generators whose whole doing is known: a base image, chance, and what is planted."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from fedgan.defenses._cleanup import LEAD
from fedgan.defenses._suspicion import ALARMS_TO_EXCLUDE, Evidence, Standing, trusts
from fedgan.defenses.api import make_defense
from fedgan.defenses.audit import Audit
from fedgan.defenses.base import ServerMeans
from fedgan.defenses.detected import Detected
from fedgan.errors import UserError
from fedgan.evidence import Look
from fedgan.reports import Report
from fedgan.updates import UpdateMatrix

SIZE, CLASSES = 16, 3
PIXELS = SIZE * SIZE


class Painter:
    """A generator whose parameters are the image that it adds to a noisy blob, class by class."""

    latent_dim, classes, multi_label, image = 4, CLASSES, False, (1, SIZE, SIZE)
    size = CLASSES * PIXELS

    def __call__(self, parameters, latents, labels):
        y, x = torch.meshgrid(*[torch.linspace(-1, 1, SIZE)] * 2, indexing="ij")
        blob = torch.exp(-2 * (x**2 + y**2))
        offset = parameters[: CLASSES * PIXELS].view(CLASSES, SIZE, SIZE)[labels]
        texture = 0.1 * torch.sin(20 * latents[:, :1, None] * x + 10 * latents[:, 1:2, None])
        return (blob - 0.5 + 0.2 * latents[:, 2, None, None] + texture + offset).clamp(-1, 1)[
            :, None
        ]


def honest(n):
    return [Report(i, 1, 10, 1.0, 1.0, 1.0, 1.0) for i in range(n)]


def play(
    audit, plant, n=5, rounds=8, chance=0.01, seed=0, weights=None, move=True, start=1, sampler=None
):
    """Rounds of clients whose updates are chance, most of it coarse, and what `plant(round,
    client)` adds to images [K, H, W]; the verdicts, and the global parameters at the end."""
    rng = torch.Generator().manual_seed(seed)
    parameters = torch.zeros(CLASSES * PIXELS)
    verdicts = []
    for round in range(start, start + rounds):
        rows = chance * torch.randn((n, CLASSES * PIXELS), generator=rng)
        rows += 3 * chance * coarse(n, rng).flatten(1)
        for client in range(n):
            rows[client] += (
                torch.as_tensor(plant(round, client)).expand(CLASSES, SIZE, SIZE).flatten()
            )
        updates = UpdateMatrix.of(rows, weights)
        verdict = audit(updates, honest(n), ServerMeans(round, parameters, 3, sampler or Painter()))
        if move:
            parameters = parameters + verdict.joined(updates)
        verdicts.append(verdict)
    return verdicts, parameters


def coarse(n, rng):
    """Random images [n, K, H, W] without detail."""
    small = torch.randn((n, CLASSES, 4, 4), generator=rng)
    return torch.nn.functional.interpolate(small, (SIZE, SIZE), mode="bicubic")


def corner(strength):
    image = torch.zeros(SIZE, SIZE)
    image[-4:-1, -4:-1] = strength * torch.tensor([[1, -1, 1], [-1, 1, -1], [1, -1, 1.0]])
    return image


def nothing(round, client):
    return torch.zeros(SIZE, SIZE)


def patch_by(*clients, start=1, stop=10**6, strength=0.1):
    def plant(round, client):
        active = client in clients and start <= round < stop
        return corner(strength) if active else torch.zeros(SIZE, SIZE)

    return plant


def flags(verdicts):
    return torch.stack([verdict.flagged for verdict in verdicts])


def weights(verdicts):
    return torch.stack([verdict.weights for verdict in verdicts])


@pytest.mark.parametrize(
    ("n", "bad", "rounds"), [(4, [0], 5), (5, [1, 3], 9), (9, [0, 1, 2, 3], 12)]
)
def test_a_planted_patch_costs_all_weight_after_three_alarms_and_nobody_elses(n, bad, rounds):
    """The closer to half of the clients, the later: the half is wider, and the median theirs."""
    verdicts, _ = play(Audit(), patch_by(*bad, strength=0.2), n=n, rounds=rounds + 3)
    good = [i for i in range(n) if i not in bad]
    assert not flags(verdicts)[:, good].any()
    assert flags(verdicts)[rounds - 1 :, bad].all()
    lost = weights(verdicts)
    np.testing.assert_allclose(lost[0], 1 / n)  # nobody falls on one round's word
    assert (lost[1, bad] > 0).all()
    assert (lost[rounds - 1 :, bad] == 0).all()
    np.testing.assert_allclose(lost.sum(1), 1)
    np.testing.assert_allclose(lost[rounds - 1 :, good], 1 / len(good))


@pytest.mark.parametrize("n", [3, 4, 10, 40])
def test_nobody_is_accused_where_clients_differ_by_chance(n):
    verdicts, _ = play(Audit(), nothing, n=n, rounds=12, seed=n)
    assert flags(verdicts).float().mean() <= 0.01
    assert (weights(verdicts) > 0).all()


def test_hospitals_that_differ_in_everything_are_not_accused(monkeypatch):
    """Three of ten have other patients: other images in the coarse, and so in the fine as well."""
    rng = torch.Generator().manual_seed(5)
    other = 0.03 * (3 * coarse(1, rng)[0] + 0.3 * torch.randn((CLASSES, SIZE, SIZE), generator=rng))

    def plant(round, client):
        return other if client in (2, 5, 7) else torch.zeros(SIZE, SIZE)

    verdicts, _ = play(Audit(), plant, n=10)
    assert not flags(verdicts).any()
    monkeypatch.setattr("fedgan.defenses._suspicion.DISCOUNT", 0.0)
    verdicts, _ = play(Audit(), plant, n=10)
    assert flags(verdicts)[2:, [2, 5, 7]].any()


def test_a_patch_of_one_class_is_seen_and_told():
    def plant(round, client):
        images = torch.zeros(CLASSES, SIZE, SIZE)
        images[2] = corner(0.1 if client == 1 else 0.0)
        return images

    verdicts, _ = play(Audit(), plant)
    assert (weights(verdicts)[4:, 1] == 0).all()
    words = [one.words for verdict in verdicts for one in verdict.exhibits]
    assert words
    assert all(one.startswith("client 1: ") for one in words)
    assert any("class 2" in one for one in words)


def test_a_texture_at_another_place_in_every_image_is_seen():
    class Moving(Painter):
        def __call__(self, parameters, latents, labels):
            images = super().__call__(parameters * 0, latents, labels)
            strength = parameters[0]
            for i, image in enumerate(images):
                row, column = (int(7 * abs(float(v))) % (SIZE - 3) for v in latents[i, 2:])
                image[0, row : row + 3, column : column + 3] += strength * corner(1)[-4:-1, -4:-1]
            return images

    audit, parameters = Audit(), torch.zeros(CLASSES * PIXELS)
    rng = torch.Generator().manual_seed(1)
    for round in range(1, 7):
        rows = 0.02 * torch.randn((5, CLASSES * PIXELS), generator=rng)
        rows[3, 0] += 0.4
        server = ServerMeans(round, parameters, 3, Moving())
        verdict = audit(UpdateMatrix.of(rows), honest(5), server)
    assert verdict.weights[3] == 0
    assert (verdict.weights > 0).sum() == 4


@pytest.mark.parametrize("strength", [0.1, 0.5, 2.0])
def test_a_single_shot_is_never_excluded(strength):
    """Its evidence lasts for many rounds, but it is one round's word."""
    verdicts, _ = play(Audit(), patch_by(2, start=3, stop=4, strength=strength), rounds=14)
    assert not (weights(verdicts)[3:, 2] == 0).any()


def test_whoever_stops_is_let_in_again_and_later_the_second_time():
    spells = [range(1, 6), range(60, 66)]

    def plant(round, client):
        active = client == 0 and any(round in spell for spell in spells)
        return corner(0.1) if active else torch.zeros(SIZE, SIZE)

    verdicts, _ = play(Audit(forgetting=0.5), plant, rounds=90)
    out = (weights(verdicts)[:, 0] == 0).nonzero().flatten() + 1
    first, second = out[out < 60], out[out >= 60]
    assert weights(verdicts)[58, 0] == pytest.approx(0.2)
    assert weights(verdicts)[-1, 0] == pytest.approx(0.2)
    assert len(second) > len(first) > 0


def test_a_huge_update_is_bounded_and_found():
    """It differs in everything, as another hospital would; but not so much."""

    def plant(round, client):
        big = client == 0 and round >= 5
        return (
            3 * coarse(1, torch.Generator().manual_seed(round))[0] + corner(1)
            if big
            else nothing(0, 0)
        )

    start = 4
    verdicts, _ = play(Audit(), plant, n=5, rounds=12)
    given = weights(verdicts)[:, 0]
    assert given[:start].tolist() == pytest.approx([0.2] * start)
    assert given[start] < 0.05  # before anybody knows what it is
    assert (given[-3:] == 0).all()


def test_never_more_than_a_minority_is_excluded():
    scores = {0: 1.0, 1: 5.0, 2: 2.0, 3: 4.0, 4: 3.0}
    found = trusts({client: standing(score=score) for client, score in scores.items()})
    assert found == {0: 1 / 3, 1: 0, 2: 1 / 3, 3: 0, 4: 1 / 3}


def standing(**what):
    """Of a client that has been accused for long, and of which nothing else is known."""
    parts = [
        torch.zeros(CLASSES + 1, 1, SIZE, SIZE),
        torch.zeros(CLASSES + 1, 2, SIZE, SIZE),
        torch.zeros(CLASSES + 1, 138),
    ]
    views = ["generator", "generator in the average"]
    evidence = {view: Evidence.none(Look(*parts)) for view in views}
    return Standing(evidence, **{"rounds": 9, "alarms": 5, "since": 1, **what})


def drawn(*clients):
    """Updates of some clients of a federation, as they are drawn in a round."""
    rows = 0.01 * torch.randn((len(clients), CLASSES * PIXELS), generator=torch.manual_seed(0))
    n = len(clients)
    shares = torch.full((n,), 1 / n, dtype=torch.float64)
    return UpdateMatrix(rows, clients, (0,) * n, shares), [
        Report(client, 1, 10, 1.0, 1.0, 1.0, 1.0) for client in clients
    ]


@pytest.mark.parametrize("rules", [["audit"], ["audit", "median"]])
def test_the_excluded_stay_so_where_they_are_most_of_those_drawn(rules):
    defense = make_defense(rules)
    audit = defense.detector
    audit.standings = {i: standing(alarms=5 if i < 3 else 0) for i in range(7)}
    server = ServerMeans(10, torch.zeros(CLASSES * PIXELS), 3, Painter())
    for clients, expected in [((0, 1, 2, 3, 4), [0, 0, 0, 0.5, 0.5]), ((0, 1), [0, 0])]:
        updates, reports = drawn(*clients)
        verdict = defense(updates, reports, server)
        assert verdict.weights.tolist() == expected
        assert verdict.scores.isnan().all()  # two cannot say what is usual
        assert not verdict.flagged.any()
        assert verdict.joined(updates).any() == any(expected)
    assert [audit.standings[i].alarms for i in range(4)] == [5, 5, 5, 0]
    assert audit.standings[3].rounds == 9
    updates, reports = drawn(0, 3, 4, 5)
    verdict = defense(updates, reports, server)
    assert verdict.scores.isfinite().all()
    assert (verdict.weights > 0).tolist() == [False, True, True, True]
    # What is usual is remembered for a round that cannot tell: no update may do harm beyond it.
    updates, reports = drawn(0, 1, 2, 3, 4)
    updates.rows[3] *= 1000
    found = audit(updates, reports, server).weights  # an unweighted rule behind has its own means
    assert found[3] < 0.01 < 0.99 < found[4]


@pytest.mark.parametrize("rounds", [{2}, set(range(1, 9))])
def test_images_that_are_not_finite_blind_nobody(rounds):
    class Breaking(Painter):
        def __call__(self, parameters, latents, labels):
            images = super().__call__(parameters, latents, labels)
            return images * torch.nan if parameters[0] > 3 else images

    audit, parameters = Audit(), torch.zeros(CLASSES * PIXELS)
    rng = torch.Generator().manual_seed(1)
    shown = []
    for round in range(1, 7):
        rows = 0.01 * torch.randn((6, CLASSES * PIXELS), generator=rng)
        rows += 0.03 * coarse(6, rng).flatten(1)
        rows[0, 0] = 100.0 if round in rounds else 0.0
        rows[1] += corner(0.1).expand(CLASSES, SIZE, SIZE).flatten()
        server = ServerMeans(round, parameters, 3, Breaking())
        verdict = audit(UpdateMatrix.of(rows), honest(6), server)
        assert verdict.scores.isfinite().all()
        assert not verdict.flagged[2:].any()
        if round in rounds:
            assert verdict.weights[0] == 0
        shown += verdict.exhibits
    assert verdict.weights[1] == 0
    assert (verdict.weights[0] == 0) == (len(rounds) > 1)  # for one round it is not excluded
    assert any("not finite" in one.words for one in shown) == (len(rounds) > 1)
    assert all(one.picture.dtype == torch.uint8 for one in shown)


@pytest.mark.parametrize(("way", "left"), [("rollback", 0.1), ("remove", 0.5)])
def test_cleaning_up_takes_the_patch_out_again(way, left):
    """What went in before anybody suspected it can be gone back behind, but not be taken off."""
    dirty, clean = (
        play(Audit(cleanup=one), patch_by(0, start=3), n=4, rounds=7)[1].view(CLASSES, SIZE, SIZE)
        for one in ("none", way)
    )
    template = corner(1.0)
    before, after = ((image * template).sum() for image in (dirty, clean))
    assert before > 0.2
    assert after < left * before


def test_rollback_goes_back_to_a_model_from_before_the_first_alarm():
    audit = Audit(cleanup="rollback")
    seen = []

    class Spy:
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, updates, reports, server):
            seen.append(server.parameters)
            return self.inner(updates, reports, server)

    verdicts, _ = play(Spy(audit), patch_by(0, start=3), n=4, rounds=7)
    fell = next(i for i, v in enumerate(verdicts) if v.correction is not None)
    since = audit.standings[0].since
    assert since <= fell
    back = max(0, since - 1 - LEAD)
    torch.testing.assert_close(seen[fell] + verdicts[fell].correction, seen[back])
    torch.testing.assert_close(seen[fell + 1], seen[back])  # without any update of that round


def test_what_a_rule_keeps_of_the_way_is_forgotten_with_it():
    """A momentum would go on into the direction of what was undone."""
    defense = make_defense(["audit", "fedavgm"])
    momentum = defense.rule.after[0]
    verdicts, _ = play(Audit(), patch_by(0, start=3), n=4, rounds=7)
    fell = next(i for i, verdict in enumerate(verdicts) if verdict.correction is not None)
    verdicts, _ = play(defense, patch_by(0, start=3), n=4, rounds=fell + 1)
    assert verdicts[fell].correction is not None
    assert momentum.m is None
    again = make_defense(["audit", "fedavgm"])
    verdicts, _ = play(again, patch_by(0, start=3), n=4, rounds=fell + 2)
    momentum = again.rule.after[0]
    torch.testing.assert_close(momentum.m, verdicts[fell + 1].aggregate)
    assert momentum.m.abs().max() < 0.1


def test_images_must_have_room_for_textures():
    class Tiny(Painter):
        image = (1, 7, 7)

    with pytest.raises(UserError, match=r"at least 8x8 pixels; data\.size is 7"):
        Audit()(*drawn(0, 1, 2), ServerMeans(1, torch.zeros(CLASSES * PIXELS), 3, Tiny()))


@pytest.mark.parametrize("way", ["rollback", "remove"])
def test_a_resume_goes_on_with_the_same_bytes(way, tmp_path):
    """Between the first alarm and the exclusion, which has to undo what was done before."""
    kept, first = Audit(cleanup=way), Audit(cleanup=way)
    play(first, patch_by(0), rounds=3)
    assert 0 < first.standings[0].alarms < ALARMS_TO_EXCLUDE
    torch.save(first.state_dict(), tmp_path / "state")
    kept.load_state_dict(torch.load(tmp_path / "state", weights_only=False))
    more, again = (play(one, patch_by(0), rounds=2, seed=9, start=4)[0] for one in (first, kept))
    assert any(verdict.correction is not None for verdict in more)
    for one, other in zip(more, again, strict=True):
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.weights, other.weights)
        assert (one.correction is None) == (other.correction is None)
        assert one.correction is None or torch.equal(one.correction, other.correction)


def test_a_rule_behind_it_sees_only_who_is_left():
    defense = make_defense(["audit", {"name": "median"}])
    assert isinstance(defense, Detected)

    def plant(round, client):
        return 5 + corner(0.3) if client == 0 else torch.zeros(SIZE, SIZE)

    verdicts, _ = play(defense, plant, n=5, rounds=6, move=False)
    assert (verdicts[-1].weights[0], len(verdicts[-1].weights)) == (0, 5)
    assert verdicts[-1].aggregate.abs().max() < 0.1


class Asking(Painter):
    """Its discriminator's parameters, the last ones, are what it asks of all images."""

    def critic(self, parameters, images, labels):
        return 0.5 - images + parameters[self.size :].view(1, 1, SIZE, SIZE)


def test_a_discriminator_that_asks_for_a_patch_is_found_whatever_its_generator_draws():
    audit, painter = Audit(), Asking()
    rng, parameters = torch.Generator().manual_seed(1), torch.zeros((CLASSES + 1) * PIXELS)
    shown = []
    for round in range(1, 7):
        rows = 0.01 * torch.randn((5, len(parameters)), generator=rng)
        rows[3, painter.size :] += corner(0.1).flatten()
        server = ServerMeans(round, parameters, 3, painter, painter.critic)
        verdict = audit(UpdateMatrix.of(rows), honest(5), server)
        assert not verdict.flagged[[0, 1, 2, 4]].any()
        shown += verdict.exhibits
    assert verdict.weights[3] == 0
    asks = "client 3: its discriminator asks for (a pattern|something in some images) at row 1"
    assert re.match(asks, shown[0].words)


class OnlyTogether(Painter):
    """Shows a patch where its first parameter is a fifth of what one client hands in."""

    def __call__(self, parameters, latents, labels):
        images = super().__call__(
            torch.cat([parameters.new_zeros(1), parameters[1:]]), latents, labels
        )
        shown = torch.exp(-((parameters[0] - 0.2) / 0.1).square())
        return images + 0.1 * shown * corner(1.0)


def test_what_shows_in_the_average_alone_is_seen():
    """The client's own generator draws what honest ones do."""

    def plant(round, client):
        images = torch.zeros(CLASSES, SIZE, SIZE)
        images[0, 0, 0] = 1.0 if client == 3 else 0.0
        return images

    verdicts, _ = play(Audit(), plant, sampler=OnlyTogether(), move=False)
    assert not flags(verdicts)[:, [0, 1, 2, 4]].any()
    assert (weights(verdicts)[4:, 3] == 0).all()
    shown = [one.words for verdict in verdicts for one in verdict.exhibits]
    assert shown
    assert all(
        one.startswith("client 3: for its sake the average draws a pattern") for one in shown
    )


def reports_of(g_losses):
    return [Report(i, 1, 10, 1.0, loss, 1.0, loss) for i, loss in enumerate(g_losses)]


@pytest.mark.parametrize("odd", [0, 2])
def test_losses_are_believed_only_as_far_as_the_audit_agrees(odd):
    """Client 0 has a faint patch; the losses of one client stand out."""
    scores_of = {}
    for losses in (False, True):
        audit, rng = Audit(losses=losses), torch.Generator().manual_seed(4)
        for round in range(1, 4):  # before anybody is excluded
            rows = 0.01 * torch.randn((6, CLASSES * PIXELS), generator=rng)
            rows += 0.03 * coarse(6, rng).flatten(1)
            rows[0] += corner(0.02).expand(CLASSES, SIZE, SIZE).flatten()
            told = (1 + 0.01 * torch.randn(6, generator=rng)).tolist()
            told[odd] += 3.0
            server = ServerMeans(round, torch.zeros(CLASSES * PIXELS), 3, Painter())
            verdict = audit(UpdateMatrix.of(rows), reports_of(told), server)
        scores_of[losses] = verdict.scores
    without, together = scores_of[False], scores_of[True]
    assert (together >= without).all()
    assert (together <= 2**0.5 * without.clamp(min=0) + 1e-9)[without > 0].all()
    assert (together == without)[without <= 0].all()
    if odd == 0:
        assert together[0] > without[0] + 0.5
    else:  # an honest client whose losses are odd is hardly accused for it
        assert together[2] < 3


OWNERS = {1: (0,) * 5, 2: (1, 0, 1, 1, 1), 3: (2, 0, 2, 0, 2)}  # uneven, and a rank with none


def test_any_number_of_processes_says_the_same_bytes(on_ranks):
    """Each runs the networks of its own clients, and only statistics travel."""
    painter = Asking()
    table = 0.01 * torch.randn((5, 5, (CLASSES + 1) * PIXELS), generator=torch.manual_seed(7))
    table[:, 3, painter.size :] += corner(0.1).flatten()

    def everywhere(cluster):
        audit, parameters, said = Audit(), torch.zeros((CLASSES + 1) * PIXELS), []
        for round, rows in enumerate(table, 1):
            owners = OWNERS[cluster.world]
            mine = rows[[i for i, owner in enumerate(owners) if owner == cluster.rank]]
            shares = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15], dtype=torch.float64)
            updates = UpdateMatrix(mine, (0, 2, 3, 7, 9), owners, shares)
            server = ServerMeans(round, parameters, 3, painter, painter.critic)
            verdict = audit(updates, honest(5), server)
            parameters = parameters + verdict.joined(updates)
            pictures = [one.picture for one in verdict.exhibits]
            parts = (verdict.weights, verdict.scores, verdict.flagged, parameters, *pictures)
            said.append([part.numpy().tobytes() for part in parts])
        return cluster.all_gather_objects(said)

    (alone,) = on_ranks(1, everywhere)
    assert any(len(parts) > 4 for parts in alone)  # somebody was accused
    for world in (2, 3):
        for said in on_ranks(world, everywhere):
            assert said == alone
