"""The verdict: a few sentences that follow from the comparison, and say how far it carries.

Every figure in them stands in the leaderboard too, and is written by `fedgan.comparison.cells`;
what is called better, worse or not shown is so by the comparison, and by nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fedgan.comparison import Comparison, Difference, Place, Row, distance_of
from fedgan.comparison.cells import defense_name, difference, percent, recovered
from fedgan.comparison.cells import number as written
from fedgan.errors import UserError
from fedgan.report.words import MEASURES, joined, number, share
from fedgan.runs import NOBODY, UNDEFENDED, Run


class Line(NamedTuple):
    """A label, the answer in a few words, and the figures that it follows from."""

    label: str
    lead: str
    text: str


SHOWN = {"better": "shown to be better", "worse": "shown to be worse"}


def verdict_of_run(run: Run) -> list[Line]:
    """What was done, what came out, and what this one run cannot tell."""
    return [
        Line("The run", "", _set_up(run)),
        Line("Outcome", "", _outcome(run)),
        Line("How sure", "", _alone(run)),
    ]


def verdict_of_grid(comparison: Comparison, runs: Sequence[Run], data: str) -> list[Line]:
    """What the attacks cost, which defence is best where it is worst and which help and which do
    not, and how sure that is; of the runs on one data set."""
    rows = [row for row in comparison.rows if row.data == data]
    own = [run for run in runs if run.labels.data == data]
    places = [place for place in comparison.ranking if place.data == data]
    if all(row.attack == NOBODY for row in rows):
        attack, defences = ("Nobody attacks here.", ""), _false_alarms(rows)
    else:
        attack, defences = _attack(rows, places), _defences(comparison, places, rows)
    return [
        Line("The attack", *attack),
        Line("The defences", *defences),
        Line("How sure", _behind(places) or _by_seeds(own), _limits(own)),
    ]


def not_compared(runs: Sequence[Run]) -> list[Line]:
    """What stands there of several runs that cannot be compared; a note says why."""
    text = "A note below says why. Each run by itself is further down."
    return [Line("Not compared", f"These {len(runs)} runs cannot stand in one leaderboard.", text)]


def not_measured(runs: Iterable[Run]) -> list[str]:
    """What was measured in none of the runs that share a page, in words."""
    there = {name for run in runs for name in measured(run)}
    return [words for name, words in MEASURES.items() if name not in there]


def measured(run: Run) -> set[str]:
    """The measures of which the run has figures or details."""
    found = {*run.summary.get("details", {}), *run.evaluation.get("details", {})}
    if "presence" not in run.figures:
        found.discard("presence")
    return found


def _attack(rows: Sequence[Row], places: Sequence[Place]) -> tuple[str, str]:
    """The attack that costs the most distance, undefended, and the one that leaks the most."""
    place = next((one for one in places if one.defense == UNDEFENDED), None)
    if place is None:
        return "What it costs is not known.", "No undefended run has finished."
    worst = next(r for r in rows if (r.attack, r.defense) == (place.attack, UNDEFENDED))
    one = place.attacks == 1
    harm = worst.harm.shown if worst.harm else "unknown"
    lead = {
        "worse": f"{worst.attack} does harm.",
        "better": f"{worst.attack} does no harm.",
        "nothing shown": f"{worst.attack} is not shown to do harm.",
        "one seed": f"{worst.attack}: with one seed, no harm can be shown.",
        "unknown": "No clean run beside it: its harm is not known.",
    }[harm]
    does = "ends at" if one else f"is worst of {place.attacks} attacks, at"
    text = (
        f"Undefended (plain FedAvg), {worst.attack} {does} a distance of "
        f"{written(worst.value)}{_of_clean(worst)}"
    )
    if worst.harm is not None:
        text += f"; against clean {_told(worst.harm)}"
    text += "."
    if place.presence is not None:
        whose = "Its" if place.presence_attack == worst.attack else f"{place.presence_attack}'s"
        text += f" {whose} trigger is in {percent(place.presence)} of the generated images."
    return lead, text


def _defences(
    comparison: Comparison, places: Sequence[Place], rows: Sequence[Row]
) -> tuple[str, str]:
    """The best one, and which of all of them help."""
    lead, text = _best(comparison, places)
    if not any(row.arm == "defended" for row in rows):
        return lead, text
    return lead, " ".join(filter(None, (text, *_which_help(rows))))


def _best(comparison: Comparison, places: Sequence[Place]) -> tuple[str, str]:
    """The first of the ranking, and what it is worth against no defence."""
    defended = [one for one in places if one.defense != UNDEFENDED]
    first = next((one for one in places if one.place == 1), None)
    if not defended:
        return "No defence was run.", ""
    if first is None:
        return "Not known.", "No defence was run under every attack."
    best = first if first.defense != UNDEFENDED else defended[0]
    row = comparison.row(best.data, best.attack, best.defense)
    assert row is not None  # a place is that of a row
    if best is not first:
        lead = "None: plain FedAvg comes first."
        which = "The best defence" if len(defended) > 1 else "The defence"
        text = f"{which}, {best.defense}, ends at"
    else:
        shown = row.difference.shown if row.difference else "unknown"
        lead = {
            "better": f"{best.defense} is best, and shown to be better than none.",
            "worse": f"{best.defense} is best, and yet shown to be worse than none.",
            "nothing shown": f"{best.defense} is best, but not shown to be better than none.",
            "one seed": f"{best.defense} is best, with one seed, of which nothing can be shown.",
            "unknown": f"{best.defense} is best, with no undefended run beside it.",
        }[shown]
        fedavg = ", plain FedAvg among them," if len(places) > len(defended) else ""
        text = f"It is first of {len(places)}{fedavg} at"
    text += f" a distance of {written(best.value)}{_of_clean(row)}"
    text += f" in its worst case, {best.attack}" if best.attacks > 1 else ""
    if row.difference is not None:
        text += f"; against undefended {_told(row.difference)}"
    return lead, f"{text}. {_undone(row, best)}".strip()


def _undone(row: Row, place: Place) -> str:
    """Recovery and leakage of a row in the words of the leaderboard."""
    parts = []
    if row.recovery is not None:
        parts.append(f"recovery: {recovered(row.recovery)}")
    if row.leakage is not None:
        parts.append(f"leakage undone: {recovered(row.leakage, 'leakage')}")
    if place.presence is not None:
        most = f"at most {percent(place.presence)} of images, {place.presence_attack}"
        of_one = f"{percent(place.presence)} of images"
        parts.append(f"trigger left in {most if place.attacks > 1 else of_one}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _which_help(rows: Sequence[Row]) -> tuple[str, str]:
    """Defences by whether they are shown to be better than no defence, or worse."""
    there = [row for row in rows if row.arm == "defended"]
    names = list(dict.fromkeys(row.defense for row in there))
    parts, helping = [], set(names)
    for what, of in (("Distance", "difference"), ("Trigger presence", "presence_difference")):
        held: dict[str, dict[str, str]] = {}
        for row in there:
            found: Difference | None = getattr(row, of)
            if found is not None:
                held.setdefault(row.defense, {})[row.attack] = found.shown
        if of == "difference":
            helping = {name for name, by in held.items() if set(by.values()) == {"better"}}
        if held:
            parts.append(f"{what}: {_sorted_out(held)}.")
    if not parts:
        return "Which help is not known: no undefended run stands beside them.", ""
    every = " under every attack" if len({row.attack for row in there}) > 1 else ""
    told = [name for name in names if name in helping]
    if len(names) == 1:
        who = f"{names[0]} is {'' if told else 'not '}shown"
    elif told:
        who = f"{len(told)} of {len(names)} defences {'is' if len(told) == 1 else 'are'} shown"
    else:
        who = f"None of {len(names)} defences is shown"
    return f"{who} to keep the distance down{every}.", " ".join(parts)


def _sorted_out(held: dict[str, dict[str, str]]) -> str:
    """Each defence once in words, by what is shown of it under the attacks it met.

    >>> _sorted_out({"krum": {"a": "better", "b": "worse"}, "median": {"a": "one seed"}})
    'shown to be better under some attacks only with krum (a); shown to be worse with krum \
(b); nothing shown of median (one seed)'
    """
    every, some, worse, nothing = [], [], [], []
    for name, under in held.items():
        good = [attack for attack, shown in under.items() if shown == "better"]
        bad = [attack for attack, shown in under.items() if shown == "worse"]
        if len(good) == len(under):
            every.append(name)
        elif good:
            some.append(f"{name} ({', '.join(good)})")
        if bad:
            worse.append(f"{name} ({', '.join(bad)})" if len(under) > 1 else name)
        if not good and not bad:
            nothing.append(name)
    most = max(len(under) for under in held.values())
    parts = []
    if every:
        where = " under every attack" if most > 1 else ""
        parts.append(f"shown to be better{where} with {joined(every)}")
    if some:
        parts.append(f"shown to be better under some attacks only with {joined(some)}")
    if worse:
        parts.append(f"shown to be worse with {joined(worse)}")
    if nothing:
        alike = {shown for name in nothing for shown in held[name].values()} == {"one seed"}
        parts.append(f"nothing shown of {joined(nothing)}" + (" (one seed)" if alike else ""))
    return "; ".join(parts)


def _behind(places: Sequence[Place]) -> str:
    """Which places are shown to be behind the first, and which are not."""
    first = next((one for one in places if one.place == 1), None)
    others = [one for one in places if one.behind is not None]
    if first is None or not others:
        return ""
    shown = [
        defense_name(one.defense) for one in others if one.behind and one.behind.shown == "worse"
    ]
    rest = [defense_name(one.defense) for one in others if defense_name(one.defense) not in shown]
    name = defense_name(first.defense)
    if not shown:
        return f"That {name} comes first is not shown: {joined(rest)} may be as good."
    if not rest:
        return f"All others are shown to be behind {name}."
    verb = "is" if len(shown) == 1 else "are"
    return f"{joined(shown)} {verb} shown to be behind {name}; {joined(rest)} may be as good."


def _by_seeds(runs: Sequence[Run]) -> str:
    """How sure anything can be with so many seeds."""
    n = len({run.labels.seed for run in runs})
    if n == 1:
        return "One seed shows nothing."
    return "Few seeds show little." if n < 4 else "As far as the seeds tell."


def _false_alarms(rows: Sequence[Row]) -> tuple[str, str]:
    """What defences cost where there is nothing to defend from."""
    defended = [row for row in rows if row.arm == "alarms" and row.difference is not None]
    if not defended:
        return "Not known.", "No defence stands beside a clean run."
    row = max(defended, key=lambda row: row.difference.mean if row.difference else 0.0)
    assert row.difference is not None
    lead = {
        "worse": f"{row.defense} costs distance.",
        "better": f"{row.defense} costs no distance.",
        "nothing shown": f"{row.defense} is not shown to cost distance.",
        "one seed": f"{row.defense}: with one seed, no cost can be shown.",
    }[row.difference.shown]
    most = "It ends at" if len(defended) == 1 else f"Of {len(defended)} defences it costs most:"
    text = (
        f"{most} a distance of {written(row.value)}{_of_clean(row)}; "
        f"against plain FedAvg {_told(row.difference)}."
    )
    flagging = [row for row in defended if "fpr" in row.detection]
    if not any(row.detection["fpr"].mean for row in flagging):
        return lead, f"{text} No defence flags anybody."
    row = max(flagging, key=lambda row: row.detection["fpr"].mean)
    rate = percent(row.detection["fpr"])
    return lead, f"{text} {row.defense} raises the most false alarms: {rate} of client-rounds."


def _of_clean(row: Row) -> str:
    return f" ({written(row.ratio, digits=2)} times clean)" if row.ratio else ""


def _told(found: Difference) -> str:
    """A difference with its interval, and what it shows.

    >>> _told(Difference(-2.0, -3.25, -0.75, 3, 0.02, 0.04, "better"))
    '-2.0 (-3.2 to -0.8): shown to be better'
    """
    return f"{difference(found)}: {SHOWN.get(found.shown, found.shown)}"


def _limits(runs: Sequence[Run]) -> str:
    """How many seeds, on how many images, and what was not looked at."""
    seeds = sorted({run.labels.seed for run in runs})
    least = min(Counter((run.labels.attack, run.labels.defense) for run in runs).values())
    images = {run.final["samples"] for run in runs}
    on = f"{number(min(images))} generated images" + (" and more" if len(images) > 1 else "")
    if len(seeds) == 1:
        text = f"One seed, on {on} each: of these, no difference can be shown"
    else:
        some = f" (of some rows {least})" if least < len(seeds) else ""
        few = ": few, so that only large differences can be shown" if len(seeds) < 4 else ""
        text = f"{len(seeds)} seeds{some}, on {on} each{few}; shown means after Holm's correction"
    return text + _missing(runs) + "."


def _missing(runs: Sequence[Run]) -> str:
    missing = not_measured(runs)
    return f"; not measured: {joined(missing)}" if missing else ""


def _set_up(run: Run) -> str:
    labels, clients = run.labels, run.summary["clients"]
    bad = [str(client["client"]) for client in clients if client["malicious"]]
    who = f"client{'s' if len(bad) > 1 else ''} {joined(bad)}"
    attacks = labels.attack != NOBODY and bool(bad)
    deeds = f"{who} attacking ({labels.attack})" if attacks else "nobody attacking"
    shield = "no defence" if labels.defense == UNDEFENDED else f"{labels.defense} as the defence"
    rounds, n = run.summary["rounds"], len(clients)
    return (
        f"{n} client{'s' if n > 1 else ''} trained on {labels.data} for "
        f"{rounds} round{'s' if rounds > 1 else ''}, {deeds}, "
        f"with {shield}."
    )


def _outcome(run: Run) -> str:
    figures, distance = run.figures, own_distance(run)
    parts = []
    if distance in figures:
        ratio = figures.get(f"{distance}_ratio")
        far = f", {number(ratio)} times what real images have" if ratio else ""
        parts.append(f"The Frechet distance ({distance}) ends at {number(figures[distance])}{far}")
    if "presence" in figures:
        ends = f"{share(figures.get('presence_low'))} to {share(figures.get('presence_high'))}"
        parts.append(
            f"the trigger is found in {share(figures['presence'])} of the generated images "
            f"(95 % interval {ends})"
        )
    seen = run.summary["detection"]
    if seen["malicious_client_rounds"] and run.labels.defense != UNDEFENDED:
        parts.append(
            f"the defence flagged attackers in {seen['malicious_flagged']} of "
            f"{seen['malicious_client_rounds']} client-rounds, benign clients in "
            f"{seen['benign_flagged']} of {seen['benign_client_rounds']}"
        )
    elif run.labels.defense != UNDEFENDED:
        parts.append(
            f"benign clients were flagged in {seen['benign_flagged']} of "
            f"{seen['benign_client_rounds']} client-rounds, all of them false alarms"
        )
    text = "; ".join(parts) or "no figure was measured"
    return text[0].upper() + text[1:] + "."


def _alone(run: Run) -> str:
    beside = {
        "clean": "a run with an attack",
        "attacked": "the same run without the attack",
        "defended": "the clean and the undefended run",
        "alarms": "the same run without the defence",
    }[run.labels.arm]
    return (
        f"This is one run of one seed, on {number(run.summary['final']['samples'])} generated "
        f"images: without {beside} it does not say what the attack cost or the defence won back"
        f"{_missing([run])}."
    )


def own_distance(run: Run) -> str:
    """The name of a run's Frechet distance; "" of an older fedgan's, which does not say."""
    try:
        return distance_of([run])
    except UserError:
        return ""
