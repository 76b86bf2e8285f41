"""What a round costs beside training, and how it scales with processes.

    python benchmarks/scaling.py [--processes 1 2 4] [--clients 4 8 32] [--steps 50] [--rounds 4]

Every cell trains the quickstart's networks for a few rounds, one thread a process, equal clients,
`--steps` local steps each. The table gives the median round and its range; the share that is not
local training on the slowest rank; its time relative to that of the fewest processes; and the bytes
that all ranks sent in it, as the kernel counted them on the loopback interface (gloo's TCP), over
the least that a rule which needs every update can do with: each row's columns to their ranks, and
the joined update from there to all. A process beyond the cores competes for them: such cells say
what is lost, not what is won.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

BYTES = 4
"""Of a float32."""


def loopback_bytes() -> int:
    """Bytes sent over the loopback interface since the machine started; 0 where it is not told."""
    try:
        lines = Path("/proc/net/dev").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[9]) for line in lines if line.strip().startswith("lo:"))


def least_bytes(clients: int, processes: int, parameters: int) -> float:
    """What must travel between ranks in a round: of n rows, the columns that lie elsewhere, and the
    joined columns of each rank to all others."""
    elsewhere = (processes - 1) / processes
    return BYTES * parameters * (clients * elsewhere + (processes - 1))


def measure(cluster: Any, plan: Any, rounds: int) -> dict[str, Any]:
    """Seconds, share outside training and bytes of each round but the first, on rank 0."""
    from fedgan.assembly import assemble
    from fedgan.scenes import examiners
    from fedgan.tracking.base import Observer

    federation = assemble(cluster, plan, *examiners(cluster, plan), Observer())
    found: list[tuple[float, float, int]] = []
    for round in range(1, rounds + 2):
        cluster.barrier()
        before, started = loopback_bytes(), time.perf_counter()
        record = federation.play_round(round, started)
        seconds = time.perf_counter() - started
        cluster.barrier()
        found.append((seconds, 1 - record.training_seconds / seconds, loopback_bytes() - before))
    return {"rounds": found[1:], "parameters": len(federation.server.parameters)}


def one_cell(processes: int, clients: int, steps: int, rounds: int) -> dict[str, Any]:
    """A cell in this very process, printed as JSON for the one that collects them."""
    from fedgan import config
    from fedgan.cluster import Cluster
    from fedgan.devices import one_thread_before_a_fork
    from fedgan.plan import make_plan

    overrides = [
        "--cluster.accelerator=cpu",
        "--cluster.threads=1",
        f"--cluster.devices={processes}",
        f"--federation.clients={clients}",
        f"--federation.local_steps={steps}",
        "--federation.rounds=1000000",
        "--partition.min_images=1",
        "--evaluate.every=0",
        "--evaluate.encoder=domain",
        "--evaluate.samples=100",
        "--evaluate.watch_samples=100",
        "--attack.name=none",
        "--defense.name=none",
    ]
    settings = config.read("quickstart.yaml", overrides)
    with one_thread_before_a_fork(settings.cluster):
        plan = make_plan(settings)
        return Cluster(plan.settings.cluster).launch(measure, plan, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 8, 32])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--cell", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(one_cell(*options.cell, options.steps, options.rounds)))
        return

    title = (
        f"{options.steps} local steps, median of {options.rounds} rounds, {os.cpu_count()} cores"
    )
    table = Table(title=title)
    for column in (
        "clients",
        "procs",
        "s/round",
        "range",
        "outside",
        "time",
        "MB moved",
        "/ least",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for clients in options.clients:
        base = None
        for processes in options.processes:
            # A process of its own: one that has forked or trained is no fresh start.
            command = [sys.executable, __file__, "--cell", str(processes), str(clients)]
            command += ["--steps", str(options.steps), "--rounds", str(options.rounds)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            seconds, outside, moved = zip(*found["rounds"], strict=True)
            middle = statistics.median(seconds)
            base = base or middle
            least = least_bytes(clients, processes, found["parameters"])
            sent = statistics.median(moved)
            table.add_row(
                *(str(clients), str(processes), f"{middle:.2f}"),
                f"{min(seconds):.2f}-{max(seconds):.2f}",
                f"{statistics.median(outside):.1%}",
                f"{middle / base:.2f}",
                f"{sent / 1e6:.2f}",
                f"{sent / least:.2f}" if least else "",
            )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
