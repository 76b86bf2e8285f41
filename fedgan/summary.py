"""summary.json: what a run came to."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from fedgan import __version__
from fedgan.metrics.detection import detection
from fedgan.plan import Plan
from fedgan.tracking.base import RunInfo
from fedgan.tracking.records import CLIENTS, METRICS, read_table

PACKAGES = (
    *("lightning", "torch", "torchvision", "torchmetrics", "torch-fidelity"),
    *("medmnist", "wandb", "numpy", "scikit-learn"),
)

if TYPE_CHECKING:  # so that writing a summary does not wait for Lightning
    from fedgan.cluster import Cluster
    from fedgan.evaluation import Evaluation
    from fedgan.federation import Federation

Row = dict[str, Any]


def summarise(
    plan: Plan,
    info: RunInfo,
    cluster: Cluster,
    federation: Federation,
    evaluation: Evaluation,
    started: float,
) -> dict[str, Any]:
    """All final figures of a run, with who was flagged when; the tables are read back from disk,
    so that a resumed run is told whole."""
    metrics, rows = read_table(info.run_dir / METRICS), read_table(info.run_dir / CLIENTS)
    before = sum(float(row["seconds"]) for row in metrics if int(row["round"]) < info.first_round)
    fair = federation.pool.fedavg_weights(list(range(len(plan.parts)))).tolist()
    settings = plan.settings
    looks = [
        {key: float(value) for key, value in row.items() if _is_figure(key) and value != ""}
        for row in metrics
    ]
    peak = _peak(metrics)
    pictures = sorted((info.run_dir / "samples").glob("round_*.png"))
    return {
        "run_dir": str(info.run_dir),
        "figures": evaluation.figures,
        "details": evaluation.details,
        "final": federation.final.settings(),
        "watch_figures": next((look for look in reversed(looks) if look), {}),
        "watch": federation.watch.settings(),
        "presence_peak": peak,
        "attack": settings.attack.class_path or settings.attack.name,
        "attack_on_updates": [type(one).name for one in plan.update_attacks],
        "attack_on_reports": plan.report_attack and type(plan.report_attack).name,
        "defense": settings.defense.words(),
        "detection": detection(rows),
        "classes": list(info.classes),
        "clients": [_client(number, rows, info, fair[number]) for number in range(len(plan.parts))],
        "notes": [*_notes(plan, federation), *_passing(info, peak, evaluation.figures)],
        "rounds": federation.done,
        "seconds": round(before + time.perf_counter() - started, 1),
        "images_per_second": _median(float(row["images_per_second"]) for row in metrics),
        "device": _device(cluster.device),
        "processes": cluster.world,
        "launcher": cluster.launched.launcher,
        "threads": torch.get_num_threads(),
        "generator_sha256": federation.server.generator_sha256(),
        "last_samples": f"samples/{pictures[-1].name}" if pictures else None,
        "versions": {
            "fedgan": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
    }


def _client(number: int, rows: list[Row], info: RunInfo, fair: float) -> dict[str, Any]:
    own = [row for row in rows if int(row["client"]) == number]
    return {
        "client": number,
        "malicious": number in info.malicious,
        "n_images": info.n_images[number],
        "images_by_class": list(info.counts[number]),
        "rounds": len(own),
        "flagged_rounds": [int(row["round"]) for row in own if row["flagged"] == "True"],
        "suppressed_rounds": [int(row["round"]) for row in own if row["suppressed"] == "True"],
        "left_out_rounds": [int(row["round"]) for row in own if row["status"] != "ok"],
        "final_weight": float(own[-1]["weight"]) if own else None,
        "fair_weight": fair,
    }


def _notes(plan: Plan, federation: Federation) -> Iterable[str]:
    """What a reader of the figures should know."""
    for look, examiner in ((plan.final, federation.final), (plan.watch, federation.watch)):
        if examiner.scene.samples < look.samples:
            names = " and ".join(encoder.name for encoder in look.encoders)
            yield (
                f"{names}: measured on {examiner.scene.samples} images, not {look.samples}: "
                f"there are {len(plan.dataset.train)} real ones, and the floor needs two halves"
            )


def _peak(metrics: list[Row]) -> Row | None:
    """The look on the way that has found the trigger in most images; the first of several."""
    looks = [row for row in metrics if row.get("presence")]
    if not looks:
        return None
    worst = max(looks, key=lambda row: float(row["presence"]))
    keys = ("presence", "presence_low", "presence_high")
    return {"round": int(worst["round"]), **{key: float(worst[key]) for key in keys}}


def _passing(info: RunInfo, peak: Row | None, figures: Mapping[str, Any]) -> Iterable[str]:
    """A trigger can come and go while training goes on; the last round alone does not tell. Of a
    run that nobody attacks, an early look tells only what an unready generator draws."""
    last = figures.get("presence_high")
    if info.malicious and peak and last is not None and peak["presence_low"] > last:
        low, high = (f"{100 * peak[end]:.0f}" for end in ("presence_low", "presence_high"))
        yield (
            f"the trigger was in {100 * peak['presence']:.0f} % ({low} to {high}) of the images "
            f"after round {peak['round']}, in fewer at the end: see metrics.csv for its course"
        )


def _is_figure(key: str) -> bool:
    return key.startswith(("fd_", "kd_", "is_", "presence")) or key in ("fid", "kid", "is")


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.median(found) if found else 0.0


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} of {os.cpu_count()} cores)"
