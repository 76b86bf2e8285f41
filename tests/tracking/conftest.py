"""A made-up run for the trackers: two rounds of three clients, one of them malicious."""

from __future__ import annotations

import pytest
import torch

from fedgan.defenses.base import Verdict
from fedgan.reports import Report
from fedgan.settings import Experiment
from fedgan.tracking.base import RoundRecord, RunInfo


@pytest.fixture
def info(tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    settings = Experiment()
    settings.federation.rounds = 3
    return RunInfo(
        run_dir=run_dir,
        settings=settings,
        n_images=(30, 20, 10),
        malicious=frozenset({2}),
        counts=[[10, 20], [10, 10], [0, 10]],
        classes=("thin", "thick [sic]"),
        images_in_round=60,
    )


@pytest.fixture
def record():
    """One round by its number; client 1 is left out, client 2 flagged."""

    def make(round=1, samples=None, figures=None, acted=True, critic_bias=None):
        nan = float("nan")
        reports = [
            Report(0, round, 30, 0.5, 1.0, 0.6, 1.1),
            Report(1, round, 20, nan, 2.0, 0.7, 2.1, "non-finite loss"),
            Report(2, round, 10, 0.9, 3.0, 0.8, 3.1),
        ]
        weights = torch.tensor([0.75, 0.25], dtype=torch.float64)
        scores = torch.tensor([0.4, 0.6], dtype=torch.float64)
        verdict = Verdict(weights, scores, torch.tensor([False, True]), acted=acted)
        return RoundRecord(
            round=round,
            reports=reports,
            verdict=verdict,
            attackers=frozenset({2}),
            figures=figures or {},
            fair_weights={0: 0.7, 2: 0.3},
            critic_bias=critic_bias or {},
            seconds=1.25,
            images_per_second=48.0,
            samples=samples,
        )

    return make


@pytest.fixture
def samples():
    rng = torch.Generator().manual_seed(0)
    return torch.randint(256, (2, 3, 1, 16, 16), generator=rng, dtype=torch.uint8)
