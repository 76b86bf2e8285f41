"""What malicious clients do between their local steps and the server.

The simulation's omniscient view is made here and nowhere else, by an exchange of its own before the
one that the server sees. Where nobody attacks updates or reports, nothing here happens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fedgan.attacks.reports import ReportAttack
from fedgan.attacks.schedule import Schedule
from fedgan.attacks.updates import AttackView, Omniscience, UpdateAttack
from fedgan.errors import about_client
from fedgan.reports import LOSSES, OK, Report, forged, losses_of
from fedgan.updates import UpdateMatrix


@dataclass(frozen=True)
class Plot:
    """What the colluders of one round have agreed on."""

    view: AttackView
    updates: Sequence[UpdateAttack]
    planned: Sequence[Any]
    report: ReportAttack | None

    def carry_out(self, client: int, update: Tensor, row: Tensor, honest: Tensor | None) -> Tensor:
        """Writes what `client` sends over its `update` [P]; returns the report [8] it sends instead
        of `row`, with the norm of what it sends, as the server will measure it."""
        with about_client(client):
            sent = update
            for i, (attack, planned) in enumerate(zip(self.updates, self.planned, strict=True)):
                sent = attack.corrupt(sent, client, planned, replace(self.view, link=i))
            losses = losses_of(row)
            if self.report is not None:
                losses = self.report.forge(losses, honest, self.view)
        if sent is not update:
            update[:] = sent
        return forged(row, losses, update)


@dataclass
class Malice:
    """The attacks on updates and reports of a run, and what their makers remember.

    Attributes:
        schedule: who attacks, and when.
        generator_size: how many of the shared parameters are the generator's.
        seed: the experiment's.
        updates: what is done to an update, one after the other.
        report: what is done to a report.
        last_aggregate: what the server has added to the model in the last round, [P].
        losses: the last losses [4] that each benign client has reported; the simulation's.
    """

    schedule: Schedule
    generator_size: int
    seed: int = 0
    updates: Sequence[UpdateAttack] = ()
    report: ReportAttack | None = None
    last_aggregate: Tensor | None = None
    losses: dict[int, Tensor] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anybody ever does more than poison images."""
        return bool(self.schedule.clients) and (bool(self.updates) or self.report is not None)

    def attackers(self, clients: Sequence[int], round: int) -> frozenset[int]:
        """Those of `clients` who change their updates or reports in `round`."""
        return self.schedule.attackers(clients, round) if self else frozenset()

    def needs_honest_losses(self, client: int, round: int) -> bool:
        """Whether `client` must hear in `round` how it would have fared by honest training."""
        wanted = self.report is not None and self.report.needs_honest_losses
        return wanted and self.schedule.active(client, round)

    def plot(self, usable: UpdateMatrix, parameters: Tensor, round: int) -> Plot | None:
        """What the attackers of a round agree on, given all `usable` updates as they were trained;
        None where none of theirs is among these. Every rank takes part."""
        attackers = tuple(sorted(self.attackers(usable.clients, round)))
        if not attackers:
            return None
        view = AttackView(
            round=round,
            attackers=attackers,
            n=len(usable),
            weights=dict(zip(usable.clients, usable.weights.tolist(), strict=True)),
            parameters=parameters,
            last_aggregate=self.last_aggregate,
            omniscient=Omniscience(usable, attackers, self.losses),
            generator_size=self.generator_size,
            seed=self.seed,
        )
        planned = [one.plan(replace(view, link=i)) for i, one in enumerate(self.updates)]
        return Plot(view, self.updates, planned, self.report)

    def learn(self, aggregate: Tensor, reports: Sequence[Report]) -> None:
        """What a finished round has made known: the server's step [P], and the losses."""
        if not self:
            return
        self.last_aggregate = aggregate
        for report in reports:
            if report.status == OK and report.client not in self.schedule.clients:
                values = [getattr(report, name) for name in LOSSES]
                self.losses[report.client] = torch.tensor(values, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """What outlives a round: tensors on the CPU and plain values."""
        last = None if self.last_aggregate is None else self.last_aggregate.cpu()
        return {"last_aggregate": last, "losses": dict(self.losses)} if self else {}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Puts back what `state_dict` gave; an empty state is that before the first round."""
        last = state.get("last_aggregate")
        self.last_aggregate = None if last is None else last.to(device)
        self.losses = dict(state.get("losses", {}))
