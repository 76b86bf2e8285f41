"""Speed of a local step: fedgan's client against a plain PyTorch loop of the same networks.

    python benchmarks/local_step.py [--steps 100] [--repeats 5] [--threads 2] [--device cpu]

Both train the default pair with the default loss, optimiser and batch on the same images, without
augmentation but mirroring. They take turns, so that whatever else the machine does meets both
alike; the table gives the median of the repeats, their range, and the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedgan import config
from fedgan.assembly import assemble, networks
from fedgan.cluster import Cluster
from fedgan.plan import Plan, make_plan
from fedgan.scenes import examiners
from fedgan.tracking.base import Observer


def plain_loop(plan: Plan, device: torch.device, steps: int) -> Callable[[], None]:
    """The training of one client as one would write it without fedgan or Lightning."""
    settings = plan.settings.training
    generator, discriminator = (network.to(device) for network in networks(plan))
    adam = torch.optim.Adam
    g_optimizer = adam(generator.parameters(), settings.generator_lr, settings.betas, fused=True)
    d_optimizer = adam(
        discriminator.parameters(), settings.discriminator_lr, settings.betas, fused=True
    )
    images, labels = (
        tensor.to(device) for tensor in (plan.dataset.train.images, plan.dataset.train.labels)
    )
    rng = torch.Generator(device).manual_seed(1)
    batch, n = settings.batch_size, len(images)
    gamma, every = 0.05, 4 if device.type == "cpu" else 1
    softplus = torch.nn.functional.softplus

    def fake(y: Tensor) -> Tensor:
        z = torch.randn((len(y), generator.latent_dim), generator=rng, device=device)
        return generator(z, y)

    def run() -> None:
        epochs = -(-steps * batch // n)
        order = torch.cat([torch.randperm(n, generator=rng, device=device) for _ in range(epochs)])
        for step in range(steps):
            index = order[step * batch : (step + 1) * batch]
            x, y = images[index], labels[index]
            if plan.dataset.flip:
                coin = torch.rand(batch, generator=rng, device=device) < 0.5
                x = torch.where(coin[:, None, None, None], x.flip(-1), x)
            real = x.float() / 127.5 - 1
            with torch.no_grad():
                other = fake(y)
            both, twice = torch.cat([real, other]), torch.cat([y, y])
            real_logits, fake_logits = discriminator(both, twice).chunk(2)
            loss = softplus(fake_logits - real_logits).mean()
            if step % every == 0:
                leaf = both.detach().requires_grad_(True)
                logits = discriminator(leaf, twice)
                (slope,) = torch.autograd.grad(logits.sum(), leaf, create_graph=True)
                loss = loss + every * gamma * slope.square().flatten(1).sum(1).mean()
            d_optimizer.zero_grad()
            loss.backward()
            d_optimizer.step()

            discriminator.requires_grad_(False)
            fake_logits = discriminator(fake(y), y)
            with torch.no_grad():
                real_logits = discriminator(real, y)
            loss = softplus(real_logits - fake_logits).mean()
            g_optimizer.zero_grad()
            loss.backward()
            g_optimizer.step()
            discriminator.requires_grad_(True)

    return run


def measure(cluster: Cluster, plan: Plan, steps: int, repeats: int) -> dict[str, list[float]]:
    """Images per second of `steps` steps, by name, one figure a repeat."""
    device = cluster.device
    watch, final = examiners(cluster, plan)
    federation = assemble(cluster, plan, watch, final, Observer())
    rounds = iter(range(1, 10_000))
    runs: dict[str, Callable[[], object]] = {
        "plain PyTorch loop": plain_loop(plan, device, steps),
        # All that a round does but the look at the model: local steps, report, aggregation.
        "fedgan, one client": lambda: federation.play_round(next(rounds), time.perf_counter()),
    }
    seen: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first is warm-up
                speed = steps * plan.settings.training.batch_size / (time.perf_counter() - started)
                seen[name].append(speed)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--config", type=Path, default=Path("quickstart.yaml"))
    options = parser.parse_args()
    overrides = [
        f"--cluster.accelerator={options.device}",
        f"--cluster.threads={options.threads}",
        f"--federation.local_steps={options.steps}",
        "--federation.clients=1",
        "--federation.rounds=1000000",
        "--evaluate.every=0",
        "--evaluate.encoder=domain",
        "--evaluate.samples=100",
        "--evaluate.watch_samples=100",
        "--attack.name=none",
        "--training.translate=0",
        "--defense.name=none",
    ]
    plan = make_plan(config.read(options.config, overrides))
    seen = Cluster(plan.settings.cluster).launch(measure, plan, options.steps, options.repeats)
    plain = statistics.median(seen["plain PyTorch loop"])
    title = f"{options.repeats} runs of {options.steps} steps, {options.device}"
    table = Table("", "images/s", "lowest", "highest", "ratio to plain", title=title)
    for name, speeds in seen.items():
        middle = statistics.median(speeds)
        table.add_row(
            name,
            *(f"{value:.0f}" for value in (middle, min(speeds), max(speeds))),
            f"{middle / plain:.3f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
