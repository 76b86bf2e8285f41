"""Aggregation rules beside byzfl's and Flower's: seconds, and memory beyond the input.

    make reference; .venv-reference/bin/python benchmarks/rules.py

Every row is a process of its own that makes n updates of P parameters, standard normal about a
common direction, and hands the same tensor (Flower: arrays of it) to each library in turn: fastest
of three calls. Memory is fedgan's peak beyond the input, as a share of the input. fedgan's side is
the rule as the server calls it; it reads float32 and computes in float64 where it sums.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

QUICK = 20.0
"""Seconds after which a call is not repeated."""


def cases(f: int, n: int) -> dict[str, tuple[list[Any], str | None, str | None]]:
    """fedgan's chain, and expressions that build byzfl's and Flower's counterparts, by rule."""

    def rule(name: str, **arguments: Any) -> dict[str, Any]:
        return {"name": name, "init_args": arguments}

    cut = f / n + 1e-9  # Flower truncates the count
    bulyan = (n - 3) // 4
    return {
        "fedavg": (["fedavg"], "Average()", "F.aggregate(R)"),
        "median": (["median"], "Median()", "F.aggregate_median(R)"),
        "trimmed-mean": (
            [rule("trimmed-mean", f=f)],
            f"TrMean({f})",
            f"F.aggregate_trimmed_avg(R, {cut})",
        ),
        "meamed": ([rule("meamed", f=f)], f"Meamed({f})", None),
        "rfa": (["rfa"], "GeometricMedian(nu=1e-6, T=8)", None),
        "krum": ([rule("krum", f=f)], f"Krum({f})", f"F.aggregate_krum(R, {f}, 0)"),
        "multi-krum": (
            [rule("multi-krum", f=f)],
            f"MultiKrum({f})",
            f"F.aggregate_krum(R, {f}, {n - f})",
        ),
        "bulyan": (
            [rule("bulyan", f=bulyan)],
            None,
            f"F.aggregate_bulyan(list(R), {bulyan}, F.aggregate_krum, to_keep=0)",
        ),
        "mda": ([rule("mda", f=1)], "MDA(1)", None),
        "nnm + mean": ([rule("nnm", f=f), "mean"], f"NNM({f})", None),
        "clip + mean": ([rule("clip", norm=2.0), "mean"], "Clipping(2.0)", None),
        "centered-clipping": (
            [rule("centered-clipping", tau=2.0, iterations=1)],
            "CenteredClipping(tau=2.0)",
            None,
        ),
        "foolsgold": (["foolsgold"], None, None),
        "fltrust": ([rule("fltrust", root=0)], None, None),
        "flame": (["flame"], None, None),
        "dnc": ([rule("dnc", f=f)], None, None),
        "rlr": (["rlr"], None, None),
        "weak-dp": (["weak-dp"], None, None),
    }


def cell(name: str, n: int, size: int, threads: int) -> None:
    """One row, in this process: prints its figures as JSON."""
    import torch

    from fedgan.defenses.api import make_defense
    from fedgan.defenses.base import ServerMeans
    from fedgan.reports import Report
    from fedgan.updates import UpdateMatrix

    torch.set_num_threads(threads)
    f = max(1, n // 5)
    chain, byzfl_side, flower_side = cases(f, n)[name]
    reports = [Report(i, 1, 1, *[0.0] * 4) for i in range(n)]

    def ours(rows: torch.Tensor) -> None:
        matrix = UpdateMatrix.of(rows)
        server = ServerMeans(1, rows.new_zeros(rows.shape[1]))
        make_defense(chain)(matrix, reports, server).joined(matrix)

    ours(torch.randn(n, 1000))  # imports
    rows = torch.randn(n, size)
    rows += 0.5 * torch.randn(size)
    before = _peak()
    ours(rows)
    extra = (_peak() - before) / rows.nbytes
    found: dict[str, Any] = {"fedgan": fastest(lambda: ours(rows)), "extra": extra}
    print(json.dumps(found), flush=True)  # the others may need more room or time than there is
    scope: dict[str, Any] = {}
    try:
        import byzfl
        from flwr.server.strategy import aggregate

        scope = {**vars(byzfl), "F": aggregate, "R": [([row], 1) for row in rows.numpy()]}
    except ImportError:
        byzfl_side = flower_side = None
    if byzfl_side:
        theirs = eval(byzfl_side, scope)
        spoils = name.startswith("clip")  # it writes into its input

        def call() -> None:
            theirs(rows.clone() if spoils else rows)

        found["byzfl"] = fastest(call)
        print(json.dumps(found), flush=True)
    if flower_side:
        found["flower"] = fastest(lambda: eval(flower_side, scope))
        print(json.dumps(found))


def fastest(call: Callable[[], None]) -> float:
    """Seconds of the fastest of three calls, or of the first if it is slow."""
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
        if best > QUICK:
            break
    return best


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--n", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--size", type=float, nargs="+", default=[1e5, 1e6, 1e7])
    parser.add_argument("--rules", nargs="+", help="some of them only")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--limit", type=float, default=120, help="seconds a row may take")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        name, n, size = options.cell
        cell(name, int(n), int(size), options.threads)
        return
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    for n in options.n:
        for size in map(int, options.size):
            title = f"{n} updates of {size:.0e} parameters, {options.threads} threads"
            if 3 * 4 * n * size > free:  # the input, and what the others make of it
                print(f"{title}: not enough memory")
                continue
            Console(width=100).print(table(options, n, size, title))


def table(options: argparse.Namespace, n: int, size: int, title: str) -> Table:
    """One table: a row a rule."""
    out = Table(title=title)
    heads = (
        "rule",
        "fedgan s",
        "extra memory",
        "byzfl s",
        "flower s",
        "times as fast as the faster",
    )
    for head in heads:
        out.add_column(head, justify="left" if head == "rule" else "right")
    for name in options.rules or cases(1, n):
        if name == "mda" and n > 50:
            continue  # both look for the best of very many subsets
        command = [sys.executable, __file__, "--cell", name, str(n), str(size)]
        command += ["--threads", str(options.threads)]
        found, cut = measured(command, options.limit)
        others = [found[key] for key in ("byzfl", "flower") if key in found]
        out.add_row(
            name,
            _seconds(found, "fedgan"),
            f"{found['extra']:.0%}" if "extra" in found else cut,
            _seconds(found, "byzfl"),
            _seconds(found, "flower"),
            f"{min(others) / found['fedgan']:.1f}" if others else cut,
        )
    return out


def _seconds(found: dict[str, Any], library: str) -> str:
    return f"{found[library]:.4f}" if library in found else ""


def measured(command: list[str], limit: float) -> tuple[dict[str, Any], str]:
    """What a row has printed last, and why it did not end, if so."""
    cut, printed = "", ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as row:
        try:
            printed, _ = row.communicate(timeout=limit)
            cut = "the other failed" if row.returncode else ""
        except subprocess.TimeoutExpired:
            row.kill()
            printed, _ = row.communicate()
            cut = f"the other over {limit:.0f} s"
    lines = printed.splitlines()
    return (json.loads(lines[-1]) if lines else {}), cut


if __name__ == "__main__":
    main()
