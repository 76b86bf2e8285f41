"""What `fedgan evaluate` has found, kept measure by measure, so that a stop loses little of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedgan.choices import Look
from fedgan.cluster import Cluster
from fedgan.errors import Interrupted
from fedgan.evaluation import Evaluation, Examiner
from fedgan.signals import stops_raised
from fedgan.tracking.evaluations import write_evaluation


class Kept:
    """Writes on rank 0, after each measure, what there is so far, beside what the file holds of
    the same images: a stop loses the measure at hand, and no other.

    Args:
        cluster: the ranks.
        path: the file.
        look: what is measured.

    Attributes:
        told: what was found, as the file has it.
    """

    def __init__(self, cluster: Cluster, path: Path, look: Look) -> None:
        self.cluster = cluster
        self.path = path
        self.look = look
        self.told: dict[str, Any] = {}

    def begin(self, examiner: Examiner, **about: Any) -> None:
        """Everything is prepared; `about` says what is measured."""
        self._examiner, self._about = examiner, about
        self.told = {**about, **examiner.told(Evaluation())}

    def __call__(self, found: Evaluation) -> None:
        told = {**self._about, **self._examiner.told(found)}
        if self.cluster.is_main:
            write_evaluation(self.path, told, found.pictures)
        self.cluster.barrier()  # whichever rank a stop comes to first, what it tells is written
        self.told = told

    @contextmanager
    def until_stopped(self) -> Iterator[None]:
        """Within, a stop signal raises `Interrupted`, whose line says what is kept."""
        try:
            with stops_raised():
                yield
        except Interrupted as stop:
            raise Interrupted(stop.signum, f"{stop}; {self._words()}") from None

    def _words(self) -> str:
        done = self.told["final"]["measures"] if self.told else []
        left = [measure.name for measure in self.look.measures if measure.name not in done]
        if not done:
            return f"no measure was finished, and {self.path} is as it was"
        line = f"{self.path} has what was finished: {', '.join(done)}"
        if not left:
            return line
        return (
            f"{line}; the same command measures all anew, with --only={','.join(left)} what is "
            "missing"
        )
