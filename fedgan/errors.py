"""How a run can end before its time: bad input, a failure, an interruption."""

from __future__ import annotations

import difflib
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input or a missing resource: one line that names the key or file, what was found and
    what is allowed. The command line prints it without a traceback and exits with code 2."""


class SharedError(UserError):
    """Bad input that every rank meets alike; rank 0 tells it for all."""


class RunError(Exception):
    """A rank failed or was killed: one line that names it, and the traceback of what went wrong
    there. The command line prints both and exits with code 1."""

    def __init__(self, line: str, details: str = "") -> None:
        super().__init__(line, details)  # both, so that it can be pickled
        self.details = details

    def __str__(self) -> str:
        return str(self.args[0])


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop, and it has. The command line prints the line and exits with
    128 + `signum`, as shells have it: 130 after Ctrl-C."""

    def __init__(self, signum: int = signal.SIGINT, line: str = "interrupted") -> None:
        super().__init__(signum, line)
        self.signum = signum

    def __str__(self) -> str:
        return str(self.args[1])


@contextmanager
def about_client(number: int) -> Iterator[None]:
    """Notes on whatever error leaves the block which client it is about; `client_of` reads it."""
    try:
        yield
    except Exception as error:
        error.fedgan_client = number  # type: ignore[attr-defined]
        raise


def client_of(error: BaseException) -> int | None:
    """The client that an error is about, if it left an `about_client` block."""
    number: int | None = getattr(error, "fedgan_client", None)
    return number


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown name: the nearest known one, then all of them.

    >>> did_you_mean("pach", ["none", "patch"])
    "; did you mean 'patch'? known: none, patch"
    """
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    return f"{hint} known: {', '.join(names)}"


def plain_words(text: str) -> str:
    r"""jsonargparse's message on one line, without Python's names for types.

    >>> plain_words("Parser key \"rules\": Expected a <class 'list'>. Got value: krum")
    'rules: expected list, got krum; type [krum]'
    """
    line = " ".join(text.split()).replace('"', "").removeprefix("Parser key ")
    line = re.sub(r"Expected an? (?:<class '(\w+)'>|typing\.Literal(\[.*?\]))", _expected, line)
    line = line.replace(". Got value: ", ", got ")
    return re.sub(r"(expected list, got )([\w-]+(?:,[\w-]+)*)$", r"\1\2; type [\2]", line)


def _expected(found: re.Match[str]) -> str:
    return f"expected {found[1]}" if found[1] else f"expected one of {found[2]}"
