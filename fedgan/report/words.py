"""How figures are written on the page, and what they are called."""

from __future__ import annotations

import math
import re

MEASURES = {
    "presence": "whether the trigger leaks into generated images (presence)",
    "coverage": "precision and coverage",
    "utility": "whether the images help a classifier (utility)",
    "memory": "whether training images are copied (memory)",
}
"""What a reader may miss, by the measure that tells it."""
ABSENT = "\u2013"
"""Stands where there is no figure."""
SHARES = re.compile(
    r"presence(_low|_high)?|(precision|recall|coverage)_.*|detection_(tpr|fpr|silenced)(_low|_high)?"
    r"|detection_.*weight_lost.*|(acc|bal_acc)_.*|minority_recall_.*|rebalance_gain_.*"
)
"""Figures that are shares in [0, 1], or differences of such."""


def number(value: object) -> str:
    """Three digits, or what there is.

    >>> number(33.4512), number(0.00012345), number(12345.6), number(True)
    ('33.5', '0.000123', '12,346', 'True')
    """
    if value is None:
        return ABSENT
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-5 else f"{value:.0e}"


def share(value: float | None) -> str:
    """In percent, with a space that does not break.

    >>> share(0.0989).split(), share(0.0).split(), share(1).split()
    (['9.9', '%'], ['0', '%'], ['100', '%'])
    """
    if value is None:
        return ABSENT
    return f"{100 * value:.1f}".removesuffix(".0") + "\u00a0%"


def figure(name: str, value: float | None) -> str:
    """A figure by its name: shares in percent.

    >>> figure("presence_low", 0.25).split(), figure("fd_domain", 12.345)
    (['25', '%'], '12.3')
    """
    return share(value) if SHARES.fullmatch(name) else number(value)


def times(value: float | None) -> str:
    """A ratio.

    >>> times(1.2345)
    '1.23'
    """
    return ABSENT if value is None else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def joined(words: list[str]) -> str:
    """Words in a row.

    >>> joined(["a", "b", "c"]), joined(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def whole(text: str) -> str:
    """With figures that do not break at the end of a line.

    >>> whole("6.0 ± 3.3 % of it").count("\u00a0")
    3
    """
    return text.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%")


def size(n_bytes: int) -> str:
    """Bytes, in round figures.

    >>> size(1_234_567), size(4321)
    ('1.2 MB', '4 kB')
    """
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.0f} kB"
