"""A detector in front of a rule: whom it excludes, the rule does not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from fedgan.defenses.base import Defense, Detector, ServerMeans, Stage, Verdict
from fedgan.defenses.chain import PerNetwork
from fedgan.defenses.fedavg import FedAvg
from fedgan.reports import Report
from fedgan.updates import UpdateMatrix


class Detected(Defense):
    """`[audit, nnm, krum]`: the detector judges, and the rule joins the updates that are left.

    It starts from the weights that the detector leaves. The scores are the detector's; a client is
    flagged if either says so. Where fewer are left than the rule needs, their mean is taken; where
    nobody is, the global model stays as it is. Where the detector undoes what was done, the rule
    begins anew (`Stage.restart`); where it undoes this round as well, in the next one.

    Args:
        detector: judges all clients.
        rule: joins those that it leaves; a chain, or one for each network.

    Raises:
        UserError: where the detector cannot work in front of the rule.
    """

    def __init__(self, detector: Detector, rule: Defense) -> None:
        self.detector = detector
        self.rule = rule
        detector.work_before(rule)

    @property
    def parts(self) -> tuple[Stage, Stage]:
        """Both."""
        return self.detector, self.rule

    def check(self, n: int) -> None:
        for part in self.parts:
            part.check(n)

    def check_clients(self, clients: int) -> None:
        for part in self.parts:
            part.check_clients(clients)

    def penalties(self) -> dict[str, float]:
        return {name: weight for part in self.parts for name, weight in part.penalties().items()}

    def fewest(self) -> int:
        return max(part.fewest() for part in self.parts)

    def __call__(
        self, updates: UpdateMatrix, reports: Sequence[Report], server: ServerMeans
    ) -> Verdict:
        found = self.detector(updates, reports, server)
        if found.correction is not None:
            self.rule.restart()
        if found.back_to is not None or not found.weights.any():
            return found
        left = found.weights.nonzero().flatten().tolist()
        seen = updates.only(left, found.weights[left] / found.weights[left].sum())
        rule = self.rule if len(left) >= self.rule.fewest() else FedAvg()
        own = rule(seen, [reports[i] for i in left], server)
        weights, flagged = torch.zeros_like(found.weights), found.flagged.clone()
        weights[left] = own.weights
        flagged[left] |= own.flagged
        return replace(
            found,
            weights=weights,
            flagged=flagged,
            acted=found.acted or own.acted,
            aggregate=own.joined(seen),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"detector": self.detector.state_dict(), "rule": self.rule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state["detector"])
        self.rule.load_state_dict(state["rule"])


def per_network(each: Sequence[Defense], sizes: Sequence[int]) -> Defense:
    """`PerNetwork`, with the detector of the generator's defence in front of both, and none behind
    it: the same chain for each network has it twice.

    Raises `UserError` where the detector cannot work in front of both.
    """
    first = each[0]
    if not isinstance(first, Detected):
        return PerNetwork(each, sizes)
    rules = [one.rule if isinstance(one, Detected) else one for one in each]
    both = PerNetwork(rules, sizes)
    return Detected(first.detector, both)
