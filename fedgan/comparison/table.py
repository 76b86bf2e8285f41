"""The leaderboard as plain values: what each attack cost under each defence, over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fedgan.comparison.names import PRESENCE, is_utility, natural
from fedgan.comparison.reading import Gap, in_order, trigger_of
from fedgan.comparison.spread import LEVEL, Difference, Spread, judged, paired_difference
from fedgan.metrics.recovery import Recovery, leakage_removed, recovery
from fedgan.runs import NOBODY, UNDEFENDED, Labels, Run

DETECTION = {
    "auroc": "auroc",
    "tpr": "true_positive_rate",
    "fpr": "false_positive_rate",
    "benign_weight_lost": "benign_weight_lost",
    "malicious_weight_lost": "malicious_weight_lost",
    "rounds_until_silenced": "rounds_until_silenced",
}
"""Names of detection figures here, and in summary.json."""
Key = tuple[str, str, str]
"""Data, attack, defence."""


@dataclass(frozen=True)
class Row:
    """One data set, attack and defence, over the seeds.

    Attributes:
        data, attack, defense: its labels; `none` is nobody who attacks, or plain FedAvg.
        seeds: those of its runs.
        runs: their directories, seed by seed.
        value: the figure that is compared; None where no run has it.
        ratio: the figure over that of the clean undefended arm, seed by seed; where the two have no
            seed in common, the ratio of the means, with n = 0. None without a clean arm.
        presence: of the trigger, a share of images; of one run, `presence_interval` is Wilson's.
        figures: every figure of the runs, by name; those beside (floors, intervals) too.
        detection: `auroc`, `tpr`, `fpr`, `benign_weight_lost`, `malicious_weight_lost` and
            `rounds_until_silenced`, each where there is one; none of the undefended arm, which
            judges nobody.
        recovery: share of the attack's harm to the figure that is undone; see
            `fedgan.metrics.recovery`. None without an attack, a defence or an arm to compare with.
        leakage: the same of trigger presence; None where the clean arm looked for another trigger.
        difference: the figure less that of the undefended arm under the same attack.
        presence_difference: likewise, of trigger presence.
        harm: what an attack does, of an undefended arm: the figure less that of the clean arm.
    """

    data: str
    attack: str
    defense: str
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    value: Spread | None
    ratio: Spread | None
    presence: Spread | None
    presence_interval: tuple[float, float] | None
    figures: dict[str, Spread]
    detection: dict[str, Spread]
    recovery: Recovery | None = None
    leakage: Recovery | None = None
    difference: Difference | None = None
    presence_difference: Difference | None = None
    harm: Difference | None = None

    @property
    def arm(self) -> str:
        """`clean`, `attacked`, `defended` or `alarms` (a defence where nobody attacks)."""
        return Labels(self.data, self.attack, self.defense, 0).arm

    @property
    def utility(self) -> dict[str, Spread]:
        """What the generated images are worth to a classifier, as far as it was measured."""
        return {name: spread for name, spread in self.figures.items() if is_utility(name)}

    @property
    def is_better(self) -> bool:
        """Whether the figure may stand in bold: better than undefended, more than seeds differ."""
        return self.difference is not None and self.difference.shown == "better"


@dataclass(frozen=True)
class Place:
    """A defence's place among those on one data set, by its worst case over attacks.

    Attributes:
        place: from 1, the best; None where the defence was not run under every attack that another
            one was, so that its worst case may be missing.
        attack: the attack that hurts the figure the most, by the mean over seeds.
        value, ratio: of that attack; as in its `Row`.
        presence_attack, presence: the attack that leaves the most of its trigger, and how much.
        cost: the ratio to clean where nobody attacks.
        attacks: how many attacks it was run under.
        lacks: those that it was not.
        behind: its worst case less that of the first place, seed by seed; None for the first.
    """

    data: str
    defense: str
    place: int | None
    attack: str
    value: Spread
    ratio: Spread | None
    presence_attack: str | None
    presence: Spread | None
    cost: Spread | None
    attacks: int
    lacks: tuple[str, ...]
    behind: Difference | None = None


@dataclass(frozen=True)
class Comparison:
    """What runs of several attacks, defences, data sets and seeds come to side by side.

    Attributes:
        figure: the one that is compared, as in summary.json.
        less_is_better: which way it is better.
        level: of all intervals.
        rows: by data, attack and defence, the clean arm first.
        ranking: by data, best first.
        missing: cells without a finished run, or without the figure.
        notes: what a reader should know, a sentence each.
        measured: by data, how: `rounds`, `samples` and `encoders`.
    """

    figure: str
    less_is_better: bool
    level: float
    rows: tuple[Row, ...]
    ranking: tuple[Place, ...]
    missing: tuple[Gap, ...]
    notes: tuple[str, ...]
    measured: dict[str, dict[str, Any]]

    @property
    def data(self) -> list[str]:
        """Names of the data sets, in order."""
        return list(dict.fromkeys(row.data for row in self.rows))

    @property
    def tested(self) -> int:
        """How many differences of the figure Holm's correction is for."""
        return sum(row.difference is not None and row.difference.n > 1 for row in self.rows)

    @property
    def method(self) -> str:
        """What the numbers are and when one is called better, for below a table."""
        percent = f"{100 * self.level:g} %"
        return (
            f"{self.figure}: {'less' if self.less_is_better else 'more'} is better. Mean ± "
            "standard deviation over seeds. Differences are to the undefended arm under the same "
            "attack, of that arm itself to the clean one; paired by seed, with their "
            f"{percent} interval (t). Bold, better or worse: "
            f"shown at {percent} after Holm's correction for the {_rows(self.tested)} "
            "tested, of trigger presence and of undefended attacks likewise; never with one seed. "
            "A place is shown to be behind the first only where it is called worse, corrected "
            "likewise for the places on the same data. Rounds until silenced: those that attackers "
            "kept their weight in, all of them if that was to the end."
        )

    def row(self, data: str, attack: str, defense: str) -> Row | None:
        """The row of these labels; None where there is none."""
        wanted = (data, attack, defense)
        return next((r for r in self.rows if (r.data, r.attack, r.defense) == wanted), None)


def make_rows(
    runs: Iterable[Run], figure: str, *, less_is_better: bool, level: float = LEVEL
) -> tuple[Row, ...]:
    """The rows of comparable runs; their order makes no difference.

    Differences are tested together, over all rows; those of presence, and the harm of attacks,
    likewise, each by themselves.
    """
    cells: dict[Key, dict[int, Run]] = {}
    for run in sorted(runs, key=lambda run: run.labels.seed):
        cells.setdefault(run.labels[:3], {})[run.labels.seed] = run
    alone = {key: _row(key, cells[key], figure) for key in sorted(cells, key=in_order)}
    arms = {key: _Arms.of(row, alone, cells) for key, row in alone.items()}
    rows = {
        key: _beside_others(row, arms[key], less_is_better, level) for key, row in alone.items()
    }
    every = rows.values()
    return tuple(
        replace(row, difference=difference, presence_difference=share, harm=harm)
        for row, difference, share, harm in zip(
            every,
            judged([row.difference for row in every], less_is_better=less_is_better, level=level),
            judged([row.presence_difference for row in every], less_is_better=True, level=level),
            judged([row.harm for row in every], less_is_better=less_is_better, level=level),
            strict=True,
        )
    )


def _row(key: Key, runs: Mapping[int, Run], figure: str) -> Row:
    told = {seed: run.figures for seed, run in runs.items()}
    images = max(run.final.get("samples") or 0 for run in runs.values())
    figures = {
        name: _spread(told, name, 1 / images if name == PRESENCE and images else 0.0)
        for name in dict.fromkeys(k for f in told.values() for k in f)
    }
    known = {name: spread for name, spread in figures.items() if spread is not None}
    low, high = known.get(f"{PRESENCE}_low"), known.get(f"{PRESENCE}_high")
    judges = (
        {}
        if key[2] == UNDEFENDED
        else {seed: run.summary.get("detection") or {} for seed, run in runs.items()}
    )
    detection = {name: _spread(judges, there) for name, there in DETECTION.items()}
    return Row(
        *key,
        seeds=tuple(runs),
        runs=tuple(str(run.path) for run in runs.values()),
        value=known.get(figure),
        ratio=None,
        presence=known.get(PRESENCE),
        presence_interval=(low.mean, high.mean) if low and high and low.n == 1 else None,
        figures=known,
        detection={name: spread for name, spread in detection.items() if spread is not None},
    )


def _spread(told: Mapping[int, Mapping[str, Any]], name: str, step: float = 0.0) -> Spread | None:
    own = {seed: one[name] for seed, one in told.items() if one.get(name) is not None}
    return Spread.of(own, step)


class _Arms(NamedTuple):
    """What a row is held against, as far as there is such an arm."""

    clean: Row | None
    undefended: Row | None
    same_trigger: bool

    @classmethod
    def of(cls, row: Row, rows: Mapping[Key, Row], runs: Mapping[Key, Mapping[int, Run]]) -> _Arms:
        clean = (row.data, NOBODY, UNDEFENDED)
        triggers = [
            {trigger_of(run) for run in runs.get(key, {}).values()}
            for key in (clean, (row.data, row.attack, row.defense))
        ]
        undefended = (row.data, row.attack, UNDEFENDED)
        return cls(rows.get(clean), rows.get(undefended), triggers[0] == triggers[1])


def _beside_others(row: Row, others: _Arms, less_is_better: bool, level: float) -> Row:
    """The row with all that comes of holding it against the clean and the undefended arm."""
    clean, undefended = others.clean, others.undefended
    found: dict[str, Any] = {"ratio": _ratio(row.value, clean.value if clean else None)}
    if row.arm == "attacked" and row.value and clean and clean.value:
        found["harm"] = paired_difference(row.value, clean.value, level=level)
    if row.defense == UNDEFENDED or undefended is None:
        return replace(row, **found)
    if row.value and undefended.value:
        found["difference"] = paired_difference(row.value, undefended.value, level=level)
        if row.attack != NOBODY and clean and clean.value:
            sign = 1 if less_is_better else -1
            arms = _arms(clean.value, undefended.value, row.value, sign)
            found["recovery"] = recovery(*arms, level=level)
    if row.presence and undefended.presence:
        found["presence_difference"] = paired_difference(
            row.presence, undefended.presence, level=level
        )
        if row.attack != NOBODY and others.same_trigger and clean and clean.presence:
            arms = _arms(clean.presence, undefended.presence, row.presence, 1)
            found["leakage"] = leakage_removed(*arms, level=level)
    return replace(row, **found)


def _arms(clean: Spread, attacked: Spread, defended: Spread, sign: int) -> list[dict[int, float]]:
    """Figures by seed, of which less is better; of the seeds that all have, where these are two or
    more, so that they are paired."""
    arms = [arm.by_seed for arm in (clean, attacked, defended)]
    shared = set(arms[0]) & set(arms[1]) & set(arms[2])
    if len(shared) > 1:
        arms = [{seed: arm[seed] for seed in sorted(shared)} for arm in arms]
    return [{seed: sign * value for seed, value in arm.items()} for arm in arms]


def _ratio(ours: Spread | None, clean: Spread | None) -> Spread | None:
    if ours is None or clean is None:
        return None
    if min(clean.by_seed.values()) <= 0:  # as an unbiased kernel distance may be
        return None
    shared = set(ours.by_seed) & set(clean.by_seed)
    if not shared:
        return Spread(ours.mean / clean.mean, None, 0, {})
    return Spread.of({seed: ours.by_seed[seed] / clean.by_seed[seed] for seed in shared})


def make_ranking(
    rows: Sequence[Row], *, less_is_better: bool, level: float = LEVEL
) -> tuple[Place, ...]:
    """The defences on each data set, plain FedAvg among them, by their worst case over attacks.

    A data set without an attack has no worst case, and no ranking. Differences to the first place
    are tested together, on each data set by itself.
    """
    found: list[Place] = []
    for data in dict.fromkeys(row.data for row in rows):
        own = [row for row in rows if row.data == data and row.value is not None]
        attacks = [row.attack for row in rows if row.data == data and row.attack != NOBODY]
        places = [
            _place(data, defense, own, list(dict.fromkeys(attacks)), less_is_better)
            for defense in dict.fromkeys(row.defense for row in own if row.attack != NOBODY)
        ]
        sign = 1 if less_is_better else -1
        places.sort(key=lambda one: (bool(one.lacks), sign * one.value.mean, natural(one.defense)))
        found += _numbered(places, less_is_better, level)
    return tuple(found)


def _place(
    data: str, defense: str, rows: Sequence[Row], attacks: Sequence[str], less_is_better: bool
) -> Place:
    own = [row for row in rows if row.defense == defense]
    attacked = [row for row in own if row.attack != NOBODY]
    sign = 1 if less_is_better else -1
    worst = max(attacked, key=lambda row: sign * row.value.mean if row.value else 0.0)
    leaky = [row for row in attacked if row.presence]
    leakiest = max(leaky, key=lambda row: row.presence.mean if row.presence else 0.0, default=None)
    assert worst.value is not None  # make_ranking passes only rows that have one
    return Place(
        data=data,
        defense=defense,
        place=None,
        attack=worst.attack,
        value=worst.value,
        ratio=worst.ratio,
        presence_attack=leakiest.attack if leakiest else None,
        presence=leakiest.presence if leakiest else None,
        cost=next((row.ratio for row in own if row.attack == NOBODY), None),
        attacks=len(attacked),
        lacks=tuple(name for name in attacks if name not in {row.attack for row in attacked}),
    )


def _numbered(places: Sequence[Place], less_is_better: bool, level: float) -> list[Place]:
    first = next((one for one in places if not one.lacks), None)
    behind = [
        None
        if first is None or one is first or one.lacks
        else paired_difference(one.value, first.value, level=level)
        for one in places
    ]
    told = judged(behind, less_is_better=less_is_better, level=level)
    return [
        replace(one, place=None if one.lacks else number, behind=difference)
        for number, (one, difference) in enumerate(zip(places, told, strict=True), 1)
    ]


def _rows(count: int) -> str:
    return f"{count} row that is" if count == 1 else f"{count or ''} rows that are".lstrip()
