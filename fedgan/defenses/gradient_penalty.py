"""Local training regularisation: the server asks for smooth critics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fedgan.defenses.base import PreAggregation, ServerMeans
from fedgan.defenses.clipping import check_positive
from fedgan.reports import Report
from fedgan.updates import UpdateMatrix


class GradientPenalty(PreAggregation):
    """Local training regularisation: every client trains with a gradient penalty.

    Source: Jin and Li 2022, arXiv 2207.00762, the second defence beside FedDetect: a critic whose
    gradient is kept small cannot overfit the trigger, and the local game stays in balance. The
    updates stay as they are, and FedAvg joins them, or any rule that follows: `[gradient-penalty,
    krum]`. What changes is the clients' loss, in all clients, the malicious too, for they poison
    images and not the training: a loss whose penalty is off (bce, hinge; relativistic with gamma 0)
    gets R1 + R2 with `gamma`, wgan-gp with weight 0 gets `weight`; config.yaml then says so under
    `loss.init_args`. A loss that has a penalty of its own, as relativistic has by default, keeps
    it, with a warning where it is not the one asked for.

    The authors' code has WGAN-GP with weight 10. R1 and R2 (Mescheder et al. 2018, arXiv
    1801.04406) do the same for the other losses; 0.05 is what the relativistic loss has here by
    default. It keeps the images good and stops no trigger, and it hides an attacker from rules
    that read losses. Any n and f; no cost at the server, a second derivative in the clients.

    Args:
        gamma: weight of R1 + R2.
        weight: of the penalty of wgan-gp, its lambda.

    >>> GradientPenalty().penalties()
    {'gamma': 0.05, 'weight': 10.0}
    """

    name: ClassVar[str] = "gradient-penalty"
    changes_updates: ClassVar[bool] = False

    def __init__(self, gamma: float = 0.05, weight: float = 10.0) -> None:
        check_positive("gamma", gamma)
        check_positive("weight", weight)
        self.gamma = gamma
        self.weight = weight

    def penalties(self) -> dict[str, float]:
        return {"gamma": self.gamma, "weight": self.weight}

    def __call__(
        self, updates: UpdateMatrix, reports: Sequence[Report], server: ServerMeans
    ) -> UpdateMatrix:
        return updates
