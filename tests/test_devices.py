"""Threads and forks: how many, and that a rank never waits for threads that a fork has lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fedgan import devices
from fedgan.devices import (
    forks,
    has_own_device,
    one_thread_before_a_fork,
    resolve_accelerator,
    threads,
)
from fedgan.errors import SharedError, UserError
from fedgan.launcher import Launch, find_launch
from fedgan.settings import Cluster

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("settings", "said", "cores", "expected"),
    [
        ({"threads": 5}, "2", 8, 5),
        ({}, "2", 8, 2),
        ({}, "", 8, 8),
        ({"devices": 3}, "", 8, 2),
        ({"devices": 9}, "", 8, 1),
        ({}, "0", 4, 4),
        ({}, "4,2", 4, 4),
    ],
)
def test_threads_as_set_or_as_said_or_a_share(monkeypatch, settings, said, cores, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert threads(Cluster(**settings)) == expected


@pytest.mark.parametrize(
    ("cores", "on_node", "expected"),
    [(2, "8", 2), (8, "8", 2), (64, "8", 2), (4, "8", 2), (1, "2", 1), (8, "", 2)],
)
def test_cores_that_srun_has_bound_already_are_not_shared_again(
    monkeypatch, cores, on_node, expected
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", on_node)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert threads(Cluster()) == expected


@pytest.fixture
def fabric_run(monkeypatch):
    """As `fabric run --accelerator=...` starts the first of so many processes of a node."""

    def put(per_node=1, **said):
        values = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": per_node, "LOCAL_WORLD_SIZE": per_node}
        for name, value in {**values, "LT_CLI_USED": 1, **said}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(devices, "cuda_devices", lambda: 1)

    return put


@pytest.mark.parametrize(("said", "expected"), [("cpu", "cpu"), ("gpu", "cuda"), ("auto", "cuda")])
def test_what_fabric_run_was_told_is_kept(fabric_run, said, expected):
    fabric_run(LT_ACCELERATOR=said)
    assert resolve_accelerator(Cluster()) == expected


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"LT_ACCELERATOR": "cpu"}, "--accelerator=cpu, but cluster.accelerator is cuda"),
        ({"LT_ACCELERATOR": "tpu"}, "--accelerator=tpu: fedgan trains on cpu or cuda"),
        (
            {"LT_PRECISION": "bf16-mixed"},
            "--precision=bf16-mixed, but cluster.precision is 32-true",
        ),
    ],
)
def test_what_fabric_run_was_told_otherwise_is_refused(fabric_run, said, words):
    fabric_run(**said)
    with pytest.raises(SharedError, match=words):
        resolve_accelerator(Cluster(accelerator="cuda"))


def test_one_device_is_not_two_processes_own_unless_srun_has_bound_it(fabric_run):
    fabric_run(per_node=2)
    assert not has_own_device(find_launch(Cluster()))
    with pytest.raises(UserError, match=r"2 CUDA device\(s\) asked for, this machine has 1"):
        resolve_accelerator(Cluster())
    assert has_own_device(Launch("torchrun", 1, 0, 1, 1, 2))
    assert has_own_device(Launch("srun", 1, 1, 0, 2, 1))
    assert not has_own_device(Launch("fedgan", 0, 0, 0, 1, 1))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"devices": 1}, False), ({"devices": 2}, True), ({"devices": 2, "nodes": 2}, False)],
)
def test_ranks_are_forked_where_several_share_a_cpu_machine(monkeypatch, settings, expected):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert forks(Cluster(accelerator="cpu", **settings)) is expected


@pytest.mark.parametrize(("devices", "expected"), [(1, 3), (2, 1)])
def test_one_thread_before_a_fork_and_as_many_as_before_after_it(devices, expected):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with (  # noqa: PT012
            pytest.raises(RuntimeError, match="in the middle"),
            one_thread_before_a_fork(Cluster(accelerator="cpu", devices=devices)),
        ):
            assert torch.get_num_threads() == expected
            raise RuntimeError("in the middle")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_forked_ranks_with_several_threads_do_not_hang(tiny, tmp_path):
    """More than 32 768 pixels are what torch hands to several threads: with them in use before the
    fork, the ranks used to wait for ever."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 240), ("val", 16), ("test", 16)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 16, 16)).astype(np.uint8)
        arrays[f"{split}_labels"] = np.arange(n) % 2
    np.savez(tmp_path / "many.npz", **arrays)
    changes = {
        "data.path": "many.npz",
        "run_dir": "run",
        "attack.name": "patch",
        "federation.rounds": 1,
        "cluster.devices": 2,
        "cluster.threads": 2,
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tiny(changes)))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FEDGAN_CACHE": str(tmp_path / "cache")}
    env.pop("OMP_NUM_THREADS", None)
    with (
        (tmp_path / "stderr").open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "fedgan", "train", "mine.yaml"],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,  # so that ranks that hang do not outlive the test
        ) as process,
    ):
        try:
            code = process.wait(timeout=300)  # 5 s on an idle machine, over 60 on a full one
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail("it hangs")
    assert code == 0, (tmp_path / "stderr").read_text()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["processes"], summary["threads"]) == (2, 2)
