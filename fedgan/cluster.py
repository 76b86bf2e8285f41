"""The processes of a run: launched, heard when they fail, and what they can do together."""

from __future__ import annotations

import contextlib
import errno
import logging
import multiprocessing
import os
import pickle
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import Tensor
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from fedgan.devices import forks, threads
from fedgan.errors import Interrupted, UserError
from fedgan.fabric import (
    PATIENCE,
    FederatedStrategy,
    make_fabric,
    own_environment,
    without_fabric_run,
)
from fedgan.launcher import find_launch
from fedgan.lifeline import AT_ONCE, Failure, Lifeline, print_last_words
from fedgan.meeting import Meeting
from fedgan.numerics import numerics
from fedgan.settings import Cluster as Settings
from fedgan.signals import passed_on, stops_noted

T = TypeVar("T")
NO_ROOM = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES)
"""What the user can mend about a file that cannot be written."""


class Cluster:
    """The processes of one run and what they can do together.

    Args:
        settings: the machine.
        hint: what to type after a failure, told with it.

    >>> Cluster(Settings(accelerator="cpu", devices=2)).launch(work)  # doctest: +SKIP
    """

    most_threads: ClassVar[int] = 1
    """The most threads that a launch in this very process has computed on."""
    replayed: ClassVar[bool] = False
    """Whether a launch has had this script replayed by the other ranks."""

    def __init__(self, settings: Settings, hint: Callable[[], str] = str) -> None:
        self.settings = settings
        self.hint = hint
        self.launched = find_launch(settings)
        self.stopping: int | None = None
        """The stop signal that this rank or another has received."""
        self._forks = forks(settings)
        self._check_replay()
        if self._forks and self.most_threads > 1:
            raise UserError(
                "cluster.devices: CPU processes cannot be forked from a process that has trained "
                "on several threads (they would wait for ever); start a new one"
            )
        self.fabric = make_fabric(settings)
        self._lifeline: Lifeline | None = None
        self._told: Failure | None = None
        self._host_group: Any = None
        self._answer: Path | None = None
        self._meeting: Meeting | None = None

    def launch(self, function: Callable[..., T], *args: Any) -> T:
        """Runs `function(cluster, *args)` on every rank and returns rank 0's answer.

        When a rank fails or dies, all end within a minute, and rank 0 raises what happened:
        `UserError`, `RunError` or `Interrupted`, with the rank in its line; the others, where
        they are processes that a user could see, exit with the same code and say nothing.
        """
        # Lightning's greetings of every process are noise on a screen; its warnings stay.
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
        with own_environment(self.launched), without_fabric_run():
            if self._forks:
                return self._launch_forks(function, *args)
            Cluster.replayed = Cluster.replayed or self._has_replay
            strategy = self.fabric.strategy
            assert isinstance(strategy, FederatedStrategy)
            self._meeting = Meeting(self.launched, strategy.children)
            try:
                answer: T = self.fabric.launch(_start, self, function, *args)  # type: ignore[arg-type]
            finally:
                self._meeting.over()
            return answer

    @property
    def _has_replay(self) -> bool:
        """Whether the ranks of this node are children that replay this script, or such a child."""
        launch = self.launched
        return launch.launcher == "fedgan" and launch.per_node > 1 and not self._forks

    def _check_replay(self) -> None:
        """A second launch would have new children play the first one, with nobody to meet them."""
        if not (self._has_replay and Cluster.replayed):
            return
        if self.launched.local_rank:  # rank 0 tells
            raise SystemExit(2)
        raise UserError(
            f"cluster.devices: {self.launched.per_node} processes replay the script that starts "
            "them, so that it can train once only; start a new one for each run, or start this one "
            "by torchrun"
        )

    def _launch_forks(self, function: Callable[..., T], *args: Any) -> T:
        """The answer comes by a file: Lightning sends it through a pipe that it reads only when all
        ranks have ended, which they never do once the answer is larger than the pipe."""
        with tempfile.TemporaryDirectory() as folder:
            self._answer = Path(folder) / "answer"
            end = None
            with passed_on(multiprocessing.active_children) as came:
                try:
                    self.fabric.launch(_start_forked, self, function, *args)  # type: ignore[arg-type]
                except (ProcessExitedException, ProcessRaisedException) as error:
                    end = error
            stop = next((it for it in came if getattr(end, "exit_code", 0) == -it), None)
            if stop is not None:  # while no rank was listening for it yet
                line = f"stopped by {signal.Signals(stop).name}"
                raise Interrupted(stop, "; ".join(filter(None, (line, self.hint()))))
            if not self._answer.is_file():
                raise self._died(end)
            found: T | BaseException = pickle.loads(self._answer.read_bytes())
            if isinstance(found, BaseException):
                raise found
            return found

    def _died(self, end: Any) -> BaseException:
        """What to raise for forked ranks that left no word."""
        rank, code = getattr(end, "error_index", 0), getattr(end, "exit_code", 1)
        if code == 128 + signal.SIGINT:
            return AT_ONCE.error(self.launched.world, self.hint())
        if isinstance(end, ProcessRaisedException):  # while the ranks were set up
            details = str(end).strip().partition("\n")[2]
            failure = Failure("error", rank, _last_of(details), details)
        elif name := getattr(end, "signal_name", None):
            failure = Failure("killed", rank, f"it was killed ({name})")
        else:
            failure = Failure("error", rank, f"it has ended with exit code {code}")
        return failure.error(self.launched.world, self.hint())

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

    def description(self) -> str:
        """How many processes there are, where, and who has started them."""
        launch, kind = self.launched, self.device.type.upper()
        nodes = f"{launch.nodes} nodes" if launch.nodes > 1 else "1 node"
        how = "forked" if self._forks else "started by " + launch.launcher
        return f"{self.world} processes on {nodes} ({kind}), {how}"

    @contextmanager
    def stops_noted(self) -> Iterator[None]:
        """Within, a stop signal to any rank sets `stopping` on all, instead of ending this one."""

        def heard(signum: int) -> None:
            self._hear(signum)
            if self._lifeline is not None:
                self._lifeline.pass_on(signum)

        def leaving() -> None:
            if self._lifeline is not None:
                self._lifeline.leave_at_once()

        with stops_noted(heard, leaving):
            yield

    @property
    def failing(self) -> bool:
        """Whether another rank has failed."""
        return self._lifeline is not None and self._lifeline.failure is not None

    def check(self) -> None:
        """Raises where another rank has failed. For long work between two collectives."""
        if self.failing:
            raise RuntimeError("another rank has failed")

    def tell(self, error: BaseException) -> None:
        """Tells the other ranks of an error that is about to end this one, before it tidies up."""
        failure = Failure.of(_mendable(error), self.rank)
        if self._told is None:
            self._told = failure
            if self._lifeline is not None:
                echo = isinstance(error, RuntimeError)
                self._told = self._lifeline.tell(failure, perhaps_echo=echo)

    def gather_rows(self, rows: Tensor, most: int) -> Tensor:
        """All ranks' rows [m_r, width], m_r at most `most`: float64 [world, most, width].

        Missing rows are filled with -1. One all-gather.
        """
        padded = torch.full((most, rows.shape[1]), -1.0, dtype=torch.float64, device=self.device)
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(gathered, padded)
        return torch.stack(gathered)

    def gather_objects(self, thing: T) -> list[T] | None:
        """`thing` of every rank, on rank 0; None elsewhere. Tensors on the CPU."""
        things: list[Any] | None = [None] * self.world if self.is_main else None
        dist.gather_object(thing, things, group=self._host_group)
        return things

    def all_gather_objects(self, thing: T) -> list[T]:
        """`thing` of every rank, on every rank, in order of rank. For small things on the CPU."""
        things: list[Any] = [None] * self.world
        dist.all_gather_object(things, thing, group=self._host_group)
        return things

    def broadcast_object(self, thing: T) -> T:
        """Rank 0's `thing`, on every rank. For things on the CPU."""
        things = [thing]
        dist.broadcast_object_list(things, group=self._host_group)
        return things[0]

    def to_main(self, data: bytes | None, owner: int) -> bytes | None:
        """Rank `owner`'s bytes on rank 0, None elsewhere; the other ranks have no part in it."""
        if owner == 0 or self.rank not in (0, owner):
            return data if self.is_main else None
        size = torch.tensor([0 if data is None else len(data)])
        if self.rank == owner:
            assert data is not None
            dist.send(size, 0, group=self._host_group)
            dist.send(torch.frombuffer(bytearray(data), dtype=torch.uint8), 0, self._host_group)
            return None
        dist.recv(size, owner, group=self._host_group)
        received = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(received, owner, group=self._host_group)
        return received.numpy().tobytes()

    def barrier(self) -> None:
        """Waits for all ranks."""
        self.fabric.barrier()

    def _hear(self, signum: int) -> None:
        self.stopping = self.stopping or signum

    def _run(self, function: Callable[..., T], *args: Any) -> T:
        """The function's answer, or what all ranks end with."""
        try:
            self._connect()
            if not self.is_main:  # rank 0 speaks for all
                logging.getLogger("fedgan").setLevel(logging.CRITICAL + 1)
            answer = function(self, *args)
            if self._lifeline is not None:
                self._lifeline.finish()
            return answer
        except BaseException as error:
            if self._meeting is not None:
                self._meeting.over()
            self.tell(error)
            failure = self._told
            assert failure is not None
            heir = failure.kind == "killed" and failure.rank == 0 and self.rank == 1
            speaks = self.is_main or heir
            if self.world == 1 and failure.kind == "error":
                error.fedgan_hint = self.hint()  # type: ignore[attr-defined]
                raise
            end = failure.error(self.world, self.hint())
            raise (end if speaks else SystemExit(failure.code)) from None
        finally:
            # gloo's connections are closed first: that is what frees the others from a collective
            # that this rank has left. NCCL's group cannot be left in order once it is broken, which
            # one without others never is: then the exception is the caller's, who lives on.
            orderly = self._told is None or self.world == 1 or dist.get_backend() == "gloo"
            if orderly and self._told is not None:
                with contextlib.suppress(RuntimeError):  # what went wrong is told already
                    dist.destroy_process_group()
            if self._lifeline is not None:
                self._lifeline.close()
            if self._told is None:
                dist.destroy_process_group()
            elif not orderly:
                # Lightning leaves an NCCL group in order at exit; a broken one takes for ever.
                last = threading.Timer(20, os._exit, (self._told.code,))
                last.daemon = True
                last.start()

    def _connect(self) -> None:
        self._lifeline, self._told, self.stopping = None, None, None
        on_gpu = dist.get_backend() == "nccl"
        self._host_group = dist.new_group(backend="gloo", timeout=PATIENCE) if on_gpu else None
        if self.world > 1:
            host = os.environ.get("MASTER_ADDR", "127.0.0.1")
            self._lifeline = Lifeline(
                *(self.rank, self.world, host),
                share=self.broadcast_object,
                heard=self._hear,
                last_words=self._last_words,
            )
        if self._meeting is not None:
            self._meeting.over()

    def _last_words(self, failure: Failure) -> None:
        if not self.is_main:
            return
        with contextlib.suppress(OSError):  # no room for it: print it
            if self._answer is not None:
                self.leave_word(failure.error(self.world, self.hint()))
                return
        print_last_words(failure, self.world, self.hint())

    def leave_word(self, found: Any) -> None:
        """Leaves what a forked rank 0 has come to for the process that started it."""
        if self._answer is not None:
            beside = self._answer.with_suffix(".new")  # half of it must not be read
            beside.write_bytes(pickle.dumps(found))
            beside.replace(self._answer)


def _start(fabric: Fabric, cluster: Cluster, function: Callable[..., T], *args: Any) -> T:
    Cluster.most_threads = max(Cluster.most_threads, threads(cluster.settings))
    with numerics(cluster.settings):
        return cluster._run(function, *args)


def _start_forked(
    fabric: Fabric, cluster: Cluster, function: Callable[..., Any], *args: Any
) -> None:
    _end_with_the_parent()
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        found = _start(fabric, cluster, function, *args)
    except SystemExit:  # rank 0 tells
        return
    except BaseException as error:
        found = error
    if cluster.is_main:
        cluster.leave_word(found)


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _last_of(trace: str) -> str:
    """The line of a traceback that names the exception, whose message may have several."""
    lines = [line for line in trace.splitlines() if line and not line[0].isspace()]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Exit)\b", line)]
    return (named or lines or ["no word of it"])[-1]


def _mendable(error: BaseException) -> BaseException:
    """A `UserError` for a file that cannot be written, the error itself for all others."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return UserError(f"cannot write {error.filename or 'output'}: {error.strerror}")
    return error
