"""Which figures can be compared, and which way is better."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fedgan.errors import UserError, did_you_mean

LESS = re.compile(
    r"fid|kid|[fk]d_.+|(fid|kid)_(ratio|worst_class|infinity)|presence(_\w+)?|region_ratio"
    r"|acc_drop_\w+|acc_harm|detection_fpr|detection_benign_weight_lost(_worst)?"
    r"|detection_rounds_until_(first_)?silenced"
)
MORE = re.compile(
    r"is|is_.+|(precision|recall|density|coverage)_.+|(acc|bal_acc|auc)_.+|minority_recall_\w+"
    r"|rebalance_gain_\w+|detection_(auroc|auroc_by_round|tpr|malicious_weight_lost|silenced)"
)
BESIDE = re.compile(r".+_(floor|real|low|high|std|floor_ratio)")
"""What stands beside a figure: its interval, its spread, what real images get."""
UTILITY = re.compile(r"(acc|bal_acc|auc)_gain_.+|acc_harm|rebalance_gain_\w+")
PRESENCE = "presence"


def less_is_better(name: str, known: Iterable[str] = ()) -> bool:
    """Which way a figure is better.

    Raises `UserError` for one that has no better way, such as an interval's end, or is unknown.

    >>> less_is_better("fd_domain"), less_is_better("recall_domain"), less_is_better("acc_harm")
    (True, False, True)
    """
    if not BESIDE.fullmatch(name):
        if LESS.fullmatch(name):
            return True
        if MORE.fullmatch(name):
            return False
    raise UserError(
        f"--figure: '{name}' is none that could be ranked"
        + did_you_mean(name, [one for one in known if has_direction(one)])
    )


def has_direction(name: str) -> bool:
    """Whether a figure can be ranked.

    >>> has_direction("fd_domain_floor"), has_direction("presence_high"), has_direction("presence")
    (False, False, True)
    """
    return not BESIDE.fullmatch(name) and bool(LESS.fullmatch(name) or MORE.fullmatch(name))


def is_utility(name: str) -> bool:
    """Whether a figure is what generated images are worth to a classifier.

    >>> is_utility("acc_gain_1"), is_utility("acc_gain_1_std"), is_utility("acc_real_1")
    (True, False, False)
    """
    return bool(UTILITY.fullmatch(name)) and not BESIDE.fullmatch(name)


def natural(text: str) -> list[tuple[int, float, str]]:
    """A key that sorts names by the numbers in them.

    >>> sorted(["10 %", "0.5 %", "2 %"], key=natural)
    ['0.5 %', '2 %', '10 %']
    """
    parts = re.findall(r"\d+(?:\.\d+)?|\D+", text)
    return [(0, float(p), "") if p[0].isdigit() else (1, 0.0, p) for p in parts]
