"""What the audit looks at: generators, discriminators, the average, losses; by any processes."""

from __future__ import annotations

import re

import pytest
import torch

from fedgan.defenses.audit import Audit
from fedgan.defenses.base import ServerMeans
from fedgan.reports import Report
from fedgan.updates import UpdateMatrix


def test_a_discriminator_that_asks_for_a_patch_is_found_whatever_its_generator_draws(toy):
    audit, painter = Audit(), toy.Asking()
    rng, parameters = torch.Generator().manual_seed(1), torch.zeros(toy.TWO_NETWORKS)
    shown = []
    for round in range(1, 7):
        rows = 0.01 * torch.randn((5, len(parameters)), generator=rng)
        rows[3, painter.size :] += toy.corner(0.1).flatten()
        server = ServerMeans(round, parameters, 3, painter, painter.critic)
        verdict = audit(UpdateMatrix.of(rows), toy.honest(5), server)
        assert not verdict.flagged[[0, 1, 2, 4]].any()
        shown += verdict.exhibits
    assert verdict.weights[3] == 0
    asks = "client 3: its discriminator asks for (a pattern|something in some images) at row 1"
    assert re.match(asks, shown[0].words)


def test_what_shows_in_the_average_alone_is_seen(toy):
    """The client's own generator draws what honest ones do."""

    class OnlyTogether(toy.Painter):
        """Shows a patch where its first parameter is a fifth of what one client hands in."""

        def __call__(self, parameters, latents, labels):
            images = super().__call__(
                torch.cat([parameters.new_zeros(1), parameters[1:]]), latents, labels
            )
            shown = torch.exp(-((parameters[0] - 0.2) / 0.1).square())
            return images + 0.1 * shown * toy.corner(1.0)

    def plant(round, client):
        images = torch.zeros(toy.SHAPE)
        images[0, 0, 0] = 1.0 if client == 3 else 0.0
        return images

    verdicts, _ = toy.play(Audit(), plant, sampler=OnlyTogether(), move=False)
    assert not toy.flags(verdicts)[:, [0, 1, 2, 4]].any()
    assert (toy.weights(verdicts)[4:, 3] == 0).all()
    shown = [one.words for verdict in verdicts for one in verdict.exhibits]
    assert shown
    assert all(one.startswith("client 3: for its sake the average draws ") for one in shown)


def reports_of(g_losses):
    return [Report(i, 1, 10, 1.0, loss, 1.0, loss) for i, loss in enumerate(g_losses)]


@pytest.mark.parametrize("odd", [0, 2])
def test_losses_are_believed_only_as_far_as_the_audit_agrees(odd, toy):
    """Client 0 has a faint patch; the losses of one client stand out."""
    scores_of = {}
    for losses in (False, True):
        audit, rng = Audit(losses=losses), torch.Generator().manual_seed(4)
        for round in range(1, 4):  # before anybody is excluded
            rows = 0.01 * torch.randn((6, toy.ONE_NETWORK), generator=rng)
            rows += 0.03 * toy.coarse(6, rng).flatten(1)
            rows[0] += toy.corner(0.02).expand(toy.SHAPE).flatten()
            told = (1 + 0.01 * torch.randn(6, generator=rng)).tolist()
            told[odd] += 3.0
            server = ServerMeans(round, torch.zeros(toy.ONE_NETWORK), 3, toy.Painter())
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


def test_any_number_of_processes_says_the_same_bytes(on_ranks, toy):
    """Each runs the networks of its own clients, and only statistics travel."""
    painter = toy.Asking()
    table = 0.01 * torch.randn((7, 5, toy.TWO_NETWORKS), generator=torch.manual_seed(7))
    table[:, 3, painter.size :] += toy.corner(0.1).flatten()

    def everywhere(cluster):
        audit, parameters, said = Audit(), torch.zeros(toy.TWO_NETWORKS), []
        for round, rows in enumerate(table, 1):
            owners = OWNERS[cluster.world]
            mine = rows[[i for i, owner in enumerate(owners) if owner == cluster.rank]]
            shares = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15], dtype=torch.float64)
            updates = UpdateMatrix(mine, (0, 2, 3, 7, 9), owners, shares)
            server = ServerMeans(round, parameters, 3, painter, painter.critic)
            verdict = audit(updates, toy.honest(5), server)
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
