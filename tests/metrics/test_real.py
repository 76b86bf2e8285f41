"""The real images of a distance: two halves, a batch at a time, their features on disk."""

from __future__ import annotations

import pytest
import torch

from fedgan.errors import UserError
from fedgan.metrics.base import Encoder
from fedgan.metrics.real import Halves, RealImages, halves


class Nothing(Encoder):
    name = "nothing"
    fingerprint = ""

    def __init__(self, version: str = "1") -> None:
        self.fingerprint = version

    def prepare(self, train, labels, classes, seed): ...
    def to(self, device): ...
    def __call__(self, images): ...


def numbered(n: int) -> torch.Tensor:
    """n images, each of one gray level, its number."""
    return torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 6, 6)


def labelled(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return numbered(n), torch.arange(n) % 2


def chosen(real: RealImages) -> list[int]:
    return torch.cat([real.batch(i)[:, 0, 0, 0] for i in range(len(real))]).tolist()


def test_halves_are_disjoint() -> None:
    """With every real image in a half, the two are the whole."""
    real = Halves(Nothing(), *labelled(100), samples=1000, seed=1)
    assert real.samples == 50
    assert sorted(chosen(real)) == list(range(100))


@pytest.mark.parametrize("pair", [0, 1])
def test_halves_have_the_classes_mix(pair) -> None:
    """Also of images with several labels, by their sets of labels; and of some of all images."""
    labels = (torch.arange(400) % 10 == 0).long()
    several = torch.stack([labels, torch.arange(400) % 2], 1).float()
    for seed in range(20):
        for a in halves(labels, 100, seed, pair).split(100):
            assert abs(int(labels[a].sum()) - 10) <= 2
        for a in halves(several, 100, seed, pair).split(100):
            assert abs(int(several[a, 0].sum()) - 10) <= 2
            assert abs(int(several[a, 1].sum()) - 50) <= 2
    assert not torch.equal(halves(labels, 100, 0, pair), halves(labels, 100, 0, pair + 1))


def test_other_seeds_draw_other_images() -> None:
    one, two, again = (chosen(Halves(Nothing(), *labelled(100), 20, s)) for s in (1, 2, 1))
    assert len(set(one)) == 40
    assert one == again
    assert one != two


def test_batches_are_whole_but_the_last() -> None:
    real = Halves(Nothing(), *labelled(100), samples=9, seed=1, batch_size=7)
    assert [len(real.batch(i)) for i in range(len(real))] == [7, 7, 4]


def test_only_a_batch_goes_to_the_device() -> None:
    real = Halves(Nothing(), *labelled(100), samples=9, seed=1, batch_size=7, device="meta")
    assert real.batch(0).is_meta
    assert real.batch(0).shape == (7, 1, 6, 6)
    assert not real._images.is_meta


def test_features_come_back_for_the_same_images_and_encoder_only() -> None:
    def real(images=None, version="1", batch_size=7, seed=1, device="cpu"):
        images = numbered(100) if images is None else images
        labels = torch.arange(100) % 2
        return Halves(Nothing(version), images, labels, 9, seed, batch_size, device)

    assert real().load() is None
    encoded = torch.rand(18, 3), torch.rand(18, 2)
    real().save(encoded)
    found = real().load()
    assert found is not None
    assert all(torch.equal(a, b) for a, b in zip(found, encoded, strict=True))
    assert real(images=numbered(100).flip(0)).load() is None
    assert real(version="2").load() is None
    assert real(batch_size=8).load() is None
    assert real(seed=2).load() is None
    assert real(device="meta").load() is None


def test_a_broken_cache_is_no_cache(tmp_path) -> None:
    real = Halves(Nothing(), *labelled(100), samples=9, seed=1)
    real.save((torch.rand(18, 3), torch.rand(18, 2)))
    (file,) = (tmp_path / "cache" / "features").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert real.load() is None


def test_a_cache_that_cannot_be_written_is_the_users_to_mend(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDGAN_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="FEDGAN_CACHE"):
        Halves(Nothing(), *labelled(100), samples=9, seed=1).load()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="8 real images"):
        Halves(Nothing(), *labelled(7), samples=10, seed=1)
    with pytest.raises(ValueError, match="4 samples"):
        Halves(Nothing(), *labelled(40), samples=3, seed=1)
