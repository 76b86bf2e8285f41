"""What honest clients differ by, from which the audit's spreads come, and its false alarms.

    python benchmarks/audit_calibration.py record FOLDER [--seeds 1 2 3] [--only NAME ...]
    python benchmarks/audit_calibration.py judge FOLDER [--fit 1 2] [--views NAME ...] [--rate 0.01]

`record` trains small federations, with FedAvg or the rule in front of which the audit may stand,
and keeps what the audit would look at in every round; nobody is excluded. The first ones have no
attacker. `judge` lets the audit judge the records: by federation, the share of the honest
client-rounds flagged, without losses and with them, how often the attackers are, and the AUROC; the
seeds of `--fit` apart from the others. Then, by witness, the spread that 99 % of the honest
client-rounds of the seeds of `--fit` would need, the largest of all federations without an
attacker: what `SPREADS` should be. `--fit` without seeds judges all of them by the spreads as they
are.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedgan import config
from fedgan.assembly import assemble
from fedgan.cluster import Cluster
from fedgan.defenses._inspection import Inspection, View
from fedgan.defenses._spreads import ALONE, AVERAGED, SPREADS
from fedgan.defenses._suspicion import Standing, about_the_half, youth
from fedgan.defenses.audit import Audit
from fedgan.defenses.base import Defense, ServerMeans, Verdict
from fedgan.evidence import Look
from fedgan.metrics.detection import detection
from fedgan.plan import Plan, make_plan
from fedgan.reports import Report
from fedgan.scenes import examiners
from fedgan.tracking.base import Observer
from fedgan.updates import UpdateMatrix

VIEWS = [*ALONE, *AVERAGED]
ONE_PERCENT = 2.326
"""Standard deviations that one of a hundred exceeds."""
STEPS = "--federation.local_steps=16"
EPOCH = "--federation.local_epochs=1"
BRAIN = ("--data.name=brain-mri", "--data.path=null", "--data.size=32")
BAD = "--attack.share=0.2"
FEDERATIONS: dict[str, tuple[str, ...]] = {
    "alike": ("--federation.clients=5", STEPS),
    "4 clients": ("--federation.clients=4", STEPS),
    "10 clients": ("--federation.clients=10", EPOCH),
    "20 clients": ("--federation.clients=20", EPOCH),
    "5 of 12 drawn": ("--federation.clients=12", "--federation.sample=0.42", STEPS),
    "power law": ("--federation.clients=8", "--partition.name=quantity", EPOCH),
    "dirichlet 0.3": (
        *("--federation.clients=10", "--partition.name=dirichlet", "--partition.alpha=0.3"),
        EPOCH,
    ),
    "one class each": (
        *("--federation.clients=10", "--partition.name=shards", "--partition.classes_per_client=1"),
        EPOCH,
    ),
    "bce": ("--federation.clients=5", "--loss.name=bce", STEPS),
    "hinge": ("--federation.clients=5", "--loss.name=hinge", STEPS),
    "generator only": ("--federation.clients=5", "--federation.share=generator", STEPS),
    "median": ("--federation.clients=5", "--defense.name=median", STEPS),
    "brain": (*BRAIN, "--federation.clients=4", STEPS),
    "brain, dirichlet 0.3": (
        *(*BRAIN, "--federation.clients=8", "--partition.name=dirichlet", "--partition.alpha=0.3"),
        EPOCH,
    ),
    "brain, scanners": (
        *(*BRAIN, "--federation.clients=8", "--data.init_args.scanners=true"),
        EPOCH,
    ),
    "colour": ("colour", "--federation.clients=5", STEPS),
}
"""Without an attacker; `colour` stands for what says where the data in colour are."""
ATTACKED = {
    "patch": ("--attack.name=patch",),
    "patch on a fifth": ("--attack.name=patch", "--attack.poison_rate=0.2"),
    "blended": ("--attack.name=blended",),
    "sig": ("--attack.name=sig",),
    "scaling by 100": (
        *("--attack.name=patch",),
        "--attack.update={name: scaling, init_args: {factor: 100}}",
    ),
    "hiding": ("--attack.name=patch", "--attack.hide=1"),
}
SETTINGS = ("alike", "dirichlet 0.3", "one class each", "brain, scanners")
"""In which these are tried; the first with all of them, the others with the first attack."""


class Recorder(Audit):
    """Writes down what it sees, and judges nobody."""

    def __init__(self, rule: Defense) -> None:
        super().__init__()
        self.rule = rule
        self.rounds: list[dict[str, Any]] = []

    def judge(
        self,
        updates: UpdateMatrix,
        reports: Sequence[Report],
        seen: Inspection,
        server: ServerMeans,
    ) -> Verdict:
        self.rounds.append(
            {
                "clients": updates.clients,
                "weights": updates.weights,
                "norms": seen.norms,
                "finite": seen.finite,
                "losses": [(one.d_loss, one.g_loss) for one in reports],
                "views": {
                    name: (tuple(view.told), view.about and tuple(view.about))
                    for name, view in seen.views.items()
                },
            }
        )
        return self.rule(updates, reports, server)


def federations() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names and overrides of all."""
    yield from FEDERATIONS.items()
    for setting in SETTINGS:
        for attack, words in ATTACKED.items():
            if setting == SETTINGS[0] or attack == "patch":
                yield f"{attack}: {setting}", (*FEDERATIONS[setting], BAD, *words)


def record(path: Path, words: tuple[str, ...], seed: int, options: argparse.Namespace) -> None:
    colour = (
        ["--data.name=bloodmnist", "--data.size=28"]
        if options.colour is None
        else ["--data.name=npz", f"--data.path={options.colour}", "--data.size=32"]
    )
    data = [] if options.gray is None else ["--data.name=npz", f"--data.path={options.gray}"]
    chosen = [word for word in words if word != "colour"]
    base = (
        "--defense.name=none",
        "--model.init_args.width=12",
        "--evaluate.every=0",
        "--evaluate.samples=100",
    )
    rest = (f"--federation.rounds={options.rounds}", f"--seed={seed}", "--attack.name=none")
    plan = make_plan(
        config.read(
            "pneumonia.yaml",
            [*data, *base, "--evaluate.watch_samples=100", *rest]
            + (colour if "colour" in words else [])
            + chosen,
        )
    )
    found = Cluster(plan.settings.cluster).launch(_played, plan, options.rounds)
    torch.save(found, path)


def _played(cluster: Cluster, plan: Plan, rounds: int) -> dict[str, Any]:
    federation = assemble(cluster, plan, *examiners(cluster, plan), Observer())
    recorder = Recorder(federation.defense)
    federation.defense = recorder  # type: ignore[assignment]
    for round in range(1, rounds + 1):
        federation.play_round(round, 0.0)
    malicious = sorted(federation.pool.schedule.clients)
    return {"malicious": malicious, "rounds": recorder.rounds}


class Watched(Audit):
    """Judges by some of the views, and keeps what the scores are made of."""

    def __init__(self, views: Sequence[str], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.views = views
        self.seen: list[tuple[dict[str, Tensor], list[int], Tensor]] = []

    def _with_evidence(
        self,
        clients: Sequence[int],
        believed: list[int],
        seen: Mapping[str, View],
        losses: Tensor,
    ) -> list[Standing]:
        some = {view: one for view, one in seen.items() if view in self.views}
        return super()._with_evidence(clients, believed, some, losses)

    def _scores(
        self,
        standings: Sequence[Standing],
        strengths: Mapping[str, Tensor],
        believed: Sequence[int],
    ) -> Tensor:
        rounds = torch.tensor([one.rounds for one in standings])
        self.seen.append((dict(strengths), list(believed), rounds))
        return super()._scores(standings, strengths, believed)


def judged(record: dict[str, Any], audit: Audit) -> list[dict[str, Any]]:
    """Rows as in clients.csv."""
    rows = []
    for round, one in enumerate(record["rounds"], 1):
        n = len(one["clients"])
        updates = UpdateMatrix(torch.zeros(n, 1), one["clients"], (0,) * n, one["weights"])
        reports = [
            Report(client, 1, 1, *losses, *losses)
            for client, losses in zip(one["clients"], one["losses"], strict=True)
        ]
        server = ServerMeans(round, torch.zeros(1))
        views = {
            name: View(Look(*told), about and Look(*about))
            for name, (told, about) in one["views"].items()
        }
        groups = tuple(map(str, range(views["generator"].told.maps.shape[1] - 1)))
        seen = Inspection(views, one["norms"], one["finite"], groups)
        verdict = audit.judge(updates, reports, seen, server)
        for i, client in enumerate(one["clients"]):
            weight, fair = float(verdict.weights[i]), float(one["weights"][i])
            rows.append(
                {
                    "round": round,
                    "client": client,
                    "status": "ok",
                    "malicious": client in record["malicious"],
                    "flagged": bool(verdict.flagged[i]),
                    "suppressed": weight < fair,
                    "score": float(verdict.scores[i]),
                    "weight": weight,
                    "fair_weight": fair,
                }
            )
    return rows


def needed(seen: list[tuple[dict[str, Tensor], list[int], Tensor]]) -> dict[str, Tensor]:
    """By view, the spreads that 99 % of the client-rounds after the first would need,
    [witnesses, 2]."""
    found: dict[str, list[Tensor]] = {}
    for each, believed, rounds in seen:
        for view, strengths in each.items():
            excess, width, half = about_the_half(strengths.flatten(1), believed)
            unit = ONE_PERCENT * math.sqrt(1 + 1 / half) * youth(view, rounds)
            spread = excess / unit[:, None]
            own = torch.where(spread > width, spread, 0.0)[rounds > 1]
            found.setdefault(view, []).append(own)
    return {name: torch.cat(own).quantile(0.99, 0).view(-1, 2) for name, own in found.items()}


def judge(folder: Path, fit: Sequence[int], watched: Sequence[str], rate: float) -> None:
    heads = ("federation", "seeds", "client-rounds", "flagged", "with losses", "attackers", "AUROC")
    table = Table(*heads)
    spreads = {view: torch.zeros(len(own), 2) for view, own in SPREADS.items()}
    for name, words in federations():
        for kind, wanted in (("fit", True), ("other", False)):
            paths = [path for path in _records(folder, name) if (_seed(path) in fit) == wanted]
            if not paths:
                continue
            plain, losses = [], []
            for path in paths:
                record = torch.load(path)
                audit = Watched(watched, alarm_rate=rate)
                plain.append(detection(judged(record, audit)))
                with_losses = Watched(watched, losses=True, alarm_rate=rate)
                losses.append(detection(judged(record, with_losses)))
                if wanted and words == FEDERATIONS.get(name):
                    for view, own in needed(audit.seen).items():
                        spreads[view][: len(own)] = spreads[view][: len(own)].maximum(own)
            table.add_row(name, f"{len(paths)} {kind}", *_cells(plain, losses))
    Console(width=140).print(table)
    for view, own in spreads.items():
        if not own.any():  # it is not watched, or nothing is fitted
            continue
        print(view)
        for name, (largest, rms) in zip(SPREADS[view], own.tolist(), strict=True):
            print(f'    "{name}": ({largest:.2f}, {rms:.2f}),')


def _cells(plain: list[dict[str, Any]], losses: list[dict[str, Any]]) -> list[str]:
    def share(found: list[dict[str, Any]], who: str) -> str:
        count = sum(one[f"{who}_client_rounds"] for one in found)
        return f"{100 * sum(one[f'{who}_flagged'] for one in found) / count:.1f} %" if count else ""

    aurocs = [one["auroc"] for one in plain if one["auroc"] is not None]
    return [
        str(sum(one["benign_client_rounds"] for one in plain)),
        *(share(plain, "benign"), share(losses, "benign"), share(plain, "malicious")),
        f"{sum(aurocs) / len(aurocs):.3f}" if aurocs else "",
    ]


def _records(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{_slug(name)}__*.pt"))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name)


def _seed(path: Path) -> int:
    return int(path.stem.rpartition("__")[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=["record", "judge"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--gray", help="an .npz instead of the download of PneumoniaMNIST")
    parser.add_argument("--colour", help="an .npz of 32 px instead of the download of BloodMNIST")
    parser.add_argument("--fit", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--views", nargs="+", default=VIEWS, choices=VIEWS)
    parser.add_argument("--rate", type=float, default=0.01, help="the audit's alarm_rate")
    options = parser.parse_args()
    if options.what == "judge":
        if not any(_records(options.folder, name) for name, _ in federations()):
            parser.error(f"{options.folder} has no records")
        return judge(options.folder, options.fit, options.views, options.rate)
    options.folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        waiting = []
        for seed in options.seeds:
            for name, words in federations():
                path = options.folder / f"{_slug(name)}__{seed}.pt"
                if not path.exists() and (not options.only or name in options.only):
                    waiting.append(pool.submit(record, path, words, seed, options))
        for one in waiting:
            one.result()  # raises what went wrong in it
    return None


if __name__ == "__main__":
    main()
