"""Signals that ask a run to stop: noted, passed on, and answered in order."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fedgan.errors import Interrupted

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; a preemption; SLURM's word that the time limit is near."""
SAME_PRESS = 1.0
"""Seconds within which two Ctrl-C are one: a launcher passes on what the terminal has sent too."""


@contextmanager
def stops_noted(
    heard: Callable[[int], None], leaving: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Calls `heard(signum)` on the first stop signal, from a thread of its own, whatever the main
    thread is doing; a second Ctrl-C ends the process at once, with code 130, after `leaving()`.

    Python's own handlers run in the main thread only, and not before a collective returns. Outside
    the main thread, where handlers cannot be set, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ear, mouth = os.pipe()
    os.set_blocking(mouth, False)
    before = {number: signal.signal(number, _nothing) for number in STOPS}
    older = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(ear, heard, leaving), daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(older)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(mouth)  # ends the listener
        listener.join()
        os.close(ear)


@contextmanager
def stops_raised() -> Iterator[None]:
    """Within, a stop signal raises `Interrupted` in the main thread, as soon as Python is at work
    there: for work that can be left at any point. Outside the main thread it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        raise Interrupted(number, f"stopped by {stop_name(number)}")

    before = {number: signal.signal(number, leave) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_name(number: int) -> str:
    """What a user calls a stop signal.

    >>> stop_name(signal.SIGINT), stop_name(signal.SIGTERM)
    ('Ctrl-C', 'SIGTERM')
    """
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _nothing(number: int, frame: Any) -> None:
    """The wake-up pipe has told the listener already."""


def _listen(ear: int, heard: Callable[[int], None], leaving: Callable[[], None]) -> None:
    first = 0.0
    while numbers := os.read(ear, 64):
        for number in numbers:
            if number not in STOPS:
                continue
            if not first:
                first = time.monotonic()
                heard(number)
            elif number == signal.SIGINT and time.monotonic() - first > SAME_PRESS:
                leaving()
                show_cursor()
                os._exit(128 + signal.SIGINT)


def show_cursor() -> None:
    """A progress bar that is not taken down properly leaves the terminal without its cursor."""
    if sys.stdout.isatty():
        sys.stdout.write("\x1b[?25h\n")
        sys.stdout.flush()


@contextmanager
def passed_on(children: Callable[[], list[Any]]) -> Iterator[list[int]]:
    """Hands every stop signal on to the children of this process instead of dying of it.

    Yields the signals that came. One that comes before there is a child, or in a child that still
    has this handler from its parent, is answered as if there were no handler.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    parent = os.getpid()

    def hand_on(number: int, frame: Any) -> None:
        found = children() if os.getpid() == parent else []
        if not found:
            older = before[number] if os.getpid() == parent else None
            signal.signal(number, signal.SIG_DFL if older is None else older)
            os.kill(os.getpid(), number)
            return
        came.append(number)
        for child in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)

    before: dict[int, Any] = {number: signal.getsignal(number) for number in STOPS}
    for number in STOPS:
        signal.signal(number, hand_on)
    try:
        yield came
    finally:
        for stop in STOPS:
            signal.signal(stop, before[stop])


def as_in_a_new_process() -> None:
    """Undoes in a forked child what its parent does with signals, and puts it into a process group
    of its own, so that the terminal's Ctrl-C comes once, by way of the parent.

    A stop signal ends it at once, whatever it is waiting for: Python's handlers would not be called
    while it waits for other ranks to come.
    """
    for number in STOPS:
        signal.signal(number, signal.SIG_DFL)
    os.setpgid(0, 0)
