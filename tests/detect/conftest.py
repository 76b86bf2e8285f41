"""Tables of losses, made up, written and read; and `fedgan detect` on them."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest

from fedgan.cli import main
from fedgan.defenses.feddetect import FedDetect

HEADER = ["round", "client", "score", "flagged", "acted", "weight"]


@pytest.fixture(scope="session")
def drawn():
    """G losses [rounds, n], some of them negative; with an attacker, client 1, if `odd`."""

    def make(n, odd, rounds=40):
        losses = np.random.default_rng(100 * n + odd).normal(2, 1.5, (rounds, n))
        if odd:
            losses[:, 1] += np.random.default_rng(n).choice([0, 8], rounds)
        return losses.tolist()

    return make


@pytest.fixture(scope="session")
def rows_of():
    """Losses [rounds, n] as rows of round, client and loss."""

    def make(table, first=1, names=None):
        return [
            (round, names[i] if names else i, loss)
            for round, losses in enumerate(table, start=first)
            for i, loss in enumerate(losses)
        ]

    return make


@pytest.fixture(scope="session")
def write():
    """Writes a table; its path."""

    def make(path, rows, columns=("round", "client", "g_loss")):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
        return path

    return make


@pytest.fixture(scope="session")
def found():
    """The rows of a table that was written, by round and client."""

    def read(path):
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        assert reader.fieldnames == HEADER
        return {(int(row["round"]), row["client"]): row for row in rows}

    return read


@pytest.fixture(scope="session")
def run(found):
    """`fedgan detect` with --out; what it has written."""

    def detect(path, *options):
        out = path.with_name("out.csv")
        assert main(["detect", str(path), f"--out={out}", *options]) == 0
        return found(out)

    return detect


@pytest.fixture(scope="session")
def stub():
    """Puts into the forest's place: who is more than 5 is odd."""

    def detect(self, losses):
        far = np.abs(losses).max(1)
        if len(far) < 3:
            return np.full(len(far), np.nan), far > math.inf
        return far / (far + 5), far > 5

    return lambda patch: patch.setattr(FedDetect, "detect", detect)


@pytest.fixture
def quick(stub, monkeypatch):
    """The stub in the forest's place."""
    stub(monkeypatch)
