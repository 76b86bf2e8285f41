"""The one exception that means "the user can fix this"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input or a missing resource: one line that names the key or file, what was found and
    what is allowed. The command line prints it without a traceback and exits with code 2."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown name: the nearest known one, then all of them.

    >>> did_you_mean("pach", ["none", "patch"])
    "; did you mean 'patch'? known: none, patch"
    """
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    return f"{hint} known: {', '.join(names)}"
