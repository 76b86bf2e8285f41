"""From a plan to what measures look at: everything real, on every rank, and the ranks as a crew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedgan.assembly import networks
from fedgan.choices import Look
from fedgan.cluster import Cluster
from fedgan.data.base import Split
from fedgan.evaluation import Crew, Examiner
from fedgan.generated import Latents
from fedgan.metrics.base import Encoded, Encoder
from fedgan.metrics.fidelity import encode
from fedgan.metrics.measure import Labelled, Scene, Tick, Trigger, ignore
from fedgan.metrics.real import Halves, RealImages
from fedgan.plan import Plan
from fedgan.seeding import torch_generator
from fedgan.tracking.records import CLIENTS, read_table

COUNTERFEITS = 32
"""Triggers of the attack's kind that nobody uses, from which its own is told."""


def examiners(
    cluster: Cluster, plan: Plan, *, watch: bool = True, tick: Tick = ignore
) -> tuple[Examiner, Examiner]:
    """What measures on the way, and what measures at the end; every rank takes part. `tick` is told
    what is prepared."""
    looks = [plan.watch, plan.final] if watch else [plan.final]
    known: dict[str, Any] = {}
    made = [examiner(cluster, plan, look, known, tick=tick) for look in looks]
    return made[0], made[-1]


def examiner(
    cluster: Cluster,
    plan: Plan,
    look: Look,
    known: dict[str, Any] | None = None,
    *,
    most: int | None = None,
    until: int | None = None,
    tick: Tick = ignore,
) -> Examiner:
    """One of them, prepared. `known` is `Scene.known`; `most` bounds the number of images where
    they are somebody else's, `until` the rounds that count where a checkpoint is looked at."""
    for encoder in look.encoders:
        prepare(cluster, plan, encoder)
    crew = Crew(cluster)
    made = scene(cluster, plan, look, crew, {} if known is None else known, most, until)
    dim, labels = networks(plan)[0].latent_dim, plan.dataset.train.labels
    latents = Latents.draw(made.samples, dim, labels, plan.settings.seed, cluster.device)
    found = Examiner(made, look.measures, latents, crew, look.samples if most is None else 0)
    with crew.heard_by(tick):
        found.prepare()
    return found


def prepare(cluster: Cluster, plan: Plan, encoder: Encoder) -> None:
    """The very same encoder on every rank's device.

    Rank 0 makes it first, so that the others find what it left in the cache, and make it anew only
    where they do not share its disk; then they take over rank 0's numbers.
    """
    train = plan.dataset.train
    if not cluster.is_main:
        cluster.barrier()
    encoder.prepare(train.images, train.labels, plan.shape.classes, plan.settings.seed)
    if cluster.is_main:
        cluster.barrier()
    if cluster.world > 1:
        state = cluster.broadcast_object(encoder.state_dict())
        if not cluster.is_main:
            encoder.load_state_dict(state)
    encoder.to(cluster.device)


def scene(
    cluster: Cluster,
    plan: Plan,
    look: Look,
    crew: Crew,
    known: dict[str, Any],
    most: int | None = None,
    until: int | None = None,
) -> Scene:
    """Everything real that the measures of a look may hold generated images against."""
    settings, dataset = plan.settings, plan.dataset
    batch, device = settings.evaluate.batch_size, cluster.device
    samples = look.samples if most is None else min(look.samples, most)
    real = {
        encoder.fingerprint: Halves(
            encoder, *labelled(dataset.train), samples, settings.seed, batch, device
        )
        for encoder in look.encoders
    }
    seen: dict[str, Encoded] = {}

    def halves(encoder: Encoder) -> Encoded:
        key = encoder.fingerprint
        if key not in seen:
            seen[key] = encode_real(real[key], cluster, crew)
        return seen[key]

    def encode_any(encoder: Encoder, images: Tensor) -> Encoded:
        batches = [partial(part.to, device) for part in torch.split(images, batch)]
        return encode_shared(encoder, batches, len(images), "encoding", crew)

    def encode_kept(encoder: Encoder, images: Tensor) -> Encoded:
        every = torch.arange(len(images))
        return encode_real(RealImages(encoder, images, every, batch, device), cluster, crew)

    def history() -> list[dict[str, Any]]:
        rows = read_table(plan.run_dir / CLIENTS)
        return rows if until is None else [row for row in rows if int(row["round"]) <= until]

    return Scene(
        train=labelled(dataset.train),
        val=labelled(dataset.val),
        test=labelled(dataset.test),
        classes=dataset.classes,
        multi_label=dataset.multi_label,
        seed=settings.seed,
        samples=next(iter(real.values())).samples,
        batch_size=batch,
        device=device,
        encoders=tuple(look.encoders),
        trigger=trigger(plan),
        share=crew.share,
        progress=crew.progress,
        history=None if settings.run_dir is None else history,
        halves=halves,
        encode=encode_any,
        encode_real=encode_kept,
        known=known,
    )


def labelled(split: Split) -> Labelled:
    return Labelled(split.images, split.labels)


def encode_real(real: RealImages, cluster: Cluster, crew: Crew) -> Encoded:
    """Features and logits of the real images, on every rank: those of rank 0's cache, or where it
    has none, those that all ranks encode together."""
    known = cluster.broadcast_object(real.load() if cluster.is_main else None)
    if known is not None:
        return known

    batches = [partial(real.batch, number) for number in range(len(real))]
    words = "encoding real images"
    encoded = encode_shared(real.encoder, batches, real.count, words, crew)
    if cluster.is_main:
        real.save(encoded)
    return encoded


def encode_shared(
    encoder: Encoder, batches: Sequence[Callable[[], Tensor]], total: int, words: str, crew: Crew
) -> Encoded:
    """Features and logits, on every rank, of `total` images in batches, each of which is fetched to
    the device by the rank that encodes it: an image is encoded alike whoever does it."""
    done = 0

    def job(fetch: Callable[[], Tensor]) -> Encoded:
        nonlocal done
        batch = fetch()
        encoded = encode(encoder, batch, len(batch))
        done += len(batch) * crew.cluster.world  # the other ranks are about as far
        crew.progress(f"{words} with {encoder.name}", min(done, total), total)
        return encoded

    features, logits = zip(*crew.share([partial(job, fetch) for fetch in batches]), strict=True)
    return torch.cat(features), torch.cat(logits)


def trigger(plan: Plan) -> Trigger | None:
    """The attack's trigger, if it has one, as much as measures may know of it."""
    attack, settings = plan.attack, plan.settings
    if not attack.triggers:
        return None

    def stamper(one: Any, purpose: str) -> Callable[[Labelled], Labelled]:
        def stamp(images: Labelled) -> Labelled:
            rng = torch_generator(settings.seed, "stamp", purpose)
            return Labelled(*one.poison(images.images, images.labels, rng))

        return stamp

    unused = torch_generator(0, "counterfeits")  # the same whatever the experiment's seed
    attackers = len(settings.attack.clients)
    parts = {str(i): attack.part(i, attackers) for i in range(attackers)}
    mark = attack.mark(plan.shape.channels, plan.shape.size)
    return Trigger(
        name=settings.attack.class_path or attack.name,
        stamp=stamper(attack, "all"),
        counterfeits=tuple(
            stamper(one, f"counterfeit {i}")
            for i, one in enumerate(attack.counterfeits(COUNTERFEITS, unused))
        ),
        pattern=None if mark is None else mark.pattern,
        place=None if mark is None else mark.place,
        parts={
            name: stamper(part, f"part {name}")
            for name, part in parts.items()
            if part is not attack
        },
        only_label=settings.attack.only_label,
    )
