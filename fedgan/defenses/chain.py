"""Several stages in a row: pre-aggregations, one rule, server steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from fedgan.defenses.base import Defense, PreAggregation, ServerMeans, ServerStep, Stage, Verdict
from fedgan.defenses.fedavg import FedAvg
from fedgan.errors import UserError
from fedgan.reports import Report
from fedgan.seeding import derive
from fedgan.updates import UpdateMatrix


class Chain(Defense):
    """`[clip, nnm, krum]`: the updates go through the stages in their order.

    Args:
        stages: pre-aggregations, then at most one rule (FedAvg where there is none), then server
            steps.

    Raises:
        UserError: for stages in another order, or two rules.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.before = [stage for stage in stages if isinstance(stage, PreAggregation)]
        rules = [stage for stage in stages if isinstance(stage, Defense)]
        self.after = [stage for stage in stages if isinstance(stage, ServerStep)]
        if len(rules) > 1:
            names = " and ".join(rule.name for rule in rules)
            raise UserError(f"defense.rules: {names} both join the updates; one rule can")
        self.rule = rules[0] if rules else FedAvg()
        if [*self.before, *rules, *self.after] != list(stages):
            names = ", ".join(stage.name for stage in [*self.before, *rules, *self.after])
            raise UserError(
                "defense.rules: pre-aggregations come first, then the rule, then the server's "
                f"steps: [{names}]"
            )

    @property
    def stages(self) -> list[Stage]:
        """All of them, in their order."""
        return [*self.before, self.rule, *self.after]

    @property
    def is_fair_mean(self) -> bool:
        changed = any(stage.changes_updates for stage in self.before)
        return self.rule.is_fair_mean and not (changed or self.after)

    def check(self, n: int) -> None:
        for stage in self.stages:
            stage.check(n)

    def check_clients(self, clients: int) -> None:
        for stage in self.stages:
            stage.check_clients(clients)

    def penalties(self) -> dict[str, float]:
        return {name: weight for stage in self.stages for name, weight in stage.penalties().items()}

    def restart(self) -> None:
        for stage in self.stages:
            stage.restart()

    def fewest(self) -> int:
        return max(stage.fewest() for stage in self.stages)

    def __call__(
        self, updates: UpdateMatrix, reports: Sequence[Report], server: ServerMeans
    ) -> Verdict:
        for change in self.before:
            updates = change(updates, reports, server)
        verdict = self.rule(updates, reports, server)
        if not (self.before or self.after):
            return verdict
        aggregate = verdict.joined(updates)
        for i, step in enumerate(self.after):  # two stages of a name draw other noise
            own = replace(server, seed=derive(server.seed, "step", i)) if i else server
            aggregate = step(aggregate, own)
        return replace(verdict, aggregate=aggregate)

    def state_dict(self) -> dict[str, Any]:
        return {"stages": [stage.state_dict() for stage in self.stages]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for stage, saved in zip(self.stages, state["stages"], strict=True):
            stage.load_state_dict(saved)


class PerNetwork(Defense):
    """A defence for each shared network by itself: the generator, and the discriminator.

    A client is flagged if either says so; its weight is the mean and its score the larger of both.

    Args:
        each: one defence a network, in the order of the shared vector.
        sizes: parameters of each network; they sum to P.
    """

    def __init__(self, each: Sequence[Defense], sizes: Sequence[int]) -> None:
        self.each = list(each)
        self.sizes = list(sizes)

    @property
    def is_fair_mean(self) -> bool:
        return all(defense.is_fair_mean for defense in self.each)

    def check(self, n: int) -> None:
        for defense in self.each:
            defense.check(n)

    def check_clients(self, clients: int) -> None:
        for defense in self.each:
            defense.check_clients(clients)

    def penalties(self) -> dict[str, float]:
        return {
            name: weight for defense in self.each for name, weight in defense.penalties().items()
        }

    def restart(self) -> None:
        for defense in self.each:
            defense.restart()

    def fewest(self) -> int:
        return max(defense.fewest() for defense in self.each)

    def __call__(
        self, updates: UpdateMatrix, reports: Sequence[Report], server: ServerMeans
    ) -> Verdict:
        verdicts, joined, start = [], [], 0
        for i, (defense, size) in enumerate(zip(self.each, self.sizes, strict=True)):
            part = updates.part(start, start + size)
            own = replace(
                server,
                parameters=server.parameters[start : start + size],
                seed=derive(server.seed, "network", i),  # no noise twice
            )
            verdicts.append(defense(part, reports, own))
            joined.append(verdicts[-1].joined(part))
            start += size
        scores = torch.stack([verdict.scores for verdict in verdicts])
        return Verdict(
            torch.stack([verdict.weights for verdict in verdicts]).mean(0),
            torch.where(scores.isnan().all(0), torch.nan, scores.nan_to_num(-torch.inf).amax(0)),
            torch.stack([verdict.flagged for verdict in verdicts]).any(0),
            any(verdict.acted for verdict in verdicts),
            torch.cat(joined),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"each": [defense.state_dict() for defense in self.each]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for defense, saved in zip(self.each, state["each"], strict=True):
            defense.load_state_dict(saved)
