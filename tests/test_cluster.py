"""Processes that answer, fail and gather as one; FedAvg's clients are not coupled by DDP."""

from __future__ import annotations

import errno
import os
import threading

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from fedgan.cluster import Cluster
from fedgan.errors import UserError
from fedgan.shards import place


@pytest.mark.parametrize("world", [1, 2, 3])
def test_answer_is_that_of_rank_0(on_ranks, world):
    assert on_ranks(world, lambda cluster: (cluster.rank, cluster.world)) == (0, world)


@pytest.mark.parametrize("world", [1, 2])
def test_a_large_answer_does_not_hang(on_ranks, world):
    answer = on_ranks(world, lambda cluster: list(range(100_000)))
    assert answer[-1] == 99_999


@pytest.mark.parametrize("world", [1, 2])
def test_a_users_error_on_the_last_rank_is_told_as_such(on_ranks, world):
    def work(cluster):
        if cluster.rank == cluster.world - 1:
            raise UserError("data.path: no such file")

    with pytest.raises(UserError, match=r"^(rank 1: )?data\.path: no such file$"):
        on_ranks(world, work)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_is_full_or_read_only_is_a_users_error(on_ranks, world, number):
    def work(cluster):
        raise OSError(number, "no way", "some/file")

    with pytest.raises(UserError, match=r"^(rank 1: )?cannot write some/file: no way$"):
        on_ranks(world, work)


def test_other_errors_keep_their_traceback(on_ranks):
    def work(cluster):
        raise OSError(errno.EIO, "the disk is on fire")

    with pytest.raises(OSError, match="on fire"):
        on_ranks(1, work)


def test_rows_are_gathered_with_padding(on_ranks):
    def work(cluster):
        rows = torch.full((cluster.rank, 2), float(cluster.rank), dtype=torch.float64)
        return cluster.gather_rows(rows, 2).tolist()

    none, one, two = [[-1.0, -1.0]], [[1.0, 1.0]], [[2.0, 2.0]]
    assert on_ranks(3, work) == [none * 2, one + none, two * 2]
    assert on_ranks(1, work) == [none * 2]


def test_objects_are_gathered_in_order_of_rank(on_ranks):
    def work(cluster):
        on_main, everywhere = cluster.gather_objects(cluster.rank), None
        everywhere = cluster.all_gather_objects(cluster.rank)
        return on_main, everywhere

    assert on_ranks(3, work) == ([0, 1, 2], [0, 1, 2])


@pytest.mark.parametrize("world", [1, 3])
def test_what_rank_0_has_goes_to_all(on_ranks, world):
    def work(cluster):
        mine = {"rank": cluster.rank, "tensor": torch.full((3,), float(cluster.rank))}
        found = cluster.broadcast_object(mine)
        return cluster.all_gather_objects((found["rank"], found["tensor"].tolist()))

    assert on_ranks(world, work) == [(0, [0.0] * 3)] * world


def test_setting_up_a_module_neither_wraps_nor_synchronises(on_ranks):
    def work(cluster):
        network = torch.nn.Linear(1, 1, bias=False)
        network.weight.data.fill_(float(cluster.rank))
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        module, _ = cluster.fabric.setup(network, optimizer)
        cluster.fabric.backward(module(torch.ones(1, 1)).sum() * (cluster.rank + 1))
        ddp = torch.nn.parallel.DistributedDataParallel
        wrapped = any(isinstance(m, ddp) for m in module.modules())
        mine = (network.weight.item(), network.weight.grad.item(), wrapped)
        return cluster.all_gather_objects(mine)

    assert on_ranks(2, work) == [(0.0, 1.0, False), (1.0, 2.0, False)]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=30), st.integers(1, 6))
def test_clients_are_placed_evenly(sizes, world):
    owners = place(sizes, world)
    load = [sum(s for s, o in zip(sizes, owners, strict=True) if o == r) for r in range(world)]
    assert sum(load) == sum(sizes)
    assert max(load) - min(load) <= max(sizes)


def test_a_group_of_one_on_cuda_is_left_and_the_process_lives_on(on_ranks, monkeypatch):
    """With NCCL and others, one that cannot be left is left by force, after 20 s."""
    monkeypatch.setattr(dist, "get_backend", lambda *_: "nccl")

    def work(cluster):
        raise UserError("bad key")

    with pytest.raises(UserError, match="bad key"):
        on_ranks(1, work)
    assert not dist.is_initialized()
    assert not [it for it in threading.enumerate() if isinstance(it, threading.Timer)]


@pytest.mark.parametrize(("said", "expected"), [(None, "0"), ("1", "0"), ("2", "2")])
def test_nccl_does_not_abort_a_rank_before_it_has_spoken(on_ranks, monkeypatch, said, expected):
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    monkeypatch.delenv(name, raising=False)
    if said is not None:
        monkeypatch.setenv(name, said)
    assert on_ranks(1, lambda cluster: os.environ[name]) == expected
    assert os.environ.get(name) == said


def test_a_launch_leaves_the_environment_as_it_was(on_ranks):
    before = dict(os.environ)
    assert on_ranks(1, lambda cluster: cluster.world) == 1
    assert dict(os.environ) == before
    assert on_ranks(2, lambda cluster: cluster.world) == 2


def test_no_fork_after_training_on_several_threads(on_ranks, monkeypatch):
    monkeypatch.setattr(Cluster, "most_threads", 2)
    with pytest.raises(UserError, match="start a new one"):
        on_ranks(2, lambda cluster: cluster.world)
