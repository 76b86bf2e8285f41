"""What only a CUDA device can show; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

import fedgan
from fedgan.assembly import assemble, examiners
from fedgan.cluster import Cluster
from fedgan.config import from_dict
from fedgan.plan import make_plan
from fedgan.tracking.base import Observer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_on_cuda_ends_with_finite_figures(tiny, tmp_path, precision):
    changes = {
        "run_dir": str(tmp_path / "run"),
        "cluster.accelerator": "cuda",
        "cluster.precision": precision,
        "attack.name": "patch",
        "defense.name": "feddetect",
    }
    summary = fedgan.run(tiny(changes))
    assert all(abs(value) < 1e6 for value in summary["figures"].values())
    assert "CPU" not in summary["device"]


def test_a_local_step_never_waits_for_the_device(tiny, tmp_path):
    plan = make_plan(from_dict(tiny({"cluster.accelerator": "cuda", "training.cutout": 0.25})))

    def work(cluster: Cluster) -> None:
        federation = assemble(cluster, plan, *examiners(cluster, plan), Observer())
        client = federation.clients[0]
        federation.play_round(1, 0.0)  # the first steps load kernels and make optimiser states
        batch = next(iter(client.clean.batches(8, client.gan._rng, epochs=1)))
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in range(8):
                client.gan.training_step(batch, step)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    Cluster(plan.settings.cluster).launch(work)


def test_cuda_and_cpu_agree_on_the_first_round(tiny, tmp_path):
    def first_losses(accelerator: str) -> list[float]:
        run_dir = tmp_path / accelerator
        changes = {
            "run_dir": str(run_dir),
            "cluster.accelerator": accelerator,
            "federation.rounds": 1,
            "loss.init_args": {"every": 4},
        }
        fedgan.run(tiny(changes))
        rows = (run_dir / "clients.csv").read_text().splitlines()[1:]
        return [float(row.split(",")[3]) for row in rows]

    # Other latents are drawn on another device, so that the losses are near, not equal.
    for cpu, cuda in zip(first_losses("cpu"), first_losses("cuda"), strict=True):
        assert cuda == pytest.approx(cpu, rel=0.2)
