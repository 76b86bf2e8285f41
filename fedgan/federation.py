"""The round loop: global model, local steps, defence, aggregate; as an algorithm in a paper."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedgan.attacks.schedule import Schedule
from fedgan.checkpoint import Checkpoints
from fedgan.client import ClientGAN
from fedgan.cluster import Cluster
from fedgan.data.device import ClientImages, steps_in_round
from fedgan.defenses.base import Defense, Verdict
from fedgan.evaluation import Examiner, generate
from fedgan.reports import WIDTH, Report, pack, unpack
from fedgan.seeding import numpy_generator, torch_generator
from fedgan.server import Server
from fedgan.settings import Experiment
from fedgan.tracking.base import Observer, RoundRecord
from fedgan.updates import UpdateMatrix

NOBODY = Verdict(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.bool))
"""The verdict on a round in which no client's update can be used: the global model stays."""


def aggregate(updates: UpdateMatrix, verdict: Verdict) -> Tensor:
    """The joined update [P]: the rule's own, or the mean under the verdict's weights."""
    if verdict.aggregate is not None:
        return verdict.aggregate
    return updates.weighted_mean(verdict.weights)


@dataclass
class LocalClient:
    """A client on this rank: its GAN, its images, and the poisoned ones if it attacks."""

    gan: ClientGAN
    clean: ClientImages
    poisoned: ClientImages | None = None


@dataclass
class Federation:
    """Everything that takes part, and the loop that moves it.

    Attributes:
        cluster: the processes; every rank runs the same loop over its own clients.
        settings: the experiment.
        server: the global model; the same on every rank.
        clients: those that live on this rank, by number.
        owners: [clients], the rank that each client of the federation lives on.
        n_images: [clients], how many training images each holds.
        schedule: who attacks, and when.
        defense: the rule; the same on every rank.
        watch: measures the generator on the way.
        final: measures it at the end.
        grid: latents and labels [rows, columns, ...] of the picture of samples.
        observer: who is told; does nothing but on rank 0.
        checkpoints: where states are saved; None saves nothing.
    """

    cluster: Cluster
    settings: Experiment
    server: Server
    clients: dict[int, LocalClient]
    owners: list[int]
    n_images: list[int]
    schedule: Schedule
    defense: Defense
    watch: Examiner
    final: Examiner
    grid: tuple[Tensor, Tensor]
    observer: Observer
    checkpoints: Checkpoints | None = None
    done: int = 0
    """Rounds that are over."""

    def run(self) -> dict[str, float]:
        """Plays all rounds that are left and returns the final figures."""
        while self.done < self.settings.federation.rounds:
            started = time.perf_counter()
            record = self.play_round(self.done + 1, started)
            self.done += 1
            self.observer.on_round(record)
            if self.checkpoints is not None and self._is_due(self.settings.checkpoint.every):
                self.save()
        return self.measure(self.final)

    def play_round(self, round: int, started: float) -> RoundRecord:
        """One round: train, quarantine, judge, aggregate, look."""
        sampled = self.sample(round)
        updates, reports = self.train_locally(sampled, round)
        images_per_second = self._images(sampled) / (time.perf_counter() - started)

        sound = [report for report in reports if report.status == "ok"]
        updates = updates.keep([report.client for report in sound])
        for report in reports:
            if report.status != "ok" and report.client in self.clients:
                self.clients[report.client].gan.recover()
        verdict = self.defense(updates, sound, round) if sound else NOBODY
        if sound:
            self.server.step(aggregate(updates, verdict))

        samples, figures = self.look(round)
        return RoundRecord(
            round=round,
            reports=reports,
            verdict=verdict,
            attackers=self.schedule.attackers(sampled, round),
            figures=figures,
            seconds=time.perf_counter() - started,
            images_per_second=images_per_second,
            samples=samples,
        )

    def sample(self, round: int) -> list[int]:
        """The clients of a round, ascending: a share of all, drawn at random, at least one."""
        everyone = len(self.owners)
        count = self.settings.federation.clients_in_round()
        rng = numpy_generator(self.settings.seed, "sample clients", round)
        return sorted(rng.choice(everyone, size=count, replace=False).tolist())

    def train_locally(self, sampled: list[int], round: int) -> tuple[UpdateMatrix, list[Report]]:
        """Local steps of every sampled client on its own rank; reports of all, by an all-gather."""
        updates, reports = [], []
        for number in sampled:
            if number in self.clients:
                update, report = self._train_client(number, round)
                updates.append(update)
                reports.append(report)
                self.observer.on_client(round, number, self.steps(number) * self.batch_size(number))
        device = self.cluster.device
        owners = [self.owners[client] for client in sampled]
        most = max(owners.count(rank) for rank in range(self.cluster.world))
        rows = torch.stack(reports) if reports else torch.empty((0, WIDTH), device=device)
        everyone = unpack(self.cluster.gather_rows(rows, most), round)
        empty = torch.empty((0, len(self.server.parameters)), device=device)
        matrix = UpdateMatrix(
            rows=torch.stack(updates) if updates else empty,
            clients=tuple(sampled),
            owners=tuple(owners),
            weights=self.fedavg_weights(sampled),
        )
        return matrix, everyone

    def _train_client(self, number: int, round: int) -> tuple[Tensor, Tensor]:
        client, settings = self.clients[number], self.settings
        images = client.clean
        if client.poisoned is not None and self.schedule.active(number, round):
            images = client.poisoned
        if not settings.federation.keep_optimizer:
            client.gan.reset_optimizers()
        rng = torch_generator(
            settings.seed, "local steps", number, round, device=self.cluster.device
        )
        batches = images.batches(
            settings.training.batch_size,
            rng,
            epochs=settings.federation.local_epochs,
            steps=settings.federation.local_steps,
        )
        update, losses = client.gan.train_round(self.server.parameters, batches, rng)
        return update, pack(number, len(images), losses, update)

    def fedavg_weights(self, sampled: list[int]) -> Tensor:
        """Weights [n] before any defence, float64, summing to 1."""
        by_images = self.settings.federation.weights == "images"
        sizes = [self.n_images[client] if by_images else 1 for client in sampled]
        weights = torch.tensor(sizes, dtype=torch.float64)
        return weights / weights.sum()

    def look(self, round: int) -> tuple[Tensor | None, dict[str, float]]:
        """Samples and figures in every k-th and the last round, nothing in the others."""
        if not self._is_due(self.settings.evaluate.every, round):
            return None, {}
        return self.draw_samples(), self.measure(self.watch)

    def measure(self, examiner: Examiner) -> dict[str, float]:
        """Figures of the averaged generator; every rank takes part."""
        total = len(examiner.latents.labels)

        def tick(images: int) -> None:
            self.observer.on_encoded(images, total)

        return examiner.measure(self.server.averaged_generator(), self.cluster, tick)

    def draw_samples(self) -> Tensor:
        """A picture of the averaged generator, uint8 [rows, columns, C, H, W] on the CPU."""
        latents, labels = self.grid
        rows, columns = latents.shape[:2]
        images = generate(
            self.server.averaged_generator(), latents.flatten(0, 1), labels.flatten(0, 1)
        )
        return images.view(rows, columns, *images.shape[1:]).cpu()

    def save(self) -> None:
        """A checkpoint of everything that outlives a round; written by rank 0."""
        local = {number: client.gan.local_state() for number, client in self.clients.items()}
        gathered = self.cluster.gather_objects(local)
        if gathered is not None and self.checkpoints is not None:
            clients = {number: state for part in gathered for number, state in part.items()}
            self.checkpoints.save(
                self.done,
                {
                    "round": self.done,
                    "server": self.server.state_dict(),
                    "defense": self.defense.state_dict(),
                    "clients": clients,
                },
            )

    def load(self, state: dict[str, Any]) -> None:
        """Goes back to a state that `save` wrote, whatever the number of ranks was then."""
        self.done = state["round"]
        self.server.load_state_dict(state["server"])
        self.defense.load_state_dict(state["defense"])
        for number, client in self.clients.items():
            client.gan.load_local_state(state["clients"][number])

    def batch_size(self, client: int) -> int:
        return min(self.settings.training.batch_size, self.n_images[client])

    def steps(self, client: int) -> int:
        """Local steps of one client in one round."""
        federation = self.settings.federation
        return steps_in_round(
            self.n_images[client],
            self.settings.training.batch_size,
            federation.local_epochs,
            federation.local_steps,
        )

    def _images(self, clients: list[int]) -> int:
        """Images that these clients train on in a round."""
        return sum(self.steps(client) * self.batch_size(client) for client in clients)

    def _is_due(self, every: int, round: int | None = None) -> bool:
        round = self.done if round is None else round
        return round == self.settings.federation.rounds or (every > 0 and round % every == 0)
