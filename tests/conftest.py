"""What all tests share: a cache of their own, one thread, a tiny data set and a tiny experiment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # or Fabric would set torch's threads anew
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["COLUMNS"] = "120"

import hypothesis
import numpy as np
import pytest
import torch

from fedgan.settings import Cluster as ClusterSettings

torch.set_num_threads(1)
# Nothing here is a timed test: another job on the machine must not make one fail.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parents[1]
DOMAIN = {"name": "domain", "init_args": {"steps": 3}}
TINY: dict[str, Any] = {
    "data.name": "npz",
    "partition.min_images": 4,
    "federation.clients": 3,
    "federation.rounds": 2,
    "federation.local_steps": 2,
    "training.batch_size": 8,
    "model.init_args": {"width": 4, "max_width": 8, "latent_dim": 4, "embed_dim": 4},
    "evaluate.every": 0,
    "evaluate.samples": 8,
    "evaluate.watch_samples": 8,
    "evaluate.encoder": DOMAIN,
    "evaluate.watch_encoder": DOMAIN,
    "checkpoint.every": 1,
    "cluster.accelerator": "cpu",
    "cluster.threads": 1,
}


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test touches the user's cache, nor finds an account or a job there is none of."""
    folder = tmp_path_factory.mktemp("fedgan-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDGAN_CACHE", str(folder))
        for name in ("WANDB_API_KEY", "WANDB_MODE", "RANK", "LOCAL_RANK", "SLURM_PROCID"):
            patch.delenv(name, raising=False)
        yield folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Fails the one test after which none could fork any more; else only others would say so."""

    def most() -> int:
        cluster = sys.modules.get("fedgan.cluster")
        return 1 if cluster is None else cluster.Cluster.most_threads

    before = most()
    yield
    assert most() == before, "has trained on several threads in pytest's process: cluster.threads=1"


@pytest.fixture(scope="session")
def tiny_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 gray images of 16 pixels in two classes, dark and light."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 48), ("val", 16), ("test", 16)):
        labels = np.arange(n) % 2
        images = rng.integers(0, 60, (n, 16, 16)) + labels[:, None, None] * 120
        arrays[f"{split}_images"] = images.astype(np.uint8)
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="session")
def tiny(tiny_npz: Path) -> Callable[..., dict[str, Any]]:
    """A config, as nested values, of a run of a second: `tiny({"federation.rounds": 3})`."""

    def make(changes: dict[str, Any] | None = None) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in {**TINY, "data.path": str(tiny_npz), **(changes or {})}.items():
            *groups, name = key.split(".")
            here = values
            for group in groups:
                here = here.setdefault(group, {})
            here[name] = value
        return values

    return make


@pytest.fixture(scope="session")
def on_ranks() -> Callable[..., Any]:
    """Runs `function(cluster, *args)` on 1, 2 or 3 forked CPU processes; rank 0's answer."""

    def launch(world: int, function: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        from fedgan.cluster import Cluster

        chosen = ClusterSettings(accelerator="cpu", devices=world, threads=1, **settings)
        return Cluster(chosen).launch(function, *args)

    return launch


@pytest.fixture
def federate(
    on_ranks: Callable[..., Any], tiny: Callable[..., dict[str, Any]], tmp_path: Path
) -> Callable[..., Any]:
    """Assembles a federation of the tiny config and hands it to `work` on every rank."""

    def start(
        work: Callable[..., Any], changes: dict[str, Any] | None = None, world: int = 1
    ) -> Any:
        from fedgan import config
        from fedgan.assembly import assemble
        from fedgan.plan import make_plan
        from fedgan.scenes import examiners
        from fedgan.tracking.base import Observer

        values = tiny({"run_dir": str(tmp_path / "run"), **(changes or {})})
        plan = make_plan(config.from_dict(values))

        def on_rank(cluster: Any) -> Any:
            watch, final = examiners(cluster, plan)
            return work(assemble(cluster, plan, watch, final, Observer()))

        return on_ranks(world, on_rank)

    return start


@pytest.fixture(scope="session")
def fedgan_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line in a process of its own: `fedgan_command("train", "x.yaml", cwd=folder)`."""

    def call(*args: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return subprocess.run(
            [sys.executable, "-m", "fedgan", *map(str, args)],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": paths, **env},
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )

    return call
