"""What a defence has won back: recovery, from the evaluations of the runs of three arms."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedgan.cache import write_json
from fedgan.errors import UserError
from fedgan.metrics.recovery import Recovery, leakage_removed, recovery
from fedgan.rundir import read_settings
from fedgan.settings import Experiment
from fedgan.tracking.evaluations import EVALUATION, read_evaluation

RECOVERY = "recovery.json"
DISTANCE = re.compile(r"(fid|kid|[fk]d_(?!.*_(floor|ratio|worst_class|infinity)).*)")
"""Names of figures that are distances: none of their floors, nor a single class's."""
Arm = dict[int, dict[str, Any]]


def recoveries(
    clean: Sequence[Path], attacked: Sequence[Path], defended: Sequence[Path]
) -> dict[str, Recovery]:
    """Recovery by figure, of runs that differ in attack, defence and seed alone; see
    `fedgan.metrics.recovery`. Reads their evaluation.json.

    Raises `UserError` where a run has none, two of an arm have one seed, or two were not measured
    alike.
    """
    arms = {"clean": _arm(clean), "attacked": _arm(attacked), "defended": _arm(defended)}
    _check_alike(arms)
    figures = [told["figures"] for arm in arms.values() for told in arm.values()]
    found = {}
    for name in figures[0]:
        if any(not isinstance(one.get(name), float) for one in figures):
            continue
        values = [
            {seed: told["figures"][name] for seed, told in arm.items()} for arm in arms.values()
        ]
        if DISTANCE.fullmatch(name):
            found[name] = recovery(*values)
        elif name == "presence":
            found[name] = leakage_removed(*values)
    if not found:
        raise UserError("recovery: the runs have no distance in common; evaluate them first")
    return found


def write_recovery(
    path: Path, found: dict[str, Recovery], runs: Mapping[str, Sequence[Path]]
) -> dict[str, Any]:
    """Writes what was found, and of which runs, as JSON; returns it."""
    told = {
        "runs": {arm: [str(run) for run in those] for arm, those in runs.items()},
        "recovery": {name: asdict(one) for name, one in found.items()},
    }
    write_json(path, told)
    return told


def _arm(runs: Sequence[Path]) -> Arm:
    arm: Arm = {}
    for run in runs:
        settings = read_settings(run, [])
        told = read_evaluation(run / EVALUATION)
        if not told:
            raise UserError(
                f"recovery: {run} has no {EVALUATION}; `fedgan evaluate {run}` makes it"
            )
        if settings.seed in arm:
            other = arm[settings.seed]["run"]
            raise UserError(f"recovery: {run} and {other} have both seed {settings.seed}")
        arm[settings.seed] = {**told, "run": run, "settings": settings}
    return arm


def _check_alike(arms: dict[str, Arm]) -> None:
    """Raises `UserError` where the arms differ in more than attack, defence and seed, or are not
    what they are called."""
    first = next(iter(arms["clean"].values()))
    undefended = next(iter(arms["attacked"].values()))
    same_seed: dict[int, dict[str, Any]] = {}
    for name, arm in arms.items():
        for seed, told in arm.items():
            settings: Experiment = told["settings"]
            if settings.attack.is_active() == (name == "clean"):
                what = "is attacked" if name == "clean" else "is not attacked"
                raise UserError(f"recovery: {told['run']} {what}; it is among the {name} runs")
            if name == "defended" and settings.defense == undefended["settings"].defense:
                raise UserError(
                    f"recovery: {told['run']} and {undefended['run']} have the same defence"
                )
            # an encoder fitted to the data has another fingerprint with another seed
            rival = same_seed.setdefault(seed, told)
            alike = [(first, _how), (rival, _fingerprints)]
            if name == "defended":
                alike.append((undefended, _attack))
            for other, key in alike:
                _check_same(told, other, key)
    fitted = len({str(_fingerprints(told)) for told in same_seed.values()}) > 1
    if fitted and len({frozenset(arm) for arm in arms.values()}) > 1:
        raise UserError(
            "recovery: each seed has an encoder of its own, whose distances are not those of "
            "another's; the three arms must have the same seeds"
        )


def _check_same(one: dict[str, Any], other: dict[str, Any], key: Callable[..., Any]) -> None:
    mine, theirs = key(one), key(other)
    for what in {**mine, **theirs}:
        if mine.get(what) != theirs.get(what):
            raise UserError(
                f"recovery: {one['run']} and {other['run']} are not alike in {what}: "
                f"{mine.get(what)} against {theirs.get(what)}{_mend(one, other, what)}"
            )


def _mend(one: dict[str, Any], other: dict[str, Any], what: str) -> str:
    """What to type where two runs were looked at in two ways, as after an `evaluate --samples`."""
    if what not in ("images", "encoders", "halves"):
        return ""
    first, second = (f"`fedgan evaluate {told['run']}`" for told in (one, other))
    return f"; {first} and {second} measure both as their configs say"


def _how(told: dict[str, Any]) -> dict[str, Any]:
    """All that must be the same but for attack, defence and seed: how a run was trained, when it
    was looked at, and by what."""
    flat: dict[str, Any] = {}
    for group, values in asdict(told["settings"]).items():
        if group in ("data", "partition", "federation", "training", "model", "loss"):
            flat |= {f"{group}.{key}": value for key, value in values.items()}
    # a defence may switch on a penalty of the loss, which is then a part of it
    flat = {key: value for key, value in flat.items() if key != "loss.init_args"}
    names = ", ".join(one["name"] for one in told["final"]["encoders"])
    final = told["final"]
    seen = {"images": final["samples"], "encoders": names, "halves": final.get("halves")}
    return {**flat, "round": told["round"], **seen}


def _fingerprints(told: dict[str, Any]) -> dict[str, Any]:
    return {"encoders": ", ".join(one["fingerprint"] for one in told["final"]["encoders"])}


def _attack(told: dict[str, Any]) -> dict[str, Any]:
    return {f"attack.{key}": value for key, value in asdict(told["settings"].attack).items()}
