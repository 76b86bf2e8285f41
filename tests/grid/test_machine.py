"""Threads and CUDA devices shared out among cells."""

from __future__ import annotations

import pytest

from fedgan.errors import UserError
from fedgan.grid import machine
from fedgan.grid.cells import Cell
from fedgan.grid.machine import Share, arguments, environment, share_out
from fedgan.runs import Labels
from fedgan.settings import Cluster, Experiment


def cells(**cluster):
    return [Cell(Labels("", "none", "none", 1), "one", Experiment(cluster=Cluster(**cluster)))]


@pytest.fixture
def of(monkeypatch):
    """A machine of so many cores and CUDA devices."""

    def make(cores, devices=0, visible=None):
        monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(cores)))
        monkeypatch.setattr(machine, "cuda_devices", lambda: devices)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return make


def test_cores_are_shared_out(of):
    of(8)
    assert share_out(cells(), None) == [Share(8)]
    assert share_out(cells(), 3) == [Share(2)] * 3
    assert share_out(cells(), 20) == [Share(1)] * 20
    assert share_out(cells(devices=2), 2) == [Share(2)] * 2


def test_the_users_own_bound_on_threads_holds(of, monkeypatch):
    of(8)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert share_out(cells(), 2) == [Share(3)] * 2
    assert share_out(cells(), 4) == [Share(2)] * 4


def test_jobs_take_cuda_devices_in_turn(of):
    of(8, devices=2)
    assert [share.devices for share in share_out(cells(), None)] == ["0", "1"]
    assert [share.devices for share in share_out(cells(), 3)] == ["0", "1", "0"]
    assert [share.devices for share in share_out(cells(accelerator="cpu"), 2)] == [None, None]


def test_several_devices_a_cell_and_those_that_are_visible(of):
    of(8, devices=4, visible="7,5,3,1")
    assert [share.devices for share in share_out(cells(devices=2), None)] == ["7,5", "3,1"]


def test_a_config_that_says_its_threads_keeps_them():
    assert arguments(Cluster(threads=4), Share(2)) == []
    assert arguments(Cluster(), Share(2)) == ["--cluster.threads=2"]


def test_cells_are_no_tasks_of_the_job_that_the_grid_runs_in(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("RANK", "3")
    found = environment(Share(2, "1"))
    assert not {"SLURM_PROCID", "RANK"} & set(found)
    assert (found["CUDA_VISIBLE_DEVICES"], found["OMP_NUM_THREADS"]) == ("1", "2")


def test_no_jobs_at_all(of):
    of(2)
    with pytest.raises(UserError, match="--jobs: 0 is less than 1"):
        share_out(cells(), 0)
