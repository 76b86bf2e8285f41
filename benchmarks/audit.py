"""What the audit costs of a round.

    python benchmarks/audit.py [--clients 4 10] [--sizes 32 64] [--steps 50] [--rounds 3]

Every line trains the default networks for a few rounds on random images, equal clients, `--steps`
local steps each, judged by `audit`. The table gives the median round, the seconds in the defence
(running every client's generator, the evidence, the judgement), their share of the round, and the
share of plain FedAvg in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fedgan import config
from fedgan.assembly import assemble
from fedgan.cluster import Cluster
from fedgan.defenses.fedavg import FedAvg
from fedgan.plan import Plan, make_plan
from fedgan.scenes import examiners
from fedgan.tracking.base import Observer


class Timed:
    """A defence, and the seconds that it took each time; FedAvg's on the same updates beside."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.seconds: list[float] = []
        self.plain: list[float] = []

    def __call__(self, updates: Any, reports: Any, server: Any) -> Any:
        started = time.perf_counter()
        FedAvg()(updates, reports, server).joined(updates)
        middle = time.perf_counter()
        verdict = self.inner(updates, reports, server)
        aggregate = verdict.joined(updates)
        self.plain.append(middle - started)
        self.seconds.append(time.perf_counter() - middle)
        return replace(verdict, aggregate=aggregate, correction=None)


def measure(cluster: Cluster, plan: Plan, rounds: int) -> tuple[float, float, float]:
    """Median seconds of a round, of the audit in it, and of FedAvg."""
    federation = assemble(cluster, plan, *examiners(cluster, plan), Observer())
    timed = Timed(federation.defense)
    federation.defense = timed  # type: ignore[assignment]
    whole = []
    for round in range(1, rounds + 2):
        started = time.perf_counter()
        federation.play_round(round, started)
        whole.append(time.perf_counter() - started)
    parts = (whole, timed.seconds, timed.plain)
    first, *others = (statistics.median(part[1:]) for part in parts)  # the first is warm-up
    return first - others[1], *others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 10])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    title = f"{options.rounds} rounds of {options.steps} steps, {options.device}"
    heads = ("image", "clients", "round s", "audit s", "of the round", "FedAvg of the round")
    table = Table(*heads, title=title)
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            for channels in (1, 3):
                path = Path(folder) / f"{size}x{channels}.npz"
                write(path, size, channels)
                for clients in options.clients:
                    plan = make_plan(
                        config.read("quickstart.yaml", overrides(options, path, size, clients))
                    )
                    whole, audit, plain = Cluster(plan.settings.cluster).launch(
                        measure, plan, options.rounds
                    )
                    shares = (f"{100 * part / whole:.1f} %" for part in (audit, plain))
                    name = f"{channels} x {size} x {size}"
                    table.add_row(name, str(clients), f"{whole:.2f}", f"{audit:.3f}", *shares)
    Console().print(table)


def write(path: Path, size: int, channels: int) -> None:
    """Random images of 4 classes, in MedMNIST's layout."""
    rng = np.random.default_rng(0)
    shape = (size, size, 3) if channels == 3 else (size, size)
    arrays = {}
    for split, count in (("train", 2000), ("val", 200), ("test", 200)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count)[:, None] % 4
    np.savez(path, **arrays)


def overrides(options: argparse.Namespace, path: Path, size: int, clients: int) -> list[str]:
    """The quickstart with other data, and no look at the model."""
    return [
        f"--cluster.accelerator={options.device}",
        f"--cluster.threads={options.threads}",
        f"--federation.local_steps={options.steps}",
        f"--federation.clients={clients}",
        "--federation.rounds=1000000",
        "--data.name=npz",
        f"--data.path={path}",
        f"--data.size={size}",
        "--data.init_args={}",
        "--evaluate.every=0",
        "--evaluate.encoder=domain",
        "--evaluate.samples=100",
        "--evaluate.watch_samples=100",
        "--attack.name=none",
        "--defense.name=audit",
    ]


if __name__ == "__main__":
    main()
