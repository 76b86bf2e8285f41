"""From a plan to a federation on this rank: networks, clients, server."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fedgan.attacks.base import NoAttack, poison_share
from fedgan.attacks.hiding import Hiding
from fedgan.checkpoint import Checkpoints
from fedgan.client import ClientGAN
from fedgan.clients import ClientPool
from fedgan.cluster import Cluster
from fedgan.data.base import Split
from fedgan.data.device import ClientImages, images_in_round, upload
from fedgan.evaluation import Examiner
from fedgan.federation import Federation
from fedgan.local import LocalClient
from fedgan.malice import Malice
from fedgan.models.base import Generator
from fedgan.plan import Plan
from fedgan.probe import Probe
from fedgan.seeding import derive, torch_generator
from fedgan.server import Critic, Sampler, Server
from fedgan.shards import place
from fedgan.tracking.base import Observer


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
    owners = place([images_in_round(size, settings) for size in sizes], cluster.world)
    here = [number for number, owner in enumerate(owners) if owner == cluster.rank]
    parts = [torch.from_numpy(plan.parts[number]) for number in here]
    train, indices = upload(plan.dataset.train, parts, cluster.device)
    local = {
        number: local_client(cluster, plan, number, train, index, generator, discriminator)
        for number, index in zip(here, indices, strict=True)
    }
    server = Server(
        copy.deepcopy(generator).to(cluster.device),
        discriminator.to(cluster.device) if share_both else None,
        settings.federation.ema,
    )
    pool = ClientPool(
        cluster=cluster,
        settings=settings,
        clients=local,
        owners=owners,
        n_images=sizes,
        schedule=plan.schedule,
        malice=Malice(
            plan.schedule,
            len(server.average),
            settings.seed,
            plan.update_attacks,
            plan.report_attack,
        ),
        observer=observer,
        fewest=plan.defense.fewest(),
        probe=critic_probe(plan, cluster.device),
    )
    sampler = Sampler(server.generator, plan.shape, multi_label=plan.dataset.multi_label)
    return Federation(
        cluster=cluster,
        settings=settings,
        server=server,
        pool=pool,
        defense=plan.defense,
        sampler=sampler,
        critic=Critic(discriminator, sampler.size) if share_both else None,
        watch=watch,
        final=final,
        grid=grid_latents(plan, generator.latent_dim, cluster.device),
        observer=observer,
        checkpoints=Checkpoints(plan.run_dir / "checkpoints", settings.checkpoint.keep),
    )


def critic_probe(plan: Plan, device: torch.device) -> Probe | None:
    """What the discriminators are asked of the trigger with: held-out images, if there are enough.
    None where the attack has no trigger; with a poison rate of 0 it has one, and nobody uses it."""
    splits = (plan.dataset.val, plan.dataset.train)
    settings = plan.settings
    return Probe.draw(splits, plan.attack, settings.attack.only_label, settings.seed, device)


def local_client(
    cluster: Cluster,
    plan: Plan,
    number: int,
    train: Split,
    index: Tensor,
    generator: Generator,
    discriminator: nn.Module,
) -> LocalClient:
    """One client on this rank: its own copies of the networks, and its images, those that `index`
    names among those on the device."""
    settings = plan.settings
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
    clean = ClientImages(train.images, train.labels, index, flip=flip)
    if number not in plan.schedule.clients or isinstance(plan.attack, NoAttack):
        return LocalClient(gan, clean)
    weight = settings.attack.hide
    share = 1 / settings.federation.clients_in_round()
    hiding = Hiding(weight, plan.shape.classes, share) if weight else None
    return LocalClient(gan, clean, poisoned_images(plan, number, clean), hiding)


def poisoned_images(plan: Plan, number: int, clean: ClientImages) -> ClientImages:
    """What a malicious client trains on while it attacks: a copy of its images, some poisoned.

    Its images are mirrored before they are poisoned, so that the trigger stays in its place.
    """
    device, settings = clean.index.device, plan.settings.attack
    malicious = sorted(plan.schedule.clients)
    attack = plan.attack.part(malicious.index(number), len(malicious))
    # On the CPU, so that the same images are poisoned alike whatever trains on them.
    part = torch.from_numpy(plan.parts[number])
    images, labels = plan.dataset.train.images[part], plan.dataset.train.labels[part]

    def poison(images: Tensor) -> tuple[Tensor, Tensor]:
        rng = torch_generator(plan.settings.seed, "poison", number)
        poisoned, changed = poison_share(
            attack, images, labels, settings.poison_rate, rng, settings.only_label
        )
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
