"""By how much honest clients differ from each other: what the audit measures all clients by."""

from __future__ import annotations

ALONE = ("generator", "critic")
"""Views of each client's own networks."""
AVERAGED = ("generator in the average", "critic in the average")
"""Views of what a client makes of the mean of all: there is the model that everybody goes on from,
and networks can be made that show in it alone what they were made for."""
CRITICS = (ALONE[1], AVERAGED[1])
TOGETHER = "both networks"
"""What all four tell as one."""
SPREADS = {
    "generator": {
        "fine map": (0.38, 0.56),
        "coarse map": (0.3, 0.24),
        "fine amplitude": (0.33, 0.29),
        "coarse amplitude": (0.31, 0.31),
        "texture": (0.53, 0.61),
        "fine map of a class": (0.3, 0.5),
        "coarse map of a class": (0.28, 0.31),
        "fine amplitude of a class": (0.33, 0.27),
        "coarse amplitude of a class": (0.31, 0.28),
        "texture of a class": (0.45, 0.47),
    },
    "critic": {
        "fine map": (0.41, 0.34),
        "coarse map": (0.4, 0.36),
        "fine amplitude": (0.38, 0.34),
        "coarse amplitude": (0.36, 0.35),
        "texture": (0.52, 0.59),
        "fine map of a class": (0.35, 0.35),
        "coarse map of a class": (0.35, 0.36),
        "fine amplitude of a class": (0.29, 0.34),
        "coarse amplitude of a class": (0.32, 0.33),
        "texture of a class": (0.51, 0.58),
    },
    "generator in the average": {
        "fine map": (0.37, 0.59),
        "coarse map": (0.24, 0.21),
        "fine amplitude": (0.41, 0.43),
        "coarse amplitude": (0.34, 0.35),
        "texture": (0.55, 0.67),
        "fine map of a class": (0.35, 0.5),
        "coarse map of a class": (0.42, 0.42),
        "fine amplitude of a class": (0.38, 0.36),
        "coarse amplitude of a class": (0.4, 0.43),
        "texture of a class": (0.48, 0.59),
    },
    "critic in the average": {
        "fine map": (0.34, 0.25),
        "coarse map": (0.34, 0.25),
        "fine amplitude": (0.61, 0.34),
        "coarse amplitude": (0.42, 0.31),
        "texture": (0.58, 0.63),
        "fine map of a class": (0.35, 0.29),
        "coarse map of a class": (0.3, 0.26),
        "fine amplitude of a class": (0.51, 0.39),
        "coarse amplitude of a class": (0.45, 0.37),
        "texture of a class": (0.55, 0.53),
    },
    "both networks": {
        "fine map": (0.28, 0.3),
        "coarse map": (0.23, 0.25),
        "fine amplitude": (0.24, 0.19),
        "coarse amplitude": (0.19, 0.21),
        "texture": (0.33, 0.36),
        "fine map of a class": (0.23, 0.3),
        "coarse map of a class": (0.23, 0.28),
        "fine amplitude of a class": (0.17, 0.19),
        "coarse amplitude of a class": (0.17, 0.21),
        "texture of a class": (0.31, 0.33),
    },
}
"""By view and witness, for the largest entry of its evidence and for the root mean square of all
entries: the standard deviation, among honest clients, of the logarithm of a client's strength over
an honest client's; `benchmarks/audit_calibration.py` finds them."""
YOUNG = {
    "generator": 2,
    "critic": 0,
    "generator in the average": 2,
    "critic in the average": 0,
    "both networks": 2,
}
"""Honest clients' networks differ by 1 + `YOUNG` / t^2 times as much when each was seen t times:
generators that have hardly begun to learn go different ways."""
SPREADS_OF_LOSSES = (0.9, 0.85)
"""The same of the losses that clients report, of the discriminator and of the generator."""
