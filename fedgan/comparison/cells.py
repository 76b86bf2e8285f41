"""What stands in the cells of a leaderboard for readers: words and rounded numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from fedgan.comparison.reading import Gap
from fedgan.comparison.spread import Difference, Spread
from fedgan.comparison.table import Comparison, Place, Row
from fedgan.metrics.recovery import Recovery
from fedgan.runs import NOBODY, UNDEFENDED

RANKING = "Defences by their worst case over attacks, best first"
ROUNDING = 1e-9
"""Half an interval, by what it is of, below which all seeds agree but for rounding."""
T = TypeVar("T", Row, Place)


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column of a printed table.

    Attributes:
        head: its heading.
        text: what stands in a row's cell; "" for nothing.
        is_bold: whether it stands there in bold.
        is_name: whether it is text, to be set to the left.
        about: what it is about, where a table is too wide for the screen: the `figure`, or the
            `trigger` and who was found to set it; empty where it belongs to both.
        is_extra: whether it is left out where a screen is too narrow for all; files have it.
        value: the number that the text is of, in full, to sort by; None where it is text, or
            nothing.
    """

    head: str
    text: Callable[[T], str]
    is_bold: Callable[[T], bool] = lambda line: False
    is_name: bool = False
    about: str = ""
    is_extra: bool = False
    value: Callable[[T], float | None] = lambda line: None


def title_of(comparison: Comparison, data: str) -> str:
    """The heading of a data set's leaderboard: what was measured, and on how much."""
    how = comparison.measured[data]
    return f"{data}: {comparison.figure}, {how['rounds']} rounds, {how['samples']} images"


def columns(comparison: Comparison) -> list[Column[Row]]:
    """The leaderboard's columns, those without any content left out."""
    gain = next((name for row in comparison.rows for name in row.utility), "")
    found: list[Column[Row]] = [
        Column("data", lambda row: row.data, is_name=True),
        Column("attack", lambda row: row.attack, is_name=True),
        Column("defence", lambda row: defense_name(row.defense), is_name=True),
        Column("seeds", lambda row: str(_seeds(row)), about="figure", value=_seeds),
        Column(
            figure_name(comparison.figure),
            lambda row: number(row.value),
            lambda row: row.is_better,
            about="figure",
            value=lambda row: _mean(row.value),
        ),
        _of_spread("/ clean", lambda row: row.ratio, partial(number, digits=2), "figure"),
        Column("difference", _difference, about="figure", value=lambda row: _mean(held(row))),
        Column("shown", lambda row: shown(held(row)), is_name=True, about="figure"),
        _of_recovery("recovery", lambda row: row.recovery, "harm", "figure"),
        Column(
            "trigger presence",
            _presence,
            _leaks_less,
            about="trigger",
            value=lambda row: _mean(row.presence),
        ),
        _of_recovery("leakage undone", lambda row: row.leakage, "leakage", "trigger"),
        _of_spread(gain, lambda row: row.utility.get(gain), partial(number, digits=3), "trigger"),
        _of_spread("AUROC", _detected("auroc"), partial(number, digits=2), "trigger"),
        _of_spread("malicious flagged", _detected("tpr"), percent, "trigger"),
        _of_spread("benign flagged", _detected("fpr"), percent, "trigger"),
        _of_spread("benign weight lost", _detected("benign_weight_lost"), percent, "trigger"),
        _of_spread(
            "rounds until silenced",
            _detected("rounds_until_silenced"),
            partial(number, digits=1),
            "trigger",
        ),
    ]
    return [column for column in found if any(column.text(row) for row in comparison.rows)]


def ranking_columns(comparison: Comparison) -> list[Column[Place]]:
    """The columns of the ranking by worst case."""
    alike = len({one.value.n for one in comparison.ranking}) == 1
    found: list[Column[Place]] = [
        Column("data", lambda one: one.data, is_name=True),
        Column(
            "place",
            lambda one: "-" if one.place is None else str(one.place),
            value=lambda one: one.place,
        ),
        Column("defence", lambda one: defense_name(one.defense), is_name=True),
        Column("worst attack", lambda one: one.attack, is_name=True),
        Column(
            "seeds", lambda one: "" if alike else str(one.value.n), value=lambda one: one.value.n
        ),
        Column(
            figure_name(comparison.figure),
            lambda one: number(one.value),
            value=lambda one: one.value.mean,
        ),
        Column(
            "/ clean",
            lambda one: number(one.ratio, digits=2),
            value=lambda one: _mean(one.ratio),
        ),
        Column(
            "behind the first",
            lambda one: difference(one.behind),
            value=lambda one: _mean(one.behind),
            is_extra=True,
        ),
        Column("shown", lambda one: shown(one.behind), is_name=True),
        Column("most trigger left", _largest_presence, is_name=True),
        Column(
            "unattacked / clean",
            lambda one: number(one.cost, digits=2),
            value=lambda one: _mean(one.cost),
            is_extra=True,
        ),
        Column("attacks", _attacks, value=lambda one: one.attacks),
    ]
    return [column for column in found if any(column.text(one) for one in comparison.ranking)]


def halves(own: Sequence[Column[Row]]) -> list[tuple[str, list[Column[Row]]]]:
    """The leaderboard's columns as two tables, each with a title, where one would be too wide."""
    parts = [
        (title, [column for column in own if column.about in ("", about)])
        for about, title in (("figure", ""), ("trigger", "The trigger, and who was found"))
    ]
    return [(title, part) for title, part in parts if any(column.about for column in part)]


def figure_name(figure: str) -> str:
    """The heading of the compared figure's column, which the method below the table names in full.

    >>> figure_name("fd_efficientnet-lite0"), figure_name("fid"), figure_name("recall_domain")
    ('distance', 'FID', 'recall_domain')
    """
    if figure in ("fid", "kid"):
        return figure.upper()
    return "distance" if figure.startswith(("fd_", "kd_")) else figure


def defense_name(label: str) -> str:
    """Plain averaging by its name.

    >>> defense_name("none"), defense_name("krum")
    ('FedAvg', 'krum')
    """
    return "FedAvg" if label == UNDEFENDED else label


def number(spread: Spread | None, *, digits: int | None = None) -> str:
    """Mean ± standard deviation, rounded to two digits of the deviation; four digits with one seed.

    >>> number(Spread.of({1: 32.71, 2: 34.52})), number(Spread.of({1: 189.4567}))
    ('33.6 ± 1.3', '189.5')
    """
    if spread is None:
        return ""
    if not spread.std:
        plain = f"{spread.mean:.4g}" if digits is None else f"{spread.mean:.{digits}f}"
        return plain if spread.std is None else f"{plain} ± 0"
    places = _places(spread.std) if digits is None else digits
    return f"{spread.mean:.{places}f} ± {spread.std:.{places}f}"


def percent(spread: Spread | None) -> str:
    """A share, and its deviation, in per cent.

    >>> percent(Spread.of({1: 0.1, 2: 0.3}))
    '20 ± 14 %'
    """
    if spread is None:
        return ""
    mean, std = (None if part is None else 100 * part for part in (spread.mean, spread.std))
    assert mean is not None
    places = 1 if 0 < mean < 10 else 0
    if std is None:
        return f"{mean:.{places}f} %"
    return f"{mean:.{places}f} ± {std:.{places}f} %"


def difference(found: Difference | None) -> str:
    """A difference with its interval.

    >>> difference(Difference(-2.0, -3.25, -0.75, 3, 0.02, 0.04, "better"))
    '-2.0 (-3.2 to -0.8)'
    >>> difference(Difference(-0.4, -59.0, 58.0, 3, 0.9, 0.9, "nothing shown"))
    '+0 (-59 to +58)'
    """
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return f"{found.mean:+.3g}"
    half = (found.high - found.low) / 2
    if half <= ROUNDING * abs(found.mean):
        return f"{found.mean:+.3g} in every seed"
    places = _places(half)
    # The sum turns a rounded -0.0 into 0.0.
    mean, low, high = (
        f"{round(part, places) + 0.0:+.{places}f}" for part in (found.mean, found.low, found.high)
    )
    return f"{mean} ({low} to {high})"


def held(row: Row) -> Difference | None:
    """What a row is held against: the undefended arm, or the clean one if it is that arm."""
    return row.difference or row.harm


def shown(found: Difference | None) -> str:
    """What a difference shows: better, worse, nothing, or that there is one seed."""
    return "" if found is None else found.shown.removesuffix(" shown")


def recovered(found: Recovery | None, harm: str = "harm") -> str:
    """A share of the harm that is undone, with its interval.

    >>> recovered(Recovery(0.79, 0.77, 0.82, 20.0, 19.0, 21.0))
    '79 % (77 to 82)'
    """
    if found is None:
        return ""
    if found.value is None:
        return f"no {harm} shown" if found.harm_low is not None else f"no {harm}"
    value = f"{100 * found.value:.0f} %"
    if found.low is None or found.high is None:
        return value
    return f"{value} ({100 * found.low:.0f} to {100 * found.high:.0f})"


def missing_lines(missing: Sequence[Gap]) -> list[str]:
    """What is missing, a line for each cell and reason, its seeds together.

    >>> missing_lines([Gap("mri", "patch", "krum", seed, "failed") for seed in (1, 2)])
    ['mri, patch, krum, seeds 1 and 2: failed']
    """

    seeds_of: dict[tuple[str, str, str, str], list[str]] = {}
    for one in missing:
        seeds_of.setdefault((one.data, one.attack, one.defense, one.why), []).append(str(one.seed))
    lines = []
    for (data, attack, defense, why), seeds in seeds_of.items():
        told = f"seeds {_listed(seeds)}" if len(seeds) > 1 else f"seed {seeds[0]}"
        attacked = "no attack" if attack == NOBODY else attack
        lines.append(f"{data}, {attacked}, {defense_name(defense)}, {told}: {why}")
    return lines


def _of_spread(
    head: str, of: Callable[[Row], Spread | None], write: Callable[[Spread | None], str], about: str
) -> Column[Row]:
    return Column(head, lambda row: write(of(row)), about=about, value=lambda row: _mean(of(row)))


def _of_recovery(
    head: str, of: Callable[[Row], Recovery | None], harm: str, about: str
) -> Column[Row]:
    def value(row: Row) -> float | None:
        found = of(row)
        return None if found is None else found.value

    return Column(head, lambda row: recovered(of(row), harm), about=about, value=value)


def _mean(found: Spread | Difference | None) -> float | None:
    return None if found is None else found.mean


def _seeds(row: Row) -> int:
    return row.value.n if row.value else 0


def _difference(row: Row) -> str:
    return difference(held(row))


def _presence(row: Row) -> str:
    if row.presence is None or row.presence_interval is None:
        return percent(row.presence)
    low, high = row.presence_interval
    return f"{percent(row.presence)} ({100 * low:.0f} to {100 * high:.0f})"


def _detected(name: str) -> Callable[[Row], Spread | None]:
    return lambda row: row.detection.get(name)


def _leaks_less(row: Row) -> bool:
    found = row.presence_difference
    return found is not None and found.shown == "better"


def _largest_presence(place: Place) -> str:
    whose = f", {place.presence_attack}" if place.attacks + len(place.lacks) > 1 else ""
    return f"{percent(place.presence)}{whose}" if place.presence else ""


def _attacks(place: Place) -> str:
    return f"{place.attacks} of {place.attacks + len(place.lacks)}" if place.lacks else ""


def _places(spread: float) -> int:
    """Decimal places that show two digits of a spread.

    >>> _places(0.1), _places(0.0999999), _places(12.0)
    (2, 2, 0)
    """
    return min(6, max(0, 1 - math.floor(math.log10(float(f"{spread:.1e}")))))


def _listed(words: Iterable[str]) -> str:
    *some, last = words
    return f"{', '.join(some)} and {last}" if some else last
