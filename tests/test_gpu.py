"""What only a CUDA device can show; skipped where there is none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import fedgan
from fedgan.assembly import assemble
from fedgan.cluster import Cluster
from fedgan.config import from_dict
from fedgan.plan import make_plan
from fedgan.scenes import examiners
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
        "federation.clients": 4,
    }
    summary = fedgan.run(tiny(changes))
    assert all(abs(value) < 1e6 for value in summary["figures"].values())
    assert "CPU" not in summary["device"]


def test_a_local_step_never_waits_for_the_device(tiny, tmp_path):
    plan = make_plan(from_dict(tiny({"cluster.accelerator": "cuda", "training.cutout": 0.25})))

    def work(cluster: Cluster) -> None:
        federation = assemble(cluster, plan, *examiners(cluster, plan), Observer())
        client = federation.pool.clients[0]
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


EIGHT = {"cluster.accelerator": "cuda", "federation.clients": 8, "federation.rounds": 4}
EIGHT |= {"partition.min_images": 2, "training.batch_size": 4}


def parameters(run_dir: Path) -> torch.Tensor:
    state = torch.load(run_dir / "checkpoints" / "round_0004" / "server.pt", weights_only=True)
    vector: torch.Tensor = state["server"]["parameters"]
    return vector


def test_eight_clients_share_a_device_and_a_group_of_one(tiny, tmp_path):
    plan = make_plan(from_dict(tiny({**EIGHT, "run_dir": str(tmp_path / "run")})))

    def work(cluster: Cluster) -> Any:
        federation = assemble(cluster, plan, *examiners(cluster, plan), Observer())
        clients = federation.pool.clients.values()
        stores = {client.clean.images.data_ptr() for client in clients}
        record = federation.play_round(1, 0.0)
        statuses = [report.status for report in record.reports]
        return dist.get_backend(), len(stores), statuses, cluster.all_gather_objects("host")

    found = Cluster(plan.settings.cluster).launch(work)
    assert found == ("nccl", 1, ["ok"] * 8, ["host"])


def test_deterministic_runs_and_resumes_to_the_same_bytes(tiny, tmp_path):
    changes = {**EIGHT, "cluster.deterministic": True}
    runs = [tmp_path / name for name in ("one", "two")]
    shas = [fedgan.run(tiny({**changes, "run_dir": str(run)}))["generator_sha256"] for run in runs]
    assert shas[0] == shas[1]
    shutil.copytree(runs[0], tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "round_0004")
    assert fedgan.resume(tmp_path / "cut")["generator_sha256"] == shas[0]


def test_without_the_switch_two_runs_deviate_little(tiny, tmp_path):
    """Atomic additions of CUDA's backward passes sum in another order each time. After 4 rounds of
    2 steps the global model's relative deviation stays below 1 %; on a CPU it is 0."""
    vectors = []
    for name in ("one", "two"):
        fedgan.run(tiny({**EIGHT, "run_dir": str(tmp_path / name)}))
        vectors.append(parameters(tmp_path / name))
    one, two = vectors
    assert float((one - two).norm() / one.norm()) < 0.01


def test_memory_of_a_client_is_that_of_its_networks(tiny, tmp_path):
    def allocated(clients: int) -> tuple[int, int]:
        changes = {**EIGHT, "federation.clients": clients, "run_dir": str(tmp_path / "run")}
        plan = make_plan(from_dict(tiny(changes)))

        def work(cluster: Cluster) -> tuple[int, int]:
            federation = assemble(cluster, plan, *examiners(cluster, plan), Observer())
            federation.play_round(1, 0.0)
            size = sum(p.nbytes for p in federation.pool.clients[0].gan.parameters())
            return torch.cuda.memory_allocated(), size

        answer: tuple[int, int] = Cluster(plan.settings.cluster).launch(work)
        return answer

    (two, size), (eight, _) = allocated(2), allocated(8)
    # Parameters, gradients and two moments; twice that for blocks of 512 bytes a tensor.
    assert (eight - two) / 6 < 2 * 4 * size + 512 * 400
