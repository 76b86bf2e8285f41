"""One client's round on this rank: trained within its time, undone if it fails."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedgan.attacks.hiding import Hiding
from fedgan.client import Batch, ClientGAN
from fedgan.data.device import ClientImages
from fedgan.errors import about_client
from fedgan.reports import FAILED, OK, pack, pack_absent


class Abandoned(BaseException):
    """The round is given up: a stop signal came, or another rank has failed. No client's fault, so
    nothing that catches a client's errors may catch it."""


class _OutOfTimeError(Exception):
    pass


@dataclass
class LocalClient:
    """A client on this rank.

    Attributes:
        gan: its networks and optimisers.
        clean: its images.
        poisoned: what it trains on while it attacks, if it ever poisons images.
        hiding: how it hides that, if it does.
        honest: the losses [4] of honest training in a round that was then poisoned, if asked for.
        lies: whether it hands in something else than what it has trained in this round.
        why: one line and a traceback, of a round that has failed.
    """

    gan: ClientGAN
    clean: ClientImages
    poisoned: ClientImages | None = None
    hiding: Hiding | None = None
    honest: Tensor | None = None
    lies: bool = False
    why: tuple[str, str] | None = None
    _before: dict[str, Any] | None = field(default=None, repr=False)

    def begin(self) -> None:
        """Remembers the state of now, on the CPU, for `undo`."""
        self._before = self.gan.local_state()
        self.honest, self.lies = None, False
        self.why = None

    def undo(self) -> None:
        """Back to the last `begin`, as if the round had not been; nothing after `settle`."""
        if self._before is not None:
            with about_client(self.gan.number):
                self.gan.load_local_state(self._before)

    def settle(self) -> None:
        """The round counts: there is no way back to before it."""
        self._before = None

    def absent(self, status: str) -> Tensor:
        """The report of a round in which it hands in nothing."""
        return pack_absent(self.gan.number, len(self.clean), status, self.gan.device)

    def train(
        self,
        parameters: Tensor,
        batches: Iterator[Batch],
        rng: torch.Generator,
        update: Tensor,
        *,
        end: float | None,
        check: Callable[[], None],
    ) -> Tensor:
        """Local steps from the global `parameters` [P]; writes `update` [P], returns the report.

        A client that raises, runs out of memory or is not ready by `end`, on the monotonic clock,
        is undone and reports so. `check` is called before every step, and may raise `Abandoned`;
        time is looked at there too, so that a step is never cut, and the device is never waited
        for.
        """
        try:
            update[:], losses = self.gan.train_round(parameters, _in_time(batches, end, check), rng)
            return pack(self.gan.number, len(self.clean), losses, update)
        except _OutOfTimeError:
            status = "timed out"
        except Exception as error:
            status = "out of memory" if _is_memory(error) else FAILED
            line = f"{type(error).__name__}: {str(error).strip()}".split("\n", 1)[0][:200]
            self.why = (line, traceback.format_exc())
        if update.is_cuda:
            torch.cuda.empty_cache()
        self.undo()
        assert status != OK
        return self.absent(status)


def _in_time(
    batches: Iterator[Batch], end: float | None, check: Callable[[], None]
) -> Iterator[Batch]:
    for batch in batches:
        check()
        if end is not None and time.monotonic() > end:
            raise _OutOfTimeError
        yield batch
    if end is not None and time.monotonic() > end:
        raise _OutOfTimeError


def _is_memory(error: Exception) -> bool:
    """On a CPU torch raises a plain RuntimeError."""
    words = ("not enough memory", "can't allocate memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        word in str(error) for word in words
    )
