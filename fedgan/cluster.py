"""Fabric: launching, the strategy that keeps clients apart, who lives where, and collectives."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import pickle
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from torch import Tensor, nn

from fedgan.devices import forks, launched_outside, resolve_accelerator, threads
from fedgan.errors import UserError
from fedgan.settings import Cluster as Settings

T = TypeVar("T")
NO_ROOM = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES)
"""What the user can mend about a file that cannot be written."""


class FederatedStrategy(DDPStrategy):
    """Gives the process group, devices, precision and collectives of DDP, and none of its coupling.

    DDP would copy rank 0's weights into every client at set-up and average their gradients; clients
    of a federation share nothing but what the server aggregates.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._backward_sync_control = None

    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]
        return module


class Cluster:
    """The processes of one run and what they can do together.

    >>> Cluster(Settings(accelerator="cpu", devices=2)).launch(work)  # doctest: +SKIP
    """

    most_threads: ClassVar[int] = 1
    """The most threads that a launch in this very process has computed on."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        accelerator = resolve_accelerator(settings)
        # fork starts two ranks in 0.1 s where popen takes 12, but CUDA does not survive a fork.
        self._forks = forks(settings)
        if self._forks and self.most_threads > 1:
            raise UserError(
                "cluster.devices: CPU processes cannot be forked from a process that has trained "
                "on several threads (they would wait for ever); start a new one"
            )
        start = "fork" if self._forks else "popen"
        self.fabric = Fabric(
            accelerator=accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            strategy=FederatedStrategy(start_method=start),
            precision=settings.precision,
        )

    def launch(self, function: Callable[..., T], *args: Any) -> T:
        """Runs `function(cluster, *args)` on every rank and returns rank 0's answer.

        Raises `UserError` when a rank did, whatever the rank.
        """
        # Lightning's greetings of every process are noise on a screen; its warnings stay.
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        try:
            with _own_environment(self.settings):
                if self._forks:
                    return self._launch_forks(function, *args)
                answer: T = self.fabric.launch(_start, self, function, *args)  # type: ignore[arg-type]
                return answer
        except torch.multiprocessing.ProcessRaisedException as error:
            last = str(error).strip().splitlines()[-1]
            name = f"{UserError.__module__}.{UserError.__name__}: "
            if last.startswith(name):
                raise UserError(last.removeprefix(name)) from None
            raise

    def _launch_forks(self, function: Callable[..., T], *args: Any) -> T:
        """The answer comes by a file: Lightning sends it through a pipe that it reads only when all
        ranks have ended, which they never do once the answer is larger than the pipe."""

        def work(cluster: Cluster, path: Path) -> None:
            found = function(cluster, *args)
            if cluster.is_main:
                path.write_bytes(pickle.dumps(found))

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "answer"
            try:
                self.fabric.launch(_start, self, work, path)  # type: ignore[arg-type]
            except KeyboardInterrupt:
                for child in multiprocessing.active_children():
                    child.terminate()
                raise
            answer: T = pickle.loads(path.read_bytes())
            return answer

    @property
    def device(self) -> torch.device:
        return self.fabric.device

    @property
    def rank(self) -> int:
        return self.fabric.global_rank

    @property
    def world(self) -> int:
        return self.fabric.world_size

    @property
    def is_main(self) -> bool:
        """Whether this rank prints, logs and writes."""
        return self.fabric.is_global_zero

    def gather_rows(self, rows: Tensor, most: int) -> Tensor:
        """All ranks' rows [m_r, width], m_r at most `most`: float64 [world * most, width].

        Missing rows are filled with -1. One all-gather.
        """
        padded = torch.full((most, rows.shape[1]), -1.0, dtype=torch.float64, device=self.device)
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(gathered, padded)
        return torch.cat(gathered)

    def gather_objects(self, thing: T) -> list[T] | None:
        """`thing` of every rank, on rank 0; None elsewhere. For checkpoints: tensors on the CPU."""
        things: list[Any] | None = [None] * self.world if self.is_main else None
        dist.gather_object(thing, things)
        return things

    def all_gather_objects(self, thing: T) -> list[T]:
        """`thing` of every rank, on every rank, in order of rank. For small things on the CPU."""
        things: list[Any] = [None] * self.world
        dist.all_gather_object(things, thing)
        return things

    def barrier(self) -> None:
        """Waits for all ranks."""
        self.fabric.barrier()


def _start(fabric: Fabric, cluster: Cluster, function: Callable[..., T], *args: Any) -> T:
    before = torch.get_num_threads()
    torch.set_num_threads(threads(cluster.settings))
    Cluster.most_threads = max(Cluster.most_threads, threads(cluster.settings))
    torch.backends.cuda.matmul.allow_tf32 = cluster.settings.tf32
    torch.backends.cudnn.allow_tf32 = cluster.settings.tf32
    try:
        return function(cluster, *args)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise UserError(f"cannot write {error.filename or 'output'}: {error.strerror}") from None
    finally:
        torch.set_num_threads(before)
        if dist.is_initialized():
            dist.destroy_process_group()


def place(sizes: Sequence[int], world: int) -> list[int]:
    """The rank of each client: largest first, each to the rank with the least to do so far.

    >>> place([10, 40, 10, 20], 2)
    [1, 0, 1, 1]
    """
    load = [0] * world
    owners = [0] * len(sizes)
    for client in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        rank = min(range(world), key=lambda r: (load[r], r))
        owners[client] = rank
        load[rank] += sizes[client]
    return owners


LEFT_BEHIND = (
    *("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"),
    "OMP_NUM_THREADS",
)
"""What Lightning's launcher writes into the environment of this process, and leaves there."""


@contextmanager
def _own_environment(settings: Settings) -> Iterator[None]:
    """The environment of one launch, put back after it: the next run in this process must not take
    itself for a rank of the last one.

    Gives ranks a free port of this machine to meet at, where nobody has named one: Lightning draws
    one at random without asking whether it is free.
    """
    before = {name: os.environ.get(name) for name in LEFT_BEHIND}
    if "MASTER_PORT" not in os.environ and settings.nodes == 1 and not launched_outside():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(probe.getsockname()[1])
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
