"""The round loop: global model, local steps, defence, aggregate; as an algorithm in a paper."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgan.checkpoint import Checkpoints, load_server
from fedgan.clients import ClientPool, StopAsked, TooFewUpdates
from fedgan.cluster import Cluster
from fedgan.defenses.base import Defense, ServerMeans
from fedgan.errors import Interrupted, UserError
from fedgan.evaluation import Evaluation, Examiner
from fedgan.generated import generate
from fedgan.server import Critic, Sampler, Server
from fedgan.settings import Experiment
from fedgan.signals import stop_name
from fedgan.tracking.base import Observer, RoundRecord

log = logging.getLogger(__name__)


@dataclass
class Federation:
    """Everything that takes part, and the loop that moves it.

    Attributes:
        cluster: the processes; every rank runs the same loop over its own clients.
        settings: the experiment.
        server: the global model; the same on every rank.
        pool: the clients.
        defense: the rule; the same on every rank.
        sampler: runs an uploaded model as a generator, for the defence.
        critic: likewise as a discriminator; None where those stay at home.
        watch: measures the generator on the way.
        final: measures it at the end.
        grid: latents and labels [rows, columns, ...] of the picture of samples.
        observer: who is told; does nothing but on rank 0.
        checkpoints: where states are saved; None saves nothing.
        done: rounds that are over.
        looked_at: rounds after which all has been measured already.
        best: the round whose look found the smallest distance, that distance, and what it was
            measured by.
    """

    cluster: Cluster
    settings: Experiment
    server: Server
    pool: ClientPool
    defense: Defense
    sampler: Sampler
    critic: Critic | None
    watch: Examiner
    final: Examiner
    grid: tuple[Tensor, Tensor]
    observer: Observer
    checkpoints: Checkpoints | None = None
    done: int = 0
    looked_at: frozenset[int] = frozenset()
    best: dict[str, Any] | None = None

    def run(self) -> Evaluation:
        """Plays all rounds that are left and returns what is measured at the end.

        Raises `Interrupted` after a stop signal, and `UserError` where too few clients are left,
        both after a checkpoint of all finished rounds.
        """
        rounds = self.settings.federation.rounds
        with self.cluster.stops_noted():
            self.look_closely()  # where a stop has come in between
            while self.done < rounds:
                started = time.perf_counter()
                try:
                    record = self.play_round(self.done + 1, started)
                except (StopAsked, TooFewUpdates) as stop:
                    raise self.end_early(stop) from None
                self.done += 1
                self.observer.on_round(record)
                if self._is_best(record) or self._is_due(self.settings.checkpoint.every):
                    self.save()
                self.look_closely()
            evaluation = self.measure(self.final)
            if rounds in self.settings.evaluate.rounds:
                self.observer.on_evaluation(rounds, self.told(evaluation), evaluation.pictures)
            return evaluation

    def play_round(self, round: int, started: float) -> RoundRecord:
        """One round: train, judge, aggregate, look."""
        sampled = self.pool.sample(round)
        training = self.pool.train(self.server.parameters, sampled, round)
        trained = sum(self.pool.work(report.client) for report in training.sound)
        images_per_second = trained / (time.perf_counter() - started)

        # The simulation's, of the clients as they are before the next round.
        critic_bias = self.pool.critic_bias(training.sound, round)

        means = ServerMeans(
            *(round, self.server.parameters, self.settings.seed), self.sampler, self.critic
        )
        verdict = self.defense(training.updates, training.sound, means)
        aggregate = verdict.joined(training.updates)
        # What is taken out of the global model is not to stay in its average.
        self.server.step(aggregate, anew=verdict.correction is not None)
        self.pool.malice.learn(aggregate, training.reports)
        reports, training_seconds = training.reports, training.seconds
        usable = training.updates
        fair_weights = dict(zip(usable.clients, usable.weights.tolist(), strict=True))
        del training, usable  # its updates need no room while images are generated

        samples, found = self.look(round)
        return RoundRecord(
            round=round,
            reports=reports,
            verdict=verdict,
            attackers=self.pool.schedule.attackers(sampled, round),
            fair_weights=fair_weights,
            critic_bias=critic_bias,
            figures=found.figures,
            seconds=time.perf_counter() - started,
            training_seconds=training_seconds,
            images_per_second=images_per_second,
            samples=samples,
            evaluation={} if samples is None else self.told(found, self.watch),
            pictures=found.pictures,
        )

    def look(self, round: int) -> tuple[Tensor | None, Evaluation]:
        """Samples and findings in every k-th and the last round, nothing in the others."""
        if not self._is_due(self.settings.evaluate.every, round):
            return None, Evaluation()
        return self.draw_samples(), self.measure(self.watch)

    def look_closely(self) -> None:
        """All that is measured at the end, after the rounds of `evaluate.rounds`, if it has not
        been yet. The round is over and saved by then, so that a stop need not wait for the look;
        a resume makes up for it."""
        asked = self.done in self.settings.evaluate.rounds and self.done not in self.looked_at
        if not asked or self.done == self.settings.federation.rounds:
            return
        if self.checkpoints is not None and not self._is_saved():
            self.save()
        evaluation = self.measure(self.final)
        self.observer.on_evaluation(self.done, self.told(evaluation), evaluation.pictures)

    def measure(self, examiner: Examiner) -> Evaluation:
        """Figures of the averaged generator; every rank takes part."""
        closely = examiner is self.final

        def tick(what: str, done: int, total: int) -> None:
            self.cluster.check()
            # A full look can be left at any point: all that it needs is in the last checkpoint.
            if closely and self.cluster.stopping:
                line = self._with_hint("stopped while measuring")
                raise Interrupted(self.cluster.stopping, line)
            self.observer.on_measured(what, done, total, closely)

        return examiner.measure(self.server.averaged_generator(), tick)

    def told(self, evaluation: Evaluation, examiner: Examiner | None = None) -> dict[str, Any]:
        """What evaluation.json says of a look, which is a full one unless `examiner` took it."""
        sha256 = self.server.generator_sha256()
        return {**(examiner or self.final).told(evaluation), "generator_sha256": sha256}

    def draw_samples(self) -> Tensor:
        """A picture of the averaged generator, uint8 [rows, columns, C, H, W] on the CPU."""
        latents, labels = self.grid
        rows, columns = latents.shape[:2]
        images = generate(
            self.server.averaged_generator(), latents.flatten(0, 1), labels.flatten(0, 1)
        )
        return images.view(rows, columns, *images.shape[1:]).cpu()

    def end_early(self, stop: StopAsked | TooFewUpdates) -> Interrupted | UserError:
        """Saves all finished rounds, and says what to raise."""
        if not self._is_saved():
            self.save()
        if isinstance(stop, TooFewUpdates):  # the same seeds draw the same failures again
            return UserError(f"{stop}; all finished rounds are saved")
        line = self._with_hint(f"stopped by {stop_name(stop.signum)} in round {self.done + 1}")
        return Interrupted(stop.signum, line)

    def _is_saved(self) -> bool:
        """Whether all finished rounds are; what rank 0 sees, on every rank."""
        saved = self.checkpoints is not None and self.checkpoints.has(self.done)
        return self.cluster.broadcast_object(saved)

    def _with_hint(self, line: str) -> str:
        hint = self.cluster.hint()
        return f"{line}; {hint}" if hint else line

    def save(self) -> None:
        """A checkpoint of everything that outlives a round; rank 0 writes it, the others wait."""
        if self.checkpoints is None:
            return
        states = self.pool.states()
        if self.cluster.is_main:
            self.observer.sync()
            self.checkpoints.save(self._state(), states)
        else:
            for _ in states:  # sends those of this rank
                pass
        self.cluster.barrier()

    def _state(self) -> dict[str, Any]:
        return {
            "round": self.done,
            "server": self.server.state_dict(),
            "defense": self.defense.state_dict(),
            "clients": len(self.pool),
            "malice": self.pool.malice.state_dict(),
            "best": self.best,
            "machine": self._machine(),
        }

    def load(self, path: Path) -> None:
        """Goes back to a checkpoint, whatever the number of ranks was when it was saved.

        Raises `UserError` where it is of other networks or clients than the config's.
        """
        state = load_server(path)
        self._check_fits(state)
        self.done, self.best = state["round"], state["best"]
        self.server.load_state_dict(state["server"])
        self.defense.load_state_dict(state["defense"])
        self.pool.malice.load_state_dict(state["malice"], self.cluster.device)
        self.pool.load(path)
        for key, here in self._machine().items():
            if (there := state["machine"][key]) != here:
                log.warning(
                    "saved with %s %s, going on with %s: the bytes will not be those of an "
                    "unbroken run",
                    *(key, there, here),
                )

    def _check_fits(self, state: dict[str, Any]) -> None:
        found, wanted = len(state["server"]["parameters"]), len(self.server.parameters)
        if found != wanted:
            raise UserError(
                f"the checkpoint has {found} shared parameters, "
                f"the networks of config.yaml {wanted}"
            )
        if state["clients"] != len(self.pool):
            raise UserError(
                f"the checkpoint has {state['clients']} clients, config.yaml {len(self.pool)}"
            )

    def _machine(self) -> dict[str, Any]:
        """What the bytes of a run depend on beside its settings."""
        settings = self.settings.cluster
        return {
            "torch": str(torch.__version__),
            "device": self.cluster.device.type,
            "threads": torch.get_num_threads(),
            "precision": settings.precision,
            "tf32": settings.tf32,
            "channels_last": settings.channels_last,
            "deterministic": settings.deterministic,
        }

    def _is_best(self, record: RoundRecord) -> bool:
        """Notes the round if its look found a smaller distance than any before."""
        distance = record.figures.get(self.watch.distance, math.nan)
        # Another encoder's distances (a resume may change it) are not to be compared.
        by = f"{self.watch.distance} of {self.watch.scene.samples} images"
        rival = self.best if self.best and self.best["by"] == by else None
        if not math.isfinite(distance) or (rival and distance >= rival["distance"]):
            return False
        self.best = {"round": record.round, "distance": distance, "by": by}
        return True

    def _is_due(self, every: int, round: int | None = None) -> bool:
        round = self.done if round is None else round
        return round == self.settings.federation.rounds or (every > 0 and round % every == 0)
