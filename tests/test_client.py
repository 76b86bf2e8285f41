"""One client's round against a plain PyTorch loop written by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import softplus

from fedgan.client import ClientGAN
from fedgan.data.device import ClientImages
from fedgan.models.base import ImageShape
from fedgan.models.dcgan import DCGAN
from fedgan.models.losses import Relativistic
from fedgan.reports import pack, unpack
from fedgan.seeding import torch_generator
from fedgan.settings import Training
from fedgan.vectors import flatten

LR, GAMMA, EVERY, STEPS = 1e-3, 0.5, 2, 5


def pair():
    torch.manual_seed(0)
    return DCGAN(latent_dim=4, embed_dim=4, width=4, max_width=8).build(ImageShape(1, 16, 2))


def images():
    rng = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (40, 1, 16, 16), generator=rng, dtype=torch.uint8)
    return ClientImages(pixels, torch.arange(40) % 2, torch.arange(40))


def client(cluster, *, share=True, **training):
    gan = ClientGAN(
        3,
        *pair(),
        Relativistic(GAMMA, EVERY),
        Training(generator_lr=LR, discriminator_lr=LR, **{"translate": 0.0, **training}),
        share_discriminator=share,
    )
    gan.set_up(cluster.fabric)
    return gan


def shared(gan):
    return flatten(*gan.shared)


def play(gan, parameters, round=1, steps=STEPS):
    rng = torch_generator(7, "test", round)
    batches = images().batches(8, rng, epochs=1, steps=steps)
    update, losses = gan.train_round(parameters, batches, rng)
    return update, pack(3, 40, losses, update)


def plain_loop(steps=STEPS):
    """The same round with nothing of fedgan but its networks and its order of batches."""
    generator, discriminator = pair()
    adam_g = torch.optim.Adam(generator.parameters(), LR, (0.0, 0.99))
    adam_d = torch.optim.Adam(discriminator.parameters(), LR, (0.0, 0.99))
    rng = torch_generator(7, "test", 1)
    losses = []
    for i, (pixels, labels) in enumerate(images().batches(8, rng, epochs=1, steps=steps)):
        real = pixels.float() / 127.5 - 1
        fake = generator(torch.randn(8, 4, generator=rng), labels).detach()
        difference = discriminator(fake, labels) - discriminator(real, labels)
        d_loss = total = softplus(difference).mean()
        if i % EVERY == 0:
            for x in (real, fake):
                x = x.clone().requires_grad_(True)
                score = discriminator(x, labels).sum()
                (slope,) = torch.autograd.grad(score, x, create_graph=True)
                total = total + EVERY * GAMMA / 2 * slope.square().flatten(1).sum(1).mean()
        adam_d.zero_grad()
        total.backward()
        adam_d.step()
        fake = generator(torch.randn(8, 4, generator=rng), labels)
        difference = discriminator(real, labels) - discriminator(fake, labels)
        g_loss = softplus(difference).mean()
        adam_g.zero_grad()
        g_loss.backward()
        adam_g.step()
        losses.append((d_loss.item(), g_loss.item()))
    return flatten(generator, discriminator), losses


def test_a_round_is_the_plain_loop(on_ranks):
    def work(cluster):
        gan = client(cluster)
        start = shared(gan)
        update, row = play(gan, start)
        return start + update, row

    parameters, row = on_ranks(1, work)
    expected, losses = plain_loop()
    assert (parameters - expected).abs().max() < 1e-5
    (report,) = unpack(row[None], round=4)
    assert (report.client, report.round, report.n_images, report.status) == (3, 4, 40, "ok")
    means = torch.tensor(losses).mean(0).tolist()
    assert [report.d_loss, report.g_loss] == pytest.approx(means, abs=1e-5)
    assert [report.d_loss_last, report.g_loss_last] == pytest.approx(losses[-1], abs=1e-5)


def test_the_same_round_twice_is_the_same_bytes(on_ranks):
    def work(cluster):
        gans = [client(cluster, translate=0.125, cutout=0.3) for _ in range(2)]
        return [play(gan, shared(gan)) for gan in gans]

    (update, row), (update_too, row_too) = on_ranks(1, work)
    assert torch.equal(update, update_too)
    assert torch.equal(row, row_too)


def test_a_round_starts_from_the_global_parameters(on_ranks):
    def work(cluster):
        gan, fresh = client(cluster), client(cluster)
        start = shared(gan)
        play(gan, start)
        gan.reset_optimizers()
        gan.steps = 0
        return play(gan, start)[0], play(fresh, start)[0]

    again, fresh = on_ranks(1, work)
    assert torch.equal(again, fresh)


@pytest.mark.parametrize("share", [True, False])
def test_what_travels(on_ranks, share):
    def work(cluster):
        gan = client(cluster, share=share)
        start = shared(gan)
        before = flatten(gan.discriminator)
        update, _ = play(gan, start)
        return (
            len(update),
            before,
            flatten(gan.discriminator),
            flatten(gan.generator) - start[: flatten(gan.generator).numel()],
            update,
        )

    size, before, after, moved, update = on_ranks(1, work)
    generator, discriminator = pair()
    expected = flatten(generator, discriminator) if share else flatten(generator)
    assert size == len(expected)
    assert torch.equal(update[: len(moved)], moved)
    assert not torch.equal(before, after)


def test_moments_are_kept_unless_reset(on_ranks):
    def work(cluster):
        kept, reset = client(cluster), client(cluster)
        start = shared(kept)
        play(kept, start)
        play(reset, start)
        reset.reset_optimizers()
        emptied = [len(optimizer.state) for optimizer in reset._optimizers()]
        return play(kept, start, 2)[0], play(reset, start, 2)[0], emptied

    kept, reset, emptied = on_ranks(1, work)
    assert not torch.equal(kept, reset)
    assert emptied == [0, 0]


def test_local_state_is_all_that_a_client_remembers(on_ranks):
    def work(cluster):
        gan, other = client(cluster, share=False), client(cluster, share=False)
        start = shared(gan)
        play(gan, start)
        other.load_local_state(copy.deepcopy(gan.local_state()))
        return [play(g, start, 2) for g in (gan, other)]

    (update, row), (update_too, row_too) = on_ranks(1, work)
    assert torch.equal(update, update_too)
    assert torch.equal(row, row_too)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)]
)
def test_precision_is_applied_inside_the_step(on_ranks, precision, dtype):
    def work(cluster):
        gan = client(cluster)
        game, penalty = {"step": set(), "penalty": set()}, gan.loss.penalty
        where = ["step"]

        def penalty_and_note(critic, real, fake, labels, rng):
            where[0] = "penalty"
            found = penalty(critic, real, fake, labels, rng)
            where[0] = "step"
            game["penalty"] |= {real.dtype, fake.dtype, found.dtype}
            return found

        gan.loss.penalty = penalty_and_note
        for network in (gan.generator, gan.discriminator):
            conv = next(m for m in network.modules() if "Conv" in type(m).__name__)
            conv.register_forward_hook(lambda m, args, out: game[where[0]].add(out.dtype))
        update, row = play(gan, shared(gan), steps=2)
        kept = {p.dtype for p in gan.parameters()}
        return game, kept, update.dtype, bool(row.isfinite().all())

    game, kept, moved, finite = on_ranks(1, work, precision=precision)
    assert game == {"step": {dtype}, "penalty": {torch.float32}}  # squares of bf16 have 3 digits
    assert (kept, moved, finite) == ({torch.float32}, torch.float32, True)


def test_losses_wait_on_the_device_until_the_round_ends(on_ranks, monkeypatch):
    def work(cluster):
        gan = client(cluster)
        calls = []
        for name in ("item", "tolist", "__float__", "__bool__"):
            old = getattr(torch.Tensor, name)
            counted = lambda self, *a, old=old, name=name: (calls.append(name), old(self, *a))[1]  # noqa: E731
            monkeypatch.setattr(torch.Tensor, name, counted)
        batch = next(images().batches(8, torch.Generator(), epochs=1))
        gan.training_step(batch, 0)
        found = list(calls)
        monkeypatch.undo()
        return found

    assert on_ranks(1, work) == []


def test_mirroring_and_augmenting_change_the_round(on_ranks):
    def work(cluster):
        gans = [client(cluster, **a) for a in ({}, {"translate": 0.2}, {"cutout": 0.5})]
        return [play(gan, shared(gan))[0] for gan in gans]

    plain, moved, cut = on_ranks(1, work)
    assert not torch.equal(plain, moved)
    assert not torch.equal(plain, cut)
