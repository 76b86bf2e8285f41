"""Which runs stand beside one another on the page: a scene for each data set and attack."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedgan.runs import NOBODY, UNDEFENDED, Run

MOST = 18
"""Runs of which pictures and curves are shown; of more, the page has the figures."""


@dataclass(frozen=True)
class Arm:
    """All seeds of one data set, attack and defence: whose pictures and curves belong together."""

    data: str
    attack: str
    defense: str
    runs: tuple[Run, ...]

    @property
    def kind(self) -> str:
        """`clean`, `attacked`, `defended` or `alarms`."""
        return self.runs[0].labels.arm

    @property
    def title(self) -> str:
        """What it is called beside others of the same attack."""
        if self.defense != UNDEFENDED:
            return self.defense
        return "clean" if self.attack == NOBODY else "undefended"


def arms_of(runs: Iterable[Run]) -> list[Arm]:
    """The arms in the order in which they first appear, those without an attack first; seeds in
    ascending order."""
    found: dict[tuple[str, str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.labels.attack != NOBODY):
        found.setdefault(run.labels[:3], []).append(run)
    return [
        Arm(*key, runs=tuple(sorted(those, key=lambda run: run.labels.seed)))
        for key, those in found.items()
    ]


@dataclass(frozen=True)
class Scene:
    """The arms of one data set and one attack: clean first, then undefended, then defended.

    Attributes:
        data, attack: its labels; the attack is `none` where nobody attacks in the whole grid.
        clean, attacked: the arms it is held against, if they have finished.
        defended: all others, as the grid names them.
        left_out: how many defended arms are in the tables only.
        seed: whose pictures are shown; each seed has latents of its own.
    """

    data: str
    attack: str
    clean: Arm | None
    attacked: Arm | None
    defended: tuple[Arm, ...]
    left_out: int = 0
    seed: int = 1

    @property
    def title(self) -> str:
        """What a menu calls it."""
        return f"{self.data}: " + ("no attack" if self.attack == NOBODY else self.attack)

    @property
    def arms(self) -> list[Arm]:
        """All of them, in order."""
        first = [arm for arm in (self.clean, self.attacked) if arm is not None]
        return [*first, *self.defended]

    def shown(self) -> list[tuple[Arm, Run]]:
        """The run of each arm whose pictures and curves are shown: that of `seed`."""
        found = []
        for arm in self.arms:
            for run in arm.runs:
                if run.labels.seed == self.seed:
                    found.append((arm, run))
                    break
        return found


def scenes_of(runs: Sequence[Run], most: int = MOST) -> list[Scene]:
    """A scene for each data set and attack; where nobody attacks, of all defences without attack.

    At most `most` runs are shown altogether, and at least three a scene: then some defences are
    left out, and counted.
    """
    arms = arms_of(runs)
    found = []
    for data in dict.fromkeys(arm.data for arm in arms):
        here = [arm for arm in arms if arm.data == data]
        clean = next((arm for arm in here if arm.kind == "clean"), None)
        attacks = dict.fromkeys(arm.attack for arm in here if arm.attack != NOBODY)
        for attack in attacks or [NOBODY]:
            attacked = next(
                (a for a in here if a.attack == attack != NOBODY and a.defense == UNDEFENDED), None
            )
            defended = [a for a in here if a.attack == attack and a.defense != UNDEFENDED]
            found.append(Scene(data, attack, clean, attacked, tuple(defended)))
    room = max(1, most // max(1, len(found)) - 2)
    return [_fitted(scene, room) for scene in found]


def _fitted(scene: Scene, room: int) -> Scene:
    """With `room` defences at most, and the seed that most arms have."""
    kept = scene.defended[:room]
    smaller = Scene(scene.data, scene.attack, scene.clean, scene.attacked, kept)
    seeds = [run.labels.seed for arm in smaller.arms for run in arm.runs]
    seed = max(sorted(set(seeds)), key=seeds.count)  # the smallest of those
    left = len(scene.defended) - len(kept)
    return Scene(scene.data, scene.attack, scene.clean, scene.attacked, kept, left, seed)
