"""An audit of what the clients' networks do: evidence that no client reports by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from fedgan.defenses._cleanup import Choice, Cleanup, Way
from fedgan.defenses._exhibits import broken, exhibit
from fedgan.defenses._inspection import Inspection, View, inspect
from fedgan.defenses._spreads import SPREADS_OF_LOSSES
from fedgan.defenses._suspicion import (
    SHARE_OF_LOSSES,
    Calm,
    Evidence,
    Standing,
    agreed,
    bounds,
    either,
    forgiven,
    grown_in,
    p_values,
    scores,
    strengths_of,
    together,
    trusts,
    view_scores,
    youth,
)
from fedgan.defenses.base import Defense, Detector, ServerMeans, Verdict
from fedgan.errors import UserError
from fedgan.evidence import SMALLEST, Look, deviations
from fedgan.reports import Report
from fedgan.updates import UpdateMatrix

FEWEST = 3
"""Clients: of two, nobody can say who is the odd one."""
BROKEN = 100.0
"""Score of a client whose networks give what is not finite."""
LOSSES = 2
"""Each of which may speak together with each witness."""


class Audit(Detector):
    """Judges clients by what their generators draw from latents of the server's, all the same, and
    by what their discriminators, where those are shared, ask of images of the server's.

    Source: fedgan; docs/audit.md has the statistic, its calibration, and what it cannot see.

    In each round, every client's generator draws `samples` images from latents and labels that are
    new in that round, and its discriminator says by what change the images that the global
    generator draws would pass more for real ones: the gradient of its logit, an image itself, and
    what all generators are about to learn from it. The same is asked of the clients' mean with and
    without each client, for networks can be made that show what they are for only in the mean. Of
    either kind of images, in either view, the mean, how much each place of them varies, and their
    textures, of all classes together and of each, less those of the median client, less what
    brightness, contrast, gamma, shift and blur of the whole image explain, are added to the
    client's evidence E_i = forgetting * E_i + e_i: what honest clients do at random stays small,
    and what a trigger does in every round adds up. What the loudest round has told is left out, so
    that it takes several. A witness is the largest entry, or the root mean square, in a band of
    fineness of either kind of maps, or in the textures, of all classes or of the class where it is
    largest, in one view or, where discriminators are shared, in the geometric mean of all four; it
    is discounted where the client differs in the coarse as well, which tells another hospital. Its
    score is the logarithm of its ratio to an honest client's, over the spread of honest clients;
    both are told by the shortest half of the clients, and the spread is at least what was found
    where nobody attacked. A client's score is the highest of its witnesses', where its generator's
    and those of all views count for less in its first rounds. Its p-value is that of a standard
    normal, times the number of witnesses, where an entry and a root mean square of the same maps
    are one; where three quarters of the clients stay far below what those spreads allow for,
    of the score and what these are below it (`Calm`).

    p below `alarm_rate` is an alarm, which adds one to a client's count (5 at most); p of ten times
    that or more, or of 1, takes one off, and half as much after each exclusion but the first. With
    two a client has a third of its weight, with three nothing. Of the N clients that were ever seen
    at most (N - 1) // 2 are excluded, those of the highest scores; in a round in which nobody else
    takes part, the global model stays as it is.

    Nobody is excluded on one round's word, but no round may do harm beyond measure: whoever moves
    either network by more than five times as much as the median client has so much less weight in
    that round, and whose networks give what is not finite has none, which is an alarm besides,
    though not in its first round. Clients that are excluded have no say in what is usual, unless
    fewer than three others are left and they are most of the round; where these are not, the round
    tells nothing: weights are those of the standings, and the median client is that of the last
    round that had one.

    Assumes n >= 2f + 1. Costs twice `samples` images of each client a round, as many gradients, and
    memory, in the checkpoint as well: for each client some 8 (1 + classes) (C + 2) H W numbers, of
    ten classes at most (1.2 GB for 200 clients with 64 px in colour and 8 classes); and a global
    model for each suspect or, with `rollback`, `memory` + 1 of them.

    Args:
        samples: images that each generator draws in a round by itself, and as many that the average
            draws without it.
        forgetting: factor in (0, 1) of old evidence a round that a client takes part in.
        alarm_rate: false alarms for a client in a round, at most, in (0, 0.5).
        cleanup: what is done when a client is excluded about what it has put into the global
            model: `remove` takes off what its updates have put in since its first alarm that
            counts, where no rule follows that weighs them anew; `rollback` goes back to the model
            before the first round in which it had a weight, since two rounds before that alarm
            (`memory` rounds at most), and drops this round's updates, which were trained from what
            is undone; `none` trains on; and `auto` removes where it can and else rolls back.
        memory: rounds that `rollback` can undo, the one at hand besides.
        losses: let the mean losses that clients report speak too. They are accumulated and scored
            likewise, and believed as far as the audit agrees: a client's score is at least sqrt(2)
            times the smaller of the two. A tenth of the false alarms is left to them.

    >>> Audit(alarm_rate=0.05).alarm_rate
    0.05
    """

    name: ClassVar[str] = "audit"
    runs_generators: ClassVar[bool] = True

    def __init__(
        self,
        samples: int = 64,
        forgetting: float = 0.9,
        alarm_rate: float = 0.01,
        cleanup: Choice = "auto",
        memory: int = 6,
        losses: bool = False,
    ) -> None:
        if samples < 16:
            raise ValueError(f"init_args.samples is {samples}; it must be at least 16")
        if not 0 < forgetting < 1:  # one round alone accuses nobody
            raise ValueError(f"init_args.forgetting is {forgetting}; it must be in (0, 1)")
        if not 0 < alarm_rate < 0.5:
            raise ValueError(f"init_args.alarm_rate is {alarm_rate}; it must be in (0, 0.5)")
        if cleanup not in get_args(Choice):
            raise ValueError(
                f"init_args.cleanup is {cleanup}; it is auto, remove, rollback or none"
            )
        if memory < 1:
            raise ValueError(f"init_args.memory is {memory}; it must be at least 1")
        self.samples = samples
        self.forgetting = forgetting
        self.alarm_rate = alarm_rate
        self.losses = losses
        self.way = cleanup
        self.cleanup = Cleanup("remove" if cleanup == "auto" else cleanup, memory)
        self.standings: dict[int, Standing] = {}
        self.calm = Calm()
        self.usual: dict[str, Tensor] = {}
        """How much each texture differs between honest clients, by view: [groups, features]."""
        self.usual_norms: Tensor | None = None
        """How far the median client moved its networks when there was one, [networks]."""

    def check(self, n: int) -> None:
        if n < FEWEST:
            raise UserError(f"defense: {self.name} needs at least {FEWEST} clients; n is {n}")

    def __call__(
        self, updates: UpdateMatrix, reports: Sequence[Report], server: ServerMeans
    ) -> Verdict:
        assert server.sampler is not None
        if min(server.sampler.image[1:]) < SMALLEST:
            raise UserError(
                f"defense: {self.name} needs images of at least {SMALLEST}x{SMALLEST} pixels; "
                f"data.size is {min(server.sampler.image[1:])}"
            )
        known = trusts(self.standings)
        before = [known.get(client, 1.0) for client in updates.clients]
        trust = torch.tensor(before, dtype=torch.float64)
        seen = inspect(updates, server, self.samples, trust)
        return self.judge(updates, reports, seen, server)

    def judge(
        self,
        updates: UpdateMatrix,
        reports: Sequence[Report],
        seen: Inspection,
        server: ServerMeans,
    ) -> Verdict:
        """Judges a round by what was seen of the clients' networks."""
        self.cleanup.begin(server.round, server.parameters)
        before = trusts(self.standings)
        finite = seen.finite
        believed = self._believed(updates.clients, finite)
        found = torch.full((len(updates),), torch.nan, dtype=torch.float64)
        alarms = torch.zeros(len(updates), dtype=torch.bool)
        ratios: dict[str, Tensor] = {}
        limits = finite.double()  # what is not finite has no weight, whoever it is from
        if believed:
            # What is not finite cannot be compared, and would leave nobody's evidence finite.
            views = {view: _comparable(one, finite, believed) for view, one in seen.views.items()}
            found, p, ratios = self._evidence(updates, reports, views, finite, believed)
            alarms = p < self.alarm_rate
            told = zip(updates.clients, found.tolist(), p.tolist(), strict=True)
            for client, score, chance in told:
                self.standings[client].judge(score, chance, self.alarm_rate, server.round)
            self.usual_norms = seen.norms[believed].quantile(0.5, 0)
        if self.usual_norms is not None:
            limits = limits * bounds(seen.norms, self.usual_norms)
        now = trusts(self.standings)
        fallen = {client for client, trust in now.items() if trust < before.get(client, 1.0)}
        drawn = seen.views["generator"].told.maps
        exhibits = []
        for i, client in enumerate(updates.clients):
            if client in fallen and finite[i]:
                standing = self.standings[client]
                own = {view: ratios[view][i] for view in standing.evidence}
                exhibits.append(exhibit(client, standing, own, drawn[i], seen.groups))
            elif client in fallen:
                exhibits.append(broken(client, drawn[i, 0]))
        factors = [now.get(client, 1.0) for client in updates.clients]
        trust = limits * torch.tensor(factors, dtype=torch.float64)
        weights = updates.weights * trust
        weights = weights / weights.sum() if weights.any() else weights
        out = {c: one for c, one in self.standings.items() if not now[c]}
        newly = {c: one.since for c, one in out.items() if one.cleans()}
        correction, back_to = self.cleanup.correction(
            set(out), newly, server.round, server.parameters
        )
        if back_to is None:
            accused = {c for c, one in self.standings.items() if one.alarms and now[c]}
            self.cleanup.end(server.round, updates, weights, accused)
        acted = bool((trust < 1).any())
        return Verdict(
            *(weights, found, alarms, acted),
            correction=correction,
            back_to=back_to,
            exhibits=tuple(exhibits),
        )

    def _evidence(
        self,
        updates: UpdateMatrix,
        reports: Sequence[Report],
        seen: Mapping[str, View],
        finite: Tensor,
        believed: list[int],
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Adds a round's to what is known: scores [n], p-values [n], and how many times that of
        the median client each one's evidence is, by view [n, w, 2]."""
        losses = torch.tensor([[one.d_loss, one.g_loss] for one in reports], dtype=torch.float64)
        standings = self._with_evidence(updates.clients, believed, seen, losses)
        strengths = self._strengths(standings, believed)
        found = self._scores(standings, strengths, believed)
        known = [i for i in believed if standings[i].rounds > 1]
        if len(known) >= FEWEST:
            self.calm.add(found[known], self.forgetting)
        found[~finite] = BROKEN
        # The largest entry and the root mean square of the same entries count as one witness.
        count = sum(one.shape[1] for one in strengths.values())
        raised = found + self.calm.raises_by
        p = p_values(raised, count)
        if self.losses:
            told = self._scores_of_losses(standings, believed)
            p = either(p, p_values(agreed(raised, told), LOSSES * count), SHARE_OF_LOSSES)
            found = torch.maximum(found, agreed(found, told))
        p[[one.rounds == 1 for one in standings]] = 1.0  # nobody is accused on one round's word
        usual = {view: one[believed].quantile(0.5, 0) for view, one in strengths.items()}
        return found, p, {view: one / usual[view] for view, one in strengths.items()}

    def _strengths(
        self, standings: Sequence[Standing], believed: Sequence[int]
    ) -> dict[str, Tensor]:
        """Of the evidence in each view, and in all together, by witness: [n, w, 2]."""
        found = {}
        for view, usual in self.usual.items():
            each = [
                strengths_of(
                    one.evidence[view].steady(one.rounds),
                    usual,
                    grown_in(one.rounds, self.forgetting),
                )
                for one in standings
            ]
            strengths, coarse = (torch.stack(parts) for parts in zip(*each, strict=True))
            found[view] = forgiven(strengths, coarse, believed)
        return found | together(found)

    def _scores(
        self,
        standings: Sequence[Standing],
        strengths: Mapping[str, Tensor],
        believed: Sequence[int],
    ) -> Tensor:
        rounds = torch.tensor([one.rounds for one in standings])
        each = [view_scores(view, own, rounds, believed) for view, own in strengths.items()]
        return torch.stack(each).amax(0)

    def _scores_of_losses(self, standings: Sequence[Standing], believed: Sequence[int]) -> Tensor:
        rounds = torch.tensor([one.rounds for one in standings])
        losses = torch.stack([one.losses_by_chance(self.forgetting) for one in standings])
        told = scores(losses, torch.tensor(SPREADS_OF_LOSSES), believed)
        return told / youth("generator", rounds)

    def _believed(self, clients: Sequence[int], finite: Tensor) -> list[int]:
        """Positions of the clients that say what is usual: those that are not excluded, and whose
        images are finite; or, where these are too few, the excluded as well, if they are a
        minority. Nobody where all are too few: such a round tells nothing."""
        sound = [i for i, fine in enumerate(finite.tolist()) if fine]
        trust = trusts(self.standings)
        found = [i for i in sound if trust.get(clients[i], 1.0) > 0]
        if len(found) >= FEWEST:
            return found
        return sound if len(sound) >= FEWEST and 2 * len(found) > len(sound) else []

    def _with_evidence(
        self,
        clients: Sequence[int],
        believed: list[int],
        seen: Mapping[str, View],
        losses: Tensor,
    ) -> list[Standing]:
        """The clients' standings, with this round's evidence, in order."""
        losses = losses - losses[believed].quantile(0.5, 0)
        apart = {view: deviations(one.told, believed, one.about) for view, one in seen.items()}
        for view, look in apart.items():
            middle = look.textures[believed].abs().double().quantile(0.5, 0).float()
            self.usual[view] = self.forgetting * self.usual.get(view, 0 * middle) + middle
        for i, client in enumerate(clients):
            # Copies: a part of it alone would keep the whole round's, in the checkpoint as well.
            own = {view: Look(*(part[i].clone() for part in look)) for view, look in apart.items()}
            if client not in self.standings:
                none = {view: Evidence.none(look) for view, look in own.items()}
                self.standings[client] = Standing(none)
            self.standings[client].add(own, losses[i], self.forgetting)
        return [self.standings[client] for client in clients]

    def work_before(self, rule: Defense) -> None:
        if self.way == "auto":
            way: Way = "remove" if rule.is_fair_mean else "rollback"
            self.cleanup = Cleanup(way, self.cleanup.memory)
        elif self.way == "remove" and not rule.is_fair_mean:
            raise UserError(
                f"defense: {self.name}: cleanup is remove, which takes off what it has weighed "
                "itself; in front of another rule it must be auto, rollback or none"
            )

    def state_dict(self) -> dict[str, Any]:
        standings = {client: one.state_dict() for client, one in self.standings.items()}
        return {
            "standings": standings,
            "calm": asdict(self.calm),
            "usual": self.usual,
            "usual_norms": self.usual_norms,
            "cleanup": self.cleanup.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        found = state["standings"].items()
        self.standings = {client: Standing.from_state(one) for client, one in found}
        self.calm = Calm(**state["calm"])
        self.usual = dict(state["usual"])
        self.usual_norms = state["usual_norms"]
        self.cleanup.load_state_dict(state["cleanup"])


def _comparable(view: View, finite: Tensor, believed: list[int]) -> View:
    """With the median of those `believed` for all that is told of those that are not finite."""
    if finite.all():
        return view
    parts = [part.clone() for part in view.told]
    for part in parts:
        part[~finite] = part[believed].double().quantile(0.5, 0).float()
    return View(Look(*parts), view.about)
