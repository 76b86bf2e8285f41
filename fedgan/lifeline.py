"""One rank's failure, death or stop signal, known to all at once.

A collective waits for a rank that will never come: NCCL without end, gloo as long as its timeout,
which must be longer than any client's training. So every rank holds a TCP connection to rank 0
that carries nothing but bad news. A process that dies, however it dies, closes its connection.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

from fedgan.errors import Interrupted, RunError, UserError, client_of
from fedgan.signals import show_cursor

GRACE = 10.0
"""Seconds that a rank has to leave its collective by itself; then it is ended."""
ECHO = 3.0
"""Seconds in which the cause of a broken collective is heard of: its breaking is only an echo."""
MEETING = 30.0
"""Seconds in which all ranks, which have met already, are connected once more."""
LAST_WORDS = 40.0
"""Seconds that the others wait for rank 0 to say what happened."""


@dataclass(frozen=True)
class Failure:
    """Why all ranks end."""

    kind: str
    """`input` (a `UserError`), `error`, `killed` or `signal`."""
    rank: int
    line: str
    details: str = ""
    client: int | None = None
    signum: int = 0

    @classmethod
    def of(cls, error: BaseException, rank: int) -> Failure:
        client = client_of(error)
        if isinstance(error, UserError):
            return cls("input", rank, str(error), client=client)
        if isinstance(error, KeyboardInterrupt):
            signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
            return cls("signal", rank, str(error) or "interrupted", signum=signum)
        details = "".join(traceback.format_exception(error))
        line = traceback.format_exception_only(error)[-1].strip()
        return cls("error", rank, line, details, client)

    def error(self, world: int, hint: str) -> UserError | RunError | Interrupted:
        """The exception to raise for it, with the rank and the client in its line."""
        who = [f"rank {self.rank}"] if world > 1 and (self.rank or self.kind != "input") else []
        who += [f"client {self.client}"] if self.client is not None else []
        line = f"{', '.join(who)}: {self.line}" if who else self.line
        if self.kind == "input":
            return UserError(line)
        if self.kind == "signal":
            return Interrupted(self.signum, self.line)
        return RunError(f"{line}; {hint}" if hint else line, self.details)

    @property
    def code(self) -> int:
        """The exit code it stands for."""
        return {"input": 2, "signal": 128 + self.signum}.get(self.kind, 1)


AT_ONCE = Failure("signal", 0, "stopped at once", signum=signal.SIGINT)
"""A second Ctrl-C."""


class Lifeline:
    """A star of connections with rank 0 in the middle.

    Every rank makes one at the same time, once the process group stands.

    Args:
        rank: this process.
        world: how many there are.
        host: where rank 0 is.
        share: rank 0's argument on every rank, by a broadcast.
        heard: called, from another thread, with a stop signal that any rank has received.
        last_words: called, from another thread, with the failure, just before the process is ended
            by force.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        host: str,
        share: Callable[[Any], Any],
        heard: Callable[[int], None],
        last_words: Callable[[Failure], None],
    ) -> None:
        self.rank = rank
        self.failure: Failure | None = None
        self._heard, self._last_words = heard, last_words
        self._known = threading.Event()
        self._lock = threading.Lock()
        self._over = threading.Event()
        """Rank 0 has left in order: nothing more will come."""
        self._closing = False
        self._done: set[int] = set()
        self._all_done = threading.Event()
        self._force: threading.Timer | None = None
        self._selector = selectors.DefaultSelector()
        self._peers: dict[int, socket.socket] = {}
        self._meet(world, host, share)
        self._ear, self._mouth = os.pipe()
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._buffers = dict.fromkeys(self._peers, b"")
        for peer, connection in self._peers.items():
            self._selector.register(connection, selectors.EVENT_READ, peer)
        self._watcher = threading.Thread(target=self._watch, name="lifeline", daemon=True)
        self._watcher.start()

    def tell(self, failure: Failure, *, perhaps_echo: bool = False) -> Failure:
        """Tells all ranks, and returns the failure that counts: the first one.

        A collective that breaks under one rank may be `perhaps_echo`, the echo of another's end.
        """
        if perhaps_echo:
            self._known.wait(ECHO)
        self._settle(failure)
        if not self._known.wait(GRACE):  # rank 0 does not answer any more
            self.failure = failure
        if self._force is not None:
            self._force.cancel()
        found = self.failure
        assert found is not None
        # What rank 0 has met as well is not the fault of the rank that was quicker to say so.
        if self.rank == 0 and _without_rank(found) == _without_rank(failure):
            self.failure = found = failure
        return found

    def finish(self) -> None:
        """Waits on rank 0 until all others have done their part as well.

        Raises where one of them fails instead.
        """
        if self.rank:
            self._send({"done": True})
            return
        while not self._all_done.wait(0.1):
            if self.failure is not None:
                break
        if self.failure is not None:
            raise RuntimeError("another rank has failed")

    def pass_on(self, signum: int) -> None:
        """Tells all other ranks of a stop signal."""
        self._send({"signum": signum})

    def leave_at_once(self) -> None:
        """Tells all other ranks that a second Ctrl-C is about to end this one.

        They may take it for the first one still, whose clocks began later, and would call this rank
        killed.
        """
        self._send({"failure": asdict(replace(AT_ONCE, rank=self.rank))})

    def close(self) -> None:
        """Leaves in order. After a failure the others let rank 0 have the last word."""
        if self._force is not None:
            self._force.cancel()
        if self.failure is not None and self.rank:
            self._over.wait(LAST_WORDS)
        self._closing = True
        self._send({"over": True})
        os.write(self._mouth, b"x")
        self._watcher.join()
        for connection in self._peers.values():
            connection.close()
        self._selector.close()
        os.close(self._ear)
        os.close(self._mouth)

    def _meet(self, world: int, host: str, share: Callable[[Any], Any]) -> None:
        if self.rank == 0:
            token, both = secrets.token_hex(16), socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            with socket.create_server(
                ("", 0), family=family, backlog=world, dualstack_ipv6=both
            ) as server:
                port = server.getsockname()[1]
                share((port, token))
                self._gather(server, token.encode(), world)
            missing = [str(peer) for peer in range(1, world) if peer not in self._peers]
            if missing:
                self._part(
                    f"rank {', '.join(missing)} could not reach rank 0 at {host}:{port} within "
                    f"{MEETING:.0f} s; does a firewall stand between the nodes?"
                )
        else:
            port, token = share(None)
            try:
                connection = socket.create_connection((host, port), timeout=MEETING)
                connection.sendall(f"{token} {self.rank}\n".encode())
            except OSError as error:
                raise UserError(f"cannot reach rank 0 at {host}:{port} ({error})") from None
            self._keep(0, connection)

    def _gather(self, server: socket.socket, token: bytes, world: int) -> None:
        """Keeps the ranks that come in time, and no stranger."""
        end = time.monotonic() + MEETING
        while len(self._peers) < world - 1 and (left := end - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                connection, _ = server.accept()
            except TimeoutError:
                return
            connection.settimeout(min(left, 5.0))
            peer = 0
            with contextlib.suppress(OSError, ValueError):
                found, number = _first_line(connection).split()
                peer = int(number) if secrets.compare_digest(found, token) else 0
            if 0 < peer < world and peer not in self._peers:
                self._keep(peer, connection)
            else:
                connection.close()

    def _part(self, line: str) -> NoReturn:
        """Ends all before the lifeline stands: those that have come hear why, and are silent."""
        self._send({"failure": asdict(Failure("input", 0, line))})
        self._send({"over": True})
        for connection in self._peers.values():
            connection.close()
        raise UserError(line)

    def _keep(self, peer: int, connection: socket.socket) -> None:
        connection.settimeout(None)
        # A node that loses power closes nothing: ask after it.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        # While something sent waits for its answer, nothing is asked: 15 minutes unless told so.
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
        self._peers[peer] = connection

    def _send(self, message: dict[str, Any], but: int | None = None) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._lock:
            for peer, connection in self._peers.items():
                if peer != but:
                    with contextlib.suppress(OSError):
                        connection.sendall(line)

    def _settle(self, failure: Failure) -> None:
        """Rank 0 decides which failure was first, and tells all; the others ask it to."""
        if self.rank and 0 in self._peers and not self._over.is_set():
            self._send({"failure": asdict(failure)})
            return
        self._learn(failure)

    def _learn(self, failure: Failure) -> None:
        with self._lock:
            if self.failure is not None or self._closing:
                return
            self.failure = failure
        if self.rank == 0:
            self._send({"failure": asdict(failure)})
        self._force = threading.Timer(GRACE, self._end)
        self._force.daemon = True
        self._force.start()
        self._known.set()

    def _watch(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == self._ear:
                    return
                self._read(key.data, key.fileobj)  # type: ignore[arg-type]

    def _read(self, peer: int, connection: socket.socket) -> None:
        try:
            chunk = connection.recv(65536)
        except OSError:
            chunk = b""
        *lines, self._buffers[peer] = (self._buffers[peer] + chunk).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "failure" in message:
                found = Failure(**message["failure"])
                self._learn(found)
            elif "signum" in message:
                self._heard(message["signum"])
                if self.rank == 0:
                    self._send(message, but=peer)
            elif "done" in message:
                self._done.add(peer)
                if len(self._done) == len(self._peers):
                    self._all_done.set()
            elif "over" in message:
                self._leave(peer, connection)
                return
        if not chunk:
            self._leave(peer, connection)
            self._learn(Failure("killed", peer, "it was killed, or its machine is gone"))

    def _leave(self, peer: int, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        if peer == 0:
            self._over.set()

    def _end(self) -> None:
        """The main thread hangs in a collective that nothing can end but this."""
        assert self.failure is not None
        if self.rank:
            self._over.wait(LAST_WORDS)
        try:
            self._last_words(self.failure)
        finally:  # a disk that is full, an output that is closed
            os._exit(self.failure.code)


def _without_rank(failure: Failure) -> Failure:
    return replace(failure, rank=0, details="")  # a traceback may name files of its rank


def _first_line(connection: socket.socket) -> bytes:
    """What a connection begins with, and not a byte more: the next message may be there already."""
    line = b""
    while not line.endswith(b"\n") and len(line) < 100:
        line += connection.recv(1) or b"\n"
    return line


def print_last_words(failure: Failure, world: int, hint: str) -> None:
    """What the command line would print, from a process that is about to be ended."""
    error = failure.error(world, hint)
    show_cursor()
    if isinstance(error, RunError) and error.details:
        print(error.details, file=sys.stderr)
    print(f"fedgan: error: {error}", file=sys.stderr, flush=True)
