"""The clients of a federation: drawn, trained on their own ranks, and heard."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fedgan.attacks.schedule import Schedule
from fedgan.checkpoint import load_client, to_bytes
from fedgan.cluster import Cluster
from fedgan.data.device import ClientImages, images_in_round
from fedgan.errors import about_client
from fedgan.local import Abandoned, LocalClient
from fedgan.malice import Malice
from fedgan.probe import Probe
from fedgan.reports import (
    FAILED,
    OK,
    WIDTH,
    Report,
    finished,
    losses_of,
    unpack,
    with_reasons,
)
from fedgan.seeding import derive, draw_clients, numpy_generator, torch_generator
from fedgan.settings import Experiment
from fedgan.tracking.base import Observer
from fedgan.updates import UpdateMatrix

ATTEMPTS = 2
"""How often a round is played before too few usable updates end the run."""
RAISED = (FAILED, "out of memory")
"""Statuses of a client whose training has raised an error, which is told."""
log = logging.getLogger(__name__)


class StopAsked(Exception):  # noqa: N818
    """A rank has received a stop signal; the round is undone."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class TooFewUpdates(Exception):  # noqa: N818
    """Fewer usable updates than `federation.min_clients`, twice; the round is undone."""


@dataclass(frozen=True)
class Training:
    """What came of the local steps of a round; the same on every rank, but for the rows."""

    updates: UpdateMatrix
    """Of the clients whose report is `ok`."""
    reports: list[Report]
    """Of all that were drawn."""
    seconds: float
    """Local training on the slowest rank."""

    @property
    def sound(self) -> list[Report]:
        return [report for report in self.reports if report.status == OK]


@dataclass
class ClientPool:
    """All clients of the federation, of which this rank holds its own.

    Attributes:
        cluster: the processes.
        settings: the experiment.
        clients: those that live on this rank, by number.
        owners: [clients], the rank that each client of the federation lives on.
        n_images: [clients], how many training images each holds.
        schedule: who attacks, and when.
        malice: what they do to their updates and reports.
        observer: told of every client of this rank that has trained.
        fewest: usable updates that the defence needs; see also `federation.min_clients`.
        probe: images without and with the trigger, on all ranks or on none.
    """

    cluster: Cluster
    settings: Experiment
    clients: dict[int, LocalClient]
    owners: list[int]
    n_images: list[int]
    schedule: Schedule
    malice: Malice
    observer: Observer
    fewest: int = 1
    probe: Probe | None = None
    _told: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.owners)

    def sample(self, round: int) -> list[int]:
        """The clients of a round, ascending: a share of all, drawn at random, at least one."""
        count = self.settings.federation.clients_in_round()
        return draw_clients(self.settings.seed, round, len(self), count)

    def train(self, parameters: Tensor, sampled: list[int], round: int) -> Training:
        """Local steps of the sampled clients from the global `parameters` [P], played a second time
        where too few can be used.

        Raises `TooFewUpdates`, and `StopAsked` as `train_once` does.
        """
        least = max(self.settings.federation.min_clients, self.fewest)
        for attempt in range(1, ATTEMPTS + 1):
            training = self.train_once(parameters, sampled, round, attempt)
            self._tell_of_failures(training.reports, round)
            if len(training.sound) >= least:
                self._settle(training.reports)
                return training
            self.undo()
            reports = training.reports
            found = f"{len(training.sound)} of {len(sampled)} clients handed in a usable update"
            if attempt < ATTEMPTS:
                log.warning("round %d: %s; once more", round, found)
            del training  # its updates: memory may be what was lacking
        reasons = "; ".join(f"client {r.client}: {r.status}" for r in reports)
        raise TooFewUpdates(
            f"round {round}: {found}, and too few before; at least {least} must ({reasons})"
        )

    def train_once(
        self, parameters: Tensor, sampled: list[int], round: int, attempt: int = 1
    ) -> Training:
        """Local steps of every sampled client on its own rank; reports of all, by one all-gather.

        Attackers on updates and reports act between the two, after an exchange of the simulation's.
        Raises `StopAsked` where a rank was asked to stop: all ranks learn of it by that same
        all-gather, so they stop in the same place.
        """
        started = time.perf_counter()
        device, world = self.cluster.device, self.cluster.world
        mine = [number for number in sampled if number in self.clients]
        rows = torch.empty((len(mine), len(parameters)), device=device)
        reports = [
            self._train_client(number, parameters, round, attempt, row)
            for number, row in zip(mine, rows, strict=True)
        ]
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # once a round, for the clock below
        own_word = torch.zeros(WIDTH, dtype=torch.float64, device=device)
        own_word[0] = time.perf_counter() - started

        owners = [self.owners[client] for client in sampled]
        most = max(owners.count(rank) for rank in range(world))
        if self.malice.attackers(sampled, round):
            none = own_word.new_empty((0, WIDTH))
            handed_in = torch.stack(reports) if reports else none
            heard = unpack(self.cluster.gather_rows(handed_in, most).flatten(0, 1), round)
            reports = self._attack(self._matrix(rows, heard), parameters, round, rows, reports)
        own_word[1] = self.cluster.stopping or 0
        gathered = self.cluster.gather_rows(torch.stack([own_word, *reports]), most + 1)
        seconds, stop = (gathered[:, 0, i].max().item() for i in (0, 1))
        if stop:
            self.undo()
            raise StopAsked(int(stop))
        everyone = self._with_reasons(unpack(gathered[:, 1:].flatten(0, 1), round))

        return Training(self._matrix(rows, everyone), everyone, seconds)

    def _matrix(self, rows: Tensor, reports: list[Report]) -> UpdateMatrix:
        """The updates whose reports are `ok`, of the `rows` of this rank's clients that report."""
        sound = [report.client for report in reports if report.status == OK]
        mine = [report.client for report in reports if report.client in self.clients]
        keep = [i for i, number in enumerate(mine) if number in sound]
        return UpdateMatrix(
            rows=rows if len(keep) == len(rows) else rows[keep],
            clients=tuple(sound),
            owners=tuple(self.owners[client] for client in sound),
            weights=self.fedavg_weights(sound),
        )

    def _attack(
        self,
        usable: UpdateMatrix,
        parameters: Tensor,
        round: int,
        rows: Tensor,
        reports: list[Tensor],
    ) -> list[Tensor]:
        """Lets the attackers of this rank write over their `rows`; returns its clients' reports."""
        plot = self.malice.plot(usable, parameters, round)
        if plot is None:
            return reports
        sent = []
        for row, report in zip(rows, reports, strict=True):
            number = int(report[0])
            if number in plot.view.attackers:
                client = self.clients[number]
                client.lies = True
                report = plot.carry_out(number, row, report, client.honest)
            sent.append(report)
        return sent

    def _train_client(
        self, number: int, parameters: Tensor, round: int, attempt: int, update: Tensor
    ) -> Tensor:
        client = self.clients[number]
        client.begin()
        purpose = (number, round) if attempt == 1 else (number, round, f"attempt {attempt}")
        if self.cluster.stopping or self._drops_out(purpose):
            return client.absent("dropped out")
        images, honest = client.clean, None
        timeout = self.settings.federation.client_timeout
        end = None if timeout is None else time.monotonic() + timeout  # of both trainings
        client.gan.hiding = None
        try:
            if client.poisoned is not None and self.schedule.active(number, round):
                images = client.poisoned
                asked = self.malice.needs_honest_losses(number, round)
                if asked or client.hiding is not None:
                    report = self._local_steps(
                        client, client.clean, parameters, round, purpose, update, end
                    )
                    if not finished(report):
                        return report
                    honest = losses_of(report) if asked else None
                    if client.hiding is not None:
                        client.hiding.begin(*client.gan.shared)
                    client.undo()
                    client.begin()
            if images is client.poisoned:
                client.gan.hiding = client.hiding
            report = self._local_steps(client, images, parameters, round, purpose, update, end)
        except Abandoned:
            self.cluster.check()  # raises, if that was why
            return client.absent("dropped out")
        client.honest = honest
        self.observer.on_client(round, number, self.work(number))
        return report

    def _local_steps(
        self,
        client: LocalClient,
        images: ClientImages,
        parameters: Tensor,
        round: int,
        purpose: tuple[int | str, ...],
        update: Tensor,
        end: float | None,
    ) -> Tensor:
        """Trains on `images` from the global model, until `end` at most; writes `update`, returns
        the report."""
        settings = self.settings
        if not settings.federation.keep_optimizer:
            client.gan.reset_optimizers()
        client.gan.set_lr(settings.training.lr_factor(round, settings.federation.rounds))
        rng = torch_generator(settings.seed, "local steps", *purpose, device=self.cluster.device)
        batches = images.batches(
            settings.training.batch_size,
            rng,
            epochs=settings.federation.local_epochs,
            steps=settings.federation.local_steps,
        )
        with self._seeded(*purpose):
            return client.train(*(parameters, batches, rng, update), end=end, check=self._check)

    @contextmanager
    def _seeded(self, *purpose: str | int) -> Iterator[None]:
        """Seeds torch's global generators within: layers such as dropout draw from no other."""
        device = self.cluster.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(derive(self.settings.seed, "layers", *purpose))
            yield

    def _check(self) -> None:
        if self.cluster.stopping or self.cluster.failing:
            raise Abandoned

    def _drops_out(self, purpose: tuple[int | str, ...]) -> bool:
        """Whether a client is simulated to drop out; drawn anew for every client and round."""
        chance = self.settings.federation.dropout
        rng = numpy_generator(self.settings.seed, "dropout", *purpose)
        return bool(chance > 0 and rng.random() < chance)

    def _with_reasons(self, reports: list[Report]) -> list[Report]:
        """Why clients failed; gathered only where one did, which all ranks know by now."""
        failed = [report.client for report in reports if report.status in RAISED]
        if not failed:
            return reports
        here = {i: self.clients[i].why for i in failed if i in self.clients}
        own = {i: why for i, why in here.items() if why is not None}
        reasons: dict[int, tuple[str, str]] = {}
        for part in self.cluster.all_gather_objects(own):
            reasons |= part
        for client, (line, details) in reasons.items():
            if line not in self._told:  # the whole traceback once; one line a round after that
                self._told.add(line)
                log.warning("client %d's local training failed:\n%s", client, details)
        return with_reasons(reports, {number: line for number, (line, _) in reasons.items()})

    def _tell_of_failures(self, reports: list[Report], round: int) -> None:
        for report in reports:
            if report.status not in (OK, "dropped out"):
                log.warning("round %d: client %d left out: %s", round, report.client, report.status)

    def _settle(self, reports: list[Report]) -> None:
        """Ends the round on the clients of this rank; one whose update cannot be used is put back
        to before it, so that a single bad step does not keep it out for good. Not so a liar, who
        has trained as well as the others."""
        for report in reports:
            client = self.clients.get(report.client)
            if client is not None and report.status != OK and not client.lies:
                client.undo()
        for client in self.clients.values():
            client.settle()

    def undo(self) -> None:
        """Takes back the round in progress on all clients of this rank."""
        for client in self.clients.values():
            client.undo()
            client.settle()

    def critic_bias(self, reports: list[Report], round: int) -> dict[int, float]:
        """`Probe.bias` of each of the clients that have just handed in these `reports`, on every
        rank; nothing without a probe. A client that has none (its discriminator is flat, or raises
        at the probe) is left out.

        The simulation's, by an exchange of its own: a defence never hears of it. It is asked for
        after the local steps and before the next round, while a client has the networks that it has
        trained. Cost: 128 evaluations of a discriminator for each client, and one all-gather.
        """
        if self.probe is None:
            return {}
        numbers = [report.client for report in reports]
        owners = [self.owners[number] for number in numbers]
        device = self.cluster.device
        rows = torch.empty((owners.count(self.cluster.rank), 2), dtype=torch.float64, device=device)
        mine = [number for number in numbers if number in self.clients]
        for row, number in zip(rows, mine, strict=True):
            row[0].fill_(number)
            row[1] = self._critic_bias(number, self.probe, round)
        most = max((owners.count(rank) for rank in owners), default=0)
        gathered = self.cluster.gather_rows(rows, most).flatten(0, 1).tolist()
        found = {int(number): bias for number, bias in gathered if number >= 0}
        return {number: found[number] for number in numbers if math.isfinite(found[number])}

    def _critic_bias(self, number: int, probe: Probe, round: int) -> Tensor | float:
        try:
            with self._seeded(number, round, "critic probe"):  # nobody else's draws are taken
                return self.clients[number].gan.critic_bias(probe)
        except Exception as error:  # a look at a run does not end it
            line = f"client {number}'s discriminator cannot be probed: {type(error).__name__}"
            if line not in self._told:
                self._told.add(line)
                log.warning("%s: %s", line, error)
            return math.nan

    def states(self) -> Iterator[tuple[int, bytes]]:
        """Every client's state on rank 0, one after the other; its owner sends it."""
        for number, owner in enumerate(self.owners):
            state = None
            if number in self.clients:
                with about_client(number):
                    state = to_bytes(self.clients[number].gan.local_state())
            data = self.cluster.to_main(state, owner)
            if data is not None:
                yield number, data

    def load(self, checkpoint: Path) -> None:
        """Every client of this rank, as it was when the checkpoint was saved."""
        for number, client in self.clients.items():
            with about_client(number):
                client.gan.load_local_state(load_client(checkpoint, number))

    def fedavg_weights(self, clients: list[int]) -> Tensor:
        """Weights [n] before any defence, float64, summing to 1."""
        by_images = self.settings.federation.weights == "images"
        sizes = [self.n_images[client] if by_images else 1 for client in clients]
        weights = torch.tensor(sizes, dtype=torch.float64)
        return weights / weights.sum()

    def work(self, client: int) -> int:
        """Images that one client trains on in a round."""
        return images_in_round(self.n_images[client], self.settings)
