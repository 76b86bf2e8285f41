"""What happens in a run, told to whoever wants to know: on rank 0 only."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fedgan.defenses.base import Verdict
from fedgan.reports import Report
from fedgan.settings import Experiment


@dataclass(frozen=True)
class RunInfo:
    """What is known before the first round."""

    run_dir: Path
    settings: Experiment
    n_images: tuple[int, ...]
    """Training images of each client."""
    malicious: frozenset[int]
    counts: list[list[int]]
    """Images of each class that each client holds."""
    classes: tuple[str, ...]
    images_in_round: float
    """Images that the clients of a round train on, on average."""
    world: int = 1
    """Ranks, each of which tells its own clients only."""
    first_round: int = 1
    """1, or the round after the checkpoint that this run resumes."""
    labels: dict[str, Any] = field(default_factory=dict)
    """The run's place in a comparison: data, attack, defense, seed and arm."""


@dataclass(frozen=True)
class RoundRecord:
    """One finished round. `verdict` speaks of the reports whose status is `ok`, in order."""

    round: int
    reports: list[Report]
    verdict: Verdict
    attackers: frozenset[int]
    """Clients that attacked in this round; known to the simulation, never to a defence."""
    figures: dict[str, float]
    seconds: float
    images_per_second: float
    training_seconds: float = 0.0
    """Local training on the slowest rank; the rest of `seconds` is everything else."""
    fair_weights: dict[int, float] = field(default_factory=dict)
    """FedAvg's, of the clients whose status is `ok`: what `verdict.weights` are held against."""
    critic_bias: dict[int, float] = field(default_factory=dict)
    """What the clients' discriminators make of the trigger, in standard deviations of what they say
    of real images; of those that could be asked."""
    samples: Tensor | None = None
    """Generated images uint8 [rows, columns, C, H, W], a class a row, if it was looked at."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """All that the look has found, as evaluation.json would hold it; empty if there was none."""
    pictures: dict[str, Tensor] = field(default_factory=dict)
    """The look's, uint8 [C, H, W] by name."""

    def scalars(self) -> dict[str, float]:
        """The round's row of metrics.csv."""
        row: dict[str, float] = {
            "round": self.round,
            "seconds": round(self.seconds, 3),
            "training_seconds": round(self.training_seconds, 3),
            "images_per_second": round(self.images_per_second, 1),
            "flagged": int(self.verdict.flagged.sum()),
            "acted": int(self.verdict.acted),
            "left_out": sum(report.status != "ok" for report in self.reports),
            "undone": self.undone,
        }
        good = [report for report in self.reports if report.status == "ok"]
        for loss in ("d_loss", "g_loss"):
            if good:
                row[loss] = sum(getattr(report, loss) for report in good) / len(good)
        return row | self.figures

    @property
    def undone(self) -> int:
        """Rounds that the defence has undone in this one, itself among them."""
        back_to = self.verdict.back_to
        return 0 if back_to is None else self.round - back_to + 1

    def client_rows(self) -> list[dict[str, Any]]:
        """The round's rows of clients.csv, a client a row."""
        rows, position = [], 0
        shares = self._shares()
        for report in self.reports:
            row: dict[str, Any] = {
                "round": self.round,
                "client": report.client,
                "n_images": report.n_images,
                "d_loss": report.d_loss,
                "g_loss": report.g_loss,
                "d_loss_last": report.d_loss_last,
                "g_loss_last": report.g_loss_last,
                "weight": 0.0,
                "fair_weight": self.fair_weights.get(report.client, 0.0),
                "score": float("nan"),
                "flagged": False,
                "suppressed": False,
                "malicious": report.client in self.attackers,
                "status": report.status,
            }
            if report.status == "ok":
                row["weight"] = float(self.verdict.weights[position])
                row["score"] = float(self.verdict.scores[position])
                row["flagged"] = bool(self.verdict.flagged[position])
                row["suppressed"] = row["flagged"] and self._cost(shares, position)
                position += 1
            if self.critic_bias:  # no column in a run without a trigger
                row["critic_bias"] = self.critic_bias.get(report.client, "")
            rows.append(row)
        return rows

    def _shares(self) -> list[float]:
        """What each judged client got of its fair weight."""
        judged = [report.client for report in self.reports if report.status == "ok"]
        fair = [self.fair_weights.get(client, 0.0) for client in judged]
        weights = self.verdict.weights.tolist()
        return [weight / due if due else 0.0 for weight, due in zip(weights, fair, strict=True)]

    def _cost(self, shares: Sequence[float], position: int) -> bool:
        """Whether a flag cost its client weight: the rule acted, and left it nothing or less of
        its fair weight than somebody else of theirs. (Who loses little where others lose more ends
        above its fair weight.)"""
        share = shares[position]
        return self.verdict.acted and (share <= 0 or share < max(shares) * (1 - 1e-6))


class Observer:
    """Somebody who wants to know. Every method does nothing unless it is overridden."""

    def on_start(self, info: RunInfo) -> None:
        """The run directory stands, and the first round is about to begin."""

    def on_client(self, round: int, client: int, images: int) -> None:
        """A client on rank 0 has trained on `images` images."""

    def on_measured(self, what: str, done: int, total: int, closely: bool) -> None:
        """A look at the generator goes on: what is being done, how much of it is, how much there
        is, and whether all is measured (which takes a while) or some on the way."""

    def on_evaluation(
        self, round: int, evaluation: dict[str, Any], pictures: dict[str, Tensor]
    ) -> None:
        """All that is measured at the end has been measured after `round`: what evaluation.json
        holds, and pictures uint8 [C, H, W] by name."""

    def on_round(self, record: RoundRecord) -> None:
        """A round is over."""

    def sync(self) -> None:
        """A checkpoint is about to be written: what it follows from must be on the disk."""

    def on_end(self, summary: dict[str, Any]) -> None:
        """The run is over; `summary` is what summary.json holds."""

    def close(self) -> None:
        """The run is over or has failed: flush and let go."""


@dataclass
class Observers(Observer):
    """Several observers as one."""

    members: list[Observer] = field(default_factory=list)

    def on_start(self, info: RunInfo) -> None:
        for member in self.members:
            member.on_start(info)

    def on_client(self, round: int, client: int, images: int) -> None:
        for member in self.members:
            member.on_client(round, client, images)

    def on_measured(self, what: str, done: int, total: int, closely: bool) -> None:
        for member in self.members:
            member.on_measured(what, done, total, closely)

    def on_evaluation(
        self, round: int, evaluation: dict[str, Any], pictures: dict[str, Tensor]
    ) -> None:
        for member in self.members:
            member.on_evaluation(round, evaluation, pictures)

    def on_round(self, record: RoundRecord) -> None:
        for member in self.members:
            member.on_round(record)

    def sync(self) -> None:
        for member in self.members:
            member.sync()

    def on_end(self, summary: dict[str, Any]) -> None:
        for member in self.members:
            member.on_end(summary)

    def close(self) -> None:
        with ExitStack() as stack:  # each is closed, even if another cannot be
            for member in self.members:
                stack.callback(member.close)
