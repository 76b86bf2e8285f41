"""How well a defence tells attackers from benign clients, and what its mistakes cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import numpy as np

from fedgan.metrics._shared import wilson
from fedgan.metrics.measure import Findings, Generated, Measure, Scene

SILENCED = 0.1
"""Share of its fair weight below which an attacker counts as silenced."""
Row = Mapping[str, Any]


class Detection(Measure):
    """Who was flagged and who lost weight over a run, by `detection` on its clients.csv.

    Figures: `detection_auroc`, `detection_auroc_by_round`, `detection_tpr`, `detection_fpr` with
    `_low` and `_high`, `detection_benign_weight_lost`, `detection_benign_weight_lost_worst`,
    `detection_malicious_weight_lost`, `detection_silenced` (the share of the attackers that ended
    below a tenth of their fair weight), `detection_rounds_until_silenced` (for good) and
    `detection_rounds_until_first_silenced`, each only where there is one; the details are those of
    `detection`, round by round too. It looks at no images; without a run it finds nothing.

    >>> Detection().name
    'detection'
    """

    name: ClassVar[str] = "detection"
    needs_generated: ClassVar[bool] = False

    def measure(self, scene: Scene, generated: Generated | None) -> Findings:
        history = scene.history
        if history is None:
            return Findings(details={"notes": ["no run, so nobody was judged"]})
        # The first of all jobs is rank 0's, which alone can read the table.
        (found,) = scene.share([lambda: detection(history(), by_round=True)])
        worst, attackers = found["benign_worst"], found["attackers"]
        figures = {
            "detection_auroc": found["auroc"],
            "detection_auroc_by_round": found["auroc_by_round"],
            **_interval("detection_tpr", found, "true_positive_rate"),
            **_interval("detection_fpr", found, "false_positive_rate"),
            "detection_benign_weight_lost": found["benign_weight_lost"],
            "detection_benign_weight_lost_worst": worst and worst["weight_lost"],
            "detection_malicious_weight_lost": found["malicious_weight_lost"],
            "detection_silenced": _mean(
                float(one["silenced_from_round"] is not None) for one in attackers
            ),
            "detection_rounds_until_silenced": found["rounds_until_silenced"],
            "detection_rounds_until_first_silenced": found["rounds_until_first_silenced"],
        }
        return Findings({k: v for k, v in figures.items() if v is not None}, found)


def detection(rows: Iterable[Row], *, by_round: bool = False) -> dict[str, Any]:
    """Detection quality of a run, from the rows of its clients.csv.

    What is counted are client-rounds that a rule has judged: those whose status is `ok`. One is
    malicious if the client attacked in that round, and benign if it has not attacked yet. An
    attacker at rest (off and on again, or after its one shot) is neither: whoever holds it to
    account does not accuse the innocent. `resting_client_rounds` are left out. Null stands wherever
    there is nothing to count; `words` says why of the AUROC.

    - `malicious_client_rounds`, `malicious_flagged`, `malicious_suppressed` (the flag cost
      weight), `true_positive_rate`, `true_positive_interval` (Wilson, 95 %); likewise for
      `benign` and `false`. The intervals take client-rounds for independent, which rounds of one
      client are not: they are too narrow rather than too wide.
    - `auroc` of the scores, the higher the more suspect, over all client-rounds: the chance that a
      malicious one scores above a benign one, a tie counting half (Mann-Whitney). `auroc_by_round`
      is the mean over the `auroc_rounds` rounds that have scores of both kinds. The two differ
      where scores drift over the rounds, as distances do that shrink with the updates. `unscored`
      client-rounds have no score and are left out.
    - Weights are held against the fair ones, FedAvg's among the usable updates of the round. The
      weight lost in a client-round is max(0, 1 - weight / fair), in [0, 1]. What others have gained
      by it is not set off, or the mean over all clients would be 0 whatever a rule does.
      `benign_weight_lost` and `malicious_weight_lost` are means over client-rounds;
      `benign_worst` is the benign `client` with the largest mean, that `weight_lost`, and its
      `last_weight_lost`. A rule that gives a client no weight on purpose (fltrust's root) shows
      here as well.
    - `attackers`: for each `client` its first `attacked_from_round`, `rounds_attacked`, the first
      round in which its weight was below a tenth of the fair one (`silenced_first_round`), the
      first from which on it stayed there in every round that it attacked (`silenced_from_round`),
      and the rounds in which it attacked before either (`attacked_before_first_silenced`,
      `attacked_before_silenced`). Null is never. `rounds_until_first_silenced` and
      `rounds_until_silenced` are the means of these over attackers, where one that was never
      silenced counts with all the rounds that it attacked. They differ where a defence has let
      an attacker in again.
    - with `by_round`, a table `rounds` of the counts, rates and intervals, and the AUROC, by round.

    Without an attacker what remains is the false alarms, and the weight that they have cost.

    Args:
        rows: as in clients.csv, strings or values; columns round, client, score, flagged,
            suppressed, malicious, status, weight and fair_weight. Tables of before there were fair
            weights have the counts and rates only.

    Cost: 0.3 s for 100 rounds of 100 clients, by round too, and some 3 MB.

    >>> row = {"round": 1, "status": "ok", "suppressed": False, "fair_weight": 0.5}
    >>> bad = {"client": 0, "malicious": True, "flagged": True, "score": 2.0, "weight": 0.0}
    >>> good = {"client": 1, "malicious": False, "flagged": False, "score": 1.0, "weight": 1.0}
    >>> found = detection([row | bad, row | good])
    >>> found["auroc"], found["true_positive_rate"], found["attackers"][0]["silenced_from_round"]
    (1.0, 1.0, 1)
    """
    turns = [_Turn.of(row) for row in rows if row["status"] == "ok"]
    turns.sort(key=lambda turn: (turn.round, turn.client))
    turns, resting = _without_rests(turns)
    rounds = [list(group) for _, group in groupby(turns, key=lambda turn: turn.round)]
    bad, good = _split(turns)
    found = {**_counts(bad, good), **_scores(turns, rounds), **_weights(bad, good)}
    found["resting_client_rounds"] = resting
    if by_round:
        found["rounds"] = [
            {"round": some[0].round, **_counts(*_split(some)), "auroc": _auroc(*_split(some))}
            for some in rounds
        ]
    return found


@dataclass(frozen=True)
class _Turn:
    """A client-round that was judged."""

    round: int
    client: int
    malicious: bool
    flagged: bool
    suppressed: bool
    score: float | None
    kept: float | None
    """Its weight as a share of the fair one."""

    @classmethod
    def of(cls, row: Row) -> _Turn:
        fair, weight = _number(row.get("fair_weight")), _number(row.get("weight"))
        known = fair is not None and weight is not None and fair > 0
        return cls(
            int(row.get("round", 0)),
            int(row.get("client", 0)),
            str(row["malicious"]) == "True",
            str(row["flagged"]) == "True",
            str(row["suppressed"]) == "True",
            _number(row.get("score")),
            weight / fair if known else None,  # type: ignore[operator]
        )

    @property
    def lost(self) -> float | None:
        return None if self.kept is None else min(1.0, max(0.0, 1 - self.kept))

    @property
    def silenced(self) -> bool:
        return self.kept is not None and self.kept < SILENCED


def _number(value: Any) -> float | None:
    """A cell as a number; None where it is empty or no number. An infinite score is a score."""
    found = math.nan if value in (None, "") else float(value)
    return None if math.isnan(found) else found


def _without_rests(turns: Sequence[_Turn]) -> tuple[list[_Turn], int]:
    """Turns in the order of their rounds, less those in which a client that had attacked before did
    not; and how many these are."""
    attackers: set[int] = set()
    kept = []
    for turn in turns:
        if turn.malicious:
            attackers.add(turn.client)
        if turn.malicious or turn.client not in attackers:
            kept.append(turn)
    return kept, len(turns) - len(kept)


def _split(turns: Sequence[_Turn]) -> tuple[list[_Turn], list[_Turn]]:
    """The malicious ones and the benign ones."""
    bad = [turn for turn in turns if turn.malicious]
    return bad, [turn for turn in turns if not turn.malicious]


def _by_client(turns: Sequence[_Turn]) -> dict[int, list[_Turn]]:
    own: dict[int, list[_Turn]] = {}
    for turn in turns:
        own.setdefault(turn.client, []).append(turn)
    return dict(sorted(own.items()))


def _counts(bad: Sequence[_Turn], good: Sequence[_Turn]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for who, turns, rate in (
        ("malicious", bad, "true_positive"),
        ("benign", good, "false_positive"),
    ):
        flagged, n = sum(turn.flagged for turn in turns), len(turns)
        found[f"{who}_client_rounds"] = n
        found[f"{who}_flagged"] = flagged
        found[f"{who}_suppressed"] = sum(turn.suppressed for turn in turns)
        found[f"{rate}_rate"] = flagged / n if n else None
        found[f"{rate}_interval"] = list(wilson(flagged, n)) if n else None
    return found


def _auroc(bad: Sequence[_Turn], good: Sequence[_Turn]) -> float | None:
    """None where scores of both kinds are not to be had."""
    positive = [turn.score for turn in bad if turn.score is not None]
    negative = [turn.score for turn in good if turn.score is not None]
    if not positive or not negative:
        return None
    import torch
    from torchmetrics.functional.classification import binary_auroc

    # Ranks within [0, 1]: torchmetrics takes anything else for logits, and its sigmoid makes one
    # of all scores above 37.
    _, ranks = np.unique([*positive, *negative], return_inverse=True)
    scores = torch.from_numpy(ranks / max(1, ranks.max()))
    truth = torch.tensor([1] * len(positive) + [0] * len(negative))
    return float(binary_auroc(scores, truth))


def _words(bad: Sequence[_Turn], good: Sequence[_Turn], auroc: float | None) -> str:
    if not bad and not good:
        return "nobody was judged"
    if not bad:
        return "nobody attacked: there is nobody to tell from the benign"
    if not good:
        return "everybody attacked in every round: there is nobody to tell the attackers from"
    if auroc is None:
        return "the rule gives no scores that could be compared"
    return "the higher the score, the more suspect; an AUROC of 0.5 is chance"


def _scores(turns: Sequence[_Turn], rounds: Sequence[list[_Turn]]) -> dict[str, Any]:
    """How well the scores tell either side apart, over all turns and within rounds."""
    bad, good = _split(turns)
    auroc = _auroc(bad, good)
    each = [area for area in (_auroc(*_split(some)) for some in rounds) if area is not None]
    return {
        "auroc": auroc,
        "auroc_by_round": _mean(each),
        "auroc_rounds": len(each),
        "unscored": sum(turn.score is None for turn in turns),
        "words": _words(bad, good, auroc),
    }


def _weights(bad: Sequence[_Turn], good: Sequence[_Turn]) -> dict[str, Any]:
    """What flags have cost either side, and since when each attacker has no say."""
    attackers = [_attacker(client, own) for client, own in _by_client(bad).items()]
    return {
        "benign_weight_lost": _mean_loss(good),
        "malicious_weight_lost": _mean_loss(bad),
        "benign_worst": _worst(good),
        "attackers": attackers,
        "rounds_until_first_silenced": _until(attackers, "attacked_before_first_silenced"),
        "rounds_until_silenced": _until(attackers, "attacked_before_silenced"),
    }


def _until(attackers: Iterable[Mapping[str, Any]], key: str) -> float | None:
    """Mean rounds under a key; all that it attacked of one that never was."""
    known = [one for one in attackers if one["weight_lost"] is not None]
    return _mean(one["rounds_attacked"] if one[key] is None else one[key] for one in known)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _mean_loss(turns: Iterable[_Turn]) -> float | None:
    return _mean(turn.lost for turn in turns)


def _worst(turns: Sequence[_Turn]) -> dict[str, Any] | None:
    """The client that has lost the most on average; the first of several."""
    means = {client: _mean_loss(own) for client, own in _by_client(turns).items()}
    known = {client: mean for client, mean in means.items() if mean is not None}
    if not known:
        return None
    worst = max(known, key=lambda client: known[client])
    last = [turn.lost for turn in turns if turn.client == worst and turn.lost is not None][-1]
    return {"client": worst, "weight_lost": known[worst], "last_weight_lost": last}


def _attacker(client: int, own: Sequence[_Turn]) -> dict[str, Any]:
    """When a client lost its say, from the rounds that it attacked in, ascending."""
    first = next((i for i, turn in enumerate(own) if turn.silenced), None)
    heard = [i for i, turn in enumerate(own) if not turn.silenced]
    start = heard[-1] + 1 if heard else 0
    for_good = start < len(own)
    return {
        "client": client,
        "attacked_from_round": own[0].round,
        "rounds_attacked": len(own),
        "silenced_first_round": None if first is None else own[first].round,
        "attacked_before_first_silenced": first,
        "silenced_from_round": own[start].round if for_good else None,
        "attacked_before_silenced": start if for_good else None,
        "weight_lost": _mean_loss(own),
    }


def _interval(name: str, found: Mapping[str, Any], rate: str) -> dict[str, float | None]:
    low, high = found[rate.replace("_rate", "_interval")] or (None, None)
    return {name: found[rate], f"{name}_low": low, f"{name}_high": high}
