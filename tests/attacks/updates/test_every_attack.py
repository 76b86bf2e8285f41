"""What holds of every attack on updates, on any number of processes."""

from __future__ import annotations

import pytest
import torch

from fedgan.attacks.discriminator_only import DiscriminatorOnly
from fedgan.attacks.free_riders import FreeRider
from fedgan.attacks.model_poisoning import Gaussian, Neurotoxin, NormBound, Scaling, SignFlip
from fedgan.attacks.omniscient import (
    ALittleIsEnough,
    FangKrum,
    InnerProductManipulation,
    MinMax,
)
from fedgan.attacks.updates import AttackView, Omniscience, UpdateAttack
from fedgan.components import available
from fedgan.updates import UpdateMatrix

EVERY = available("fedgan.attacks", UpdateAttack)
DEFAULTS = [pytest.param(cls(), id=name) for name, cls in EVERY.items()]


@pytest.mark.parametrize("attack", DEFAULTS)
@pytest.mark.parametrize("last", [None, "some"])
def test_every_attack_keeps_shapes_and_writes_into_nothing(drawn, sent, attack, last):
    rows = drawn(7)
    last = None if last is None else drawn(1, seed=9)[0]
    before = rows.clone(), None if last is None else last.clone()
    out = sent(attack, rows, (1, 4), last=last)
    assert torch.equal(rows, before[0])
    assert last is None or torch.equal(last, before[1])
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    benign = [0, 2, 3, 5, 6]
    assert torch.equal(out[benign], rows[benign])


@pytest.mark.parametrize("attack", DEFAULTS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_attack_works_in_the_smallest_federations(drawn, sent, attack, n):
    for f in range(1, n + 1):
        assert sent(attack, drawn(n), tuple(range(f)), last=drawn(1, 5)[0]).isfinite().all()


@pytest.mark.parametrize("attack", DEFAULTS)
def test_every_attack_on_updates_that_are_all_the_same(drawn, sent, attack):
    rows = drawn(1).expand(6, -1).contiguous()
    assert sent(attack, rows, (0, 5), last=torch.zeros(rows.shape[1])).isfinite().all()


OWNERS = {1: (0,) * 6, 2: (1, 0, 1, 1, 0, 1), 3: (2, 0, 2, 0, 2, 2)}  # uneven, a rank with none


def vectors_on(cluster, values, last):
    owners = OWNERS[cluster.world]
    mine = [i for i, owner in enumerate(owners) if owner == cluster.rank]
    usable = UpdateMatrix(
        torch.from_numpy(values)[mine], (0, 2, 3, 5, 7, 8), owners, torch.full((6,), 1 / 6).double()
    )
    attackers = (2, 7)
    weights = dict.fromkeys(usable.clients, 1 / 6)
    view = AttackView(
        *(3, attackers, 6, weights, torch.zeros(values.shape[1]), torch.from_numpy(last)),
        omniscient=Omniscience(usable, attackers, {}),
        generator_size=values.shape[1] // 2,
    )
    found = {}
    attacks = {name: cls() for name, cls in EVERY.items()}
    attacks |= {"exact": Scaling(exact=True), "noisy": FreeRider("noisy"), "sign": MinMax("sign")}
    for name, attack in attacks.items():
        planned = attack.plan(view)
        for row, i in zip(usable.rows, mine, strict=True):
            if usable.clients[i] in attackers:
                vector = attack.corrupt(row, usable.clients[i], planned, view)
                found[f"{name} {usable.clients[i]}"] = vector.numpy()
    return {k: v for part in cluster.all_gather_objects(found) for k, v in part.items()}


@pytest.mark.parametrize("size", [7, 1003])
def test_the_same_bytes_on_any_number_of_ranks(drawn, on_ranks, size):
    values, last = drawn(6, size=size).numpy(), drawn(1, 7, size=size)[0].numpy()
    alone = on_ranks(1, vectors_on, values, last)
    assert len(alone) == 2 * (len(EVERY) + 3)
    for world in (2, 3):
        found = on_ranks(world, vectors_on, values, last)
        assert {k: v.tobytes() for k, v in found.items()} == {
            k: v.tobytes() for k, v in alone.items()
        }


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Scaling(factor=0.0), "factor is 0"),
        (lambda: Scaling(factor=2.0, exact=True), "with exact it must be null"),
        (lambda: SignFlip(-1.0), "scale is -1"),
        (lambda: Gaussian(std=float("inf")), "std is inf"),
        (lambda: Neurotoxin(1.0), "share is 1"),
        (lambda: NormBound(0.0), "norm is 0"),
        (lambda: FreeRider(std=0.0), "std is 0"),
        (lambda: ALittleIsEnough(float("nan")), "z is nan"),
        (lambda: InnerProductManipulation(0.0), "epsilon is 0"),
        (lambda: FangKrum(0.0), "threshold is 0"),
        (lambda: DiscriminatorOnly(boost=0.0), "boost is 0"),
        (lambda: DiscriminatorOnly(noise=-1.0), "noise is -1"),
    ],
)
def test_values_out_of_range(make, word):
    with pytest.raises(ValueError, match=word):
        make()
