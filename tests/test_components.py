"""A user's own classes in a user's own file, chosen by class path; names, and what is refused."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any, Literal

import pytest
import yaml

import fedgan
from fedgan.attacks.base import Attack
from fedgan.choices import rooms
from fedgan.components import available, build, find, python_path
from fedgan.errors import UserError
from fedgan.models.base import AdversarialLoss
from fedgan.settings import Component

OWN = """
import torch
from torch import nn
from fedgan.attacks.base import Attack, Mark
from fedgan.data.base import Dataset, Source, Split
from fedgan.defenses.base import Defense, Verdict
from fedgan.metrics.base import Encoder
from fedgan.models.base import AdversarialLoss, Generator, Pair


class Darken(Attack):
    def __init__(self, by: int = 10, most: int = None) -> None:
        self.by = by

    def check(self, channels, size, classes):
        pass

    def poison(self, images, labels, rng):
        return images // self.by, labels.clone()

    def mark(self, channels, size):
        return None


class Squares(AdversarialLoss):
    def discriminator(self, real, fake):
        return (real - 1).square().mean() + fake.square().mean()

    def generator(self, real, fake):
        return (fake - 1).square().mean()


class Median(Defense):
    def __init__(self, extra: float = 0.0) -> None:
        self.extra = extra

    def __call__(self, updates, reports, round):
        n = len(updates)
        aggregate = updates.columns(lambda block: block.median(0).values)
        zero = torch.zeros(n, dtype=torch.float64)
        return Verdict(updates.weights, zero + self.extra, zero.bool(), True, aggregate)


class Pixels(Encoder):
    fingerprint = "pixels"

    def prepare(self, train, labels, classes, seed):
        pass

    def to(self, device):
        pass

    def __call__(self, images):
        small = nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)
        return small, small


class Named(Pixels):
    name = "points"


class Half(Attack):
    def check(self, channels, size, classes):
        pass


class Stripes(Source):
    def __init__(self, n: int = 40) -> None:
        self.n = n

    def load(self, path, size, seed):
        labels = torch.arange(self.n) % 2
        images = torch.randint(90, (self.n, 1, 16, 16), generator=torch.Generator().manual_seed(1))
        images = (images + 100 * labels[:, None, None, None]).to(torch.uint8)
        split = Split(images, labels)
        return Dataset("stripes", split, split, split, ("thin", "thick"))


class Flat(Generator):
    latent_dim = 3

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.out = nn.Linear(3, shape.channels * shape.size**2)

    def forward(self, latents, labels):
        shape = self.shape
        return self.out(latents).tanh().view(-1, shape.channels, shape.size, shape.size)


class Judge(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.out = nn.Linear(shape.channels * shape.size**2, 1)

    def forward(self, images, labels):
        return self.out(images.flatten(1)).squeeze(1)


class Tiny(Pair):
    def build(self, shape):
        return Flat(shape), Judge(shape)
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "hospital").mkdir()
    (tmp_path / "hospital" / "own_parts.py").write_text(OWN)
    return tmp_path / "hospital"


def test_ones_own_parts_from_ones_own_file(own, tiny, tmp_path, fedgan_command):
    looks = {"encoder": "own_parts.Pixels", "watch_encoder": "own_parts.Named"}
    values = tiny({f"evaluate.{key}": {"class_path": path} for key, path in looks.items()})
    values |= {
        "data": {"class_path": "own_parts.Stripes", "init_args": {"n": 36}},
        "model": {"class_path": "own_parts.Tiny"},
        "loss": {"class_path": "own_parts.Squares", "init_args": {"every": 2}},
        "attack": {"class_path": "own_parts.Darken", "init_args": {"by": 5}, "clients": [1]},
        "defense": {"class_path": "own_parts.Median", "init_args": {"extra": 0.25}},
    }
    (own / "mine.yaml").write_text(yaml.safe_dump(values))
    done = fedgan_command("train", "hospital/mine.yaml", "--run_dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "fd_Pixels" in summary["figures"]  # it has no name but its class's
    assert "fd_points" in summary["watch_figures"]
    attack = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["attack"]
    assert attack["init_args"] == {"by": 5, "most": None}  # null is its default; see the resume
    assert (summary["attack"], summary["defense"]) == ("own_parts.Darken", "own_parts.Median")
    assert sum(row["n_images"] for row in summary["clients"]) == 36
    assert [row["malicious"] for row in summary["clients"]] == [False, True, False]
    assert ",0.25,False,False,True,ok" in (tmp_path / "out" / "clients.csv").read_text()
    assert fedgan.resume(tmp_path / "out")["generator_sha256"] == summary["generator_sha256"]


@pytest.mark.parametrize(
    ("key", "path", "words"),
    [
        ("attack", "own_parts.Squares", r"attack\.class_path: .*not a subclass of .*Attack"),
        ("loss", "own_parts.Darken", r"loss\.class_path: .*AdversarialLoss"),
        ("attack", "own_parts.Missing", r"attack\.class_path: .*Missing"),
        ("attack", "own_parts.Half", r"attack\.class_path: 'own_parts\.Half' lacks mark, poison$"),
        ("attack", "broken_part.Attack", r"attack\.class_path: .*broken_part.*ValueError|oh dear"),
    ],
)
def test_ones_own_that_will_not_do(own, tiny, capsys, monkeypatch, tmp_path, key, path, words):
    from fedgan.config import read
    from fedgan.experiment import run

    (own / "broken_part.py").write_text("raise ValueError('oh dear')")
    values = tiny({"run_dir": str(tmp_path / "run"), f"{key}.class_path": path})
    (own / "mine.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=words) as caught:
        run(read(own / "mine.yaml"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", rooms())
def test_every_room_has_its_components_and_a_line_on_each(key):
    room, base = rooms()[key]
    found = available(room, base)
    assert found
    for name, cls in found.items():
        assert cls.name == name
        assert (cls.__doc__ or "").strip()


def test_a_file_of_ones_own_hides_nobody_elses(tmp_path, monkeypatch):
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('not me')")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    before = list(sys.path)
    with pytest.raises(KeyError), python_path(tmp_path):  # noqa: PT012
        assert sys.path[: len(before)] == before
        assert str(tmp_path) in sys.path
        assert hasattr(importlib.import_module("colorsys"), "rgb_to_hsv")
        raise KeyError
    assert sys.path == before


class Odd(Attack):
    """Arguments that may be null by their annotation, by their default, or not at all."""

    def __init__(
        self,
        a: int | None = 1,
        b: int = None,  # noqa: RUF013
        c: int = 3,
        d=4,
    ) -> None:
        self.given = (a, b, c, d)

    def check(self, channels, size, classes):
        pass

    def poison(self, images, labels, rng):
        return images, labels

    def mark(self, channels, size):
        return None


@pytest.mark.parametrize("name", "abd")
def test_null_where_annotation_or_default_allows_it(name):
    choice = Component(class_path="x.Odd", init_args={name: None})
    expected = tuple({"a": 1, "b": None, "c": 3, "d": 4, name: None}.values())
    for _ in range(2):  # the second time with all arguments filled in, as a resume does
        assert build("attack", choice, Odd).given == expected
    assert choice.init_args[name] is None


def test_null_where_neither_does():
    choice = Component(class_path="x.Odd", init_args={"c": None})
    with pytest.raises(UserError, match=r"^attack\.init_args\.c: null is not a value for it$"):
        build("attack", choice, Odd)


def test_defaults_are_filled_in():
    choice = Component(name="patch", init_args={"margin": 2})
    attack = build("attack", choice, find("attack", choice, "fedgan.attacks", Attack))
    assert attack.margin == 2
    assert choice.init_args["margin"] == 2
    assert choice.init_args["opacity"] == 1.0


@pytest.mark.parametrize(
    ("init_args", "words"),
    [
        ({"gama": 1.0}, r"loss\.init_args\.gama: unknown argument; did you mean 'gamma'"),
        ({"gamma": "much"}, r"loss\.init_args\.gamma: expected float, got much"),
        ({"gamma": -1.0}, r"loss: .*gamma is -1"),
    ],
)
def test_bad_arguments(init_args, words):
    choice = Component(name="hinge", init_args=init_args)
    cls = find("loss", choice, "fedgan.models", AdversarialLoss)
    with pytest.raises(UserError, match=words):
        build("loss", choice, cls)


class Parent(Attack):
    def __init__(self, share: float = 0.5, mode: Literal["a", None] = "a", x: Any = 3) -> None:
        self.share, self.mode, self.x = share, mode, x

    def check(self, channels, size, classes): ...
    def mark(self, channels, size): ...
    def poison(self, images, labels, rng): ...


class Heir(Parent):
    def __init__(self, extra: int = 1, **kwargs) -> None:
        super().__init__(**kwargs)
        self.extra = extra


def test_arguments_of_a_parent_class_and_nulls_that_are_allowed():
    choice = Component(init_args={"share": 0.3, "extra": 2})
    assert build("attack", choice, Heir).share == 0.3
    assert build("attack", choice, Heir).extra == 2  # init_args are filled in by now
    assert build("attack", Component(init_args={"mode": None, "x": None}), Parent).mode is None
