"""FedDetect: the server reads the clients' losses and suppresses the odd one out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from fedgan.defenses.base import Defense, Verdict
from fedgan.errors import UserError
from fedgan.reports import Report
from fedgan.updates import UpdateMatrix

LossName = Literal["g_loss", "g_loss_last", "d_loss", "d_loss_last"]


class FedDetect(Defense):
    """Flags odd losses of a round by an isolation forest; a flag costs a client some weight.

    Source: Jin and Li 2022, arXiv 2207.00762; 2023, arXiv 2210.10886.

    In each round past the warm-up, the forest (Liu et al. 2008) is fitted on the points
    (0, |loss_i|) of this round's n clients alone. If fewer than n // 2 are flagged, then for each
    flagged i its count c_i grows by one and its trust t_i falls; w_i is proportional to
    fedavg_i * t_i. Otherwise the round changes no trust. A score is the forest's anomaly score, in
    (0, 1]; above 0.5 is flagged.

    - decay_form `compounding` (published): t_i *= decay ** c_i, so k flags leave
      decay ** (k (k + 1) / 2).
    - decay_form `per-flag` (the default): t_i = decay ** c_i, so k flags leave decay ** k.

    The default differs from the published configuration (`FedDetect.published()`) in two more
    ways: it reads the mean loss of the round, which is less noisy than that of the last batch, and
    warms up for 3 rounds instead of 10. It shares its limits: losses are self-reported, an
    unusually LOW loss is flagged too, counts never fall, the forest flags benign clients where
    nobody attacks, and where critics are well regularised the losses may tell nothing.

    Args:
        loss: what the forest looks at.
        decay: factor in (0, 1].
        decay_form: see above.
        warm_up: rounds are counted from 0 here as in the published code, and the rule acts in
            those above `warm_up`: 10 means from the 12th round on.
        forest_seed: the forest's random_state.

    >>> FedDetect(loss="d_loss", warm_up=0).warm_up
    0
    """

    name: ClassVar[str] = "feddetect"

    def __init__(
        self,
        loss: LossName = "g_loss",
        decay: float = 0.9,
        decay_form: Literal["compounding", "per-flag"] = "per-flag",
        warm_up: int = 3,
        forest_seed: int = 999,
    ) -> None:
        if not 0 < decay <= 1:
            raise ValueError(f"init_args.decay is {decay}; it must be in (0, 1]")
        if warm_up < 0:
            raise ValueError(f"init_args.warm_up is {warm_up}; it must be at least 0")
        self.loss = loss
        self.decay = decay
        self.decay_form = decay_form
        self.warm_up = warm_up
        self.forest_seed = forest_seed
        self.counts: dict[int, int] = {}
        self.log_trust: dict[int, float] = {}

    @classmethod
    def published(cls) -> FedDetect:
        """The configuration of the authors' public code."""
        return cls("g_loss_last", 0.9, "compounding", 10, 999)

    def check(self, clients: int) -> None:
        if clients < 3:
            raise UserError(
                f"defense.name: feddetect needs at least 3 clients in a round, there are {clients}"
            )

    def __call__(self, updates: UpdateMatrix, reports: Sequence[Report], round: int) -> Verdict:
        losses = np.array([abs(getattr(report, self.loss)) for report in reports])
        scores, flagged = self.detect(losses)
        acted = round - 1 > self.warm_up and 0 < flagged.sum() < len(losses) // 2
        if acted:
            for report, odd in zip(reports, flagged, strict=True):
                if odd:
                    self._distrust(report.client)
        # Logarithms, because trust of 0.9 ** (k (k + 1) / 2) leaves float64 after 119 flags.
        log_trust = torch.tensor(
            [self.log_trust.get(report.client, 0.0) for report in reports], dtype=torch.float64
        )
        weights = updates.weights * torch.exp(log_trust - log_trust.max())
        return Verdict(
            weights / weights.sum(),
            torch.from_numpy(scores),
            torch.from_numpy(flagged),
            bool(acted),
        )

    def detect(self, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Anomaly scores [n] and flags [n] of the absolute losses [n] of one round."""
        if len(losses) < 3:  # nobody is odd among two
            return np.full(len(losses), np.nan), np.zeros(len(losses), dtype=bool)
        from sklearn.ensemble import IsolationForest

        points = np.stack([np.zeros_like(losses), losses], 1)
        forest = IsolationForest(
            max_samples=len(losses), random_state=self.forest_seed, contamination="auto"
        )
        flagged = forest.fit_predict(points) == -1
        return -forest.score_samples(points), flagged

    def _distrust(self, client: int) -> None:
        count = self.counts[client] = self.counts.get(client, 0) + 1
        before = self.log_trust.get(client, 0.0) if self.decay_form == "compounding" else 0.0
        self.log_trust[client] = before + count * math.log(self.decay)

    def state_dict(self) -> dict[str, Any]:
        return {"counts": dict(self.counts), "log_trust": dict(self.log_trust)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts = dict(state["counts"])
        self.log_trust = dict(state["log_trust"])
