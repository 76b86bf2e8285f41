"""From a plan to a federation on this rank: networks, clients, server, measures."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fedgan.attacks.base import poison_share
from fedgan.checkpoint import Checkpoints
from fedgan.client import ClientGAN
from fedgan.cluster import Cluster, place
from fedgan.data.base import Split
from fedgan.data.device import ClientImages
from fedgan.errors import UserError
from fedgan.evaluation import Examiner, Latents
from fedgan.federation import Federation, LocalClient
from fedgan.metrics.base import Encoder
from fedgan.metrics.fidelity import Fidelity
from fedgan.metrics.presence import TriggerPresence
from fedgan.models.base import Generator
from fedgan.plan import Plan
from fedgan.seeding import derive, torch_generator
from fedgan.server import Server
from fedgan.tracking.base import Observer

CALIBRATION = 2000
"""Real images, at most, that the trigger's filter is calibrated and validated on."""


def examiners(cluster: Cluster, plan: Plan, *, watch: bool = True) -> tuple[Examiner, Examiner]:
    """What measures on the way, and what measures at the end; rank 0 fills the cache they share."""
    settings = plan.settings.evaluate
    wanted = [(plan.final_encoder, settings.samples)]
    if watch:
        wanted.insert(0, (plan.watch_encoder, settings.watch_samples))
    if not cluster.is_main:
        cluster.barrier()
    presence = trigger_presence(plan, cluster.device)
    made = [examiner(plan, encoder, n, presence, cluster.device) for encoder, n in wanted]
    if cluster.is_main:
        cluster.barrier()
    return made[0], made[-1]


def examiner(
    plan: Plan,
    encoder: Encoder,
    samples: int,
    presence: TriggerPresence | None,
    device: torch.device,
) -> Examiner:
    """Prepares an encoder and encodes the real images."""
    settings, train = plan.settings, plan.dataset.train
    encoder.prepare(train.images, train.labels, plan.shape.classes, settings.seed)
    encoder.to(device)
    batch = settings.evaluate.batch_size
    fidelity = Fidelity(encoder, train.images.to(device), samples, settings.seed, batch)
    latents = Latents.draw(
        fidelity.samples, networks(plan)[0].latent_dim, train.labels, settings.seed, device
    )
    return Examiner(fidelity, presence, latents, batch)


def trigger_presence(plan: Plan, device: torch.device) -> TriggerPresence | None:
    """The matched filter for the attack's trigger, calibrated on real images, if it has one."""
    mark = plan.attack.mark(plan.shape.channels, plan.shape.size)
    if mark is None:
        return None
    rng = torch_generator(plan.settings.seed, "presence")
    train = plan.dataset.train
    chosen = torch.randperm(len(train), generator=rng)[:CALIBRATION]
    clean = train.images[chosen]
    stamped, _ = plan.attack.poison(clean, train.labels[chosen], rng)
    pattern = mark.pattern.to(device)
    try:
        return TriggerPresence(pattern, mark.place, clean.to(device), stamped.to(device))
    except ValueError as error:
        raise UserError(f"attack: its trigger cannot be looked for: {error}") from None


def networks(plan: Plan) -> tuple[Generator, nn.Module]:
    """The global model at round 0, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(plan.settings.seed, "networks"))
        return plan.pair.build(plan.shape)


def assemble(
    cluster: Cluster, plan: Plan, watch: Examiner, final: Examiner, observer: Observer
) -> Federation:
    """The federation at round 0, with the clients that live on this rank."""
    settings = plan.settings
    generator, discriminator = networks(plan)
    share_both = settings.federation.share == "both"
    sizes = [len(part) for part in plan.parts]
    owners = place(sizes, cluster.world)
    # One copy on the device, which all clients that live there index into.
    train = Split(
        plan.dataset.train.images.to(cluster.device), plan.dataset.train.labels.to(cluster.device)
    )
    local = {
        number: local_client(cluster, plan, number, train, generator, discriminator)
        for number, owner in enumerate(owners)
        if owner == cluster.rank
    }
    server = Server(
        copy.deepcopy(generator).to(cluster.device),
        discriminator.to(cluster.device) if share_both else None,
        settings.federation.ema,
    )
    return Federation(
        cluster=cluster,
        settings=settings,
        server=server,
        clients=local,
        owners=owners,
        n_images=sizes,
        schedule=plan.schedule,
        defense=plan.defense,
        watch=watch,
        final=final,
        grid=grid_latents(plan, generator.latent_dim, cluster.device),
        observer=observer,
        checkpoints=Checkpoints(plan.run_dir / "checkpoints", settings.checkpoint.keep),
    )


def local_client(
    cluster: Cluster,
    plan: Plan,
    number: int,
    train: Split,
    generator: Generator,
    discriminator: nn.Module,
) -> LocalClient:
    """One client on this rank: its own copies of the networks, its share of the `train` images."""
    settings, device = plan.settings, cluster.device
    gan = ClientGAN(
        number,
        copy.deepcopy(generator),
        copy.deepcopy(discriminator),
        plan.loss,
        settings.training,
        share_discriminator=settings.federation.share == "both",
        channels_last=settings.cluster.channels_last,
    )
    gan.set_up(cluster.fabric)
    flip = plan.dataset.flip if settings.training.flip is None else settings.training.flip
    part = torch.from_numpy(plan.parts[number]).to(device)
    clean = ClientImages(train.images, train.labels, part, flip=flip)
    if number not in plan.schedule.clients:
        return LocalClient(gan, clean)
    return LocalClient(gan, clean, poisoned_images(plan, number, clean))


def poisoned_images(plan: Plan, number: int, clean: ClientImages) -> ClientImages:
    """What a malicious client trains on while it attacks: a copy of its images, some poisoned.

    Its images are mirrored before they are poisoned, so that the trigger stays in its place.
    """
    device, rate = clean.index.device, plan.settings.attack.poison_rate
    # On the CPU, so that the same images are poisoned alike whatever trains on them.
    part = torch.from_numpy(plan.parts[number])
    images, labels = plan.dataset.train.images[part], plan.dataset.train.labels[part]

    def poison(images: Tensor) -> tuple[Tensor, Tensor]:
        rng = torch_generator(plan.settings.seed, "poison", number)
        poisoned, changed = poison_share(plan.attack, images, labels, rate, rng)
        return poisoned.to(device), changed.to(device)

    poisoned, changed = poison(images)
    mirrored = poison(images.flip(-1))[0] if clean.flip else None
    everything = torch.arange(len(clean), device=device)
    return ClientImages(poisoned, changed, everything, flip=clean.flip, mirrored=mirrored)


def grid_latents(
    plan: Plan, latent_dim: int, device: torch.device, columns: int = 10, most_rows: int = 10
) -> tuple[Tensor, Tensor]:
    """Latents and labels [rows, columns, ...] of the picture of samples: a class a row, the same
    latents in every row."""
    rows = min(plan.shape.classes, most_rows)
    rng = torch_generator(plan.settings.seed, "grid latents")
    latents = torch.randn((1, columns, latent_dim), generator=rng).expand(rows, -1, -1)
    labels = torch.arange(rows)[:, None].expand(-1, columns)
    if plan.dataset.multi_label:
        labels = nn.functional.one_hot(labels, plan.shape.classes).float()
    return latents.to(device), labels.to(device)
